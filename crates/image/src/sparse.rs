//! Writing a file without its zeros: blocks of zeros become holes, so a disk takes the space of its content.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

const BLOCK: usize = 4096;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Writes a fresh file from its start to its end; [`SparseWriter::finish`] sets the length.
pub(crate) struct SparseWriter<'a> {
    file: &'a File,
    offset: u64,
}

impl<'a> SparseWriter<'a> {
    /// `file` must be empty.
    pub(crate) fn new(file: &'a File) -> Self {
        Self { file, offset: 0 }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        write(self.file, self.offset, bytes)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Sets the length, also when the file ends in a hole, and waits until everything is on disk.
    pub(crate) fn finish(self) -> io::Result<u64> {
        self.file.set_len(self.offset)?;
        self.file.sync_all()?;
        Ok(self.offset)
    }
}

/// Writes `bytes` at `at`, but for blocks of zeros; returns how many were written.
pub(crate) fn write(file: &File, mut at: u64, mut bytes: &[u8]) -> io::Result<u64> {
    let mut written = 0;
    while !bytes.is_empty() {
        let zeros = run(at, bytes, true);
        at += zeros as u64;
        bytes = &bytes[zeros..];
        let data = run(at, bytes, false);
        file.write_all_at(&bytes[..data], at)?;
        written += data as u64;
        at += data as u64;
        bytes = &bytes[data..];
    }
    Ok(written)
}

/// How many bytes at the front of `bytes`, which are for the place `at` of a file, lie in blocks of it that are (or are not)
/// all zeros. Cut at the borders of blocks, so that holes are whole ones.
fn run(at: u64, bytes: &[u8], zeros: bool) -> usize {
    let mut length = 0;
    while length < bytes.len() {
        let position = at + length as u64;
        let to_border = BLOCK - (position % BLOCK as u64) as usize;
        let block = &bytes[length..bytes.len().min(length + to_border)];
        if (block == &ZEROS[..block.len()]) != zeros {
            break;
        }
        length += block.len();
    }
    length
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zeros_take_no_space() {
        let file = tempfile::tempfile().unwrap();
        let mut writer = SparseWriter::new(&file);
        let piece = vec![0; 1 << 20];
        for _ in 0..256 {
            writer.write(&piece).unwrap();
        }
        writer.write(b"end").unwrap();
        assert_eq!(writer.finish().unwrap(), (256 << 20) + 3);
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), (256 << 20) + 3);
        assert!(meta.blocks() * 512 <= 64 * 1024, "{} blocks", meta.blocks());
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            pieces in proptest::collection::vec((any::<u8>(), 1usize..9000, 0usize..9000), 1..8),
        ) {
            let file = tempfile::tempfile().unwrap();
            let mut writer = SparseWriter::new(&file);
            let mut expected = Vec::new();
            for (byte, data, zeros) in pieces {
                let mut piece = vec![byte; data];
                piece.resize(data + zeros, 0);
                writer.write(&piece).unwrap();
                expected.extend(piece);
            }
            writer.finish().unwrap();
            let mut found = vec![1; expected.len()];
            file.read_exact_at(&mut found, 0).unwrap();
            prop_assert_eq!(file.metadata().unwrap().len(), expected.len() as u64);
            prop_assert!(found == expected);
        }
    }
}
