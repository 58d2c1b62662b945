//! The durable store, on redb.
//!
//! One thread owns all writing. It takes what has queued up while the last batch was on its way to the disk and
//! commits it in one transaction, so many small writes share one flush: that of the [journal]. Readers use snapshots and
//! never wait. A write that was acknowledged survives `kill -9` and power loss; one that was not may or may not.
//!
//! A write that finds the disk full is refused, reads go on, and writes work again when there is room.

mod counts;
mod file;
pub(crate) mod journal;
mod reserve;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use redb::{Database, ReadableDatabase as _};
use tokio::sync::{mpsc, oneshot};

use counts::{Count, Counts, prefix};
use file::{META, OBJECTS, Opened, REVISION, guarded};
pub(crate) use file::{Prepared, prepare};
use journal::Journal;
use writer::{Job, Writer};

use crate::store::{Key, Page, Query, Record, Ring, Snapshot, Store, StoreError, Stored, Write};

/// Most bytes that all objects may take without another limit, as etcd's recommended maximum.
pub const DEFAULT_LIMIT: u64 = 8 << 30;
const RING_EVENTS: usize = 8192;
const RING_BYTES: usize = 8 << 20;

/// See [`Store`].
pub struct RedbStore {
    shared: Arc<Shared>,
    ring: Arc<Ring>,
    jobs: Option<mpsc::UnboundedSender<Job>>,
    writer: Option<JoinHandle<()>>,
}

/// The database, replaced by the writer when it must be opened anew.
struct Shared {
    path: PathBuf,
    db: RwLock<Option<Database>>,
    counts: Counts,
}

impl Shared {
    fn db(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.db.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> bool {
        self.db().is_some()
    }

    fn begin_read(&self) -> Result<redb::ReadTransaction, redb::Error> {
        let db = self.db();
        Ok(db
            .as_ref()
            .ok_or(redb::Error::DatabaseClosed)?
            .begin_read()?)
    }

    fn begin_write(&self) -> Result<redb::WriteTransaction, redb::Error> {
        let db = self.db();
        Ok(db
            .as_ref()
            .ok_or(redb::Error::DatabaseClosed)?
            .begin_write()?)
    }

    /// Closes and opens the file; its revision, its size and its journal. Reads under way fail, later ones wait.
    fn reopen(&self) -> Result<Opened<()>, StoreError> {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        *db = None;
        let opened = file::open_existing(&self.path, false)?;
        *db = Some(opened.db);
        drop(db);
        self.counts.clear();
        Ok(Opened {
            db: (),
            revision: opened.revision,
            bytes: opened.bytes,
            journal: opened.journal,
        })
    }

    /// A journal, if there is room for one.
    fn begin_journal(&self) -> Option<Journal> {
        let db = self.db();
        let begun = file::begin_journal(db.as_ref()?, &self.path);
        begun
            .inspect_err(|e| tracing::warn!("{} has no journal: {e}", self.path.display()))
            .ok()
    }

    fn compact(&self) {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(db) = db.as_mut() {
            file::compact(db, &self.path);
        }
    }

    /// Everything is in the one file then, unless that fails: then the journal stays.
    fn close(&self) {
        let db = self
            .db
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(db) = db
            && let Err(e) = guarded(|| file::set_journal(&db, 0))
        {
            tracing::warn!("{} needs its journal: {e}", self.path.display());
        }
    }
}

impl RedbStore {
    /// Opens or creates the database. Waits a little for another process that is about to end.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_tuned(path, DEFAULT_LIMIT, Duration::ZERO)
    }

    /// The same, with a limit to the bytes that all objects may take (the file can be about twice as large), and a journal
    /// that begins later.
    pub fn open_tuned(
        path: &Path,
        limit: u64,
        journal_after: Duration,
    ) -> Result<Self, StoreError> {
        let opened = file::open(path)?;
        let ring = Ring::new(opened.revision, RING_EVENTS, RING_BYTES);
        let (jobs, queue) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            db: RwLock::new(Some(opened.db)),
            counts: Counts::default(),
        });
        let mut journal = opened.journal;
        if journal.is_none() && journal_after.is_zero() {
            journal = shared.begin_journal();
        }
        let writer = Writer {
            shared: shared.clone(),
            ring: ring.clone(),
            revision: opened.revision,
            bytes: opened.bytes,
            limit,
            journal,
            journal_due: Instant::now() + journal_after,
            looked: Instant::now(),
        };
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(queue))
            .map_err(|_| StoreError::Closed)?;
        Ok(Self {
            shared,
            ring,
            jobs: Some(jobs),
            writer: Some(writer),
        })
    }
}

/// Waits for the writer: what was acknowledged is on disk, and the file is free for the next owner.
impl Drop for RedbStore {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        self.shared.close();
    }
}

impl Store for RedbStore {
    fn get(&self, key: &Key) -> Result<Option<Stored>, StoreError> {
        let encoded = key.encode();
        let found = guarded(|| {
            let table = self.shared.begin_read()?.open_table(OBJECTS)?;
            let found = table.get(encoded.as_str())?;
            Ok(found.map(|record| Bytes::copy_from_slice(record.value())))
        })?;
        found
            .map(|record| {
                let (revision, _) = split(&encoded, &record)?;
                Ok(Stored {
                    key: key.clone(),
                    revision,
                    value: record.slice(8..),
                })
            })
            .transpose()
    }

    fn list(&self, query: &Query) -> Result<Page, StoreError> {
        let (start, end) = range(query);
        guarded(|| {
            let txn = self.shared.begin_read()?;
            let revision = txn.open_table(META)?.get(REVISION)?;
            let mut page = Page {
                items: Vec::new(),
                revision: revision.map_or(1, |v| v.value()),
                more: false,
            };
            if start >= end {
                return Ok(Ok(page));
            }
            let table = txn.open_table(OBJECTS)?;
            for record in table.range(start.as_str()..end.as_str())? {
                if query.limit.is_some_and(|limit| page.items.len() >= limit) {
                    page.more = true;
                    break;
                }
                let (encoded, record) = record?;
                match stored(&query.resource, encoded.value(), record.value()) {
                    Ok(stored) => page.items.push(stored),
                    Err(damaged) => return Ok(Err(damaged)),
                }
            }
            Ok(Ok(page))
        })?
    }

    fn snapshot(&self) -> Result<Snapshot, StoreError> {
        guarded(|| {
            let txn = self.shared.begin_read()?;
            let revision = txn.open_table(META)?.get(REVISION)?;
            let records = txn.open_table(OBJECTS)?.range::<&str>(..)?;
            Ok(Snapshot {
                revision: revision.map_or(1, |v| v.value()),
                records: Box::new(Records(Some(records))),
            })
        })
    }

    fn revision(&self, key: &Key) -> Result<Option<u64>, StoreError> {
        let encoded = key.encode();
        guarded(|| {
            let table = self.shared.begin_read()?.open_table(OBJECTS)?;
            let found = table.get(encoded.as_str())?;
            Ok(found.map(|record| split(&encoded, record.value()).map(|(revision, _)| revision)))
        })?
        .transpose()
    }

    fn count(&self, query: &Query) -> Result<usize, StoreError> {
        let (start, end) = range(query);
        if start >= end {
            return Ok(0);
        }
        let scan = || {
            guarded(|| {
                let txn = self.shared.begin_read()?;
                let revision = txn.open_table(META)?.get(REVISION)?;
                let table = txn.open_table(OBJECTS)?;
                Ok(Count {
                    objects: table.range(start.as_str()..end.as_str())?.count(),
                    revision: revision.map_or(1, |v| v.value()),
                })
            })
        };
        if query.after.is_some() {
            return Ok(scan()?.objects);
        }
        let prefix = prefix(&query.resource, query.namespace.as_deref());
        self.shared.counts.get(prefix, scan)
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Result<u64, StoreError>> {
        let (reply, done) = oneshot::channel();
        let sent = self
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send((write, reply)).is_ok());
        Box::pin(async move {
            if sent {
                done.await.unwrap_or(Err(StoreError::Closed))
            } else {
                Err(StoreError::Closed)
            }
        })
    }

    fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }
}

/// The first encoded key that a query is about, and the first that it is not about any more.
fn range(query: &Query) -> (String, String) {
    let prefix = prefix(&query.resource, query.namespace.as_deref());
    let end = format!("{}\u{1}", &prefix[..prefix.len() - 1]);
    // NUL follows the last key directly: the first key that is greater. A key before the range changes nothing.
    let after = query
        .after
        .as_ref()
        .map(|key| format!("{}\0", key.encode()));
    (after.unwrap_or_default().max(prefix), end)
}

/// The records of a snapshot; it ends with the first failure.
struct Records(Option<redb::Range<'static, &'static str, &'static [u8]>>);

impl Iterator for Records {
    type Item = Result<Record, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut range = self.0.take()?;
        let next = guarded(|| range.next().transpose().map_err(redb::Error::from));
        match next {
            Ok(Some((key, value))) => {
                self.0 = Some(range);
                let key = key.value();
                Some(split(key, value.value()).map(|(revision, value)| Record {
                    key: key.to_owned(),
                    revision,
                    value: Bytes::copy_from_slice(value),
                }))
            }
            Ok(None) => None,
            Err(e) => Some(Err(e)),
        }
    }
}

fn stored(resource: &Arc<str>, encoded: &str, record: &[u8]) -> Result<Stored, StoreError> {
    let (revision, value) = split(encoded, record)?;
    let mut parts = encoded.splitn(3, '\0').skip(1);
    let (Some(namespace), Some(name)) = (parts.next(), parts.next()) else {
        return Err(StoreError::Damaged(encoded.to_owned()));
    };
    Ok(Stored {
        key: Key::new(resource, namespace, name),
        revision,
        value: Bytes::copy_from_slice(value),
    })
}

fn split<'a>(key: &str, record: &'a [u8]) -> Result<(u64, &'a [u8]), StoreError> {
    record
        .split_first_chunk::<8>()
        .map(|(revision, value)| (u64::from_be_bytes(*revision), value))
        .ok_or_else(|| StoreError::Damaged(key.to_owned()))
}
