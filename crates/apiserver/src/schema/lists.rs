//! Whether the list and map types of a schema fit what they are said of.

use serde_json::{Map, Value, json};

use super::FieldError;
use super::node::join;

pub(super) fn check(
    map: &Map<String, Value>,
    kind: &str,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    check_map_type(map, kind, path, errors);
    check_list_type(map, kind, path, errors);
}

fn of_type(kind: &str, path: &str, detail: &str) -> FieldError {
    if kind.is_empty() {
        FieldError::required(join(path, "type"), detail)
    } else {
        FieldError::invalid(join(path, "type"), &json!(kind), detail)
    }
}

fn check_map_type(map: &Map<String, Value>, kind: &str, path: &str, errors: &mut Vec<FieldError>) {
    let Some(given) = map.get("x-kubernetes-map-type") else {
        return;
    };
    if kind != "object" {
        errors.push(of_type(
            kind,
            path,
            "must be object if x-kubernetes-map-type is specified",
        ));
    }
    if !matches!(given.as_str(), Some("atomic" | "granular")) {
        errors.push(FieldError::not_supported(
            join(path, "x-kubernetes-map-type"),
            given,
            &["atomic", "granular"],
        ));
    }
}

fn check_list_type(map: &Map<String, Value>, kind: &str, path: &str, errors: &mut Vec<FieldError>) {
    let here = join(path, "x-kubernetes-list-type");
    let given = map.get("x-kubernetes-list-type");
    let list_type = given.and_then(Value::as_str).unwrap_or_default();
    let items = map.get("items").unwrap_or(&Value::Null);
    let empty = Vec::new();
    let keys = map
        .get("x-kubernetes-list-map-keys")
        .and_then(Value::as_array)
        .unwrap_or(&empty);
    if given.is_some() && kind != "array" {
        errors.push(of_type(
            kind,
            path,
            "must be array if x-kubernetes-list-type is specified",
        ));
    } else if list_type == "set" {
        check_set_items(items, &join(path, "items"), errors);
    }
    if let Some(given) = given
        && !matches!(list_type, "atomic" | "set" | "map")
    {
        errors.push(FieldError::not_supported(
            here.as_str(),
            given,
            &["atomic", "set", "map"],
        ));
    }
    if !keys.is_empty() && list_type != "map" {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        errors.push(match given {
            None => FieldError::required(here, detail),
            Some(given) => FieldError::invalid(here, given, detail),
        });
    }
    if list_type == "map" {
        check_keys(keys, items, path, errors);
    }
    if matches!(list_type, "map" | "set") && items["nullable"] == true {
        errors.push(FieldError::forbidden(
            join(path, "items.nullable"),
            &format!("cannot be nullable when x-kubernetes-list-type is {list_type}"),
        ));
    }
}

/// Items of a set are compared as a whole, so nothing in them may be merged.
fn check_set_items(items: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
    let list_type = &items["x-kubernetes-list-type"];
    match items["type"].as_str() {
        Some("array") if !list_type.is_null() && list_type != "atomic" => {
            errors.push(FieldError::invalid(
                join(path, "x-kubernetes-list-type"),
                list_type,
                detail,
            ));
        }
        Some("object") if items["x-kubernetes-map-type"] != "atomic" => {
            errors.push(FieldError::invalid(
                join(path, "x-kubernetes-map-type"),
                list_type,
                detail,
            ));
        }
        _ => {}
    }
}

fn check_keys(keys: &[Value], items: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let keys_at = join(path, "x-kubernetes-list-map-keys");
    if keys.is_empty() {
        errors.push(FieldError::required(
            keys_at.as_str(),
            "must not be empty if x-kubernetes-list-type is map",
        ));
    }
    if items.is_null() {
        errors.push(FieldError::required(
            join(path, "items"),
            "must have a schema if x-kubernetes-list-type is map",
        ));
        return;
    }
    if items["type"] != "object" {
        errors.push(FieldError::invalid(
            join(path, "items.type"),
            &items["type"],
            "must be object if parent array's x-kubernetes-list-type is map",
        ));
        return;
    }
    let required = items["required"].as_array();
    for (i, key) in keys.iter().enumerate() {
        let name = key.as_str().unwrap_or_default();
        let at = |part: &str| format!("{path}.items.properties[{name}].{part}");
        let property = &items["properties"][name];
        if property.is_null() {
            errors.push(FieldError::invalid(
                keys_at.as_str(),
                &json!(keys),
                "entries must all be names of item properties",
            ));
        } else {
            if matches!(property["type"].as_str(), Some("array" | "object")) {
                errors.push(FieldError::invalid(
                    at("type"),
                    &items["type"],
                    "must be a scalar type if parent array's x-kubernetes-list-type is map",
                ));
            }
            if property["default"].is_null() && !required.is_some_and(|r| r.contains(key)) {
                errors.push(FieldError::required(
                    at("default"),
                    "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
                ));
            }
            if property["nullable"] == true {
                errors.push(FieldError::forbidden(
                    at("nullable"),
                    "this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
                ));
            }
        }
        if keys[..i].contains(key) {
            errors.push(FieldError::invalid(
                keys_at.as_str(),
                &json!(keys),
                "must not contain duplicate entries",
            ));
        }
    }
}
