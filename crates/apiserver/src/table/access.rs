//! Columns and cells of roles and bindings.

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::builtin::{AGE, Header, NAME, Printer, created, list, name, text};

/// The printer of a kind of `rbac.authorization.k8s.io`.
pub(super) fn printer(kind: &str) -> Printer {
    match kind {
        "Role" | "ClusterRole" => Printer {
            headers: &[NAME, ("Created At", "date", 0)],
            cells: |o, _| vec![name(o), text(o, "/metadata/creationTimestamp").into()],
        },
        _ => Printer {
            headers: BINDING,
            cells: binding,
        },
    }
}

const BINDING: &[Header] = &[
    NAME,
    ("Role", "string", 0),
    AGE,
    ("Users", "string", 1),
    ("Groups", "string", 1),
    ("ServiceAccounts", "string", 1),
];

fn binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let subjects = |kind: &str| {
        let mine = list(object, "/subjects")
            .iter()
            .filter(|subject| text(subject, "/kind") == kind);
        let names = mine.map(|subject| match kind {
            "ServiceAccount" => {
                format!("{}/{}", text(subject, "/namespace"), text(subject, "/name"))
            }
            _ => text(subject, "/name").to_owned(),
        });
        names.collect::<Vec<_>>().join(", ").into()
    };
    let role = format!(
        "{}/{}",
        text(object, "/roleRef/kind"),
        text(object, "/roleRef/name")
    );
    vec![
        name(object),
        role.into(),
        created(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}
