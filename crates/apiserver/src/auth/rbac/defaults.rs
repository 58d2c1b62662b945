//! The roles and bindings that a cluster has from its first start.

use serde_json::{Value, json};

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const ALL: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
const CREATE: &[&str] = &["create"];

/// Verbs, API group, resources.
type Row = (
    &'static [&'static str],
    &'static str,
    &'static [&'static str],
);

/// What a viewer of a namespace sees. Secrets are not among it: their content would give more rights.
const VIEW: &[Row] = &[
    (
        READ,
        "",
        &[
            "configmaps",
            "endpoints",
            "persistentvolumeclaims",
            "persistentvolumeclaims/status",
            "pods",
            "replicationcontrollers",
            "replicationcontrollers/scale",
            "serviceaccounts",
            "services",
            "services/status",
        ],
    ),
    (
        READ,
        "",
        &[
            "bindings",
            "events",
            "limitranges",
            "namespaces/status",
            "pods/log",
            "pods/status",
            "replicationcontrollers/status",
            "resourcequotas",
            "resourcequotas/status",
        ],
    ),
    (READ, "", &["namespaces"]),
    (READ, "discovery.k8s.io", &["endpointslices"]),
    (
        READ,
        "apps",
        &[
            "controllerrevisions",
            "daemonsets",
            "daemonsets/status",
            "deployments",
            "deployments/scale",
            "deployments/status",
            "replicasets",
            "replicasets/scale",
            "replicasets/status",
            "statefulsets",
            "statefulsets/scale",
            "statefulsets/status",
        ],
    ),
    (
        READ,
        "autoscaling",
        &[
            "horizontalpodautoscalers",
            "horizontalpodautoscalers/status",
        ],
    ),
    (
        READ,
        "batch",
        &["cronjobs", "cronjobs/status", "jobs", "jobs/status"],
    ),
    (
        READ,
        "policy",
        &["poddisruptionbudgets", "poddisruptionbudgets/status"],
    ),
    (
        READ,
        "networking.k8s.io",
        &["ingresses", "ingresses/status", "networkpolicies"],
    ),
    (
        READ,
        "resource.k8s.io",
        &[
            "resourceclaims",
            "resourceclaims/status",
            "resourceclaimtemplates",
        ],
    ),
];

/// What an editor may do besides viewing. Roles and bindings are not among it.
const EDIT: &[Row] = &[
    (
        READ,
        "",
        &[
            "pods/attach",
            "pods/exec",
            "pods/portforward",
            "pods/proxy",
            "secrets",
            "services/proxy",
        ],
    ),
    (&["impersonate"], "", &["serviceaccounts"]),
    (
        WRITE,
        "",
        &[
            "pods",
            "pods/attach",
            "pods/exec",
            "pods/portforward",
            "pods/proxy",
        ],
    ),
    (CREATE, "", &["pods/eviction"]),
    (
        WRITE,
        "",
        &[
            "configmaps",
            "events",
            "persistentvolumeclaims",
            "replicationcontrollers",
            "replicationcontrollers/scale",
            "secrets",
            "serviceaccounts",
            "services",
            "services/proxy",
        ],
    ),
    (CREATE, "", &["serviceaccounts/token"]),
    (
        WRITE,
        "apps",
        &[
            "daemonsets",
            "deployments",
            "deployments/rollback",
            "deployments/scale",
            "replicasets",
            "replicasets/scale",
            "statefulsets",
            "statefulsets/scale",
        ],
    ),
    (WRITE, "autoscaling", &["horizontalpodautoscalers"]),
    (WRITE, "batch", &["cronjobs", "jobs"]),
    (WRITE, "policy", &["poddisruptionbudgets"]),
    (
        WRITE,
        "networking.k8s.io",
        &["ingresses", "networkpolicies"],
    ),
    (ALL, "coordination.k8s.io", &["leases"]),
    (
        WRITE,
        "resource.k8s.io",
        &["resourceclaims", "resourceclaimtemplates"],
    ),
];

/// What the admin of a namespace may do besides editing.
const ADMIN: &[Row] = &[
    (
        CREATE,
        "authorization.k8s.io",
        &["localsubjectaccessreviews"],
    ),
    (ALL, "rbac.authorization.k8s.io", &["rolebindings", "roles"]),
];

/// What any known user may ask about itself.
const BASIC: &[Row] = &[
    (
        CREATE,
        "authorization.k8s.io",
        &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
    ),
    (CREATE, "authentication.k8s.io", &["selfsubjectreviews"]),
];

/// For servers that let this one decide on their users.
const DELEGATOR: &[Row] = &[
    (CREATE, "authentication.k8s.io", &["tokenreviews"]),
    (CREATE, "authorization.k8s.io", &["subjectaccessreviews"]),
];

const PUBLIC: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];
const DISCOVERY: &[&str] = &[
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi",
    "/openapi/*",
    "/readyz",
    "/version",
    "/version/",
];
const MONITORING: &[&str] = &[
    "/healthz",
    "/healthz/*",
    "/livez",
    "/livez/*",
    "/metrics",
    "/metrics/slis",
    "/readyz",
    "/readyz/*",
];
const ISSUER: &[&str] = &[
    "/.well-known/openid-configuration",
    "/.well-known/openid-configuration/",
    "/openid/v1/jwks",
    "/openid/v1/jwks/",
];

/// The default ClusterRoles, then their bindings.
pub fn objects() -> Vec<Value> {
    let all = json!([
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        {"nonResourceURLs": ["*"], "verbs": ["*"]},
    ]);
    let none = json!({});
    let to = |role: &str| json!({format!("rbac.authorization.k8s.io/aggregate-to-{role}"): "true"});
    let mut out = vec![
        role("cluster-admin", &none, &all),
        role("system:discovery", &none, &paths(DISCOVERY)),
        role("system:monitoring", &none, &paths(MONITORING)),
        role("system:basic-user", &none, &rules(BASIC)),
        role("system:public-info-viewer", &none, &paths(PUBLIC)),
        role("system:auth-delegator", &none, &rules(DELEGATOR)),
        role(
            "system:service-account-issuer-discovery",
            &none,
            &paths(ISSUER),
        ),
        role("system:aggregate-to-admin", &to("admin"), &rules(ADMIN)),
        role("system:aggregate-to-edit", &to("edit"), &rules(EDIT)),
        role("system:aggregate-to-view", &to("view"), &rules(VIEW)),
        aggregated("admin", &none),
        aggregated("edit", &to("admin")),
        aggregated("view", &to("edit")),
    ];
    const KNOWN: &[&str] = &["system:authenticated"];
    const ANYONE: &[&str] = &["system:authenticated", "system:unauthenticated"];
    for (role, groups) in [
        ("cluster-admin", &["system:masters"][..]),
        ("system:monitoring", &["system:monitoring"]),
        ("system:discovery", KNOWN),
        ("system:basic-user", KNOWN),
        ("system:public-info-viewer", ANYONE),
        (
            "system:service-account-issuer-discovery",
            &["system:serviceaccounts"],
        ),
    ] {
        out.push(binding(role, groups));
    }
    out
}

fn rules(rows: &[Row]) -> Value {
    rows.iter()
        .map(|(verbs, group, resources)| json!({"verbs": verbs, "apiGroups": [group], "resources": resources}))
        .collect()
}

fn paths(paths: &[&str]) -> Value {
    json!([{"verbs": ["get"], "nonResourceURLs": paths}])
}

fn metadata(name: &str, labels: &Value) -> Value {
    let mut labels = labels.clone();
    labels["kubernetes.io/bootstrapping"] = json!("rbac-defaults");
    json!({"name": name, "labels": labels, "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}})
}

fn role(name: &str, labels: &Value, rules: &Value) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata(name, labels), "rules": rules})
}

fn aggregated(name: &str, labels: &Value) -> Value {
    let label = format!("rbac.authorization.k8s.io/aggregate-to-{name}");
    let mut role = role(name, labels, &json!([]));
    role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
    role
}

fn binding(role: &str, groups: &[&str]) -> Value {
    let group = "rbac.authorization.k8s.io";
    let subjects: Value = groups
        .iter()
        .map(|name| json!({"kind": "Group", "apiGroup": group, "name": name}))
        .collect();
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": metadata(role, &json!({})),
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
        "subjects": subjects,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::rbac::validate;

    #[test]
    fn the_defaults_are_valid_and_bound_roles_exist() {
        let all = objects();
        for object in &all {
            let kind = object["kind"].as_str().unwrap();
            assert_eq!(validate::check(kind, object, None), [], "{object}");
            if kind == "ClusterRoleBinding" {
                let bound = all.iter().any(|o| {
                    o["kind"] == "ClusterRole" && o["metadata"]["name"] == object["roleRef"]["name"]
                });
                assert!(bound, "{object}");
            }
        }
    }
}
