//! Readiness and liveness: what is asked of a guest that runs, by the network or by its agent.
//!
//! The same here and on a cluster: a kubelet's own probes would have to run a program in the launcher's container for each
//! question to the agent, and would kill a launcher whose guest was paused by request. A guest that stands still is not asked.

use std::net::SocketAddr;
use std::time::Duration;

use berth_api::kubevirt::v1::{Probe, VirtualMachineInstanceSpec};
use berth_launcher::protocol::{Client, DomainPhase, LauncherState, Question};
use k8s_openapi::api::core::v1::HTTPGetAction;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

/// What a verdict is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Readiness,
    Liveness,
}

impl Kind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// A change of what a probe thinks of its guest; the error says what it saw last.
pub(super) type Verdict = (Kind, Result<(), String>);

/// The probes of one guest. They end when this is dropped.
pub(super) struct Probes {
    #[expect(dead_code, reason = "held, never read")]
    tasks: JoinSet<()>,
    verdicts: mpsc::Receiver<Verdict>,
}

impl Probes {
    /// Begins to ask. `address` is the guest's on the pod network.
    pub(super) fn start(
        spec: &VirtualMachineInstanceSpec,
        launcher: &Client,
        address: Option<&str>,
        ready: bool,
    ) -> Self {
        let (tell, verdicts) = mpsc::channel(4);
        let mut tasks = JoinSet::new();
        for (kind, probe, well) in [
            (Kind::Readiness, &spec.readiness_probe, ready),
            (Kind::Liveness, &spec.liveness_probe, true),
        ] {
            if let Some(probe) = probe {
                let asker = Asker {
                    probe: probe.clone(),
                    launcher: launcher.clone(),
                    address: address.map(str::to_owned),
                    web: probe.http_get.as_ref().map(|_| web()),
                };
                tasks.spawn(follow(kind, asker, well, launcher.state(), tell.clone()));
            }
        }
        Self { tasks, verdicts }
    }

    /// The next change.
    pub(super) async fn next(&mut self) -> Verdict {
        match self.verdicts.recv().await {
            Some(verdict) => verdict,
            // There are none.
            None => std::future::pending().await,
        }
    }
}

/// A count from the spec; 0 stands for nothing given.
fn or(given: Option<i32>, default: u32) -> u32 {
    given
        .and_then(|given| u32::try_from(given).ok())
        .filter(|given| *given > 0)
        .unwrap_or(default)
}

async fn follow(
    kind: Kind,
    asker: Asker,
    mut well: bool,
    states: watch::Receiver<LauncherState>,
    tell: mpsc::Sender<Verdict>,
) {
    let probe = &asker.probe;
    let delay = Duration::from_secs(or(probe.initial_delay_seconds, 0).into());
    let period = Duration::from_secs(or(probe.period_seconds, 10).into());
    let patience = Duration::from_secs(or(probe.timeout_seconds, 1).into());
    let (good, bad) = (
        or(probe.success_threshold, 1),
        or(probe.failure_threshold, 3),
    );
    let mut due = interval_at(Instant::now() + delay, period);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut in_a_row = 0;
    loop {
        due.tick().await;
        if !can_answer(&states.borrow()) {
            in_a_row = 0;
            continue;
        }
        let late = || Err(format!("no answer within {} s", patience.as_secs()));
        let answer = timeout(patience, asker.ask(patience)).await;
        let answer = answer.unwrap_or_else(|_| late());
        // Who was paused meanwhile could not answer.
        if answer.is_ok() == well || !can_answer(&states.borrow()) {
            in_a_row = 0;
            continue;
        }
        in_a_row += 1;
        if in_a_row < if answer.is_ok() { good } else { bad } {
            continue;
        }
        in_a_row = 0;
        well = answer.is_ok();
        if tell.send((kind, answer)).await.is_err() {
            return;
        }
    }
}

/// Whether the guest runs and may write.
fn can_answer(state: &LauncherState) -> bool {
    let domain = state.domain.as_ref();
    !state.frozen && domain.is_some_and(|domain| domain.state == DomainPhase::Running)
}

/// One question.
struct Asker {
    probe: Probe,
    launcher: Client,
    address: Option<String>,
    /// For questions by HTTP.
    web: Option<Result<reqwest::Client, String>>,
}

impl Asker {
    async fn ask(&self, patience: Duration) -> Result<(), String> {
        let probe = &self.probe;
        if let Some(exec) = &probe.exec {
            let question = Question::Exec {
                command: exec.command.clone().unwrap_or_default(),
                timeout_seconds: patience.as_secs(),
            };
            let answer = self.launcher.ask(question).await;
            return exit_status(&answer.map_err(|error| crate::chain(&error))?);
        }
        if probe.guest_agent_ping.is_some() {
            let answer = self.launcher.ask(Question::Ping).await;
            return answer.map(drop).map_err(|error| crate::chain(&error));
        }
        let address = self.address.as_deref().ok_or("the guest has no address")?;
        if let (Some(http), Some(web)) = (&probe.http_get, &self.web) {
            return get(web.as_ref().map_err(Clone::clone)?, address, http, patience).await;
        }
        if let Some(tcp) = &probe.tcp_socket {
            let at = socket(address, &tcp.port)?;
            let connected = TcpStream::connect(at).await;
            return connected
                .map(drop)
                .map_err(|error| format!("{at}: {error}"));
        }
        Ok(())
    }
}

/// `[status, what was printed]`.
fn exit_status(answer: &Value) -> Result<(), String> {
    match (answer[0].as_i64(), answer[1].as_str()) {
        (Some(0), _) => Ok(()),
        (status, said) => {
            let status = status.map_or_else(|| "none".to_owned(), |status| status.to_string());
            let said = said.unwrap_or_default().trim();
            let said: String = said.chars().take(256).collect();
            Err(format!("exit status {status}: {said}"))
        }
    }
}

fn socket(address: &str, port: &IntOrString) -> Result<SocketAddr, String> {
    let ip = address
        .parse()
        .map_err(|_| format!("{address:?} is no address"))?;
    match port {
        IntOrString::Int(port) => match u16::try_from(*port) {
            Ok(port) => Ok(SocketAddr::new(ip, port)),
            Err(_) => Err(format!("{port} is no port")),
        },
        IntOrString::String(port) => Err(format!("{port:?} is no port")),
    }
}

/// Guests' certificates are nobody's concern here, as they are not a kubelet's: whether somebody answers is asked, each time
/// anew.
fn web() -> Result<reqwest::Client, String> {
    let client = reqwest::Client::builder()
        .danger_accept_invalid_certs(true)
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .no_proxy()
        .build();
    client.map_err(|error| crate::chain(&error))
}

async fn get(
    client: &reqwest::Client,
    address: &str,
    http: &HTTPGetAction,
    patience: Duration,
) -> Result<(), String> {
    let at = socket(address, &http.port)?;
    let scheme = http.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let path = http
        .path
        .as_deref()
        .unwrap_or_default()
        .trim_start_matches('/');
    let url = format!("{scheme}://{at}/{path}");
    let said = |error: reqwest::Error| format!("{url}: {}", crate::chain(&error.without_url()));
    let mut request = client.get(&url).timeout(patience);
    for header in http.http_headers.iter().flatten() {
        request = request.header(&header.name, &header.value);
    }
    let status = request.send().await.map_err(said)?.status();
    if (200..400).contains(&status.as_u16()) {
        Ok(())
    } else {
        Err(format!("{url}: status {status}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_program_is_judged_by_its_status() {
        assert_eq!(exit_status(&json!([0, "fine"])), Ok(()));
        assert_eq!(
            exit_status(&json!([1, "no disk\n"])),
            Err("exit status 1: no disk".into())
        );
        assert_eq!(exit_status(&json!(null)), Err("exit status none: ".into()));
    }

    #[test]
    fn nothing_given_and_nought_are_the_default() {
        assert_eq!(
            [or(None, 3), or(Some(0), 3), or(Some(-1), 3), or(Some(7), 3)],
            [3, 3, 3, 7]
        );
    }

    /// A server that answers every request with this.
    async fn server(answer: &'static str) -> i32 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = [0; 1024];
                let length = stream.read(&mut asked).await.unwrap();
                let asked = String::from_utf8_lossy(&asked[..length]).into_owned();
                let answer = if asked.contains("x-key: open") {
                    "HTTP/1.1 204 No Content\r\n\r\n"
                } else {
                    answer
                };
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        port.into()
    }

    #[tokio::test]
    async fn http_is_judged_by_its_status() {
        let (patience, web) = (Duration::from_secs(5), web().unwrap());
        let port = server("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
        let mut http = HTTPGetAction {
            path: Some("/healthz".into()),
            port: IntOrString::Int(port),
            ..HTTPGetAction::default()
        };
        let busy = get(&web, "127.0.0.1", &http, patience).await.unwrap_err();
        assert!(busy.contains("/healthz: status 503"), "{busy}");
        let header = json!([{"name": "X-Key", "value": "open"}]);
        http.http_headers = serde_json::from_value(header).unwrap();
        get(&web, "127.0.0.1", &http, patience).await.unwrap();
        let moved = server(
            "HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
        http = HTTPGetAction {
            port: IntOrString::Int(moved),
            ..HTTPGetAction::default()
        };
        get(&web, "127.0.0.1", &http, patience).await.unwrap();
        http.port = IntOrString::Int(1);
        assert!(get(&web, "127.0.0.1", &http, patience).await.is_err());
    }
}
