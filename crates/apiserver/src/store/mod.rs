//! The store: a map of keys to bytes with one revision counter over all of it, and a bounded history to watch.
//!
//! Guarantees, which the property test holds both implementations to:
//! - each successful write has its own revision, one above the write before it, and is durable when it is acknowledged;
//! - a write happens only if its [`Expect`] holds at that moment;
//! - a [`Page`] is one consistent snapshot at its revision;
//! - a [`Subscription`] from revision R sees every later write once and in order, or says that it cannot.
//!
//! The values are opaque here.

pub mod durable;
pub mod memory;
pub mod ring;

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

pub use ring::{Event, Ring, Subscription, TooOld};

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// `group/plural`; the group is empty for the core group.
    pub resource: Arc<str>,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// Object name.
    pub name: String,
}

impl Key {
    /// Makes a key.
    pub fn new(resource: &Arc<str>, namespace: &str, name: &str) -> Self {
        Self {
            resource: resource.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// As one string that sorts as the parts do; NUL is in no part.
    pub fn encode(&self) -> String {
        format!("{}\0{}\0{}", self.resource, self.namespace, self.name)
    }
}

/// A stored value and the revision of the write that put it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its place.
    pub key: Key,
    /// Revision of its last write.
    pub revision: u64,
    /// What was written.
    pub value: Bytes,
}

/// What must hold for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The key is free.
    Absent,
    /// The key's last write has this revision.
    Revision(u64),
}

/// One write. `value: None` removes the key; its removal takes a revision too.
#[derive(Debug, Clone)]
pub struct Write {
    /// Where.
    pub key: Key,
    /// On what condition.
    pub expect: Expect,
    /// What.
    pub value: Option<Bytes>,
}

/// Which keys to list.
#[derive(Debug, Clone)]
pub struct Query {
    /// `group/plural`.
    pub resource: Arc<str>,
    /// All namespaces if none.
    pub namespace: Option<String>,
    /// Only keys after this one.
    pub after: Option<Key>,
    /// At most so many; all if none.
    pub limit: Option<usize>,
}

/// Part of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In key order.
    pub items: Vec<Stored>,
    /// The store's revision that this is a snapshot of.
    pub revision: u64,
    /// Whether there are keys after the last item.
    pub more: bool,
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The write expected a free key, or the watch another revision.
    #[error("the key is taken")]
    Taken,
    /// The key was written since.
    #[error("the object has been modified")]
    Modified,
    /// The key is free.
    #[error("no such key")]
    Missing,
    /// The objects take as much as they may.
    #[error(
        "mvcc: database space exceeded: the objects take {bytes} bytes and the limit is {limit}; delete some, or raise the limit"
    )]
    Exceeded {
        /// What all objects take.
        bytes: u64,
        /// What they may take.
        limit: u64,
    },
    /// There is no room for the file to grow.
    #[error("the disk is full")]
    DiskFull,
    /// Another process has the file open.
    #[error("another process has it open")]
    Locked,
    /// The file is not what was written to it.
    #[error("the file is damaged: {0}; restore a backup")]
    Corrupt(String),
    /// The file had to be opened anew in the middle of the operation, or cannot be.
    #[error("the file does not answer after a failure")]
    Interrupted,
    /// A write that shared its commit with others, and the whole commit failed.
    #[error("cannot write {}: {why}", .path.display())]
    Commit {
        /// The database file.
        path: std::path::PathBuf,
        /// Why.
        why: String,
    },
    /// The database.
    #[error("database failure")]
    Database(#[source] Box<redb::Error>),
    /// A stored record cannot be read.
    #[error("record {0:?} is damaged")]
    Damaged(String),
    /// The directory of the database.
    #[error("cannot create the directory")]
    Directory(#[source] std::io::Error),
    /// The writer is gone, or could not be started.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// The same failure for each of the writes that shared a commit.
    fn again(&self, path: &std::path::Path) -> Self {
        let why = match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        };
        Self::Commit {
            path: path.to_owned(),
            why,
        }
    }
}

/// One object of a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// As [`Key::encode`] makes it.
    pub key: String,
    /// Revision of its last write.
    pub revision: u64,
    /// What was written.
    pub value: Bytes,
}

/// Everything, as it was at one revision. While it is held the store cannot use again what is deleted meanwhile.
pub struct Snapshot {
    /// The revision.
    pub revision: u64,
    /// In key order; nothing follows an error.
    pub records: Box<dyn Iterator<Item = Result<Record, StoreError>> + Send>,
}

/// The contract of this module, see its documentation.
pub trait Store: Send + Sync + 'static {
    /// Reads one key.
    fn get(&self, key: &Key) -> Result<Option<Stored>, StoreError>;
    /// Reads a range of keys.
    fn list(&self, query: &Query) -> Result<Page, StoreError>;
    /// The revision of a key's last write.
    fn revision(&self, key: &Key) -> Result<Option<u64>, StoreError> {
        Ok(self.get(key)?.map(|stored| stored.revision))
    }
    /// How many keys there are in a range, whatever its limit; cheap without `after`. A write under way may be missing.
    fn count(&self, query: &Query) -> Result<usize, StoreError> {
        let all = Query {
            limit: None,
            ..query.clone()
        };
        Ok(self.list(&all)?.items.len())
    }
    /// Reads everything.
    fn snapshot(&self) -> Result<Snapshot, StoreError>;
    /// Writes one key; answers with the revision of the write.
    fn write(&self, write: Write) -> BoxFuture<'_, Result<u64, StoreError>>;
    /// The history.
    fn ring(&self) -> &Arc<Ring>;
}

/// Judges a write against what is stored: shared by the implementations, so that they cannot differ.
fn check(expect: Expect, stored: Option<u64>) -> Result<(), StoreError> {
    match (expect, stored) {
        (Expect::Absent, None) => Ok(()),
        (Expect::Absent, Some(_)) => Err(StoreError::Taken),
        (Expect::Revision(_), None) => Err(StoreError::Missing),
        (Expect::Revision(expected), Some(found)) if expected == found => Ok(()),
        (Expect::Revision(_), Some(_)) => Err(StoreError::Modified),
    }
}
