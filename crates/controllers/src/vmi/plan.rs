//! What to do about one VirtualMachineInstance: a pure decision over what was observed.
//!
//! ```text
//!             no pod: create it        pod there           pod ready
//!   (none) ─────────▶ Pending ─────────▶ Scheduling ─────────▶ Scheduled ──▶ Running ──▶ Succeeded
//!                                            │                     │            │  ╰─────▶ Failed
//!                                            ╰─ pod lost, failed ──┼────────────┼─────────▶ Failed
//!   ◀────────────── this controller's status ───────────────▶ ◀── the node agent's status ───▶
//! ```
//!
//! From `Scheduled` on the node agent owns the status. The controller writes one more time only when the pod is
//! gone or over and the agent has not said how it ended within [`AGENT_GRACE`].

use std::time::Duration;

use berth_api::conditions::{find_condition, is_true, remove_condition, set_condition};
use berth_api::events::EventType;
use berth_api::kubevirt::v1::{
    VirtualMachineInstance, VirtualMachineInstancePhaseTransitionTimestamp as Transition,
    VirtualMachineInstanceStatus as Status, VmiPhase, start_revision,
};
use berth_api::labels;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

/// How long the node agent may take to report the end of a machine whose pod is gone or over.
pub const AGENT_GRACE: Duration = Duration::from_secs(15);

/// How long the pod of a machine that is over may take to end by itself.
pub const POD_GRACE: Duration = Duration::from_secs(30);

/// Condition copied from the pod while it cannot be placed.
const POD_SCHEDULED: &str = "PodScheduled";

/// Everything that a decision depends on.
pub struct Observed<'a> {
    /// The machine, as read last.
    pub vmi: &'a VirtualMachineInstance,
    /// Its launcher pods, whatever their state.
    pub pods: &'a [&'a Pod],
    /// For how long this controller has seen no pod that is neither gone nor over.
    pub down_for: Duration,
    /// The time to put into conditions.
    pub now: Time,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the launcher pod, unless the API server has one already.
    CreatePod,
    /// Ask for the deletion of this pod, with the pod's own grace.
    DeletePod(String),
    /// Put the node's name on the machine as a label; the node agent selects by it.
    LabelNode(String),
    /// Say on this pod whether its guest runs and is not paused.
    PodUnpaused(String, bool),
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
    let phase = seen.vmi.status.as_ref().and_then(|s| s.phase);
    let deleted = seen.vmi.metadata.deletion_timestamp.is_some();
    if deleted && let Some(plan) = plan_deletion(seen, phase) {
        return plan;
    }
    match phase {
        Some(VmiPhase::Succeeded | VmiPhase::Failed) => plan_over(seen),
        Some(VmiPhase::Scheduled | VmiPhase::Running) => plan_handed_over(seen),
        None | Some(VmiPhase::Pending | VmiPhase::Scheduling) => plan_start(seen, phase),
    }
}

/// The status of a machine whose pod cannot be made for now, for this reason.
#[must_use]
pub fn pending(seen: &Observed<'_>, reason: &str, message: &str) -> Status {
    let mut edit = Edit::new(seen);
    edit.wait_for_pod();
    edit.condition(labels::CONDITION_SYNCHRONIZED, false, reason, message);
    edit.status
}

/// The pod that counts: one that is still meant to run before one that is going, the youngest of those.
fn current_pod<'a>(pods: &[&'a Pod]) -> Option<&'a Pod> {
    pods.iter().copied().max_by_key(|p| {
        (
            p.metadata.deletion_timestamp.is_none(),
            p.metadata.creation_timestamp.clone(),
        )
    })
}

/// Pods first, the finalizer when none is left. `None`: pods are going, and their machine's status goes on.
fn plan_deletion(seen: &Observed<'_>, phase: Option<VmiPhase>) -> Option<Plan> {
    let mut actions = Vec::new();
    if seen.pods.is_empty() {
        if seen
            .vmi
            .finalizers()
            .iter()
            .any(|f| f == labels::VMI_FINALIZER)
        {
            actions.push(Action::RemoveFinalizer);
        }
        return Some(Plan {
            actions,
            again: None,
        });
    }
    for pod in seen
        .pods
        .iter()
        .filter(|p| p.metadata.deletion_timestamp.is_none())
    {
        let name = pod.name_any();
        let message = format!("Deleted virtual machine pod {name}");
        actions.push(Action::DeletePod(name));
        actions.push(Action::Event(
            EventType::Normal,
            labels::REASON_SUCCESSFUL_DELETE.to_owned(),
            message,
        ));
    }
    if !actions.is_empty() {
        return Some(Plan {
            actions,
            again: None,
        });
    }
    // All pods are terminating. Only a machine that never reached its node still has its status from here.
    let ours = matches!(phase, None | Some(VmiPhase::Pending | VmiPhase::Scheduling));
    let mut edit = Edit::new(seen);
    if ours {
        edit.not_ready(
            labels::REASON_POD_TERMINATING,
            "The launcher pod is being deleted.",
        );
    }
    Some(edit.plan())
}

fn delete_pod(pod: &Pod) -> [Action; 2] {
    let name = pod.name_any();
    let message = format!("Deleted virtual machine pod {name}");
    let told = Action::Event(
        EventType::Normal,
        labels::REASON_SUCCESSFUL_DELETE.to_owned(),
        message,
    );
    [Action::DeletePod(name), told]
}

fn plan_start(seen: &Observed<'_>, phase: Option<VmiPhase>) -> Plan {
    let mut edit = Edit::new(seen);
    let Some(pod) = current_pod(seen.pods) else {
        if phase == Some(VmiPhase::Scheduling) {
            return edit.fail(
                "PodDeleted",
                "The launcher pod was deleted before the machine could start.",
            );
        }
        // What has no status yet gets one with its pod, which is there in a moment; see [`pending`].
        if phase.is_some() {
            edit.wait_for_pod();
        }
        edit.actions.push(Action::CreatePod);
        return edit.plan();
    };
    if let Some(node) = node_of(pod) {
        edit.label(node);
    }
    if let Some((reason, message)) = pod_end(pod) {
        return edit.fail(&reason, &message);
    }
    if pod.metadata.deletion_timestamp.is_some() {
        edit.phase(VmiPhase::Scheduling);
        edit.not_ready(
            labels::REASON_POD_TERMINATING,
            "The launcher pod is being deleted.",
        );
        return edit.plan();
    }
    match (is_started(pod), node_of(pod)) {
        (true, Some(node)) => edit.hand_over(pod, node),
        _ => edit.still_scheduling(pod),
    }
    edit.plan()
}

/// The machine is over. Its pod stays for its logs, but not one that still holds memory: a launcher that does
/// not answer any more may still have a guest.
fn plan_over(seen: &Observed<'_>) -> Plan {
    let alive =
        |p: &&&Pod| p.metadata.deletion_timestamp.is_none() && !crate::scheduler::is_over(p);
    let Some(pod) = seen.pods.iter().find(alive) else {
        return Plan::default();
    };
    let transitions = seen
        .vmi
        .status
        .iter()
        .flat_map(|s| &s.phase_transition_timestamps);
    let since = transitions.map(|t| t.phase_transition_timestamp.0).max();
    let elapsed = since.map_or(POD_GRACE, |t| {
        Duration::try_from(seen.now.0.duration_since(t)).unwrap_or_default()
    });
    if elapsed < POD_GRACE {
        return Plan {
            actions: Vec::new(),
            again: Some(POD_GRACE - elapsed),
        };
    }
    Plan {
        actions: delete_pod(pod).into(),
        again: None,
    }
}

/// The node agent owns the status. Repairs the label, and speaks for an agent that cannot.
fn plan_handed_over(seen: &Observed<'_>) -> Plan {
    let mut edit = Edit::new(seen);
    let pod = current_pod(seen.pods);
    let recorded = seen
        .vmi
        .status
        .as_ref()
        .and_then(|s| s.node_name.as_deref());
    if let Some(node) = recorded.or_else(|| pod.and_then(node_of)) {
        edit.label(node);
    }
    let end = match pod {
        None => Some((
            "PodDeleted".to_owned(),
            "The launcher pod is gone.".to_owned(),
        )),
        Some(pod) => pod_end(pod),
    };
    match end {
        None => {
            edit.actions.extend(pod.and_then(|pod| gate(seen.vmi, pod)));
            edit.plan()
        }
        Some(_) if seen.down_for < AGENT_GRACE => Plan {
            again: Some(AGENT_GRACE - seen.down_for),
            ..edit.plan()
        },
        Some((reason, message)) => edit.fail(&reason, &message),
    }
}

/// A status being changed, with the steps that go with it. Steps run before the status is written, except the
/// creation of the pod, which follows it.
struct Edit<'a> {
    seen: &'a Observed<'a>,
    status: Status,
    actions: Vec<Action>,
    events: Vec<Action>,
}

impl<'a> Edit<'a> {
    fn new(seen: &'a Observed<'a>) -> Self {
        Self {
            seen,
            status: seen.vmi.status.clone().unwrap_or_default(),
            actions: Vec::new(),
            events: Vec::new(),
        }
    }

    fn plan(self) -> Plan {
        let (create, mut actions): (Vec<_>, Vec<_>) = self
            .actions
            .into_iter()
            .partition(|a| matches!(a, Action::CreatePod));
        if self.seen.vmi.status.as_ref().unwrap_or(&Status::default()) != &self.status {
            actions.push(Action::WriteStatus(Box::new(self.status)));
            actions.extend(self.events);
        }
        actions.extend(create);
        Plan {
            actions,
            again: None,
        }
    }

    fn wait_for_pod(&mut self) {
        self.phase(VmiPhase::Pending);
        self.not_ready(
            labels::REASON_POD_NOT_EXISTS,
            "The launcher pod does not exist yet.",
        );
    }

    fn phase(&mut self, phase: VmiPhase) {
        if self.status.phase.is_none() && phase != VmiPhase::Pending {
            // It was, from its creation on.
            let since = self.seen.vmi.metadata.creation_timestamp.clone();
            self.status.phase_transition_timestamps.push(Transition {
                phase: VmiPhase::Pending,
                phase_transition_timestamp: since.unwrap_or_else(|| self.seen.now.clone()),
            });
        }
        if self.status.phase != Some(phase) {
            self.status.phase = Some(phase);
            self.status.phase_transition_timestamps.push(Transition {
                phase,
                phase_transition_timestamp: self.seen.now.clone(),
            });
        }
    }

    fn condition(&mut self, type_: &str, status: bool, reason: &str, message: &str) {
        set_condition(
            &mut self.status.conditions,
            type_,
            status,
            reason,
            message,
            self.seen.now.clone(),
        );
    }

    fn not_ready(&mut self, reason: &str, message: &str) {
        self.condition(labels::CONDITION_READY, false, reason, message);
    }

    fn label(&mut self, node: &str) {
        if self
            .seen
            .vmi
            .labels()
            .get(labels::NODE_NAME)
            .map(String::as_str)
            != Some(node)
        {
            self.actions.push(Action::LabelNode(node.to_owned()));
        }
    }

    fn fail(mut self, reason: &str, message: &str) -> Plan {
        self.phase(VmiPhase::Failed);
        self.status.reason = Some(reason.to_owned());
        self.not_ready(labels::REASON_GUEST_NOT_RUNNING, message);
        self.events.push(Action::Event(
            EventType::Warning,
            reason.to_owned(),
            message.to_owned(),
        ));
        self.plan()
    }

    /// The pod is ready: the last status of this controller.
    fn hand_over(&mut self, pod: &Pod, node: &str) {
        self.phase(VmiPhase::Scheduled);
        remove_condition(&mut self.status.conditions, POD_SCHEDULED);
        remove_condition(&mut self.status.conditions, labels::CONDITION_SYNCHRONIZED);
        self.not_ready(
            labels::REASON_GUEST_NOT_RUNNING,
            "The guest is not running yet.",
        );
        self.status.node_name = Some(node.to_owned());
        self.status.virtual_machine_revision_name = start_revision_of(self.seen.vmi);
        self.status.active_pods = [(pod.uid().unwrap_or_default(), node.to_owned())].into();
        self.status.qos_class = pod.status.as_ref().and_then(|s| s.qos_class.clone());
        let image = pod
            .spec
            .as_ref()
            .and_then(|s| s.containers.first())
            .and_then(|c| c.image.clone());
        self.status.launcher_container_image_version = image;
    }

    fn still_scheduling(&mut self, pod: &Pod) {
        self.phase(VmiPhase::Scheduling);
        self.not_ready(
            labels::REASON_POD_NOT_READY,
            "The launcher pod is not ready yet.",
        );
        match unplaced(pod) {
            Some((reason, message)) => self.condition(POD_SCHEDULED, false, &reason, &message),
            None => drop(remove_condition(&mut self.status.conditions, POD_SCHEDULED)),
        }
        match container_trouble(pod) {
            Some((reason, message)) => {
                let told = find_condition(&self.status.conditions, labels::CONDITION_SYNCHRONIZED);
                let news = told.is_none_or(|c| c.message.as_deref() != Some(&message));
                self.condition(labels::CONDITION_SYNCHRONIZED, false, &reason, &message);
                if news {
                    self.events
                        .push(Action::Event(EventType::Warning, reason, message));
                }
            }
            None => drop(remove_condition(
                &mut self.status.conditions,
                labels::CONDITION_SYNCHRONIZED,
            )),
        }
    }
}

/// The record of the machine that this is an instance of, as it was at the start.
fn start_revision_of(vmi: &VirtualMachineInstance) -> Option<String> {
    let owners = vmi.owner_references().iter();
    let mut machines = owners.filter(|owner| owner.kind == "VirtualMachine");
    let generation = vmi.annotations().get(labels::VM_GENERATION)?;
    Some(start_revision(
        &machines.next()?.uid,
        generation.parse().ok()?,
    ))
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()
        .and_then(|s| s.node_name.as_deref())
        .filter(|n| !n.is_empty())
}

fn is_condition_true(pod: &Pod, type_: &str) -> bool {
    let conditions = pod
        .status
        .iter()
        .filter_map(|s| s.conditions.as_ref())
        .flatten();
    conditions
        .into_iter()
        .any(|c| c.type_ == type_ && c.status == "True")
}

/// Whether the pod waits for its guest before it is ready.
fn has_gate(pod: &Pod) -> bool {
    let gates = pod.spec.iter().flat_map(|s| &s.readiness_gates).flatten();
    gates
        .into_iter()
        .any(|gate| gate.condition_type == labels::UNPAUSED)
}

/// Whether the launcher is there. The pod as a whole may wait for the guest.
fn is_started(pod: &Pod) -> bool {
    let condition = if has_gate(pod) {
        "ContainersReady"
    } else {
        "Ready"
    };
    is_condition_true(pod, condition)
}

/// Opens the gate of the pod's readiness when the guest runs, closes it when it is paused.
fn gate(vmi: &VirtualMachineInstance, pod: &Pod) -> Option<Action> {
    let status = vmi.status.as_ref()?;
    if status.phase != Some(VmiPhase::Running) || !has_gate(pod) {
        return None;
    }
    // A guest that is not ready for work is as good as one that stands still.
    let unpaused = !is_true(&status.conditions, labels::CONDITION_PAUSED)
        && (vmi.spec.readiness_probe.is_none()
            || is_true(&status.conditions, labels::CONDITION_READY));
    (is_condition_true(pod, labels::UNPAUSED) != unpaused)
        .then(|| Action::PodUnpaused(pod.name_any(), unpaused))
}

/// Why the scheduler could not place the pod.
fn unplaced(pod: &Pod) -> Option<(String, String)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions
        .iter()
        .find(|c| c.type_ == POD_SCHEDULED && c.status == "False")?;
    Some((
        condition.reason.clone().unwrap_or_default(),
        condition.message.clone().unwrap_or_default(),
    ))
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|s| s.init_container_statuses.as_ref());
    let main = status.and_then(|s| s.container_statuses.as_ref());
    init.into_iter().flatten().chain(main.into_iter().flatten())
}

/// What keeps a container from starting, when it is more than time: an image that cannot be had, a
/// configuration that cannot be set up. Reasons are the kubelet's.
fn container_trouble(pod: &Pod) -> Option<(String, String)> {
    containers(pod).find_map(|c| {
        let waiting = c.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.clone()?;
        if matches!(reason.as_str(), "ContainerCreating" | "PodInitializing") {
            return None;
        }
        let message = waiting
            .message
            .clone()
            .filter(|m| !m.is_empty())
            .unwrap_or_else(|| reason.clone());
        Some((reason, message))
    })
}

/// How the pod ended, when it has. It has without its launcher, even if a container beside that still holds an image.
fn pod_end(pod: &Pod) -> Option<(String, String)> {
    let status = pod.status.as_ref()?;
    let phase = status.phase.as_deref().unwrap_or_default();
    let launcher = containers(pod).find(|c| c.name == labels::COMPUTE_CONTAINER);
    let ended = launcher.and_then(|c| c.state.as_ref()?.terminated.as_ref());
    if !matches!(phase, "Failed" | "Succeeded") && ended.is_none() {
        return None;
    }
    let reason = status.reason.clone().or_else(|| {
        // `Error` and `Completed` name no cause.
        ended
            .and_then(|t| t.reason.clone())
            .filter(|r| r != "Error" && r != "Completed")
    });
    let message = status
        .message
        .clone()
        .or_else(|| ended.and_then(|t| t.message.clone()))
        .unwrap_or_else(|| match ended {
            Some(t) => format!("The launcher ended with exit code {}.", t.exit_code),
            None => format!("The launcher pod ended in phase {phase}."),
        });
    Some((reason.unwrap_or_else(|| "PodFailed".to_owned()), message))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
