//! Unknown fields (removed or listed) and defaults.
//!
//! One walk serves both uses of unknown fields, so that what `fieldValidation=Strict` reports is exactly what pruning removes.

use serde_json::{Map, Value};

use super::node::{Additional, Node, join};

/// Fields that every object has, whatever its schema says.
const OBJECT_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// The fields of ObjectMeta; others in `metadata` are unknown.
pub(super) const METADATA_FIELDS: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// What happens to an unknown field.
enum Sink<'a> {
    Remove,
    List(&'a mut Vec<String>),
}

pub(super) fn prune_root(root: &Node, object: &mut Value) {
    walk(Some(root), object, true, "", &mut Sink::Remove);
}

pub(super) fn unknown_root(root: &Node, object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    // The walk is written for `&mut`; listing changes nothing, and strict requests are rare enough for a copy.
    walk(
        Some(root),
        &mut object.clone(),
        true,
        "",
        &mut Sink::List(&mut found),
    );
    found
}

fn walk(node: Option<&Node>, value: &mut Value, resource: bool, path: &str, sink: &mut Sink<'_>) {
    let resource = resource || node.is_some_and(|n| n.embedded);
    let keep_unknown = node.is_some_and(|n| n.preserve_unknown);
    match value {
        Value::Object(map) => walk_map(node, map, resource, keep_unknown, path, sink),
        Value::Array(list) => {
            for (i, item) in list.iter_mut().enumerate() {
                match node {
                    // Under a preserving array without items everything stays.
                    Some(n) if n.items.is_none() && keep_unknown => {}
                    _ => walk(
                        node.and_then(|n| n.items.as_deref()),
                        item,
                        false,
                        &format!("{path}[{i}]"),
                        sink,
                    ),
                }
            }
        }
        _ => {}
    }
}

fn walk_map(
    node: Option<&Node>,
    map: &mut Map<String, Value>,
    resource: bool,
    keep_unknown: bool,
    path: &str,
    sink: &mut Sink<'_>,
) {
    let names: Vec<String> = map.keys().cloned().collect();
    for name in names {
        let here = join(path, &name);
        if resource && OBJECT_FIELDS.contains(&name.as_str()) {
            if name == "metadata"
                && let Some(Value::Object(metadata)) = map.get_mut("metadata")
            {
                prune_metadata(metadata, &here, sink);
            }
            continue;
        }
        let Some(child) = map.get_mut(&name) else {
            continue;
        };
        match node {
            Some(n) if n.properties.contains_key(name.as_str()) => {
                walk(n.properties.get(name.as_str()), child, false, &here, sink);
            }
            Some(Node {
                additional: Additional::Schema(schema),
                ..
            }) => walk(Some(schema), child, false, &here, sink),
            Some(Node {
                additional: Additional::Any,
                ..
            }) => {
                if !keep_unknown {
                    walk(None, child, false, &here, sink);
                }
            }
            _ if keep_unknown => {}
            _ => match sink {
                Sink::Remove => {
                    map.remove(&name);
                }
                Sink::List(found) => found.push(here),
            },
        }
    }
}

fn prune_metadata(metadata: &mut Map<String, Value>, path: &str, sink: &mut Sink<'_>) {
    match sink {
        Sink::Remove => metadata.retain(|name, _| METADATA_FIELDS.contains(&name.as_str())),
        Sink::List(found) => {
            found.extend(
                metadata
                    .keys()
                    .filter(|n| !METADATA_FIELDS.contains(&n.as_str()))
                    .map(|n| join(path, n)),
            );
        }
    }
}

pub(super) fn default_root(root: &Node, object: &mut Value) {
    drop_nulls(root, object);
    default(root, object);
}

/// A null in a field that can neither be null nor be defaulted is as good as no field. Nulls in lists stay, and are refused.
fn drop_nulls(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|name, inner| {
                let schema = match (node.properties.get(name.as_str()), &node.additional) {
                    (Some(schema), _) => schema,
                    (None, Additional::Schema(schema)) => schema,
                    _ => return true,
                };
                if inner.is_null() {
                    return schema.nullable || schema.default.is_some();
                }
                drop_nulls(schema, inner);
                true
            });
        }
        Value::Array(list) => {
            if let Some(items) = &node.items {
                for inner in list {
                    drop_nulls(items, inner);
                }
            }
        }
        _ => {}
    }
}

fn default(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, child) in &node.properties {
                if let Some(filler) = &child.default {
                    let missing = match map.get(name.as_ref()) {
                        None => true,
                        Some(Value::Null) => !child.nullable,
                        Some(_) => false,
                    };
                    if missing {
                        map.insert(name.to_string(), filler.clone());
                    }
                }
                if let Some(inner) = map.get_mut(name.as_ref()) {
                    default(child, inner);
                }
            }
            if let Additional::Schema(schema) = &node.additional {
                for (_, inner) in map
                    .iter_mut()
                    .filter(|(name, _)| !node.properties.contains_key(name.as_str()))
                {
                    if inner.is_null()
                        && !schema.nullable
                        && let Some(filler) = &schema.default
                    {
                        *inner = filler.clone();
                    }
                    default(schema, inner);
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &node.items {
                for inner in list {
                    if inner.is_null()
                        && !items.nullable
                        && let Some(filler) = &items.default
                    {
                        *inner = filler.clone();
                    }
                    default(items, inner);
                }
            }
        }
        _ => {}
    }
}

/// Prunes a value inside an object.
pub(super) fn prune_part(node: &Node, value: &mut Value) {
    walk(Some(node), value, false, "", &mut Sink::Remove);
}
