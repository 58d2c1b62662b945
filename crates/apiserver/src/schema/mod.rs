//! Structural schemas: pruning, defaulting, validation and strict decoding of objects.
//!
//! A [`Schema`] is parsed once from a CRD version (`openAPIV3Schema`) and is then immutable and shared. The words of the
//! errors are upstream's, because clients, tests and people read them.
//!
//! - `node`: the parsed form.
//! - `prune`: removal or listing of unknown fields, and defaults.
//! - `validate`, `formats`: the rules of values.
//! - [`crd`], `definition`, `structural`, `default_rules`: a CustomResourceDefinition itself.
//! - [`builtin`]: schemas of the kinds that need no definition.
//! - `fields`: which fields an object sets and what two differ in, for server-side apply.
//! - [`strict`] decoding, for `fieldValidation`.
//!
//! - `cel`: rules in CEL, asked when the rest of the object is valid.
//! - `ratchet`: what an update may leave as invalid as it was.

use std::fmt;

use serde_json::Value;

pub mod builtin;
mod cel;
pub mod crd;
mod default_rules;
mod definition;
mod embedded;
pub(crate) mod fields;
mod formats;
mod list_types;
mod lists;
mod node;
mod patterns;
mod prune;
mod ratchet;
pub mod strict;
mod structural;
mod validate;

use node::Node;

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

    fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
        }
    }

    /// Whether CEL rules are not asked about an object that is wrong in this way: they rely on its types and sizes.
    fn blocks_rules(self) -> bool {
        matches!(
            self,
            Self::NotSupported | Self::Required | Self::TooLong | Self::TooMany | Self::TypeInvalid
        )
    }

    /// Whether the message repeats the offending value.
    fn shows_value(self) -> bool {
        !matches!(self, Self::Required | Self::Forbidden | Self::TooLong)
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

impl FieldError {
    /// An error about `value` at `field`; `detail` may be empty.
    pub fn new(
        kind: FieldErrorKind,
        field: impl Into<String>,
        value: &Value,
        detail: &str,
    ) -> Self {
        let mut message = kind.words().to_owned();
        if kind.shows_value() {
            message.push_str(": ");
            message.push_str(&shown(value));
        }
        if !detail.is_empty() {
            message.push_str(": ");
            message.push_str(detail);
        }
        Self {
            kind,
            field: field.into(),
            message,
        }
    }

    /// The field is missing.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::new(FieldErrorKind::Required, field, &Value::Null, detail)
    }

    /// The value breaks a rule.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::new(FieldErrorKind::Invalid, field, value, detail)
    }

    /// The field must not be set.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new(FieldErrorKind::Forbidden, field, &Value::Null, detail)
    }

    /// The value is none of `supported`.
    pub fn not_supported<S: AsRef<str>>(
        field: impl Into<String>,
        value: &Value,
        supported: &[S],
    ) -> Self {
        let list: Vec<String> = supported
            .iter()
            .map(|s| format!("{:?}", s.as_ref()))
            .collect();
        let detail = if list.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", list.join(", "))
        };
        Self::new(FieldErrorKind::NotSupported, field, value, &detail)
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// How messages show a value: strings quoted, numbers without a needless fraction, the rest as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::Number(n) => number(n),
        other => other.to_string(),
    }
}

/// A number as Go's `%v` shows it: `1`, not `1.0`.
fn number(n: &serde_json::Number) -> String {
    match n.as_f64() {
        Some(f) if !n.is_i64() && !n.is_u64() && f.fract() == 0.0 && f.abs() < 1e15 => {
            format!("{f:.0}")
        }
        _ => n.to_string(),
    }
}

/// What a schema says of an object.
#[derive(Debug, Default)]
pub struct Checked {
    /// Why the object is refused; none if it is not.
    pub errors: Vec<FieldError>,
    /// Rules that an unchanged part of the object breaks.
    pub warnings: Vec<String>,
}

/// A parsed structural schema. Pure and immutable.
#[derive(Debug)]
pub struct Schema {
    root: Node,
    /// The schema as its author wrote it, for OpenAPI documents. Kept as text: a tenth of the size of a parsed tree.
    source: Box<str>,
}

impl Schema {
    /// Parses an `openAPIV3Schema`.
    ///
    /// # Errors
    /// What cannot be read at all; whether the schema is structural is checked by [`crd::validate`].
    pub fn parse(source: &Value) -> Result<Self, Vec<FieldError>> {
        Ok(Self {
            root: Node::parse(source, "").map_err(|e| vec![e])?,
            source: source.to_string().into_boxed_str(),
        })
    }

    /// Removes the fields of a custom resource that the schema does not know. `apiVersion`, `kind` and `metadata` stay.
    pub fn prune(&self, object: &mut Value) {
        prune::prune_root(&self.root, object);
    }

    /// Fills in defaults. Idempotent. A `null` in a field that has a default and is not nullable is replaced, too.
    pub fn default(&self, object: &mut Value) {
        prune::default_root(&self.root, object);
    }

    /// The errors of a whole new object (defaulted and pruned), an outer field before its inner ones.
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        self.check(object, None).errors
    }

    /// What is wrong with a whole object (defaulted and pruned). On update `old` is the stored one: what was wrong before and has
    /// not changed is tolerated.
    pub fn check(&self, object: &Value, old: Option<&Value>) -> Checked {
        self.check_among(object, old, Vec::new(), false)
    }

    /// The same among what others found: `more` comes before the rules, and with `blocked` the rules are not asked.
    pub(crate) fn check_among(
        &self,
        object: &Value,
        old: Option<&Value>,
        more: Vec<FieldError>,
        blocked: bool,
    ) -> Checked {
        let mut errors = validate::validate_root(&self.root, object, old);
        embedded::check(&self.root, object, "", &mut errors);
        if old.is_none_or(|old| validate::duplicates(&self.root, old).is_empty()) {
            errors.extend(validate::duplicates(&self.root, object));
        }
        errors.extend(more);
        let mut warnings = Vec::new();
        if self.root.has_rules {
            if blocked || errors.iter().any(|e| e.kind.blocks_rules()) {
                errors.push(FieldError::invalid(
                    "<nil>",
                    &Value::Null,
                    "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
                ));
            } else {
                let found = cel::walk_root(&self.root, true, object, old, "");
                errors.extend(found.errors);
                warnings = found.warnings;
            }
        }
        Checked { errors, warnings }
    }

    /// Paths of the fields that [`Self::prune`] would remove.
    pub fn unknown_fields(&self, object: &Value) -> Vec<String> {
        prune::unknown_root(&self.root, object)
    }

    /// The schema as JSON text, descriptions included.
    pub fn source(&self) -> &str {
        &self.source
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod differential_tests;
#[cfg(test)]
mod object_reference_tests;
#[cfg(test)]
mod reference_tests;
