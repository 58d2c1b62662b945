//! The machine half of the node agent: it runs the VirtualMachineInstances of this node in their launcher pods.
//!
//! The controller labels a machine with its node and hands its status over in phase `Scheduled`. From then on the
//! [`machine`] task of this node is the only writer of the status. How a pod came to be is not known here: the
//! pod runtime or a kubelet, [`PodSandboxes`] finds its sandbox.

mod domain;
mod machine;
mod nic;
mod probe;
mod status;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use berth_api::events::Recorder;
use berth_api::kubevirt::v1::{VirtualMachineInstance, VirtualMachineInstanceSpec};
use berth_api::labels;
use futures::TryStreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{NodeConfig, PodSandboxes};
use machine::Machine;

/// Grace of a machine that names none, in seconds.
const DEFAULT_GRACE: i64 = 30;

/// What all machine tasks share.
struct Agent {
    config: Arc<NodeConfig>,
    client: Client,
    recorder: Recorder,
    sandboxes: Arc<dyn PodSandboxes>,
    /// `(reason, message)` when guests are emulated here; probed once.
    emulation: OnceCell<Option<(String, String)>>,
}

impl Agent {
    /// Why the guest of a pod is emulated on this node, if it is.
    async fn emulation(&self, pod_uid: &str) -> Option<(String, String)> {
        if !self.sandboxes.may_use_kvm(pod_uid) {
            let message = "The settings ask for software emulation: the launcher pod has no KVM.";
            return Some((
                labels::REASON_EMULATION_REQUESTED.to_owned(),
                message.to_owned(),
            ));
        }
        let probed = self.emulation.get_or_init(|| async {
            match tokio::task::spawn_blocking(berth_hypervisor::kvm::probe).await {
                Ok(kvm) if kvm.usable => None,
                Ok(kvm) => {
                    let message = format!("KVM is not used on this node: {}", kvm.reason);
                    Some((labels::REASON_KVM_UNUSABLE.to_owned(), message))
                }
                Err(error) => {
                    let message =
                        format!("KVM is not used on this node: its probe failed: {error}");
                    Some((labels::REASON_KVM_UNUSABLE.to_owned(), message))
                }
            }
        });
        probed.await.clone()
    }

    /// Where the pod's own interface is recorded: with the pod's state, out of reach of the guest's user.
    fn network_record(&self, pod_uid: &str) -> PathBuf {
        self.config
            .state_dir
            .join("pods")
            .join(pod_uid)
            .join("network.json")
    }
}

/// Runs the machines of this node until `shutdown`. Guests go on when it returns.
pub async fn run(
    config: Arc<NodeConfig>,
    client: Client,
    sandboxes: Arc<dyn PodSandboxes>,
    shutdown: CancellationToken,
) {
    let recorder = Recorder::new(
        client.clone(),
        labels::NODE_MANAGER,
        Some(config.node_name.clone()),
    );
    let selector = format!("{}={}", labels::NODE_NAME, config.node_name);
    let api: Api<VirtualMachineInstance> = Api::all(client.clone());
    let agent = Arc::new(Agent {
        config,
        client,
        recorder,
        sandboxes,
        emulation: OnceCell::new(),
    });
    let mut events =
        Box::pin(watcher(api, watcher::Config::default().labels(&selector)).default_backoff());
    let mut machines = Machines {
        agent,
        shutdown: shutdown.clone(),
        feeds: HashMap::new(),
        tasks: JoinSet::new(),
    };
    let mut listed = HashSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = machines.tasks.join_next() => {
                if let Err(error) = ended {
                    error!(%error, "a machine task panicked");
                }
            }
            event = events.try_next() => match event {
                Ok(None) => break,
                Err(error) => warn!(%error, "watch of machines failed, will be tried again"),
                Ok(Some(Event::Init)) => listed.clear(),
                Ok(Some(Event::InitApply(vmi))) => {
                    listed.insert(vmi.uid().unwrap_or_default());
                    machines.apply(vmi);
                }
                // What the new list lacks went away while nobody watched.
                Ok(Some(Event::InitDone)) => machines.feeds.retain(|uid, _| listed.contains(uid)),
                Ok(Some(Event::Apply(vmi))) => machines.apply(vmi),
                Ok(Some(Event::Delete(vmi))) => drop(machines.feeds.remove(&vmi.uid().unwrap_or_default())),
            },
        }
    }
    while machines.tasks.join_next().await.is_some() {}
}

/// The tasks of this node's machines.
struct Machines {
    agent: Arc<Agent>,
    shutdown: CancellationToken,
    /// By machine UID: where its task hears of changes. A dropped sender says that the machine is gone. An entry
    /// stays after its task's end, so that a machine that is over is not run again.
    feeds: HashMap<String, watch::Sender<Arc<VirtualMachineInstance>>>,
    tasks: JoinSet<()>,
}

impl Machines {
    fn apply(&mut self, vmi: VirtualMachineInstance) {
        let uid = vmi.uid().unwrap_or_default();
        let vmi = Arc::new(vmi);
        if let Some(feed) = self.feeds.get(&uid) {
            // Nobody listens when the machine is over.
            feed.send_replace(vmi);
            return;
        }
        let (feed, updates) = watch::channel(vmi);
        self.feeds.insert(uid, feed);
        self.tasks
            .spawn(Machine::new(self.agent.clone(), updates, self.shutdown.clone()).run());
    }
}

/// `namespace/name`, for messages.
fn full_name(vmi: &VirtualMachineInstance) -> String {
    format!("{}/{}", vmi.namespace().unwrap_or_default(), vmi.name_any())
}

/// The guest's grace period in seconds.
fn grace_seconds(spec: &VirtualMachineInstanceSpec) -> u64 {
    u64::try_from(
        spec.termination_grace_period_seconds
            .unwrap_or(DEFAULT_GRACE),
    )
    .unwrap_or(0)
}

#[cfg(test)]
mod tests;
