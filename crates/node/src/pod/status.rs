//! The status of a Pod, from what the runtime knows. Pure.

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::record::{Ended, Record};

/// How far a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing runs yet; why.
    Waiting {
        reason: &'static str,
        message: String,
    },
    /// Its command runs.
    Running,
    /// It has ended.
    Ended(Ended),
}

/// Kubernetes keeps times to the second.
fn seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

/// What the Pod's status should be. What others write in it (the scheduler's condition) stays.
pub(crate) fn status(
    pod: &Pod,
    record: Option<&Record>,
    progress: &Progress,
    host_ip: &str,
    now: Timestamp,
) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    let ready = *progress == Progress::Running;
    let phase = match progress {
        Progress::Waiting { .. } => "Pending",
        Progress::Running => "Running",
        Progress::Ended(ended) if ended.exit_code == 0 => "Succeeded",
        Progress::Ended(_) => "Failed",
    };
    let not_ready = match progress {
        Progress::Ended(ended) if ended.exit_code == 0 => Some("PodCompleted"),
        Progress::Ended(_) => Some("PodFailed"),
        Progress::Waiting { .. } => Some("ContainersNotReady"),
        Progress::Running => None,
    };
    let mut conditions = old.conditions.clone().unwrap_or_default();
    set(&mut conditions, "Initialized", true, None, now);
    set(&mut conditions, "ContainersReady", ready, not_ready, now);
    set(&mut conditions, "Ready", ready, not_ready, now);
    let ip = record
        .filter(|_| !matches!(progress, Progress::Waiting { .. }))
        .map(|record| record.ip.to_string());
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        host_ip: Some(host_ip.to_owned()),
        pod_ips: ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip: ip,
        start_time: old.start_time.clone().or_else(|| Some(seconds(now))),
        qos_class: old.qos_class.clone(),
        container_statuses: pod.spec.as_ref().map(|spec| {
            let containers = spec.containers.iter();
            containers
                .map(|container| {
                    container_status(
                        &container.name,
                        container.image.as_deref(),
                        record,
                        progress,
                    )
                })
                .collect()
        }),
        ..old
    }
}

fn container_status(
    name: &str,
    image: Option<&str>,
    record: Option<&Record>,
    progress: &Progress,
) -> ContainerStatus {
    let id = record.map(|record| format!("berth://{}", record.pod_uid));
    let started_at = record.and_then(|record| record.started_at).map(seconds);
    let state = match progress {
        Progress::Waiting { reason, message } => ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some((*reason).to_owned()),
                message: (!message.is_empty()).then(|| message.clone()),
            }),
            ..ContainerState::default()
        },
        Progress::Running => ContainerState {
            running: Some(ContainerStateRunning { started_at }),
            ..ContainerState::default()
        },
        Progress::Ended(ended) => ContainerState {
            terminated: Some(ContainerStateTerminated {
                container_id: id.clone(),
                exit_code: ended.exit_code,
                signal: ended.signal,
                reason: Some(ended.reason.clone()),
                message: ended.message.clone(),
                started_at,
                finished_at: Some(seconds(ended.at)),
            }),
            ..ContainerState::default()
        },
    };
    let ready = *progress == Progress::Running;
    ContainerStatus {
        name: name.to_owned(),
        image: image.unwrap_or_default().to_owned(),
        image_id: String::new(),
        container_id: id.filter(|_| !matches!(progress, Progress::Waiting { .. })),
        ready,
        started: Some(ready),
        restart_count: 0,
        state: Some(state),
        ..ContainerStatus::default()
    }
}

fn set(
    conditions: &mut Vec<PodCondition>,
    kind: &str,
    on: bool,
    reason: Option<&str>,
    now: Timestamp,
) {
    let status = if on { "True" } else { "False" };
    let reason = reason.map(str::to_owned);
    if let Some(condition) = conditions
        .iter_mut()
        .find(|condition| condition.type_ == kind)
    {
        if condition.status != status {
            condition.last_transition_time = Some(seconds(now));
        }
        status.clone_into(&mut condition.status);
        condition.reason = reason;
        return;
    }
    conditions.push(PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason,
        last_transition_time: Some(seconds(now)),
        ..PodCondition::default()
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "lab", "uid": "u"},
            "spec": {"containers": [{"name": "compute", "image": "berth-launcher:1"}]},
            "status": {"phase": "Pending", "qosClass": "Burstable",
                       "conditions": [{"type": "PodScheduled", "status": "True"}]},
        }))
        .unwrap()
    }

    #[test]
    fn each_step_of_a_pod_shows() {
        let now = Timestamp::from_second(1_000).unwrap();
        let waiting = Progress::Waiting {
            reason: "ErrImagePull",
            message: "no such image".into(),
        };
        let shown = status(&pod(), None, &waiting, "192.0.2.1", now);
        assert_eq!(shown.phase.as_deref(), Some("Pending"));
        assert_eq!(shown.qos_class.as_deref(), Some("Burstable"));
        let conditions = shown.conditions.as_ref().unwrap();
        assert_eq!(conditions.len(), 4, "the scheduler's stays");
        let container = &shown.container_statuses.as_ref().unwrap()[0];
        let state = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!(state.message.as_deref(), Some("no such image"));

        let mut pod = pod();
        pod.status = Some(shown);
        let later = Timestamp::from_second(2_000).unwrap();
        let shown = status(&pod, None, &Progress::Running, "192.0.2.1", later);
        let ready = shown
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "Ready")
            .unwrap();
        assert_eq!(
            (ready.status.as_str(), ready.last_transition_time.clone()),
            ("True", Some(Time(later)))
        );
        assert_eq!(shown.start_time, Some(Time(now)), "set once");

        for (exit_code, phase) in [(0, "Succeeded"), (137, "Failed")] {
            let ended = Ended {
                exit_code,
                signal: None,
                reason: "X".into(),
                message: None,
                at: later,
            };
            let shown = status(&pod, None, &Progress::Ended(ended), "192.0.2.1", later);
            assert_eq!(shown.phase.as_deref(), Some(phase));
        }
    }

    #[test]
    fn the_same_again_is_no_change() {
        let now = Timestamp::from_second(1_000).unwrap();
        let mut pod = pod();
        let first = status(&pod, None, &Progress::Running, "192.0.2.1", now);
        pod.status = Some(first.clone());
        let later = Timestamp::from_second(9_000).unwrap();
        assert_eq!(
            status(&pod, None, &Progress::Running, "192.0.2.1", later),
            first
        );
    }
}
