//! Garbage collection by owner references, as kube-controller-manager's garbage collector does it.
//!
//! # How an object is judged
//! ```text
//!  being deleted, finalizer orphan              ──► its dependents lose the reference, then the finalizer goes
//!  being deleted, finalizer foregroundDeletion  ──► its dependents are judged; when none blocks, the finalizer goes
//!  no owner exists                              ──► deleted
//!  every owner is absent or waits for this one  ──► deleted (in the foreground if it has dependents itself)
//!  an owner exists that does not wait           ──► references to the others are removed
//! ```
//! # Guarantees
//! - Driven by the store's events, never by polling; only what failed is tried again after a while.
//! - Whether an owner exists is read from the store when it matters, by key and uid: an owner that was created anew under
//!   the same name is another one. Deletes name the uid and the revision that was judged.
//! - After a restart, or when the ring has moved past the collector, everything is listed and judged anew.
//!
//! # Owners in other namespaces
//! An owner is looked for in the namespace of its dependent, or among cluster-scoped objects. One in another namespace
//! is absent, and an event with reason `OwnerRefInvalidNamespace` says so. A cluster-scoped object whose owner is of a
//! namespaced kind is left alone, with the same event.

mod graph;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use graph::{Dependent, Graph, Owner, Work};
pub(crate) use graph::{FOREGROUND, ORPHAN};

use crate::error::ApiError;
use crate::registry::catalog::Scope;
use crate::registry::delete_options::{DeleteOptions, Propagation};
use crate::registry::policy::DEFINITIONS;
use crate::registry::query::Call;
use crate::registry::{Core, meta, store_error};
use crate::store::{Event, Key, Query, Subscription};

/// When failed work is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How many objects are judged at the same time: their writes share commits.
const PARALLEL: usize = 16;
const USER: &str = "system:serviceaccount:kube-system:generic-garbage-collector";

/// Works until `stop`.
pub(crate) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let ring = core.store.ring().clone();
    loop {
        // Subscribed first: what happens during the listing is seen twice, which does no harm.
        let Ok(subscription) = ring.subscribe(ring.head()) else {
            continue;
        };
        let mut collector = Collector::new(core.clone(), subscription);
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            outcome = collector.work() => outcome,
        };
        if let Err(e) = outcome {
            tracing::warn!("the garbage collector starts anew: {e}");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// What came of judging one object.
#[derive(Debug, Default)]
struct Outcome {
    /// To be judged as a consequence.
    next: Vec<Work>,
    /// Uids that no object has.
    absent: Vec<String>,
    /// The kind of an owner is not served (now).
    unresolved: bool,
}

struct Collector {
    core: Arc<Core>,
    subscription: Subscription,
    graph: Graph,
    queue: BTreeSet<Work>,
    failed: BTreeSet<Work>,
    retry: Instant,
    /// Waits for a definition of its owner's kind.
    unresolved: BTreeSet<Work>,
}

impl Collector {
    fn new(core: Arc<Core>, subscription: Subscription) -> Self {
        Self {
            core,
            subscription,
            graph: Graph::default(),
            queue: BTreeSet::new(),
            failed: BTreeSet::new(),
            retry: Instant::now(),
            unresolved: BTreeSet::new(),
        }
    }

    /// Ends only with an error of the store, or when events were missed.
    async fn work(&mut self) -> Result<(), ApiError> {
        for def in &self.core.catalog.get().defs {
            if def.alias.is_some() {
                continue;
            }
            let query = Query {
                resource: Scope::stored(def).resource,
                namespace: None,
                after: None,
                limit: None,
            };
            let page = self.core.store.list(&query).map_err(|e| store_error(&e))?;
            for stored in &page.items {
                self.graph.load(stored, &mut self.queue);
            }
        }
        loop {
            while let Some(events) = self.subscription.next().now_or_never() {
                match events {
                    Ok(events) => self.observe(&events),
                    Err(_) => return Ok(()),
                }
            }
            if !self.queue.is_empty() {
                self.round().await;
                continue;
            }
            let (retry, pending) = (self.retry, !self.failed.is_empty());
            tokio::select! {
                events = self.subscription.next() => match events {
                    Ok(events) => self.observe(&events),
                    Err(_) => return Ok(()),
                },
                () = tokio::time::sleep_until(retry), if pending => self.queue.append(&mut self.failed),
            }
        }
    }

    fn observe(&mut self, events: &[Arc<Event>]) {
        for event in events {
            self.graph.apply(event, &mut self.queue);
            if &*event.key.resource == DEFINITIONS {
                self.queue.append(&mut self.unresolved);
            }
        }
    }

    /// Judges some of the queue.
    async fn round(&mut self) {
        let mut batch = Vec::new();
        while batch.len() < PARALLEL
            && let Some(work) = self.queue.pop_first()
        {
            batch.push(work);
        }
        let (core, graph) = (&*self.core, &self.graph);
        let done: Vec<_> = futures::stream::iter(batch)
            .map(|work| async move {
                let dependents = graph.dependents(&work.uid);
                let outcome = judge(core, graph, &work, &dependents).await;
                (work, outcome)
            })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        for (work, outcome) in done {
            match outcome {
                Ok(outcome) => {
                    for uid in &outcome.absent {
                        self.graph.remember_gone(uid);
                    }
                    self.queue.extend(outcome.next);
                    if outcome.unresolved {
                        self.unresolved.insert(work);
                    }
                }
                // It has changed or is gone: its event says what to do.
                Err(ApiError::NotFound(_)) => {}
                Err(e) => {
                    let Key {
                        namespace,
                        name,
                        resource,
                    } = &work.key;
                    if !matches!(e, ApiError::Conflict { .. }) {
                        tracing::warn!("cannot collect {resource} {namespace}/{name}: {e}");
                    }
                    self.failed.insert(work);
                    self.retry = Instant::now() + RETRY;
                }
            }
        }
    }
}

async fn judge(
    core: &Core,
    graph: &Graph,
    work: &Work,
    dependents: &[Dependent],
) -> Result<Outcome, ApiError> {
    let (group, plural) = work.key.resource.split_once('/').unwrap_or_default();
    let Some(scope) = core.catalog.get().find(group, plural).map(Scope::stored) else {
        return Ok(Outcome::default());
    };
    let Some(stored) = core.store.get(&work.key).map_err(|e| store_error(&e))? else {
        return Ok(Outcome::default());
    };
    let object = scope.present(&stored)?;
    if meta::text(&object, &["metadata", "uid"]) != work.uid {
        return Ok(Outcome::default());
    }
    if meta::is_deleting(&object) {
        let finalizers = meta::finalizers(&object);
        if finalizers.contains(&ORPHAN) {
            return orphan(core, &scope, work, dependents).await;
        }
        if finalizers.contains(&FOREGROUND) {
            return foreground(core, &scope, work, dependents).await;
        }
        return Ok(Outcome::default());
    }
    let verdict = weigh(core, graph, &scope, &object).await?;
    let mut outcome = Outcome {
        absent: verdict.searched,
        unresolved: verdict.unresolved,
        ..Outcome::default()
    };
    if verdict.keep || (verdict.dangling.is_empty() && verdict.waiting.is_empty()) {
        let useless = [verdict.dangling, verdict.waiting].concat();
        if !verdict.unresolved && !useless.is_empty() {
            forget_owners(core, &scope, work, &useless).await?;
        }
        return Ok(outcome);
    }
    let finalizers = meta::finalizers(&object);
    let mut revision = meta::resource_version(&object).to_owned();
    let propagation = if !verdict.waiting.is_empty() && !dependents.is_empty() {
        // A ring of objects that wait for each other would wait for ever.
        if dependents.iter().any(|dependent| dependent.waits) {
            revision = unblock(core, &scope, work).await?;
        }
        Propagation::Foreground
    } else if finalizers.contains(&ORPHAN) {
        Propagation::Orphan
    } else if finalizers.contains(&FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    let options = DeleteOptions::of(&work.uid, Some(&revision), propagation);
    let Key {
        namespace, name, ..
    } = &work.key;
    let mut call = Call::internal(USER);
    match core
        .delete_object(&mut call, &scope, namespace, name, &options)
        .await
    {
        Ok(_) => Ok(outcome),
        // Judged on an object that has changed since.
        Err(ApiError::Conflict { .. }) => {
            outcome.next.push(work.clone());
            Ok(outcome)
        }
        Err(e) => Err(e),
    }
}

/// The owners of one object, sorted.
#[derive(Debug, Default)]
struct Verdict {
    /// An owner exists that does not wait for this object, or cannot be judged.
    keep: bool,
    unresolved: bool,
    /// Uids of owners that do not exist.
    dangling: Vec<String>,
    /// Uids of owners in foreground deletion.
    waiting: Vec<String>,
    /// Uids that were looked for everywhere and not found.
    searched: Vec<String>,
}

async fn weigh(
    core: &Core,
    graph: &Graph,
    scope: &Scope,
    object: &Value,
) -> Result<Verdict, ApiError> {
    let mut verdict = Verdict::default();
    for owner in owners(object) {
        let group = owner
            .api_version
            .rsplit_once('/')
            .map_or("", |(group, _)| group);
        let found = core
            .catalog
            .get()
            .defs
            .iter()
            .find(|def| def.group == group && def.kind == owner.kind)
            .map(Scope::stored);
        let Some(kind) = found else {
            verdict.unresolved = true;
            verdict.keep = true;
            continue;
        };
        if kind.def.namespaced && !scope.def.namespaced {
            report(core, scope, object, &owner).await;
            verdict.keep = true;
            continue;
        }
        let namespace = if kind.def.namespaced {
            meta::namespace(object)
        } else {
            ""
        };
        let key = Key::new(&kind.resource, namespace, &owner.name);
        let stored = core.store.get(&key).map_err(|e| store_error(&e))?;
        let existing = stored
            .map(|stored| kind.present(&stored))
            .transpose()?
            .filter(|existing| meta::text(existing, &["metadata", "uid"]) == owner.uid);
        match existing {
            Some(existing)
                if meta::is_deleting(&existing)
                    && meta::finalizers(&existing).contains(&FOREGROUND) =>
            {
                verdict.waiting.push(owner.uid);
            }
            Some(_) => verdict.keep = true,
            None => {
                if kind.def.namespaced && !graph.is_gone(&owner.uid) {
                    if lives_elsewhere(core, &kind, &owner)? {
                        report(core, scope, object, &owner).await;
                    } else {
                        verdict.searched.push(owner.uid.clone());
                    }
                }
                verdict.dangling.push(owner.uid);
            }
        }
    }
    Ok(verdict)
}

fn owners(object: &Value) -> Vec<Owner> {
    let list = object["metadata"]["ownerReferences"].as_array();
    list.into_iter()
        .flatten()
        .filter_map(|owner| serde_json::from_value(owner.clone()).ok())
        .collect()
}

/// Whether an object of that kind, name and uid is in another namespace.
fn lives_elsewhere(core: &Core, kind: &Scope, owner: &Owner) -> Result<bool, ApiError> {
    let query = Query {
        resource: kind.resource.clone(),
        namespace: None,
        after: None,
        limit: None,
    };
    let page = core.store.list(&query).map_err(|e| store_error(&e))?;
    for stored in page
        .items
        .iter()
        .filter(|stored| stored.key.name == owner.name)
    {
        if meta::text(&kind.present(stored)?, &["metadata", "uid"]) == owner.uid {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The dependents lose their reference to an owner that goes without them.
async fn orphan(
    core: &Core,
    scope: &Scope,
    work: &Work,
    dependents: &[Dependent],
) -> Result<Outcome, ApiError> {
    for Dependent {
        work: dependent, ..
    } in dependents
    {
        let (group, plural) = dependent.key.resource.split_once('/').unwrap_or_default();
        let Some(scope) = core.catalog.get().find(group, plural).map(Scope::stored) else {
            continue;
        };
        match forget_owners(core, &scope, dependent, std::slice::from_ref(&work.uid)).await {
            Ok(()) | Err(ApiError::NotFound(_)) => {}
            Err(e) => return Err(e),
        }
    }
    release(core, scope, work, ORPHAN).await?;
    Ok(Outcome::default())
}

/// The dependents are looked at; the owner may go when none blocks it.
async fn foreground(
    core: &Core,
    scope: &Scope,
    work: &Work,
    dependents: &[Dependent],
) -> Result<Outcome, ApiError> {
    if !dependents.iter().any(|dependent| dependent.blocks) {
        release(core, scope, work, FOREGROUND).await?;
    }
    let next = dependents.iter().filter(|dependent| !dependent.waits);
    Ok(Outcome {
        next: next.map(|dependent| dependent.work.clone()).collect(),
        ..Outcome::default()
    })
}

/// Takes a finalizer off.
async fn release(core: &Core, scope: &Scope, work: &Work, finalizer: &str) -> Result<(), ApiError> {
    change(core, scope, work, &|object| {
        if let Some(list) = object["metadata"]["finalizers"].as_array_mut() {
            list.retain(|f| f != finalizer);
        }
    })
    .await
    .map(drop)
}

/// Removes the references to these owners.
async fn forget_owners(
    core: &Core,
    scope: &Scope,
    work: &Work,
    uids: &[String],
) -> Result<(), ApiError> {
    change(core, scope, work, &|object| {
        let metadata = meta::metadata(object);
        if let Some(list) = metadata
            .get_mut("ownerReferences")
            .and_then(Value::as_array_mut)
        {
            list.retain(|owner| !uids.iter().any(|uid| owner["uid"] == *uid));
            if list.is_empty() {
                metadata.remove("ownerReferences");
            }
        }
    })
    .await
    .map(drop)
}

/// No owner waits for this object any more; returns its revision then.
async fn unblock(core: &Core, scope: &Scope, work: &Work) -> Result<String, ApiError> {
    let object = change(core, scope, work, &|object| {
        let owners = object["metadata"]["ownerReferences"].as_array_mut();
        for owner in owners.into_iter().flatten() {
            owner["blockOwnerDeletion"] = json!(false);
        }
    })
    .await?;
    Ok(meta::resource_version(&object).to_owned())
}

/// Changes the metadata of the object with this uid, not of another one of the same name.
async fn change(
    core: &Core,
    scope: &Scope,
    work: &Work,
    edit: &(dyn Fn(&mut Value) + Sync),
) -> Result<Value, ApiError> {
    let mut call = Call::internal(USER);
    call.info.namespace.clone_from(&work.key.namespace);
    call.info.name.clone_from(&work.key.name);
    core.update_object(&mut call, scope, &|old| {
        if meta::text(old, &["metadata", "uid"]) != work.uid {
            return Err(ApiError::NotFound(scope.target(&work.key.name)));
        }
        let mut new = old.clone();
        edit(&mut new);
        Ok(new)
    })
    .await
}

/// Says that an owner cannot be one.
async fn report(core: &Core, scope: &Scope, object: &Value, owner: &Owner) {
    let namespace = meta::namespace(object);
    let home = if namespace.is_empty() {
        "default"
    } else {
        namespace
    };
    let message = format!(
        "ownerRef [{}/{}, namespace: {namespace}, name: {}, uid: {}] does not exist in namespace {namespace:?}",
        owner.api_version, owner.kind, owner.name, owner.uid
    );
    let now = meta::now();
    let uid = meta::text(object, &["metadata", "uid"]);
    let event = json!({
        "apiVersion": "v1",
        "kind": "Event",
        // The same name for the same fault: it is told once in the life of an event.
        "metadata": {"name": format!("{}.{}", meta::name(object), owner.uid), "namespace": home},
        "involvedObject": {
            "apiVersion": scope.api_version(), "kind": scope.def.kind, "namespace": namespace,
            "name": meta::name(object), "uid": uid,
        },
        "type": "Warning",
        "reason": "OwnerRefInvalidNamespace",
        "message": message,
        "source": {"component": "garbage-collector-controller"},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    });
    let Some(events) = core.catalog.get().find("", "events").map(Scope::stored) else {
        return;
    };
    let mut call = Call::internal(USER);
    call.info.namespace = home.to_owned();
    match core.create_object(&mut call, &events, event).await {
        Ok(_) | Err(ApiError::AlreadyExists(_)) => {}
        Err(e) => tracing::warn!("event not written: {e}"),
    }
}
