//! The VirtualMachine controller: a machine that is to run → a VirtualMachineInstance, and the machine's status.
//!
//! Observe → [`plan`] → act, as the [instance's controller](crate::vmi) does it. What users ask for by verbs is in the
//! status ([`stateChangeRequests`](berth_api::kubevirt::v1::VirtualMachineStatus::state_change_requests)), so a request
//! outlives everybody who took it.
//!
//! # Guarantees
//! - Never two instances: they have the machine's name.
//! - An instance of this name that is not the machine's own is never touched; the condition `Failure` tells of it.
//! - Every write names the version that it was planned on.

pub mod plan;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_api::events::{EventType, Recorder};
use berth_api::kubevirt::v1::{
    VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceTemplateSpec,
    VirtualMachineStatus,
};
use berth_api::{labels, merge};
use futures::{FutureExt, StreamExt};
use kube::api::{Api, DeleteParams, Patch, Preconditions};
use kube::runtime::controller::{self, Action as Requeue, trigger_owners, trigger_self};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, applier, watcher};
use kube::{Client, Resource, ResourceExt};
use rand::Rng;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::vmi::{manager_patch, manager_post, now};
use crate::written::Written;
use plan::{Action, Observed, plan};

/// How often a conflicting write is planned anew within one reconcile.
const ATTEMPTS: usize = 5;
/// First pause after a failed reconcile; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Why a reconcile failed. It is tried again with a growing pause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request to the API server.
    #[error("{name}: {operation}")]
    Api {
        /// What was asked.
        operation: &'static str,
        /// `namespace/name` of the machine.
        name: String,
        /// The answer.
        source: Box<kube::Error>,
    },
    /// Somebody else kept changing the machine.
    #[error("status of {0}: still in conflict after {ATTEMPTS} attempts")]
    Conflict(String),
    /// The instance was refused, which the status tells.
    #[error("{0}: {1}")]
    Refused(String, String),
}

/// Runs the controller until `shutdown`.
pub async fn run(client: Client, recorder: Recorder, shutdown: CancellationToken) {
    let (machines, machines_writer) = reflector::store::<VirtualMachine>();
    let (instances, instances_writer) = reflector::store::<VirtualMachineInstance>();
    let machine_watch = watcher(
        Api::<VirtualMachine>::all(client.clone()),
        watcher::Config::default(),
    )
    .default_backoff();
    let instance_watch = watcher(
        Api::<VirtualMachineInstance>::all(client.clone()),
        watcher::Config::default(),
    )
    .default_backoff();
    let machine_triggers = trigger_self(
        reflector::reflector(machines_writer, machine_watch).touched_objects(),
        (),
    );
    let instance_triggers = trigger_owners::<VirtualMachine, _>(
        reflector::reflector(instances_writer, instance_watch).touched_objects(),
        (),
        (),
    );
    let queue = futures::stream::select(machine_triggers, instance_triggers)
        .take_until(shutdown.cancelled_owned());
    let controller = Arc::new(Controller {
        client,
        recorder,
        instances,
        made: Mutex::default(),
        failures: Mutex::default(),
        written: Written::default(),
    });
    let outcomes = applier(
        |vm, controller: Arc<Controller>| async move { controller.reconcile(vm).await }.boxed(),
        |vm, _error, controller| Requeue::requeue(controller.pause_after_failure(&vm)),
        controller,
        machines,
        queue,
        controller::Config::default().concurrency(16),
    );
    outcomes
        .for_each(|outcome| async {
            match outcome {
                Ok(_) => {}
                // An instance's event for a machine that is gone.
                Err(controller::Error::ObjectNotFound(object)) => debug!(%object, "vm: gone"),
                Err(error) => {
                    warn!(error = %crate::chain(&error), "vm: reconcile failed, will be tried again");
                }
            }
        })
        .await;
}

struct Controller {
    client: Client,
    recorder: Recorder,
    instances: Store<VirtualMachineInstance>,
    /// Instances made here that the cache has not shown yet: machine UID → instance.
    made: Mutex<HashMap<String, Arc<VirtualMachineInstance>>>,
    /// Failed reconciles in a row, and why the last instance was refused, by machine UID.
    failures: Mutex<HashMap<String, (u32, Option<String>)>>,
    written: Written,
}

/// Locks a map. Nothing here panics while it holds one, so a poisoned map is still whole.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn full_name(vm: &VirtualMachine) -> String {
    format!("{}/{}", vm.namespace().unwrap_or_default(), vm.name_any())
}

fn failed(
    operation: &'static str,
    vm: &VirtualMachine,
) -> impl FnOnce(kube::Error) -> Error + use<> {
    let name = full_name(vm);
    move |source| Error::Api {
        operation,
        name,
        source: Box::new(source),
    }
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

/// What became of one step of a plan.
enum Step {
    Done,
    /// The machine changed meanwhile: read it again and plan anew.
    Stale,
}

impl Controller {
    async fn reconcile(&self, vm: Arc<VirtualMachine>) -> Result<Requeue, Error> {
        let uid = vm.uid().unwrap_or_default();
        if self.written.is_ahead_of(&*vm) {
            return Ok(Requeue::await_change());
        }
        // The cache must be filled before it can be asked; this waits only at the start of the process.
        let _ = self.instances.wait_until_ready().await;
        let mut vm = vm;
        for _ in 0..ATTEMPTS {
            let vmi = self.instance_of(&vm);
            let digest = digest(&vm.spec.template);
            let refused = locked(&self.failures)
                .get(&uid)
                .and_then(|(_, refused)| refused.clone());
            let plan = plan(&Observed {
                vm: &vm,
                vmi: vmi.as_deref(),
                digest: &digest,
                refused: refused.as_deref(),
                now: now(),
                jitter: rand::rng().random(),
            });
            if self.act(&vm, &digest, plan.actions).await? {
                if refused.is_none() {
                    locked(&self.failures).remove(&uid);
                }
                return Ok(plan
                    .again
                    .map_or_else(Requeue::await_change, Requeue::requeue));
            }
            let api = self.machines(&vm);
            let fresh = api.get_opt(&vm.name_any()).await;
            match fresh.map_err(failed("get", &vm))? {
                Some(fresh) if fresh.uid().as_deref() == Some(&uid) => vm = Arc::new(fresh),
                _ => {
                    self.forget(&uid);
                    return Ok(Requeue::await_change());
                }
            }
        }
        Err(Error::Conflict(full_name(&vm)))
    }

    fn pause_after_failure(&self, vm: &VirtualMachine) -> Duration {
        let mut failures = locked(&self.failures);
        let (count, _) = failures.entry(vm.uid().unwrap_or_default()).or_default();
        *count = count.saturating_add(1);
        RETRY_MIN
            .saturating_mul(1 << (*count - 1).min(16))
            .min(RETRY_MAX)
    }

    fn forget(&self, uid: &str) {
        locked(&self.made).remove(uid);
        locked(&self.failures).remove(uid);
        self.written.forget(uid);
    }

    fn machines(&self, vm: &VirtualMachine) -> Api<VirtualMachine> {
        Api::namespaced(
            self.client.clone(),
            vm.namespace().as_deref().unwrap_or("default"),
        )
    }

    fn instances_of(&self, vm: &VirtualMachine) -> Api<VirtualMachineInstance> {
        Api::namespaced(
            self.client.clone(),
            vm.namespace().as_deref().unwrap_or("default"),
        )
    }

    /// The machine's instance: from the cache, or what was made here while the cache lacks it.
    fn instance_of(&self, vm: &VirtualMachine) -> Option<Arc<VirtualMachineInstance>> {
        let uid = vm.uid().unwrap_or_default();
        let wanted = reflector::ObjectRef::<VirtualMachineInstance>::new(&vm.name_any())
            .within(vm.namespace().as_deref().unwrap_or("default"));
        let cached = self
            .instances
            .get(&wanted)
            .filter(|vmi| is_owned(vmi, &uid));
        let mut made = locked(&self.made);
        match (cached, made.get(&uid)) {
            (Some(cached), Some(new)) if is_older(&cached, new) => Some(new.clone()),
            (Some(cached), _) => {
                made.remove(&uid);
                Some(cached)
            }
            (None, new) => new.cloned(),
        }
    }

    /// Takes the steps in order; false when the machine changed meanwhile.
    async fn act(
        &self,
        vm: &VirtualMachine,
        digest: &str,
        actions: Vec<Action>,
    ) -> Result<bool, Error> {
        // Each write moves the version; the next one must name it.
        let mut version = vm.resource_version();
        for action in actions {
            let step = match action {
                Action::Create => self.create(vm, digest).await?,
                Action::Delete(uid) => self.delete(vm, &uid).await?,
                Action::RemoveFinalizer => self.remove_finalizer(vm, &version).await?,
                Action::WriteStatus(status) => self.write_status(vm, &status, &mut version).await?,
                Action::Event(type_, reason, message) => {
                    self.recorder.record(vm, type_, &reason, &message).await;
                    Step::Done
                }
            };
            if matches!(step, Step::Stale) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn create(&self, vm: &VirtualMachine, digest: &str) -> Result<Step, Error> {
        let uid = vm.uid().unwrap_or_default();
        let api = self.instances_of(vm);
        let name = vm.name_any();
        let refused = match api.create(&manager_post(), &instance(vm, digest)).await {
            Ok(vmi) => {
                info!(vm = %full_name(vm), "started");
                locked(&self.made).insert(uid.clone(), Arc::new(vmi));
                locked(&self.failures).remove(&uid);
                let message = format!(
                    "Started the virtual machine by creating the new virtual machine instance {name}"
                );
                self.recorder
                    .normal(vm, labels::REASON_SUCCESSFUL_CREATE, &message)
                    .await;
                return Ok(Step::Done);
            }
            Err(error) if code(&error) == 409 => {
                let there = api
                    .get_opt(&name)
                    .await
                    .map_err(failed("read instance", vm))?;
                match there {
                    // The cache is behind.
                    Some(vmi) if is_owned(&vmi, &uid) => {
                        locked(&self.made).insert(uid, Arc::new(vmi));
                        return Ok(Step::Done);
                    }
                    Some(_) => format!(
                        "virtualmachineinstance {name:?} exists and is not this virtual machine's"
                    ),
                    // It went meanwhile.
                    None => return Ok(Step::Stale),
                }
            }
            Err(kube::Error::Api(answer)) if answer.code < 500 => answer.message.clone(),
            Err(error) => return Err(failed("create instance", vm)(error)),
        };
        let news = {
            let mut failures = locked(&self.failures);
            let (_, known) = failures.entry(uid).or_default();
            let news = known.as_ref() != Some(&refused);
            *known = Some(refused.clone());
            news
        };
        if news {
            let message = format!("Error creating virtual machine instance: {refused}");
            self.recorder
                .record(
                    vm,
                    EventType::Warning,
                    labels::REASON_FAILED_CREATE,
                    &message,
                )
                .await;
            // The status is to tell of it now, not after the pause.
            return Ok(Step::Stale);
        }
        Err(Error::Refused(full_name(vm), refused))
    }

    async fn delete(&self, vm: &VirtualMachine, uid: &str) -> Result<Step, Error> {
        let name = vm.name_any();
        let only = DeleteParams::default().preconditions(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        });
        match self.instances_of(vm).delete(&name, &only).await {
            Ok(_) => {
                info!(vm = %full_name(vm), "instance deletion asked for");
                // What is remembered has no deletion timestamp.
                locked(&self.made).remove(&vm.uid().unwrap_or_default());
                let message = format!(
                    "Stopped the virtual machine by deleting the virtual machine instance {name}"
                );
                self.recorder
                    .normal(vm, labels::REASON_SUCCESSFUL_DELETE, &message)
                    .await;
                Ok(Step::Done)
            }
            // Another one has its name by now, or it is gone.
            Err(error) if matches!(code(&error), 404 | 409) => {
                locked(&self.made).remove(&vm.uid().unwrap_or_default());
                Ok(Step::Done)
            }
            Err(error) => Err(failed("delete instance", vm)(error)),
        }
    }

    async fn remove_finalizer(
        &self,
        vm: &VirtualMachine,
        version: &Option<String>,
    ) -> Result<Step, Error> {
        let left: Vec<&String> = vm
            .finalizers()
            .iter()
            .filter(|f| *f != labels::VM_FINALIZER)
            .collect();
        let patch = json!({"metadata": {"resourceVersion": version, "finalizers": left}});
        let patched = self
            .machines(vm)
            .patch(&vm.name_any(), &manager_patch(), &Patch::Merge(&patch))
            .await;
        let mut version = version.clone();
        let step = stale_or(patched, "remove finalizer", vm, &mut version, &self.written)?;
        if matches!(step, Step::Done) {
            self.forget(&vm.uid().unwrap_or_default());
        }
        Ok(step)
    }

    async fn write_status(
        &self,
        vm: &VirtualMachine,
        status: &VirtualMachineStatus,
        version: &mut Option<String>,
    ) -> Result<Step, Error> {
        let patch = merge::status_patch(version.as_deref(), vm.status.as_ref(), status)
            .map_err(|e| failed("status", vm)(kube::Error::SerdeError(e)))?;
        let Some(patch) = patch else {
            return Ok(Step::Done);
        };
        let patched = self
            .machines(vm)
            .patch_status(&vm.name_any(), &manager_patch(), &Patch::Merge(&patch))
            .await;
        stale_or(patched, "status", vm, version, &self.written)
    }
}

/// A conflict means: read and plan again. A missing machine means there is nothing left to do for it, which the
/// same re-reading finds out.
fn stale_or(
    patched: Result<VirtualMachine, kube::Error>,
    operation: &'static str,
    vm: &VirtualMachine,
    version: &mut Option<String>,
    written: &Written,
) -> Result<Step, Error> {
    match patched {
        Ok(answer) => {
            written.note(&answer);
            *version = answer.resource_version();
            Ok(Step::Done)
        }
        Err(error) if matches!(code(&error), 404 | 409) => Ok(Step::Stale),
        Err(error) => Err(failed(operation, vm)(error)),
    }
}

/// True when the machine with this UID controls the instance.
fn is_owned(vmi: &VirtualMachineInstance, uid: &str) -> bool {
    vmi.owner_references()
        .iter()
        .any(|o| o.controller == Some(true) && o.uid == uid)
}

/// Whether the cache still shows the instance before the one that was made here.
fn is_older(cached: &VirtualMachineInstance, made: &VirtualMachineInstance) -> bool {
    let created = |vmi: &VirtualMachineInstance| vmi.creation_timestamp();
    cached.uid() != made.uid() && created(cached) <= created(made)
}

/// What tells a template from another.
fn digest(template: &VirtualMachineInstanceTemplateSpec) -> String {
    let text = serde_json::to_vec(template).unwrap_or_default();
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &text)
        .simple()
        .to_string()
}

/// The instance of a machine.
fn instance(vm: &VirtualMachine, digest: &str) -> VirtualMachineInstance {
    let template = &vm.spec.template;
    let given = template.metadata.clone().unwrap_or_default();
    let mut vmi = VirtualMachineInstance::new(&vm.name_any(), template.spec.clone());
    vmi.metadata.namespace = vm.namespace();
    vmi.metadata.labels = Some(given.labels);
    let mut annotations = given.annotations;
    let generation = vm.metadata.generation.unwrap_or_default();
    annotations.insert(labels::VM_GENERATION.to_owned(), generation.to_string());
    annotations.insert(labels::TEMPLATE_DIGEST.to_owned(), digest.to_owned());
    vmi.metadata.annotations = Some(annotations);
    vmi.metadata.owner_references = vm.controller_owner_ref(&()).map(|mut owner| {
        owner.block_owner_deletion = Some(true);
        vec![owner]
    });
    vmi
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_its_machines() {
        let vm: VirtualMachine = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            "metadata": {"name": "vm", "namespace": "lab", "uid": "m1", "generation": 2},
            "spec": {"running": true, "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"domain": {"devices": {}}},
            }},
        }))
        .unwrap();
        let digest = digest(&vm.spec.template);
        let vmi = instance(&vm, &digest);
        assert!(is_owned(&vmi, "m1"));
        assert_eq!(vmi.labels()["app"], "web");
        assert_eq!(vmi.annotations()[labels::VM_GENERATION], "2");
        let mut other = vm.clone();
        other.spec.template.spec.hostname = Some("h".into());
        assert_ne!(super::digest(&other.spec.template), digest);
    }
}
