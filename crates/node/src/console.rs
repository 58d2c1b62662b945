//! The serial console over a websocket: `…/virtualmachineinstances/{name}/console` of
//! `subresources.kubevirt.io`, as `virtctl console` and `berth console` speak it.
//!
//! Bytes go both ways between the websocket and the launcher's console socket, which serves many clients: each
//! sees what the guest printed lately and then all that follows, and the guest reads what any of them types.
//!
//! What can be refused is refused before the upgrade, as a `Status`: 404 when there is no such machine, 400 when
//! it has no serial console, 409 while its guest does not run.
//!
//! Frames: binary or text from the client is input; output is sent as binary. The sub-protocol
//! `plain.kubevirt.io` is agreed on when the client offers it and not asked for otherwise.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use berth_api::kubevirt::v1::{VirtualMachineInstance, VmiPhase};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::StatusCode;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tracing::{debug, info};

use crate::PodSandboxes;

const GROUP: &str = "subresources.kubevirt.io";
const VERSIONS: [&str; 2] = ["v1", "v1alpha3"];
/// The sub-protocol of KubeVirt's stream subresources: the bytes and nothing else.
const PROTOCOL: &str = "plain.kubevirt.io";
/// Name of the console socket in the pod's run directory.
const SOCKET: &str = "console.sock";

/// What the routes need.
#[derive(Clone)]
struct Consoles {
    client: Client,
    sandboxes: Arc<dyn PodSandboxes>,
}

/// The console routes and the discovery documents of their group.
pub fn router(client: Client, sandboxes: Arc<dyn PodSandboxes>) -> Router {
    let mut router = Router::new().route(&format!("/apis/{GROUP}"), get(async || Json(group())));
    for version in VERSIONS {
        let prefix = format!("/apis/{GROUP}/{version}");
        let console = format!("{prefix}/namespaces/{{namespace}}/virtualmachineinstances/{{name}}/console");
        router = router.route(&prefix, get(move || async move { Json(resources(version)) })).route(&console, any(console_of));
    }
    router.with_state(Consoles { client, sandboxes })
}

fn group() -> Value {
    let versions = VERSIONS.map(|v| json!({"groupVersion": format!("{GROUP}/{v}"), "version": v}));
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": GROUP, "versions": versions, "preferredVersion": versions[0]})
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

/// Why a console is refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("virtualmachineinstances.kubevirt.io \"{0}\" not found")]
    NotFound(String),
    #[error("Operation cannot be fulfilled on virtualmachineinstance.kubevirt.io \"{name}\": {why}")]
    Conflict { name: String, why: String },
    #[error("No serial consoles are present.")]
    NoConsole,
    #[error("{0}")]
    NoUpgrade(String),
    #[error("virtual machine instance {name}: {source}")]
    Api { name: String, source: Box<kube::Error> },
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (code, reason, name) = match &self {
            Self::NotFound(name) => (StatusCode::NOT_FOUND, "NotFound", name.as_str()),
            Self::Conflict { name, .. } => (StatusCode::CONFLICT, "Conflict", name.as_str()),
            Self::NoConsole | Self::NoUpgrade(_) => (StatusCode::BAD_REQUEST, "BadRequest", ""),
            Self::Api { name, .. } => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError", name.as_str()),
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
            body["details"] = json!({"name": name, "group": "kubevirt.io", "kind": "virtualmachineinstances"});
        }
        (code, Json(body)).into_response()
    }
}

async fn console_of(
    State(consoles): State<Consoles>,
    Path((namespace, name)): Path<(String, String)>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Response {
    match consoles.open(&namespace, &name).await {
        Err(refused) => refused.into_response(),
        Ok(socket) => match upgrade {
            Err(rejection) => Refused::NoUpgrade(rejection.body_text()).into_response(),
            Ok(upgrade) => {
                let upgrade = upgrade.protocols([PROTOCOL]);
                upgrade.on_upgrade(async move |websocket| {
                    info!(vmi = %format_args!("{namespace}/{name}"), "console opened");
                    relay(websocket, socket).await;
                    info!(vmi = %format_args!("{namespace}/{name}"), "console closed");
                })
            }
        },
    }
}

impl Consoles {
    /// A connection to the console of a machine whose guest runs.
    async fn open(&self, namespace: &str, name: &str) -> Result<UnixStream, Refused> {
        let api: Api<VirtualMachineInstance> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await;
        let found = found.map_err(|source| Refused::Api { name: name.to_owned(), source: Box::new(source) })?;
        let vmi = found.ok_or_else(|| Refused::NotFound(name.to_owned()))?;
        if vmi.spec.domain.devices.autoattach_serial_console == Some(false) {
            return Err(Refused::NoConsole);
        }
        let conflict = |why: String| Refused::Conflict { name: name.to_owned(), why };
        let status = vmi.status.unwrap_or_default();
        if status.phase != Some(VmiPhase::Running) {
            return Err(conflict("VMI is not running".to_owned()));
        }
        let mut pods = status.active_pods.keys().filter_map(|uid| self.sandboxes.locate(uid));
        let pod = pods.next().ok_or_else(|| conflict("its launcher pod is not on this node".to_owned()))?;
        let path = pod.run_dir.join(SOCKET);
        UnixStream::connect(&path).await.map_err(|error| conflict(format!("its console does not answer: {error}")))
    }
}

/// Carries bytes both ways until either side ends.
async fn relay(websocket: WebSocket, console: UnixStream) {
    let (mut to_client, mut from_client) = websocket.split();
    let (mut from_guest, mut to_guest) = console.into_split();
    let output = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match from_guest.read(&mut buffer).await {
                Ok(0) => break,
                Ok(n) => {
                    if to_client.send(Message::Binary(Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                        break;
                    }
                }
                Err(error) => {
                    debug!(%error, "console: read");
                    break;
                }
            }
        }
        // The guest is gone or the client is; telling a client that is gone fails harmlessly.
        let _ = to_client.send(Message::Close(None)).await;
    };
    let input = async {
        while let Some(Ok(message)) = from_client.next().await {
            let written = match &message {
                Message::Binary(bytes) => to_guest.write_all(bytes).await,
                Message::Text(text) => to_guest.write_all(text.as_bytes()).await,
                Message::Close(_) => break,
                // Pongs are answered by the websocket itself.
                Message::Ping(_) | Message::Pong(_) => Ok(()),
            };
            if let Err(error) = written {
                debug!(%error, "console: write");
                break;
            }
        }
    };
    tokio::select! {
        () = output => {}
        () = input => {}
    }
}
