//! What libvirt learns about QEMU, learnt once for a node.
//!
//! A fresh libvirt daemon runs QEMU several times to learn what it can do, which takes seconds. The result is a file that
//! it trusts as long as QEMU, libvirt and the kernel are the same; so one daemon probes, and all others start with a copy.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use berth_hypervisor::host::Host;
use berth_hypervisor::kvm;
use berth_hypervisor::libvirt::Libvirt;

use crate::daemon::{Daemon as _, DaemonError, Dirs, Libvirtd};
use crate::reaper::Reaper;

/// Where a pod finds the node's files, if it was given them.
pub(crate) const DEFAULT_DIR: &str = "/var/cache/berth-qemu-capabilities";
/// `nobody`: who the daemon runs as when the node agent, being root, lets it probe.
const NOBODY: u32 = 65534;

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    #[error("cannot copy the capabilities of QEMU from {from} to {to}: {source}")]
    Copy {
        from: PathBuf,
        to: PathBuf,
        source: io::Error,
    },
    #[error("cannot make a directory for the probe: {0}")]
    Directory(io::Error),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error("libvirt cannot probe QEMU: {0}")]
    Probe(berth_hypervisor::Error),
    #[error("libvirt left no capabilities of QEMU in {0}")]
    Nothing(PathBuf),
}

/// Copies every capabilities file; returns how many. A file appears whole or not at all.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<usize, CacheError> {
    let copy = || {
        std::fs::create_dir_all(to)?;
        let mut count = 0;
        for entry in std::fs::read_dir(from)? {
            let path = entry?.path();
            let (Some(name), true) = (
                path.file_name(),
                path.extension().is_some_and(|suffix| suffix == "xml"),
            ) else {
                continue;
            };
            let mut file = tempfile::Builder::new()
                .permissions(readable())
                .tempfile_in(to)?;
            io::copy(&mut std::fs::File::open(&path)?, file.as_file_mut())?;
            file.persist(to.join(name)).map_err(|error| error.error)?;
            count += 1;
        }
        Ok(count)
    };
    copy().map_err(|source| CacheError::Copy {
        from: from.to_owned(),
        to: to.to_owned(),
        source,
    })
}

/// Nothing in it is secret, and launchers of any user read it.
fn readable() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}

/// Lets a daemon probe QEMU and puts the files into `out`. In a pod, which has no other place to write, the daemon's files
/// are in the run directory until the end.
pub(crate) async fn warm(out: &Path, run_dir: &Path) -> Result<(), CacheError> {
    let begin = Instant::now();
    let asked = async |hypervisor: &Libvirt| {
        hypervisor.domain_capabilities("qemu").await?;
        if kvm::probe().usable {
            hypervisor.domain_capabilities("kvm").await?;
        }
        Ok(())
    };
    let (dirs, _scratch) = with_daemon(run_dir, asked).await.map(|(_, kept)| kept)?;
    let files = copy(&dirs.capabilities(), out)?;
    if files == 0 {
        return Err(CacheError::Nothing(dirs.capabilities()));
    }
    tracing::info!(files, ms = crate::millis(begin.elapsed()), out = %out.display(), "QEMU's capabilities are cached");
    Ok(())
}

/// What libvirt says of this host, with KVM where it can be used.
pub(crate) async fn describe(run_dir: &Path) -> Result<Host, CacheError> {
    let kind = if kvm::probe().usable { "kvm" } else { "qemu" };
    let asked = async |hypervisor: &Libvirt| hypervisor.host(kind).await;
    with_daemon(run_dir, asked).await.map(|(host, _)| host)
}

/// Asks a daemon of its own that runs for the question only. Its files stay for as long as what is given back.
///
/// As root the daemon runs as `nobody`, since a root daemon would be the system's. It gets the group of /dev/kvm with it:
/// a probe that could not open /dev/kvm is not valid for pods that can.
async fn with_daemon<T>(
    run_dir: &Path,
    ask: impl AsyncFnOnce(&Libvirt) -> Result<T, berth_hypervisor::Error>,
) -> Result<(T, (Dirs, tempfile::TempDir)), CacheError> {
    let is_root = rustix::process::geteuid().is_root();
    let place = if is_root {
        std::env::temp_dir()
    } else {
        run_dir.to_owned()
    };
    let scratch = tempfile::Builder::new()
        .prefix("probe-")
        .tempdir_in(place)
        .map_err(CacheError::Directory)?;
    let run_as = is_root.then(|| {
        let kvm_group = std::fs::metadata("/dev/kvm")
            .ok()
            .filter(|kvm| kvm.mode() & 0o060 == 0o060 && kvm.gid() != 0);
        (NOBODY, kvm_group.map_or(NOBODY, |kvm| kvm.gid()))
    });
    let dirs = Dirs::new(scratch.path().join("virt"));
    dirs.create()?;
    if let Some((uid, gid)) = run_as {
        give(scratch.path(), uid, gid).map_err(CacheError::Directory)?;
    }
    let reaper = Reaper::start().map_err(CacheError::Directory)?;
    let mut daemon = Libvirtd::new(dirs.clone(), reaper, run_as)?;
    let answer = async {
        let started = daemon.start().await?;
        let answer = ask(&started.hypervisor).await.map_err(CacheError::Probe)?;
        started.hypervisor.close().await;
        Ok(answer)
    };
    let answer: Result<T, CacheError> = answer.await;
    daemon.stop().await;
    Ok((answer?, (dirs, scratch)))
}

/// Gives a tree of directories to a user. There are no files and no links in it yet.
fn give(dir: &Path, uid: u32, gid: u32) -> io::Result<()> {
    std::os::unix::fs::chown(dir, Some(uid), Some(gid))?;
    for entry in std::fs::read_dir(dir)? {
        give(&entry?.path(), uid, gid)?;
    }
    Ok(())
}
