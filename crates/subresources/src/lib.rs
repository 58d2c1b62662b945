//! The API group `subresources.kubevirt.io`: the ways into a virtual machine that are no objects.
//!
//! Standalone the API server serves [`router`] itself; on a cluster berth serves it as an aggregated API. Who may do what
//! is decided before a request gets here.
//!
//! - [`Guests`]: how a guest's devices are reached: on this machine, or by way of the node agent of another;
//! - `console`: the serial console over a websocket;
//! - [`remote`]: a guest's devices over a connection to a node agent.

mod console;
pub mod remote;

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use futures::future::BoxFuture;
use http::StatusCode;
use kube::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};

/// The API group.
pub const GROUP: &str = "subresources.kubevirt.io";
/// Its versions, which are the same; the preferred one first.
pub const VERSIONS: [&str; 2] = ["v1", "v1alpha3"];

/// A device of a guest: bytes both ways.
pub trait Device: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Device for T {}

/// The launcher pod of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launcher<'a> {
    /// Its UID.
    pub pod: &'a str,
    /// The node that it is on.
    pub node: &'a str,
}

/// Reaches guests.
pub trait Guests: Send + Sync + 'static {
    /// A connection to the serial console. An error is a sentence for the user.
    fn console<'a>(&'a self, of: Launcher<'a>) -> BoxFuture<'a, Result<Box<dyn Device>, String>>;
}

/// What the routes need.
#[derive(Clone)]
struct Shared {
    client: Client,
    guests: Arc<dyn Guests>,
}

/// The routes of the group with its discovery documents.
pub fn router(client: Client, guests: Arc<dyn Guests>) -> Router {
    let mut router = Router::new().route(&format!("/apis/{GROUP}"), get(async || Json(group())));
    for version in VERSIONS {
        let prefix = format!("/apis/{GROUP}/{version}");
        let console =
            format!("{prefix}/namespaces/{{namespace}}/virtualmachineinstances/{{name}}/console");
        router = router
            .route(
                &prefix,
                get(move || async move { Json(resources(version)) }),
            )
            .route(&console, any(console::open));
    }
    router.with_state(Shared { client, guests })
}

/// The `APIGroup` document.
#[must_use]
pub fn group() -> Value {
    let versions = VERSIONS.map(|v| json!({"groupVersion": format!("{GROUP}/{v}"), "version": v}));
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": GROUP, "versions": versions, "preferredVersion": versions[0]})
}

/// The group in an `APIGroupDiscoveryList` of `apidiscovery.k8s.io`.
#[must_use]
pub fn group_discovery() -> Value {
    let versions = VERSIONS.map(|version| {
        let kind = json!({"group": GROUP, "version": version, "kind": "VirtualMachineInstance"});
        json!({"version": version, "freshness": "Current", "resources": [{
            "resource": "virtualmachineinstances",
            // Of these only what is below is served here.
            "responseKind": {"group": "", "version": "", "kind": ""},
            "scope": "Namespaced", "singularResource": "", "verbs": [],
            "subresources": [{"subresource": "console", "responseKind": kind, "verbs": ["get"]}],
        }]})
    });
    json!({"metadata": {"name": GROUP}, "versions": versions})
}

fn resources(version: &str) -> Value {
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": format!("{GROUP}/{version}"),
        "resources": [{
            "name": "virtualmachineinstances/console",
            "singularName": "",
            "namespaced": true,
            "kind": "VirtualMachineInstance",
            "verbs": ["get"],
        }],
    })
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("virtualmachineinstances.kubevirt.io \"{0}\" not found")]
    NotFound(String),
    #[error(
        "Operation cannot be fulfilled on virtualmachineinstance.kubevirt.io \"{name}\": {why}"
    )]
    Conflict { name: String, why: String },
    #[error("No serial consoles are present.")]
    NoConsole,
    #[error("{0}")]
    NoUpgrade(String),
    #[error("virtual machine instance {name}: {source}")]
    Api {
        name: String,
        source: Box<kube::Error>,
    },
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (code, reason, name) = match &self {
            Self::NotFound(name) => (StatusCode::NOT_FOUND, "NotFound", name.as_str()),
            Self::Conflict { name, .. } => (StatusCode::CONFLICT, "Conflict", name.as_str()),
            Self::NoConsole | Self::NoUpgrade(_) => (StatusCode::BAD_REQUEST, "BadRequest", ""),
            Self::Api { name, .. } => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                name.as_str(),
            ),
        };
        let mut body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.to_string(),
            "reason": reason,
            "code": code.as_u16(),
        });
        if !name.is_empty() {
            body["details"] =
                json!({"name": name, "group": "kubevirt.io", "kind": "virtualmachineinstances"});
        }
        (code, Json(body)).into_response()
    }
}
