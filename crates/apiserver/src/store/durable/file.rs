//! The database file: how it comes to be, how it is opened, how it gets smaller, and what its failures mean.
//!
//! A new file is made under another name and renamed once it is whole. So a file that is there and empty, too short or
//! not a database is damaged and refused: a server that silently began anew would lose everything that was acknowledged.
//! All commits are two-phase, so what they hold verifies after any crash; what does not is refused too. What was
//! acknowledged since the last of them is in the [journal](super::journal), and applied again when the file is opened.

use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::journal::{self, Journal};
use super::reserve::Reserving;
use crate::store::StoreError;

/// Encoded key → revision (8 bytes, big endian) and value.
pub(super) const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Revision of the last write.
pub(super) const REVISION: &str = "revision";
/// Sum of [`weight`] over all objects.
pub(super) const BYTES: &str = "bytes";
/// Identity of the journal that belongs to it; none or 0: all that was acknowledged is in this file.
const JOURNAL: &str = "journal";

/// The page cache; the whole process has to be small when idle.
const CACHE: usize = 8 << 20;
/// How long a predecessor may take to let go of the file.
const LOCKED: Duration = Duration::from_secs(5);
/// A file up to this size is verified page by page whenever it is opened; it takes milliseconds.
const VERIFIED: u64 = 32 << 20;
/// A file up to this size is not worth compacting.
pub(super) const SMALL: u64 = 64 << 20;

/// The database and what its `meta` table says, with what was in the journal.
pub(super) struct Opened<D = Database> {
    pub(super) db: D,
    pub(super) revision: u64,
    pub(super) bytes: u64,
    /// None if there is none: then every commit has to reach the disk by itself.
    pub(super) journal: Option<Journal>,
}

/// What an object counts towards the size limit.
pub(super) fn weight(key: &str, value: usize) -> u64 {
    (key.len() + value) as u64
}

/// Opens or creates the database. Waits a little for another process that is about to end.
pub(super) fn open(path: &Path) -> Result<Opened, StoreError> {
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(StoreError::Directory)?;
    }
    match std::fs::metadata(path) {
        // Secrets are in it: its owner's alone, also where an earlier version left it open.
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => {
            std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(io)?;
        }
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {
            // Revision 0 means "any" to clients, so an empty store is at 1 already.
            prepare(path, 1, std::iter::empty())?.commit()?;
        }
        Err(e) => return Err(io(e)),
    }
    let mut opened = open_existing(path, file_size(path) <= VERIFIED)?;
    if file_size(path) > SMALL && file_size(path) / 2 > opened.bytes {
        compact(&mut opened.db, path);
    }
    Ok(opened)
}

/// Opens what must be there. To verify every page takes some room on the disk.
pub(super) fn open_existing(path: &Path, verify: bool) -> Result<Opened, StoreError> {
    if file_size(path) == 0 {
        return Err(StoreError::Corrupt("it is empty".into()));
    }
    let start = Instant::now();
    loop {
        let opened = guarded(|| {
            let file = File::options().read(true).write(true).open(path)?;
            let db = Database::builder()
                .set_cache_size(CACHE)
                .set_check_integrity_on_open(verify)
                .create_with_backend(Reserving::new(file)?)?;
            read_meta(db)
        });
        match opened {
            Err(StoreError::Locked) if start.elapsed() < LOCKED => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok((opened, id)) => return with_journal(opened, path, id),
            Err(e) => return Err(e),
        }
    }
}

/// Applies what only the journal has.
fn with_journal(mut opened: Opened, path: &Path, id: u64) -> Result<Opened, StoreError> {
    if id != 0 {
        let (mut journal, bytes) = Journal::open(path, id)?;
        let mut records = journal::records(&bytes, id);
        guarded(|| replay(&mut opened, &mut records))??;
        journal.resume(&records);
        opened.journal = Some(journal);
    }
    Ok(opened)
}

/// A new journal, which the database knows of before anything is in it.
pub(super) fn begin_journal(db: &Database, path: &Path) -> Result<Journal, StoreError> {
    let id = rand::random::<u64>().max(1);
    let journal = Journal::begin(path, id).map_err(io)?;
    guarded(|| set_journal(db, id))?;
    Ok(journal)
}

/// Commits everything to the disk, and which journal there is from now on: 0 for none.
pub(super) fn set_journal(db: &Database, id: u64) -> Result<(), redb::Error> {
    let mut txn = db.begin_write()?;
    txn.set_quick_repair(true);
    txn.open_table(META)?.insert(JOURNAL, id)?;
    txn.commit()?;
    Ok(())
}

/// Brings the database to where the journal ends. It reaches the disk with the next commit that does.
fn replay(
    opened: &mut Opened,
    records: &mut journal::Records<'_>,
) -> Result<Result<(), StoreError>, redb::Error> {
    let begin = opened.revision;
    let mut txn = opened.db.begin_write()?;
    txn.set_durability(Durability::None).map_err(unexpected)?;
    {
        let mut objects = txn.open_table(OBJECTS)?;
        for journaled in records.by_ref() {
            let last = journaled.first + journaled.entries.len() as u64 - 1;
            if last <= opened.revision {
                continue;
            }
            if journaled.first != opened.revision + 1 {
                return Ok(Err(StoreError::Corrupt(format!(
                    "its journal goes on at revision {} and it ends at {}",
                    journaled.first, opened.revision
                ))));
            }
            for entry in &journaled.entries {
                opened.revision += 1;
                let before = match entry.value {
                    Some(value) => {
                        opened.bytes += weight(entry.key, 8 + value.len());
                        let record = record(opened.revision, value);
                        objects.insert(entry.key, record.as_slice())?
                    }
                    None => objects.remove(entry.key)?,
                };
                let before = before.map_or(0, |old| weight(entry.key, old.value().len()));
                opened.bytes = opened.bytes.saturating_sub(before);
            }
        }
        let mut meta = txn.open_table(META)?;
        meta.insert(REVISION, opened.revision)?;
        meta.insert(BYTES, opened.bytes)?;
    }
    match records.acknowledged() {
        Some(acknowledged) if acknowledged <= opened.revision => {}
        Some(acknowledged) => {
            return Ok(Err(StoreError::Corrupt(format!(
                "its journal ends at revision {}, and {acknowledged} was acknowledged",
                opened.revision
            ))));
        }
        None => return Ok(Err(StoreError::Corrupt("its journal has no mark".into()))),
    }
    if opened.revision == begin {
        txn.abort()?;
    } else {
        txn.commit()?;
        tracing::info!(
            "{} writes applied from the journal",
            opened.revision - begin
        );
    }
    Ok(Ok(()))
}

fn read_meta(db: Database) -> Result<(Opened, u64), redb::Error> {
    let txn = db.begin_read()?;
    let (revision, bytes, journal) = {
        let meta = txn.open_table(META)?;
        let number = |name| -> Result<Option<u64>, redb::Error> {
            Ok(meta.get(name)?.map(|value| value.value()))
        };
        let revision = number(REVISION)?.unwrap_or(1);
        (revision, number(BYTES)?, number(JOURNAL)?)
    };
    let bytes = match bytes {
        Some(bytes) => bytes,
        // A file from before sizes were counted.
        None => {
            let objects = txn.open_table(OBJECTS)?;
            let mut sum = 0;
            for record in objects.iter()? {
                let (key, value) = record?;
                sum += weight(key.value(), value.value().len());
            }
            sum
        }
    };
    txn.close()?;
    let opened = Opened {
        db,
        revision,
        bytes,
        journal: None,
    };
    Ok((opened, journal.unwrap_or(0)))
}

/// A whole new database under another name.
pub(crate) struct Prepared {
    temporary: PathBuf,
    path: PathBuf,
}

impl Prepared {
    /// Takes its place, also that of a database that is there.
    pub(crate) fn commit(self) -> Result<(), StoreError> {
        std::fs::rename(&self.temporary, &self.path).map_err(io)?;
        sync_directory(&self.path).map_err(io)?;
        // It belonged to the one that was there.
        let _ = std::fs::remove_file(journal::path(&self.path));
        Ok(())
    }
}

/// Nothing is left of what did not take its place.
impl Drop for Prepared {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Makes a database with these records: encoded key, revision, value.
pub(crate) fn prepare(
    path: &Path,
    revision: u64,
    records: impl Iterator<Item = (String, u64, Bytes)>,
) -> Result<Prepared, StoreError> {
    let prepared = Prepared {
        temporary: beside(path, "new"),
        path: path.to_owned(),
    };
    let _ = std::fs::remove_file(&prepared.temporary);
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        // Secrets are in it.
        .mode(0o600)
        .open(&prepared.temporary)
        .map_err(io)?;
    guarded(|| fill(file, revision, records))?;
    Ok(prepared)
}

fn fill(
    file: File,
    revision: u64,
    records: impl Iterator<Item = (String, u64, Bytes)>,
) -> Result<(), redb::Error> {
    let backend = Reserving::new(file)?;
    let db = Database::builder()
        .set_cache_size(CACHE)
        .create_with_backend(backend)?;
    let mut txn = db.begin_write()?;
    txn.set_quick_repair(true);
    {
        let mut objects = txn.open_table(OBJECTS)?;
        let mut bytes = 0;
        for (key, revision, value) in records {
            bytes += weight(&key, 8 + value.len());
            objects.insert(key.as_str(), record(revision, &value).as_slice())?;
        }
        let mut meta = txn.open_table(META)?;
        meta.insert(REVISION, revision)?;
        meta.insert(BYTES, bytes)?;
    }
    txn.commit()?;
    Ok(())
}

/// Revision and value as they are stored.
pub(super) fn record(revision: u64, value: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(8 + value.len());
    record.extend_from_slice(&revision.to_be_bytes());
    record.extend_from_slice(value);
    record
}

/// Gives free pages back to the file system. Nobody may be reading. It is no harm if it fails.
pub(super) fn compact(db: &mut Database, path: &Path) {
    let (before, start) = (file_size(path), Instant::now());
    match catch_unwind(AssertUnwindSafe(|| db.compact())) {
        Ok(Ok(_)) => tracing::info!(
            "compacted {} from {} to {} MiB in {} ms",
            path.display(),
            before >> 20,
            file_size(path) >> 20,
            start.elapsed().as_millis()
        ),
        Ok(Err(e)) => tracing::warn!("{} cannot be compacted: {e}", path.display()),
        Err(_) => tracing::warn!("{} cannot be compacted", path.display()),
    }
}

/// Bytes of the file; 0 if there is none.
pub(super) fn file_size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{suffix}"));
    path.with_file_name(name)
}

/// A rename is durable once its directory is.
pub(super) fn sync_directory(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Runs a database operation. On a damaged file the database may panic instead of answering.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(done) => done.map_err(failed),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(StoreError::Corrupt(text.unwrap_or_default()))
        }
    }
}

/// Only savepoints can make the database refuse it, and there are none.
pub(super) fn unexpected(error: redb::SetDurabilityError) -> redb::Error {
    redb::Error::from(std::io::Error::other(error))
}

/// What a failure of the database means.
pub(super) fn failed(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => StoreError::Locked,
        redb::Error::Corrupted(why) => StoreError::Corrupt(why),
        redb::Error::TableDoesNotExist(table) => {
            StoreError::Corrupt(format!("the table {table} is missing"))
        }
        redb::Error::Io(e) if e.kind() == ErrorKind::InvalidData => {
            StoreError::Corrupt(e.to_string())
        }
        redb::Error::Io(e) if e.kind() == ErrorKind::UnexpectedEof => {
            StoreError::Corrupt("it is too short".into())
        }
        redb::Error::Io(e) => io(e),
        redb::Error::PreviousIo | redb::Error::DatabaseClosed => StoreError::Interrupted,
        other => StoreError::Database(Box::new(other)),
    }
}

pub(super) fn io(error: std::io::Error) -> StoreError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::DiskFull,
        _ => StoreError::Database(Box::new(redb::Error::Io(error))),
    }
}
