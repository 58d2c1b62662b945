//! Reading and writing the metadata of objects that are held as JSON, and the rules of names.

use k8s_openapi::jiff::{Timestamp, ToSpan as _, Unit};
use rand::Rng as _;
use serde_json::{Map, Value, json};

use crate::error::{ApiError, Cause};

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
    let value = &mut object[key];
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

/// Refuses metadata that is not of the shape that the rest of this crate relies on.
pub(crate) fn check_shape(object: &Value) -> Result<(), ApiError> {
    let bad = |field: &str, want: &str| {
        Err(ApiError::BadRequest(format!(
            "metadata.{field} must be {want}"
        )))
    };
    let metadata = match object.get("metadata") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Object(metadata)) => metadata,
        Some(_) => return Err(ApiError::BadRequest("metadata must be an object".into())),
    };
    for (field, value) in metadata {
        match field.as_str() {
            "labels" | "annotations" => {
                let fine = value.is_null()
                    || value
                        .as_object()
                        .is_some_and(|map| map.values().all(Value::is_string));
                if !fine {
                    return bad(field, "a map of strings to strings");
                }
            }
            "finalizers" => {
                let fine = value.is_null()
                    || value
                        .as_array()
                        .is_some_and(|list| list.iter().all(Value::is_string));
                if !fine {
                    return bad(field, "a list of strings");
                }
            }
            "ownerReferences" => {
                let fine = value.is_null()
                    || value
                        .as_array()
                        .is_some_and(|list| list.iter().all(Value::is_object));
                if !fine {
                    return bad(field, "a list of objects");
                }
            }
            "managedFields" => {
                let fine = value.is_null()
                    || value
                        .as_array()
                        .is_some_and(|list| list.iter().all(is_managed_entry));
                if !fine {
                    return bad(field, "a list of entries of managed fields");
                }
            }
            "name" | "generateName" | "namespace" | "uid" | "resourceVersion"
            | "creationTimestamp" | "deletionTimestamp"
                if !value.is_null() && !value.is_string() =>
            {
                return bad(field, "a string");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a value has the shape of an entry of `metadata.managedFields`; what it says is another matter.
fn is_managed_entry(entry: &Value) -> bool {
    entry.as_object().is_some_and(|entry| {
        entry
            .iter()
            .all(|(key, value)| key == "fieldsV1" || value.is_null() || value.is_string())
    })
}

fn alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|b| alphanumeric(*b))
        && bytes.last().is_some_and(|b| alphanumeric(*b))
        && bytes.iter().all(|b| alphanumeric(*b) || *b == b'-')
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
    '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
    start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

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
            format!("must be no more than {limit} bytes"),
        ));
    }
    if !fine {
        causes.push(Cause::invalid("metadata.name", format!("{name:?}"), why));
    }
    causes
}

/// What is wrong with the labels and the size of the annotations.
pub(crate) fn check_labels(object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (key, value) in object
        .pointer("/metadata/labels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        if !is_qualified(key) {
            causes.push(Cause::invalid(
                "metadata.labels",
                format!("{key:?}"),
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                 alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                 '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            ));
        }
        let value = value.as_str().unwrap_or_default();
        if value.len() > 63 {
            causes.push(Cause::invalid(
                "metadata.labels",
                format!("{value:?}"),
                "must be no more than 63 bytes",
            ));
        } else if !value.is_empty() && !is_word(value) {
            causes.push(Cause::invalid(
                "metadata.labels",
                format!("{value:?}"),
                "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
                 must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex \
                 used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ));
        }
    }
    let annotations = object
        .pointer("/metadata/annotations")
        .and_then(Value::as_object);
    let size: usize = annotations
        .into_iter()
        .flatten()
        .map(|(k, v)| k.len() + v.as_str().map_or(0, str::len))
        .sum();
    if size > 256 * 1024 {
        causes.push(Cause {
            reason: "FieldValueTooLong".into(),
            field: "metadata.annotations".into(),
            message: "Too long: may not be more than 262144 bytes".into(),
        });
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

/// A label key: a word, or a DNS subdomain, a slash and a word.
pub(crate) fn is_qualified(key: &str) -> bool {
    match key.split_once('/') {
        None => key.len() <= 63 && is_word(key),
        Some((prefix, word)) => {
            prefix.len() <= 253
                && prefix.split('.').all(is_label)
                && word.len() <= 63
                && is_word(word)
        }
    }
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
    fn labels() {
        assert!(
            check_labels(&json!({"metadata": {"labels": {"a.b/c": "", "x": "Y_1"}}})).is_empty()
        );
        assert_eq!(
            check_labels(&json!({"metadata": {"labels": {"a/b/c": "-"}}})).len(),
            2
        );
    }

    #[test]
    fn times_have_whole_seconds() {
        let now = now();
        assert_eq!(now.len(), "2026-01-01T00:00:00Z".len(), "{now}");
    }
}
