//! Image volumes: from a reference in the pod to a directory on this machine, and the removal of what no pod needs.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use berth_api::events::Recorder;
use berth_api::launcher::{held_by, is_boot_file};
use berth_image::{
    ContainerDisk, Credentials, Digest, DiskError, Hold, Image, ImageRef, InvalidReference,
    NoProgress, PullError, PullOptions, PullPolicy, Store, StoreError,
    credentials_from_docker_config,
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Shared;

/// Between two attempts to collect while somebody writes to the store.
const BUSY: Duration = Duration::from_secs(10);

/// An image volume and where the pod's container wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImageVolume {
    pub(super) volume: String,
    pub(super) image: String,
    /// None where the pod leaves it to the node.
    pub(super) policy: Option<PullPolicy>,
    pub(super) mount_path: String,
    /// The one file that is meant, where the image holds several.
    pub(super) path: Option<String>,
}

/// An image on this machine.
pub(super) struct Provided {
    pub(super) volume: ImageVolume,
    pub(super) disk: ContainerDisk,
    /// Keeps the disk until the pod has mounted it.
    #[expect(dead_code, reason = "held, never read")]
    pub(super) hold: Hold,
    /// Whether it had to be fetched.
    pub(super) fetched: bool,
}

/// Why an image cannot be had. Each message names the image.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageError {
    #[error("image {image:?}: {source}")]
    Reference {
        image: String,
        source: InvalidReference,
    },
    #[error("{source}{}", Secrets(secrets))]
    Pull {
        source: PullError,
        /// What is to be said of the pod's pull secrets.
        secrets: Vec<String>,
    },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("image {image}: {source}")]
    Store { image: String, source: StoreError },
}

impl ImageError {
    /// Whether it is the image itself that is of no use, so that another pull of it would bring the same.
    pub(super) fn is_the_images_fault(&self) -> bool {
        match self {
            Self::Disk(
                DiskError::Store { .. } | DiskError::Gone { .. } | DiskError::Damaged { .. },
            ) => false,
            Self::Disk(_) => true,
            Self::Reference { .. } | Self::Pull { .. } | Self::Store { .. } => false,
        }
    }

    /// Whether the image's name is none.
    pub(super) fn is_bad_name(&self) -> bool {
        matches!(self, Self::Reference { .. })
    }
}

/// The image volumes of a pod that its container mounts.
pub(super) fn image_volumes(pod: &Pod) -> Vec<ImageVolume> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let mounts = || {
        spec.containers
            .iter()
            .flat_map(|c| c.volume_mounts.iter().flatten())
    };
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| {
        let image = volume.image.as_ref()?;
        let mount = mounts().find(|m| m.name == volume.name)?;
        Some(ImageVolume {
            volume: volume.name.clone(),
            image: image.reference.clone().unwrap_or_default(),
            policy: match image.pull_policy.as_deref() {
                Some("Always") => Some(PullPolicy::Always),
                Some("IfNotPresent") => Some(PullPolicy::IfNotPresent),
                Some("Never") => Some(PullPolicy::Never),
                _ => None,
            },
            mount_path: mount.mount_path.clone(),
            path: mount.sub_path.clone(),
        })
    });
    volumes.collect()
}

/// The one place that decides when a registry is asked. What was built or imported here is used as it is, and a tag that
/// moves is looked up again, unless the pod says otherwise. A registry that does not answer is then an error, as it is for
/// the kubelet.
fn policy(given: Option<PullPolicy>, reference: &ImageRef, known: Option<&Image>) -> PullPolicy {
    match given {
        Some(given) => given,
        None if known.is_some_and(|image| image.local) => PullPolicy::IfNotPresent,
        None if reference.tag() == Some("latest") => PullPolicy::Always,
        None => PullPolicy::IfNotPresent,
    }
}

/// The registry logins of a pod, and what is wrong with them.
#[derive(Debug, Default)]
pub(super) struct PullSecrets {
    /// Name and content.
    configs: Vec<(String, Vec<u8>)>,
    /// A sentence for each secret that is of no use.
    problems: Vec<String>,
}

/// Sentences behind an error.
struct Secrets<'a>(&'a [String]);

impl fmt::Display for Secrets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|said| write!(f, "; {said}"))
    }
}

/// The registry logins of a pod. A secret that is missing or of another type is told in an event and passed over, as the
/// kubelet does: the image may be public. If it is not, the failed pull names the secret too.
pub(super) async fn pull_secrets(client: &Client, recorder: &Recorder, pod: &Pod) -> PullSecrets {
    let api: Api<Secret> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let named = pod
        .spec
        .iter()
        .flat_map(|s| s.image_pull_secrets.iter().flatten());
    let mut secrets = PullSecrets::default();
    for name in named.map(|reference| &reference.name) {
        let read = match api.get_opt(name).await {
            Ok(Some(secret)) => docker_config(secret),
            Ok(None) => Err("does not exist".to_owned()),
            Err(error) => Err(format!("cannot be read: {error}")),
        };
        match read {
            Ok(config) => secrets.configs.push((name.clone(), config)),
            Err(problem) => {
                let problem = format!("imagePullSecret {name:?} {problem}");
                warn!(pod = %pod.name_any(), "{problem}");
                recorder
                    .warning(pod, "FailedToRetrieveImagePullSecret", &problem)
                    .await;
                secrets.problems.push(problem);
            }
        }
    }
    secrets
}

fn docker_config(secret: Secret) -> Result<Vec<u8>, String> {
    let mut data = secret.data.unwrap_or_default();
    let config = data
        .remove(".dockerconfigjson")
        .or_else(|| data.remove(".dockercfg"));
    match config {
        Some(config) => Ok(config.0),
        None => Err(format!(
            "is of type {:?} and has no .dockerconfigjson",
            secret.type_.unwrap_or_default()
        )),
    }
}

impl PullSecrets {
    /// The login for an image, with the name of its secret. An entry may be for a part of a registry only.
    fn credentials(&self, image: &ImageRef) -> Option<(&str, Credentials)> {
        self.configs.iter().find_map(|(name, json)| {
            let found = credentials_from_docker_config(json, &image.name())?;
            Some((name.as_str(), found))
        })
    }

    /// What a failed pull has to say of them.
    fn blame(&self, image: &ImageRef, error: &PullError, used: Option<&str>) -> Vec<String> {
        if !matches!(
            error,
            PullError::Unauthorized { .. } | PullError::NotFound { .. }
        ) {
            return self.problems.clone();
        }
        let mut said = self.problems.clone();
        match used {
            Some(name) => said.push(format!("asked with the login of imagePullSecret {name:?}")),
            None => said.extend(self.configs.iter().map(|(name, _)| {
                let registry = image.registry();
                format!("imagePullSecret {name:?} has no login for registry {registry}")
            })),
        }
        said
    }
}

/// Brings one image here, its disk extracted and held.
///
/// # Errors
/// When it cannot be had. Nothing half-done stays, also when the call is given up.
pub(super) async fn provide(
    store: &Store,
    volume: ImageVolume,
    secrets: &PullSecrets,
    insecure_registries: &[String],
) -> Result<Provided, ImageError> {
    let reference: ImageRef = volume
        .image
        .parse()
        .map_err(|source| ImageError::Reference {
            image: volume.image.clone(),
            source,
        })?;
    let in_store = |source| ImageError::Store {
        image: volume.image.clone(),
        source,
    };
    let known = store.resolve(&reference).map_err(in_store)?;
    let (secret, credentials) = match secrets.credentials(&reference) {
        Some((name, credentials)) => (Some(name), Some(credentials)),
        None => (None, None),
    };
    let options = PullOptions {
        credentials,
        plain_http: insecure_registries
            .iter()
            .any(|r| r == reference.registry()),
        policy: policy(volume.policy, &reference, known.as_ref()),
    };
    let image = store
        .pull(&reference, &options, &NoProgress)
        .await
        .map_err(|source| ImageError::Pull {
            secrets: secrets.blame(&reference, &source, secret),
            source,
        })?;
    let fetched = known.is_none_or(|known| known.digest != image.digest);
    let (disk, hold) = crate::blocking({
        let (store, path) = (store.clone(), volume.path.clone());
        let is_file = held_by(&volume.volume).is_some_and(|held| is_boot_file(&held));
        move || {
            let disk = match path {
                Some(path) if is_file => store.file_at(&image, &path)?,
                Some(path) => store.disk_at(&image, &path)?,
                None => store.disk(&image)?,
            };
            let hold = store.hold(&disk);
            Ok::<_, DiskError>((disk, hold))
        }
    })
    .await?;
    let hold = hold.map_err(in_store)?;
    Ok(Provided {
        volume,
        disk,
        hold,
        fetched,
    })
}

/// Removes images and disks that nothing names or uses any more: at once, and whenever `told` says that a pod is gone.
pub(super) async fn collect_unused(shared: &Shared, shutdown: &CancellationToken) {
    loop {
        while collect(shared).await {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(BUSY) => {}
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = shared.pod_gone.notified() => {}
        }
    }
}

/// Whether it has to be tried again, because somebody writes to the store.
async fn collect(shared: &Shared) -> bool {
    let running = shared
        .sandboxes
        .all()
        .into_iter()
        .filter(|r| r.ended.is_none());
    let disks = running.flat_map(|record| record.disks);
    let in_use: BTreeSet<Digest> = disks.filter_map(|(_, disk)| image_of(&disk.dir)).collect();
    let store = shared.store.clone();
    match crate::blocking(move || store.collect(&in_use)).await {
        Ok(done) => {
            if done.blobs + done.disks > 0 {
                tracing::info!(
                    blobs = done.blobs,
                    disks = done.disks,
                    bytes = done.bytes,
                    "unused images removed"
                );
            }
            done.busy
        }
        Err(error) => {
            warn!(%error, "unused images are not removed");
            false
        }
    }
}

/// The image of a disk's directory, `<manifest>` or `<manifest>-<path>`.
fn image_of(dir: &std::path::Path) -> Option<Digest> {
    let name = dir.file_name()?.to_str()?;
    Digest::from_hex(name.split('-').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn volumes_without_a_mount_are_not_fetched() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {
                "containers": [{"name": "compute", "volumeMounts": [
                    {"name": "disk-root", "mountPath": "/var/run/berth-disks/root"},
                    {"name": "run", "mountPath": "/var/run/berth"},
                ]}],
                "volumes": [
                    {"name": "run", "emptyDir": {}},
                    {"name": "disk-root", "image": {"reference": "guest:1", "pullPolicy": "Always"}},
                    {"name": "disk-other", "image": {"reference": "other:1"}},
                ],
            },
        }))
        .unwrap();
        let volumes = image_volumes(&pod);
        assert_eq!(volumes.len(), 1);
        assert_eq!(volumes[0].image, "guest:1");
        assert_eq!(volumes[0].policy, Some(PullPolicy::Always));
        assert_eq!(volumes[0].mount_path, "/var/run/berth-disks/root");
    }

    fn image(reference: &str, local: bool) -> Image {
        Image {
            reference: reference.parse().unwrap(),
            digest: Digest::of(b""),
            size: 0,
            local,
            stored: std::time::SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn when_the_registry_is_asked() {
        use PullPolicy::{Always, IfNotPresent, Never};
        let digest = format!("quay.io/a@{}", Digest::of(b""));
        for (given, name, local, meant) in [
            (None, "quay.io/a", None, Always),
            (None, "quay.io/a:latest", Some(false), Always),
            (None, "quay.io/a:latest", Some(true), IfNotPresent),
            (None, "quay.io/a", Some(true), IfNotPresent),
            (None, "quay.io/a:1", None, IfNotPresent),
            (None, "quay.io/a:1", Some(false), IfNotPresent),
            (None, &digest, None, IfNotPresent),
            (Some(Always), "quay.io/a:1", Some(true), Always),
            (Some(IfNotPresent), "quay.io/a", Some(false), IfNotPresent),
            (Some(Never), "quay.io/a", None, Never),
        ] {
            let known = local.map(|local| image(name, local));
            let decided = policy(given, &name.parse().unwrap(), known.as_ref());
            assert_eq!(decided, meant, "{given:?} {name} {local:?}");
        }
    }

    #[test]
    fn a_login_may_be_for_a_part_of_a_registry() {
        let config = br#"{"auths": {"quay.io/team": {"username": "u", "password": "p"}}}"#;
        let secrets = PullSecrets {
            configs: vec![("teams".to_owned(), config.to_vec())],
            problems: vec![],
        };
        let of = |name: &str| secrets.credentials(&name.parse().unwrap());
        assert_eq!(of("quay.io/team/vm:1").map(|(name, _)| name), Some("teams"));
        assert!(of("quay.io/other/vm:1").is_none());
    }

    #[test]
    fn a_failed_pull_names_the_secrets() {
        let reference: ImageRef = "quay.io/vm:1".parse().unwrap();
        let refused = || PullError::Unauthorized {
            image: reference.to_string(),
            registry: "quay.io".to_owned(),
            cause: "no".to_owned(),
        };
        let secrets = PullSecrets {
            configs: vec![("other".to_owned(), b"{}".to_vec())],
            problems: vec!["imagePullSecret \"mine\" does not exist".to_owned()],
        };
        let told = |used: Option<&str>| {
            ImageError::Pull {
                secrets: secrets.blame(&reference, &refused(), used),
                source: refused(),
            }
            .to_string()
        };
        let without = told(None);
        assert!(
            without.contains("; imagePullSecret \"mine\" does not exist; "),
            "{without}"
        );
        assert!(without.ends_with("imagePullSecret \"other\" has no login for registry quay.io"));
        assert!(told(Some("other")).ends_with("asked with the login of imagePullSecret \"other\""));
    }
}
