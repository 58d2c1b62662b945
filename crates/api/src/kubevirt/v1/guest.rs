//! What a guest's own agent tells of it. All of it was written by the guest: it is shown, and nothing is decided by it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The operating system of a guest, as its agent tells it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceGuestOSInfo {
    /// Its name, for example `Debian GNU/Linux`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The release of the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_release: Option<String>,
    /// The version of the system in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Name and version for a reader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pretty_name: Option<String>,
    /// The version of the system as a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// The version of the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
    /// The processor's architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// One word for the system, for example `debian`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// Short name of [`VirtualMachineInstanceGuestOSInfo`].
pub type GuestOSInfo = VirtualMachineInstanceGuestOSInfo;

/// The answer of `guestosinfo`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceGuestAgentInfo {
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_agent_version: Option<String>,
    /// What the agent can be asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supported_commands: Vec<GuestAgentCommandInfo>,
    /// The guest's name for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The operating system.
    #[serde(default)]
    pub os: GuestOSInfo,
    /// The time zone with its distance from UTC in seconds, for example `CET, 3600`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Who is logged in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub user_list: Vec<GuestOSUser>,
    /// The mounted file systems.
    #[serde(default)]
    pub fs_info: FileSystemInfo,
    /// `frozen` while the file systems do not take writes.
    #[serde(
        rename = "fsFreezeStatus",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub fs_freeze_status: Option<String>,
}

/// Short name of [`VirtualMachineInstanceGuestAgentInfo`].
pub type GuestAgentInfo = VirtualMachineInstanceGuestAgentInfo;

/// A command of the agent.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestAgentCommandInfo {
    /// Its name.
    pub name: String,
    /// Whether the guest lets it be used.
    #[serde(default)]
    pub enabled: bool,
}

/// Somebody who is logged in.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GuestOSUser {
    /// The name.
    pub user_name: String,
    /// The domain of the name; on Windows only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Since when: seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_time: Option<f64>,
}

/// The mounted file systems.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct FileSystemInfo {
    /// Each of them.
    #[serde(default)]
    pub disks: Vec<FileSystem>,
}

/// A mounted file system.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FileSystem {
    /// The device that it is on.
    pub disk_name: String,
    /// Where it is mounted.
    pub mount_point: String,
    /// Its type.
    pub file_system_type: String,
    /// Bytes that are used.
    pub used_bytes: i64,
    /// Bytes that there are.
    pub total_bytes: i64,
    /// The disks below it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disk: Vec<FileSystemDisk>,
}

/// A disk below a file system.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FileSystemDisk {
    /// Its serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The bus that it is on.
    pub bus_type: String,
}
