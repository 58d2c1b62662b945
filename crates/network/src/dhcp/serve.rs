//! Frames between a packet socket and [`answer`](super::answer).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{DhcpEvent, Lease, answer};

/// Larger than any frame of a link without jumbo frames; a longer one is no DHCP request.
const FRAME_MAX: usize = 2048;
/// Between attempts when the socket fails, as it does while its link is down.
const PAUSE: Duration = Duration::from_millis(200);

/// Serves one lease on a socket from [`crate::open_dhcp_socket`] until cancelled. A socket that fails is tried again: the
/// machine goes on without its DHCP server, it does not end with it.
///
/// # Errors
/// When the socket cannot be watched at all.
pub async fn serve(
    socket: OwnedFd,
    lease: Lease,
    events: mpsc::Sender<DhcpEvent>,
    cancel: CancellationToken,
) -> io::Result<()> {
    // SAFETY: an OwnedFd gives the same open descriptor for as long as it lives, and it is not replaced inside.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }
        .map_err(io::Error::from)?;
    let mut buffer = vec![0_u8; FRAME_MAX];
    loop {
        let result = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            result = one(&socket, &lease, &mut buffer) => result,
        };
        match result {
            // Events are for whoever looks; a slow reader loses some rather than stopping the server.
            Ok(Some(event)) => drop(events.try_send(event)),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(mac = %lease.mac, "DHCP socket: {error}; trying again");
                tokio::select! {
                    () = cancel.cancelled() => return Ok(()),
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
        }
    }
}

async fn one(
    socket: &AsyncFd<OwnedFd>,
    lease: &Lease,
    buffer: &mut [u8],
) -> io::Result<Option<DhcpEvent>> {
    let length = socket
        .async_io(Interest::READABLE, |fd| {
            Ok(rustix::io::read(fd, &mut *buffer)?)
        })
        .await?;
    let Some((event, reply)) = answer(lease, &buffer[..length]) else {
        return Ok(None);
    };
    if let Some(reply) = reply {
        // Not waited for: a full queue loses a reply, and the client asks again.
        rustix::io::write(socket.get_ref(), &reply)?;
    }
    tracing::info!(mac = %lease.mac, ip = %lease.ip, "DHCP: {event:?}");
    Ok(Some(event))
}
