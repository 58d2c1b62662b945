//! Volumes on a machine without a cluster.

use anyhow::{Context as _, ensure};
use berth_e2e::{
    Machine, MachineOptions, Need, REGISTRY, Registry, Target, Web, manifest, run, small_guest,
    wait_for,
};

use crate::stories::{BOOT, MEMORY, SOON, volumes};
use crate::{machine_with_guest, story};

/// The class that every machine has; with another one nothing would be made.
fn own_class(_: &str, _: u32) -> anyhow::Result<String> {
    Ok("berth-local".to_owned())
}

#[test]
fn a_disk_of_an_address_lives_with_its_machine() -> anyhow::Result<()> {
    story("a_disk_of_an_address_lives_with_its_machine", |target| {
        volumes::a_disk_of_an_address_lives_with_its_machine(target, &own_class)
    })
}

#[test]
fn imports_that_fail_say_why() -> anyhow::Result<()> {
    story("imports_that_fail_say_why", |target| {
        volumes::imports_that_fail_say_why(target, &own_class)
    })
}

#[test]
fn empty_disks_and_copies() -> anyhow::Result<()> {
    story("empty_disks_and_copies", |target| {
        volumes::empty_disks_and_copies(target, &own_class)
    })
}

/// Claims get volumes by their class, with and without a file system, at once or when they are first used, larger ones when
/// they ask for more, and leave nothing when they go.
#[test]
fn claims_get_volumes() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("claims_get_volumes")? else {
        return Ok(());
    };
    let class = machine.kubectl(&["get", "sc"])?.ok()?;
    ensure!(class.contains("berth-local (default)"), "{class}");
    machine.apply(
        "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: late}
provisioner: local.berth.kubevirt.io
volumeBindingMode: WaitForFirstConsumer
reclaimPolicy: Retain
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: files}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 64Mi}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: raw}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  storageClassName: late
  resources: {requests: {storage: 96Mi}}
",
    )?;
    let claim = |name: &str, path: &str| {
        machine
            .kubectl(&["get", "pvc", name, "-o", &format!("jsonpath={{{path}}}")])?
            .ok()
    };
    wait_for("the first is bound", SOON, || {
        let phase = claim("files", ".status.phase")?;
        ensure!(phase == "Bound", "{phase}");
        Ok(())
    })?;
    ensure!(claim("files", ".spec.storageClassName")? == "berth-local");
    ensure!(claim("raw", ".status.phase")? == "Pending");
    let guest = manifest("user", berth_e2e::IMAGE, MEMORY)
        .replace(
            "      - name: root\n        disk:\n          bus: virtio\n",
            "      - name: root\n        disk:\n          bus: virtio\n      - name: files\n        disk: {bus: virtio}\n      - name: raw\n        disk: {bus: virtio}\n",
        )
        + "  - name: files\n    persistentVolumeClaim: {claimName: files}\n  - name: raw\n    persistentVolumeClaim: {claimName: raw}\n";
    machine.apply(&guest)?;
    machine.wait_phase("user", "Running", SOON)?;
    ensure!(claim("raw", ".status.phase")? == "Bound", "it is used");
    machine.wait_prompt("user", BOOT)?;
    let mut console = machine.console("user")?;
    console.log_in(BOOT)?;
    let sizes = console.shell("cat /sys/block/vdb/size /sys/block/vdc/size", SOON)?;
    for size in [64, 96] {
        ensure!(sizes.contains(&(size * 2048).to_string()), "{sizes}");
    }
    console.shell(
        "echo 'on a device' | dd of=/dev/vdc bs=512 conv=fsync 2>/dev/null; echo done",
        SOON,
    )?;
    drop(console);
    // Deleted while it is used, it stays until nobody does.
    machine
        .kubectl(&["delete", "pvc", "files", "--wait=false"])?
        .ok()?;
    ensure!(!claim("files", ".metadata.deletionTimestamp")?.is_empty());
    let data = machine.state().join("volumes");
    let disk = |name: &str| -> anyhow::Result<std::path::PathBuf> {
        let volume = machine
            .kubectl(&[
                "get",
                "pv",
                "-o",
                &format!("jsonpath={{.items[?(@.spec.claimRef.name=='{name}')].metadata.name}}"),
            ])?
            .ok()?;
        Ok(data.join(volume))
    };
    let files = disk("files")?;
    ensure!(files.join("disk.img").exists(), "{}", files.display());
    // berth itself comes and goes, and the disks stay.
    machine.take_berth_away()?;
    machine.bring_berth_back()?;
    machine.delete("user", SOON * 2)?;
    wait_for("the claim and its volume are gone", SOON, || {
        ensure!(!files.exists(), "{} is there", files.display());
        let left = machine
            .kubectl(&["get", "pvc", "files", "--ignore-not-found"])?
            .ok()?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })?;
    // The other one is kept, with what was written.
    let raw = disk("raw")?.join("block.img");
    let content = std::fs::read(&raw).with_context(|| raw.display().to_string())?;
    ensure!(content.starts_with(b"on a device"), "not what was written");
    // No class to grow it.
    let grow = r#"{"spec":{"resources":{"requests":{"storage":"128Mi"}}}}"#;
    machine.apply("apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: more}\nspec:\n  accessModes: [ReadWriteOnce]\n  resources: {requests: {storage: 64Mi}}\n")?;
    wait_for("it is bound", SOON, || {
        ensure!(claim("more", ".status.phase")? == "Bound");
        Ok(())
    })?;
    machine
        .kubectl(&["patch", "pvc", "more", "-p", grow])?
        .ok()?;
    wait_for("it is larger", SOON, || {
        let size = claim("more", ".status.capacity.storage")?;
        ensure!(size == "128Mi", "{size}");
        Ok(())
    })?;
    machine.kubectl(&["delete", "pvc", "raw", "more"])?.ok()?;
    wait_for("one is released, one is gone", SOON, || {
        let volumes = machine
            .kubectl(&["get", "pv", "-o", "jsonpath={.items[*].status.phase}"])?
            .ok()?;
        ensure!(volumes == "Released", "{volumes}");
        Ok(())
    })?;
    machine.kubectl(&["delete", "pv", "--all"])?.ok()?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

/// Many at once, from both kinds of servers, and copies of them: each is the disk, and no other.
#[test]
fn twenty_are_filled_at_once() -> anyhow::Result<()> {
    const TEST: &str = "twenty_are_filled_at_once";
    if berth_e2e::missing(
        TEST,
        &[Need::Root, Need::Qemu, Need::SmallGuest, Need::Registry],
    ) {
        return Ok(());
    }
    let machine = Machine::start_with(MachineOptions {
        arguments: vec![
            "--insecure-registry".to_owned(),
            "10.98.0.1:5000".to_owned(),
        ],
        ..MachineOptions::default()
    })?;
    let _registry = Registry::on(&machine, None)?;
    let image = format!("{REGISTRY}/guests/small:1");
    machine.build_image(&image, &small_guest())?;
    machine
        .berth(&[
            "image",
            "push",
            "--plain-http",
            &image,
            "--root",
            &machine.state().join("images").to_string_lossy(),
        ])?
        .ok()?;
    let web = Web::on(&machine)?;
    std::fs::copy(small_guest(), web.dir().join("guest.qcow2"))?;
    let mut all = String::new();
    for number in 0..20 {
        let source = match number % 3 {
            0 => format!("http: {{url: \"{}/guest.qcow2\"}}", web.url),
            1 => "registry: {url: \"docker://10.98.0.1:5000/guests/small:1\"}".to_owned(),
            _ => format!("pvc: {{name: disk-{}}}", number - 1),
        };
        all += &format!(
            "apiVersion: cdi.kubevirt.io/v1beta1\nkind: DataVolume\nmetadata: {{name: disk-{number}}}\nspec:\n  source:\n    {source}\n  storage: {{resources: {{requests: {{storage: 64Mi}}}}}}\n---\n"
        );
    }
    machine.apply(&all)?;
    let waited = wait_for("all are filled", SOON * 6, || {
        let phases = machine
            .kubectl(&["get", "dv", "-o", "jsonpath={.items[*].status.phase}"])?
            .ok()?;
        let done = phases
            .split(' ')
            .filter(|phase| *phase == "Succeeded")
            .count();
        ensure!(done == 20, "{phases}");
        Ok(())
    });
    waited.with_context(|| machine.log_tail())?;
    let right = web.dir().join("right.raw");
    let mut convert = std::process::Command::new("qemu-img");
    run(
        convert
            .args(["convert", "-O", "raw"])
            .arg(small_guest())
            .arg(&right),
        "",
    )?
    .ok()?;
    let mut right = std::fs::read(&right)?;
    right.resize(64 << 20, 0);
    let volumes = machine
        .kubectl(&["get", "pv", "-o", "jsonpath={.items[*].metadata.name}"])?
        .ok()?;
    let names: Vec<&str> = volumes.split(' ').collect();
    ensure!(names.len() == 20, "{volumes}");
    for name in names {
        let disk = machine.state().join("volumes").join(name).join("disk.img");
        let content = std::fs::read(&disk).with_context(|| disk.display().to_string())?;
        ensure!(content == right, "{} is another disk", disk.display());
    }
    machine.kubectl(&["delete", "dv", "--all"])?.ok()?;
    wait_for("all are gone", SOON, || {
        let left = machine
            .kubectl(&["get", "dv,pvc,pv,pods", "-o", "name"])?
            .ok()?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}
