//! Which objects name which others as their owners, by uid. Pure: fed with what the store says, asked by the collector.
//!
//! Only objects with owners are kept, and the owners that wait for their dependents: the rest of the store costs nothing
//! here. Whether an owner exists is not answered here but by the store, at the moment when it matters.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use serde::Deserialize;

use crate::store::{Event, Key, Stored};

/// Holds an owner until the dependents that block it are gone.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Holds an owner until its dependents no longer name it.
pub(crate) const ORPHAN: &str = "orphan";

/// How many uids of deleted objects are remembered, so that cascades need no search for their owners.
const GONE: usize = 4096;

/// One object to look at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Work {
    pub(crate) key: Key,
    pub(crate) uid: String,
}

/// An entry of `metadata.ownerReferences`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Owner {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) block_owner_deletion: Option<bool>,
}

/// The part of an object that matters here; the rest is skipped, not built.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Peek {
    metadata: Metadata,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    uid: String,
    owner_references: Option<Vec<Owner>>,
    deletion_timestamp: Option<String>,
    finalizers: Option<Vec<String>>,
}

impl Metadata {
    fn of(value: &[u8]) -> Self {
        serde_json::from_slice::<Peek>(value)
            .map(|peek| peek.metadata)
            .unwrap_or_default()
    }

    fn waits_as(&self, finalizer: &str) -> bool {
        self.deletion_timestamp.is_some()
            && self.finalizers.iter().flatten().any(|f| f == finalizer)
    }
}

/// An object that has owners.
#[derive(Debug)]
struct Node {
    key: Key,
    /// Uid, and whether the owner's foreground deletion waits for this object.
    owners: Vec<(String, bool)>,
}

/// A dependent, as its owner sees it.
#[derive(Debug, Clone)]
pub(crate) struct Dependent {
    pub(crate) work: Work,
    pub(crate) blocks: bool,
    /// It waits for dependents of its own.
    pub(crate) waits: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    nodes: HashMap<String, Node>,
    by_owner: HashMap<String, BTreeSet<String>>,
    /// Objects in foreground deletion.
    waiting: HashMap<String, Key>,
    gone: HashSet<String>,
    gone_order: VecDeque<String>,
}

impl Graph {
    /// Takes in an object of a listing.
    pub(crate) fn load(&mut self, stored: &Stored, work: &mut BTreeSet<Work>) {
        self.present(&stored.key, &stored.value, work);
    }

    /// Takes in a write.
    pub(crate) fn apply(&mut self, event: &Event, work: &mut BTreeSet<Work>) {
        match (&event.value, &event.previous) {
            (Some(value), _) => self.present(&event.key, value, work),
            (None, Some(previous)) => self.removed(&Metadata::of(previous).uid, work),
            (None, None) => {}
        }
    }

    /// The objects that name `uid` as an owner.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<Dependent> {
        let found = self.by_owner.get(uid).into_iter().flatten();
        found
            .filter_map(|dependent| {
                let node = self.nodes.get(dependent)?;
                Some(Dependent {
                    work: Work {
                        key: node.key.clone(),
                        uid: dependent.clone(),
                    },
                    blocks: node
                        .owners
                        .iter()
                        .any(|(owner, block)| owner == uid && *block),
                    waits: self.waiting.contains_key(dependent),
                })
            })
            .collect()
    }

    /// Whether the object with this uid is known to be deleted.
    pub(crate) fn is_gone(&self, uid: &str) -> bool {
        self.gone.contains(uid)
    }

    /// Remembers that there is no object with this uid.
    pub(crate) fn remember_gone(&mut self, uid: &str) {
        if !self.gone.insert(uid.to_owned()) {
            return;
        }
        self.gone_order.push_back(uid.to_owned());
        if self.gone_order.len() > GONE
            && let Some(oldest) = self.gone_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
    }

    fn present(&mut self, key: &Key, value: &[u8], work: &mut BTreeSet<Work>) {
        let metadata = Metadata::of(value);
        if metadata.uid.is_empty() {
            return;
        }
        let itself = Work {
            key: key.clone(),
            uid: metadata.uid.clone(),
        };
        let owners: Vec<(String, bool)> = metadata
            .owner_references
            .iter()
            .flatten()
            .map(|owner| (owner.uid.clone(), owner.block_owner_deletion == Some(true)))
            .collect();
        if self.relate(&itself, owners, work) {
            work.insert(itself.clone());
        }
        if metadata.waits_as(FOREGROUND) {
            if self.waiting.insert(metadata.uid, key.clone()).is_none() {
                work.insert(itself);
            }
        } else {
            self.waiting.remove(&itself.uid);
            if metadata.waits_as(ORPHAN) {
                work.insert(itself);
            }
        }
    }

    /// Notes the owners of an object; whether they differ from what was known.
    fn relate(
        &mut self,
        itself: &Work,
        owners: Vec<(String, bool)>,
        work: &mut BTreeSet<Work>,
    ) -> bool {
        let before = self.nodes.get(&itself.uid).map(|node| node.owners.clone());
        if before.as_deref().unwrap_or_default() == owners {
            return false;
        }
        self.unrelate(&itself.uid, work);
        if owners.is_empty() {
            return false;
        }
        for (owner, _) in &owners {
            self.by_owner
                .entry(owner.clone())
                .or_default()
                .insert(itself.uid.clone());
        }
        let node = Node {
            key: itself.key.clone(),
            owners,
        };
        self.nodes.insert(itself.uid.clone(), node);
        true
    }

    /// Forgets the owners of an object; those that wait for it have to be looked at.
    fn unrelate(&mut self, uid: &str, work: &mut BTreeSet<Work>) {
        for (owner, _) in self
            .nodes
            .remove(uid)
            .map(|node| node.owners)
            .unwrap_or_default()
        {
            if let Some(dependents) = self.by_owner.get_mut(&owner) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.by_owner.remove(&owner);
                }
            }
            if let Some(key) = self.waiting.get(&owner) {
                work.insert(Work {
                    key: key.clone(),
                    uid: owner,
                });
            }
        }
    }

    fn removed(&mut self, uid: &str, work: &mut BTreeSet<Work>) {
        self.waiting.remove(uid);
        self.unrelate(uid, work);
        let dependents = self.dependents(uid);
        // Remembered only where somebody may ask.
        if !dependents.is_empty() {
            self.remember_gone(uid);
        }
        work.extend(dependents.into_iter().map(|dependent| dependent.work));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, owners: &[(&str, bool)], finalizer: Option<&str>, exists: bool) -> Event {
        let owners: Vec<_> = owners
            .iter()
            .map(|(uid, block)| json!({"uid": uid, "blockOwnerDeletion": block}))
            .collect();
        let mut object = json!({"metadata": {"uid": name, "ownerReferences": owners}, "spec": {"x": [1, {"uid": 2}]}});
        if let Some(finalizer) = finalizer {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            object["metadata"]["finalizers"] = json!([finalizer]);
        }
        let value = Some(object.to_string().into());
        let (value, previous) = if exists { (value, None) } else { (None, value) };
        Event {
            revision: 1,
            key: Key::new(&"/things".into(), "ns", name),
            value,
            previous,
            previous_revision: 0,
        }
    }

    fn apply(graph: &mut Graph, event: &Event) -> Vec<String> {
        let mut work = BTreeSet::new();
        graph.apply(event, &mut work);
        work.into_iter().map(|work| work.uid).collect()
    }

    #[test]
    fn only_changes_of_owners_are_work() {
        let mut graph = Graph::default();
        assert!(apply(&mut graph, &event("owner", &[], None, true)).is_empty());
        let dependent = event("d", &[("owner", true)], None, true);
        assert_eq!(apply(&mut graph, &dependent), ["d"]);
        assert!(apply(&mut graph, &dependent).is_empty(), "nothing new");
        assert_eq!(graph.dependents("owner").len(), 1);
        assert_eq!(apply(&mut graph, &event("owner", &[], None, false)), ["d"]);
        assert!(graph.is_gone("owner"));
        assert!(apply(&mut graph, &event("d", &[], None, true)).is_empty());
        assert!(
            graph.dependents("owner").is_empty()
                && graph.nodes.is_empty()
                && graph.by_owner.is_empty()
        );
    }

    #[test]
    fn an_owner_in_foreground_deletion_hears_of_its_dependents() {
        let mut graph = Graph::default();
        apply(&mut graph, &event("d", &[("owner", true)], None, true));
        let waits = event("owner", &[], Some(FOREGROUND), true);
        assert_eq!(apply(&mut graph, &waits), ["owner"]);
        assert!(apply(&mut graph, &waits).is_empty());
        assert!(graph.dependents("owner")[0].blocks);
        assert_eq!(
            apply(&mut graph, &event("d", &[("owner", true)], None, false)),
            ["owner"]
        );
        assert_eq!(
            apply(&mut graph, &event("o", &[], Some(ORPHAN), true)),
            ["o"]
        );
    }

    #[test]
    fn memory_of_the_gone_is_bounded() {
        let mut graph = Graph::default();
        for n in 0..=GONE {
            graph.remember_gone(&n.to_string());
        }
        assert!(!graph.is_gone("0") && graph.is_gone("1"));
        assert_eq!(graph.gone.len(), GONE);
    }
}
