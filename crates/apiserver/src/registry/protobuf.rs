//! Bodies in Kubernetes' protobuf, for the few kinds that `kubectl create` sends so.
//!
//! A body is the magic `k8s\0` and a `runtime.Unknown` that names kind and version and holds the object. The tables below
//! give the fields of `generated.proto` of `k8s.io/api` and `k8s.io/apimachinery`; fields that are not in them are skipped, as
//! protobuf has it. Empty scalars are left out, since protobuf cannot tell them from absent ones.

mod access;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::error::ApiError;

/// The media type.
pub(crate) const MEDIA: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";
/// Nested messages go no deeper in any kind that is known here.
const DEPTH: usize = 8;

/// Field number, JSON name, type.
type Fields = &'static [(u64, &'static str, Kind)];

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Bytes,
    Bool,
    Int,
    Time,
    Message(Fields),
    Texts,
    Messages(Fields),
    TextMap,
    BytesMap,
}

const OWNER: Fields = &[
    (1, "kind", Kind::Text),
    (3, "name", Kind::Text),
    (4, "uid", Kind::Text),
    (5, "apiVersion", Kind::Text),
    (6, "controller", Kind::Bool),
    (7, "blockOwnerDeletion", Kind::Bool),
];
const METADATA: Fields = &[
    (1, "name", Kind::Text),
    (2, "generateName", Kind::Text),
    (3, "namespace", Kind::Text),
    (5, "uid", Kind::Text),
    (6, "resourceVersion", Kind::Text),
    (7, "generation", Kind::Int),
    (8, "creationTimestamp", Kind::Time),
    (9, "deletionTimestamp", Kind::Time),
    (10, "deletionGracePeriodSeconds", Kind::Int),
    (11, "labels", Kind::TextMap),
    (12, "annotations", Kind::TextMap),
    (13, "ownerReferences", Kind::Messages(OWNER)),
    (14, "finalizers", Kind::Texts),
];
const CONFIG_MAP: Fields = &[
    (1, "metadata", Kind::Message(METADATA)),
    (2, "data", Kind::TextMap),
    (3, "binaryData", Kind::BytesMap),
    (4, "immutable", Kind::Bool),
];
const SECRET: Fields = &[
    (1, "metadata", Kind::Message(METADATA)),
    (2, "data", Kind::BytesMap),
    (3, "type", Kind::Text),
    (4, "stringData", Kind::TextMap),
    (5, "immutable", Kind::Bool),
];
const REFERENCE: Fields = &[
    (1, "kind", Kind::Text),
    (2, "namespace", Kind::Text),
    (3, "name", Kind::Text),
    (4, "uid", Kind::Text),
    (5, "apiVersion", Kind::Text),
    (6, "resourceVersion", Kind::Text),
    (7, "fieldPath", Kind::Text),
];
const SERVICE_ACCOUNT: Fields = &[
    (1, "metadata", Kind::Message(METADATA)),
    (2, "secrets", Kind::Messages(REFERENCE)),
    (
        3,
        "imagePullSecrets",
        Kind::Messages(&[(1, "name", Kind::Text)]),
    ),
    (4, "automountServiceAccountToken", Kind::Bool),
];
const NAMESPACE: Fields = &[
    (1, "metadata", Kind::Message(METADATA)),
    (2, "spec", Kind::Message(&[(1, "finalizers", Kind::Texts)])),
    (3, "status", Kind::Message(&[(1, "phase", Kind::Text)])),
];
const DELETE_OPTIONS: Fields = &[
    (1, "gracePeriodSeconds", Kind::Int),
    (
        2,
        "preconditions",
        Kind::Message(&[(1, "uid", Kind::Text), (2, "resourceVersion", Kind::Text)]),
    ),
    (3, "orphanDependents", Kind::Bool),
    (4, "propagationPolicy", Kind::Text),
    (5, "dryRun", Kind::Texts),
];
const TYPE_META: Fields = &[(1, "apiVersion", Kind::Text), (2, "kind", Kind::Text)];
const UNKNOWN: Fields = &[
    (1, "type", Kind::Message(TYPE_META)),
    (2, "raw", Kind::Bytes),
];

/// Decodes a body to the JSON form of its object.
pub(crate) fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let malformed = || ApiError::BadRequest("the protobuf body is malformed".into());
    let body = body.strip_prefix(MAGIC).ok_or_else(malformed)?;
    let unknown = message(body, UNKNOWN, DEPTH).ok_or_else(malformed)?;
    let (version, kind) = (&unknown["type"]["apiVersion"], &unknown["type"]["kind"]);
    let fields = match (
        version.as_str().unwrap_or_default(),
        kind.as_str().unwrap_or_default(),
    ) {
        ("v1", "ConfigMap") => CONFIG_MAP,
        ("v1", "Secret") => SECRET,
        ("v1", "ServiceAccount") => SERVICE_ACCOUNT,
        ("v1", "Namespace") => NAMESPACE,
        (_, "DeleteOptions") => DELETE_OPTIONS,
        (version, kind) => access::fields(version, kind).ok_or_else(|| {
            ApiError::UnsupportedMediaType("application/json, application/yaml".into())
        })?,
    };
    let raw = STANDARD
        .decode(unknown["raw"].as_str().unwrap_or_default())
        .map_err(|_| malformed())?;
    let mut object = message(&raw, fields, DEPTH).ok_or_else(malformed)?;
    object["apiVersion"] = version.clone();
    object["kind"] = kind.clone();
    Ok(object)
}

/// A value on the wire.
enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Skipped,
}

/// Reads one message; none if it is malformed.
fn message(mut input: &[u8], fields: Fields, depth: usize) -> Option<Value> {
    let depth = depth.checked_sub(1)?;
    let mut out = Map::new();
    while !input.is_empty() {
        let key = varint(&mut input)?;
        let wire = value(&mut input, key & 7)?;
        let Some((_, name, kind)) = fields.iter().find(|(number, ..)| *number == key >> 3) else {
            continue;
        };
        let name = (*name).to_owned();
        match (kind, wire) {
            (Kind::Bool, Wire::Varint(n)) => {
                out.insert(name, json!(n != 0));
            }
            // Two's complement, as int64 travels.
            (Kind::Int, Wire::Varint(n)) => {
                out.insert(name, json!(n.cast_signed()));
            }
            (Kind::Text, Wire::Bytes(bytes)) => {
                let text = std::str::from_utf8(bytes).ok()?;
                if !text.is_empty() {
                    out.insert(name, json!(text));
                }
            }
            (Kind::Bytes, Wire::Bytes(bytes)) => {
                out.insert(name, json!(STANDARD.encode(bytes)));
            }
            (Kind::Time, Wire::Bytes(bytes)) => {
                let time = message(bytes, &[(1, "seconds", Kind::Int)], depth)?;
                if let Some(at) = time["seconds"]
                    .as_i64()
                    .and_then(|s| Timestamp::from_second(s).ok())
                {
                    out.insert(name, json!(at.to_string()));
                }
            }
            (Kind::Message(fields), Wire::Bytes(bytes)) => {
                out.insert(name, message(bytes, fields, depth)?);
            }
            (Kind::Texts, Wire::Bytes(bytes)) => {
                let text = std::str::from_utf8(bytes).ok()?;
                out.entry(name)
                    .or_insert_with(|| json!([]))
                    .as_array_mut()?
                    .push(json!(text));
            }
            (Kind::Messages(fields), Wire::Bytes(bytes)) => {
                let item = message(bytes, fields, depth)?;
                out.entry(name)
                    .or_insert_with(|| json!([]))
                    .as_array_mut()?
                    .push(item);
            }
            (Kind::TextMap | Kind::BytesMap, Wire::Bytes(bytes)) => {
                let value = if matches!(kind, Kind::TextMap) {
                    Kind::Text
                } else {
                    Kind::Bytes
                };
                let entry = match value {
                    Kind::Text => message(
                        bytes,
                        &[(1, "key", Kind::Text), (2, "value", Kind::Text)],
                        depth,
                    )?,
                    _ => message(
                        bytes,
                        &[(1, "key", Kind::Text), (2, "value", Kind::Bytes)],
                        depth,
                    )?,
                };
                let key = entry["key"].as_str().unwrap_or_default().to_owned();
                let value = entry.get("value").cloned().unwrap_or_else(|| json!(""));
                out.entry(name)
                    .or_insert_with(|| json!({}))
                    .as_object_mut()?
                    .insert(key, value);
            }
            _ => return None,
        }
    }
    Some(Value::Object(out))
}

fn value<'a>(input: &mut &'a [u8], wire: u64) -> Option<Wire<'a>> {
    match wire {
        0 => varint(input).map(Wire::Varint),
        1 => take(input, 8).map(|_| Wire::Skipped),
        2 => {
            let length = usize::try_from(varint(input)?).ok()?;
            take(input, length).map(Wire::Bytes)
        }
        5 => take(input, 4).map(|_| Wire::Skipped),
        _ => None,
    }
}

fn take<'a>(input: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, tail) = input.split_at_checked(count)?;
    *input = tail;
    Some(head)
}

fn varint(input: &mut &[u8]) -> Option<u64> {
    let mut out = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(input, 1)?[0];
        out |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(out);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What kubectl 1.32 sends for `kubectl create configmap m --from-literal=a=1`.
    const CREATE: &[u8] =
        b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x1b\x0a\x11\x0a\x01m\x12\x00\x1a\x00\
        \"\x00*\x002\x008\x00B\x00\x12\x06\x0a\x01a\x12\x011\x1a\x00\"\x00";

    #[test]
    fn as_kubectl_sends_it() {
        let object = parse(CREATE).unwrap();
        assert_eq!(
            object,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"}, "metadata": {"name": "m", "generation": 0}})
        );
    }

    #[test]
    fn a_truncated_body_is_refused() {
        assert!(parse(&CREATE[..CREATE.len() - 30]).is_err());
        assert!(parse(b"{}").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut body = MAGIC.to_vec();
            body.extend(bytes);
            let _ = parse(&body);
        }
    }
}
