//! The index: which names mean which manifests.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, failed};
use crate::Digest;

/// The content of `index.json`. Unknown fields of a later version would be lost, so a later version is refused.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Index {
    version: u32,
    pub(super) images: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) manifest: Digest,
    /// The multi-platform index that the manifest was chosen from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<Digest>,
    pub(super) local: bool,
    /// Seconds since 1970.
    pub(super) stored: u64,
}

const VERSION: u32 = 1;

impl Store {
    pub(super) fn read_index(&self) -> Result<Index, StoreError> {
        let path = self.root().join("index.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Index {
                    version: VERSION,
                    images: BTreeMap::new(),
                });
            }
            Err(e) => return Err(failed("read", &path)(e)),
        };
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|e| failed("understand", &path)(e.into()))?;
        if index.version != VERSION {
            let problem = io::Error::other(format!(
                "version {} is not known to this berth",
                index.version
            ));
            return Err(failed("use", &path)(problem));
        }
        Ok(index)
    }

    /// Changes the index, one process at a time.
    pub(super) fn update_index<T>(
        &self,
        change: impl FnOnce(&mut Index) -> T,
    ) -> Result<T, StoreError> {
        let (lock, lock_path) = self.lock_file("index.lock")?;
        lock.lock().map_err(failed("lock", &lock_path))?;
        let mut index = self.read_index()?;
        let result = change(&mut index);
        let path = self.root().join("index.json");
        let write = || {
            let mut file = tempfile::Builder::new()
                .prefix("index-")
                .tempfile_in(self.tmp_dir())?;
            serde_json::to_writer_pretty(&mut file, &index)?;
            file.flush()?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            File::open(self.root())?.sync_all()
        };
        write().map_err(failed("write", &path))?;
        Ok(result)
    }
}
