//! Virtual machines that are started and stopped.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_e2e::{Outcome, Target, manifest, run, wait_for};
use serde_json::Value;

use super::{BOOT, IDLE, MEMORY, SOON};

/// Longest way from one run to the next: a shutdown and a start.
const RESTART: Duration = Duration::from_secs(60);

/// A VirtualMachine with the small guest.
pub(crate) fn machine(target: &dyn Target, name: &str, when: &str) -> String {
    let instance = manifest(name, target.image(), MEMORY);
    let (_, spec) = instance.split_once("spec:\n").unwrap_or_default();
    let spec: String = spec.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata:
  name: {name}
spec:
  {when}
  template:
    metadata:
      labels: {{app: {name}}}
    spec:
{spec}"
    )
}

/// One field of a VM by JSONPath.
fn vm(target: &dyn Target, name: &str, path: &str) -> anyhow::Result<String> {
    target
        .kubectl(&["get", "vm", name, "-o", &format!("jsonpath={{{path}}}")])?
        .ok()
}

/// Waits for the word in the status.
pub(crate) fn wait_status(
    target: &dyn Target,
    name: &str,
    status: &str,
    limit: Duration,
) -> anyhow::Result<()> {
    wait_for(&format!("vm {name} is {status}"), limit, || {
        let now = vm(target, name, ".status.printableStatus")?;
        ensure!(now == status, "it is {now:?}");
        Ok(())
    })
    .with_context(|| {
        let all = target.kubectl(&["get", "vm,vmi,pods,events", "-o", "yaml"]);
        let all = all.map(|all| all.stdout).unwrap_or_default();
        format!("{all}\n{}", target.log_tail())
    })
}

/// berth's own command.
pub(crate) fn berth(target: &dyn Target, arguments: &[&str]) -> anyhow::Result<Outcome> {
    run(
        target
            .berth_command()
            .args(arguments)
            .args(["--namespace", target.namespace()]),
        "",
    )
}

pub(crate) fn uid(target: &dyn Target, name: &str) -> anyhow::Result<String> {
    target.vmi(name, ".metadata.uid")
}

pub(crate) fn delete(target: &dyn Target, name: &str) -> anyhow::Result<()> {
    target
        .kubectl(&["delete", "vm", name, "--timeout=60s"])?
        .ok()
        .with_context(|| target.log_tail())?;
    let left = target.kubectl(&["get", "vm,vmi", "-o", "name"])?.ok()?;
    ensure!(left.trim().is_empty(), "left: {left}");
    Ok(())
}

/// The one record of the spec that a machine runs with, which its instance names.
fn revision(target: &dyn Target, name: &str) -> anyhow::Result<String> {
    let all = "jsonpath={.items[*].metadata.name} {.items[*].data.spec.template.spec.hostname}";
    wait_for("the record of the start", SOON, || {
        let kept = target
            .kubectl(&["get", "controllerrevisions", "-o", all])?
            .ok()?;
        let named = target.vmi(name, ".status.virtualMachineRevisionName")?;
        let uid = vm(target, name, ".metadata.uid")?;
        let hostname = target.vmi(name, ".spec.hostname")?;
        ensure!(
            named.starts_with(&format!("revision-start-vm-{uid}-"))
                && kept.trim() == format!("{named} {hostname}").trim(),
            "kept: {kept:?}; named: {named:?}"
        );
        Ok(kept)
    })
}

/// Start, restart, stop, as users do it.
pub(crate) fn started_restarted_stopped(target: &dyn Target) -> anyhow::Result<()> {
    target.apply(&machine(target, "web", "runStrategy: Halted"))?;
    wait_status(target, "web", "Stopped", SOON)?;
    let none = target.kubectl(&["get", "vmi", "-o", "name"])?.ok()?;
    ensure!(none.trim().is_empty(), "it is halted, and there is {none}");
    let refused = berth(target, &["stop", "web"])?.err()?;
    ensure!(refused.contains("VM is not running"), "{refused}");
    let refused = berth(target, &["restart", "web"])?.err()?;
    ensure!(
        refused.contains("Halted does not support manual restart requests"),
        "{refused}"
    );
    let refused = berth(target, &["start", "nobody"])?.err()?;
    ensure!(
        refused.contains("virtualmachines.kubevirt.io \"nobody\" not found"),
        "{refused}"
    );

    let said = berth(target, &["start", "web"])?.ok()?;
    ensure!(said.trim() == "VM web was scheduled to start", "{said}");
    wait_status(target, "web", "Running", SOON)?;
    ensure!(vm(target, "web", ".spec.runStrategy")? == "Always");
    ensure!(vm(target, "web", ".status.ready")? == "true");
    ensure!(target.vmi("web", ".metadata.labels.app")? == "web");
    target.console("web")?.log_in(BOOT)?;
    let table = target.kubectl(&["get", "vm"])?.ok()?;
    ensure!(
        table.contains("STATUS") && table.contains("Running"),
        "{table}"
    );
    let refused = berth(target, &["start", "web"])?.err()?;
    ensure!(refused.contains("VM is already running"), "{refused}");

    // What the template says next holds from the next start on, and until then the machine says so.
    let patch = r#"{"spec":{"template":{"spec":{"hostname":"renamed"}}}}"#;
    target
        .kubectl(&["patch", "vm", "web", "--type=merge", "-p", patch])?
        .ok()?;
    let required = ".status.conditions[?(@.type=='RestartRequired')].status";
    wait_for("a restart is required", SOON, || {
        let now = vm(target, "web", required)?;
        ensure!(now == "True", "{now:?}");
        Ok(())
    })?;
    let first = uid(target, "web")?;
    let started_with = revision(target, "web")?;
    berth(target, &["restart", "web"])?.ok()?;
    wait_for("another instance runs", RESTART, || {
        let (now, phase) = (uid(target, "web")?, target.vmi("web", ".status.phase")?);
        ensure!(now != first && phase == "Running", "{now} {phase}");
        Ok(())
    })?;
    let mut console = target.console("web")?;
    console.log_in(BOOT)?;
    let name = console.shell("hostname", SOON)?;
    ensure!(name.contains("renamed"), "{name}");
    let now = revision(target, "web")?;
    ensure!(now != started_with, "two generations and one record: {now}");
    wait_for("nothing is required any more", SOON, || {
        let now = vm(target, "web", required)?;
        ensure!(now.is_empty(), "{now:?}");
        let requests = vm(target, "web", ".status.stateChangeRequests")?;
        ensure!(requests.is_empty() || requests == "[]", "{requests}");
        Ok(())
    })?;

    berth(target, &["stop", "web"])?.ok()?;
    console.expect("power button: shutting down", SOON)?;
    wait_status(target, "web", "Stopped", RESTART)?;
    ensure!(vm(target, "web", ".spec.runStrategy")? == "Halted");
    delete(target, "web")
}

/// A guest that stands still, and goes on.
pub(crate) fn paused(target: &dyn Target) -> anyhow::Result<()> {
    target.apply(&machine(target, "held", "running: true"))?;
    wait_status(target, "held", "Running", SOON)?;
    target.console("held")?.log_in(BOOT)?;
    let address = target.address("held")?;
    target.ping(&address, SOON)?;
    let said = berth(target, &["pause", "vm", "held"])?.ok()?;
    ensure!(said.trim() == "VM held was scheduled to pause", "{said}");
    wait_status(target, "held", "Paused", SOON)?;
    let silent = target.exec("ping", &["-c", "1", "-W", "2", &address])?;
    ensure!(silent.code != 0, "a paused guest answers: {silent}");
    let refused = berth(target, &["pause", "vmi", "held"])?.err()?;
    ensure!(refused.contains("VMI is already paused"), "{refused}");
    berth(target, &["unpause", "vmi", "held"])?.ok()?;
    wait_status(target, "held", "Running", SOON)?;
    target.ping(&address, SOON)?;
    let refused = berth(target, &["unpause", "vm", "held"])?.err()?;
    ensure!(refused.contains("VMI is not paused"), "{refused}");
    delete(target, "held")
}

/// What each run strategy makes of a guest that ends.
pub(crate) fn strategies(target: &dyn Target) -> anyhow::Result<()> {
    target.apply(&machine(target, "always", "runStrategy: Always"))?;
    target.apply(&machine(target, "rerun", "runStrategy: RerunOnFailure"))?;
    target.apply(&machine(target, "manual", "runStrategy: Manual"))?;
    wait_status(target, "always", "Running", SOON)?;
    wait_status(target, "rerun", "Running", SOON)?;
    wait_status(target, "manual", "Stopped", SOON)?;
    let another = |name: &str, before: &str| {
        wait_for(&format!("{name} runs again"), RESTART, || {
            let vmi = target.kubectl(&["get", "vmi", name, "-o", "json"])?.ok()?;
            let vmi: Value = serde_json::from_str(&vmi)?;
            let now = (&vmi["metadata"]["uid"], &vmi["status"]["phase"]);
            ensure!(now.0 != before && now.1 == "Running", "{now:?}");
            Ok(())
        })
        .with_context(|| target.log_tail())
    };
    // Powered off by itself: one starts again, one has done what it was for.
    let first = uid(target, "always")?;
    let mut console = target.console("always")?;
    console.log_in(BOOT)?;
    console.send_line("poweroff -f")?;
    another("always", &first)?;
    // A killed QEMU is a failure.
    let first = uid(target, "rerun")?;
    target
        .kubectl(&["delete", "vm", "always", "--timeout=60s"])?
        .ok()?;
    target.kill_in_pod("rerun", "qemu-system")?;
    another("rerun", &first)?;
    let mut console = target.console("rerun")?;
    console.log_in(BOOT)?;
    console.send_line("poweroff -f")?;
    target.wait_phase("rerun", "Succeeded", SOON)?;
    wait_status(target, "rerun", "Stopped", SOON)?;
    // By hand.
    berth(target, &["start", "manual"])?.ok()?;
    wait_status(target, "manual", "Running", SOON)?;
    ensure!(vm(target, "manual", ".spec.runStrategy")? == "Manual");
    berth(target, &["stop", "manual"])?.ok()?;
    wait_status(target, "manual", "Stopped", RESTART)?;
    target
        .kubectl(&["delete", "vm", "rerun", "--timeout=60s"])?
        .ok()?;
    delete(target, "manual")
}

/// An image that is not there, an instance that is somebody else's, a mistake in the template.
pub(crate) fn what_is_wrong_is_told(target: &dyn Target) -> anyhow::Result<()> {
    let good = machine(target, "bad", "runStrategy: Always");
    let cases = [
        ("  runStrategy: Always\n", "", "spec.runStrategy"),
        (
            "  runStrategy: Always\n",
            "  runStrategy: Always\n  running: true\n",
            "spec.running",
        ),
        ("runStrategy: Always", "runStrategy: Sometimes", "Sometimes"),
        (
            "bus: virtio",
            "bus: floppy",
            "spec.template.spec.domain.devices.disks[0].disk.bus",
        ),
        (
            "rng: {}",
            "rng: {}\n          gpus: []\n          tpm: {}",
            "spec.template.spec.domain.devices.tpm",
        ),
    ];
    for (from, to, told) in cases {
        ensure!(good.contains(from), "the case {to:?} replaces nothing");
        let refused = target
            .kubectl_with(&["apply", "-f", "-"], &good.replacen(from, to, 1))?
            .err()?;
        ensure!(refused.contains(told), "no {told:?} in {refused}");
    }
    target.apply(
        &machine(target, "lost", "runStrategy: Always").replace(target.image(), "localhost/none:1"),
    )?;
    wait_for("the missing image is told", SOON, || {
        let now = vm(target, "lost", ".status.printableStatus")?;
        ensure!(now == "ErrImagePull" || now == "ImagePullBackOff", "{now}");
        Ok(())
    })?;
    target
        .kubectl(&["delete", "vm", "lost", "--timeout=60s"])?
        .ok()?;
    // Somebody's own instance of this name.
    target.apply(&manifest("taken", "localhost/none:1", MEMORY))?;
    target.apply(&machine(target, "taken", "runStrategy: Always"))?;
    let failure = ".status.conditions[?(@.type=='Failure')].message";
    wait_for("the other instance is told", SOON, || {
        let now = vm(target, "taken", failure)?;
        ensure!(now.contains("is not this virtual machine's"), "{now:?}");
        Ok(())
    })?;
    target.delete("taken", SOON)?;
    wait_status(target, "taken", "Running", RESTART)?;
    // Whoever deletes the machine and wants the guest keeps it.
    target
        .kubectl(&["delete", "vm", "taken", "--cascade=orphan", "--timeout=60s"])?
        .ok()?;
    ensure!(target.vmi("taken", ".status.phase")? == "Running");
    target.delete("taken", RESTART)
}

/// A machine that is started and stopped again and again leaves nothing behind.
pub(crate) fn rounds_of_start_and_stop(target: &dyn Target, rounds: usize) -> anyhow::Result<()> {
    target.apply(&machine(target, "yoyo", "runStrategy: Halted"))?;
    let round = || {
        wait_status(target, "yoyo", "Stopped", RESTART)?;
        berth(target, &["start", "yoyo"])?.ok()?;
        wait_status(target, "yoyo", "Running", RESTART)?;
        berth(target, &["stop", "yoyo", "--force", "--grace-period=0"])?.ok()?;
        wait_status(target, "yoyo", "Stopped", RESTART)?;
        wait_for("nothing of the run", RESTART, || target.residue())
    };
    // What is made once (caches, connections) is there after the first rounds.
    round()?;
    let before = round()?;
    for number in 0..rounds {
        round().with_context(|| format!("round {number}"))?;
    }
    wait_for("as much as before", IDLE, || {
        for (kind, count) in target.residue()? {
            let then = before.get(&kind).copied().unwrap_or_default();
            ensure!(count <= then, "{kind}: {then} before, {count} after");
        }
        Ok(())
    })?;
    ensure!(vm(target, "yoyo", ".status.startFailure")?.is_empty());
    delete(target, "yoyo")
}

/// What a user changes while controllers change the same objects all the time is never lost.
pub(crate) fn no_change_is_lost(target: &dyn Target) -> anyhow::Result<()> {
    target.apply(&machine(target, "busy", "runStrategy: Always"))?;
    // While the machine starts, runs, is restarted and stopped, each of these writes meets those of the controllers.
    for number in 0..30 {
        for kind in ["vm", "vmi"] {
            let note = format!("note-{number}=of-{kind}");
            let noted = target.kubectl(&["annotate", kind, "busy", &note])?;
            // An instance is not there between two runs.
            ensure!(
                noted.code == 0 || (kind == "vmi" && noted.stderr.contains("not found")),
                "{noted}"
            );
        }
        if number == 10 {
            wait_status(target, "busy", "Running", RESTART)?;
            berth(target, &["restart", "busy", "--force"])?.ok()?;
        }
        let template = format!(
            r#"[{{"op": "add", "path": "/spec/template/metadata/labels/n{number}", "value": "x"}}]"#
        );
        target
            .kubectl(&["patch", "vm", "busy", "--type=json", "-p", &template])?
            .ok()?;
    }
    let now = target.kubectl(&["get", "vm", "busy", "-o", "json"])?.ok()?;
    let now: Value = serde_json::from_str(&now)?;
    for number in 0..30 {
        ensure!(
            now["metadata"]["annotations"][format!("note-{number}")] == "of-vm",
            "note {number} is lost"
        );
        let labels = &now["spec"]["template"]["metadata"]["labels"];
        ensure!(
            labels[format!("n{number}")] == "x",
            "label {number} is lost"
        );
    }
    wait_status(target, "busy", "Running", RESTART)?;
    // Nor those of the instance that runs, however often its status was written since.
    let before = target.vmi("busy", ".metadata.annotations")?;
    target
        .kubectl(&["annotate", "vmi", "busy", "last=note"])?
        .ok()?;
    berth(target, &["pause", "vm", "busy"])?.ok()?;
    wait_status(target, "busy", "Paused", SOON)?;
    let after = target.vmi("busy", ".metadata.annotations")?;
    let (before, after): (Value, Value) = (
        serde_json::from_str(&before)?,
        serde_json::from_str(&after)?,
    );
    ensure!(after["last"] == "note", "{after}");
    for (key, value) in before.as_object().into_iter().flatten() {
        ensure!(after[key] == *value, "{key} is lost: {after}");
    }
    delete(target, "busy")
}

/// Where a machine may run is for the scheduler to decide, by what its manifest says.
pub(crate) fn placed_as_asked(target: &dyn Target) -> anyhow::Result<()> {
    let asks = |name: &str, what: &str| {
        manifest(name, target.image(), MEMORY).replacen("spec:\n", &format!("spec:\n{what}"), 1)
    };
    let required = |kind: &str, key: &str| {
        format!(
            "  affinity:
    {kind}:
      requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: {key}
        labelSelector: {{matchLabels: {{vm.kubevirt.io/name: anchor}}}}
"
        )
    };
    target.apply(&asks(
        "anchor",
        "  priorityClassName: system-node-critical\n",
    ))?;
    target.wait_phase("anchor", "Running", SOON)?;
    let priority = target
        .kubectl(&["get", "pods", "-o", "jsonpath={.items[0].spec.priority}"])?
        .ok()?;
    ensure!(priority == "2000001000", "{priority}");
    let near = required("podAffinity", "kubernetes.io/hostname");
    target.apply(&asks("near", &near))?;
    target.wait_phase("near", "Running", SOON)?;
    let node = |name: &str| target.vmi(name, ".status.nodeName");
    ensure!(node("near")? == node("anchor")?);
    // All nodes have this label with the same value, so there is no place far enough.
    let far = required("podAntiAffinity", "kubernetes.io/os");
    target.apply(&asks("far", &far))?;
    let told = target.wait_condition("far", "PodScheduled", "anti-affinity", SOON)?;
    ensure!(told.contains("nodes are available"), "{told}");
    target.delete("anchor", SOON * 2)?;
    target.wait_phase("far", "Running", SOON)?;
    let nowhere = "  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: planet, operator: In, values: [mars]}]}]}}}\n";
    target.apply(&asks("nowhere", nowhere))?;
    target.wait_condition("nowhere", "PodScheduled", "node affinity", SOON)?;
    target.apply(&asks("other", "  schedulerName: somebody-else\n"))?;
    let refused = target
        .kubectl_with(
            &["apply", "-f", "-"],
            &asks("bad", "  tolerations: [{operator: Maybe}]\n"),
        )?
        .err()?;
    ensure!(
        refused.contains("spec.tolerations[0].operator"),
        "{refused}"
    );
    target.apply(&asks("first", "  priorityClassName: no-such-class\n"))?;
    wait_for("the missing class is told", SOON, || {
        let events = target.kubectl(&["get", "events"])?.ok()?;
        ensure!(
            events.contains("no PriorityClass with name no-such-class was found"),
            "{events}"
        );
        Ok(())
    })?;
    ensure!(target.vmi("other", ".status.nodeName")?.is_empty());
    for name in ["near", "far", "nowhere", "other", "first"] {
        target.delete(name, SOON * 2)?;
    }
    Ok(())
}
