//! The DataVolume controller: a DataVolume → its claim → a pod that fills it.
//!
//! ```text
//!  Pending ─► (claim) ─► ImportScheduled ─► ImportInProgress ─► Succeeded
//!                CloneScheduled  CloneInProgress  │
//!                         ▲                       ├─ failed, may go well later: another pod, later and later, 3 times
//!                         └───────────────────────┤
//!                                                 └─ for good ─► Failed, with the reason
//! ```
//!
//! The claim belongs to the DataVolume and goes with it. A claim of the name that is somebody else's is never touched. The
//! pod is the first consumer of a claim that waits for one. What the pod's last words are tells whether another attempt can
//! help; nothing is downloaded for ever.

mod pod;
mod progress;

use std::sync::Arc;
use std::time::Duration;

use berth_api::cdi::importer::Told;
use berth_api::cdi::v1beta1::{DataVolume, DataVolumeCondition, DataVolumeStatus};
use berth_api::cdi::{READY, RETAIN};
use berth_api::events::{EventType, Recorder};
use berth_api::settings::{Known, current};
use berth_api::storage::BLOCK;
use berth_api::{labels, merge};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch};
use kube::runtime::controller::{self, Action as Requeue, trigger_owners, trigger_self};
use kube::runtime::reflector;
use kube::runtime::{WatchStreamExt, applier, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Settings;
use crate::reconcile::{
    Error, Failures, code, failed, full_name, is_owned, manager_patch, manager_post, now, report,
};
use crate::volume::claims_of;

/// How often a pod is asked how far it is.
const LOOK: Duration = Duration::from_secs(1);
/// Attempts after the first.
const RESTARTS: i32 = 3;
/// The pause before the first of them; doubled each time.
const PAUSE: Duration = Duration::from_secs(5);
/// While the claim that is to be copied is in use.
const IN_USE: Duration = Duration::from_secs(2);

/// Runs the controller until `shutdown`.
pub(crate) async fn run(
    settings: Settings,
    known: watch::Receiver<Known>,
    client: Client,
    recorder: Recorder,
    shutdown: CancellationToken,
) {
    let (volumes, volumes_writer) = reflector::store::<DataVolume>();
    let config = watcher::Config::default;
    let own = watcher(Api::<DataVolume>::all(client.clone()), config()).default_backoff();
    let of_cdi = || config().labels("app=containerized-data-importer");
    let claims =
        watcher(Api::<PersistentVolumeClaim>::all(client.clone()), of_cdi()).default_backoff();
    let pods = watcher(Api::<Pod>::all(client.clone()), of_cdi()).default_backoff();
    let triggers = [
        trigger_self(
            reflector::reflector(volumes_writer, own).touched_objects(),
            (),
        )
        .boxed(),
        trigger_owners::<DataVolume, _>(claims.touched_objects(), (), ()).boxed(),
        trigger_owners::<DataVolume, _>(pods.touched_objects(), (), ()).boxed(),
    ];
    let queue = futures::stream::select_all(triggers).take_until(shutdown.cancelled_owned());
    let controller = Arc::new(Controller {
        settings,
        known,
        client,
        recorder,
        failures: Failures::default(),
    });
    let outcomes = applier(
        |dv, controller: Arc<Controller>| async move { controller.reconcile(dv).await }.boxed(),
        |dv: Arc<DataVolume>, _error, controller: Arc<Controller>| {
            Requeue::requeue(controller.failures.pause(dv.uid().unwrap_or_default()))
        },
        controller,
        volumes,
        queue,
        controller::Config::default().concurrency(8),
    );
    report("datavolume", outcomes).await;
}

struct Controller {
    settings: Settings,
    known: watch::Receiver<Known>,
    client: Client,
    recorder: Recorder,
    failures: Failures,
}

/// What is seen of one.
struct Seen {
    dv: DataVolume,
    claim: Option<PersistentVolumeClaim>,
    pod: Option<Pod>,
}

impl Controller {
    async fn reconcile(&self, dv: Arc<DataVolume>) -> Result<Requeue, Error> {
        let uid = dv.uid().unwrap_or_default();
        let done = self.step(&dv).await;
        if done.is_ok() {
            self.failures.forget(&uid);
        }
        done
    }

    /// One look, one step. By the server's word: what is made here is seldom, and must not be made twice.
    async fn step(&self, dv: &DataVolume) -> Result<Requeue, Error> {
        let namespace = dv.namespace().unwrap_or_default();
        let own: Api<DataVolume> = Api::namespaced(self.client.clone(), &namespace);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let name = dv.name_any();
        let uid = dv.uid().unwrap_or_default();
        let found = own.get_opt(&name).await.map_err(failed("get", dv))?;
        let Some(dv) = found.filter(|found| found.uid().as_deref() == Some(&uid)) else {
            return Ok(Requeue::await_change());
        };
        let phase = dv
            .status
            .as_ref()
            .and_then(|status| status.phase.clone())
            .unwrap_or_default();
        if dv.metadata.deletion_timestamp.is_some() || phase == "Failed" {
            return Ok(Requeue::await_change());
        }
        let pod_name = pod::pod_name(&dv);
        let claim = claims
            .get_opt(&name)
            .await
            .map_err(failed("get claim", &dv))?;
        let pod = pods
            .get_opt(&pod_name)
            .await
            .map_err(failed("get pod", &dv))?;
        let seen = Seen { dv, claim, pod };
        if phase == "Succeeded" {
            return self.clean(&seen, &pods).await;
        }
        if let Some(claim) = &seen.claim
            && !is_owned(claim, &uid)
        {
            let message =
                format!("a claim {name:?} is there already, and is not this DataVolume's");
            self.tell(&seen, "Pending", "ErrResourceExists", &message, None)
                .await?;
            return Ok(Requeue::requeue(IN_USE * 5));
        }
        let Some(claim) = &seen.claim else {
            match claims.create(&manager_post(), &pod::claim(&seen.dv)).await {
                Ok(_) => {}
                Err(error) if code(&error) == 409 => {}
                Err(kube::Error::Api(answer)) if answer.code < 500 => {
                    let message = format!("the claim was refused: {}", answer.message);
                    self.tell(&seen, "Pending", "ErrClaimNotValid", &message, None)
                        .await?;
                    return Ok(Requeue::requeue(IN_USE * 5));
                }
                Err(error) => return Err(failed("create claim", &seen.dv)(error)),
            }
            let message = format!("PVC {name} Pending");
            self.tell(&seen, "Pending", "Pending", &message, None)
                .await?;
            return Ok(Requeue::await_change());
        };
        match &seen.pod {
            None => self.start(&seen, claim, &pods).await,
            Some(pod) if !is_owned(pod, &uid) => {
                let message =
                    format!("a pod {pod_name:?} is there already, and is not this DataVolume's");
                self.tell(&seen, "Pending", "ErrResourceExists", &message, None)
                    .await?;
                Ok(Requeue::requeue(IN_USE * 5))
            }
            Some(pod) => self.follow(&seen, pod, &pods).await,
        }
    }

    /// Makes the pod that fills the claim, when its turn has come.
    async fn start(
        &self,
        seen: &Seen,
        claim: &PersistentVolumeClaim,
        pods: &Api<Pod>,
    ) -> Result<Requeue, Error> {
        let dv = &seen.dv;
        let mut source_is_block = false;
        if let Some(source) = dv
            .spec
            .source
            .as_ref()
            .and_then(|source| source.pvc.as_ref())
        {
            let namespace = dv.namespace().unwrap_or_default();
            let claims: Api<PersistentVolumeClaim> =
                Api::namespaced(self.client.clone(), &namespace);
            let found = claims
                .get_opt(&source.name)
                .await
                .map_err(failed("get source", dv))?;
            let Some(found) = found else {
                let message = format!("the source claim {:?} is not there", source.name);
                self.tell(seen, "Pending", "CloneValidationFailed", &message, None)
                    .await?;
                return Ok(Requeue::requeue(IN_USE));
            };
            if found
                .annotations()
                .get(READY)
                .is_some_and(|ready| ready == "false")
            {
                let message = format!("the source claim {:?} is not filled yet", source.name);
                self.tell(seen, "Pending", "CloneSourceInUse", &message, None)
                    .await?;
                return Ok(Requeue::requeue(IN_USE));
            }
            let users = pods
                .list(&ListParams::default())
                .await
                .map_err(failed("list pods", dv))?;
            let user = users.items.iter().find(|pod| {
                let copies = pod
                    .labels()
                    .get(labels::CDI)
                    .is_some_and(|l| l == labels::IMPORTER);
                !copies
                    && !crate::scheduler::is_over(pod)
                    && claims_of(pod).any(|name| name == source.name)
            });
            if let Some(user) = user {
                let message = format!(
                    "the source claim {:?} is used by pod {:?}",
                    source.name,
                    user.name_any()
                );
                self.tell(seen, "CloneScheduled", "CloneSourceInUse", &message, None)
                    .await?;
                return Ok(Requeue::requeue(IN_USE));
            }
            source_is_block =
                found.spec.and_then(|spec| spec.volume_mode).as_deref() == Some(BLOCK);
        }
        let configuration = current(&self.known).await;
        let pod = pod::pod(dv, claim, source_is_block, &self.settings, &configuration);
        match pods.create(&manager_post(), &pod).await {
            Ok(_) => {
                info!(datavolume = %full_name(dv), pod = pod.name_any(), "the pod that fills it was created");
            }
            Err(error) if code(&error) == 409 => {}
            Err(kube::Error::Api(answer)) if answer.code < 500 => {
                let message = format!("the pod was refused: {}", answer.message);
                self.tell(seen, "Pending", "ErrPodNotValid", &message, None)
                    .await?;
                return Ok(Requeue::requeue(IN_USE * 5));
            }
            Err(error) => return Err(failed("create pod", dv)(error)),
        }
        let (scheduled, _) = phases(dv);
        self.tell(
            seen,
            scheduled,
            "Pending",
            "the pod that fills the claim was created",
            None,
        )
        .await?;
        Ok(Requeue::await_change())
    }

    async fn follow(&self, seen: &Seen, pod: &Pod, pods: &Api<Pod>) -> Result<Requeue, Error> {
        let (scheduled, in_progress) = phases(&seen.dv);
        let status = pod.status.clone().unwrap_or_default();
        match status.phase.as_deref() {
            Some("Running") => {
                let progress = match &status.pod_ip {
                    Some(address) => progress::ask(address).await,
                    None => None,
                };
                self.tell(seen, in_progress, "Pod is running", "", progress)
                    .await?;
                Ok(Requeue::requeue(LOOK))
            }
            Some("Succeeded") => {
                self.mark_ready(seen).await?;
                let told = told(pod);
                self.tell(seen, "Succeeded", "Completed", &told.message, Some(100.0))
                    .await?;
                info!(datavolume = %full_name(&seen.dv), told.message, "filled");
                Ok(Requeue::requeue(Duration::ZERO))
            }
            Some("Failed") => self.again(seen, pod, pods).await,
            _ => {
                let waits = status
                    .container_statuses
                    .iter()
                    .flatten()
                    .find_map(|container| container.state.as_ref()?.waiting.clone());
                let unscheduled = status
                    .conditions
                    .iter()
                    .flatten()
                    .find(|c| c.type_ == "PodScheduled" && c.status == "False");
                let message = waits
                    .and_then(|waits| waits.message)
                    .or_else(|| unscheduled.and_then(|c| c.message.clone()));
                self.tell(
                    seen,
                    scheduled,
                    "Pending",
                    &message.unwrap_or_default(),
                    None,
                )
                .await?;
                Ok(Requeue::await_change())
            }
        }
    }

    /// A pod that failed: another one later, or the end.
    async fn again(&self, seen: &Seen, pod: &Pod, pods: &Api<Pod>) -> Result<Requeue, Error> {
        let told = told(pod);
        let restarts = seen
            .dv
            .status
            .as_ref()
            .and_then(|status| status.restart_count)
            .unwrap_or(0);
        if told.is_final || restarts >= RESTARTS {
            let message = if told.is_final {
                told.message
            } else {
                format!("{} ({} attempts)", told.message, restarts + 1)
            };
            self.tell(seen, "Failed", "Error", &message, None).await?;
            self.recorder
                .record(&seen.dv, EventType::Warning, "Error", &message)
                .await;
            warn!(datavolume = %full_name(&seen.dv), message, "failed");
            return Ok(Requeue::await_change());
        }
        let ended = pod
            .status
            .iter()
            .flat_map(|status| status.container_statuses.iter().flatten());
        let ended = ended
            .filter_map(|container| {
                container
                    .state
                    .as_ref()?
                    .terminated
                    .as_ref()?
                    .finished_at
                    .clone()
            })
            .max();
        let due = PAUSE * 2u32.pow(restarts.unsigned_abs().min(6));
        let since = ended.map_or(Duration::ZERO, |at| {
            let seconds = now().0.as_second().saturating_sub(at.0.as_second());
            Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
        });
        if since < due {
            self.tell(seen, phases(&seen.dv).0, "Error", &told.message, None)
                .await?;
            return Ok(Requeue::requeue(due - since));
        }
        self.recorder
            .record(&seen.dv, EventType::Warning, "Error", &told.message)
            .await;
        let mut status = seen.dv.status.clone().unwrap_or_default();
        status.restart_count = Some(restarts + 1);
        self.write(seen, &status).await?;
        match pods.delete(&pod.name_any(), &DeleteParams::default()).await {
            Err(error) if code(&error) != 404 => Err(failed("delete pod", &seen.dv)(error)),
            _ => Ok(Requeue::requeue(LOOK)),
        }
    }

    /// The pod of a claim that is filled goes, unless somebody wants to look at it.
    async fn clean(&self, seen: &Seen, pods: &Api<Pod>) -> Result<Requeue, Error> {
        let retained = seen
            .dv
            .annotations()
            .get(RETAIN)
            .is_some_and(|value| value == "true");
        if let Some(pod) = seen.pod.as_ref().filter(|_| !retained)
            && is_owned(pod, &seen.dv.uid().unwrap_or_default())
            && pod.metadata.deletion_timestamp.is_none()
        {
            match pods.delete(&pod.name_any(), &DeleteParams::default()).await {
                Err(error) if code(&error) != 404 => {
                    return Err(failed("delete pod", &seen.dv)(error));
                }
                _ => {}
            }
        }
        Ok(Requeue::await_change())
    }

    async fn mark_ready(&self, seen: &Seen) -> Result<(), Error> {
        let namespace = seen.dv.namespace().unwrap_or_default();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let patch = json!({"metadata": {"annotations": {READY: "true"}}});
        let patched = claims
            .patch(&seen.dv.name_any(), &manager_patch(), &Patch::Merge(&patch))
            .await;
        patched.map(drop).map_err(failed("mark claim", &seen.dv))
    }

    /// Writes how far it is, where that is news.
    async fn tell(
        &self,
        seen: &Seen,
        phase: &str,
        reason: &str,
        message: &str,
        progress: Option<f64>,
    ) -> Result<(), Error> {
        let mut status = seen.dv.status.clone().unwrap_or_default();
        let is_done = phase == "Succeeded";
        let runs = phase.ends_with("InProgress");
        status.phase = Some(phase.to_owned());
        status.claim_name = Some(seen.dv.name_any());
        if let Some(percent) = progress {
            status.progress = Some(format!("{percent:.2}%"));
        }
        status.progress.get_or_insert_with(|| "N/A".to_owned());
        let bound = seen
            .claim
            .as_ref()
            .and_then(|claim| claim.status.as_ref()?.phase.clone());
        let is_bound = bound.as_deref() == Some("Bound");
        let name = seen.dv.name_any();
        set(
            &mut status,
            "Ready",
            is_done,
            None,
            if is_done { "" } else { message },
        );
        let about = if is_bound {
            format!("PVC {name} Bound")
        } else {
            format!("PVC {name} {}", bound.as_deref().unwrap_or("Pending"))
        };
        set(
            &mut status,
            "Bound",
            is_bound,
            Some(if is_bound { "Bound" } else { "Pending" }),
            &about,
        );
        set(&mut status, "Running", runs, Some(reason), message);
        let is_news = seen
            .dv
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            != Some(phase);
        self.write(seen, &status).await?;
        if is_news {
            self.recorder
                .record(
                    &seen.dv,
                    EventType::Normal,
                    reason_of(phase),
                    &sentence(phase, &name, message),
                )
                .await;
        }
        Ok(())
    }

    async fn write(&self, seen: &Seen, status: &DataVolumeStatus) -> Result<(), Error> {
        let version = seen.dv.resource_version();
        let patch = merge::status_patch(version.as_deref(), seen.dv.status.as_ref(), status)
            .map_err(|e| failed("status", &seen.dv)(kube::Error::SerdeError(e)))?;
        let Some(patch) = patch else {
            return Ok(());
        };
        let own: Api<DataVolume> = Api::namespaced(
            self.client.clone(),
            &seen.dv.namespace().unwrap_or_default(),
        );
        own.patch_status(&seen.dv.name_any(), &manager_patch(), &Patch::Merge(&patch))
            .await
            .map(drop)
            .map_err(failed("status", &seen.dv))
    }
}

/// The words for waiting and for working.
fn phases(dv: &DataVolume) -> (&'static str, &'static str) {
    if dv
        .spec
        .source
        .as_ref()
        .is_some_and(|source| source.pvc.is_some())
    {
        ("CloneScheduled", "CloneInProgress")
    } else {
        ("ImportScheduled", "ImportInProgress")
    }
}

fn reason_of(phase: &str) -> &'static str {
    match phase {
        "ImportScheduled" => "ImportScheduled",
        "ImportInProgress" => "ImportInProgress",
        "CloneScheduled" => "CloneScheduled",
        "CloneInProgress" => "CloneInProgress",
        "Succeeded" => "ImportSucceeded",
        "Failed" => "ImportFailed",
        _ => "Pending",
    }
}

fn sentence(phase: &str, name: &str, message: &str) -> String {
    let begin = match phase {
        "ImportScheduled" | "CloneScheduled" => format!("filling PVC {name} is scheduled"),
        "ImportInProgress" | "CloneInProgress" => format!("PVC {name} is being filled"),
        "Succeeded" => format!("PVC {name} is filled"),
        "Failed" => format!("PVC {name} could not be filled"),
        _ => format!("PVC {name} waits"),
    };
    if message.is_empty() {
        begin
    } else {
        format!("{begin}: {message}")
    }
}

/// The last words of the pod, and what is known where it had none.
fn told(pod: &Pod) -> Told {
    let mut ended = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    let ended = ended.find_map(|container| container.state.as_ref()?.terminated.clone());
    let Some(ended) = ended else {
        return Told {
            message: "the pod failed before it ran".to_owned(),
            is_final: false,
        };
    };
    let said = ended.message.as_deref().unwrap_or_default();
    serde_json::from_str(said).unwrap_or_else(|_| Told {
        message: format!(
            "the pod ended with status {} ({})",
            ended.exit_code,
            ended.reason.unwrap_or_default()
        ),
        is_final: false,
    })
}

fn set(status: &mut DataVolumeStatus, kind: &str, on: bool, reason: Option<&str>, message: &str) {
    let word = if on { "True" } else { "False" };
    let (reason, message) = (
        reason.map(str::to_owned),
        Some(message.to_owned()).filter(|m| !m.is_empty()),
    );
    let time = Some(now());
    match status
        .conditions
        .iter_mut()
        .find(|condition| condition.type_ == kind)
    {
        Some(condition) => {
            if condition.status == word
                && condition.reason == reason
                && condition.message == message
            {
                return;
            }
            if condition.status != word {
                condition.last_transition_time.clone_from(&time);
            }
            word.clone_into(&mut condition.status);
            (
                condition.reason,
                condition.message,
                condition.last_heartbeat_time,
            ) = (reason, message, time);
        }
        None => status.conditions.push(DataVolumeCondition {
            type_: kind.to_owned(),
            status: word.to_owned(),
            reason,
            message,
            last_transition_time: time.clone(),
            last_heartbeat_time: time,
        }),
    }
}
