//! Hands a pod's interface to the virtual machine in the pod.
//!
//! ```text
//!  before: eth0 (MAC m, address a)
//!  after:  eth0-nic (another MAC, no address) ── k6t-eth0 ── tap0 ── the guest has m and a
//! ```
//!
//! A bridge keeps the MAC of each of its ports as its own, so frames for m would end in the pod if the pod's interface
//! kept it. The names are KubeVirt's.

use std::fs;
use std::path::Path;

use crate::error::{Result, io_error};
use crate::netlink::{Link, Netlink};
use crate::netns::within;
use crate::packet;
use crate::{MacAddr, PodNic};

/// What is to be wired.
#[derive(Debug, Clone, Copy)]
pub struct VmNicRequest<'a> {
    /// The pod's interface, read before it was wired for the first time.
    pub pod_nic: &'a PodNic,
    /// Number of the machine's interface; the tap is `tap<index>`.
    pub index: u8,
    /// User and group that may open the tap.
    pub tap_owner: (u32, u32),
    /// The machine's MAC.
    pub vm_mac: MacAddr,
}

/// A wired interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmNic {
    /// The tap that QEMU opens.
    pub tap: String,
    /// The bridge in the pod.
    pub bridge: String,
    /// The machine's MAC.
    pub mac: MacAddr,
    /// In bytes.
    pub mtu: u32,
}

impl VmNic {
    /// The names that an interface of the machine has in its pod.
    pub(crate) fn of(request: &VmNicRequest<'_>) -> Self {
        Self {
            tap: format!("tap{}", request.index),
            bridge: format!("k6t-{}", request.pod_nic.ifname),
            mac: request.vm_mac,
            mtu: request.pod_nic.mtu,
        }
    }

    /// The tap, made where there is none. One that is there is persistent, so it has its owner; and QEMU, if it runs, lets
    /// nobody else open it.
    pub(crate) fn ensure_tap(&self, netlink: &Netlink, owner: (u32, u32)) -> Result<Link> {
        if netlink.find(&self.tap)?.is_none() {
            packet::make_tap(&self.tap, owner)?;
        }
        let tap = netlink.get(&self.tap)?;
        no_ipv6(&tap.name)?;
        netlink.set_mtu(&tap, self.mtu)?;
        Ok(tap)
    }
}

/// What a pod's interface is called once it is a port.
pub(crate) fn port_name(ifname: &str) -> String {
    format!("{ifname}-nic")
}

/// Wires one interface. May be called again, also while the machine runs; when the first wiring fails, the pod's
/// interface is put back.
///
/// # Errors
/// When the kernel refuses.
pub fn wire_bridge(netns: &Path, request: &VmNicRequest<'_>) -> Result<VmNic> {
    let nic = VmNic::of(request);
    let plan = Plan {
        nic: nic.clone(),
        pod_nic: request.pod_nic.clone(),
        owner: request.tap_owner,
    };
    within(netns, move || {
        let netlink = Netlink::connect()?;
        // A tap that is there may have a machine behind it: what is wired is repaired, never taken down.
        let in_use = netlink.find(&plan.nic.tap)?.is_some();
        plan.wire(&netlink).inspect_err(|_| {
            if !in_use {
                plan.undo(&netlink);
            }
        })
    })??;
    Ok(nic)
}

struct Plan {
    nic: VmNic,
    pod_nic: PodNic,
    owner: (u32, u32),
}

impl Plan {
    fn port(&self) -> String {
        port_name(&self.pod_nic.ifname)
    }

    /// The port's MAC while the machine has the pod's.
    fn port_mac(&self) -> MacAddr {
        MacAddr::local(&format!("port {}", self.pod_nic.mac))
    }

    fn wire(&self, netlink: &Netlink) -> Result<()> {
        if self.is_wired(netlink)? {
            return Ok(());
        }
        let port = self.port();
        if netlink.find(&port)?.is_none() {
            let nic = netlink.get(&self.pod_nic.ifname)?;
            netlink.down(&nic)?;
            netlink.rename(&nic, &port)?;
        }
        let port = netlink.get(&port)?;
        netlink.flush_addresses(&port)?;
        no_ipv6(&port.name)?;
        if port.mac != Some(self.port_mac()) {
            netlink.set_mac(&port, self.port_mac())?;
        }
        let bridge = netlink.ensure_bridge(&self.nic.bridge, self.nic.mtu)?;
        no_ipv6(&bridge.name)?;
        let tap = self.nic.ensure_tap(netlink, self.owner)?;
        keep_dhcp_apart();
        netlink.enslave(&port, &bridge)?;
        // A CNI whose bridge sends back what came in (hairpin mode) would have the guest's own broadcasts teach this bridge
        // that the guest is outside, and answers to them would not get in.
        netlink.learn_nothing(&port)?;
        netlink.enslave(&tap, &bridge)?;
        netlink.up(&port)?;
        netlink.up(&tap)?;
        netlink.up(&bridge)
    }

    /// Whether everything is in its place and up already.
    fn is_wired(&self, netlink: &Netlink) -> Result<bool> {
        let Some(bridge) = netlink.find(&self.nic.bridge)? else {
            return Ok(false);
        };
        let (port, tap) = (netlink.find(&self.port())?, netlink.find(&self.nic.tap)?);
        Ok(bridge.up
            && [port, tap]
                .iter()
                .flatten()
                .filter(|link| link.up && link.controller == Some(bridge.index))
                .count()
                == 2)
    }

    fn undo(&self, netlink: &Netlink) {
        let put_back = || -> Result<()> {
            netlink.remove(&self.nic.tap)?;
            if let Some(port) = netlink.find(&self.port())? {
                if port.controller.is_some() {
                    netlink.release(&port)?;
                }
                netlink.down(&port)?;
                netlink.set_mac(&port, self.pod_nic.mac)?;
                netlink.rename(&port, &self.pod_nic.ifname)?;
            }
            if let Some(nic) = netlink.find(&self.pod_nic.ifname)? {
                if let Some((ip, prefix)) = self.pod_nic.ipv4 {
                    netlink.add_address(&nic, ip, prefix)?;
                }
                netlink.up(&nic)?;
                if let Some(gateway) = self.pod_nic.gateway {
                    netlink.add_default_route(&nic, gateway)?;
                }
                for route in &self.pod_nic.routes {
                    netlink.add_route(&nic, route)?;
                }
            }
            netlink.remove(&self.nic.bridge)
        };
        if let Err(error) = put_back() {
            tracing::warn!("the pod's interface was not put back: {error}");
        }
    }
}

/// Neither does the machine hear another DHCP server, nor another machine ask through us. A kernel that cannot filter in
/// bridges does without: our server still answers its machine only.
fn keep_dhcp_apart() {
    let filtered = packet::replace_table(
        "bridge",
        "berth",
        "chain forward {
            type filter hook forward priority filter; policy accept;
            ether type ip ip protocol udp udp dport { 67, 68 } drop
        }",
    );
    if let Err(error) = filtered {
        tracing::debug!("DHCP is not kept apart from the pod network: {error}");
    }
}

/// Ports and the bridge must not take part in IPv6 themselves.
pub(crate) fn no_ipv6(link: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
    match fs::write(&path, "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(io_error("writing", path)),
    }
}
