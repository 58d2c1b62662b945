//! Strategic merge patch for the built-in kinds.
//!
//! As a merge patch, but lists that have a merge key are merged item by item, and directives say more:
//! `$patch: replace|delete`, `$retainKeys`, `$deleteFromPrimitiveList/<field>`, `$setElementOrder/<field>`. Which lists
//! those are is in the kind's schema. Results and errors are those of `k8s.io/apimachinery/pkg/util/strategicpatch`.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::golang;
use crate::schema::fields::Place;

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_PRIMITIVE: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Applies a strategic merge patch; `place` is the root of the kind's schema.
pub(crate) fn apply(target: &mut Value, patch: &Value, place: Place<'_>) -> Result<(), ApiError> {
    let nothing = Map::new();
    let merged = target.as_object().cloned().unwrap_or_default();
    let patch = patch.as_object().unwrap_or(&nothing);
    *target = Value::Object(merge_maps(merged, patch, place)?);
    Ok(())
}

fn bad(why: &str) -> ApiError {
    ApiError::BadRequest(why.into())
}

/// Upstream gives these errors no status of their own.
fn unexplained(why: String) -> ApiError {
    ApiError::Unexplained(why)
}

fn no_merge_key(item: &Value, key: &str) -> ApiError {
    let item = golang::value(item);
    unexplained(format!(
        "map: {item} does not contain declared merge key: {key}"
    ))
}

fn unknown_directive(directive: &Value, map: &Value) -> ApiError {
    unexplained(format!(
        "unknown patch type: {} in map: {}",
        golang::value(directive),
        golang::value(map)
    ))
}

fn not_a_list(found: &Value) -> ApiError {
    unexplained(format!(
        "expected a []interface {{}}, but received a {}",
        golang::dynamic_type(found)
    ))
}

fn merge_maps(
    mut target: Map<String, Value>,
    patch: &Map<String, Value>,
    place: Place<'_>,
) -> Result<Map<String, Value>, ApiError> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                let mut whole = patch.clone();
                whole.remove(DIRECTIVE);
                Ok(whole)
            }
            Some("delete") => Ok(Map::new()),
            _ => Err(unknown_directive(directive, &Value::Object(patch.clone()))),
        };
    }
    if let Some(retain) = patch.get(RETAIN) {
        let wrong = || bad("invalid patch format of retainKeys");
        let retain = retain.as_array().ok_or_else(wrong)?;
        let retained = |key: &String| retain.iter().any(|kept| kept == key);
        let says = |key: &str, value: &Value| {
            !(value.is_null()
                || key == RETAIN
                || key.starts_with(DELETE_PRIMITIVE)
                || key.starts_with(ORDER))
        };
        if patch
            .iter()
            .any(|(key, value)| says(key, value) && !retained(key))
        {
            return Err(wrong());
        }
        target.retain(|key, _| retained(key));
    }

    // An order and the list that it is about are one step.
    let mut done = Vec::new();
    for (key, order) in patch {
        let Some(field) = key.strip_prefix(ORDER) else {
            continue;
        };
        let order = order.as_array().ok_or_else(|| not_a_list(order))?;
        let list = |map: &Map<String, Value>| match map.get(field) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list.clone())),
            Some(other) => Err(not_a_list(other)),
        };
        let below = place.below(field);
        let key = below.merge_key().unwrap_or_default();
        let (live, given) = (list(&target)?, list(patch)?);
        check_order(given.as_deref().unwrap_or_default(), order, key)?;
        let merged = match (live.clone(), &given) {
            (None, None) => continue,
            (Some(live), None) => live,
            (None, Some(given)) => without_directives(given),
            (Some(live), Some(given)) => merge_lists(live, given, below)?,
        };
        let ordered = in_order(merged, order, &live.unwrap_or_default(), key)?;
        target.insert(field.to_owned(), ordered.into());
        done.push(field);
    }

    for (key, value) in patch {
        if key == RETAIN || key.starts_with(ORDER) || done.contains(&key.as_str()) {
            continue;
        }
        if let Some(field) = key.strip_prefix(DELETE_PRIMITIVE) {
            if let (Some(Value::Array(list)), Value::Array(gone)) = (target.get_mut(field), value) {
                list.retain(|item| !gone.contains(item));
            }
            continue;
        }
        let below = place.below(key);
        let merged = match (target.remove(key), value) {
            (_, Value::Null) => continue,
            (Some(Value::Object(live)), Value::Object(patch)) => {
                Some(merge_maps(live, patch, below)?.into())
            }
            (Some(Value::Array(live)), Value::Array(patch)) if below.merge_key().is_some() => {
                Some(merge_lists(live, patch, below)?.into())
            }
            (Some(Value::Array(_)), Value::Array(patch)) => Some(patch.clone().into()),
            // There is nothing to merge with.
            (_, value) => without_directive(&without_nulls(value)),
        };
        if let Some(merged) = merged {
            target.insert(key.clone(), merged);
        }
    }
    Ok(target)
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_nulls(value)))
            .collect(),
        Value::Array(list) => list.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// A value that is new: what carries a directive is no part of it.
fn without_directive(value: &Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => {
            let kept = map
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), without_directive(value)?)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(list) => Some(without_directives(list).into()),
        other => Some(other.clone()),
    }
}

fn without_directives(list: &[Value]) -> Vec<Value> {
    list.iter().filter_map(without_directive).collect()
}

/// Merges a list whose items are told apart.
fn merge_lists(
    mut live: Vec<Value>,
    patch: &[Value],
    place: Place<'_>,
) -> Result<Vec<Value>, ApiError> {
    let Some(first) = live.first().or(patch.first()) else {
        return Ok(live);
    };
    let kind = golang::dynamic_type(first);
    for item in live.iter().chain(patch) {
        if golang::dynamic_type(item) != kind {
            return Err(unexplained("list element types are not identical".into()));
        }
        if item.is_array() {
            return Err(unprocessable("lists of lists are not supported"));
        }
    }
    let key = place.merge_key().unwrap_or_default();
    if !first.is_object() {
        let mut merged: Vec<Value> = Vec::with_capacity(live.len() + patch.len());
        for item in live.iter().chain(patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return in_order(merged, patch, &live, key);
    }

    let mut given = Vec::new();
    let mut replace = false;
    for item in patch {
        match item.get(DIRECTIVE) {
            None => given.push(item.clone()),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    let id = item.get(key).ok_or_else(|| no_merge_key(item, key))?;
                    live.retain(|have| have.get(key) != Some(id));
                }
                Some("replace") => replace = true,
                Some("merge") => {
                    return Err(unexplained(
                        "merging lists cannot yet be specified in the patch".into(),
                    ));
                }
                _ => return Err(unknown_directive(directive, item)),
            },
        }
    }
    if replace {
        (live, given) = (given, Vec::new());
    }
    let mut merged = live.clone();
    for item in &given {
        let id = item.get(key).ok_or_else(|| no_merge_key(item, key))?;
        match merged.iter_mut().find(|have| have.get(key) == Some(id)) {
            Some(have) => {
                let (Value::Object(mine), Value::Object(patch)) = (have.take(), item) else {
                    continue;
                };
                *have = merge_maps(mine, patch, place.items())?.into();
            }
            None => merged.push(item.clone()),
        }
    }
    in_order(merged, &given, &live, key)
}

fn unprocessable(why: &str) -> ApiError {
    ApiError::Unprocessable(why.into())
}

/// Whether two items are the same one.
fn same(a: &Value, b: &Value, key: &str) -> bool {
    if key.is_empty() {
        a == b
    } else {
        a.get(key).is_some() && a.get(key) == b.get(key)
    }
}

/// What a patch has in a list must come in the order that it asks for.
fn check_order(patch: &[Value], order: &[Value], key: &str) -> Result<(), ApiError> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut wanted = order.iter();
    for item in patch.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        if !wanted.any(|wanted| same(item, wanted, key)) {
            let shown = |list: &[Value]| golang::value(&list.to_vec().into());
            return Err(unexplained(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                shown(patch),
                shown(order)
            )));
        }
    }
    Ok(())
}

/// The items of a merged list: those that the order names in that order, the others as they were, and between the two the
/// order of the list before, as far as it tells.
fn in_order(
    merged: Vec<Value>,
    order: &[Value],
    before: &[Value],
    key: &str,
) -> Result<Vec<Value>, ApiError> {
    if !key.is_empty()
        && let Some(item) = merged.iter().find(|item| item.get(key).is_none())
    {
        return Err(no_merge_key(item, key));
    }
    let place = |list: &[Value], item: &Value| list.iter().position(|have| same(have, item, key));
    let (mut given, mut others): (Vec<_>, Vec<_>) = merged
        .into_iter()
        .partition(|item| place(order, item).is_some());
    given.sort_by_key(|item| place(order, item));
    others.sort_by_key(|item| place(before, item));
    let mut all = Vec::with_capacity(given.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in given {
        while let Some(other) = others.next_if(|other| {
            matches!((place(before, other), place(before, &item)), (Some(a), Some(b)) if a < b)
        }) {
            all.push(other);
        }
        all.push(item);
    }
    all.extend(others);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::builtin;

    fn on(object: &mut Value, kind: &str, patch: &Value) -> Result<(), ApiError> {
        let schema = builtin::strict_schema("", kind).unwrap();
        apply(object, patch, schema.place())
    }

    fn patched(target: Value, by: &Value) -> Value {
        let mut object = target;
        on(&mut object, "Pod", by).unwrap();
        object
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
            "containers": [{"name": "c"}, {"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}],
        }});
        assert_eq!(
            patched(pod, &patch),
            json!({"spec": {"containers": [
                {"name": "c"},
                {"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]},
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
        let replace = json!({"data": {"$patch": "replace", "b": 2}});
        assert_eq!(
            patched(json!({"data": {"a": 1}}), &replace),
            json!({"data": {"b": 2}})
        );
        // There is nothing to replace.
        assert_eq!(patched(json!({}), &replace), json!({}));
        let mut object = json!({"data": {"a": 1}, "spec": {}});
        for (wrong, said) in [
            (
                json!({"data": {"$patch": "x", "b": [1, null]}}),
                "unknown patch type: x in map: map[$patch:x b:[1 <nil>]]",
            ),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a"}]}}),
                "The order in patch list:\n[map[name:a]]\n doesn't match $setElementOrder list:\n[map[name:b]]\n",
            ),
        ] {
            let Err(ApiError::Unexplained(why)) = on(&mut object, "Pod", &wrong) else {
                panic!("{wrong} is accepted");
            };
            assert_eq!(why, said);
        }
    }

    #[test]
    fn finalizers_are_a_set() {
        let object = json!({"metadata": {"finalizers": ["a", "b"]}});
        let added = patched(object, &json!({"metadata": {"finalizers": ["c", "a"]}}));
        // Those of the patch come in its order.
        assert_eq!(added["metadata"]["finalizers"], json!(["c", "a", "b"]));
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}});
        assert_eq!(
            patched(added, &patch)["metadata"]["finalizers"],
            json!(["c", "b"])
        );
        let order = json!({"metadata": {"$setElementOrder/finalizers": ["c", "a", "b"]}});
        assert_eq!(
            patched(
                json!({"metadata": {"finalizers": ["b", "x", "a", "c"]}}),
                &order
            )["metadata"]["finalizers"],
            json!(["x", "c", "a", "b"])
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
        let mut live = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let Err(ApiError::Unexplained(why)) = on(&mut live, "Pod", &nameless) else {
            panic!("it is accepted");
        };
        assert_eq!(
            why,
            "map: map[status:True] does not contain declared merge key: type"
        );
    }
}
