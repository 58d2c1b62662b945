//! Pods that a kubelet runs.
//!
//! The API says which containers a launcher pod has; their first processes are found by the container's id in their
//! control group, and through them the pod's namespaces. Nothing of a container's runtime is asked, so it may be any.
//!
//! ```text
//!  container disk-root               container compute
//!  /disk/guest.qcow2  ── clone of ──► /var/run/berth-disks/root   read-only
//!    (its image)         the mount    /dev/net/tun
//! ```
//! A disk gets into the launcher's container as a mount that is cloned in the one mount namespace and put down in the
//! other: no path of the machine is made visible to either, and no mount has to propagate. The names inside a container
//! are resolved inside it, so a link in an image leads nowhere else.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use berth_api::labels;
use berth_api::launcher::{
    CLAIM_DISK, CLAIM_PREFIX, CLAIM_SIZES, ClaimSizes, DISKS_DIR, HOLDER_PREFIX,
};
use berth_image::format::DiskFormat;
use berth_subresources::Guests;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, makedev, mknodat};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::guests::LocalGuests;
use crate::{ClaimedDisk, NodeConfig, PodLocation, PodSandboxes, vm};

/// Where a kubelet keeps the volumes of pods.
const PODS: &str = "/var/lib/kubelet/pods";
/// Where a container disk's file is in its image.
const IMAGE_DIR: &str = "disk";
/// Major and minor of `/dev/net/tun`.
const TUN: (u32, u32) = (10, 200);

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
        ensure_tun(compute).map_err(|e| format!("/dev/net/tun of the launcher: {e}"))?;
        location.claims = claims(&pod);
        for disk in location.claims.values().filter(|disk| disk.block) {
            give_device(compute, &disk.path, location.uid, location.gid)
                .map_err(|e| format!("{}: {e}", disk.path))?;
        }
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        for container in containers {
            let Some(name) = container.name.strip_prefix(HOLDER_PREFIX) else {
                continue;
            };
            let disk = || -> Result<(PathBuf, String, DiskFormat), String> {
                let holder = self
                    .process(&pod, &container.name)
                    .ok_or("its container does not run")?;
                let at = format!("{DISKS_DIR}/{name}");
                let mounted = format!("/proc/{compute}/root{at}").into();
                if !is_mount_point(compute, &at) {
                    let target = volume(pod_uid, "disks").join(name);
                    let file = container.command.iter().flatten().nth(1).cloned();
                    put_down(holder, compute, file, &target, &at).map_err(|e| e.to_string())?;
                }
                let format = format_of(compute, &at).map_err(|e| e.to_string())?;
                Ok((mounted, at, format))
            };
            let disk = disk().map_err(|why| format!("container disk {name}: {why}"))?;
            location.disks.insert(name.to_owned(), disk);
        }
        Ok(location)
    }
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
    if !read("cgroup").contains(id) {
        return false;
    }
    // Number 1 in the innermost pid namespace: the container's own, whatever else runs in it.
    read("status")
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .and_then(|numbers| numbers.split_whitespace().last())
        == Some("1")
}

fn first_process(id: &str) -> Option<u32> {
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|pid| is_of(*pid, id))
}

/// Runs in the mount namespace of a process, on a thread of its own.
fn within_mounts<T: Send>(pid: u32, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // SAFETY: this thread alone gets a root and a working directory of its own, which joining a mount
            // namespace asks for; descriptors and memory stay shared.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
            rustix::thread::move_into_link_name_space(
                namespace.as_fd(),
                Some(LinkNameSpaceType::Mount),
            )?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a panic in a pod's mount namespace")))
    })
}

/// Clones the one disk file of the holder's image as a mount, and puts it down in the launcher's container. `target` is
/// that place as this process sees it.
fn put_down(
    holder: u32,
    compute: u32,
    file: Option<String>,
    target: &Path,
    at: &str,
) -> io::Result<()> {
    match File::options().write(true).create_new(true).open(target) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let tree = within_mounts(holder, move || clone_disk(file))?;
    let at = at.to_owned();
    within_mounts(compute, move || {
        rustix::mount::move_mount(
            tree.as_fd(),
            "",
            CWD,
            at.as_str(),
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
        rustix::mount::mount_remount(
            at.as_str(),
            MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV,
            c"",
        )?;
        Ok(())
    })
}

/// In the holder's mount namespace: the disk as a mount that is nowhere yet. `named` is the file that is meant; without
/// it, it is the only one.
fn clone_disk(named: Option<String>) -> io::Result<OwnedFd> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    let beneath = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let opened =
        |path: &Path, flags| rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), beneath);
    let path = match named {
        Some(path) => PathBuf::from(path),
        None => only_file(&opened)?,
    };
    let file = opened(&path, OFlags::PATH)
        .map_err(|e| io::Error::other(format!("{} in the image: {e}", path.display())))?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(io::Error::other(format!(
            "{} in the image is not a regular file",
            path.display()
        )));
    }
    let tree = rustix::mount::open_tree(
        file.as_fd(),
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH,
    )?;
    Ok(tree)
}

/// The one file in the directory of disks.
fn only_file(
    opened: &impl Fn(&Path, OFlags) -> rustix::io::Result<OwnedFd>,
) -> io::Result<PathBuf> {
    let dir = opened(Path::new(IMAGE_DIR), OFlags::RDONLY | OFlags::DIRECTORY)
        .map_err(|e| io::Error::other(format!("the image has no directory /{IMAGE_DIR}: {e}")))?;
    let mut files = Vec::new();
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            files.push(name);
        }
    }
    let [name] = files.as_slice() else {
        return Err(io::Error::other(format!(
            "the image must hold exactly one file in /{IMAGE_DIR}, and has {}",
            files.len()
        )));
    };
    Ok(Path::new(IMAGE_DIR).join(name))
}

/// Whether something is mounted at a path of a container.
fn is_mount_point(pid: u32, path: &str) -> bool {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    // The place is in the fifth field; /var/run may be a link to /run.
    let run = path.strip_prefix("/var").unwrap_or(path);
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|at| at == path || at == run)
}

fn format_of(compute: u32, at: &str) -> io::Result<DiskFormat> {
    let path = PathBuf::from(at);
    within_mounts(compute, move || {
        berth_image::format::inspect(&path)
            .map(|info| info.format)
            .map_err(|e| io::Error::other(e.to_string()))
    })
}

/// The disks on claims, as the launcher's container has them.
fn claims(pod: &Pod) -> BTreeMap<String, ClaimedDisk> {
    let mut found = BTreeMap::new();
    let sizes = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(CLAIM_SIZES))
        .map(|value| ClaimSizes::read(value).0)
        .unwrap_or_default();
    let compute = pod
        .spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .find(|container| container.name == labels::COMPUTE_CONTAINER);
    let Some(compute) = compute else {
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

/// The device that the runtime made in the container becomes the launcher's: runtimes make it as it is on the machine.
fn give_device(compute: u32, path: &str, uid: u32, gid: u32) -> io::Result<()> {
    within_mounts(compute, || {
        let device = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&device)?.st_mode);
        if kind != FileType::BlockDevice {
            return Err(io::Error::other("it is not a block device"));
        }
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))
    })
}

/// Taps are made through this device. Container runtimes allow it and do not make it.
fn ensure_tun(compute: u32) -> io::Result<()> {
    within_mounts(compute, || {
        let device = "/dev/net/tun";
        if Path::new(device).exists() {
            return Ok(());
        }
        fs::create_dir_all("/dev/net")?;
        mknodat(
            CWD,
            device,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            makedev(TUN.0, TUN.1),
        )?;
        // The umask had its say.
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(device, fs::Permissions::from_mode(0o666))
    })
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
        let work = async { tokio::join!(machines, announce(&config, &client, &shutdown)) };
        tokio::select! {
            () = watched => {}
            _ = work => {}
        }
    }
}

/// Says on the Node that virtual machines can run there, and that it still is so.
async fn announce(config: &NodeConfig, client: &Client, shutdown: &CancellationToken) {
    let api: Api<Node> = Api::all(client.clone());
    let mut beat = tokio::time::interval(std::time::Duration::from_secs(60));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = beat.tick() => {}
        }
        let now = k8s_openapi::jiff::Timestamp::now();
        let patch = json!({"metadata": {
            "labels": {labels::SCHEDULABLE: "true"},
            "annotations": {labels::HEARTBEAT: format!("{now:.0}")},
        }});
        let patched = api
            .patch(
                &config.node_name,
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await;
        if let Err(error) = patched {
            tracing::warn!(node = config.node_name, %error, "the node is not labelled, will be tried again");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

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

    /// A process of this machine is no container's.
    #[test]
    fn a_process_is_known_by_its_control_group_and_its_number() {
        assert!(!is_of(std::process::id(), ID));
        assert!(!is_of(u32::MAX, ID));
        assert_eq!(first_process(ID), None);
    }

    /// What is mounted in one mount namespace and put down in another, by way of this module's own steps.
    #[test]
    fn a_disk_is_cloned_beneath_its_root_only() {
        if berth_testing::not_root("a_disk_is_cloned_beneath_its_root_only") {
            return;
        }
        let own = std::process::id();
        // In this machine's root there is no /disk, or not exactly one file in it.
        let refused = within_mounts(own, || clone_disk(None)).unwrap_err();
        assert!(refused.to_string().contains("/disk"), "{refused}");
        let refused = within_mounts(own, || clone_disk(Some("/etc".into()))).unwrap_err();
        assert!(
            refused.to_string().contains("not a regular file"),
            "{refused}"
        );
        let up = within_mounts(own, || clone_disk(Some("/../../etc/hostname".into())));
        // Nothing is above a root.
        assert!(up.is_ok() || up.is_err_and(|e| e.to_string().contains("hostname")));
        let file = within_mounts(own, || clone_disk(Some("/etc/passwd".into())));
        assert!(file.is_ok(), "{file:?}");
        assert!(is_mount_point(own, "/proc"));
        assert!(!is_mount_point(own, "/etc/passwd"));
    }
}
