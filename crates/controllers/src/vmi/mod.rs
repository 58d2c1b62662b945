//! The VirtualMachineInstance controller: a machine → its launcher pod, and the machine's status until the node
//! agent has it.
//!
//! Observe → [`plan`] → act. A change of a machine or of a pod that it owns wakes the reconciler for that machine;
//! at most one reconcile of a machine runs at a time.
//!
//! # Guarantees
//! - Never a second launcher pod: before a creation the API server itself is asked for pods of this machine, not
//!   the cache, and a created pod is remembered until the cache has it.
//! - A status is written as a merge patch of the changed fields with the version that was read. On a conflict
//!   the machine is read again and planned anew; nothing is overwritten unseen.

pub mod launcher_pod;
pub mod plan;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth_api::cdi::v1beta1::DataVolume;
use berth_api::events::{EventType, Recorder};
use berth_api::kubevirt::v1::{VirtualMachineInstance, VirtualMachineInstanceStatus};
use berth_api::settings::{Known, current};
use berth_api::{labels, merge, quantity};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, DeleteParams, ListParams, Patch};
use kube::runtime::controller::{self, Action as Requeue, trigger_owners, trigger_self};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, applier, watcher};
use kube::{Client, ResourceExt};
use rand::Rng;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::Settings;
use crate::reconcile::{
    ATTEMPTS, Error, Failures, Step, code, failed, full_name, is_owned, locked, manager_patch,
    manager_post, now, report, stale_or,
};
use crate::written::Written;
use launcher_pod::{Claim, Claims};
use plan::{Action, Observed, plan};

/// Runs the controller until `shutdown`.
pub async fn run(
    settings: Settings,
    known: watch::Receiver<Known>,
    client: Client,
    recorder: Recorder,
    shutdown: CancellationToken,
) {
    let (machines, machines_writer) = reflector::store::<VirtualMachineInstance>();
    let (pods, pods_writer) = reflector::store::<Pod>();
    let machine_watch = watcher(
        Api::<VirtualMachineInstance>::all(client.clone()),
        watcher::Config::default(),
    )
    .default_backoff();
    let launchers =
        watcher::Config::default().labels(&format!("{}={}", labels::APP, labels::LAUNCHER));
    let pod_watch = watcher(Api::<Pod>::all(client.clone()), launchers).default_backoff();
    let machine_triggers = trigger_self(
        reflector::reflector(machines_writer, machine_watch).touched_objects(),
        (),
    );
    let pod_triggers = trigger_owners::<VirtualMachineInstance, _>(
        reflector::reflector(pods_writer, pod_watch).touched_objects(),
        (),
        (),
    );
    let queue = futures::stream::select(machine_triggers, pod_triggers)
        .take_until(shutdown.cancelled_owned());

    let controller = Arc::new(Controller {
        settings,
        known,
        client,
        recorder,
        pods,
        created: Mutex::default(),
        down_since: Mutex::default(),
        failures: Failures::default(),
        written: Written::default(),
    });
    let outcomes = applier(
        |vmi, controller: Arc<Controller>| async move { controller.reconcile(vmi).await }.boxed(),
        |vmi, _error, controller| {
            Requeue::requeue(controller.failures.pause(vmi.uid().unwrap_or_default()))
        },
        controller,
        machines,
        queue,
        // Machines start side by side; a slow answer for one does not hold up the others.
        controller::Config::default().concurrency(16),
    );
    report("vmi", outcomes).await;
}

struct Controller {
    settings: Settings,
    /// The settings of the installation.
    known: watch::Receiver<Known>,
    client: Client,
    recorder: Recorder,
    pods: Store<Pod>,
    /// Pods made here that the cache has not shown yet: machine UID → pod UID.
    created: Mutex<HashMap<String, String>>,
    /// Since when no pod of the machine was alive, by machine UID.
    down_since: Mutex<HashMap<String, Instant>>,
    /// Failed reconciles in a row, by machine UID.
    failures: Failures,
    written: Written,
}

impl Controller {
    async fn reconcile(&self, vmi: Arc<VirtualMachineInstance>) -> Result<Requeue, Error> {
        let uid = vmi.uid().unwrap_or_default();
        if self.written.is_ahead_of(&*vmi) {
            return Ok(Requeue::await_change());
        }
        // The pod cache must be filled before it can be asked; this waits only at the start of the process.
        let _ = self.pods.wait_until_ready().await;
        let mut vmi = vmi;
        for _ in 0..ATTEMPTS {
            let pods = self.observe_pods(&vmi).await?;
            let refs: Vec<&Pod> = pods.iter().map(Arc::as_ref).collect();
            let down_for = self.down_for(&uid, &refs);
            let plan = plan(&Observed {
                vmi: &vmi,
                pods: &refs,
                down_for,
                now: now(),
            });
            if self.act(&vmi, plan.actions).await? {
                self.failures.forget(&uid);
                return Ok(plan
                    .again
                    .map_or_else(Requeue::await_change, Requeue::requeue));
            }
            match self
                .machines(&vmi)
                .get_opt(&vmi.name_any())
                .await
                .map_err(failed("get", &*vmi))?
            {
                Some(fresh) if fresh.uid().as_deref() == Some(&uid) => vmi = Arc::new(fresh),
                _ => {
                    self.forget(&uid);
                    return Ok(Requeue::await_change());
                }
            }
        }
        Err(Error::Conflict(full_name(&*vmi)))
    }

    fn forget(&self, uid: &str) {
        locked(&self.created).remove(uid);
        locked(&self.down_since).remove(uid);
        self.failures.forget(uid);
        self.written.forget(uid);
    }

    fn machines(&self, vmi: &VirtualMachineInstance) -> Api<VirtualMachineInstance> {
        Api::namespaced(
            self.client.clone(),
            vmi.namespace().as_deref().unwrap_or("default"),
        )
    }

    fn pods_of(&self, vmi: &VirtualMachineInstance) -> Api<Pod> {
        Api::namespaced(
            self.client.clone(),
            vmi.namespace().as_deref().unwrap_or("default"),
        )
    }

    /// The machine's pods: from the cache, or from the API server while the cache lacks one that was made here.
    async fn observe_pods(&self, vmi: &VirtualMachineInstance) -> Result<Vec<Arc<Pod>>, Error> {
        let uid = vmi.uid().unwrap_or_default();
        let cached: Vec<Arc<Pod>> = self
            .pods
            .state()
            .into_iter()
            .filter(|p| is_owned(&**p, &uid))
            .collect();
        let expected = locked(&self.created).get(&uid).cloned();
        let Some(expected) = expected else {
            return Ok(cached);
        };
        if cached.iter().any(|p| p.uid().as_deref() == Some(&expected)) {
            locked(&self.created).remove(&uid);
            return Ok(cached);
        }
        let live = self.list_pods(vmi).await?;
        if !live.iter().any(|p| p.uid().as_deref() == Some(&expected)) {
            locked(&self.created).remove(&uid);
        }
        Ok(live)
    }

    /// The machine's pods by the word of the API server.
    async fn list_pods(&self, vmi: &VirtualMachineInstance) -> Result<Vec<Arc<Pod>>, Error> {
        let uid = vmi.uid().unwrap_or_default();
        let by_owner = ListParams::default().labels(&format!("{}={uid}", labels::CREATED_BY));
        let list = self
            .pods_of(vmi)
            .list(&by_owner)
            .await
            .map_err(failed("list pods", vmi))?;
        Ok(list
            .items
            .into_iter()
            .filter(|p| is_owned(p, &uid))
            .map(Arc::new)
            .collect())
    }

    fn down_for(&self, uid: &str, pods: &[&Pod]) -> Duration {
        let mut down = locked(&self.down_since);
        if pods.iter().any(|p| !crate::scheduler::is_over(p)) {
            down.remove(uid);
            return Duration::ZERO;
        }
        down.entry(uid.to_owned())
            .or_insert_with(Instant::now)
            .elapsed()
    }

    /// Takes the steps in order; false when the machine changed meanwhile.
    async fn act(&self, vmi: &VirtualMachineInstance, actions: Vec<Action>) -> Result<bool, Error> {
        // Each write moves the version; the next one must name it.
        let mut version = vmi.resource_version();
        for action in actions {
            let step = match action {
                Action::CreatePod => match self.create_pod(vmi).await {
                    Ok(step) => step,
                    Err(error) => {
                        let (reason, message) = match &error {
                            Error::Waits(_, why) => (labels::REASON_CLAIM_NOT_FOUND, why.clone()),
                            Error::DataVolume { failed, why, .. } if *failed => {
                                (labels::REASON_DATA_VOLUME_FAILED, why.clone())
                            }
                            Error::DataVolume { why, .. } => {
                                (labels::REASON_DATA_VOLUME_WAITS, why.clone())
                            }
                            other => (labels::REASON_FAILED_CREATE, crate::chain(other)),
                        };
                        self.write_pending(vmi, reason, &message, &mut version)
                            .await;
                        return Err(error);
                    }
                },
                Action::DeletePod(name) => self.delete_pod(vmi, &name).await?,
                Action::LabelNode(node) => self.label_node(vmi, &node, &mut version).await?,
                Action::PodUnpaused(name, unpaused) => {
                    self.pod_unpaused(vmi, &name, unpaused).await?
                }
                Action::RemoveFinalizer => self.remove_finalizer(vmi, &version).await?,
                Action::WriteStatus(status) => {
                    self.write_status(vmi, &status, &mut version).await?
                }
                Action::Event(type_, reason, message) => {
                    self.recorder.record(vmi, type_, &reason, &message).await;
                    Step::Done
                }
            };
            if matches!(step, Step::Stale) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the claims are that the machine's volumes name. A claim that is not there is waited for.
    async fn claims(&self, vmi: &VirtualMachineInstance) -> Result<Claims, Error> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(
            self.client.clone(),
            vmi.namespace().as_deref().unwrap_or("default"),
        );
        let mut claims = Claims::new();
        for (volume, name) in launcher_pod::claimed(&vmi.spec) {
            self.is_filled(vmi, &volume.name, name).await?;
            let found = api
                .get_opt(name)
                .await
                .map_err(failed("read persistentvolumeclaim", vmi))?;
            let Some(found) = found else {
                let message = format!(
                    "volume {}: there is no persistentvolumeclaim {name:?}",
                    volume.name
                );
                self.recorder
                    .record(
                        vmi,
                        EventType::Warning,
                        labels::REASON_CLAIM_NOT_FOUND,
                        &message,
                    )
                    .await;
                return Err(Error::Waits(full_name(vmi), message));
            };
            let storage = |list: Option<&BTreeMap<String, Quantity>>| {
                quantity::parse_bytes(list?.get("storage")?).ok()
            };
            let asked = found
                .spec
                .as_ref()
                .and_then(|spec| storage(spec.resources.as_ref()?.requests.as_ref()));
            let there = found
                .status
                .as_ref()
                .and_then(|status| storage(status.capacity.as_ref()));
            let mode = found.spec.and_then(|spec| spec.volume_mode);
            let claim = Claim {
                block: mode.as_deref() == Some("Block"),
                size: there.or(asked).unwrap_or(0),
            };
            claims.insert(name.to_owned(), claim);
        }
        Ok(claims)
    }

    /// A DataVolume of this name is waited for: a claim that is half filled is no disk.
    async fn is_filled(
        &self,
        vmi: &VirtualMachineInstance,
        volume: &str,
        name: &str,
    ) -> Result<(), Error> {
        let api: Api<DataVolume> = Api::namespaced(
            self.client.clone(),
            vmi.namespace().as_deref().unwrap_or("default"),
        );
        let found = api.get_opt(name).await;
        let found = found.map_err(failed("read datavolume", vmi))?;
        let status = found.and_then(|found| found.status.or_else(|| Some(Default::default())));
        let Some(status) = status else {
            return Ok(());
        };
        let phase = status.phase.as_deref().unwrap_or("Pending");
        if phase == "Succeeded" {
            return Ok(());
        }
        let about = status.conditions.iter().find(|c| c.type_ == "Running");
        let about = about.and_then(|c| c.message.as_deref()).unwrap_or_default();
        let progress = status.progress.as_deref().unwrap_or("N/A");
        Err(Error::DataVolume {
            name: full_name(vmi),
            failed: phase == "Failed",
            why: format!("volume {volume}: datavolume {name:?} is {phase}, {progress}: {about}"),
        })
    }

    async fn create_pod(&self, vmi: &VirtualMachineInstance) -> Result<Step, Error> {
        let existing = self.list_pods(vmi).await?;
        if let Some(pod) = existing.first() {
            // The cache is behind; what it lacks is what `observe_pods` looks for next time.
            locked(&self.created)
                .insert(vmi.uid().unwrap_or_default(), pod.uid().unwrap_or_default());
            return Ok(Step::Stale);
        }
        let claims = self.claims(vmi).await?;
        let configuration = current(&self.known).await;
        let pod = launcher_pod::launcher_pod(
            vmi,
            &claims,
            &self.settings,
            &configuration,
            &random_suffix(),
        );
        match self.pods_of(vmi).create(&manager_post(), &pod).await {
            Ok(pod) => {
                let name = pod.name_any();
                locked(&self.created)
                    .insert(vmi.uid().unwrap_or_default(), pod.uid().unwrap_or_default());
                info!(vmi = %full_name(vmi), pod = %name, "launcher pod created");
                let message = format!("Created virtual machine pod {name}");
                self.recorder
                    .normal(vmi, labels::REASON_SUCCESSFUL_CREATE, &message)
                    .await;
                Ok(Step::Done)
            }
            // The name is taken by a pod of something else: another random name.
            Err(error) if code(&error) == 409 => Ok(Step::Stale),
            Err(error) => {
                let message = format!("Error creating pod: {error}");
                self.recorder
                    .record(
                        vmi,
                        EventType::Warning,
                        labels::REASON_FAILED_CREATE,
                        &message,
                    )
                    .await;
                Err(failed("create pod", vmi)(error))
            }
        }
    }

    async fn delete_pod(&self, vmi: &VirtualMachineInstance, name: &str) -> Result<Step, Error> {
        match self
            .pods_of(vmi)
            .delete(name, &DeleteParams::default())
            .await
        {
            Ok(_) => {
                info!(vmi = %full_name(vmi), pod = name, "launcher pod deletion asked for");
                Ok(Step::Done)
            }
            Err(error) if code(&error) == 404 => Ok(Step::Done),
            Err(error) => Err(failed("delete pod", vmi)(error)),
        }
    }

    /// The gate of the pod's readiness: a Service leads to guests that run, not to launchers.
    async fn pod_unpaused(
        &self,
        vmi: &VirtualMachineInstance,
        name: &str,
        unpaused: bool,
    ) -> Result<Step, Error> {
        let patch = json!({"status": {"conditions": [{
            "type": labels::UNPAUSED,
            "status": if unpaused { "True" } else { "False" },
            "reason": if unpaused { "NotPaused" } else { "Paused" },
            "lastTransitionTime": now(),
        }]}});
        match self
            .pods_of(vmi)
            .patch_status(name, &manager_patch(), &Patch::Strategic(&patch))
            .await
        {
            Ok(_) => Ok(Step::Done),
            Err(error) if code(&error) == 404 => Ok(Step::Done),
            Err(error) => Err(failed("pod status", vmi)(error)),
        }
    }

    async fn label_node(
        &self,
        vmi: &VirtualMachineInstance,
        node: &str,
        version: &mut Option<String>,
    ) -> Result<Step, Error> {
        let patch =
            json!({"metadata": {"resourceVersion": version, "labels": {labels::NODE_NAME: node}}});
        let patched = self
            .machines(vmi)
            .patch(&vmi.name_any(), &manager_patch(), &Patch::Merge(&patch))
            .await;
        stale_or(patched, "label", vmi, version, &self.written)
    }

    async fn write_status(
        &self,
        vmi: &VirtualMachineInstance,
        status: &VirtualMachineInstanceStatus,
        version: &mut Option<String>,
    ) -> Result<Step, Error> {
        let patch = merge::status_patch(version.as_deref(), vmi.status.as_ref(), status)
            .map_err(|e| failed("status", vmi)(kube::Error::SerdeError(e)))?;
        let Some(patch) = patch else {
            return Ok(Step::Done);
        };
        let patched = self
            .machines(vmi)
            .patch_status(&vmi.name_any(), &manager_patch(), &Patch::Merge(&patch))
            .await;
        if patched.is_ok() && vmi.status.as_ref().and_then(|s| s.phase) != status.phase {
            let phase = status.phase.map_or("", |p| p.as_str());
            info!(vmi = %full_name(vmi), phase, reason = status.reason.as_deref(), "phase");
        }
        stale_or(patched, "status", vmi, version, &self.written)
    }

    /// Shows that the machine waits for its pod. If that cannot be written either, the next attempt writes it.
    async fn write_pending(
        &self,
        vmi: &VirtualMachineInstance,
        reason: &str,
        message: &str,
        version: &mut Option<String>,
    ) {
        let seen = Observed {
            vmi,
            pods: &[],
            down_for: Duration::ZERO,
            now: now(),
        };
        let status = plan::pending(&seen, reason, message);
        if let Err(error) = self.write_status(vmi, &status, version).await {
            debug!(error = %crate::chain(&error), "vmi: status");
        }
    }

    async fn remove_finalizer(
        &self,
        vmi: &VirtualMachineInstance,
        version: &Option<String>,
    ) -> Result<Step, Error> {
        // By the server's word, not the cache's: a pod that the cache has not seen must not be orphaned.
        if !self.list_pods(vmi).await?.is_empty() {
            return Ok(Step::Done);
        }
        let left: Vec<&String> = vmi
            .finalizers()
            .iter()
            .filter(|f| *f != labels::VMI_FINALIZER)
            .collect();
        let patch = json!({"metadata": {"resourceVersion": version, "finalizers": left}});
        let patched = self
            .machines(vmi)
            .patch(&vmi.name_any(), &manager_patch(), &Patch::Merge(&patch))
            .await;
        let mut version = version.clone();
        let step = stale_or(
            patched,
            "remove finalizer",
            vmi,
            &mut version,
            &self.written,
        )?;
        if matches!(step, Step::Done) {
            info!(vmi = %full_name(vmi), "released");
            self.forget(&vmi.uid().unwrap_or_default());
        }
        Ok(step)
    }
}

/// Five characters for a pod name; no vowels and no look-alikes, as the API server's own generated names.
fn random_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    (0..5)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect()
}
