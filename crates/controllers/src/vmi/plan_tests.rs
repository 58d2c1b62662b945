//! Tables for [`plan`]: a machine and its pods in, the steps out.

use super::*;
use serde_json::{Value, json};

const NODE: &str = "n1";

fn vmi(patch: Value) -> VirtualMachineInstance {
    let mut base = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm", "namespace": "lab", "uid": "u1", "finalizers": [labels::VMI_FINALIZER]},
        "spec": {"domain": {"devices": {}}},
    });
    merge(&mut base, patch);
    serde_json::from_value(base).unwrap()
}

fn pod(patch: Value) -> Pod {
    let mut base = json!({
        "metadata": {"name": "virt-launcher-vm-abcde", "namespace": "lab", "uid": "p1"},
        "spec": {"containers": [{"name": "compute", "image": "berth-launcher:1"}]},
        "status": {"phase": "Pending"},
    });
    merge(&mut base, patch);
    serde_json::from_value(base).unwrap()
}

fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

fn in_phase(phase: &str) -> Value {
    json!({"status": {"phase": phase}, "metadata": {"labels": {"kubevirt.io/nodeName": NODE}}})
}

fn deleted() -> Value {
    json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
}

fn ready_pod() -> Pod {
    pod(json!({
        "spec": {"nodeName": NODE},
        "status": {"phase": "Running", "qosClass": "Burstable", "conditions": [{"type": "Ready", "status": "True"}]},
    }))
}

fn run_for(vmi: &VirtualMachineInstance, pods: &[&Pod], down_for: u64) -> Plan {
    let now = Time(k8s_openapi::jiff::Timestamp::from_second(1_000).unwrap());
    plan(&Observed {
        vmi,
        pods,
        down_for: Duration::from_secs(down_for),
        now,
    })
}

fn run(vmi: &VirtualMachineInstance, pods: &[&Pod]) -> Vec<Action> {
    run_for(vmi, pods, 0).actions
}

/// The steps by name, and the status that is written.
fn shape(actions: &[Action]) -> (Vec<&'static str>, Option<Status>) {
    let names = actions.iter().map(|a| match a {
        Action::CreatePod => "create",
        Action::DeletePod(_) => "delete",
        Action::LabelNode(_) => "label",
        Action::RemoveFinalizer => "release",
        Action::PodUnpaused(_, true) => "open",
        Action::PodUnpaused(_, false) => "close",
        Action::WriteStatus(_) => "status",
        Action::Event(EventType::Normal, ..) => "event",
        Action::Event(EventType::Warning, ..) => "warning",
    });
    let status = actions.iter().find_map(|a| match a {
        Action::WriteStatus(s) => Some((**s).clone()),
        _ => None,
    });
    (names.collect(), status)
}

fn condition(status: &Status, type_: &str) -> (String, String, String) {
    let c =
        find_condition(&status.conditions, type_).unwrap_or_else(|| panic!("no condition {type_}"));
    (
        c.status.clone(),
        c.reason.clone().unwrap_or_default(),
        c.message.clone().unwrap_or_default(),
    )
}

/// The machine after its status was written.
fn after(vmi: &VirtualMachineInstance, actions: &[Action]) -> VirtualMachineInstance {
    let mut next = vmi.clone();
    next.status = shape(actions).1.or(next.status);
    next
}

#[test]
fn a_gated_pod_is_ready_with_its_guest() {
    let gated = |conditions: Value| {
        pod(json!({
            "spec": {"nodeName": NODE, "readinessGates": [{"conditionType": labels::UNPAUSED}]},
            "status": {"phase": "Running", "conditions": conditions},
        }))
    };
    let true_ = |type_: &str| json!({"type": type_, "status": "True"});
    // The launcher is there: that is enough to hand the machine over.
    let started = gated(json!([true_("ContainersReady")]));
    let scheduling = vmi(in_phase("Scheduling"));
    let status = shape(&run(&scheduling, &[&started])).1.unwrap();
    assert_eq!(status.phase, Some(VmiPhase::Scheduled));

    let scheduled = vmi(in_phase("Scheduled"));
    assert!(run(&scheduled, &[&started]).is_empty());
    let running = vmi(in_phase("Running"));
    assert_eq!(shape(&run(&running, &[&started])).0, ["open"]);
    assert!(run(&running, &[&ready_pod()]).is_empty());
    let open = gated(json!([true_("ContainersReady"), true_(labels::UNPAUSED)]));
    assert!(run(&running, &[&open]).is_empty());
    let mut paused = in_phase("Running");
    paused["status"]["conditions"] = json!([true_(labels::CONDITION_PAUSED)]);
    let paused = vmi(paused);
    assert_eq!(shape(&run(&paused, &[&open])).0, ["close"]);
    assert!(run(&paused, &[&started]).is_empty());
}

#[test]
fn a_guest_that_is_not_ready_closes_the_gate() {
    let open = pod(json!({
        "spec": {"nodeName": NODE, "readinessGates": [{"conditionType": labels::UNPAUSED}]},
        "status": {"phase": "Running", "conditions": [{"type": labels::UNPAUSED, "status": "True"}]},
    }));
    let with = |ready: &str| {
        let mut patch = in_phase("Running");
        patch["spec"] = json!({"readinessProbe": {"tcpSocket": {"port": 22}}});
        patch["status"]["conditions"] = json!([{"type": "Ready", "status": ready}]);
        vmi(patch)
    };
    assert_eq!(shape(&run(&with("False"), &[&open])).0, ["close"]);
    assert!(run(&with("True"), &[&open]).is_empty());
}

/// A container that holds an image outlives the launcher, and the pod runs on.
#[test]
fn a_pod_without_its_launcher_is_over() {
    let killed = pod(json!({
        "spec": {"nodeName": NODE},
        "status": {"phase": "Running", "containerStatuses": [
            {"name": "disk-root", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}},
            {"name": "compute", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"terminated": {"exitCode": 137, "reason": "Error"}}},
        ]},
    }));
    let status = shape(&run(&vmi(in_phase("Scheduling")), &[&killed]))
        .1
        .unwrap();
    assert_eq!(status.phase, Some(VmiPhase::Failed));
    let (_, _, message) = condition(&status, "Ready");
    assert!(message.contains("exit code 137"), "{message}");
}

#[test]
fn a_new_machine_gets_a_pod_and_is_pending_until_it_has_one() {
    let new = vmi(json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}));
    assert_eq!(shape(&run(&new, &[])).0, ["create"]);
    // It has been pending from its creation on; that is told with the pod.
    let status = shape(&run(&new, &[&pod(json!({}))])).1.unwrap();
    let phases: Vec<_> = status
        .phase_transition_timestamps
        .iter()
        .map(|t| (t.phase, t.phase_transition_timestamp.0.to_string()))
        .collect();
    assert_eq!(phases[0].0, VmiPhase::Pending);
    assert_eq!(phases[0].1, "2026-01-01T00:00:00Z");
    assert_eq!(phases[1].0, VmiPhase::Scheduling);
    assert_eq!(phases.len(), 2);
    // Where the pod cannot be made, it is told at once.
    let seen = Observed {
        vmi: &new,
        pods: &[],
        down_for: Duration::ZERO,
        now: Time(k8s_openapi::jiff::Timestamp::from_second(1_000).unwrap()),
    };
    let status = pending(&seen, labels::REASON_CLAIM_NOT_FOUND, "no claim");
    assert_eq!(condition(&status, "Synchronized").1, "FailedPvcNotFound");
    assert_eq!(status.phase, Some(VmiPhase::Pending));
    assert_eq!(status.phase_transition_timestamps.len(), 1);
    assert_eq!(condition(&status, "Ready").1, "PodNotExists");
    // The same again when the creation failed: no second status.
    let mut waits = new.clone();
    waits.status = Some(status);
    assert_eq!(shape(&run(&waits, &[])).0, ["create"]);
}

#[test]
fn a_pod_makes_it_scheduling_and_then_nothing_more_is_written() {
    let pending = vmi(json!({"status": {"phase": "Pending"}}));
    let actions = run(&pending, &[&pod(json!({}))]);
    let (steps, status) = shape(&actions);
    assert_eq!(steps, ["status"]);
    assert_eq!(status.unwrap().phase, Some(VmiPhase::Scheduling));
    assert_eq!(run(&after(&pending, &actions), &[&pod(json!({}))]), []);
}

#[test]
fn a_bound_pod_labels_the_machine_before_it_is_ready() {
    let scheduling = vmi(json!({"status": {"phase": "Scheduling"}}));
    let actions = run(&scheduling, &[&pod(json!({"spec": {"nodeName": NODE}}))]);
    assert_eq!(shape(&actions).0, ["label", "status"]);
    assert_eq!(actions[0], Action::LabelNode(NODE.to_owned()));
}

#[test]
fn an_unschedulable_pod_shows_on_the_machine_until_it_is_placed() {
    let scheduling = vmi(json!({"status": {"phase": "Scheduling"}}));
    let stuck = pod(json!({"status": {"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient memory."}]}}));
    let actions = run(&scheduling, &[&stuck]);
    let seen = condition(&shape(&actions).1.unwrap(), "PodScheduled");
    assert_eq!(
        (seen.0.as_str(), seen.1.as_str()),
        ("False", "Unschedulable")
    );
    let next = after(&scheduling, &actions);
    assert_eq!(run(&next, &[&stuck]), []);
    let placed = run(&next, &[&pod(json!({"spec": {"nodeName": NODE}}))]);
    assert!(find_condition(&shape(&placed).1.unwrap().conditions, "PodScheduled").is_none());
}

fn waiting(reason: &str, message: &str) -> Pod {
    pod(
        json!({"spec": {"nodeName": NODE}, "status": {"containerStatuses": [{
        "name": "compute", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": reason, "message": message}}}]}}),
    )
}

#[test]
fn an_image_error_is_a_condition_and_one_event_for_each_message() {
    let machine = vmi(
        json!({"status": {"phase": "Scheduling"}, "metadata": {"labels": {"kubevirt.io/nodeName": NODE}}}),
    );
    let first = run(&machine, &[&waiting("ErrImagePull", "guest:1: not found")]);
    let (steps, status) = shape(&first);
    assert_eq!(steps, ["status", "warning"]);
    let seen = condition(&status.unwrap(), "Synchronized");
    assert_eq!(
        (seen.0.as_str(), seen.1.as_str(), seen.2.as_str()),
        ("False", "ErrImagePull", "guest:1: not found")
    );
    let told = after(&machine, &first);
    assert_eq!(
        run(&told, &[&waiting("ErrImagePull", "guest:1: not found")]),
        []
    );
    // Another reason with the same message changes the condition without an event.
    assert_eq!(
        shape(&run(
            &told,
            &[&waiting("ImagePullBackOff", "guest:1: not found")]
        ))
        .0,
        ["status"]
    );
    assert_eq!(
        shape(&run(&told, &[&waiting("ErrImagePull", "no route")])).0,
        ["status", "warning"]
    );
    // And it goes when the image is there.
    let cured = run(&told, &[&waiting("ContainerCreating", "")]);
    assert!(find_condition(&shape(&cured).1.unwrap().conditions, "Synchronized").is_none());
}

#[test]
fn a_ready_pod_hands_the_machine_to_its_node() {
    let scheduling = vmi(json!({"status": {"phase": "Scheduling"}}));
    let (steps, status) = shape(&run(&scheduling, &[&ready_pod()]));
    let status = status.unwrap();
    assert_eq!(steps, ["label", "status"]);
    assert_eq!(status.phase, Some(VmiPhase::Scheduled));
    assert_eq!(status.node_name.as_deref(), Some(NODE));
    assert_eq!(status.active_pods.get("p1").map(String::as_str), Some(NODE));
    assert_eq!(status.qos_class.as_deref(), Some("Burstable"));
    assert_eq!(condition(&status, "Ready").1, "GuestNotRunning");
}

#[test]
fn a_machine_on_its_node_is_left_alone() {
    for phase in ["Scheduled", "Running"] {
        assert_eq!(run(&vmi(in_phase(phase)), &[&ready_pod()]), [], "{phase}");
    }
    let unlabelled = vmi(json!({"status": {"phase": "Running", "nodeName": NODE}}));
    assert_eq!(
        run(&unlabelled, &[&ready_pod()]),
        [Action::LabelNode(NODE.to_owned())]
    );
}

#[test]
fn the_agent_is_given_time_to_say_how_it_ended() {
    let running = vmi(in_phase("Running"));
    let over = pod(
        json!({"spec": {"nodeName": NODE}, "status": {"phase": "Failed", "containerStatuses": [{
        "name": "compute", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 3, "reason": "Error"}}}]}}),
    );
    let early = run_for(&running, &[&over], 5);
    assert_eq!(
        early,
        Plan {
            actions: vec![],
            again: Some(Duration::from_secs(10))
        }
    );
    let (steps, status) = shape(&run_for(&running, &[&over], 15).actions);
    let status = status.unwrap();
    assert_eq!(steps, ["status", "warning"]);
    assert_eq!(
        (status.phase, status.reason.as_deref()),
        (Some(VmiPhase::Failed), Some("PodFailed"))
    );
    assert_eq!(
        condition(&status, "Ready").2,
        "The launcher ended with exit code 3."
    );
    let gone = shape(&run_for(&running, &[], 15).actions).1.unwrap();
    assert_eq!(gone.reason.as_deref(), Some("PodDeleted"));
}

#[test]
fn a_pod_lost_before_the_node_had_it_fails_the_machine_at_once() {
    let scheduling = vmi(in_phase("Scheduling"));
    assert_eq!(
        shape(&run(&scheduling, &[])).1.unwrap().reason.as_deref(),
        Some("PodDeleted")
    );
    let evicted = pod(
        json!({"status": {"phase": "Failed", "reason": "OutOfDisk", "message": "no space left"}}),
    );
    let status = shape(&run(&scheduling, &[&evicted])).1.unwrap();
    assert_eq!(
        (status.phase, status.reason.as_deref()),
        (Some(VmiPhase::Failed), Some("OutOfDisk"))
    );
    let going = pod(deleted());
    let status = shape(&run(&scheduling, &[&going])).1.unwrap();
    assert_eq!(
        (status.phase, condition(&status, "Ready").1),
        (Some(VmiPhase::Scheduling), "PodTerminating".to_owned())
    );
}

#[test]
fn deletion_takes_the_pods_and_then_the_finalizer() {
    for phase in ["Pending", "Scheduling", "Running", "Succeeded", "Failed"] {
        let mut going = in_phase(phase);
        merge(&mut going, deleted());
        let going = vmi(going);
        let pod_going = pod(deleted());
        assert_eq!(
            shape(&run(&going, &[&ready_pod()])).0,
            ["delete", "event"],
            "{phase}"
        );
        let waiting = run(&going, &[&pod_going]);
        assert!(!shape(&waiting).0.contains(&"release"), "{phase}");
        assert_eq!(run(&going, &[]), [Action::RemoveFinalizer], "{phase}");
    }
    let released = vmi(
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["other"]}}),
    );
    assert_eq!(run(&released, &[]), []);
}

#[test]
fn a_machine_that_is_over_keeps_its_pod_unless_that_lives_on() {
    let since = |at: &str| {
        let transition = json!({"phase": "Failed", "phaseTransitionTimestamp": at});
        vmi(json!({"status": {"phase": "Failed", "phaseTransitionTimestamps": [transition]}}))
    };
    let over = pod(json!({"spec": {"nodeName": NODE}, "status": {"phase": "Failed"}}));
    assert_eq!(
        run_for(&since("1970-01-01T00:00:00Z"), &[&over], 99),
        Plan::default()
    );
    assert_eq!(
        shape(&run(&since("1970-01-01T00:16:10Z"), &[&ready_pod()])).0,
        ["delete", "event"]
    );
    let recent = run_for(&since("1970-01-01T00:16:30Z"), &[&ready_pod()], 0);
    assert_eq!(
        recent,
        Plan {
            actions: vec![],
            again: Some(Duration::from_secs(20))
        }
    );
}

#[test]
fn two_pods_are_never_answered_with_a_third() {
    let pending = vmi(json!({"status": {"phase": "Pending"}}));
    let other = pod(json!({"metadata": {"name": "virt-launcher-vm-fghij", "uid": "p2"}}));
    assert!(
        !shape(&run(&pending, &[&pod(deleted()), &other]))
            .0
            .contains(&"create")
    );
}
