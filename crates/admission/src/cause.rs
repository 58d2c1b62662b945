//! Refusals: one cause for each thing that is wrong, in the words and with the reasons of the API server.

use std::fmt;

/// Why a field is refused. The names are those of Kubernetes' status causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CauseReason {
    /// The value is not possible.
    FieldValueInvalid,
    /// The field has to be given.
    FieldValueRequired,
    /// The field or the value is not one that berth honours.
    FieldValueNotSupported,
    /// The value has to be unique and is not.
    FieldValueDuplicate,
    /// The value may not be given or changed here.
    FieldValueForbidden,
}

impl CauseReason {
    /// The word in a `Status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FieldValueInvalid => "FieldValueInvalid",
            Self::FieldValueRequired => "FieldValueRequired",
            Self::FieldValueNotSupported => "FieldValueNotSupported",
            Self::FieldValueDuplicate => "FieldValueDuplicate",
            Self::FieldValueForbidden => "FieldValueForbidden",
        }
    }
}

impl fmt::Display for CauseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Why.
    pub reason: CauseReason,
    /// Path of the field, for example `spec.domain.devices.disks[0].name`.
    pub field: String,
    /// What is wrong with it, with its value; does not repeat the path.
    pub message: String,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl Cause {
    pub(crate) fn invalid(
        field: impl Into<String>,
        value: impl fmt::Debug,
        why: impl fmt::Display,
    ) -> Self {
        Self {
            reason: CauseReason::FieldValueInvalid,
            field: field.into(),
            message: format!("Invalid value: {value:?}: {why}"),
        }
    }

    pub(crate) fn required(field: impl Into<String>, why: impl fmt::Display) -> Self {
        Self {
            reason: CauseReason::FieldValueRequired,
            field: field.into(),
            message: format!("Required value: {why}"),
        }
    }

    /// A value out of a closed set that is not in it.
    pub(crate) fn not_one_of(
        field: impl Into<String>,
        value: impl fmt::Debug,
        set: &[&str],
    ) -> Self {
        let set: Vec<_> = set.iter().map(|s| format!("{s:?}")).collect();
        Self {
            reason: CauseReason::FieldValueNotSupported,
            field: field.into(),
            message: format!(
                "Unsupported value: {value:?}: supported values: {}",
                set.join(", ")
            ),
        }
    }

    /// A field, not a value, that is not honoured. Its value is not shown: it may be a secret.
    pub(crate) fn unsupported_field(field: impl Into<String>, hint: &str) -> Self {
        let hint = if hint.is_empty() {
            String::new()
        } else {
            format!(": {hint}")
        };
        Self {
            reason: CauseReason::FieldValueNotSupported,
            field: field.into(),
            message: format!("Unsupported value: this field is not supported by berth{hint}"),
        }
    }

    pub(crate) fn duplicate(field: impl Into<String>, value: impl fmt::Debug) -> Self {
        Self {
            reason: CauseReason::FieldValueDuplicate,
            field: field.into(),
            message: format!("Duplicate value: {value:?}"),
        }
    }

    pub(crate) fn forbidden(field: impl Into<String>, why: impl fmt::Display) -> Self {
        Self {
            reason: CauseReason::FieldValueForbidden,
            field: field.into(),
            message: format!("Forbidden: {why}"),
        }
    }
}

/// Why a write is refused: at least one cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", causes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Refusal {
    /// Every cause, in the order of the object's fields.
    pub causes: Vec<Cause>,
}

impl Refusal {
    /// `Ok` if there is no cause.
    pub(crate) fn from_causes(causes: Vec<Cause>) -> Result<(), Self> {
        if causes.is_empty() {
            Ok(())
        } else {
            Err(Self { causes })
        }
    }
}
