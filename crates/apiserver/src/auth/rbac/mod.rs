//! Role based access control: `rbac.authorization.k8s.io/v1`, as upstream has it.
//!
//! Decisions come from an [`index::Index`] in memory. It is brought up to the store's last write whenever it is asked, so
//! what an acknowledged write grants or takes is seen by the next request; a request costs no look into the store.
//! The group `system:masters` may do everything, whatever the bindings say.

pub mod defaults;
pub(crate) mod index;
pub mod rule;
pub(crate) mod validate;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use serde_json::Value;

pub use rule::Rule;

use crate::auth::{Decision, MASTERS, RequestInfo, UserInfo};
use crate::store::{Event, Query, Store, StoreError, Subscription};
use index::Index;

/// The API group.
pub const GROUP: &str = "rbac.authorization.k8s.io";

/// Decides by the roles and bindings of a store.
pub struct Rbac {
    store: Arc<dyn Store>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    index: Index,
    /// Where the index stands; none if it has to be made anew.
    following: Option<Subscription>,
}

impl Rbac {
    /// An authorizer over what is in the store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            state: Mutex::default(),
        }
    }

    /// May this user make this request?
    pub fn authorize(&self, user: &UserInfo, request: &RequestInfo) -> Decision {
        if user.groups.iter().any(|group| group == MASTERS) {
            return Decision::Allow(String::new());
        }
        self.with_index(|index| {
            let mut reason = None;
            let errors = index.visit(user, &request.namespace, |grant| {
                if grant.rules.iter().any(|rule| rule.allows(request)) {
                    reason = Some(grant.reason());
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            });
            match reason {
                Some(reason) => Decision::Allow(reason),
                None if errors.is_empty() => Decision::Deny(String::new()),
                None => Decision::Deny(format!("RBAC: {}", aggregate(errors))),
            }
        })
    }

    /// The rules that a user has in a namespace (with the cluster-wide ones), or everywhere; and what is wrong with bindings.
    pub fn rules(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        self.with_index(|index| {
            let mut rules = Vec::new();
            let errors = index.visit(user, namespace, |grant| {
                rules.extend(grant.rules.iter().cloned());
                ControlFlow::Continue(())
            });
            (rules, errors)
        })
    }

    /// Takes in what was written since the last time, so that a request has less to do.
    pub fn catch_up(&self) {
        self.with_index(|_| ());
    }

    fn with_index<T>(&self, ask: impl FnOnce(&Index) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = state.follow(&*self.store) {
            // What is unknown is not granted.
            tracing::error!("cannot read roles and bindings: {error}");
            *state = State::default();
        }
        ask(&state.index)
    }
}

impl State {
    fn follow(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        while let Some(following) = &mut self.following {
            if store.ring().head() == following.seen() {
                return Ok(());
            }
            // Never waits: what is not there yet was not acknowledged either.
            match following.next().now_or_never() {
                Some(Ok(events)) => {
                    for event in events {
                        self.apply(&event);
                    }
                }
                Some(Err(_)) => self.following = None,
                None => return Ok(()),
            }
        }
        self.load(store)
    }

    fn apply(&mut self, event: &Event) {
        let key = &event.key;
        if !index::RESOURCES.contains(&&*key.resource) {
            return;
        }
        // What cannot be read grants nothing.
        let object: Option<Value> = event
            .value
            .as_ref()
            .and_then(|value| serde_json::from_slice(value).ok());
        self.index
            .apply(&key.resource, &key.namespace, &key.name, object.as_ref());
    }

    fn load(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        loop {
            // Subscribed first: what is written while listing is applied on top of the list.
            let Ok(following) = store.ring().subscribe(store.ring().head()) else {
                continue;
            };
            let mut index = Index::default();
            for resource in index::RESOURCES {
                let query = Query {
                    resource: resource.into(),
                    namespace: None,
                    after: None,
                    limit: None,
                };
                for stored in store.list(&query)?.items {
                    let object: Option<Value> = serde_json::from_slice(&stored.value).ok();
                    let key = &stored.key;
                    index.apply(resource, &key.namespace, &key.name, object.as_ref());
                }
            }
            self.index = index;
            self.following = Some(following);
            return Ok(());
        }
    }
}

/// Several errors as one, each text once, in Go's way.
pub(crate) fn aggregate(errors: Vec<String>) -> String {
    let mut once: Vec<String> = Vec::new();
    for error in errors {
        if !once.contains(&error) {
            once.push(error);
        }
    }
    match once.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::{Expect, Key, Write};

    async fn put(store: &MemoryStore, resource: &str, name: &str, object: Option<Value>) {
        let key = Key::new(&resource.into(), "", name);
        let expect = match store.get(&key).unwrap() {
            Some(stored) => Expect::Revision(stored.revision),
            None => Expect::Absent,
        };
        let value = object.map(|o| o.to_string().into());
        store.write(Write { key, expect, value }).await.unwrap();
    }

    #[tokio::test]
    async fn a_write_is_seen_by_the_next_request() {
        let store = Arc::new(MemoryStore::default());
        let rbac = Rbac::new(store.clone());
        let user = UserInfo {
            name: "eve".into(),
            ..UserInfo::default()
        };
        let get = RequestInfo::parse(&http::Method::GET, &"/api/v1/nodes".parse().unwrap());
        assert_eq!(rbac.authorize(&user, &get), Decision::Deny(String::new()));
        let binding = json!({"roleRef": {"kind": "ClusterRole", "name": "see"}, "subjects": [{"kind": "User", "name": "eve"}]});
        put(&store, index::CLUSTER_BINDINGS, "b", Some(binding)).await;
        assert_eq!(
            rbac.authorize(&user, &get),
            Decision::Deny(r#"RBAC: clusterrole.rbac.authorization.k8s.io "see" not found"#.into())
        );
        let role =
            json!({"rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]});
        put(&store, index::CLUSTER_ROLES, "see", Some(role)).await;
        assert_eq!(
            rbac.authorize(&user, &get),
            Decision::Allow(
                r#"RBAC: allowed by ClusterRoleBinding "b" of ClusterRole "see" to User "eve""#
                    .into()
            )
        );
        put(&store, index::CLUSTER_BINDINGS, "b", None).await;
        assert_eq!(rbac.authorize(&user, &get), Decision::Deny(String::new()));
    }

    #[test]
    fn errors_are_said_once() {
        assert_eq!(aggregate(vec!["a".into(), "a".into()]), "a");
        assert_eq!(aggregate(vec!["a".into(), "b".into()]), "[a, b]");
    }
}
