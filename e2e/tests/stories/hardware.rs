//! Virtual hardware, as a guest sees it.

use std::process::Command;

use anyhow::ensure;
use berth_e2e::{Target, manifest, repository, run, wait_for};

use super::{BOOT, MEMORY, SOON};

/// Much that can be asked for at once, and the guest finds it.
pub(crate) fn the_guest_finds_its_hardware(target: &dyn Target) -> anyhow::Result<()> {
    let plain = manifest("fitted", target.image(), MEMORY);
    let fitted = plain
        .replace(
            "  domain:\n",
            "  domain:
    cpu: {cores: 2, features: [{name: aes, policy: disable}]}
    chassis: {manufacturer: Maker, asset: A-1}
    ioThreadsPolicy: auto
    features:
      hyperv: {relaxed: {}, vapic: {}}
      kvm: {hidden: true}
      smm: {}
    clock: {timer: {hyperv: {}, hpet: {present: false}}}
",
        )
        .replace(
            "      rng: {}\n",
            "      rng: {}
      blockMultiQueue: true
      autoattachInputDevice: true
      watchdog: {name: dog, i6300esb: {action: reset}}
      sound: {name: ears}
      panicDevices: [{model: isa}]
",
        )
        .replace(
            "        disk:\n          bus: virtio\n",
            "        disk:\n          bus: virtio\n        dedicatedIOThread: true\n        errorPolicy: report\n        blockSize: {custom: {logical: 512, physical: 4096}}\n",
        )
        .replace("        bridge: {}\n", "        bridge: {}\n        acpiIndex: 5\n");
    ensure!(
        fitted.matches("blockSize").count() == 1 && fitted.contains("acpiIndex"),
        "{fitted}"
    );
    target.apply(&fitted)?;
    target.wait_phase("fitted", "Running", SOON)?;
    let mut console = target.console("fitted")?;
    console.log_in(BOOT)?;
    let seen = console.shell(
        "cat /sys/class/dmi/id/chassis_vendor /sys/block/vda/queue/physical_block_size; \
         ls /sys/block/vda/mq | wc -l; cat /sys/bus/pci/devices/*/device; grep -cw aes /proc/cpuinfo || true",
        SOON,
    )?;
    let lines: Vec<&str> = seen.lines().map(str::trim).collect();
    for wanted in [
        "Maker", "4096",   // the sizes of blocks
        "2",      // a queue for each of two processors
        "0x25ab", // i6300esb
        "0x293e", // ich9's sound
        "0",      // no processor with aes
    ] {
        ensure!(lines.contains(&wanted), "no {wanted} in {lines:?}");
    }
    drop(console);
    target.delete("fitted", SOON * 2)
}

/// Disks that are made of the manifest alone: what cloud-init is told, and an empty one.
pub(crate) fn the_guest_reads_what_cloud_init_is_told(target: &dyn Target) -> anyhow::Result<()> {
    let told = manifest("told", target.image(), MEMORY)
        + "  - name: ci
    cloudInitNoCloud:
      userData: \"#cloud-config\\npassword: for-the-guest-only\\n\"
  - name: drive
    cloudInitConfigDrive:
      userDataBase64: I2Nsb3VkLWNvbmZpZwo=
  - name: scratch
    emptyDisk:
      capacity: 8Mi
";
    target.apply(&told)?;
    target.wait_phase("told", "Running", SOON)?;
    let mut console = target.console("told")?;
    console.log_in(BOOT)?;
    // The guest's kernel mounts what cloud-init would.
    let seen = console.shell(
        "mkdir -p /tmp/a /tmp/b; mount -o ro /dev/vdb /tmp/a && mount -o ro /dev/vdc /tmp/b; \
         cat /tmp/a/user-data /tmp/a/meta-data; echo; cat /tmp/b/openstack/latest/user_data; cat /sys/block/vdd/size",
        SOON,
    )?;
    for wanted in [
        "password: for-the-guest-only",
        "\"local-hostname\":\"told\"",
        "#cloud-config",
        "16384",
    ] {
        ensure!(seen.contains(wanted), "no {wanted:?} in {seen}");
    }
    drop(console);
    let log = target.log_tail();
    ensure!(!log.contains("for-the-guest-only"), "it is in the log");
    target.delete("told", SOON * 2)?;
    // Mistakes are told without what is secret.
    let wrong = told.replace("I2Nsb3VkLWNvbmZpZwo=", "s3cret!");
    let refused = target.kubectl_with(&["apply", "-f", "-"], &wrong)?.err()?;
    ensure!(
        refused.contains("spec.volumes[2].cloudInitConfigDrive.userDataBase64")
            && !refused.contains("s3cret!\": must"),
        "{refused}"
    );
    Ok(())
}

/// A kernel out of an image, in place of what is on a disk.
pub(crate) fn a_kernel_out_of_an_image(target: &dyn Target) -> anyhow::Result<()> {
    const IMAGE: &str = "localhost/kernel:1";
    let cache = repository().join(".cache/guest-kernel");
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join("kernel.tar");
    let mut pack = Command::new("python3");
    pack.arg(repository().join("scripts/cluster/image.py"))
        .args([IMAGE.as_ref(), archive.as_os_str(), "/none".as_ref()])
        .arg(format!("{}=/boot/vmlinuz", cache.join("vmlinuz").display()))
        .arg(format!(
            "{}=/boot/initrd",
            cache.join("initrd.gz").display()
        ));
    run(&mut pack, "")?.ok()?;
    target.import("oci-archive", &archive, IMAGE)?;
    let boot = format!(
        "  domain:
    firmware:
      kernelBoot:
        kernelArgs: console=ttyS0,115200 net.ifnames=0 loglevel=6 of-its-own=yes
        container: {{image: '{IMAGE}', kernelPath: /boot/vmlinuz, initrdPath: /boot/initrd}}
"
    );
    let text = manifest("kernel", target.image(), MEMORY).replacen("  domain:\n", &boot, 1);
    // Without a disk: everything that the guest is comes out of the image.
    let (head, tail) = text.split_once("      disks:\n").unwrap_or_default();
    let (_, tail) = tail.split_once("      interfaces:\n").unwrap_or_default();
    let (tail, _) = tail.split_once("  volumes:\n").unwrap_or_default();
    target.apply(&format!("{head}      interfaces:\n{tail}"))?;
    target.wait_phase("kernel", "Running", SOON)?;
    let mut console = target.console("kernel")?;
    console.log_in(BOOT)?;
    let told = console.shell("cat /proc/cmdline; ls /sys/block", SOON)?;
    ensure!(told.contains("of-its-own=yes"), "{told}");
    ensure!(!told.contains("vda"), "{told}");
    target.delete("kernel", SOON * 2)?;
    // A path that is not there is told.
    let wrong = boot.replace("/boot/initrd", "/boot/none");
    let text = manifest("lost", target.image(), MEMORY).replacen("  domain:\n", &wrong, 1);
    target.apply(&text)?;
    wait_for("what is missing is told", SOON * 2, || {
        let messages = target.vmi("lost", ".status.conditions[*].message")?;
        ensure!(messages.contains("/boot/none"), "{messages}");
        Ok(())
    })?;
    target.delete("lost", SOON * 2)
}
