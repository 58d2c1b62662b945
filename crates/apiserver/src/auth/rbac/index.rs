//! Roles and bindings in memory, by what a request asks of them. Pure: fed with objects, asked with users.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::Value;

use crate::auth::UserInfo;
use crate::auth::rbac::Rule;
use crate::registry::meta;

/// The store names of the four resources, in an order in which they can be listed.
pub(crate) const RESOURCES: [&str; 4] = [ROLES, CLUSTER_ROLES, BINDINGS, CLUSTER_BINDINGS];
pub(crate) const ROLES: &str = "rbac.authorization.k8s.io/roles";
pub(crate) const CLUSTER_ROLES: &str = "rbac.authorization.k8s.io/clusterroles";
pub(crate) const BINDINGS: &str = "rbac.authorization.k8s.io/rolebindings";
pub(crate) const CLUSTER_BINDINGS: &str = "rbac.authorization.k8s.io/clusterrolebindings";

/// Namespace and name; the namespace of cluster-scoped objects is empty.
type Place = (String, String);

/// Whom a binding is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

#[derive(Debug)]
struct Binding {
    /// `Role` or `ClusterRole`.
    role_kind: String,
    role: String,
    /// With how each is named in a reason.
    subjects: Vec<(Subject, String)>,
}

/// All roles and bindings.
#[derive(Debug, Default)]
pub(crate) struct Index {
    roles: HashMap<Place, Arc<Vec<Rule>>>,
    bindings: HashMap<Place, Binding>,
    /// The names of the bindings of a namespace that are for a subject.
    by_subject: HashMap<(String, Subject), BTreeSet<String>>,
}

/// A binding that is for the user, with the rules of its role.
pub(crate) struct Grant<'a> {
    pub(crate) rules: &'a Arc<Vec<Rule>>,
    namespace: &'a str,
    binding: &'a str,
    to: &'a Binding,
    subject: &'a str,
}

impl Grant<'_> {
    /// Why the user has these rules, in upstream's words.
    pub(crate) fn reason(&self) -> String {
        let (kind, binding) = if self.namespace.is_empty() {
            ("ClusterRoleBinding", format!("{:?}", self.binding))
        } else {
            // Upstream quotes namespace and name as one.
            (
                "RoleBinding",
                format!("{:?}", format!("{}/{}", self.binding, self.namespace)),
            )
        };
        format!(
            "RBAC: allowed by {kind} {binding} of {} {:?} to {}",
            self.to.role_kind, self.to.role, self.subject
        )
    }
}

impl Index {
    /// Takes in a write of the store; others than those of [`RESOURCES`] are no matter.
    pub(crate) fn apply(
        &mut self,
        resource: &str,
        namespace: &str,
        name: &str,
        object: Option<&Value>,
    ) {
        let place = (namespace.to_owned(), name.to_owned());
        match resource {
            ROLES | CLUSTER_ROLES => match object {
                Some(role) => {
                    self.roles.insert(place, Arc::new(Rule::of_role(role)));
                }
                None => {
                    self.roles.remove(&place);
                }
            },
            BINDINGS | CLUSTER_BINDINGS => {
                if let Some(old) = self.bindings.remove(&place) {
                    for (subject, _) in old.subjects {
                        let key = (place.0.clone(), subject);
                        if let Some(names) = self.by_subject.get_mut(&key) {
                            names.remove(&place.1);
                            if names.is_empty() {
                                self.by_subject.remove(&key);
                            }
                        }
                    }
                }
                if let Some(object) = object {
                    let binding = Binding::read(object, namespace);
                    for (subject, _) in &binding.subjects {
                        self.by_subject
                            .entry((place.0.clone(), subject.clone()))
                            .or_default()
                            .insert(place.1.clone());
                    }
                    self.bindings.insert(place, binding);
                }
            }
            _ => {}
        }
    }

    /// Calls `visit` with what is granted to the user everywhere, then in the namespace, until it breaks. Returns what
    /// is wrong with bindings that were passed.
    pub(crate) fn visit<'a>(
        &'a self,
        user: &UserInfo,
        namespace: &str,
        mut visit: impl FnMut(Grant<'a>) -> ControlFlow<()>,
    ) -> Vec<String> {
        let mut errors = Vec::new();
        let mut subjects = vec![Subject::User(user.name.clone())];
        subjects.extend(user.groups.iter().cloned().map(Subject::Group));
        let cluster_then_namespace = if namespace.is_empty() {
            vec![""]
        } else {
            vec!["", namespace]
        };
        for namespace in cluster_then_namespace {
            let mut names = BTreeSet::new();
            for subject in &subjects {
                let found = self
                    .by_subject
                    .get(&(namespace.to_owned(), subject.clone()));
                names.extend(found.into_iter().flatten());
            }
            for name in names {
                let place = (namespace.to_owned(), name.clone());
                let Some((place, to)) = self.bindings.get_key_value(&place) else {
                    continue;
                };
                let home = if to.role_kind == "Role" {
                    namespace
                } else {
                    ""
                };
                let Some(rules) = self.roles.get(&(home.to_owned(), to.role.clone())) else {
                    errors.push(format!(
                        "{}.rbac.authorization.k8s.io {:?} not found",
                        to.role_kind.to_lowercase(),
                        to.role
                    ));
                    continue;
                };
                let subject = to
                    .subjects
                    .iter()
                    .find(|(subject, _)| subjects.contains(subject))
                    .map_or("", |(_, shown)| shown);
                let grant = Grant {
                    rules,
                    namespace: &place.0,
                    binding: &place.1,
                    to,
                    subject,
                };
                if visit(grant).is_break() {
                    return errors;
                }
            }
        }
        errors
    }
}

impl Binding {
    fn read(object: &Value, namespace: &str) -> Self {
        let subjects = object["subjects"].as_array().into_iter().flatten();
        let subjects = subjects.filter_map(|subject| {
            let (kind, name) = (
                meta::text(subject, &["kind"]),
                meta::text(subject, &["name"]),
            );
            match kind {
                "User" => Some((Subject::User(name.to_owned()), format!("User {name:?}"))),
                "Group" => Some((Subject::Group(name.to_owned()), format!("Group {name:?}"))),
                "ServiceAccount" => {
                    let home = match meta::text(subject, &["namespace"]) {
                        "" => namespace,
                        other => other,
                    };
                    (!home.is_empty()).then(|| {
                        (
                            Subject::User(format!("system:serviceaccount:{home}:{name}")),
                            format!("ServiceAccount {:?}", format!("{name}/{home}")),
                        )
                    })
                }
                _ => None,
            }
        });
        Self {
            subjects: subjects.collect(),
            role_kind: meta::text(object, &["roleRef", "kind"]).to_owned(),
            role: meta::text(object, &["roleRef", "name"]).to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn role(verb: &str) -> Value {
        json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]}]})
    }

    fn binding(kind: &str, role: &str, subjects: &Value) -> Value {
        json!({"roleRef": {"kind": kind, "name": role}, "subjects": subjects})
    }

    fn verbs(index: &Index, user: &UserInfo, namespace: &str) -> (Vec<String>, Vec<String>) {
        let mut found = Vec::new();
        let errors = index.visit(user, namespace, |grant| {
            found.extend(grant.rules.iter().flat_map(|rule| rule.verbs.clone()));
            ControlFlow::Continue(())
        });
        (found, errors)
    }

    #[test]
    fn bindings_reach_where_they_are() {
        let mut index = Index::default();
        index.apply(CLUSTER_ROLES, "", "read", Some(&role("get")));
        index.apply(ROLES, "a", "write", Some(&role("create")));
        let staff = json!([{"kind": "Group", "name": "staff"}]);
        let robot =
            json!([{"kind": "ServiceAccount", "name": "robot"}, {"kind": "User", "name": "eve"}]);
        index.apply(
            CLUSTER_BINDINGS,
            "",
            "staff",
            Some(&binding("ClusterRole", "read", &staff)),
        );
        index.apply(
            BINDINGS,
            "a",
            "robot",
            Some(&binding("Role", "write", &robot)),
        );
        index.apply(
            BINDINGS,
            "b",
            "lost",
            Some(&binding("Role", "none", &robot)),
        );

        let user = |name: &str, group: &str| UserInfo {
            name: name.to_owned(),
            groups: vec![group.to_owned()],
            ..UserInfo::default()
        };
        let nothing: Vec<String> = Vec::new();
        assert_eq!(verbs(&index, &user("x", "staff"), "").0, ["get"]);
        assert_eq!(
            verbs(&index, &user("eve", "staff"), "a").0,
            ["get", "create"]
        );
        assert_eq!(verbs(&index, &user("eve", "none"), "c").0, nothing);
        let robot = user("system:serviceaccount:a:robot", "none");
        assert_eq!(verbs(&index, &robot, "a").0, ["create"]);
        assert_eq!(
            verbs(&index, &robot, "b"),
            (nothing.clone(), nothing.clone())
        );
        assert_eq!(
            verbs(&index, &user("eve", "none"), "b").1,
            [r#"role.rbac.authorization.k8s.io "none" not found"#]
        );

        index.apply(
            BINDINGS,
            "a",
            "robot",
            Some(&binding("Role", "write", &staff)),
        );
        assert_eq!(verbs(&index, &robot, "a").0, nothing);
        index.apply(CLUSTER_BINDINGS, "", "staff", None);
        index.apply(BINDINGS, "a", "robot", None);
        index.apply(BINDINGS, "b", "lost", None);
        assert!(index.by_subject.is_empty());
    }
}
