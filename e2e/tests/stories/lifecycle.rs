//! Stopping: the guest is asked first. And several at once.

use std::time::{Duration, Instant};

use anyhow::ensure;
use berth_e2e::{Target, manifest};

use super::{BOOT, MEMORY, SOON};

/// A deleted guest hears of it and shuts down within its grace period.
pub(crate) fn a_deleted_guest_is_asked_by_acpi(target: &dyn Target) -> anyhow::Result<()> {
    target.apply(&manifest("leaver", target.image(), MEMORY))?;
    target.wait_phase("leaver", "Running", SOON)?;
    let mut console = target.console("leaver")?;
    console.log_in(BOOT)?;

    let start = Instant::now();
    target
        .kubectl(&["delete", "vmi", "leaver", "--wait=false"])?
        .ok()?;
    console.expect("power button: shutting down", SOON)?;
    target.delete("leaver", SOON).or_else(|error| {
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
    Ok(())
}

/// One that does not listen is ended when its grace period is over, and not before.
pub(crate) fn a_deaf_guest_is_ended_after_its_grace_period(
    target: &dyn Target,
) -> anyhow::Result<()> {
    let manifest = manifest("deaf", target.image(), MEMORY).replace(
        "terminationGracePeriodSeconds: 30",
        "terminationGracePeriodSeconds: 3",
    );
    target.apply(&manifest)?;
    target.wait_phase("deaf", "Running", SOON)?;
    let mut console = target.console("deaf")?;
    console.log_in(BOOT)?;
    console.shell("killall acpid", SOON)?;
    let start = Instant::now();
    target.delete("deaf", SOON)?;
    let took = start.elapsed();
    ensure!(
        took >= Duration::from_secs(3),
        "ended after {took:?}, before its grace period"
    );
    ensure!(took < Duration::from_secs(20), "ended only after {took:?}");
    Ok(())
}

/// A guest that powers itself off has succeeded.
pub(crate) fn a_guest_powers_itself_off(target: &dyn Target) -> anyhow::Result<()> {
    target.apply(&manifest("finisher", target.image(), MEMORY))?;
    target.wait_phase("finisher", "Running", SOON)?;
    let mut console = target.console("finisher")?;
    console.log_in(BOOT)?;
    console.send_line("poweroff -f")?;
    target.wait_phase("finisher", "Succeeded", SOON)?;
    target.delete("finisher", SOON)
}

/// Two guests of one image reach each other.
pub(crate) fn two_guests_reach_each_other(target: &dyn Target) -> anyhow::Result<()> {
    let image = target.image();
    target.apply(&format!(
        "{}---\n{}",
        manifest("east", image, MEMORY),
        manifest("west", image, MEMORY)
    ))?;
    target.wait_phase("east", "Running", SOON)?;
    target.wait_phase("west", "Running", SOON)?;
    let (east, west) = (target.address("east")?, target.address("west")?);
    ensure!(east != west, "both have {east}");
    let mut on_east = target.console("east")?;
    let mut on_west = target.console("west")?;
    on_east.log_in(BOOT)?;
    on_west.log_in(BOOT)?;
    on_east.shell(&format!("ping -c 3 -W 5 {west}"), SOON)?;
    on_west.shell(&format!("ping -c 3 -W 5 {east}"), SOON)?;
    let page = on_west.shell(&format!("wget -q -O - http://{east}/"), SOON)?;
    ensure!(page.contains("hello from the guest"), "{page}");
    Ok(())
}
