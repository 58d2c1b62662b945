//! Networks of pods and of the virtual machines in them: netlink, namespaces, nftables, DHCP, addresses.
//!
//! ```text
//!  node namespace                 pod namespace
//!  berth0 10.98.0.1/16 ── veth ── eth0-nic ┐
//!  nft table: masquerade          k6t-eth0 ┤  bridge without an address
//!                                 tap0 ────┘── qemu: the guest has the pod's IP and MAC
//! ```
//!
//! - [`NodeNetwork`]: the node's bridge, its address, forwarding and NAT;
//! - [`create_netns`], [`attach_pod`]: a pod's namespace and its link to the bridge;
//! - [`discover_pod_nic`], [`wire_bridge`]: hands the pod's NIC to the machine;
//! - [`open_dhcp_socket`], [`dhcp`]: tells the machine its address;
//! - [`ipam`]: which address a pod gets; [`host_dns`]: the name servers to tell.
//!
//! The functions that touch the kernel block: each does its netlink work on a thread of its own, inside the namespace
//! concerned. All of them may be called again (`ensure`); what removes collects its errors instead of stopping at the
//! first.

pub mod dhcp;
mod dns;
pub mod error;
pub mod ipam;
mod mac;
mod masquerade;
mod netlink;
mod netns;
mod node;
mod packet;
mod pod;
mod vm;

use std::net::Ipv4Addr;

pub use dns::{HostDns, host_dns, parse as parse_resolv_conf};
pub use error::{Error, Result};
pub use mac::{InvalidMac, MacAddr};
pub use masquerade::{Masquerade, Protocol, wire_masquerade};
pub use netns::{create_netns, delete_netns, within};
pub use node::NodeNetwork;
pub use packet::open_dhcp_socket;
pub use pod::{attach_pod, detach_pod, host_link_name};
use serde::{Deserialize, Serialize};
pub use vm::{VmNic, VmNicRequest, wire_bridge};

/// A route that the guest is told beside its default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub destination: Ipv4Addr,
    /// Length of the destination's prefix in bits.
    pub prefix: u8,
    /// Through which router; none where the destination is on the link.
    pub gateway: Option<Ipv4Addr>,
}

/// A pod's network interface as the pod network made it, before a machine took it over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNic {
    /// Name in the pod's namespace.
    pub ifname: String,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Address and prefix length; none where the network gives none.
    pub ipv4: Option<(Ipv4Addr, u8)>,
    /// The default route's router.
    pub gateway: Option<Ipv4Addr>,
    /// Routes beyond the link's own and the default one.
    pub routes: Vec<Route>,
    /// In bytes.
    pub mtu: u32,
}

pub use pod::discover_pod_nic;
