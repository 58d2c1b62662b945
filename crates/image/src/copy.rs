//! Disks of this machine copied: by sharing their blocks where the file system can, else inside the kernel and without their
//! holes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use thiserror::Error;

use crate::import::Target;
use crate::sparse;
use crate::{Progress, Transferred};

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyMethod {
    /// The blocks are shared until one side writes them (FICLONE).
    Reflink,
    /// The content was copied, the holes were not.
    Sparse,
}

/// Why a disk was not copied. One line; names the file.
#[derive(Debug, Error)]
pub enum CopyError {
    /// The disk that is there.
    #[error("cannot read {}: {cause}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The disk that is to be made.
    #[error("cannot write {}: {cause}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// No room.
    #[error("{} has {size} bytes, {} has room for {available}", from.display(), to.display())]
    TooLarge {
        /// The disk that is there.
        from: PathBuf,
        /// Its size.
        size: u64,
        /// The disk that is to be made.
        to: PathBuf,
        /// Its size.
        available: u64,
    },
    /// Somebody stopped it.
    #[error("the copy was stopped")]
    Stopped,
}

/// Bytes of one call into the kernel: seldom enough to cost nothing, often enough to be stopped and to tell how far it is.
const PIECE: u64 = 16 << 20;

/// Copies the disk `from`, a file or a block device, to a new file `to` or the block device that is there; it becomes at
/// least `size` bytes large. Whole or not at all. Blocking.
///
/// # Errors
/// [`CopyError`]; then a file `to` is not there.
pub fn copy_disk(
    from: &Path,
    to: &Path,
    size: Option<u64>,
    progress: &dyn Progress,
    stop: &AtomicBool,
) -> Result<CopyMethod, CopyError> {
    let read = |cause: io::Error| CopyError::Read {
        path: from.to_owned(),
        cause,
    };
    let write = |cause: io::Error| CopyError::Write {
        path: to.to_owned(),
        cause,
    };
    let source = OpenOptions::new()
        .read(true)
        .custom_flags(libc_nofollow())
        .open(from)
        .map_err(read)?;
    let kind = source.metadata().map_err(read)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(read(io::Error::other(
            "it is neither a file nor a block device",
        )));
    }
    let length = seek(&source, SeekFrom::End(0)).map_err(|e| read(e.into()))?;
    let target = Target::open(to).map_err(write)?;
    let device = target.device_size().map_err(write)?;
    if let Some(available) = device
        && available < length
    {
        return Err(CopyError::TooLarge {
            from: from.to_owned(),
            size: length,
            to: to.to_owned(),
            available,
        });
    }
    if device.is_none() && rustix::fs::ioctl_ficlone(target.file(), &source).is_ok() {
        grow(target.file(), length, size).map_err(write)?;
        target.finish().map_err(write)?;
        progress.update(Transferred {
            done: length,
            total: length,
        });
        return Ok(CopyMethod::Reflink);
    }
    target
        .prepare(device.unwrap_or(size.unwrap_or(0).max(length)), false)
        .map_err(write)?;
    let mut at = 0;
    while at < length {
        let Some(data) = data_at(&source, at, length).map_err(read)? else {
            break;
        };
        at = data.start;
        while at < data.end {
            if stop.load(Ordering::Relaxed) {
                return Err(CopyError::Stopped);
            }
            let piece = (data.end - at).min(PIECE);
            let copied = piece_over(&source, target.file(), at, piece).map_err(write)?;
            if copied == 0 {
                return Err(read(io::ErrorKind::UnexpectedEof.into()));
            }
            at += copied;
            progress.update(Transferred {
                done: at,
                total: length,
            });
        }
    }
    target.finish().map_err(write)?;
    progress.update(Transferred {
        done: length,
        total: length,
    });
    Ok(CopyMethod::Sparse)
}

fn libc_nofollow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

fn grow(file: &File, length: u64, size: Option<u64>) -> io::Result<()> {
    match size {
        Some(size) if size > length => file.set_len(size),
        _ => Ok(()),
    }
}

/// The next part that has content, from `at` on.
pub(crate) fn data_at(
    file: &File,
    at: u64,
    length: u64,
) -> io::Result<Option<std::ops::Range<u64>>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(start) if start >= length => Ok(None),
        Ok(start) => {
            let end = seek(file, SeekFrom::Hole(start)).map_or(length, |end| end.min(length));
            Ok(Some(start..end))
        }
        Err(Errno::NXIO) => Ok(None),
        // Devices know nothing of holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(at..length)),
        Err(error) => Err(error.into()),
    }
}

/// Copies up to `length` bytes at the same place of both.
fn piece_over(from: &File, to: &File, at: u64, length: u64) -> io::Result<u64> {
    let (mut here, mut there) = (at, at);
    let wanted = usize::try_from(length).expect("a piece");
    match rustix::fs::copy_file_range(from, Some(&mut here), to, Some(&mut there), wanted) {
        Ok(n) if n > 0 => return Ok(n as u64),
        // Devices, and file systems that do not know each other.
        Ok(_) | Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    use std::os::unix::fs::FileExt as _;
    let mut buffer = vec![0; wanted.min(1 << 20)];
    let n = from.read_at(&mut buffer, at)?;
    sparse::write(to, at, &buffer[..n])?;
    Ok(n as u64)
}

/// Whether files on the file system of `dir` can share blocks.
pub fn shares_blocks(dir: &Path) -> bool {
    let probe = || -> io::Result<bool> {
        let one = tempfile::NamedTempFile::new_in(dir)?;
        let other = tempfile::NamedTempFile::new_in(dir)?;
        fs::write(one.path(), [1; 4096])?;
        Ok(rustix::fs::ioctl_ficlone(other.as_file(), File::open(one.path())?).is_ok())
    };
    probe().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;
    use crate::NoProgress;

    #[test]
    fn holes_stay_holes_and_content_stays_content() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(&[7; 100_000], 500 << 20).unwrap();
        file.write_all_at(b"end", (1 << 30) - 3).unwrap();
        drop(file);
        let stop = AtomicBool::new(false);
        copy_disk(&from, &to, Some((1 << 30) + 4096), &NoProgress, &stop).unwrap();
        let copy = File::open(&to).unwrap();
        let meta = copy.metadata().unwrap();
        assert_eq!(meta.len(), (1 << 30) + 4096);
        assert!(meta.blocks() * 512 < 1 << 20);
        for (at, expected) in [
            (0, &b"begin"[..]),
            (500 << 20, &[7; 100_000]),
            ((1 << 30) - 3, b"end"),
        ] {
            let mut found = vec![0; expected.len()];
            copy.read_exact_at(&mut found, at).unwrap();
            assert_eq!(found, expected);
        }
        stop.store(true, Ordering::Relaxed);
        fs::remove_file(&to).unwrap();
        // Where blocks are shared there is nothing to stop.
        if !shares_blocks(dir.path()) {
            let error = copy_disk(&from, &to, None, &NoProgress, &stop).unwrap_err();
            assert!(matches!(error, CopyError::Stopped));
            assert!(!to.exists());
        }
        std::os::unix::fs::symlink(&from, dir.path().join("link")).unwrap();
        let error = copy_disk(&dir.path().join("link"), &to, None, &NoProgress, &stop).unwrap_err();
        assert!(error.to_string().contains("link"), "{error}");
    }
}
