//! Two virtual machines at once.

use anyhow::ensure;
use berth_e2e::{Target as _, manifest};

use crate::{BOOT, IMAGE, MEMORY, SOON, machine_with_guest};

#[test]
fn two_guests_of_one_image_reach_each_other() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("two guests")? else {
        return Ok(());
    };
    machine.apply(&format!(
        "{}---\n{}",
        manifest("east", IMAGE, MEMORY),
        manifest("west", IMAGE, MEMORY)
    ))?;
    machine.wait_phase("east", "Running", SOON)?;
    machine.wait_phase("west", "Running", SOON)?;
    let (east, west) = (machine.address("east")?, machine.address("west")?);
    ensure!(east != west, "both have {east}");
    let mut on_east = machine.console("east")?;
    let mut on_west = machine.console("west")?;
    on_east.log_in(BOOT)?;
    on_west.log_in(BOOT)?;
    on_east.shell(&format!("ping -c 3 -W 5 {west}"), SOON)?;
    on_west.shell(&format!("ping -c 3 -W 5 {east}"), SOON)?;
    let page = on_west.shell(&format!("wget -q -O - http://{east}/"), SOON)?;
    ensure!(page.contains("hello from the guest"), "{page}");
    // One image, stored once.
    let disks = std::fs::read_dir(machine.state().join("images/disks"))?.count();
    ensure!(disks == 1, "{disks} copies of one image");
    Ok(())
}
