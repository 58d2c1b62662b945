//! The DHCP servers of a guest: one task for each NIC that has a lease, on the socket that the node agent opened.

use std::io;
use std::os::fd::OwnedFd;

use berth_network::dhcp::{self, DhcpEvent, Lease};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::protocol::{DhcpStatus, NicBacking};

/// The servers of one guest. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Servers {
    waiting: Vec<(String, Lease, OwnedFd)>,
    news: mpsc::Sender<DhcpStatus>,
    cancel: CancellationToken,
    _end: DropGuard,
}

impl Servers {
    /// Joins sockets and leases, in their order.
    pub(crate) fn new(
        nics: &[NicBacking],
        sockets: Vec<OwnedFd>,
        news: mpsc::Sender<DhcpStatus>,
    ) -> Self {
        let leases = nics
            .iter()
            .filter_map(|nic| Some((nic.network.clone(), nic.lease.clone()?)));
        let waiting = leases
            .zip(sockets)
            .map(|((network, lease), socket)| (network, lease, socket))
            .collect();
        let cancel = CancellationToken::new();
        Self {
            waiting,
            news,
            _end: cancel.clone().drop_guard(),
            cancel,
        }
    }

    /// Begins to answer. On failure the network's name comes with the error.
    pub(crate) fn serve(&mut self) -> Result<(), (String, io::Error)> {
        for (network, lease, socket) in self.waiting.drain(..) {
            rustix::io::ioctl_fionbio(&socket, true)
                .map_err(|error| (network.clone(), error.into()))?;
            let (news, cancel) = (self.news.clone(), self.cancel.clone());
            tokio::spawn(async move {
                let (events, mut heard) = mpsc::channel(8);
                let name = network.clone();
                let relay = async {
                    while let Some(event) = heard.recv().await {
                        let event = words(event);
                        tracing::info!(network = name, "DHCP: {event}");
                        let status = DhcpStatus {
                            network: name.clone(),
                            event,
                            at: crate::unix_now(),
                        };
                        if news.send(status).await.is_err() {
                            return;
                        }
                    }
                };
                let (served, ()) = tokio::join!(dhcp::serve(socket, lease, events, cancel), relay);
                if let Err(error) = served {
                    tracing::error!(network, "DHCP server: {error}");
                }
            });
        }
        Ok(())
    }
}

/// The event in words for people.
fn words(event: DhcpEvent) -> String {
    match event {
        DhcpEvent::Offered => "the guest was offered its address".to_owned(),
        DhcpEvent::Bound => "the guest has its address".to_owned(),
        DhcpEvent::Refused { wanted } => format!("the guest wanted {wanted} and was refused"),
        DhcpEvent::Informed => "the guest was told everything but an address".to_owned(),
        DhcpEvent::Declined => "the guest found its address in use by somebody else".to_owned(),
        DhcpEvent::Released => "the guest gave its address back".to_owned(),
    }
}
