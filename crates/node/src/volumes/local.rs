//! Volumes on this machine's own file system: `volumes/<handle>/` with the disk of a machine in it, or `block.img` behind a
//! loop device.
//!
//! Files are sparse: a volume takes the room of its content. The directory above is for root only; a pod reaches a volume
//! through what is mounted for it and nothing else.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_api::launcher::CLAIM_DISK;
use berth_api::storage::LOCAL_DRIVER;

use super::Driver;

const BLOCK_FILE: &str = "block.img";

/// The driver.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    root: PathBuf,
}

impl Local {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A handle is a name of ours; one that was changed must not lead elsewhere.
    fn dir(&self, handle: &str) -> io::Result<PathBuf> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
        if handle.is_empty() || handle.starts_with('.') || !handle.bytes().all(fine) {
            return Err(io::Error::other(format!(
                "{handle:?} names no volume of this machine"
            )));
        }
        Ok(self.root.join(handle))
    }

    /// Bytes of the file system that volumes are on.
    fn room(&self) -> io::Result<u64> {
        let of = rustix::fs::statvfs(&self.root)?;
        Ok(of.f_blocks.saturating_mul(of.f_frsize))
    }
}

impl Driver for Local {
    fn name(&self) -> &'static str {
        LOCAL_DRIVER
    }

    fn create(&self, handle: &str, bytes: u64, block: bool) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)?;
        let room = self.room()?;
        if bytes > room {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "{bytes} bytes are asked for, and {} has {room} in all",
                    self.root.display()
                ),
            ));
        }
        let dir = self.dir(handle)?;
        DirBuilder::new().recursive(true).mode(0o777).create(&dir)?;
        // Whatever the mask says: who is let in is decided by the directory above.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777))?;
        if block {
            let file = OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(false)
                .mode(0o600)
                .open(dir.join(BLOCK_FILE))?;
            file.set_len(bytes)?;
            file.sync_all()?;
        }
        File::open(&dir)?.sync_all()?;
        File::open(&self.root)?.sync_all()
    }

    fn grow(&self, handle: &str, bytes: u64, block: bool) -> io::Result<()> {
        let dir = self.dir(handle)?;
        let path = dir.join(if block { BLOCK_FILE } else { CLAIM_DISK });
        // A pod may have put a link there.
        let file = match OpenOptions::new()
            .write(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
        {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !block => return Ok(()),
            Err(e) => return Err(e),
        };
        if file.metadata()?.is_file() && file.metadata()?.len() < bytes {
            file.set_len(bytes)?;
            file.sync_all()?;
        }
        if block && let Some(device) = loop_of(&path)? {
            losetup(&["-c".as_ref(), device.as_os_str()])?;
        }
        Ok(())
    }

    fn delete(&self, handle: &str) -> io::Result<()> {
        let dir = self.dir(handle)?;
        if let Some(device) = loop_of(&dir.join(BLOCK_FILE))? {
            release_loop(&device)?;
        }
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn attach(&self, handle: &str, block: bool) -> io::Result<PathBuf> {
        let dir = self.dir(handle)?;
        if !block {
            fs::metadata(&dir)?;
            return Ok(dir);
        }
        let file = dir.join(BLOCK_FILE);
        fs::metadata(&file)?;
        if let Some(device) = loop_of(&file)? {
            return Ok(device);
        }
        // Direct: the guest has a page cache of its own. A file system that cannot do it gets the other way.
        let with = |options: &[&str]| {
            let mut args: Vec<&std::ffi::OsStr> =
                options.iter().map(std::ffi::OsStr::new).collect();
            args.push(file.as_os_str());
            losetup(&args)
        };
        let device = with(&["--find", "--show", "--direct-io=on"])
            .or_else(|_| with(&["--find", "--show"]))?;
        Ok(PathBuf::from(device.trim()))
    }
}

/// The loop device of a file.
fn loop_of(file: &Path) -> io::Result<Option<PathBuf>> {
    if !file.exists() {
        return Ok(None);
    }
    let list = losetup(&[
        "--noheadings".as_ref(),
        "--output".as_ref(),
        "NAME".as_ref(),
        "--associated".as_ref(),
        file.as_os_str(),
    ])?;
    Ok(list
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .map(PathBuf::from))
}

/// Takes a loop device away; one that somebody has open goes when that is closed.
pub(super) fn release_loop(device: &Path) -> io::Result<()> {
    match losetup(&["--detach".as_ref(), device.as_os_str()]) {
        Err(e) if e.to_string().contains("No such device") => Ok(()),
        other => other.map(drop),
    }
}

fn losetup(args: &[&std::ffi::OsStr]) -> io::Result<String> {
    let output = Command::new("losetup").args(args).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(said.trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_stay_below_the_root() {
        let local = Local::new("/v".into());
        assert_eq!(local.dir("pvc-1.a").unwrap(), Path::new("/v/pvc-1.a"));
        for bad in ["", ".", "..", "a/b", "../x", "a\0"] {
            assert!(local.dir(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn volumes_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::new(dir.path().join("volumes"));
        for _ in 0..2 {
            local.create("one", 1 << 30, false).unwrap();
        }
        let at = local.attach("one", false).unwrap();
        fs::write(at.join(CLAIM_DISK), b"disk").unwrap();
        local.grow("one", 1 << 20, false).unwrap();
        assert_eq!(fs::metadata(at.join(CLAIM_DISK)).unwrap().len(), 1 << 20);
        local.grow("one", 1 << 10, false).unwrap();
        assert_eq!(
            fs::metadata(at.join(CLAIM_DISK)).unwrap().len(),
            1 << 20,
            "never smaller"
        );
        let error = local.create("two", u64::MAX, false).unwrap_err();
        assert!(error.to_string().contains("in all"), "{error}");
        for _ in 0..2 {
            local.delete("one").unwrap();
        }
        assert!(local.attach("one", false).is_err());
    }

    #[test]
    fn a_block_volume_is_a_device() {
        if !Path::new("/dev/loop-control").exists() {
            return berth_testing::skip("a_block_volume_is_a_device", "there are no loop devices");
        }
        let dir = tempfile::tempdir().unwrap();
        let local = Local::new(dir.path().join("volumes"));
        local.create("raw", 8 << 20, true).unwrap();
        let device = local.attach("raw", true).unwrap();
        assert_eq!(
            local.attach("raw", true).unwrap(),
            device,
            "one device a volume"
        );
        let size = |device: &Path| {
            rustix::fs::seek(File::open(device).unwrap(), rustix::fs::SeekFrom::End(0)).unwrap()
        };
        assert_eq!(size(&device), 8 << 20);
        local.grow("raw", 16 << 20, true).unwrap();
        assert_eq!(size(&device), 16 << 20);
        local.delete("raw").unwrap();
        assert_eq!(
            loop_of(&dir.path().join("volumes/raw/block.img")).unwrap(),
            None
        );
    }
}
