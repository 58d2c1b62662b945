//! The private libvirt daemon: configured, started, watched, stopped.
//!
//! One unprivileged session daemon for one machine. All that it writes is below one directory; it listens on a unix
//! socket there and nowhere else. It ends before its time? QEMU lives on, and the next daemon finds it again by the
//! state files in that directory.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use berth_hypervisor::libvirt::Libvirt;
use berth_hypervisor::{Events, Hypervisor};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::unix::pipe;

use crate::reaper::{Exit, Reaper};
use crate::socket;

/// How long a daemon may take to listen. Measured: 30 to 70 ms on an idle machine.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long it may take to end when told to.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Most of QEMU's log that is read for its last words.
const LOG_TAIL: u64 = 8 << 10;

/// Why the daemon cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error("neither virtqemud nor libvirtd is installed")]
    NotInstalled,
    #[error("cannot write {path}: {source}")]
    Configure { path: PathBuf, source: io::Error },
    #[error("cannot run {program}: {source}")]
    Spawn { program: PathBuf, source: io::Error },
    #[error("{program} {exit} before it listened")]
    Died { program: PathBuf, exit: Exit },
    #[error("{program} does not listen on {socket} after {} s", START_DEADLINE.as_secs())]
    Silent { program: PathBuf, socket: PathBuf },
    #[error("cannot wait for {socket}: {source}")]
    Wait { socket: PathBuf, source: io::Error },
    #[error(transparent)]
    Connect(#[from] berth_hypervisor::Error),
}

/// A daemon that was started, and the connection to it.
#[derive(Debug)]
pub(crate) struct Started<H> {
    /// The connection.
    pub(crate) hypervisor: H,
    /// Its events.
    pub(crate) events: Events,
    /// From the start to the socket.
    pub(crate) start: Duration,
    /// From the socket to the answer.
    pub(crate) connect: Duration,
}

/// What the driver needs of the process behind the hypervisor. The real one is [`Libvirtd`].
pub(crate) trait Daemon: Send + 'static {
    /// The connection to it.
    type Hypervisor: Hypervisor + Clone;
    /// Starts it, after it has been stopped or has ended, and connects.
    fn start(
        &mut self,
    ) -> impl Future<Output = Result<Started<Self::Hypervisor>, DaemonError>> + Send;
    /// Waits for its end. Never returns while none was started.
    fn ended(&self) -> impl Future<Output = String> + Send;
    /// Stops it. QEMU is not touched.
    fn stop(&mut self) -> impl Future<Output = ()> + Send;
    /// The process of QEMU for the domain of this name.
    fn qemu_pid(&self, domain: &str) -> Option<u32>;
    /// How QEMU ended, once it has.
    fn qemu_end(&self, pid: u32) -> impl Future<Output = Exit> + Send;
    /// The last lines that QEMU wrote to its standard error.
    fn qemu_words(&self, domain: &str) -> Option<String>;
}

/// The directory that libvirt keeps to. The names are short: libvirt makes unix sockets deep inside.
#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    base: PathBuf,
}

impl Dirs {
    pub(crate) fn new(base: PathBuf) -> Self {
        Self { base }
    }

    fn config(&self) -> PathBuf {
        self.base.join("config")
    }

    fn runtime(&self) -> PathBuf {
        self.base.join("run")
    }

    fn cache(&self) -> PathBuf {
        self.base.join("cache")
    }

    fn data(&self) -> PathBuf {
        self.base.join("data")
    }

    /// Where libvirt keeps what it learnt about QEMU.
    pub(crate) fn capabilities(&self) -> PathBuf {
        self.cache().join("libvirt/qemu/cache/capabilities")
    }

    fn qemu_pid_file(&self, domain: &str) -> PathBuf {
        self.runtime()
            .join("libvirt/qemu/run")
            .join(format!("{domain}.pid"))
    }

    fn qemu_log(&self, domain: &str) -> PathBuf {
        self.cache()
            .join("libvirt/qemu/log")
            .join(format!("{domain}.log"))
    }

    /// Makes the directories, readable by nobody else.
    pub(crate) fn create(&self) -> Result<(), DaemonError> {
        let capabilities = self.capabilities();
        for dir in [
            self.config().join("libvirt"),
            self.runtime().join("libvirt"),
            capabilities,
            self.data(),
        ] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|source| DaemonError::Configure { path: dir, source })?;
        }
        Ok(())
    }
}

/// The flavours of libvirt's daemon, the better one first.
#[derive(Debug, Clone, Copy)]
struct Flavour {
    program: &'static str,
    socket: &'static str,
    /// The socket that it makes after it listens on the other.
    last_socket: &'static str,
    /// How the client library has to treat the socket.
    mode: &'static str,
}

const FLAVOURS: [Flavour; 2] = [
    // Only QEMU, nothing else loaded.
    Flavour {
        program: "virtqemud",
        socket: "virtqemud-sock",
        last_socket: "virtqemud-admin-sock",
        mode: "direct",
    },
    // Everything in one; the only one that Debian 12 has.
    Flavour {
        program: "libvirtd",
        socket: "libvirt-sock",
        last_socket: "libvirt-admin-sock",
        mode: "legacy",
    },
];
const PROGRAM_DIRS: [&str; 3] = ["/usr/sbin", "/usr/bin", "/usr/libexec"];

/// The real daemon.
#[derive(Debug)]
pub(crate) struct Libvirtd {
    dirs: Dirs,
    reaper: Reaper,
    program: PathBuf,
    flavour: Flavour,
    run_as: Option<(u32, u32)>,
    pid: Option<u32>,
}

impl Libvirtd {
    /// Finds the program. `run_as`: user and group to change to, for a caller with the privilege.
    pub(crate) fn new(
        dirs: Dirs,
        reaper: Reaper,
        run_as: Option<(u32, u32)>,
    ) -> Result<Self, DaemonError> {
        let candidates = FLAVOURS.iter().flat_map(|flavour| {
            PROGRAM_DIRS
                .iter()
                .map(move |dir| (*flavour, Path::new(dir).join(flavour.program)))
        });
        let (flavour, program) = candidates
            .into_iter()
            .find(|(_, program)| program.exists())
            .ok_or(DaemonError::NotInstalled)?;
        Ok(Self {
            dirs,
            reaper,
            program,
            flavour,
            run_as,
            pid: None,
        })
    }

    fn socket(&self) -> PathBuf {
        self.in_runtime(self.flavour.socket)
    }

    fn in_runtime(&self, name: &str) -> PathBuf {
        self.dirs.runtime().join("libvirt").join(name)
    }

    fn configure(&self) -> Result<PathBuf, DaemonError> {
        let dir = self.dirs.config().join("libvirt");
        let daemon = dir.join("daemon.conf");
        write(&daemon, DAEMON_CONF)?;
        write(&dir.join("qemu.conf"), QEMU_CONF)?;
        Ok(daemon)
    }

    fn command(&self, config: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(config)
            .arg("--pid-file")
            .arg(self.dirs.runtime().join("daemon.pid"))
            .current_dir("/")
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8")
            .env("HOME", self.dirs.data())
            .env("TMPDIR", self.dirs.cache())
            .env("XDG_CONFIG_HOME", self.dirs.config())
            .env("XDG_RUNTIME_DIR", self.dirs.runtime())
            .env("XDG_CACHE_HOME", self.dirs.cache())
            .env("XDG_DATA_HOME", self.dirs.data())
            // Each thread's own arena would cost more memory than the lock costs time.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0);
        if let Some((uid, gid)) = self.run_as {
            command.uid(uid).gid(gid);
        }
        command
    }

    async fn wait_for_socket(&self, pid: u32, socket: &Path) -> Result<(), DaemonError> {
        let last = self.in_runtime(self.flavour.last_socket);
        let there = async {
            // A socket exists from bind() on and takes connections from listen() on, a moment later, of which nothing
            // tells. But the daemon makes its sockets one after the other: when the last one exists, the first listens.
            socket::exists(&last).await?;
            socket::connect(socket).await.map(drop)
        };
        let program = || self.program.clone();
        tokio::select! {
            there = there => there.map_err(|source| DaemonError::Wait { socket: socket.to_owned(), source }),
            exit = self.reaper.end_of(pid) => Err(DaemonError::Died { program: program(), exit }),
            () = tokio::time::sleep(START_DEADLINE) => {
                Err(DaemonError::Silent { program: program(), socket: socket.to_owned() })
            }
        }
    }
}

impl Daemon for Libvirtd {
    type Hypervisor = Libvirt;

    async fn start(&mut self) -> Result<Started<Libvirt>, DaemonError> {
        self.stop().await;
        let begin = Instant::now();
        self.dirs.create()?;
        let config = self.configure()?;
        let socket = self.socket();
        // Those that a killed daemon left behind would be taken for the new one's.
        for path in [socket.clone(), self.in_runtime(self.flavour.last_socket)] {
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(DaemonError::Configure { path, source });
                }
                _ => {}
            }
        }
        let mut child = self
            .reaper
            .spawn(&mut self.command(&config))
            .map_err(|source| DaemonError::Spawn {
                program: self.program.clone(),
                source,
            })?;
        let pid = child.id();
        self.pid = Some(pid);
        if let Some(stderr) = child.stderr.take() {
            relay_log(OwnedFd::from(stderr));
        }
        self.wait_for_socket(pid, &socket).await?;
        let start = begin.elapsed();
        let begin = Instant::now();
        let path = socket
            .display()
            .to_string()
            .replace('%', "%25")
            .replace('&', "%26");
        let uri = format!("qemu:///session?socket={path}&mode={}", self.flavour.mode);
        let (hypervisor, events) = Libvirt::open(&uri).await?;
        tracing::info!(pid, program = self.flavour.program, "libvirt is up");
        Ok(Started {
            hypervisor,
            events,
            start,
            connect: begin.elapsed(),
        })
    }

    async fn ended(&self) -> String {
        let Some(pid) = self.pid else {
            return std::future::pending().await;
        };
        let exit = self.reaper.end_of(pid).await;
        format!("{} {exit}", self.flavour.program)
    }

    async fn stop(&mut self) {
        // A process that has ended may have left its number to another.
        let Some(pid) = self
            .pid
            .take()
            .filter(|pid| self.reaper.ended(*pid).is_none())
        else {
            return;
        };
        for (signal, deadline) in [(Signal::TERM, STOP_DEADLINE), (Signal::KILL, STOP_DEADLINE)] {
            if let Some(target) = i32::try_from(pid).ok().and_then(Pid::from_raw)
                && let Err(error) = rustix::process::kill_process(target, signal)
            {
                tracing::debug!(pid, "cannot signal the daemon: {error}");
            }
            if tokio::time::timeout(deadline, self.reaper.end_of(pid))
                .await
                .is_ok()
            {
                return;
            }
            tracing::warn!(pid, "{} does not end", self.flavour.program);
        }
    }

    fn qemu_pid(&self, domain: &str) -> Option<u32> {
        std::fs::read_to_string(self.dirs.qemu_pid_file(domain))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    async fn qemu_end(&self, pid: u32) -> Exit {
        self.reaper.end_of(pid).await
    }

    fn qemu_words(&self, domain: &str) -> Option<String> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        let mut file = std::fs::File::open(self.dirs.qemu_log(domain)).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))
            .ok()?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut bytes).ok()?;
        last_words(&String::from_utf8_lossy(&bytes))
    }
}

/// QEMU's own lines at the end of its log: those after its command line, without libvirt's remarks.
fn last_words(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().collect();
    let start = lines
        .iter()
        .rposition(|line| line.ends_with('\\'))
        .map_or(0, |at| at + 2);
    let words: Vec<&str> = lines
        .get(start..)?
        .iter()
        .map(|line| {
            line.split_once("Z qemu").map_or(*line, |(_, rest)| {
                rest.split_once(": ").map_or(rest, |r| r.1)
            })
        })
        .filter(|line| {
            !line.is_empty()
                && !line.contains("shutting down, reason=")
                && !line.contains("char device redirected")
        })
        .collect();
    let words = words[words.len().saturating_sub(5)..].join("; ");
    (!words.is_empty()).then_some(words)
}

/// Puts the daemon's own log into ours.
fn relay_log(stderr: OwnedFd) {
    let reader = match pipe::Receiver::from_owned_fd(stderr) {
        Ok(reader) => reader,
        Err(error) => return tracing::warn!("the log of libvirt is lost: {error}"),
    };
    tokio::spawn(async move {
        let mut lines = BufReader::with_capacity(1024, reader).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            // `2026-11-24 03:45:20.123+0000: 77: error : function:123 : text`. Most of its errors are about what a pod
            // does not have on purpose (D-Bus, udev); those that matter are also the answers to our calls.
            tracing::debug!(target: "libvirt", "{}", line.splitn(4, ": ").nth(3).unwrap_or(&line));
        }
    });
}

/// Readable for a daemon that runs as another user; nothing in it is secret.
fn write(path: &Path, text: &str) -> Result<(), DaemonError> {
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(path)?;
        io::Write::write_all(&mut file, text.as_bytes())
    };
    write().map_err(|source| DaemonError::Configure {
        path: path.to_owned(),
        source,
    })
}

/// The daemon has one client. Threads cost memory, so there are few.
const DAEMON_CONF: &str = r#"# Written by the launcher at each start.
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
unix_sock_admin_perms = "0700"
min_workers = 1
max_workers = 4
prio_workers = 1
max_clients = 8
max_anonymous_clients = 4
admin_min_workers = 1
admin_max_workers = 1
log_level = 3
log_outputs = "3:stderr"
audit_level = 0
"#;

/// No privilege, no systemd, no helpers: what confines QEMU is the pod.
const QEMU_CONF: &str = r#"# Written by the launcher at each start.
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
remember_owner = 0
stdio_handler = "file"
max_core = 0
dump_guest_core = 0
vnc_auto_unix_socket = 0
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_qemus() {
        let log = "2026-11-24 03:00:00.000+0000: starting up libvirt version: 9.0.0\nLC_ALL=C \\\n\
                   /usr/bin/qemu-system-x86_64 \\\n-name guest=a \\\n-msg timestamp=on\n\
                   char device redirected to /dev/pts/0 (label charserial0)\n\
                   2026-11-24T03:00:01.5Z qemu-system-x86_64: -drive file=x: Could not open 'x': No such file\n\
                   2026-11-24 03:00:02.000+0000: shutting down, reason=failed\n";
        assert_eq!(
            last_words(log).as_deref(),
            Some("-drive file=x: Could not open 'x': No such file")
        );
        assert_eq!(last_words("a \\\n-msg timestamp=on\n"), None);
        assert_eq!(last_words(""), None);
    }
}
