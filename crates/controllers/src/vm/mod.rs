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
use std::sync::{Arc, Mutex};

use berth_api::cdi::v1beta1::DataVolume;
use berth_api::events::{EventType, Recorder};
use berth_api::kubevirt::v1::{
    VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceTemplateSpec,
    VirtualMachineStatus, start_revision,
};
use berth_api::{labels, merge};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{Api, DeleteParams, ListParams, Patch, Preconditions};
use kube::runtime::controller::{self, Action as Requeue, trigger_owners, trigger_self};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, applier, watcher};
use kube::{Client, Resource, ResourceExt};
use rand::Rng;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::reconcile::{
    ATTEMPTS, Error, Failures, Step, code, failed, full_name, is_owned, locked, manager_patch,
    manager_post, now, report, stale_or,
};
use crate::written::Written;
use plan::{Action, Observed, plan};

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
        refused: Mutex::default(),
        failures: Failures::default(),
        written: Written::default(),
    });
    let outcomes = applier(
        |vm, controller: Arc<Controller>| async move { controller.reconcile(vm).await }.boxed(),
        |vm, _error, controller| {
            Requeue::requeue(controller.failures.pause(vm.uid().unwrap_or_default()))
        },
        controller,
        machines,
        queue,
        controller::Config::default().concurrency(16),
    );
    report("vm", outcomes).await;
}

struct Controller {
    client: Client,
    recorder: Recorder,
    instances: Store<VirtualMachineInstance>,
    /// Instances made here that the cache has not shown yet: machine UID → instance UID.
    made: Mutex<HashMap<String, String>>,
    /// Why the last instance was refused, by machine UID.
    refused: Mutex<HashMap<String, String>>,
    failures: Failures,
    written: Written,
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
            self.ensure_volumes(&vm).await?;
            let vmi = self.instance_of(&vm).await?;
            let digest = digest(&vm.spec.template);
            let refused = locked(&self.refused).get(&uid).cloned();
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
                    self.failures.forget(&uid);
                }
                return Ok(plan
                    .again
                    .map_or_else(Requeue::await_change, Requeue::requeue));
            }
            let api = self.machines(&vm);
            let fresh = api.get_opt(&vm.name_any()).await;
            match fresh.map_err(failed("get", &*vm))? {
                Some(fresh) if fresh.uid().as_deref() == Some(&uid) => vm = Arc::new(fresh),
                _ => {
                    self.forget(&uid);
                    return Ok(Requeue::await_change());
                }
            }
        }
        Err(Error::Conflict(full_name(&*vm)))
    }

    fn forget(&self, uid: &str) {
        locked(&self.made).remove(uid);
        locked(&self.refused).remove(uid);
        self.failures.forget(uid);
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

    /// The machine's instance: from the cache, or from the API server while the cache lacks the one that was made here.
    async fn instance_of(
        &self,
        vm: &VirtualMachine,
    ) -> Result<Option<Arc<VirtualMachineInstance>>, Error> {
        let uid = vm.uid().unwrap_or_default();
        let name = vm.name_any();
        let wanted = reflector::ObjectRef::<VirtualMachineInstance>::new(&name)
            .within(vm.namespace().as_deref().unwrap_or("default"));
        let own = |vmi: &VirtualMachineInstance| is_owned(vmi, &uid);
        let cached = self.instances.get(&wanted).filter(|vmi| own(vmi));
        let expected = locked(&self.made).get(&uid).cloned();
        let Some(expected) = expected else {
            return Ok(cached);
        };
        let is_it = |vmi: &VirtualMachineInstance| vmi.uid().as_deref() == Some(&*expected);
        if cached.as_deref().is_some_and(is_it) {
            locked(&self.made).remove(&uid);
            return Ok(cached);
        }
        let live = self.instances_of(vm).get_opt(&name).await;
        let live = live.map_err(failed("read instance", vm))?.filter(own);
        if !live.as_ref().is_some_and(is_it) {
            locked(&self.made).remove(&uid);
        }
        Ok(live.map(Arc::new))
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
                Action::Create { paused } => self.create(vm, digest, paused).await?,
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

    async fn create(&self, vm: &VirtualMachine, digest: &str, paused: bool) -> Result<Step, Error> {
        let uid = vm.uid().unwrap_or_default();
        let api = self.instances_of(vm);
        let name = vm.name_any();
        let mut wanted = instance(vm, digest);
        if paused {
            wanted.spec.start_strategy = Some("Paused".to_owned());
        }
        // Before the instance, which names it.
        self.record_revision(vm).await?;
        let refused = match api.create(&manager_post(), &wanted).await {
            Ok(vmi) => {
                info!(vm = %full_name(vm), "started");
                locked(&self.made).insert(uid.clone(), vmi.uid().unwrap_or_default());
                locked(&self.refused).remove(&uid);
                self.failures.forget(&uid);
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
                        locked(&self.made).insert(uid, vmi.uid().unwrap_or_default());
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
        let news = locked(&self.refused).insert(uid, refused.clone()).as_ref() != Some(&refused);
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
        Err(Error::Waits(full_name(vm), refused))
    }

    /// The DataVolumes that are made with the machine. They are the machine's, and go with it.
    async fn ensure_volumes(&self, vm: &VirtualMachine) -> Result<(), Error> {
        if vm.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let namespace = vm.namespace().unwrap_or_default();
        let api: Api<DataVolume> = Api::namespaced(self.client.clone(), &namespace);
        for template in &vm.spec.data_volume_templates {
            let name = &template.metadata.name;
            let found = api.get_opt(name).await;
            if found.map_err(failed("get datavolume", vm))?.is_some() {
                continue;
            }
            let volume = DataVolume {
                metadata: kube::core::ObjectMeta {
                    name: Some(name.clone()),
                    labels: Some(template.metadata.labels.clone()),
                    annotations: Some(template.metadata.annotations.clone()),
                    owner_references: vm.controller_owner_ref(&()).map(|owner| vec![owner]),
                    ..Default::default()
                },
                spec: template.spec.clone(),
                status: None,
            };
            match api.create(&manager_post(), &volume).await {
                Ok(_) => {
                    let message = format!("Created DataVolume {name}");
                    self.recorder
                        .normal(vm, labels::REASON_SUCCESSFUL_CREATE, &message)
                        .await;
                }
                Err(error) if code(&error) == 409 => {}
                Err(error) => return Err(failed("create datavolume", vm)(error)),
            }
        }
        Ok(())
    }

    /// Keeps the spec that the machine is started with, and no older one.
    async fn record_revision(&self, vm: &VirtualMachine) -> Result<(), Error> {
        let uid = vm.uid().unwrap_or_default();
        let generation = vm.metadata.generation.unwrap_or_default();
        let namespace = vm.namespace().unwrap_or_default();
        let api: Api<ControllerRevision> = Api::namespaced(self.client.clone(), &namespace);
        let name = start_revision(&uid, generation);
        let of_machine = ListParams::default().labels(&format!("{}={uid}", labels::VM_UID));
        let there = api.list_metadata(&of_machine).await;
        let there = there.map_err(failed("list controllerrevisions", vm))?.items;
        if !there.iter().any(|revision| revision.name_any() == name) {
            let revision = ControllerRevision {
                metadata: kube::core::ObjectMeta {
                    name: Some(name.clone()),
                    labels: Some([(labels::VM_UID.to_owned(), uid)].into()),
                    owner_references: vm.controller_owner_ref(&()).map(|owner| vec![owner]),
                    ..Default::default()
                },
                data: Some(RawExtension(json!({"spec": &vm.spec}))),
                revision: generation,
            };
            match api.create(&manager_post(), &revision).await {
                Err(error) if code(&error) != 409 => {
                    return Err(failed("create controllerrevision", vm)(error));
                }
                _ => {}
            }
        }
        for older in there.iter().filter(|revision| revision.name_any() != name) {
            match api
                .delete(&older.name_any(), &DeleteParams::default())
                .await
            {
                Err(error) if code(&error) != 404 => {
                    return Err(failed("delete controllerrevision", vm)(error));
                }
                _ => {}
            }
        }
        Ok(())
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
