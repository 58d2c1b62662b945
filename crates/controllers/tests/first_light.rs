//! The controllers on the embedded API server, with this test in the places of the user and of the node agent.

// The allowance for tests in clippy.toml covers test functions, not what they share.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use berth_api::kubevirt::v1::{VirtualMachineInstance, VmiPhase};
use berth_api::labels;
use berth_apiserver::{AdmitAll, ApiServer, Options};
use berth_controllers::Settings;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::{Condition, await_condition};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);
const NAMESPACE: &str = "default";

struct World {
    client: Client,
    _server: ApiServer,
    _dir: tempfile::TempDir,
}

/// The controllers, stopped when dropped.
struct Controllers(CancellationToken, tokio::task::JoinHandle<()>);

impl Controllers {
    async fn stop(self) {
        self.0.cancel();
        tokio::time::timeout(DEADLINE, self.1)
            .await
            .expect("controllers stop")
            .unwrap();
    }
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = ApiServer::open(Options {
            data_dir: dir.path().to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            server_names: vec![],
            admission: Arc::new(AdmitAll),
            crds: berth_api::crds(),
            access: Default::default(),
        })
        .await
        .unwrap();
        Self {
            client: server.client("test"),
            _server: server,
            _dir: dir,
        }
    }

    fn controllers(&self) -> Controllers {
        let stop = CancellationToken::new();
        let task = tokio::spawn(berth_controllers::run(
            Settings::default(),
            // Nothing is set.
            tokio::sync::watch::channel(Some(std::sync::Arc::default())).1,
            self.client.clone(),
            stop.clone(),
        ));
        Controllers(stop, task)
    }

    fn vmis(&self) -> Api<VirtualMachineInstance> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn node(&self, memory: &str) {
        let api: Api<Node> = Api::all(self.client.clone());
        let node = serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
        if let Err(kube::Error::Api(e)) = api.create(&PostParams::default(), &node).await {
            assert_eq!(e.code, 409, "{e:?}");
        }
        let status = json!({"status": {
            "allocatable": {"cpu": "4", "memory": memory, "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        api.patch_status("n1", &PatchParams::default(), &Patch::Merge(&status))
            .await
            .unwrap();
    }

    async fn vmi(&self, name: &str) {
        let vmi: VirtualMachineInstance = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": name, "finalizers": [labels::VMI_FINALIZER]},
            "spec": {
                "domain": {
                    "memory": {"guest": "128Mi"},
                    "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]},
                },
                "volumes": [{"name": "root", "containerDisk": {"image": "guest:1"}}],
            },
        }))
        .unwrap();
        self.vmis()
            .create(&PostParams::default(), &vmi)
            .await
            .unwrap();
    }

    async fn until(
        &self,
        name: &str,
        what: &str,
        test: impl Condition<VirtualMachineInstance>,
    ) -> Option<VirtualMachineInstance> {
        let wait = tokio::time::timeout(DEADLINE, await_condition(self.vmis(), name, test));
        match wait.await {
            Ok(found) => found.unwrap(),
            Err(_) => panic!(
                "waited too long for {what}: {:?}",
                self.vmis().get_opt(name).await.unwrap().map(|v| v.status)
            ),
        }
    }

    async fn until_phase(&self, name: &str, phase: VmiPhase) -> VirtualMachineInstance {
        let has = move |vmi: Option<&VirtualMachineInstance>| {
            vmi.is_some_and(|v| v.status.as_ref().and_then(|s| s.phase) == Some(phase))
        };
        self.until(name, phase.as_str(), has).await.unwrap()
    }

    /// The one pod of the machine.
    async fn pod_of(&self, name: &str) -> Pod {
        let list = ListParams::default().labels(&format!("{}={name}", labels::VM_NAME));
        let mut pods = self.pods().list(&list).await.unwrap().items;
        assert_eq!(pods.len(), 1, "one pod for {name}");
        pods.remove(0)
    }

    async fn pod_status(&self, pod: &str, status: Value) {
        let patch = json!({"status": status});
        self.pods()
            .patch_status(pod, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .unwrap();
    }

    async fn reasons(&self, about: &str) -> Vec<String> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), NAMESPACE);
        let events = api.list(&ListParams::default()).await.unwrap().items;
        let about = |e: &Event| {
            e.involved_object
                .name
                .as_deref()
                .is_some_and(|n| n.starts_with(about))
        };
        events
            .into_iter()
            .filter(about)
            .filter_map(|e| e.reason)
            .collect()
    }
}

fn condition(
    type_: &'static str,
    reason: &'static str,
) -> impl Fn(Option<&VirtualMachineInstance>) -> bool {
    move |vmi| {
        let conditions = vmi
            .and_then(|v| v.status.as_ref())
            .map(|s| s.conditions.clone())
            .unwrap_or_default();
        conditions
            .iter()
            .any(|c| c.type_ == type_ && c.reason.as_deref() == Some(reason))
    }
}

#[tokio::test]
async fn from_apply_to_scheduled_and_away_again() {
    let world = World::new().await;
    let controllers = world.controllers();
    world.node("2Gi").await;
    world.vmi("web").await;
    let labelled = |vmi: Option<&VirtualMachineInstance>| {
        vmi.is_some_and(|v| v.labels().get(labels::NODE_NAME).is_some_and(|n| n == "n1"))
    };
    world.until("web", "the node's label", labelled).await;
    world.until_phase("web", VmiPhase::Scheduling).await;
    let pod = world.pod_of("web").await;
    assert_eq!(pod.spec.as_ref().unwrap().node_name.as_deref(), Some("n1"));
    world.pod_status(&pod.name_any(), json!({"phase": "Running", "qosClass": "Burstable", "conditions": [{"type": "Ready", "status": "True"}]})).await;
    let vmi = world.until_phase("web", VmiPhase::Scheduled).await;
    let status = vmi.status.unwrap();
    assert_eq!(status.node_name.as_deref(), Some("n1"));
    assert_eq!(status.active_pods.keys().next(), pod.metadata.uid.as_ref());
    let phases: Vec<_> = status
        .phase_transition_timestamps
        .iter()
        .map(|t| t.phase.as_str())
        .collect();
    assert_eq!(phases, ["Pending", "Scheduling", "Scheduled"]);
    assert!(
        world
            .reasons("web")
            .await
            .contains(&"SuccessfulCreate".to_owned())
    );

    // Away: the pod first, and the machine when the node has ended the pod.
    world
        .vmis()
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    let name = pod.name_any();
    let going = |pod: Option<&Pod>| pod.is_none_or(|p| p.metadata.deletion_timestamp.is_some());
    tokio::time::timeout(DEADLINE, await_condition(world.pods(), &name, going))
        .await
        .unwrap()
        .unwrap();
    assert!(
        world.vmis().get_opt("web").await.unwrap().is_some(),
        "held by its finalizer"
    );
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    world.pods().delete(&name, &now).await.unwrap();
    world
        .until("web", "its end", |vmi: Option<&VirtualMachineInstance>| {
            vmi.is_none()
        })
        .await;
    controllers.stop().await;
}

#[tokio::test]
async fn a_machine_that_fits_nowhere_says_so_and_starts_when_there_is_room() {
    let world = World::new().await;
    let controllers = world.controllers();
    world.node("128Mi").await;
    world.vmi("big").await;
    let stuck = world
        .until(
            "big",
            "PodScheduled=False",
            condition("PodScheduled", "Unschedulable"),
        )
        .await
        .unwrap();
    let message = stuck
        .status
        .unwrap()
        .conditions
        .iter()
        .find(|c| c.type_ == "PodScheduled")
        .unwrap()
        .message
        .clone();
    assert_eq!(
        message.as_deref(),
        Some("0/1 nodes are available: 1 Insufficient memory.")
    );
    world.node("2Gi").await;
    let placed = |vmi: Option<&VirtualMachineInstance>| {
        vmi.is_some_and(|v| {
            v.labels().contains_key(labels::NODE_NAME)
                && !condition("PodScheduled", "Unschedulable")(Some(v))
        })
    };
    world.until("big", "a place", placed).await;
    assert!(
        world
            .reasons("virt-launcher-big")
            .await
            .contains(&"FailedScheduling".to_owned())
    );
    controllers.stop().await;
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_is_told_on_the_machine() {
    let world = World::new().await;
    let controllers = world.controllers();
    world.node("2Gi").await;
    world.vmi("web").await;
    world.until_phase("web", VmiPhase::Scheduling).await;
    let pod = world.pod_of("web").await.name_any();
    let waiting =
        json!({"reason": "ErrImagePull", "message": "guest:1: not found in registry.example"});
    world.pod_status(&pod, json!({"phase": "Pending", "containerStatuses": [{
        "name": "compute", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": waiting}}]})).await;
    let told = world
        .until(
            "web",
            "the image error",
            condition("Synchronized", "ErrImagePull"),
        )
        .await
        .unwrap();
    let told = told
        .status
        .unwrap()
        .conditions
        .into_iter()
        .find(|c| c.type_ == "Synchronized")
        .unwrap();
    assert_eq!(
        told.message.as_deref(),
        Some("guest:1: not found in registry.example")
    );
    controllers.stop().await;
    assert_eq!(
        world
            .reasons("web")
            .await
            .iter()
            .filter(|r| *r == "ErrImagePull")
            .count(),
        1
    );
}

#[tokio::test]
async fn controllers_that_start_again_make_no_second_pod() {
    let world = World::new().await;
    world.node("2Gi").await;
    for round in 0..3 {
        let controllers = world.controllers();
        if round == 0 {
            world.vmi("web").await;
        }
        world.until_phase("web", VmiPhase::Scheduling).await;
        // A machine that was new in this round shows that the controllers have been through all of them.
        let fresh = format!("fresh-{round}");
        world.vmi(&fresh).await;
        world.until_phase(&fresh, VmiPhase::Scheduling).await;
        controllers.stop().await;
        world.pod_of("web").await;
    }
}
