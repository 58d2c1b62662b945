//! Stopping: the guest is asked first, and nothing is left.

use std::time::{Duration, Instant};

use anyhow::ensure;
use berth_e2e::{Target as _, manifest};

use crate::{BOOT, IMAGE, MEMORY, SOON, machine_with_guest};

#[test]
fn a_deleted_guest_is_asked_by_acpi_and_leaves_nothing() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("deletion")? else {
        return Ok(());
    };
    let before = machine.census()?;
    machine.apply(&manifest("leaver", IMAGE, MEMORY))?;
    machine.wait_phase("leaver", "Running", SOON)?;
    let mut console = machine.console("leaver")?;
    console.log_in(BOOT)?;

    let start = Instant::now();
    machine
        .kubectl(&["delete", "vmi", "leaver", "--wait=false"])?
        .ok()?;
    console.expect("power button: shutting down", SOON)?;
    machine.delete("leaver", SOON).or_else(|error| {
        // Already gone is what we want.
        if format!("{error:#}").contains("not found") {
            Ok(())
        } else {
            Err(error)
        }
    })?;
    ensure!(
        start.elapsed() < Duration::from_secs(30),
        "took {:?}, longer than the grace period",
        start.elapsed()
    );
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
    let Some(machine) = machine_with_guest("deaf guest")? else {
        return Ok(());
    };
    let manifest = manifest("deaf", IMAGE, MEMORY).replace(
        "terminationGracePeriodSeconds: 30",
        "terminationGracePeriodSeconds: 3",
    );
    machine.apply(&manifest)?;
    machine.wait_phase("deaf", "Running", SOON)?;
    let mut console = machine.console("deaf")?;
    console.log_in(BOOT)?;
    console.shell("killall acpid", SOON)?;
    let start = Instant::now();
    machine.delete("deaf", SOON)?;
    let took = start.elapsed();
    ensure!(
        took >= Duration::from_secs(3),
        "ended after {took:?}, before its grace period"
    );
    ensure!(took < Duration::from_secs(20), "ended only after {took:?}");
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

#[test]
fn a_guest_that_powers_itself_off_has_succeeded() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("power off")? else {
        return Ok(());
    };
    machine.apply(&manifest("finisher", IMAGE, MEMORY))?;
    machine.wait_phase("finisher", "Running", SOON)?;
    let mut console = machine.console("finisher")?;
    console.log_in(BOOT)?;
    console.send_line("poweroff -f")?;
    machine.wait_phase("finisher", "Succeeded", SOON)?;
    machine.delete("finisher", SOON)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}
