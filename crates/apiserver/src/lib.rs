//! berth's embedded Kubernetes-style API server.
//!
//! It serves any resource that it has a definition for, built in or from a CustomResourceDefinition, by one set of
//! generic verbs: there is no handler per kind. Clients see the protocol of the real API server: the same
//! paths, status codes, reasons and, where clients read them, the same words.
//!
//! - [`store`]: a durable log of revisions over redb, with a memory twin for tests.
//! - [`front`]: what every request passes first: limits, deadlines, the audit log.
//! - [`backup`]: the store as one file, and back.
//! - `registry`: the REST verbs; the order of a write is decode → prune → default → admit → validate → store.
//! - `watch`: event streams, replayed from a bounded ring; too old a start is `410 Gone`.
//! - `patch`: JSON patch, JSON merge patch, strategic merge patch.
//! - [`auth`]: who is asking (client certificates, tokens of service accounts) and whether that is allowed (RBAC).
//! - `golang`: values as upstream's messages print them.
//! - `gc`: objects whose owners are gone. `quota`: what a namespace may hold.
//! - [`schema`], [`table`], [`discovery`], [`openapi`], [`resources`]: what is served and how it describes itself.
//! - [`server`]: opening, the HTTPS accept loop, the in-process client.
//!
//! The crate knows nothing of virtual machines; what it must not accept is told to it by an [`Admission`].

pub mod admission;
pub mod auth;
pub mod backup;
pub mod discovery;
pub mod error;
pub mod front;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
pub(crate) mod gc;
pub(crate) mod golang;
pub mod openapi;
pub(crate) mod patch;
pub(crate) mod quota;
pub(crate) mod registry;
pub mod resources;
pub mod schema;
pub mod server;
pub mod store;
pub mod table;
pub(crate) mod watch;

pub use admission::{Admission, AdmissionDenied, AdmissionRequest, AdmitAll, Admitted, Operation};
pub use auth::{Access, UserInfo};
pub use error::{ApiError, Cause};
pub use server::{ApiServer, KubeconfigError, OpenError, Options, ServeError, Tuning};
