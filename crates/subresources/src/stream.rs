//! What a guest says and hears, over a websocket: `…/virtualmachineinstances/{name}/console`, `vnc`, and
//! `portforward/{port}[/tcp]`, the last of virtual machines, too. As `virtctl` and `berth` speak it.
//!
//! Bytes go both ways between the websocket and a device of the guest, or a port at its address. The console serves many
//! clients: each sees what the guest printed lately and then all that follows, and the guest reads what any of them types.
//!
//! What can be refused is refused before the upgrade, as a `Status`: 404 when there is no such machine, 400 when
//! it has no such device or the port is none, 409 while its guest does not run or nobody answers.
//!
//! Frames: binary or text from the client is input; output is sent as binary. The sub-protocol
//! `plain.kubevirt.io` is agreed on when the client offers it and not asked for otherwise.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use berth_api::kubevirt::v1::{VirtualMachineInstance, VmiPhase};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::{debug, info};

use crate::lifecycle::found;
use crate::{INSTANCES, Launcher, Port, Refused, Shared};

/// The sub-protocol of KubeVirt's stream subresources: the bytes and nothing else.
const PROTOCOL: &str = "plain.kubevirt.io";

/// How long a guest may take to answer at one of its ports.
const PATIENCE: Duration = Duration::from_secs(10);

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

pub(crate) async fn console(
    State(shared): State<Shared>,
    Path((namespace, name)): Path<(String, String)>,
    upgrade: Upgrade,
) -> Response {
    let device = device(&shared, &namespace, &name, Port::Console).await;
    serve("console", &namespace, &name, device, upgrade)
}

pub(crate) async fn vnc(
    State(shared): State<Shared>,
    Path((namespace, name)): Path<(String, String)>,
    upgrade: Upgrade,
) -> Response {
    let device = device(&shared, &namespace, &name, Port::Vnc).await;
    serve("vnc", &namespace, &name, device, upgrade)
}

pub(crate) async fn forward(
    State(shared): State<Shared>,
    Path(path): Path<HashMap<String, String>>,
    upgrade: Upgrade,
) -> Response {
    let part = |name: &str| path.get(name).map(String::as_str).unwrap_or_default();
    let (namespace, name) = (part("namespace"), part("name"));
    let protocol = path.get("protocol").map(String::as_str);
    let port = port(&shared, namespace, name, part("port"), protocol).await;
    serve("portforward", namespace, name, port, upgrade)
}

/// Answers with the refusal, or upgrades and carries the bytes.
fn serve(
    what: &'static str,
    namespace: &str,
    name: &str,
    device: Result<Box<dyn crate::Device>, Refused>,
    upgrade: Upgrade,
) -> Response {
    let device = match device {
        Ok(device) => device,
        Err(refused) => return refused.into_response(),
    };
    let vmi = format!("{namespace}/{name}");
    match upgrade {
        Err(rejection) => Refused::NoUpgrade(rejection.body_text()).into_response(),
        Ok(upgrade) => {
            let upgrade = upgrade.protocols([PROTOCOL]);
            upgrade.on_upgrade(async move |websocket| {
                info!(vmi, what, "opened");
                relay(websocket, device).await;
                info!(vmi, what, "closed");
            })
        }
    }
}

/// A machine whose guest runs.
async fn running(
    shared: &Shared,
    namespace: &str,
    name: &str,
) -> Result<VirtualMachineInstance, Refused> {
    let vmi: VirtualMachineInstance = found(shared, INSTANCES, namespace, name).await?;
    let phase = vmi.status.as_ref().and_then(|status| status.phase);
    if phase != Some(VmiPhase::Running) {
        return Err(conflict(name, "VMI is not running"));
    }
    Ok(vmi)
}

fn conflict(name: &str, why: impl Into<String>) -> Refused {
    Refused::Conflict {
        resource: INSTANCES,
        name: name.to_owned(),
        why: why.into(),
    }
}

/// A connection to a device of a machine whose guest runs.
async fn device(
    shared: &Shared,
    namespace: &str,
    name: &str,
    port: Port,
) -> Result<Box<dyn crate::Device>, Refused> {
    let vmi: VirtualMachineInstance = found(shared, INSTANCES, namespace, name).await?;
    let devices = &vmi.spec.domain.devices;
    match port {
        Port::Console if devices.autoattach_serial_console == Some(false) => {
            return Err(Refused::NoConsole);
        }
        Port::Vnc if devices.autoattach_graphics_device == Some(false) => {
            return Err(Refused::NoDisplay);
        }
        Port::Console | Port::Vnc => {}
    }
    let status = vmi.status.unwrap_or_default();
    if status.phase != Some(VmiPhase::Running) {
        return Err(conflict(name, "VMI is not running"));
    }
    let mut why = "it has no launcher pod".to_owned();
    for (pod, node) in &status.active_pods {
        match shared.guests.open(Launcher { pod, node }, port).await {
            Ok(device) => return Ok(device),
            Err(problem) => why = problem,
        }
    }
    Err(conflict(name, why))
}

/// A connection to a port at the guest's address.
async fn port(
    shared: &Shared,
    namespace: &str,
    name: &str,
    port: &str,
    protocol: Option<&str>,
) -> Result<Box<dyn crate::Device>, Refused> {
    let number = port.parse::<u16>().ok().filter(|number| *number > 0);
    let number = number
        .ok_or_else(|| Refused::Body(format!("port: {port:?} is no number from 1 to 65535")))?;
    if let Some(protocol) = protocol.filter(|protocol| *protocol != "tcp") {
        let why = format!("protocol: {protocol:?} is not supported by berth: tcp is");
        return Err(Refused::Body(why));
    }
    let vmi = running(shared, namespace, name).await?;
    let interfaces = vmi.status.unwrap_or_default().interfaces;
    let address = interfaces
        .first()
        .and_then(|interface| interface.ip_address.as_deref())
        .and_then(|address| address.parse::<IpAddr>().ok())
        .ok_or_else(|| conflict(name, "the guest has no address"))?;
    let connecting = TcpStream::connect((address, number));
    let refused = |why: String| conflict(name, format!("port {number} of the guest: {why}"));
    let stream = tokio::time::timeout(PATIENCE, connecting)
        .await
        .map_err(|_| refused("no answer".to_owned()))?
        .map_err(|error| refused(error.to_string()))?;
    // What is typed goes out at once.
    let _ = stream.set_nodelay(true);
    Ok(Box::new(stream))
}

/// Carries bytes both ways until either side ends.
async fn relay(websocket: WebSocket, device: Box<dyn crate::Device>) {
    let (mut to_client, mut from_client) = websocket.split();
    let (mut from_guest, mut to_guest) = tokio::io::split(device);
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
                    debug!(%error, "a guest is not read");
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
                debug!(%error, "a guest is not written to");
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
    use std::sync::Arc;
    use std::time::Duration;

    use axum::routing::get;
    use axum::{Json, Router};
    use futures::FutureExt as _;
    use futures::future::BoxFuture;
    use kube::Client;
    use serde_json::{Value, json};
    use tokio::net::{TcpListener, UnixListener, UnixStream};
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    use tokio_tungstenite::tungstenite::{Error, Message as Frame};

    use super::*;
    use crate::{GROUP, Guests, router};

    const SOCKET: &str = "console.sock";

    struct OneGuest(PathBuf);

    impl Guests for OneGuest {
        fn order<'a>(
            &'a self,
            _of: Launcher<'a>,
            _order: &'a crate::Order,
        ) -> BoxFuture<'a, Result<Value, String>> {
            async { Err("not asked for here".to_owned()) }.boxed()
        }

        fn open<'a>(
            &'a self,
            of: Launcher<'a>,
            port: Port,
        ) -> BoxFuture<'a, Result<Box<dyn crate::Device>, String>> {
            assert_eq!((of.pod, of.node, port), ("p1", "n1", Port::Console));
            async {
                let socket = UnixStream::connect(self.0.join(SOCKET)).await;
                socket
                    .map(|socket| -> Box<dyn crate::Device> { Box::new(socket) })
                    .map_err(|e| format!("its console does not answer: {e}"))
            }
            .boxed()
        }
    }

    /// An API that knows the machines `up` and `down`.
    fn api() -> Client {
        async fn machine(Path(name): Path<String>) -> Response {
            let phase = match name.as_str() {
                "up" => "Running",
                "down" => "Scheduling",
                _ => {
                    let resource = INSTANCES;
                    return Refused::NotFound { resource, name }.into_response();
                }
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
        let routes = router(api(), Arc::new(OneGuest(dir.to_owned())));
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
