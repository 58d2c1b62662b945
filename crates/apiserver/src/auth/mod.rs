//! Who is asking, and may they.
//!
//! Authentication is by client certificate: the subject's CN is the user, each O a group, as upstream. A request
//! without one is `system:anonymous` and sees only health and version. Authorization is behind [`Authorizer`].

pub mod authorizer;
pub mod kubeconfig;
pub mod pki;
pub mod request;

pub use authorizer::{Authorizer, Decision, MastersOnly};
pub use request::RequestInfo;

/// The group that may do everything.
pub const MASTERS: &str = "system:masters";

/// The user that a request runs as. Found in the request's extensions, also by routes served by others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserInfo {
    /// User name, for example `berth-admin`.
    pub name: String,
    /// Group names.
    pub groups: Vec<String>,
}

impl UserInfo {
    /// A user of the group that may do everything.
    pub fn master(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            groups: vec![MASTERS.to_owned(), "system:authenticated".to_owned()],
        }
    }

    /// Someone who did not say who they are.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
        }
    }

    /// Whether no credentials were given.
    pub fn is_anonymous(&self) -> bool {
        self.name == "system:anonymous"
    }
}
