//! The storage behind the disks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A named piece of storage. Exactly one source must be set.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Name, unique among the volumes; a DNS label.
    pub name: String,
    /// A disk out of an OCI image. What the guest writes is lost when the machine ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_disk: Option<ContainerDiskSource>,
    /// A disk on a PersistentVolumeClaim: the block device, or the file `disk.img` (raw) on the file system, which is
    /// made as large as the claim if it is not there. On a cluster only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimSource>,
}

/// A PersistentVolumeClaim of the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PersistentVolumeClaimSource {
    /// Name of the claim.
    pub claim_name: String,
    /// Whether the guest may not write; default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}

/// A disk out of an OCI image that holds exactly one file, raw or qcow2, below `/disk/`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ContainerDiskSource {
    /// Image reference: `[registry/]name[:tag][@sha256:…]`.
    pub image: String,
    /// When the image is pulled: `Always`, `IfNotPresent` or `Never`. Default: an image that was built or imported
    /// on the node is used as it is; any other is `Always` with the tag `latest` or none, else `IfNotPresent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,
    /// Name of a secret of type `kubernetes.io/dockerconfigjson` in the same namespace with the registry's
    /// credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_secret: Option<String>,
    /// Absolute path of the disk inside the image, below `/disk/`. Default: the only file there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}
