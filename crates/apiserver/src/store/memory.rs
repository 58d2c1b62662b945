//! The store in memory: the model that the durable one is tested against, and a quick store for tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::store::{
    Event, Key, Page, Query, Record, Ring, Snapshot, Store, StoreError, Stored, Write, check,
};

/// See [`Store`]. Forgets everything when dropped.
#[derive(Debug)]
pub struct MemoryStore {
    objects: Mutex<Objects>,
    ring: Arc<Ring>,
}

#[derive(Debug)]
struct Objects {
    revision: u64,
    by_key: BTreeMap<Key, (u64, Bytes)>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        // Revision 0 means "any" to clients, so an empty store is at 1 already.
        let objects = Objects {
            revision: 1,
            by_key: BTreeMap::new(),
        };
        Self {
            objects: Mutex::new(objects),
            ring: Ring::new(1, 4096, 8 << 20),
        }
    }
}

impl MemoryStore {
    fn write_now(&self, write: Write) -> Result<u64, StoreError> {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = objects.by_key.get(&write.key).cloned();
        check(write.expect, stored.as_ref().map(|(revision, _)| *revision))?;
        if stored.is_none() && write.value.is_none() {
            return Err(StoreError::Missing);
        }
        objects.revision += 1;
        let revision = objects.revision;
        match write.value.clone() {
            Some(value) => objects.by_key.insert(write.key.clone(), (revision, value)),
            None => objects.by_key.remove(&write.key),
        };
        // Within the lock: events must enter the ring in the order of their revisions.
        self.ring.push([Event {
            revision,
            key: write.key,
            value: write.value,
            previous_revision: stored.as_ref().map_or(0, |(revision, _)| *revision),
            previous: stored.map(|(_, v)| v),
        }]);
        Ok(revision)
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &Key) -> Result<Option<Stored>, StoreError> {
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(objects.by_key.get(key).map(|(revision, value)| Stored {
            key: key.clone(),
            revision: *revision,
            value: value.clone(),
        }))
    }

    fn list(&self, query: &Query) -> Result<Page, StoreError> {
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let mut items: Vec<Stored> = objects
            .by_key
            .iter()
            .filter(|(key, _)| key.resource == query.resource)
            .filter(|(key, _)| {
                query
                    .namespace
                    .as_ref()
                    .is_none_or(|ns| *ns == key.namespace)
            })
            .filter(|(key, _)| query.after.as_ref().is_none_or(|after| *key > after))
            .map(|(key, (revision, value))| Stored {
                key: key.clone(),
                revision: *revision,
                value: value.clone(),
            })
            .collect();
        let limit = query.limit.unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        Ok(Page {
            items,
            revision: objects.revision,
            more,
        })
    }

    fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let records: Vec<_> = objects
            .by_key
            .iter()
            .map(|(key, (revision, value))| {
                Ok(Record {
                    key: key.encode(),
                    revision: *revision,
                    value: value.clone(),
                })
            })
            .collect();
        Ok(Snapshot {
            revision: objects.revision,
            records: Box::new(records.into_iter()),
        })
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Result<u64, StoreError>> {
        let done = self.write_now(write);
        Box::pin(std::future::ready(done))
    }

    fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }
}
