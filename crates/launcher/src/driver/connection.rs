//! The connection to libvirt: made, lost, made again.

use berth_hypervisor::{Error, Hypervisor, RunState, StopReason};
use tokio::time::Instant;

use super::{RESTART_WINDOW, RESTARTS, Running};
use crate::admit::Phase;
use crate::daemon::{Daemon, DaemonError};

impl<D: Daemon> Running<D> {
    pub(super) async fn connect(&mut self) -> Result<(), DaemonError> {
        let started = self.driver.daemon.start().await?;
        self.driver.state.send_modify(|state| {
            state
                .timings
                .insert("libvirtd_start_ms".to_owned(), crate::millis(started.start));
            state
                .timings
                .insert("connect_ms".to_owned(), crate::millis(started.connect));
        });
        self.connection = Some((started.hypervisor, started.events));
        Ok(())
    }

    /// Starts the daemon again and finds out what happened to the domain meanwhile.
    pub(super) async fn reconnect(&mut self, why: &str) {
        tracing::warn!("{why}: libvirt is started again; the guest is not touched");
        // Calls on it fail fast now; dropping it may wait for the transport, so not here.
        if let Some((hypervisor, _)) = self.connection.take() {
            tokio::task::spawn_blocking(move || drop(hypervisor));
        }
        loop {
            let now = Instant::now();
            self.restarts
                .retain(|at| now.duration_since(*at) < RESTART_WINDOW);
            if self.restarts.len() == RESTARTS {
                return self.end_failed(format!("libvirt ended {RESTARTS} times: {why}"));
            }
            self.restarts.push_back(now);
            match self.connect().await {
                Ok(()) => break,
                Err(error) => tracing::error!("libvirt: {error}"),
            }
        }
        let (Some((hypervisor, _)), Some((_, uuid))) = (&self.connection, &self.domain) else {
            return;
        };
        match hypervisor.state(uuid).await {
            Ok(RunState::Shutoff(StopReason::Unknown)) | Err(Error::NoDomain(_)) => {
                self.on_state(RunState::Shutoff(StopReason::Failed)).await;
            }
            Ok(state) => {
                self.on_state(state).await;
                // Its events are those of the new connection, and what came before them is not told again.
                self.follow_agent(true);
                if self.ending.is_none() && self.phase == Phase::Destroying {
                    self.destroy().await;
                }
            }
            // The next loss of the connection comes back here, a bounded number of times.
            Err(error) => tracing::error!("{error}"),
        }
    }
}
