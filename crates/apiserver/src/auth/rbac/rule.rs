//! Policy rules: what one allows, whether some cover another, and how a missing one is said.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::auth::RequestInfo;

/// One rule of a Role or ClusterRole.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Verbs, or `*`.
    #[serde(deserialize_with = "texts")]
    pub verbs: Vec<String>,
    /// API groups, or `*`; the core group is empty.
    #[serde(
        rename = "apiGroups",
        deserialize_with = "texts",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub groups: Vec<String>,
    /// `pods`, `pods/log`, `*`, `*/scale`.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Names of objects; all if empty.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths, where a `*` at the end stands for any rest.
    #[serde(
        rename = "nonResourceURLs",
        deserialize_with = "texts",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub paths: Vec<String>,
}

/// A list of texts that may be `null`.
fn texts<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Rule {
    /// The rules of a Role or ClusterRole object; those that cannot be read grant nothing.
    pub fn of_role(role: &Value) -> Vec<Self> {
        role["rules"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|rule| Self::deserialize(rule).ok())
            .collect()
    }

    /// Whether the rule allows the request.
    pub fn allows(&self, request: &RequestInfo) -> bool {
        if !any(&self.verbs, &request.verb) {
            return false;
        }
        if !request.is_resource {
            return self
                .paths
                .iter()
                .any(|path| path_matches(path, &request.path));
        }
        any(&self.groups, &request.group)
            && self.resources.iter().any(|rule| {
                // Upstream's rules know one segment; KubeVirt's servers check the whole of theirs.
                [request.first_subresource(), &request.subresource]
                    .into_iter()
                    .any(|sub| resource_matches(rule, &request.resource, sub))
            })
            && (self.resource_names.is_empty() || self.resource_names.contains(&request.name))
    }

    /// Splits the rule into rules of one verb and one resource or path each.
    fn parts(&self) -> Vec<Self> {
        let mut out = Vec::new();
        for verb in &self.verbs {
            let verbs = vec![verb.clone()];
            for group in &self.groups {
                for resource in &self.resources {
                    let names = self.resource_names.iter().map(|name| vec![name.clone()]);
                    let names = if self.resource_names.is_empty() {
                        vec![Vec::new()]
                    } else {
                        names.collect()
                    };
                    out.extend(names.into_iter().map(|resource_names| Self {
                        verbs: verbs.clone(),
                        groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        resource_names,
                        paths: Vec::new(),
                    }));
                }
            }
            out.extend(self.paths.iter().map(|path| Self {
                verbs: verbs.clone(),
                paths: vec![path.clone()],
                ..Self::default()
            }));
        }
        out
    }

    /// Whether everything that `part` allows is allowed by this one rule.
    fn covers(&self, part: &Self) -> bool {
        let verbs = part.verbs.iter().all(|verb| any(&self.verbs, verb));
        let groups = part.groups.iter().all(|group| any(&self.groups, group));
        let resources = part.resources.iter().all(|wanted| {
            let (resource, subresource) = wanted.split_once('/').unwrap_or((wanted, ""));
            self.resources
                .iter()
                .any(|own| resource_matches(own, resource, subresource))
        });
        let names = self.resource_names.is_empty()
            || (!part.resource_names.is_empty()
                && part
                    .resource_names
                    .iter()
                    .all(|name| self.resource_names.contains(name)));
        let paths = part
            .paths
            .iter()
            .all(|wanted| self.paths.iter().any(|own| path_matches(own, wanted)));
        verbs && groups && resources && names && paths
    }

    /// As Go prints the parts of a rule that are set.
    fn describe(&self) -> String {
        let fields = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.paths),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let set = fields.iter().filter(|(_, list)| !list.is_empty());
        let shown: Vec<String> = set
            .map(|(name, list)| format!("{name}:{}", quoted(list)))
            .collect();
        format!("{{{}}}", shown.join(", "))
    }
}

/// A list of quoted texts with spaces between, as Go's `%q` has it.
pub fn quoted(list: &[String]) -> String {
    let texts: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
    format!("[{}]", texts.join(" "))
}

/// The parts of `wanted` that `owned` does not cover, each of one verb and one resource or path.
pub fn missing(owned: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted
        .iter()
        .flat_map(Rule::parts)
        .filter(|part| !owned.iter().any(|own| own.covers(part)))
        .collect()
}

/// What [`missing`] found, a line each.
pub fn describe(missing: &[Rule]) -> Vec<String> {
    let lines: BTreeSet<String> = merge(missing).iter().map(Rule::describe).collect();
    lines.into_iter().collect()
}

/// Rules of the same resource as one, with all their verbs.
pub fn merge(missing: &[Rule]) -> Vec<Rule> {
    let mut merged: Vec<Rule> = Vec::new();
    for rule in missing {
        let simple = rule.resource_names.is_empty() && rule.paths.is_empty();
        let same = merged.iter_mut().find(|other| {
            simple
                && other.resource_names.is_empty()
                && (&other.groups, &other.resources, &other.paths)
                    == (&rule.groups, &rule.resources, &rule.paths)
        });
        match same {
            Some(other) => other.verbs.extend(rule.verbs.iter().cloned()),
            None => merged.push(rule.clone()),
        }
    }
    merged
}

fn any(list: &[String], wanted: &str) -> bool {
    list.iter().any(|own| own == "*" || own == wanted)
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some((own, sub)) => {
            !subresource.is_empty() && sub == subresource && (own == "*" || own == resource)
        }
    }
}

fn path_matches(rule: &str, path: &str) -> bool {
    rule == "*"
        || rule == path
        || (rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*')))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn rule(rule: Value) -> Rule {
        serde_json::from_value(rule).unwrap()
    }

    fn request(method: &str, uri: &str) -> RequestInfo {
        RequestInfo::parse(&method.parse().unwrap(), &uri.parse().unwrap())
    }

    /// The examples of https://kubernetes.io/docs/reference/access-authn-authz/rbac/, each with what it allows and what not.
    #[test]
    fn the_documented_examples() {
        let core =
            json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "watch", "list"]});
        let deployments = json!({"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"]});
        let logs =
            json!({"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]});
        let named = json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["my-config"], "verbs": ["update", "get"]});
        let example = json!({"apiGroups": ["example.com"], "resources": ["*"], "verbs": ["*"]});
        let health =
            json!({"nonResourceURLs": ["/healthz", "/healthz/*"], "verbs": ["get", "post"]});
        let scale = json!({"apiGroups": ["*"], "resources": ["*/scale"], "verbs": ["get"]});
        let all = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]});
        #[rustfmt::skip]
        let table = [
            (&core, "GET", "/api/v1/namespaces/a/pods", true),
            (&core, "GET", "/api/v1/namespaces/a/pods/x", true),
            (&core, "GET", "/api/v1/pods?watch=true", true),
            (&core, "GET", "/api/v1/namespaces/a/pods/x/log", false),
            (&core, "DELETE", "/api/v1/namespaces/a/pods/x", false),
            (&core, "GET", "/apis/metrics.k8s.io/v1/namespaces/a/pods", false),
            (&deployments, "PATCH", "/apis/apps/v1/namespaces/a/deployments/d", true),
            (&deployments, "DELETE", "/apis/apps/v1/namespaces/a/deployments", false),
            (&deployments, "GET", "/apis/apps/v1/namespaces/a/deployments/d/scale", false),
            (&logs, "GET", "/api/v1/namespaces/a/pods/x/log", true),
            (&logs, "GET", "/api/v1/namespaces/a/pods/x/status", false),
            (&named, "PUT", "/api/v1/namespaces/a/configmaps/my-config", true),
            (&named, "PUT", "/api/v1/namespaces/a/configmaps/other", false),
            (&named, "GET", "/api/v1/namespaces/a/configmaps", false),
            (&example, "DELETE", "/apis/example.com/v1/namespaces/a/anything/x", true),
            (&example, "PUT", "/apis/example.com/v1/namespaces/a/anything/x/status", true),
            (&example, "GET", "/apis/other.com/v1/namespaces/a/anything/x", false),
            (&health, "GET", "/healthz", true),
            (&health, "POST", "/healthz/ping", true),
            (&health, "GET", "/healthzz", false),
            (&health, "DELETE", "/healthz", false),
            (&scale, "GET", "/apis/apps/v1/namespaces/a/deployments/d/scale", true),
            (&scale, "GET", "/apis/apps/v1/namespaces/a/deployments/d", false),
            (&all, "POST", "/api/v1/namespaces/a/pods/x/exec", true),
            (&all, "GET", "/metrics", false),
        ];
        for (given, method, uri, allowed) in table {
            assert_eq!(
                rule(given.clone()).allows(&request(method, uri)),
                allowed,
                "{given} {method} {uri}"
            );
        }
    }

    #[test]
    fn a_subresource_is_only_its_first_segment() {
        let forward = rule(
            json!({"apiGroups": ["subresources.example.com"], "resources": ["things/portforward"], "verbs": ["get"]}),
        );
        let path = "/apis/subresources.example.com/v1/namespaces/a/things/x/portforward/22/tcp";
        assert!(forward.allows(&request("GET", path)));
    }

    #[test]
    fn what_is_not_held_is_named() {
        let owned = [
            rule(json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]})),
            rule(json!({"apiGroups": ["*"], "resources": ["*/scale"], "verbs": ["*"]})),
            rule(json!({"nonResourceURLs": ["/healthz/*"], "verbs": ["get"]})),
            rule(
                json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"], "verbs": ["get"]}),
            ),
        ];
        let covered = [
            rule(
                json!({"apiGroups": [""], "resources": ["pods"], "resourceNames": ["x"], "verbs": ["get"]}),
            ),
            rule(
                json!({"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["update", "*"]}),
            ),
            rule(json!({"nonResourceURLs": ["/healthz/a", "/healthz/*"], "verbs": ["get"]})),
            rule(
                json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"], "verbs": ["get"]}),
            ),
        ];
        assert_eq!(missing(&owned, &covered), []);
        let wanted = [
            rule(
                json!({"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["get", "delete"]}),
            ),
            rule(
                json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["b"], "verbs": ["get"]}),
            ),
            rule(json!({"nonResourceURLs": ["*"], "verbs": ["get"]})),
        ];
        assert_eq!(
            describe(&missing(&owned, &wanted)),
            [
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}"#,
                r#"{APIGroups:[""], Resources:["secrets"], ResourceNames:["b"], Verbs:["get"]}"#,
                r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "delete"]}"#,
                r#"{NonResourceURLs:["*"], Verbs:["get"]}"#,
            ]
        );
    }

    fn some(of: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec(prop::sample::select(of).prop_map(str::to_owned), 0..3)
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let resources = some(&["*", "pods", "pods/log", "*/log", "pods/log/x", "nodes"]);
        let paths = some(&["*", "/a", "/a*", "/a/*", "/b"]);
        let names = some(&["x", "y"]);
        let groups = some(&["*", "", "apps"]);
        (some(&["*", "get", "list"]), groups, resources, names, paths).prop_map(
            |(verbs, groups, resources, resource_names, paths)| Rule {
                verbs,
                groups,
                resources,
                resource_names,
                paths,
            },
        )
    }

    fn any_request() -> impl Strategy<Value = RequestInfo> {
        #[rustfmt::skip]
        let paths = prop::sample::select(vec![
            "/api/v1/pods", "/api/v1/namespaces/n/pods/x", "/api/v1/namespaces/n/pods/x/log",
            "/api/v1/namespaces/n/pods/y/log/x", "/apis/apps/v1/nodes/y", "/api/v1/nodes", "/a", "/a/b", "/ab", "/b",
        ]);
        paths.prop_map(|path| request("GET", path))
    }

    proptest! {
        /// The escalation check is sound: what is granted without complaint gives nobody anything new.
        #[test]
        fn covered_rules_allow_nothing_new(
            owned in prop::collection::vec(any_rule(), 0..4),
            wanted in any_rule(),
            requests in prop::collection::vec(any_request(), 1..8),
        ) {
            let left = missing(&owned, std::slice::from_ref(&wanted));
            for request in &requests {
                let had = owned.iter().any(|rule| rule.allows(request));
                let gets = wanted.allows(request);
                // What is missing is named: together with it, all of `wanted` is covered.
                let named = left.iter().any(|rule| rule.allows(request));
                prop_assert!(!gets || had || named, "{:?}", request);
            }
        }
    }

    #[test]
    fn null_lists_are_empty() {
        let role = json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": null}, {"verbs": 1}]});
        assert_eq!(Rule::of_role(&role).len(), 1);
    }
}
