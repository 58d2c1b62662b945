//! Claims and volumes, standalone: which volume a claim gets, and what becomes of both. On a cluster, its controller manager
//! does this.
//!
//! ```text
//!  claim ─► a class, if it names none ─► a volume that is there and fits ──────────────────────► Bound
//!                      │                                                                           ▲
//!                      └─ none ─► the class's provisioner is asked ─► it makes a volume for it ────┘
//!                                  (where the class waits: once the scheduler chose a node)
//! ```
//!
//! One task owns all decisions and wakes on every change of a claim, a volume or a class, so no volume is given away twice.
//! The states, annotations and events are those of Kubernetes' own controller. Making and removing what is behind a volume is
//! the provisioner's, which is told by an annotation and answers with a PersistentVolume: another one is only another name.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use berth_api::events::{EventType, Recorder};
use berth_api::storage::CLAIM_PROTECTION;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, ListParams, Patch};
use kube::runtime::reflector::Store;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::reconcile::{code, full_name, manager_patch, watched};
use crate::scheduler::{is_filled, is_over};
use plan::{Action, plan_claim, plan_volume};

/// How often it is asked whether a claim that is to go is still used.
const IN_USE: Duration = Duration::from_secs(1);
/// The pause after a failed pass.
const RETRY: Duration = Duration::from_secs(1);

/// Runs the controller until `shutdown`.
pub(crate) async fn run(client: Client, recorder: Recorder, shutdown: CancellationToken) {
    let (claims, claim_events) = watched::<PersistentVolumeClaim>(&client);
    let (volumes, volume_events) = watched::<PersistentVolume>(&client);
    let (classes, class_events) = watched::<StorageClass>(&client);
    let all = [claim_events, volume_events, class_events];
    let mut changes = futures::stream::select_all(all).ready_chunks(256);
    let controller = Controller {
        client,
        recorder,
        claims,
        volumes,
        classes,
    };
    let mut again: Option<Duration> = None;
    loop {
        let wait = async {
            match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = wait => {}
            chunk = changes.next() => match chunk {
                None => return,
                Some(results) => for error in results.into_iter().filter_map(Result::err) {
                    warn!(%error, "volumes: watch failed, will be tried again");
                },
            },
        }
        again = match controller.pass().await {
            Ok(again) => again,
            Err(error) => {
                warn!(%error, "volumes: pass failed, will be tried again");
                Some(RETRY)
            }
        };
    }
}

struct Controller {
    client: Client,
    recorder: Recorder,
    claims: Store<PersistentVolumeClaim>,
    volumes: Store<PersistentVolume>,
    classes: Store<StorageClass>,
}

impl Controller {
    /// Looks at everything once. What a write answers comes back by the watch, so at most one step of each object is taken.
    async fn pass(&self) -> Result<Option<Duration>, kube::Error> {
        if !is_filled(&self.claims) || !is_filled(&self.volumes) || !is_filled(&self.classes) {
            return Ok(None);
        }
        let (claims, volumes, classes) = (
            self.claims.state(),
            self.volumes.state(),
            self.classes.state(),
        );
        let mut again = None;
        // Volumes that were given away in this pass.
        let mut taken: Vec<String> = Vec::new();
        for claim in &claims {
            if claim.metadata.deletion_timestamp.is_some() {
                if self.release_claim(claim).await? {
                    again = Some(IN_USE);
                }
                continue;
            }
            for action in plan_claim(claim, &volumes, &classes, &taken) {
                if let Action::BindVolume(name, _) = &action {
                    taken.push(name.clone());
                }
                if !self.act_claim(claim, action).await? {
                    break;
                }
            }
        }
        for volume in &volumes {
            for action in plan_volume(volume, &claims) {
                if !self.act_volume(volume, action).await? {
                    break;
                }
            }
        }
        Ok(again)
    }

    fn claim_api(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default())
    }

    /// Takes the finalizer off a claim that no pod uses; true while one does.
    async fn release_claim(&self, claim: &PersistentVolumeClaim) -> Result<bool, kube::Error> {
        if !claim.finalizers().iter().any(|f| f == CLAIM_PROTECTION) {
            return Ok(false);
        }
        let pods: Api<Pod> =
            Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default());
        let name = claim.name_any();
        let pods = pods.list(&ListParams::default()).await?;
        let used = pods
            .items
            .iter()
            .any(|pod| !is_over(pod) && claims_of(pod).any(|used| used == name));
        if used {
            return Ok(true);
        }
        let left: Vec<&String> = claim
            .finalizers()
            .iter()
            .filter(|f| *f != CLAIM_PROTECTION)
            .collect();
        let patch =
            json!({"metadata": {"resourceVersion": claim.resource_version(), "finalizers": left}});
        self.patch_claim(claim, &patch, false).await?;
        Ok(false)
    }

    /// False when the claim changed meanwhile.
    async fn act_claim(
        &self,
        claim: &PersistentVolumeClaim,
        action: Action,
    ) -> Result<bool, kube::Error> {
        match action {
            Action::Spec(mut patch) => {
                patch["metadata"]["resourceVersion"] = json!(claim.resource_version());
                // The next step is planned on the answer.
                self.patch_claim(claim, &patch, false).await?;
                Ok(false)
            }
            Action::Status(status) => {
                let patch = json!({"metadata": {"resourceVersion": claim.resource_version()}, "status": status});
                self.patch_claim(claim, &patch, true).await
            }
            Action::BindVolume(name, patch) => {
                let api: Api<PersistentVolume> = Api::all(self.client.clone());
                let done = api
                    .patch(&name, &manager_patch(), &Patch::Merge(&patch))
                    .await;
                if fresh(done)? {
                    info!(claim = %full_name(claim), volume = name, "volume bound");
                    return Ok(true);
                }
                Ok(false)
            }
            Action::Event(kind, reason, message) => {
                self.recorder.record(claim, kind, reason, &message).await;
                Ok(true)
            }
        }
    }

    async fn patch_claim(
        &self,
        claim: &PersistentVolumeClaim,
        patch: &Value,
        status: bool,
    ) -> Result<bool, kube::Error> {
        let (api, name) = (self.claim_api(claim), claim.name_any());
        let patch = Patch::Merge(patch);
        fresh(if status {
            api.patch_status(&name, &manager_patch(), &patch).await
        } else {
            api.patch(&name, &manager_patch(), &patch).await
        })
    }

    async fn act_volume(
        &self,
        volume: &Arc<PersistentVolume>,
        action: Action,
    ) -> Result<bool, kube::Error> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let name = volume.name_any();
        let version = volume.resource_version();
        match action {
            Action::Spec(mut patch) => {
                patch["metadata"]["resourceVersion"] = json!(version);
                fresh(
                    api.patch(&name, &manager_patch(), &Patch::Merge(&patch))
                        .await,
                )?;
                Ok(false)
            }
            Action::Status(status) => {
                let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
                fresh(
                    api.patch_status(&name, &manager_patch(), &Patch::Merge(&patch))
                        .await,
                )
            }
            Action::Event(kind, reason, message) => {
                self.recorder
                    .record(&**volume, kind, reason, &message)
                    .await;
                Ok(true)
            }
            Action::BindVolume(..) => Ok(true),
        }
    }
}

/// Whether a write was on what is there now; a conflict and a missing object are told by the watch.
fn fresh<K>(written: Result<K, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(error) if matches!(code(&error), 404 | 409) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The claims that a pod uses.
pub(crate) fn claims_of(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

/// A warning's kind, here so that the plan need not know where events come from.
const WARNING: EventType = EventType::Warning;
const NORMAL: EventType = EventType::Normal;
