//! What can go wrong, each with the thing it went wrong on.

use std::io;
use std::path::PathBuf;

/// A failed operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A netlink request that the kernel refused.
    #[error("{operation} {subject}: {source}")]
    Netlink {
        /// What was asked for.
        operation: &'static str,
        /// Of which link or address.
        subject: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// A link that should be there.
    #[error("no link {name} in {namespace}")]
    NoLink {
        /// Its name.
        name: String,
        /// Where it was looked for.
        namespace: String,
    },
    /// A file or system call.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// nft refused the rules.
    #[error("nftables table {table}: {message}")]
    Nft {
        /// The table.
        table: String,
        /// nft's words.
        message: String,
    },
    /// The bridge has another address than the pod network wants.
    #[error("bridge {bridge} has the address {found}, but the pod network needs {wanted}")]
    BridgeAddress {
        /// The bridge.
        bridge: String,
        /// What it has.
        found: String,
        /// What it should have.
        wanted: String,
    },
}

/// With this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

pub(crate) fn io_error(
    operation: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io {
        operation,
        path,
        source,
    }
}

pub(crate) fn netlink_error(
    operation: &'static str,
    subject: impl Into<String>,
) -> impl FnOnce(rtnetlink::Error) -> Error {
    let subject = subject.into();
    move |source| Error::Netlink {
        operation,
        subject,
        source,
    }
}

/// Whether the kernel says that it exists already.
pub(crate) fn is_exists(error: &rtnetlink::Error) -> bool {
    has_errno(error, libc::EEXIST)
}

/// Whether the kernel says that there is no such thing (any more).
pub(crate) fn is_gone(error: &rtnetlink::Error) -> bool {
    [libc::ENODEV, libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL]
        .iter()
        .any(|errno| has_errno(error, *errno))
}

fn has_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}
