//! Device plugins: how a kubelet learns that a node has KVM, taps and vhost-net, and hands them to launcher pods.
//!
//! One plugin a device, each with a socket of its own beside the kubelet's. A device of which any number of pods may have a
//! share is told as many times ([`SHARES`]).
//!
//! ```text
//!  plugin ── Register(resource, socket) ──► kubelet.sock
//!  kubelet ── ListAndWatch ──► berth-<device>.sock      the shares, again whenever their health changes
//!  kubelet ── Allocate ──────► berth-<device>.sock      the device of a container that is about to be made
//! ```
//! A kubelet that starts removes all sockets and knows no plugin any more. So a plugin whose socket is gone, or whose
//! kubelet has made its own anew, begins from the start.

mod plugin;
mod protocol;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use berth_api::labels;
use tokio_util::sync::CancellationToken;

/// Where kubelets look for plugins.
const DIR: &str = "/var/lib/kubelet/device-plugins";
/// The kubelet's own socket there.
const KUBELET: &str = "kubelet.sock";
/// How often a device and the kubelet are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Before a plugin that could not begin tries again.
const RETRY: Duration = Duration::from_secs(1);
/// How many pods can have a device at once: more than any node runs.
const SHARES: usize = 1000;

/// A device that launchers need.
#[derive(Debug)]
pub(crate) struct Device {
    /// What pods ask for.
    pub(crate) resource: &'static str,
    /// The same path on the node and in the container.
    pub(crate) path: &'static str,
    /// The socket of its plugin.
    socket: &'static str,
    /// Whether it can be used, not only be seen.
    works: fn() -> bool,
}

/// All of them.
pub(crate) const ALL: [Device; 3] = [
    Device {
        resource: labels::DEVICE_KVM,
        path: "/dev/kvm",
        socket: "berth-kvm.sock",
        // On some hosts the device is there and guests hang.
        works: || berth_hypervisor::kvm::probe().usable,
    },
    Device {
        resource: labels::DEVICE_TUN,
        path: "/dev/net/tun",
        socket: "berth-tun.sock",
        works: || opens("/dev/net/tun"),
    },
    Device {
        resource: labels::DEVICE_VHOST_NET,
        path: "/dev/vhost-net",
        socket: "berth-vhost-net.sock",
        works: || opens("/dev/vhost-net"),
    },
];

/// The first to open such a device makes the kernel load its module.
fn opens(path: &str) -> bool {
    std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .is_ok()
}

/// Runs the plugins until `shutdown`. Pods keep the devices that they have.
pub(crate) async fn run(shutdown: &CancellationToken) {
    let dir = Path::new(DIR);
    if !dir.is_dir() {
        tracing::warn!(
            dir = DIR,
            "no kubelet looks for device plugins here: launcher pods get no devices"
        );
        return;
    }
    let plugins = ALL
        .iter()
        .map(|device| plugin::run(device, dir, shutdown.clone()));
    futures::future::join_all(plugins).await;
}

/// What tells a socket from another one of the same name.
fn identity(path: &Path) -> Option<(u64, i64, i64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.ino(), found.ctime(), found.ctime_nsec()))
}
