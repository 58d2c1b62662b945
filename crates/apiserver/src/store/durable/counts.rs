//! How many objects a resource has, in all and by namespace, known without reading them.
//!
//! A limited list tells how many objects are left, and to count them means to read every page they are on. So a range
//! is counted once, when it is first asked for, and the writer keeps the count from then on.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::store::{Event, StoreError};

/// Ranges that have been asked for, by the prefix of their keys.
#[derive(Default)]
pub(super) struct Counts(Mutex<HashMap<String, Count>>);

#[derive(Clone, Copy)]
pub(super) struct Count {
    pub(super) objects: usize,
    /// The last write that is counted.
    pub(super) revision: u64,
}

impl Counts {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The count of a range. `scan` counts it; meanwhile the writer waits before it announces its next batch.
    pub(super) fn get(
        &self,
        prefix: String,
        scan: impl FnOnce() -> Result<Count, StoreError>,
    ) -> Result<usize, StoreError> {
        let mut counts = self.lock();
        if let Some(known) = counts.get(&prefix) {
            return Ok(known.objects);
        }
        let count = scan()?;
        // Whoever asks for ranges that do not exist shall not fill the memory with them.
        if count.objects > 0 {
            counts.insert(prefix, count);
        }
        Ok(count.objects)
    }

    /// Counts what was committed.
    pub(super) fn apply(&self, events: &[Event]) {
        let mut counts = self.lock();
        if counts.is_empty() {
            return;
        }
        for event in events {
            let appeared = match (&event.previous, &event.value) {
                (None, Some(_)) => true,
                (Some(_), None) => false,
                _ => continue,
            };
            let all = prefix(&event.key.resource, None);
            let home = prefix(&event.key.resource, Some(&event.key.namespace));
            for prefix in [all, home] {
                let Some(count) = counts.get_mut(&prefix) else {
                    continue;
                };
                // It was counted after the commit and before this.
                if count.revision >= event.revision {
                    continue;
                }
                count.revision = event.revision;
                if appeared {
                    count.objects += 1;
                } else {
                    count.objects = count.objects.saturating_sub(1);
                }
                if count.objects == 0 {
                    counts.remove(&prefix);
                }
            }
        }
    }

    /// Forgets all: the file was opened anew, and is what counts.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }
}

/// What the encoded keys of a resource begin with, in one namespace or in all.
pub(super) fn prefix(resource: &str, namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("{resource}\0{namespace}\0"),
        None => format!("{resource}\0"),
    }
}
