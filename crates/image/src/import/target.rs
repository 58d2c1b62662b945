//! The disk that an import fills: a file that becomes visible when it is whole, or a block device.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use crate::sparse;

/// What a file is called that is not whole yet: the name it gets, and this.
const UNFINISHED: &str = ".importing";

/// What is written to. Writes may come in any order and from several threads; zeros are not written.
#[derive(Debug)]
pub(crate) struct Target {
    file: File,
    path: PathBuf,
    /// Where it is until it is whole; none for a device.
    unfinished: Option<PathBuf>,
}

impl Target {
    /// A new file that is to be at `path`, or the device that is there. What an earlier attempt left is removed.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let is_device = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_block_device());
        if is_device {
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            return Ok(Self {
                file,
                path: path.to_owned(),
                unfinished: None,
            });
        }
        let mut name = path
            .file_name()
            .ok_or(io::ErrorKind::InvalidInput)?
            .to_owned();
        name.push(UNFINISHED);
        let unfinished = path.with_file_name(name);
        match fs::remove_file(&unfinished) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o660)
            .open(&unfinished)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            unfinished: Some(unfinished),
        })
    }

    /// Bytes of the device; none for a file.
    pub(crate) fn device_size(&self) -> io::Result<Option<u64>> {
        if self.unfinished.is_some() {
            return Ok(None);
        }
        rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))
            .map(Some)
            .map_err(Into::into)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Gives it `size` bytes of zeros; `reserve` takes the room for all of them at once.
    pub(crate) fn prepare(&self, size: u64, reserve: bool) -> io::Result<()> {
        if self.unfinished.is_some() {
            self.file.set_len(size)?;
            if reserve && size > 0 {
                rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, size)?;
            }
            return Ok(());
        }
        let zero = |flags| rustix::fs::fallocate(&self.file, flags, 0, size);
        // Giving the blocks back leaves zeros where the device says so; the other one writes them if it must.
        if zero(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE).is_ok()
            || zero(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE).is_ok()
        {
            return Ok(());
        }
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < size {
            let length = usize::try_from(size - at)
                .unwrap_or(zeros.len())
                .min(zeros.len());
            self.file.write_all_at(&zeros[..length], at)?;
            at += length as u64;
        }
        Ok(())
    }

    /// Writes `bytes` at `at`, but for blocks of zeros; returns how many were written.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> io::Result<u64> {
        sparse::write(&self.file, at, bytes)
    }

    /// Waits until all is on disk, and shows the file under its name.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if let Some(unfinished) = &self.unfinished {
            fs::rename(unfinished, &self.path)?;
            self.unfinished = None;
            let parent = match self.path.parent() {
                Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
                Some(parent) => parent,
                None => Path::new("/"),
            };
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    }
}

impl Drop for Target {
    /// What is not whole is not left behind.
    fn drop(&mut self) {
        if let Some(unfinished) = &self.unfinished {
            let _ = fs::remove_file(unfinished);
        }
    }
}
