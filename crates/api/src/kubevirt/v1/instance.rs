//! The VirtualMachineInstance itself and the parts of its spec that are not the virtual hardware.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Affinity, PodDNSConfig, Toleration, TopologySpreadConstraint};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AccessCredential, DomainSpec, Probe, VirtualMachineInstanceStatus, Volume, plain};

/// One run of a virtual machine, from its start to its end. It does not start again once it has ended.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "kubevirt.io",
    version = "v1",
    kind = "VirtualMachineInstance",
    plural = "virtualmachineinstances",
    singular = "virtualmachineinstance",
    shortname = "vmi",
    shortname = "vmis",
    category = "all",
    namespaced,
    status = "VirtualMachineInstanceStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "One run of a virtual machine, from its start to its end. It does not start again once it has ended."
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceSpec {
    /// Processor architecture of the guest: `amd64`, which is also the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Host name that the guest is offered by DHCP: one DNS label of at most 63 characters. Default: the name of
    /// the VirtualMachineInstance up to its first dot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Seconds between the request to the guest to power off and the moment the power is cut. Default 30; 0 cuts
    /// at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub termination_grace_period_seconds: Option<i64>,
    /// `Paused`: the guest stands still before its first instruction until it is unpaused. Default: it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_strategy: Option<String>,
    /// Labels that a node must carry to run this machine.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// What else a node must or should have, and which machines are to be near or far; as for pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "plain::schema::affinity")]
    pub affinity: Option<Affinity>,
    /// Taints of nodes that this machine stands; as for pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "plain::schema::tolerations")]
    pub tolerations: Vec<Toleration>,
    /// How evenly machines are to be spread; as for pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "plain::schema::spread")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// The PriorityClass of its pod: who comes first where there is not room for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Who places its pod. Default: `default-scheduler`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler_name: Option<String>,
    /// With the host name, the name of its pod in the cluster's DNS, where a headless Service has this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subdomain: Option<String>,
    /// Whose name servers the guest is told: `Default` (those of the node), `ClusterFirst` (the default),
    /// `ClusterFirstWithHostNet`, or `None` (those of `dnsConfig` alone); as for pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_policy: Option<String>,
    /// Name servers and search domains besides; as for pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "plain::schema::dns_config")]
    pub dns_config: Option<PodDNSConfig>,
    /// Whether the guest is ready for work. While it is not, the machine is not `Ready`, and no Service sends anybody to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness_probe: Option<Probe>,
    /// Whether the guest is alive. One that is not is asked to power off, and the machine has `Failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness_probe: Option<Probe>,
    /// Keys and passwords for the guest, out of secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access_credentials: Vec<AccessCredential>,
    /// The virtual hardware.
    pub domain: DomainSpec,
    /// The networks that `domain.devices.interfaces` connect to, joined by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Network>,
    /// The storage behind `domain.devices.disks`, joined by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
}

impl VirtualMachineInstanceSpec {
    /// Whether the guest is not to run before it is unpaused.
    pub fn starts_paused(&self) -> bool {
        self.start_strategy.as_deref() == Some("Paused")
    }
}

/// A network that an interface of the same name connects to. Exactly one source must be set.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Name, unique among the networks; a DNS label.
    pub name: String,
    /// The network of the pod that the machine runs in. At most one network may be of this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodNetwork>,
}

/// The network of the pod that the machine runs in.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PodNetwork {
    /// With the binding `masquerade`: the guest's own network, of at least four addresses. The guest's router has the
    /// first that a machine may have, the guest the second. Default `10.0.2.0/24`.
    #[serde(
        default,
        rename = "vmNetworkCIDR",
        skip_serializing_if = "Option::is_none"
    )]
    pub vm_network_cidr: Option<String>,
}

/// The guest's side of the binding `masquerade`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestNetwork {
    /// The guest's router.
    pub gateway: Ipv4Addr,
    /// The guest.
    pub guest: Ipv4Addr,
    /// Length of the prefix in bits.
    pub prefix: u8,
}

impl PodNetwork {
    /// The guest's own network; none where what is given is no network of IPv4 with room for the two.
    #[must_use]
    pub fn guest_network(&self) -> Option<GuestNetwork> {
        const DEFAULT: &str = "10.0.2.0/24";
        let cidr = self
            .vm_network_cidr
            .as_deref()
            .filter(|cidr| !cidr.is_empty());
        let (address, prefix) = cidr.unwrap_or(DEFAULT).split_once('/')?;
        let (address, prefix): (Ipv4Addr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        if !(1..=30).contains(&prefix) {
            return None;
        }
        let first = address.to_bits() & (u32::MAX << (32 - prefix));
        Some(GuestNetwork {
            gateway: Ipv4Addr::from_bits(first + 1),
            guest: Ipv4Addr::from_bits(first + 2),
            prefix,
        })
    }
}

/// The host name of a machine: the one in its spec, else its name up to the first dot, at most 63 characters.
pub fn hostname(name: &str, spec: &VirtualMachineInstanceSpec) -> String {
    let given = spec.hostname.as_deref().filter(|h| !h.is_empty());
    let label = given.unwrap_or_else(|| name.split('.').next().unwrap_or_default());
    label[..label.floor_char_boundary(63)]
        .trim_end_matches('-')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_networks_have_room_for_two() {
        let of = |cidr: &str| {
            let network = PodNetwork {
                vm_network_cidr: Some(cidr.to_owned()),
            };
            let found = network.guest_network()?;
            Some(format!(
                "{} {}/{}",
                found.gateway, found.guest, found.prefix
            ))
        };
        assert_eq!(of("").as_deref(), Some("10.0.2.1 10.0.2.2/24"));
        assert_eq!(
            of("192.168.7.77/30").as_deref(),
            Some("192.168.7.77 192.168.7.78/30")
        );
        for bad in [
            "10.0.0.0",
            "10.0.0.0/31",
            "10.0.0.0/0",
            "fd00::/64",
            "10.0.0/24",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_host_name_is_one_label() {
        let spec = VirtualMachineInstanceSpec::default();
        assert_eq!(hostname("first-light", &spec), "first-light");
        assert_eq!(hostname("web.shop", &spec), "web");
        assert_eq!(
            hostname(&format!("{}-b", "a".repeat(62)), &spec),
            "a".repeat(62)
        );
        let given = VirtualMachineInstanceSpec {
            hostname: Some("door".to_owned()),
            ..spec
        };
        assert_eq!(hostname("web.shop", &given), "door");
    }
}
