//! A network of its own for the virtual machine in a pod, behind the pod's address.
//!
//! ```text
//!  eth0 (the pod's address) ── NAT in the pod ── k6t-eth0 10.0.2.1/24 ── tap0 ── the guest has 10.0.2.2
//! ```
//!
//! What comes to the pod's address goes to the guest, all of it or the ports that are named; what the guest sends leaves with
//! the pod's address. The pod's interface stays as the pod network made it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use crate::error::{Result, io_error};
use crate::netlink::Netlink;
use crate::netns::within;
use crate::packet;
use crate::vm::no_ipv6;
use crate::{MacAddr, VmNic, VmNicRequest};

/// The nftables table in the pod.
const TABLE: &str = "berth";

/// The guest's side of the translation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// The bridge's address, the guest's router.
    pub gateway: Ipv4Addr,
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// Length of their network's prefix in bits.
    pub prefix: u8,
    /// The ports that lead to the guest, with `tcp` or `udp`; everything does where there are none.
    pub ports: Vec<(Protocol, u16)>,
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Wires one interface. May be called again, also while the machine runs.
///
/// # Errors
/// When the kernel or nft refuses.
pub fn wire_masquerade(
    netns: &Path,
    request: &VmNicRequest<'_>,
    masquerade: &Masquerade,
) -> Result<VmNic> {
    let nic = VmNic::of(request);
    let (made, masquerade, owner) = (nic.clone(), masquerade.clone(), request.tap_owner);
    let (uplink, pod) = (
        request.pod_nic.ifname.clone(),
        request.pod_nic.ipv4.map(|(ip, _)| ip),
    );
    within(netns, move || {
        let netlink = Netlink::connect()?;
        let bridge = netlink.ensure_bridge(&made.bridge, made.mtu)?;
        no_ipv6(&bridge.name)?;
        // The guest's router, also after a restart of the guest: always the same.
        let mac = MacAddr::local(&format!("router {}", made.mac));
        if bridge.mac != Some(mac) {
            netlink.set_mac(&bridge, mac)?;
        }
        netlink.add_address(&bridge, masquerade.gateway, masquerade.prefix)?;
        let tap = made.ensure_tap(&netlink, owner)?;
        netlink.enslave(&tap, &bridge)?;
        netlink.up(&tap)?;
        netlink.up(&bridge)?;
        let forward = "/proc/sys/net/ipv4/ip_forward";
        fs::write(forward, "1").map_err(io_error("writing", forward))?;
        packet::replace_table("ip", TABLE, &masquerade.rules(&uplink, pod))
    })??;
    Ok(nic)
}

impl Masquerade {
    fn rules(&self, uplink: &str, pod: Option<Ipv4Addr>) -> String {
        let guest = self.guest;
        let inbound: String = pod.map_or_else(String::new, |pod| {
            let to_guest = format!("iifname \"{uplink}\" ip daddr {pod}");
            if self.ports.is_empty() {
                return format!("{to_guest} dnat to {guest}\n");
            }
            let ports = self.ports.iter();
            ports
                .map(|(protocol, port)| {
                    let protocol = protocol.as_str();
                    format!("{to_guest} {protocol} dport {port} dnat to {guest}\n")
                })
                .collect()
        });
        // What is neither from the guest nor an answer to it, nor for it by the rules above, has no business there.
        format!(
            "chain prerouting {{
                type nat hook prerouting priority dstnat; policy accept;
                {inbound}
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr {guest} oifname \"{uplink}\" masquerade
            }}
            chain forward {{
                type filter hook forward priority filter; policy drop;
                ct state established,related accept
                ip saddr {guest} oifname \"{uplink}\" accept
                ip daddr {guest} ct status dnat accept
            }}"
        )
    }
}
