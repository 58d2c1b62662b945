//! What the namespaces hold, for the quotas in them. Follows the store's ring; empty as long as there is no quota at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures::FutureExt as _;
use serde_json::Value;

use super::QUOTAS;
use super::quantity::Quantity;
use super::usage::{self, Amounts, Usage};
use crate::error::ApiError;
use crate::registry::catalog::Snapshot;
use crate::registry::{catalog::Scope, meta, store_error};
use crate::store::{Event, Key, Query, Store, Subscription};

/// One namespace.
#[derive(Debug, Default)]
pub(super) struct Space {
    pub(super) quotas: BTreeMap<String, Value>,
    /// Names by stored resource, with what measured objects take.
    objects: HashMap<Arc<str>, HashMap<String, Option<Usage>>>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Ledger {
    subscription: Option<Subscription>,
    /// None while there is no quota.
    spaces: Option<HashMap<String, Space>>,
}

impl Ledger {
    /// Takes in every write that has been acknowledged.
    pub(super) fn catch_up(
        &mut self,
        store: &dyn Store,
        snapshot: &Snapshot,
    ) -> Result<(), ApiError> {
        loop {
            let Some(subscription) = &mut self.subscription else {
                self.load(store, snapshot)?;
                continue;
            };
            match subscription.next().now_or_never() {
                None => return Ok(()),
                Some(Err(_)) => self.subscription = None,
                Some(Ok(events)) => {
                    if self.spaces.is_none()
                        && events.iter().any(|event| &*event.key.resource == QUOTAS)
                    {
                        // The first quota: now everything counts.
                        self.subscription = None;
                        continue;
                    }
                    for event in &events {
                        self.apply(event);
                    }
                }
            }
        }
    }

    /// The namespace, if there is a quota in it.
    pub(super) fn space(&self, namespace: &str) -> Option<&Space> {
        let space = self.spaces.as_ref()?.get(namespace)?;
        (!space.quotas.is_empty()).then_some(space)
    }

    /// Namespaces that have quotas.
    pub(super) fn namespaces(&self) -> BTreeSet<String> {
        let spaces = self.spaces.iter().flatten();
        spaces
            .filter(|(_, space)| !space.quotas.is_empty())
            .map(|(namespace, _)| namespace.clone())
            .collect()
    }

    fn load(&mut self, store: &dyn Store, snapshot: &Snapshot) -> Result<(), ApiError> {
        // Subscribed first: what is seen twice is the same both times.
        let ring = store.ring();
        let Ok(subscription) = ring.subscribe(ring.head()) else {
            return Ok(());
        };
        let everything = |resource: Arc<str>| {
            store
                .list(&Query {
                    resource,
                    namespace: None,
                    after: None,
                    limit: None,
                })
                .map_err(|e| store_error(&e))
        };
        self.spaces = None;
        if !everything(QUOTAS.into())?.items.is_empty() {
            self.spaces = Some(HashMap::new());
            for def in snapshot
                .defs
                .iter()
                .filter(|def| def.namespaced && def.alias.is_none())
            {
                for stored in everything(Scope::stored(def).resource)?.items {
                    self.note(&stored.key, Some(&stored.value));
                }
            }
        }
        self.subscription = Some(subscription);
        Ok(())
    }

    fn apply(&mut self, event: &Event) {
        self.note(&event.key, event.value.as_deref());
    }

    fn note(&mut self, key: &Key, value: Option<&[u8]>) {
        let Some(spaces) = &mut self.spaces else {
            return;
        };
        if key.namespace.is_empty() {
            return;
        }
        let space = spaces.entry(key.namespace.clone()).or_default();
        let parsed = || -> Value {
            value
                .and_then(|value| serde_json::from_slice(value).ok())
                .unwrap_or_default()
        };
        if &*key.resource == QUOTAS {
            match value {
                Some(_) => space.quotas.insert(key.name.clone(), parsed()),
                None => space.quotas.remove(&key.name),
            };
        }
        let objects = space.objects.entry(key.resource.clone()).or_default();
        if value.is_none() {
            objects.remove(&key.name);
        } else {
            let usage =
                usage::is_measured(&key.resource).then(|| usage::of(&key.resource, &parsed()));
            objects.insert(key.name.clone(), usage);
        }
    }
}

/// The limits of a quota.
pub(super) fn hard(quota: &Value) -> Amounts {
    let entries = quota["spec"]["hard"].as_object().into_iter().flatten();
    entries
        .filter_map(|(name, value)| Some((name.clone(), Quantity::of(value)?)))
        .collect()
}

impl Space {
    /// What is used of the things that the quota limits.
    pub(super) fn used(&self, quota: &Value) -> Amounts {
        let mut sum = Amounts::new();
        let scoped = !quota["spec"]["scopes"].as_array().is_none_or(Vec::is_empty)
            || quota["spec"]["scopeSelector"].is_object();
        for (resource, objects) in &self.objects {
            for name in usage::counters(resource) {
                let count = if scoped {
                    objects
                        .values()
                        .flatten()
                        .filter(|usage| usage.in_scope(quota))
                        .count()
                } else {
                    objects.len()
                };
                sum.insert(name, Quantity::count(count));
            }
            for usage in objects
                .values()
                .flatten()
                .filter(|usage| usage.in_scope(quota))
            {
                usage::add(&mut sum, &usage.amounts);
            }
        }
        hard(quota)
            .into_keys()
            .map(|name| {
                let used = sum.get(&name).copied().unwrap_or_default();
                (name, used)
            })
            .collect()
    }

    /// The refusal of a quota, if a write takes more than is left. `old` is the stored object on an update.
    pub(super) fn refusal(
        &self,
        resource: &str,
        object: &Value,
        old: Option<&Value>,
    ) -> Option<String> {
        let usage = usage::of(resource, object);
        let mut wanted = usage.amounts.clone();
        match old {
            None => wanted.extend(
                usage::counters(resource)
                    .into_iter()
                    .map(|name| (name, Quantity::count(1))),
            ),
            Some(old) => {
                for (name, amount) in usage::of(resource, old).amounts {
                    let slot = wanted.entry(name).or_default();
                    *slot = slot.minus(amount);
                }
                wanted.retain(|_, amount| amount.is_positive());
            }
        }
        for (name, quota) in &self.quotas {
            if !usage.in_scope(quota) || meta::is_deleting(quota) {
                continue;
            }
            let hard = hard(quota);
            if resource == "/pods"
                && old.is_none()
                && let Some(unsaid) = usage::unsaid(object, &hard)
            {
                return Some(format!("failed quota: {name}: {unsaid}"));
            }
            let used = self.used(quota);
            let over: Vec<&String> = hard
                .iter()
                .filter(|(name, limit)| {
                    wanted.get(*name).is_some_and(|more| {
                        let used = used.get(*name).copied().unwrap_or_default();
                        used.add(*more).exceeds(**limit)
                    })
                })
                .map(|(name, _)| name)
                .collect();
            if !over.is_empty() {
                let show = |amounts: &Amounts| {
                    let parts = over.iter().map(|name| {
                        format!("{name}={}", amounts.get(*name).copied().unwrap_or_default())
                    });
                    parts.collect::<Vec<_>>().join(",")
                };
                return Some(format!(
                    "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
                    show(&wanted),
                    show(&used),
                    show(&hard)
                ));
            }
        }
        None
    }
}
