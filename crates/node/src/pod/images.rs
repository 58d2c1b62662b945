//! Image volumes: from a reference in the pod to a directory on this machine.

use berth_image::{
    ContainerDisk, Credentials, DiskError, Hold, ImageRef, InvalidReference, NoProgress, PullError,
    PullOptions, PullPolicy, Store, StoreError, credentials_from_docker_config,
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, Client, ResourceExt};
use tracing::warn;

/// An image volume and where the pod's container wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImageVolume {
    pub(super) volume: String,
    pub(super) image: String,
    pub(super) policy: PullPolicy,
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
    #[error(transparent)]
    Pull(#[from] PullError),
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
            Self::Reference { .. } | Self::Pull(_) | Self::Store { .. } => false,
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
                Some("Always") => PullPolicy::Always,
                Some("Never") => PullPolicy::Never,
                _ => PullPolicy::IfNotPresent,
            },
            mount_path: mount.mount_path.clone(),
            path: mount.sub_path.clone(),
        })
    });
    volumes.collect()
}

/// The registry logins of a pod. A secret that is missing or of another type is told in the log and passed over, as
/// the kubelet does: the image may be public.
pub(super) async fn pull_secrets(client: &Client, pod: &Pod) -> Vec<Vec<u8>> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let named = pod
        .spec
        .iter()
        .flat_map(|s| s.image_pull_secrets.iter().flatten());
    let mut configs = Vec::new();
    for name in named.map(|reference| &reference.name) {
        let secret = match api.get(name).await {
            Ok(secret) => secret,
            Err(error) => {
                warn!(pod = %pod.name_any(), secret = name, %error, "image pull secret not read");
                continue;
            }
        };
        let data = secret.data.as_ref();
        match data.and_then(|d| d.get(".dockerconfigjson").or_else(|| d.get(".dockercfg"))) {
            Some(json) => configs.push(json.0.clone()),
            None => {
                warn!(pod = %pod.name_any(), secret = name, "image pull secret has no .dockerconfigjson");
            }
        }
    }
    configs
}

fn credentials(configs: &[Vec<u8>], registry: &str) -> Option<Credentials> {
    configs
        .iter()
        .find_map(|json| credentials_from_docker_config(json, registry))
}

/// Brings one image here, its disk extracted and held.
///
/// # Errors
/// When it cannot be had. Nothing half-done stays, also when the call is given up.
pub(super) async fn provide(
    store: &Store,
    volume: ImageVolume,
    configs: &[Vec<u8>],
    insecure_registries: &[String],
) -> Result<Provided, ImageError> {
    let reference: ImageRef = volume
        .image
        .parse()
        .map_err(|source| ImageError::Reference {
            image: volume.image.clone(),
            source,
        })?;
    let options = PullOptions {
        credentials: credentials(configs, reference.registry()),
        plain_http: insecure_registries
            .iter()
            .any(|r| r == reference.registry()),
        policy: volume.policy,
    };
    let in_store = |source| ImageError::Store {
        image: volume.image.clone(),
        source,
    };
    let fetched = match store.resolve(&reference) {
        Ok(known) => known.is_none(),
        Err(error) => return Err(in_store(error)),
    };
    let image = store.pull(&reference, &options, &NoProgress).await?;
    let (disk, hold) = crate::blocking({
        let (store, path) = (store.clone(), volume.path.clone());
        move || {
            let disk = match path {
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
        assert_eq!(volumes[0].policy, PullPolicy::Always);
        assert_eq!(volumes[0].mount_path, "/var/run/berth-disks/root");
    }
}
