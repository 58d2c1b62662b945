//! The end-to-end tests: one module a user story, each on machines of its own.

mod bad_input;
mod cli;
mod concurrency;
mod container_disks;
mod crashes;
mod deletion;
mod disks;
mod first_light;
mod foreign_guest;
mod guests;
mod hardware;
mod leaks;
mod machines;
mod old_manifests;
#[path = "../stories/mod.rs"]
mod stories;
mod two_guests;
mod users;
mod volumes;

use berth_e2e::{IMAGE, Machine, Need, Target, missing, small_guest};
use stories::{BOOT, MEMORY, SOON};

/// A machine whose store holds the small guest; none if this machine cannot run it.
fn machine_with_guest(test: &str) -> anyhow::Result<Option<Machine>> {
    if missing(test, &[Need::Root, Need::Qemu, Need::SmallGuest]) {
        return Ok(None);
    }
    let machine = Machine::start()?;
    machine.build_image(IMAGE, &small_guest())?;
    Ok(Some(machine))
}

/// A story of any target, on a machine of its own; nothing of it is left afterwards.
fn story(test: &str, story: impl FnOnce(&dyn Target) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest(test)? else {
        return Ok(());
    };
    story(&machine)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}
