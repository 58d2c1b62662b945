//! Structural schemas: pruning, defaulting, validation and strict decoding of objects.

use std::fmt;

use serde_json::Value;

pub mod crd;

/// Why a field is refused; the `reason` of a cause in a Status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorKind {
    /// The value is missing.
    Required,
    /// The value breaks a rule.
    Invalid,
    /// The value has the wrong type.
    TypeInvalid,
    /// The value is not one of those allowed.
    NotSupported,
    /// The value occurs twice.
    Duplicate,
    /// The value must not be set.
    Forbidden,
    /// The text is too long.
    TooLong,
    /// The list has too many items.
    TooMany,
}

impl FieldErrorKind {
    /// The cause's `reason` as clients see it, e.g. `FieldValueInvalid`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
        }
    }
}

/// One refused field. `Display` gives `field: message`, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Why.
    pub kind: FieldErrorKind,
    /// Path, e.g. `spec.disks[0].name`.
    pub field: String,
    /// Message without the path, e.g. `Required value`.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// A parsed structural schema. Pure and immutable.
#[derive(Clone, Debug, Default)]
pub struct Schema {}

impl Schema {
    /// Removes the fields of a custom resource that the schema does not know. `apiVersion`, `kind` and `metadata` stay.
    pub fn prune(&self, _object: &mut Value) {}

    /// Fills in defaults. Idempotent.
    pub fn default(&self, _object: &mut Value) {}

    /// The errors of a whole object, in field order.
    pub fn validate(&self, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Paths of the fields that [`Self::prune`] would remove.
    pub fn unknown_fields(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }
}
