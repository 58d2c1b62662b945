//! Network namespaces with a name.
//!
//! A namespace belongs to threads, so everything here happens on threads that are thrown away afterwards: a thread of a
//! pool that came back in the wrong namespace would take its next work there.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::error::{Result, io_error};
use crate::netlink;

/// Makes a network namespace and binds it to `path`, with loopback up. One that is there stays.
///
/// # Errors
/// When the path cannot be made or the kernel refuses.
pub fn create_netns(path: &Path) -> Result<()> {
    if is_netns(path) {
        return within(path, netlink::loopback_up)?;
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io_error("making", parent))?;
    }
    File::create(path).map_err(io_error("making", path))?;
    let target = path.to_owned();
    on_thread(move || -> Result<()> {
        // SAFETY: a network namespace only; no file descriptor table or address space that other threads share.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(|errno| io_error("unsharing the network of", &target)(errno.into()))?;
        rustix::mount::mount_bind("/proc/thread-self/ns/net", &target)
            .map_err(|errno| io_error("binding a namespace to", &target)(errno.into()))?;
        netlink::loopback_up()
    })
    .inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

/// Removes a namespace that [`create_netns`] made; its links go with it. Nothing to remove is no error.
///
/// # Errors
/// When the kernel refuses.
pub fn delete_netns(path: &Path) -> Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(io_error("unmounting", path)(errno.into())),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("removing", path)(error))
        }
        _ => Ok(()),
    }
}

/// Runs `work` on a thread inside the namespace at `path`.
///
/// # Errors
/// When there is no such namespace.
pub fn within<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let namespace = File::open(path).map_err(io_error("opening the namespace", path))?;
    let path = path.to_owned();
    on_thread(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|errno| io_error("entering the namespace", &path)(errno.into()))?;
        Ok(work())
    })
}

/// Runs `work` on a thread of its own in the caller's namespace.
pub(crate) fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match std::thread::Builder::new()
        .name("netns".into())
        .spawn(work)
        .map(std::thread::JoinHandle::join)
    {
        Ok(Ok(value)) => value,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(error) => panic!("no thread can be started: {error}"),
    }
}

fn is_netns(path: &Path) -> bool {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC)
}
