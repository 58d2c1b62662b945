//! The pod runtime of a standalone machine: sandboxes for launcher pods, nothing for other pods.
//!
//! One task owns each pod of this node ([`task`]); this module feeds the tasks from a watch. What a task must know after a
//! restart is in its record ([`record`]); what is on disk without a Pod in the API is taken down.

mod cgroup;
mod images;
pub mod init;
mod process;
pub(crate) mod record;
mod rootfs;
mod sandbox;
mod spec;
mod status;
mod task;
mod warm;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use berth_api::events::Recorder;
use berth_api::labels;
use berth_image::Store;
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use rustix::process::Signal;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use record::Sandboxes;
pub use sandbox::TeardownError;

use crate::{Error, NodeConfig, blocking};

/// How long killed processes may take to be gone.
const END: Duration = Duration::from_secs(10);

/// What all pod tasks share.
pub(crate) struct Shared {
    pub(crate) config: Arc<NodeConfig>,
    pub(crate) client: Client,
    pub(crate) sandboxes: Arc<Sandboxes>,
    pub(crate) store: Store,
    pub(crate) recorder: Recorder,
    /// Turns true when QEMU's capabilities are known, or are not going to be.
    pub(crate) warm: watch::Receiver<bool>,
    /// Told when a pod is gone from this machine.
    pub(crate) pod_gone: Notify,
}

/// The runtime of this machine.
pub struct Runtime {
    shared: Arc<Shared>,
    warmed: watch::Sender<bool>,
}

impl Runtime {
    /// Prepares the machine: directories, the node's network, the image store; reads what is on record.
    ///
    /// # Errors
    /// When one of them cannot be had.
    pub async fn prepare(
        config: Arc<NodeConfig>,
        client: Client,
        sandboxes: Arc<Sandboxes>,
    ) -> Result<Self, Error> {
        process::inherit_orphans();
        let (at, known) = (config.clone(), sandboxes.clone());
        let store = blocking(move || -> Result<Store, Error> {
            let directory = |path: &std::path::Path| {
                let path = path.to_owned();
                move |source| Error::Directory { path, source }
            };
            let netns = at.netns_dir();
            std::fs::create_dir_all(&netns).map_err(directory(&netns))?;
            let pods = at.pods_dir();
            known.read_all().map_err(directory(&pods))?;
            at.network.ensure().map_err(Error::Network)?;
            Store::open(at.state_dir.join("images")).map_err(Error::Images)
        })
        .await?;
        let recorder = Recorder::new(
            client.clone(),
            labels::NODE_MANAGER,
            Some(config.node_name.clone()),
        );
        let (warmed, warm) = watch::channel(false);
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                client,
                sandboxes,
                store,
                recorder,
                warm,
                pod_gone: Notify::new(),
            }),
            warmed,
        })
    }

    /// Runs the pods of this node until `shutdown`. Pods go on when it returns.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { shared, warmed } = self;
        let warming = warm::ensure(shared.config.clone(), warmed);
        let pods = watch_pods(shared.clone(), shutdown.clone());
        let collecting = images::collect_unused(&shared, &shutdown);
        tokio::join!(pods, collecting, async {
            tokio::select! {
                () = warming => {}
                () = shutdown.cancelled() => {}
            }
        });
    }
}

/// The latest of a pod; none when it is no longer in the API.
type Feed = watch::Sender<Option<Arc<Pod>>>;

async fn watch_pods(shared: Arc<Shared>, shutdown: CancellationToken) {
    let selector = format!("spec.nodeName={}", shared.config.node_name);
    let api: Api<Pod> = Api::all(shared.client.clone());
    let mut events =
        Box::pin(watcher(api, watcher::Config::default().fields(&selector)).default_backoff());
    let mut feeds: HashMap<String, Feed> = HashMap::new();
    let mut tasks: JoinSet<String> = JoinSet::new();
    let mut listed = HashSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = tasks.join_next() => match ended {
                Ok(uid) => {
                    feeds.remove(&uid);
                    shared.pod_gone.notify_one();
                }
                Err(error) => tracing::error!(%error, "a pod's task panicked"),
            },
            event = events.try_next() => match event {
                Ok(None) => break,
                Err(error) => tracing::warn!(%error, "watch of pods failed, will be tried again"),
                Ok(Some(Event::Init)) => listed.clear(),
                Ok(Some(Event::InitApply(pod))) => {
                    listed.insert(pod.uid().unwrap_or_default());
                    apply(&shared, &mut feeds, &mut tasks, &shutdown, pod);
                }
                Ok(Some(Event::InitDone)) => {
                    for (uid, feed) in feeds.iter().filter(|(uid, _)| !listed.contains(*uid)) {
                        tracing::info!(uid, "a pod went away unseen");
                        feed.send_replace(None);
                    }
                    for record in shared.sandboxes.all() {
                        if !feeds.contains_key(&record.pod_uid) {
                            tracing::info!(pod = record.name, "a sandbox without a pod is taken down");
                            spawn(&shared, &mut feeds, &mut tasks, &shutdown, record.pod_uid, None);
                        }
                    }
                }
                Ok(Some(Event::Apply(pod))) => apply(&shared, &mut feeds, &mut tasks, &shutdown, pod),
                Ok(Some(Event::Delete(pod))) => {
                    if let Some(feed) = feeds.get(&pod.uid().unwrap_or_default()) {
                        feed.send_replace(None);
                    }
                }
            }
        }
    }
    // Tasks see the shutdown too; what is in the middle of making a sandbox finishes first.
    while tasks.join_next().await.is_some() {}
}

fn apply(
    shared: &Arc<Shared>,
    feeds: &mut HashMap<String, Feed>,
    tasks: &mut JoinSet<String>,
    shutdown: &CancellationToken,
    pod: Pod,
) {
    let Some(uid) = pod.uid() else { return };
    let pod = Some(Arc::new(pod));
    match feeds.get(&uid) {
        Some(feed) => drop(feed.send_replace(pod)),
        None => spawn(shared, feeds, tasks, shutdown, uid, pod),
    }
}

fn spawn(
    shared: &Arc<Shared>,
    feeds: &mut HashMap<String, Feed>,
    tasks: &mut JoinSet<String>,
    shutdown: &CancellationToken,
    uid: String,
    pod: Option<Arc<Pod>>,
) {
    let (feed, updates) = watch::channel(pod);
    feeds.insert(uid.clone(), feed);
    let task = task::PodTask::new(shared.clone(), uid.clone(), updates, shutdown.clone());
    tasks.spawn(async move {
        task.run().await;
        uid
    });
}

/// Ends every pod of this machine and removes the node's network. For a machine on which no node agent runs.
pub async fn remove_all(config: &NodeConfig) -> Vec<TeardownError> {
    let config = config.clone();
    blocking(move || {
        let mut errors = Vec::new();
        let records = match record::read_dir(&config.pods_dir()) {
            Ok(records) => records,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(source) => {
                return vec![TeardownError::Files {
                    path: config.pods_dir(),
                    source,
                }];
            }
        };
        // All are told first, so that they end at the same time.
        let held: Vec<_> = records
            .iter()
            .map(|record| {
                record
                    .process
                    .as_ref()
                    .and_then(|id| id.hold().ok().flatten())
            })
            .collect();
        for process in held.iter().flatten() {
            let _ = process.signal(Signal::KILL);
        }
        for (record, process) in records.iter().zip(held) {
            if let Some(process) = process
                && !process.wait_blocking(END)
            {
                let pid = record.process.as_ref().map_or(0, |id| id.pid);
                errors.push(TeardownError::Process {
                    pod: format!("{}/{}", record.namespace, record.name),
                    pid,
                });
            }
            errors.extend(sandbox::release(&config, record));
            errors.extend(sandbox::remove_files(&config, &record.pod_uid).err());
        }
        errors.extend(config.network.remove().into_iter().map(TeardownError::Node));
        errors
    })
    .await
}
