//! What to do about one VirtualMachine: a pure decision over what was observed.
//!
//! | run strategy | no instance | instance has failed | has succeeded |
//! |---|---|---|---|
//! | Always | make one | delete it | delete it |
//! | RerunOnFailure | make one | delete it | leave it |
//! | Once | make one, unless there was one before | leave it | leave it |
//! | Manual | make one when asked to | leave it | leave it |
//! | Halted | nothing | delete it | delete it |
//!
//! A requested stop deletes the instance that it names; a requested start makes one, and deletes one that is over first.
//! Under `Halted` a running instance is deleted, too. Starts that fail are tried again after a growing pause.

use std::time::Duration;

use berth_api::conditions::{find_condition, is_true, remove_condition, set_condition};
use berth_api::events::EventType;
use berth_api::kubevirt::v1::{
    PrintableStatus, RunStrategy, StartFailure, StateChange, StateChangeRequest, VirtualMachine,
    VirtualMachineInstance, VirtualMachineStatus as Status, VmiPhase,
};
use berth_api::labels;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt;

/// The pause after the first failed start, in seconds; the n-th is n² times as long.
const BACKOFF: u64 = 10;
/// The longest pause, in seconds.
const BACKOFF_MAX: u64 = 300;
/// What garbage collectors put on an object whose dependents shall stay.
const ORPHAN: &str = "orphan";

/// Everything that a decision depends on.
pub struct Observed<'a> {
    /// The machine, as read last.
    pub vm: &'a VirtualMachine,
    /// Its instance.
    pub vmi: Option<&'a VirtualMachineInstance>,
    /// Digest of the machine's template.
    pub digest: &'a str,
    /// Why the last attempt to make an instance was refused.
    pub refused: Option<&'a str>,
    /// The time to put into conditions.
    pub now: Time,
    /// From 0 to 1: what a pause gets on top, so that many machines do not start at once.
    pub jitter: f64,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the instance.
    Create {
        /// Whether its guest stands still at first, whatever the template says.
        paused: bool,
    },
    /// Delete the instance with this UID.
    Delete(String),
    /// Let the machine go.
    RemoveFinalizer,
    /// Write the status.
    WriteStatus(Box<Status>),
    /// Record an event about the machine.
    Event(EventType, String, String),
}

/// What to do.
pub type Plan = crate::reconcile::Plan<Action>;

/// Decides what to do next.
#[must_use]
pub fn plan(seen: &Observed<'_>) -> Plan {
    let mut status = seen.vm.status.clone().unwrap_or_default();
    let mut plan = Plan::default();
    let deleted = seen.vm.metadata.deletion_timestamp.is_some();
    settle_requests(seen, &mut status);
    count_failures(seen, &mut status, &mut plan);
    if deleted {
        plan_deletion(seen, &mut plan);
    } else {
        plan_run(seen, &status, &mut plan);
    }
    show(seen, &mut status, &plan);
    if seen.vm.status.as_ref().unwrap_or(&Status::default()) != &status {
        // First, so that what is done is never ahead of what is told.
        plan.actions
            .insert(0, Action::WriteStatus(Box::new(status)));
    }
    plan
}

fn phase_of(vmi: &VirtualMachineInstance) -> Option<VmiPhase> {
    vmi.status.as_ref().and_then(|s| s.phase)
}

fn is_over(vmi: &VirtualMachineInstance) -> bool {
    phase_of(vmi).is_some_and(VmiPhase::is_final)
}

fn is_going(vmi: &VirtualMachineInstance) -> bool {
    vmi.metadata.deletion_timestamp.is_some()
}

/// Drops requests that have happened: a stop of an instance that is gone, a start of one that is there.
fn settle_requests(seen: &Observed<'_>, status: &mut Status) {
    let requests = &mut status.state_change_requests;
    while let Some(first) = requests.first() {
        let done = match (first.action, seen.vmi) {
            (StateChange::Stop, vmi) => {
                vmi.is_none_or(|vmi| first.uid.is_some() && vmi.uid() != first.uid)
            }
            (StateChange::Start, Some(vmi)) => !is_over(vmi) && !is_going(vmi),
            (StateChange::Start, None) => false,
        };
        if !done {
            break;
        }
        requests.remove(0);
    }
}

/// An instance that never ran is a failed start; one that runs ends the row of them.
fn count_failures(seen: &Observed<'_>, status: &mut Status, plan: &mut Plan) {
    let Some(vmi) = seen.vmi else { return };
    let phases = vmi
        .status
        .iter()
        .flat_map(|s| &s.phase_transition_timestamps);
    let ran = phases.into_iter().any(|t| t.phase == VmiPhase::Running);
    if ran || phase_of(vmi) == Some(VmiPhase::Running) {
        status.start_failure = None;
        return;
    }
    let uid = vmi.uid().unwrap_or_default();
    let counted = status.start_failure.as_ref();
    if phase_of(vmi) != Some(VmiPhase::Failed)
        || is_going(vmi)
        || counted.is_some_and(|f| f.last_failed_vmi_uid == uid)
    {
        return;
    }
    let count = counted
        .map_or(0, |f| f.consecutive_fail_count)
        .saturating_add(1);
    let pause = pause_after(count, seen.jitter);
    let retry = seen
        .now
        .0
        .checked_add(SignedDuration::from_secs(
            i64::try_from(pause).unwrap_or(i64::MAX),
        ))
        .unwrap_or(seen.now.0);
    status.start_failure = Some(StartFailure {
        consecutive_fail_count: count,
        last_failed_vmi_uid: uid,
        retry_after_timestamp: Time(retry),
    });
    plan.actions.push(Action::Event(
        EventType::Warning,
        "FailedStart".to_owned(),
        format!(
            "The virtual machine failed to start {count} time(s); the next attempt is in {pause} s"
        ),
    ));
}

/// Seconds after the n-th failed start.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "seconds of a pause of minutes"
)]
fn pause_after(count: i32, jitter: f64) -> u64 {
    let count = u64::from(count.max(1).unsigned_abs());
    let base = BACKOFF.saturating_mul(count.saturating_mul(count));
    if base >= BACKOFF_MAX {
        return BACKOFF_MAX;
    }
    let more = base as f64 / 2.0 * jitter.clamp(0.0, 1.0);
    (base + more as u64).min(BACKOFF_MAX)
}

/// The instance first, the finalizer when it is gone, or at once where it shall stay.
fn plan_deletion(seen: &Observed<'_>, plan: &mut Plan) {
    let finalizers = seen.vm.finalizers();
    let stays = finalizers.iter().any(|f| f == ORPHAN);
    if let Some(vmi) = seen.vmi.filter(|_| !stays) {
        if !is_going(vmi) {
            plan.actions
                .push(Action::Delete(vmi.uid().unwrap_or_default()));
        }
        return;
    }
    if finalizers.iter().any(|f| f == labels::VM_FINALIZER) {
        plan.actions.push(Action::RemoveFinalizer);
    }
}

fn plan_run(seen: &Observed<'_>, status: &Status, plan: &mut Plan) {
    let strategy = seen.vm.spec.strategy();
    let first = status.state_change_requests.first();
    let asked = |action| first.is_some_and(|first| first.action == action);
    let Some(vmi) = seen.vmi else {
        let wanted = match strategy {
            RunStrategy::Always | RunStrategy::RerunOnFailure => true,
            RunStrategy::Once => status.observed_generation.is_none() || asked(StateChange::Start),
            RunStrategy::Manual => asked(StateChange::Start),
            RunStrategy::Halted => false,
        };
        if !wanted {
            return;
        }
        if let Some(failure) = &status.start_failure {
            let left = failure.retry_after_timestamp.0.duration_since(seen.now.0);
            if let Ok(left) = Duration::try_from(left)
                && !left.is_zero()
            {
                plan.again = Some(left);
                return;
            }
        }
        let start = first.filter(|first| first.action == StateChange::Start);
        let paused = start.is_some_and(StateChangeRequest::is_paused);
        plan.actions.push(Action::Create { paused });
        return;
    };
    if is_going(vmi) {
        return;
    }
    let failed = phase_of(vmi) == Some(VmiPhase::Failed);
    let delete = match strategy {
        RunStrategy::Halted => true,
        RunStrategy::Always => is_over(vmi),
        RunStrategy::RerunOnFailure => failed,
        RunStrategy::Manual | RunStrategy::Once => false,
    };
    let again = is_over(vmi) && asked(StateChange::Start);
    if delete || again || asked(StateChange::Stop) {
        plan.actions
            .push(Action::Delete(vmi.uid().unwrap_or_default()));
    }
}

/// The status as it is now, before what is planned happens.
fn show(seen: &Observed<'_>, status: &mut Status, plan: &Plan) {
    let strategy = seen.vm.spec.strategy();
    let of_vmi = seen.vmi.and_then(|vmi| vmi.status.as_ref());
    let conditions = of_vmi.map_or(&[][..], |s| &s.conditions);
    status.created = Some(seen.vmi.is_some());
    status.ready = Some(is_true(conditions, labels::CONDITION_READY));
    status.run_strategy = Some(strategy);
    status.desired_generation = seen.vm.metadata.generation;
    if let Some(generation) = seen.vmi.and_then(|vmi| {
        vmi.annotations()
            .get(labels::VM_GENERATION)
            .and_then(|text| text.parse().ok())
    }) {
        status.observed_generation = Some(generation);
    }
    let mut set = |type_: &str, value: bool, reason: &str, message: &str| {
        let now = seen.now.clone();
        set_condition(&mut status.conditions, type_, value, reason, message, now);
    };
    match (
        seen.vmi,
        find_condition(conditions, labels::CONDITION_READY),
    ) {
        (Some(_), Some(ready)) => set(
            labels::CONDITION_READY,
            ready.status == "True",
            ready.reason.as_deref().unwrap_or_default(),
            ready.message.as_deref().unwrap_or_default(),
        ),
        (Some(_), None) => set(
            labels::CONDITION_READY,
            false,
            labels::REASON_POD_NOT_EXISTS,
            "",
        ),
        (None, _) => set(
            labels::CONDITION_READY,
            false,
            "VMINotExists",
            "VMI does not exist",
        ),
    }
    let paused = find_condition(conditions, labels::CONDITION_PAUSED)
        .filter(|condition| condition.status == "True");
    if let Some(paused) = paused {
        set(
            labels::CONDITION_PAUSED,
            true,
            paused.reason.as_deref().unwrap_or_default(),
            paused.message.as_deref().unwrap_or_default(),
        );
    }
    if let Some(refused) = seen.refused {
        set(
            labels::CONDITION_FAILURE,
            true,
            labels::REASON_FAILED_CREATE,
            refused,
        );
    }
    let changed = seen.vmi.is_some_and(|vmi| {
        let made_of = vmi.annotations().get(labels::TEMPLATE_DIGEST);
        !is_over(vmi) && made_of.is_some_and(|made_of| made_of != seen.digest)
    });
    if changed {
        set(
            labels::CONDITION_RESTART_REQUIRED,
            true,
            "",
            "the template has changed since the machine was started",
        );
    }
    for (holds, type_) in [
        (paused.is_some(), labels::CONDITION_PAUSED),
        (seen.refused.is_some(), labels::CONDITION_FAILURE),
        (changed, labels::CONDITION_RESTART_REQUIRED),
    ] {
        if !holds {
            remove_condition(&mut status.conditions, type_);
        }
    }
    status.printable_status = Some(printable(seen, status, plan));
}

/// The first that fits, in the order of KubeVirt.
fn printable(seen: &Observed<'_>, status: &Status, plan: &Plan) -> PrintableStatus {
    if seen.vm.metadata.deletion_timestamp.is_some() {
        return PrintableStatus::Terminating;
    }
    let waits = plan.again.is_some();
    let Some(vmi) = seen.vmi else {
        let starts = plan
            .actions
            .iter()
            .any(|action| matches!(action, Action::Create { .. }));
        return match (starts, waits) {
            (true, _) => PrintableStatus::Starting,
            (false, true) => PrintableStatus::CrashLoopBackOff,
            (false, false) => PrintableStatus::Stopped,
        };
    };
    let ends = plan
        .actions
        .iter()
        .any(|action| matches!(action, Action::Delete(_)));
    if !is_over(vmi) && (is_going(vmi) || ends) {
        return PrintableStatus::Stopping;
    }
    let conditions = vmi.status.as_ref().map_or(&[][..], |s| &s.conditions);
    if is_true(conditions, labels::CONDITION_PAUSED) && !is_over(vmi) {
        return PrintableStatus::Paused;
    }
    match phase_of(vmi) {
        Some(VmiPhase::Running) => return PrintableStatus::Running,
        Some(VmiPhase::Failed | VmiPhase::Succeeded) => {
            let retried = status.start_failure.is_some() && (ends || is_going(vmi));
            return if retried {
                PrintableStatus::CrashLoopBackOff
            } else {
                PrintableStatus::Stopped
            };
        }
        _ => {}
    }
    let told = |type_: &str| {
        find_condition(conditions, type_)
            .filter(|condition| condition.status == "False")
            .and_then(|condition| condition.reason.as_deref())
    };
    if told("PodScheduled") == Some("Unschedulable") {
        return PrintableStatus::ErrorUnschedulable;
    }
    match told(labels::CONDITION_SYNCHRONIZED) {
        Some(labels::REASON_CLAIM_NOT_FOUND) => PrintableStatus::ErrorPvcNotFound,
        Some(labels::REASON_DATA_VOLUME_WAITS) => PrintableStatus::Provisioning,
        Some(labels::REASON_DATA_VOLUME_FAILED) => PrintableStatus::DataVolumeError,
        Some("ErrImagePull") => PrintableStatus::ErrImagePull,
        Some("ImagePullBackOff") => PrintableStatus::ImagePullBackOff,
        _ => PrintableStatus::Starting,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
