//! Volumes: disks that are made of images, outlive what runs, and go with what they belong to.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_e2e::{Target, Web, manifest, run, wait_for};

use super::{BOOT, MEMORY, SOON};

/// Gives the storage class from which a claim of this name gets a volume with a file system, of so many MiB where volumes are
/// made by hand.
pub(crate) type Class<'a> = &'a dyn Fn(&str, u32) -> anyhow::Result<String>;

/// Enough for a disk of 512Mi.
const ROOM: u32 = 600;

/// Of a DataVolume.
fn dv(target: &dyn Target, name: &str, path: &str) -> anyhow::Result<String> {
    target
        .kubectl(&["get", "dv", name, "-o", &format!("jsonpath={{{path}}}")])?
        .ok()
}

fn wait_dv(target: &dyn Target, name: &str, phase: &str, limit: Duration) -> anyhow::Result<()> {
    let waited = wait_for(&format!("dv {name} is {phase}"), limit, || {
        let now = dv(target, name, ".status.phase")?;
        ensure!(now == phase, "it is {now:?}");
        Ok(())
    });
    waited.with_context(|| {
        let all = target.kubectl(&["get", "dv,pvc,pv,pods,events", "-o", "yaml"]);
        format!(
            "{}\n{}",
            all.map(|all| all.stdout).unwrap_or_default(),
            target.log_tail()
        )
    })
}

/// A DataVolume with this source, 512Mi.
fn data_volume(name: &str, class: &str, source: &str) -> String {
    format!(
        "apiVersion: cdi.kubevirt.io/v1beta1
kind: DataVolume
metadata: {{name: {name}}}
spec:
  source:
    {source}
  storage:
    storageClassName: {class}
    resources: {{requests: {{storage: 512Mi}}}}
---
"
    )
}

fn guest_at(web: &Web) -> anyhow::Result<String> {
    std::fs::copy(berth_e2e::small_guest(), web.dir().join("guest.qcow2"))?;
    Ok(format!("{}/guest.qcow2", web.url))
}

/// A machine whose disk comes from an address with it, keeps what its guest writes through a crash and a stop, and takes the
/// disk with it when it goes.
pub(crate) fn a_disk_of_an_address_lives_with_its_machine(
    target: &dyn Target,
    class: Class<'_>,
) -> anyhow::Result<()> {
    let web = Web::on(target)?;
    let url = guest_at(&web)?;
    let class = class("root-disk", ROOM)?;
    let instance = manifest("unused", "unused", MEMORY).replace(
        "    containerDisk:\n      image: unused\n",
        "    dataVolume:\n      name: root-disk\n",
    );
    let (_, spec) = instance.split_once("spec:\n").context("a spec")?;
    let spec: String = spec.lines().map(|line| format!("    {line}\n")).collect();
    target.apply(&format!(
        "apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {{name: keeper}}
spec:
  runStrategy: Always
  dataVolumeTemplates:
  - metadata: {{name: root-disk}}
    spec:
      source: {{http: {{url: \"{url}\"}}}}
      storage:
        storageClassName: {class}
        resources: {{requests: {{storage: 512Mi}}}}
  template:
    spec:
{spec}"
    ))?;
    wait_dv(target, "root-disk", "Succeeded", SOON * 3)?;
    ensure!(dv(target, "root-disk", ".status.progress")? == "100.00%");
    let ready = dv(
        target,
        "root-disk",
        ".status.conditions[?(@.type=='Ready')].status",
    )?;
    ensure!(ready == "True", "{ready}");
    target.wait_phase("keeper", "Running", SOON * 2)?;
    target.wait_prompt("keeper", BOOT)?;
    let mut console = target.console("keeper")?;
    console.log_in(BOOT)?;
    // As large as the claim asked for, and not as the image was.
    let sectors = console.shell("cat /sys/block/vda/size", SOON)?;
    ensure!(sectors.contains(&(512 * 2048).to_string()), "{sectors}");
    let mark = "echo 'kept for life' | dd of=/dev/vda bs=1M seek=500 conv=notrunc,fsync 2>/dev/null; echo done";
    console.shell(mark, SOON)?;
    drop(console);
    let kept = |what: &str| -> anyhow::Result<()> {
        let mut console = target.console("keeper")?;
        console.log_in(BOOT)?;
        let found = console.shell(
            "dd if=/dev/vda bs=1M skip=500 count=1 2>/dev/null | head -c 13; echo",
            SOON,
        )?;
        ensure!(found.contains("kept for life"), "after {what}: {found}");
        Ok(())
    };
    let uid = target.vmi("keeper", ".metadata.uid")?;
    target.kill_in_pod("keeper", "qemu")?;
    wait_for("another instance runs", SOON * 3, || {
        ensure!(
            target.vmi("keeper", ".metadata.uid")? != uid,
            "still the old one"
        );
        ensure!(
            target.vmi("keeper", ".status.phase")? == "Running",
            "not yet"
        );
        Ok(())
    })?;
    target.wait_prompt("keeper", BOOT)?;
    kept("kill -9 of QEMU")?;
    let berth = |arguments: &[&str]| {
        let mut command = target.berth_command();
        command
            .args(arguments)
            .args(["--namespace", target.namespace()]);
        run(&mut command, "")?.ok()
    };
    berth(&["stop", "keeper"])?;
    wait_for("it has stopped", SOON * 2, || {
        let left = target
            .kubectl(&["get", "vmi", "keeper", "--ignore-not-found"])?
            .ok()?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })?;
    berth(&["start", "keeper"])?;
    wait_for("it runs again", SOON * 2, || {
        let phase = target.vmi("keeper", ".status.phase")?;
        ensure!(phase == "Running", "{phase}");
        Ok(())
    })?;
    target.wait_prompt("keeper", BOOT)?;
    kept("stop and start")?;
    target
        .kubectl(&["delete", "vm", "keeper", "--timeout=90s"])?
        .ok()?;
    wait_for("the disk is gone with it", SOON * 2, || {
        let left = target
            .kubectl(&["get", "dv,pvc,pods", "-o", "name"])?
            .ok()?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })?;
    Ok(())
}

/// What cannot be had is told and ends, and nothing of it can be used by mistake.
pub(crate) fn imports_that_fail_say_why(
    target: &dyn Target,
    class: Class<'_>,
) -> anyhow::Result<()> {
    let web = Web::on(target)?;
    let url = guest_at(&web)?;
    std::fs::write(
        web.dir().join("bad.qcow2"),
        b"QFI\xfb\0\0\0\x03 and nothing more",
    )?;
    let child = web.dir().join("child.qcow2");
    let mut qemu_img = std::process::Command::new("qemu-img");
    run(
        qemu_img
            .args([
                "create",
                "-f",
                "qcow2",
                "-b",
                "/etc/shadow",
                "-F",
                "raw",
                "-u",
            ])
            .arg(&child)
            .arg("64M"),
        "",
    )?
    .ok()?;
    let sum = "0".repeat(64);
    for (name, source, words) in [
        (
            "checksum",
            format!("http: {{url: \"{url}\", checksum: \"sha256:{sum}\"}}"),
            "the checksum is wrong",
        ),
        (
            "nothing",
            format!("http: {{url: \"{}/none\"}}", web.url),
            "404",
        ),
        (
            "broken",
            format!("http: {{url: \"{}/bad.qcow2\"}}", web.url),
            "cut off",
        ),
        (
            "hostile",
            format!("http: {{url: \"{}/child.qcow2\"}}", web.url),
            "backing file",
        ),
    ] {
        let class = class(name, ROOM)?;
        target.apply(&data_volume(name, &class, &source))?;
        wait_dv(target, name, "Failed", SOON * 2)?;
        let told = dv(
            target,
            name,
            ".status.conditions[?(@.type=='Running')].message",
        )?;
        ensure!(told.contains(words), "{name}: {told}");
        let again = dv(target, name, ".status.restartCount")?;
        ensure!(
            again.is_empty(),
            "{name} was tried {again} more times for nothing"
        );
        target
            .kubectl(&["delete", "dv", name, "--timeout=60s"])?
            .ok()?;
    }
    // Too large for its claim, in CDI's words.
    let small = data_volume(
        "small",
        &class("small", 3)?,
        &format!("http: {{url: \"{url}\"}}"),
    )
    .replace("512Mi", "2Mi");
    target.apply(&small)?;
    wait_dv(target, "small", "Failed", SOON * 2)?;
    let told = dv(
        target,
        "small",
        ".status.conditions[?(@.type=='Running')].message",
    )?;
    ensure!(
        told.contains("is larger than the available size")
            && told.contains("A larger PVC is required"),
        "{told}"
    );
    // A machine on it does not start, and says why.
    let machine = manifest("hopeless", "unused", MEMORY).replace(
        "    containerDisk:\n      image: unused\n",
        "    dataVolume:\n      name: small\n",
    );
    target.apply(&machine)?;
    target.wait_condition(
        "hopeless",
        "Synchronized",
        "datavolume \"small\" is Failed",
        SOON,
    )?;
    target.delete("hopeless", SOON)?;
    target
        .kubectl(&["delete", "dv", "small", "--timeout=60s"])?
        .ok()?;
    // What is no DataVolume is refused by field.
    for (from, to, words) in [
        (
            "blank: {}",
            "blank: {}\n    http: {url: \"http://x/y\"}",
            "spec.source.blank",
        ),
        ("blank: {}", "upload: {}", "spec.source.upload"),
        ("512Mi", "0", "spec.storage.resources.requests.storage"),
        (
            "blank: {}",
            "http: {url: \"ftp://x/y\"}",
            "spec.source.http.url",
        ),
    ] {
        let bad = data_volume("bad", "none", "blank: {}").replace(from, to);
        let refused = target.kubectl_with(&["apply", "-f", "-"], &bad)?;
        ensure!(
            refused.code != 0 && refused.stderr.contains(words),
            "{words}: {refused}"
        );
    }
    Ok(())
}

/// An empty disk, and a copy of a disk that boots.
pub(crate) fn empty_disks_and_copies(target: &dyn Target, class: Class<'_>) -> anyhow::Result<()> {
    let web = Web::on(target)?;
    let url = guest_at(&web)?;
    let (root, copy, empty) = (
        class("golden", ROOM)?,
        class("copy", ROOM)?,
        class("empty", ROOM)?,
    );
    target.apply(&data_volume(
        "golden",
        &root,
        &format!("http: {{url: \"{url}\"}}"),
    ))?;
    // The copy waits for what it is made of.
    target.apply(&data_volume("copy", &copy, "pvc: {name: golden}"))?;
    target.apply(&data_volume("empty", &empty, "blank: {}"))?;
    for name in ["golden", "empty", "copy"] {
        wait_dv(target, name, "Succeeded", SOON * 3)?;
    }
    let machine = manifest("copied", "unused", MEMORY)
        .replace(
            "      - name: root\n        disk:\n          bus: virtio\n",
            "      - name: root\n        disk:\n          bus: virtio\n      - name: data\n        disk:\n          bus: virtio\n",
        )
        .replace(
            "    containerDisk:\n      image: unused\n",
            "    dataVolume:\n      name: copy\n  - name: data\n    persistentVolumeClaim:\n      claimName: empty\n",
        );
    target.apply(&machine)?;
    target.wait_phase("copied", "Running", SOON * 2)?;
    target.wait_prompt("copied", BOOT)?;
    let mut console = target.console("copied")?;
    console.log_in(BOOT)?;
    let sectors = console.shell("cat /sys/block/vdb/size", SOON)?;
    ensure!(sectors.contains(&(512 * 2048).to_string()), "{sectors}");
    drop(console);
    target.delete("copied", SOON * 2)?;
    // Two machines start from one disk, and neither changes it.
    for name in ["one", "other"] {
        let machine = manifest(name, "unused", MEMORY).replace(
            "    containerDisk:\n      image: unused\n",
            "    ephemeral:\n      persistentVolumeClaim: {claimName: golden}\n",
        );
        target.apply(&machine)?;
    }
    for name in ["one", "other"] {
        target.wait_phase(name, "Running", SOON * 2)?;
        target.wait_prompt(name, BOOT)?;
        let mut console = target.console(name)?;
        console.log_in(BOOT)?;
        let mark = "dd if=/dev/vda bs=1M skip=500 count=1 2>/dev/null | head -c 4; echo; echo m'i'ne | dd of=/dev/vda bs=1M seek=500 conv=notrunc,fsync 2>/dev/null; dd if=/dev/vda bs=1M skip=500 count=1 2>/dev/null | head -c 4; echo";
        let found = console.shell(mark, SOON)?;
        ensure!(found.matches("mine").count() == 1, "{name}: {found}");
    }
    for name in ["one", "other"] {
        target.delete(name, SOON * 2)?;
    }
    target
        .kubectl(&["delete", "dv", "golden", "copy", "empty", "--timeout=90s"])?
        .ok()?;
    Ok(())
}
