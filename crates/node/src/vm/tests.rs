//! The machine task against a launcher that speaks the protocol over a real socket and an API that keeps one
//! machine, its events, and its versions.

use std::collections::BTreeMap;
use std::path::Path as FsPath;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use berth_api::kubevirt::v1::VmiPhase;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::PodLocation;

const DEADLINE: Duration = Duration::from_secs(20);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("waited too long for {what}"))
}

// === An API with one machine ===

#[derive(Clone)]
struct Api1 {
    vmi: watch::Sender<Value>,
    events: Arc<Mutex<Vec<(String, String)>>>,
    /// How many status writes are still answered with a conflict.
    conflicts: Arc<Mutex<u32>>,
}

impl Api1 {
    fn new(vmi: Value) -> Self {
        Self {
            vmi: watch::channel(vmi).0,
            events: Arc::default(),
            conflicts: Arc::default(),
        }
    }

    fn client(&self) -> Client {
        let machine = "/apis/kubevirt.io/v1/namespaces/lab/virtualmachineinstances/vm";
        let router = Router::new()
            .route(
                machine,
                get(async |State(api): State<Self>| Json(api.vmi.borrow().clone())),
            )
            .route(
                &format!("{machine}/status"),
                axum::routing::patch(Self::patch),
            )
            .route("/api/v1/namespaces/lab/events", post(Self::event))
            .with_state(self.clone());
        Client::new(router, "default")
    }

    async fn patch(State(api): State<Self>, Json(patch): Json<Value>) -> Response {
        let refuse = || {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                                "reason": "Conflict", "code": 409, "message": "the object has been modified"});
            (StatusCode::CONFLICT, Json(status)).into_response()
        };
        {
            let mut conflicts = api.conflicts.lock().unwrap();
            if *conflicts > 0 {
                *conflicts -= 1;
                return refuse();
            }
        }
        if patch["metadata"]["resourceVersion"] != api.vmi.borrow()["metadata"]["resourceVersion"] {
            return refuse();
        }
        api.change(|vmi| merge(&mut vmi["status"], &patch["status"]));
        Json(api.vmi.borrow().clone()).into_response()
    }

    async fn event(State(api): State<Self>, Json(event): Json<Value>) -> Response {
        let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        api.events
            .lock()
            .unwrap()
            .push((word("type"), word("reason")));
        (StatusCode::CREATED, Json(event)).into_response()
    }

    fn change(&self, change: impl FnOnce(&mut Value)) {
        self.vmi.send_modify(|vmi| {
            change(vmi);
            let version: u64 = vmi["metadata"]["resourceVersion"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap();
            vmi["metadata"]["resourceVersion"] = json!((version + 1).to_string());
        });
    }

    fn typed(&self) -> Arc<VirtualMachineInstance> {
        Arc::new(serde_json::from_value(self.vmi.borrow().clone()).unwrap())
    }

    async fn until(&self, what: &str, mut test: impl FnMut(&VirtualMachineInstance) -> bool) {
        let mut seen = self.vmi.subscribe();
        let wait = seen.wait_for(|vmi| test(&serde_json::from_value(vmi.clone()).unwrap()));
        drop(within(what, wait).await.unwrap());
    }

    async fn until_phase(&self, phase: VmiPhase) {
        self.until(phase.as_str(), |vmi| {
            vmi.status.as_ref().unwrap().phase == Some(phase)
        })
        .await;
    }

    fn reasons(&self) -> Vec<String> {
        self.events
            .lock()
            .unwrap()
            .iter()
            .map(|(_, reason)| reason.clone())
            .collect()
    }
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut into[key], value);
        }
    }
}

// === A launcher ===

/// Plays the launcher: tells each connection its state, records what is called and answers as told.
struct FakeLauncher {
    state: watch::Sender<Value>,
    calls: mpsc::UnboundedReceiver<Value>,
    /// Errors for the next calls, oldest first.
    errors: Arc<Mutex<Vec<String>>>,
    server: tokio::task::JoinHandle<()>,
}

impl FakeLauncher {
    fn start(run_dir: &FsPath, state: Value) -> Self {
        let listener = UnixListener::bind(run_dir.join("launcher.sock")).unwrap();
        let (state, _) = watch::channel(state);
        let (report, calls) = mpsc::unbounded_channel();
        let errors = Arc::<Mutex<Vec<String>>>::default();
        let (feed, failures) = (state.clone(), errors.clone());
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (mut feed, report, failures) =
                    (feed.subscribe(), report.clone(), failures.clone());
                connections.spawn(async move {
                    let (reader, mut writer) = stream.into_split();
                    let mut lines = BufReader::new(reader).lines();
                    feed.mark_changed();
                    loop {
                        tokio::select! {
                            changed = feed.changed() => {
                                if changed.is_err() { return; }
                                let line = json!({"state": *feed.borrow_and_update()}).to_string() + "\n";
                                if writer.write_all(line.as_bytes()).await.is_err() { return; }
                            }
                            line = lines.next_line() => {
                                let Ok(Some(line)) = line else { return };
                                let request: Value = serde_json::from_str(&line).unwrap();
                                let error = { let mut f = failures.lock().unwrap(); if f.is_empty() { None } else { Some(f.remove(0)) } };
                                let reply = match error {
                                    Some(error) => json!({"id": request["id"], "error": error}),
                                    None => json!({"id": request["id"], "result": *feed.borrow()}),
                                };
                                let _ = report.send(request["call"].clone());
                                if writer.write_all((reply.to_string() + "\n").as_bytes()).await.is_err() { return; }
                            }
                        }
                    }
                });
            }
        });
        Self {
            state,
            calls,
            errors,
            server,
        }
    }

    async fn called(&mut self, what: &str) -> Value {
        let call = within(what, self.calls.recv()).await.unwrap();
        let name = call
            .as_str()
            .map(str::to_owned)
            .or_else(|| call.as_object()?.keys().next().cloned());
        assert_eq!(name.unwrap_or_default().to_lowercase(), what, "{call}");
        call
    }
}

impl Drop for FakeLauncher {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn no_domain() -> Value {
    serde_json::to_value(berth_launcher::protocol::LauncherState::default()).unwrap()
}

fn domain(state: &str, reason: &str) -> Value {
    let mut all = no_domain();
    all["domain"] = json!({"state": state, "reason": reason, "qemu_pid": 77, "uuid": "5e8f0a00-0000-4000-8000-000000000001"});
    all
}

// === The world around one task ===

struct OnePod(PodLocation);

impl PodSandboxes for OnePod {
    fn locate(&self, pod_uid: &str) -> Option<PodLocation> {
        (pod_uid == "p1").then(|| self.0.clone())
    }
}

/// The settings of a node whose directories are under `dir`.
pub(super) fn config(dir: &FsPath) -> NodeConfig {
    NodeConfig {
        node_name: "n1".to_owned(),
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        network: berth_network::NodeNetwork {
            bridge: "berth0".to_owned(),
            gateway: [10, 98, 0, 1].into(),
            prefix: 16,
            mtu: 1500,
        },
        dns: vec![],
        search: vec![],
        berth_binary: "/usr/bin/berth".into(),
        insecure_registries: vec![],
        max_pods: crate::DEFAULT_MAX_PODS,
    }
}

struct World {
    api: Api1,
    dir: tempfile::TempDir,
    agent: Arc<Agent>,
}

impl World {
    fn new(phase: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let api = Api1::new(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm", "namespace": "lab", "uid": "u1", "resourceVersion": "1"},
            "spec": {"terminationGracePeriodSeconds": 7, "domain": {"devices": {}, "memory": {"guest": "64Mi"}}},
            "status": {"phase": phase, "nodeName": "n1", "activePods": {"p1": "n1"}},
        }));
        let location = PodLocation {
            netns: dir.path().join("netns"),
            run_dir: dir.path().to_owned(),
            disks: BTreeMap::new(),
            claims: BTreeMap::new(),
            uid: rustix::process::geteuid().as_raw(),
            gid: 107,
            pid: 1,
        };
        let config = config(dir.path());
        let agent = Arc::new(Agent {
            config: Arc::new(config),
            client: api.client(),
            recorder: Recorder::new(api.client(), labels::NODE_MANAGER, Some("n1".to_owned())),
            sandboxes: Arc::new(OnePod(location)),
            emulation: OnceCell::new_with(Some(None)),
        });
        Self { api, dir, agent }
    }

    /// Starts the task as the agent would, with the API's machine as its feed.
    fn start(&self) -> Running {
        let (feed, updates) = watch::channel(self.api.typed());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(Machine::new(self.agent.clone(), updates, shutdown.clone()).run());
        let mut source = self.api.vmi.subscribe();
        let forward = tokio::spawn(async move {
            while source.changed().await.is_ok() {
                let vmi = serde_json::from_value(source.borrow_and_update().clone()).unwrap();
                if feed.send(Arc::new(vmi)).is_err() {
                    return;
                }
            }
        });
        Running {
            task,
            forward,
            shutdown,
        }
    }
}

struct Running {
    task: tokio::task::JoinHandle<()>,
    forward: tokio::task::JoinHandle<()>,
    shutdown: CancellationToken,
}

impl Running {
    async fn ended(self) {
        within("the end of the task", self.task).await.unwrap();
        self.forward.abort();
    }
}

fn condition(vmi: &VirtualMachineInstance, type_: &str) -> Option<(String, String)> {
    let c = berth_api::conditions::find_condition(&vmi.status.as_ref()?.conditions, type_)?;
    Some((c.status.clone(), c.message.clone().unwrap_or_default()))
}

#[tokio::test]
async fn a_scheduled_machine_is_synced_runs_and_ends() {
    let world = World::new("Scheduled");
    let mut launcher = FakeLauncher::start(world.dir.path(), no_domain());
    let running = world.start();
    launcher.called("sync").await;
    launcher.state.send_replace(domain("Running", "booted"));
    world.api.until_phase(VmiPhase::Running).await;
    assert_eq!(condition(&world.api.typed(), "Ready").unwrap().0, "True");
    launcher.state.send_replace(domain("Shutoff", "shutdown"));
    world.api.until_phase(VmiPhase::Succeeded).await;
    running.ended().await;
    assert_eq!(world.api.reasons(), ["Created", "Started", "Stopped"]);
}

#[tokio::test]
async fn a_domain_that_is_there_is_not_started_again() {
    let world = World::new("Running");
    let mut launcher = FakeLauncher::start(world.dir.path(), domain("Running", "booted"));
    let running = world.start();
    world
        .api
        .until("ready", |vmi| {
            condition(vmi, "Ready").is_some_and(|c| c.0 == "True")
        })
        .await;
    launcher.state.send_replace(domain("Crashed", "panicked"));
    world.api.until_phase(VmiPhase::Failed).await;
    running.ended().await;
    assert!(
        launcher.calls.try_recv().is_err(),
        "nothing was asked of the launcher"
    );
    assert_eq!(
        world.api.typed().status.as_ref().unwrap().reason.as_deref(),
        Some("GuestCrashed")
    );
}

#[tokio::test]
async fn an_agent_that_stops_leaves_the_guest_alone() {
    let world = World::new("Scheduled");
    let mut launcher = FakeLauncher::start(world.dir.path(), no_domain());
    let first = world.start();
    launcher.called("sync").await;
    launcher.state.send_replace(domain("Running", "booted"));
    world.api.until_phase(VmiPhase::Running).await;
    first.shutdown.cancel();
    first.ended().await;
    let before = world.api.typed().status.clone();
    let second = world.start();
    launcher.state.send_replace(domain("Paused", "ioerror"));
    world
        .api
        .until("paused", |vmi| {
            condition(vmi, "Paused").is_some_and(|c| c.0 == "True")
        })
        .await;
    assert_eq!(
        before.unwrap().phase,
        world.api.typed().status.as_ref().unwrap().phase
    );
    assert!(launcher.calls.try_recv().is_err(), "no second sync");
    second.shutdown.cancel();
    second.ended().await;
}

#[tokio::test]
async fn a_failed_sync_is_told_and_tried_again() {
    let world = World::new("Scheduled");
    let mut launcher = FakeLauncher::start(world.dir.path(), no_domain());
    launcher
        .errors
        .lock()
        .unwrap()
        .push("qemu: no such machine type".to_owned());
    let running = world.start();
    launcher.called("sync").await;
    world
        .api
        .until("condition", |vmi| {
            condition(vmi, "Synchronized").is_some_and(|c| c.1.contains("no such machine type"))
        })
        .await;
    launcher.called("sync").await;
    launcher.state.send_replace(domain("Running", "booted"));
    world.api.until_phase(VmiPhase::Running).await;
    assert!(condition(&world.api.typed(), "Synchronized").is_none());
    assert_eq!(world.api.reasons(), ["SyncFailed", "Created", "Started"]);
    running.shutdown.cancel();
    running.ended().await;
}

#[tokio::test]
async fn deletion_asks_the_guest_and_gives_it_its_grace() {
    let world = World::new("Running");
    let mut launcher = FakeLauncher::start(world.dir.path(), domain("Running", "booted"));
    let running = world.start();
    world
        .api
        .until("ready", |vmi| {
            condition(vmi, "Ready").is_some_and(|c| c.0 == "True")
        })
        .await;
    world
        .api
        .change(|vmi| vmi["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    let call = launcher.called("shutdown").await;
    assert!(
        call.to_string().contains('7'),
        "the machine's own grace: {call}"
    );
    launcher
        .state
        .send_replace(domain("Shutoff", "graceexceeded"));
    world.api.until_phase(VmiPhase::Failed).await;
    running.ended().await;
    let reasons = world.api.reasons();
    assert_eq!(reasons, ["ShuttingDown", "GracePeriodExceeded"]);
}

#[tokio::test]
async fn a_launcher_that_dies_without_a_word_fails_the_machine() {
    let world = World::new("Running");
    let launcher = FakeLauncher::start(world.dir.path(), domain("Running", "booted"));
    let running = world.start();
    world
        .api
        .until("ready", |vmi| {
            condition(vmi, "Ready").is_some_and(|c| c.0 == "True")
        })
        .await;
    drop(launcher);
    world.api.until_phase(VmiPhase::Failed).await;
    running.ended().await;
    assert_eq!(
        world.api.typed().status.as_ref().unwrap().reason.as_deref(),
        Some("LauncherGone")
    );
}

#[tokio::test]
async fn the_launchers_last_words_count_when_nobody_listened() {
    let world = World::new("Running");
    let last = serde_json::to_vec(&domain("Shutoff", "shutdown")).unwrap();
    std::fs::write(world.dir.path().join("final-state.json"), last).unwrap();
    world.start().ended().await;
    assert_eq!(
        world.api.typed().status.as_ref().unwrap().phase,
        Some(VmiPhase::Succeeded)
    );
}

#[tokio::test]
async fn a_conflict_is_read_again_and_not_overwritten() {
    let world = World::new("Scheduled");
    let mut launcher = FakeLauncher::start(world.dir.path(), no_domain());
    let running = world.start();
    launcher.called("sync").await;
    *world.api.conflicts.lock().unwrap() = 2;
    world
        .api
        .change(|vmi| vmi["status"]["qosClass"] = json!("Burstable"));
    launcher.state.send_replace(domain("Running", "booted"));
    world.api.until_phase(VmiPhase::Running).await;
    assert_eq!(
        world
            .api
            .typed()
            .status
            .as_ref()
            .unwrap()
            .qos_class
            .as_deref(),
        Some("Burstable")
    );
    running.shutdown.cancel();
    running.ended().await;
}
