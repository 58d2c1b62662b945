//! Who is asking, and may they.
//!
//! - Authentication is by client certificate ([`pki`]: the subject's CN is the user, each O a group) or by the token of a
//!   service account ([`tokens`]). A request without either is `system:anonymous` and sees only health and version.
//! - A user may act as another one ([`impersonation`]) where that is allowed.
//! - Authorization is by roles and bindings ([`rbac`]).

pub mod authorizer;
pub mod impersonation;
pub mod kubeconfig;
pub mod pki;
pub mod rbac;
pub mod request;
pub mod serving;
mod subject;
pub mod tokens;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde_json::{Value, json};

pub use authorizer::Decision;
pub use request::RequestInfo;

/// The group that may do everything.
pub const MASTERS: &str = "system:masters";
/// The group of all users who said who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of those who did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The user who did not say who it is.
pub const ANONYMOUS: &str = "system:anonymous";
/// In a user's extra: which certificate or token it came with.
pub const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";

/// What an embedder may say about access.
#[derive(Debug, Clone)]
pub struct Access {
    /// Roles besides the default ones, kept up to date at start as those are.
    pub roles: Vec<ClusterRole>,
    /// Bindings besides the default ones.
    pub bindings: Vec<ClusterRoleBinding>,
    /// How long the server's and the admin's certificates are valid; they are renewed when a sixth of it is left.
    pub certificate_lifetime: Duration,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            roles: Vec::new(),
            bindings: Vec::new(),
            certificate_lifetime: pki::LIFETIME,
        }
    }
}

/// The user that a request runs as. Found in the request's extensions, also by routes served by others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserInfo {
    /// User name, for example `berth-admin`.
    pub name: String,
    /// Group names.
    pub groups: Vec<String>,
    /// Tells users of the same name apart over time; empty where nothing does.
    pub uid: String,
    /// What else is known, for example the pod that a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A known user of some groups.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().copied().chain([AUTHENTICATED]);
        Self {
            name: name.to_owned(),
            groups: groups.map(str::to_owned).collect(),
            ..Self::default()
        }
    }

    /// A user of the group that may do everything.
    pub fn master(name: &str) -> Self {
        Self::new(name, &[MASTERS])
    }

    /// A service account.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        Self::new(
            &format!("system:serviceaccount:{namespace}:{name}"),
            &[
                "system:serviceaccounts",
                &format!("system:serviceaccounts:{namespace}"),
            ],
        )
    }

    /// Someone who did not say who they are.
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// Whether no credentials were given.
    pub fn is_anonymous(&self) -> bool {
        self.name == ANONYMOUS
    }

    /// As reviews show it.
    pub(crate) fn show(&self) -> Value {
        let mut shown = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            shown["uid"] = json!(self.uid);
        }
        if !self.extra.is_empty() {
            shown["extra"] = json!(self.extra);
        }
        shown
    }
}

/// Namespace and name of the service account that a user name speaks of.
pub(crate) fn split_service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user
        .strip_prefix("system:serviceaccount:")?
        .split_once(':')?;
    let fine = |text: &str| !text.is_empty() && !text.contains(':');
    (fine(namespace) && fine(name)).then_some((namespace, name))
}
