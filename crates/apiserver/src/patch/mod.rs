//! Patches: JSON patch (RFC 6902), JSON merge patch (RFC 7396), strategic merge patch.
//!
//! A patch is parsed once and may be applied several times, since a write that comes between makes it necessary to
//! begin again from the newer object. Applying never changes the original.

mod merge;
mod strategic;

use serde_json::Value;

use crate::error::ApiError;
use crate::registry::content;

/// Most operations of a JSON patch, as upstream.
const MAX_OPERATIONS: usize = 10_000;
/// Most bytes that an object may grow to by a patch: `copy` can double it with each step.
const MAX_GROWTH: usize = 3 << 20;

const ACCEPTED: &str = "application/apply-patch+yaml, application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";
const ACCEPTED_CUSTOM: &str =
    "application/apply-patch+yaml, application/json-patch+json, application/merge-patch+json";

/// A parsed patch.
#[derive(Debug, Clone)]
pub(crate) enum Patch {
    /// RFC 6902.
    Json(json_patch::Patch),
    /// RFC 7396.
    Merge(Value),
    /// Kubernetes' own: lists are merged by key.
    Strategic(Value),
}

impl Patch {
    /// Parses a body by its media type. `custom` resources have no strategic merge.
    pub(crate) fn parse(media: &str, body: &[u8], custom: bool) -> Result<Self, ApiError> {
        let object = |body: &[u8]| {
            let value = content::parse_json(body)?;
            if value.is_object() {
                Ok(value)
            } else {
                Err(ApiError::BadRequest(
                    "the patch must be a JSON object".into(),
                ))
            }
        };
        match media {
            "application/json-patch+json" => {
                let value = content::parse_json(body)?;
                let operations = value.as_array().map_or(0, Vec::len);
                if operations > MAX_OPERATIONS {
                    return Err(ApiError::BadRequest(format!(
                        "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {operations}"
                    )));
                }
                serde_json::from_value(value)
                    .map(Self::Json)
                    .map_err(|e| ApiError::BadRequest(format!("error decoding patch: {e}")))
            }
            "application/merge-patch+json" => Ok(Self::Merge(object(body)?)),
            "application/strategic-merge-patch+json" if !custom => {
                Ok(Self::Strategic(object(body)?))
            }
            _ => {
                let accepted = if custom { ACCEPTED_CUSTOM } else { ACCEPTED };
                Err(ApiError::UnsupportedMediaType(accepted.into()))
            }
        }
    }

    /// The object as the patch makes it.
    pub(crate) fn apply(&self, object: &Value) -> Result<Value, ApiError> {
        let mut new = object.clone();
        match self {
            Self::Json(patch) => apply_json(&mut new, patch)?,
            Self::Merge(patch) => merge::apply(&mut new, patch),
            Self::Strategic(patch) => strategic::apply(&mut new, patch)?,
        }
        Ok(new)
    }
}

fn apply_json(object: &mut Value, patch: &json_patch::Patch) -> Result<(), ApiError> {
    let copies = patch
        .iter()
        .any(|op| matches!(op, json_patch::PatchOperation::Copy(_)));
    if copies {
        // One by one, so that growth is seen before it hurts.
        for operation in patch.iter() {
            json_patch::patch(object, std::slice::from_ref(operation)).map_err(|e| rejected(&e))?;
            if matches!(operation, json_patch::PatchOperation::Copy(_))
                && object.to_string().len() > MAX_GROWTH
            {
                return Err(ApiError::TooLarge(MAX_GROWTH));
            }
        }
        return Ok(());
    }
    json_patch::patch(object, patch).map_err(|e| rejected(&e))
}

fn rejected(error: &json_patch::PatchError) -> ApiError {
    ApiError::Unprocessable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patch(media: &str, patch: &Value, to: &Value) -> Result<Value, ApiError> {
        Patch::parse(media, patch.to_string().as_bytes(), false)?.apply(to)
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
                matches!(parse(media, custom), Err(ApiError::UnsupportedMediaType(_))),
                "{media}"
            );
        }
        assert!(Patch::parse("application/merge-patch+json", b"[]", false).is_err());
        assert!(Patch::parse("application/json-patch+json", b"{}", false).is_err());
    }
}
