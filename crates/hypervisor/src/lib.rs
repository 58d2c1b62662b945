//! Domains on a hypervisor: one trait, libvirt behind it, and a scripted twin for tests.
//!
//! - [`Hypervisor`] is what the launcher needs of one: define, start, stop, and the events that say what happened.
//! - [`libvirt::Libvirt`] is the real one. This is the only crate that links the C library.
//! - [`fake::Fake`] plays the same part from a script.
//! - [`kvm::probe`] says whether guests can run on the processor or have to be emulated.
//!
//! The words are libvirt's: a *domain* is one virtual machine, *destroy* cuts its power, *undefine* forgets it.
//!
//! # Guarantees
//! Events arrive in the order in which the hypervisor sent them. What happened while the connection was down is not
//! replayed: after [`DomainEventKind::ConnectionLost`], connect again and ask [`Hypervisor::state`].

pub mod fake;
pub mod host;
pub mod kvm;
pub mod libvirt;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// The stream of events of one connection. It ends when the connection is dropped.
pub type Events = mpsc::UnboundedReceiver<DomainEvent>;

/// A domain that the hypervisor knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainInfo {
    /// Its name.
    pub name: String,
    /// Its UUID, lower case with dashes.
    pub uuid: String,
    /// The number of its present run; `None` while it does not run.
    pub id: Option<u32>,
    /// The machine type that it runs as, with its version; known when it was started.
    pub machine: Option<String>,
}

/// What a domain does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// The guest runs.
    Running,
    /// The guest is stopped between two instructions.
    Paused(PauseReason),
    /// The guest powers off; QEMU still lives.
    ShuttingDown,
    /// The guest sleeps (ACPI S3).
    Suspended,
    /// There is no QEMU; the reason is why it went away.
    Shutoff(StopReason),
    /// The guest has crashed and is kept for inspection.
    Crashed,
    /// The hypervisor does not say.
    Unknown,
}

/// Why a guest was paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PauseReason {
    /// Somebody asked for it, or the domain was started that way.
    User,
    /// A disk failed, or its storage is full.
    IoError,
    /// The guest's watchdog fired.
    Watchdog,
    /// The hypervisor does not say, or something of its own is going on.
    Other,
}

/// Why a domain stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// The guest powered off.
    Shutdown,
    /// Its power was cut by request.
    Destroyed,
    /// The guest crashed.
    Crashed,
    /// QEMU went away by itself, or did not start.
    Failed,
    /// It was moved to another host.
    Migrated,
    /// Its memory was saved to a file.
    Saved,
    /// The hypervisor does not say, or the domain has not run yet.
    Unknown,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shutdown => "the guest powered off",
            Self::Destroyed => "the power was cut",
            Self::Crashed => "the guest crashed",
            Self::Failed => "QEMU ended unexpectedly",
            Self::Migrated => "moved to another host",
            Self::Saved => "saved to a file",
            Self::Unknown => "stopped for an unknown reason",
        })
    }
}

/// Something that happened to a domain, or to the connection itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainEvent {
    /// The domain's name; empty for [`DomainEventKind::ConnectionLost`].
    pub name: String,
    /// What happened.
    pub kind: DomainEventKind,
}

/// The kinds of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DomainEventKind {
    /// The definition was made or changed.
    Defined,
    /// The definition was removed.
    Undefined,
    /// QEMU was started.
    Started,
    /// The guest was paused.
    Suspended {
        /// Why.
        reason: PauseReason,
    },
    /// The guest goes on.
    Resumed,
    /// The guest has powered off or was asked by QEMU's host side to; `Stopped` follows.
    Shutdown,
    /// There is no QEMU any more.
    Stopped {
        /// Why.
        reason: StopReason,
    },
    /// The guest sleeps.
    PmSuspended,
    /// The guest's agent answers, or does not any more.
    Agent {
        /// Whether it does.
        connected: bool,
    },
    /// The guest crashed.
    Crashed,
    /// The connection broke. No further event comes; the domains may well live on.
    ConnectionLost {
        /// What the transport saw.
        reason: String,
    },
    /// An event of a kind that this version does not know.
    Other(i32),
}

/// Why a call failed. The text of the hypervisor is kept as it is.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// No connection to the hypervisor.
    #[error("cannot connect to {uri}: {message}")]
    Connect {
        /// Where to.
        uri: String,
        /// The hypervisor library's words.
        message: String,
    },
    /// The domain does not exist.
    #[error("domain {0} does not exist")]
    NoDomain(String),
    /// The hypervisor does not accept the description of the domain.
    #[error("domain definition refused: {0}")]
    Definition(String),
    /// QEMU did not start.
    #[error("cannot start the domain: {0}")]
    Start(String),
    /// Another call failed.
    #[error("cannot {operation}: {message}")]
    Call {
        /// What was tried.
        operation: &'static str,
        /// The hypervisor library's words.
        message: String,
    },
}

/// What the launcher asks of a hypervisor. One value is one connection.
///
/// Domains are named by UUID. No call blocks the executor.
pub trait Hypervisor: Send + Sync + 'static {
    /// Makes the domain known, without starting it. Defining the same UUID again replaces the definition.
    fn define(&self, xml: &str) -> impl Future<Output = Result<DomainInfo, Error>> + Send;

    /// Starts QEMU. With `paused` the guest does not run before [`Hypervisor::resume`].
    fn start(
        &self,
        uuid: &str,
        paused: bool,
    ) -> impl Future<Output = Result<DomainInfo, Error>> + Send;

    /// Finds a domain by its UUID.
    fn lookup(&self, uuid: &str) -> impl Future<Output = Result<DomainInfo, Error>> + Send;

    /// What the domain does now.
    fn state(&self, uuid: &str) -> impl Future<Output = Result<RunState, Error>> + Send;

    /// Presses the power button (ACPI). Returns once that is done; what the guest makes of it comes as an event.
    fn shutdown(&self, uuid: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Cuts the power: SIGTERM to QEMU, SIGKILL when it does not end. Not an error when the domain does not run.
    fn destroy(&self, uuid: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Forgets the definition, and with it firmware variables and saved state.
    fn undefine(&self, uuid: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Stops the guest between two instructions.
    fn suspend(&self, uuid: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Lets a paused guest go on.
    fn resume(&self, uuid: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Presses the reset button: the guest begins anew without having been asked.
    fn reset(&self, uuid: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Asks the guest to restart: by its agent where one answers, else by the power button (ACPI).
    fn reboot(&self, uuid: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// What the guest's first screen shows: a PNG, or a portable pixmap from older versions of QEMU.
    fn screenshot(&self, uuid: &str) -> impl Future<Output = Result<Vec<u8>, Error>> + Send;

    /// Has the guest's agent carry a command of its protocol out: JSON both ways. What comes back was written by the guest.
    fn agent(
        &self,
        uuid: &str,
        command: &str,
        patience: Duration,
    ) -> impl Future<Output = Result<String, Error>> + Send;

    /// Defines and starts a domain; the definition is taken back when QEMU does not start.
    fn define_and_start(
        &self,
        xml: &str,
    ) -> impl Future<Output = Result<DomainInfo, Error>> + Send {
        async move {
            let defined = self.define(xml).await?;
            match self.start(&defined.uuid, false).await {
                Ok(info) => Ok(info),
                Err(error) => {
                    if let Err(undo) = self.undefine(&defined.uuid).await {
                        tracing::warn!(
                            domain = defined.name,
                            "cannot take the definition back: {undo}"
                        );
                    }
                    Err(error)
                }
            }
        }
    }
}
