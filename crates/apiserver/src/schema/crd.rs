//! CustomResourceDefinitions: defaulting, status, and the [`ResourceDef`] that they make. What they may say is in `definition`.
//!
//! Upstream behaviour mirrored: `apiextensions.k8s.io/v1`. Webhook conversion is refused, because nothing here would call the webhook.

use std::sync::Arc;

use serde_json::{Value, json};

pub use super::definition::validate;
use super::definition::{approval, list, text};
use super::{FieldError, FieldErrorKind, Schema};
use crate::resources::{Column, ResourceDef, ScalePaths, VersionDef};

/// Condition of definitions in groups that belong to Kubernetes.
const APPROVAL: &str = "KubernetesAPIApprovalPolicyConformant";

/// Fills in what upstream fills in: singular and list names, conversion strategy.
pub fn default(crd: &mut Value) {
    let Some(spec) = crd.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut)
        && let Some(kind) = names.get("kind").and_then(Value::as_str).map(str::to_owned)
    {
        if names
            .get("singular")
            .and_then(Value::as_str)
            .is_none_or(str::is_empty)
        {
            names.insert("singular".into(), kind.to_lowercase().into());
        }
        if names
            .get("listKind")
            .and_then(Value::as_str)
            .is_none_or(str::is_empty)
        {
            names.insert("listKind".into(), format!("{kind}List").into());
        }
    }
    if spec.get("conversion").is_none_or(Value::is_null) {
        spec.insert("conversion".into(), json!({"strategy": "None"}));
    }
}

/// Notes the storage version among those in which objects may be stored.
pub(crate) fn store_version(crd: &mut Value) {
    let versions = list(&crd["spec"], "versions");
    let Some(storage) = versions.iter().find(|v| v["storage"] == true) else {
        return;
    };
    let storage = storage["name"].clone();
    if !crd["status"].is_object() {
        crd["status"] = json!({});
    }
    let mut stored = list(&crd["status"], "storedVersions").to_vec();
    if !stored.contains(&storage) {
        stored.push(storage);
    }
    crd["status"]["storedVersions"] = stored.into();
}

/// Writes the status of an accepted definition (accepted names, stored versions, NamesAccepted and Established conditions);
/// `now` is an RFC 3339 time for conditions that change. Returns whether something changed.
pub fn accept(crd: &mut Value, now: &str) -> bool {
    let names = crd["spec"]["names"].clone();
    let copy = crd["metadata"]["annotations"].clone();
    let copy = json!({"metadata": {"annotations": copy}, "spec": {"group": crd["spec"]["group"]}});
    let before = crd.get("status").cloned();
    store_version(crd);
    let Some(object) = crd.as_object_mut() else {
        return false;
    };
    let status = object.entry("status").or_insert_with(|| json!({}));
    if !status.is_object() {
        *status = json!({});
    }
    status["acceptedNames"] = names;
    let mut conditions = list(status, "conditions").to_vec();
    let approved = approval(&copy).condition();
    let before_approval = conditions.iter().find(|c| c["type"] == APPROVAL).cloned();
    conditions.retain(|c| c["type"] != APPROVAL);
    if let Some((value, reason, message)) = approved {
        let since = before_approval
            .filter(|c| c["status"] == value)
            .map_or_else(|| json!(now), |c| c["lastTransitionTime"].clone());
        conditions.push(
            json!({"type": APPROVAL, "status": value, "reason": reason, "message": message,
            "lastTransitionTime": since}),
        );
    }
    for (kind, reason, message) in [
        ("NamesAccepted", "NoConflicts", "no conflicts found"),
        (
            "Established",
            "InitialNamesAccepted",
            "the initial names have been accepted",
        ),
    ] {
        if conditions
            .iter()
            .any(|c| c["type"] == kind && c["status"] == "True")
        {
            continue;
        }
        conditions.retain(|c| c["type"] != kind);
        conditions.push(
            json!({"type": kind, "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": now}),
        );
    }
    status["conditions"] = conditions.into();
    before.as_ref() != object.get("status")
}

/// See [`ResourceDef::from_crd`].
pub(crate) fn resource_def(crd: &Value) -> Result<ResourceDef, Vec<FieldError>> {
    let spec = &crd["spec"];
    let names = &spec["names"];
    let mut versions: Vec<VersionDef> = Vec::new();
    let mut parsed: Vec<(&Value, Arc<Schema>)> = Vec::new();
    for version in list(spec, "versions") {
        let source = &version["schema"]["openAPIV3Schema"];
        // Versions often share one schema; then they share the parsed form, too.
        let schema = match parsed.iter().find(|(known, _)| *known == source) {
            _ if source.is_null() => None,
            Some((_, schema)) => Some(schema.clone()),
            None => {
                let schema = Arc::new(Schema::parse(source)?);
                parsed.push((source, schema.clone()));
                Some(schema)
            }
        };
        let name = text(version, "name").to_owned();
        let deprecated = version["deprecated"] == true;
        versions.push(VersionDef {
            served: version["served"] == true,
            deprecation_warning: deprecated.then(|| match text(version, "deprecationWarning") {
                "" => default_warning(spec, &name),
                given => given.to_owned(),
            }),
            status: version["subresources"]["status"].is_object(),
            scale: version["subresources"]["scale"].is_object(),
            scale_paths: scale_paths(&version["subresources"]["scale"]),
            selectable_fields: list(version, "selectableFields")
                .iter()
                .map(|field| text(field, "jsonPath").to_owned())
                .collect(),
            columns: list(version, "additionalPrinterColumns")
                .iter()
                .map(column)
                .collect(),
            schema,
            name,
        });
    }
    let storage = list(spec, "versions").iter().find(|v| v["storage"] == true);
    let Some(storage) = storage else {
        return Err(vec![FieldError::new(
            FieldErrorKind::Invalid,
            "spec.versions",
            &Value::Null,
            "must have exactly one version marked as storage version",
        )]);
    };
    versions.sort_by_key(|v| std::cmp::Reverse(version_order(&v.name)));
    let words = |key: &str| {
        list(names, key)
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    };
    Ok(ResourceDef {
        group: text(spec, "group").to_owned(),
        kind: text(names, "kind").to_owned(),
        list_kind: text(names, "listKind").to_owned(),
        plural: text(names, "plural").to_owned(),
        singular: text(names, "singular").to_owned(),
        short_names: words("shortNames"),
        categories: words("categories"),
        namespaced: text(spec, "scope") == "Namespaced",
        versions,
        storage_version: text(storage, "name").to_owned(),
        crd: true,
        subresources: Vec::new(),
        alias: None,
        since: 0,
    })
}

/// What a deprecated version is warned of where the definition has no words of its own: with the best newer version.
fn default_warning(spec: &Value, name: &str) -> String {
    let (group, kind) = (text(spec, "group"), text(&spec["names"], "kind"));
    let newer = list(spec, "versions")
        .iter()
        .filter(|v| v["served"] == true && v["deprecated"] != true)
        .map(|v| text(v, "name"))
        .filter(|other| version_order(other) > version_order(name))
        .max_by_key(|other| version_order(other));
    let said = format!("{group}/{name} {kind} is deprecated");
    match newer {
        Some(newer) => format!("{said}; use {group}/{newer} {kind}"),
        None => said,
    }
}

fn scale_paths(scale: &Value) -> ScalePaths {
    ScalePaths {
        spec: text(scale, "specReplicasPath").to_owned(),
        status: text(scale, "statusReplicasPath").to_owned(),
        selector: text(scale, "labelSelectorPath").to_owned(),
    }
}

fn column(source: &Value) -> Column {
    Column {
        name: text(source, "name").to_owned(),
        kind: text(source, "type").to_owned(),
        format: text(source, "format").to_owned(),
        description: text(source, "description").to_owned(),
        priority: source["priority"]
            .as_i64()
            .and_then(|p| i32::try_from(p).ok())
            .unwrap_or(0),
        json_path: text(source, "jsonPath").to_owned(),
    }
}

/// Sort key of a version name, the better the higher: v2 > v1 > v1beta2 > v1alpha1 > anything else (there earlier names are better).
pub(crate) fn version_order(name: &str) -> (u8, u64, u8, u64, std::cmp::Reverse<String>) {
    let parsed = || -> Option<(u64, u8, u64)> {
        let rest = name.strip_prefix('v')?;
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let major = rest[..end].parse().ok()?;
        let rest = &rest[end..];
        if rest.is_empty() {
            return Some((major, 2, 0));
        }
        let (stability, minor) = match (rest.strip_prefix("beta"), rest.strip_prefix("alpha")) {
            (Some(minor), _) => (1, minor),
            (_, Some(minor)) => (0, minor),
            _ => return None,
        };
        Some((major, stability, minor.parse().ok()?))
    };
    match parsed() {
        Some((major, stability, minor)) => (
            1 + stability,
            major,
            stability,
            minor,
            std::cmp::Reverse(String::new()),
        ),
        None => (0, 0, 0, 0, std::cmp::Reverse(name.to_owned())),
    }
}
