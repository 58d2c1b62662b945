//! A hypervisor that follows a script: the twin of libvirt for tests of what drives it.
//!
//! It knows domains and their states as libvirt does and sends the same events. The script says which calls fail and
//! what the guest does by itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::{
    DomainEvent, DomainEventKind, DomainInfo, Error, Events, Hypervisor, PauseReason, RunState,
    StopReason,
};

/// The scripted hypervisor. Clones share one state, as connections to one daemon do.
#[derive(Debug, Clone, Default)]
pub struct Fake {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    domains: BTreeMap<String, FakeDomain>,
    next_id: u32,
    listeners: Vec<mpsc::UnboundedSender<DomainEvent>>,
    calls: Vec<String>,
    fail_define: Option<String>,
    fail_start: Option<String>,
    deaf_to_acpi: bool,
    /// Answers of guests' agents by the command's name.
    agent: BTreeMap<String, String>,
    /// The commands that were answered.
    asked: Vec<serde_json::Value>,
}

#[derive(Debug)]
struct FakeDomain {
    name: String,
    id: Option<u32>,
    state: RunState,
}

impl Fake {
    /// A hypervisor without domains.
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection to it: the same value and its own events.
    pub fn connect(&self) -> (Self, Events) {
        let (sender, events) = mpsc::unbounded_channel();
        self.lock().listeners.push(sender);
        (self.clone(), events)
    }

    /// The next definition is refused with this text.
    pub fn refuse_next_definition(&self, message: &str) {
        self.lock().fail_define = Some(message.to_owned());
    }

    /// The next start fails with this text.
    pub fn fail_next_start(&self, message: &str) {
        self.lock().fail_start = Some(message.to_owned());
    }

    /// From now on guests do not react to the power button.
    pub fn ignore_acpi(&self) {
        self.lock().deaf_to_acpi = true;
    }

    /// From now on guests have an agent that answers so, as the command's `return`.
    pub fn answer_agent(&self, command: &str, answer: &str) {
        let mut inner = self.lock();
        inner.agent.insert(command.to_owned(), answer.to_owned());
    }

    /// The commands that agents have answered so far.
    #[must_use]
    pub fn asked_agent(&self) -> Vec<serde_json::Value> {
        self.lock().asked.clone()
    }

    /// The agent of a guest connects or goes.
    pub fn connect_agent(&self, uuid: &str, connected: bool) {
        self.lock().emit(uuid, DomainEventKind::Agent { connected });
    }

    /// The domain stops by itself.
    pub fn stop(&self, uuid: &str, reason: StopReason) {
        self.lock().stop(uuid, reason);
    }

    /// Every connection breaks. The domains stay.
    pub fn lose_connections(&self) {
        let mut inner = self.lock();
        let kind = DomainEventKind::ConnectionLost {
            reason: "the daemon closed it".to_owned(),
        };
        inner.send(&DomainEvent {
            name: String::new(),
            kind,
        });
        inner.listeners.clear();
    }

    /// The calls so far, in order, as `verb uuid`.
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn send(&mut self, event: &DomainEvent) {
        self.listeners
            .retain(|listener| listener.send(event.clone()).is_ok());
    }

    fn emit(&mut self, uuid: &str, kind: DomainEventKind) {
        if let Some(name) = self.domains.get(uuid).map(|domain| domain.name.clone()) {
            self.send(&DomainEvent { name, kind });
        }
    }

    fn stop(&mut self, uuid: &str, reason: StopReason) {
        if let Some(domain) = self
            .domains
            .get_mut(uuid)
            .filter(|domain| domain.id.is_some())
        {
            domain.id = None;
            domain.state = RunState::Shutoff(reason);
            self.emit(uuid, DomainEventKind::Stopped { reason });
        }
    }

    fn domain(&mut self, verb: &str, uuid: &str) -> Result<&mut FakeDomain, Error> {
        self.calls.push(format!("{verb} {uuid}"));
        self.domains
            .get_mut(uuid)
            .ok_or_else(|| Error::NoDomain(uuid.to_owned()))
    }

    fn info(&self, uuid: &str) -> Result<DomainInfo, Error> {
        let domain = self
            .domains
            .get(uuid)
            .ok_or_else(|| Error::NoDomain(uuid.to_owned()))?;
        Ok(DomainInfo {
            name: domain.name.clone(),
            uuid: uuid.to_owned(),
            id: domain.id,
            machine: None,
        })
    }
}

/// The text of the first element of this name; the fake reads no more of the XML than that.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let start = xml.find(&format!("<{name}>"))? + name.len() + 2;
    let end = xml[start..].find(&format!("</{name}>"))? + start;
    Some(xml[start..end].trim())
}

impl Hypervisor for Fake {
    async fn define(&self, xml: &str) -> Result<DomainInfo, Error> {
        let mut inner = self.lock();
        if let Some(message) = inner.fail_define.take() {
            return Err(Error::Definition(message));
        }
        let missing = |what: &str| Error::Definition(format!("missing {what}"));
        let name = element(xml, "name")
            .ok_or_else(|| missing("name"))?
            .to_owned();
        let uuid = element(xml, "uuid")
            .ok_or_else(|| missing("uuid"))?
            .to_owned();
        inner.calls.push(format!("define {uuid}"));
        let state = RunState::Shutoff(StopReason::Unknown);
        inner.domains.entry(uuid.clone()).or_insert(FakeDomain {
            name,
            id: None,
            state,
        });
        inner.emit(&uuid, DomainEventKind::Defined);
        inner.info(&uuid)
    }

    async fn start(&self, uuid: &str, paused: bool) -> Result<DomainInfo, Error> {
        let mut inner = self.lock();
        if let Some(message) = inner.fail_start.take() {
            return Err(Error::Start(message));
        }
        inner.next_id += 1;
        let id = inner.next_id;
        let domain = inner.domain("start", uuid)?;
        if domain.id.is_some() {
            return Err(Error::Start("domain is already running".to_owned()));
        }
        domain.id = Some(id);
        domain.state = if paused {
            RunState::Paused(PauseReason::User)
        } else {
            RunState::Running
        };
        inner.emit(uuid, DomainEventKind::Started);
        inner.info(uuid)
    }

    async fn lookup(&self, uuid: &str) -> Result<DomainInfo, Error> {
        self.lock().info(uuid)
    }

    async fn state(&self, uuid: &str) -> Result<RunState, Error> {
        self.lock().domain("state", uuid).map(|domain| domain.state)
    }

    async fn shutdown(&self, uuid: &str) -> Result<(), Error> {
        let mut inner = self.lock();
        inner.domain("shutdown", uuid)?;
        if !inner.deaf_to_acpi {
            inner.emit(uuid, DomainEventKind::Shutdown);
            inner.stop(uuid, StopReason::Shutdown);
        }
        Ok(())
    }

    async fn destroy(&self, uuid: &str) -> Result<(), Error> {
        let mut inner = self.lock();
        inner.domain("destroy", uuid)?;
        inner.stop(uuid, StopReason::Destroyed);
        Ok(())
    }

    async fn undefine(&self, uuid: &str) -> Result<(), Error> {
        let mut inner = self.lock();
        inner.domain("undefine", uuid)?;
        inner.emit(uuid, DomainEventKind::Undefined);
        inner.domains.remove(uuid);
        Ok(())
    }

    async fn suspend(&self, uuid: &str) -> Result<(), Error> {
        let mut inner = self.lock();
        inner.domain("suspend", uuid)?.state = RunState::Paused(PauseReason::User);
        inner.emit(
            uuid,
            DomainEventKind::Suspended {
                reason: PauseReason::User,
            },
        );
        Ok(())
    }

    async fn resume(&self, uuid: &str) -> Result<(), Error> {
        let mut inner = self.lock();
        inner.domain("resume", uuid)?.state = RunState::Running;
        inner.emit(uuid, DomainEventKind::Resumed);
        Ok(())
    }

    async fn reset(&self, uuid: &str) -> Result<(), Error> {
        self.lock().domain("reset", uuid).map(drop)
    }

    async fn reboot(&self, uuid: &str) -> Result<(), Error> {
        let mut inner = self.lock();
        inner.domain("reboot", uuid)?;
        inner.emit(uuid, DomainEventKind::Shutdown);
        inner.emit(uuid, DomainEventKind::Resumed);
        Ok(())
    }

    async fn screenshot(&self, uuid: &str) -> Result<Vec<u8>, Error> {
        self.lock().domain("screenshot", uuid)?;
        // One black point.
        Ok(b"P6\n1 1\n255\n\0\0\0".to_vec())
    }

    async fn agent(&self, uuid: &str, command: &str, _patience: Duration) -> Result<String, Error> {
        let mut inner = self.lock();
        inner.domain("agent", uuid)?;
        let asked: serde_json::Value = serde_json::from_str(command).unwrap_or_default();
        let name = asked["execute"].as_str().unwrap_or_default();
        match inner.agent.get(name).cloned() {
            Some(answer) => {
                inner.asked.push(asked);
                Ok(format!("{{\"return\":{answer}}}"))
            }
            None => Err(Error::Call {
                operation: "ask the guest's agent",
                message: "QEMU guest agent is not connected".to_owned(),
            }),
        }
    }
}
