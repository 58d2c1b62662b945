//! What the fuzz targets drive: each function takes what a client could send, and checks what must hold of it.

use std::sync::Arc;

use http::{Method, Uri};
use serde_json::{Value, json};

use crate::auth::RequestInfo;
use crate::patch::Patch;
use crate::registry::list_options::Continue;
use crate::registry::query::Query;
use crate::registry::selector::Selector;
use crate::registry::{content, raw};
use crate::schema::fields::Set;
use crate::schema::{Schema, builtin};

/// A request line: path and query.
pub fn request_line(method: u8, text: &str) {
    let Ok(uri) = text.parse::<Uri>() else { return };
    let method = match method % 6 {
        0 => Method::GET,
        1 => Method::POST,
        2 => Method::PUT,
        3 => Method::PATCH,
        4 => Method::DELETE,
        _ => Method::HEAD,
    };
    let info = RequestInfo::parse(&method, &uri);
    assert!(!info.is_resource || !info.resource.is_empty());
    let _ = info.refusal("fuzz");
    if let Ok(query) = Query::parse(&uri) {
        let _ = (query.dry_run(), query.number("limit"), query.flag("watch"));
    }
}

/// Label and field selectors, and any object to match.
pub fn selectors(labels: &str, fields: &str, object: &[u8]) {
    for resource in ["/pods", "example.com/widgets"] {
        let Ok(selector) = Selector::parse_for(labels, fields, resource, None) else {
            continue;
        };
        if let Ok(object) = content::parse_json(object) {
            let matched = selector.matches(&object);
            assert!(matched || !selector.is_everything());
        }
    }
}

/// A patch of any of the kinds, and an object to apply it to.
pub fn patch(kind: u8, body: &[u8], object: &[u8]) {
    let media = match kind % 3 {
        0 => "application/json-patch+json",
        1 => "application/merge-patch+json",
        _ => "application/strategic-merge-patch+json",
    };
    let (Ok(patch), Ok(object)) = (
        Patch::parse(media, body, false),
        content::parse_json(object),
    ) else {
        return;
    };
    let schema = builtin::strict_schema("", "Pod");
    let Ok(once) = patch.apply(&object, schema.as_deref()) else {
        return;
    };
    if matches!(patch, Patch::Merge(_)) {
        // RFC 7396: the same again changes nothing.
        assert_eq!(patch.apply(&once, None).ok(), Some(once));
    }
}

/// A configuration that is applied to an object, of a built-in kind or under a schema.
pub fn apply(source: &[u8], live: &[u8], config: &[u8]) {
    let schema = match content::parse_json(source) {
        Ok(source) => Schema::parse(&source).ok().map(Arc::new),
        Err(_) => builtin::strict_schema("", "Pod"),
    };
    let (Some(schema), Ok(live), Ok(config)) = (
        schema,
        content::parse_json(live),
        content::parse("application/yaml", config),
    ) else {
        return;
    };
    let (Ok(set), Ok(merged)) = (schema.fields(&config), schema.merge(&live, &config)) else {
        return;
    };
    // What owns the fields is stored as JSON and read again.
    assert_eq!(Set::decode(&set.encode()).ok(), Some(set.clone()));
    if let Ok(again) = schema.merge(&merged, &config) {
        assert!(
            schema.changes(&merged, &again).set.is_empty(),
            "the same again changes nothing"
        );
    }
    let nothing = schema.take_out(&merged, &set, &set);
    assert_eq!(nothing, merged, "what is owned stays");
}

/// A validation rule in a schema, and the values that it is asked about.
pub fn rule(rule: &str, object: &[u8], old: &[u8]) {
    let source = json!({
        "type": "object",
        "x-kubernetes-validations": [{"rule": rule}],
        "properties": {
            "text": {"type": "string", "maxLength": 100},
            "number": {"type": "integer"},
            "float": {"type": "number"},
            "flag": {"type": "boolean"},
            "time": {"type": "string", "format": "date-time"},
            "either": {"x-kubernetes-int-or-string": true},
            "list": {"type": "array", "maxItems": 20, "items": {"type": "string"}},
            "set": {
                "type": "array",
                "x-kubernetes-list-type": "set",
                "items": {"type": "integer"},
            },
            "map": {"type": "object", "additionalProperties": {"type": "integer"}},
            "inner": {"type": "object", "properties": {"a-b": {"type": "string"}}},
        },
    });
    let definition = json!({
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": source}}},
            }],
        },
    });
    if !crate::schema::crd::validate(&definition, None).is_empty() {
        return;
    }
    let Ok(schema) = Schema::parse(&source) else {
        return;
    };
    let (Ok(object), old) = (content::parse_json(object), content::parse_json(old).ok()) else {
        return;
    };
    let _ = schema.check(&object, old.as_ref());
}

/// The bytes of a journal.
pub fn journal(bytes: &[u8]) {
    crate::store::durable::journal::read_any(bytes);
}

/// A schema as a definition has it, and an object under it.
pub fn schema(source: &[u8], object: &[u8]) {
    let (Ok(source), Ok(mut object)) = (content::parse_json(source), content::parse_json(object))
    else {
        return;
    };
    let Ok(schema) = Schema::parse(&source) else {
        return;
    };
    let _ = schema.unknown_fields(&object);
    schema.prune(&mut object);
    let pruned = object.clone();
    schema.prune(&mut object);
    assert_eq!(object, pruned, "pruning is done after once");
    schema.default(&mut object);
    let _ = schema.validate(&object);
}

/// A body of each media type.
pub fn body(media: u8, bytes: &[u8]) {
    let media = match media % 3 {
        0 => "application/json",
        1 => "application/yaml",
        _ => crate::registry::protobuf::MEDIA,
    };
    if media == crate::registry::protobuf::MEDIA && !bytes.starts_with(b"k8s\0") {
        let _ = content::parse(media, &[b"k8s\0", bytes].concat());
    }
    let _ = content::parse(media, bytes);
}

/// A continue token.
pub fn continue_token(text: &str) {
    let _ = Continue::parse(text);
}

/// A backup file.
pub fn backup(bytes: &[u8]) {
    crate::backup::read_any(bytes);
}

/// Stored text, which is shown without being parsed where it can be.
pub fn stored(bytes: &[u8]) {
    let mut out = Vec::new();
    let shown = raw::append(&mut out, bytes, 7, false);
    assert!(shown.is_ok() || out.is_empty());
    let Ok(Value::Object(object)) = content::parse_json(bytes) else {
        return;
    };
    let mut expected = Value::Object(object);
    let stored = expected.to_string();
    let mut out = Vec::new();
    if raw::append(&mut out, stored.as_bytes(), 7, false).is_ok() {
        let again: Value = serde_json::from_slice(&out).expect("what is shown is JSON");
        if expected["metadata"].get("resourceVersion").is_none() {
            expected["metadata"]["resourceVersion"] = "7".into();
            assert_eq!(again, expected);
        }
    }
}
