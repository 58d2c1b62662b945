//! The machine's side of the network: the pod's interface goes into a bridge, the guest gets a tap and the pod's
//! address by DHCP.
//!
//! Wiring takes the address off the pod's interface, so it is read once, before, and kept in `network.json` beside
//! the pod's other state, where the guest's user cannot write. An agent that starts again reads it there, and
//! everything after that is idempotent.

use std::fs::File;
use std::io::{Read as _, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use berth_api::kubevirt::v1::{Interface, VirtualMachineInstance, hostname};
use berth_launcher::protocol::NicBacking;
use berth_network::dhcp::Lease;
use berth_network::{HostDns, MacAddr, Masquerade, PodNic, Protocol, VmNicRequest};
use kube::ResourceExt;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::status::WiredNic;
use crate::{NodeConfig, PodLocation};

/// The pod's interface that carries the pod network.
const POD_INTERFACE: &str = "eth0";
/// 999 days: the address belongs to the pod, which outlives any guest's patience.
const LEASE_SECONDS: u32 = 999 * 24 * 60 * 60;
/// Server identifier when the pod has no gateway whose name could be used.
const FALLBACK_SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 75, 10);

/// Why the network could not be wired.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Reading or changing links in the pod's namespace.
    #[error("{operation} for interface {interface}")]
    Network {
        operation: &'static str,
        interface: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The record of the pod's interface.
    #[error("{operation} {path}")]
    Record {
        operation: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// The MAC address in the spec.
    #[error("interface {interface}: {mac:?} is not a MAC address")]
    Mac { interface: String, mac: String },
    /// An interface that nothing backs.
    #[error("interface {0} is not on the pod network")]
    NotPodNetwork(String),
}

/// A wired machine: what the launcher is told, with a DHCP socket for each lease in order, and what users see.
pub(crate) struct Wired {
    pub(crate) backings: Vec<NicBacking>,
    pub(crate) sockets: Vec<OwnedFd>,
    pub(crate) shown: Vec<WiredNic>,
}

/// Wires every interface of the machine. Blocking, idempotent.
pub(crate) fn wire(
    vmi: &VirtualMachineInstance,
    pod: &PodLocation,
    record: &Path,
    config: &NodeConfig,
) -> Result<Wired, Error> {
    let mut wired = Wired {
        backings: Vec::new(),
        sockets: Vec::new(),
        shown: Vec::new(),
    };
    let dns = pod_dns(pod.pid).unwrap_or_else(|| HostDns {
        servers: config.dns.clone(),
        search: config.search.clone(),
    });
    for (index, interface) in (0u8..).zip(&vmi.spec.domain.devices.interfaces) {
        let network = vmi.spec.networks.iter().find(|n| n.name == interface.name);
        // One pod has one pod network, so only the first interface can be on it.
        if index > 0 || network.is_none_or(|n| n.pod.is_none()) {
            return Err(Error::NotPodNetwork(interface.name.clone()));
        }
        let pod_nic = pod_nic(pod, record, &interface.name)?;
        let mac = mac(vmi, interface, &pod_nic)?;
        let masquerade = masquerade(vmi, interface);
        let request = VmNicRequest {
            pod_nic: &pod_nic,
            index,
            tap_owner: (pod.uid, pod.gid),
            vm_mac: mac,
        };
        let nic = match &masquerade {
            Some(masquerade) => berth_network::wire_masquerade(&pod.netns, &request, masquerade),
            None => berth_network::wire_bridge(&pod.netns, &request),
        };
        let nic = nic.map_err(network_error("bridge and tap", interface))?;
        let lease = match &masquerade {
            Some(inner) => lease(vmi, &inside(&pod_nic, inner), mac, &dns),
            None => lease(vmi, &pod_nic, mac, &dns),
        };
        if lease.is_some() {
            let socket = berth_network::open_dhcp_socket(&pod.netns, &nic.tap)
                .map_err(network_error("DHCP socket", interface))?;
            wired.sockets.push(socket);
        }
        wired.shown.push(shown(interface, &pod_nic, mac));
        wired.backings.push(NicBacking {
            network: interface.name.clone(),
            tap: nic.tap,
            mac,
            mtu: nic.mtu,
            lease,
        });
    }
    Ok(wired)
}

/// What was wired earlier, from the record, without touching anything. Empty when nothing was.
pub(crate) fn recorded(
    vmi: &VirtualMachineInstance,
    record: &Path,
) -> Result<Vec<WiredNic>, Error> {
    let Some(interface) = vmi.spec.domain.devices.interfaces.first() else {
        return Ok(Vec::new());
    };
    let Some(pod_nic) = read(record)? else {
        return Ok(Vec::new());
    };
    let mac = mac(vmi, interface, &pod_nic)?;
    Ok(vec![shown(interface, &pod_nic, mac)])
}

/// The translation that an interface asks for; none for a bridge.
fn masquerade(vmi: &VirtualMachineInstance, interface: &Interface) -> Option<Masquerade> {
    interface.masquerade.as_ref()?;
    let network = vmi.spec.networks.iter().find(|n| n.name == interface.name);
    let inner = network?.pod.as_ref()?.guest_network()?;
    let ports = interface.ports.iter().filter_map(|port| {
        let protocol = match port.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            _ => Protocol::Tcp,
        };
        Some((protocol, u16::try_from(port.port).ok()?))
    });
    Some(Masquerade {
        gateway: inner.gateway,
        guest: inner.guest,
        prefix: inner.prefix,
        ports: ports.collect(),
    })
}

/// The interface as the guest behind a translation is told of it.
fn inside(pod_nic: &PodNic, masquerade: &Masquerade) -> PodNic {
    PodNic {
        ipv4: Some((masquerade.guest, masquerade.prefix)),
        gateway: Some(masquerade.gateway),
        routes: Vec::new(),
        ..pod_nic.clone()
    }
}

fn shown(interface: &Interface, pod_nic: &PodNic, mac: MacAddr) -> WiredNic {
    WiredNic {
        name: interface.name.clone(),
        translated: interface.masquerade.is_some(),
        pod_interface: POD_INTERFACE.to_owned(),
        mac: mac.to_string(),
        ip: pod_nic.ipv4.map(|(ip, _)| ip.to_string()),
    }
}

fn network_error<E>(operation: &'static str, interface: &Interface) -> impl FnOnce(E) -> Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    let interface = interface.name.clone();
    move |source| Error::Network {
        operation,
        interface,
        source: Box::new(source),
    }
}

/// The guest's MAC address: the one asked for; the pod's; behind a translation, where the pod keeps its own, one that the
/// machine has in every pod.
fn mac(
    vmi: &VirtualMachineInstance,
    interface: &Interface,
    pod_nic: &PodNic,
) -> Result<MacAddr, Error> {
    match &interface.mac_address {
        None if interface.masquerade.is_some() => {
            let namespace = vmi.namespace().unwrap_or_default();
            let (machine, network) = (vmi.name_any(), &interface.name);
            Ok(MacAddr::local(&format!("{namespace}/{machine}/{network}")))
        }
        None => Ok(pod_nic.mac),
        Some(mac) => mac.replace('-', ":").parse().map_err(|_| Error::Mac {
            interface: interface.name.clone(),
            mac: mac.clone(),
        }),
    }
}

/// The pod's interface as it was before anything was wired.
fn pod_nic(pod: &PodLocation, record: &Path, interface: &str) -> Result<PodNic, Error> {
    if let Some(known) = read(record)? {
        return Ok(known);
    }
    let found = berth_network::discover_pod_nic(&pod.netns, POD_INTERFACE).map_err(|source| {
        Error::Network {
            operation: "reading eth0",
            interface: interface.to_owned(),
            source: Box::new(source),
        }
    })?;
    write(record, &found)?;
    Ok(found)
}

fn read(record: &Path) -> Result<Option<PodNic>, Error> {
    let failed = |source| Error::Record {
        operation: "reading",
        path: record.to_owned(),
        source,
    };
    match std::fs::read(record) {
        Ok(json) => serde_json::from_slice(&json)
            .map(Some)
            .map_err(|e| failed(e.into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Whole or not at all: a half-written record would lose the pod's address for good.
fn write(record: &Path, nic: &PodNic) -> Result<(), Error> {
    let store = || -> std::io::Result<()> {
        let dir = record.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(dir)?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(&serde_json::to_vec(nic)?)?;
        file.as_file().sync_all()?;
        file.persist(record)?;
        Ok(())
    };
    store().map_err(|source| Error::Record {
        operation: "writing",
        path: record.to_owned(),
        source,
    })
}

/// The guest's lease: the pod's address and routes. `None` when the pod has no IPv4 address.
/// The name servers of the pod, which the guest is told: its runtime has written down what the spec and the cluster say. None
/// where the pod names no server that a guest could ask.
fn pod_dns(pid: u32) -> Option<HostDns> {
    const MAX: u64 = 64 << 10;
    if pid == 0 {
        return None;
    }
    let root = File::open(format!("/proc/{pid}/root")).ok()?;
    // Whatever the pod has there, it leads nowhere else.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(root, "etc/resolv.conf", flags, Mode::empty(), inside).ok()?;
    let mut text = String::new();
    File::from(file).take(MAX).read_to_string(&mut text).ok()?;
    let dns = berth_network::parse_resolv_conf(&text);
    (!dns.servers.is_empty()).then_some(dns)
}

fn lease(
    vmi: &VirtualMachineInstance,
    pod_nic: &PodNic,
    mac: MacAddr,
    dns: &HostDns,
) -> Option<Lease> {
    let (ip, prefix) = pod_nic.ipv4?;
    Some(Lease {
        mac,
        ip,
        prefix,
        gateway: pod_nic.gateway,
        routes: pod_nic.routes.clone(),
        dns: dns.servers.clone(),
        hostname: Some(hostname(&vmi.name_any(), &vmi.spec)),
        domain: None,
        search: dns.search.clone(),
        mtu: Some(pod_nic.mtu),
        // Renewals are unicast to the server: the gateway is an address that the guest can resolve, so its
        // renewals reach the tap, where they are answered.
        server_id: pod_nic.gateway.unwrap_or(FALLBACK_SERVER),
        seconds: LEASE_SECONDS,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use berth_network::NodeNetwork;
    use serde_json::{Value, json};

    fn vmi(interface: &Value, network: &Value) -> VirtualMachineInstance {
        serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "first.light", "namespace": "lab", "uid": "u1"},
            "spec": {"domain": {"devices": {"interfaces": [interface]}}, "networks": [network]},
        }))
        .unwrap()
    }

    fn ordinary() -> VirtualMachineInstance {
        vmi(
            &json!({"name": "default", "bridge": {}}),
            &json!({"name": "default", "pod": {}}),
        )
    }

    fn pod_eth0() -> PodNic {
        PodNic {
            ifname: "eth0".to_owned(),
            mac: MacAddr::local("pod"),
            ipv4: Some((Ipv4Addr::new(10, 98, 0, 7), 16)),
            gateway: Some(Ipv4Addr::new(10, 98, 0, 1)),
            routes: Vec::new(),
            mtu: 1400,
        }
    }

    #[test]
    fn the_guest_leases_the_pods_address() {
        let dns = [Ipv4Addr::new(9, 9, 9, 9)];
        let told = HostDns {
            servers: dns.to_vec(),
            search: vec!["lab.example".to_owned()],
        };
        let pod_nic = pod_eth0();
        let lease = lease(&ordinary(), &pod_nic, pod_nic.mac, &told).unwrap();
        assert_eq!(
            (lease.ip, lease.prefix, lease.mtu),
            (Ipv4Addr::new(10, 98, 0, 7), 16, Some(1400))
        );
        assert_eq!(
            (lease.gateway, lease.server_id),
            (pod_nic.gateway, Ipv4Addr::new(10, 98, 0, 1))
        );
        assert_eq!(
            (lease.dns, lease.hostname.as_deref()),
            (dns.to_vec(), Some("first"))
        );
        let bare = PodNic {
            ipv4: None,
            ..pod_nic
        };
        assert!(super::lease(&ordinary(), &bare, bare.mac, &told).is_none());
    }

    #[test]
    fn a_mac_of_the_users_own_is_used() {
        let with = |mac: &str| {
            vmi(
                &json!({"name": "default", "macAddress": mac}),
                &json!({"name": "default"}),
            )
        };
        let of = |vmi: &VirtualMachineInstance| {
            mac(vmi, &vmi.spec.domain.devices.interfaces[0], &pod_eth0())
        };
        assert_eq!(
            of(&with("02-00-00-00-00-0A")).unwrap(),
            "02:00:00:00:00:0a".parse().unwrap()
        );
        assert_eq!(of(&ordinary()).unwrap(), MacAddr::local("pod"));
        assert!(
            of(&with("nonsense"))
                .unwrap_err()
                .to_string()
                .contains("nonsense")
        );
    }

    /// In namespaces of its own: what the host has stays as it is.
    #[test]
    fn wiring_again_after_a_restart_gives_the_same() {
        if berth_testing::not_root("wiring_again_after_a_restart_gives_the_same") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (host, netns) = (dir.path().join("host"), dir.path().join("pod"));
        berth_network::create_netns(&host).unwrap();
        let (pod_ns, record) = (netns.clone(), dir.path().join("state/network.json"));
        let config = crate::vm::tests::config(dir.path());
        let outcome = berth_network::within(&host, move || {
            let node = NodeNetwork {
                bridge: "berth0".to_owned(),
                gateway: Ipv4Addr::new(10, 98, 0, 1),
                prefix: 16,
                mtu: 1500,
            };
            node.ensure().unwrap();
            berth_network::create_netns(&pod_ns).unwrap();
            let (ip, mac) = (Ipv4Addr::new(10, 98, 0, 7), MacAddr::local("pod"));
            berth_network::attach_pod(&node, &pod_ns, "p1", ip, mac).unwrap();
            let pod = PodLocation {
                netns: pod_ns,
                run_dir: std::path::PathBuf::new(),
                disks: BTreeMap::new(),
                claims: BTreeMap::new(),
                uid: 107,
                gid: 107,
                pid: 1,
            };
            let machine = ordinary();
            assert_eq!(recorded(&machine, &record).unwrap(), []);
            let first = wire(&machine, &pod, &record, &config).unwrap();
            let again = wire(&machine, &pod, &record, &config).unwrap();
            assert_eq!(first.shown, again.shown);
            assert_eq!(recorded(&machine, &record).unwrap(), first.shown);
            (first, again)
        });
        let cleaned = [
            berth_network::delete_netns(&netns),
            berth_network::delete_netns(&host),
        ];
        let (first, again) = outcome.unwrap();
        assert!(cleaned.iter().all(Result::is_ok), "{cleaned:?}");
        assert_eq!(first.shown[0].ip.as_deref(), Some("10.98.0.7"));
        assert_eq!(first.shown[0].mac, MacAddr::local("pod").to_string());
        for wired in [&first, &again] {
            assert_eq!((wired.sockets.len(), wired.backings.len()), (1, 1));
            let lease = wired.backings[0].lease.as_ref().unwrap();
            assert_eq!((lease.ip, lease.prefix), (Ipv4Addr::new(10, 98, 0, 7), 16));
            assert_eq!(lease.gateway, Some(Ipv4Addr::new(10, 98, 0, 1)));
        }
    }
}
