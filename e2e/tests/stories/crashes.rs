//! `kill -9`, and coming and going.

use anyhow::{Context as _, ensure};
use berth_e2e::{Target, manifest, wait_for};

use super::machines::{berth, delete, machine, uid, wait_status};
use super::{BOOT, IDLE, MEMORY, SOON};

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
    target.ping(&address, BOOT)?;
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
    wait_for("as much as before", IDLE, || {
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

/// Without berth a guest goes on; berth comes back, knows it, and hears of its end.
pub(crate) fn a_guest_outlives_berth(target: &dyn Target) -> anyhow::Result<()> {
    let image = target.image();
    target.apply(&manifest("survivor", image, MEMORY))?;
    target.wait_phase("survivor", "Running", SOON)?;
    let mut console = target.console("survivor")?;
    console.log_in(BOOT)?;
    // In memory: another run of the guest would not have it. The console repeats what was said here to the next one who
    // opens it, so nothing may look like the end of a command.
    console.send_line("touch /run/first")?;
    console.expect("# ", SOON)?;
    drop(console);
    let address = target.address("survivor")?;
    let uid = target.vmi("survivor", ".metadata.uid")?;

    target.take_berth_away()?;
    target.ping(&address, SOON)?;
    target.bring_berth_back()?;
    target.wait_phase("survivor", "Running", SOON)?;
    ensure!(
        target.vmi("survivor", ".metadata.uid")? == uid,
        "another object has the name"
    );
    ensure!(
        target.address("survivor")? == address,
        "the address changed"
    );
    target.ping(&address, SOON)?;
    let mut console = wait_for("the console opens again", SOON, || {
        target.console("survivor")
    })?;
    let text = console
        .send_line("")
        .and_then(|()| console.shell("ls /run/first && echo still $((40 + 2))", SOON))?;
    ensure!(text.contains("still 42"), "{text}");
    // A new one does not get the survivor's address.
    target.apply(&manifest("newcomer", image, MEMORY))?;
    target.wait_phase("newcomer", "Running", SOON)?;
    ensure!(
        target.address("newcomer")? != address,
        "two machines have {address}"
    );
    target.delete("newcomer", SOON * 2)?;
    // It is not only remembered but watched again: its end is noticed.
    console.send_line("poweroff -f")?;
    target.wait_phase("survivor", "Succeeded", SOON)?;
    target.delete("survivor", SOON * 2)
}

/// What happens while nobody looks is told right afterwards.
pub(crate) fn an_end_while_berth_is_away_is_told(target: &dyn Target) -> anyhow::Result<()> {
    target.apply(&manifest("goner", target.image(), MEMORY))?;
    target.wait_phase("goner", "Running", SOON)?;
    target.take_berth_away()?;
    let killed = target.kill_in_pod("goner", "qemu-system");
    target.bring_berth_back()?;
    killed?;
    target.wait_phase("goner", "Failed", SOON * 2)?;
    target.delete("goner", SOON)
}

/// When a part is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// As soon as it is there.
    Starting,
    Running,
    /// While the guest is asked to shut down.
    Stopping,
}

/// `kill -9` of each part of berth in each phase of a machine that is to run always: it runs in the end, once, or is stopped as
/// was asked, and nothing is left.
pub(crate) fn each_part_is_killed_in_each_phase(target: &dyn Target) -> anyhow::Result<()> {
    for when in [When::Starting, When::Running, When::Stopping] {
        for part in ["launcher", "libvirtd", "qemu-system", "berth"] {
            one_kill(target, when, part)
                .with_context(|| format!("{part} is killed while {when:?}"))?;
        }
    }
    Ok(())
}

fn one_kill(target: &dyn Target, when: When, part: &str) -> anyhow::Result<()> {
    target.apply(&machine(target, "matrix", "runStrategy: Always"))?;
    let mut first = String::new();
    if when != When::Starting {
        wait_status(target, "matrix", "Running", BOOT)?;
        first = uid(target, "matrix")?;
    }
    if when == When::Stopping {
        berth(target, &["stop", "matrix"])?.ok()?;
    }
    if part == "berth" {
        target.take_berth_away()?;
        target.bring_berth_back()?;
    } else {
        wait_for("it is there to be killed", SOON, || {
            target.kill_in_pod("matrix", part)
        })?;
    }
    if when == When::Stopping {
        wait_status(target, "matrix", "Stopped", BOOT)?;
    } else {
        wait_for("it runs, once", BOOT, || {
            let phase = target.vmi("matrix", ".status.phase")?;
            let pods = target
                .kubectl(&[
                    "get",
                    "pods",
                    "--field-selector=status.phase=Running",
                    "-o",
                    "name",
                ])?
                .ok()?;
            ensure!(
                phase == "Running" && pods.lines().count() == 1,
                "{phase} {pods}"
            );
            if when == When::Running {
                let is_first = uid(target, "matrix")? == first;
                let lives = matches!(part, "libvirtd" | "berth");
                ensure!(is_first == lives, "the first instance: {is_first}");
            }
            Ok(())
        })?;
        wait_status(target, "matrix", "Running", SOON)?;
    }
    delete(target, "matrix")?;
    wait_for("no pod is left", SOON * 2, || {
        let pods = target.kubectl(&["get", "pods", "-o", "name"])?.ok()?;
        ensure!(pods.trim().is_empty(), "{pods}");
        Ok(())
    })
}
