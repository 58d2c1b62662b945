//! What became of a VirtualMachineInstance. Until the phase is `Scheduled` the VMI controller writes it, from
//! then on the agent of the node.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{GuestOSInfo, Machine};
use crate::quantity;

/// Where a VirtualMachineInstance is in its life.
///
/// ```text
/// Pending → Scheduling → Scheduled → Running → Succeeded
///    └──────────┴────────────┴──────────┴────→ Failed
/// ```
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord,
)]
pub enum VirtualMachineInstancePhase {
    /// Accepted; something it needs is not there yet.
    Pending,
    /// Its pod exists and is not ready yet.
    Scheduling,
    /// Its pod is ready on a node, whose agent has taken over.
    Scheduled,
    /// The guest runs.
    Running,
    /// The guest ended by itself or on request.
    Succeeded,
    /// It ended by a failure.
    Failed,
}

/// Short name of [`VirtualMachineInstancePhase`].
pub type VmiPhase = VirtualMachineInstancePhase;

impl VirtualMachineInstancePhase {
    /// The word in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Scheduling => "Scheduling",
            Self::Scheduled => "Scheduled",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    /// Whether the machine has ended and will not run again.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

impl fmt::Display for VirtualMachineInstancePhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What became of a VirtualMachineInstance.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceStatus {
    /// Where the machine is in its life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<VirtualMachineInstancePhase>,
    /// When each phase was entered, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phase_transition_timestamps: Vec<VirtualMachineInstancePhaseTransitionTimestamp>,
    /// One word for why the machine is in this phase, set on failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Observations, at most one of each type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<VirtualMachineInstanceCondition>,
    /// Name of the node that the machine runs or ran on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The network interfaces, in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<VirtualMachineInstanceNetworkInterface>,
    /// The pods that hold this machine: UID to node name (empty while not scheduled).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub active_pods: BTreeMap<String, String>,
    /// Quality of service of the pod: `Guaranteed`, `Burstable` or `BestEffort`.
    #[serde(default, rename = "qosClass", skip_serializing_if = "Option::is_none")]
    pub qos_class: Option<String>,
    /// Name of the ControllerRevision that holds the VirtualMachine's spec as it was when this instance was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine_revision_name: Option<String>,
    /// The operating system, as the guest's agent tells it.
    #[serde(
        default,
        rename = "guestOSInfo",
        skip_serializing_if = "Option::is_none"
    )]
    pub guest_os_info: Option<GuestOSInfo>,
    /// `frozen` while the guest's file systems do not take writes, by request.
    #[serde(
        default,
        rename = "fsFreezeStatus",
        skip_serializing_if = "Option::is_none"
    )]
    pub fs_freeze_status: Option<String>,
    /// The machine type that the guest really has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// The volumes that the guest has, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_status: Vec<VolumeStatus>,
    /// Version of the launcher image that the machine was started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launcher_container_image_version: Option<String>,
    /// The virtual processors that the guest really has.
    #[serde(
        default,
        rename = "currentCPUTopology",
        skip_serializing_if = "Option::is_none"
    )]
    pub current_cpu_topology: Option<CPUTopology>,
    /// The memory that the guest really has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStatus>,
}

/// A volume that the guest has.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// Name of the volume.
    pub name: String,
    /// Name of the disk in the domain, for example `vda`. The guest may call it otherwise.
    pub target: String,
    /// The claim behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim_info: Option<PersistentVolumeClaimInfo>,
}

/// The claim behind a volume.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PersistentVolumeClaimInfo {
    /// Name of the claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_name: Option<String>,
}

/// When a phase was entered.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstancePhaseTransitionTimestamp {
    /// The phase.
    pub phase: VirtualMachineInstancePhase,
    /// The moment.
    pub phase_transition_timestamp: Time,
}

/// An observation about the machine.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceCondition {
    /// What is observed, for example `Ready`.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word for why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A sentence for a reader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When the observation was last made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_probe_time: Option<Time>,
    /// When `status` last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
}

/// Short name of [`VirtualMachineInstanceCondition`].
pub type VmiCondition = VirtualMachineInstanceCondition;

/// What is known of a network interface.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceNetworkInterface {
    /// Name of the interface in the spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// First address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_address: Option<String>,
    /// All addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_addresses: Vec<String>,
    /// Hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Name of the pod's interface behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_interface_name: Option<String>,
    /// The guest's own name for it, as its agent tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_name: Option<String>,
    /// Who told this: `domain`, and `guest-agent` where the guest's agent did, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info_source: Option<String>,
    /// State of the link: `up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_state: Option<String>,
    /// Number of queue pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_count: Option<i32>,
}

/// Short name of [`VirtualMachineInstanceNetworkInterface`].
pub type NetworkInterfaceStatus = VirtualMachineInstanceNetworkInterface;

/// A processor topology.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CPUTopology {
    /// Cores in each socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// Sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<u32>,
    /// Threads in each core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
}

/// Guest memory, as quantities of bytes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MemoryStatus {
    /// What the guest was started with.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "quantity::de::option"
    )]
    #[schemars(schema_with = "quantity::schema::optional")]
    pub guest_at_boot: Option<Quantity>,
    /// What the guest has now.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "quantity::de::option"
    )]
    #[schemars(schema_with = "quantity::schema::optional")]
    pub guest_current: Option<Quantity>,
    /// What the spec asks for.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "quantity::de::option"
    )]
    #[schemars(schema_with = "quantity::schema::optional")]
    pub guest_requested: Option<Quantity>,
}
