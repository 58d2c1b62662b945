//! What is wrong is told: which object, which field, which value; and nothing half-done stays.

use std::process::Command;

use anyhow::ensure;
use berth_e2e::{
    Machine, MachineOptions, Need, REGISTRY, Registry, Target as _, manifest, missing, run,
    small_guest,
};

use crate::stories::bad_input;
use crate::{BOOT, MEMORY, SOON, machine_with_guest, story};

#[test]
fn manifests_with_mistakes_are_refused_by_field() -> anyhow::Result<()> {
    if missing("bad manifests", &[Need::Root]) {
        return Ok(());
    }
    let machine = Machine::start()?;
    crate::stories::mistakes_are_refused_by_field(&machine)
}

#[test]
fn a_missing_image_is_told_on_the_vmi_and_by_an_event() -> anyhow::Result<()> {
    if missing("missing image", &[Need::Root, Need::Registry]) {
        return Ok(());
    }
    let machine = Machine::start_with(plain_http())?;
    let _registry = Registry::on(&machine, None)?;
    bad_input::a_missing_image(&machine)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

#[test]
fn an_image_that_cannot_boot_is_told() -> anyhow::Result<()> {
    if missing("not bootable", &[Need::Root, Need::Qemu, Need::Skopeo]) {
        return Ok(());
    }
    let machine = Machine::start()?;
    bad_input::an_image_that_cannot_boot(&machine)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

#[test]
fn a_vm_too_large_for_the_machine_waits_and_says_why() -> anyhow::Result<()> {
    story("too large", bad_input::too_large)
}

#[test]
fn a_full_disk_is_told_and_the_vm_starts_when_there_is_room() -> anyhow::Result<()> {
    if missing(
        "full disk",
        &[Need::Root, Need::Qemu, Need::SmallGuest, Need::Registry],
    ) {
        return Ok(());
    }
    let mount = tempfile::tempdir()?;
    let path = mount.path().to_string_lossy().into_owned();
    run(
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=96m,mode=755", "tmpfs", &path]),
        "",
    )?
    .ok()?;
    let unmount = Unmount(path);
    let state = mount.path().join("state");
    let machine = Machine::start_with(MachineOptions {
        state: Some(state.clone()),
        ..plain_http()
    })?;
    let _registry = Registry::on(&machine, None)?;
    let image = format!("{REGISTRY}/small:guest");
    // Pushed from a store elsewhere, so that the machine's own has nothing of it.
    let elsewhere = tempfile::tempdir()?;
    let root = elsewhere.path().to_string_lossy().into_owned();
    let guest = small_guest().to_string_lossy().into_owned();
    machine
        .berth(&["image", "build", "--root", &root, "-t", &image, &guest])?
        .ok()?;
    machine
        .berth(&["image", "push", "--root", &root, "--plain-http", &image])?
        .ok()?;

    let filler = state.join("filler");
    let free = run(
        Command::new("df").args(["--output=avail", "-B1", &state.to_string_lossy()]),
        "",
    )?
    .ok()?;
    let free: u64 = free.lines().nth(1).unwrap_or("0").trim().parse()?;
    std::fs::write(&filler, vec![1u8; usize::try_from(free - (8 << 20))?])?;
    machine.apply(&manifest("squeezed", &image, MEMORY))?;
    machine.wait_condition("squeezed", "Synchronized", "No space left on device", SOON)?;
    let halves: Vec<_> = std::fs::read_dir(state.join("images/blobs/sha256"))?
        .flatten()
        .filter(|entry| {
            entry
                .metadata()
                .is_ok_and(|metadata| metadata.len() > 1 << 20)
        })
        .collect();
    ensure!(halves.is_empty(), "half a blob stays: {halves:?}");
    std::fs::remove_file(&filler)?;
    machine.wait_phase("squeezed", "Running", SOON * 2)?;
    machine.console("squeezed")?.log_in(BOOT)?;
    machine.delete("squeezed", SOON * 2)?;
    machine.wait_nothing_left(SOON)?;
    machine.kill_berth()?;
    drop(machine);
    drop(unmount);
    Ok(())
}

#[test]
fn a_hostile_manifest_gets_nothing() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("hostile manifest")? else {
        return Ok(());
    };
    crate::stories::hostile::a_hostile_manifest_gets_nothing(&machine)
}

/// A machine that may talk to the test's registry without TLS.
fn plain_http() -> MachineOptions {
    MachineOptions {
        arguments: vec!["--insecure-registry".into(), REGISTRY.into()],
        ..MachineOptions::default()
    }
}

struct Unmount(String);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.0), "");
    }
}
