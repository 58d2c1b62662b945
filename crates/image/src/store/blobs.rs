//! Blobs on their way into the store.

use std::fs::{self, File};
use std::io::{self, Write};

use tempfile::NamedTempFile;

use super::{Store, StoreError, failed};
use crate::Digest;
use crate::digest::Hasher;

/// A blob that is being written; hashed as it comes, gone when dropped before [`BlobWriter::commit`].
pub(crate) struct BlobWriter {
    file: NamedTempFile,
    hasher: Hasher,
    written: u64,
}

impl BlobWriter {
    /// Bytes written so far.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Forgets everything written.
    pub(crate) fn restart(&mut self) -> io::Result<()> {
        use std::io::Seek as _;
        self.file.as_file().set_len(0)?;
        self.file.as_file_mut().rewind()?;
        self.hasher = Hasher::new();
        self.written = 0;
        Ok(())
    }

    /// The digest of what was written so far.
    pub(crate) fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// What was written, for small ones.
    pub(crate) fn content(&self) -> io::Result<Vec<u8>> {
        fs::read(self.file.path())
    }

    /// Makes it a blob of the store, under its digest.
    pub(crate) fn commit(self, store: &Store) -> Result<(Digest, u64), StoreError> {
        let digest = self.hasher.finish();
        let path = store.blob_path(&digest);
        let rename = || {
            self.file.as_file().sync_all()?;
            self.file.persist(&path)?;
            File::open(store.blobs_dir())?.sync_all()
        };
        rename().map_err(failed("write", &path))?;
        Ok((digest, self.written))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Store {
    /// Starts a blob.
    pub(crate) fn blob_writer(&self) -> Result<BlobWriter, StoreError> {
        let tmp = self.tmp_dir();
        let file = tempfile::Builder::new()
            .prefix("blob-")
            .tempfile_in(&tmp)
            .map_err(failed("write in", &tmp))?;
        Ok(BlobWriter {
            file,
            hasher: Hasher::new(),
            written: 0,
        })
    }

    /// Stores a small blob.
    pub(crate) fn put_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if !self.has_blob(&digest, bytes.len() as u64) {
            let mut writer = self.blob_writer()?;
            writer
                .write_all(bytes)
                .map_err(failed("write", &self.blob_path(&digest)))?;
            writer.commit(self)?;
        }
        Ok(digest)
    }

    /// Whether the blob is here, with that size.
    pub(crate) fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.blob_path(digest)).is_ok_and(|m| m.is_file() && m.len() == size)
    }
}
