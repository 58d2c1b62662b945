//! The task that owns the domain. Requests come in by a channel, the state goes out by a watch; nobody else decides.

mod asking;
mod connection;
mod ending;
mod events;
mod stopping;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use berth_hypervisor::{DomainEvent, DomainEventKind, Events, Hypervisor};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::admit::{Asked, Phase, Verdict, admit};
use crate::console::Console;
use crate::create::{CreateError, Created, Creation, Layout, grace_seconds};
use crate::credentials::Credentials;
use crate::daemon::Daemon;
use crate::dhcp::Servers;
use crate::protocol::{
    AgentState, Answer, Call, DhcpStatus, DomainPhase, DomainState, FINAL_STATE, LauncherState,
    SyncRequest, reason,
};
use crate::server::Incoming;

/// So many times within [`RESTART_WINDOW`] the libvirt daemon is started again before the launcher gives up.
const RESTARTS: usize = 5;
const RESTART_WINDOW: Duration = Duration::from_secs(600);
/// A guest that is still booting misses the power button, so it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// How long after libvirt's word that QEMU is gone its exit status may take.
const EXIT_STATUS: Duration = Duration::from_secs(2);
/// How long after the end of QEMU's process libvirt's word about it may take.
const EVENT_PATIENCE: Duration = Duration::from_secs(2);
/// How long libvirt may take to forget a domain at the end.
const UNDEFINE: Duration = Duration::from_secs(2);

type Reply = oneshot::Sender<Result<Answer, String>>;

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
    asking: asking::Asking<D::Hypervisor>,
    /// From the task that follows the agent now; what an earlier one still had to say is lost with its channel.
    agent_news: mpsc::Receiver<Option<AgentState>>,
    /// What the guest's agent is to be given.
    credentials: Option<Credentials>,
    grace: u64,
    /// When the power is cut, and the grace that was given.
    deadline: Option<(Instant, u64)>,
    press_again: Option<Instant>,
    grace_exceeded: Option<u64>,
    restarts: VecDeque<Instant>,
    /// QEMU's process has ended: when libvirt's word about it is not waited for any longer.
    qemu_gone: Option<Instant>,
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
            asking: asking::Asking::default(),
            agent_news: mpsc::channel(1).1,
            credentials: None,
            grace: 30,
            deadline: None,
            press_again: None,
            grace_exceeded: None,
            restarts: VecDeque::new(),
            qemu_gone: None,
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
    Agent(Option<AgentState>),
    GraceOver(u64),
    PressAgain,
    /// QEMU has ended; libvirt may say so soon.
    QemuEnded,
    /// It did not.
    QemuGone,
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
            Wake::Agent(seen) => self.on_agent(seen),
            Wake::GraceOver(seconds) => {
                tracing::warn!("the guest did not power off within {seconds} s: its power is cut");
                self.grace_exceeded = Some(seconds);
                self.destroy().await;
            }
            Wake::PressAgain => self.press().await,
            Wake::QemuEnded => self.qemu_gone = Some(Instant::now() + EVENT_PATIENCE),
            Wake::QemuGone => self.on_qemu_gone().await,
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
        let qemu_pid = self
            .driver
            .state
            .borrow()
            .domain
            .as_ref()
            .and_then(|domain| domain.qemu_pid);
        let (daemon, qemu_gone) = (&self.driver.daemon, self.qemu_gone);
        let qemu = async {
            match (qemu_gone, qemu_pid) {
                (Some(at), _) => {
                    tokio::time::sleep_until(at).await;
                    Wake::QemuGone
                }
                (None, Some(pid)) => {
                    daemon.qemu_end(pid).await;
                    Wake::QemuEnded
                }
                (None, None) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = created, if creating => Wake::Created(result),
            event = event, if !creating => Wake::Event(event),
            how = daemon.ended(), if !creating => Wake::DaemonEnded(how),
            Some(()) = self.driver.terminate.recv() => Wake::Terminate,
            Some(incoming) = self.driver.requests.recv() => Wake::Request(incoming),
            Some(status) = self.dhcp_news.1.recv() => Wake::Dhcp(status),
            Some(seen) = self.agent_news.recv() => Wake::Agent(seen),
            seconds = grace_over => Wake::GraceOver(seconds),
            () = again => Wake::PressAgain,
            wake = qemu, if !creating => wake,
        }
    }

    async fn on_request(&mut self, incoming: Incoming) {
        let Incoming { call, fds, reply } = incoming;
        let asked = Asked::of(&call, &self.driver.uid);
        let verdict = admit(self.phase, asked);
        if asked != Asked::Status {
            tracing::info!("{asked:?} while {:?}: {verdict:?}", self.phase);
        }
        let grace = match &call {
            Call::Shutdown { grace_seconds } => *grace_seconds,
            Call::Sync(_)
            | Call::Kill
            | Call::Pause
            | Call::Resume
            | Call::Ask(_)
            | Call::Status => 0,
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
            (Verdict::Ask, Call::Ask(question)) => {
                self.ask(question, reply);
                return;
            }
            (Verdict::Suspend | Verdict::Resume, _) => {
                if let Err(words) = self.let_run(verdict == Verdict::Resume).await {
                    answer(reply, Err(words));
                    return;
                }
            }
            (Verdict::PowerOff, _) => self.power_off(grace).await,
            (Verdict::Destroy, _) => self.destroy().await,
            (Verdict::PowerOffAfterCreation | Verdict::DestroyAfterCreation, _) => {
                self.stop_after_creation(grace);
            }
            (Verdict::End, _) => self.ending = Some(Ending::Done),
            (Verdict::Answer | Verdict::Create | Verdict::Ask, _) => {}
        }
        let state = self.driver.state.borrow().clone();
        answer(reply, Ok(Answer { state, data: None }));
    }

    async fn on_terminate(&mut self) {
        let grace = self.grace;
        tracing::info!("asked to terminate: the guest has {grace} s");
        match admit(
            self.phase,
            if grace == 0 {
                Asked::Kill
            } else {
                Asked::Shutdown
            },
        ) {
            Verdict::PowerOff => self.power_off(grace).await,
            Verdict::Destroy => self.destroy().await,
            Verdict::PowerOffAfterCreation | Verdict::DestroyAfterCreation => {
                self.stop_after_creation(grace);
            }
            Verdict::End => self.ending = Some(Ending::Done),
            Verdict::Answer
            | Verdict::Create
            | Verdict::Join
            | Verdict::Suspend
            | Verdict::Resume
            | Verdict::Ask
            | Verdict::Refuse(_) => {}
        }
    }

    /// Pauses the guest or lets it go on. The state follows from libvirt's word, which is asked for at once.
    async fn let_run(&mut self, run: bool) -> Result<(), String> {
        let (Some((hypervisor, _)), Some((_, uuid))) = (&self.connection, &self.domain) else {
            return Err("libvirt is not there at the moment".to_owned());
        };
        let done = if run {
            hypervisor.resume(uuid).await
        } else {
            hypervisor.suspend(uuid).await
        };
        done.map_err(|error| error.to_string())?;
        let state = hypervisor.state(uuid).await;
        let state = state.map_err(|error| error.to_string())?;
        self.on_state(state).await;
        Ok(())
    }

    fn create(&mut self, request: SyncRequest, fds: Vec<std::os::fd::OwnedFd>) {
        let Some((hypervisor, _)) = &self.connection else {
            // There is always one while the phase is Idle.
            return self.end_failed("no connection to libvirt".to_owned());
        };
        self.phase = Phase::Creating;
        self.grace = grace_seconds(&request.vmi);
        self.credentials = Credentials::of(&request.vmi.spec, self.driver.layout.texts.clone());
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
            Ok(Created {
                info,
                paused,
                timings,
                dhcp,
            }) => {
                self.phase = Phase::Alive;
                let qemu_pid = self.driver.daemon.qemu_pid(&info.name);
                tracing::info!(domain = info.name, qemu_pid, ?timings, "the guest runs");
                self.domain = Some((info.name, info.uuid.clone()));
                self.dhcp = Some(dhcp);
                self.driver.state.send_modify(|state| {
                    state.failure = None;
                    state.timings.extend(timings);
                    let (shown, word, message) = if paused {
                        (DomainPhase::Paused, reason::USER, "it was to be started so")
                    } else {
                        (DomainPhase::Running, reason::BOOTED, "")
                    };
                    state.domain = Some(DomainState {
                        state: shown,
                        reason: word.to_owned(),
                        message: message.to_owned(),
                        qemu_pid,
                        uuid: info.uuid,
                        machine: info.machine,
                    });
                });
                self.answer_waiting(&Ok(()));
            }
            Err(error) => {
                self.phase = Phase::Idle;
                let words = self.explain(&error);
                tracing::error!("the guest cannot be started: {words}");
                self.driver
                    .state
                    .send_modify(|state| state.failure = Some(words.clone()));
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
        let CreateError::Start { domain, .. } = error else {
            return words;
        };
        match self.driver.daemon.qemu_words(domain) {
            Some(log) if !log.split("; ").any(|line| words.contains(line)) => {
                format!("{words}; QEMU said: {log}")
            }
            _ => words,
        }
    }

    fn answer_waiting(&mut self, result: &Result<(), String>) {
        for reply in self.waiting.drain(..) {
            let state = self.driver.state.borrow().clone();
            answer(reply, result.clone().map(|()| Answer { state, data: None }));
        }
    }

    fn stop_after_creation(&mut self, grace: u64) {
        let earlier = self
            .stop_after_creation
            .map_or(grace, |before| before.min(grace));
        self.stop_after_creation = Some(earlier);
    }

    fn end_failed(&mut self, words: String) {
        tracing::error!("{words}");
        self.kill_qemu();
        self.answer_waiting(&Err(words.clone()));
        self.finally(|state| {
            state.failure = Some(words.clone());
            if let Some(domain) = state
                .domain
                .as_mut()
                .filter(|domain| !domain.state.is_final())
            {
                domain.state = DomainPhase::Crashed;
                reason::FAILED.clone_into(&mut domain.reason);
                domain.message.clone_from(&words);
            }
        });
        self.ending = Some(Ending::Failed(words));
    }

    async fn finish(mut self) -> (Ending, D) {
        self.dhcp = None;
        self.asking.end();
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

fn answer(reply: Reply, result: Result<Answer, String>) {
    // The caller may be gone.
    let _ = reply.send(result);
}
