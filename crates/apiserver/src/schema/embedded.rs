//! Objects inside objects (`x-kubernetes-embedded-resource`): they have a type, and metadata like any other.

use serde_json::{Value, json};

use super::definition::{LABEL, dns_label};
use super::node::{Additional, Node, join};
use super::{FieldError, FieldErrorKind};
use crate::registry::metadata;

/// The errors of all objects inside a value.
pub(super) fn check(node: &Node, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            if node.embedded {
                check_object(value, path, errors);
            }
            for (name, inner) in map {
                match (node.properties.get(name.as_str()), &node.additional) {
                    (Some(schema), _) => check(schema, inner, &join(path, name), errors),
                    (None, Additional::Schema(schema)) => {
                        check(schema, inner, &format!("{path}[{name}]"), errors);
                    }
                    _ => {}
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &node.items {
                for (i, inner) in list.iter().enumerate() {
                    check(items, inner, &format!("{path}[{i}]"), errors);
                }
            }
        }
        _ => {}
    }
}

fn check_object(object: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for name in ["apiVersion", "kind"] {
        let here = join(path, name);
        let Some(given) = object.get(name) else {
            errors.push(FieldError::required(here, ""));
            continue;
        };
        let Some(text) = given.as_str() else {
            errors.push(FieldError::invalid(here, given, "must be a string"));
            continue;
        };
        if text.is_empty() {
            errors.push(FieldError::invalid(here, given, "must not be empty"));
        } else if name == "apiVersion" && text.matches('/').count() > 1 {
            let detail = format!("unexpected GroupVersion string: {text}");
            errors.push(FieldError::invalid(here, given, &detail));
        } else if name == "kind" && !dns_label(&text.to_lowercase()) {
            let detail = format!("may have mixed case, but should otherwise match: {LABEL}");
            errors.push(FieldError::invalid(here, given, &detail));
        }
    }
    let given = object.get("metadata").unwrap_or(&Value::Null);
    if !given.is_null() && !given.is_object() {
        errors.push(FieldError::invalid(
            join(path, "metadata"),
            given,
            "must be an object",
        ));
    }
    let mut labels = Vec::new();
    metadata::check_labels(&json!({"metadata": given}), &mut labels);
    errors.extend(labels.into_iter().map(|cause| FieldError {
        kind: FieldErrorKind::Invalid,
        field: join(path, &cause.field),
        message: cause.message,
    }));
}
