//! What may come of the question whether a known user may do what was asked.

/// The answer of [`Rbac`](crate::auth::rbac::Rbac).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Go on; the text says what grants it.
    Allow(String),
    /// Refuse; the text, if any, is appended to the refusal.
    Deny(String),
}

impl Decision {
    /// Whether to go on.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}
