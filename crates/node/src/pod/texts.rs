//! Volumes of texts: Secrets, ConfigMaps, what the pod says of itself. They are read when the pod is made, and looked at
//! again from time to time.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown, fchown};
use std::path::Path;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeSource, Pod, Secret, Volume};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

/// One volume with its files.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Texts {
    /// Where the pod wants it.
    pub(crate) mount_path: String,
    /// By name.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl std::fmt::Debug for Texts {
    /// Secrets are in there.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Texts")
            .field("mount_path", &self.mount_path)
            .field("files", &self.files.keys())
            .finish()
    }
}

/// Whether a volume is one of these.
pub(super) fn is_texts(volume: &Volume) -> bool {
    volume.secret.is_some() || volume.config_map.is_some() || volume.downward_api.is_some()
}

/// The volumes of texts that the pod's container mounts, by name.
///
/// # Errors
/// A sentence that names what is not there.
pub(super) async fn gather(client: &Client, pod: &Pod) -> Result<BTreeMap<String, Texts>, String> {
    let mut all = BTreeMap::new();
    let Some(spec) = &pod.spec else {
        return Ok(all);
    };
    for volume in spec.volumes.iter().flatten() {
        let mut mounts = spec
            .containers
            .iter()
            .flat_map(|c| c.volume_mounts.iter().flatten());
        let Some(mount) = mounts.find(|mount| mount.name == volume.name) else {
            continue;
        };
        let files = if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let found: Option<Secret> = get(client, pod, "secret", name, source.optional).await?;
            let data = found.and_then(|secret| secret.data).unwrap_or_default();
            plain(data)
        } else if let Some(source) = &volume.config_map {
            let name = &source.name;
            let found: Option<ConfigMap> =
                get(client, pod, "configmap", name, source.optional).await?;
            let found = found.unwrap_or_default();
            let texts = found.data.unwrap_or_default().into_iter();
            let mut files: BTreeMap<_, _> =
                texts.map(|(key, text)| (key, text.into_bytes())).collect();
            files.extend(plain(found.binary_data.unwrap_or_default()));
            files
        } else if let Some(source) = &volume.downward_api {
            of_pod(pod, source)?
        } else {
            continue;
        };
        let texts = Texts {
            mount_path: mount.mount_path.clone(),
            files,
        };
        all.insert(volume.name.clone(), texts);
    }
    Ok(all)
}

fn plain(data: BTreeMap<String, ByteString>) -> BTreeMap<String, Vec<u8>> {
    data.into_iter()
        .map(|(key, bytes)| (key, bytes.0))
        .collect()
}

async fn get<K>(
    client: &Client,
    pod: &Pod,
    kind: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<K>, String>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
    K::DynamicType: Default,
{
    let namespace = pod.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let found = api.get_opt(name).await;
    let found = found.map_err(|error| format!("{kind} {name:?} cannot be read: {error}"))?;
    if found.is_none() && optional != Some(true) {
        return Err(format!("{kind} {name:?} not found"));
    }
    Ok(found)
}

/// What the pod says of itself.
fn of_pod(
    pod: &Pod,
    source: &DownwardAPIVolumeSource,
) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let mut files = BTreeMap::new();
    for item in source.items.iter().flatten() {
        let path = item.field_ref.as_ref().map_or("", |of| &of.field_path);
        let text =
            field(pod, path).ok_or_else(|| format!("field {path:?} of a pod cannot be told"))?;
        files.insert(item.path.clone(), text.into_bytes());
    }
    Ok(files)
}

/// A field of the pod as the kubelet writes it.
fn field(pod: &Pod, path: &str) -> Option<String> {
    let keyed = |map: &str| {
        path.strip_prefix(map)?
            .strip_prefix("['")?
            .strip_suffix("']")
    };
    let lines = |map: &BTreeMap<String, String>| {
        let lines: Vec<String> = map
            .iter()
            .map(|(key, value)| format!("{key}={value:?}"))
            .collect();
        lines.join("\n")
    };
    let of = |map: &BTreeMap<String, String>, key: &str| map.get(key).cloned().unwrap_or_default();
    match path {
        "metadata.name" => Some(pod.name_any()),
        "metadata.namespace" => pod.namespace(),
        "metadata.uid" => pod.uid(),
        "metadata.labels" => Some(lines(pod.labels())),
        "metadata.annotations" => Some(lines(pod.annotations())),
        "spec.nodeName" => Some(pod.spec.as_ref()?.node_name.clone().unwrap_or_default()),
        _ => keyed("metadata.labels")
            .map(|key| of(pod.labels(), key))
            .or_else(|| keyed("metadata.annotations").map(|key| of(pod.annotations(), key))),
    }
}

/// Brings the files of a volume up to date, each whole or not at all. The pod's group may read them, and nobody but root may
/// change them. Blocks.
pub(super) fn write(dir: &Path, texts: &Texts, group: u32) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(dir)?;
    chown(dir, None, Some(group))?;
    for (name, bytes) in &texts.files {
        // Kubernetes allows no others; who is asked here is the API all the same.
        if name.contains('/') || name.starts_with("..") || matches!(&**name, "" | ".") {
            let text = format!("{name:?} is no name of a file");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let path = dir.join(name);
        if fs::read(&path).is_ok_and(|there| there == *bytes) {
            continue;
        }
        let mut file = tempfile::Builder::new().prefix("..").tempfile_in(dir)?;
        file.write_all(bytes)?;
        let mode = fs::Permissions::from_mode(0o440);
        file.as_file().set_permissions(mode)?;
        fchown(file.as_file(), None, Some(group))?;
        file.persist(&path)?;
    }
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        if !name
            .to_str()
            .is_some_and(|name| texts.files.contains_key(name))
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_says_of_itself_what_a_kubelet_would() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "lab", "uid": "u", "labels": {"a": "b", "c": "d\"e"}, "annotations": {"x/y": "z"}},
            "spec": {"nodeName": "n", "containers": []},
        }))
        .unwrap();
        for (path, text) in [
            ("metadata.name", "p"),
            ("metadata.namespace", "lab"),
            ("metadata.labels", "a=\"b\"\nc=\"d\\\"e\""),
            ("metadata.labels['a']", "b"),
            ("metadata.annotations['x/y']", "z"),
            ("metadata.annotations['none']", ""),
            ("spec.nodeName", "n"),
        ] {
            assert_eq!(field(&pod, path).as_deref(), Some(text), "{path}");
        }
        assert_eq!(field(&pod, "status.podIP"), None);
    }

    #[test]
    fn files_are_the_pods_alone_and_follow_their_source() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("text-a");
        let group = rustix::process::getgid().as_raw();
        let mut texts = Texts::default();
        texts.files.insert("key".into(), b"value".to_vec());
        texts.files.insert("gone".into(), b"soon".to_vec());
        write(&at, &texts, group).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&at), mode(&at.join("key"))), (0o750, 0o440));
        texts.files.insert("key".into(), b"other".to_vec());
        texts.files.remove("gone");
        write(&at, &texts, group).unwrap();
        assert_eq!(fs::read(at.join("key")).unwrap(), b"other");
        assert_eq!(fs::read_dir(&at).unwrap().count(), 1);
        assert!(!format!("{texts:?}").contains("other"));
        texts.files.insert("../x".into(), Vec::new());
        assert!(write(&at, &texts, group).is_err());
    }
}
