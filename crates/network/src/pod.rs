//! A pod's link to the node's bridge.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::Path;

use crate::error::{Error, Result, io_error};
use crate::netlink::Netlink;
use crate::netns::{on_thread, within};
use crate::vm::port_name;
use crate::{MacAddr, NodeNetwork, PodNic};

/// The pod's interface.
const POD_INTERFACE: &str = "eth0";

/// Name of the node's end of a pod's link: `bp` and twelve digits that depend on the pod's uid only.
#[must_use]
pub fn host_link_name(pod_uid: &str) -> String {
    let [_, a, b, c, d, e] = MacAddr::local(pod_uid).octets();
    format!("bp{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}")
}

/// Links the namespace at `netns` to the node's bridge: `eth0` with the address, the MAC and the default route. May be
/// called again, also after [`crate::wire_bridge`]; what an interrupted call left is replaced.
///
/// # Errors
/// When the kernel refuses; what was made is removed again.
pub fn attach_pod(
    node: &NodeNetwork,
    netns: &Path,
    pod_uid: &str,
    ip: Ipv4Addr,
    mac: MacAddr,
) -> Result<()> {
    let (gateway, prefix) = (node.gateway, node.prefix);
    let attached = within(netns, move || -> Result<bool> {
        let netlink = Netlink::connect()?;
        let Some(eth0) = netlink.find(POD_INTERFACE)? else {
            // The machine has the address; its traffic goes through here and must not be cut.
            return Ok(netlink.find(&port_name(POD_INTERFACE))?.is_some());
        };
        Ok(eth0.up
            && eth0.mac == Some(mac)
            && netlink.addresses(&eth0)?.contains(&(ip, prefix))
            && netlink.routes(&eth0)?.0 == Some(gateway))
    })??;
    let host = host_link_name(pod_uid);
    if attached && rejoin(node, host.clone())? {
        return Ok(());
    }
    let result = attach(node, netns, &host, move |netlink: &Netlink| {
        let eth0 = netlink.get(POD_INTERFACE)?;
        netlink.set_mac(&eth0, mac)?;
        netlink.add_address(&eth0, ip, prefix)?;
        netlink.up(&eth0)?;
        netlink.add_default_route(&eth0, gateway)
    });
    if result.is_err() {
        let _ = detach_pod(node, pod_uid);
    }
    result
}

/// Puts the node's end of a link that is whole into the bridge, if it is not in it; false without such a link.
fn rejoin(node: &NodeNetwork, host: String) -> Result<bool> {
    let bridge = node.bridge.clone();
    on_thread(move || {
        let netlink = Netlink::connect()?;
        let Some(outer) = netlink.find(&host)? else {
            return Ok(false);
        };
        netlink.enslave(&outer, &netlink.get(&bridge)?)?;
        if !outer.up {
            netlink.up(&outer)?;
        }
        Ok(true)
    })
}

fn attach(
    node: &NodeNetwork,
    netns: &Path,
    host: &str,
    configure: impl FnOnce(&Netlink) -> Result<()> + Send + 'static,
) -> Result<()> {
    let namespace = File::open(netns).map_err(io_error("opening the namespace", netns))?;
    let (bridge, mtu, host) = (node.bridge.clone(), node.mtu, host.to_owned());
    // The peer is born under a name that no other pod's has, and becomes eth0 where it is going.
    let peer = format!("{host}p");
    on_thread({
        let peer = peer.clone();
        move || -> Result<()> {
            let netlink = Netlink::connect()?;
            netlink.remove(&host)?;
            netlink.add_veth(&host, &peer)?;
            let inner = netlink.get(&peer)?;
            netlink.set_mtu(&inner, mtu)?;
            netlink.move_to(&inner, namespace.as_fd())?;
            let outer = netlink.get(&host)?;
            netlink.set_mtu(&outer, mtu)?;
            netlink.enslave(&outer, &netlink.get(&bridge)?)?;
            netlink.up(&outer)
        }
    })?;
    within(netns, move || {
        let netlink = Netlink::connect()?;
        netlink.rename(&netlink.get(&peer)?, POD_INTERFACE)?;
        configure(&netlink)
    })?
}

/// Removes the node's end of a pod's link, and with it the pod's. Nothing to remove is no error.
#[must_use]
pub fn detach_pod(_node: &NodeNetwork, pod_uid: &str) -> Vec<Error> {
    let host = host_link_name(pod_uid);
    let removed = on_thread(move || Netlink::connect()?.remove(&host));
    removed.err().into_iter().collect()
}

/// Reads a pod's interface as the pod network made it. To be asked before [`crate::wire_bridge`], which changes it.
///
/// # Errors
/// When there is no such interface.
pub fn discover_pod_nic(netns: &Path, ifname: &str) -> Result<PodNic> {
    let (name, at) = (ifname.to_owned(), netns.to_owned());
    within(netns, move || {
        let netlink = Netlink::connect()?;
        let missing = || Error::NoLink {
            name: name.clone(),
            namespace: at.display().to_string(),
        };
        let link = netlink.find(&name)?.ok_or_else(missing)?;
        let (gateway, routes) = netlink.routes(&link)?;
        Ok(PodNic {
            ifname: name.clone(),
            mac: link.mac.ok_or_else(missing)?,
            ipv4: netlink.addresses(&link)?.first().copied(),
            gateway,
            routes,
            mtu: link.mtu,
        })
    })?
}
