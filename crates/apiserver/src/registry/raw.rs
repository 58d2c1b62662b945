//! Stored objects shown without taking them apart: what is stored is what is shown, but for the revision, which is not
//! part of the stored text, and the version. The hot path of lists and watches.
//!
//! Only where nothing else can differ: no alias, and no default that the definition might have gained since.

use serde_json::Value;

use crate::registry::catalog::Scope;

/// Whether objects of this scope can be shown so.
pub(crate) fn applies(scope: &Scope) -> bool {
    let schema = scope.version().schema.as_ref();
    scope.def.alias.is_none()
        && !schema.is_some_and(|schema| schema.source().contains("\"default\":"))
}

/// Appends the object with its revision; with `api_version`, or without kind and version. False, and nothing appended, if the
/// text is not as expected.
pub(crate) fn append(
    out: &mut Vec<u8>,
    stored: &[u8],
    revision: u64,
    api_version: Option<&str>,
) -> bool {
    let before = out.len();
    let done = try_append(out, stored, revision, api_version).is_some();
    if !done {
        out.truncate(before);
    }
    done
}

fn try_append(
    out: &mut Vec<u8>,
    stored: &[u8],
    revision: u64,
    api_version: Option<&str>,
) -> Option<()> {
    let mut rest = stored.strip_prefix(b"{")?;
    let (mut has_metadata, mut first) = (false, true);
    out.push(b'{');
    while rest.first()? != &b'}' {
        if !rest.starts_with(b"\"") {
            return None;
        }
        let key_end = string_end(rest)?;
        let key = &rest[..key_end];
        let value = rest[key_end..].strip_prefix(b":")?;
        let end = value_end(value)?;
        let (value, after) = value.split_at(end);
        rest = match after.strip_prefix(b",") {
            Some(more) if more.first() != Some(&b'}') => more,
            Some(_) => return None,
            None => after,
        };
        if matches!(key, br#""kind""# | br#""apiVersion""#) && api_version.is_none() {
            continue;
        }
        if !first {
            out.push(b',');
        }
        first = false;
        out.extend_from_slice(key);
        out.push(b':');
        match (key, api_version) {
            (br#""apiVersion""#, Some(version)) => {
                out.extend_from_slice(Value::from(version).to_string().as_bytes());
            }
            (br#""metadata""#, _) => {
                has_metadata = true;
                let fields = value.strip_prefix(b"{")?;
                out.extend_from_slice(format!("{{\"resourceVersion\":\"{revision}\"").as_bytes());
                if fields != b"}" {
                    out.push(b',');
                }
                out.extend_from_slice(fields);
            }
            _ => out.extend_from_slice(value),
        }
    }
    out.push(b'}');
    (rest == b"}" && has_metadata).then_some(())
}

/// Behind the string that this begins with.
fn string_end(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Behind the value that this begins with.
fn value_end(text: &[u8]) -> Option<usize> {
    let (mut at, mut depth) = (0, 0_usize);
    loop {
        match text.get(at)? {
            b'"' => {
                at += string_end(&text[at..])?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => break,
            b'}' | b']' => depth -= 1,
            b',' if depth == 0 => break,
            _ => {}
        }
        at += 1;
    }
    (at > 0).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Map, json};

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i32>().prop_map(|n| json!(n)),
            ".{0,6}".prop_map(|s| json!(s)),
            Just(json!("\\\"{[,]}")),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c\"\\\\]{0,3}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn only_revision_and_version_differ(
            mut object in prop::collection::btree_map("kind|apiVersion|spec|[a-z\"\\\\]{0,3}", json(), 0..5),
            metadata in prop::collection::btree_map("[a-z]{1,3}", json(), 0..3),
            with_version: bool,
        ) {
            object.insert("metadata".into(), Value::Object(metadata.into_iter().collect()));
            let object: Map<String, Value> = object.into_iter().collect();
            let mut expected = object.clone();
            expected["metadata"]["resourceVersion"] = json!("7");
            for field in ["kind", "apiVersion"] {
                if !with_version {
                    expected.remove(field);
                }
            }
            if let Some(version) = expected.get_mut("apiVersion") {
                *version = json!("a/v1");
            }
            let mut out = Vec::new();
            let stored = Value::Object(object).to_string();
            prop_assert!(append(&mut out, stored.as_bytes(), 7, with_version.then_some("a/v1")));
            prop_assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), Value::Object(expected));
            // What is cut is not shown.
            for end in 0..stored.len() {
                prop_assert!(!append(&mut out, &stored.as_bytes()[..end], 7, None));
            }
        }
    }
}
