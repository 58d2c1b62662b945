//! Tables for [`plan`]: a machine and its instance in, the steps out.

#![allow(clippy::needless_pass_by_value, reason = "tests take literals")]

use super::*;
use serde_json::{Value, json};

fn vm(strategy: &str, status: Value) -> VirtualMachine {
    serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {
            "name": "vm", "namespace": "lab", "uid": "m1", "generation": 4,
            "finalizers": [labels::VM_FINALIZER],
        },
        "spec": {"runStrategy": strategy, "template": {"spec": {"domain": {"devices": {}}}}},
        "status": status,
    }))
    .unwrap()
}

fn vmi(phase: &str, ran: bool, more: Value) -> VirtualMachineInstance {
    let mut transitions = Vec::new();
    if ran {
        transitions
            .push(json!({"phase": "Running", "phaseTransitionTimestamp": "2026-01-01T00:00:00Z"}));
    }
    let mut vmi = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {
            "name": "vm", "namespace": "lab", "uid": "i1",
            "annotations": {labels::VM_GENERATION: "3", labels::TEMPLATE_DIGEST: "d"},
        },
        "spec": {"domain": {"devices": {}}},
        "status": {"phase": phase, "phaseTransitionTimestamps": transitions},
    });
    if let (Some(metadata), Some(more)) = (vmi["metadata"].as_object_mut(), more.as_object()) {
        metadata.extend(more.clone());
    }
    serde_json::from_value(vmi).unwrap()
}

fn at(second: i64) -> Time {
    Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
}

fn run_at(
    vm: &VirtualMachine,
    vmi: Option<&VirtualMachineInstance>,
    second: i64,
) -> (Vec<&'static str>, Status, Option<Duration>) {
    let plan = plan(&Observed {
        vm,
        vmi,
        digest: "d",
        refused: None,
        now: at(second),
        jitter: 0.0,
    });
    let steps = plan
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::Create { paused: false } => Some("create"),
            Action::Create { paused: true } => Some("create paused"),
            Action::Delete(uid) => {
                assert_eq!(uid, "i1");
                Some("delete")
            }
            Action::RemoveFinalizer => Some("release"),
            Action::Event(EventType::Warning, ..) => Some("warning"),
            Action::Event(..) => Some("event"),
            Action::WriteStatus(_) => None,
        })
        .collect();
    let written = plan.actions.iter().find_map(|action| match action {
        Action::WriteStatus(status) => Some((**status).clone()),
        _ => None,
    });
    let status = written.or_else(|| vm.status.clone()).unwrap_or_default();
    (steps, status, plan.again)
}

fn run(
    vm: &VirtualMachine,
    vmi: Option<&VirtualMachineInstance>,
) -> (Vec<&'static str>, PrintableStatus) {
    let (steps, status, _) = run_at(vm, vmi, 1_000);
    (steps, status.printable_status.unwrap())
}

#[test]
fn each_strategy_with_each_instance() {
    use PrintableStatus::{CrashLoopBackOff, Running, Starting, Stopped, Stopping};
    let failed = vmi("Failed", true, json!({}));
    let never = vmi("Failed", false, json!({}));
    let done = vmi("Succeeded", true, json!({}));
    let runs = vmi("Running", true, json!({}));
    let (create, delete) = (&["create"][..], &["delete"][..]);
    let table: &[(
        &str,
        Option<&VirtualMachineInstance>,
        &[&str],
        PrintableStatus,
    )] = &[
        ("Always", None, create, Starting),
        ("Always", Some(&runs), &[], Running),
        ("Always", Some(&failed), delete, Stopped),
        (
            "Always",
            Some(&never),
            &["warning", "delete"],
            CrashLoopBackOff,
        ),
        ("Always", Some(&done), delete, Stopped),
        ("RerunOnFailure", None, create, Starting),
        ("RerunOnFailure", Some(&failed), delete, Stopped),
        ("RerunOnFailure", Some(&done), &[], Stopped),
        ("Once", None, create, Starting),
        ("Once", Some(&failed), &[], Stopped),
        ("Manual", None, &[], Stopped),
        ("Manual", Some(&runs), &[], Running),
        ("Manual", Some(&done), &[], Stopped),
        ("Halted", None, &[], Stopped),
        ("Halted", Some(&runs), delete, Stopping),
        ("Halted", Some(&done), delete, Stopped),
    ];
    for (strategy, instance, steps, shown) in table {
        let told = run(&vm(strategy, json!({})), *instance);
        let phase = instance.and_then(phase_of);
        assert_eq!(
            (&told.0[..], told.1),
            (*steps, *shown),
            "{strategy} {phase:?}"
        );
    }
}

#[test]
fn once_is_once() {
    let before = vm("Once", json!({"observedGeneration": 3}));
    assert_eq!(run(&before, None), (vec![], PrintableStatus::Stopped));
    let asked = vm(
        "Once",
        json!({"observedGeneration": 3, "stateChangeRequests": [{"action": "Start"}]}),
    );
    assert_eq!(
        run(&asked, None),
        (vec!["create"], PrintableStatus::Starting)
    );
}

#[test]
fn a_restart_is_a_stop_and_a_start() {
    let runs = vmi("Running", true, json!({}));
    let going = vmi(
        "Running",
        true,
        json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
    );
    let requests =
        json!({"stateChangeRequests": [{"action": "Stop", "uid": "i1"}, {"action": "Start"}]});
    for strategy in ["Manual", "Always", "Once"] {
        let restarted = vm(strategy, requests.clone());
        assert_eq!(
            run(&restarted, Some(&runs)),
            (vec!["delete"], PrintableStatus::Stopping)
        );
        assert_eq!(
            run(&restarted, Some(&going)),
            (vec![], PrintableStatus::Stopping)
        );
        let (steps, status, _) = run_at(&restarted, None, 1_000);
        assert_eq!(steps, ["create"]);
        assert_eq!(
            status.state_change_requests.len(),
            1,
            "the start is still to be seen"
        );
        let newer = vmi("Pending", false, json!({"uid": "i2"}));
        let (steps, status, _) = run_at(&restarted, Some(&newer), 1_000);
        assert!(steps.is_empty(), "a late stop stops nobody else: {steps:?}");
        assert!(status.state_change_requests.is_empty());
    }
    let asked = vm(
        "Manual",
        json!({"stateChangeRequests": [{"action": "Start"}]}),
    );
    let done = vmi("Succeeded", true, json!({}));
    assert_eq!(run(&asked, Some(&done)).0, ["delete"]);
}

#[test]
fn failed_starts_are_tried_again_later_and_later() {
    let never = vmi("Failed", false, json!({}));
    let (_, status, _) = run_at(&vm("Always", json!({})), Some(&never), 1_000);
    let failure = status.start_failure.clone().unwrap();
    assert_eq!(
        (
            failure.consecutive_fail_count,
            failure.last_failed_vmi_uid.as_str()
        ),
        (1, "i1")
    );
    assert_eq!(failure.retry_after_timestamp, at(1_010));
    // Counted once.
    let counted = vm("Always", serde_json::to_value(&status).unwrap());
    let (steps, same, _) = run_at(&counted, Some(&never), 1_001);
    assert_eq!(
        (steps, same.start_failure),
        (vec!["delete"], status.start_failure)
    );
    let (steps, waiting, again) = run_at(&counted, None, 1_004);
    assert_eq!((steps.len(), again), (0, Some(Duration::from_secs(6))));
    assert_eq!(
        waiting.printable_status,
        Some(PrintableStatus::CrashLoopBackOff)
    );
    assert_eq!(run_at(&counted, None, 1_010).0, ["create"]);
    // One that runs ends the row.
    let runs = vmi("Running", true, json!({}));
    assert_eq!(run_at(&counted, Some(&runs), 1_020).1.start_failure, None);
    assert_eq!(
        [1, 2, 3, 5, 6, 100].map(|n| pause_after(n, 0.0)),
        [10, 40, 90, 250, 300, 300]
    );
    assert_eq!(pause_after(2, 1.0), 60);
}

#[test]
fn what_the_status_says() {
    let changed = vmi(
        "Running",
        true,
        json!({"annotations": {labels::TEMPLATE_DIGEST: "old", labels::VM_GENERATION: "3"}}),
    );
    let (_, status, _) = run_at(&vm("Always", json!({})), Some(&changed), 1_000);
    assert!(is_true(
        &status.conditions,
        labels::CONDITION_RESTART_REQUIRED
    ));
    assert_eq!(
        (status.desired_generation, status.observed_generation),
        (Some(4), Some(3))
    );
    assert_eq!((status.created, status.ready), (Some(true), Some(false)));
    let (_, status, _) = run_at(&vm("Manual", json!({})), None, 1_000);
    let ready = find_condition(&status.conditions, labels::CONDITION_READY).unwrap();
    assert_eq!(ready.reason.as_deref(), Some("VMINotExists"));
    let machine = vm("Always", json!({}));
    let refused = plan(&Observed {
        vm: &machine,
        vmi: None,
        digest: "d",
        refused: Some("quota"),
        now: at(1),
        jitter: 0.0,
    });
    let Action::WriteStatus(status) = &refused.actions[0] else {
        panic!("{refused:?}")
    };
    assert!(is_true(&status.conditions, labels::CONDITION_FAILURE));
    let mut waits = vmi("Pending", false, json!({}));
    let told = json!([{"type": "Synchronized", "status": "False", "reason": "FailedPvcNotFound"}]);
    waits.status.as_mut().unwrap().conditions = serde_json::from_value(told).unwrap();
    let (_, status, _) = run_at(&vm("Always", json!({})), Some(&waits), 1_000);
    let word = status.printable_status;
    assert_eq!(word, Some(PrintableStatus::ErrorPvcNotFound));
}

#[test]
fn a_deleted_machine_takes_its_instance_with_it_unless_it_shall_stay() {
    let mut deleted = vm("Always", json!({}));
    deleted.metadata.deletion_timestamp = Some(at(900));
    let runs = vmi("Running", true, json!({}));
    assert_eq!(
        run(&deleted, Some(&runs)),
        (vec!["delete"], PrintableStatus::Terminating)
    );
    assert_eq!(run(&deleted, None).0, ["release"]);
    deleted.metadata.finalizers = Some(vec![labels::VM_FINALIZER.to_owned(), ORPHAN.to_owned()]);
    assert_eq!(run(&deleted, Some(&runs)).0, ["release"]);
}
