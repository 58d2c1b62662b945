//! A guest that no one here wrote.

use berth_e2e::{Machine, Need, missing};

use crate::SOON;
use crate::stories::images;

#[test]
fn ipxe_takes_its_address_from_our_dhcp_server() -> anyhow::Result<()> {
    let needs = [Need::Root, Need::Qemu, Need::Ipxe, Need::Skopeo];
    if missing("foreign guest", &needs) {
        return Ok(());
    }
    let machine = Machine::start()?;
    images::ipxe_takes_its_address(&machine)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}
