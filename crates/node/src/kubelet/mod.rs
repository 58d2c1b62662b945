//! Pods that a kubelet runs.
//!
//! The API says which containers a launcher pod has; their first processes are found by the container's id in their
//! control group, and through them the pod's namespaces. Nothing of a container's runtime is asked, so it may be any.
//!
//! ```text
//!  container disk-root               container compute
//!  /disk/guest.qcow2  ── clone of ──► /var/run/berth-disks/root   read-only
//!    (its image)         the mount
//! ```
//! A disk gets into the launcher's container as a mount that is cloned in the one mount namespace and put down in the
//! other: no path of the machine is made visible to either, and no mount has to propagate. Where container disks are image
//! volumes, the disk is in the container already.

mod announce;
mod mounts;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use berth_api::labels;
use berth_api::launcher::{
    CLAIM_DISK, CLAIM_PREFIX, CLAIM_SIZES, ClaimSizes, DISK_PATHS, DISKS_DIR, DiskPaths, held_by,
    is_boot_file,
};
use berth_image::format::DiskFormat;
use berth_subresources::Guests;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::devices;
use crate::guests::LocalGuests;
use crate::{ClaimedDisk, NodeConfig, PodLocation, PodSandboxes, vm};
use mounts::{format_of, give_device, in_image_volume, is_mount_point, put_down};

/// Where a kubelet keeps the volumes of pods.
const PODS: &str = "/var/lib/kubelet/pods";

/// The launcher pods of a node, and the first processes of their containers.
pub struct KubeletPods {
    pods: Store<Pod>,
    /// By container id. An id is never used again, and a process that ended is looked for anew.
    processes: Mutex<HashMap<String, u32>>,
}

impl KubeletPods {
    fn find(&self, pod_uid: &str) -> Option<Arc<Pod>> {
        self.pods
            .find(|pod| pod.metadata.uid.as_deref() == Some(pod_uid))
    }

    /// The first process of a container that runs.
    fn process(&self, pod: &Pod, container: &str) -> Option<u32> {
        let id = container_id(pod, container)?;
        let mut known = self
            .processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(pid) = known.get(id)
            && is_of(*pid, id)
        {
            return Some(*pid);
        }
        known.retain(|_, pid| Path::new(&format!("/proc/{pid}")).exists());
        let pid = first_process(id)?;
        known.insert(id.to_owned(), pid);
        Some(pid)
    }
}

impl PodSandboxes for KubeletPods {
    fn locate(&self, pod_uid: &str) -> Option<PodLocation> {
        let pod = self.find(pod_uid)?;
        // The machine's own watch may be ahead of this one: what has not started yet is not over.
        if !has_started(&pod, labels::COMPUTE_CONTAINER) {
            return None;
        }
        let user = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok());
        let context = pod.spec.as_ref()?.security_context.as_ref()?;
        // Without a process the pod's last words can still be read.
        let pid = self.process(&pod, labels::COMPUTE_CONTAINER).unwrap_or(0);
        Some(PodLocation {
            netns: format!("/proc/{pid}/ns/net").into(),
            run_dir: volume(pod_uid, "run"),
            disks: BTreeMap::new(),
            claims: BTreeMap::new(),
            uid: user(context.run_as_user)?,
            gid: user(context.run_as_group)?,
            pid,
        })
    }

    fn provide(&self, pod_uid: &str, mut location: PodLocation) -> Result<PodLocation, String> {
        let pod = self
            .find(pod_uid)
            .ok_or("the launcher pod is not on this node")?;
        let compute = self
            .process(&pod, labels::COMPUTE_CONTAINER)
            .ok_or("the launcher's container does not run")?;
        let owner = (location.uid, location.gid);
        for path in given_devices(&pod) {
            give_device(compute, path, owner)
                .map_err(|e| format!("{path} of the launcher: {e}"))?;
        }
        location.claims = claims(&pod);
        for disk in location.claims.values().filter(|disk| disk.block) {
            give_device(compute, &disk.path, owner).map_err(|e| format!("{}: {e}", disk.path))?;
        }
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        for container in containers {
            let Some(name) = held_by(&container.name) else {
                continue;
            };
            let disk = || -> Result<(PathBuf, String, DiskFormat), String> {
                let holder = self
                    .process(&pod, &container.name)
                    .ok_or("its container does not run")?;
                let at = format!("{DISKS_DIR}/{name}");
                if !is_mount_point(compute, &at) {
                    let target = volume(pod_uid, "disks").join(&name);
                    let file = container.command.iter().flatten().nth(1).cloned();
                    put_down(holder, compute, file, &target, &at, owner)
                        .map_err(|e| e.to_string())?;
                }
                seen_from_outside(compute, at, &name)
            };
            let disk = disk().map_err(|why| format!("container disk {name}: {why}"))?;
            location.disks.insert(name, disk);
        }
        let paths = annotation(&pod, DISK_PATHS).map(DiskPaths::read);
        let paths = paths.unwrap_or_default();
        for name in image_volumes(&pod) {
            let at = format!("{DISKS_DIR}/{name}");
            let disk = in_image_volume(compute, &at, paths.0.get(&name).cloned(), owner)
                .map_err(|e| e.to_string())
                .and_then(|path| seen_from_outside(compute, path, &name))
                .map_err(|why| format!("container disk {name}: {why}"))?;
            location.disks.insert(name, disk);
        }
        Ok(location)
    }

    fn may_use_kvm(&self, pod_uid: &str) -> bool {
        self.find(pod_uid)
            .is_some_and(|pod| requests(&pod, labels::DEVICE_KVM))
    }
}

/// A disk in the launcher's container: its path on this machine, its path there, its format.
fn seen_from_outside(
    compute: u32,
    at: String,
    volume: &str,
) -> Result<(PathBuf, String, DiskFormat), String> {
    let format = if is_boot_file(volume) {
        DiskFormat::Raw
    } else {
        format_of(compute, &at).map_err(|e| e.to_string())?
    };
    Ok((format!("/proc/{compute}/root{at}").into(), at, format))
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let all = pod.metadata.annotations.as_ref()?;
    all.get(name).map(String::as_str)
}

fn compute_of(pod: &Pod) -> Option<&Container> {
    let mut containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers.find(|container| container.name == labels::COMPUTE_CONTAINER)
}

/// Whether the launcher's container asks for a resource.
fn requests(pod: &Pod, resource: &str) -> bool {
    compute_of(pod)
        .and_then(|compute| compute.resources.as_ref()?.limits.as_ref())
        .is_some_and(|limits| limits.contains_key(resource))
}

/// The devices that the kubelet has given to the launcher's container.
fn given_devices(pod: &Pod) -> impl Iterator<Item = &'static str> {
    let all = devices::ALL.iter();
    all.filter(|device| requests(pod, device.resource))
        .map(|device| device.path)
}

/// The container disks that are image volumes.
fn image_volumes(pod: &Pod) -> impl Iterator<Item = String> {
    let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes).flatten();
    volumes
        .filter(|volume| volume.image.is_some())
        .filter_map(|volume| held_by(&volume.name))
}

fn volume(pod_uid: &str, name: &str) -> PathBuf {
    Path::new(PODS)
        .join(pod_uid)
        .join("volumes/kubernetes.io~empty-dir")
        .join(name)
}

/// Whether a container runs or has run.
fn has_started(pod: &Pod, container: &str) -> bool {
    let statuses = pod.status.iter().flat_map(|s| &s.container_statuses);
    statuses
        .flatten()
        .find(|status| status.name == container)
        .and_then(|status| status.state.as_ref())
        .is_some_and(|state| state.running.is_some() || state.terminated.is_some())
}

/// The id of a container that runs, without the name of the runtime.
fn container_id<'a>(pod: &'a Pod, container: &str) -> Option<&'a str> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let status = statuses.iter().find(|status| status.name == container)?;
    status.state.as_ref()?.running.as_ref()?;
    let (_, id) = status.container_id.as_ref()?.split_once("://")?;
    (id.len() >= 32).then_some(id)
}

/// Whether a process is the first of the container with this id.
fn is_of(pid: u32, id: &str) -> bool {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    if !is_in_group_of(&read("cgroup"), id) {
        return false;
    }
    // Number 1 in the innermost pid namespace: the container's own, whatever else runs in it.
    read("status")
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .and_then(|numbers| numbers.split_whitespace().last())
        == Some("1")
}

/// Whether `/proc/<pid>/cgroup` names the control group of a container, in either hierarchy and whoever made it: the last
/// part of a path is the id, alone (cgroupfs) or as a unit (`cri-containerd-<id>.scope`, `crio-<id>.scope`).
fn is_in_group_of(cgroup: &str, id: &str) -> bool {
    let paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let mut last = paths.filter_map(|path| path.rsplit('/').next());
    last.any(|name| {
        let name = name.strip_suffix(".scope").unwrap_or(name);
        name == id || name.rsplit_once('-').is_some_and(|(_, end)| end == id)
    })
}

fn first_process(id: &str) -> Option<u32> {
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|pid| is_of(*pid, id))
}

/// The disks on claims, as the launcher's container has them.
fn claims(pod: &Pod) -> BTreeMap<String, ClaimedDisk> {
    let mut found = BTreeMap::new();
    let sizes = annotation(pod, CLAIM_SIZES)
        .map(|value| ClaimSizes::read(value).0)
        .unwrap_or_default();
    let Some(compute) = compute_of(pod) else {
        return found;
    };
    for mount in compute.volume_mounts.iter().flatten() {
        if let Some(volume) = mount.name.strip_prefix(CLAIM_PREFIX) {
            let disk = ClaimedDisk {
                path: format!("{}/{CLAIM_DISK}", mount.mount_path),
                block: false,
                size: sizes.get(volume).copied(),
            };
            found.insert(volume.to_owned(), disk);
        }
    }
    for device in compute.volume_devices.iter().flatten() {
        if let Some(volume) = device.name.strip_prefix(CLAIM_PREFIX) {
            let disk = ClaimedDisk {
                path: device.device_path.clone(),
                block: true,
                size: None,
            };
            found.insert(volume.to_owned(), disk);
        }
    }
    found
}

/// The node agent of a node whose pods a kubelet runs.
pub struct KubeletNode {
    config: Arc<NodeConfig>,
    client: Client,
    sandboxes: Arc<KubeletPods>,
    writer: Writer<Pod>,
}

impl KubeletNode {
    /// A node agent that does nothing yet.
    #[must_use]
    pub fn new(config: NodeConfig, client: Client) -> Self {
        let (pods, writer) = reflector::store();
        Self {
            config: Arc::new(config),
            client,
            sandboxes: Arc::new(KubeletPods {
                pods,
                processes: Mutex::default(),
            }),
            writer,
        }
    }

    /// The devices of this node's guests.
    #[must_use]
    pub fn guests(&self) -> Arc<dyn Guests> {
        Arc::new(LocalGuests(self.sandboxes.clone()))
    }

    /// Runs the machines until `shutdown`. Guests go on when it returns.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self {
            config,
            client,
            sandboxes,
            writer,
        } = self;
        let launchers = watcher::Config::default()
            .labels(&format!("{}={}", labels::APP, labels::LAUNCHER))
            .fields(&format!("spec.nodeName={}", config.node_name));
        let pods = watcher(Api::<Pod>::all(client.clone()), launchers)
            .default_backoff()
            .reflect(writer);
        let watched = async {
            let mut pods = Box::pin(pods);
            while let Some(event) = pods.next().await {
                if let Err(error) = event {
                    tracing::warn!(%error, "watch of launcher pods failed, will be tried again");
                }
            }
        };
        let store = sandboxes.pods.clone();
        let machines = async {
            if store.wait_until_ready().await.is_ok() {
                vm::run(config.clone(), client.clone(), sandboxes, shutdown.clone()).await;
            }
        };
        let work = async {
            tokio::join!(
                machines,
                announce::run(&config, &client, &shutdown),
                devices::run(&shutdown),
            )
        };
        tokio::select! {
            () = watched => {}
            _ = work => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ID: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn pod(state: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u", "annotations": {CLAIM_SIZES: "data=1024,none=0,bad"}},
            "spec": {
                "containers": [{
                    "name": "compute",
                    "volumeMounts": [
                        {"name": "run", "mountPath": "/var/run/berth"},
                        {"name": "claim-data", "mountPath": "/var/run/berth-claims/data"},
                        {"name": "claim-none", "mountPath": "/var/run/berth-claims/none"},
                    ],
                    "volumeDevices": [{"name": "claim-raw", "devicePath": "/dev/berth/raw"}],
                }],
            },
            "status": {"containerStatuses": [{
                "name": "compute", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "containerID": format!("containerd://{ID}"), "state": state,
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn what_has_not_started_is_not_over() {
        let waiting = pod(&json!({"waiting": {"reason": "ContainerCreating"}}));
        let running = pod(&json!({"running": {}}));
        let over = pod(&json!({"terminated": {"exitCode": 0}}));
        let told = |pod: &Pod| {
            (
                has_started(pod, "compute"),
                container_id(pod, "compute").is_some(),
            )
        };
        assert_eq!(told(&waiting), (false, false));
        assert_eq!(told(&running), (true, true));
        assert_eq!(told(&over), (true, false));
        assert_eq!(container_id(&running, "other"), None);
    }

    #[test]
    fn claims_are_read_from_the_pod() {
        let found = claims(&pod(&json!({"running": {}})));
        let disk = |path: &str, block, size| ClaimedDisk {
            path: path.into(),
            block,
            size,
        };
        assert_eq!(
            found,
            BTreeMap::from([
                (
                    "data".into(),
                    disk("/var/run/berth-claims/data/disk.img", false, Some(1024))
                ),
                (
                    "none".into(),
                    disk("/var/run/berth-claims/none/disk.img", false, None)
                ),
                ("raw".into(), disk("/dev/berth/raw", true, None)),
            ])
        );
    }

    #[test]
    fn control_groups_of_either_hierarchy() {
        let in_group = |path: &str| is_in_group_of(&path.replace("ID", ID), ID);
        for path in [
            "12:memory:/kubepods/burstable/pod1-2/ID\n0::/",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-ID.scope",
            // Seen from a container with a control group namespace of its own.
            "0::/../../kubepods-pod1_2.slice/crio-ID.scope",
        ] {
            assert!(in_group(path), "{path}");
        }
        for path in [
            "0::/kubepods/pod1/otherID",
            "0::/IDID",
            "0::/kubepods/ID/inner",
            "",
        ] {
            assert!(!in_group(path), "{path}");
        }
    }

    /// The tree of the unified hierarchy, which may be beside the old ones.
    fn unified() -> Option<std::path::PathBuf> {
        ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(std::path::PathBuf::from)
            .into_iter()
            .find(|tree| tree.join("cgroup.controllers").exists())
    }

    /// A process in a control group of the new kind, called as systemd and containerd call it.
    #[test]
    fn a_container_is_found_in_the_unified_hierarchy() {
        let test = "a_container_is_found_in_the_unified_hierarchy";
        if berth_testing::not_root(test) {
            return;
        }
        let Some(tree) = unified() else {
            berth_testing::skip(test, "no unified hierarchy is mounted");
            return;
        };
        let id = format!("{:064x}", std::process::id());
        let slice = tree.join(format!("berth-test-{}.slice", std::process::id()));
        let scope = slice.join(format!("cri-containerd-{id}.scope"));
        fs::create_dir_all(&scope).unwrap();
        // A shell that is the first of its pid namespace, as a container's first process is.
        let mut container = std::process::Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "sh", "-c"])
            .arg(format!(
                "echo 0 > {}/cgroup.procs; exec sleep 60",
                scope.display()
            ))
            .spawn()
            .unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let mut found = None;
        while found.is_none() && std::time::Instant::now() < deadline {
            found = first_process(&id);
        }
        container.kill().unwrap();
        container.wait().unwrap();
        let pid = found.expect("the container's first process");
        while Path::new(&format!("/proc/{pid}")).exists() {
            std::thread::yield_now();
        }
        fs::remove_dir(&scope).unwrap();
        fs::remove_dir(&slice).unwrap();
    }

    /// A process of this machine is no container's.
    #[test]
    fn a_process_is_known_by_its_control_group_and_its_number() {
        assert!(!is_of(std::process::id(), ID));
        assert!(!is_of(u32::MAX, ID));
        assert_eq!(first_process(ID), None);
    }
}
