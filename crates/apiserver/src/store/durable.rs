//! The durable store, on redb.
//!
//! One thread owns all writing. It takes what has queued up while the last commit was on its way to the disk and
//! commits it in one transaction, so many small writes share one flush. Readers use snapshots and never wait.
//! A commit that was acknowledged survives `kill -9` and power loss; one that was not may or may not.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::store::{Event, Key, Page, Query, Ring, Store, StoreError, Stored, Write, check};

/// Encoded key → revision (8 bytes, big endian) and value.
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";

/// The page cache; the whole process has to be small when idle.
const CACHE: usize = 8 << 20;
/// Most writes that share one commit.
const BATCH: usize = 256;
const RING_EVENTS: usize = 8192;
const RING_BYTES: usize = 8 << 20;
/// How long a predecessor may take to let go of the file.
const LOCKED: Duration = Duration::from_secs(5);

type Job = (Write, oneshot::Sender<Result<u64, StoreError>>);

/// See [`Store`].
pub struct RedbStore {
    db: Option<Arc<Database>>,
    ring: Arc<Ring>,
    jobs: Option<mpsc::UnboundedSender<Job>>,
    writer: Option<JoinHandle<()>>,
}

impl RedbStore {
    /// Opens or creates the database. Waits a little for another process that is about to end.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        keep_private(path).map_err(StoreError::Directory)?;
        let start = Instant::now();
        let db = loop {
            match Database::builder().set_cache_size(CACHE).create(path) {
                Err(redb::DatabaseError::DatabaseAlreadyOpen) if start.elapsed() < LOCKED => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                done => break Arc::new(done.map_err(failed)?),
            }
        };
        let txn = db.begin_write().map_err(failed)?;
        let revision = {
            txn.open_table(OBJECTS).map_err(failed)?;
            let mut meta = txn.open_table(META).map_err(failed)?;
            let found = meta.get(REVISION).map_err(failed)?.map(|v| v.value());
            match found {
                Some(revision) => revision,
                // Revision 0 means "any" to clients, so an empty store is at 1 already.
                None => {
                    meta.insert(REVISION, 1).map_err(failed)?;
                    1
                }
            }
        };
        txn.commit().map_err(failed)?;

        let ring = Ring::new(revision, RING_EVENTS, RING_BYTES);
        let (jobs, queue) = mpsc::unbounded_channel();
        let writer = Writer {
            db: db.clone(),
            ring: ring.clone(),
            revision,
        };
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(queue))
            .map_err(|_| StoreError::Closed)?;
        Ok(Self {
            db: Some(db),
            ring,
            jobs: Some(jobs),
            writer: Some(writer),
        })
    }

    fn read(&self) -> Result<redb::ReadTransaction, StoreError> {
        self.db
            .as_ref()
            .ok_or(StoreError::Closed)?
            .begin_read()
            .map_err(failed)
    }
}

/// Waits for the writer: what was acknowledged is on disk, and the file is free for the next owner.
impl Drop for RedbStore {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        self.db = None;
    }
}

impl Store for RedbStore {
    fn get(&self, key: &Key) -> Result<Option<Stored>, StoreError> {
        let table = self.read()?.open_table(OBJECTS).map_err(failed)?;
        let encoded = key.encode();
        let found = table.get(encoded.as_str()).map_err(failed)?;
        found
            .map(|record| {
                let (revision, value) = split(&encoded, record.value())?;
                Ok(Stored {
                    key: key.clone(),
                    revision,
                    value: Bytes::copy_from_slice(value),
                })
            })
            .transpose()
    }

    fn list(&self, query: &Query) -> Result<Page, StoreError> {
        let txn = self.read()?;
        let revision = txn
            .open_table(META)
            .map_err(failed)?
            .get(REVISION)
            .map_err(failed)?
            .map_or(1, |v| v.value());
        let table = txn.open_table(OBJECTS).map_err(failed)?;
        let (start, end) = range(query);
        let mut page = Page {
            items: Vec::new(),
            revision,
            more: false,
        };
        if start >= end {
            return Ok(page);
        }
        for record in table.range(start.as_str()..end.as_str()).map_err(failed)? {
            if query.limit.is_some_and(|limit| page.items.len() >= limit) {
                page.more = true;
                break;
            }
            let (encoded, record) = record.map_err(failed)?;
            let (revision, value) = split(encoded.value(), record.value())?;
            let mut parts = encoded.value().splitn(3, '\0').skip(1);
            let (Some(namespace), Some(name)) = (parts.next(), parts.next()) else {
                return Err(StoreError::Damaged(encoded.value().to_owned()));
            };
            let key = Key::new(&query.resource, namespace, name);
            page.items.push(Stored {
                key,
                revision,
                value: Bytes::copy_from_slice(value),
            });
        }
        Ok(page)
    }

    fn count(&self, query: &Query) -> Result<usize, StoreError> {
        let table = self.read()?.open_table(OBJECTS).map_err(failed)?;
        let (start, end) = range(query);
        if start >= end {
            return Ok(0);
        }
        Ok(table
            .range(start.as_str()..end.as_str())
            .map_err(failed)?
            .count())
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

/// Secrets lie in the database: nobody but its owner reads it, also where an earlier version left it open.
fn keep_private(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
    }
    // Made here and not by the database, which would leave the mode to the umask.
    std::fs::File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?
        .set_permissions(Permissions::from_mode(0o600))
}

/// The first encoded key that a query is about, and the first that it is not about any more.
fn range(query: &Query) -> (String, String) {
    let prefix = match &query.namespace {
        Some(namespace) => format!("{}\0{namespace}\0", query.resource),
        None => format!("{}\0", query.resource),
    };
    let end = format!("{}\u{1}", &prefix[..prefix.len() - 1]);
    // NUL follows the last key directly: the first key that is greater. A key before the range changes nothing.
    let after = query
        .after
        .as_ref()
        .map(|key| format!("{}\0", key.encode()));
    (after.unwrap_or_default().max(prefix), end)
}

struct Writer {
    db: Arc<Database>,
    ring: Arc<Ring>,
    revision: u64,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::UnboundedReceiver<Job>) {
        let mut batch = Vec::new();
        while queue.blocking_recv_many(&mut batch, BATCH) > 0 {
            let (writes, replies): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
            match self.commit(writes) {
                Ok((answers, events)) => {
                    // First the ring, then the answers: who has written can watch from its revision at once.
                    self.ring.push(events);
                    for (reply, answer) in replies.into_iter().zip(answers) {
                        let _ = reply.send(answer);
                    }
                }
                Err(e) => {
                    tracing::error!("the store cannot commit: {e}");
                    let source = Arc::new(e);
                    for reply in replies {
                        let text = std::io::Error::other(source.to_string());
                        let _ =
                            reply.send(Err(StoreError::Database(Box::new(redb::Error::Io(text)))));
                    }
                }
            }
        }
    }

    /// All or nothing; the revision moves only with the commit.
    #[expect(
        clippy::type_complexity,
        reason = "one answer a write, in order, and the events"
    )]
    fn commit(
        &mut self,
        writes: Vec<Write>,
    ) -> Result<(Vec<Result<u64, StoreError>>, Vec<Event>), redb::Error> {
        let mut txn = self.db.begin_write()?;
        // One-phase commits rely on checksums to find a torn write; the second phase costs one more flush and
        // needs no such luck. Recovery after a kill is also immediate with quick repair.
        txn.set_quick_repair(true);
        let mut revision = self.revision;
        let mut answers = Vec::with_capacity(writes.len());
        let mut events = Vec::with_capacity(writes.len());
        {
            let mut objects = txn.open_table(OBJECTS)?;
            for write in writes {
                let encoded = write.key.encode();
                let stored = match objects.get(encoded.as_str())? {
                    None => None,
                    Some(record) => match split(&encoded, record.value()) {
                        Ok((revision, value)) => Some((revision, Bytes::copy_from_slice(value))),
                        Err(e) => {
                            answers.push(Err(e));
                            continue;
                        }
                    },
                };
                if let Err(e) = check(write.expect, stored.as_ref().map(|(revision, _)| *revision))
                {
                    answers.push(Err(e));
                    continue;
                }
                if stored.is_none() && write.value.is_none() {
                    answers.push(Err(StoreError::Missing));
                    continue;
                }
                revision += 1;
                match &write.value {
                    Some(value) => {
                        let mut record = Vec::with_capacity(8 + value.len());
                        record.extend_from_slice(&revision.to_be_bytes());
                        record.extend_from_slice(value);
                        objects.insert(encoded.as_str(), record.as_slice())?;
                    }
                    None => {
                        objects.remove(encoded.as_str())?;
                    }
                }
                let previous_revision = stored.as_ref().map_or(0, |(revision, _)| *revision);
                let previous = stored.map(|(_, value)| value);
                events.push(Event {
                    revision,
                    key: write.key,
                    value: write.value,
                    previous,
                    previous_revision,
                });
                answers.push(Ok(revision));
            }
        }
        if events.is_empty() {
            txn.abort()?;
            return Ok((answers, events));
        }
        txn.open_table(META)?.insert(REVISION, revision)?;
        txn.commit()?;
        self.revision = revision;
        Ok((answers, events))
    }
}

fn split<'a>(key: &str, record: &'a [u8]) -> Result<(u64, &'a [u8]), StoreError> {
    record
        .split_first_chunk::<8>()
        .map(|(revision, value)| (u64::from_be_bytes(*revision), value))
        .ok_or_else(|| StoreError::Damaged(key.to_owned()))
}

fn failed(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Database(Box::new(error.into()))
}
