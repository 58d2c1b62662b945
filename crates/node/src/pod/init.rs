//! `berth pod-init`: makes a pod's sandbox and becomes its first process.
//!
//! ```text
//!  node agent ── berth pod-init CONFIG       joins cgroups and network namespace, unshares, forks,
//!                 │                          tells the child's pid on standard output, exits
//!                 └ child = pid 1 of the pod  mounts, drops every privilege, executes the pod's command
//! ```
//!
//! The step in between is why a pod outlives the node agent: the command is not its child.
//!
//! The pod's root is a tmpfs with read-only binds of the machine's programs and libraries, a generated `/etc`, devices
//! of its own, and what the configuration binds. Nothing else of the machine's files exists in it. The command runs as an
//! unprivileged user without capabilities, and cannot gain any.
//!
//! Runs in a process with one thread, before anything else has started: unsharing a pid namespace and forking allow no
//! other.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags};
use serde::{Deserialize, Serialize};

use super::rootfs::Root;

/// Arguments of `berth pod-init`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The sandbox to make, as JSON.
    config: PathBuf,
}

/// One sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InitConfig {
    /// What the pod sees of the file system.
    pub(crate) root: Root,
    /// The network namespace to join; a fresh one without it.
    pub(crate) netns: Option<PathBuf>,
    /// Control groups to join.
    pub(crate) cgroups: Vec<PathBuf>,
    /// The pod's host name.
    pub(crate) hostname: String,
    /// The user.
    pub(crate) uid: u32,
    /// Its group.
    pub(crate) gid: u32,
    /// Program (a path inside) and arguments.
    pub(crate) command: Vec<String>,
    /// The whole environment.
    pub(crate) environment: Vec<String>,
    /// Where standard output and error go, appended.
    pub(crate) log: PathBuf,
}

/// What `pod-init` tells its parent, one JSON object on standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Report {
    /// The command runs; its pid as the machine counts.
    Started(u32),
    /// A step failed; nothing runs.
    Failed(String),
}

/// A step of making a sandbox that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failed(pub(crate) String);

/// Names the step that a result belongs to.
pub(super) fn step<T, E: Into<io::Error>>(
    what: impl FnOnce() -> String,
    result: Result<T, E>,
) -> Result<T, Failed> {
    result.map_err(|error| Failed(format!("{}: {}", what(), error.into())))
}

/// The same for a step with a fixed name.
fn named<T, E: Into<io::Error>>(what: &str, result: Result<T, E>) -> Result<T, Failed> {
    step(|| what.to_owned(), result)
}

/// Makes the sandbox, tells the parent.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    let Args { config } = args;
    let report = match start(&config) {
        Ok(pid) => Report::Started(pid),
        Err(failed) => Report::Failed(failed.0),
    };
    let text = serde_json::to_string(&report).expect("a report is always representable");
    let told = io::stdout().write_all(text.as_bytes());
    if told.is_ok() && matches!(report, Report::Started(_)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn start(config: &Path) -> Result<u32, Failed> {
    let text = step(|| format!("reading {}", config.display()), fs::read(config))?;
    let config: InitConfig = named(
        "reading the sandbox's configuration",
        serde_json::from_slice(&text),
    )?;
    let log = step(
        || format!("opening the log {}", config.log.display()),
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&config.log),
    )?;
    for group in &config.cgroups {
        step(
            || format!("joining {}", group.display()),
            fs::write(group.join("cgroup.procs"), "0"),
        )?;
    }
    let mut namespaces =
        UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    match &config.netns {
        Some(path) => {
            let netns = step(|| format!("opening {}", path.display()), File::open(path))?;
            let joined = rustix::thread::move_into_link_name_space(
                netns.as_fd(),
                Some(LinkNameSpaceType::Network),
            );
            named("joining the network namespace", joined)?;
        }
        None => namespaces |= UnshareFlags::NEWNET,
    }
    // SAFETY: this process has one thread; descriptors and memory stay as they are.
    named("unsharing namespaces", unsafe {
        rustix::thread::unshare_unsafe(namespaces)
    })?;

    // The pod need not know which group it is in. A kernel without this namespace is no obstacle.
    // SAFETY: as above.
    let _ = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) };

    let (read, write) = named(
        "making a pipe",
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC),
    )?;
    // SAFETY: this process has one thread, so the child may do whatever it could do here.
    match unsafe { libc::fork() } {
        -1 => named("forking", Err(io::Error::last_os_error())),
        0 => {
            drop(read);
            let Err(failed) = become_pod(&config, log);
            let _ = File::from(write).write_all(failed.0.as_bytes());
            // SAFETY: ends this process without running what belongs to its parent.
            unsafe { libc::_exit(127) }
        }
        pid => {
            drop(write);
            // Closed by the successful execution of the command.
            let mut message = String::new();
            named(
                "waiting for the pod's process",
                File::from(read).read_to_string(&mut message),
            )?;
            if message.is_empty() {
                return u32::try_from(pid)
                    .map_err(|_| Failed(format!("the kernel gave the pid {pid}")));
            }
            // SAFETY: waits for the child made above, whose status is not needed.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            Err(Failed(message))
        }
    }
}

/// How killable a pod is, between the machine's services (0 and less) and the first to go (1000).
const OOM_SCORE: &str = "100";

/// Never returns but with what went wrong.
fn become_pod(config: &InitConfig, log: File) -> Result<Infallible, Failed> {
    named("starting a session", rustix::process::setsid())?;
    // Without memory, a guest goes before the node agent.
    named(
        "setting the score for lack of memory",
        fs::write("/proc/self/oom_score_adj", OOM_SCORE),
    )?;
    named(
        "setting the host name",
        rustix::system::sethostname(config.hostname.as_bytes()),
    )?;
    super::rootfs::enter(&config.root, config.uid, config.gid)?;
    // Memory that may be locked: what older kernels charge QEMU's io_uring for.
    for (resource, wanted) in [
        (Resource::Core, 0),
        (Resource::Nofile, 16384),
        (Resource::Memlock, 64 << 20),
    ] {
        // Never above what this process has: even root may lack the right to raise it.
        let limit = rustix::process::getrlimit(resource)
            .maximum
            .map_or(wanted, |most| most.min(wanted));
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        named(
            "setting resource limits",
            rustix::process::setrlimit(resource, limit),
        )?;
    }
    standard_streams(log)?;
    drop_privileges(config)?;
    execute(config)
}

fn standard_streams(log: File) -> Result<(), Failed> {
    let null = named("opening /dev/null", File::open("/dev/null"))?;
    named("replacing standard input", rustix::stdio::dup2_stdin(&null))?;
    named(
        "replacing standard output",
        rustix::stdio::dup2_stdout(&log),
    )?;
    named("replacing standard error", rustix::stdio::dup2_stderr(&log))?;
    drop((null, log));
    // Whatever the parent forgot to mark does not reach the pod. The pipe of the report stays, and closes by itself.
    // SAFETY: marks descriptors; none is closed under anybody.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3_u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    named(
        "marking descriptors",
        if marked < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        },
    )
}

/// The last capability that any kernel could know.
const CAPABILITY_MAX: u64 = 63;

fn drop_privileges(config: &InitConfig) -> Result<(), Failed> {
    let check = |what: &str, result: i64| {
        named(
            what,
            if result < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            },
        )
    };
    for capability in 0..=CAPABILITY_MAX {
        // SAFETY: prctl with numbers only.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        // Beyond the last capability of this kernel.
        if dropped < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
            break;
        }
        check("dropping capabilities", dropped.into())?;
    }
    // SAFETY: prctl with numbers only.
    let ambient = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    };
    check("dropping ambient capabilities", ambient.into())?;
    let (uid, gid) = (config.uid, config.gid);
    // The raw calls change one thread; this process has no other.
    // SAFETY: an empty list.
    check("dropping groups", unsafe {
        libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>())
    })?;
    // SAFETY: ids by value.
    check("setting the group", unsafe {
        libc::syscall(libc::SYS_setresgid, gid, gid, gid)
    })?;
    // SAFETY: ids by value.
    check("setting the user", unsafe {
        libc::syscall(libc::SYS_setresuid, uid, uid, uid)
    })?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    named(
        "dropping capabilities",
        rustix::thread::set_capabilities(None, sets),
    )?;
    named(
        "forbidding new privileges",
        rustix::thread::set_no_new_privs(true),
    )
}

fn execute(config: &InitConfig) -> Result<Infallible, Failed> {
    let strings = |list: &[String]| -> Result<Vec<CString>, Failed> {
        list.iter()
            .map(|text| named("a zero byte in the command", CString::new(text.as_str())))
            .collect()
    };
    let (arguments, environment) = (strings(&config.command)?, strings(&config.environment)?);
    let program = arguments
        .first()
        .ok_or_else(|| Failed("the pod has no command".to_owned()))?;
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter()
            .map(|text| text.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (argv, envp) = (pointers(&arguments), pointers(&environment));
    // SAFETY: both lists are null-terminated and live until the call replaces the process or fails.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    step(
        || format!("executing {}", program.to_string_lossy()),
        Err(io::Error::last_os_error()),
    )
}
