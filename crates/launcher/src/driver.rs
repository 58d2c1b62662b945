//! The task that owns the domain. Requests come in by a channel, the state goes out by a watch; nobody else decides.

use std::collections::VecDeque;
use std::time::Duration;

use berth_hypervisor::{DomainEvent, DomainEventKind, Events, Hypervisor, PauseReason, RunState, StopReason};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::admit::{Asked, Phase, Verdict, admit};
use crate::console::Console;
use crate::create::{CreateError, Created, Creation, Layout, grace_seconds};
use crate::daemon::{Daemon, DaemonError};
use crate::dhcp::Servers;
use crate::final_state;
use crate::protocol::{Call, DhcpStatus, DomainPhase, DomainState, FINAL_STATE, LauncherState, SyncRequest, reason};
use crate::reaper::Exit;
use crate::server::Incoming;

/// So many times within [`RESTART_WINDOW`] the libvirt daemon is started again before the launcher gives up.
const RESTARTS: usize = 5;
const RESTART_WINDOW: Duration = Duration::from_secs(600);
/// A guest that is still booting misses the power button, so it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// How long after libvirt's word that QEMU is gone its exit status may take.
const EXIT_STATUS: Duration = Duration::from_secs(2);
/// How long libvirt may take to forget a domain at the end.
const UNDEFINE: Duration = Duration::from_secs(2);

type Reply = oneshot::Sender<Result<LauncherState, String>>;

/// Why the launcher ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The domain has ended, or there was none and none is wanted.
    Done,
    /// The launcher cannot do its part any more.
    Failed(String),
}

/// The driver.
pub(crate) struct Driver<D: Daemon> {
    /// UID of the machine that this launcher is for.
    pub(crate) uid: String,
    /// Where things are.
    pub(crate) layout: Layout,
    /// The process behind the hypervisor.
    pub(crate) daemon: D,
    /// What reads the guest's serial port.
    pub(crate) console: Console,
    /// Requests.
    pub(crate) requests: mpsc::Receiver<Incoming>,
    /// What the launcher says about itself.
    pub(crate) state: watch::Sender<LauncherState>,
    /// One message for each SIGTERM.
    pub(crate) terminate: mpsc::Receiver<()>,
}

/// What the driver keeps between two steps.
struct Running<D: Daemon> {
    driver: Driver<D>,
    phase: Phase,
    connection: Option<(D::Hypervisor, Events)>,
    creation: Option<JoinHandle<Result<Created, CreateError>>>,
    /// Callers that wait for the creation.
    waiting: Vec<Reply>,
    /// What was asked during the creation: seconds of grace, 0 to cut the power.
    stop_after_creation: Option<u64>,
    domain: Option<(String, String)>,
    dhcp: Option<Servers>,
    dhcp_news: (mpsc::Sender<DhcpStatus>, mpsc::Receiver<DhcpStatus>),
    grace: u64,
    /// When the power is cut, and the grace that was given.
    deadline: Option<(Instant, u64)>,
    press_again: Option<Instant>,
    grace_exceeded: Option<u64>,
    restarts: VecDeque<Instant>,
    ending: Option<Ending>,
    /// Whether the final state is on disk.
    recorded: Option<std::io::Result<()>>,
}

impl<D: Daemon> Driver<D> {
    /// Runs until the domain has ended. The last state is published; what comes after it is the caller's.
    pub(crate) async fn run(self) -> (Ending, D) {
        let mut running = Running {
            driver: self,
            phase: Phase::Idle,
            connection: None,
            creation: None,
            waiting: Vec::new(),
            stop_after_creation: None,
            domain: None,
            dhcp: None,
            dhcp_news: mpsc::channel(16),
            grace: 30,
            deadline: None,
            press_again: None,
            grace_exceeded: None,
            restarts: VecDeque::new(),
            ending: None,
            recorded: None,
        };
        match running.connect().await {
            Ok(()) => {}
            Err(error) => running.end_failed(format!("libvirt: {error}")),
        }
        while running.ending.is_none() {
            running.step().await;
        }
        running.finish().await
    }
}

/// What woke the driver.
enum Wake {
    Event(Option<DomainEvent>),
    Created(Result<Created, CreateError>),
    DaemonEnded(String),
    Request(Incoming),
    Terminate,
    Dhcp(DhcpStatus),
    GraceOver(u64),
    PressAgain,
}

impl<D: Daemon> Running<D> {
    async fn step(&mut self) {
        let wake = self.wait().await;
        match wake {
            Wake::Event(Some(event)) => self.on_event(event).await,
            Wake::Event(None) => self.reconnect("the connection to libvirt is gone").await,
            Wake::Created(result) => self.on_created(result).await,
            Wake::DaemonEnded(how) => self.reconnect(&how).await,
            Wake::Request(incoming) => self.on_request(incoming).await,
            Wake::Terminate => self.on_terminate().await,
            Wake::Dhcp(status) => self.on_dhcp(status),
            Wake::GraceOver(seconds) => {
                tracing::warn!("the guest did not power off within {seconds} s: its power is cut");
                self.grace_exceeded = Some(seconds);
                self.destroy().await;
            }
            Wake::PressAgain => self.press().await,
        }
    }

    async fn wait(&mut self) -> Wake {
        // While QEMU is being started, what libvirt says has to wait: only the creation knows what it belongs to.
        let creating = self.creation.is_some();
        let event = async {
            match &mut self.connection {
                Some((_, events)) => events.recv().await,
                None => std::future::pending().await,
            }
        };
        let created = async {
            match &mut self.creation {
                Some(task) => task.await.unwrap_or(Err(CreateError::Panicked)),
                None => std::future::pending().await,
            }
        };
        let (deadline, press_again) = (self.deadline, self.press_again);
        let grace_over = async {
            match deadline {
                Some((at, seconds)) => {
                    tokio::time::sleep_until(at).await;
                    seconds
                }
                None => std::future::pending().await,
            }
        };
        let again = async {
            match press_again {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = created, if creating => Wake::Created(result),
            event = event, if !creating => Wake::Event(event),
            how = self.driver.daemon.ended(), if !creating => Wake::DaemonEnded(how),
            Some(()) = self.driver.terminate.recv() => Wake::Terminate,
            Some(incoming) = self.driver.requests.recv() => Wake::Request(incoming),
            Some(status) = self.dhcp_news.1.recv() => Wake::Dhcp(status),
            seconds = grace_over => Wake::GraceOver(seconds),
            () = again => Wake::PressAgain,
        }
    }

    // Requests

    async fn on_request(&mut self, incoming: Incoming) {
        let Incoming { call, fds, reply } = incoming;
        let asked = Asked::of(&call, &self.driver.uid);
        let verdict = admit(self.phase, asked);
        if asked != Asked::Status {
            tracing::info!("{asked:?} while {:?}: {verdict:?}", self.phase);
        }
        let grace = match &call {
            Call::Shutdown { grace_seconds } => *grace_seconds,
            Call::Sync(_) | Call::Kill | Call::Status => 0,
        };
        match (verdict, call) {
            (Verdict::Create, Call::Sync(request)) => {
                self.waiting.push(reply);
                self.create(*request, fds);
                return;
            }
            (Verdict::Join, _) => {
                self.waiting.push(reply);
                return;
            }
            (Verdict::Refuse(words), _) => {
                answer(reply, Err(words.to_owned()));
                return;
            }
            (Verdict::PowerOff, _) => self.power_off(grace).await,
            (Verdict::Destroy, _) => self.destroy().await,
            (Verdict::PowerOffAfterCreation | Verdict::DestroyAfterCreation, _) => self.stop_after_creation(grace),
            (Verdict::End, _) => self.ending = Some(Ending::Done),
            (Verdict::Answer | Verdict::Create, _) => {}
        }
        answer(reply, Ok(self.driver.state.borrow().clone()));
    }

    async fn on_terminate(&mut self) {
        let grace = self.grace;
        tracing::info!("asked to terminate: the guest has {grace} s");
        match admit(self.phase, if grace == 0 { Asked::Kill } else { Asked::Shutdown }) {
            Verdict::PowerOff => self.power_off(grace).await,
            Verdict::Destroy => self.destroy().await,
            Verdict::PowerOffAfterCreation | Verdict::DestroyAfterCreation => self.stop_after_creation(grace),
            Verdict::End => self.ending = Some(Ending::Done),
            Verdict::Answer | Verdict::Create | Verdict::Join | Verdict::Refuse(_) => {}
        }
    }

    fn create(&mut self, request: SyncRequest, fds: Vec<std::os::fd::OwnedFd>) {
        let Some((hypervisor, _)) = &self.connection else {
            // There is always one while the phase is Idle.
            return self.end_failed("no connection to libvirt".to_owned());
        };
        self.phase = Phase::Creating;
        self.grace = grace_seconds(&request.vmi);
        let dhcp = Servers::new(&request.nics, fds, self.dhcp_news.0.clone());
        let creation = Creation {
            hypervisor: hypervisor.clone(),
            request,
            dhcp,
            console: self.driver.console.clone(),
            layout: self.driver.layout.clone(),
        };
        self.creation = Some(tokio::spawn(creation.run()));
    }

    async fn on_created(&mut self, result: Result<Created, CreateError>) {
        self.creation = None;
        match result {
            Ok(Created { info, timings, dhcp }) => {
                self.phase = Phase::Alive;
                let qemu_pid = self.driver.daemon.qemu_pid(&info.name);
                tracing::info!(domain = info.name, qemu_pid, ?timings, "the guest runs");
                self.domain = Some((info.name, info.uuid.clone()));
                self.dhcp = Some(dhcp);
                self.driver.state.send_modify(|state| {
                    state.failure = None;
                    state.timings.extend(timings);
                    state.domain = Some(DomainState {
                        state: DomainPhase::Running,
                        reason: reason::BOOTED.to_owned(),
                        message: String::new(),
                        qemu_pid,
                        uuid: info.uuid,
                    });
                });
                self.answer_waiting(&Ok(()));
            }
            Err(error) => {
                self.phase = Phase::Idle;
                let words = self.explain(&error);
                tracing::error!("the guest cannot be started: {words}");
                self.driver.state.send_modify(|state| state.failure = Some(words.clone()));
                self.answer_waiting(&Err(words));
                // What libvirt said meanwhile was about the failed domain. A lost connection stays lost, and is seen.
                if let Some((_, events)) = &mut self.connection {
                    while let Ok(event) = events.try_recv() {
                        if let DomainEventKind::ConnectionLost { reason } = event.kind {
                            return self.reconnect(&reason).await;
                        }
                    }
                }
            }
        }
        match (self.stop_after_creation.take(), self.phase) {
            (Some(_), Phase::Idle) => self.ending = Some(Ending::Done),
            (Some(0), _) => self.destroy().await,
            (Some(grace), _) => self.power_off(grace).await,
            (None, _) => {}
        }
    }

    /// The error with QEMU's own words, where libvirt did not repeat them.
    fn explain(&self, error: &CreateError) -> String {
        let words = error.to_string();
        let CreateError::Start { domain, .. } = error else { return words };
        match self.driver.daemon.qemu_words(domain) {
            Some(log) if !log.split("; ").any(|line| words.contains(line)) => format!("{words}; QEMU said: {log}"),
            _ => words,
        }
    }

    fn answer_waiting(&mut self, result: &Result<(), String>) {
        for reply in self.waiting.drain(..) {
            answer(reply, result.clone().map(|()| self.driver.state.borrow().clone()));
        }
    }

    fn stop_after_creation(&mut self, grace: u64) {
        let earlier = self.stop_after_creation.map_or(grace, |before| before.min(grace));
        self.stop_after_creation = Some(earlier);
    }

    // Stopping

    async fn power_off(&mut self, grace: u64) {
        let deadline = Instant::now() + Duration::from_secs(grace);
        if self.deadline.is_none_or(|(before, _)| deadline < before) {
            self.deadline = Some((deadline, grace));
        }
        self.phase = Phase::ShuttingDown;
        let paused = self.driver.state.borrow().domain.as_ref().is_some_and(|domain| domain.state == DomainPhase::Paused);
        self.show(DomainPhase::ShuttingDown, reason::SHUTDOWN, &format!("the guest has {grace} s to power off"));
        if paused && let (Some((hypervisor, _)), Some((_, uuid))) = (&self.connection, &self.domain) {
            // A paused guest cannot hear the button.
            if let Err(error) = hypervisor.resume(uuid).await {
                tracing::warn!("{error}");
            }
        }
        self.press().await;
    }

    async fn press(&mut self) {
        self.press_again = Some(Instant::now() + PRESS_AGAIN);
        if let (Some((hypervisor, _)), Some((_, uuid))) = (&self.connection, &self.domain)
            && let Err(error) = hypervisor.shutdown(uuid).await
        {
            // The grace period decides; the guest may be ending already.
            tracing::warn!("{error}");
        }
    }

    async fn destroy(&mut self) {
        self.phase = Phase::Destroying;
        self.deadline = None;
        self.press_again = None;
        let (Some((hypervisor, _)), Some((_, uuid))) = (&self.connection, &self.domain) else { return };
        if let Err(error) = hypervisor.destroy(uuid).await {
            tracing::error!("{error}");
            // libvirt could not: QEMU's process is ours to end. Its end comes as an event like any other.
            self.kill_qemu();
        }
    }

    fn kill_qemu(&self) {
        let pid = self.driver.state.borrow().domain.as_ref().and_then(|domain| domain.qemu_pid);
        if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw)
            && let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::KILL)
        {
            tracing::warn!("cannot kill QEMU: {error}");
        }
    }

    // Events

    async fn on_event(&mut self, event: DomainEvent) {
        if let DomainEventKind::ConnectionLost { reason } = event.kind {
            return self.reconnect(&reason).await;
        }
        if self.domain.as_ref().is_none_or(|(name, _)| *name != event.name) {
            return;
        }
        tracing::debug!("{event:?}");
        match event.kind {
            DomainEventKind::Started | DomainEventKind::Resumed => self.on_state(RunState::Running).await,
            DomainEventKind::Suspended { reason } => self.on_state(RunState::Paused(reason)).await,
            DomainEventKind::PmSuspended => self.on_state(RunState::Suspended).await,
            DomainEventKind::Shutdown => self.on_state(RunState::ShuttingDown).await,
            DomainEventKind::Crashed => self.on_state(RunState::Crashed).await,
            DomainEventKind::Stopped { reason } => self.on_state(RunState::Shutoff(reason)).await,
            DomainEventKind::Defined
            | DomainEventKind::Undefined
            | DomainEventKind::ConnectionLost { .. }
            | DomainEventKind::Other(_) => {}
        }
    }

    /// The domain is in this state, by an event or by asking after a reconnect.
    async fn on_state(&mut self, state: RunState) {
        let stopping = matches!(self.phase, Phase::ShuttingDown | Phase::Destroying);
        match state {
            RunState::Running if stopping => {}
            RunState::Running => {
                let was_paused = self.shown() == Some(DomainPhase::Paused);
                if was_paused {
                    self.show(DomainPhase::Running, reason::RESUMED, "");
                }
            }
            RunState::Paused(why) => {
                let (word, message) = match why {
                    PauseReason::User => (reason::USER, "paused on request"),
                    PauseReason::IoError => {
                        (reason::IO_ERROR, "a disk failed, or the node has no space left for what the guest writes")
                    }
                    PauseReason::Watchdog => (reason::WATCHDOG, "the guest's watchdog fired"),
                    PauseReason::Other => (reason::PAUSED, "paused by libvirt"),
                };
                tracing::warn!("the guest is paused: {message}");
                self.show(DomainPhase::Paused, word, message);
            }
            RunState::Suspended => self.show(DomainPhase::Paused, reason::PAUSED, "the guest sleeps"),
            RunState::ShuttingDown => {
                if !stopping {
                    self.show(DomainPhase::ShuttingDown, reason::SHUTDOWN, "the guest powers off");
                }
            }
            // The definition says that a crashed guest is destroyed; Stopped follows.
            RunState::Crashed => tracing::warn!("the guest crashed"),
            RunState::Shutoff(why) => self.on_stopped(why).await,
            RunState::Unknown => {}
        }
    }

    async fn on_stopped(&mut self, why: StopReason) {
        let (name, _) = self.domain.clone().unwrap_or_default();
        let pid = self.driver.state.borrow().domain.as_ref().and_then(|domain| domain.qemu_pid);
        let exit = match pid {
            Some(pid) => tokio::time::timeout(EXIT_STATUS, self.driver.daemon.qemu_end(pid)).await.ok(),
            None => None,
        };
        let asked = self.phase == Phase::Destroying;
        let (phase, word, message) = last_words(why, exit, asked, self.grace_exceeded, || self.driver.daemon.qemu_words(&name));
        if phase == DomainPhase::Crashed {
            tracing::error!("{message}");
        } else {
            tracing::info!("{message}");
        }
        self.finally(|state| {
            if let Some(domain) = &mut state.domain {
                domain.state = phase;
                word.clone_into(&mut domain.reason);
                domain.message = message;
            }
        });
        self.ending = Some(Ending::Done);
    }

    /// Changes the state for the last time: first on disk, then for everybody who listens.
    fn finally(&mut self, change: impl FnOnce(&mut LauncherState)) {
        let mut last = self.driver.state.borrow().clone();
        change(&mut last);
        self.recorded = Some(final_state::write(&self.driver.layout.file(FINAL_STATE), &last));
        self.driver.state.send_replace(last);
    }

    fn on_dhcp(&mut self, status: DhcpStatus) {
        self.driver.state.send_modify(|state| {
            state.dhcp.retain(|other| other.network != status.network);
            state.dhcp.push(status);
        });
    }

    fn shown(&self) -> Option<DomainPhase> {
        self.driver.state.borrow().domain.as_ref().map(|domain| domain.state)
    }

    fn show(&mut self, phase: DomainPhase, word: &str, message: &str) {
        self.driver.state.send_if_modified(|state| {
            let Some(domain) = &mut state.domain else { return false };
            let before = (domain.state, domain.reason.clone(), domain.message.clone());
            domain.state = phase;
            word.clone_into(&mut domain.reason);
            message.clone_into(&mut domain.message);
            before != (domain.state, domain.reason.clone(), domain.message.clone())
        });
    }

    // The daemon

    async fn connect(&mut self) -> Result<(), DaemonError> {
        let started = self.driver.daemon.start().await?;
        self.driver.state.send_modify(|state| {
            state.timings.insert("libvirtd_start_ms".to_owned(), crate::millis(started.start));
            state.timings.insert("connect_ms".to_owned(), crate::millis(started.connect));
        });
        self.connection = Some((started.hypervisor, started.events));
        Ok(())
    }

    /// Starts the daemon again and finds out what happened to the domain meanwhile.
    async fn reconnect(&mut self, why: &str) {
        tracing::warn!("{why}: libvirt is started again; the guest is not touched");
        // Calls on it fail fast now; dropping it may wait for the transport, so not here.
        if let Some((hypervisor, _)) = self.connection.take() {
            tokio::task::spawn_blocking(move || drop(hypervisor));
        }
        loop {
            let now = Instant::now();
            self.restarts.retain(|at| now.duration_since(*at) < RESTART_WINDOW);
            if self.restarts.len() == RESTARTS {
                return self.end_failed(format!("libvirt ended {RESTARTS} times: {why}"));
            }
            self.restarts.push_back(now);
            match self.connect().await {
                Ok(()) => break,
                Err(error) => tracing::error!("libvirt: {error}"),
            }
        }
        let (Some((hypervisor, _)), Some((_, uuid))) = (&self.connection, &self.domain) else { return };
        match hypervisor.state(uuid).await {
            Ok(RunState::Shutoff(StopReason::Unknown)) | Err(berth_hypervisor::Error::NoDomain(_)) => {
                self.on_state(RunState::Shutoff(StopReason::Failed)).await;
            }
            Ok(state) => {
                self.on_state(state).await;
                if self.ending.is_none() && self.phase == Phase::Destroying {
                    self.destroy().await;
                }
            }
            // The next loss of the connection comes back here, a bounded number of times.
            Err(error) => tracing::error!("{error}"),
        }
    }

    // The end

    fn end_failed(&mut self, words: String) {
        tracing::error!("{words}");
        self.kill_qemu();
        self.answer_waiting(&Err(words.clone()));
        self.finally(|state| {
            state.failure = Some(words.clone());
            if let Some(domain) = state.domain.as_mut().filter(|domain| !domain.state.is_final()) {
                domain.state = DomainPhase::Crashed;
                reason::FAILED.clone_into(&mut domain.reason);
                domain.message.clone_from(&words);
            }
        });
        self.ending = Some(Ending::Failed(words));
    }

    async fn finish(mut self) -> (Ending, D) {
        self.dhcp = None;
        if self.recorded.is_none() {
            self.finally(|_| {});
        }
        self.answer_waiting(&Err("the launcher is ending".to_owned()));
        if let (Some((hypervisor, _)), Some((_, uuid))) = (&self.connection, &self.domain) {
            match tokio::time::timeout(UNDEFINE, hypervisor.undefine(uuid)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("{error}"),
                Err(_) => tracing::debug!("libvirt takes too long to forget the domain"),
            }
        }
        if let Some((hypervisor, _)) = self.connection.take() {
            // It is a remote procedure call; the daemon is told to end next in any case.
            let dropped = tokio::task::spawn_blocking(move || drop(hypervisor));
            let _ = tokio::time::timeout(UNDEFINE, dropped).await;
        }
        let ending = match self.recorded {
            Some(Err(error)) => Ending::Failed(format!("cannot write {FINAL_STATE}: {error}")),
            _ => self.ending.unwrap_or(Ending::Done),
        };
        (ending, self.driver.daemon)
    }
}

fn answer(reply: Reply, result: Result<LauncherState, String>) {
    // The caller may be gone.
    let _ = reply.send(result);
}

/// The last state of the domain, from all that is known about its end.
fn last_words(
    why: StopReason,
    exit: Option<Exit>,
    asked: bool,
    grace_exceeded: Option<u64>,
    log: impl FnOnce() -> Option<String>,
) -> (DomainPhase, &'static str, String) {
    match (why, exit) {
        (StopReason::Shutdown, _) => (DomainPhase::Shutoff, reason::SHUTDOWN, "the guest powered off".to_owned()),
        (StopReason::Destroyed, _) | (StopReason::Failed | StopReason::Unknown, _) if asked => {
            let message = match grace_exceeded {
                Some(seconds) => {
                    format!("the guest did not power off within {seconds} s of being asked (ACPI), and its power was cut")
                }
                None => "the power was cut on request".to_owned(),
            };
            (DomainPhase::Shutoff, reason::DESTROYED, message)
        }
        (StopReason::Destroyed, _) => {
            (DomainPhase::Shutoff, reason::DESTROYED, "the power was cut, not by the launcher".to_owned())
        }
        (StopReason::Crashed, None | Some(Exit::Code(0))) => {
            (DomainPhase::Crashed, reason::PANICKED, "the guest crashed".to_owned())
        }
        (_, Some(exit @ Exit::Signal(number))) => {
            let hint = if number == libc::SIGKILL {
                "; when nobody sent it, the kernel did, for want of memory"
            } else {
                ""
            };
            (DomainPhase::Crashed, reason::KILLED, format!("QEMU {exit}{hint}"))
        }
        (_, exit) => {
            let exit = exit.map_or_else(|| "ended unexpectedly".to_owned(), |exit| exit.to_string());
            let log = log().map(|words| format!(": {words}")).unwrap_or_default();
            (DomainPhase::Crashed, reason::FAILED, format!("QEMU {exit}{log}"))
        }
    }
}

#[cfg(test)]
mod tests;
