//! CustomResourceDefinitions: defaulting, validation, status, and the [`ResourceDef`] that they make.
//!
//! Upstream behaviour mirrored: `apiextensions.k8s.io/v1`. Webhook conversion is refused, because nothing here would call the webhook.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{FieldError, FieldErrorKind, Schema, structural};
use crate::resources::{Column, ResourceDef, ScalePaths, VersionDef};
use crate::table::jsonpath::JsonPath;

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

/// The errors of a (defaulted) definition; `old` is the stored one on update.
pub fn validate(crd: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &crd["spec"];
    if !spec.is_object() {
        return vec![FieldError::required("spec", "")];
    }
    let group = text(spec, "group");
    let plural = text(&spec["names"], "plural");
    if text(&crd["metadata"], "name") != format!("{plural}.{group}") {
        errors.push(FieldError::invalid(
            "metadata.name",
            &crd["metadata"]["name"],
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if !subdomain(group) {
        errors.push(FieldError::invalid("spec.group", &spec["group"], SUBDOMAIN));
    } else if !group.contains('.') {
        errors.push(FieldError::invalid(
            "spec.group",
            &spec["group"],
            "should be a domain with at least one dot",
        ));
    }
    match text(spec, "scope") {
        "Cluster" | "Namespaced" => {}
        "" => errors.push(FieldError::required("spec.scope", "")),
        _ => errors.push(FieldError::not_supported(
            "spec.scope",
            &spec["scope"],
            &["Cluster", "Namespaced"],
        )),
    }
    check_names(&spec["names"], &mut errors);
    if spec["preserveUnknownFields"] == true {
        errors.push(FieldError::invalid(
            "spec.preserveUnknownFields",
            &json!(true),
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        ));
    }
    let strategy = &spec["conversion"]["strategy"];
    if !strategy.is_null() && strategy != "None" {
        errors.push(FieldError::not_supported(
            "spec.conversion.strategy",
            strategy,
            &["None"],
        ));
    }
    check_versions(spec, &mut errors);
    if let Some(old) = old {
        check_update(crd, old, &mut errors);
    }
    errors
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn alnum_ends(label: &str) -> bool {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !label.is_empty()
        && label.bytes().all(inside)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(alnum_ends)
}

fn dns_label(name: &str) -> bool {
    name.len() <= 63 && alnum_ends(name) && name.starts_with(|c: char| c.is_ascii_lowercase())
}

fn check_names(names: &Value, errors: &mut Vec<FieldError>) {
    for key in ["plural", "singular", "kind", "listKind"] {
        let path = format!("spec.names.{key}");
        let given = text(names, key);
        let mixed_case = key.ends_with("ind");
        if given.is_empty() {
            errors.push(FieldError::required(path, ""));
        } else if mixed_case && !dns_label(&given.to_lowercase()) {
            errors.push(FieldError::invalid(
                path,
                &names[key],
                &format!("may have mixed case, but should otherwise match: {LABEL}"),
            ));
        } else if !mixed_case && !dns_label(given) {
            errors.push(FieldError::invalid(path, &names[key], LABEL));
        }
    }
    for key in ["shortNames", "categories"] {
        for (i, name) in list(names, key).iter().enumerate() {
            if !name.as_str().is_some_and(dns_label) {
                errors.push(FieldError::invalid(
                    format!("spec.names.{key}[{i}]"),
                    name,
                    LABEL,
                ));
            }
        }
    }
    if !text(names, "kind").is_empty() && text(names, "kind") == text(names, "listKind") {
        errors.push(FieldError::invalid(
            "spec.names.listKind",
            &names["listKind"],
            "kind and listKind may not be the same",
        ));
    }
}

fn check_versions(spec: &Value, errors: &mut Vec<FieldError>) {
    let versions = list(spec, "versions");
    if versions.is_empty() {
        errors.push(FieldError::required(
            "spec.versions",
            "must have at least one version",
        ));
        return;
    }
    let mut names = HashSet::new();
    let mut unique = true;
    for (i, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{i}]");
        let name = text(version, "name");
        if !dns_label(name) {
            errors.push(FieldError::invalid(
                format!("{path}.name"),
                &version["name"],
                LABEL,
            ));
        }
        unique &= names.insert(name);
        for key in ["served", "storage"] {
            if !version[key].is_boolean() {
                errors.push(FieldError::required(format!("{path}.{key}"), ""));
            }
        }
        let schema = &version["schema"]["openAPIV3Schema"];
        if schema.is_null() {
            errors.push(FieldError::required(
                format!("{path}.schema.openAPIV3Schema"),
                "schemas are required",
            ));
        } else {
            errors.extend(structural::check(
                schema,
                &format!("{path}.schema.openAPIV3Schema"),
            ));
        }
        check_columns(version, &path, errors);
        check_scale(&version["subresources"], &path, errors);
        if !text(version, "deprecationWarning").is_empty() && version["deprecated"] != true {
            errors.push(FieldError::invalid(
                format!("{path}.deprecationWarning"),
                &version["deprecationWarning"],
                "can only be set for deprecated versions",
            ));
        }
    }
    let shown: Vec<&str> = versions.iter().map(|v| text(v, "name")).collect();
    if !unique {
        errors.push(FieldError::invalid(
            "spec.versions",
            &json!(shown),
            "must contain unique version names",
        ));
    }
    if versions.iter().filter(|v| v["storage"] == true).count() != 1 {
        errors.push(FieldError::invalid(
            "spec.versions",
            &json!(shown),
            "must have exactly one version marked as storage version",
        ));
    }
}

fn check_columns(version: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (i, column) in list(version, "additionalPrinterColumns").iter().enumerate() {
        let here = format!("{path}.additionalPrinterColumns[{i}]");
        if text(column, "name").is_empty() {
            errors.push(FieldError::required(format!("{here}.name"), ""));
        }
        let kinds = ["boolean", "date", "integer", "number", "string"];
        match text(column, "type") {
            "" => errors.push(FieldError::required(
                format!("{here}.type"),
                &format!("must be one of {}", kinds.join(",")),
            )),
            kind if !kinds.contains(&kind) => {
                let detail = format!("must be one of {}", kinds.join(","));
                errors.push(FieldError::invalid(
                    format!("{here}.type"),
                    &column["type"],
                    &detail,
                ));
            }
            _ => {}
        }
        match text(column, "jsonPath") {
            "" => errors.push(FieldError::required(format!("{here}.jsonPath"), "")),
            given => {
                if let Err(error) = JsonPath::parse(given) {
                    errors.push(FieldError::invalid(
                        format!("{here}.jsonPath"),
                        &column["jsonPath"],
                        &format!("is an invalid jsonpath: {error}"),
                    ));
                }
            }
        }
    }
}

fn check_scale(subresources: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let scale = &subresources["scale"];
    if scale.is_null() {
        return;
    }
    for (key, prefix) in [
        ("specReplicasPath", ".spec."),
        ("statusReplicasPath", ".status."),
    ] {
        let here = format!("{path}.subresources.scale.{key}");
        match text(scale, key) {
            "" => errors.push(FieldError::required(here, "")),
            given if !given.starts_with(prefix) => {
                let detail = format!(
                    "should be a json path under {}",
                    prefix.trim_end_matches('.')
                );
                errors.push(FieldError::invalid(here, &scale[key], &detail));
            }
            _ => {}
        }
    }
}

fn check_update(crd: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    for pointer in [
        "/spec/group",
        "/spec/scope",
        "/spec/names/plural",
        "/spec/names/kind",
    ] {
        let (new, before) = (crd.pointer(pointer), old.pointer(pointer));
        if new != before {
            let path = pointer.trim_start_matches('/').replace('/', ".");
            errors.push(FieldError::invalid(
                path,
                new.unwrap_or(&Value::Null),
                "field is immutable",
            ));
        }
    }
    let names: HashSet<&str> = list(&crd["spec"], "versions")
        .iter()
        .map(|v| text(v, "name"))
        .collect();
    for (i, stored) in list(&old["status"], "storedVersions").iter().enumerate() {
        if !stored.as_str().is_some_and(|s| names.contains(s)) {
            errors.push(FieldError::invalid(
                format!("status.storedVersions[{i}]"),
                stored,
                "must appear in spec.versions",
            ));
        }
    }
}

/// Writes the status of an accepted definition (accepted names, stored versions, NamesAccepted and Established conditions);
/// `now` is an RFC 3339 time for conditions that change. Returns whether something changed.
pub fn accept(crd: &mut Value, now: &str) -> bool {
    let names = crd["spec"]["names"].clone();
    let storage = list(&crd["spec"], "versions")
        .iter()
        .find(|v| v["storage"] == true)
        .map(|v| v["name"].clone());
    let Some(object) = crd.as_object_mut() else {
        return false;
    };
    let before = object.get("status").cloned();
    let status = object.entry("status").or_insert_with(|| json!({}));
    if !status.is_object() {
        *status = json!({});
    }
    status["acceptedNames"] = names;
    let mut stored = list(status, "storedVersions").to_vec();
    if let Some(storage) = storage
        && !stored.contains(&storage)
    {
        stored.push(storage);
    }
    status["storedVersions"] = stored.into();
    let mut conditions = list(status, "conditions").to_vec();
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
                "" => format!(
                    "{}/{name} {} is deprecated",
                    text(spec, "group"),
                    text(names, "kind")
                ),
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
    })
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
