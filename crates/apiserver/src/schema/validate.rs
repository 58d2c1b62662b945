//! The rules of values: type, required, enum, bounds, pattern, format, uniqueness, and the junctors.
//!
//! The words mirror upstream's validator, oddities included: a wrong type shows the *name* of the type found as the value, and a failed
//! junctor is reported at `<nil>` because it has no field of its own.

use serde_json::{Map, Number, Value};

use super::node::{Additional, Kind, ListType, Node, Rules, join};
use super::{FieldError, FieldErrorKind, formats, number, ratchet};

pub(super) fn validate_root(root: &Node, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    check(root, object, old, "", true, &mut errors);
    errors
}

/// The errors of a value inside a definition, for example of a default.
pub(super) fn validate_part(node: &Node, value: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    check(node, value, None, path, false, &mut errors);
    errors
}

/// Checks a value; `old` is its older self, where it has one: errors of what has not changed are dropped.
fn check(
    node: &Node,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    resource: bool,
    errors: &mut Vec<FieldError>,
) {
    let before = errors.len();
    check_value(node, value, old, path, resource, errors);
    if errors.len() > before && old.is_some_and(|old| ratchet::unchanged(node, value, old)) {
        errors.truncate(before);
    }
}

fn check_value(
    node: &Node,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    resource: bool,
    errors: &mut Vec<FieldError>,
) {
    if !check_type(node, value, path, errors) {
        if let Some(rules) = &node.rules {
            check_enum(rules, value, node.nullable, path, errors);
        }
        return;
    }
    if let Some(rules) = &node.rules {
        check_enum(rules, value, node.nullable, path, errors);
        check_rules(rules, value, path, errors);
    }
    match value {
        Value::Object(map) => check_object(node, map, old, path, resource, errors),
        Value::Array(list) => check_array(node, list, old, path, errors),
        _ => {}
    }
}

fn check_type(node: &Node, value: &Value, path: &str, errors: &mut Vec<FieldError>) -> bool {
    let expected = match node.kind {
        Some(kind) => kind.name(),
        None if node.int_or_string => "integer,string",
        None => return !value.is_null(),
    };
    let fits = match (node.kind, value) {
        (_, Value::Null) => {
            if node.nullable {
                return false;
            }
            false
        }
        (None, v) => v.is_string() || is_integer(v),
        (Some(Kind::Object), v) => v.is_object(),
        (Some(Kind::Array), v) => v.is_array(),
        (Some(Kind::String), v) => v.is_string(),
        (Some(Kind::Boolean), v) => v.is_boolean(),
        (Some(Kind::Number), v) => v.is_number(),
        (Some(Kind::Integer), v) => is_integer(v),
    };
    if !fits {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(n) if n.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let detail = format!("{}must be of type {expected}: {found:?}", in_body(path));
        errors.push(FieldError::new(
            FieldErrorKind::TypeInvalid,
            path,
            &Value::from(found),
            &detail,
        ));
    }
    fits
}

fn is_integer(value: &Value) -> bool {
    match value {
        Value::Number(n) => {
            n.is_i64() || n.is_u64() || n.as_f64().is_some_and(|f| f.fract() == 0.0)
        }
        _ => false,
    }
}

/// `spec.x in body `, the start of most messages.
fn in_body(path: &str) -> String {
    format!("{path} in body ")
}

fn check_enum(
    rules: &Rules,
    value: &Value,
    nullable: bool,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    if rules.values.is_empty()
        || (value.is_null() && nullable)
        || rules.values.iter().any(|v| equal(v, value))
    {
        return;
    }
    let supported: Vec<String> = rules
        .values
        .iter()
        .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
        .collect();
    errors.push(FieldError::not_supported(path, value, &supported));
}

/// JSON equality where `1` equals `1.0`.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        _ => a == b,
    }
}

fn check_rules(rules: &Rules, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::String(text) => check_string(rules, text, value, path, errors),
        Value::Number(n) => check_number(rules, n, value, path, errors),
        _ => {}
    }
    check_junctors(rules, value, path, errors);
}

fn check_string(
    rules: &Rules,
    text: &str,
    value: &Value,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let body = in_body(path);
    if let Some(max) = rules.max_length
        && text.chars().count() as u64 > max
    {
        errors.push(FieldError::new(
            FieldErrorKind::TooLong,
            path,
            value,
            &format!("may not be more than {max} bytes"),
        ));
    }
    if let Some(min) = rules.min_length
        && (text.chars().count() as u64) < min
    {
        errors.push(FieldError::invalid(
            path,
            value,
            &format!("{body}should be at least {min} chars long"),
        ));
    }
    if let Some(pattern) = &rules.pattern
        && !pattern.matches(text)
    {
        errors.push(FieldError::invalid(
            path,
            value,
            &format!("{body}should match '{}'", pattern.source),
        ));
    }
    if let Some(format) = &rules.format
        && !formats::valid(format, text)
    {
        let detail = format!("{body}must be of type {format}: {text:?}");
        errors.push(FieldError::new(
            FieldErrorKind::TypeInvalid,
            path,
            value,
            &detail,
        ));
    }
}

fn check_number(
    rules: &Rules,
    n: &Number,
    value: &Value,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let body = in_body(path);
    let Some(given) = n.as_f64() else { return };
    if let Some(max) = &rules.maximum
        && let Some(limit) = max.as_f64()
    {
        if rules.exclusive_maximum && given >= limit {
            errors.push(FieldError::invalid(
                path,
                value,
                &format!("{body}should be less than {}", number(max)),
            ));
        } else if given > limit {
            let detail = format!("{body}should be less than or equal to {}", number(max));
            errors.push(FieldError::invalid(path, value, &detail));
        }
    }
    if let Some(min) = &rules.minimum
        && let Some(limit) = min.as_f64()
    {
        if rules.exclusive_minimum && given <= limit {
            errors.push(FieldError::invalid(
                path,
                value,
                &format!("{body}should be greater than {}", number(min)),
            ));
        } else if given < limit {
            let detail = format!("{body}should be greater than or equal to {}", number(min));
            errors.push(FieldError::invalid(path, value, &detail));
        }
    }
    if let Some(factor) = &rules.multiple_of
        && let Some(step) = factor.as_f64()
        && step > 0.0
        && ((given / step).round() * step - given).abs() > 1e-9 * given.abs().max(1.0)
    {
        errors.push(FieldError::invalid(
            path,
            value,
            &format!("{body}should be a multiple of {}", number(factor)),
        ));
    }
}

fn check_junctors(rules: &Rules, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let try_one = |node: &Node| {
        let mut found = Vec::new();
        check(node, value, None, path, false, &mut found);
        found
    };
    let mut failed = |text: String| {
        errors.push(FieldError::invalid(
            "<nil>",
            &Value::from(""),
            &format!("{path:?} {text}"),
        ));
    };
    let mut more = Vec::new();
    let all: Vec<FieldError> = rules.all_of.iter().flat_map(try_one).collect();
    if !all.is_empty() {
        failed("must validate all the schemas (allOf)".to_owned());
        more.extend(all);
    }
    if !rules.any_of.is_empty() {
        let results: Vec<Vec<FieldError>> = rules.any_of.iter().map(try_one).collect();
        if results.iter().all(|r| !r.is_empty()) {
            failed("must validate at least one schema (anyOf)".to_owned());
            more.extend(results.into_iter().min_by_key(Vec::len).unwrap_or_default());
        }
    }
    if !rules.one_of.is_empty() {
        let results: Vec<Vec<FieldError>> = rules.one_of.iter().map(try_one).collect();
        match results.iter().filter(|r| r.is_empty()).count() {
            1 => {}
            0 => {
                failed(
                    "must validate one and only one schema (oneOf). Found none valid".to_owned(),
                );
                more.extend(results.into_iter().min_by_key(Vec::len).unwrap_or_default());
            }
            n => failed(format!(
                "must validate one and only one schema (oneOf). Found {n} valid alternatives"
            )),
        }
    }
    if let Some(not) = &rules.not
        && try_one(not).is_empty()
    {
        failed("must not validate the schema (not)".to_owned());
    }
    errors.extend(more);
}

fn check_object(
    node: &Node,
    map: &Map<String, Value>,
    old: Option<&Value>,
    path: &str,
    resource: bool,
    errors: &mut Vec<FieldError>,
) {
    if let Some(rules) = &node.rules {
        for name in &rules.required {
            if !map.contains_key(name.as_ref()) {
                errors.push(FieldError::required(join(path, name), ""));
            }
        }
        let size = map.len() as u64;
        if let Some(max) = rules.max_properties
            && size > max
        {
            let detail = format!("must have at most {max} items");
            errors.push(FieldError::new(
                FieldErrorKind::TooMany,
                path,
                &size.into(),
                &detail,
            ));
        }
        if let Some(min) = rules.min_properties
            && size < min
        {
            let detail = format!("{}should have at least {min} properties", in_body(path));
            errors.push(FieldError::invalid(path, &size.into(), &detail));
        }
    }
    for (name, value) in map {
        if (resource || node.embedded) && name == "metadata" {
            // The registry checks metadata, by one set of rules for all kinds; a schema may only narrow the names.
            if let Some(schema) = node.properties.get("metadata") {
                for key in ["name", "generateName"] {
                    if let (Some(rule), Some(text)) = (schema.properties.get(key), value.get(key)) {
                        check(rule, text, None, &format!("metadata.{key}"), false, errors);
                    }
                }
            }
            continue;
        }
        let here = join(path, name);
        // The version of a resource is not seen to change: both objects are in the same one.
        let before = old
            .filter(|_| !resource || !matches!(name.as_str(), "apiVersion" | "kind"))
            .and_then(|old| ratchet::child(node, old, name));
        match (node.properties.get(name.as_str()), &node.additional) {
            (Some(child), _) => check(child, value, before, &here, false, errors),
            (None, Additional::Schema(schema)) => {
                check(schema, value, before, &here, false, errors);
            }
            _ => {}
        }
    }
}

fn check_array(
    node: &Node,
    list: &[Value],
    old: Option<&Value>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    if let Some(rules) = &node.rules {
        let size = list.len() as u64;
        if let Some(max) = rules.max_items
            && size > max
        {
            let detail = format!("must have at most {max} items");
            errors.push(FieldError::new(
                FieldErrorKind::TooMany,
                path,
                &size.into(),
                &detail,
            ));
        }
        if let Some(min) = rules.min_items
            && size < min
        {
            let detail = format!("{}should have at least {min} items", in_body(path));
            errors.push(FieldError::invalid(path, &size.into(), &detail));
        }
        if rules.unique_items
            && list
                .iter()
                .enumerate()
                .any(|(i, v)| list[..i].iter().any(|w| equal(v, w)))
        {
            let detail = format!("{}shouldn't contain duplicates", in_body(path));
            errors.push(FieldError::invalid(path, &Value::from(""), &detail));
        }
    }
    if let Some(items) = &node.items {
        for (i, value) in list.iter().enumerate() {
            let before = old.and_then(|old| ratchet::same_key(node, old, value));
            check(items, value, before, &format!("{path}[{i}]"), false, errors);
        }
    }
}

/// Items that occur twice in lists whose items have an identity.
pub(super) fn duplicates(root: &Node, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    find_duplicates(root, object, "", &mut errors);
    errors
}

fn find_duplicates(node: &Node, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Array(list) => {
            check_unique(node, list, path, errors);
            if let Some(items) = &node.items {
                for (i, inner) in list.iter().enumerate() {
                    find_duplicates(items, inner, &format!("{path}[{i}]"), errors);
                }
            }
        }
        Value::Object(map) => {
            for (name, inner) in map {
                match (node.properties.get(name.as_str()), &node.additional) {
                    (Some(child), _) => find_duplicates(child, inner, &join(path, name), errors),
                    (None, Additional::Schema(schema)) => {
                        find_duplicates(schema, inner, &format!("{path}[{name}]"), errors);
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

fn check_unique(node: &Node, list: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let identity = |value: &Value| -> Option<Value> {
        match &node.list {
            ListType::Atomic => None,
            ListType::Set => Some(value.clone()),
            ListType::Map(keys) => {
                let map = value.as_object()?;
                Some(Value::Object(
                    keys.iter()
                        .filter_map(|k| Some((k.to_string(), map.get(k.as_ref())?.clone())))
                        .collect(),
                ))
            }
        }
    };
    let mut seen = std::collections::HashMap::new();
    for (i, value) in list.iter().enumerate() {
        let Some(id) = identity(value) else { continue };
        // Reported once for each value, at its second occurrence, as upstream does.
        let times = seen
            .entry(id.to_string())
            .and_modify(|n| *n += 1)
            .or_insert(1);
        if *times == 2 {
            errors.push(FieldError::new(
                FieldErrorKind::Duplicate,
                format!("{path}[{i}]"),
                &id,
                "",
            ));
        }
    }
}
