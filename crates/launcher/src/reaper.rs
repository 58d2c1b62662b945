//! Collects the processes that end below the launcher.
//!
//! As process 1 of its pid namespace (and as subreaper elsewhere) the launcher inherits every orphan, QEMU first of all:
//! libvirtd starts QEMU detached. A zombie would keep libvirt waiting for QEMU's end, so nothing may stay unreaped. This
//! is the only place that waits for children; who needs an exit status asks here. That also tells how QEMU ended, which
//! libvirt does not know.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::process::{Child, Command};

use rustix::io::Errno;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// So many ends are remembered, for those that ask late.
const REMEMBERED: usize = 32;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with exit code {code}"),
            Self::Signal(number) => match signal_name(*number) {
                Some(name) => write!(f, "was killed by signal {number} ({name})"),
                None => write!(f, "was killed by signal {number}"),
            },
        }
    }
}

fn signal_name(number: i32) -> Option<&'static str> {
    Some(match number {
        libc::SIGKILL => "SIGKILL",
        libc::SIGTERM => "SIGTERM",
        libc::SIGINT => "SIGINT",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGILL => "SIGILL",
        libc::SIGFPE => "SIGFPE",
        libc::SIGHUP => "SIGHUP",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGSYS => "SIGSYS",
        libc::SIGXFSZ => "SIGXFSZ",
        _ => return None,
    })
}

/// The ends of processes. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Reaper {
    ends: watch::Sender<VecDeque<(u32, Exit)>>,
}

impl Reaper {
    /// Starts collecting, for the rest of the process. No other code may wait for children.
    pub(crate) fn start() -> io::Result<Self> {
        if std::process::id() != 1 {
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        }
        let mut children = signal(SignalKind::child())?;
        let reaper = Self {
            ends: watch::Sender::new(VecDeque::new()),
        };
        let ends = reaper.ends.clone();
        tokio::spawn(async move {
            loop {
                reap_all(&ends);
                if children.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Starts a process whose end [`Reaper::end_of`] will tell.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let child = command.spawn()?;
        // The number may have belonged to another process before.
        self.ends.send_if_modified(|ends| {
            ends.retain(|(pid, _)| *pid != child.id());
            false
        });
        Ok(child)
    }

    /// How a process below the launcher has ended, if it has.
    pub(crate) fn ended(&self, pid: u32) -> Option<Exit> {
        self.ends
            .borrow()
            .iter()
            .rev()
            .find(|end| end.0 == pid)
            .map(|end| end.1)
    }

    /// Waits for the end of a process below the launcher.
    pub(crate) async fn end_of(&self, pid: u32) -> Exit {
        let mut ends = self.ends.subscribe();
        loop {
            ends.mark_unchanged();
            if let Some(end) = self.ended(pid) {
                return end;
            }
            if ends.changed().await.is_err() {
                // The sender is in `self`, so it lives; and without it no end will ever be known.
                return std::future::pending().await;
            }
        }
    }
}

fn reap_all(ends: &watch::Sender<VecDeque<(u32, Exit)>>) {
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let exit = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (None, Some(number)) => Exit::Signal(number),
                    (None, None) => continue,
                };
                let pid = pid.as_raw_nonzero().get().unsigned_abs();
                tracing::debug!(pid, "a process {exit}");
                ends.send_modify(|ends| {
                    if ends.len() == REMEMBERED {
                        ends.pop_front();
                    }
                    ends.push_back((pid, exit));
                });
            }
            Ok(None) | Err(Errno::CHILD) => return,
            Err(Errno::INTR) => {}
            Err(error) => {
                tracing::warn!("cannot collect ended processes: {error}");
                return;
            }
        }
    }
}
