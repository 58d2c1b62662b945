//! The one object with settings.

use anyhow::ensure;
use berth_e2e::{Cluster, Target as _, manifest, run, wait_for};

use crate::hasty;
use crate::stories::{BOOT, MEMORY, SOON, images, on_node};

/// The object, with what is below `spec.configuration.developerConfiguration`.
fn settings(name: &str, developer: &str) -> String {
    format!(
        "apiVersion: berth.kubevirt.io/v1
kind: Berth
metadata: {{name: {name}}}
spec:
  configuration:
    developerConfiguration: {developer}
"
    )
}

/// Runs what changes the settings, and gives the cluster those of other stories again.
fn with_settings_put_back(
    cluster: &Cluster,
    story: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let told = story();
    let settings = berth_e2e::repository().join("examples/settings.yaml");
    cluster.apply(&std::fs::read_to_string(settings)?)?;
    told
}

/// By field and value, as everywhere.
pub(crate) fn mistakes(cluster: &Cluster) -> anyhow::Result<()> {
    let cases = [
        ("second", "{useEmulation: true}", "its name must be berth"),
        ("berth", "{useEmulation: often}", "useEmulation"),
        ("berth", "{useEmulatoin: true}", "useEmulatoin"),
        ("berth", "{cpuAllocationRatio: 0}", "cpuAllocationRatio"),
        ("berth", "{logVerbosity: {virtHandler: 12}}", "virtHandler"),
    ];
    for (name, developer, told) in cases {
        let input = settings(name, developer);
        let refused = cluster
            .kubectl_with(&["apply", "--dry-run=server", "-f", "-"], &input)?
            .err()?;
        ensure!(refused.contains(told), "{developer}: {refused}");
    }
    Ok(())
}

/// Emulation, gates and verbosity, while everything runs.
pub(crate) fn from_now_on(cluster: &Cluster) -> anyhow::Result<()> {
    let story = || {
        // Nodes of tests have no KVM that can be used; where they have, the machine runs.
        cluster.apply(&settings("berth", "{}"))?;
        let has_kvm = cluster
            .kubectl(&[
                "get",
                "node",
                "node0",
                "-o",
                "jsonpath={.status.allocatable.devices\\.kubevirt\\.io/kvm}",
            ])?
            .ok()?;
        cluster.apply(&hasty(cluster, "fast"))?;
        if has_kvm.is_empty() {
            let why = "Insufficient devices.kubevirt.io/kvm";
            cluster.wait_condition("fast", "PodScheduled", why, SOON)?;
            let doctor = run(
                cluster.command(&berth_e2e::berth_binary()).arg("doctor"),
                "",
            )?;
            ensure!(
                doctor.code != 0 && doctor.stdout.contains("useEmulation"),
                "{doctor}"
            );
        } else {
            cluster.wait_phase("fast", "Running", SOON)?;
        }
        cluster.delete("fast", SOON)?;

        let developer = "{useEmulation: true, featureGates: [FakeHypervisor, Bogus], logVerbosity: {virtHandler: 4, virtLauncher: 4}}";
        cluster.apply(&settings("berth", developer))?;
        wait_for("the settings are taken up", SOON, || {
            let path = "jsonpath={.status.conditions[?(@.type=='FeatureGatesKnown')].message}";
            let told = cluster
                .kubectl(&["get", "berth", "berth", "-o", path])?
                .ok()?;
            ensure!(told.ends_with(": Bogus"), "{told:?}");
            let agents = ["-n", "berth", "logs", "daemonset/berth-node"];
            let log = cluster.kubectl(&agents)?.ok()?;
            ensure!(log.contains("info,berth=debug"), "{log}");
            Ok(())
        })?;
        cluster.apply(&hasty(cluster, "claimed"))?;
        cluster.wait_phase("claimed", "Running", SOON)?;
        let pod = cluster.launcher("claimed")?;
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        let script = format!(
            "for group in $(grep -ls 'pod{uid}' /proc/[0-9]*/cgroup); do cat ${{group%/cgroup}}/comm; done"
        );
        let programs = cluster.on_node(node, "sh", &["-c", &script])?.ok()?;
        ensure!(
            programs.contains("berth") && !programs.contains("qemu"),
            "{programs}"
        );
        // A guest that is none powers off when it is asked to.
        cluster.delete("claimed", SOON)
    };
    with_settings_put_back(cluster, story)
}

/// Container disks as image volumes, on a node whose runtime knows them: no container beside the launcher.
pub(crate) fn image_volumes(cluster: &Cluster) -> anyhow::Result<()> {
    let files = tempfile::tempdir()?;
    let guest = berth_e2e::small_guest();
    let disks = [
        ("disk/guest.qcow2", &*guest),
        ("disk/other.img", std::path::Path::new("/etc/hostname")),
    ];
    let tar = images::archive(files.path(), "oci-archive", &disks)?;
    cluster.import("oci-archive", &tar, "localhost/two:1")?;
    let on_new_node = |name, image| on_node(&manifest(name, image, MEMORY), "node1");
    let story = || {
        let developer = "{useEmulation: true, featureGates: [ImageVolume]}";
        cluster.apply(&settings("berth", developer))?;
        wait_for("the settings are taken up", SOON, || {
            let path = "jsonpath={.metadata.generation} {.status.observedGeneration}";
            let told = cluster
                .kubectl(&["get", "berth", "berth", "-o", path])?
                .ok()?;
            let told: Vec<&str> = told.split_whitespace().collect();
            ensure!(told.len() == 2 && told[0] == told[1], "{told:?}");
            Ok(())
        })?;
        cluster.apply(&on_new_node("plain", cluster.image()))?;
        cluster.apply(&on_new_node("named", "localhost/two:1").replace(
            "      image: localhost/two:1\n",
            "      image: localhost/two:1\n      path: /disk/guest.qcow2\n",
        ))?;
        for name in ["plain", "named"] {
            cluster.wait_phase(name, "Running", SOON)?;
            let pod = cluster.launcher(name)?;
            let containers = pod["spec"]["containers"].as_array().map(Vec::len);
            ensure!(
                containers == Some(1) && pod["spec"]["initContainers"].is_null(),
                "{}",
                pod["spec"]
            );
            cluster.wait_prompt(name, BOOT)?;
            cluster.delete(name, SOON * 2)?;
        }
        Ok(())
    };
    with_settings_put_back(cluster, story)
}
