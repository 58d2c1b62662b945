//! From a manifest to a guest with an address, a prompt and a way out.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_e2e::{MACHINE, OUTSIDE, Outside, Target as _, manifest};

use crate::stories::first_light;
use crate::{IMAGE, MEMORY, SOON, machine_with_guest, stories};

#[test]
fn a_manifest_becomes_a_guest_with_address_console_and_a_way_out() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("first light")? else {
        return Ok(());
    };
    let outside = Outside::beyond(&machine)?;
    machine.apply(&manifest("first", IMAGE, MEMORY))?;
    machine.wait_phase("first", "Running", SOON)?;

    let (mut console, address) = first_light::what_the_guest_has(&machine, "first")?;

    // Out through NAT: the server sees the machine, not the pod network, to which it has no route.
    let (port, peer) = outside.serve_once("hello from outside\n")?;
    let page = console.shell(&format!("wget -q -O - http://{OUTSIDE}:{port}/"), SOON)?;
    ensure!(page.contains("hello from outside"), "{page}");
    let peer = peer
        .recv_timeout(Duration::from_secs(5))
        .context("who asked")?;
    ensure!(
        peer == IpAddr::V4(MACHINE),
        "the server saw {peer}, not {MACHINE}"
    );
    ensure!(peer != IpAddr::V4(address.parse::<Ipv4Addr>()?));

    first_light::its_disk_is_its_own(&mut console)?;
    first_light::what_kubectl_shows(&machine, "first", &address)?;
    machine.delete("first", SOON * 2)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

/// The part of it that is the same on a cluster.
#[test]
fn the_story_of_any_target() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("the story of any target")? else {
        return Ok(());
    };
    stories::a_manifest_becomes_a_guest(&machine)?;
    first_light::a_guest_and_what_is_shown(&machine)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}
