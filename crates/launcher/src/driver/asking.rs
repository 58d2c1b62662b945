//! What is had of a guest that runs: each question in a task of its own, so that a guest that does not answer holds up nobody.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use berth_hypervisor::Hypervisor;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::{Reply, Running, answer};
use crate::agent::{self, Agent};
use crate::daemon::Daemon;
use crate::picture;
use crate::protocol::{AgentState, Answer, LauncherState, Question};

/// So many questions may wait for their answers.
const WAITING: usize = 32;

/// The questions that are under way.
pub(super) struct Asking<H> {
    tasks: JoinSet<()>,
    /// The one that froze the file systems and will thaw them.
    thaw: Option<AbortHandle>,
    agent: Option<Agent<H>>,
    watch: Option<AbortHandle>,
}

impl<H> Default for Asking<H> {
    fn default() -> Self {
        Self {
            tasks: JoinSet::new(),
            thaw: None,
            agent: None,
            watch: None,
        }
    }
}

impl<H> Asking<H> {
    /// Lets go of everything that waits for the guest.
    pub(super) fn end(&mut self) {
        self.tasks.abort_all();
        self.agent = None;
    }
}

impl<D: Daemon> Running<D> {
    /// Finds something out and answers then.
    pub(super) fn ask(&mut self, question: Question, reply: Reply) {
        let (Some((hypervisor, _)), Some((_, uuid))) = (&self.connection, &self.domain) else {
            return answer(reply, Err("libvirt is not there at the moment".to_owned()));
        };
        let asking = &mut self.asking;
        while asking.tasks.try_join_next().is_some() {}
        if asking.tasks.len() >= WAITING {
            return answer(
                reply,
                Err("the guest has not answered earlier questions".to_owned()),
            );
        }
        let agent = asking
            .agent
            .get_or_insert_with(|| Agent::new(hypervisor.clone(), uuid.clone()));
        let (agent, hypervisor, uuid) = (agent.clone(), hypervisor.clone(), uuid.clone());
        let state = self.driver.state.clone();
        let freezes = matches!(question, Question::Freeze { .. });
        if freezes || question == Question::Thaw {
            // From now on somebody else says when they are thawed.
            if let Some(earlier) = asking.thaw.take() {
                earlier.abort();
            }
        }
        let task = asking.tasks.spawn(async move {
            let found = find(&hypervisor, &uuid, &agent, &question, &state).await;
            let frozen = freezes && found.is_ok();
            let shown = state.borrow().clone();
            answer(
                reply,
                found.map(|data| Answer {
                    state: shown,
                    data: Some(data),
                }),
            );
            if let Question::Freeze {
                thaw_after_seconds: seconds @ 1..,
            } = question
                && frozen
            {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                tracing::warn!("the file systems were frozen for {seconds} s and are thawed");
                if let Err(why) = thaw(&agent, &state).await {
                    tracing::error!("they cannot be thawed: {why}");
                }
            }
        });
        if freezes {
            asking.thaw = Some(task);
        }
    }

    /// The guest's agent has come or gone, or it has to be found out whether there is one.
    pub(super) fn follow_agent(&mut self, connected: bool) {
        if let Some(earlier) = self.asking.watch.take() {
            earlier.abort();
        }
        // It is bound to the connection.
        self.asking.agent = None;
        if !connected {
            self.agent_news = mpsc::channel(1).1;
            return self.on_agent(None);
        }
        if let (Some((hypervisor, _)), Some((_, uuid))) = (&self.connection, &self.domain) {
            let agent = Agent::new(hypervisor.clone(), uuid.clone());
            self.asking.agent = Some(agent.clone());
            let (news, heard) = mpsc::channel(1);
            self.agent_news = heard;
            let credentials = self.credentials.clone();
            let watch = agent::watch(agent, credentials, news);
            self.asking.watch = Some(self.asking.tasks.spawn(watch));
        }
    }

    pub(super) fn on_agent(&mut self, seen: Option<AgentState>) {
        self.driver.state.send_if_modified(|state| {
            // Frozen or not, who cannot be asked any more does not say.
            let news = state.agent != seen || (seen.is_none() && state.frozen);
            state.frozen &= seen.is_some();
            state.agent = seen;
            news
        });
    }
}

async fn find<H: Hypervisor>(
    hypervisor: &H,
    uuid: &str,
    agent: &Agent<H>,
    question: &Question,
    state: &watch::Sender<LauncherState>,
) -> Result<Value, String> {
    let said = |error: berth_hypervisor::Error| error.to_string();
    match question {
        Question::Reset => shown(&hypervisor.reset(uuid).await.map_err(said)?),
        Question::Reboot => shown(&hypervisor.reboot(uuid).await.map_err(said)?),
        Question::Freeze { .. } => {
            agent.freeze().await?;
            state.send_modify(|state| state.frozen = true);
            Ok(Value::Null)
        }
        Question::Thaw => {
            thaw(agent, state).await?;
            Ok(Value::Null)
        }
        Question::GuestInfo => {
            let mut info = agent.info().await?;
            let frozen = state.borrow().frozen;
            info.fs_freeze_status = frozen.then(|| "frozen".to_owned());
            shown(&info)
        }
        Question::Users => shown(&agent.users().await?),
        Question::FileSystems => shown(&agent.file_systems().await?),
        Question::Ping => shown(&agent.ping().await?),
        Question::Exec {
            command,
            timeout_seconds,
        } => {
            let patience = Duration::from_secs(*timeout_seconds);
            shown(&agent.exec(command, patience).await?)
        }
        Question::Screenshot => {
            let screen = hypervisor.screenshot(uuid).await.map_err(said)?;
            let png = tokio::task::spawn_blocking(move || picture::png_of(screen));
            let png = png.await.map_err(|error| error.to_string())??;
            Ok(Value::String(BASE64.encode(png)))
        }
    }
}

async fn thaw<H: Hypervisor>(
    agent: &Agent<H>,
    state: &watch::Sender<LauncherState>,
) -> Result<(), String> {
    agent.thaw().await?;
    state.send_modify(|state| state.frozen = false);
    Ok(())
}

fn shown<T: Serialize>(value: &T) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}
