//! What is done inside the mount namespaces of a pod's containers: disks, devices.
//!
//! The names inside a container are resolved inside it, so a link in an image leads nowhere else.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use berth_image::format::DiskFormat;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// Where a container disk's file is in its image.
const IMAGE_DIR: &str = "disk";
/// Most files that a refusal names.
const NAMED: usize = 5;

/// Runs in the mount namespace of a process, on a thread of its own.
pub(super) fn within_mounts<T: Send>(
    pid: u32,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // SAFETY: this thread alone gets a root and a working directory of its own, which joining a mount
            // namespace asks for; descriptors and memory stay shared.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
            rustix::thread::move_into_link_name_space(
                namespace.as_fd(),
                Some(LinkNameSpaceType::Mount),
            )?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a panic in a pod's mount namespace")))
    })
}

/// Clones the one disk file of the holder's image as a mount, and puts it down in the launcher's container. `target` is
/// that place as this process sees it.
pub(super) fn put_down(
    holder: u32,
    compute: u32,
    file: Option<String>,
    target: &Path,
    at: &str,
    reader: (u32, u32),
) -> io::Result<()> {
    match File::options().write(true).create_new(true).open(target) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let tree = within_mounts(holder, move || clone_disk(file, reader))?;
    let at = at.to_owned();
    within_mounts(compute, move || {
        rustix::mount::move_mount(
            tree.as_fd(),
            "",
            CWD,
            at.as_str(),
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
        rustix::mount::mount_remount(
            at.as_str(),
            MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV,
            c"",
        )?;
        Ok(())
    })
}

/// In the holder's mount namespace: the disk as a mount that is nowhere yet.
fn clone_disk(named: Option<String>, reader: (u32, u32)) -> io::Result<OwnedFd> {
    let (_, file) = find_disk("/", named, reader)?;
    let tree = rustix::mount::open_tree(
        file.as_fd(),
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH,
    )?;
    Ok(tree)
}

/// The disk in the image whose files are beneath `root`: its path there, and the file. `named` is the file that is meant;
/// without it, it is the only one. `reader`: the user and the group that must be able to read it.
fn find_disk(
    root: &str,
    named: Option<String>,
    reader: (u32, u32),
) -> io::Result<(PathBuf, OwnedFd)> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    let beneath = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let opened =
        |path: &Path, flags| rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), beneath);
    let path = match named {
        Some(path) => PathBuf::from(path),
        None => only_file(&opened)?,
    };
    let file = opened(&path, OFlags::PATH)
        .map_err(|e| io::Error::other(format!("{} in the image: {e}", path.display())))?;
    let stat = rustix::fs::fstat(&file)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile {
        return Err(io::Error::other(format!(
            "{} in the image is not a regular file",
            path.display()
        )));
    }
    // The image's files are shared and stay as they are, so what is not readable cannot be made so here.
    let readable = stat.st_mode & 0o004 != 0
        || (stat.st_uid == reader.0 && stat.st_mode & 0o400 != 0)
        || (stat.st_gid == reader.1 && stat.st_mode & 0o040 != 0);
    if !readable {
        return Err(io::Error::other(format!(
            "{} in the image cannot be read by the launcher, user {} and group {}: it is of user {} and group {} with mode {:04o}; chmod a+r it in the image",
            path.display(),
            reader.0,
            reader.1,
            stat.st_uid,
            stat.st_gid,
            stat.st_mode & 0o7777
        )));
    }
    Ok((path, file))
}

/// The disk of an image that is a volume of the launcher's container, mounted at `at`: its path in the container.
pub(super) fn in_image_volume(
    compute: u32,
    at: &str,
    named: Option<String>,
    reader: (u32, u32),
) -> io::Result<String> {
    let root = at.to_owned();
    let (path, _) = within_mounts(compute, move || find_disk(&root, named, reader))?;
    let path = path.strip_prefix("/").unwrap_or(&path);
    Ok(format!("{at}/{}", path.display()))
}

/// The one file in the directory of disks.
fn only_file(
    opened: &impl Fn(&Path, OFlags) -> rustix::io::Result<OwnedFd>,
) -> io::Result<PathBuf> {
    let dir = opened(Path::new(IMAGE_DIR), OFlags::RDONLY | OFlags::DIRECTORY)
        .map_err(|e| io::Error::other(format!("the image has no directory /{IMAGE_DIR}: {e}")))?;
    let mut files = Vec::new();
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            files.push(name);
        }
    }
    files.sort();
    let [name] = files.as_slice() else {
        let count = files.len();
        files.truncate(NAMED);
        let named = if count == 0 {
            String::new()
        } else {
            format!(": {}", files.join(", "))
        };
        return Err(io::Error::other(format!(
            "the image must hold exactly one file in /{IMAGE_DIR}, and has {count}{named}"
        )));
    };
    Ok(Path::new(IMAGE_DIR).join(name))
}

/// Whether something is mounted at a path of a container.
pub(super) fn is_mount_point(pid: u32, path: &str) -> bool {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    // The place is in the fifth field; /var/run may be a link to /run.
    let run = path.strip_prefix("/var").unwrap_or(path);
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|at| at == path || at == run)
}

/// The format of a disk in a container.
pub(super) fn format_of(compute: u32, at: &str) -> io::Result<DiskFormat> {
    let path = PathBuf::from(at);
    within_mounts(compute, move || {
        berth_image::format::inspect(&path)
            .map(|info| info.format)
            .map_err(|e| io::Error::other(e.to_string()))
    })
}

/// The device that the runtime made in the container becomes the launcher's: runtimes make it as it is on the machine.
pub(super) fn give_device(compute: u32, path: &str, owner: (u32, u32)) -> io::Result<()> {
    within_mounts(compute, || {
        let device = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&device)?.st_mode);
        if !matches!(kind, FileType::BlockDevice | FileType::CharacterDevice) {
            return Err(io::Error::other("it is no device"));
        }
        std::os::unix::fs::lchown(path, Some(owner.0), Some(owner.1))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is mounted in one mount namespace and put down in another, by way of this module's own steps.
    #[test]
    fn a_disk_is_cloned_beneath_its_root_only() {
        if berth_testing::not_root("a_disk_is_cloned_beneath_its_root_only") {
            return;
        }
        let own = std::process::id();
        // In this machine's root there is no /disk, or not exactly one file in it.
        let refused = within_mounts(own, || clone_disk(None, (0, 0))).unwrap_err();
        assert!(refused.to_string().contains("/disk"), "{refused}");
        let refused = within_mounts(own, || clone_disk(Some("/etc".into()), (0, 0))).unwrap_err();
        assert!(
            refused.to_string().contains("not a regular file"),
            "{refused}"
        );
        let up = within_mounts(own, || {
            clone_disk(Some("/../../etc/hostname".into()), (0, 0))
        });
        // Nothing is above a root.
        assert!(up.is_ok() || up.is_err_and(|e| e.to_string().contains("hostname")));
        let file = within_mounts(own, || clone_disk(Some("/etc/passwd".into()), (107, 107)));
        assert!(file.is_ok(), "{file:?}");
        let secret = within_mounts(own, || clone_disk(Some("/etc/shadow".into()), (107, 107)));
        let refused = secret.unwrap_err().to_string();
        assert!(
            refused.contains("/etc/shadow") && refused.contains("user 107"),
            "{refused}"
        );
        assert!(is_mount_point(own, "/proc"));
        assert!(!is_mount_point(own, "/etc/passwd"));
    }
}
