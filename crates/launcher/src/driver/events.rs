//! What becomes of the domain, as libvirt tells it, and what the launcher says of it.

use berth_hypervisor::{
    DomainEvent, DomainEventKind, Hypervisor, PauseReason, RunState, StopReason,
};

use super::ending::last_words;
use super::{EXIT_STATUS, Ending, Running};
use crate::admit::Phase;
use crate::daemon::Daemon;
use crate::final_state;
use crate::protocol::{DhcpStatus, DomainPhase, FINAL_STATE, LauncherState, reason};

impl<D: Daemon> Running<D> {
    pub(super) async fn on_event(&mut self, event: DomainEvent) {
        if let DomainEventKind::ConnectionLost { reason } = event.kind {
            return self.reconnect(&reason).await;
        }
        if self
            .domain
            .as_ref()
            .is_none_or(|(name, _)| *name != event.name)
        {
            return;
        }
        tracing::debug!("{event:?}");
        match event.kind {
            DomainEventKind::Started | DomainEventKind::Resumed => {
                self.on_state(RunState::Running).await;
            }
            // The guest is started paused and then resumed, and that is told late: what counts is how it is now.
            DomainEventKind::Suspended { reason } => {
                let now = match (&self.connection, &self.domain) {
                    (Some((hypervisor, _)), Some((_, uuid))) => hypervisor.state(uuid).await,
                    _ => return,
                };
                self.on_state(now.unwrap_or(RunState::Paused(reason))).await;
            }
            DomainEventKind::PmSuspended => self.on_state(RunState::Suspended).await,
            DomainEventKind::Shutdown => self.on_state(RunState::ShuttingDown).await,
            DomainEventKind::Crashed => self.on_state(RunState::Crashed).await,
            DomainEventKind::Stopped { reason } => self.on_state(RunState::Shutoff(reason)).await,
            DomainEventKind::Agent { connected } => self.follow_agent(connected),
            DomainEventKind::Defined
            | DomainEventKind::Undefined
            | DomainEventKind::ConnectionLost { .. }
            | DomainEventKind::Other(_) => {}
        }
    }

    /// The domain is in this state, by an event or by asking after a reconnect.
    pub(super) async fn on_state(&mut self, state: RunState) {
        let stopping = matches!(self.phase, Phase::ShuttingDown | Phase::Destroying);
        match state {
            RunState::Running if stopping => {}
            RunState::Running => {
                match self.shown() {
                    Some(DomainPhase::Paused) => {
                        self.show(DomainPhase::Running, reason::RESUMED, "");
                    }
                    // It powered off for a restart, and libvirt has switched it on again.
                    Some(DomainPhase::ShuttingDown) => {
                        self.show(DomainPhase::Running, reason::BOOTED, "");
                    }
                    _ => {}
                }
            }
            RunState::Paused(why) => {
                let (word, message) = match why {
                    PauseReason::User => (reason::USER, "paused on request"),
                    PauseReason::IoError => (
                        reason::IO_ERROR,
                        "a disk failed, or the node has no space left for what the guest writes",
                    ),
                    PauseReason::Watchdog => (reason::WATCHDOG, "the guest's watchdog fired"),
                    PauseReason::Other => (reason::PAUSED, "paused by libvirt"),
                };
                tracing::warn!("the guest is paused: {message}");
                self.show(DomainPhase::Paused, word, message);
            }
            RunState::Suspended => {
                self.show(DomainPhase::Paused, reason::PAUSED, "the guest sleeps");
            }
            RunState::ShuttingDown => {
                if !stopping {
                    self.show(
                        DomainPhase::ShuttingDown,
                        reason::SHUTDOWN,
                        "the guest powers off",
                    );
                }
            }
            // The definition says that a crashed guest is destroyed; Stopped follows.
            RunState::Crashed => tracing::warn!("the guest crashed"),
            RunState::Shutoff(why) => self.on_stopped(why).await,
            RunState::Unknown => {}
        }
    }

    pub(super) async fn on_stopped(&mut self, why: StopReason) {
        let (name, _) = self.domain.clone().unwrap_or_default();
        let pid = self
            .driver
            .state
            .borrow()
            .domain
            .as_ref()
            .and_then(|domain| domain.qemu_pid);
        let exit = match pid {
            Some(pid) => tokio::time::timeout(EXIT_STATUS, self.driver.daemon.qemu_end(pid))
                .await
                .ok(),
            None => None,
        };
        let asked = self.phase == Phase::Destroying;
        let (phase, word, message) = last_words(why, exit, asked, self.grace_exceeded, || {
            self.driver.daemon.qemu_words(&name)
        });
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
    pub(super) fn finally(&mut self, change: impl FnOnce(&mut LauncherState)) {
        let mut last = self.driver.state.borrow().clone();
        change(&mut last);
        self.recorded = Some(final_state::write(
            &self.driver.layout.file(FINAL_STATE),
            &last,
        ));
        self.driver.state.send_replace(last);
    }

    pub(super) fn on_dhcp(&mut self, status: DhcpStatus) {
        self.driver.state.send_modify(|state| {
            state.dhcp.retain(|other| other.network != status.network);
            state.dhcp.push(status);
        });
    }

    pub(super) fn shown(&self) -> Option<DomainPhase> {
        self.driver
            .state
            .borrow()
            .domain
            .as_ref()
            .map(|domain| domain.state)
    }

    pub(super) fn show(&mut self, phase: DomainPhase, word: &str, message: &str) {
        self.driver.state.send_if_modified(|state| {
            let Some(domain) = &mut state.domain else {
                return false;
            };
            let before = (domain.state, domain.reason.clone(), domain.message.clone());
            domain.state = phase;
            word.clone_into(&mut domain.reason);
            message.clone_into(&mut domain.message);
            before != (domain.state, domain.reason.clone(), domain.message.clone())
        });
    }
}
