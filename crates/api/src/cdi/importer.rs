//! What the controller tells the process that fills a volume, and what that tells back.

use serde::{Deserialize, Serialize};

/// Where the volume is, inside the pod, with a file system.
pub const VOLUME_DIR: &str = "/data";
/// Where it is as a device.
pub const VOLUME_DEVICE: &str = "/dev/cdi-block-volume";
/// Where the volume is that is copied.
pub const SOURCE_DIR: &str = "/source";
/// The same as a device.
pub const SOURCE_DEVICE: &str = "/dev/cdi-source-volume";
/// Where the secret with the credentials is.
pub const SECRET_DIR: &str = "/var/run/berth-secret";
/// Where the authorities are.
pub const CERTIFICATES_DIR: &str = "/var/run/berth-certificates";
/// Where the secrets with headers are; the number of the secret follows.
pub const HEADERS_DIR: &str = "/var/run/berth-headers";
/// The port at which it tells how far it is.
pub const METRICS_PORT: u16 = 8443;
/// How far it is, in percent, in the words of Prometheus.
pub const PROGRESS_METRIC: &str = "kubevirt_cdi_import_progress_total";

/// One volume to fill.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// From where.
    pub from: From,
    /// UID of the DataVolume, which names its metrics.
    pub owner_uid: String,
    /// The size of the claim's volume in bytes.
    pub claim: u64,
    /// What the claim asked for, in bytes.
    pub asked: u64,
    /// Whether it is a device.
    pub block: bool,
    /// The whole disk's room is taken at once.
    #[serde(default)]
    pub preallocate: bool,
}

/// Where the content of a volume comes from.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum From {
    /// Nowhere: an empty disk.
    Blank {},
    /// A web server.
    #[serde(rename_all = "camelCase")]
    Http {
        /// Address.
        url: String,
        /// What its bytes hash to.
        #[serde(default)]
        checksum: Option<String>,
        /// More headers, as `name: value`.
        #[serde(default)]
        headers: Vec<String>,
        /// How many secrets with headers there are.
        #[serde(default)]
        secret_headers: usize,
        /// Whether any certificate will do.
        #[serde(default)]
        insecure: bool,
    },
    /// A container disk.
    #[serde(rename_all = "camelCase")]
    Registry {
        /// Image, without the scheme.
        image: String,
        /// Whether the registry is spoken to without TLS.
        #[serde(default)]
        plain_http: bool,
    },
    /// Another volume, which is mounted.
    #[serde(rename_all = "camelCase")]
    Volume {
        /// Whether it is a device.
        block: bool,
    },
}

/// The last words of the process, in its termination message.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// What was done, or why not.
    pub message: String,
    /// Whether trying again would come to the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_final: bool,
}
