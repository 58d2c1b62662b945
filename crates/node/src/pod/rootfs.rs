//! What a pod sees of the file system.
//!
//! ```text
//!  /                tmpfs, read-only      made for this pod
//!  ├ usr            the host's, read-only (and bin, sbin, lib… as the host has them)
//!  ├ etc            written for this pod; the host's ld.so.cache and alternatives
//!  ├ proc, sys      of the pod's own namespaces; what concerns the whole machine is covered
//!  ├ dev            null zero full random urandom tty net/tun (kvm), pts, shm: nothing else
//!  ├ tmp            tmpfs
//!  ├ opt/berth      the berth binary
//!  └ …              the pod's volumes where it wants them
//! ```
//!
//! The host's other directories, other pods' among them, are not there: the old root is unmounted, not hidden.
//! Everything is done in the pod's own mount namespace and ends with its last process, so there is nothing to clean up.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

use super::init::{Failed, step};

/// Where a pod finds the berth binary.
pub(crate) const BERTH: &str = "/opt/berth/berth";

/// The pod's file system, beyond what every pod has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Root {
    /// An empty directory of the host to build it on.
    pub(crate) dir: PathBuf,
    /// Files to write, by their path in the pod.
    pub(crate) files: BTreeMap<String, String>,
    /// What comes from the host.
    pub(crate) binds: Vec<Bind>,
    /// Whether the pod gets `/dev/kvm`.
    pub(crate) kvm: bool,
    /// Block devices that the pod's user may read and write.
    pub(crate) devices: Vec<Device>,
}

/// A block device of the host in the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    /// Absolute path in the pod, below /dev.
    pub(crate) target: String,
    /// Its numbers.
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// A file or directory of the host that the pod sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bind {
    /// Path here.
    pub(crate) source: PathBuf,
    /// Absolute path in the pod.
    pub(crate) target: String,
    /// Whether the pod may write.
    pub(crate) writable: bool,
}

/// The one read of a path in the pod that is not taken literally: `..` and relative paths are refused.
pub(crate) fn inside(root: &Path, target: &str) -> io::Result<PathBuf> {
    let path = Path::new(target);
    let plain = path.is_absolute()
        && path
            .components()
            .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    match path.strip_prefix("/") {
        Ok(relative) if plain && !relative.as_os_str().is_empty() => Ok(root.join(relative)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{target:?} is not an absolute path below /"),
        )),
    }
}

/// Builds the root and moves into it. The caller is alone in its mount namespace, which becomes private.
pub(super) fn enter(root: &Root, uid: u32, gid: u32) -> Result<(), Failed> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    step(
        || "making mounts private".to_owned(),
        rustix::mount::mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        ),
    )?;
    let dir = root.dir.as_path();
    tmpfs(
        dir,
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=755,size=1m,nr_inodes=2k",
    )?;
    system(dir)?;
    kernel_views(dir)?;
    devices(dir, root.kvm, uid, gid)?;
    for device in &root.devices {
        let path = step(
            || "reading a device path".to_owned(),
            inside(dir, &device.target),
        )?;
        if let Some(parent) = path.parent() {
            make_dir(parent, 0o755)?;
        }
        let numbers = (device.major, device.minor);
        node(&path, FileType::BlockDevice, numbers, 0o600, (uid, gid))?;
    }
    for (path, content) in &root.files {
        write_file(dir, path, content)?;
    }
    let mut binds: Vec<&Bind> = root.binds.iter().collect();
    // A mount point may lie in another one.
    binds.sort_by(|a, b| a.target.cmp(&b.target));
    for bind in binds {
        bind_to(
            &bind.source,
            &step(
                || "reading a mount path".to_owned(),
                inside(dir, &bind.target),
            )?,
            bind.writable,
        )?;
    }
    step(
        || "making the root read-only".to_owned(),
        rustix::mount::mount_remount(
            dir,
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=755,size=1m,nr_inodes=2k",
        ),
    )?;
    pivot(dir)
}

fn pivot(dir: &Path) -> Result<(), Failed> {
    let what = || "moving into the new root".to_owned();
    step(what, rustix::process::chdir(dir))?;
    // The old root lands on top of the new one and goes away from there.
    step(what, rustix::process::pivot_root(".", "."))?;
    step(
        || "leaving the host's root".to_owned(),
        rustix::mount::unmount(".", UnmountFlags::DETACH),
    )?;
    step(what, rustix::process::chdir("/"))
}

/// Programs and libraries of the host.
fn system(dir: &Path) -> Result<(), Failed> {
    for name in ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let host = Path::new("/").join(name);
        let here = dir.join(name);
        let Ok(kind) = fs::symlink_metadata(&host) else {
            continue;
        };
        if kind.is_symlink() {
            // Merged /usr: the same link, which leads into the pod's own /usr.
            let what = || format!("linking {}", here.display());
            let to = step(what, fs::read_link(&host))?;
            step(what, symlink(to, &here))?;
        } else if kind.is_dir() {
            bind_to(&host, &here, false)?;
        }
    }
    make_dir(&dir.join("etc"), 0o755)?;
    for path in ["etc/ld.so.cache", "etc/alternatives"] {
        let host = Path::new("/").join(path);
        if host.exists() {
            bind_to(&host, &dir.join(path), false)?;
        }
    }
    for (path, mode) in [
        ("var/run", 0o755),
        ("var/cache", 0o755),
        ("var/lib", 0o755),
        ("root", 0o700),
    ] {
        make_dir(&dir.join(path), mode)?;
    }
    for (link, to) in [("run", "var/run"), ("var/tmp", "../tmp")] {
        step(|| format!("linking /{link}"), symlink(to, dir.join(link)))?;
    }
    let tmp = dir.join("tmp");
    make_dir(&tmp, 0o755)?;
    tmpfs(
        &tmp,
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=1777,size=256m",
    )
}

/// /proc and /sys. An unprivileged pod cannot change anything there; what it could learn about the machine or its
/// other pods is covered.
fn kernel_views(dir: &Path) -> Result<(), Failed> {
    let harmless = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (name, flags) in [("proc", harmless), ("sys", harmless | MountFlags::RDONLY)] {
        let target = dir.join(name);
        make_dir(&target, 0o555)?;
        let kind = if name == "sys" { "sysfs" } else { name };
        step(
            || format!("mounting /{name}"),
            rustix::mount::mount(kind, &target, kind, flags, None),
        )?;
    }
    for name in [
        "kcore",
        "keys",
        "key-users",
        "timer_list",
        "sched_debug",
        "latency_stats",
        "sysrq-trigger",
    ] {
        let target = dir.join("proc").join(name);
        if target.exists() {
            bind_to(Path::new("/dev/null"), &target, false)?;
        }
    }
    for name in [
        "proc/acpi",
        "proc/scsi",
        "proc/asound",
        "sys/firmware",
        "sys/kernel/debug",
        "sys/fs/cgroup",
    ] {
        let target = dir.join(name);
        if target.is_dir() {
            tmpfs(
                &target,
                harmless | MountFlags::RDONLY,
                c"mode=755,size=0,nr_inodes=1",
            )?;
        }
    }
    for name in ["sys", "bus", "fs", "irq"] {
        let target = dir.join("proc").join(name);
        if target.is_dir() {
            bind_to(&target, &target, false)?;
        }
    }
    Ok(())
}

fn devices(dir: &Path, kvm: bool, uid: u32, gid: u32) -> Result<(), Failed> {
    let dev = dir.join("dev");
    make_dir(&dev, 0o755)?;
    tmpfs(
        &dev,
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=755,size=64k,nr_inodes=64",
    )?;
    for name in ["net", "pts", "shm", "mqueue"] {
        make_dir(&dev.join(name), 0o755)?;
    }
    let everybody = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ];
    for (name, major, minor) in everybody {
        node(
            &dev.join(name),
            FileType::CharacterDevice,
            (major, minor),
            0o666,
            (0, 0),
        )?;
    }
    node(
        &dev.join("net/tun"),
        FileType::CharacterDevice,
        (10, 200),
        0o600,
        (uid, gid),
    )?;
    if kvm {
        node(
            &dev.join("kvm"),
            FileType::CharacterDevice,
            (10, 232),
            0o600,
            (uid, gid),
        )?;
    }
    let harmless = MountFlags::NOSUID | MountFlags::NOEXEC;
    step(
        || "mounting /dev/pts".to_owned(),
        rustix::mount::mount(
            "devpts",
            dev.join("pts"),
            "devpts",
            harmless,
            Some(c"newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ),
    )?;
    tmpfs(
        &dev.join("shm"),
        harmless | MountFlags::NODEV,
        c"mode=1777,size=64m",
    )?;
    for (link, to) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        step(
            || format!("linking /dev/{link}"),
            symlink(to, dev.join(link)),
        )?;
    }
    Ok(())
}

fn node(
    path: &Path,
    kind: FileType,
    (major, minor): (u32, u32),
    mode: u32,
    owner: (u32, u32),
) -> Result<(), Failed> {
    let what = || format!("making the device {}", path.display());
    let device = makedev(major, minor);
    step(
        what,
        mknodat(CWD, path, kind, Mode::from_raw_mode(mode), device),
    )?;
    step(
        what,
        fs::set_permissions(path, fs::Permissions::from_mode(mode)),
    )?;
    step(what, chown(path, Some(owner.0), Some(owner.1)))
}

fn make_dir(path: &Path, mode: u32) -> Result<(), Failed> {
    let what = || format!("making the directory {}", path.display());
    step(what, fs::create_dir_all(path))?;
    step(
        what,
        fs::set_permissions(path, fs::Permissions::from_mode(mode)),
    )
}

fn write_file(dir: &Path, path: &str, content: &str) -> Result<(), Failed> {
    let what = || format!("writing {path}");
    let target = step(what, inside(dir, path))?;
    if let Some(parent) = target.parent() {
        step(what, fs::create_dir_all(parent))?;
    }
    step(what, fs::write(target, content))
}

fn tmpfs(target: &Path, flags: MountFlags, options: &std::ffi::CStr) -> Result<(), Failed> {
    step(
        || format!("mounting a tmpfs on {}", target.display()),
        rustix::mount::mount("tmpfs", target, "tmpfs", flags, Some(options)),
    )
}

/// Makes `source` appear at `target`, which is made when it is not there.
fn bind_to(source: &Path, target: &Path, writable: bool) -> Result<(), Failed> {
    let what = || format!("binding {} to {}", source.display(), target.display());
    let kind = step(what, fs::metadata(source))?;
    if fs::symlink_metadata(target).is_err() {
        if kind.is_dir() {
            step(what, fs::create_dir_all(target))?;
        } else {
            if let Some(parent) = target.parent() {
                step(what, fs::create_dir_all(parent))?;
            }
            step(what, fs::File::create(target))?;
        }
    }
    step(what, rustix::mount::mount_bind(source, target))?;
    let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    if !writable {
        flags |= MountFlags::RDONLY;
    }
    if source == Path::new("/dev/null") {
        // A cover must stay the device that it is.
        flags -= MountFlags::NODEV;
    }
    step(what, rustix::mount::mount_remount(target, flags, c""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_the_pod_stay_in_the_pod() {
        let root = Path::new("/r");
        assert_eq!(
            inside(root, "/var/run/berth").unwrap(),
            Path::new("/r/var/run/berth")
        );
        for bad in ["", "/", "relative", "/a/../../b", "/..", "./x"] {
            assert!(inside(root, bad).is_err(), "{bad:?}");
        }
    }
}
