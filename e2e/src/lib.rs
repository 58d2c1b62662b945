//! What the end-to-end tests stand on: a [`Machine`] with a real `berth up` on it, driven with the real `kubectl` and the
//! real `berth`, and real guests behind it; or a real [`Cluster`] with berth installed. A story that can happen on either
//! is written once, for a [`Target`].
//!
//! Every machine is a network namespace of its own (a "host" that knows loopback and nothing else) with its own state and
//! run directories, so that tests run beside each other and beside whatever else the machine does. Nothing here sleeps
//! for synchronisation: [`wait_for`] asks again until the answer is right or the deadline has passed, and then says what
//! the last answer was.

mod census;
mod cluster;
mod console;
mod exec;
mod machine;
mod outside;
mod registry;
mod server;
mod skip;
mod target;
mod web;

pub use census::Census;
pub use cluster::Cluster;
pub use console::Console;
pub use exec::{Outcome, run, wait_for};
pub use machine::{IMAGE, Machine, MachineOptions};
pub use outside::{MACHINE, OUTSIDE, Outside};
pub use registry::{REGISTRY, Registry};
pub use server::{Server, Side, reference_program};
pub use skip::{Need, missing};
pub use target::Target;
pub use web::{FileServer, Web};

use std::path::PathBuf;

/// The small guest's disk, built by `guest/build.sh`; `BERTH_GUEST` names another place.
pub fn small_guest() -> PathBuf {
    std::env::var_os("BERTH_GUEST")
        .map_or_else(|| repository().join(".cache/guest.qcow2"), PathBuf::from)
}

/// The root of the source tree.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(PathBuf::from)
        .unwrap_or_default()
}

/// The `berth` binary under test; `BERTH_BIN` names another one.
pub fn berth_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("BERTH_BIN") {
        return PathBuf::from(path);
    }
    // A test binary lies in target/<profile>/deps, any other in target/<profile>.
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.parent().unwrap_or(&own);
    let profile = if beside.ends_with("deps") {
        beside.parent().unwrap_or(beside)
    } else {
        beside
    };
    profile.join("berth")
}

/// A VMI manifest with one container disk, the given memory and a short grace period.
pub fn manifest(name: &str, image: &str, memory: &str) -> String {
    format!(
        "apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata:
  name: {name}
spec:
  terminationGracePeriodSeconds: 30
  domain:
    memory:
      guest: {memory}
    devices:
      rng: {{}}
      disks:
      - name: root
        disk:
          bus: virtio
      interfaces:
      - name: default
        bridge: {{}}
  networks:
  - name: default
    pod: {{}}
  volumes:
  - name: root
    containerDisk:
      image: {image}
"
    )
}
