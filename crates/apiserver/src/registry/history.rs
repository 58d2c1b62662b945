//! Lists of the past: the present with the writes since then taken back.
//!
//! The store has only the present, its ring has the last writes with what they replaced. So a page of a list can be read at
//! the revision of the first page, and the pages together are one consistent snapshot, for as long as the ring reaches back.

use std::collections::{BTreeMap, HashSet};

use crate::error::ApiError;
use crate::registry::{Core, store_error};
use crate::store::{Key, Page, Query, Stored};

/// Why a list of the past cannot be given.
#[derive(Debug, PartialEq)]
pub(crate) enum PastError {
    /// Too much was written since.
    TooOld,
    /// The store.
    Api(ApiError),
}

impl From<ApiError> for PastError {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl Core {
    /// A page of the store as it was at `revision`, or as it is.
    pub(crate) async fn page(
        &self,
        query: &Query,
        revision: Option<u64>,
    ) -> Result<Page, PastError> {
        let mut query = query.clone();
        loop {
            let page = self.store.list(&query).map_err(|e| store_error(&e))?;
            let Some(revision) = revision.filter(|revision| *revision != page.revision) else {
                return Ok(page);
            };
            let last = page.items.last().map(|stored| stored.key.clone());
            let page = self.take_back(&query, page, revision).await?;
            if page.more && page.items.is_empty() && last.is_some() {
                // Nothing of this stretch was there at that time.
                query.after = last;
                continue;
            }
            return Ok(page);
        }
    }

    async fn take_back(&self, query: &Query, page: Page, revision: u64) -> Result<Page, PastError> {
        let ring = self.store.ring();
        // A commit shows in reads a moment before it is in the ring.
        ring.reached(page.revision).await;
        let events = ring.after(revision).map_err(|_| PastError::TooOld)?;
        let end = page
            .items
            .last()
            .filter(|_| page.more)
            .map(|stored| stored.key.clone());
        let inside = |key: &Key| {
            key.resource == query.resource
                && query
                    .namespace
                    .as_ref()
                    .is_none_or(|namespace| *namespace == key.namespace)
                && query.after.as_ref().is_none_or(|after| key > after)
                && end.as_ref().is_none_or(|end| key <= end)
        };
        let mut items: BTreeMap<Key, Stored> = page
            .items
            .into_iter()
            .map(|stored| (stored.key.clone(), stored))
            .collect();
        let mut seen = HashSet::new();
        for event in events
            .iter()
            .filter(|event| event.revision <= page.revision)
        {
            // The first write after that time is the one that replaced what was there.
            if !inside(&event.key) || !seen.insert(&event.key) {
                continue;
            }
            match &event.previous {
                Some(value) => items.insert(
                    event.key.clone(),
                    Stored {
                        key: event.key.clone(),
                        revision: event.previous_revision,
                        value: value.clone(),
                    },
                ),
                None => items.remove(&event.key),
            };
        }
        let limit = query.limit.unwrap_or(usize::MAX);
        let more = page.more || items.len() > limit;
        Ok(Page {
            items: items.into_values().take(limit).collect(),
            revision,
            more,
        })
    }
}
