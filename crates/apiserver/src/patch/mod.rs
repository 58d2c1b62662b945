//! Patches: JSON patch (RFC 6902), JSON merge patch (RFC 7396), strategic merge patch.
//!
//! A patch is parsed once and may be applied several times, since a write that comes between makes it necessary to
//! begin again from the newer object. Applying never changes the original.

mod json;
mod merge;
mod strategic;

use serde_json::Value;

use crate::error::ApiError;
use crate::golang;
use crate::registry::content;
use crate::schema::Schema;
use crate::schema::fields::Place;

const ACCEPTED_CUSTOM: &str =
    "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";

/// A parsed patch.
#[derive(Debug, Clone)]
pub(crate) enum Patch {
    /// RFC 6902.
    Json(Vec<json::Operation>),
    /// RFC 7396.
    Merge(Value),
    /// Kubernetes' own: lists are merged by key.
    Strategic(Value),
}

impl Patch {
    /// Parses a body by its media type. `custom` resources have no strategic merge.
    pub(crate) fn parse(media: &str, body: &[u8], custom: bool) -> Result<Self, ApiError> {
        let object = |body: &[u8]| match read(body, "error decoding patch: ")? {
            value @ Value::Object(_) => Ok(value),
            other => Err(unreadable(&other, "map[string]interface {}")),
        };
        match media {
            "application/json-patch+json" => {
                json::parse(read(body, "error decoding patch: ")?).map(Self::Json)
            }
            "application/merge-patch+json" => Ok(Self::Merge(object(body)?)),
            "application/strategic-merge-patch+json" if !custom => {
                read(body, "")?;
                Ok(Self::Strategic(object(body)?))
            }
            _ if custom => Err(ApiError::UnsupportedMediaType(ACCEPTED_CUSTOM.into())),
            _ => Err(ApiError::NotConsumed),
        }
    }

    /// The object as the patch makes it. `schema` is that of a built-in kind; without it no list is merged.
    pub(crate) fn apply(&self, object: &Value, schema: Option<&Schema>) -> Result<Value, ApiError> {
        let mut new = object.clone();
        match self {
            Self::Json(steps) => json::apply(&mut new, steps)?,
            Self::Merge(patch) => merge::apply(&mut new, patch),
            Self::Strategic(patch) => {
                let place = schema.map_or_else(Place::nowhere, Schema::place);
                strategic::apply(&mut new, patch, place)?;
            }
        }
        Ok(new)
    }
}

/// The JSON of a patch; `said` begins the message where it ends too early.
fn read(body: &[u8], said: &str) -> Result<Value, ApiError> {
    content::parse_json(body).map_err(|e| {
        match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
            Err(why) if why.is_eof() => {
                ApiError::BadRequest(format!("{said}unexpected end of JSON input"))
            }
            _ => e,
        }
    })
}

/// A patch that is JSON of another type than it has to be, in the words of Go's decoder.
fn unreadable(found: &Value, wanted: &str) -> ApiError {
    ApiError::BadRequest(format!(
        "error decoding patch: json: cannot unmarshal {} into Go value of type {wanted}",
        golang::json_type(found)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patch(media: &str, patch: &Value, to: &Value) -> Result<Value, ApiError> {
        Patch::parse(media, patch.to_string().as_bytes(), false)?.apply(to, None)
    }

    #[test]
    fn json_patch_is_all_or_nothing() {
        let object = json!({"a": 1});
        let bad = json!([{"op": "add", "path": "/b", "value": 2}, {"op": "test", "path": "/a", "value": 9}]);
        assert!(matches!(
            patch("application/json-patch+json", &bad, &object),
            Err(ApiError::Unprocessable(_))
        ));
        let good = json!([{"op": "replace", "path": "/a", "value": [1]}, {"op": "add", "path": "/a/-", "value": 2}]);
        assert_eq!(
            patch("application/json-patch+json", &good, &object).unwrap(),
            json!({"a": [1, 2]})
        );
    }

    #[test]
    fn copies_do_not_explode() {
        let object = json!({"a": ["x".repeat(1000)]});
        let operations: Vec<Value> = (0..40)
            .map(|_| json!({"op": "copy", "from": "/a", "path": "/a/-"}))
            .collect();
        assert!(matches!(
            patch("application/json-patch+json", &json!(operations), &object),
            Err(ApiError::TooLarge(_))
        ));
    }

    #[test]
    fn media_types() {
        let parse = |media, custom| Patch::parse(media, b"{}", custom);
        assert!(parse("application/strategic-merge-patch+json", false).is_ok());
        for (media, custom) in [
            ("application/strategic-merge-patch+json", true),
            ("application/apply-patch+yaml", false),
            ("application/json", false),
        ] {
            assert!(
                matches!(
                    parse(media, custom),
                    Err(ApiError::UnsupportedMediaType(_) | ApiError::NotConsumed)
                ),
                "{media}"
            );
        }
        assert!(Patch::parse("application/merge-patch+json", b"[]", false).is_err());
        assert!(Patch::parse("application/json-patch+json", b"{}", false).is_err());
    }
}
