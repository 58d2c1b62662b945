//! ResourceQuota: what a namespace may hold, checked at each create and shown in the quota's status.
//!
//! # Guarantees
//! - Two creates at once cannot both take the last place: from the check until the object is stored, creates in a namespace
//!   with a quota go one after the other. Namespaces without a quota are not slowed down.
//! - The check is made on what is stored and not on the quota's status, so it cannot be behind.
//! - The status follows the store's events; deletes free what they held at once.

mod ledger;
mod quantity;
mod usage;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use crate::error::{ApiError, Cause};
use crate::registry::catalog::Scope;
use crate::registry::query::Call;
use crate::registry::{Core, meta};
use ledger::Ledger;
pub(crate) use quantity::Quantity;

/// Store name of the quotas.
const QUOTAS: &str = "/resourcequotas";
/// When a status that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(5);
const USER: &str = "system:serviceaccount:kube-system:resourcequota-controller";

/// The quotas of all namespaces.
#[derive(Default)]
pub(crate) struct Quotas {
    ledger: Mutex<Ledger>,
    /// Creates in a namespace with quotas, one at a time.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// To be held until the object that was let in is stored.
#[derive(Debug)]
pub(crate) struct Permit {
    _turn: Option<OwnedMutexGuard<()>>,
}

impl Quotas {
    /// Asks the quotas of the namespace; `old` is the stored object on an update.
    pub(crate) async fn admit(
        &self,
        core: &Core,
        scope: &Scope,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<Permit, ApiError> {
        let free = Permit { _turn: None };
        if !scope.def.namespaced || (old.is_some() && !usage::is_measured(&scope.resource)) {
            return Ok(free);
        }
        let namespace = meta::namespace(object);
        if self.look(core, |ledger| ledger.space(namespace).is_none())? {
            return Ok(free);
        }
        let turn = self.turn(namespace).lock_owned().await;
        let refusal = self.look(core, |ledger| {
            let space = ledger.space(namespace);
            space.and_then(|space| space.refusal(&scope.resource, object, old))
        })?;
        match refusal {
            Some(why) => Err(ApiError::Forbidden {
                target: scope.target(meta::name(object)),
                why,
                cause: None,
            }),
            None => Ok(Permit { _turn: Some(turn) }),
        }
    }

    fn turn(&self, namespace: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds or waits for can be made again.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(namespace.to_owned()).or_default().clone()
    }

    fn look<T>(&self, core: &Core, see: impl FnOnce(&Ledger) -> T) -> Result<T, ApiError> {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.catch_up(&*core.store, &core.catalog.get())?;
        Ok(see(&ledger))
    }

    /// The statuses that the quotas of a namespace should have, by name.
    fn statuses(&self, core: &Core, namespace: &str) -> Result<Vec<(String, Value)>, ApiError> {
        self.look(core, |ledger| {
            let Some(space) = ledger.space(namespace) else {
                return Vec::new();
            };
            let quotas = space.quotas.iter();
            let outdated = quotas.filter_map(|(name, quota)| {
                let used: Map<String, Value> = space
                    .used(quota)
                    .into_iter()
                    .map(|(name, amount)| (name, json!(amount.to_string())))
                    .collect();
                let status = json!({"hard": quota["spec"]["hard"], "used": used});
                (quota["status"] != status).then(|| (name.clone(), status))
            });
            outdated.collect()
        })
    }
}

/// Keeps the statuses right until `stop`.
pub(crate) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let ring = core.store.ring().clone();
    loop {
        let Ok(mut subscription) = ring.subscribe(ring.head()) else {
            continue;
        };
        let mut touched = core
            .quotas
            .look(&core, Ledger::namespaces)
            .unwrap_or_default();
        loop {
            let mut failed = BTreeSet::new();
            for namespace in std::mem::take(&mut touched) {
                if let Err(e) = sync_statuses(&core, &namespace).await {
                    tracing::warn!("cannot write the status of a quota in {namespace}: {e}");
                    failed.insert(namespace);
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                events = subscription.next() => match events {
                    Ok(events) => {
                        let names = core.quotas.look(&core, Ledger::namespaces).unwrap_or_default();
                        if !names.is_empty() {
                            let namespaces = events.iter().map(|event| &event.key.namespace);
                            touched.extend(namespaces.filter(|n| names.contains(*n)).cloned());
                        }
                    }
                    // Too far behind: everything is looked at anew.
                    Err(_) => break,
                },
                () = tokio::time::sleep(RETRY), if !failed.is_empty() => {}
            }
            touched.append(&mut failed);
        }
    }
}

async fn sync_statuses(core: &Core, namespace: &str) -> Result<(), ApiError> {
    let Some(scope) = core
        .catalog
        .get()
        .find("", "resourcequotas")
        .map(Scope::stored)
    else {
        return Ok(());
    };
    for (name, status) in core.quotas.statuses(core, namespace)? {
        let mut call = Call::internal(USER);
        call.info.namespace = namespace.to_owned();
        call.info.name = name;
        call.info.subresource = "status".into();
        let written = core
            .update_object(&mut call, &scope, &|old| {
                let mut new = old.clone();
                new["status"] = status.clone();
                Ok(new)
            })
            .await;
        match written {
            Ok(_) | Err(ApiError::NotFound(_)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// What is wrong with a quota.
pub(crate) fn validate(quota: &Value) -> Vec<Cause> {
    const COMPUTE: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pods"];
    const COUNTED: [&str; 8] = [
        "configmaps",
        "persistentvolumeclaims",
        "replicationcontrollers",
        "resourcequotas",
        "secrets",
        "services",
        "services.loadbalancers",
        "services.nodeports",
    ];
    let mut causes = Vec::new();
    for (name, value) in quota["spec"]["hard"].as_object().into_iter().flatten() {
        let field = format!("spec.hard[{name}]");
        let bare = name
            .strip_prefix("requests.")
            .or_else(|| name.strip_prefix("limits."));
        let known = name.contains('/')
            || COMPUTE.contains(&name.as_str())
            || COUNTED.contains(&name.as_str())
            || bare.is_some_and(|bare| COMPUTE[..3].contains(&bare) || bare == "storage");
        if !known {
            causes.push(Cause::invalid(
                &field,
                format!("{name:?}"),
                "must be a standard resource for quota",
            ));
        }
        let Some(amount) = Quantity::of(value) else {
            causes.push(Cause::invalid(
                &field,
                value,
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ));
            continue;
        };
        if amount.is_negative() {
            causes.push(Cause::invalid(
                &field,
                format!("{:?}", amount.to_string()),
                "must be greater than or equal to 0",
            ));
        }
        let whole =
            name == "pods" || COUNTED.contains(&name.as_str()) || name.starts_with("count/");
        if whole && !amount.is_whole() {
            causes.push(Cause::invalid(
                &field,
                format!("{:?}", amount.to_string()),
                "must be an integer",
            ));
        }
    }
    causes
}
