//! The API group `subresources.kubevirt.io`: the ways into a virtual machine that are no objects.
//!
//! Standalone the API server serves [`router`] itself; on a cluster berth serves it as an aggregated API. Who may do what
//! is decided before a request gets here.
//!
//! - [`Guests`]: how a guest's devices are reached: on this machine, or by way of the node agent of another;
//! - `stream`: serial console, display and ports of a guest over a websocket;
//! - `lifecycle`: start, stop, restart, pause, unpause, reset, softreboot, freeze, unfreeze;
//! - `guest`: what is read of a guest: its agent's words, its screen;
//! - [`remote`]: a guest's devices over a connection to a node agent.

mod guest;
mod lifecycle;
pub mod remote;
mod stream;

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, put};
use berth_api::refusal;
use futures::future::BoxFuture;
use http::StatusCode;
use kube::Client;
use serde::{Deserialize, Serialize};
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

/// The devices of a guest that can be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// The serial console.
    Console,
    /// The display, by the protocol of VNC.
    Vnc,
}

impl Port {
    /// The word in paths.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Vnc => "vnc",
        }
    }
}

/// What a guest's launcher can be told or asked; what the answer is made of. The words are those of the way to a node agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Stop the guest between two instructions. Nothing.
    Pause,
    /// Let it go on. Nothing.
    Unpause,
    /// Press the reset button. Nothing.
    Reset,
    /// Ask the guest to restart. Nothing.
    SoftReboot,
    /// Ask the guest to power off, and cut the power after so many seconds. Nothing.
    Shutdown {
        /// Seconds; 0 cuts it at once.
        grace_seconds: u64,
    },
    /// Have the guest write everything out and hold back what comes after, for so many seconds; 0 for ever. Nothing.
    Freeze {
        /// Seconds.
        thaw_after_seconds: u64,
    },
    /// Let the guest write again. Nothing.
    Unfreeze,
    /// What the guest's agent knows. A `VirtualMachineInstanceGuestAgentInfo`.
    GuestInfo,
    /// Who is logged in. A list of `GuestOSUser`.
    Users,
    /// The mounted file systems. A list of `FileSystem`.
    FileSystems,
    /// What the screen shows. A PNG as base64.
    Screenshot,
}

/// Reaches guests.
pub trait Guests: Send + Sync + 'static {
    /// Has an order carried out; gives the answer. An error is a sentence for the user.
    fn order<'a>(
        &'a self,
        of: Launcher<'a>,
        order: &'a Order,
    ) -> BoxFuture<'a, Result<Value, String>>;

    /// A connection to a device. An error is a sentence for the user.
    fn open<'a>(
        &'a self,
        of: Launcher<'a>,
        port: Port,
    ) -> BoxFuture<'a, Result<Box<dyn Device>, String>>;
}

/// What the routes need.
#[derive(Clone)]
struct Shared {
    client: Client,
    guests: Arc<dyn Guests>,
}

/// What is served: resource, kind, subresource, verbs.
const SERVED: [(&str, &str, &str, &[&str]); 18] = [
    (MACHINES, "VirtualMachine", "expand-spec", &["get"]),
    (MACHINES, "VirtualMachine", "portforward", &["get"]),
    (MACHINES, "VirtualMachine", "restart", &["update"]),
    (MACHINES, "VirtualMachine", "start", &["update"]),
    (MACHINES, "VirtualMachine", "stop", &["update"]),
    (INSTANCES, "VirtualMachineInstance", "console", &["get"]),
    (
        INSTANCES,
        "VirtualMachineInstanceFileSystemList",
        "filesystemlist",
        &["get"],
    ),
    (INSTANCES, "VirtualMachineInstance", "freeze", &["update"]),
    (
        INSTANCES,
        "VirtualMachineInstanceGuestAgentInfo",
        "guestosinfo",
        &["get"],
    ),
    (INSTANCES, "VirtualMachineInstance", "pause", &["update"]),
    (INSTANCES, "VirtualMachineInstance", "portforward", &["get"]),
    (INSTANCES, "VirtualMachineInstance", "reset", &["update"]),
    (
        INSTANCES,
        "VirtualMachineInstance",
        "softreboot",
        &["update"],
    ),
    (INSTANCES, "VirtualMachineInstance", "unfreeze", &["update"]),
    (INSTANCES, "VirtualMachineInstance", "unpause", &["update"]),
    (
        INSTANCES,
        "VirtualMachineInstanceGuestOSUserList",
        "userlist",
        &["get"],
    ),
    (INSTANCES, "VirtualMachineInstance", "vnc", &["get"]),
    (
        INSTANCES,
        "VirtualMachineInstance",
        "vnc/screenshot",
        &["get"],
    ),
];
const MACHINES: &str = "virtualmachines";
const INSTANCES: &str = "virtualmachineinstances";

/// The routes of the group with its discovery documents.
pub fn router(client: Client, guests: Arc<dyn Guests>) -> Router {
    let mut router = Router::new().route(&format!("/apis/{GROUP}"), get(async || Json(group())));
    for version in VERSIONS {
        let prefix = format!("/apis/{GROUP}/{version}");
        let path = |resource: &str, sub: &str| {
            format!("{prefix}/namespaces/{{namespace}}/{resource}/{{name}}/{sub}")
        };
        router = router
            .route(
                &prefix,
                get(move || async move { Json(resources(version)) }),
            )
            .route(&path(INSTANCES, "console"), any(stream::console))
            .route(&path(INSTANCES, "vnc"), any(stream::vnc))
            .route(&path(INSTANCES, "pause"), put(lifecycle::pause))
            .route(&path(INSTANCES, "unpause"), put(lifecycle::unpause))
            .route(&path(INSTANCES, "reset"), put(lifecycle::reset))
            .route(&path(INSTANCES, "softreboot"), put(lifecycle::soft_reboot))
            .route(&path(INSTANCES, "freeze"), put(lifecycle::freeze))
            .route(&path(INSTANCES, "unfreeze"), put(lifecycle::unfreeze))
            .route(&path(INSTANCES, "guestosinfo"), get(guest::info))
            .route(&path(INSTANCES, "userlist"), get(guest::users))
            .route(&path(INSTANCES, "filesystemlist"), get(guest::file_systems))
            .route(&path(INSTANCES, "vnc/screenshot"), get(guest::screenshot))
            .route(&path(MACHINES, "expand-spec"), get(lifecycle::expand))
            .route(&path(MACHINES, "start"), put(lifecycle::start))
            .route(&path(MACHINES, "stop"), put(lifecycle::stop))
            .route(&path(MACHINES, "restart"), put(lifecycle::restart));
        // The instance of a machine has its name. Ports are TCP's unless it is said.
        for resource in [MACHINES, INSTANCES] {
            for port in ["portforward/{port}", "portforward/{port}/{protocol}"] {
                router = router.route(&path(resource, port), any(stream::forward));
            }
        }
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
        let resources = [MACHINES, INSTANCES].map(|resource| {
            let of_it = SERVED.iter().filter(|(of, ..)| *of == resource);
            let subresources: Vec<Value> = of_it
                .map(|(_, kind, sub, verbs)| {
                    let kind = json!({"group": GROUP, "version": version, "kind": kind});
                    json!({"subresource": sub, "responseKind": kind, "verbs": verbs})
                })
                .collect();
            json!({
                "resource": resource,
                // Of these only what is below is served here.
                "responseKind": {"group": "", "version": "", "kind": ""},
                "scope": "Namespaced", "singularResource": "", "verbs": [],
                "subresources": subresources,
            })
        });
        json!({"version": version, "freshness": "Current", "resources": resources})
    });
    json!({"metadata": {"name": GROUP}, "versions": versions})
}

fn resources(version: &str) -> Value {
    let all = SERVED.map(|(resource, kind, sub, verbs)| {
        json!({
            "name": format!("{resource}/{sub}"), "singularName": "", "namespaced": true,
            "kind": kind, "verbs": verbs,
        })
    });
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": format!("{GROUP}/{version}"),
        "resources": all,
    })
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{resource}.kubevirt.io \"{name}\" not found")]
    NotFound {
        resource: &'static str,
        name: String,
    },
    #[error("Operation cannot be fulfilled on {}.kubevirt.io \"{name}\": {why}", resource.trim_end_matches('s'))]
    Conflict {
        resource: &'static str,
        name: String,
        why: String,
    },
    #[error("cannot read what the guest's launcher answers")]
    Answer,
    #[error("{0}")]
    Body(String),
    #[error("No serial consoles are present.")]
    NoConsole,
    #[error("No graphics devices are present.")]
    NoDisplay,
    #[error("{0}")]
    NoUpgrade(String),
    #[error("{resource} {name}: {source}")]
    Api {
        resource: &'static str,
        name: String,
        source: Box<kube::Error>,
    },
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (code, reason, of) = match &self {
            Self::NotFound { resource, name } => {
                (StatusCode::NOT_FOUND, "NotFound", Some((resource, name)))
            }
            Self::Conflict { resource, name, .. } => {
                (StatusCode::CONFLICT, "Conflict", Some((resource, name)))
            }
            Self::NoConsole | Self::NoDisplay | Self::NoUpgrade(_) | Self::Body(_) => {
                (StatusCode::BAD_REQUEST, "BadRequest", None)
            }
            Self::Answer => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError", None),
            Self::Api { resource, name, .. } => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                Some((resource, name)),
            ),
        };
        let mut body = refusal::status(code.as_u16(), reason, &self.to_string());
        if let Some((resource, name)) = of {
            body["details"] = json!({"name": name, "group": "kubevirt.io", "kind": resource});
        }
        (code, Json(body)).into_response()
    }
}
