//! Background work: what namespaces and definitions leave behind when they are deleted, and old events.
//!
//! A terminating namespace or definition has its objects deleted (in the ordinary way, so that finalizers and graceful
//! stops are honoured) and goes itself when none is left. Driven by the store's events.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::{Timestamp, ToSpan as _};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::registry::catalog::{Scope, Snapshot};
use crate::registry::delete_options::DeleteOptions;
use crate::registry::policy::{CLEANUP, DEFINITIONS, NAMESPACES};
use crate::registry::query::Call;
use crate::registry::{Core, meta, store_error};
use crate::store::{Expect, Key, Query, StoreError, Stored, Write};

/// How long core events are kept.
const EVENT_HOURS: i64 = 1;
/// How often old ones are looked for, and failed work is tried again.
const SWEEP: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(5);

/// Works until `stop`.
pub(crate) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let mut swept = tokio::time::Instant::now();
    loop {
        // Subscribed before the work: what happens meanwhile wakes the next round.
        let subscription = core.store.ring().subscribe(core.store.ring().head());
        let left = core.reap().await.unwrap_or_else(|e| {
            tracing::warn!("cannot remove what is terminating: {e}");
            1
        });
        if swept.elapsed() >= SWEEP {
            swept = tokio::time::Instant::now();
            if let Err(e) = core.expire_events().await {
                tracing::warn!("cannot remove old events: {e}");
            }
        }
        let Ok(mut subscription) = subscription else {
            continue;
        };
        let woken = async {
            // A watch that fell behind is as good a reason to look as an event.
            while let Ok(events) = subscription.next().await {
                let of_interest =
                    |resource: &str| left > 0 || matches!(resource, NAMESPACES | DEFINITIONS);
                if events.iter().any(|event| of_interest(&event.key.resource)) {
                    break;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = woken => {}
            () = tokio::time::sleep(if left > 0 { RETRY } else { SWEEP }) => {}
        }
    }
}

impl Core {
    /// One round; returns how many terminating things are left.
    async fn reap(&self) -> Result<usize, ApiError> {
        let mut left = 0;
        for (stored, object) in self.terminating(DEFINITIONS)? {
            let (group, plural) = (
                meta::text(&object, &["spec", "group"]),
                meta::text(&object, &["spec", "names", "plural"]),
            );
            let def = self.catalog.get().find(group, plural).cloned();
            let remaining = match def {
                Some(def) => self.empty(&Scope::stored(&def)).await?,
                None => 0,
            };
            if remaining > 0 {
                left += 1;
                continue;
            }
            self.release_definition(&stored, object).await?;
        }
        for (stored, object) in self.terminating(NAMESPACES)? {
            if !self.reap_namespace(stored, object).await? {
                left += 1;
            }
        }
        Ok(left)
    }

    fn terminating(&self, resource: &str) -> Result<Vec<(Stored, Value)>, ApiError> {
        let query = Query {
            resource: resource.into(),
            namespace: None,
            after: None,
            limit: None,
        };
        let page = self.store.list(&query).map_err(|e| store_error(&e))?;
        let parsed = page.items.into_iter().filter_map(|stored| {
            let object: Value = serde_json::from_slice(&stored.value).ok()?;
            meta::is_deleting(&object).then_some((stored, object))
        });
        Ok(parsed.collect())
    }

    /// Deletes all objects of a resource; returns how many are still there.
    async fn empty(&self, scope: &Scope) -> Result<usize, ApiError> {
        let query = Query {
            resource: scope.resource.clone(),
            namespace: None,
            after: None,
            limit: None,
        };
        let page = self.store.list(&query).map_err(|e| store_error(&e))?;
        let mut left = page.items.len();
        for stored in page.items {
            let object = scope.present(&stored)?;
            if meta::is_deleting(&object) {
                continue;
            }
            let mut call = Call::internal("system:serviceaccount:kube-system:namespace-controller");
            let Key {
                namespace, name, ..
            } = &stored.key;
            match self
                .delete_object(&mut call, scope, namespace, name, &DeleteOptions::default())
                .await
            {
                Ok(crate::registry::delete::Deleted::Gone(_)) | Err(ApiError::NotFound(_)) => {
                    left -= 1;
                }
                Ok(crate::registry::delete::Deleted::Marked(_)) => {}
                // One object that admission holds must not keep the others.
                Err(e) => tracing::warn!(
                    "cannot delete {} {namespace}/{name}: {e}",
                    scope.def.qualified()
                ),
            }
        }
        Ok(left)
    }

    /// Takes our finalizer off a definition whose objects are gone; the definition goes with the last one.
    async fn release_definition(&self, stored: &Stored, mut object: Value) -> Result<(), ApiError> {
        let keep: Vec<String> = meta::finalizers(&object)
            .into_iter()
            .filter(|f| *f != CLEANUP)
            .map(str::to_owned)
            .collect();
        if keep.len() == meta::finalizers(&object).len() && !keep.is_empty() {
            return Ok(());
        }
        let value = if keep.is_empty() {
            None
        } else {
            meta::metadata(&mut object).insert("finalizers".into(), json!(keep));
            Some(object.to_string().into())
        };
        let _reload = self.reload.lock().await;
        // Who finds the definition gone finds its resource gone, too.
        if value.is_none() {
            let mut defs = self.catalog.get().defs.clone();
            defs.retain(|def| !def.crd || def.qualified() != stored.key.name);
            self.catalog.set(Snapshot::new(defs));
        }
        let write = Write {
            key: stored.key.clone(),
            expect: Expect::Revision(stored.revision),
            value,
        };
        match self.store.write(write).await {
            Ok(_) | Err(StoreError::Missing | StoreError::Modified) => self.reload_catalog(),
            Err(e) => {
                self.reload_catalog()?;
                Err(store_error(&e))
            }
        }
    }

    /// Deletes events that were last seen too long ago.
    async fn expire_events(&self) -> Result<(), ApiError> {
        let oldest = Timestamp::now()
            .checked_sub(EVENT_HOURS.hours())
            .unwrap_or(Timestamp::MIN);
        let query = Query {
            resource: "/events".into(),
            namespace: None,
            after: None,
            limit: None,
        };
        for stored in self.store.list(&query).map_err(|e| store_error(&e))?.items {
            let Ok(event) = serde_json::from_slice::<Value>(&stored.value) else {
                continue;
            };
            let seen = [
                &["lastTimestamp"][..],
                &["series", "lastObservedTime"],
                &["eventTime"],
                &["metadata", "creationTimestamp"],
            ]
            .into_iter()
            .filter_map(|path| meta::text(&event, path).parse::<Timestamp>().ok())
            .max();
            if seen.is_none_or(|seen| seen < oldest) {
                let write = Write {
                    key: stored.key,
                    expect: Expect::Revision(stored.revision),
                    value: None,
                };
                match self.store.write(write).await {
                    Ok(_) | Err(StoreError::Missing | StoreError::Modified) => {}
                    Err(e) => return Err(store_error(&e)),
                }
            }
        }
        Ok(())
    }
}
