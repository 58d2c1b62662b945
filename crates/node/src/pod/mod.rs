//! The pod runtime of a standalone machine: sandboxes for launcher pods, nothing for other pods.
//!
//! One task owns each pod of this node ([`task`]); this module feeds the tasks from a watch. What a task must know after a
//! restart is in its record ([`record`]); what is on disk without a Pod in the API is taken down.

mod cgroup;
mod ended;
mod images;
pub mod init;
mod log;
mod process;
pub(crate) mod record;
mod rootfs;
mod sandbox;
mod spec;
mod status;
mod task;
mod texts;
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
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use record::Record;
pub use record::Sandboxes;
pub use sandbox::TeardownError;

use crate::{Error, NodeConfig, blocking};

/// How long killed processes may take to be gone.
const END: Duration = Duration::from_secs(10);
/// Before it is asked again whether a sandbox that no pod of this node stands for is still wanted.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Before a task that panicked is started again.
const AFTER_PANIC: Duration = Duration::from_secs(10);

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
    let mut tasks = Tasks::default();
    let mut listed = HashSet::new();
    // On record, and not among the pods of this node.
    let mut strays: Vec<Record> = Vec::new();
    let mut ask_at = Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some((uid, ended)) = tasks.next() => match ended {
                Ok(()) => {
                    feeds.remove(&uid);
                    shared.pod_gone.notify_one();
                }
                Err(error) => {
                    tracing::error!(uid, %error, "a pod's task panicked, and is started again");
                    if let Some(feed) = feeds.remove(&uid) {
                        let pod = feed.borrow().clone();
                        spawn(&shared, &mut feeds, &mut tasks, &shutdown, uid, pod, AFTER_PANIC);
                    }
                }
            },
            () = tokio::time::sleep_until(ask_at), if !strays.is_empty() => {
                ask_at = Instant::now() + ASK_AGAIN;
                let asked = std::mem::take(&mut strays);
                for record in asked {
                    if feeds.contains_key(&record.pod_uid) {
                        continue;
                    }
                    match is_in_api(&shared.client, &record).await {
                        Ok(false) => {
                            tracing::info!(pod = record.name, "a sandbox without a pod is taken down");
                            spawn(&shared, &mut feeds, &mut tasks, &shutdown, record.pod_uid, None, Duration::ZERO);
                        }
                        Ok(true) => tracing::error!(
                            pod = record.name, node = shared.config.node_name,
                            "a pod that runs here is bound to another node, and is left alone"
                        ),
                        Err(error) => {
                            tracing::warn!(pod = record.name, %error, "whether the pod is still wanted is asked again");
                            strays.push(record);
                        }
                    }
                }
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
                    strays = shared.sandboxes.all();
                    strays.retain(|record| !feeds.contains_key(&record.pod_uid));
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
    while tasks.next().await.is_some() {}
}

/// The tasks of pods, by the pods' UIDs: a panic must not make one unknown.
#[derive(Default)]
struct Tasks {
    set: JoinSet<()>,
    uids: HashMap<tokio::task::Id, String>,
}

impl Tasks {
    fn spawn(&mut self, uid: String, work: impl Future<Output = ()> + Send + 'static) {
        let id = self.set.spawn(work).id();
        self.uids.insert(id, uid);
    }

    /// The next one that ended; none when there is none.
    async fn next(&mut self) -> Option<(String, Result<(), JoinError>)> {
        let (id, ended) = match self.set.join_next_with_id().await? {
            Ok((id, ())) => (id, Ok(())),
            Err(error) => (error.id(), Err(error)),
        };
        Some((self.uids.remove(&id).unwrap_or_default(), ended))
    }
}

/// Whether the pod of a sandbox is still in the API, whatever node it is bound to.
async fn is_in_api(client: &Client, record: &Record) -> Result<bool, kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &record.namespace);
    let found = api.get_opt(&record.name).await?;
    Ok(found.is_some_and(|pod| pod.metadata.uid.as_deref() == Some(&record.pod_uid)))
}

fn apply(
    shared: &Arc<Shared>,
    feeds: &mut HashMap<String, Feed>,
    tasks: &mut Tasks,
    shutdown: &CancellationToken,
    pod: Pod,
) {
    let Some(uid) = pod.uid() else { return };
    let pod = Some(Arc::new(pod));
    match feeds.get(&uid) {
        Some(feed) => drop(feed.send_replace(pod)),
        None => spawn(shared, feeds, tasks, shutdown, uid, pod, Duration::ZERO),
    }
}

fn spawn(
    shared: &Arc<Shared>,
    feeds: &mut HashMap<String, Feed>,
    tasks: &mut Tasks,
    shutdown: &CancellationToken,
    uid: String,
    pod: Option<Arc<Pod>>,
    after: Duration,
) {
    let (feed, updates) = watch::channel(pod);
    feeds.insert(uid.clone(), feed);
    let task = task::PodTask::new(shared.clone(), uid.clone(), updates, shutdown.clone());
    let stopped = shutdown.clone();
    tasks.spawn(uid, async move {
        tokio::select! {
            () = tokio::time::sleep(after) => {}
            () = stopped.cancelled() => {}
        }
        task.run().await;
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
            let left = sandbox::release(&config, record);
            // The record goes with the files: what could not be released must be found by the next try.
            if left.is_empty() {
                errors.extend(sandbox::remove_files(&config, &record.pod_uid).err());
            }
            errors.extend(left);
        }
        errors.extend(config.network.remove().into_iter().map(TeardownError::Node));
        errors
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panicked_is_known_by_its_pod() {
        let mut tasks = Tasks::default();
        tasks.spawn("bad".to_owned(), async { panic!("on purpose") });
        let (uid, ended) = tasks.next().await.unwrap();
        assert_eq!((uid.as_str(), ended.is_err()), ("bad", true));
        tasks.spawn("good".to_owned(), async {});
        let (uid, ended) = tasks.next().await.unwrap();
        assert_eq!((uid.as_str(), ended.is_ok()), ("good", true));
        assert!(tasks.next().await.is_none());
    }
}
