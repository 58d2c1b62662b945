//! How a guest is on the pod network.

use anyhow::ensure;
use berth_e2e::{Target, manifest, wait_for};

use super::machines::berth;
use super::{BOOT, MEMORY, SOON, the_pods_address};

const BRIDGE: &str = "bridge: {}";

/// A guest with a network of its own behind the pod's address: it is reached and reaches others by that address.
pub(crate) fn behind_the_pods_address(target: &dyn Target) -> anyhow::Result<()> {
    let bridged = manifest("inner", target.image(), MEMORY);
    ensure!(bridged.contains(BRIDGE), "{bridged}");
    target.apply(&bridged.replace(BRIDGE, "masquerade: {}"))?;
    target.wait_phase("inner", "Running", SOON)?;
    let mut console = target.console("inner")?;
    console.log_in(BOOT)?;
    let seen = console.shell("ip -4 addr show eth0; ip route", SOON)?;
    ensure!(
        seen.contains("10.0.2.2/24") && seen.contains("default via 10.0.2.1"),
        "{seen}"
    );
    let address = the_pods_address(target, "inner")?;
    target.ping(&address, SOON)?;
    ensure!(target.page(&address)?.contains("hello from the guest"));

    // Another one, of which only one port is to be seen; and from guest to guest.
    let one_port = "masquerade: {}\n        ports: [{name: web, port: 80}]";
    target.apply(
        &bridged
            .replace("name: inner", "name: narrow")
            .replace(BRIDGE, one_port)
            .replace("pod: {}", "pod: {vmNetworkCIDR: 172.31.255.0/30}"),
    )?;
    target.wait_phase("narrow", "Running", SOON)?;
    let mut other = target.console("narrow")?;
    other.log_in(BOOT)?;
    let seen = other.shell("ip -4 addr show eth0", SOON)?;
    ensure!(seen.contains("172.31.255.2/30"), "{seen}");
    let page = other.shell(&format!("wget -q -O - http://{address}/"), SOON)?;
    ensure!(page.contains("hello from the guest"), "{page}");
    let narrow = target.address("narrow")?;
    let get = |port: u16| {
        format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {narrow} {port} || echo NO'THING'")
    };
    other.shell("httpd -p 8080 -h /www", SOON)?;
    let page = console.shell(&get(80), SOON)?;
    ensure!(page.contains("hello from the guest"), "{page}");
    let page = console.shell(&get(8080), SOON)?;
    ensure!(page.contains("NOTHING"), "{page}");

    // The guest's agent tells the inner address; what others can use is the pod's.
    let source = ".status.interfaces[0].infoSource";
    wait_for("the agent is heard", SOON * 2, || {
        let source = target.vmi("inner", source)?;
        ensure!(source.contains("guest-agent"), "{source}");
        Ok(())
    })?;
    let all = target.vmi("inner", ".status.interfaces[0].ipAddresses")?;
    ensure!(all == format!("[\"{address}\"]"), "{all}");
    berth(target, &["soft-reboot", "inner"])?.ok()?;
    console.expect("login: ", BOOT)?;
    target.ping(&address, SOON)?;
    target.delete("narrow", SOON * 2)?;
    target.delete("inner", SOON * 2)
}
