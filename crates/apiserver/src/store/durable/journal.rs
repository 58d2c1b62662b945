//! The journal: what was acknowledged since the last commit that reached the disk.
//!
//! A commit of the database flushes twice and writes every page on the way to what changed. A journal of the same writes
//! is one short record and one flush; the database itself then commits in memory, and reaches the disk once for many
//! batches, when the journal is full. After a crash the records are applied again.
//!
//! ```text
//!  0         head: magic, identity, check ‖ mark: revision that was acknowledged, check
//!  4096      record: check, length, first revision, number of writes ‖ writes
//!            record …                                  up to the first that is not whole, or not the next one
//!  CAPACITY  end; the file always has this length
//! ```
//! - The file is written in full when it is made, so a record never waits for the disk to find room, and a cut file is
//!   told by its length.
//! - A check also covers the identity, which the database knows: records of another journal, or of an earlier life of
//!   this one, are none.
//! - A record that is not whole was never acknowledged, unless the mark says so: then the file is damaged.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::store::{Event, StoreError};

/// Length of the file. A full one is applied again in tens of milliseconds.
pub(super) const CAPACITY: u64 = 4 << 20;
/// Where the records begin: the mark shall not share a page with one.
const RECORDS: u64 = 4096;
const MAGIC: [u8; 8] = *b"berthjn1";
/// Where the mark is in the head.
const MARK: u64 = 64;
/// Bytes before the writes of a record.
const RECORD_HEAD: usize = 20;
/// In the place of a value's length: the key was removed.
const REMOVED: u32 = u32::MAX;

/// See the module's documentation.
pub(super) struct Journal {
    file: File,
    id: u64,
    /// Where the next record goes.
    end: u64,
}

/// A write that was journaled.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// As it is stored.
    pub(super) key: &'a str,
    /// None if the key was removed.
    pub(super) value: Option<&'a [u8]>,
}

/// The writes of one batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    /// Revision of the first; each has one more than the one before.
    pub(super) first: u64,
    pub(super) entries: Vec<Entry<'a>>,
}

/// The name of a database's journal.
pub(super) fn path(database: &Path) -> PathBuf {
    super::file::beside(database, "journal")
}

impl Journal {
    /// Begins an empty journal; a file that is there is used again. Nothing may be in it that is still needed.
    pub(super) fn begin(database: &Path, id: u64) -> io::Result<Self> {
        let path = path(database);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // Secrets are in it.
            .mode(0o600)
            .open(&path)?;
        if file.metadata()?.len() != CAPACITY {
            // Written, not reserved: a flush of reserved room has to tell the file system that it is used now.
            file.set_len(0)?;
            let zeros = vec![0; 1 << 20];
            for at in (0..CAPACITY).step_by(zeros.len()) {
                file.write_all_at(&zeros, at)?;
            }
            file.sync_all()?;
            super::file::sync_directory(&path)?;
        }
        let journal = Self {
            file,
            id,
            end: RECORDS,
        };
        let mut head = [0; RECORDS as usize];
        head[..8].copy_from_slice(&MAGIC);
        head[8..16].copy_from_slice(&id.to_le_bytes());
        head[16..20].copy_from_slice(&check(id, &MAGIC).to_le_bytes());
        journal.file.write_all_at(&head, 0)?;
        journal.acknowledged(0)?;
        journal.file.sync_data()?;
        Ok(journal)
    }

    /// Opens the journal that the database says it has, and reads it. Its records follow with [`records`].
    pub(super) fn open(database: &Path, id: u64) -> Result<(Self, Vec<u8>), StoreError> {
        let path = path(database);
        let damaged = |why: String| StoreError::Corrupt(format!("{}: {why}", path.display()));
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(damaged("it is missing".into()));
            }
            Err(e) => return Err(super::file::io(e)),
        };
        let length = file.metadata().map_err(super::file::io)?.len();
        if length != CAPACITY {
            return Err(damaged(format!(
                "it has {length} bytes in place of {CAPACITY}"
            )));
        }
        let mut bytes = vec![0; usize::try_from(CAPACITY).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0).map_err(super::file::io)?;
        if bytes[..8] != MAGIC
            || bytes[8..16] != id.to_le_bytes()
            || bytes[16..20] != check(id, &MAGIC).to_le_bytes()
        {
            return Err(damaged("it belongs to another store".into()));
        }
        let end = RECORDS;
        Ok((Self { file, id, end }, bytes))
    }

    /// The next record goes behind the last one that was read.
    pub(super) fn resume(&mut self, records: &Records<'_>) {
        self.end = records.at as u64;
    }

    /// Whether there is room for a record of this length.
    pub(super) fn fits(&self, length: usize) -> bool {
        self.end + length as u64 <= CAPACITY
    }

    /// Puts a record on the disk.
    pub(super) fn append(&mut self, mut record: Vec<u8>) -> io::Result<()> {
        let sum = check(self.id, &record[4..]);
        record[..4].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all_at(&record, self.end)?;
        self.file.sync_data()?;
        self.end += record.len() as u64;
        Ok(())
    }

    /// Everything up to this revision is about to be acknowledged. Reaches the disk with the next record: it tells damage
    /// from a write that was under way, not what is stored.
    pub(super) fn acknowledged(&self, revision: u64) -> io::Result<()> {
        let mut mark = [0; 12];
        mark[..8].copy_from_slice(&revision.to_le_bytes());
        let sum = check(self.id, &mark[..8]);
        mark[8..].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all_at(&mark, MARK)
    }

    /// All of it is in the database, and that on the disk.
    pub(super) fn clear(&mut self) {
        self.end = RECORDS;
    }

    /// Takes no record any more until it is cleared.
    pub(super) fn close(&mut self) {
        self.end = CAPACITY;
    }
}

/// The record of a batch, without its check; no event, no record.
pub(super) fn encode(events: &[Event]) -> Vec<u8> {
    let Some(first) = events.first() else {
        return Vec::new();
    };
    let number = |n: usize| u32::try_from(n).unwrap_or(REMOVED).to_le_bytes();
    let mut record = vec![0; RECORD_HEAD];
    for event in events {
        let key = event.key.encode();
        record.extend(number(key.len()));
        match &event.value {
            Some(value) => {
                record.extend(number(value.len()));
                record.extend(key.as_bytes());
                record.extend_from_slice(value);
            }
            None => {
                record.extend(REMOVED.to_le_bytes());
                record.extend(key.as_bytes());
            }
        }
    }
    let length = record.len() - RECORD_HEAD;
    record[4..8].copy_from_slice(&number(length));
    record[8..16].copy_from_slice(&first.revision.to_le_bytes());
    record[16..20].copy_from_slice(&number(events.len()));
    record
}

/// The records of a journal's bytes, in order.
pub(super) struct Records<'a> {
    bytes: &'a [u8],
    id: u64,
    at: usize,
    /// Revision of the last write that was read.
    last: Option<u64>,
}

/// Reads what [`Journal::open`] has read.
pub(super) fn records(bytes: &[u8], id: u64) -> Records<'_> {
    Records {
        bytes,
        id,
        at: RECORDS as usize,
        last: None,
    }
}

impl<'a> Records<'a> {
    /// The revision up to which everything was acknowledged, as far as the mark reached the disk; none if it is damaged.
    pub(super) fn acknowledged(&self) -> Option<u64> {
        let mark = self.bytes.get(MARK as usize..)?.get(..12)?;
        let (revision, sum) = mark.split_first_chunk::<8>()?;
        (check(self.id, revision).to_le_bytes() == *sum).then(|| u64::from_le_bytes(*revision))
    }

    fn read(&self) -> Option<(Record<'a>, usize)> {
        let head = self.bytes.get(self.at..)?.get(..RECORD_HEAD)?;
        let number = |at: usize| {
            head[at..]
                .first_chunk::<4>()
                .map(|b| u32::from_le_bytes(*b))
        };
        let (sum, length, count) = (number(0)?, number(4)?, number(16)?);
        let first = u64::from_le_bytes(*head[8..].first_chunk::<8>()?);
        let length = RECORD_HEAD + length as usize;
        let whole = self.bytes.get(self.at..)?.get(..length)?;
        // What is left of an earlier round is not the next one.
        if check(self.id, &whole[4..]) != sum || self.last.is_some_and(|last| first != last + 1) {
            return None;
        }
        let mut rest = &whole[RECORD_HEAD..];
        let mut entries = Vec::new();
        for _ in 0..count {
            let (key, after) = rest.split_first_chunk::<4>()?;
            let (value, after) = after.split_first_chunk::<4>()?;
            let (key, value) = (u32::from_le_bytes(*key), u32::from_le_bytes(*value));
            let (key, after) = after.split_at_checked(key as usize)?;
            let (value, after) = if value == REMOVED {
                (None, after)
            } else {
                let (value, after) = after.split_at_checked(value as usize)?;
                (Some(value), after)
            };
            rest = after;
            let key = std::str::from_utf8(key).ok()?;
            entries.push(Entry { key, value });
        }
        let whole = rest.is_empty() && !entries.is_empty();
        whole.then_some((Record { first, entries }, length))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let (record, length) = self.read()?;
        self.at += length;
        self.last = Some(record.first + record.entries.len() as u64 - 1);
        Some(record)
    }
}

fn check(id: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&id.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// For the fuzzer: any bytes as a journal. What is read must be what was written.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_any(bytes: &[u8]) -> usize {
    records(bytes, 0).map(|record| record.entries.len()).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::store::Key;

    fn event(revision: u64, name: &str, value: Option<&str>) -> Event {
        let resource: Arc<str> = "/things".into();
        Event {
            revision,
            key: Key::new(&resource, "ns", name),
            value: value.map(|value| Bytes::from(value.to_owned())),
            previous_revision: 0,
            previous: None,
        }
    }

    type Owned = (u64, Vec<(String, Option<Vec<u8>>)>);

    fn read(database: &Path) -> Vec<Owned> {
        let (_, bytes) = Journal::open(database, 7).unwrap();
        let owned = |entry: Entry<'_>| (entry.key.to_owned(), entry.value.map(<[u8]>::to_vec));
        records(&bytes, 7)
            .map(|r| (r.first, r.entries.into_iter().map(owned).collect()))
            .collect()
    }

    #[test]
    fn what_is_appended_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("store.redb");
        let mut journal = Journal::begin(&database, 7).unwrap();
        assert_eq!(read(&database), []);
        let batch = [event(2, "a", Some("one")), event(3, "b", Some(""))];
        journal.append(encode(&batch)).unwrap();
        journal.append(encode(&[event(4, "a", None)])).unwrap();
        let expected = [
            (
                2,
                vec![
                    ("/things\0ns\0a".to_owned(), Some(b"one".to_vec())),
                    ("/things\0ns\0b".to_owned(), Some(Vec::new())),
                ],
            ),
            (4, vec![("/things\0ns\0a".to_owned(), None)]),
        ];
        assert_eq!(read(&database), expected);

        // A new round begins at the front; what is left of the last one is not read.
        journal.clear();
        journal.append(encode(&[event(5, "c", Some("x"))])).unwrap();
        let names = |read: &[(u64, Vec<_>)]| read.iter().map(|r| r.0).collect::<Vec<_>>();
        assert_eq!(names(&read(&database)), [5]);

        // In a new life nothing of the old one is there.
        Journal::begin(&database, 7).unwrap();
        let again = Journal::begin(&database, 8).unwrap();
        assert!(Journal::open(&database, 7).is_err());
        drop(again);
        let (_, bytes) = Journal::open(&database, 8).unwrap();
        assert_eq!(records(&bytes, 8).count(), 0);
        assert_eq!(records(&bytes, 8).acknowledged(), Some(0));
    }

    #[test]
    fn a_full_journal_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("store.redb");
        let mut journal = Journal::begin(&database, 7).unwrap();
        let big = "x".repeat(1 << 20);
        let mut revision = 1;
        loop {
            let record = encode(&[event(revision, "a", Some(&big))]);
            if !journal.fits(record.len()) {
                break;
            }
            journal.append(record).unwrap();
            revision += 1;
        }
        assert_eq!(read(&database).len(), 3);
        assert_eq!(std::fs::metadata(path(&database)).unwrap().len(), CAPACITY);
    }
}
