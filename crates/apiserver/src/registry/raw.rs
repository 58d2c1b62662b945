//! Objects shown as they are stored, without parsing them.
//!
//! What is stored is compact JSON of our own writing and lacks only the revision, which is that of the write. So a list
//! of ten thousand objects, or an event for a hundred watchers, is copied and not parsed and printed again.

use crate::registry::catalog::Scope;

/// What the scanner stands for where it does not find what was written: the caller parses instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotOurs;

impl Scope {
    /// Whether an object of this revision is shown as it is stored: in the version in which it is stored, and written
    /// after the last change of its definition, so that it has all defaults.
    pub(crate) fn shows_stored(&self, revision: u64) -> bool {
        self.def.alias.is_none()
            && self.version().name == self.def.storage_version
            && (self.version().schema.is_none() || revision > self.def.since)
    }
}

/// Appends a stored object with its revision; items of built-in lists go without kind and version (`bare`).
///
/// # Errors
/// What is stored is not as we write it; `out` is as it was then.
pub(crate) fn append(
    out: &mut Vec<u8>,
    stored: &[u8],
    revision: u64,
    bare: bool,
) -> Result<(), NotOurs> {
    let begin = out.len();
    let done = copy(out, stored, revision, bare);
    if done.is_none() {
        out.truncate(begin);
    }
    done.ok_or(NotOurs)
}

fn copy(out: &mut Vec<u8>, stored: &[u8], revision: u64, bare: bool) -> Option<()> {
    let inside = stored.strip_prefix(b"{")?.strip_suffix(b"}")?;
    out.push(b'{');
    let first = out.len();
    let (mut at, mut seen) = (0, false);
    while at < inside.len() {
        let key_end = at + string_len(&inside[at..])?;
        if inside.get(key_end) != Some(&b':') {
            return None;
        }
        let value = key_end + 1;
        let end = value + value_len(&inside[value..])?;
        let key = &inside[at..key_end];
        if !(bare && matches!(key, b"\"kind\"" | b"\"apiVersion\"")) {
            if out.len() > first {
                out.push(b',');
            }
            out.extend_from_slice(&inside[at..value]);
            if key == b"\"metadata\"" {
                let rest = inside[value..end].strip_prefix(b"{")?;
                out.extend_from_slice(b"{\"resourceVersion\":\"");
                out.extend_from_slice(revision.to_string().as_bytes());
                out.extend_from_slice(if rest == b"}" { b"\"" } else { b"\"," });
                out.extend_from_slice(rest);
                seen = true;
            } else {
                out.extend_from_slice(&inside[value..end]);
            }
        }
        at = match inside.get(end) {
            Some(b',') => end + 1,
            None => end,
            Some(_) => return None,
        };
    }
    out.push(b'}');
    seen.then_some(())
}

/// Bytes of the string that begins here, quotes included.
fn string_len(text: &[u8]) -> Option<usize> {
    if text.first() != Some(&b'"') {
        return None;
    }
    let mut at = 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Bytes of the value that begins here.
fn value_len(text: &[u8]) -> Option<usize> {
    let mut depth = 0usize;
    let mut at = 0;
    loop {
        match text.get(at) {
            Some(b'"') => at += string_len(&text[at..])?,
            Some(b'{' | b'[') => {
                depth += 1;
                at += 1;
            }
            Some(b'}' | b']') if depth > 0 => {
                depth -= 1;
                at += 1;
            }
            Some(b',') if depth == 0 => return Some(at),
            Some(b'}' | b']') => return None,
            Some(_) => at += 1,
            None if depth == 0 => return Some(at),
            None => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn shown(stored: &Value, bare: bool) -> Result<Value, NotOurs> {
        let mut out = b"[".to_vec();
        append(&mut out, stored.to_string().as_bytes(), 7, bare)?;
        out.push(b']');
        let list: Value = serde_json::from_slice(&out).expect("well formed");
        Ok(list[0].clone())
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
            "[{}\",:\\\\\\[\\]]*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z\"{}]{1,3}", inner, 0..4)
                    .prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_same_as_parsing(spec in any_value(), metadata in prop::collection::btree_map("[a-z\"]{1,4}", any_value(), 0..3), bare in any::<bool>()) {
            let metadata: Value = metadata.into_iter().collect();
            let stored = json!({"apiVersion": "v1", "kind": "K", "metadata": metadata, "spec": spec});
            let mut expected = stored.clone();
            expected["metadata"]["resourceVersion"] = json!("7");
            if bare {
                expected.as_object_mut().map(|map| { map.remove("kind"); map.remove("apiVersion") });
            }
            prop_assert_eq!(shown(&stored, bare), Ok(expected));
        }

        #[test]
        fn nothing_makes_it_panic_or_leave_a_half(stored in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut out = b"x".to_vec();
            if append(&mut out, &stored, 1, false).is_err() {
                prop_assert_eq!(out, b"x".to_vec());
            }
        }
    }

    #[test]
    fn an_object_without_metadata_is_not_ours() {
        assert_eq!(shown(&json!({"kind": "K"}), false), Err(NotOurs));
    }
}
