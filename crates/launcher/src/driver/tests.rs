use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};

use berth_hypervisor::StopReason;
use berth_hypervisor::fake::Fake;
use tokio::net::UnixListener;

use super::*;
use crate::daemon::{DaemonError, Started};
use crate::protocol::Question;
use crate::reaper::Exit;

/// A daemon whose hypervisor is the fake, and which dies when it is told to.
struct FakeDaemon {
    fake: Fake,
    die: Arc<tokio::sync::Notify>,
    starts: Arc<Mutex<u32>>,
    exit: Exit,
    gone: watch::Receiver<bool>,
}

impl Daemon for FakeDaemon {
    type Hypervisor = Fake;

    async fn start(&mut self) -> Result<Started<Fake>, DaemonError> {
        *self.starts.lock().unwrap() += 1;
        let (hypervisor, events) = self.fake.connect();
        Ok(Started {
            hypervisor,
            events,
            start: Duration::from_millis(40),
            connect: Duration::from_millis(50),
        })
    }

    async fn ended(&self) -> String {
        self.die.notified().await;
        "libvirtd was killed by signal 9 (SIGKILL)".to_owned()
    }

    async fn stop(&mut self) {}

    fn qemu_pid(&self, domain: &str) -> Option<u32> {
        // Above any real process, in case a test kills it.
        (!domain.is_empty()).then_some(u32::MAX / 2)
    }

    async fn qemu_end(&self, _pid: u32) -> Exit {
        let _ = self.gone.clone().wait_for(|gone| *gone).await;
        self.exit
    }

    fn qemu_words(&self, _domain: &str) -> Option<String> {
        Some("qemu has run out of bits".to_owned())
    }
}

struct World {
    requests: mpsc::Sender<Incoming>,
    state: watch::Receiver<LauncherState>,
    terminate: mpsc::Sender<()>,
    fake: Fake,
    die: Arc<tokio::sync::Notify>,
    starts: Arc<Mutex<u32>>,
    gone: watch::Sender<bool>,
    task: JoinHandle<Ending>,
    dir: tempfile::TempDir,
    _port: UnixListener,
}

impl World {
    fn new(exit: Exit) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (requests, queue) = mpsc::channel(8);
        let (terminate, terminations) = mpsc::channel(1);
        let (state, watched) = watch::channel(LauncherState::default());
        let (fake, die, starts) = (
            Fake::new(),
            Arc::<tokio::sync::Notify>::default(),
            Arc::<Mutex<u32>>::default(),
        );
        let gone = watch::Sender::new(false);
        // A domain that stops takes its QEMU with it.
        let (_, mut events) = fake.connect();
        let tell = gone.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if matches!(event.kind, DomainEventKind::Stopped { .. }) {
                    tell.send_replace(true);
                }
            }
        });
        let port = UnixListener::bind(dir.path().join("serial.sock")).unwrap();
        let console = crate::socket::listen(&dir.path().join("console.sock")).unwrap();
        let driver = Driver {
            uid: "u1".to_owned(),
            layout: Layout::new(dir.path().to_owned()),
            daemon: FakeDaemon {
                fake: fake.clone(),
                die: die.clone(),
                starts: starts.clone(),
                exit,
                gone: gone.subscribe(),
            },
            console: Console::start(console, dir.path().join("serial.log")),
            requests: queue,
            state,
            terminate: terminations,
        };
        let task = tokio::spawn(async move { driver.run().await.0 });
        Self {
            requests,
            state: watched,
            terminate,
            fake,
            die,
            starts,
            gone,
            task,
            dir,
            _port: port,
        }
    }

    fn request(&self, call: Call) -> impl Future<Output = Result<LauncherState, String>> + use<> {
        let answer = self.answer(call);
        async move { answer.await.map(|answer| answer.state) }
    }

    fn answer(&self, call: Call) -> impl Future<Output = Result<Answer, String>> + use<> {
        let requests = self.requests.clone();
        async move {
            let (reply, answer) = oneshot::channel();
            requests
                .send(Incoming {
                    call,
                    fds: Vec::new(),
                    reply,
                })
                .await
                .unwrap();
            answer.await.unwrap_or_else(|_| Err("dropped".to_owned()))
        }
    }

    async fn sync(&self) -> Result<LauncherState, String> {
        self.request(sync("u1")).await
    }

    async fn until(&self, what: &str, test: impl FnMut(&LauncherState) -> bool) {
        let mut state = self.state.clone();
        let wait = state.wait_for(test);
        if tokio::time::timeout(Duration::from_secs(100), wait)
            .await
            .is_err()
        {
            panic!("{what}: {:?}", self.state.borrow());
        }
    }

    fn uuid(&self) -> String {
        self.state.borrow().domain.as_ref().unwrap().uuid.clone()
    }

    /// How it ended, and the state that was written down, which is the one that was told.
    async fn ended(self) -> (Ending, DomainState) {
        let ending = tokio::time::timeout(Duration::from_secs(100), self.task)
            .await
            .expect("an end")
            .unwrap();
        let json = std::fs::read(self.dir.path().join(FINAL_STATE)).unwrap();
        let written: LauncherState = serde_json::from_slice(&json).unwrap();
        assert_eq!(written, *self.state.borrow());
        (ending, written.domain.unwrap())
    }
}

fn sync(uid: &str) -> Call {
    let vmi = serde_json::from_value(serde_json::json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm", "namespace": "lab", "uid": uid},
        "spec": {
            "terminationGracePeriodSeconds": 7,
            "domain": {"memory": {"guest": "64Mi"}, "devices": {}},
        },
    }));
    let request = SyncRequest {
        vmi: vmi.unwrap(),
        disks: Vec::new(),
        nics: Vec::new(),
        boot: crate::protocol::BootFiles::default(),
        emulation: true,
    };
    Call::Sync(Box::new(request))
}

fn phase(state: &LauncherState) -> Option<DomainPhase> {
    state.domain.as_ref().map(|domain| domain.state)
}

#[tokio::test(start_paused = true)]
async fn sync_runs_the_guest_once_and_answers_everybody() {
    let world = World::new(Exit::Code(0));
    let (first, second) = tokio::join!(world.sync(), world.sync());
    assert_eq!(phase(&first.unwrap()), Some(DomainPhase::Running));
    assert_eq!(phase(&second.unwrap()), Some(DomainPhase::Running));
    assert_eq!(
        phase(&world.sync().await.unwrap()),
        Some(DomainPhase::Running)
    );
    let starts = world
        .fake
        .calls()
        .iter()
        .filter(|call| call.starts_with("start "))
        .count();
    assert_eq!(starts, 1);
    let other = world.request(sync("u2")).await.unwrap_err();
    assert!(other.contains("another virtual machine"), "{other}");
    for timing in [
        "libvirtd_start_ms",
        "connect_ms",
        "overlay_ms",
        "define_ms",
        "create_ms",
        "resume_ms",
        "sync_ms",
    ] {
        assert!(
            world.state.borrow().timings.contains_key(timing),
            "{timing}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_is_told_and_can_be_corrected() {
    let world = World::new(Exit::Code(1));
    world
        .fake
        .refuse_next_definition("XML error: no such machine");
    assert!(world.sync().await.unwrap_err().contains("no such machine"));
    world
        .fake
        .fail_next_start("process exited while connecting to monitor");
    let error = world.sync().await.unwrap_err();
    assert!(
        error.contains("connecting to monitor") && error.contains("run out of bits"),
        "{error}"
    );
    assert_eq!(world.state.borrow().failure, Some(error));
    assert_eq!(
        phase(&world.sync().await.unwrap()),
        Some(DomainPhase::Running)
    );
    assert_eq!(world.state.borrow().failure, None);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_obeys_is_shut_off() {
    let world = World::new(Exit::Code(0));
    world.sync().await.unwrap();
    world
        .request(Call::Shutdown { grace_seconds: 30 })
        .await
        .unwrap();
    let (ending, domain) = world.ended().await;
    assert_eq!(ending, Ending::Done);
    assert_eq!(
        (domain.state, domain.reason.as_str()),
        (DomainPhase::Shutoff, reason::SHUTDOWN)
    );
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_obey_loses_its_power_after_the_grace() {
    let world = World::new(Exit::Signal(15));
    world.sync().await.unwrap();
    world.fake.ignore_acpi();
    let begin = Instant::now();
    world
        .request(Call::Shutdown { grace_seconds: 12 })
        .await
        .unwrap();
    assert!(world.sync().await.unwrap_err().contains("being shut down"));
    let fake = world.fake.clone();
    let (ending, domain) = world.ended().await;
    assert_eq!(ending, Ending::Done);
    assert_eq!(begin.elapsed().as_secs(), 12);
    assert_eq!(
        (domain.state, domain.reason.as_str()),
        (DomainPhase::Shutoff, reason::GRACE_EXCEEDED)
    );
    assert!(
        domain.message.contains("did not power off within 12 s"),
        "{}",
        domain.message
    );
    let presses = fake
        .calls()
        .iter()
        .filter(|call| call.starts_with("shutdown "))
        .count();
    assert_eq!(presses, 3, "at 0, 5 and 10 s");
}

#[tokio::test(start_paused = true)]
async fn sigterm_gives_the_machines_own_grace() {
    let world = World::new(Exit::Signal(15));
    world.sync().await.unwrap();
    world.fake.ignore_acpi();
    let begin = Instant::now();
    world.terminate.send(()).await.unwrap();
    let (_, domain) = world.ended().await;
    assert_eq!(begin.elapsed().as_secs(), 7);
    assert!(domain.message.contains("within 7 s"));
}

#[tokio::test(start_paused = true)]
async fn kill_ends_a_launcher_with_and_without_a_guest() {
    let idle = World::new(Exit::Code(0));
    idle.request(Call::Kill).await.unwrap();
    assert_eq!(idle.task.await.unwrap(), Ending::Done);
    assert!(idle.dir.path().join(FINAL_STATE).exists());

    let world = World::new(Exit::Signal(15));
    world.sync().await.unwrap();
    world.request(Call::Kill).await.unwrap();
    let (_, domain) = world.ended().await;
    assert_eq!(
        (domain.state, domain.reason.as_str()),
        (DomainPhase::Shutoff, reason::DESTROYED)
    );
    assert_eq!(domain.message, "the power was cut on request");
}

#[tokio::test(start_paused = true)]
async fn a_kill_while_qemu_starts_waits_for_it() {
    let world = World::new(Exit::Signal(15));
    let (created, killed) = tokio::join!(world.sync(), world.request(Call::Kill));
    created.unwrap();
    killed.unwrap();
    let (_, domain) = world.ended().await;
    assert_eq!(domain.reason, reason::DESTROYED);
}

#[tokio::test(start_paused = true)]
async fn a_killed_qemu_is_a_crash_in_clear_words() {
    let world = World::new(Exit::Signal(9));
    world.sync().await.unwrap();
    world.fake.stop(&world.uuid(), StopReason::Failed);
    let (ending, domain) = world.ended().await;
    assert_eq!(ending, Ending::Done);
    assert_eq!(
        (domain.state, domain.reason.as_str()),
        (DomainPhase::Crashed, reason::KILLED)
    );
    assert!(
        domain
            .message
            .starts_with("QEMU was killed by signal 9 (SIGKILL)"),
        "{}",
        domain.message
    );
}

#[tokio::test(start_paused = true)]
async fn a_qemu_that_vanishes_without_an_event_is_noticed() {
    let world = World::new(Exit::Signal(11));
    world.sync().await.unwrap();
    world.gone.send_replace(true);
    let (_, domain) = world.ended().await;
    assert_eq!(
        (domain.state, domain.reason.as_str()),
        (DomainPhase::Crashed, reason::KILLED)
    );
    assert!(domain.message.contains("SIGSEGV"), "{}", domain.message);
}

#[tokio::test(start_paused = true)]
async fn pauses_show_and_a_dead_libvirt_is_replaced() {
    let world = World::new(Exit::Code(0));
    world.sync().await.unwrap();
    let uuid = world.uuid();
    world.fake.suspend(&uuid).await.unwrap();
    world
        .until("paused", |state| phase(state) == Some(DomainPhase::Paused))
        .await;
    // It dies while the guest goes on, and that is found out.
    world.fake.lose_connections();
    world.fake.resume(&uuid).await.unwrap();
    world
        .until("resumed", |state| {
            phase(state) == Some(DomainPhase::Running)
        })
        .await;
    assert_eq!(*world.starts.lock().unwrap(), 2);
    // It dies together with the guest's end.
    world.fake.lose_connections();
    world.fake.stop(&uuid, StopReason::Shutdown);
    world.gone.send_replace(true);
    let (_, domain) = world.ended().await;
    assert_eq!(domain.reason, reason::SHUTDOWN);
}

#[tokio::test(start_paused = true)]
async fn a_libvirt_that_dies_again_and_again_is_given_up() {
    let world = World::new(Exit::Signal(9));
    world.sync().await.unwrap();
    for expected in 2..=6 {
        world.die.notify_one();
        let starts = world.starts.clone();
        let waited = async {
            while *starts.lock().unwrap() < expected {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(100), waited)
            .await
            .expect("another start");
    }
    world.die.notify_one();
    let (ending, domain) = world.ended().await;
    assert!(matches!(ending, Ending::Failed(words) if words.contains("5 times")));
    assert_eq!(
        (domain.state, domain.reason.as_str()),
        (DomainPhase::Crashed, reason::FAILED)
    );
}

#[tokio::test(start_paused = true)]
async fn an_end_that_cannot_be_written_down_is_a_failure() {
    let world = World::new(Exit::Code(0));
    world.sync().await.unwrap();
    // Root writes anywhere, so the directory goes instead of its permissions.
    let path = world.dir.path().to_owned();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::remove_dir_all(&path).unwrap();
    world.request(Call::Kill).await.unwrap();
    assert!(
        matches!(world.task.await.unwrap(), Ending::Failed(words) if words.contains(FINAL_STATE))
    );
}

#[tokio::test(start_paused = true)]
async fn a_guest_may_be_started_standing_still() {
    let world = World::new(Exit::Code(0));
    let Call::Sync(mut request) = sync("u1") else {
        panic!("no sync");
    };
    request.vmi.spec.start_strategy = Some("Paused".to_owned());
    let state = world.request(Call::Sync(request)).await.unwrap();
    let domain = state.domain.unwrap();
    assert_eq!(
        (domain.state, domain.reason.as_str()),
        (DomainPhase::Paused, reason::USER)
    );
    let calls = world.fake.calls();
    assert!(
        !calls.iter().any(|call| call.starts_with("resume")),
        "{calls:?}"
    );
    let state = world.request(Call::Resume).await.unwrap();
    assert_eq!(state.domain.unwrap().state, DomainPhase::Running);
}

#[tokio::test(start_paused = true)]
async fn what_the_agent_tells_is_told_while_it_answers() {
    let world = World::new(Exit::Code(0));
    world.sync().await.unwrap();
    world.fake.answer_agent("guest-ping", "{}");
    world
        .fake
        .answer_agent("guest-get-osinfo", r#"{"id": "debian"}"#);
    world.fake.answer_agent("guest-get-users", "[]");
    let uuid = world.uuid();
    world.fake.connect_agent(&uuid, true);
    let is_debian = |state: &LauncherState| {
        let agent = state.agent.as_ref();
        agent.is_some_and(|agent| agent.os.id.as_deref() == Some("debian"))
    };
    world.until("the agent is there", is_debian).await;
    let users = world.answer(Call::Ask(Question::Users)).await.unwrap();
    assert_eq!(users.data, Some(serde_json::json!([])));
    // Another libvirt does not know that there was one, and the guest is asked.
    world.die.notify_one();
    while *world.starts.lock().unwrap() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.until("the agent stays", is_debian).await;
    world.fake.connect_agent(&uuid, false);
    world
        .until("the agent is gone", |state| state.agent.is_none())
        .await;
    let refused = world.answer(Call::Ask(Question::GuestInfo)).await;
    assert!(refused.unwrap_err().contains("not connected"));
}

#[tokio::test(start_paused = true)]
async fn frozen_file_systems_are_thawed_in_time() {
    let world = World::new(Exit::Code(0));
    world.sync().await.unwrap();
    for command in ["guest-ping", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"] {
        world.fake.answer_agent(command, "1");
    }
    world.fake.connect_agent(&world.uuid(), true);
    world
        .until("the agent is there", |state| state.agent.is_some())
        .await;
    let freeze = |seconds| {
        world.answer(Call::Ask(Question::Freeze {
            thaw_after_seconds: seconds,
        }))
    };
    assert!(freeze(60).await.unwrap().state.frozen);
    world.until("thawed by time", |state| !state.frozen).await;
    freeze(0).await.unwrap();
    let mut state = world.state.clone();
    let thawed = state.wait_for(|state| !state.frozen);
    let still = tokio::time::timeout(Duration::from_secs(3600), thawed).await;
    assert!(still.is_err(), "nobody asked for an end");
    world.answer(Call::Ask(Question::Thaw)).await.unwrap();
    assert!(!world.state.borrow().frozen);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_restarts_is_shown_to_run() {
    let world = World::new(Exit::Code(0));
    world.sync().await.unwrap();
    world.answer(Call::Ask(Question::Reboot)).await.unwrap();
    world
        .until("it runs again", |state| {
            let domain = state.domain.as_ref().unwrap();
            domain.state == DomainPhase::Running
        })
        .await;
    world.answer(Call::Ask(Question::Reset)).await.unwrap();
    let screen = world.answer(Call::Ask(Question::Screenshot)).await.unwrap();
    // The first bytes of a PNG.
    assert!(
        screen
            .data
            .unwrap()
            .as_str()
            .unwrap()
            .starts_with("iVBORw0KGgo")
    );
    let idle = World::new(Exit::Code(0));
    let early = idle.answer(Call::Ask(Question::Reset)).await;
    assert_eq!(early.unwrap_err(), "the guest does not run yet");
}
