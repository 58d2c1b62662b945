//! Container disks: where they come from, and what is wrong with some of them.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use berth_e2e::{
    Machine, MachineOptions, Need, REGISTRY, Registry, Target as _, manifest, missing, run,
};

use crate::stories::images;
use crate::{MEMORY, SOON};

fn insecure() -> MachineOptions {
    MachineOptions {
        arguments: vec!["--insecure-registry".into(), REGISTRY.into()],
        ..MachineOptions::default()
    }
}

#[test]
fn a_registry_by_tag_and_by_digest_with_credentials() -> anyhow::Result<()> {
    if missing(
        "registry",
        &[Need::Root, Need::Qemu, Need::SmallGuest, Need::Registry],
    ) {
        return Ok(());
    }
    let machine = Machine::start_with(insecure())?;
    let _registry = Registry::on(&machine, Some(("anna", "sesame")))?;
    // A secret that is not there is named where the user looks.
    let image = format!("{REGISTRY}/guests/small:1");
    machine.apply(&manifest("forgetful", &image, MEMORY).replace(
        &format!("      image: {image}\n"),
        &format!("      image: {image}\n      imagePullSecret: annas\n"),
    ))?;
    let named = r#"imagePullSecret "annas" does not exist"#;
    machine.wait_condition("forgetful", "Synchronized", named, SOON)?;
    images::wait_for_event(&machine, "forgetful", named)?;
    machine.delete("forgetful", SOON)?;
    images::from_a_registry(&machine)?;
    machine.wait_nothing_left(SOON)?;
    let log = fs::read_to_string(machine.log_path())?;
    ensure!(!log.contains("sesame"), "the password is in the log");
    Ok(())
}

#[test]
fn what_a_registry_does_wrong_is_told_on_the_vmi() -> anyhow::Result<()> {
    if missing("a bad registry", &[Need::Root, Need::Qemu, Need::Registry]) {
        return Ok(());
    }
    let machine = Machine::start_with(insecure())?;
    let registry = Registry::on(&machine, None)?;
    let elsewhere = tempfile::tempdir()?;
    let root = elsewhere.path().join("store");
    let disk = elsewhere.path().join("disk.img");
    for (name, told) in [("liar", "has wrong content"), ("stub", "has wrong size")] {
        let image = format!("{REGISTRY}/bad/{name}:1");
        // Nothing that compresses: the layer must be the largest blob.
        let mut noise = vec![0; 200 << 10];
        fs::File::open("/dev/urandom")?.read_exact(&mut noise)?;
        fs::write(&disk, noise)?;
        let at = root.to_string_lossy();
        machine
            .berth(&[
                "image",
                "build",
                "--root",
                &at,
                "-t",
                &image,
                &disk.to_string_lossy(),
            ])?
            .ok()?;
        machine
            .berth(&["image", "push", "--root", &at, "--plain-http", &image])?
            .ok()?;
        // Behind the registry's back: it serves what it finds.
        let layer = registry.largest_blob()?;
        let mut blob = fs::read(&layer)?;
        match name {
            "liar" => blob.reverse(),
            _ => blob.truncate(blob.len() / 2),
        }
        fs::write(&layer, blob)?;
        machine.apply(&manifest(name, &image, "64Mi"))?;
        machine.wait_condition(name, "Synchronized", told, SOON)?;
        images::wait_for_event(&machine, name, told)?;
        machine.delete(name, SOON)?;
        fs::remove_file(&layer)?;
    }
    // Nothing of either is in the node's store.
    let store = machine.state().join("images");
    let list = machine
        .berth(&["image", "list", "--root", &store.to_string_lossy()])?
        .ok()?;
    ensure!(!list.contains("bad/"), "{list}");
    for part in ["disks", "tmp"] {
        ensure!(
            fs::read_dir(store.join(part))?.next().is_none(),
            "{part} is not empty"
        );
    }
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

#[test]
fn https_is_spoken_unless_told_otherwise() -> anyhow::Result<()> {
    if missing("plain HTTP", &[Need::Root, Need::Registry]) {
        return Ok(());
    }
    let machine = Machine::start()?;
    let _registry = Registry::on(&machine, None)?;
    let image = format!("{REGISTRY}/guests/small:1");
    machine.apply(&manifest("careful", &image, "64Mi"))?;
    machine.wait_condition("careful", "Synchronized", &image, SOON)?;
    machine.delete("careful", SOON)?;
    Ok(())
}

#[test]
fn what_docker_save_wrote_is_imported_and_boots() -> anyhow::Result<()> {
    if missing(
        "docker save",
        &[Need::Root, Need::Qemu, Need::SmallGuest, Need::Skopeo],
    ) {
        return Ok(());
    }
    let machine = Machine::start()?;
    let root = machine
        .state()
        .join("images")
        .to_string_lossy()
        .into_owned();
    for kind in ["docker-archive", "oci-archive"] {
        images::what_docker_save_wrote_boots(&machine, kind)?;
        let tag = format!("localhost/from/{kind}:1");
        machine
            .berth(&["image", "rm", "--root", &root, &tag])?
            .ok()?;
    }
    let list = machine.berth(&["image", "list", "--root", &root])?.ok()?;
    ensure!(!list.contains("from/"), "{list}");
    Ok(())
}

#[test]
fn images_with_no_disk_or_several_are_told_apart() -> anyhow::Result<()> {
    if missing("wrong contents", &[Need::Root, Need::Skopeo]) {
        return Ok(());
    }
    let machine = Machine::start()?;
    images::no_disk_or_several(&machine)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

#[test]
fn a_path_that_climbs_out_is_told_on_the_vmi() -> anyhow::Result<()> {
    if missing("climbing path", &[Need::Root, Need::Qemu, Need::Skopeo]) {
        return Ok(());
    }
    let machine = Machine::start()?;
    let root = machine
        .state()
        .join("images")
        .to_string_lossy()
        .into_owned();
    let directory = tempfile::tempdir()?;
    let climb = ["-P", "--transform", "s,^./disk/,../disk/,"];
    let files = [("disk/one.img", Path::new("/etc/hostname"))];
    let tar = images::archive_with(directory.path(), "oci-archive", &files, &climb)?;
    machine
        .berth(&[
            "image",
            "import",
            "--root",
            &root,
            "-t",
            "bad/climber:1",
            &tar.to_string_lossy(),
        ])?
        .ok()?;
    machine.apply(&manifest("climber", "bad/climber:1", "64Mi"))?;
    machine.wait_condition("climber", "Synchronized", "climbs out of the image", SOON)?;
    images::wait_for_event(&machine, "climber", "climbs out of the image")?;
    machine.delete("climber", SOON)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

#[test]
fn a_disk_that_points_at_another_file_is_refused() -> anyhow::Result<()> {
    if missing("backing file", &[Need::Root, Need::Qemu]) {
        return Ok(());
    }
    let machine = Machine::start()?;
    let root = machine
        .state()
        .join("images")
        .to_string_lossy()
        .into_owned();
    let directory = tempfile::tempdir()?;
    let evil = directory.path().join("evil.qcow2");
    run(
        Command::new("qemu-img")
            .args([
                "create",
                "-q",
                "-f",
                "qcow2",
                "-u",
                "-b",
                "/etc/shadow",
                "-F",
                "raw",
            ])
            .arg(&evil)
            .arg("1M"),
        "",
    )?
    .ok()?;
    let refused = machine
        .berth(&[
            "image",
            "build",
            "--root",
            &root,
            "-t",
            "evil:1",
            &evil.to_string_lossy(),
        ])?
        .err()?;
    ensure!(
        refused.contains("backing file") && refused.contains("/etc/shadow"),
        "{refused}"
    );
    let list = machine.berth(&["image", "list", "--root", &root])?.ok()?;
    ensure!(!list.contains("evil"), "{list}");
    Ok(())
}
