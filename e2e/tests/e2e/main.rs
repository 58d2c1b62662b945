//! The end-to-end tests: one module a user story, each on machines of its own.

mod bad_input;
mod cli;
mod concurrency;
mod container_disks;
mod crashes;
mod deletion;
mod first_light;
mod foreign_guest;
mod leaks;
mod old_manifests;
mod two_guests;
mod users;

use std::time::Duration;

use berth_e2e::{Machine, Need, missing, small_guest};

/// Long enough for a guest under software emulation on a busy machine.
const BOOT: Duration = Duration::from_secs(150);
/// For what berth does by itself.
const SOON: Duration = Duration::from_secs(30);
/// The guest's memory.
const MEMORY: &str = "160Mi";
/// The small guest as a container disk.
const IMAGE: &str = "berth/small-guest:latest";

/// A machine whose store holds the small guest; none if this machine cannot run it.
fn machine_with_guest(test: &str) -> anyhow::Result<Option<Machine>> {
    if missing(test, &[Need::Root, Need::Qemu, Need::SmallGuest]) {
        return Ok(None);
    }
    let machine = Machine::start()?;
    machine.build_image(IMAGE, &small_guest())?;
    Ok(Some(machine))
}
