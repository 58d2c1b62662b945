//! The decision whether a known user may do what was asked.

use crate::auth::{MASTERS, RequestInfo, UserInfo};

/// The answer of an [`Authorizer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Refuse; the text, if any, is appended to the refusal.
    Deny(String),
}

/// Decides on requests, not on objects.
pub trait Authorizer: Send + Sync + 'static {
    /// May this user make this request?
    fn authorize(&self, user: &UserInfo, request: &RequestInfo) -> Decision;
}

/// The group `system:masters` may do everything, others nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct MastersOnly;

impl Authorizer for MastersOnly {
    fn authorize(&self, user: &UserInfo, _request: &RequestInfo) -> Decision {
        if user.groups.iter().any(|group| group == MASTERS) {
            Decision::Allow
        } else {
            Decision::Deny(String::new())
        }
    }
}
