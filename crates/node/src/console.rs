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
use crate::untrusted::Socket;

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
        let console =
            format!("{prefix}/namespaces/{{namespace}}/virtualmachineinstances/{{name}}/console");
        router = router
            .route(
                &prefix,
                get(move || async move { Json(resources(version)) }),
            )
            .route(&console, any(console_of));
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
        let found = found.map_err(|source| Refused::Api {
            name: name.to_owned(),
            source: Box::new(source),
        })?;
        let vmi = found.ok_or_else(|| Refused::NotFound(name.to_owned()))?;
        if vmi.spec.domain.devices.autoattach_serial_console == Some(false) {
            return Err(Refused::NoConsole);
        }
        let conflict = |why: String| Refused::Conflict {
            name: name.to_owned(),
            why,
        };
        let status = vmi.status.unwrap_or_default();
        if status.phase != Some(VmiPhase::Running) {
            return Err(conflict("VMI is not running".to_owned()));
        }
        let mut pods = status
            .active_pods
            .keys()
            .filter_map(|uid| self.sandboxes.locate(uid));
        let pod = pods
            .next()
            .ok_or_else(|| conflict("its launcher pod is not on this node".to_owned()))?;
        let silent =
            |error: std::io::Error| conflict(format!("its console does not answer: {error}"));
        let socket = Socket::open(&pod.run_dir.join(SOCKET), pod.uid).map_err(silent)?;
        UnixStream::connect(socket.path()).await.map_err(silent)
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
                    if to_client
                        .send(Message::Binary(Bytes::copy_from_slice(&buffer[..n])))
                        .await
                        .is_err()
                    {
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use tokio::net::{TcpListener, UnixListener};
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    use tokio_tungstenite::tungstenite::{Error, Message as Frame};

    use super::*;
    use crate::PodLocation;

    struct OnePod(PathBuf);

    impl PodSandboxes for OnePod {
        fn locate(&self, pod_uid: &str) -> Option<PodLocation> {
            (pod_uid == "p1").then(|| PodLocation {
                netns: PathBuf::new(),
                run_dir: self.0.clone(),
                disks: std::collections::BTreeMap::new(),
                claims: std::collections::BTreeMap::new(),
                uid: rustix::process::geteuid().as_raw(),
                gid: 107,
                pid: 1,
            })
        }
    }

    /// An API that knows the machines `up` and `down`.
    fn api() -> Client {
        async fn machine(Path(name): Path<String>) -> Response {
            let phase = match name.as_str() {
                "up" => "Running",
                "down" => "Scheduling",
                _ => return Refused::NotFound(name).into_response(),
            };
            Json(json!({
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
                "metadata": {"name": name, "namespace": "lab", "uid": "u1"},
                "spec": {"domain": {"devices": {}}},
                "status": {"phase": phase, "activePods": {"p1": "n1"}},
            }))
            .into_response()
        }
        let path = "/apis/kubevirt.io/v1/namespaces/lab/virtualmachineinstances/{name}";
        Client::new(Router::new().route(path, get(machine)), "default")
    }

    /// Serves the routes; returns where.
    async fn served(dir: &std::path::Path) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = router(api(), Arc::new(OnePod(dir.to_owned())));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        address
    }

    fn request(
        at: std::net::SocketAddr,
        version: &str,
        name: &str,
        protocol: bool,
    ) -> http::Request<()> {
        let path = format!(
            "/apis/{GROUP}/{version}/namespaces/lab/virtualmachineinstances/{name}/console"
        );
        let mut request = format!("ws://{at}{path}").into_client_request().unwrap();
        if protocol {
            request
                .headers_mut()
                .insert("sec-websocket-protocol", PROTOCOL.parse().unwrap());
        }
        request
    }

    async fn connect(
        request: http::Request<()>,
    ) -> Result<
        (
            tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>,
            http::Response<Option<Vec<u8>>>,
        ),
        Error,
    > {
        let stream = tokio::net::TcpStream::connect(request.uri().authority().unwrap().as_str())
            .await
            .unwrap();
        tokio_tungstenite::client_async(request, stream).await
    }

    async fn refusal(request: http::Request<()>) -> (u16, Value) {
        match connect(request).await {
            Err(Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                (
                    response.status().as_u16(),
                    serde_json::from_slice(&body).unwrap(),
                )
            }
            other => panic!("not refused: {:?}", other.map(|(_, response)| response)),
        }
    }

    #[tokio::test]
    async fn bytes_go_both_ways_for_several_clients_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let guest = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        // The guest repeats what is typed, in each of its consoles.
        tokio::spawn(async move {
            while let Ok((stream, _)) = guest.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    let _ = to.write_all(b"login: ").await;
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        let at = served(dir.path()).await;
        let (mut first, answer) = connect(request(at, "v1", "up", true)).await.unwrap();
        assert_eq!(answer.headers()["sec-websocket-protocol"], PROTOCOL);
        let (mut second, answer) = connect(request(at, "v1alpha3", "up", false)).await.unwrap();
        assert!(answer.headers().get("sec-websocket-protocol").is_none());
        for (console, typed) in [(&mut first, "root\n"), (&mut second, "guest\n")] {
            console
                .send(Frame::Binary(typed.as_bytes().to_vec().into()))
                .await
                .unwrap();
            let mut seen = Vec::new();
            let wanted = format!("login: {typed}").into_bytes();
            while seen.len() < wanted.len() {
                let next = tokio::time::timeout(Duration::from_secs(10), console.next())
                    .await
                    .unwrap();
                seen.extend_from_slice(&next.unwrap().unwrap().into_data());
            }
            assert_eq!(seen, wanted);
        }
    }

    #[tokio::test]
    async fn the_websocket_ends_with_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        let guest = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let at = served(dir.path()).await;
        let (mut console, _) = connect(request(at, "v1", "up", true)).await.unwrap();
        drop(guest.accept().await.unwrap());
        let last = tokio::time::timeout(Duration::from_secs(10), console.next())
            .await
            .unwrap();
        assert!(matches!(last, Some(Ok(Frame::Close(_)))), "{last:?}");
    }

    #[tokio::test]
    async fn what_cannot_be_opened_is_refused_with_a_status() {
        let dir = tempfile::tempdir().unwrap();
        let at = served(dir.path()).await;
        let (code, status) = refusal(request(at, "v1", "none", true)).await;
        assert_eq!((code, status["reason"].as_str()), (404, Some("NotFound")));
        let (code, status) = refusal(request(at, "v1", "down", true)).await;
        assert_eq!((code, status["reason"].as_str()), (409, Some("Conflict")));
        assert!(
            status["message"]
                .as_str()
                .unwrap()
                .ends_with("VMI is not running"),
            "{status}"
        );
        // It runs, but nothing listens.
        let (code, status) = refusal(request(at, "v1", "up", true)).await;
        assert_eq!((code, status["kind"].as_str()), (409, Some("Status")));
    }
}
