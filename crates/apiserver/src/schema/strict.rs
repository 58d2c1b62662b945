//! `fieldValidation`: which fields of a request body occur twice or are unknown, in upstream's words.
//!
//! `Ignore` drops them silently, `Warn` turns each into a warning header, `Strict` refuses the request with all of them.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::builtin;
use super::node::join;
use crate::resources::ResourceDef;

/// Problems of a body, each as upstream says it: `unknown field "spec.foo"`, `duplicate field "spec.foo"`.
/// `raw` is the JSON body as it came, where it was JSON: only there can a field occur twice.
pub fn problems(
    def: &ResourceDef,
    version: &str,
    object: &Value,
    raw: Option<&[u8]>,
) -> Vec<String> {
    let mut found: Vec<String> = raw
        .map(duplicate_fields)
        .unwrap_or_default()
        .into_iter()
        .map(|path| format!("duplicate field {path:?}"))
        .collect();
    let unknown = match def
        .versions
        .iter()
        .find(|v| v.name == version)
        .and_then(|v| v.schema.as_ref())
    {
        Some(schema) => schema.unknown_fields(object),
        None if def.crd => Vec::new(),
        None => builtin::strict_schema(&def.group, &def.kind)
            .map(|s| s.unknown_fields(object))
            .unwrap_or_default(),
    };
    found.extend(
        unknown
            .into_iter()
            .map(|path| format!("unknown field {path:?}")),
    );
    found
}

/// The message of a refused request (400 BadRequest).
pub fn refusal(kind: &str, version: &str, problems: &[String]) -> String {
    format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {}",
        problems.join(", ")
    )
}

/// Paths of the fields that occur more than once in their object. Empty if `json` is not JSON: then the decoder refuses it anyway.
pub fn duplicate_fields(json: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    match (Scan {
        path: String::new(),
        found: &mut found,
    })
    .deserialize(&mut deserializer)
    {
        Ok(()) => found,
        Err(_) => Vec::new(),
    }
}

/// Walks JSON without building it.
struct Scan<'a> {
    path: String,
    found: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Scan<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scan<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut i = 0;
        while seq
            .next_element_seed(Scan {
                path: format!("{}[{i}]", self.path),
                found: self.found,
            })?
            .is_some()
        {
            i += 1;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            let path = join(&self.path, &name);
            if !seen.insert(name) && !self.found.contains(&path) {
                self.found.push(path.clone());
            }
            map.next_value_seed(Scan {
                path,
                found: self.found,
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_found_at_any_depth() {
        let json = br#"{"a":1,"b":{"c":1,"c":2},"l":[{"x":1},{"x":1,"x":2,"x":3}],"a":2}"#;
        assert_eq!(duplicate_fields(json), ["b.c", "l[1].x", "a"]);
        assert!(duplicate_fields(b"not json").is_empty());
    }

    #[test]
    fn refusal_reads_like_upstream() {
        assert_eq!(
            refusal("Pod", "v1", &["unknown field \"spec.foo\"".to_owned()]),
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"spec.foo\""
        );
    }

    #[test]
    fn built_in_kinds_know_their_fields() {
        let defs = crate::resources::builtin();
        let pods = defs
            .iter()
            .find(|d| d.kind == "Pod")
            .expect("pods are built in");
        let object = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "nam": "b"},
            "spec": {"containers": [{"name": "a", "imag": "x", "resources": {"limits": {"cpu": 1}}}], "nodeSelector": {"x": "y"}}});
        assert_eq!(
            problems(pods, "v1", &object, None),
            [
                "unknown field \"metadata.nam\"",
                "unknown field \"spec.containers[0].imag\""
            ]
        );
    }
}
