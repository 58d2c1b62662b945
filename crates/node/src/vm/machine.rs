//! One machine on this node: the task that owns its status from `Scheduled` on.
//!
//! ```text
//!               phase Scheduled or Running,
//!               pod in place                 launcher answers
//!   waiting ───────────────▶ connecting ───────────────▶ no domain ──sync──▶ following ──▶ over
//!                                │                          ▲   │ failed       ▲   │        ▲
//!                                │                          ╰───╯ (backoff)    │   │        │
//!                                │ launcher answers, domain is there           │   │ domain │
//!                                ├─────────────────────────────────────────────╯   │ ended  │
//!                                ╰─ final-state.json, or nobody there ─────────────┴────────╯
//! ```
//!
//! An agent that starts again goes the same way: the launcher tells at once what its domain does, so nothing is
//! started twice. Everything waits on events: the watch of the machine, the launcher's notifications, the end of
//! the connection. Timers are for retries only.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_api::kubevirt::v1::{VirtualMachineInstance, VmiPhase};
use berth_api::launcher::{BOOT_INITRD, BOOT_KERNEL};
use berth_api::{labels, merge};
use berth_launcher::protocol::{
    BootFiles, CONTROL_SOCKET, Client, ClientError, DiskBacking, FINAL_STATE, LauncherState,
    SyncRequest,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::domain::{end_of, guest_of};
use super::nic;
use super::probe::{Kind, Probes, Verdict};
use super::status::{End, Guest, View, WiredNic, message_of, plan_status, reason_of};
use super::{Agent, full_name, grace_seconds};
use crate::{PodLocation, chain, untrusted};

/// How long a launcher of a ready pod may take to answer on its socket.
const CONNECT_DEADLINE: Duration = Duration::from_secs(20);
/// How long the sandbox of a ready pod may be unknown, which happens while the pod runtime starts again.
const LOCATE_DEADLINE: Duration = Duration::from_secs(30);
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How often a conflicting status is planned anew before it waits for the next event.
const ATTEMPTS: usize = 5;

/// Why one attempt to start the guest failed; the message of `Synchronized=False`.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error(transparent)]
    Network(#[from] nic::Error),
    #[error("volume {0} is not in the launcher pod")]
    NoVolume(String),
    #[error(transparent)]
    Launcher(#[from] ClientError),
    #[error("the task that wires the network panicked")]
    Panicked,
    #[error("{0}")]
    Pod(String),
}

/// Why the task stops before the machine is over.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// The agent goes; the guest stays.
    Agent,
    /// The machine is no more in the API.
    Gone,
}

/// Pauses between attempts.
struct Backoff(Duration);

impl Backoff {
    fn new() -> Self {
        Self(RETRY_MIN)
    }

    fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(RETRY_MAX);
        pause
    }
}

/// The task's state.
pub(super) struct Machine {
    agent: Arc<Agent>,
    /// The newest version known here: from the watch or from our own last write.
    vmi: Arc<VirtualMachineInstance>,
    updates: watch::Receiver<Arc<VirtualMachineInstance>>,
    shutdown: CancellationToken,
    pod_uid: String,
    view: View,
    /// Why the guest is stopped, when its probe found it dead.
    dead: Option<String>,
    clock: Stopwatch,
}

/// Times of the start path, for the log.
struct Stopwatch {
    started: Instant,
    last: Instant,
    laps: Vec<(&'static str, u64)>,
}

impl Stopwatch {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            started: now,
            last: now,
            laps: Vec::new(),
        }
    }

    fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        self.laps.push((name, millis(now - self.last)));
        self.last = now;
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Machine {
    pub(super) fn new(
        agent: Arc<Agent>,
        updates: watch::Receiver<Arc<VirtualMachineInstance>>,
        shutdown: CancellationToken,
    ) -> Self {
        let vmi = updates.borrow().clone();
        Self {
            agent,
            vmi,
            updates,
            shutdown,
            pod_uid: String::new(),
            view: View::default(),
            dead: None,
            clock: Stopwatch::new(),
        }
    }

    /// Runs until the machine is over, gone, or the agent stops.
    pub(super) async fn run(mut self) {
        match self.live().await {
            Ok(()) | Err(Stop::Gone) => {}
            Err(Stop::Agent) => info!(vmi = %full_name(&self.vmi), "left running"),
        }
    }

    async fn live(&mut self) -> Result<(), Stop> {
        let Some(pod) = self.wait_for_pod().await? else {
            return Ok(());
        };
        self.clock.lap("pod_ready_ms");
        if let Some(end) = self.end_on_record(&pod) {
            return self.finish(end).await;
        }
        let Some(launcher) = self.connect(&pod).await? else {
            // It may have written its last words while it was looked for.
            let end = self.end_on_record(&pod).unwrap_or(End::LauncherGone);
            return self.finish(end).await;
        };
        self.clock.lap("connected_ms");
        self.view.emulation = self.agent.emulation(&self.pod_uid).await;
        let end = match (self.follow(&pod, &launcher).await?, self.dead.take()) {
            // However it went down, this is why.
            (_, Some(why)) => End::Unhealthy(why),
            (end, None) => end,
        };
        self.finish(end).await
    }

    /// Waits until the machine is this node's to run and its pod is found. `None`: it is over already.
    async fn wait_for_pod(&mut self) -> Result<Option<PodLocation>, Stop> {
        loop {
            match self.vmi.status.as_ref().and_then(|s| s.phase) {
                Some(VmiPhase::Succeeded | VmiPhase::Failed) => return Ok(None),
                Some(VmiPhase::Scheduled | VmiPhase::Running) => break,
                None | Some(VmiPhase::Pending | VmiPhase::Scheduling) => {
                    // Until the controller hands the machine over, its time does not count as ours.
                    self.clock = Stopwatch::new();
                    self.next_update().await?;
                }
            }
        }
        let active = self.vmi.status.iter().flat_map(|s| &s.active_pods);
        let mine = active.filter(|(_, node)| **node == self.agent.config.node_name);
        let Some(uid) = mine.map(|(uid, _)| uid.clone()).next() else {
            // The status names no pod here: somebody edited it, and there is nothing that this node could run.
            self.finish(End::LauncherGone).await?;
            return Ok(None);
        };
        self.pod_uid = uid;
        let deadline = Instant::now() + LOCATE_DEADLINE;
        let mut backoff = Backoff::new();
        loop {
            if let Some(pod) = self.agent.sandboxes.locate(&self.pod_uid) {
                return Ok(Some(pod));
            }
            if Instant::now() >= deadline {
                self.finish(End::LauncherGone).await?;
                return Ok(None);
            }
            let pause = backoff.next();
            self.pause(pause).await?;
        }
    }

    /// Takes in the next version of the machine.
    async fn next_update(&mut self) -> Result<(), Stop> {
        tokio::select! {
            () = self.shutdown.cancelled() => Err(Stop::Agent),
            changed = self.updates.changed() => match changed {
                Ok(()) => {
                    self.vmi = self.updates.borrow_and_update().clone();
                    Ok(())
                }
                Err(_) => Err(Stop::Gone),
            },
        }
    }

    /// Waits, but not for a machine that is gone or an agent that stops.
    async fn pause(&mut self, pause: Duration) -> Result<(), Stop> {
        let until = tokio::time::Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(until) => return Ok(()),
                updated = self.next_update() => updated?,
            }
        }
    }

    /// The end that the launcher wrote down before it went.
    fn end_on_record(&self, pod: &PodLocation) -> Option<End> {
        let state = read_final_state(pod)?;
        Some(self.end_of(&state))
    }

    fn end_of(&self, state: &LauncherState) -> End {
        end_of(state, self.is_deleted())
    }

    fn is_deleted(&self) -> bool {
        self.vmi.metadata.deletion_timestamp.is_some()
    }

    /// Connects to the launcher. `None`: it is not there and will not be.
    async fn connect(&mut self, pod: &PodLocation) -> Result<Option<Client>, Stop> {
        let socket = pod.run_dir.join(CONTROL_SOCKET);
        loop {
            // Nobody will answer in a pod without processes.
            if self
                .agent
                .sandboxes
                .locate(&self.pod_uid)
                .is_none_or(|pod| pod.pid == 0)
            {
                return Ok(None);
            }
            let connecting = Client::connect(&socket, Some(pod.uid), CONNECT_DEADLINE);
            let error = tokio::select! {
                connected = connecting => match connected {
                    Ok(client) => return Ok(Some(client)),
                    Err(error) => chain(&error),
                },
                () = self.shutdown.cancelled() => return Err(Stop::Agent),
            };
            // A launcher that served this machine before does not come back; a new one may be slow.
            let served =
                self.vmi.status.as_ref().and_then(|s| s.phase) != Some(VmiPhase::Scheduled);
            if served || self.is_deleted() {
                warn!(vmi = %full_name(&self.vmi), %error, "launcher does not answer");
                return Ok(None);
            }
            self.sync_failed(format!("the launcher does not answer: {error}"))
                .await;
            self.pause(RETRY_MIN).await?;
        }
    }

    /// Brings the guest up if it is not, and follows it to its end.
    async fn follow(&mut self, pod: &PodLocation, launcher: &Client) -> Result<End, Stop> {
        let mut states = launcher.state();
        let mut asked_to_stop = false;
        let mut backoff = Backoff::new();
        let mut probes: Option<Probes> = None;
        self.see(&states.borrow_and_update().clone());
        // A domain that is there already: an earlier agent brought it up.
        let mut next_sync = (self.view.guest == Guest::Absent).then(Instant::now);
        if next_sync.is_none() {
            match nic::recorded(&self.vmi, &self.agent.network_record(&self.pod_uid)) {
                Ok(nics) => self.view.nics = nics,
                Err(error) => {
                    warn!(vmi = %full_name(&self.vmi), error = %chain(&error), "network record");
                }
            }
        }
        loop {
            if let Guest::Ended(end) = &self.view.guest {
                return Ok(end.clone());
            }
            if self.is_deleted() && !asked_to_stop {
                asked_to_stop = true;
                next_sync = None;
                self.ask_to_stop(launcher).await;
            }
            if next_sync.is_some_and(|due| due <= Instant::now()) {
                next_sync = match self.sync(pod, launcher).await? {
                    Ok(()) => None,
                    Err(error) => {
                        self.sync_failed(chain(&error)).await;
                        Some(Instant::now() + backoff.next())
                    }
                };
                self.see(&states.borrow_and_update().clone());
                continue;
            }
            if probes.is_none() && self.view.guest == Guest::Running {
                probes = Some(self.probe(launcher));
            }
            let unwritten = !self.publish().await;
            let retry_at = next_sync.or(unwritten.then(|| Instant::now() + RETRY_MIN * 4));
            let retry = async {
                match retry_at {
                    Some(due) => sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = states.changed() => match changed {
                    Ok(()) => self.see(&states.borrow_and_update().clone()),
                    Err(_) => return Ok(self.launcher_closed(pod, &states.borrow())),
                },
                () = launcher.closed() => return Ok(self.launcher_closed(pod, &states.borrow())),
                updated = Self::updated(&mut self.updates) => self.vmi = updated?,
                () = self.shutdown.cancelled() => return Err(Stop::Agent),
                verdict = next_verdict(&mut probes) => self.on_verdict(verdict, launcher).await,
                () = retry => {}
            }
        }
    }

    /// Begins to ask the guest how it is. One that was ready before this agent came is, until a probe says otherwise.
    fn probe(&mut self, launcher: &Client) -> Probes {
        let spec = &self.vmi.spec;
        let conditions = self.vmi.status.iter().flat_map(|status| &status.conditions);
        let was_ready = conditions
            .into_iter()
            .any(|c| c.type_ == labels::CONDITION_READY && c.status == "True");
        if spec.readiness_probe.is_some() && !was_ready {
            let message = "The readiness probe has not succeeded yet.";
            self.view.not_ready = Some(message.to_owned());
        }
        let address = self.view.nics.first().and_then(|nic| nic.ip.as_deref());
        Probes::start(spec, launcher, address, was_ready)
    }

    /// A probe thinks otherwise of the guest than before.
    async fn on_verdict(&mut self, (kind, verdict): Verdict, launcher: &Client) {
        let problem = verdict.err();
        if let Some(problem) = &problem {
            let message = format!("{} probe failed: {problem}", kind.as_str());
            self.agent
                .recorder
                .warning(&*self.vmi, labels::REASON_UNHEALTHY, &message)
                .await;
        }
        match (kind, problem) {
            (Kind::Readiness, problem) => {
                self.view.not_ready =
                    problem.map(|problem| format!("Readiness probe failed: {problem}"));
            }
            (Kind::Liveness, Some(problem)) if self.dead.is_none() => {
                let grace = grace_seconds(&self.vmi.spec);
                info!(vmi = %full_name(&self.vmi), grace, problem, "guest is not alive, and is asked to shut down");
                self.dead = Some(problem);
                if let Err(error) = launcher.shutdown(grace).await {
                    warn!(vmi = %full_name(&self.vmi), error = %chain(&error), "launcher could not be asked to stop");
                }
            }
            (Kind::Liveness, _) => {}
        }
    }

    /// The next version of the machine, as a future that borrows only the receiver.
    async fn updated(
        updates: &mut watch::Receiver<Arc<VirtualMachineInstance>>,
    ) -> Result<Arc<VirtualMachineInstance>, Stop> {
        updates.changed().await.map_err(|_| Stop::Gone)?;
        Ok(updates.borrow_and_update().clone())
    }

    /// The connection ended. What the launcher wrote down counts; without it, what it said last.
    fn launcher_closed(&self, pod: &PodLocation, last: &LauncherState) -> End {
        read_final_state(pod).map_or_else(|| self.end_of(last), |state| self.end_of(&state))
    }

    fn see(&mut self, state: &LauncherState) {
        let guest = guest_of(state);
        if guest == Guest::Running && self.view.guest == Guest::Absent {
            self.clock.lap("running_ms");
            let laps: Vec<String> = self
                .clock
                .laps
                .iter()
                .map(|(name, ms)| format!("{name}={ms}"))
                .collect();
            info!(
                vmi = %full_name(&self.vmi),
                total_ms = millis(self.clock.started.elapsed()),
                steps = %laps.join(" "),
                launcher = ?state.timings,
                "guest is running"
            );
        }
        self.view.guest = guest;
        self.view.agent.clone_from(&state.agent);
        self.view.frozen = state.frozen;
        let machine = state.domain.as_ref().and_then(|d| d.machine.as_ref());
        if let Some(machine) = machine {
            self.view.machine = Some(machine.clone());
        }
    }

    /// One attempt to start the guest: wire the network, hand everything to the launcher.
    async fn sync(
        &mut self,
        pod: &PodLocation,
        launcher: &Client,
    ) -> Result<Result<(), SyncError>, Stop> {
        let pod = &match self.provide(pod).await {
            Ok(pod) => pod,
            Err(why) => return Ok(Err(SyncError::Pod(why))),
        };
        let (request, sockets, shown) = match self.prepare(pod).await {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Err(error)),
        };
        self.clock.lap("wired_ms");
        let answer = tokio::select! {
            answer = launcher.sync(request, sockets) => answer.map(drop).map_err(SyncError::Launcher),
            () = self.shutdown.cancelled() => return Err(Stop::Agent),
        };
        self.clock.lap("synced_ms");
        if answer.is_ok() {
            self.view.nics = shown;
            self.view.sync_error = None;
            self.agent
                .recorder
                .normal(
                    &*self.vmi,
                    labels::REASON_CREATED,
                    "VirtualMachineInstance defined.",
                )
                .await;
            self.warn_unless_bootable(pod).await;
        }
        Ok(answer)
    }

    /// Tells when firmware will find nothing to boot: the machine would stand still without a word.
    async fn warn_unless_bootable(&self, pod: &PodLocation) {
        let boot = boot_disks(&self.vmi);
        let unbootable = boot.iter().filter(|name| {
            pod.disks.get(**name).is_some_and(|(file, _, format)| {
                matches!(
                    berth_image::format::is_bootable(file, *format),
                    Ok(Some(false))
                )
            })
        });
        let unbootable: Vec<_> = unbootable.copied().collect();
        if boot.is_empty() || unbootable.len() < boot.len() {
            return;
        }
        let message = format!(
            "nothing to boot from: no boot sector at the beginning of disk {}",
            unbootable.join(", ")
        );
        self.agent
            .recorder
            .warning(&*self.vmi, labels::REASON_NOT_BOOTABLE, &message)
            .await;
    }

    /// The pod with everything that its machine needs.
    async fn provide(&self, pod: &PodLocation) -> Result<PodLocation, String> {
        let (sandboxes, uid, pod) = (
            self.agent.sandboxes.clone(),
            self.pod_uid.clone(),
            pod.clone(),
        );
        crate::blocking(move || sandboxes.provide(&uid, pod)).await
    }

    async fn prepare(
        &self,
        pod: &PodLocation,
    ) -> Result<(SyncRequest, Vec<std::os::fd::OwnedFd>, Vec<WiredNic>), SyncError> {
        let disks = disks(&self.vmi, pod)?;
        let (vmi, location) = (self.vmi.clone(), pod.clone());
        let (record, config) = (
            self.agent.network_record(&self.pod_uid),
            self.agent.config.clone(),
        );
        let wired =
            tokio::task::spawn_blocking(move || nic::wire(&vmi, &location, &record, &config))
                .await
                .map_err(|_| SyncError::Panicked)??;
        let request = SyncRequest {
            vmi: (*self.vmi).clone(),
            disks,
            nics: wired.backings,
            boot: BootFiles {
                kernel: boot_file(pod, BOOT_KERNEL),
                initrd: boot_file(pod, BOOT_INITRD),
            },
            emulation: self.view.emulation.is_some(),
        };
        Ok((request, wired.sockets, wired.shown))
    }

    async fn ask_to_stop(&mut self, launcher: &Client) {
        self.view.pod_terminating = true;
        let name = full_name(&self.vmi);
        let asked = if self.view.guest == Guest::Absent {
            info!(vmi = %name, "deleted before its guest started");
            launcher.kill().await.map(drop)
        } else {
            let grace = grace_seconds(&self.vmi.spec);
            info!(vmi = %name, grace, "guest is asked to shut down");
            let message = "Signaled Graceful Shutdown";
            self.agent
                .recorder
                .normal(&*self.vmi, labels::REASON_SHUTTING_DOWN, message)
                .await;
            launcher.shutdown(grace).await.map(drop)
        };
        // The pod's own end asks the launcher a second time, so a lost request is not a lost deletion.
        if let Err(error) = asked {
            warn!(vmi = %name, error = %chain(&error), "launcher could not be asked to stop");
        }
    }

    /// Notes why the guest is not up, with an event when it is news.
    async fn sync_failed(&mut self, error: String) {
        warn!(vmi = %full_name(&self.vmi), %error, "sync failed");
        if self.view.sync_error.as_ref() != Some(&error) {
            self.agent
                .recorder
                .warning(&*self.vmi, labels::REASON_SYNC_FAILED, &error)
                .await;
        }
        self.view.sync_error = Some(error);
        self.publish().await;
    }

    /// The last status of the machine. Tried until it is written or the machine is gone.
    async fn finish(&mut self, end: End) -> Result<(), Stop> {
        info!(vmi = %full_name(&self.vmi), reason = reason_of(&end), message = %message_of(&end), "guest is over");
        self.view.guest = Guest::Ended(end.clone());
        self.view.sync_error = None;
        let mut backoff = Backoff::new();
        while !self.publish().await {
            let pause = backoff.next();
            tokio::select! {
                () = sleep(pause) => {}
                updated = self.next_update() => updated?,
            }
        }
        let failed = self.vmi.status.as_ref().and_then(|s| s.phase) == Some(VmiPhase::Failed);
        let (recorder, message) = (&self.agent.recorder, message_of(&end));
        if failed {
            recorder
                .warning(&*self.vmi, reason_of(&end), &message)
                .await;
        } else {
            recorder.normal(&*self.vmi, reason_of(&end), &message).await;
        }
        Ok(())
    }

    /// Writes the status if it changed; false when it has to be tried again.
    async fn publish(&mut self) -> bool {
        let name = full_name(&self.vmi);
        let api: Api<VirtualMachineInstance> = Api::namespaced(
            self.agent.client.clone(),
            self.vmi.namespace().as_deref().unwrap_or("default"),
        );
        for _ in 0..ATTEMPTS {
            let was = self.vmi.status.as_ref().and_then(|s| s.phase);
            let status = plan_status(&self.vmi, &self.view, &now());
            let version = self.vmi.resource_version();
            let patch =
                match merge::status_patch(version.as_deref(), self.vmi.status.as_ref(), &status) {
                    Ok(None) => return true,
                    Ok(Some(patch)) => patch,
                    Err(error) => {
                        warn!(vmi = %name, %error, "status does not serialize");
                        return true;
                    }
                };
            match api
                .patch_status(&self.vmi.name_any(), &manager(), &Patch::Merge(&patch))
                .await
            {
                Ok(written) => {
                    self.vmi = Arc::new(written);
                    if status.phase != was {
                        info!(vmi = %name, phase = status.phase.map_or("", VmiPhase::as_str), "phase");
                        if status.phase == Some(VmiPhase::Running) {
                            let message = "VirtualMachineInstance started.";
                            self.agent
                                .recorder
                                .normal(&*self.vmi, labels::REASON_STARTED, message)
                                .await;
                        }
                    }
                    return true;
                }
                Err(kube::Error::Api(answer)) if answer.code == 409 => match api
                    .get_opt(&self.vmi.name_any())
                    .await
                {
                    Ok(Some(fresh)) if fresh.uid() == self.vmi.uid() => self.vmi = Arc::new(fresh),
                    Ok(_) => return true,
                    Err(error) => {
                        warn!(vmi = %name, %error, "machine could not be read");
                        return false;
                    }
                },
                // The machine is gone; the watch says so, too.
                Err(kube::Error::Api(answer)) if answer.code == 404 => return true,
                Err(error) => {
                    warn!(vmi = %name, %error, "status not written, will be tried again");
                    return false;
                }
            }
        }
        false
    }
}

/// The next word of the probes, if there are any.
async fn next_verdict(probes: &mut Option<Probes>) -> Verdict {
    match probes {
        Some(probes) => probes.next().await,
        None => std::future::pending().await,
    }
}

/// The disks that firmware may boot from; none where it is told to boot from the network, or a kernel.
fn boot_disks(vmi: &VirtualMachineInstance) -> Vec<&str> {
    let devices = &vmi.spec.domain.devices;
    let firmware = vmi.spec.domain.firmware.as_ref();
    if firmware.is_some_and(|firmware| firmware.kernel_boot.is_some()) {
        return Vec::new();
    }
    if devices
        .interfaces
        .iter()
        .any(|interface| interface.boot_order.is_some())
    {
        return Vec::new();
    }
    let ordered = devices.disks.iter().any(|disk| disk.boot_order.is_some());
    let boots = devices
        .disks
        .iter()
        .filter(|disk| !ordered || disk.boot_order.is_some());
    boots.map(|disk| disk.name.as_str()).collect()
}

/// The path of a file that the firmware starts, in the pod.
fn boot_file(pod: &PodLocation, name: &str) -> Option<String> {
    let (_, path, _) = pod.disks.get(name)?;
    Some(path.clone())
}

/// The disks of the machine as the launcher sees them.
fn disks(vmi: &VirtualMachineInstance, pod: &PodLocation) -> Result<Vec<DiskBacking>, SyncError> {
    // The launcher makes the others itself.
    let volumes = vmi
        .spec
        .volumes
        .iter()
        .filter(|volume| !volume.is_made_by_launcher());
    volumes
        .map(|volume| {
            let missing = || SyncError::NoVolume(volume.name.clone());
            if let Some((_, read_only)) = volume.claim() {
                let disk = pod.claims.get(&volume.name).ok_or_else(missing)?;
                // What may not be written gets an overlay, as an image does.
                if volume.ephemeral.is_some() && disk.block {
                    let name = &volume.name;
                    return Err(SyncError::Pod(format!(
                        "volume {name}: an ephemeral volume needs a claim with a file system"
                    )));
                }
                let read_only = read_only && !disk.block;
                return Ok(DiskBacking {
                    volume: volume.name.clone(),
                    path: disk.path.clone(),
                    format: "raw".to_owned(),
                    read_only,
                    block: disk.block,
                    create: disk.size.filter(|_| !read_only),
                });
            }
            let (_, path, format) = pod.disks.get(&volume.name).ok_or_else(missing)?;
            Ok(DiskBacking {
                volume: volume.name.clone(),
                path: path.clone(),
                format: super::domain::format_name(*format).to_owned(),
                read_only: true,
                block: false,
                create: None,
            })
        })
        .collect()
}

/// What the launcher wrote down when its domain ended.
fn read_final_state(pod: &PodLocation) -> Option<LauncherState> {
    let path: PathBuf = pod.run_dir.join(FINAL_STATE);
    match untrusted::read(&path, pod.uid) {
        Ok(json) => match serde_json::from_slice(&json) {
            Ok(state) => Some(state),
            Err(error) => {
                warn!(path = %path.display(), %error, "final state is not readable");
                None
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!(path = %path.display(), %error, "final state is not read");
            None
        }
    }
}

fn manager() -> PatchParams {
    PatchParams {
        field_manager: Some(labels::NODE_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

/// Now, to the second, which is what the API keeps.
fn now() -> Time {
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH))
}
