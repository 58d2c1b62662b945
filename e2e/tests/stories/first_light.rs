//! What a guest has, and what kubectl shows of it.

use anyhow::{Context as _, ensure};
use berth_e2e::{Console, Target, manifest};
use serde_json::Value;

use super::{BOOT, MEMORY, SOON, the_pods_address};

/// All of it, from the manifest on.
pub(crate) fn a_guest_and_what_is_shown(target: &dyn Target) -> anyhow::Result<()> {
    target.apply(&manifest("first", target.image(), MEMORY))?;
    target.wait_phase("first", "Running", SOON)?;
    let (mut console, address) = what_the_guest_has(target, "first")?;
    its_disk_is_its_own(&mut console)?;
    what_kubectl_shows(target, "first", &address)?;
    drop(console);
    target.delete("first", SOON * 2)
}

/// The address that the guest got by DHCP is the one that the status and the pod show; and so the rest. Gives its console,
/// logged in, and its address.
pub(crate) fn what_the_guest_has(
    target: &dyn Target,
    name: &str,
) -> anyhow::Result<(Console, String)> {
    let mut console = target.console(name)?;
    console.expect("berth small guest, address", BOOT)?;
    console.log_in(BOOT)?;

    let address = the_pods_address(target, name)?;
    let addresses = console.shell("ip -4 addr show eth0", SOON)?;
    ensure!(
        addresses.contains(&format!("inet {address}/")),
        "status says {address}, the guest has {addresses}"
    );
    let mac = target.vmi(name, ".status.interfaces[0].mac")?;
    let own = console.shell("cat /sys/class/net/eth0/address", SOON)?;
    ensure!(
        !mac.is_empty() && own.contains(&mac),
        "status says {mac}, the guest has {own}"
    );
    let mtu = console.shell("cat /sys/class/net/eth0/mtu; hostname; ip route", SOON)?;
    ensure!(
        mtu.contains("1500") && mtu.contains(name) && mtu.contains("default via "),
        "{mtu}"
    );
    every_described_status_field_is_shown(target, name)?;
    target.ping(&address, SOON)?;
    let page = target.page(&address)?;
    ensure!(page.contains("hello from the guest"), "{page}");
    Ok((console, address))
}

/// What the guest writes lands in its overlay: it reads it back, and the shared image is as it was.
pub(crate) fn its_disk_is_its_own(console: &mut Console) -> anyhow::Result<()> {
    let read = "dd if=/dev/vda bs=512 count=1 skip=90000 2>/dev/null";
    let image = console.shell(&format!("{read} | md5sum"), SOON)?;
    let write = "dd of=/dev/vda bs=512 seek=90000 conv=sync 2>/dev/null";
    console.shell(&format!("echo berth was here | {write}; sync"), SOON)?;
    let written = console.shell(read, SOON)?;
    ensure!(
        written.contains("berth was here") && !image.contains("berth"),
        "{written}"
    );
    Ok(())
}

/// Tables, logs, events and descriptions of a machine that runs alone in its namespace.
pub(crate) fn what_kubectl_shows(
    target: &dyn Target,
    name: &str,
    address: &str,
) -> anyhow::Result<()> {
    let table = target.kubectl(&["get", "vmi"])?.ok()?;
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
    let node = target.vmi(name, ".status.nodeName")?;
    let row: Vec<_> = lines.next().context("a row")?.split_whitespace().collect();
    ensure!(
        row[0] == name && row[2..] == ["Running", address, &node, "True"],
        "{table}"
    );
    let wide = target.kubectl(&["get", "vmis", "-o", "wide"])?.ok()?;
    ensure!(
        wide.contains("LIVE-MIGRATABLE") && wide.contains("PAUSED"),
        "{wide}"
    );

    // A machine that can do KVM would say so by the absence of the condition, unless emulation is asked for.
    let path = ".status.conditions[?(@.type=='SoftwareEmulation')]";
    let emulation = target.vmi(name, &format!("{path}.status"))?;
    let asked = target.vmi(name, &format!("{path}.reason"))? == "EmulationRequested";
    let kvm = target
        .exec("grep", &["-cwE", "vmx|svm", "/proc/cpuinfo"])?
        .code
        == 0;
    ensure!(
        asked || (emulation == "True") != kvm,
        "SoftwareEmulation is {emulation:?}, vmx or svm is there: {kvm}"
    );

    let pod = target
        .kubectl(&["get", "pods", "-o", "jsonpath={.items[0].metadata.name}"])?
        .ok()?;
    ensure!(pod.starts_with(&format!("virt-launcher-{name}-")), "{pod}");
    let logs = target.kubectl(&["logs", &pod])?.ok()?;
    ensure!(!logs.trim().is_empty(), "the launcher logged nothing");
    let last = target.kubectl(&["logs", &pod, "--tail=1"])?.ok()?;
    ensure!(last.lines().count() == 1, "{last}");
    let events = target.kubectl(&["get", "events"])?.ok()?;
    ensure!(
        events.contains("SuccessfulCreate") && events.contains("Started"),
        "{events}"
    );
    let described = target.kubectl(&["describe", "vmi", name])?.ok()?;
    ensure!(
        described.contains("Phase:") && described.contains("Running"),
        "{described}"
    );
    Ok(())
}

/// A field that the CRD describes is one that somebody writes; some are for machines that failed, whose guest
/// is frozen, or that a VirtualMachine made.
fn every_described_status_field_is_shown(target: &dyn Target, name: &str) -> anyhow::Result<()> {
    let parsed = |arguments: &[&str]| -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&target.kubectl(arguments)?.ok()?)?)
    };
    let vmi = parsed(&["get", "vmi", name, "-o", "json"])?;
    let crd = "virtualmachineinstances.kubevirt.io";
    let crd = parsed(&["get", "crd", crd, "-o", "json"])?;
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
    let fields = |schema: &Value| -> Vec<String> {
        let properties = schema["properties"].as_object().into_iter().flatten();
        properties.map(|(field, _)| field.clone()).collect()
    };
    ensure!(!fields(schema).is_empty(), "the status is not described");
    let at_times = ["reason", "fsFreezeStatus", "virtualMachineRevisionName"];
    for field in fields(schema)
        .iter()
        .filter(|field| !at_times.contains(&field.as_str()))
    {
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
