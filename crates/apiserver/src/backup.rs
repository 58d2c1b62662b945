//! Backups: everything in the store at one revision, as one file.
//!
//! # Format
//! All numbers are big endian.
//! ```text
//!  "BERTHBK1"                                   magic with the version of the format
//!  u64 revision                                 the store's
//!  records: u32 length of key > 0, key,         the key is group/plural NUL namespace NUL name
//!           u64 revision, u32 length, value     the value is the object as JSON
//!  u32 0                                        no more records
//!  u64 number of records
//!  SHA-256 of all bytes before it
//! ```
//! A reader believes nothing before the checksum holds. Certificates and keys are not part of it.
//!
//! A restored store begins far beyond the revision of the backup: what was written after the backup had revisions, too, and
//! a client that has seen those must be told that they are gone, not served something else under the same numbers.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, header};
use tokio::sync::mpsc;

use crate::auth::{MASTERS, UserInfo};
use crate::error::{ApiError, Target};
use crate::registry::store_error;
use crate::store::{Record, Snapshot, Store, StoreError, durable};

/// Where the server gives a backup, to those who may do everything.
pub const PATH: &str = "/berth/backup";
/// The media type of a backup.
pub const MEDIA: &str = "application/vnd.berth.backup";

const MAGIC: &[u8; 8] = b"BERTHBK1";
/// Bytes that go out at a time.
const CHUNK: usize = 128 << 10;
/// Longest key and value that are believed; far more than the server accepts.
const MAX_KEY: u32 = 4 << 10;
const MAX_VALUE: u32 = 64 << 20;
/// How far a restored store is beyond its backup.
const BEYOND: u64 = 1_000_000_000;

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// The store's revision.
    pub revision: u64,
    /// How many objects.
    pub objects: u64,
}

/// Why a backup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{0} is not a backup of berth, or of a version that this berth does not know")]
    Foreign(PathBuf),
    /// It is shorter or longer than it says.
    #[error("the backup {0} is not complete")]
    Incomplete(PathBuf),
    /// It was changed.
    #[error("the backup {0} is damaged: its checksum does not hold")]
    Damaged(PathBuf),
    /// There is something already.
    #[error("{0} exists already; give --force to replace it")]
    Exists(PathBuf),
    /// A server has the store open.
    #[error("{0} is in use: stop berth first")]
    InUse(PathBuf),
    /// The new store.
    #[error("cannot write {path}")]
    Store {
        /// Where.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
}

/// Answers a request for a backup: a snapshot, streamed as fast as the client reads.
pub(crate) fn answer(store: &dyn Store, user: &UserInfo) -> Result<Response<Body>, ApiError> {
    // Everything includes all secrets: no rule of any role gives this away.
    if !user.groups.iter().any(|group| group == MASTERS) {
        return Err(ApiError::Forbidden {
            target: Target::default(),
            why: format!("User {:?} cannot get path {PATH:?}", user.name),
            cause: None,
        });
    }
    let snapshot = store.snapshot().map_err(|e| store_error(&e))?;
    let (sender, mut receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let sent = write(snapshot, |bytes| sender.blocking_send(Ok(bytes)).is_ok());
        if let Err(e) = sent {
            tracing::error!("a backup was broken off: {e}");
            // The client sees a broken stream and not a short file that looks whole.
            let _ = sender.blocking_send(Err(io::Error::other(e.to_string())));
        }
    });
    let stream = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    let mut response = Response::new(Body::from_stream(stream));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA));
    Ok(response)
}

/// Writes a backup in pieces; ends early if `send` does not want more.
fn write(snapshot: Snapshot, mut send: impl FnMut(Bytes) -> bool) -> Result<(), StoreError> {
    let mut sum = Context::new(&SHA256);
    let mut out = BytesMut::with_capacity(CHUNK);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&snapshot.revision.to_be_bytes());
    let mut objects: u64 = 0;
    for record in snapshot.records {
        let record = record?;
        objects += 1;
        out.extend_from_slice(&length(record.key.len()).to_be_bytes());
        out.extend_from_slice(record.key.as_bytes());
        out.extend_from_slice(&record.revision.to_be_bytes());
        out.extend_from_slice(&length(record.value.len()).to_be_bytes());
        out.extend_from_slice(&record.value);
        if out.len() >= CHUNK {
            sum.update(&out);
            if !send(out.split().freeze()) {
                return Ok(());
            }
            out.reserve(CHUNK);
        }
    }
    out.extend_from_slice(&0_u32.to_be_bytes());
    out.extend_from_slice(&objects.to_be_bytes());
    sum.update(&out);
    out.extend_from_slice(sum.finish().as_ref());
    send(out.freeze());
    Ok(())
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("bodies and names are bounded far below 4 GiB")
}

/// Why bytes are not a backup.
#[derive(Debug)]
enum Fault {
    Read(io::Error),
    Foreign,
    Incomplete,
    Damaged,
}

impl Fault {
    fn of(self, path: &Path) -> BackupError {
        let path = path.to_owned();
        match self {
            Self::Read(source) => BackupError::Read { path, source },
            Self::Foreign => BackupError::Foreign(path),
            Self::Incomplete => BackupError::Incomplete(path),
            Self::Damaged => BackupError::Damaged(path),
        }
    }
}

struct Reader<R> {
    from: R,
    sum: Context,
    revision: u64,
    objects: u64,
}

impl<R: Read> Reader<R> {
    fn new(from: R) -> Result<Self, Fault> {
        let mut reader = Self {
            from,
            sum: Context::new(&SHA256),
            revision: 0,
            objects: 0,
        };
        let magic: [u8; 8] = reader.array().map_err(|fault| match fault {
            Fault::Incomplete => Fault::Foreign,
            other => other,
        })?;
        if &magic != MAGIC {
            return Err(Fault::Foreign);
        }
        reader.revision = u64::from_be_bytes(reader.array()?);
        Ok(reader)
    }

    /// The next record; none at the end, where the checksum has been found to hold.
    fn next(&mut self) -> Result<Option<Record>, Fault> {
        let key_length = u32::from_be_bytes(self.array()?);
        if key_length == 0 {
            return self.end().map(|()| None);
        }
        if key_length > MAX_KEY {
            return Err(Fault::Damaged);
        }
        let key = String::from_utf8(self.bytes(key_length)?).map_err(|_| Fault::Damaged)?;
        let revision = u64::from_be_bytes(self.array()?);
        let value_length = u32::from_be_bytes(self.array()?);
        if value_length > MAX_VALUE {
            return Err(Fault::Damaged);
        }
        let value = self.bytes(value_length)?.into();
        self.objects += 1;
        Ok(Some(Record {
            key,
            revision,
            value,
        }))
    }

    fn end(&mut self) -> Result<(), Fault> {
        let objects = u64::from_be_bytes(self.array()?);
        let sum = self.sum.clone().finish();
        let given: [u8; 32] = self.array()?;
        if sum.as_ref() != given || objects != self.objects {
            return Err(Fault::Damaged);
        }
        match self.from.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(Fault::Damaged),
            Err(e) => Err(Fault::Read(e)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(fault)?;
        self.sum.update(&bytes);
        Ok(bytes)
    }

    /// A length is only believed as far as there are bytes.
    fn bytes(&mut self, length: u32) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        let read = (&mut self.from)
            .take(u64::from(length))
            .read_to_end(&mut bytes)
            .map_err(Fault::Read)?;
        if read != length as usize {
            return Err(Fault::Incomplete);
        }
        self.sum.update(&bytes);
        Ok(bytes)
    }
}

fn fault(error: io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Fault::Incomplete,
        _ => Fault::Read(error),
    }
}

fn summarize(from: impl Read) -> Result<Summary, Fault> {
    let mut reader = Reader::new(from)?;
    while reader.next()?.is_some() {}
    Ok(Summary {
        revision: reader.revision,
        objects: reader.objects,
    })
}

/// Reads a backup to its end.
pub fn verify(path: &Path) -> Result<Summary, BackupError> {
    let file = open(path)?;
    summarize(file).map_err(|fault| fault.of(path))
}

fn open(path: &Path) -> Result<BufReader<File>, BackupError> {
    let file = File::open(path).map_err(|source| BackupError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(BufReader::with_capacity(CHUNK, file))
}

/// Makes the store in a data directory out of a backup. Nothing is touched before the backup has been verified, and a store
/// that is there is replaced only on `force`, as a whole.
pub fn restore(backup: &Path, data_dir: &Path, force: bool) -> Result<Summary, BackupError> {
    let summary = verify(backup)?;
    let path = crate::server::store_path(data_dir);
    let mut revision = summary.revision;
    let store = |source| BackupError::Store {
        path: path.clone(),
        source,
    };
    // Held until it is replaced, so that no server starts on it meanwhile.
    let mut old = None;
    if path.exists() {
        if !force {
            return Err(BackupError::Exists(path));
        }
        match durable::RedbStore::open(&path) {
            Ok(found) => {
                revision = revision.max(found.ring().head());
                old = Some(found);
            }
            Err(StoreError::Locked) => return Err(BackupError::InUse(path)),
            // That may be why it is replaced.
            Err(e) => tracing::warn!("{} is replaced, and cannot be read: {e}", path.display()),
        }
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| store(StoreError::Directory(e)))?;
    }
    let mut reader = Reader::new(open(backup)?).map_err(|fault| fault.of(backup))?;
    let mut broken = None;
    let records = std::iter::from_fn(|| match reader.next() {
        Ok(record) => record.map(|record| (record.key, record.revision, record.value)),
        Err(fault) => {
            broken = Some(fault);
            None
        }
    });
    let made = durable::prepare(&path, revision + BEYOND, records);
    // It changed after it was verified.
    if let Some(fault) = broken {
        return Err(fault.of(backup));
    }
    made.and_then(durable::Prepared::commit).map_err(store)?;
    drop(old);
    Ok(summary)
}

/// For the fuzzer: any bytes as a backup.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_any(bytes: &[u8]) -> bool {
    summarize(bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::{Expect, Key, Write};

    async fn backup() -> Vec<u8> {
        let store = MemoryStore::default();
        for name in ["a", "b"] {
            let write = Write {
                key: Key::new(&"/things".into(), "ns", name),
                expect: Expect::Absent,
                value: Some(Bytes::from(name.repeat(50))),
            };
            store.write(write).await.unwrap();
        }
        let mut all = Vec::new();
        write(store.snapshot().unwrap(), |bytes| {
            all.extend_from_slice(&bytes);
            true
        })
        .unwrap();
        all
    }

    #[tokio::test]
    async fn what_is_written_is_read() {
        let bytes = backup().await;
        let mut reader = Reader::new(bytes.as_slice()).unwrap();
        assert_eq!(reader.revision, 3);
        let first = reader.next().unwrap().unwrap();
        assert_eq!(
            (first.key.as_str(), first.revision),
            ("/things\0ns\0a", 2),
            "{first:?}"
        );
        assert_eq!(reader.next().unwrap().unwrap().value, "b".repeat(50));
        assert!(reader.next().unwrap().is_none());
    }

    #[tokio::test]
    async fn every_byte_counts() {
        let bytes = backup().await;
        for at in 0..bytes.len() {
            assert!(summarize(&bytes[..at]).is_err(), "cut at {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(summarize(changed.as_slice()).is_err(), "changed at {at}");
        }
        let longer = [bytes.as_slice(), b"x"].concat();
        assert!(matches!(summarize(longer.as_slice()), Err(Fault::Damaged)));
        assert!(matches!(
            summarize(b"PK\x03\x04".as_slice()),
            Err(Fault::Foreign)
        ));
    }
}
