//! Route netlink, made synchronous: one connection in the namespace of the calling thread.
//!
//! The socket remembers the namespace that it was opened in, so a [`Netlink`] is made on the thread that entered it.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use futures::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::runtime::Runtime;

use crate::error::{Error, Result, io_error, is_exists, is_gone, netlink_error};
use crate::{MacAddr, Route};

/// A connection to the kernel.
pub(crate) struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

/// What is known of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) mtu: u32,
    pub(crate) controller: Option<u32>,
    pub(crate) up: bool,
}

impl Netlink {
    /// Connects in the namespace of this thread.
    pub(crate) fn connect() -> Result<Self> {
        let failed = io_error("opening", "a netlink socket");
        let runtime = match tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
        {
            Ok(runtime) => runtime,
            Err(error) => return Err(failed(error)),
        };
        let connected = {
            let _inside = runtime.enter();
            rtnetlink::new_connection()
        };
        let (connection, handle, _) = connected.map_err(failed)?;
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    /// A link by name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Link>> {
        let found = self.runtime.block_on(async {
            let mut links = self
                .handle
                .link()
                .get()
                .match_name(name.to_owned())
                .execute();
            links.try_next().await
        });
        match found {
            Ok(message) => Ok(message.map(|message| link(&message))),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(netlink_error("looking for link", name)(error)),
        }
    }

    /// A link by name that must be there.
    pub(crate) fn get(&self, name: &str) -> Result<Link> {
        self.find(name)?.ok_or_else(|| Error::NoLink {
            name: name.to_owned(),
            namespace: "this namespace".to_owned(),
        })
    }

    /// Makes a bridge that forwards at once and speaks no spanning tree. One that is there stays.
    pub(crate) fn ensure_bridge(&self, name: &str, mtu: u32) -> Result<Link> {
        if self.find(name)?.is_none() {
            let message = LinkBridge::new(name).forward_delay(0).mtu(mtu).build();
            self.add(name, message)?;
        }
        self.get(name)
    }

    /// Makes a veth pair in this namespace.
    pub(crate) fn add_veth(&self, name: &str, peer: &str) -> Result<()> {
        self.add(name, LinkVeth::new(name, peer).build())
    }

    fn add(&self, name: &str, message: LinkMessage) -> Result<()> {
        match self
            .runtime
            .block_on(self.handle.link().add(message).execute())
        {
            Err(error) if !is_exists(&error) => Err(netlink_error("making link", name)(error)),
            _ => Ok(()),
        }
    }

    /// Removes a link; one that is not there is no error.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let Some(link) = self.find(name)? else {
            return Ok(());
        };
        match self
            .runtime
            .block_on(self.handle.link().del(link.index).execute())
        {
            Err(error) if !is_gone(&error) => Err(netlink_error("removing link", name)(error)),
            _ => Ok(()),
        }
    }

    /// Sends a link to the namespace of a file descriptor.
    pub(crate) fn move_to(&self, link: &Link, namespace: BorrowedFd<'_>) -> Result<()> {
        let message = LinkUnspec::new_with_index(link.index)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        self.set("moving link", link, message)
    }

    /// Renames a link, which must be down.
    pub(crate) fn rename(&self, link: &Link, name: &str) -> Result<()> {
        self.set(
            "renaming link",
            link,
            LinkUnspec::new_with_index(link.index).name(name).build(),
        )
    }

    /// Sets the link's Ethernet address.
    pub(crate) fn set_mac(&self, link: &Link, mac: MacAddr) -> Result<()> {
        let message = LinkUnspec::new_with_index(link.index)
            .address(mac.octets().to_vec())
            .build();
        self.set("setting the address of link", link, message)
    }

    /// Sets the link's MTU.
    pub(crate) fn set_mtu(&self, link: &Link, mtu: u32) -> Result<()> {
        self.set(
            "setting the MTU of link",
            link,
            LinkUnspec::new_with_index(link.index).mtu(mtu).build(),
        )
    }

    /// Puts a link into a bridge.
    pub(crate) fn enslave(&self, link: &Link, bridge: &Link) -> Result<()> {
        if link.controller == Some(bridge.index) {
            return Ok(());
        }
        self.set(
            "putting into its bridge link",
            link,
            LinkUnspec::new_with_index(link.index)
                .controller(bridge.index)
                .build(),
        )
    }

    /// Has the bridge not learn who is behind a link that is in it; what is for nobody known goes there.
    pub(crate) fn learn_nothing(&self, link: &Link) -> Result<()> {
        let message = LinkBridgePort::new(link.index).learning(false).build();
        self.runtime
            .block_on(self.handle.link().set_port(message).execute())
            .map_err(netlink_error(
                "turning off learning of link",
                link.name.as_str(),
            ))
    }

    /// Takes a link out of its bridge.
    pub(crate) fn release(&self, link: &Link) -> Result<()> {
        self.set(
            "taking out of its bridge link",
            link,
            LinkUnspec::new_with_index(link.index)
                .nocontroller()
                .build(),
        )
    }

    pub(crate) fn up(&self, link: &Link) -> Result<()> {
        self.set(
            "setting up link",
            link,
            LinkUnspec::new_with_index(link.index).up().build(),
        )
    }

    pub(crate) fn down(&self, link: &Link) -> Result<()> {
        self.set(
            "setting down link",
            link,
            LinkUnspec::new_with_index(link.index).down().build(),
        )
    }

    fn set(&self, operation: &'static str, link: &Link, message: LinkMessage) -> Result<()> {
        self.runtime
            .block_on(self.handle.link().set(message).execute())
            .map_err(netlink_error(operation, link.name.as_str()))
    }

    /// The IPv4 addresses of a link.
    pub(crate) fn addresses(&self, link: &Link) -> Result<Vec<(Ipv4Addr, u8)>> {
        let messages: Vec<_> = self
            .runtime
            .block_on(
                self.handle
                    .address()
                    .get()
                    .set_link_index_filter(link.index)
                    .execute()
                    .try_collect(),
            )
            .map_err(netlink_error(
                "reading the addresses of",
                link.name.as_str(),
            ))?;
        let address = |message: &rtnetlink::packet_route::address::AddressMessage| {
            message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(IpAddr::V4(address)) => {
                        Some((*address, message.header.prefix_len))
                    }
                    _ => None,
                })
        };
        Ok(messages.iter().filter_map(address).collect())
    }

    /// Gives a link an address; one that it has is no error.
    pub(crate) fn add_address(&self, link: &Link, address: Ipv4Addr, prefix: u8) -> Result<()> {
        let request = self
            .handle
            .address()
            .add(link.index, IpAddr::V4(address), prefix);
        match self.runtime.block_on(request.execute()) {
            Err(error) if !is_exists(&error) => Err(netlink_error(
                "adding an address",
                format!("{address}/{prefix} to {}", link.name),
            )(error)),
            _ => Ok(()),
        }
    }

    /// Takes every address off a link.
    pub(crate) fn flush_addresses(&self, link: &Link) -> Result<()> {
        let flushed = self.runtime.block_on(async {
            let mut addresses = self
                .handle
                .address()
                .get()
                .set_link_index_filter(link.index)
                .execute();
            let mut found = Vec::new();
            while let Some(address) = addresses.try_next().await? {
                found.push(address);
            }
            for address in found {
                match self.handle.address().del(address).execute().await {
                    Err(error) if !is_gone(&error) => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        });
        flushed.map_err(netlink_error(
            "removing the addresses of",
            link.name.as_str(),
        ))
    }

    /// The default route through a router that the link reaches directly.
    pub(crate) fn add_default_route(&self, link: &Link, gateway: Ipv4Addr) -> Result<()> {
        let default = Route {
            destination: Ipv4Addr::UNSPECIFIED,
            prefix: 0,
            gateway: Some(gateway),
        };
        self.add_route(link, &default)
    }

    /// A route, through a router that the link reaches directly where it has one. One that is there is no error.
    pub(crate) fn add_route(&self, link: &Link, route: &Route) -> Result<()> {
        let (destination, prefix) = (route.destination, route.prefix);
        let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination, prefix)
            .output_interface(link.index);
        if let Some(gateway) = route.gateway {
            message = message.gateway(gateway).onlink();
        }
        let request = self.handle.route().add(message.build());
        match self.runtime.block_on(request.execute()) {
            Err(error) if !is_exists(&error) => Err(netlink_error(
                "adding a route",
                format!("to {destination}/{prefix} on {}", link.name),
            )(error)),
            _ => Ok(()),
        }
    }

    /// The default route's router and the other routes with one, of the main table, on a link.
    pub(crate) fn routes(&self, link: &Link) -> Result<(Option<Ipv4Addr>, Vec<Route>)> {
        let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let messages: Vec<_> = self.runtime.block_on(async {
            self.handle
                .route()
                .get(request)
                .execute()
                .filter_map(|message| async { message.ok() })
                .collect()
                .await
        });
        let mut default = None;
        let mut routes = Vec::new();
        for message in messages {
            let has = |wanted: &RouteAttribute| message.attributes.contains(wanted);
            if !has(&RouteAttribute::Oif(link.index)) || message.header.table != MAIN_TABLE {
                continue;
            }
            let gateway = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
                    _ => None,
                });
            let destination = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
                    _ => None,
                });
            match (destination, gateway) {
                (None, Some(gateway)) => default = default.or(Some(gateway)),
                (Some(destination), Some(_)) => {
                    routes.push(Route {
                        destination,
                        prefix: message.header.destination_prefix_length,
                        gateway,
                    });
                }
                // Routes of the link itself follow from its address.
                _ => {}
            }
        }
        Ok((default, routes))
    }
}

/// `RT_TABLE_MAIN`.
const MAIN_TABLE: u8 = 254;

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 1500,
        controller: None,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => {
                link.mac = bytes.as_slice().try_into().ok().map(MacAddr);
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            _ => {}
        }
    }
    link
}

/// Sets loopback up in the namespace of this thread.
pub(crate) fn loopback_up() -> Result<()> {
    let netlink = Netlink::connect()?;
    let lo = netlink.get("lo")?;
    if lo.up { Ok(()) } else { netlink.up(&lo) }
}
