//! Volumes on a machine without a cluster.

use anyhow::{Context as _, ensure};
use berth_e2e::{Target, manifest, wait_for};

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
