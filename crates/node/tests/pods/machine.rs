//! A machine of a test: the runtime with the embedded API server.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_apiserver::{AdmitAll, ApiServer, Options};
use berth_network::NodeNetwork;
use berth_node::{Node, NodeConfig};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use rustix::mount::MountPropagationFlags;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

pub(crate) const SOON: Duration = Duration::from_secs(30);
pub(crate) const BUSYBOX: &str = "/usr/bin/busybox";

/// Runs a test on a machine of its own.
pub(crate) fn on_a_machine<F: Future<Output = ()>>(
    name: &str,
    test: impl FnOnce(Machine) -> F + Send + 'static,
) {
    if berth_testing::not_root(name) || berth_testing::lacks(name, &[BUSYBOX]) {
        return;
    }
    let thread = std::thread::spawn(move || {
        // SAFETY: namespaces of this thread alone; it shares no state with others that these would take away.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }
            .unwrap();
        rustix::mount::mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { test(Machine::new().await).await });
        runtime.shutdown_timeout(Duration::from_secs(5));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) struct Machine {
    pub(crate) config: NodeConfig,
    pub(crate) client: Client,
    agent: Option<Agent>,
    _api: ApiServer,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) struct Agent {
    routes: axum::Router,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Machine {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            data_dir: dir.path().join("api"),
            listen: "127.0.0.1:0".parse().unwrap(),
            server_names: Vec::new(),
            admission: Arc::new(AdmitAll),
            crds: Vec::new(),
            access: berth_apiserver::Access::default(),
        };
        let api = ApiServer::open(options).await.unwrap();
        // Tests are built beside the examples.
        let tests = std::env::current_exe().unwrap();
        let berth_binary = tests
            .parent()
            .unwrap()
            .parent()
            .unwrap()
            .join("examples/pod_init");
        assert!(
            berth_binary.exists(),
            "missing: cargo build -p berth-node --example pod_init"
        );
        let config = NodeConfig {
            node_name: "n1".to_owned(),
            state_dir: dir.path().join("state"),
            run_dir: dir.path().join("run"),
            network: NodeNetwork {
                bridge: "berth0".to_owned(),
                gateway: Ipv4Addr::new(10, 7, 0, 1),
                prefix: 24,
                mtu: 1500,
            },
            dns: vec![Ipv4Addr::new(192, 0, 2, 53)],
            search: vec!["lab.example".to_owned()],
            berth_binary,
            insecure_registries: Vec::new(),
            max_pods: berth_node::DEFAULT_MAX_PODS,
        };
        let mut machine = Self {
            client: api.client("test"),
            config,
            agent: None,
            _api: api,
            dir,
        };
        machine.start_agent();
        machine
    }

    pub(crate) fn start_agent(&mut self) {
        let node = Node::new(self.config.clone(), self.client.clone());
        let (routes, stop) = (node.router(), CancellationToken::new());
        let task = tokio::spawn({
            let stop = stop.clone();
            async move { node.run(stop).await.unwrap() }
        });
        self.agent = Some(Agent { routes, stop, task });
    }

    pub(crate) async fn stop_agent(&mut self) {
        let agent = self.agent.take().unwrap();
        agent.stop.cancel();
        within("the agent's end", agent.task).await.unwrap();
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) fn pod_dir(&self, pod: &Pod) -> PathBuf {
        self.config.state_dir.join("pods").join(pod.uid().unwrap())
    }

    /// Makes a pod whose only process is a shell with this script.
    pub(crate) async fn run(&self, name: &str, script: &str) -> Pod {
        self.create(name, script, |_| {}).await
    }

    pub(crate) async fn create(
        &self,
        name: &str,
        script: &str,
        change: impl FnOnce(&mut Value),
    ) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "default", "labels": {"kubevirt.io": "virt-launcher"}},
            "spec": {
                "nodeName": "n1", "restartPolicy": "Never", "terminationGracePeriodSeconds": 30, "hostname": "guest-1",
                "containers": [{
                    "name": "compute", "image": "berth-launcher:test", "command": [BUSYBOX, "sh", "-c", script],
                    "volumeMounts": [{"name": "run", "mountPath": "/var/run/berth"}],
                }],
                "volumes": [{"name": "run", "emptyDir": {}}],
            },
        });
        change(&mut pod);
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.pods()
            .create(&PostParams::default(), &pod)
            .await
            .unwrap()
    }

    pub(crate) async fn until(&self, name: &str, what: &str, test: impl Fn(&Pod) -> bool) -> Pod {
        let pods = self.pods();
        let mut last = None;
        let wait = async {
            loop {
                let pod = pods.get(name).await.unwrap();
                if test(&pod) {
                    return pod;
                }
                last = Some(pod);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(SOON, wait).await {
            Ok(pod) => pod,
            Err(_) => {
                let status = last.map(|pod| serde_json::to_string(&pod.status).unwrap());
                panic!("waited for {what}, seen {}", status.unwrap_or_default());
            }
        }
    }

    pub(crate) async fn until_phase(&self, name: &str, phase: &str) -> Pod {
        self.until(name, phase, |pod| {
            pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase)
        })
        .await
    }

    pub(crate) async fn until_gone(&self, name: &str) {
        let pods = self.pods();
        within("the pod's end", async {
            while pods.get_opt(name).await.unwrap().is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    pub(crate) async fn delete(&self, name: &str, grace: Option<u32>) {
        let parameters = DeleteParams {
            grace_period_seconds: grace,
            ..DeleteParams::default()
        };
        self.pods().delete(name, &parameters).await.unwrap();
    }

    pub(crate) async fn read(&self, pod: &Pod, file: &str) -> String {
        let path = self.pod_dir(pod).join("volumes/run").join(file);
        within(file, async {
            loop {
                match fs::read_to_string(&path) {
                    Ok(text) => return text,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        })
        .await
    }

    pub(crate) fn process(&self, pod: &Pod) -> Pid {
        let text = fs::read_to_string(self.pod_dir(pod).join("sandbox.json")).unwrap();
        let record: Value = serde_json::from_str(&text).unwrap();
        Pid::from_raw(
            record["process"]["pid"]
                .as_i64()
                .unwrap()
                .try_into()
                .unwrap(),
        )
        .unwrap()
    }

    pub(crate) async fn log(&self, query: &str) -> (u16, String) {
        let uri = format!("/api/v1/namespaces/default/pods/{query}");
        let request = http::Request::get(uri)
            .body(axum::body::Body::empty())
            .unwrap();
        let routes = self.agent.as_ref().unwrap().routes.clone();
        let answer = routes.oneshot(request).await.unwrap();
        let code = answer.status().as_u16();
        let body = within("the log", axum::body::to_bytes(answer.into_body(), 1 << 20))
            .await
            .unwrap();
        (code, String::from_utf8(body.to_vec()).unwrap())
    }

    /// What pods hold of the machine: links, mounts, namespaces, directories, control groups.
    pub(crate) fn holdings(&self) -> BTreeSet<String> {
        let names = |path: &Path, of: &str| -> Vec<String> {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries
                .map(|entry| format!("{of} {}", entry.file_name().to_string_lossy()))
                .collect()
        };
        let mut all = BTreeSet::new();
        let links = std::process::Command::new("ip")
            .args(["-o", "link"])
            .output()
            .unwrap();
        let links = String::from_utf8(links.stdout).unwrap();
        all.extend(
            links
                .lines()
                .filter_map(|line| Some(format!("link {}", line.split(": ").nth(1)?))),
        );
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let ours = self.dir.path().to_string_lossy().into_owned();
        all.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&ours))
                .map(|line| format!("mount {line}")),
        );
        all.extend(names(&self.config.run_dir.join("netns"), "netns"));
        all.extend(names(&self.config.state_dir.join("pods"), "pod"));
        all
    }

    /// With no pod left, nothing of pods is.
    pub(crate) async fn stop_agent_and_check(mut self) {
        let held: Vec<_> = self
            .holdings()
            .into_iter()
            .filter(|name| name != "link lo" && name != "link berth0")
            .collect();
        assert!(held.is_empty(), "left behind: {held:?}");
        self.stop_agent().await;
        let errors = berth_node::remove_all(&self.config).await;
        assert!(errors.is_empty(), "{errors:?}");
        let held: Vec<_> = self.holdings().into_iter().collect();
        assert_eq!(held, ["link lo"]);
    }
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited too long for {what}"),
    }
}

pub(crate) fn container(pod: &Pod) -> ContainerStatus {
    pod.status
        .clone()
        .unwrap()
        .container_statuses
        .unwrap()
        .remove(0)
}

pub(crate) fn terminated(pod: &Pod) -> (i32, String) {
    let end = container(pod).state.unwrap().terminated.unwrap();
    (end.exit_code, end.reason.unwrap())
}

/// Groups anywhere in the machine's hierarchies that have the pod's name.
pub(crate) fn groups(uid: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, uid: &str, depth: u8, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name() == uid {
                    found.push(entry.path());
                } else if depth > 0 {
                    walk(&entry.path(), uid, depth - 1, found);
                }
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), uid, 5, &mut found);
    found
}
