//! `berth.kubevirt.io/v1`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The name that the one object must have.
pub const NAME: &str = "berth";

/// The settings of this installation of berth. There is one object, and it is called `berth`.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "berth.kubevirt.io",
    version = "v1",
    kind = "Berth",
    plural = "berths",
    status = "BerthStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "The settings of this installation of berth. There is one object, and it is called `berth`.",
    validation = Rule::new("self.metadata.name == 'berth'")
        .message("there is one object with settings, and its name must be berth")
)]
#[serde(rename_all = "camelCase")]
pub struct BerthSpec {
    /// What is set; what is left out has its default.
    #[serde(default)]
    pub configuration: Configuration,
}

/// What can be set.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    /// How machines are made and how much is said about it.
    #[serde(default)]
    pub developer_configuration: DeveloperConfiguration,
    /// When the image of launchers is pulled: `Always`, `IfNotPresent` (the default) or `Never`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["Always", "IfNotPresent", "Never"]))]
    pub image_pull_policy: Option<String>,
    /// The memory that is reserved beside each guest's, times this: a decimal number from 1.0 on. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[1-9][0-9]{0,2}(\.[0-9]{1,6})?$"))]
    pub additional_guest_memory_overhead_ratio: Option<String>,
    /// What holds for the networks of all machines.
    #[serde(default)]
    pub network: NetworkConfiguration,
    /// Registries (`host` or `host:port`) that imports speak to without TLS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub insecure_registries: Vec<String>,
}

/// How machines are made and how much is said about it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeveloperConfiguration {
    /// Emulate guests in software. Launcher pods then ask for no KVM and run on nodes without it. Default false: on a
    /// cluster a machine waits for a node with KVM.
    #[serde(default, skip_serializing_if = "is_false")]
    pub use_emulation: bool,
    /// Names of what is switched on; see the README. Names that berth does not know are told in the status.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub feature_gates: Vec<String>,
    /// How much the parts log.
    #[serde(default)]
    pub log_verbosity: LogVerbosity,
    /// How many virtual processors share the request for one. Default 10: a tenth of a CPU is asked for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub cpu_allocation_ratio: Option<u32>,
    /// Per cent of the memory that guests see and that is not asked for, so 150 asks for two thirds. Default 100; it
    /// holds for machines that request no memory themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 1000))]
    pub memory_overcommit: Option<u32>,
}

/// How much the parts log, from 0 to 9: up to 2 what happens, from 3 on why (debug), from 5 on everything (trace).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LogVerbosity {
    /// The controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9))]
    pub virt_controller: Option<u32>,
    /// The node agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9))]
    pub virt_handler: Option<u32>,
    /// The launchers of machines that start from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9))]
    pub virt_launcher: Option<u32>,
    /// The node agents of single nodes, by the node's name; before `virtHandler`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_verbosity: BTreeMap<String, u32>,
}

/// What holds for the networks of all machines.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfiguration {
    /// How the pod network is bound to a machine that names no interface. Default and only value: `bridge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["bridge"]))]
    pub default_network_interface: Option<String>,
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// What became of the settings.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BerthStatus {
    /// `Deployed`, once the controller has taken the settings up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The generation of the object that was taken up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Available`: the settings hold. `FeatureGatesKnown`: whether each gate means something here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// What can be switched on by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Container disks are image volumes: no container beside the launcher. The kubelet and its runtime must know them.
    ImageVolume,
    /// Launchers run no QEMU: a machine that is `Running` is a claim. To measure berth itself on machines too small for
    /// so many guests.
    FakeHypervisor,
}

impl Gate {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::ImageVolume, Self::FakeHypervisor];

    /// The name in the settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ImageVolume => "ImageVolume",
            Self::FakeHypervisor => "FakeHypervisor",
        }
    }
}

impl Configuration {
    /// Whether a gate is open.
    #[must_use]
    pub fn is_open(&self, gate: Gate) -> bool {
        let gates = &self.developer_configuration.feature_gates;
        gates.iter().any(|name| name == gate.name())
    }

    /// The gates that mean nothing here.
    #[must_use]
    pub fn unknown_gates(&self) -> Vec<&str> {
        let gates = self.developer_configuration.feature_gates.iter();
        gates
            .map(String::as_str)
            .filter(|name| Gate::ALL.iter().all(|gate| gate.name() != *name))
            .collect()
    }

    /// [`Self::additional_guest_memory_overhead_ratio`] as a number.
    #[must_use]
    pub fn overhead_ratio(&self) -> f64 {
        let ratio = self.additional_guest_memory_overhead_ratio.as_deref();
        ratio
            .and_then(|text| text.parse().ok())
            .filter(|ratio: &f64| ratio.is_finite() && *ratio >= 1.0)
            .unwrap_or(1.0)
    }
}

impl LogVerbosity {
    /// Of the node agent of one node.
    #[must_use]
    pub fn of_node(&self, node: &str) -> Option<u32> {
        self.node_verbosity.get(node).copied().or(self.virt_handler)
    }

    /// What a part of berth is told to log for a verbosity: others' libraries stay quiet.
    #[must_use]
    pub fn filter(verbosity: u32) -> &'static str {
        match verbosity {
            0..=2 => "info",
            3 | 4 => "info,berth=debug",
            _ => "info,berth=trace",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_kubevirts_object_is_read() {
        let spec: BerthSpec = serde_json::from_value(serde_json::json!({"configuration": {
            "developerConfiguration": {
                "useEmulation": true, "featureGates": ["ImageVolume", "LiveMigration"],
                "logVerbosity": {"virtHandler": 3, "nodeVerbosity": {"a": 6}},
            },
            "additionalGuestMemoryOverheadRatio": "1.5",
        }}))
        .unwrap();
        let configuration = spec.configuration;
        assert!(configuration.is_open(Gate::ImageVolume));
        assert!(!configuration.is_open(Gate::FakeHypervisor));
        assert_eq!(configuration.unknown_gates(), ["LiveMigration"]);
        assert!((configuration.overhead_ratio() - 1.5).abs() < 1e-9);
        let verbosity = &configuration.developer_configuration.log_verbosity;
        assert_eq!(verbosity.of_node("a"), Some(6));
        assert_eq!(verbosity.of_node("b"), Some(3));
        assert!(LogVerbosity::filter(6).contains("trace"));
        assert!((Configuration::default().overhead_ratio() - 1.0).abs() < 1e-9);
    }
}
