//! The VirtualMachine: a machine that outlives its runs, and when it is to run.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{VirtualMachineInstanceCondition, VirtualMachineInstanceSpec};
use crate::cdi::v1beta1::DataVolumeTemplate;

/// Name of the ControllerRevision that holds a machine's spec of this generation, with which it was started.
#[must_use]
pub fn start_revision(machine_uid: &str, generation: i64) -> String {
    format!("revision-start-vm-{machine_uid}-{generation}")
}

/// A virtual machine that is started and stopped. While it runs there is a VirtualMachineInstance of the same name.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "kubevirt.io",
    version = "v1",
    kind = "VirtualMachine",
    plural = "virtualmachines",
    singular = "virtualmachine",
    shortname = "vm",
    shortname = "vms",
    category = "all",
    namespaced,
    status = "VirtualMachineStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A virtual machine that is started and stopped. While it runs there is a VirtualMachineInstance of the same name."
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineSpec {
    /// Deprecated in favour of `runStrategy`: true is `Always`, false is `Halted`. One of the two must be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<bool>,
    /// When the machine runs: `Always`, `Halted`, `Manual`, `RerunOnFailure` or `Once`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_strategy: Option<RunStrategy>,
    /// DataVolumes that are made with the machine and go with it. Each is a volume of the template.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data_volume_templates: Vec<DataVolumeTemplate>,
    /// What each VirtualMachineInstance of this machine is made of. A change holds from the next start on.
    pub template: VirtualMachineInstanceTemplateSpec,
}

impl VirtualMachineSpec {
    /// When the machine is to run, in either way to say it.
    #[must_use]
    pub fn strategy(&self) -> RunStrategy {
        match (self.run_strategy, self.running) {
            (Some(strategy), _) => strategy,
            (None, Some(true)) => RunStrategy::Always,
            (None, _) => RunStrategy::Halted,
        }
    }
}

/// When a machine runs.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStrategy {
    /// Whenever it does not run it is started.
    Always,
    /// It does not run.
    Halted,
    /// It is started and stopped on request only.
    Manual,
    /// It is started, and again after a failure; not after it has succeeded.
    RerunOnFailure,
    /// It is started once.
    Once,
}

impl RunStrategy {
    /// The word in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::Halted => "Halted",
            Self::Manual => "Manual",
            Self::RerunOnFailure => "RerunOnFailure",
            Self::Once => "Once",
        }
    }
}

/// What a VirtualMachineInstance is made of.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceTemplateSpec {
    /// Labels and annotations of the VirtualMachineInstance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TemplateMetadata>,
    /// Its spec.
    pub spec: VirtualMachineInstanceSpec,
}

/// Labels and annotations of what is made of a template.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TemplateMetadata {
    /// Labels; the launcher pod has them too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations; the launcher pod has them too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What became of a VirtualMachine. The VM controller writes it, and the verbs their requests.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineStatus {
    /// Whether its VirtualMachineInstance exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<bool>,
    /// Whether its guest runs and is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// The state in one word, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub printable_status: Option<PrintableStatus>,
    /// The run strategy that the controller acts on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_strategy: Option<RunStrategy>,
    /// `Ready`, `Paused`, `Failure`, `RestartRequired`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<VirtualMachineInstanceCondition>,
    /// Starts and stops that were asked for and have not happened yet, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub state_change_requests: Vec<StateChangeRequest>,
    /// Starts that failed in a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_failure: Option<StartFailure>,
    /// The generation of the spec as it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_generation: Option<i64>,
    /// The generation of the spec that the present VirtualMachineInstance was made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The state of a VirtualMachine in one word.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrintableStatus {
    /// It does not run.
    Stopped,
    /// It is on its way to run.
    Starting,
    /// Its guest runs.
    Running,
    /// Its guest is paused.
    Paused,
    /// Its run is being ended.
    Stopping,
    /// It is being deleted.
    Terminating,
    /// It failed to start, and the next attempt is waited for.
    CrashLoopBackOff,
    /// No node has what it asks for.
    ErrorUnschedulable,
    /// Its image could not be pulled.
    ErrImagePull,
    /// Its image could not be pulled, and the next attempt is waited for.
    ImagePullBackOff,
    /// A claim that it names is not there.
    ErrorPvcNotFound,
    /// A DataVolume of it is being filled.
    Provisioning,
    /// A DataVolume of it could not be filled.
    DataVolumeError,
}

/// A start or a stop that was asked for.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StateChangeRequest {
    /// Which.
    pub action: StateChange,
    /// Of a stop: UID of the VirtualMachineInstance that is meant, so that a late one does not stop another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Of a start: `paused: "true"` lets the guest stand still before its first instruction.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
}

impl StateChangeRequest {
    /// A start, of a guest that runs or stands still.
    #[must_use]
    pub fn start(paused: bool) -> Self {
        let data = paused.then(|| ("paused".to_owned(), "true".to_owned()));
        Self {
            action: StateChange::Start,
            uid: None,
            data: data.into_iter().collect(),
        }
    }

    /// A stop of the instance with this UID.
    #[must_use]
    pub fn stop(uid: Option<String>) -> Self {
        Self {
            action: StateChange::Stop,
            uid,
            data: BTreeMap::new(),
        }
    }

    /// Whether the guest shall stand still at first.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.data.get("paused").is_some_and(|value| value == "true")
    }
}

/// What can be asked for.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateChange {
    /// Make a VirtualMachineInstance.
    Start,
    /// End the one that there is.
    Stop,
}

/// Starts that failed in a row.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StartFailure {
    /// How many.
    pub consecutive_fail_count: i32,
    /// UID of the VirtualMachineInstance that failed last.
    #[serde(rename = "lastFailedVMIUID")]
    pub last_failed_vmi_uid: String,
    /// When the next one may be made.
    pub retry_after_timestamp: Time,
}
