//! The place where the embedder may change or refuse a write.
//!
//! Called once for each write, after pruning and defaulting and before schema validation, also for dry runs.
//! An [`Admission`] must not have side effects: a refused, conflicting or dry-run write may follow.

use serde_json::Value;

use crate::auth::UserInfo;
use crate::error::Cause;

/// What is being done to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `POST` of a new object.
    Create,
    /// `PUT` or `PATCH` of an existing one, or of one of its subresources.
    Update,
    /// `DELETE`, also as part of a collection.
    Delete,
}

/// One write, as admission sees it.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionRequest<'a> {
    /// What is being done.
    pub operation: Operation,
    /// API group, empty for the core group.
    pub group: &'a str,
    /// The version that the request was made in.
    pub version: &'a str,
    /// The plural resource name.
    pub resource: &'a str,
    /// The kind of the object.
    pub kind: &'a str,
    /// For example `status`.
    pub subresource: Option<&'a str>,
    /// Empty for cluster-scoped objects.
    pub namespace: &'a str,
    /// The object's name, already generated if the request gave only `generateName`.
    pub name: &'a str,
    /// Who asks.
    pub user: &'a UserInfo,
    /// The object as it will be stored; none for deletes.
    pub object: Option<&'a Value>,
    /// The object as it is stored; none for creates.
    pub old_object: Option<&'a Value>,
    /// Nothing will be stored.
    pub dry_run: bool,
}

/// The write may go on.
#[derive(Debug, Default, Clone)]
pub struct Admitted {
    /// The object to store in place of the one that was shown, where admission changed it.
    pub object: Option<Value>,
    /// Shown to the user by `kubectl` as `Warning: …`.
    pub warnings: Vec<String>,
}

/// The write is refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AdmissionDenied {
    /// The object is wrong: the client sees `422 Invalid` with these causes, of which there is at least one.
    #[error("admission denied: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Cause>),
    /// The object may be right, but this must not be done: the client sees `403 Forbidden` with this message.
    #[error("admission denied: {0}")]
    Forbidden(String),
}

/// Decides on writes. Must be quick: it runs on the request's task.
pub trait Admission: Send + Sync + 'static {
    /// Admits, changes or refuses one write.
    fn admit(&self, request: AdmissionRequest<'_>) -> Result<Admitted, AdmissionDenied>;
}

/// Lets everything pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct AdmitAll;

impl Admission for AdmitAll {
    fn admit(&self, _request: AdmissionRequest<'_>) -> Result<Admitted, AdmissionDenied> {
        Ok(Admitted::default())
    }
}
