//! Virtual hardware, as a guest sees it.

use anyhow::ensure;
use berth_e2e::{Target, manifest};

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
