//! `kill -9`, and coming and going.

use anyhow::ensure;
use berth_e2e::{Target, manifest, wait_for};

use super::{MEMORY, SOON};

/// A QEMU that is killed is a machine that has failed, and says of what.
pub(crate) fn a_killed_qemu_is_told(target: &dyn Target) -> anyhow::Result<()> {
    target.apply(&manifest("victim", target.image(), MEMORY))?;
    target.wait_phase("victim", "Running", SOON)?;
    target.kill_in_pod("victim", "qemu-system")?;
    target.wait_phase("victim", "Failed", SOON)?;
    let reason = target.vmi("victim", ".status.reason")?;
    let events = target
        .kubectl(&["get", "events", "-o", "jsonpath={.items[*].message}"])?
        .ok()?;
    ensure!(
        format!("{reason} {events}").contains("QEMU"),
        "nothing tells of QEMU: {reason:?}; {events}"
    );
    target.delete("victim", SOON)
}

/// libvirt is only a tool: the launcher starts it again, and the guest does not notice.
pub(crate) fn a_killed_libvirt_is_started_again(target: &dyn Target) -> anyhow::Result<()> {
    target.apply(&manifest("patient", target.image(), MEMORY))?;
    target.wait_phase("patient", "Running", SOON)?;
    target.kill_in_pod("patient", "libvirtd")?;
    let address = target.address("patient")?;
    target.ping(&address, super::BOOT)?;
    ensure!(target.vmi("patient", ".status.phase")? == "Running");
    // There is one again: it takes the guest down in an orderly way.
    target.delete("patient", SOON * 2)
}

/// Nothing grows with use: as much as before after so many rounds of create and delete.
pub(crate) fn rounds_leave_the_same_counts(
    target: &dyn Target,
    rounds: usize,
) -> anyhow::Result<()> {
    // No grace: it is the coming and going that is looked at, not the guest's shutdown.
    let manifest = manifest("fleeting", target.image(), "96Mi").replace(
        "terminationGracePeriodSeconds: 30",
        "terminationGracePeriodSeconds: 0",
    );
    let round = || {
        target.apply(&manifest)?;
        target.wait_phase("fleeting", "Running", SOON)?;
        target.delete("fleeting", SOON * 2)?;
        target.residue()
    };
    // What is made once (caches, connections) is there after the first rounds.
    round()?;
    let before = round()?;
    for _ in 0..rounds {
        round()?;
    }
    // Connections of the clients that just left may be half closed, threads idle: they end.
    wait_for("as much as before", SOON, || {
        let now = target.residue()?;
        for (kind, count) in &now {
            let then = before.get(kind).copied().unwrap_or_default();
            ensure!(
                *count <= then,
                "{kind}: {then} before, {count} after {rounds} rounds"
            );
        }
        Ok(())
    })
}
