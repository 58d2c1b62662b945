//! `kill -9` of this and that.

use anyhow::{Context as _, ensure};
use berth_e2e::{Machine, Target as _, manifest, run, wait_for};

use crate::stories::crashes;
use crate::{BOOT, IMAGE, MEMORY, SOON, machine_with_guest};

/// The process id of the only QEMU that belongs to the machine.
fn qemu(machine: &Machine) -> anyhow::Result<String> {
    let census = machine.census()?;
    let line = census
        .processes
        .iter()
        .find(|line| line.contains("qemu-system"))
        .context("no QEMU runs")?;
    Ok(line.split(' ').next().unwrap_or_default().to_owned())
}

#[test]
fn a_guest_outlives_berth_up_and_is_found_again() -> anyhow::Result<()> {
    let Some(mut machine) = machine_with_guest("berth up killed")? else {
        return Ok(());
    };
    machine.apply(&manifest("survivor", IMAGE, MEMORY))?;
    machine.wait_phase("survivor", "Running", SOON)?;
    machine.console("survivor")?.log_in(BOOT)?;
    let address = machine.address("survivor")?;
    let process = qemu(&machine)?;
    let uid = machine.vmi("survivor", ".metadata.uid")?;

    machine.kill_berth()?;
    machine.ping(&address, SOON)?;
    machine.up()?;
    machine.wait_phase("survivor", "Running", SOON)?;
    ensure!(qemu(&machine)? == process, "another QEMU runs now");
    ensure!(
        machine.vmi("survivor", ".metadata.uid")? == uid,
        "another object has the name"
    );
    ensure!(
        machine.address("survivor")? == address,
        "the address changed"
    );
    machine.ping(&address, SOON)?;
    let mut console = machine.console("survivor")?;
    let text = console
        .send_line("")
        .and_then(|()| console.shell("echo still $((40 + 2))", SOON))?;
    ensure!(text.contains("still 42"), "{text}");
    // A new VM does not get the survivor's address.
    machine.apply(&manifest("newcomer", IMAGE, MEMORY))?;
    machine.wait_phase("newcomer", "Running", SOON)?;
    ensure!(
        machine.address("newcomer")? != address,
        "two VMs have {address}"
    );
    machine.delete("newcomer", SOON * 2)?;
    // It is not only remembered but watched again: its end is noticed.
    console.send_line("poweroff -f")?;
    machine.wait_phase("survivor", "Succeeded", SOON)?;
    machine.delete("survivor", SOON * 2)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

#[test]
fn a_guest_that_ended_while_berth_was_away_is_told_right() -> anyhow::Result<()> {
    let Some(mut machine) = machine_with_guest("ended meanwhile")? else {
        return Ok(());
    };
    machine.apply(&manifest("goner", IMAGE, MEMORY))?;
    machine.wait_phase("goner", "Running", SOON)?;
    let process = qemu(&machine)?;
    machine.kill_berth()?;
    run(
        std::process::Command::new("kill").args(["-9", &process]),
        "",
    )?
    .ok()?;
    wait_for("the launcher ended too", SOON, || {
        let census = machine.census()?;
        ensure!(census.processes.is_empty(), "{:?}", census.processes);
        Ok(())
    })?;
    machine.up()?;
    machine.wait_phase("goner", "Failed", SOON)?;
    machine.delete("goner", SOON)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

#[test]
fn a_killed_qemu_is_a_failed_vmi_with_the_reason() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("QEMU killed")? else {
        return Ok(());
    };
    crashes::a_killed_qemu_is_told(&machine)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

#[test]
fn a_killed_libvirt_is_started_again() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("libvirt killed")? else {
        return Ok(());
    };
    crashes::a_killed_libvirt_is_started_again(&machine)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}
