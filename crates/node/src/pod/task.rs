//! One pod, from its binding to this node to its end.
//!
//! ```text
//!            ┌────────────── again, later and later ─────────────┐
//!            ▼                                                   │
//!  bound ─► images ─► sandbox ─► running ─► ended ─► gone        │
//!            │  └────────┴─ failed ──────────────────────────────┘
//!            └─ deleted ────────────────────────────► gone
//! ```
//!
//! - *running*: nothing is asked; the process's descriptor tells its end. A deletion sends SIGTERM, and SIGKILL when the
//!   grace period is over; the first process takes all others of the pod with it.
//! - *ended*: network, control groups and processes are gone, files and log stay until the Pod is deleted.
//! - *gone*: the files are removed, then the Pod leaves the API.
//!
//! Making a sandbox is not interrupted, only what comes before: half a sandbox is what nobody would look for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_api::labels;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt as _};
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::images::{self, ImageError, Provided};
use super::process::{Ending, WatchedProcess};
use super::record::{
    Disk, Ended, Record, Request, Sandboxes, run_dir, termination_log, volume_dir,
};
use super::sandbox::{self, Spec};
use super::status::{Progress, status};
use super::texts::{self, Texts};
use super::{Shared, cgroup, ended, log, spec};
use crate::volumes::{self, Attached, Local};
use crate::{NodeConfig, blocking};

/// After the first failure; doubles up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_secs(5);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// How long the first pods wait for QEMU's capabilities. Without them they start, only slower.
const WARM: Duration = Duration::from_secs(60);
/// How often the log is looked at, and whether the pod's texts have changed; a kubelet does so as often.
const CHECK: Duration = Duration::from_secs(60);
/// Between attempts to write a status that the API refused.
const RETRY: Duration = Duration::from_secs(1);

/// Why a pod does not run yet.
struct NotStarted {
    /// What the container's state says, as the kubelet words it.
    reason: &'static str,
    /// The same while it waits for the next attempt.
    waiting: &'static str,
    message: String,
}

/// What ended a wait.
enum Wake {
    Deleted,
    Shutdown,
}

pub(super) struct PodTask {
    shared: Arc<Shared>,
    uid: String,
    pod: watch::Receiver<Option<Arc<Pod>>>,
    shutdown: CancellationToken,
}

impl PodTask {
    pub(super) fn new(
        shared: Arc<Shared>,
        uid: String,
        pod: watch::Receiver<Option<Arc<Pod>>>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            shared,
            uid,
            pod,
            shutdown,
        }
    }

    /// Goes on from wherever the pod is, to its end or to the shutdown of the agent.
    pub(super) async fn run(mut self) {
        let record = self.shared.sandboxes.get(&self.uid);
        let record = match record {
            Some(record) if record.ended.is_some() => Some(record),
            Some(record) if record.started_at.is_some() => match self.adopt(record).await {
                Ok(record) => Some(record),
                Err(Wake::Shutdown | Wake::Deleted) => return,
            },
            // Died in the middle of making it: nothing runs that anybody asked for.
            Some(record) => {
                if !self.undo_until_gone(Some(record)).await {
                    return;
                }
                None
            }
            None => None,
        };
        let record = match record {
            Some(record) => Some(record),
            None if self.is_final() => None,
            None => match self.start_and_follow().await {
                Ok(record) => record,
                Err(Wake::Shutdown | Wake::Deleted) => return,
            },
        };
        if let Some(Ended { .. }) = record.as_ref().and_then(|record| record.ended.as_ref()) {
            self.publish(&self.ended_progress(record.as_ref())).await;
        }
        if matches!(self.deletion().await, Wake::Shutdown) {
            return;
        }
        self.go().await;
    }

    fn ended_progress(&self, record: Option<&Record>) -> Progress {
        match record.and_then(|record| record.ended.clone()) {
            Some(ended) => Progress::Ended(ended),
            None => Progress::Waiting {
                reason: "ContainerCreating",
                message: String::new(),
            },
        }
    }

    fn current(&self) -> Option<Arc<Pod>> {
        self.pod.borrow().clone()
    }

    fn is_final(&self) -> bool {
        let pod = self.current();
        let phase = pod
            .as_ref()
            .and_then(|pod| pod.status.as_ref()?.phase.clone());
        matches!(phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// The grace period of a pod that is to go; zero for one that the API has forgotten.
    fn grace(&self) -> Option<Duration> {
        match self.current() {
            None => Some(Duration::ZERO),
            Some(pod) if pod.metadata.deletion_timestamp.is_some() => {
                let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
                Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
            }
            Some(_) => None,
        }
    }

    /// Waits until the pod is to go.
    async fn deletion(&mut self) -> Wake {
        loop {
            if self.grace().is_some() {
                return Wake::Deleted;
            }
            tokio::select! {
                changed = self.pod.changed() => if changed.is_err() {
                    return Wake::Shutdown;
                },
                () = self.shutdown.cancelled() => return Wake::Shutdown,
            }
        }
    }

    // === Starting ===

    /// Tries until the pod runs, then follows it to its end; none if it was deleted before it ran.
    async fn start_and_follow(&mut self) -> Result<Option<Record>, Wake> {
        let mut pause = BACKOFF;
        loop {
            if self.grace().is_some() {
                return Ok(None);
            }
            if self.shutdown.is_cancelled() {
                return Err(Wake::Shutdown);
            }
            let problem = match self.attempt().await {
                Ok(Some((record, process))) => return self.follow(record, process).await.map(Some),
                Ok(None) => continue,
                Err(problem) => problem,
            };
            let Some(pod) = self.current() else { continue };
            tracing::warn!(pod = %name(&pod), reason = problem.reason, "{}", problem.message);
            let NotStarted {
                reason,
                waiting,
                message,
            } = problem;
            self.publish(&Progress::Waiting {
                reason,
                message: message.clone(),
            })
            .await;
            self.shared
                .recorder
                .warning(&*pod, "Failed", &message)
                .await;
            let next = Instant::now() + pause;
            pause = (pause * 2).min(BACKOFF_MAX);
            if waiting != reason {
                self.publish(&Progress::Waiting {
                    reason: waiting,
                    message,
                })
                .await;
            }
            tokio::select! {
                wake = self.deletion() => match wake {
                    Wake::Deleted => return Ok(None),
                    Wake::Shutdown => return Err(Wake::Shutdown),
                },
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// One attempt; none when the pod was deleted or the agent stopped meanwhile.
    async fn attempt(&mut self) -> Result<Option<(Record, WatchedProcess)>, NotStarted> {
        let Some(pod) = self.current() else {
            return Ok(None);
        };
        let (mut spec, user) = spec::read(&pod)
            .map_err(|error| failed("CreateContainerConfigError", error.to_string()))?;
        let shared = self.shared.clone();
        let images = {
            let pod = pod.clone();
            async move { provide(&shared, &pod).await }
        };
        let (images, claims) = tokio::select! {
            provided = images => {
                let (images, texts, claims) = provided?;
                spec.texts = texts;
                (images, claims)
            }
            wake = self.deletion() => return match wake {
                Wake::Deleted | Wake::Shutdown => Ok(None),
            },
        };
        for image in &images {
            let reference = &image.volume.image;
            let message = if image.fetched {
                format!("Successfully pulled image {reference:?}")
            } else {
                format!("Image {reference:?} already present on machine")
            };
            self.shared.recorder.normal(&*pod, "Pulled", &message).await;
        }
        let mut warm = self.shared.warm.clone();
        tokio::select! {
            // Late or never: the pod starts all the same.
            _ = tokio::time::timeout(WARM, warm.wait_for(|warm| *warm)) => {}
            _ = self.deletion() => return Ok(None),
        }
        let request = Request {
            pod_uid: self.uid.clone(),
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            user,
            cgroups: cgroup::paths(&self.uid, &spec.limits),
            disks: disks(&images),
            claims: claims.into_iter().collect(),
        };
        let shared = self.shared.clone();
        let made = blocking(move || make(&shared, request, &spec)).await;
        drop(images);
        let (record, process) = made.map_err(|message| failed("CreateContainerError", message))?;
        self.shared
            .recorder
            .normal(&*pod, "Started", "Started container compute")
            .await;
        Ok(Some((record, process)))
    }

    // === Running ===

    /// A pod that ran when the agent last looked.
    async fn adopt(&mut self, record: Record) -> Result<Record, Wake> {
        let held = record
            .process
            .as_ref()
            .and_then(|id| id.hold().ok().flatten());
        match held
            .filter(|process| !process.has_ended())
            .and_then(|process| process.watch().ok())
        {
            Some(process) => {
                tracing::info!(pod = record.name, ip = %record.ip, "pod found again");
                self.follow(record, process).await
            }
            None => Ok(self.conclude(record, Ending::Unknown).await),
        }
    }

    /// Waits for the end of a pod's process; brings it about when the pod is to go.
    async fn follow(&mut self, record: Record, process: WatchedProcess) -> Result<Record, Wake> {
        let mut check = tokio::time::interval(CHECK);
        let mut kill_at: Option<Instant> = None;
        self.publish_with(&record, &Progress::Running).await;
        let ending = loop {
            if let Some(grace) = self.grace() {
                let by = Instant::now() + grace;
                if kill_at.is_none() {
                    let signal = if grace.is_zero() {
                        Signal::KILL
                    } else {
                        Signal::TERM
                    };
                    tracing::info!(
                        pod = record.name,
                        ?signal,
                        grace_seconds = grace.as_secs(),
                        "pod is to end"
                    );
                    signal_to(&record, &process, signal);
                }
                // A later deletion may shorten the grace, not lengthen it.
                kill_at = Some(kill_at.map_or(by, |at| at.min(by)));
            }
            let expired = async {
                match kill_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ending = process.ended() => break ending,
                () = expired => {
                    signal_to(&record, &process, Signal::KILL);
                    break process.ended().await;
                }
                changed = self.pod.changed() => if changed.is_err() {
                    return Err(Wake::Shutdown);
                },
                () = self.shutdown.cancelled() => return Err(Wake::Shutdown),
                _ = check.tick() => {
                    log::cut(&self.shared.sandboxes.log_file(&self.uid));
                    self.refresh_texts(record.group).await;
                }
            }
        };
        Ok(self.conclude(record, ending).await)
    }

    /// Secrets and the like as they are now. What cannot be read stays as it was.
    async fn refresh_texts(&self, group: u32) {
        let Some(pod) = self.current() else { return };
        let texts = match texts::gather(&self.shared.client, &pod).await {
            Ok(texts) => texts,
            Err(problem) => {
                tracing::warn!(pod = %name(&pod), "texts stay as they were: {problem}");
                return;
            }
        };
        let dir = self.shared.sandboxes.dir(&self.uid);
        let written = blocking(move || {
            texts.iter().try_for_each(|(volume, texts)| {
                texts::write(&volume_dir(&dir, volume), texts, group)
            })
        });
        if let Err(error) = written.await {
            tracing::warn!(pod = %name(&pod), %error, "texts stay as they were");
        }
    }

    /// Frees what the pod held, and puts its end on record.
    async fn conclude(&self, mut record: Record, ending: Ending) -> Record {
        let shared = self.shared.clone();
        let uid = self.uid.clone();
        let (record, errors) = blocking(move || {
            let dir = shared.sandboxes.dir(&uid);
            record.ended = Some(ended::how(
                &run_dir(&dir),
                &termination_log(&dir),
                record.user,
                ending,
                cgroup::was_out_of_memory(&record.cgroups),
            ));
            let errors = sandbox::release(&shared.config, &record);
            if let Err(error) = shared.sandboxes.update(&record) {
                tracing::error!(pod = record.name, %error, "the end of a pod is not on record");
            }
            (record, errors)
        })
        .await;
        if let Some(ended) = &record.ended {
            tracing::info!(
                pod = record.name,
                code = ended.exit_code,
                reason = ended.reason,
                "pod ended"
            );
        }
        self.tell(&errors).await;
        record
    }

    // === The end ===

    /// Tries until nothing is left, later and later; what stays at a shutdown is on record for the next agent.
    async fn undo_until_gone(&self, record: Option<Record>) -> bool {
        let mut pause = BACKOFF;
        loop {
            let (shared, uid, record) = (self.shared.clone(), self.uid.clone(), record.clone());
            let errors = blocking(move || match record {
                Some(record) => undo(&shared.config, &shared.sandboxes, &record),
                None => sandbox::remove_files(&shared.config, &uid)
                    .err()
                    .into_iter()
                    .collect(),
            })
            .await;
            if errors.is_empty() {
                return true;
            }
            self.tell(&errors).await;
            tokio::select! {
                () = self.shutdown.cancelled() => return false,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    /// Removes what is left, then lets the Pod go.
    async fn go(&self) {
        let record = self.shared.sandboxes.get(&self.uid);
        if !self.undo_until_gone(record).await {
            return;
        }
        let Some(pod) = self.current() else { return };
        let api: Api<Pod> = Api::namespaced(
            self.shared.client.clone(),
            &pod.namespace().unwrap_or_default(),
        );
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(self.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        loop {
            match api.delete(&pod.name_any(), &parameters).await {
                Ok(_) => return,
                // Gone, or its name has another pod.
                Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => return,
                Err(error) => {
                    tracing::warn!(pod = %name(&pod), %error, "the pod cannot be removed from the API");
                }
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn tell(&self, errors: &[sandbox::TeardownError]) {
        for error in errors {
            tracing::error!("left behind: {error}");
            if let Some(pod) = self.current() {
                self.shared
                    .recorder
                    .warning(&*pod, "FailedKillPod", &error.to_string())
                    .await;
            }
        }
    }

    // === Status ===

    async fn publish(&self, progress: &Progress) {
        let record = self.shared.sandboxes.get(&self.uid);
        self.write_status(record.as_ref(), progress).await;
    }

    async fn publish_with(&self, record: &Record, progress: &Progress) {
        self.write_status(Some(record), progress).await;
    }

    /// Writes the status if it is another than the Pod has; names the version it was made from.
    async fn write_status(&self, record: Option<&Record>, progress: &Progress) {
        let Some(mut pod) = self.current() else {
            return;
        };
        let api: Api<Pod> = Api::namespaced(
            self.shared.client.clone(),
            &pod.namespace().unwrap_or_default(),
        );
        let host_ip = self.shared.config.network.gateway.to_string();
        loop {
            let wanted = status(&pod, record, progress, &host_ip, Timestamp::now());
            if pod.status.as_ref() == Some(&wanted) {
                return;
            }
            let patch = json!({
                "metadata": {"uid": self.uid, "resourceVersion": pod.resource_version()},
                "status": wanted,
            });
            match api
                .patch_status(
                    &pod.name_any(),
                    &PatchParams::default(),
                    &Patch::Merge(patch),
                )
                .await
            {
                Ok(_) => return,
                Err(kube::Error::Api(answer)) if answer.code == 404 => return,
                Err(kube::Error::Api(answer)) if answer.code == 409 => {}
                Err(error) => {
                    tracing::warn!(pod = %name(&pod), %error, "the pod's status is not written");
                    tokio::time::sleep(RETRY).await;
                }
            }
            match api.get_opt(&pod.name_any()).await {
                Ok(Some(fresh)) if fresh.uid().as_deref() == Some(&self.uid) => {
                    pod = Arc::new(fresh);
                }
                Ok(_) => return,
                Err(error) => tracing::warn!(pod = %name(&pod), %error, "the pod is not read"),
            }
            if self.shutdown.is_cancelled() {
                return;
            }
        }
    }
}

fn failed(reason: &'static str, message: impl Into<String>) -> NotStarted {
    NotStarted {
        reason,
        waiting: reason,
        message: message.into(),
    }
}

fn name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

fn signal_to(record: &Record, process: &WatchedProcess, signal: Signal) {
    if let Err(error) = process.signal(signal) {
        tracing::error!(pod = record.name, %error, "the pod's process cannot be signalled");
    }
}

/// What a pod is given: files of images, texts, volumes of claims.
type Given = (
    Vec<Provided>,
    BTreeMap<String, Texts>,
    Vec<(String, Attached)>,
);

async fn provide(shared: &Shared, pod: &Pod) -> Result<Given, NotStarted> {
    // They cost nothing and may be missing, so they come first.
    let texts = texts::gather(&shared.client, pod)
        .await
        .map_err(|message| failed("CreateContainerConfigError", message))?;
    let volumes = images::image_volumes(pod);
    let secrets = images::pull_secrets(&shared.client, &shared.recorder, pod).await;
    let mut provided = Vec::new();
    for volume in volumes {
        let got = images::provide(
            &shared.store,
            volume,
            &secrets,
            &shared.config.insecure_registries,
        )
        .await;
        provided.push(got.map_err(|error| image_problem(&error))?);
    }
    // The last, for it takes devices that have to be given back.
    let driver = Local::new(shared.config.volumes_dir());
    let claims = volumes::attach(&shared.client, &driver, pod)
        .await
        .map_err(|message| failed("FailedAttachVolume", message))?;
    Ok((provided, texts, claims))
}

fn image_problem(error: &ImageError) -> NotStarted {
    let (reason, waiting) = if error.is_bad_name() {
        ("InvalidImageName", "InvalidImageName")
    } else if error.is_the_images_fault() {
        (labels::REASON_IMAGE_INVALID, labels::REASON_IMAGE_INVALID)
    } else {
        ("ErrImagePull", "ImagePullBackOff")
    };
    NotStarted {
        reason,
        waiting,
        message: error.to_string(),
    }
}

fn disks(images: &[Provided]) -> BTreeMap<String, Disk> {
    let disk = |provided: &Provided| Disk {
        dir: provided.disk.dir.clone(),
        file: provided.disk.file.clone(),
        mount_path: provided.volume.mount_path.clone(),
        qcow2: provided.disk.format == berth_image::format::DiskFormat::Qcow2,
    };
    images
        .iter()
        .map(|provided| (provided.volume.volume.clone(), disk(provided)))
        .collect()
}

/// Reserves, makes, starts; undoes all of it when a step fails. Blocks.
fn make(
    shared: &Shared,
    request: Request,
    spec: &Spec,
) -> Result<(Record, WatchedProcess), String> {
    // What an earlier attempt could not take down is in the way of another.
    if let Some(left) = shared.sandboxes.get(&request.pod_uid)
        && let Some(error) = undo(&shared.config, &shared.sandboxes, &left).first()
    {
        return Err(format!("what an earlier attempt left: {error}"));
    }
    let mut record = shared
        .sandboxes
        .reserve(request)
        .map_err(|error| error.to_string())?;
    let result = start(shared, &mut record, spec);
    if result.is_err() {
        for error in undo(&shared.config, &shared.sandboxes, &record) {
            tracing::error!("left behind: {error}");
        }
    }
    result.map(|process| (record, process))
}

fn start(shared: &Shared, record: &mut Record, spec: &Spec) -> Result<WatchedProcess, String> {
    let id = sandbox::start(&shared.config, record, spec).map_err(|error| error.to_string())?;
    let process = id
        .hold()
        .map_err(|error| error.to_string())?
        .ok_or("its process ended at once")?;
    record.process = Some(id);
    record.started_at = Some(Timestamp::now());
    shared
        .sandboxes
        .update(record)
        .map_err(|error| format!("cannot write the pod's state: {error}"))?;
    process.watch().map_err(|error| error.to_string())
}

/// Removes all of a pod from this machine and forgets it. Blocks.
fn undo(
    config: &NodeConfig,
    sandboxes: &Sandboxes,
    record: &Record,
) -> Vec<sandbox::TeardownError> {
    // A process that the record does not tell of cannot be: it is recorded before anything else happens. One that it tells
    // of has ended, unless the pod was taken away under it.
    if let Some(process) = record
        .process
        .as_ref()
        .and_then(|id| id.hold().ok().flatten())
    {
        let _ = process.signal(Signal::KILL);
        if !process.wait_blocking(super::END) {
            return vec![sandbox::TeardownError::Process {
                pod: format!("{}/{}", record.namespace, record.name),
                pid: record.process.as_ref().map_or(0, |id| id.pid),
            }];
        }
        // Inherited, and a zombie otherwise.
        process.reap();
    }
    let mut errors = sandbox::release(config, record);
    // The record goes with the files: what could not be released must be found again.
    if errors.is_empty() {
        errors.extend(sandbox::remove_files(config, &record.pod_uid).err());
    }
    if errors.is_empty() {
        sandboxes.forget(&record.pod_uid);
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_released_stays_on_record_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let config = super::super::record::tests::config(dir.path());
        let sandboxes = Sandboxes::new(config.clone());
        sandboxes.read_all().unwrap();
        // A directory that is not empty cannot be removed, as a group with a process that does not die.
        let group = dir.path().join("group");
        std::fs::create_dir_all(group.join("busy")).unwrap();
        let record = sandboxes
            .reserve(Request {
                pod_uid: "kept".to_owned(),
                namespace: "lab".to_owned(),
                name: "pod-kept".to_owned(),
                user: None,
                cgroups: vec![group.clone()],
                disks: BTreeMap::new(),
                claims: BTreeMap::new(),
            })
            .unwrap();
        assert!(!undo(&config, &sandboxes, &record).is_empty());
        assert!(sandboxes.get("kept").is_some());
        let found = super::super::record::read_dir(&config.pods_dir()).unwrap();
        assert_eq!(
            found,
            std::slice::from_ref(&record),
            "an agent that starts finds it"
        );

        std::fs::remove_dir(group.join("busy")).unwrap();
        let errors = undo(&config, &sandboxes, &record);
        assert!(errors.is_empty(), "{errors:?}");
        assert!(sandboxes.get("kept").is_none());
        assert!(!sandboxes.dir("kept").exists() && !group.exists());
    }
}
