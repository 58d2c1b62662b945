//! Websockets of the group `subresources.kubevirt.io`.

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Collected};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::client::subresource_path;

/// KubeVirt's name for "the bytes as they are".
const PROTOCOL: &str = "plain.kubevirt.io";

/// What became of a request.
pub(crate) enum Answer {
    /// A websocket.
    Connected(Box<Socket>),
    /// What the server said.
    NotFound(String),
}

/// A websocket to the server.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Upgrades a request to a WebSocket. kube's own `connect` knows only the protocols of exec and attach.
///
/// `of`: the resource, the name and the subresource.
pub(crate) async fn connect(
    client: &kube::Client,
    namespace: &str,
    of: (&str, &str, &str),
) -> anyhow::Result<Answer> {
    let key = generate_key();
    let request = http::Request::get(subresource_path(namespace, of))
        .header(http::header::CONNECTION, "Upgrade")
        .header(http::header::UPGRADE, "websocket")
        .header(http::header::SEC_WEBSOCKET_VERSION, "13")
        .header(http::header::SEC_WEBSOCKET_KEY, &key)
        .header(http::header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
        .body(kube::client::Body::empty())
        .context("the name of the virtual machine instance")?;
    let response = client
        .send(request)
        .await
        .context("cannot reach the server")?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        let code = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map(Collected::to_bytes)
            .unwrap_or_default();
        let said = refusal(code, &body);
        if code == http::StatusCode::NOT_FOUND {
            return Ok(Answer::NotFound(said));
        }
        bail!("{said}");
    }
    let accepted = response.headers().get(http::header::SEC_WEBSOCKET_ACCEPT);
    if accepted.is_none_or(|value| value != derive_accept_key(key.as_bytes()).as_str()) {
        bail!("the server's answer to the WebSocket handshake is not one");
    }
    let upgraded = hyper::upgrade::on(response)
        .await
        .context("WebSocket handshake")?;
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    Ok(Answer::Connected(Box::new(socket)))
}

/// The server's own words where it sent a Status, the code otherwise.
fn refusal(code: http::StatusCode, body: &[u8]) -> String {
    serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|status| Some(status.get("message")?.as_str()?.to_owned()))
        .unwrap_or_else(|| format!("the server answered {code}"))
}
