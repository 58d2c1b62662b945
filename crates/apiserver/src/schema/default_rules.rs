//! Defaults must be values that the schema itself accepts.

use serde_json::Value;

use super::node::{Node, join};
use super::{FieldError, cel, embedded, prune, validate};

/// The errors of all defaults in the schema of a resource.
pub(super) fn check(root: &Node, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    walk(root, path, true, false, &mut errors);
    errors
}

fn walk(node: &Node, path: &str, root: bool, in_metadata: bool, errors: &mut Vec<FieldError>) {
    if let Some(value) = &node.default {
        check_default(
            node,
            value,
            &join(path, "default"),
            in_metadata && !node.embedded,
            errors,
        );
    }
    // Inside additionalProperties nothing is defaulted on its own.
    if let Some(items) = &node.items {
        walk(items, &join(path, "items"), false, in_metadata, errors);
    }
    for (name, inner) in &node.properties {
        let here = format!("{}[{name}]", join(path, "properties"));
        let of_resource =
            (root || node.embedded) && matches!(name.as_ref(), "metadata" | "apiVersion" | "kind");
        if root && of_resource && inner.default.is_some() {
            errors.push(FieldError::forbidden(
                join(&here, "default"),
                &format!("must not be set in top-level {name}"),
            ));
            continue;
        }
        walk(inner, &here, false, in_metadata || of_resource, errors);
    }
}

fn check_default(
    node: &Node,
    value: &Value,
    path: &str,
    in_metadata: bool,
    errors: &mut Vec<FieldError>,
) {
    let before = errors.len();
    if !in_metadata {
        let mut pruned = value.clone();
        prune::prune_part(node, &mut pruned);
        if pruned != *value {
            errors.push(FieldError::invalid(
                path,
                value,
                "must not have unknown fields",
            ));
        }
    }
    let mut found = validate::validate_part(node, value, "");
    embedded::check(node, value, "", &mut found);
    errors.extend(found.into_iter().map(|mut error| {
        error.field = if error.field.is_empty() {
            path.to_owned()
        } else {
            join(path, &error.field)
        };
        error
    }));
    if errors.len() == before {
        // Both as a value that was there before and as a new one.
        let kept = cel::walk_root(node, node.embedded, value, Some(value), path);
        let found = if kept.errors.is_empty() {
            cel::walk_root(node, node.embedded, value, None, path)
        } else {
            kept
        };
        errors.extend(found.errors);
    }
}
