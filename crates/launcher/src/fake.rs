//! A hypervisor that runs nothing, in place of libvirt: to measure everything else with more machines than the host could
//! run guests.

use std::path::PathBuf;
use std::time::Duration;

use berth_hypervisor::fake::Fake;
use tokio::net::UnixListener;

use crate::daemon::{Daemon, DaemonError, Started};
use crate::reaper::Exit;
use crate::socket;

/// The daemon that is none.
pub(crate) struct FakeDaemon {
    fake: Fake,
    serial: PathBuf,
    /// A guest's serial port, at which nobody types.
    port: Option<UnixListener>,
}

impl FakeDaemon {
    /// `serial`: where QEMU would bind the serial port.
    pub(crate) fn new(serial: PathBuf) -> Self {
        Self {
            fake: Fake::new(),
            serial,
            port: None,
        }
    }
}

impl Daemon for FakeDaemon {
    type Hypervisor = Fake;

    async fn start(&mut self) -> Result<Started<Fake>, DaemonError> {
        if self.port.is_none() {
            let listened = socket::listen(&self.serial);
            let port = listened.map_err(|source| DaemonError::Configure {
                path: self.serial.clone(),
                source,
            })?;
            self.port = Some(port);
        }
        let (hypervisor, events) = self.fake.connect();
        Ok(Started {
            hypervisor,
            events,
            start: Duration::ZERO,
            connect: Duration::ZERO,
        })
    }

    async fn ended(&self) -> String {
        std::future::pending().await
    }

    async fn stop(&mut self) {}

    fn qemu_pid(&self, _domain: &str) -> Option<u32> {
        None
    }

    async fn qemu_end(&self, _pid: u32) -> Exit {
        std::future::pending().await
    }

    fn qemu_words(&self, _domain: &str) -> Option<String> {
        None
    }
}
