//! A guest that no one here wrote: Debian's iPXE ISO, an isohybrid that boots as a disk.

use std::path::Path;

use anyhow::ensure;
use berth_e2e::{Machine, Need, Target as _, manifest, missing};

use crate::{BOOT, SOON};

#[test]
fn ipxe_takes_its_address_from_our_dhcp_server() -> anyhow::Result<()> {
    if missing("foreign guest", &[Need::Root, Need::Qemu, Need::Ipxe]) {
        return Ok(());
    }
    let machine = Machine::start()?;
    machine.build_image("ipxe:latest", Path::new("/usr/lib/ipxe/ipxe.iso"))?;
    let with_serial_bios = manifest("ipxe", "ipxe:latest", "96Mi")
        .replace("    devices:\n", "    firmware:\n      bootloader:\n        bios:\n          useSerial: true\n    devices:\n");
    machine.apply(&with_serial_bios)?;
    machine.wait_phase("ipxe", "Running", SOON)?;
    let address = machine.address("ipxe")?;
    let mut console = machine.console("ipxe")?;
    // iPXE shows what DHCP gave it before it looks for something to boot.
    console.expect("iPXE", BOOT)?;
    let shown = console.expect(&format!("net0: {address}/255.255.0.0 gw 10.98.0.1"), BOOT)?;
    ensure!(shown.contains("Configuring"), "{shown}");
    machine.ping(&address, SOON)?;
    machine.delete("ipxe", SOON * 2)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}
