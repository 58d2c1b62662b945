//! The standalone scheduler: binds launcher pods to nodes. On a cluster, the cluster's own scheduler does this.
//!
//! One task owns all decisions, so two pods never get the same memory. It wakes on every change of a pod or a
//! node (watches, no polling), places every unbound pod that it can, and tells the rest why not: a
//! `PodScheduled=False` condition with reason `Unschedulable` and a `FailedScheduling` event, each only when the
//! answer changed.
//!
//! A binding is remembered until the pod cache shows it; without that, a pass on a stale cache could promise the
//! same resources twice.

mod affinity;
mod place;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use berth_api::events::Recorder;
use berth_api::storage::SELECTED_NODE;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{
    Binding, Node, ObjectReference, PersistentVolumeClaim, Pod, PodCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::reflector::{self, Store};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::reconcile::watched;
use crate::volume::claims_of;

pub use place::{Committed, Resources, Unschedulable, bound_node, committed, is_over, place};

/// First pause after a failed pass; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Runs the scheduler until `shutdown`.
pub async fn run(client: Client, recorder: Recorder, shutdown: CancellationToken) {
    let (pods, pod_events) = watched::<Pod>(&client);
    let (nodes, node_events) = watched::<Node>(&client);
    let (claims, claim_events) = watched::<PersistentVolumeClaim>(&client);
    // Many events may be ready at once (the first list, a burst): one pass answers them all.
    let all = [pod_events, node_events, claim_events];
    let mut changes = futures::stream::select_all(all).ready_chunks(256);

    let mut scheduler = Scheduler {
        client,
        recorder,
        pods,
        nodes,
        claims,
        assumed: HashMap::new(),
    };
    let mut retry: Option<Duration> = None;
    loop {
        let wait = async {
            match retry {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = wait => {}
            chunk = changes.next() => match chunk {
                None => return,
                Some(results) => {
                    for error in results.into_iter().filter_map(Result::err) {
                        warn!(%error, "scheduler: watch failed, will be tried again");
                    }
                }
            },
        }
        retry = match scheduler.pass().await {
            Ok(()) => None,
            Err(error) => {
                let pause = retry.map_or(RETRY_MIN, |p| (p * 2).min(RETRY_MAX));
                warn!(%error, ?pause, "scheduler: pass failed");
                Some(pause)
            }
        };
    }
}

struct Scheduler {
    client: Client,
    recorder: Recorder,
    pods: Store<Pod>,
    nodes: Store<Node>,
    claims: Store<PersistentVolumeClaim>,
    /// Bindings that the pod cache does not show yet, by pod UID.
    assumed: HashMap<String, (String, Resources)>,
}

impl Scheduler {
    /// Places every unbound pod. Stops at the first API error; the pass is repeated then.
    async fn pass(&mut self) -> Result<(), kube::Error> {
        if !is_filled(&self.pods) || !is_filled(&self.nodes) || !is_filled(&self.claims) {
            return Ok(());
        }
        let pods = self.pods.state();
        self.assumed.retain(|uid, _| {
            pods.iter().any(|p| {
                p.metadata.uid.as_ref() == Some(uid) && bound_node(p).is_none() && !is_over(p)
            })
        });
        let mut waiting: Vec<&Arc<Pod>> = pods
            .iter()
            .filter(|p| bound_node(p).is_none() && !is_over(p) && !self.is_assumed(p))
            .filter(|p| is_ours(p))
            .collect();
        // Most changes of pods leave nothing to place; what all of them use is only counted when something is.
        if waiting.is_empty() {
            return Ok(());
        }
        let nodes = self.nodes.state();
        let mut used = committed(pods.iter().map(Arc::as_ref));
        for (node, resources) in self.assumed.values() {
            let entry = used.entry(node.clone()).or_default();
            *entry = entry.plus(*resources);
        }
        let priority = |pod: &Pod| pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
        waiting.sort_by(|a, b| {
            let age = |p: &Pod| p.metadata.creation_timestamp.clone();
            let a = (Reverse(priority(a)), age(a), a.namespace(), a.name_any());
            a.cmp(&(Reverse(priority(b)), age(b), b.namespace(), b.name_any()))
        });
        // Where pods are, with those that were bound in this pass.
        let mut placed: Vec<Arc<Pod>> = pods.clone();
        for pod in &mut placed {
            if let Some((node, _)) = self.assumed.get(&pod.uid().unwrap_or_default()) {
                *pod = Arc::new(on(pod, node));
            }
        }
        for pod in waiting {
            if pod.metadata.deletion_timestamp.is_some() {
                self.drop_unbound(pod).await?;
                continue;
            }
            match place(pod, &nodes, &used, &placed) {
                Ok(node) => {
                    match self.volumes(pod, &node).await? {
                        Volumes::Bound => {}
                        Volumes::Coming => continue,
                        Volumes::Missing(why) => {
                            self.refuse(pod, &why).await?;
                            continue;
                        }
                    }
                    if self.bind(pod, &node).await? {
                        let resources = Resources::of_pod(pod);
                        placed.push(Arc::new(on(pod, &node)));
                        let entry = used.entry(node.clone()).or_default();
                        *entry = entry.plus(resources);
                        self.assumed
                            .insert(pod.uid().unwrap_or_default(), (node, resources));
                    }
                }
                Err(why) => self.refuse(pod, &why.to_string()).await?,
            }
        }
        Ok(())
    }

    /// How far the volumes of a pod are that is going to run on `node`. A claim that waits for its first consumer is told
    /// where that is.
    async fn volumes(&self, pod: &Pod, node: &str) -> Result<Volumes, kube::Error> {
        let namespace = pod.namespace().unwrap_or_default();
        let mut all = Volumes::Bound;
        for name in claims_of(pod) {
            let key = reflector::ObjectRef::new(name).within(&namespace);
            let Some(claim) = self.claims.get(&key) else {
                let why =
                    format!("0/1 nodes are available: persistentvolumeclaim {name:?} not found.");
                return Ok(Volumes::Missing(why));
            };
            let phase = claim
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref());
            if phase == Some("Bound") && claim.metadata.deletion_timestamp.is_none() {
                continue;
            }
            if claim.metadata.deletion_timestamp.is_some() {
                let why = format!(
                    "0/1 nodes are available: persistentvolumeclaim {name:?} is being deleted."
                );
                return Ok(Volumes::Missing(why));
            }
            all = Volumes::Coming;
            if !claim.annotations().contains_key(SELECTED_NODE) {
                let api: Api<PersistentVolumeClaim> =
                    Api::namespaced(self.client.clone(), &namespace);
                let patch = json!({"metadata": {
                    "resourceVersion": claim.resource_version(), "annotations": {SELECTED_NODE: node},
                }});
                match api
                    .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
                    .await
                {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(all)
    }

    fn is_assumed(&self, pod: &Pod) -> bool {
        pod.metadata
            .uid
            .as_ref()
            .is_some_and(|uid| self.assumed.contains_key(uid))
    }

    fn api(&self, pod: &Pod) -> Api<Pod> {
        Api::namespaced(
            self.client.clone(),
            pod.metadata.namespace.as_deref().unwrap_or("default"),
        )
    }

    /// A deleted pod that no node ever had: nobody else will finish its deletion.
    async fn drop_unbound(&self, pod: &Pod) -> Result<(), kube::Error> {
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        match self.api(pod).delete(&pod.name_any(), &now).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Binds the pod; false when the pod changed or went away meanwhile, which the watch will tell.
    async fn bind(&self, pod: &Pod, node: &str) -> Result<bool, kube::Error> {
        let name = pod.name_any();
        let api = self.api(pod);
        let binding = Binding {
            metadata: kube::core::ObjectMeta {
                name: Some(name.clone()),
                namespace: pod.namespace(),
                uid: pod.uid(),
                ..Default::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let posted = api
            .create_subresource::<_, serde_json::Value>(
                "binding",
                &name,
                &PostParams::default(),
                &binding,
            )
            .await;
        let bound = match posted {
            // A server without the subresource: the field itself says the same.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405 | 501) => {
                let patch = json!({
                    "metadata": {"resourceVersion": pod.resource_version(), "uid": pod.uid()},
                    "spec": {"nodeName": node},
                });
                api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
                    .await
                    .map(drop)
            }
            other => other.map(drop),
        };
        match bound {
            Ok(()) => {
                let namespace = pod.namespace().unwrap_or_default();
                info!(pod = %format_args!("{namespace}/{name}"), node, "pod bound");
                let message = format!("Successfully assigned {namespace}/{name} to {node}");
                self.recorder.normal(pod, "Scheduled", &message).await;
                Ok(true)
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                debug!(pod = %name, node, reason = %status.message, "pod changed while it was being bound");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes why no node takes the pod, when that is news.
    async fn refuse(&self, pod: &Pod, message: &str) -> Result<(), kube::Error> {
        let Some(conditions) = unschedulable_conditions(pod, message, Timestamp::now()) else {
            return Ok(());
        };
        let patch = json!({
            "metadata": {"resourceVersion": pod.resource_version()},
            "status": {"conditions": conditions},
        });
        match self
            .api(pod)
            .patch_status(
                &pod.name_any(),
                &PatchParams::default(),
                &Patch::Merge(&patch),
            )
            .await
        {
            Ok(_) => {
                self.recorder
                    .warning(pod, "FailedScheduling", message)
                    .await;
                Ok(())
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The pod's conditions with the refusal put in, or `None` when they say it already.
fn unschedulable_conditions(pod: &Pod, message: &str, now: Timestamp) -> Option<Vec<PodCondition>> {
    let mut conditions = pod
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    let wanted = PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("Unschedulable".to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    };
    match conditions.iter_mut().find(|c| c.type_ == "PodScheduled") {
        Some(c)
            if c.status == wanted.status
                && c.reason == wanted.reason
                && c.message == wanted.message =>
        {
            return None;
        }
        Some(c) => {
            let since = if c.status == wanted.status {
                c.last_transition_time.clone()
            } else {
                None
            };
            *c = PodCondition {
                last_transition_time: since.or(wanted.last_transition_time.clone()),
                ..wanted
            };
        }
        None => conditions.push(wanted),
    }
    Some(conditions)
}

/// How far the volumes of a pod are.
enum Volumes {
    Bound,
    /// Not yet, and somebody is at it.
    Coming,
    /// One of them is not; why.
    Missing(String),
}

/// Whether this scheduler is asked to place a pod.
fn is_ours(pod: &Pod) -> bool {
    let name = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
    name.is_none_or(|name| name.is_empty() || name == "default-scheduler")
}

/// A pod as it will be on a node.
fn on(pod: &Pod, node: &str) -> Pod {
    let mut pod = pod.clone();
    pod.spec.get_or_insert_default().node_name = Some(node.to_owned());
    pod
}

/// True once the first list is in the store.
pub(crate) fn is_filled<K>(store: &Store<K>) -> bool
where
    K: reflector::Lookup + Clone + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone,
{
    use futures::FutureExt;
    matches!(store.wait_until_ready().now_or_never(), Some(Ok(())))
}
