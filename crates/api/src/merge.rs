//! The JSON merge patch (RFC 7396) that turns one value into another: only what changed is written.

use serde::Serialize;
use serde_json::{Map, Value, json};

/// A status patch for an object read at `resource_version`: the changed fields of `status`, and the version, so
/// that a write on a stale read is a conflict instead of an overwrite. `None` when nothing changed.
///
/// # Errors
/// When a status does not serialize, which the types of this crate always do.
pub fn status_patch<S: Serialize>(
    resource_version: Option<&str>,
    old: Option<&S>,
    new: &S,
) -> Result<Option<Value>, serde_json::Error> {
    let old = old
        .map(serde_json::to_value)
        .transpose()?
        .unwrap_or(Value::Null);
    Ok(diff(&old, &serde_json::to_value(new)?)
        .map(|status| json!({"metadata": {"resourceVersion": resource_version}, "status": status})))
}

/// The merge patch from `old` to `new`, or `None` when they are equal. Lists are replaced whole.
///
/// A `null` inside `new` cannot be expressed by a merge patch; the API types leave absent fields out.
#[must_use]
pub fn diff(old: &Value, new: &Value) -> Option<Value> {
    if old == new {
        return None;
    }
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        return Some(new.clone());
    };
    let removed = before
        .keys()
        .filter(|k| !after.contains_key(*k))
        .map(|k| (k.clone(), Value::Null));
    let changed = after
        .iter()
        .filter_map(|(key, value)| match before.get(key) {
            Some(was) => diff(was, value).map(|d| (key.clone(), d)),
            None => Some((key.clone(), value.clone())),
        });
    Some(Value::Object(removed.chain(changed).collect::<Map<_, _>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_written() {
        let old = json!({"a": 1, "b": {"c": 1, "d": 2}, "l": [1, 2], "gone": true});
        let new = json!({"a": 1, "b": {"c": 3, "d": 2}, "l": [1], "new": {"x": 1}});
        let patch = json!({"b": {"c": 3}, "l": [1], "new": {"x": 1}, "gone": null});
        assert_eq!(diff(&old, &new), Some(patch));
        assert_eq!(diff(&old, &old), None);
    }

    #[test]
    fn a_status_patch_names_the_version_that_was_read() {
        let patch = status_patch(Some("7"), None, &json!({"phase": "Pending"})).unwrap();
        assert_eq!(
            patch,
            Some(json!({"metadata": {"resourceVersion": "7"}, "status": {"phase": "Pending"}}))
        );
        let same = json!({"phase": "Pending"});
        assert_eq!(status_patch(Some("7"), Some(&same), &same).unwrap(), None);
    }
}
