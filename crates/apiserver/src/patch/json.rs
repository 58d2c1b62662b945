//! JSON patch (RFC 6902) as the real server applies it.
//!
//! # Caveats
//! It is laxer than the RFC in ways that clients rely on: a `test` for null holds where there is nothing (how kube-rs puts its
//! first finalizer on), `replace` makes a key that is missing, and a negative index counts from the end of a list.

use serde::Deserialize;
use serde_json::Value;

use crate::error::ApiError;

/// Most operations of a patch, as upstream.
const MAX_OPERATIONS: usize = 10_000;
/// Most bytes that an object may grow to by a patch: `copy` can double it with each step.
const MAX_GROWTH: usize = 3 << 20;

/// One step. What is missing or unknown in it shows when it is applied.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Operation {
    #[serde(default)]
    op: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    from: String,
    #[serde(default)]
    value: Value,
}

/// Reads the steps of a patch.
pub(super) fn parse(patch: Value) -> Result<Vec<Operation>, ApiError> {
    let Value::Array(steps) = patch else {
        return Err(super::unreadable(&patch, "[]handlers.jsonPatchOp"));
    };
    if steps.len() > MAX_OPERATIONS {
        return Err(ApiError::BadRequest(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            steps.len()
        )));
    }
    steps
        .into_iter()
        .map(|step| {
            if step.is_object() {
                serde_json::from_value(step)
                    .map_err(|e| ApiError::BadRequest(format!("error decoding patch: {e}")))
            } else {
                Err(super::unreadable(&step, "handlers.jsonPatchOp"))
            }
        })
        .collect()
}

/// Applies all steps; the object is worth nothing after a failure.
pub(super) fn apply(object: &mut Value, steps: &[Operation]) -> Result<(), ApiError> {
    for (at, step) in steps.iter().enumerate() {
        step.apply(object)
            .map_err(|why| ApiError::Unprocessable(format!("step {at}: {why}")))?;
        if step.op == "copy" && object.to_string().len() > MAX_GROWTH {
            return Err(ApiError::TooLarge(MAX_GROWTH));
        }
    }
    Ok(())
}

impl Operation {
    fn apply(&self, object: &mut Value) -> Result<(), String> {
        let (path, from) = (pointer(&self.path), pointer(&self.from));
        match self.op.as_str() {
            "add" => add(object, &path, self.value.clone()),
            "remove" => remove(object, &path).map(drop),
            "replace" => replace(object, &path, self.value.clone()),
            "move" => {
                let value = get(object, &from)?.cloned().unwrap_or_default();
                remove(object, &from)?;
                add(object, &path, value)
            }
            "copy" => {
                let value = get(object, &from)?.cloned().unwrap_or_default();
                add(object, &path, value)
            }
            "test" => {
                let found = get(object, &path).ok().flatten();
                if *found.unwrap_or(&Value::Null) == self.value {
                    Ok(())
                } else {
                    Err(format!("testing value {} failed", self.path))
                }
            }
            other => Err(format!("unexpected kind: {other:?}")),
        }
    }
}

/// The unescaped parts of a JSON pointer.
fn pointer(path: &str) -> Vec<String> {
    path.split('/')
        .skip(1)
        .map(|part| part.replace("~1", "/").replace("~0", "~"))
        .collect()
}

/// A place in a list of `length` items.
fn index(part: &str, length: usize) -> Result<usize, String> {
    let given: i64 = part
        .parse()
        .map_err(|_| format!("{part:?} is no index of a list"))?;
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let at = if given < 0 { given + length } else { given };
    usize::try_from(at)
        .ok()
        .filter(|_| at < length)
        .ok_or_else(|| format!("index {part} is out of range"))
}

/// What holds the last part of a path.
fn container<'a>(
    object: &'a mut Value,
    path: &'a [String],
) -> Result<(&'a mut Value, &'a str), String> {
    let missing = || format!("missing container: {path:?}");
    let (last, parents) = path.split_last().ok_or_else(missing)?;
    let mut place = object;
    for part in parents {
        place = match place {
            Value::Object(map) => map.get_mut(part).ok_or_else(missing)?,
            Value::Array(list) => {
                let at = index(part, list.len())?;
                &mut list[at]
            }
            _ => return Err(missing()),
        };
    }
    Ok((place, last))
}

/// The value at a path; none for a key that is not there.
fn get<'a>(object: &'a Value, path: &[String]) -> Result<Option<&'a Value>, String> {
    let mut place = object;
    for (depth, part) in path.iter().enumerate() {
        place = match place {
            Value::Object(map) => match map.get(part) {
                Some(value) => value,
                None if depth + 1 == path.len() => return Ok(None),
                None => return Err(format!("missing container: {path:?}")),
            },
            Value::Array(list) => &list[index(part, list.len())?],
            _ => return Err(format!("missing container: {path:?}")),
        };
    }
    Ok(Some(place))
}

fn add(object: &mut Value, path: &[String], value: Value) -> Result<(), String> {
    if path.is_empty() {
        *object = value;
        return Ok(());
    }
    match container(object, path)? {
        (Value::Object(map), key) => {
            map.insert(key.to_owned(), value);
        }
        (Value::Array(list), "-") => list.push(value),
        (Value::Array(list), part) => {
            // One past the end is a place to add at, too.
            let at = index(part, list.len() + 1)?;
            list.insert(at, value);
        }
        _ => return Err(format!("missing container: {path:?}")),
    }
    Ok(())
}

fn replace(object: &mut Value, path: &[String], value: Value) -> Result<(), String> {
    if path.is_empty() {
        *object = value;
        return Ok(());
    }
    match container(object, path)? {
        (Value::Object(map), key) => {
            map.insert(key.to_owned(), value);
        }
        (Value::Array(list), part) => {
            let at = index(part, list.len())?;
            list[at] = value;
        }
        _ => return Err(format!("missing container: {path:?}")),
    }
    Ok(())
}

fn remove(object: &mut Value, path: &[String]) -> Result<Value, String> {
    match container(object, path)? {
        (Value::Object(map), key) => map
            .remove(key)
            .ok_or_else(|| format!("unable to remove nonexistent key: {key}")),
        (Value::Array(list), part) => {
            let at = index(part, list.len())?;
            Ok(list.remove(at))
        }
        _ => Err(format!("missing container: {path:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(object: Value, steps: Value) -> Result<Value, ApiError> {
        let mut object = object;
        apply(&mut object, &parse(steps)?)?;
        Ok(object)
    }

    #[test]
    fn each_operation() {
        let steps = json!([
            {"op": "test", "path": "/a", "value": 1},
            {"op": "add", "path": "/l/1", "value": "x"},
            {"op": "add", "path": "/l/-", "value": "z"},
            {"op": "replace", "path": "/l/-1", "value": "end"},
            {"op": "copy", "from": "/a", "path": "/b"},
            {"op": "move", "from": "/a", "path": "/c~1d"},
            {"op": "remove", "path": "/l/0"},
        ]);
        assert_eq!(
            patched(json!({"a": 1, "l": ["o"]}), steps).unwrap(),
            json!({"b": 1, "c/d": 1, "l": ["x", "end"]})
        );
    }

    #[test]
    fn laxer_than_the_rfc() {
        let object = json!({"metadata": {}});
        let first_finalizer = json!([
            {"op": "test", "path": "/metadata/finalizers", "value": null},
            {"op": "add", "path": "/metadata/finalizers", "value": ["f"]},
        ]);
        assert_eq!(
            patched(object.clone(), first_finalizer).unwrap(),
            json!({"metadata": {"finalizers": ["f"]}})
        );
        let replaced = json!([{"op": "replace", "path": "/metadata/x", "value": 1}]);
        assert_eq!(
            patched(object, replaced).unwrap(),
            json!({"metadata": {"x": 1}})
        );
    }

    #[test]
    fn what_cannot_be_applied() {
        let object = json!({"a": 1, "l": [1]});
        for step in [
            json!({"op": "test", "path": "/a", "value": 2}),
            json!({"op": "test", "path": "/none", "value": 2}),
            json!({"op": "remove", "path": "/none"}),
            json!({"op": "add", "path": "/none/deep", "value": 1}),
            json!({"op": "add", "path": "/a/deep", "value": 1}),
            json!({"op": "add", "path": "/l/3", "value": 1}),
            json!({"op": "add", "path": "/l/-9", "value": 1}),
            json!({"op": "replace", "path": "/l/1", "value": 1}),
            json!({"op": "remove", "path": ""}),
            json!({"op": "explode", "path": "/a"}),
            json!({"path": "/a"}),
        ] {
            assert!(
                matches!(
                    patched(object.clone(), json!([step])),
                    Err(ApiError::Unprocessable(_))
                ),
                "{step}"
            );
        }
        for patch in [json!({"op": "add"}), json!("text"), json!([1])] {
            assert!(
                matches!(parse(patch.clone()), Err(ApiError::BadRequest(_))),
                "{patch}"
            );
        }
    }
}
