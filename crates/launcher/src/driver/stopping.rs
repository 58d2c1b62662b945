//! How a guest is stopped: the power button, the grace period, the power cut.

use std::time::Duration;

use berth_hypervisor::{Hypervisor, RunState, StopReason};
use tokio::time::Instant;

use super::{PRESS_AGAIN, Running};
use crate::admit::Phase;
use crate::daemon::Daemon;
use crate::protocol::{DomainPhase, reason};

impl<D: Daemon> Running<D> {
    pub(super) async fn power_off(&mut self, grace: u64) {
        let deadline = Instant::now() + Duration::from_secs(grace);
        if self.deadline.is_none_or(|(before, _)| deadline < before) {
            self.deadline = Some((deadline, grace));
        }
        self.phase = Phase::ShuttingDown;
        let paused = self
            .driver
            .state
            .borrow()
            .domain
            .as_ref()
            .is_some_and(|domain| domain.state == DomainPhase::Paused);
        self.show(
            DomainPhase::ShuttingDown,
            reason::SHUTDOWN,
            &format!("the guest has {grace} s to power off"),
        );
        if paused && let (Some((hypervisor, _)), Some((_, uuid))) = (&self.connection, &self.domain)
        {
            // A paused guest cannot hear the button.
            if let Err(error) = hypervisor.resume(uuid).await {
                tracing::warn!("{error}");
            }
        }
        self.press().await;
    }

    pub(super) async fn press(&mut self) {
        self.press_again = Some(Instant::now() + PRESS_AGAIN);
        if let (Some((hypervisor, _)), Some((_, uuid))) = (&self.connection, &self.domain)
            && let Err(error) = hypervisor.shutdown(uuid).await
        {
            // The grace period decides; the guest may be ending already.
            tracing::warn!("{error}");
        }
    }

    pub(super) async fn destroy(&mut self) {
        self.phase = Phase::Destroying;
        self.deadline = None;
        self.press_again = None;
        let (Some((hypervisor, _)), Some((_, uuid))) = (&self.connection, &self.domain) else {
            return;
        };
        if let Err(error) = hypervisor.destroy(uuid).await {
            tracing::error!("{error}");
            // libvirt could not: QEMU's process is ours to end. That it is gone is noticed like any other end.
            self.kill_qemu();
        } else if let Ok(RunState::Shutoff(why)) = hypervisor.state(uuid).await {
            self.on_state(RunState::Shutoff(why)).await;
        }
    }

    /// QEMU is gone and libvirt has not said so, as happens when it has just started again itself.
    pub(super) async fn on_qemu_gone(&mut self) {
        let why = match (&self.connection, &self.domain) {
            (Some((hypervisor, _)), Some((_, uuid))) => match hypervisor.state(uuid).await {
                Ok(RunState::Shutoff(why)) => why,
                _ => StopReason::Failed,
            },
            _ => StopReason::Failed,
        };
        self.on_state(RunState::Shutoff(why)).await;
    }

    pub(super) fn kill_qemu(&self) {
        let pid = self
            .driver
            .state
            .borrow()
            .domain
            .as_ref()
            .and_then(|domain| domain.qemu_pid);
        if let Some(pid) = pid
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(rustix::process::Pid::from_raw)
            && let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::KILL)
        {
            tracing::warn!("cannot kill QEMU: {error}");
        }
    }
}
