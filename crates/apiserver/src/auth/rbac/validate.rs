//! Defaults and rules of roles and bindings.

use serde_json::{Value, json};

use crate::auth::rbac::GROUP;
use crate::error::Cause;
use crate::registry::meta;

/// Fills in the API groups that references leave out. Idempotent.
pub(crate) fn default(object: &mut Value) {
    let fill = |map: &mut Value, group: &str| {
        if let Some(map) = map.as_object_mut()
            && map
                .get("apiGroup")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .is_empty()
            && !group.is_empty()
        {
            map.insert("apiGroup".into(), json!(group));
        }
    };
    if let Some(reference) = object.get_mut("roleRef") {
        fill(reference, GROUP);
    }
    let subjects = object.get_mut("subjects").and_then(Value::as_array_mut);
    for subject in subjects.into_iter().flatten() {
        if matches!(meta::text(subject, &["kind"]), "User" | "Group") {
            fill(subject, GROUP);
        }
    }
}

/// What is wrong with the name of a role or binding: it only has to fit into a path.
pub(crate) fn name(name: &str) -> Vec<Cause> {
    name_problems(name)
        .into_iter()
        .map(|why| Cause::invalid("metadata.name", format!("{name:?}"), why))
        .collect()
}

fn name_problems(name: &str) -> Vec<String> {
    if name == "." || name == ".." {
        return vec![format!("may not be '{name}'")];
    }
    ["/", "%"]
        .into_iter()
        .filter(|bad| name.contains(bad))
        .map(|bad| format!("may not contain '{bad}'"))
        .collect()
}

/// What is wrong with an object of one of the four kinds; `old` is the stored one on update.
pub(crate) fn check(kind: &str, object: &Value, old: Option<&Value>) -> Vec<Cause> {
    match kind {
        "Role" | "ClusterRole" => check_role(kind == "Role", object),
        _ => {
            let mut causes = check_binding(kind == "RoleBinding", object);
            if old.is_some_and(|old| old["roleRef"] != object["roleRef"]) {
                let text = |field| meta::text(object, &["roleRef", field]);
                let shown = format!(
                    r#"{{"APIGroup":{:?},"Kind":{:?},"Name":{:?}}}"#,
                    text("apiGroup"),
                    text("kind"),
                    text("name")
                );
                causes.push(Cause::invalid("roleRef", shown, "cannot change roleRef"));
            }
            causes
        }
    }
}

fn count(map: &Value, field: &str) -> usize {
    map[field].as_array().map_or(0, Vec::len)
}

fn check_role(namespaced: bool, role: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (at, rule) in role["rules"].as_array().into_iter().flatten().enumerate() {
        let field = |name: &str| format!("rules[{at}].{name}");
        if count(rule, "verbs") == 0 {
            causes.push(Cause::required(
                field("verbs"),
                "verbs must contain at least one value",
            ));
        }
        if count(rule, "nonResourceURLs") > 0 {
            let shown = rule["nonResourceURLs"].to_string();
            if namespaced {
                causes.push(Cause::invalid(
                    field("nonResourceURLs"),
                    &shown,
                    "namespaced rules cannot apply to non-resource URLs",
                ));
            }
            if ["apiGroups", "resources", "resourceNames"]
                .into_iter()
                .any(|list| count(rule, list) > 0)
            {
                causes.push(Cause::invalid(
                    field("nonResourceURLs"),
                    &shown,
                    "rules cannot apply to both regular resources and non-resource URLs",
                ));
            }
            continue;
        }
        for (list, why) in [
            (
                "apiGroups",
                "resource rules must supply at least one api group",
            ),
            (
                "resources",
                "resource rules must supply at least one resource",
            ),
        ] {
            if count(rule, list) == 0 {
                causes.push(Cause::required(field(list), why));
            }
        }
    }
    if role["aggregationRule"].is_object()
        && count(&role["aggregationRule"], "clusterRoleSelectors") == 0
    {
        causes.push(Cause::required(
            "aggregationRule.clusterRoleSelectors",
            "at least one clusterRoleSelector required if aggregationRule is non-nil",
        ));
    }
    let selectors = role
        .pointer("/aggregationRule/clusterRoleSelectors")
        .and_then(Value::as_array);
    for (at, selector) in selectors.into_iter().flatten().enumerate() {
        causes.extend(check_selector(at, selector));
    }
    causes
}

/// What is wrong with the requirements of a label selector.
fn check_selector(at: usize, selector: &Value) -> Vec<Cause> {
    let field = format!("aggregationRule.clusterRoleSelectors[{at}]");
    let mut causes = Vec::new();
    let requirements = selector["matchExpressions"].as_array();
    for (at, one) in requirements.into_iter().flatten().enumerate() {
        let field = |name: &str| format!("{field}.matchExpressions[{at}].{name}");
        let values = count(one, "values");
        match meta::text(one, &["operator"]) {
            "In" | "NotIn" if values == 0 => causes.push(Cause::required(
                field("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if values > 0 => causes.push(Cause::forbidden(
                field("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => causes.push(Cause::invalid(
                field("operator"),
                format!("{other:?}"),
                "not a valid selector operator",
            )),
        }
    }
    if !causes.is_empty() {
        causes.push(Cause::invalid(field, "null", "invalid label selector."));
    }
    causes
}

fn check_binding(namespaced: bool, binding: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let reference = &binding["roleRef"];
    let group = meta::text(reference, &["apiGroup"]);
    if group != GROUP {
        causes.push(unsupported("roleRef.apiGroup", group, &[GROUP]));
    }
    let kinds: &[&str] = if namespaced {
        &["Role", "ClusterRole"]
    } else {
        &["ClusterRole"]
    };
    let kind = meta::text(reference, &["kind"]);
    if !kinds.contains(&kind) {
        causes.push(unsupported("roleRef.kind", kind, kinds));
    }
    match meta::text(reference, &["name"]) {
        "" => causes.push(Cause::required("roleRef.name", "")),
        name => causes.extend(
            name_problems(name)
                .into_iter()
                .map(|why| Cause::invalid("roleRef.name", format!("{name:?}"), why)),
        ),
    }
    for (at, subject) in binding["subjects"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let field = |name: &str| format!("subjects[{at}].{name}");
        let name = meta::text(subject, &["name"]);
        if name.is_empty() {
            causes.push(Cause::required(field("name"), ""));
        }
        let group = meta::text(subject, &["apiGroup"]);
        match meta::text(subject, &["kind"]) {
            "ServiceAccount" => {
                if !name.is_empty() {
                    causes.extend(
                        meta::check_name(name, false)
                            .into_iter()
                            .map(|cause| Cause {
                                field: field("name"),
                                ..cause
                            }),
                    );
                }
                if !group.is_empty() {
                    causes.push(unsupported(&field("apiGroup"), group, &[""]));
                }
                if !namespaced && meta::text(subject, &["namespace"]).is_empty() {
                    causes.push(Cause::required(field("namespace"), ""));
                }
            }
            "User" | "Group" if group == GROUP => {}
            "User" | "Group" => causes.push(unsupported(&field("apiGroup"), group, &[GROUP])),
            kind => causes.push(unsupported(
                &field("kind"),
                kind,
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
    causes
}

fn unsupported(field: &str, given: &str, supported: &[&str]) -> Cause {
    let supported: Vec<String> = supported.iter().map(|one| format!("{one:?}")).collect();
    Cause {
        reason: "FieldValueNotSupported".into(),
        field: field.into(),
        message: format!(
            "Unsupported value: {given:?}: supported values: {}",
            supported.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(kind: &str, object: &Value) -> Vec<String> {
        check(kind, object, None)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn rules_of_roles() {
        let role = json!({"rules": [{"verbs": [], "apiGroups": [""], "resources": ["pods"]}, {"verbs": ["get"]}, {"verbs": ["get"], "nonResourceURLs": ["/x"], "resources": ["pods"]}]});
        assert_eq!(
            texts("Role", &role),
            [
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[1].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[1].resources: Required value: resource rules must supply at least one resource",
                r#"rules[2].nonResourceURLs: Invalid value: ["/x"]: namespaced rules cannot apply to non-resource URLs"#,
                r#"rules[2].nonResourceURLs: Invalid value: ["/x"]: rules cannot apply to both regular resources and non-resource URLs"#,
            ]
        );
        assert_eq!(
            texts("ClusterRole", &json!({"aggregationRule": {}})).len(),
            1
        );
    }

    #[test]
    fn selectors_of_collected_roles() {
        let selector = json!({"matchExpressions": [{"key": "a", "operator": "Odd"}, {"key": "b", "operator": "In"}, {"key": "c", "operator": "Exists", "values": ["x"]}, {"key": "d", "operator": "Exists"}]});
        let role = json!({"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}, selector]}});
        let at = "aggregationRule.clusterRoleSelectors[1]";
        assert_eq!(
            texts("ClusterRole", &role),
            [
                format!(
                    "{at}.matchExpressions[0].operator: Invalid value: \"Odd\": not a valid selector operator"
                ),
                format!(
                    "{at}.matchExpressions[1].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
                ),
                format!(
                    "{at}.matchExpressions[2].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                ),
                format!("{at}: Invalid value: null: invalid label selector."),
            ]
        );
    }

    #[test]
    fn rules_of_bindings() {
        let mut binding = json!({"roleRef": {"kind": "Role", "name": "a/b"}, "subjects": [{"kind": "User", "name": "x"}, {"kind": "ServiceAccount", "name": "y"}, {"kind": "Robot", "name": ""}]});
        default(&mut binding);
        assert_eq!(binding["subjects"][0]["apiGroup"], GROUP);
        assert_eq!(
            texts("ClusterRoleBinding", &binding),
            [
                r#"roleRef.kind: Unsupported value: "Role": supported values: "ClusterRole""#,
                r#"roleRef.name: Invalid value: "a/b": may not contain '/'"#,
                "subjects[1].namespace: Required value",
                "subjects[2].name: Required value",
                r#"subjects[2].kind: Unsupported value: "Robot": supported values: "ServiceAccount", "User", "Group""#,
            ]
        );
        let mut other = binding.clone();
        other["roleRef"]["name"] = json!("c");
        let changed = check("RoleBinding", &other, Some(&binding));
        assert!(
            changed
                .iter()
                .any(|cause| cause.message.ends_with("cannot change roleRef"))
        );
    }

    #[test]
    fn names_may_hold_colons() {
        assert!(name("system:discovery").is_empty());
        assert_eq!(name("a/b%").len(), 2);
        assert_eq!(name("..").len(), 1);
    }
}
