//! Kinds of `rbac.authorization.k8s.io`, `authentication.k8s.io` and `authorization.k8s.io`.

use super::{Fields, Kind, METADATA};

const RULE: Fields = &[
    (1, "verbs", Kind::Texts),
    (2, "apiGroups", Kind::Texts),
    (3, "resources", Kind::Texts),
    (4, "resourceNames", Kind::Texts),
    (5, "nonResourceURLs", Kind::Texts),
];
const ROLE: Fields = &[
    (1, "metadata", Kind::Message(METADATA)),
    (2, "rules", Kind::Messages(RULE)),
    (3, "aggregationRule", Kind::Message(AGGREGATION)),
];
const AGGREGATION: Fields = &[(1, "clusterRoleSelectors", Kind::Messages(SELECTOR))];
const SELECTOR: Fields = &[
    (1, "matchLabels", Kind::TextMap),
    (2, "matchExpressions", Kind::Messages(REQUIREMENT)),
];
const REQUIREMENT: Fields = &[
    (1, "key", Kind::Text),
    (2, "operator", Kind::Text),
    (3, "values", Kind::Texts),
];
const BINDING: Fields = &[
    (1, "metadata", Kind::Message(METADATA)),
    (2, "subjects", Kind::Messages(SUBJECT)),
    (3, "roleRef", Kind::Message(ROLE_REF)),
];
const SUBJECT: Fields = &[
    (1, "kind", Kind::Text),
    (2, "apiGroup", Kind::Text),
    (3, "name", Kind::Text),
    (4, "namespace", Kind::Text),
];
const ROLE_REF: Fields = &[
    (1, "apiGroup", Kind::Text),
    (2, "kind", Kind::Text),
    (3, "name", Kind::Text),
];
const BOUND: Fields = &[
    (1, "kind", Kind::Text),
    (2, "apiVersion", Kind::Text),
    (3, "name", Kind::Text),
    (4, "uid", Kind::Text),
];
const TOKEN_REQUEST: Fields = &[
    (1, "metadata", Kind::Message(METADATA)),
    (
        2,
        "spec",
        Kind::Message(&[
            (1, "audiences", Kind::Texts),
            (3, "boundObjectRef", Kind::Message(BOUND)),
            (4, "expirationSeconds", Kind::Int),
        ]),
    ),
];
const TOKEN_REVIEW: Fields = &[
    (1, "metadata", Kind::Message(METADATA)),
    (
        2,
        "spec",
        Kind::Message(&[(1, "token", Kind::Text), (2, "audiences", Kind::Texts)]),
    ),
];
const RESOURCE: Fields = &[
    (1, "namespace", Kind::Text),
    (2, "verb", Kind::Text),
    (3, "group", Kind::Text),
    (4, "version", Kind::Text),
    (5, "resource", Kind::Text),
    (6, "subresource", Kind::Text),
    (7, "name", Kind::Text),
];
const PATH: Fields = &[(1, "path", Kind::Text), (2, "verb", Kind::Text)];
const ACCESS_REVIEW: Fields = &[
    (1, "metadata", Kind::Message(METADATA)),
    (
        2,
        "spec",
        Kind::Message(&[
            (1, "resourceAttributes", Kind::Message(RESOURCE)),
            (2, "nonResourceAttributes", Kind::Message(PATH)),
            (3, "user", Kind::Text),
            (4, "groups", Kind::Texts),
            (6, "uid", Kind::Text),
        ]),
    ),
];
const SELF_ACCESS_REVIEW: Fields = &[
    (1, "metadata", Kind::Message(METADATA)),
    (
        2,
        "spec",
        Kind::Message(&[
            (1, "resourceAttributes", Kind::Message(RESOURCE)),
            (2, "nonResourceAttributes", Kind::Message(PATH)),
        ]),
    ),
];
const RULES_REVIEW: Fields = &[
    (1, "metadata", Kind::Message(METADATA)),
    (2, "spec", Kind::Message(&[(1, "namespace", Kind::Text)])),
];
const SELF_REVIEW: Fields = &[(1, "metadata", Kind::Message(METADATA))];

/// The fields of a kind, if it is one of these.
pub(super) fn fields(version: &str, kind: &str) -> Option<Fields> {
    Some(match (version, kind) {
        ("rbac.authorization.k8s.io/v1", "Role" | "ClusterRole") => ROLE,
        ("rbac.authorization.k8s.io/v1", "RoleBinding" | "ClusterRoleBinding") => BINDING,
        ("authentication.k8s.io/v1", "TokenRequest") => TOKEN_REQUEST,
        ("authentication.k8s.io/v1", "TokenReview") => TOKEN_REVIEW,
        ("authentication.k8s.io/v1", "SelfSubjectReview") => SELF_REVIEW,
        ("authorization.k8s.io/v1", "SelfSubjectAccessReview") => SELF_ACCESS_REVIEW,
        ("authorization.k8s.io/v1", "SelfSubjectRulesReview") => RULES_REVIEW,
        ("authorization.k8s.io/v1", "SubjectAccessReview" | "LocalSubjectAccessReview") => {
            ACCESS_REVIEW
        }
        _ => return None,
    })
}
