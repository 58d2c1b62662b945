//! Strategic merge patch for the built-in kinds.
//!
//! As a merge patch, but lists that have a merge key are merged item by item, and directives say more:
//! `$patch: replace|delete|merge`, `$retainKeys`, `$deleteFromPrimitiveList/<field>`, `$setElementOrder/<field>`.
//! The merge keys come with the schema, from the same table as the list types of server-side apply.

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::schema::builtin;
use crate::schema::shape::{PatchItems, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_PRIMITIVE: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Applies a strategic merge patch to an object of a built-in kind.
pub(crate) fn apply(target: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let text = |key: &str| target.get(key).and_then(Value::as_str).unwrap_or_default();
    let group = text("apiVersion")
        .split_once('/')
        .map_or("", |(group, _)| group);
    let schema = builtin::strict_schema(group, text("kind"));
    let of = schema
        .as_deref()
        .map_or_else(Type::deduced, |schema| Type::object(schema, false));
    apply_as(target, patch, of)
}

fn apply_as(target: &mut Value, patch: &Value, of: Type<'_>) -> Result<(), ApiError> {
    let patch = patch.as_object().cloned().unwrap_or_default();
    let mut merged = target.as_object().cloned().unwrap_or_default();
    merge_maps(&mut merged, &patch, of)?;
    *target = Value::Object(merged);
    Ok(())
}

fn bad(why: impl Into<String>) -> ApiError {
    ApiError::BadRequest(why.into())
}

fn merge_maps(
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    of: Type<'_>,
) -> Result<(), ApiError> {
    match patch.get(DIRECTIVE).map(|d| d.as_str().unwrap_or_default()) {
        Some("replace") => {
            target.clear();
            target.extend(
                patch
                    .iter()
                    .filter(|(key, _)| *key != DIRECTIVE)
                    .map(|(k, v)| (k.clone(), v.clone())),
            );
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(bad(format!("unknown patch type found: {other}"))),
    }
    if let Some(retain) = patch.get(RETAIN) {
        let retain = retain
            .as_array()
            .ok_or_else(|| bad("$retainKeys must be a list"))?;
        target.retain(|key, _| retain.iter().any(|kept| kept == key));
    }
    for (key, value) in patch {
        if key == DIRECTIVE || key == RETAIN || key.starts_with(ORDER) {
            continue;
        }
        if let Some(field) = key.strip_prefix(DELETE_PRIMITIVE) {
            let gone = value
                .as_array()
                .ok_or_else(|| bad(format!("{key} must be a list")))?;
            if let Some(list) = target.get_mut(field).and_then(Value::as_array_mut) {
                list.retain(|item| !gone.contains(item));
            }
            continue;
        }
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(map) => {
                let slot = target.entry(key.clone()).or_insert_with(|| json!({}));
                if !slot.is_object() {
                    *slot = json!({});
                }
                if let Some(slot) = slot.as_object_mut() {
                    merge_maps(slot, map, of.field(key))?;
                }
            }
            Value::Array(list) => {
                let slot = target.entry(key.clone()).or_insert_with(|| json!([]));
                merge_lists(slot, list, of.field(key), key)?;
            }
            other => {
                target.insert(key.clone(), other.clone());
            }
        }
    }
    for (key, order) in patch.iter().filter(|(key, _)| key.starts_with(ORDER)) {
        let field = &key[ORDER.len()..];
        let order = order
            .as_array()
            .ok_or_else(|| bad(format!("{key} must be a list")))?;
        if let Some(list) = target.get_mut(field).and_then(Value::as_array_mut) {
            set_order(list, order, of.field(field).patched());
        }
    }
    Ok(())
}

fn merge_lists(
    slot: &mut Value,
    patch: &[Value],
    of: Type<'_>,
    field: &str,
) -> Result<(), ApiError> {
    let directive = |item: &Value| {
        item.get(DIRECTIVE)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    if patch
        .iter()
        .any(|item| directive(item).as_deref() == Some("replace"))
    {
        let plain = |item: &&Value| directive(item).is_none();
        *slot = patch.iter().filter(plain).cloned().collect();
        return Ok(());
    }
    let key = match of.patched() {
        PatchItems::Whole => {
            *slot = patch.to_vec().into();
            return Ok(());
        }
        PatchItems::Set => {
            let mut list = slot.as_array().cloned().unwrap_or_default();
            for item in patch {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
            *slot = list.into();
            return Ok(());
        }
        PatchItems::ByKey(key) => key,
    };
    let mut list = slot.as_array().cloned().unwrap_or_default();
    for item in patch {
        let map = item
            .as_object()
            .ok_or_else(|| bad(format!("items of {field} must be objects")))?;
        let id = map.get(key).ok_or_else(|| {
            bad(format!(
                "map: {item} does not contain declared merge key: {key}"
            ))
        })?;
        let place = list.iter().position(|have| have.get(key) == Some(id));
        if directive(item).as_deref() == Some("delete") {
            list.retain(|have| have.get(key) != Some(id));
            continue;
        }
        match place {
            Some(at) => {
                let mut have = list[at].as_object().cloned().unwrap_or_default();
                merge_maps(&mut have, map, of.item())?;
                list[at] = Value::Object(have);
            }
            None => {
                // Through a merge into nothing: a new item must not carry directives or nulls.
                let mut new = Map::new();
                merge_maps(&mut new, map, of.item())?;
                list.push(Value::Object(new));
            }
        }
    }
    *slot = list.into();
    Ok(())
}

/// Brings the items that the order names into that order; others stay after the item that they followed.
fn set_order(list: &mut Vec<Value>, order: &[Value], strategy: PatchItems<'_>) {
    let same = |item: &Value, wanted: &Value| match strategy {
        PatchItems::ByKey(key) => item.get(key).is_some() && item.get(key) == wanted.get(key),
        PatchItems::Set | PatchItems::Whole => item == wanted,
    };
    let rank = |item: &Value| order.iter().position(|wanted| same(item, wanted));
    // An item that the order does not know takes the rank of its predecessor.
    let mut last = 0;
    let mut ranked: Vec<(usize, Value)> = Vec::with_capacity(list.len());
    for item in list.drain(..) {
        if let Some(at) = rank(&item) {
            last = at + 1;
            ranked.push((last, item));
        } else {
            ranked.push((last, item));
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    list.extend(ranked.into_iter().map(|(_, item)| item));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(target: Value, patch: &Value) -> Value {
        let mut object = target;
        apply_to_pod(&mut object, patch).unwrap();
        object
    }

    fn apply_to_pod(object: &mut Value, patch: &Value) -> Result<(), ApiError> {
        let schema = builtin::strict_schema("", "Pod").expect("built in");
        apply_as(object, patch, Type::object(&schema, false))
    }

    #[test]
    fn maps_merge_and_null_removes() {
        let object = json!({"data": {"a": "1", "b": "2"}});
        assert_eq!(
            patched(object, &json!({"data": {"a": null, "c": "3"}})),
            json!({"data": {"b": "2", "c": "3"}})
        );
    }

    #[test]
    fn containers_merge_by_name_and_keep_their_order() {
        let pod = json!({"spec": {"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]}});
        let patch = json!({"spec": {
            "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}],
            "containers": [{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}, {"name": "c"}],
        }});
        assert_eq!(
            patched(pod, &patch),
            json!({"spec": {"containers": [
                {"name": "c"},
                {"name": "a", "image": "2", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
                {"name": "b"},
            ]}})
        );
    }

    #[test]
    fn directives() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "strategy": {"x": 1, "y": 2}}});
        let patch = json!({"spec": {
            "containers": [{"name": "a", "$patch": "delete"}],
            "strategy": {"$retainKeys": ["y"], "y": 3},
        }});
        assert_eq!(
            patched(pod, &patch),
            json!({"spec": {"containers": [{"name": "b"}], "strategy": {"y": 3}}})
        );
        let replaced = patched(
            json!({"data": {"a": 1}}),
            &json!({"data": {"$patch": "replace", "b": 2}}),
        );
        assert_eq!(replaced, json!({"data": {"b": 2}}));
    }

    #[test]
    fn finalizers_are_a_set() {
        let object = json!({"metadata": {"finalizers": ["a", "b"]}});
        let added = patched(object, &json!({"metadata": {"finalizers": ["c", "a"]}}));
        assert_eq!(added["metadata"]["finalizers"], json!(["a", "b", "c"]));
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}});
        assert_eq!(
            patched(added, &patch)["metadata"]["finalizers"],
            json!(["b", "c"])
        );
    }

    #[test]
    fn plain_lists_are_replaced() {
        let object = json!({"spec": {"accessModes": ["a"], "tolerations": [{"key": "x"}]}});
        let patch = json!({"spec": {"accessModes": ["b"], "tolerations": []}});
        assert_eq!(
            patched(object, &patch),
            json!({"spec": {"accessModes": ["b"], "tolerations": []}})
        );
    }

    #[test]
    fn conditions_merge_by_type() {
        let object = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "message": "m"}]}});
        let patch = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "New"}]}});
        assert_eq!(
            patched(object, &patch)["status"]["conditions"],
            json!([{"type": "Ready", "status": "True", "message": "m"}, {"type": "New"}])
        );
        let nameless = json!({"status": {"conditions": [{"status": "True"}]}});
        assert!(apply_to_pod(&mut json!({}), &nameless).is_err());
    }
}
