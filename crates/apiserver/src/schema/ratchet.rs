//! Which part of a stored object is the older self of a part of a new one, and whether the two are the same.
//!
//! Upstream tolerates on update what was invalid before and has not changed. Parts are found again by name in objects and maps,
//! and by their keys in lists of type map; nothing else can be.

use serde_json::Value;

use super::node::{Additional, ListType, Node};

/// Where a value was before, as far as that can be known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counterpart<'a> {
    /// Its older self.
    current: Option<&'a Value>,
    /// The nearest part around it that has one: its schema, the new and the old value.
    around: Option<(&'a Node, &'a Value, &'a Value)>,
}

impl<'a> Counterpart<'a> {
    pub(super) fn root(old: Option<&'a Value>) -> Self {
        Self {
            current: old,
            around: None,
        }
    }

    pub(super) fn key(self, node: &'a Node, value: &'a Value, name: &str) -> Self {
        let Some(old) = self.current else { return self };
        if self.around.is_none() && matches!(name, "apiVersion" | "kind") {
            return Self::root(None);
        }
        Self {
            current: child(node, old, name),
            around: Some((node, value, old)),
        }
    }

    pub(super) fn item(self, node: &'a Node, value: &'a Value, item: &Value) -> Self {
        let Some(old) = self.current else { return self };
        Self {
            current: same_key(node, old, item),
            around: Some((node, value, old)),
        }
    }

    /// Whether the value, or what is around it, is as it was.
    pub(super) fn unchanged(self, node: &Node, value: &Value) -> bool {
        match (self.current, self.around) {
            (Some(old), _) => unchanged(node, value, old),
            (None, Some((node, value, old))) => unchanged(node, value, old),
            (None, None) => false,
        }
    }
}

/// The field of `old` that a field of the new object comes from; only fields that the schema knows can be found again.
pub(super) fn child<'a>(node: &Node, old: &'a Value, name: &str) -> Option<&'a Value> {
    let known =
        node.properties.contains_key(name) || matches!(node.additional, Additional::Schema(_));
    known.then(|| old.get(name)).flatten()
}

/// The item of the list `old` that has the keys of `item`.
pub(super) fn same_key<'a>(node: &Node, old: &'a Value, item: &Value) -> Option<&'a Value> {
    let ListType::Map(keys) = &node.list else {
        return None;
    };
    let properties = node.items.as_ref().map(|items| &items.properties);
    let key_of = |value: &'a Value, key: &str| -> Option<&'a Value> { value.get(key) };
    let default_of = |key: &str| {
        properties
            .and_then(|p| p.get(key))
            .and_then(|schema| schema.default.as_ref())
    };
    old.as_array()?.iter().find(|before| {
        before.is_object()
            && item.is_object()
            && keys.iter().all(|key| {
                key_of(before, key).or(default_of(key))
                    == item.get(key.as_ref()).or(default_of(key))
            })
    })
}

/// Whether a part is as it was; false where parts inside cannot be found again.
pub(super) fn unchanged(node: &Node, value: &Value, old: &Value) -> bool {
    match (value, old) {
        (Value::Array(new), Value::Array(before)) => {
            new.len() == before.len()
                && match (&node.list, &node.items) {
                    (ListType::Map(_), Some(items)) => new.iter().all(|item| {
                        same_key(node, old, item).is_some_and(|b| unchanged(items, item, b))
                    }),
                    _ => new == before,
                }
        }
        (Value::Object(new), Value::Object(before)) => {
            new.len() == before.len()
                && new.iter().all(|(name, inner)| {
                    let schema = match (node.properties.get(name.as_str()), &node.additional) {
                        (Some(schema), _) => schema,
                        (None, Additional::Schema(schema)) => schema,
                        _ => return false,
                    };
                    before
                        .get(name)
                        .is_some_and(|b| unchanged(schema, inner, b))
                })
        }
        _ => value == old,
    }
}
