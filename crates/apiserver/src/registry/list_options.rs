//! What may be asked of a list or a watch, in upstream's words.

use serde::{Deserialize, Serialize};

use base64::Engine as _;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use base64::{DecodeError, alphabet};
use serde_json::json;

use crate::error::{ApiError, Cause, Target};
use crate::registry::query::Call;
use crate::store::Key;

/// As Go reads it: bits that are too many at the end do not count.
const TOKEN: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// Where a paged list goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Continue {
    /// The revision that all pages are of; 0: of the present, for clients that accept an inconsistent rest.
    pub(crate) rv: u64,
    pub(crate) ns: String,
    pub(crate) name: String,
    /// How many objects are left, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) left: Option<usize>,
}

impl Continue {
    pub(crate) fn parse(token: &str) -> Result<Self, ApiError> {
        let invalid = |why: String| {
            ApiError::BadRequest(format!(
                "invalid continue token: continue key is not valid: {why}"
            ))
        };
        let bytes = TOKEN.decode(token).map_err(|e| {
            invalid(match e {
                DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => {
                    format!("illegal base64 data at input byte {at}")
                }
                DecodeError::InvalidLength(at) => format!("illegal base64 data at input byte {at}"),
                DecodeError::InvalidPadding => {
                    format!("illegal base64 data at input byte {}", token.len())
                }
            })
        })?;
        serde_json::from_slice(&bytes).map_err(|e| {
            invalid(match bytes.iter().find(|b| !b.is_ascii_whitespace()) {
                Some(&b) if b != b'{' => format!(
                    "invalid character {:?} looking for beginning of value",
                    char::from(b)
                ),
                _ => e.to_string(),
            })
        })
    }

    pub(crate) fn token(&self) -> String {
        TOKEN.encode(json!(self).to_string())
    }

    /// The same place in the present.
    pub(crate) fn inconsistent(&self) -> Self {
        Self {
            rv: 0,
            left: None,
            ..self.clone()
        }
    }

    pub(crate) fn key(&self, resource: &std::sync::Arc<str>) -> Key {
        Key::new(resource, &self.ns, &self.name)
    }
}

/// `resourceVersion`, none if it is unset or 0.
pub(crate) fn revision(call: &Call) -> Result<Option<u64>, ApiError> {
    let text = call.query.get("resourceVersion");
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse::<u64>().map_err(|_| {
        ApiError::Unexplained(format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })?;
    Ok((parsed > 0).then_some(parsed))
}

/// Refuses combinations that mean nothing.
pub(crate) fn validate(call: &Call, watch: bool) -> Result<(), ApiError> {
    call.query.number("timeoutSeconds")?;
    const MATCH: &str = "resourceVersionMatch";
    let query = &call.query;
    let unsupported = |given: &str, supported: &str| Cause {
        reason: "FieldValueNotSupported".into(),
        field: MATCH.into(),
        message: format!("Unsupported value: {given:?}: supported values: {supported}"),
    };
    let given = query.get(MATCH);
    let initial = !query.get("sendInitialEvents").is_empty();
    let mut causes = Vec::new();
    if watch {
        if initial && given != "NotOlderThan" {
            causes.push(Cause::forbidden(
                MATCH,
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        if !given.is_empty() {
            if !initial {
                causes.push(Cause::forbidden(
                    MATCH,
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            if given != "NotOlderThan" {
                causes.push(unsupported(given, r#""NotOlderThan""#));
            }
        }
        // In these words also where no match is asked for.
        if !query.get("continue").is_empty() {
            causes.push(Cause::forbidden(
                MATCH,
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
    } else {
        if !given.is_empty() {
            if query.get("resourceVersion").is_empty() {
                causes.push(Cause::forbidden(
                    MATCH,
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if !query.get("continue").is_empty() {
                causes.push(Cause::forbidden(
                    MATCH,
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if !matches!(given, "Exact" | "NotOlderThan") {
                causes.push(unsupported(given, r#""Exact", "NotOlderThan", """#));
            }
            if given == "Exact" && query.get("resourceVersion") == "0" {
                causes.push(Cause::forbidden(
                    MATCH,
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
        }
        if initial {
            causes.push(Cause::forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            ));
        }
    }
    if causes.is_empty() {
        return Ok(());
    }
    Err(ApiError::Invalid {
        target: Target::new("meta.k8s.io", "ListOptions", ""),
        causes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let token = Continue {
            rv: 7,
            ns: "a".into(),
            name: "b".into(),
            left: Some(3),
        };
        assert_eq!(Continue::parse(&token.token()), Ok(token.clone()));
        let rest = token.inconsistent();
        assert_eq!((rest.rv, rest.left, rest.name.as_str()), (0, None, "b"));
        let refused = Continue::parse("abc").unwrap_err().to_string();
        assert!(
            refused.starts_with("invalid continue token: continue key is not valid: "),
            "{refused}"
        );
    }
}
