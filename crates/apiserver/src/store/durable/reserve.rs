//! A database file whose room is reserved when it grows.
//!
//! What was acknowledged may be in the journal and in memory only. When it is to reach the database file, the disk must
//! not be found full: so the room is taken while the write that needs it can still be refused.

use std::fs::File;
use std::io;
use std::ops::Bound;

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};
use rustix::fs::{FallocateFlags, fallocate};

#[derive(Debug)]
pub(super) struct Reserving {
    backend: FileBackend,
    file: File,
}

impl Reserving {
    pub(super) fn new(file: File) -> Result<Self, redb::Error> {
        let reserving = Self {
            file: file.try_clone()?,
            backend: FileBackend::new(file)?,
        };
        // One that was copied can have holes. They are no reason not to read it.
        let length = reserving.backend.len()?;
        if let Err(e) = reserving.reserve(0, length) {
            tracing::warn!("no room can be reserved for the store: {e}");
        }
        Ok(reserving)
    }

    fn reserve(&self, from: u64, to: u64) -> io::Result<()> {
        if from == to {
            return Ok(());
        }
        match fallocate(&self.file, FallocateFlags::empty(), from, to - from) {
            // Not every file system can.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            done => Ok(done?),
        }
    }
}

impl StorageBackend for Reserving {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let now = self.backend.len()?;
        if len > now
            && let Err(e) = self.reserve(now, len)
        {
            // A part of it may have been found.
            self.backend.set_len(now)?;
            return Err(e);
        }
        self.backend.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.backend.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.backend.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}
