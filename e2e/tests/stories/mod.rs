//! Stories that happen standalone and on a cluster alike. Each test binary has its own part of them.

pub(crate) mod bad_input;
pub(crate) mod crashes;
pub(crate) mod examples;
pub(crate) mod first_light;
pub(crate) mod guests;
pub(crate) mod hardware;
pub(crate) mod hostile;
pub(crate) mod images;
pub(crate) mod lifecycle;
pub(crate) mod machines;
pub(crate) mod network;
pub(crate) mod probes;
pub(crate) mod texts;
pub(crate) mod users;
pub(crate) mod volumes;
pub(crate) mod ways_in;

use std::time::Duration;

use anyhow::ensure;
use berth_e2e::{Target, manifest, repository};

/// Long enough for a guest under software emulation on a busy machine.
pub(crate) const BOOT: Duration = Duration::from_secs(150);
/// For what berth does by itself.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// A client of the API keeps a connection that nobody uses for 90 s.
pub(crate) const IDLE: Duration = Duration::from_secs(120);
/// The guest's memory.
pub(crate) const MEMORY: &str = "160Mi";

/// A manifest of a machine that runs on this node.
pub(crate) fn on_node(manifest: &str, node: &str) -> String {
    let selector = format!("spec:\n  nodeSelector: {{kubernetes.io/hostname: {node}}}\n");
    manifest.replacen("spec:\n", &selector, 1)
}

/// From a manifest to a guest that has the pod's address by DHCP, asks for a login and serves, and that goes.
pub(crate) fn a_manifest_becomes_a_guest(target: &dyn Target) -> anyhow::Result<()> {
    target.apply(&manifest("first", target.image(), MEMORY))?;
    target.wait_phase("first", "Running", SOON)?;
    target.wait_prompt("first", BOOT)?;
    let address = the_pods_address(target, "first")?;
    // Nobody else has it: the guest asked for it and got it.
    target.ping(&address, SOON)?;
    let page = target.page(&address)?;
    ensure!(page.contains("hello from the guest"), "{page}");
    for condition in ["Ready", "LiveMigratable"] {
        let path = format!(".status.conditions[?(@.type=='{condition}')].status");
        ensure!(!target.vmi("first", &path)?.is_empty(), "no {condition}");
    }
    target.delete("first", SOON * 2)?;
    let pods = target.kubectl(&["get", "pods", "-o", "name"])?.ok()?;
    ensure!(pods.trim().is_empty(), "left: {pods}");
    Ok(())
}

/// The address in the status, which is that of the one pod.
pub(crate) fn the_pods_address(target: &dyn Target, name: &str) -> anyhow::Result<String> {
    let address = target.address(name)?;
    let pods = target
        .kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.podIP}"])?
        .ok()?;
    ensure!(
        pods == address,
        "the pod's address is {pods}, the guest's {address}"
    );
    Ok(address)
}

/// A manifest of 2018 is converted, with a warning for each field, and runs.
pub(crate) fn the_seed_manifest_runs(target: &dyn Target, image: &str) -> anyhow::Result<()> {
    let seed = std::fs::read_to_string(repository().join("examples/vmi-seed.yaml"))?
        .replace("windows2012dc:latest", image);
    let applied = target.kubectl_with(&["apply", "-f", "-"], &seed)?;
    ensure!(applied.code == 0, "{applied}");
    for word in ["Warning:", "registryDisk", "containerDisk", "volumeName"] {
        ensure!(applied.stderr.contains(word), "no {word:?} in: {applied}");
    }
    target.wait_phase("windows2012dc", "Running", SOON)?;
    ensure!(target.vmi("windows2012dc", ".spec.volumes[0].containerDisk.image")? == image);
    ensure!(
        target
            .vmi("windows2012dc", ".spec.volumes[0].registryDisk")?
            .is_empty()
    );
    ensure!(
        target.vmi("windows2012dc", ".spec.domain.devices.disks[0].name")?
            == target.vmi("windows2012dc", ".spec.volumes[0].name")?
    );
    target.wait_prompt("windows2012dc", BOOT)?;
    // Applied again, it is the same object and nothing to do.
    target.kubectl_with(&["apply", "-f", "-"], &seed)?.ok()?;
    target.delete("windows2012dc", SOON * 2)?;
    let newer = seed.replace("v1alpha2", "v1alpha3");
    target.kubectl_with(&["apply", "-f", "-"], &newer)?.ok()?;
    target.wait_phase("windows2012dc", "Running", SOON)?;
    target.delete("windows2012dc", SOON * 2)?;
    Ok(())
}

/// Lost updates do not happen: what is answered to a stale or blind replace.
pub(crate) fn a_replace_needs_the_current_version(target: &dyn Target) -> anyhow::Result<()> {
    // The image does not exist; the object is enough here.
    target.apply(&manifest("contended", "none/such:1", "64Mi"))?;
    let path = &format!(
        "/apis/kubevirt.io/v1/namespaces/{}/virtualmachineinstances/contended",
        target.namespace()
    );
    let read = || -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(
            &target.kubectl(&["get", "--raw", path])?.ok()?,
        )?)
    };
    let replace = |object: &serde_json::Value| {
        target.kubectl_with(&["replace", "--raw", path, "-f", "-"], &object.to_string())
    };
    let mut blind = read()?;
    blind["metadata"]["annotations"]["note"] = "blind".into();
    blind["metadata"]
        .as_object_mut()
        .map(|metadata| metadata.remove("resourceVersion"));
    let refused = replace(&blind)?.err()?;
    ensure!(
        // 0x0 in the words of older servers, 0 in those of newer ones.
        refused.contains("metadata.resourceVersion: Invalid value: 0")
            && refused.contains(": must be specified for an update"),
        "{refused}"
    );
    let mut stale = read()?;
    target
        .kubectl(&["annotate", "vmi", "contended", "other=writer"])?
        .ok()?;
    stale["metadata"]["annotations"]["note"] = "stale".into();
    let refused = replace(&stale)?.err()?;
    ensure!(
        refused.contains("the object has been modified; please apply your changes to the latest version and try again"),
        "{refused}"
    );
    // A fresh one passes; the controller may write the status in between, so it is read again as a client would.
    berth_e2e::wait_for("a fresh replace is accepted", SOON, || {
        let mut fresh = read()?;
        fresh["metadata"]["annotations"]["note"] = "fresh".into();
        replace(&fresh)?.ok()
    })?;
    let now = read()?;
    ensure!(
        now["metadata"]["annotations"]["note"] == "fresh"
            && now["metadata"]["annotations"]["other"] == "writer"
    );
    Ok(())
}

/// What is wrong in a manifest is told by field, and nothing is made of it.
pub(crate) fn mistakes_are_refused_by_field(target: &dyn Target) -> anyhow::Result<()> {
    let good = manifest("bad", "some/image:1", "64Mi");
    let apply = |text: &str| target.kubectl_with(&["apply", "-f", "-"], text)?.err();
    let cases: &[(&str, &str, &[&str])] = &[
        // Fields of KubeVirt that berth does not have (yet) are named, never dropped.
        (
            "      rng: {}\n",
            "      rng: {}\n      gpus:\n      - name: g\n        deviceName: d\n",
            &["spec.domain.devices.gpus"],
        ),
        (
            "      rng: {}\n",
            "      rng: {}\n      tpm: {}\n",
            &["spec.domain.devices.tpm"],
        ),
        (
            "bridge: {}",
            "sriov: {}",
            &["spec.domain.devices.interfaces[0].sriov"],
        ),
        (
            "bridge: {}",
            "slirp: {}",
            &["spec.domain.devices.interfaces[0].slirp"],
        ),
        // Values.
        (
            "guest: 64Mi",
            "guest: plenty",
            &["spec.domain.memory.guest", "plenty"],
        ),
        ("guest: 64Mi", "guest: \"0\"", &["spec.domain.memory.guest"]),
        (
            "bus: virtio",
            "bus: floppy",
            &["spec.domain.devices.disks[0].disk.bus", "floppy"],
        ),
        (
            "bridge: {}",
            "bridge: {}\n        macAddress: 01:00:5e:00:00:01",
            &["macAddress", "01:00:5e:00:00:01"],
        ),
        (
            "      image: some/image:1",
            "      image: \"some image\"",
            &["spec.volumes[0].containerDisk.image", "some image"],
        ),
        (
            "terminationGracePeriodSeconds: 30",
            "terminationGracePeriodSeconds: soon",
            &["terminationGracePeriodSeconds"],
        ),
        // References.
        (
            "  volumes:\n  - name: root",
            "  volumes:\n  - name: other",
            &["spec.domain.devices.disks[0].name", "root"],
        ),
        (
            "  networks:\n  - name: default",
            "  networks:\n  - name: blue",
            &["blue"],
        ),
        (
            "  name: bad\n",
            "  name: Bad_Name\n",
            &["metadata.name", "Bad_Name"],
        ),
    ];
    for (from, to, wanted) in cases {
        ensure!(good.contains(from), "the case {to:?} replaces nothing");
        let refusal = apply(&good.replacen(from, to, 1))?;
        for word in *wanted {
            ensure!(
                refusal.contains(word),
                "no {word:?} in the refusal of {to:?}: {refusal}"
            );
        }
    }
    // Not YAML at all, and a kind that is not there.
    apply("apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\n  metadata: x\n")?;
    apply(&good.replace(
        "kind: VirtualMachineInstance",
        "kind: VirtualMachineInstanse",
    ))?;
    let none = target.kubectl(&["get", "vmi,pods", "-o", "name"])?.ok()?;
    ensure!(
        none.trim().is_empty(),
        "something was made of a refused manifest: {none}"
    );
    // Two mistakes are told at once.
    let refusal = apply(
        &good
            .replace("bus: virtio", "bus: floppy")
            .replace("guest: 64Mi", "guest: plenty"),
    )?;
    ensure!(
        refusal.contains("floppy") && refusal.contains("plenty"),
        "{refusal}"
    );
    Ok(())
}
