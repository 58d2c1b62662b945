//! What the controllers of objects have in common: how they fail and try again, what a write comes to, and who wrote it.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_api::labels;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PatchParams, PostParams};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, controller, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tracing::{debug, warn};

use crate::written::Written;

/// How often a conflicting write is planned anew within one reconcile.
pub(crate) const ATTEMPTS: usize = 5;
/// First pause after a failed reconcile; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Why a reconcile failed. It is tried again with a growing pause.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A request to the API server.
    #[error("{name}: {operation}")]
    Api {
        /// What was asked.
        operation: &'static str,
        /// `namespace/name` of the machine.
        name: String,
        /// The answer.
        source: Box<kube::Error>,
    },
    /// Somebody else kept changing the machine.
    #[error("status of {0}: still in conflict after {ATTEMPTS} attempts")]
    Conflict(String),
    /// A DataVolume that the machine needs is not filled.
    #[error("{name}: {why}")]
    DataVolume {
        /// `namespace/name` of the machine.
        name: String,
        /// Whether it will not be.
        failed: bool,
        /// Which, and how far it is.
        why: String,
    },
    /// Something that the machine needs is not there yet, or is refused for now; which one, and what.
    #[error("{0}: {1}")]
    Waits(String, String),
}

/// What became of one step of a plan.
pub(crate) enum Step {
    Done,
    /// The machine changed meanwhile: read it again and plan anew.
    Stale,
}

/// What to do, in order, and when to look again without a change.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan<A> {
    /// The steps, in order.
    pub actions: Vec<A>,
    /// When to look again even if nothing changes.
    pub again: Option<Duration>,
}

impl<A> Default for Plan<A> {
    fn default() -> Self {
        Self {
            actions: Vec::new(),
            again: None,
        }
    }
}

/// Failed reconciles in a row, by UID.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<HashMap<String, u32>>);

impl Failures {
    /// Counts one more; gives the pause before the next attempt.
    pub(crate) fn pause(&self, uid: String) -> Duration {
        let mut failures = locked(&self.0);
        let count = failures.entry(uid).or_default();
        *count = count.saturating_add(1);
        RETRY_MIN
            .saturating_mul(1 << (*count - 1).min(16))
            .min(RETRY_MAX)
    }

    /// The row has ended, or the object.
    pub(crate) fn forget(&self, uid: &str) {
        locked(&self.0).remove(uid);
    }
}

/// All objects of a kind, in a cache that the stream fills as it is read.
pub(crate) fn watched<K>(
    client: &Client,
) -> (Store<K>, BoxStream<'static, Result<(), watcher::Error>>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store::<K>();
    let all = watcher(Api::<K>::all(client.clone()), watcher::Config::default());
    let events = reflector::reflector(writer, all.default_backoff()).map_ok(drop);
    (store, events.boxed())
}

/// Says what became of the reconciles of the controller `what`, to their end.
pub(crate) async fn report<K>(
    what: &str,
    outcomes: impl Stream<
        Item = Result<(ObjectRef<K>, controller::Action), controller::Error<Error, watcher::Error>>,
    >,
) where
    K: Resource<DynamicType = ()>,
{
    outcomes
        .for_each(|outcome| async {
            match outcome {
                Ok(_) => {}
                // An event of something that belongs to an object that is gone.
                Err(controller::Error::ObjectNotFound(object)) => debug!(%object, "{what}: gone"),
                Err(error) => {
                    warn!(error = %crate::chain(&error), "{what}: reconcile failed, will be tried again");
                }
            }
        })
        .await;
}

/// Locks a map. Nothing here panics while it holds one, so a poisoned map is still whole.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `namespace/name`, for messages.
pub(crate) fn full_name<K: ResourceExt>(object: &K) -> String {
    format!(
        "{}/{}",
        object.namespace().unwrap_or_default(),
        object.name_any()
    )
}

/// Puts the operation and the object's name to an API error.
pub(crate) fn failed<K: ResourceExt>(
    operation: &'static str,
    object: &K,
) -> impl FnOnce(kube::Error) -> Error + use<K> {
    let name = full_name(object);
    move |source| Error::Api {
        operation,
        name,
        source: Box::new(source),
    }
}

pub(crate) fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

/// A conflict means: read and plan again. A missing object means there is nothing left to do for it, which the same
/// re-reading finds out.
pub(crate) fn stale_or<K: ResourceExt>(
    patched: Result<K, kube::Error>,
    operation: &'static str,
    object: &K,
    version: &mut Option<String>,
    written: &Written,
) -> Result<Step, Error> {
    match patched {
        Ok(answer) => {
            written.note(&answer);
            *version = answer.resource_version();
            Ok(Step::Done)
        }
        Err(error) if matches!(code(&error), 404 | 409) => Ok(Step::Stale),
        Err(error) => Err(failed(operation, object)(error)),
    }
}

/// True when the object with this UID controls the other.
pub(crate) fn is_owned<K: ResourceExt>(object: &K, uid: &str) -> bool {
    object
        .owner_references()
        .iter()
        .any(|o| o.controller == Some(true) && o.uid == uid)
}

pub(crate) fn manager_patch() -> PatchParams {
    PatchParams {
        field_manager: Some(labels::CONTROLLER_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

pub(crate) fn manager_post() -> PostParams {
    PostParams {
        field_manager: Some(labels::CONTROLLER_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// Now, to the second, which is what the API keeps.
pub(crate) fn now() -> Time {
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH))
}
