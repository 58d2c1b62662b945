//! Reading and writing the metadata of objects that are held as JSON, and the rules of names.

use k8s_openapi::jiff::{Timestamp, ToSpan as _, Unit};
use rand::Rng as _;
use serde_json::{Map, Value, json};

use crate::error::{ApiError, Cause};
use crate::golang;

/// The text at a path of object keys; empty if there is none.
pub(crate) fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    path.iter()
        .try_fold(object, |value, key| value.get(key))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    text(object, &["metadata", "name"])
}

pub(crate) fn namespace(object: &Value) -> &str {
    text(object, &["metadata", "namespace"])
}

pub(crate) fn resource_version(object: &Value) -> &str {
    text(object, &["metadata", "resourceVersion"])
}

pub(crate) fn is_deleting(object: &Value) -> bool {
    !text(object, &["metadata", "deletionTimestamp"]).is_empty()
}

pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    let list = object
        .pointer("/metadata/finalizers")
        .and_then(Value::as_array);
    list.map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

pub(crate) fn grace(object: &Value) -> Option<i64> {
    object
        .pointer("/metadata/deletionGracePeriodSeconds")
        .and_then(Value::as_i64)
}

/// The metadata map; made if it is missing or not a map.
pub(crate) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    entry(object, "metadata")
}

/// The map under a key of an object; made if it is missing or not a map.
pub(crate) fn entry<'a>(object: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    entry_of(
        object.as_object_mut().expect("made an object just above"),
        key,
    )
}

/// The map under a key of a map; made if it is missing or not a map.
pub(crate) fn entry_of<'a>(
    map: &'a mut Map<String, Value>,
    key: &str,
) -> &'a mut Map<String, Value> {
    let value = map.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("made an object just above")
}

/// Sets a key, or removes it where there is no value.
pub(crate) fn put(map: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    match value {
        Some(value) => map.insert(key.to_owned(), value),
        None => map.remove(key),
    };
}

/// Now, whole seconds, as Kubernetes writes times.
pub(crate) fn now() -> String {
    after(0)
}

/// So many seconds from now.
pub(crate) fn after(seconds: i64) -> String {
    let now = Timestamp::now();
    let at = now.checked_add(seconds.seconds()).unwrap_or(now);
    at.round(Unit::Second).unwrap_or(at).to_string()
}

/// A name from `metadata.generateName`: its start, and five characters that make no words.
pub(crate) fn generate_name(base: &str) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    let base: String = base.chars().take(58).collect();
    let end: String = (0..5)
        .map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())]))
        .collect();
    base + &end
}

/// Refuses metadata that is not of the shape that the rest of this crate relies on, in the words of Go's decoder.
/// `custom` resources are decoded apart from their metadata.
pub(crate) fn check_shape(
    object: &Value,
    kind: &str,
    version: &str,
    custom: bool,
) -> Result<(), ApiError> {
    let bad = |value: &Value, field: &str, want: &str| {
        Err(ApiError::BadRequest(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: json: cannot unmarshal {} into Go struct \
             field {field} of type {want}",
            golang::json_type(value)
        )))
    };
    let within = |field: &str| {
        if custom {
            format!("ObjectMeta.{field}")
        } else {
            format!("ObjectMeta.metadata.{field}")
        }
    };
    let metadata = match object.get("metadata") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Object(metadata)) => metadata,
        Some(other) => return bad(other, &format!("{kind}.metadata"), "v1.ObjectMeta"),
    };
    let not_text = |value: &&Value| !value.is_string() && !value.is_null();
    for (field, value) in metadata {
        let (wrong, want) = match (field.as_str(), value) {
            (_, Value::Null) => continue,
            ("labels" | "annotations", Value::Object(map)) => {
                (map.values().find(not_text), "string")
            }
            ("labels" | "annotations", _) => (Some(value), "map[string]string"),
            ("finalizers", Value::Array(list)) => (list.iter().find(not_text), "string"),
            ("finalizers", _) => (Some(value), "[]string"),
            ("ownerReferences", Value::Array(list)) => {
                (list.iter().find(|o| !o.is_object()), "v1.OwnerReference")
            }
            ("ownerReferences", _) => (Some(value), "[]v1.OwnerReference"),
            (
                "name" | "generateName" | "namespace" | "uid" | "resourceVersion"
                | "creationTimestamp" | "deletionTimestamp",
                _,
            ) if !value.is_string() => (Some(value), "string"),
            _ => continue,
        };
        if let Some(wrong) = wrong {
            return bad(wrong, &within(field), want);
        }
    }
    Ok(())
}

fn alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

pub(crate) fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|b| alphanumeric(*b))
        && bytes.last().is_some_and(|b| alphanumeric(*b))
        && bytes.iter().all(|b| alphanumeric(*b) || *b == b'-')
}

pub(crate) const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
    '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
    start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

/// What is wrong with a DNS label.
pub(crate) fn label_fault(text: &str) -> Option<&'static str> {
    if text.len() > 63 {
        Some("must be no more than 63 bytes")
    } else {
        (!is_label(text)).then_some(LABEL)
    }
}

/// What is wrong with an object's name: a DNS label (`strict`) or subdomain.
pub(crate) fn check_name(name: &str, strict: bool) -> Vec<Cause> {
    let mut causes = Vec::new();
    let (limit, fine, why) = if strict {
        (63, is_label(name), LABEL)
    } else {
        (253, name.split('.').all(is_label), SUBDOMAIN)
    };
    if name.len() > limit {
        causes.push(Cause::invalid(
            "metadata.name",
            format!("{name:?}"),
            format!("must be no more than {limit} characters"),
        ));
    }
    if strict && name.contains('.') {
        causes.push(Cause::invalid(
            "metadata.name",
            format!("{name:?}"),
            "must not contain dots",
        ));
    } else if !fine {
        causes.push(Cause::invalid("metadata.name", format!("{name:?}"), why));
    }
    causes
}

/// Letters, digits, `-`, `_`, `.`; the ends are letters or digits.
pub(crate) fn is_word(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(check_name("a-1.b", false).is_empty());
        assert_eq!(check_name("a.b", true).len(), 1);
        assert_eq!(check_name("A", false).len(), 1);
        assert_eq!(check_name("", false).len(), 1);
        assert_eq!(check_name(&"a".repeat(254), false).len(), 1);
        let made = generate_name(&"x".repeat(80));
        assert_eq!(made.len(), 63);
        assert!(check_name(&made, true).is_empty());
    }

    #[test]
    fn times_have_whole_seconds() {
        let now = now();
        assert_eq!(now.len(), "2026-01-01T00:00:00Z".len(), "{now}");
    }
}
