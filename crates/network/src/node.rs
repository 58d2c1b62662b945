//! The node's end of the pod network: a bridge with the gateway's address, forwarding, and NAT to the world.

use std::fs;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::MacAddr;
use crate::error::{Error, Result, io_error};
use crate::netlink::Netlink;
use crate::netns::on_thread;
use crate::packet;

/// The pod network of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeNetwork {
    /// The bridge's name; the nftables table has the same.
    pub bridge: String,
    /// The bridge's address, the pods' gateway.
    pub gateway: Ipv4Addr,
    /// Length of the network's prefix in bits.
    pub prefix: u8,
    /// In bytes.
    pub mtu: u32,
}

impl NodeNetwork {
    /// Makes what is missing in the namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel or nft refuses, or the bridge is there with another address.
    pub fn ensure(&self) -> Result<()> {
        let network = self.clone();
        on_thread(move || network.ensure_here())
    }

    /// Removes bridge and rules; everything that could not be removed is told.
    #[must_use]
    pub fn remove(&self) -> Vec<Error> {
        let network = self.clone();
        on_thread(move || {
            let link = Netlink::connect().and_then(|netlink| netlink.remove(&network.bridge));
            let rules = packet::remove_table("ip", &network.bridge);
            [link, rules].into_iter().filter_map(Result::err).collect()
        })
    }

    fn ensure_here(&self) -> Result<()> {
        let netlink = Netlink::connect()?;
        let bridge = netlink.ensure_bridge(&self.bridge, self.mtu)?;
        // Left alone, a bridge has the lowest of its ports' MACs: every pod that comes or goes might change it, and the
        // others would send to a gateway that is no more.
        let mac = MacAddr::local(&format!("bridge {} {}", self.bridge, self.gateway));
        if bridge.mac != Some(mac) {
            netlink.set_mac(&bridge, mac)?;
        }
        let addresses = netlink.addresses(&bridge)?;
        let wanted = (self.gateway, self.prefix);
        match addresses.first() {
            None => netlink.add_address(&bridge, self.gateway, self.prefix)?,
            Some(_) if addresses.contains(&wanted) => {}
            Some((address, prefix)) => {
                return Err(Error::BridgeAddress {
                    bridge: self.bridge.clone(),
                    found: format!("{address}/{prefix}"),
                    wanted: format!("{}/{}", self.gateway, self.prefix),
                });
            }
        }
        netlink.up(&bridge)?;
        let forward = "/proc/sys/net/ipv4/ip_forward";
        fs::write(forward, "1").map_err(io_error("writing", forward))?;
        packet::replace_table("ip", &self.bridge, &self.rules())
    }

    /// Masquerade for what leaves the pod network; forwarding allowed from and to it.
    fn rules(&self) -> String {
        let Self {
            bridge,
            gateway,
            prefix,
            ..
        } = self;
        let mask = u32::MAX
            .checked_shl(32 - u32::from((*prefix).min(32)))
            .unwrap_or(0);
        let network = Ipv4Addr::from_bits(gateway.to_bits() & mask);
        format!(
            "chain postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr {network}/{prefix} oifname != \"{bridge}\" masquerade
            }}
            chain forward {{
                type filter hook forward priority filter; policy accept;
                iifname \"{bridge}\" accept
                oifname \"{bridge}\" ct state established,related accept
                oifname \"{bridge}\" accept
            }}"
        )
    }
}
