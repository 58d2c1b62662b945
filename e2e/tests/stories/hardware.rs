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
