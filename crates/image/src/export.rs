//! A disk of this machine packed into a file.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::copy::data_at;
use crate::format::Compression;
use crate::{CopyError, Progress, Transferred};

const PIECE: usize = 1 << 20;
const XZ_PRESET: u32 = 3;

/// Writes the raw disk `from` to the new file `to`, packed; whole or not at all. Blocking.
///
/// # Errors
/// [`CopyError`]; then the file `to` is not there.
pub fn export_packed(
    from: &Path,
    to: &Path,
    compression: Compression,
    progress: &dyn Progress,
    stop: &AtomicBool,
) -> Result<(), CopyError> {
    let read = |cause: io::Error| CopyError::Read {
        path: from.to_owned(),
        cause,
    };
    let write = |cause: io::Error| CopyError::Write {
        path: to.to_owned(),
        cause,
    };
    let mut source = File::open(from).map_err(read)?;
    let end = rustix::fs::seek(&source, rustix::fs::SeekFrom::End(0));
    let length = end.map_err(|e| read(e.into()))?;
    let directory = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let packed = tempfile::Builder::new()
        .prefix(".export-")
        .tempfile_in(directory)
        .map_err(write)?;
    {
        let mut out = packer(packed.as_file(), compression).map_err(write)?;
        let mut buffer = vec![0; PIECE];
        let zeros = vec![0; PIECE];
        let (mut at, mut data) = (0, 0..0);
        while at < length {
            if stop.load(Ordering::Relaxed) {
                return Err(CopyError::Stopped);
            }
            if at >= data.end {
                let next = data_at(&source, at, length).map_err(read)?;
                data = next.unwrap_or(length..length);
            }
            // A hole is not read.
            let is_hole = at < data.start;
            let until = if is_hole { data.start } else { data.end };
            let wanted = usize::try_from(until - at).unwrap_or(PIECE).min(PIECE);
            if is_hole {
                out.write_all(&zeros[..wanted]).map_err(write)?;
            } else {
                rustix::fs::seek(&source, rustix::fs::SeekFrom::Start(at))
                    .map_err(|e| read(e.into()))?;
                source.read_exact(&mut buffer[..wanted]).map_err(read)?;
                out.write_all(&buffer[..wanted]).map_err(write)?;
            }
            at += wanted as u64;
            progress.update(Transferred {
                done: at,
                total: length,
            });
        }
        out.finish().map_err(write)?;
    }
    packed.as_file().sync_all().map_err(write)?;
    packed.persist_noclobber(to).map_err(|e| write(e.error))?;
    Ok(())
}

/// What packs a stream, and has an end to write.
trait Packer: Write {
    fn finish(self: Box<Self>) -> io::Result<()>;
}

impl<W: Write> Packer for flate2::write::GzEncoder<W> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        (*self).finish()?.flush()
    }
}

impl<W: Write> Packer for zstd::stream::write::Encoder<'_, W> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        (*self).finish()?.flush()
    }
}

impl<W: Write> Packer for liblzma::write::XzEncoder<W> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        (*self).finish()?.flush()
    }
}

fn packer(file: &File, compression: Compression) -> io::Result<Box<dyn Packer + '_>> {
    let out = BufWriter::with_capacity(PIECE, file);
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::write::GzEncoder::new(
            out,
            flate2::Compression::fast(),
        )),
        Compression::Xz => Box::new(liblzma::write::XzEncoder::new(out, XZ_PRESET)),
        Compression::Zstd => Box::new(zstd::stream::write::Encoder::new(out, 3)?),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::NoProgress;
    use crate::unpack::unpacked;

    #[test]
    fn what_was_exported_is_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        let file = File::create(&disk).unwrap();
        file.set_len(9 << 20).unwrap();
        file.write_all_at(&[3; 70_000], 4 << 20).unwrap();
        let stop = AtomicBool::new(false);
        for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd] {
            let out = dir.path().join(compression.as_str());
            export_packed(&disk, &out, compression, &NoProgress, &stop).unwrap();
            let mut content = Vec::new();
            unpacked(File::open(&out).unwrap(), Some(compression))
                .unwrap()
                .read_to_end(&mut content)
                .unwrap();
            assert!(content == std::fs::read(&disk).unwrap(), "{compression}");
            let error = export_packed(&disk, &out, compression, &NoProgress, &stop).unwrap_err();
            assert!(error.to_string().contains("exists"), "{error}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);
    }
}
