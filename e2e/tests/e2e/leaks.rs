//! Nothing grows with use.

use anyhow::ensure;
use berth_e2e::{Target as _, manifest, wait_for};

use crate::{IMAGE, SOON, machine_with_guest};

#[test]
fn twenty_rounds_of_create_and_delete_leave_the_same_counts() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("twenty rounds")? else {
        return Ok(());
    };
    // No grace: it is the coming and going that is looked at, not the guest's shutdown.
    let manifest = manifest("fleeting", IMAGE, "96Mi").replace(
        "terminationGracePeriodSeconds: 30",
        "terminationGracePeriodSeconds: 0",
    );
    let round = || {
        machine.apply(&manifest)?;
        machine.wait_phase("fleeting", "Running", SOON)?;
        machine.delete("fleeting", SOON * 2)?;
        machine.wait_nothing_left(SOON)
    };
    // What is made once (caches, connections) is there after the first rounds.
    round()?;
    let before = round()?;
    let mut last = before.clone();
    for _ in 0..20 {
        last = round()?;
    }
    ensure!(
        last.links == before.links,
        "links: {:?}, then {:?}",
        before.links,
        last.links
    );
    ensure!(
        last.mounts == before.mounts,
        "mounts: {:?}, then {:?}",
        before.mounts,
        last.mounts
    );
    // Connections of the clients that just left may be half closed: they end.
    wait_for("as many descriptors as before", SOON, || {
        let now = machine.census()?.descriptors;
        ensure!(
            now <= before.descriptors,
            "descriptors: {} before, {now} after twenty rounds",
            before.descriptors
        );
        Ok(())
    })
}
