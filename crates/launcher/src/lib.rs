//! The launcher: the process of one virtual machine, inside its pod.
//!
//! It starts a private libvirt daemon, brings the machine up when the node agent says so, tells what becomes of it, and
//! ends with it. It needs no privilege: bridge and tap were made beforehand, the DHCP sockets come over the control
//! socket, and libvirt runs in session mode as the launcher's own user. It never talks to the cluster's API.
//!
//! One task, the driver, owns the domain. Requests reach it by a channel, in the order in which they come; which of them
//! is taken when is a pure decision (`admit`). What it knows goes out by a watch channel to every connection.
//!
//! ```text
//!                 sync                    QEMU runs
//!   ┌──────► Idle ──────────► Creating ───────────────► Alive ────────────────┐
//!   │          │                 │ │                     │ │ ▲                │
//!   │          │           fails │ │ stop, asked         │ └─┘ pause, resume  │ guest powers off,
//!   │          │                 │ │ meanwhile           │                    │ crashes; QEMU dies
//!   └──────────┼─────────────────┘ │            shutdown │ kill               │
//!              │                   ▼                     ▼  │                 │
//!              │ shutdown,     as if Alive         ShuttingDown │             │
//!              │ kill                                grace over │ kill        │
//!              │                                         ▼      ▼             │
//!              │                                       Destroying             │
//!              ▼                                             │                │
//!            Ended ◄─────────────────────────────────────────┴────────────────┘
//! ```
//!
//! Ended: `final-state.json` is written, every connection gets the last state, libvirt is stopped, and the process exits
//! with 0, or with 1 when the launcher itself has failed.
//!
//! # Guarantees
//! - QEMU does not depend on libvirt's health: a daemon that dies is started again and takes QEMU over.
//! - The final state is on disk before anybody is told that the domain has ended.
//! - Everything in the run directory is the launcher's own; the image under a disk is never written.
//!
//! # Layout of the run directory
//! `launcher.sock` control, `console.sock` serial console, `agent.sock` the guest's agent, `serial.log` what the guest wrote there, `disks/` overlays,
//! `virt/` libvirt's own, `final-state.json` at the end.

mod admit;
mod agent;
mod capabilities;
mod client;
mod cloud_init;
mod console;
mod create;
mod credentials;
mod daemon;
mod dhcp;
mod driver;
mod fake;
mod fat;
mod final_state;
mod overlay;
mod picture;
pub mod protocol;
mod reaper;
mod server;
mod socket;
mod texts;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use console::Console;
use create::Layout;
use daemon::{Daemon, DaemonError, Dirs, Libvirtd};
use driver::{Driver, Ending};
use protocol::{CONSOLE_SOCKET, CONTROL_SOCKET, LauncherState};
use reaper::Reaper;
use server::Server;

pub use client::{Client, ClientError};

/// How long connections may take to receive the last state.
const DRAIN: Duration = Duration::from_secs(2);

/// Arguments of `berth launcher`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Name of the virtual machine instance.
    #[arg(
        long,
        required_unless_present_any = ["warm_capabilities", "describe_host"],
        default_value = "",
        hide_default_value = true
    )]
    pub name: String,
    /// Its namespace.
    #[arg(
        long,
        required_unless_present_any = ["warm_capabilities", "describe_host"],
        default_value = "",
        hide_default_value = true
    )]
    pub namespace: String,
    /// Its UID: the launcher takes no other machine.
    #[arg(
        long,
        required_unless_present_any = ["warm_capabilities", "describe_host"],
        default_value = "",
        hide_default_value = true
    )]
    pub uid: String,
    /// Directory for sockets, overlays and libvirt's files.
    #[arg(long, default_value = "/var/run/berth")]
    pub run_dir: PathBuf,
    /// Directory with the node's copy of what libvirt knows about QEMU
    /// [default: /var/cache/berth-qemu-capabilities, if it exists].
    #[arg(long, env = "BERTH_CAPABILITIES_CACHE")]
    pub capabilities_cache: Option<PathBuf>,
    /// Only let libvirt probe QEMU, put what it learns into this directory, and end.
    #[arg(long, value_name = "DIR")]
    pub warm_capabilities: Option<PathBuf>,
    /// Only print what libvirt says of this host, as JSON, and end.
    #[arg(long)]
    pub describe_host: bool,
    /// Run no QEMU: everything else is done, and the guest is said to run.
    #[arg(long)]
    pub fake_hypervisor: bool,
}

/// Why the launcher cannot run.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the launcher must not run as root: libvirt would be the system's, not this machine's")]
    Root,
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    #[error("cannot listen on {path}: {source}")]
    Listen { path: PathBuf, source: io::Error },
    #[error("cannot print: {0}")]
    Print(io::Error),
    #[error("cannot handle signals: {0}")]
    Signals(io::Error),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error(transparent)]
    Cache(#[from] capabilities::CacheError),
    #[error("{0}")]
    Ended(String),
}

/// Runs the launcher until its machine has ended. Call it from `main`, before any thread exists; it waits for every child
/// of the process, so it must be alone in it. It ends the process.
pub fn run(args: Args) -> ! {
    berth_hypervisor::libvirt::prepare_process();
    // One thread for everything; the few calls that block go to the pool, whose threads end when idle.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_stack_size(512 << 10)
        .thread_keep_alive(Duration::from_secs(1))
        .build();
    let result = runtime.map_err(Error::Runtime).and_then(|runtime| {
        let result = runtime.block_on(async move {
            if args.describe_host {
                let host = capabilities::describe(&args.run_dir).await?;
                return print(&host).map_err(Error::Print);
            }
            match &args.warm_capabilities {
                Some(out) => capabilities::warm(out, &args.run_dir)
                    .await
                    .map_err(Error::from),
                None => launch(&args).await,
            }
        });
        // A call into a hung libvirt must not hold up the end.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => leave(0),
        Err(error) => {
            tracing::error!("{error}");
            leave(1)
        }
    }
}

/// Ends the process without the destructors of C libraries: GLib's and others' run while the threads that called libvirt
/// take their own things down, and now and then one of the two corrupts the heap.
fn leave(code: i32) -> ! {
    // SAFETY: it takes no pointer, and nothing of ours waits for an orderly exit: standard output was flushed.
    unsafe { libc::_exit(code) }
}

fn print(host: &berth_hypervisor::host::Host) -> io::Result<()> {
    use std::io::Write as _;
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, host)?;
    out.write_all(b"\n")?;
    out.flush()
}

async fn launch(args: &Args) -> Result<(), Error> {
    if rustix::process::geteuid().is_root() {
        return Err(Error::Root);
    }
    tracing::info!(
        namespace = args.namespace,
        name = args.name,
        uid = args.uid,
        "launcher starts"
    );
    let reaper = Reaper::start().map_err(Error::Signals)?;
    let layout = Layout::new(args.run_dir.clone());
    let listen = |name: &str| {
        let path = layout.file(name);
        socket::listen(&path).map_err(|source| Error::Listen { path, source })
    };
    let control = listen(CONTROL_SOCKET)?;
    let console = Console::start(listen(CONSOLE_SOCKET)?, layout.file("serial.log"));

    if args.fake_hypervisor {
        tracing::warn!("no guest runs here: the hypervisor is a fake");
        let daemon = fake::FakeDaemon::new(layout.serial());
        return serve(args, layout, control, console, daemon).await;
    }
    let dirs = Dirs::new(layout.virt());
    dirs.create()?;
    take_capabilities(args.capabilities_cache.as_deref(), &dirs);
    let daemon = Libvirtd::new(dirs, reaper, None)?;
    serve(args, layout, control, console, daemon).await
}

/// From the first request to the end of the machine.
async fn serve<D: Daemon>(
    args: &Args,
    layout: Layout,
    control: tokio::net::UnixListener,
    console: Console,
    daemon: D,
) -> Result<(), Error> {
    let terminate = terminations()?;
    let (state, watched) = watch::channel(LauncherState::default());
    let (requests, queue) = mpsc::channel(32);
    let (closing, connections) = (CancellationToken::new(), TaskTracker::new());
    let server = Server {
        requests,
        state: watched,
        closing: closing.clone(),
        connections: connections.clone(),
    };
    let serving = tokio::spawn(server.serve(control));

    let driver = Driver {
        uid: args.uid.clone(),
        layout,
        daemon,
        console,
        requests: queue,
        state,
        terminate,
    };
    let (ending, mut daemon) = driver.run().await;
    closing.cancel();
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!("a connection does not take the last state");
    }
    // Ends with `closing`; a panic in it has been reported by the runtime.
    let _ = serving.await;
    daemon.stop().await;
    match ending {
        Ending::Done => Ok(()),
        Ending::Failed(words) => Err(Error::Ended(words)),
    }
}

/// One message for each SIGTERM or SIGINT.
fn terminations() -> Result<mpsc::Receiver<()>, Error> {
    let mut term = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut int = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let got = tokio::select! { got = term.recv() => got, got = int.recv() => got };
            if got.is_none() || sender.send(()).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Copies the node's knowledge of QEMU. Without it libvirt probes by itself, which only takes longer.
fn take_capabilities(given: Option<&Path>, dirs: &Dirs) {
    let default = Path::new(capabilities::DEFAULT_DIR);
    let Some(dir) = given.or_else(|| default.is_dir().then_some(default)) else {
        return;
    };
    match capabilities::copy(dir, &dirs.capabilities()) {
        Ok(files) => tracing::debug!(files, dir = %dir.display(), "QEMU's capabilities taken over"),
        Err(error) => tracing::warn!("{error}"),
    }
}

/// Whole milliseconds.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds since 1970.
fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
