//! Whether a schema is structural: only then can unknown fields be pruned without asking the validations.

use serde_json::{Map, Value, json};

use super::node::{Kind, join};
use super::patterns;
use super::{FieldError, lists};

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Where the structure is that value rules speak of.
#[derive(Clone, Copy)]
struct Outside<'a> {
    path: &'a str,
    /// Whether it must have every part that the rules speak of. As upstream has it, only the rules of the root are held to that.
    complete: bool,
}

/// Keywords that a structural schema may not have at all.
const UNSUPPORTED: [&str; 6] = [
    "$ref",
    "definitions",
    "dependencies",
    "patternProperties",
    "additionalItems",
    "id",
];

/// The errors of the `openAPIV3Schema` at `path`, sorted.
pub(super) fn check(schema: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    walk(schema, Level::Root, path, &mut errors);
    errors.sort_by_cached_key(ToString::to_string);
    errors
}

fn flag(map: &Map<String, Value>, key: &str) -> bool {
    map.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn walk(schema: &Value, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    let Some(map) = schema.as_object() else {
        errors.push(FieldError::invalid(path, schema, "must be a schema object"));
        return;
    };
    for key in UNSUPPORTED.into_iter().filter(|k| map.contains_key(*k)) {
        errors.push(FieldError::forbidden(
            join(path, key),
            &format!("{key} is not supported"),
        ));
    }
    if flag(map, "uniqueItems") {
        errors.push(FieldError::forbidden(
            join(path, "uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    let kind = map.get("type").and_then(Value::as_str).unwrap_or_default();
    let embedded = flag(map, "x-kubernetes-embedded-resource");
    let int_or_string = flag(map, "x-kubernetes-int-or-string");
    let preserve = flag(map, "x-kubernetes-preserve-unknown-fields");
    check_type(map, kind, level, path, errors);

    let properties = map.get("properties").and_then(Value::as_object);
    if let Some(properties) = properties {
        for (name, inner) in properties {
            walk(
                inner,
                Level::Field,
                &format!("{}[{name}]", join(path, "properties")),
                errors,
            );
        }
        if level == Level::Root || embedded {
            check_object_fields(properties, level, path, errors);
        }
    }
    if let Some(items) = map.get("items") {
        if items.is_array() {
            errors.push(FieldError::forbidden(
                join(path, "items"),
                "items must be a schema object and not an array",
            ));
        } else {
            walk(items, Level::Item, &join(path, "items"), errors);
        }
    }
    if let Some(additional) = map.get("additionalProperties").filter(|a| !a.is_null()) {
        let here = join(path, "additionalProperties");
        if level == Level::Root {
            errors.push(FieldError::forbidden(
                here.clone(),
                "must not be used at the root",
            ));
        }
        if properties.is_some_and(|p| !p.is_empty()) && *additional != true {
            errors.push(FieldError::forbidden(
                here.clone(),
                "additionalProperties and properties are mutual exclusive",
            ));
        }
        if embedded {
            errors.push(FieldError::forbidden(
                here.clone(),
                "must not be used if x-kubernetes-embedded-resource is set",
            ));
        }
        if additional.is_object() {
            walk(additional, Level::Field, &here, errors);
        }
    }
    if map.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(false)) {
        errors.push(FieldError::invalid(
            join(path, "x-kubernetes-preserve-unknown-fields"),
            &json!(false),
            "must be true or undefined",
        ));
    }
    if int_or_string && preserve {
        errors.push(FieldError::invalid(
            join(path, "x-kubernetes-preserve-unknown-fields"),
            &json!(true),
            "must be false if x-kubernetes-int-or-string is true",
        ));
    }
    if int_or_string && embedded {
        errors.push(FieldError::invalid(
            join(path, "x-kubernetes-embedded-resource"),
            &json!(true),
            "must be false if x-kubernetes-int-or-string is true",
        ));
    }
    if embedded && !preserve && properties.is_none_or(Map::is_empty) {
        errors.push(FieldError::required(
            join(path, "properties"),
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ));
    }
    lists::check(map, kind, path, errors);
    let at = Outside {
        path,
        complete: level == Level::Root,
    };
    check_values(map, map, at, path, errors);
}

fn check_type(
    map: &Map<String, Value>,
    kind: &str,
    level: Level,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let here = join(path, "type");
    let embedded = flag(map, "x-kubernetes-embedded-resource");
    if !kind.is_empty() && Kind::parse(kind).is_none() {
        let known = ["array", "boolean", "integer", "number", "object", "string"];
        errors.push(FieldError::not_supported(here, &json!(kind), &known));
        return;
    }
    if kind == "array" && map.get("items").is_none_or(Value::is_null) {
        errors.push(FieldError::required(
            join(path, "items"),
            "must be specified",
        ));
    }
    if embedded && kind != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if kind.is_empty() {
            FieldError::required(here, detail)
        } else {
            FieldError::invalid(here, &json!(kind), detail)
        });
    } else if kind.is_empty()
        && !map.contains_key("$ref")
        && !flag(map, "x-kubernetes-int-or-string")
        && !flag(map, "x-kubernetes-preserve-unknown-fields")
    {
        errors.push(FieldError::required(
            here,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        ));
    } else if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.push(FieldError::invalid(
            here,
            &json!(kind),
            "must be object at the root",
        ));
    }
}

/// `apiVersion`, `kind` and `metadata` of an object.
fn check_object_fields(
    properties: &Map<String, Value>,
    level: Level,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let kind_of = |name: &str| {
        properties
            .get(name)
            .map(|s| s.get("type").and_then(Value::as_str).unwrap_or_default())
    };
    for name in ["kind", "apiVersion"] {
        if let Some(kind) = kind_of(name).filter(|k| *k != "string") {
            errors.push(FieldError::invalid(
                format!("{path}.properties[{name}].type"),
                &json!(kind),
                "must be string",
            ));
        }
    }
    if let Some(kind) = kind_of("metadata").filter(|k| *k != "object") {
        errors.push(FieldError::invalid(
            format!("{path}.properties[metadata].type"),
            &json!(kind),
            "must be object",
        ));
    }
    if level == Level::Root
        && let Some(Value::Object(metadata)) = properties.get("metadata")
    {
        let only_names = metadata
            .get("properties")
            .and_then(Value::as_object)
            .is_none_or(|p| p.keys().all(|k| k == "name" || k == "generateName"));
        let extra = metadata.keys().any(|k| {
            !["type", "properties", "description", "title", "default"].contains(&k.as_str())
        });
        if !only_names || extra {
            errors.push(FieldError::forbidden(
                format!("{path}.properties[metadata]"),
                "must not specify anything other than name and generateName, but metadata is implicitly specified",
            ));
        }
    }
}

/// Value rules at one level: the pattern, and that junctors only restrict what the `structure` has already.
fn check_values(
    map: &Map<String, Value>,
    structure: &Map<String, Value>,
    at: Outside<'_>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    if let Some(pattern) = map.get("pattern").and_then(Value::as_str)
        && let Some(error) = patterns::fault(pattern)
    {
        errors.push(FieldError::invalid(
            join(path, "pattern"),
            &map["pattern"],
            &format!("must be a valid regular expression, but isn't: {error}"),
        ));
    }
    for junctor in ["allOf", "anyOf", "oneOf"] {
        let Some(list) = map.get(junctor).and_then(Value::as_array) else {
            continue;
        };
        for (i, inner) in list.iter().enumerate() {
            let type_allowed = flag(structure, "x-kubernetes-int-or-string")
                && (junctor == "anyOf" && is_int_or_string(list));
            check_nested(
                inner,
                Some(structure),
                at,
                type_allowed,
                &format!("{}[{i}]", join(path, junctor)),
                errors,
            );
        }
    }
    if let Some(not) = map.get("not").filter(|n| !n.is_null()) {
        check_nested(not, Some(structure), at, false, &join(path, "not"), errors);
    }
}

/// `anyOf: [{type: integer}, {type: string}]`, in this order.
fn is_int_or_string(list: &[Value]) -> bool {
    list.iter()
        .map(|s| s["type"].as_str())
        .eq([Some("integer"), Some("string")])
}

/// A schema under a junctor: it may hold value rules only.
fn check_nested(
    inner: &Value,
    structure: Option<&Map<String, Value>>,
    at: Outside<'_>,
    type_allowed: bool,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let Some(map) = inner.as_object() else {
        errors.push(FieldError::invalid(path, inner, "must be a schema object"));
        return;
    };
    let forbidden = [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        (
            "x-kubernetes-preserve-unknown-fields",
            "must be false to be structural",
        ),
        (
            "x-kubernetes-embedded-resource",
            "must be false to be structural",
        ),
        (
            "x-kubernetes-int-or-string",
            "must be false to be structural",
        ),
        (
            "x-kubernetes-list-map-keys",
            "must be empty to be structural",
        ),
        (
            "x-kubernetes-list-type",
            "must be undefined to be structural",
        ),
        (
            "x-kubernetes-map-type",
            "must be undefined to be structural",
        ),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ];
    for (key, detail) in forbidden {
        let set = map.get(key).is_some_and(|v| {
            !matches!(v, Value::Null | Value::Bool(false)) && v.as_str() != Some("")
        });
        // `anyOf: [{type: integer}, {type: string}]` is the one way upstream lets a type stand here.
        if set && !(key == "type" && type_allowed) {
            errors.push(FieldError::forbidden(join(path, key), detail));
        }
    }
    let empty = Map::new();
    let structure = structure.unwrap_or(&empty);
    if let Some(Value::Object(properties)) = map.get("properties") {
        let known = structure.get("properties").and_then(Value::as_object);
        for (name, child) in properties {
            let here = format!("{}[{name}]", join(path, "properties"));
            let outside = format!("{}[{name}]", join(at.path, "properties"));
            if name == "metadata" {
                errors.push(FieldError::forbidden(
                    here,
                    "must not be specified in a nested context",
                ));
                continue;
            }
            let inner = known.and_then(|k| k.get(name)).and_then(Value::as_object);
            if inner.is_none() && at.complete {
                let detail = format!("because it is defined in {here}");
                errors.push(FieldError::required(outside, &detail));
                continue;
            }
            let at = Outside {
                path: &outside,
                ..at
            };
            check_nested(child, inner, at, false, &here, errors);
        }
    }
    if let Some(items) = map.get("items").filter(|items| !items.is_null()) {
        let here = join(path, "items");
        let outside = join(at.path, "items");
        let inner = structure.get("items").and_then(Value::as_object);
        if inner.is_none() && at.complete {
            let detail = format!("because it is defined in {here}");
            errors.push(FieldError::required(outside, &detail));
        } else {
            let at = Outside {
                path: &outside,
                ..at
            };
            check_nested(items, inner, at, false, &here, errors);
        }
    }
    check_values(map, structure, at, path, errors);
}
