//! Disks on PersistentVolumeClaims, with local volumes of a node behind them.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_e2e::{Cluster, Target as _, manifest, wait_for};

use crate::stories::{BOOT, MEMORY, SOON};

/// A volume at a path of `node0` and a claim that is bound to it.
fn local_volume(cluster: &Cluster, claim: &str, mode: &str, path: &str) -> String {
    let name = format!("{}-{claim}", cluster.namespace());
    format!(
        "apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: 512Mi}}
  accessModes: [ReadWriteOnce]
  volumeMode: {mode}
  persistentVolumeReclaimPolicy: Retain
  storageClassName: {name}
  local: {{path: {path}}}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions:
        - {{key: kubernetes.io/hostname, operator: In, values: [node0]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {claim}}}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: {mode}
  storageClassName: {name}
  resources: {{requests: {{storage: 512Mi}}}}
---
"
    )
}

/// A volume of `node0` in a class of its own, for a claim that names the class: this cluster has no provisioner.
pub(crate) fn class_with_volume(
    cluster: &Cluster,
    claim: &str,
    size: u32,
) -> anyhow::Result<String> {
    let class = format!("{}-{claim}", cluster.namespace());
    let path = format!("/var/lib/berth-cluster/volumes/{class}");
    cluster.on_node("node0", "mkdir", &["-p", &path])?.ok()?;
    let volume =
        local_volume(cluster, claim, "Filesystem", &path).replace("512Mi", &format!("{size}Mi"));
    let (volume, _) = volume.split_once("---").context("two objects")?;
    cluster.apply(volume)?;
    Ok(class)
}

/// Deletes what [`class_with_volume`] made.
pub(crate) fn forget_classes(cluster: &Cluster) -> anyhow::Result<()> {
    let volumes = cluster.kubectl(&["get", "pv", "-o", "name"])?.ok()?;
    let prefix = format!("persistentvolume/{}-", cluster.namespace());
    for volume in volumes.lines().filter(|name| name.starts_with(&prefix)) {
        cluster.kubectl(&["delete", volume])?.ok()?;
        let class = volume.trim_start_matches("persistentvolume/");
        let path = format!("/var/lib/berth-cluster/volumes/{class}");
        cluster.on_node("node0", "rm", &["-rf", &path])?.ok()?;
    }
    Ok(())
}

/// Deletes both.
fn forget(cluster: &Cluster, claim: &str) -> anyhow::Result<()> {
    let name = format!("{}-{claim}", cluster.namespace());
    cluster
        .kubectl(&["delete", "pvc", claim, "--wait=true"])?
        .ok()?;
    cluster.kubectl(&["delete", "pv", &name])?.ok().map(drop)
}

/// A VMI whose disks are on claims: `root` is booted from, `data` is empty.
fn on_claims(name: &str) -> String {
    manifest(name, "unused", MEMORY)
        .replace(
            "      - name: root\n        disk:\n          bus: virtio\n",
            "      - name: root\n        disk:\n          bus: virtio\n      - name: data\n        disk:\n          bus: virtio\n",
        )
        .replace(
            "    containerDisk:\n      image: unused\n",
            "    persistentVolumeClaim:\n      claimName: root\n  - name: data\n    persistentVolumeClaim:\n      claimName: data\n",
        )
}

/// Local volumes of a node: a system disk on a file system, and an empty one.
pub(crate) fn file_system(cluster: &Cluster) -> anyhow::Result<()> {
    // It waits for what is not there, and says so.
    cluster.apply(&on_claims("keeper"))?;
    wait_for("the missing claim is told", SOON, || {
        let events = cluster
            .kubectl(&["get", "events", "-o", "jsonpath={.items[*].message}"])?
            .ok()?;
        ensure!(
            events.contains("there is no persistentvolumeclaim \"root\""),
            "{events}"
        );
        let path = ".status.conditions[?(@.type=='Synchronized')].reason";
        let reason = cluster.vmi("keeper", path)?;
        ensure!(reason == "FailedPvcNotFound", "{reason}");
        Ok(())
    })?;
    let base = format!("/var/lib/berth-cluster/volumes/{}", cluster.namespace());
    let disk = format!("{base}/root/disk.img");
    cluster
        .on_node(
            "node0",
            "mkdir",
            &["-p", &format!("{base}/root"), &format!("{base}/data")],
        )?
        .ok()?;
    let guest = berth_e2e::small_guest();
    let guest = guest.to_str().context("the guest's path")?;
    cluster
        .on_node("node0", "qemu-img", &["convert", "-O", "raw", guest, &disk])?
        .ok()?;
    cluster
        .on_node("node0", "chown", &["-R", "107:107", &base])?
        .ok()?;
    let volume = |claim| local_volume(cluster, claim, "Filesystem", &format!("{base}/{claim}"));
    cluster.apply(&format!("{}{}", volume("root"), volume("data")))?;
    cluster.wait_phase("keeper", "Running", Duration::from_secs(90))?;
    cluster.wait_prompt("keeper", BOOT)?;
    // The empty one was made as large as its claim.
    let size = cluster
        .on_node(
            "node0",
            "stat",
            &["-c", "%s", &format!("{base}/data/disk.img")],
        )?
        .ok()?;
    ensure!(size.trim() == (512 << 20).to_string(), "{size} bytes");
    cluster.delete("keeper", SOON * 2)?;
    // What is on a claim stays, and boots again.
    cluster.apply(&on_claims("keeper"))?;
    cluster.wait_phase("keeper", "Running", SOON)?;
    cluster.wait_prompt("keeper", BOOT)?;
    // QEMU holds a lock on its disks: nobody else writes to them meanwhile, and who waits for them gets them afterwards.
    cluster.apply(&on_claims("rival"))?;
    wait_for("the lock is told", SOON * 2, || {
        let path = ".status.conditions[?(@.type=='Synchronized')].message";
        let told = cluster.vmi("rival", path)?;
        ensure!(told.contains("lock"), "{told}");
        Ok(())
    })?;
    ensure!(cluster.vmi("rival", ".status.phase")? == "Scheduled");
    ensure!(cluster.vmi("keeper", ".status.phase")? == "Running");
    cluster.delete("keeper", SOON * 2)?;
    cluster.wait_phase("rival", "Running", Duration::from_secs(90))?;
    cluster.delete("rival", SOON * 2)?;
    for claim in ["root", "data"] {
        forget(cluster, claim)?;
    }
    cluster.on_node("node0", "rm", &["-rf", &base])?.ok()?;
    Ok(())
}

/// A loop device in place of what a storage driver would attach.
pub(crate) fn block(cluster: &Cluster) -> anyhow::Result<()> {
    let file = format!("/var/lib/berth-cluster/{}.img", cluster.namespace());
    let guest = berth_e2e::small_guest();
    let guest = guest.to_str().context("the guest's path")?;
    let on_node = |program: &str, arguments: &[&str]| -> anyhow::Result<String> {
        cluster.on_node("node0", program, arguments)?.ok()
    };
    on_node("qemu-img", &["convert", "-O", "raw", guest, &file])?;
    on_node("truncate", &["--size", "512M", &file])?;
    let device = on_node("losetup", &["--find", "--show", &file])?;
    let device = device.trim();
    let story = || {
        cluster.apply(&local_volume(cluster, "root", "Block", device))?;
        let manifest = manifest("raw", "unused", MEMORY).replace(
            "    containerDisk:\n      image: unused\n",
            "    persistentVolumeClaim:\n      claimName: root\n",
        );
        cluster.apply(&manifest)?;
        cluster.wait_phase("raw", "Running", Duration::from_secs(90))?;
        cluster.wait_prompt("raw", BOOT)?;
        // The guest's disk is the device itself.
        let mut console = cluster.console("raw")?;
        console.log_in(BOOT)?;
        let sectors = console.shell("cat /sys/block/vda/size", SOON)?;
        ensure!(sectors.contains(&(512 * 2048).to_string()), "{sectors}");
        drop(console);
        cluster.delete("raw", SOON * 2)?;
        forget(cluster, "root")
    };
    let told = story();
    on_node("losetup", &["--detach", device])?;
    on_node("rm", &[&file])?;
    told
}
