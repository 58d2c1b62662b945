//! What the node agent and the launcher say to each other over `launcher.sock`.
//!
//! JSON, one object a line, over a unix stream; any number of connections at once.
//!
//! ```text
//! agent → launcher   {"id": 1, "call": {"sync": {…}}}     {"id": 2, "call": "kill"}
//! launcher → agent   {"id": 1, "result": STATE, "data": …}          {"id": 2, "error": "why not"}
//! launcher → agent   {"state": STATE}                     on connect and on each change
//! ```
//!
//! File descriptors travel with the request line (SCM_RIGHTS): a `sync` brings one DHCP socket for each NIC that has a
//! lease, in the order of the NICs. No other call brings any.
//!
//! # Guarantees
//! - The first thing on a connection is the state; the last one before a clean close is the final state.
//! - States may be skipped when they follow each other fast, never reordered.
//! - `sync` is idempotent: with the machine already running it is answered with the present state.

use std::collections::BTreeMap;
use std::net::IpAddr;

use berth_api::kubevirt::v1::{GuestOSInfo, VirtualMachineInstance};
use berth_network::MacAddr;
use berth_network::dhcp::Lease;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use crate::client::{Client, ClientError};

/// Name of the control socket in the run directory.
pub const CONTROL_SOCKET: &str = "launcher.sock";
/// Name of the socket with the serial console in the run directory: what the guest wrote lately, then live, both ways.
pub const CONSOLE_SOCKET: &str = "console.sock";
/// Name of the socket with the display in the run directory, which QEMU binds.
pub const VNC_SOCKET: &str = "vnc.sock";
/// Name of the file in the run directory that holds the last [`LauncherState`] once the domain has ended.
pub const FINAL_STATE: &str = "final-state.json";
/// The longest line either side accepts, in bytes.
pub(crate) const MAX_LINE: usize = 16 << 20;

/// One request line.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the caller; the reply carries it.
    pub id: u64,
    /// What to do.
    pub call: Call,
}

/// What can be asked of a launcher.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Bring this machine up. Answered once the guest runs, or with the reason why it does not.
    Sync(Box<SyncRequest>),
    /// Press the power button; cut the power when the guest has not powered off after so many seconds.
    Shutdown {
        /// Seconds; 0 cuts the power at once.
        grace_seconds: u64,
    },
    /// Cut the power at once.
    Kill,
    /// Stop the guest between two instructions. Answered once it stands.
    Pause,
    /// Let a paused guest go on.
    Resume,
    /// Have something of a guest that runs. Answered when it is done; calls behind it do not wait for it.
    Ask(Question),
    /// Tell the state.
    Status,
}

/// What can be had of a guest that runs. The answers are values of `berth_api`, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Press the reset button.
    Reset,
    /// Ask the guest to restart.
    Reboot,
    /// By the agent: write everything out and hold back what comes after, for at most so many seconds; 0 for ever.
    Freeze {
        /// Seconds.
        thaw_after_seconds: u64,
    },
    /// By the agent: write again.
    Thaw,
    /// By the agent: everything about the guest, a `GuestAgentInfo`.
    GuestInfo,
    /// By the agent: who is logged in, a list of `GuestOSUser`.
    Users,
    /// By the agent: the mounted file systems, a list of `FileSystem`.
    FileSystems,
    /// The screen: a PNG as base64.
    Screenshot,
    /// By the agent: whether it answers.
    Ping,
    /// By the agent: run a program. A list of its exit status and what it printed.
    Exec {
        /// The program and its arguments.
        command: Vec<String>,
        /// How long it may take, in seconds.
        timeout_seconds: u64,
    },
}

/// The machine and what stands behind its devices.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SyncRequest {
    /// The machine, as admitted.
    pub vmi: VirtualMachineInstance,
    /// What stands behind the volumes.
    #[serde(default)]
    pub disks: Vec<DiskBacking>,
    /// What stands behind the interfaces.
    #[serde(default)]
    pub nics: Vec<NicBacking>,
    /// What the firmware starts in place of a disk.
    #[serde(default)]
    pub boot: BootFiles,
    /// Whether the guest is emulated in software because KVM cannot be used.
    pub emulation: bool,
}

/// Paths of what the firmware starts, as the launcher sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFiles {
    /// The kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Its initial file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
}

/// The file behind a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskBacking {
    /// Name of the volume.
    pub volume: String,
    /// Path of the file, as the launcher sees it.
    pub path: String,
    /// `qcow2` or `raw`.
    pub format: String,
    /// Whether the file may not be written: the guest then writes to an overlay that is lost with the pod.
    pub read_only: bool,
    /// Whether it is a block device.
    #[serde(default)]
    pub block: bool,
    /// Makes an empty file of so many bytes where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create: Option<u64>,
}

/// The tap behind an interface.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NicBacking {
    /// Name of the network, which is that of the interface.
    pub network: String,
    /// Name of the tap in the pod's network namespace. It exists, and belongs to the launcher's user.
    pub tap: String,
    /// Hardware address that the guest sees.
    pub mac: MacAddr,
    /// MTU of the tap.
    pub mtu: u32,
    /// What the DHCP server tells the guest; none for no DHCP server. With a lease, a socket comes with the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
}

/// All that the launcher says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LauncherState {
    /// The domain; none before it was first brought up.
    #[serde(default)]
    pub domain: Option<DomainState>,
    /// The last word of each DHCP server.
    #[serde(default)]
    pub dhcp: Vec<DhcpStatus>,
    /// Why the last `sync` failed, or why the launcher cannot go on.
    #[serde(default)]
    pub failure: Option<String>,
    /// How long the steps took, in milliseconds, by name.
    #[serde(default)]
    pub timings: BTreeMap<String, u64>,
    /// What the guest's agent tells; none while there is none that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentState>,
    /// Whether the guest's file systems do not take writes, by request.
    #[serde(default)]
    pub frozen: bool,
}

/// What the guest's agent tells. The guest wrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentState {
    /// The operating system.
    #[serde(default)]
    pub os: GuestOSInfo,
    /// The network interfaces.
    #[serde(default)]
    pub interfaces: Vec<GuestInterface>,
    /// Whether keys and passwords are in the guest: why not, or nothing where they are. None where it is to get none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
}

/// A network interface as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestInterface {
    /// The guest's name for it.
    pub name: String,
    /// Hardware address, lower case.
    pub mac: String,
    /// The addresses that it has.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// The state of the domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainState {
    /// What it does.
    pub state: DomainPhase,
    /// Why, in one word that programs can rely on: one of [`reason`].
    pub reason: String,
    /// Why, in words for people.
    #[serde(default)]
    pub message: String,
    /// The process of QEMU, in the launcher's pid namespace.
    #[serde(default)]
    pub qemu_pid: Option<u32>,
    /// UUID of the domain.
    pub uuid: String,
    /// The machine type, with its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
}

/// What a domain does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DomainPhase {
    /// The guest runs.
    Running,
    /// The guest is stopped between two instructions.
    Paused,
    /// The guest was asked to power off, or does.
    ShuttingDown,
    /// The guest has ended in an orderly way, or its power was cut on request. Final.
    Shutoff,
    /// The guest or QEMU ended in another way. Final.
    Crashed,
}

impl DomainPhase {
    /// Whether no other state follows.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Shutoff | Self::Crashed)
    }
}

/// The values of [`DomainState::reason`].
pub mod reason {
    /// Running: it was started.
    pub const BOOTED: &str = "booted";
    /// Running: it was paused before.
    pub const RESUMED: &str = "resumed";
    /// Paused: by request.
    pub const USER: &str = "user";
    /// Paused: a disk failed, or the node has no space left for it.
    pub const IO_ERROR: &str = "ioerror";
    /// Paused: the guest's watchdog fired.
    pub const WATCHDOG: &str = "watchdog";
    /// Paused: for another reason.
    pub const PAUSED: &str = "paused";
    /// Shutting down by request, or by the guest's own will; and Shutoff: the guest powered off.
    pub const SHUTDOWN: &str = "shutdown";
    /// Shutoff: the power was cut, by request or by somebody else.
    pub const DESTROYED: &str = "destroyed";
    /// Shutoff: the guest was asked to power off and did not within its grace period, so the power was cut.
    pub const GRACE_EXCEEDED: &str = "graceexceeded";
    /// Crashed: the guest did.
    pub const PANICKED: &str = "panicked";
    /// Crashed: QEMU was killed by a signal.
    pub const KILLED: &str = "killed";
    /// Crashed: QEMU or libvirt failed.
    pub const FAILED: &str = "failed";
}

/// The last word of the DHCP server of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpStatus {
    /// Name of the network.
    pub network: String,
    /// What happened, for example which message was answered.
    pub event: String,
    /// When: seconds since 1970.
    pub at: u64,
}

/// The answer to a call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    /// What the launcher says about itself.
    pub(crate) state: LauncherState,
    /// What was asked for.
    pub(crate) data: Option<Value>,
}

/// A line from the launcher: either a reply (`id` and one of `result`, `error`) or a notification (`state`).
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Message {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<LauncherState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<LauncherState>,
}

/// A message as a line.
pub(crate) fn line<T: Serialize>(message: &T) -> Vec<u8> {
    let mut bytes =
        serde_json::to_vec(message).expect("maps have string keys, so JSON cannot fail");
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_read_as_the_documentation_says() {
        let kill = Request {
            id: 2,
            call: Call::Kill,
        };
        assert_eq!(
            serde_json::to_string(&kill).unwrap(),
            r#"{"id":2,"call":"kill"}"#
        );
        let stop = Request {
            id: 3,
            call: Call::Shutdown { grace_seconds: 7 },
        };
        assert_eq!(
            serde_json::to_string(&stop).unwrap(),
            r#"{"id":3,"call":{"shutdown":{"grace_seconds":7}}}"#
        );
    }

    #[test]
    fn a_state_needs_no_more_than_its_domain() {
        let text = r#"{"domain":{"state":"Shutoff","reason":"shutdown","uuid":"u"}}"#;
        let state: LauncherState = serde_json::from_str(text).unwrap();
        let domain = state.domain.unwrap();
        assert!(domain.state.is_final());
        assert_eq!(domain.qemu_pid, None);
    }

    #[test]
    fn a_message_is_one_line() {
        let message = Message {
            id: Some(1),
            error: Some("two\nlines".to_owned()),
            ..Message::default()
        };
        let bytes = line(&message);
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "{\"id\":1,\"error\":\"two\\nlines\"}\n"
        );
    }
}
