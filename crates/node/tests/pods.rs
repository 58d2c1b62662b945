//! Pods on a real kernel: the runtime with the embedded API server, with busybox for a launcher.
//!
//! Each test has a machine of its own: a thread in a network and a mount namespace that nobody else is in, on which the
//! runtime's threads are started.

#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_apiserver::{AdmitAll, ApiServer, Options};
use berth_network::NodeNetwork;
use berth_node::{Node, NodeConfig};
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use rustix::mount::MountPropagationFlags;
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

const SOON: Duration = Duration::from_secs(30);
const BUSYBOX: &str = "/usr/bin/busybox";

/// Runs a test on a machine of its own.
fn on_a_machine<F: Future<Output = ()>>(
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

struct Machine {
    config: NodeConfig,
    client: Client,
    agent: Option<Agent>,
    _api: ApiServer,
    dir: tempfile::TempDir,
}

struct Agent {
    routes: axum::Router,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Machine {
    async fn new() -> Self {
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

    fn start_agent(&mut self) {
        let node = Node::new(self.config.clone(), self.client.clone());
        let (routes, stop) = (node.router(), CancellationToken::new());
        let task = tokio::spawn({
            let stop = stop.clone();
            async move { node.run(stop).await.unwrap() }
        });
        self.agent = Some(Agent { routes, stop, task });
    }

    async fn stop_agent(&mut self) {
        let agent = self.agent.take().unwrap();
        agent.stop.cancel();
        within("the agent's end", agent.task).await.unwrap();
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    fn pod_dir(&self, pod: &Pod) -> PathBuf {
        self.config.state_dir.join("pods").join(pod.uid().unwrap())
    }

    /// Makes a pod whose only process is a shell with this script.
    async fn run(&self, name: &str, script: &str) -> Pod {
        self.create(name, script, |_| {}).await
    }

    async fn create(&self, name: &str, script: &str, change: impl FnOnce(&mut Value)) -> Pod {
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

    async fn until(&self, name: &str, what: &str, test: impl Fn(&Pod) -> bool) -> Pod {
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

    async fn until_phase(&self, name: &str, phase: &str) -> Pod {
        self.until(name, phase, |pod| {
            pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase)
        })
        .await
    }

    async fn until_gone(&self, name: &str) {
        let pods = self.pods();
        within("the pod's end", async {
            while pods.get_opt(name).await.unwrap().is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    async fn delete(&self, name: &str, grace: Option<u32>) {
        let parameters = DeleteParams {
            grace_period_seconds: grace,
            ..DeleteParams::default()
        };
        self.pods().delete(name, &parameters).await.unwrap();
    }

    async fn read(&self, pod: &Pod, file: &str) -> String {
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

    fn process(&self, pod: &Pod) -> Pid {
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

    async fn log(&self, query: &str) -> (u16, String) {
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
    fn holdings(&self) -> BTreeSet<String> {
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
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited too long for {what}"),
    }
}

fn container(pod: &Pod) -> ContainerStatus {
    pod.status
        .clone()
        .unwrap()
        .container_statuses
        .unwrap()
        .remove(0)
}

fn terminated(pod: &Pod) -> (i32, String) {
    let end = container(pod).state.unwrap().terminated.unwrap();
    (end.exit_code, end.reason.unwrap())
}

/// Groups anywhere in the machine's hierarchies that have the pod's name.
fn groups(uid: &str) -> Vec<PathBuf> {
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

#[test]
fn a_pod_has_no_privilege_and_sees_nothing_but_itself() {
    on_a_machine("sandbox", |machine| async move {
        let other = machine.run("other", "exec sleep 1000").await;
        machine.until_phase("other", "Running").await;
        let script = "cd /var/run/berth
            cp /proc/self/status status; id > id; hostname > hostname; cat /etc/resolv.conf > resolv
            ls / > root; ls /dev > dev; ip -o -4 addr show dev eth0 > eth0; ip -o link > links; ls /proc > proc
            ls -R / 2>/dev/null | sort > everything; cat /proc/self/mountinfo > mounts
            { touch /usr/x; touch /x; echo 1 > /proc/sys/kernel/panic; mount -t tmpfs x /tmp; unshare -n true;
              mknod /tmp/n c 1 3; kill -0 2; cat /dev/kmsg; } 2> refused
            ls /proc/self/fd > fds; readlink /proc/self/ns/net > net; touch done; exec sleep 1000";
        let pod = machine.run("tight", script).await;
        let running = machine.until_phase("tight", "Running").await;
        machine.read(&pod, "done").await;
        let read = async |file: &str| machine.read(&pod, file).await;

        let status = read("status").await;
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(
                status.contains(&format!("{set}:\t0000000000000000")),
                "{set} in {status}"
            );
        }
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        assert!(
            status.contains("\nGroups:\t\n") || status.contains("\nGroups:\t \n"),
            "{status}"
        );
        let user = read("id").await;
        assert!(
            user.contains("uid=2000001") && user.contains("gid=2000001"),
            "{user}"
        );
        assert_eq!(read("hostname").await, "guest-1\n");
        assert_eq!(
            read("resolv").await,
            "nameserver 192.0.2.53\nsearch lab.example\n"
        );

        // Its own network, with the address that the API shows.
        let ip = running.status.as_ref().unwrap().pod_ip.clone().unwrap();
        assert_eq!(ip, "10.7.0.3");
        assert!(read("eth0").await.contains(&format!("{ip}/24")));
        assert!(!read("links").await.contains("berth0"));
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_ne!(read("net").await.trim(), own.to_string_lossy());

        // Nothing of the machine's files and of other pods; only its own processes.
        let root: BTreeSet<String> = read("root").await.lines().map(str::to_owned).collect();
        assert!(root.contains("usr") && root.contains("proc"), "{root:?}");
        for foreign in ["home", "srv", "boot", "mnt", "media"] {
            assert!(!root.contains(foreign), "{foreign} in {root:?}");
        }
        let everything = read("everything").await;
        assert!(
            !everything.contains(&other.uid().unwrap()),
            "another pod is visible"
        );
        assert!(!everything.contains("store.redb") && !everything.contains("sandbox.json"));
        let processes = read("proc")
            .await
            .lines()
            .filter(|name| name.parse::<u32>().is_ok())
            .count();
        assert!(processes <= 3, "{processes} processes");
        let mounts = read("mounts").await;
        let writable: BTreeSet<&str> = mounts
            .lines()
            .filter(|line| line.split(' ').nth(5).unwrap().starts_with("rw"))
            .map(|line| line.split(' ').nth(4).unwrap())
            .collect();
        let expected = [
            "/dev",
            "/dev/pts",
            "/dev/shm",
            "/proc",
            "/tmp",
            "/var/run/berth",
        ];
        assert_eq!(writable, BTreeSet::from(expected), "{mounts}");
        let devices: BTreeSet<String> = read("dev").await.lines().map(str::to_owned).collect();
        assert!(
            !devices.contains("vda") && !devices.contains("mem") && devices.contains("net"),
            "{devices:?}"
        );
        let refused = read("refused").await;
        for words in [
            "/usr/x",
            "/x",
            "/proc/sys/kernel/panic",
            "mount",
            "unshare",
            "mknod",
        ] {
            assert!(
                refused.contains(words),
                "{words} was not refused: {refused}"
            );
        }
        // Standard streams, and the directory that was listed.
        assert_eq!(
            read("fds").await.lines().count(),
            4,
            "descriptors reached the pod"
        );

        let compute = container(&running);
        assert!(compute.ready && compute.restart_count == 0);
        assert_eq!(
            compute.container_id.unwrap(),
            format!("berth://{}", pod.uid().unwrap())
        );
        machine.delete("tight", Some(1)).await;
        machine.delete("other", Some(1)).await;
        machine.until_gone("tight").await;
        machine.until_gone("other").await;
        machine.stop_agent_and_check().await;
    });
}

impl Machine {
    /// With no pod left, nothing of pods is.
    async fn stop_agent_and_check(mut self) {
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

#[test]
fn the_end_of_a_pod_is_told_with_its_code_and_its_log_stays() {
    on_a_machine("exit codes", |machine| async move {
        let good = machine
            .run("good", "echo one; echo two; echo three >&2; exit 0")
            .await;
        machine.run("bad", "exit 3").await;
        let done = machine.until_phase("good", "Succeeded").await;
        assert_eq!(terminated(&done), (0, "Completed".to_owned()));
        assert_eq!(
            terminated(&machine.until_phase("bad", "Failed").await),
            (3, "Error".to_owned())
        );
        // What it held is free, its log is not gone.
        let held = machine.holdings();
        assert!(
            !held
                .iter()
                .any(|name| name.starts_with("link bp") || name.starts_with("netns")),
            "{held:?}"
        );
        assert!(groups(&good.uid().unwrap()).is_empty());
        assert_eq!(
            machine.log("good/log").await,
            (200, "one\ntwo\nthree\n".to_owned())
        );
        assert_eq!(
            machine.log("good/log?tailLines=1&follow=true").await.1,
            "three\n"
        );
        assert_eq!(
            machine
                .log("good/log?limitBytes=5&container=compute")
                .await
                .1,
            "one\nt"
        );
        assert_eq!(machine.log("good/log?container=x").await.0, 400);
        assert_eq!(machine.log("good/log?previous=true").await.0, 400);
        assert_eq!(machine.log("none/log").await.0, 404);
        machine.delete("good", None).await;
        machine.delete("bad", None).await;
        machine.until_gone("good").await;
        machine.until_gone("bad").await;
        within("the files' end", async {
            while machine
                .holdings()
                .iter()
                .any(|name| name.starts_with("pod "))
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        machine.stop_agent_and_check().await;
    });
}

#[test]
fn a_killed_pod_has_failed() {
    on_a_machine("killed", |machine| async move {
        let pod = machine.run("victim", "exec sleep 1000").await;
        machine.until_phase("victim", "Running").await;
        rustix::process::kill_process(machine.process(&pod), Signal::KILL).unwrap();
        assert_eq!(
            terminated(&machine.until_phase("victim", "Failed").await),
            (137, "Error".to_owned())
        );
        machine.delete("victim", None).await;
        machine.until_gone("victim").await;
    });
}

#[test]
fn a_deleted_pod_may_end_in_order_and_is_killed_when_it_does_not() {
    on_a_machine("deletion", |machine| async move {
        let polite = "trap 'echo bye; exit 0' TERM; touch /var/run/berth/ready; while :; do sleep 1000 & wait $!; done";
        let pod = machine.run("polite", polite).await;
        let stubborn = machine
            .run(
                "stubborn",
                "trap '' TERM; touch /var/run/berth/ready; while :; do sleep 1; done",
            )
            .await;
        for pod in [&pod, &stubborn] {
            machine.read(pod, "ready").await;
        }
        machine.until_phase("polite", "Running").await;
        machine.until_phase("stubborn", "Running").await;
        assert!(
            !groups(&pod.uid().unwrap()).is_empty(),
            "the pod is in no control group"
        );
        let begin = std::time::Instant::now();
        machine.delete("polite", None).await;
        machine.delete("stubborn", Some(2)).await;
        machine.until_gone("polite").await;
        assert!(
            begin.elapsed() < Duration::from_secs(25),
            "the grace was waited for"
        );
        machine.until_gone("stubborn").await;
        for pod in [&pod, &stubborn] {
            assert_eq!(groups(&pod.uid().unwrap()), Vec::<PathBuf>::new());
        }
        machine.stop_agent_and_check().await;
    });
}

#[test]
fn pods_outlive_the_agent_and_are_found_again() {
    on_a_machine("restart", |mut machine| async move {
        let pod = machine.run("survivor", "exec sleep 1000").await;
        let goner = machine.run("goner", "exec sleep 1000").await;
        let orphan = machine.run("orphan", "exec sleep 1000").await;
        let before = machine.until_phase("survivor", "Running").await;
        machine.until_phase("goner", "Running").await;
        machine.until_phase("orphan", "Running").await;
        let process = machine.process(&pod);
        let ghost = machine.process(&orphan);
        machine.stop_agent().await;

        rustix::process::test_kill_process(process).unwrap();
        rustix::process::kill_process(machine.process(&goner), Signal::KILL).unwrap();
        // Taken out of the API behind the agent's back.
        machine.delete("orphan", Some(0)).await;
        machine.until_gone("orphan").await;

        machine.start_agent();
        machine.until_phase("goner", "Failed").await;
        within("the orphan's end", async {
            while machine.pod_dir(&orphan).exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        assert!(
            rustix::process::test_kill_process(ghost).is_err(),
            "the orphan's process lives"
        );
        let after = machine.until_phase("survivor", "Running").await;
        assert_eq!(machine.process(&pod), process);
        assert_eq!(after.status.unwrap().pod_ip, before.status.unwrap().pod_ip);
        let newcomer = machine.run("newcomer", "exec sleep 1000").await;
        machine.until_phase("newcomer", "Running").await;
        assert_ne!(machine.process(&newcomer), process);

        rustix::process::kill_process(process, Signal::KILL).unwrap();
        machine.until_phase("survivor", "Failed").await;
        for name in ["survivor", "goner", "newcomer"] {
            machine.delete(name, Some(1)).await;
            machine.until_gone(name).await;
        }
        machine.stop_agent_and_check().await;
    });
}

#[test]
fn image_volumes_are_mounted_and_missing_images_are_told() {
    on_a_machine("images", |machine| async move {
        let disk = machine.dir.path().join("disk.img");
        fs::write(&disk, vec![7; 1 << 20]).unwrap();
        let store = berth_image::Store::open(machine.config.state_dir.join("images")).unwrap();
        store.build(&disk, &"guest:1".parse().unwrap()).unwrap();
        let with_image = |image: &'static str| {
            move |pod: &mut Value| {
                let mount = json!({"name": "disk-root", "mountPath": "/var/run/berth-disks/root", "readOnly": true});
                pod["spec"]["containers"][0]["volumeMounts"]
                    .as_array_mut()
                    .unwrap()
                    .push(mount);
                let volume = json!({"name": "disk-root", "image": {"reference": image, "pullPolicy": "Never"}});
                pod["spec"]["volumes"].as_array_mut().unwrap().push(volume);
            }
        };
        let script = "cd /var/run/berth-disks/root/disk; wc -c < $(ls) > /var/run/berth/size;
            touch x 2> /var/run/berth/refused; exec sleep 1000";
        let pod = machine.create("disk", script, with_image("guest:1")).await;
        machine.until_phase("disk", "Running").await;
        assert_eq!(
            machine.read(&pod, "size").await.trim(),
            (1 << 20).to_string()
        );
        assert!(machine.read(&pod, "refused").await.contains("Read-only"));

        machine
            .create("lost", "exit 0", with_image("no/such:thing"))
            .await;
        let lost = machine
            .until("lost", "a waiting reason", |pod| {
                let status = pod
                    .status
                    .as_ref()
                    .and_then(|s| s.container_statuses.as_ref()?.first());
                let waiting = status.and_then(|s| s.state.as_ref()?.waiting.as_ref());
                waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some("ImagePullBackOff"))
            })
            .await;
        let waiting = container(&lost).state.unwrap().waiting.unwrap();
        assert!(waiting.message.unwrap().contains("no/such:thing"));
        let events: Api<Event> = Api::namespaced(machine.client.clone(), "default");
        within("the event", async {
            loop {
                let events = events.list(&ListParams::default()).await.unwrap();
                let told = |event: &Event| {
                    event.reason.as_deref() == Some("Failed")
                        && event
                            .message
                            .as_ref()
                            .is_some_and(|message| message.contains("no/such:thing"))
                };
                if events.items.iter().any(told) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        // Nothing was made for it.
        assert!(!machine.pod_dir(&lost).exists());

        // Its name means another image now: the old one stays for as long as a pod needs it, and goes with the pod.
        let disks = store.root().join("disks");
        let old = fs::read_dir(&disks)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        fs::write(&disk, vec![8; 1 << 20]).unwrap();
        store.build(&disk, &"guest:1".parse().unwrap()).unwrap();
        store.collect(&BTreeSet::new()).unwrap();
        assert!(old.exists());
        for name in ["disk", "lost"] {
            machine.delete(name, Some(1)).await;
            machine.until_gone(name).await;
        }
        within("the unused disk's end", async {
            while old.exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        machine.stop_agent_and_check().await;
    });
}

#[test]
fn a_pod_that_cannot_start_says_which_step_failed_and_leaves_nothing() {
    on_a_machine("failed start", |machine| async move {
        machine
            .create("broken", "", |pod| {
                pod["spec"]["containers"][0]["command"] = json!(["/usr/bin/not-there"]);
            })
            .await;
        let pod = machine
            .until("broken", "a waiting reason", |pod| {
                let status = pod
                    .status
                    .as_ref()
                    .and_then(|s| s.container_statuses.as_ref()?.first());
                status
                    .and_then(|s| s.state.as_ref()?.waiting.as_ref()?.message.as_ref())
                    .is_some()
            })
            .await;
        let waiting = container(&pod).state.unwrap().waiting.unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("CreateContainerError"));
        assert!(
            waiting
                .message
                .unwrap()
                .contains("/usr/bin/not-there: No such file")
        );
        let held: Vec<_> = machine
            .holdings()
            .into_iter()
            .filter(|n| n != "link lo" && n != "link berth0")
            .collect();
        assert!(held.is_empty(), "{held:?}");
        assert_eq!(groups(&pod.uid().unwrap()), Vec::<PathBuf>::new());
        machine.delete("broken", None).await;
        machine.until_gone("broken").await;
        machine.stop_agent_and_check().await;
    });
}
