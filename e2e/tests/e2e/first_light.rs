//! From a manifest to a guest with an address, a prompt and a way out.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_e2e::{MACHINE, Machine, OUTSIDE, Outside, Target as _, manifest};

use crate::{BOOT, IMAGE, MEMORY, SOON, machine_with_guest, stories};

#[test]
fn a_manifest_becomes_a_guest_with_address_console_and_a_way_out() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("first light")? else {
        return Ok(());
    };
    let outside = Outside::beyond(&machine)?;
    machine.apply(&manifest("first", IMAGE, MEMORY))?;
    machine.wait_phase("first", "Running", SOON)?;

    let mut console = machine.console("first")?;
    console.expect("berth small guest, address", BOOT)?;
    console.log_in(BOOT)?;

    // The address that the guest got by DHCP is the one that the status and the pod show.
    let address = stories::the_pods_address(&machine, "first")?;
    let addresses = console.shell("ip -4 addr show eth0", SOON)?;
    ensure!(
        addresses.contains(&format!("inet {address}/16")),
        "status says {address}, the guest has {addresses}"
    );
    let mac = machine.vmi("first", ".status.interfaces[0].mac")?;
    let own = console.shell("cat /sys/class/net/eth0/address", SOON)?;
    ensure!(
        !mac.is_empty() && own.contains(&mac),
        "status says {mac}, the guest has {own}"
    );
    let mtu = console.shell("cat /sys/class/net/eth0/mtu; hostname; ip route", SOON)?;
    ensure!(
        mtu.contains("1500") && mtu.contains("first") && mtu.contains("default via 10.98.0.1"),
        "{mtu}"
    );

    every_described_status_field_is_shown(&machine, "first")?;

    machine.ping(&address, SOON)?;
    let page = machine
        .exec(
            "busybox",
            &["wget", "-q", "-O", "-", &format!("http://{address}/")],
        )?
        .ok()?;
    ensure!(page.contains("hello from the guest"), "{page}");

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

    // What the guest writes lands in its overlay: it reads it back, and the shared image is as it was.
    let image = console.shell(
        "dd if=/dev/vda bs=512 count=1 skip=90000 2>/dev/null | md5sum",
        SOON,
    )?;
    console.shell(
        "echo berth was here | dd of=/dev/vda bs=512 seek=90000 conv=sync 2>/dev/null; sync",
        SOON,
    )?;
    let written = console.shell("dd if=/dev/vda bs=512 count=1 skip=90000 2>/dev/null", SOON)?;
    ensure!(
        written.contains("berth was here") && !image.contains("berth"),
        "{written}"
    );

    what_kubectl_shows(&machine, &address)?;
    machine.delete("first", SOON * 2)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

fn what_kubectl_shows(machine: &berth_e2e::Machine, address: &str) -> anyhow::Result<()> {
    let table = machine.kubectl(&["get", "vmi"])?.ok()?;
    let mut lines = table.lines();
    let header: Vec<_> = lines
        .next()
        .context("a header")?
        .split_whitespace()
        .collect();
    ensure!(
        header == ["NAME", "AGE", "PHASE", "IP", "NODENAME", "READY"],
        "{table}"
    );
    let row: Vec<_> = lines.next().context("a row")?.split_whitespace().collect();
    ensure!(
        row[0] == "first" && row[2..] == ["Running", address, "machine", "True"],
        "{table}"
    );
    let wide = machine.kubectl(&["get", "vmis", "-o", "wide"])?.ok()?;
    ensure!(
        wide.contains("LIVE-MIGRATABLE") && wide.contains("PAUSED"),
        "{wide}"
    );

    // Nothing here can do KVM; a machine that can would say so by the absence of the condition.
    let emulation = machine.vmi(
        "first",
        ".status.conditions[?(@.type=='SoftwareEmulation')].status",
    )?;
    let kvm = machine
        .exec("grep", &["-cwE", "vmx|svm", "/proc/cpuinfo"])?
        .code
        == 0;
    ensure!(
        (emulation == "True") != kvm,
        "SoftwareEmulation is {emulation:?}, vmx or svm is there: {kvm}"
    );

    let pod = machine
        .kubectl(&["get", "pods", "-o", "jsonpath={.items[0].metadata.name}"])?
        .ok()?;
    ensure!(pod.starts_with("virt-launcher-first-"), "{pod}");
    let logs = machine.kubectl(&["logs", &pod])?.ok()?;
    ensure!(!logs.trim().is_empty(), "the launcher logged nothing");
    let last = machine.kubectl(&["logs", &pod, "--tail=1"])?.ok()?;
    ensure!(last.lines().count() == 1, "{last}");
    let events = machine.kubectl(&["get", "events"])?.ok()?;
    ensure!(
        events.contains("SuccessfulCreate") && events.contains("Started"),
        "{events}"
    );
    let described = machine.kubectl(&["describe", "vmi", "first"])?.ok()?;
    ensure!(
        described.contains("Phase:") && described.contains("Running"),
        "{described}"
    );
    Ok(())
}

/// A field that the CRD describes is one that somebody writes; `reason` alone is for machines that failed.
fn every_described_status_field_is_shown(machine: &Machine, name: &str) -> anyhow::Result<()> {
    let parsed = |text: String| serde_json::from_str::<serde_json::Value>(&text);
    let vmi = parsed(machine.kubectl(&["get", "vmi", name, "-o", "json"])?.ok()?)?;
    let crds = parsed(machine.berth(&["crds", "--output", "json"])?.ok()?)?;
    let schema = crds["items"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|crd| crd["spec"]["names"]["kind"] == "VirtualMachineInstance")
        .map(|crd| &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"])
        .context("no such CRD")?;
    let fields = |schema: &serde_json::Value| -> Vec<String> {
        let properties = schema["properties"].as_object().into_iter().flatten();
        properties.map(|(field, _)| field.clone()).collect()
    };
    for field in fields(schema).iter().filter(|field| *field != "reason") {
        ensure!(
            !vmi["status"][field].is_null(),
            "status.{field} is described and not shown: {}",
            vmi["status"]
        );
    }
    let interface = &schema["properties"]["interfaces"]["items"];
    ensure!(
        !fields(interface).is_empty(),
        "interfaces are not described"
    );
    for field in fields(interface) {
        ensure!(
            !vmi["status"]["interfaces"][0][&field].is_null(),
            "status.interfaces[0].{field} is described and not shown"
        );
    }
    Ok(())
}

/// The part of it that is the same on a cluster.
#[test]
fn the_story_of_any_target() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("the story of any target")? else {
        return Ok(());
    };
    stories::a_manifest_becomes_a_guest(&machine)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}
