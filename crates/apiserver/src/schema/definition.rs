//! What a CustomResourceDefinition may say.
//!
//! Upstream keeps what all versions have in common in one place, and its errors name that place: `spec.validation` for the schema
//! of a definition with one version, `spec.versions[1].schema` where versions differ.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::node::{Kind, Node, join};
use super::{FieldError, FieldErrorKind, cel, default_rules, structural};

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
pub(super) const LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] = [
    "byte",
    "date",
    "date-time",
    "double",
    "float",
    "int32",
    "int64",
    "password",
];
/// Says who approved a definition in a group of Kubernetes.
const APPROVED_BY: &str = "api-approved.kubernetes.io";
const POLICY: &str = "https://github.com/kubernetes/enhancements/pull/1111";
/// How many fields can be selected by.
const SELECTABLE: usize = 8;
/// Keywords that a schema may have at its root when the status is a subresource, so that the status can be checked alone.
const AT_ROOT: [&str; 21] = [
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
];
const AT_ROOT_SHOWN: &str = "only [Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations] fields are allowed at the root of the schema if the status subresource is enabled";

pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
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

pub(super) fn dns_label(name: &str) -> bool {
    name.len() <= 63 && alnum_ends(name) && name.starts_with(|c: char| c.is_ascii_lowercase())
}

/// An error that shows all versions. Upstream shows its internal form, in the order of its fields; what all versions share
/// stands elsewhere in it.
fn about_versions(versions: &[Value], detail: &str) -> FieldError {
    let shown: Vec<String> = versions
        .iter()
        .map(|version| {
            let flag = |field: &str| version[field] == true;
            format!(
                r#"{{"Name":{},"Served":{},"Storage":{},"Deprecated":{},"DeprecationWarning":{},"Schema":null,"Subresources":null,"AdditionalPrinterColumns":null,"SelectableFields":null}}"#,
                version["name"],
                flag("served"),
                flag("storage"),
                flag("deprecated"),
                version["deprecationWarning"],
            )
        })
        .collect();
    FieldError {
        kind: FieldErrorKind::Invalid,
        field: "spec.versions".into(),
        message: format!("Invalid value: [{}]: {detail}", shown.join(",")),
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
        "Namespaced" | "Cluster" => {}
        "" => errors.push(FieldError::required("spec.scope", "")),
        _ => errors.push(FieldError::not_supported(
            "spec.scope",
            &spec["scope"],
            &["Cluster", "Namespaced"],
        )),
    }
    check_versions(spec, old.map(|old| &old["spec"]), &mut errors);
    check_names(&spec["names"], &mut errors);
    check_conversion(spec, &mut errors);
    check_stored(crd, old, &mut errors);
    if spec["preserveUnknownFields"] == true {
        errors.push(FieldError::invalid(
            "spec.preserveUnknownFields",
            &json!(true),
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        ));
    }
    let approved = approval(crd);
    if old.is_none_or(|old| approval(old) != approved) {
        errors.extend(approved.error(crd));
    }
    if let Some(old) = old {
        check_update(crd, old, &mut errors);
    }
    errors
}

fn check_names(names: &Value, errors: &mut Vec<FieldError>) {
    for key in ["plural", "singular", "kind", "listKind"] {
        if text(names, key).is_empty() {
            errors.push(FieldError::required(format!("spec.names.{key}"), ""));
        }
    }
    for key in ["plural", "singular", "kind", "listKind"] {
        let path = format!("spec.names.{key}");
        let given = text(names, key);
        let mixed_case = key.ends_with("ind");
        if given.is_empty() {
            continue;
        }
        if mixed_case && !dns_label(&given.to_lowercase()) {
            let detail = format!("may have mixed case, but should otherwise match: {LABEL}");
            errors.push(FieldError::invalid(path, &names[key], &detail));
        } else if !mixed_case && !dns_label(given) {
            errors.push(FieldError::invalid(path, &names[key], LABEL));
        }
    }
    let check_list = |key: &str, errors: &mut Vec<FieldError>| {
        for (i, name) in list(names, key).iter().enumerate() {
            if !name.as_str().is_some_and(dns_label) {
                let path = format!("spec.names.{key}[{i}]");
                errors.push(FieldError::invalid(path, name, LABEL));
            }
        }
    };
    check_list("shortNames", errors);
    if !text(names, "kind").is_empty() && text(names, "kind") == text(names, "listKind") {
        errors.push(FieldError::invalid(
            "spec.names.listKind",
            &names["listKind"],
            "kind and listKind may not be the same",
        ));
    }
    check_list("categories", errors);
}

/// Where a part of a version is named in errors: in its version, or in the place for what all versions share.
struct Places<'a> {
    versions: &'a [Value],
}

impl<'a> Places<'a> {
    fn shared(&self, part: &str) -> bool {
        let first = self.versions.first().and_then(|v| v.get(part));
        first.is_some_and(|f| !f.is_null()) && self.versions.iter().all(|v| v.get(part) == first)
    }

    /// The parts of all versions, each once, with their paths.
    fn each(&self, part: &str, shared: &str) -> Vec<(&'a Value, &'a Value, String)> {
        let all = self
            .versions
            .iter()
            .enumerate()
            .filter(|(_, v)| !v[part].is_null());
        let named = all.map(|(i, version)| {
            (
                version,
                &version[part],
                format!("spec.versions[{i}].{part}"),
            )
        });
        if self.shared(part) {
            named
                .take(1)
                .map(|(v, given, _)| (v, given, shared.to_owned()))
                .collect()
        } else {
            named.collect()
        }
    }
}

fn check_versions(spec: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let versions = list(spec, "versions");
    let places = Places { versions };
    let mut names = HashSet::new();
    let mut unique = true;
    for (i, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{i}]");
        let name = text(version, "name");
        unique &= names.insert(name);
        if !dns_label(name) {
            errors.push(FieldError::invalid(
                format!("{path}.name"),
                &version["name"],
                LABEL,
            ));
        }
        check_deprecation(version, &path, errors);
        if !version["schema"]["openAPIV3Schema"].is_object() {
            errors.push(FieldError::required(
                format!("{path}.schema.openAPIV3Schema"),
                "",
            ));
        }
    }
    if !unique {
        errors.push(about_versions(
            versions,
            "must contain unique version names",
        ));
    }
    if versions.iter().filter(|v| v["storage"] == true).count() != 1 {
        errors.push(about_versions(
            versions,
            "must have exactly one version marked as storage version",
        ));
    }
    if let Some(first) = versions.first()
        && !dns_label(text(first, "name"))
    {
        errors.push(FieldError::invalid("spec.version", &first["name"], LABEL));
    }
    for (version, schema, path) in places.each("schema", "spec.validation") {
        let before = old.map(|old| list(old, "versions")).unwrap_or_default();
        let unchanged = before
            .iter()
            .any(|v| v["name"] == version["name"] && v["schema"] == version["schema"]);
        // A schema that was accepted once stays accepted, whatever a newer release thinks of it.
        if !unchanged {
            let status = version["subresources"]["status"].is_object();
            check_schema(
                &schema["openAPIV3Schema"],
                &join(&path, "openAPIV3Schema"),
                status,
                errors,
            );
        }
    }
    for (_, subresources, path) in places.each("subresources", "spec.subresources") {
        check_scale(&subresources["scale"], &path, errors);
    }
    for (_, columns, path) in
        places.each("additionalPrinterColumns", "spec.additionalPrinterColumns")
    {
        check_columns(columns, &path, errors);
    }
    for (version, fields, path) in places.each("selectableFields", "spec.selectableFields") {
        check_selectable(fields, &version["schema"]["openAPIV3Schema"], &path, errors);
    }
}

fn check_deprecation(version: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(warning) = version["deprecationWarning"].as_str() else {
        return;
    };
    let mut refuse = |detail: &str| {
        errors.push(FieldError::invalid(
            format!("{path}.deprecationWarning"),
            &version["deprecationWarning"],
            detail,
        ));
    };
    if version["deprecated"] != true {
        return refuse("can only be set for deprecated versions");
    }
    if warning.len() > 256 {
        refuse("must be <= 256 characters long");
    }
    if warning.is_empty() {
        refuse("must not be an empty string");
    }
    if let Some((i, _)) = warning.char_indices().find(|(_, c)| c.is_control()) {
        refuse(&format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {i}"
        ));
    }
}

fn check_schema(source: &Value, path: &str, status: bool, errors: &mut Vec<FieldError>) {
    let Some(map) = source.as_object() else {
        return;
    };
    let before = errors.len();
    if status {
        let kind = text(source, "type");
        if !kind.is_empty() && kind != "object" {
            errors.push(FieldError::invalid(
                join(path, "type"),
                &source["type"],
                "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled",
            ));
        } else if map.iter().any(|(key, v)| {
            !v.is_null() && !AT_ROOT.contains(&key.as_str()) && key != "x-kubernetes-validations"
        }) {
            errors.push(FieldError::invalid(path, source, AT_ROOT_SHOWN));
        }
    }
    if source["nullable"] == true {
        errors.push(FieldError::forbidden(
            join(path, "nullable"),
            "nullable cannot be true at the root",
        ));
    }
    errors.extend(structural::check(source, path));
    if errors.len() > before {
        return;
    }
    match Node::parse(source, path) {
        Err(error) => errors.push(error),
        Ok(root) => {
            errors.extend(default_rules::check(&root, path));
            if errors.len() == before {
                errors.extend(cel::check_rules(&root, path));
            }
        }
    }
}

fn check_columns(columns: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (i, column) in columns.as_array().into_iter().flatten().enumerate() {
        let here = |key: &str| format!("{path}[{i}].{key}");
        if text(column, "name").is_empty() {
            errors.push(FieldError::required(here("name"), ""));
        }
        let types = format!("must be one of {}", COLUMN_TYPES.join(","));
        match text(column, "type") {
            "" => errors.push(FieldError::required(here("type"), &types)),
            kind if !COLUMN_TYPES.contains(&kind) => {
                errors.push(FieldError::invalid(here("type"), &column["type"], &types));
            }
            _ => {}
        }
        let format = text(column, "format");
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            let formats = format!("must be one of {}", COLUMN_FORMATS.join(","));
            errors.push(FieldError::invalid(
                here("format"),
                &column["format"],
                &formats,
            ));
        }
        match text(column, "jsonPath") {
            "" => errors.push(FieldError::required(here("JSONPath"), "")),
            given => {
                if let Some(detail) = cel::simple(given) {
                    errors.push(FieldError::invalid(
                        here("JSONPath"),
                        &column["jsonPath"],
                        detail,
                    ));
                }
            }
        }
    }
}

fn check_scale(scale: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if scale.is_null() {
        return;
    }
    for (key, prefixes, detail) in [
        (
            "specReplicasPath",
            &[".spec."][..],
            "should be a json path under .spec",
        ),
        (
            "statusReplicasPath",
            &[".status."][..],
            "should be a json path under .status",
        ),
        (
            "labelSelectorPath",
            &[".spec.", ".status."][..],
            "should be a json path under either .spec or .status",
        ),
    ] {
        let here = format!("{path}.scale.{key}");
        match text(scale, key) {
            "" if key == "labelSelectorPath" => {}
            "" => errors.push(FieldError::required(here, "")),
            given => {
                if let Some(detail) = cel::simple(given) {
                    errors.push(FieldError::invalid(here, &scale[key], detail));
                } else if !prefixes.iter().any(|p| given.starts_with(p)) {
                    errors.push(FieldError::invalid(here, &scale[key], detail));
                }
            }
        }
    }
}

fn check_selectable(fields: &Value, schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Ok(root) = Node::parse(schema, path) else {
        return;
    };
    let mut known = HashSet::new();
    for (i, field) in fields.as_array().into_iter().flatten().enumerate() {
        let here = format!("{path}[{i}].jsonPath");
        let given = text(field, "jsonPath");
        if given.is_empty() {
            errors.push(FieldError::required(here, ""));
            continue;
        }
        let (shown, found) = match cel::resolve(given, &root, false) {
            Ok(found) => found,
            Err(why) => {
                let detail = format!("is an invalid path: {why}");
                errors.push(FieldError::invalid(here, &field["jsonPath"], &detail));
                continue;
            }
        };
        if shown.split('.').next() == Some("metadata") {
            errors.push(FieldError::invalid(
                here.as_str(),
                &field["jsonPath"],
                "must not point to fields in metadata",
            ));
        }
        if !matches!(
            found.kind,
            Some(Kind::String | Kind::Boolean | Kind::Integer)
        ) {
            errors.push(FieldError::invalid(
                here.as_str(),
                &field["jsonPath"],
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            ));
        }
        if !known.insert(shown) {
            errors.push(FieldError::new(
                FieldErrorKind::Duplicate,
                here,
                &field["jsonPath"],
                "",
            ));
        }
    }
    if known.len() > SELECTABLE {
        let detail = format!("must have at most {SELECTABLE} items");
        errors.push(FieldError::new(
            FieldErrorKind::TooMany,
            path,
            &json!(known.len()),
            &detail,
        ));
    }
}

fn check_conversion(spec: &Value, errors: &mut Vec<FieldError>) {
    let strategy = &spec["conversion"]["strategy"];
    match strategy.as_str() {
        None | Some("None") => {}
        // Nothing here would call a webhook, so a definition that needs one is refused.
        Some("Webhook") => errors.push(FieldError::not_supported(
            "spec.conversion.strategy",
            strategy,
            &["None"],
        )),
        Some(_) => errors.push(FieldError::not_supported(
            "spec.conversion.strategy",
            strategy,
            &["None", "Webhook"],
        )),
    }
}

/// The versions that objects may be stored in.
fn check_stored(crd: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let versions = list(&crd["spec"], "versions");
    let first = versions
        .iter()
        .find(|v| v["storage"] == true)
        .map(|v| v["name"].clone());
    let mut stored = match old {
        Some(_) => list(&crd["status"], "storedVersions").to_vec(),
        None => Vec::new(),
    };
    if let Some(first) = first
        && !stored.contains(&first)
    {
        stored.push(first);
    }
    let shown = json!(stored);
    if stored.is_empty() {
        errors.push(FieldError::invalid(
            "status.storedVersions",
            &Value::Null,
            "must have at least one stored version",
        ));
        return;
    }
    let mut left = stored.clone();
    for version in versions {
        let known = left.iter().position(|s| *s == version["name"]);
        if version["storage"] == true && known.is_none() {
            let detail = format!("must have the storage version {}", text(version, "name"));
            errors.push(FieldError::invalid(
                "status.storedVersions",
                &shown,
                &detail,
            ));
        }
        if let Some(i) = known {
            left.remove(i);
        }
    }
    for version in left {
        let i = stored.iter().position(|s| *s == version).unwrap_or(0);
        let name = version.as_str().unwrap_or_default();
        errors.push(FieldError::invalid(
            format!("status.storedVersions[{i}]"),
            &version,
            &format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in \
                 spec.versions until a storage migration ensures no data remains persisted in {name} and removes \
                 {name} from status.storedVersions"
            ),
        ));
    }
}

fn check_update(crd: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let conditions = list(&old["status"], "conditions");
    let established = conditions
        .iter()
        .any(|c| c["type"] == "Established" && c["status"] == "True");
    // Scope and kind only matter once objects may exist.
    let fields: &[&str] = if established {
        &[
            "/spec/scope",
            "/spec/names/kind",
            "/spec/group",
            "/spec/names/plural",
        ]
    } else {
        &["/spec/group", "/spec/names/plural"]
    };
    for pointer in fields {
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
}

/// Whether a definition in a group of Kubernetes is approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Approval {
    /// The group is nobody's but its author's.
    Free,
    Approved(String),
    Bypassed(String),
    Missing,
    Invalid,
}

pub(super) fn approval(crd: &Value) -> Approval {
    let group = text(&crd["spec"], "group");
    let protected = ["k8s.io", "kubernetes.io"].iter().any(|own| {
        group == *own
            || group
                .strip_suffix(own)
                .is_some_and(|rest| rest.ends_with('.'))
    });
    if !protected {
        return Approval::Free;
    }
    match text(&crd["metadata"]["annotations"], APPROVED_BY) {
        "" => Approval::Missing,
        given if given.starts_with("unapproved") => {
            Approval::Bypassed(format!("not approved: {given:?}"))
        }
        given => match given.parse::<http::Uri>() {
            Ok(uri) if uri.scheme().is_some() && uri.host().is_some() => {
                Approval::Approved(format!("approved in {given}"))
            }
            _ => Approval::Invalid,
        },
    }
}

impl Approval {
    fn error(&self, crd: &Value) -> Option<FieldError> {
        let field = format!("metadata.annotations[{APPROVED_BY}]");
        match self {
            Self::Missing => Some(FieldError::required(
                field,
                &format!(
                    "protected groups must have approval annotation {APPROVED_BY:?}, see {POLICY}"
                ),
            )),
            Self::Invalid => Some(FieldError::invalid(
                field,
                &crd["metadata"]["annotations"][APPROVED_BY],
                &format!(
                    "protected groups must have approval annotation {APPROVED_BY:?} with either a URL or a reason starting with \"unapproved\", see {POLICY}"
                ),
            )),
            Self::Free | Self::Approved(_) | Self::Bypassed(_) => None,
        }
    }

    /// Status, reason and message of the condition.
    pub(super) fn condition(&self) -> Option<(&'static str, &'static str, String)> {
        match self {
            Self::Free => None,
            Self::Approved(message) => Some(("True", "ApprovedAnnotation", message.clone())),
            Self::Bypassed(message) => Some(("False", "UnapprovedAnnotation", message.clone())),
            Self::Missing => Some((
                "False",
                "MissingAnnotation",
                format!(
                    "protected groups must have approval annotation {APPROVED_BY:?}, see {POLICY}"
                ),
            )),
            Self::Invalid => Some((
                "False",
                "InvalidAnnotation",
                format!(
                    "protected groups must have approval annotation {APPROVED_BY:?} with either a URL or a reason starting with \"unapproved\", see {POLICY}"
                ),
            )),
        }
    }
}
