//! Stopping: the guest is asked first, and nothing is left.

use anyhow::ensure;

use crate::stories::lifecycle;
use crate::{SOON, machine_with_guest, story};

#[test]
fn a_deleted_guest_is_asked_by_acpi_and_leaves_nothing() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("deletion")? else {
        return Ok(());
    };
    let before = machine.census()?;
    lifecycle::a_deleted_guest_is_asked_by_acpi(&machine)?;
    let after = machine.wait_nothing_left(SOON)?;
    ensure!(
        after.mounts == before.mounts,
        "mounts: {:?} before, {:?} after",
        before.mounts,
        after.mounts
    );
    ensure!(
        after.links == before.links,
        "links: {:?} before, {:?} after",
        before.links,
        after.links
    );
    Ok(())
}

#[test]
fn a_guest_that_does_not_listen_is_ended_after_the_grace_period() -> anyhow::Result<()> {
    story(
        "deaf guest",
        lifecycle::a_deaf_guest_is_ended_after_its_grace_period,
    )
}

#[test]
fn a_guest_that_powers_itself_off_has_succeeded() -> anyhow::Result<()> {
    story("power off", lifecycle::a_guest_powers_itself_off)
}
