//! The thread that owns all writing.
//!
//! ```text
//!  jobs ──► batch ──► journal ──► commit in memory ──► ring ──► answers
//!                │ no room left        │
//!                └──► commit to the disk, which clears the journal
//!                       │ any of it fails: every write of the batch is refused
//!                       ▼
//!                 reopen the file ──► what it and the journal hold is true: a batch that is there after all enters
//!                       │             the ring, and the next one is committed to the disk
//!                       │ fails: reads are refused too, and the next batch tries again
//! ```
//! After an I/O error the database answers nothing any more until it is opened anew; so a full disk costs the writes
//! that found it full, and no restart.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::{Durability, ReadableTable as _};
use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::file::{self, BYTES, META, OBJECTS, Opened, REVISION, guarded, record, weight};
use super::journal::{self, Journal};
use crate::store::{Event, Ring, StoreError, Write, check};

/// Most writes that share one commit.
const BATCH: usize = 256;
/// How often the file is looked at for compaction.
const LOOK: Duration = Duration::from_secs(60);

pub(super) type Job = (Write, oneshot::Sender<Result<u64, StoreError>>);

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) ring: Arc<Ring>,
    pub(super) revision: u64,
    pub(super) bytes: u64,
    /// Most bytes of all objects.
    pub(super) limit: u64,
    /// None until it is due, and while there is no room for one.
    pub(super) journal: Option<Journal>,
    /// When to begin one.
    pub(super) journal_due: Instant,
    pub(super) looked: Instant,
}

/// What a batch comes to.
#[derive(Default)]
struct Outcome {
    answers: Vec<Result<u64, StoreError>>,
    events: Vec<Event>,
    revision: u64,
    bytes: u64,
}

impl Writer {
    pub(super) fn run(mut self, mut queue: mpsc::UnboundedReceiver<Job>) {
        let mut batch = Vec::new();
        while queue.blocking_recv_many(&mut batch, BATCH) > 0 {
            let (writes, replies): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
            let mut outcome = Outcome::default();
            let committed = self
                .usable()
                .and_then(|()| guarded(|| self.commit(writes, &mut outcome)));
            match committed {
                Ok(()) => {
                    self.revision = outcome.revision;
                    self.bytes = outcome.bytes;
                    self.shared.counts.apply(&outcome.events);
                    // First the ring, then the answers: who has written can watch from its revision at once.
                    self.ring.push(outcome.events);
                    for (reply, answer) in replies.into_iter().zip(outcome.answers) {
                        let _ = reply.send(answer);
                    }
                    self.tidy();
                }
                Err(e) => {
                    tracing::error!("{} cannot be written: {e}", self.shared.path.display());
                    self.reopen(outcome);
                    for reply in replies {
                        let _ = reply.send(Err(e.again(&self.shared.path)));
                    }
                }
            }
        }
    }

    /// Opens the file again if that has failed before.
    fn usable(&mut self) -> Result<(), StoreError> {
        if !self.shared.is_open() {
            self.opened(self.shared.reopen()?);
        }
        Ok(())
    }

    /// After a failed commit: reads shall go on, and the next write may succeed.
    fn reopen(&mut self, failed: Outcome) {
        match self.shared.reopen() {
            Ok(opened) => {
                // It failed after it was done. Nobody was told that it succeeded, but readers see it: so must watchers.
                if opened.revision > self.revision && opened.revision == failed.revision {
                    self.ring.push(failed.events);
                }
                self.opened(opened);
            }
            Err(e) => tracing::error!("{} cannot be opened again: {e}", self.shared.path.display()),
        }
    }

    fn opened(&mut self, opened: Opened<()>) {
        (self.revision, self.bytes) = (opened.revision, opened.bytes);
        self.journal = opened.journal;
        // What is in it was read, and still may not be on the disk if writing it was what failed.
        if let Some(journal) = &mut self.journal {
            journal.close();
        }
    }

    /// All or nothing; the revision moves only with the commit.
    fn commit(&mut self, writes: Vec<Write>, outcome: &mut Outcome) -> Result<(), redb::Error> {
        let mut txn = self.shared.begin_write()?;
        outcome.revision = self.revision;
        outcome.bytes = self.bytes;
        {
            let mut objects = txn.open_table(OBJECTS)?;
            for write in writes {
                let answer = self.apply(&mut objects, write, outcome)?;
                outcome.answers.push(answer);
            }
        }
        if outcome.events.is_empty() {
            txn.abort()?;
            return Ok(());
        }
        {
            let mut meta = txn.open_table(META)?;
            meta.insert(REVISION, outcome.revision)?;
            meta.insert(BYTES, outcome.bytes)?;
        }
        let record = journal::encode(&outcome.events);
        match &mut self.journal {
            Some(journal) if journal.fits(record.len()) => {
                journal.append(record)?;
                txn.set_durability(Durability::None)
                    .map_err(file::unexpected)?;
                txn.commit()?;
                journal.acknowledged(outcome.revision)?;
            }
            journal => {
                // One-phase commits rely on checksums to find a torn write; the second phase costs one more flush and
                // needs no such luck. Recovery after a kill is also immediate with quick repair.
                txn.set_quick_repair(true);
                txn.commit()?;
                if let Some(journal) = journal {
                    journal.clear();
                }
            }
        }
        Ok(())
    }

    /// One write within the transaction: the inner result is its own, the outer that of the whole batch.
    fn apply(
        &self,
        objects: &mut redb::Table<'_, &str, &[u8]>,
        write: Write,
        outcome: &mut Outcome,
    ) -> Result<Result<u64, StoreError>, redb::Error> {
        let encoded = write.key.encode();
        let stored = match objects.get(encoded.as_str())? {
            None => None,
            Some(found) => match super::split(&encoded, found.value()) {
                Ok((revision, value)) => Some((revision, Bytes::copy_from_slice(value))),
                Err(e) => return Ok(Err(e)),
            },
        };
        if let Err(e) = check(write.expect, stored.as_ref().map(|(revision, _)| *revision)) {
            return Ok(Err(e));
        }
        if stored.is_none() && write.value.is_none() {
            return Ok(Err(StoreError::Missing));
        }
        let size = |value: &Bytes| weight(&encoded, 8 + value.len());
        let before = stored.as_ref().map_or(0, |(_, value)| size(value));
        let after = write.value.as_ref().map_or(0, size);
        let bytes = outcome.bytes.saturating_sub(before) + after;
        // What makes the store smaller is always welcome: it is the way out.
        if bytes > self.limit && after > before {
            return Ok(Err(StoreError::Exceeded {
                bytes: outcome.bytes,
                limit: self.limit,
            }));
        }
        let revision = outcome.revision + 1;
        match &write.value {
            Some(value) => {
                objects.insert(encoded.as_str(), record(revision, value).as_slice())?;
            }
            None => {
                objects.remove(encoded.as_str())?;
            }
        }
        outcome.revision = revision;
        outcome.bytes = bytes;
        outcome.events.push(Event {
            revision,
            key: write.key,
            value: write.value,
            previous_revision: stored.as_ref().map_or(0, |(revision, _)| *revision),
            previous: stored.map(|(_, value)| value),
        });
        Ok(Ok(revision))
    }

    /// After a batch, when everyone has an answer. A journal may be due. And now and then: a file that is mostly free pages is compacted. Readers wait for it, so it has to be worth it.
    fn tidy(&mut self) {
        if self.journal.is_none() && Instant::now() >= self.journal_due {
            self.journal_due = Instant::now() + LOOK;
            self.journal = self.shared.begin_journal();
        }
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let size = file::file_size(&self.shared.path);
        if size > 4 * file::SMALL && size / 4 > self.bytes {
            self.shared.compact();
        }
    }
}
