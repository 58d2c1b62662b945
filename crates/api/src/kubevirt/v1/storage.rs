//! The storage behind the disks.

use base64::Engine as _;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ConfigMapVolumeSource, DownwardAPIVolumeSource, LocalObjectReference, SecretVolumeSource,
};
use crate::quantity;

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
    /// made as large as the claim if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimSource>,
    /// A disk on the claim of a DataVolume, which is waited for until it is filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_volume: Option<DataVolumeVolumeSource>,
    /// A disk on a claim that stays as it is: what the guest writes is lost when the machine ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralVolumeSource>,
    /// What cloud-init is told, as a disk of its data source NoCloud (label `cidata`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init_no_cloud: Option<CloudInitSource>,
    /// The same as a disk of its data source ConfigDrive (label `config-2`), which is OpenStack's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init_config_drive: Option<CloudInitSource>,
    /// An empty disk that goes with the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_disk: Option<EmptyDiskSource>,
    /// The texts of a Secret, as files of a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretVolumeSource>,
    /// The texts of a ConfigMap, as files of a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapVolumeSource>,
    /// What the machine's pod says of itself, as files of a disk.
    #[serde(
        default,
        rename = "downwardAPI",
        skip_serializing_if = "Option::is_none"
    )]
    pub downward_api: Option<DownwardAPIVolumeSource>,
}

impl Volume {
    /// The claim behind it, in any way, and whether nothing may be written to it.
    #[must_use]
    pub fn claim(&self) -> Option<(&str, bool)> {
        let claim = self.persistent_volume_claim.as_ref();
        let claim = claim.map(|claim| (claim.claim_name.as_str(), claim.read_only == Some(true)));
        let ephemeral = || {
            let source = self.ephemeral.as_ref()?.persistent_volume_claim.as_ref()?;
            Some((source.claim_name.as_str(), true))
        };
        claim
            .or_else(|| Some((self.data_volume.as_ref()?.name.as_str(), false)))
            .or_else(ephemeral)
    }

    /// What cloud-init is told, in either way.
    pub fn cloud_init(&self) -> Option<&CloudInitSource> {
        self.cloud_init_no_cloud
            .as_ref()
            .or(self.cloud_init_config_drive.as_ref())
    }

    /// The label of a disk of texts that come with the pod; none for other volumes.
    #[must_use]
    pub fn texts_label(&self) -> Option<&str> {
        let label = match (&self.secret, &self.config_map, &self.downward_api) {
            (Some(source), ..) => source.volume_label.as_deref(),
            (_, Some(source), _) => source.volume_label.as_deref(),
            (.., Some(source)) => source.volume_label.as_deref(),
            (None, None, None) => return None,
        };
        Some(label.filter(|label| !label.is_empty()).unwrap_or("cfgdata"))
    }

    /// Whether the launcher makes the disk itself.
    #[must_use]
    pub fn is_made_by_launcher(&self) -> bool {
        self.cloud_init().is_some() || self.empty_disk.is_some() || self.texts_label().is_some()
    }
}

/// What cloud-init is told. Each text is at most 65536 bytes, and is given as it is or as base64.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CloudInitSource {
    /// The user data, for example a document that begins with `#cloud-config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// The user data as base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data_base64: Option<String>,
    /// The configuration of the network. Default: none, and the guest asks by DHCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_data: Option<String>,
    /// The configuration of the network as base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_data_base64: Option<String>,
    /// A secret with the user data under the key `userdata` or `userData`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<LocalObjectReference>,
    /// A secret with the configuration of the network under the key `networkdata` or `networkData`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_data_secret_ref: Option<LocalObjectReference>,
}

/// A text for cloud-init that is no base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be base64")]
pub struct NoBase64;

impl CloudInitSource {
    /// The user data, however it is given.
    ///
    /// # Errors
    /// When it is given as base64 and is none.
    pub fn user(&self) -> Result<Option<Vec<u8>>, NoBase64> {
        decoded(self.user_data.as_deref(), self.user_data_base64.as_deref())
    }

    /// The configuration of the network, however it is given.
    ///
    /// # Errors
    /// When it is given as base64 and is none.
    pub fn network(&self) -> Result<Option<Vec<u8>>, NoBase64> {
        decoded(
            self.network_data.as_deref(),
            self.network_data_base64.as_deref(),
        )
    }
}

/// A text as it is or as base64, in which line breaks do not count.
fn decoded(plain: Option<&str>, base64: Option<&str>) -> Result<Option<Vec<u8>>, NoBase64> {
    match (plain, base64) {
        (Some(plain), _) => Ok(Some(plain.as_bytes().to_vec())),
        (None, Some(base64)) => {
            let text: String = base64.split_ascii_whitespace().collect();
            let bytes = base64::engine::general_purpose::STANDARD.decode(text);
            bytes.map(Some).map_err(|_| NoBase64)
        }
        (None, None) => Ok(None),
    }
}

impl std::fmt::Debug for CloudInitSource {
    /// Passwords are in there.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CloudInitSource { .. }")
    }
}

/// An empty disk that goes with the machine.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDiskSource {
    /// How large it is, as a quantity of bytes; at least 1Mi. It takes room on the node as it is written.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "quantity::de::option"
    )]
    #[schemars(schema_with = "quantity::schema::optional")]
    pub capacity: Option<Quantity>,
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

/// A disk on a claim that stays as it is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EphemeralVolumeSource {
    /// The claim; with a file system, for what is written goes to a file over `disk.img`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimSource>,
}

/// A DataVolume of the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DataVolumeVolumeSource {
    /// Its name.
    pub name: String,
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
