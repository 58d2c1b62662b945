//! What nodes say, give, and do when they are emptied.

use anyhow::{Context as _, ensure};
use berth_e2e::{Cluster, Target as _, manifest, run, wait_for};
use serde_json::Value;

use crate::hasty;
use crate::stories::{BOOT, MEMORY, SOON};

/// A field of an object; empty where it is not.
fn field<'a>(object: &'a Value, path: &str) -> &'a str {
    object
        .pointer(path)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Of a cluster on which everything runs; and what it says where berth is not.
pub(crate) fn doctor(cluster: &Cluster) -> anyhow::Result<()> {
    let doctor = |namespace: &str| {
        let mut command = cluster.command(&berth_e2e::berth_binary());
        run(command.args(["doctor", "--namespace", namespace]), "")
    };
    let said = doctor("berth")?.ok()?;
    ensure!(
        !said.contains("problem") && said.contains("node node0"),
        "{said}"
    );
    let elsewhere = doctor("elsewhere")?;
    ensure!(
        elsewhere.code != 0
            && elsewhere
                .stdout
                .contains("problem  deployment elsewhere/berth-controller is missing"),
        "{elsewhere}"
    );
    Ok(())
}

/// What a drain does to a pod: the guest is asked, and its machine has succeeded.
pub(crate) fn eviction(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&manifest("drained", cluster.image(), MEMORY))?;
    cluster.wait_phase("drained", "Running", SOON)?;
    let mut console = cluster.console("drained")?;
    console.log_in(BOOT)?;
    let pod = cluster.launcher("drained")?;
    let name = pod["metadata"]["name"].as_str().context("its name")?;
    let namespace = cluster.namespace();
    let eviction = serde_json::json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace},
    });
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction");
    cluster
        .kubectl_with(
            &["create", "--raw", &path, "-f", "-"],
            &eviction.to_string(),
        )?
        .ok()?;
    console.expect("power button: shutting down", SOON)?;
    cluster.wait_phase("drained", "Succeeded", SOON)?;
    cluster.delete("drained", SOON)
}

/// The real `kubectl drain`, of one of two nodes.
pub(crate) fn drain(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&manifest("moved", cluster.image(), MEMORY))?;
    cluster.wait_phase("moved", "Running", SOON)?;
    let mut console = cluster.console("moved")?;
    console.log_in(BOOT)?;
    let node = cluster.vmi("moved", ".status.nodeName")?;
    let drained = cluster.kubectl(&[
        "drain",
        &node,
        "--pod-selector=vm.kubevirt.io/name=moved",
        "--delete-emptydir-data",
        "--timeout=60s",
    ]);
    let story = || {
        let said = drained?.ok()?;
        ensure!(said.contains("drained"), "{said}");
        console.expect("power button: shutting down", SOON)?;
        cluster.wait_phase("moved", "Succeeded", SOON)?;
        // What comes next goes elsewhere.
        cluster.apply(&hasty(cluster, "next"))?;
        cluster.wait_phase("next", "Running", SOON)?;
        let elsewhere = cluster.vmi("next", ".status.nodeName")?;
        ensure!(elsewhere != node, "it runs on {elsewhere}, too");
        Ok(())
    };
    let told = story();
    cluster.kubectl(&["uncordon", &node])?.ok()?;
    told
}

/// Labels by which machines find a node that can run them.
pub(crate) fn what_they_say(cluster: &Cluster) -> anyhow::Result<()> {
    let node = wait_for("node0 is described", SOON, || {
        let node = cluster.kubectl(&["get", "node", "node0", "-o", "json"])?;
        let node: Value = serde_json::from_str(&node.ok()?)?;
        let labels = node["metadata"]["labels"].as_object().context("labels")?;
        for label in [
            "kubevirt.io/schedulable",
            "cpumanager",
            "machine-type.node.kubevirt.io/q35",
            "cpu-model.node.kubevirt.io/qemu64",
        ] {
            ensure!(
                labels.get(label).is_some_and(|v| v == "true"),
                "no {label} in {labels:?}"
            );
        }
        Ok(node)
    })?;
    let amount = field(&node, "/status/allocatable/devices.kubevirt.io~1tun");
    ensure!(amount == "1k", "{amount} shares of /dev/net/tun");
    let of_type = |machine: &str| {
        hasty(cluster, "typed").replace(
            "  domain:\n",
            &format!("  domain:\n    machine:\n      type: {machine}\n"),
        )
    };
    cluster.apply(&of_type("pc-q35-99.9"))?;
    cluster.wait_condition("typed", "PodScheduled", "didn't match", SOON)?;
    cluster.delete("typed", SOON)?;
    cluster.apply(&of_type("pc-q35-7.2"))?;
    cluster.wait_phase("typed", "Running", SOON)
}

/// One virtual processor on one of the node's, and nobody else there.
pub(crate) fn dedicated(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&hasty(cluster, "alone").replace(
        "  domain:\n",
        "  domain:\n    cpu:\n      cores: 1\n      dedicatedCpuPlacement: true\n",
    ))?;
    cluster.wait_phase("alone", "Running", SOON)?;
    ensure!(cluster.vmi("alone", ".status.qosClass")? == "Guaranteed");
    let pod = cluster.launcher("alone")?;
    let node = field(&pod, "/spec/nodeName");
    let uid = field(&pod, "/metadata/uid");
    let script = format!(
        "for group in $(grep -ls 'pod{uid}' /proc/[0-9]*/cgroup); do \
           for task in ${{group%/cgroup}}/task/*; do \
             grep -qs '^CPU ' $task/comm && grep Cpus_allowed_list $task/status; \
           done; \
         done; true"
    );
    let pinned = cluster.on_node(node, "sh", &["-c", &script])?.ok()?;
    let cpus: Vec<&str> = pinned
        .lines()
        .filter_map(|l| l.split('\t').nth(1))
        .collect();
    ensure!(
        cpus.len() == 1 && cpus[0].parse::<u32>().is_ok(),
        "the virtual processor runs on {pinned:?}"
    );
    Ok(())
}

/// The pod's own readiness follows the guest's.
pub(crate) fn readiness(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&hasty(cluster, "gated"))?;
    cluster.wait_phase("gated", "Running", SOON)?;
    wait_for("the pod is ready", SOON, || {
        let pod = cluster.launcher("gated")?;
        ensure!(
            field(&pod, "/spec/readinessGates/0/conditionType")
                == "kubevirt.io/virtual-machine-unpaused"
        );
        let conditions = pod["status"]["conditions"]
            .as_array()
            .context("conditions")?;
        for type_ in ["kubevirt.io/virtual-machine-unpaused", "Ready"] {
            ensure!(
                conditions
                    .iter()
                    .any(|c| c["type"] == type_ && c["status"] == "True"),
                "{conditions:?}"
            );
        }
        Ok(())
    })
}
