//! A process that may or may not be a child of this one: found again by its id and the time of its start.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which process. An id alone is used again after its process; with boot and start time it is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProcessId {
    /// In this pid namespace.
    pub(crate) pid: u32,
    /// Clock ticks between the boot and its start.
    pub(crate) start_time: u64,
    /// The boot it belongs to.
    pub(crate) boot: String,
}

/// How a process ended, as far as this one may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was somebody else's child.
    Unknown,
}

/// A hold on a process that lives or is not yet reaped.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    fd: OwnedFd,
}

impl ProcessId {
    /// Identifies a living process.
    ///
    /// # Errors
    /// When there is none with this id.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            start_time: start_time(pid)?,
            boot: boot_id()?,
        })
    }

    /// A hold on the process, or `None` when it has gone.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn hold(&self) -> io::Result<Option<Process>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        if boot_id()? != self.boot {
            return Ok(None);
        }
        let fd = match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // Asked after the descriptor is there: now the id cannot change hands any more.
        match start_time(self.pid) {
            Ok(time) if time == self.start_time => Ok(Some(Process { pid, fd })),
            _ => Ok(None),
        }
    }

    /// Whether it runs.
    #[cfg(test)]
    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.hold(), Ok(Some(process)) if !process.has_ended())
    }
}

impl Process {
    /// Sends a signal; a process that has ended is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.wait_blocking(std::time::Duration::ZERO)
    }

    /// Waits for the end for at most `timeout`; whether it came. For callers that may block.
    pub(crate) fn wait_blocking(&self, timeout: std::time::Duration) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let deadline = std::time::Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let left = Timespec::try_from(left).ok();
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], left.as_ref()) {
                Err(Errno::INTR) => {}
                result => return matches!(result, Ok(ready) if ready > 0),
            }
        }
    }

    /// Takes the exit status of a process that has ended, if it is this process's to take.
    pub(crate) fn reap(&self) -> Ending {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status: Option<WaitIdStatus> = rustix::process::waitid(WaitId::Pid(self.pid), options)
            .ok()
            .flatten();
        match status {
            Some(status) if status.exited() => Ending::Code(status.exit_status().unwrap_or(0)),
            Some(status) => Ending::Signal(status.terminating_signal().unwrap_or(9)),
            None => Ending::Unknown,
        }
    }

    /// A hold whose end can be awaited.
    ///
    /// # Errors
    /// When the descriptor cannot be watched.
    pub(crate) fn watch(self) -> io::Result<WatchedProcess> {
        // SAFETY: an OwnedFd gives the same open descriptor for as long as it lives, and it is not replaced inside.
        let fd = unsafe { AsyncFd::register_with_interest(self.fd, Interest::READABLE) }
            .map_err(io::Error::from)?;
        Ok(WatchedProcess { pid: self.pid, fd })
    }
}

/// A process whose end can be awaited.
#[derive(Debug)]
pub(crate) struct WatchedProcess {
    pid: Pid,
    fd: AsyncFd<OwnedFd>,
}

impl WatchedProcess {
    /// Waits for the end and takes the exit status if it is this process's to take. May be given up and called again.
    pub(crate) async fn ended(&self) -> Ending {
        if let Err(error) = self.fd.readable().await {
            tracing::error!(%error, pid = self.pid.as_raw_nonzero().get(), "cannot wait for a pod's process");
            return std::future::pending().await;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::Pid(self.pid), options) {
            Ok(Some(status)) if status.exited() => Ending::Code(status.exit_status().unwrap_or(0)),
            Ok(Some(status)) => Ending::Signal(status.terminating_signal().unwrap_or(9)),
            Ok(None) | Err(_) => Ending::Unknown,
        }
    }

    /// Sends a signal; a process that has ended is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.fd.get_ref(), signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Makes orphans of this process's children its own: a pod's first process is one, and its exit status is then known
/// here.
pub(crate) fn inherit_orphans() {
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::debug!(%error, "not a subreaper: exit codes of pods stay unknown");
    }
}

/// Which boot of the machine this is.
pub(crate) fn boot_id() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned())
}

/// Field 22 of `stat`. The name in field 2 may hold anything, so fields are counted behind its last parenthesis.
fn start_time(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat)
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time")))
}

fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 0 0";
        assert_eq!(parse_start_time(stat), Some(4711));
    }

    #[tokio::test]
    async fn a_child_is_found_again_and_its_end_is_told() {
        #[expect(clippy::zombie_processes, reason = "reaped by what is tested")]
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "read x; exit 7"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.is_alive());
        let stranger = ProcessId {
            start_time: id.start_time + 1,
            ..id.clone()
        };
        assert!(!stranger.is_alive());
        let watched = id.hold().unwrap().unwrap().watch().unwrap();
        drop(child.stdin.take());
        let ending = tokio::time::timeout(std::time::Duration::from_secs(10), watched.ended());
        assert_eq!(ending.await.unwrap(), Ending::Code(7));
        assert!(!id.is_alive());
    }
}
