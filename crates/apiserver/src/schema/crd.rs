//! CustomResourceDefinitions: defaulting, validation, status, and the [`ResourceDef`] that they make.

use serde_json::Value;

use super::FieldError;
use crate::resources::ResourceDef;

/// Fills in what upstream fills in: singular and list names, conversion strategy.
pub fn default(_crd: &mut Value) {}

/// The errors of a (defaulted) definition; `old` is the stored one on update.
pub fn validate(_crd: &Value, _old: Option<&Value>) -> Vec<FieldError> {
    Vec::new()
}

/// Writes the status of an accepted definition (accepted names, stored versions, NamesAccepted and Established conditions);
/// `now` is an RFC 3339 time for conditions that change. Returns whether something changed.
pub fn accept(_crd: &mut Value, _now: &str) -> bool {
    false
}

/// See [`ResourceDef::from_crd`].
pub(crate) fn resource_def(_crd: &Value) -> Result<ResourceDef, Vec<FieldError>> {
    Err(Vec::new())
}
