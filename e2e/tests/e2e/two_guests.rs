//! Two virtual machines at once.

use anyhow::ensure;

use crate::machine_with_guest;
use crate::stories::lifecycle;

#[test]
fn two_guests_of_one_image_reach_each_other() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("two guests")? else {
        return Ok(());
    };
    lifecycle::two_guests_reach_each_other(&machine)?;
    // One image, stored once.
    let disks = std::fs::read_dir(machine.state().join("images/disks"))?.count();
    ensure!(disks == 1, "{disks} copies of one image");
    Ok(())
}

#[test]
fn a_guest_is_behind_the_pods_address() -> anyhow::Result<()> {
    crate::story(
        "masquerade",
        crate::stories::network::behind_the_pods_address,
    )
}
