//! The node agent: runs the pods of one machine and the virtual machines in them.
//!
//! - [`pod`]: the pod runtime, standalone only: sandboxes for launcher pods;
//! - [`kubelet`]: on a cluster, where a kubelet runs the pods: finds them, and gives them what kubelets cannot;
//! - `devices`: on a cluster, the device plugins that hand out KVM and the network's devices;
//! - `volumes`: standalone, the PersistentVolumes of this machine;
//! - [`vm`]: the machine half: wires the network, talks to the launcher, owns the machine's status;
//! - `registration`: the Node object and its heartbeat;
//! - [`logs`], `guests`: what is asked of the node from outside.
//!
//! [`PodSandboxes`] is the seam between the first two: on a cluster the kubelet runs the pods, and only how they are found
//! is another.

mod devices;
mod guests;
pub mod kubelet;
pub mod logs;
pub mod pod;
mod registration;
mod untrusted;
pub mod vm;
mod volumes;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use berth_image::format::DiskFormat;
use berth_network::NodeNetwork;
use berth_subresources::Guests;
use kube::Client;
use tokio_util::sync::CancellationToken;

/// What the node agent must know of its machine.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The name of the Node object.
    pub node_name: String,
    /// What must survive a restart.
    pub state_dir: PathBuf,
    /// What need not survive a reboot.
    pub run_dir: PathBuf,
    /// The pod network.
    pub network: NodeNetwork,
    /// Name servers that guests are told.
    pub dns: Vec<Ipv4Addr>,
    /// Search domains that guests are told.
    pub search: Vec<String>,
    /// This program, to run in sandboxes.
    pub berth_binary: PathBuf,
    /// Registries that are spoken to by plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Most pods that run here at once, where no kubelet says so.
    pub max_pods: u32,
}

/// As many pods as a kubelet runs that is not told otherwise.
pub const DEFAULT_MAX_PODS: u32 = 110;

impl NodeConfig {
    /// The directories of pods.
    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.state_dir.join("pods")
    }

    /// Where the network namespaces of pods have their names.
    pub(crate) fn netns_dir(&self) -> PathBuf {
        self.run_dir.join("netns")
    }

    /// Where the volumes of this machine are.
    pub(crate) fn volumes_dir(&self) -> PathBuf {
        self.state_dir.join("volumes")
    }

    /// What QEMU can do, for every pod to read.
    pub(crate) fn capabilities_dir(&self) -> PathBuf {
        self.state_dir.join("cache/qemu-capabilities")
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors repeat their cause in their own words.
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Runs what blocks on a thread for it. A panic there goes on here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime goes down: nobody waits for the result any more.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Where the parts of a running pod are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLocation {
    /// Its network namespace.
    pub netns: PathBuf,
    /// Its `/var/run/berth` on this machine.
    pub run_dir: PathBuf,
    /// Volume → the disk file on this machine, its path in the pod, its format.
    pub disks: BTreeMap<String, (PathBuf, String, DiskFormat)>,
    /// Disks that outlive the pod, by volume.
    pub claims: BTreeMap<String, ClaimedDisk>,
    /// The user of its processes.
    pub uid: u32,
    /// The group of its processes.
    pub gid: u32,
    /// Its first process.
    pub pid: u32,
}

/// A disk on a claim, raw and written directly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedDisk {
    /// Path in the pod.
    pub path: String,
    /// Whether it is a block device.
    pub block: bool,
    /// How large a file is to be made where there is none, in bytes.
    pub size: Option<u64>,
}

/// Finds the sandboxes of pods that run on this machine.
pub trait PodSandboxes: Send + Sync + 'static {
    /// Where a pod is; none if it does not run here.
    fn locate(&self, pod_uid: &str) -> Option<PodLocation>;

    /// Sees to it that the pod has what its machine needs, before the machine is started. Blocks, idempotent.
    ///
    /// # Errors
    /// A sentence for the user.
    fn provide(&self, _pod_uid: &str, location: PodLocation) -> Result<PodLocation, String> {
        Ok(location)
    }

    /// Whether the pod may use KVM where the node has it. One that may not is emulated by wish.
    fn may_use_kvm(&self, _pod_uid: &str) -> bool {
        true
    }
}

/// Why the node agent cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node's network.
    #[error("the pod network cannot be set up: {0}")]
    Network(#[source] berth_network::Error),
    /// The image store.
    #[error("the image store cannot be opened: {0}")]
    Images(#[source] berth_image::StoreError),
    /// Directories.
    #[error("{path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// The node agent of a standalone machine.
pub struct Node {
    config: Arc<NodeConfig>,
    client: Client,
    sandboxes: Arc<pod::Sandboxes>,
}

impl Node {
    /// A node agent that does nothing yet.
    #[must_use]
    pub fn new(config: NodeConfig, client: Client) -> Self {
        let config = Arc::new(config);
        let sandboxes = Arc::new(pod::Sandboxes::new(config.clone()));
        Self {
            config,
            client,
            sandboxes,
        }
    }

    /// The routes that the API server serves for the node: logs.
    pub fn router(&self) -> axum::Router {
        logs::router(self.client.clone(), self.sandboxes.clone())
    }

    /// The devices of this machine's guests.
    #[must_use]
    pub fn guests(&self) -> Arc<dyn Guests> {
        Arc::new(guests::LocalGuests(self.sandboxes.clone()))
    }

    /// Runs until `shutdown`. Pods and their machines go on when it returns.
    ///
    /// # Errors
    /// When the machine cannot be prepared.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self {
            config,
            client,
            sandboxes,
        } = self;
        let runtime =
            pod::Runtime::prepare(config.clone(), client.clone(), sandboxes.clone()).await?;
        tokio::join!(
            registration::run(config.clone(), client.clone(), shutdown.clone()),
            runtime.run(shutdown.clone()),
            volumes::run(
                client.clone(),
                volumes::Local::new(config.volumes_dir()),
                config.node_name.clone(),
                shutdown.clone(),
            ),
            vm::run(config, client, sandboxes, shutdown),
        );
        Ok(())
    }
}

/// Ends every pod and removes what the node agent made on this machine; the image store stays. For a machine on which no
/// node agent runs.
pub async fn remove_all(config: &NodeConfig) -> Vec<pod::TeardownError> {
    pod::remove_all(config).await
}
