//! Virtual hardware, as a guest sees it.

use crate::stories::hardware;
use crate::{SOON, machine_with_guest};

#[test]
fn a_guest_finds_the_hardware_that_was_asked_for() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("hardware")? else {
        return Ok(());
    };
    hardware::the_guest_finds_its_hardware(&machine)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

#[test]
fn a_guest_reads_what_cloud_init_is_told() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("cloud-init")? else {
        return Ok(());
    };
    hardware::the_guest_reads_what_cloud_init_is_told(&machine)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}
