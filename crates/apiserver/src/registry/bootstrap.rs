//! Roles and bindings that are always there, and ClusterRoles whose rules are collected from others.
//!
//! At start, what is missing of the default objects is added: whole objects, rules, subjects, labels. What an admin added
//! stays, and an object with the annotation `rbac.authorization.kubernetes.io/autoupdate: "false"` is left alone.
//! While the server runs, a ClusterRole with an `aggregationRule` has the rules of the ClusterRoles that it selects.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::auth::rbac::index::CLUSTER_ROLES;
use crate::auth::rbac::{self, Rule, rule};
use crate::error::ApiError;
use crate::registry::catalog::Scope;
use crate::registry::delete_options::DeleteOptions;
use crate::registry::query::Call;
use crate::registry::tend::tend;
use crate::registry::{Core, meta, store_error};
use crate::store::Query;

const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// Roles that select roles that select roles …: deeper than this is a circle.
const DEPTH: usize = 16;

/// Keeps collected rules, and the authorizer's index, up to date until `stop`.
pub(crate) async fn run(core: Arc<Core>, stop: CancellationToken) {
    tend(stop, "collect the rules of roles", || {
        let core = core.clone();
        async move {
            let head = core.store.ring().head();
            let Ok(mut subscription) = core.store.ring().subscribe(head) else {
                return Ok(());
            };
            core.collect_rules().await?;
            // A watch that fell behind begins anew.
            while let Ok(events) = subscription.next().await {
                core.rbac.catch_up();
                if events
                    .iter()
                    .any(|event| &*event.key.resource == CLUSTER_ROLES)
                {
                    core.collect_rules().await?;
                }
            }
            Ok(())
        }
    })
    .await;
}

impl Core {
    /// Adds what is missing of these roles and bindings.
    pub(crate) async fn ensure_access(&self, objects: &[Value]) -> Result<(), (String, ApiError)> {
        // All at once: the store writes what comes together with one sync.
        let ensured = objects.iter().map(|object| async move {
            self.ensure_access_object(object).await.map_err(|e| {
                let kind = meta::text(object, &["kind"]);
                (format!("{kind} {}", meta::name(object)), e)
            })
        });
        futures::future::try_join_all(ensured).await?;
        self.collect_rules()
            .await
            .map_err(|e| ("the rules of roles".to_owned(), e))
    }

    async fn ensure_access_object(&self, wanted: &Value) -> Result<(), ApiError> {
        let plural = match meta::text(wanted, &["kind"]) {
            "ClusterRole" => "clusterroles",
            _ => "clusterrolebindings",
        };
        let scope = self.access_scope(plural)?;
        let name = meta::name(wanted);
        let mut call = Call::internal("system:apiserver");
        let found = match self.read(&scope, "", name) {
            Ok(stored) => scope.present(&stored)?,
            Err(ApiError::NotFound(_)) => {
                return self
                    .create_object(&mut call, &scope, wanted.clone())
                    .await
                    .map(drop);
            }
            Err(other) => return Err(other),
        };
        if !updates(&found) {
            return Ok(());
        }
        if found["roleRef"] != wanted["roleRef"] {
            // A binding cannot change what it binds; who was bound by the old one keeps nothing of it.
            self.delete_object(&mut call, &scope, "", name, &DeleteOptions::default())
                .await?;
            return self
                .create_object(&mut call, &scope, wanted.clone())
                .await
                .map(drop);
        }
        name.clone_into(&mut call.info.name);
        self.update_object(&mut call, &scope, &|old| {
            let mut new = old.clone();
            if updates(old) {
                complete(&mut new, wanted);
            }
            Ok(new)
        })
        .await
        .map(drop)
    }

    fn access_scope(&self, plural: &str) -> Result<Scope, ApiError> {
        let snapshot = self.catalog.get();
        let def = snapshot.find(rbac::GROUP, plural);
        def.map(Scope::stored).ok_or(ApiError::NoSuchPath)
    }

    /// Gives each ClusterRole with an aggregation rule the rules that it selects.
    async fn collect_rules(&self) -> Result<(), ApiError> {
        for _ in 0..DEPTH {
            if !self.collect_rules_once().await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Returns whether something changed.
    async fn collect_rules_once(&self) -> Result<bool, ApiError> {
        let scope = self.access_scope("clusterroles")?;
        let query = Query {
            resource: scope.resource.clone(),
            namespace: None,
            after: None,
            limit: None,
        };
        let page = self.store.list(&query).map_err(|e| store_error(&e))?;
        let roles: Vec<Value> = page
            .items
            .iter()
            .map(|stored| scope.present(stored))
            .collect::<Result<_, _>>()?;
        let mut changed = false;
        for role in &roles {
            let Some(rules) = collected(role, &roles) else {
                continue;
            };
            if role["rules"].as_array().map_or(&[][..], Vec::as_slice) == rules {
                continue;
            }
            let mut call = Call::internal(
                "system:serviceaccount:kube-system:clusterrole-aggregation-controller",
            );
            meta::name(role).clone_into(&mut call.info.name);
            let produce = |old: &Value| {
                let mut new = old.clone();
                // Its owner may have taken the rule off meanwhile.
                if new["aggregationRule"] == role["aggregationRule"] {
                    new["rules"] = json!(rules);
                }
                Ok(new)
            };
            match self.update_object(&mut call, &scope, &produce).await {
                Ok(_) => changed = true,
                Err(ApiError::NotFound(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(changed)
    }
}

fn updates(object: &Value) -> bool {
    meta::text(object, &["metadata", "annotations", AUTOUPDATE]) != "false"
}

/// Adds to an object what `wanted` has besides.
fn complete(object: &mut Value, wanted: &Value) {
    for map in ["labels", "annotations"] {
        let Some(wanted) = wanted["metadata"][map].as_object() else {
            continue;
        };
        let metadata = meta::metadata(object);
        let own = metadata.entry(map).or_insert_with(|| json!({}));
        if own.is_null() {
            *own = json!({});
        }
        if let Some(own) = own.as_object_mut() {
            for (key, value) in wanted {
                own.entry(key.as_str()).or_insert_with(|| value.clone());
            }
        }
    }
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let selectors = list(&wanted["aggregationRule"]["clusterRoleSelectors"]);
    if !selectors.is_empty() {
        let own = meta::entry(object, "aggregationRule");
        extend(own, "clusterRoleSelectors", selectors);
        return;
    }
    let missing = rule::missing(&Rule::of_role(object), &Rule::of_role(wanted));
    if let Some(object) = object.as_object_mut() {
        let missing = rule::merge(&missing).into_iter().map(|rule| json!(rule));
        extend(object, "rules", missing.collect());
        extend(object, "subjects", list(&wanted["subjects"]));
    }
}

/// Adds to a list what is not in it.
fn extend(map: &mut Map<String, Value>, field: &str, items: Vec<Value>) {
    if items.is_empty() {
        return;
    }
    let own = map.entry(field).or_insert(Value::Null);
    if own.is_null() {
        *own = json!([]);
    }
    if let Some(own) = own.as_array_mut() {
        for item in items {
            if !own.contains(&item) {
                own.push(item);
            }
        }
    }
}

/// The rules of all roles that a role selects, each once, in the order of the roles' names; none if it selects none.
fn collected(role: &Value, roles: &[Value]) -> Option<Vec<Value>> {
    let selectors = role
        .pointer("/aggregationRule/clusterRoleSelectors")?
        .as_array()
        .filter(|list| !list.is_empty())?;
    let mut rules: Vec<Value> = Vec::new();
    // The store lists by name.
    for other in roles {
        if meta::name(other) == meta::name(role) || !selectors.iter().any(|s| selects(s, other)) {
            continue;
        }
        for rule in other["rules"].as_array().into_iter().flatten() {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Some(rules)
}

/// Whether a label selector takes an object; one that cannot be understood takes none.
fn selects(selector: &Value, object: &Value) -> bool {
    let label = |key: &str| {
        object
            .pointer("/metadata/labels")
            .and_then(|l| l.get(key))
            .and_then(Value::as_str)
    };
    let exact = selector["matchLabels"].as_object().into_iter().flatten();
    let expressions = selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten();
    exact
        .into_iter()
        .all(|(key, value)| label(key) == value.as_str())
        && expressions.into_iter().all(|one| {
            let value = label(meta::text(one, &["key"]));
            let listed = || {
                let all = one["values"].as_array().into_iter().flatten();
                all.filter_map(Value::as_str).any(|v| Some(v) == value)
            };
            match meta::text(one, &["operator"]) {
                "In" => value.is_some() && listed(),
                "NotIn" => value.is_none() || !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_collected_by_label() {
        let rule = |verb: &str| json!({"verbs": [verb], "apiGroups": [""], "resources": ["pods"]});
        let role = |name: &str, label: &str, rules: Value| json!({"metadata": {"name": name, "labels": {label: "true"}}, "rules": rules});
        let mut all = role("all", "x", json!([rule("get")]));
        all["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"x": "true"}}, {"matchExpressions": [{"key": "y", "operator": "Exists"}]}]});
        let roles = [
            all.clone(),
            role("b", "x", json!([rule("list"), rule("watch")])),
            role("c", "y", json!([rule("list"), rule("delete")])),
            role("d", "z", json!([rule("patch")])),
        ];
        let verbs: Vec<Value> = collected(&all, &roles)
            .unwrap()
            .iter()
            .map(|rule| rule["verbs"][0].clone())
            .collect();
        assert_eq!(verbs, ["list", "watch", "delete"]);
        assert_eq!(collected(&roles[1], &roles), None);
    }

    #[test]
    fn selectors_with_expressions() {
        let object = json!({"metadata": {"labels": {"a": "1"}}});
        let one = |operator: &str, key: &str, values: Value| {
            selects(
                &json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]}),
                &object,
            )
        };
        assert!(one("In", "a", json!(["1", "2"])) && !one("In", "b", json!(["1"])));
        assert!(one("NotIn", "b", json!(["1"])) && !one("NotIn", "a", json!(["1"])));
        assert!(one("DoesNotExist", "b", Value::Null) && !one("Exists", "b", Value::Null));
        assert!(!one("Odd", "a", Value::Null));
        assert!(selects(&json!({}), &object));
    }

    #[test]
    fn only_what_is_missing_is_added() {
        let mut object = json!({"metadata": {"labels": {"a": "own"}}, "rules": [{"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]}]});
        let wanted = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "rules": [
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
            {"verbs": ["get"], "apiGroups": [""], "resources": ["nodes"]},
        ]});
        complete(&mut object, &wanted);
        assert_eq!(object["metadata"]["labels"], json!({"a": "own", "b": "2"}));
        assert_eq!(object["rules"].as_array().unwrap().len(), 2);
        let once = object.clone();
        complete(&mut object, &wanted);
        assert_eq!(object, once);
        let mut binding = json!({"subjects": [{"name": "x"}]});
        complete(
            &mut binding,
            &json!({"subjects": [{"name": "y"}, {"name": "x"}]}),
        );
        assert_eq!(binding["subjects"], json!([{"name": "x"}, {"name": "y"}]));
    }
}
