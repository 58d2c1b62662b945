//! Roles and bindings, and the reviews: resources that are answered and never stored.

use super::{ResourceDef, Subresource, VersionDef};

const GROUP: &str = crate::auth::rbac::GROUP;
const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

/// group, kind, plural, namespaced
const ROWS: &[(&str, &str, &str, bool)] = &[
    (GROUP, "Role", "roles", true),
    (GROUP, "ClusterRole", "clusterroles", false),
    (GROUP, "RoleBinding", "rolebindings", true),
    (GROUP, "ClusterRoleBinding", "clusterrolebindings", false),
    (AUTHENTICATION, "TokenReview", "tokenreviews", false),
    (
        AUTHENTICATION,
        "SelfSubjectReview",
        "selfsubjectreviews",
        false,
    ),
    (
        AUTHORIZATION,
        "SubjectAccessReview",
        "subjectaccessreviews",
        false,
    ),
    (
        AUTHORIZATION,
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        true,
    ),
    (
        AUTHORIZATION,
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        false,
    ),
    (
        AUTHORIZATION,
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        false,
    ),
];

/// The definitions.
pub(super) fn builtin() -> impl Iterator<Item = ResourceDef> {
    ROWS.iter()
        .map(|&(group, kind, plural, namespaced)| ResourceDef {
            group: group.to_owned(),
            kind: kind.to_owned(),
            list_kind: format!("{kind}List"),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced,
            versions: vec![VersionDef {
                name: "v1".to_owned(),
                served: true,
                deprecation_warning: None,
                status: false,
                scale: false,
                columns: Vec::new(),
                schema: None,
            }],
            storage_version: "v1".to_owned(),
            crd: false,
            subresources: Vec::new(),
            alias: None,
            since: 0,
        })
}

impl ResourceDef {
    /// Whether the resource only answers questions: `create`, and nothing is stored.
    pub fn is_review(&self) -> bool {
        !self.crd && matches!(self.group.as_str(), AUTHENTICATION | AUTHORIZATION)
    }
}

/// `serviceaccounts/token`.
pub(super) const TOKEN: Subresource = Subresource {
    name: "token",
    group: AUTHENTICATION,
    version: "v1",
    kind: "TokenRequest",
    verbs: &["create"],
};
