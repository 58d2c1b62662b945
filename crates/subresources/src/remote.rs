//! A guest's devices over a connection to the agent of its node.
//!
//! `PUT /v1/pods/{uid}/order` with an [`Order`] is answered when it is done, with `200` and the answer, JSON both.
//!
//! One request a connection: `GET /v1/pods/{uid}/console` or `/vnc` with `Upgrade: berth-bytes`. After `101` the connection carries
//! the device's bytes and nothing else. A refusal is `409` with a sentence. Who may ask is the business of the connection.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Collected, Full, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use crate::{Device, Guests, Launcher, Order, Port};

const PROTOCOL: &str = "berth-bytes";
/// Longest sentence of a refusal that is read.
const MAX_REFUSAL: usize = 4096;
/// Longest answer that is read: the picture of a large screen.
const MAX_ANSWER: usize = 16 << 20;

/// What a node agent serves; `guests` are those of its machine.
pub fn router(guests: Arc<dyn Guests>) -> Router {
    Router::new()
        .route("/v1/pods/{uid}/console", get(console))
        .route("/v1/pods/{uid}/vnc", get(vnc))
        .route("/v1/pods/{uid}/order", put(order))
        .with_state(guests)
}

async fn console(guests: State<Arc<dyn Guests>>, uid: Path<String>, request: Request) -> Response {
    device(guests, uid, request, Port::Console).await
}

async fn vnc(guests: State<Arc<dyn Guests>>, uid: Path<String>, request: Request) -> Response {
    device(guests, uid, request, Port::Vnc).await
}

async fn device(
    State(guests): State<Arc<dyn Guests>>,
    Path(uid): Path<String>,
    mut request: Request,
    port: Port,
) -> Response {
    let asked = request.headers().get(header::UPGRADE);
    if asked.is_none_or(|protocol| protocol != PROTOCOL) {
        let why = format!("Upgrade: {PROTOCOL} is the only way to ask");
        return (StatusCode::UPGRADE_REQUIRED, why).into_response();
    }
    let here = Launcher {
        pod: &uid,
        node: "",
    };
    let mut device = match guests.open(here, port).await {
        Ok(device) => device,
        Err(why) => return (StatusCode::CONFLICT, why).into_response(),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let mut connection = TokioIo::new(upgraded);
                let copied = tokio::io::copy_bidirectional(&mut connection, &mut device).await;
                debug!(pod = uid, ?copied, "a connection to a guest's device ended");
            }
            Err(error) => debug!(pod = uid, %error, "no upgrade"),
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    response
}

async fn order(
    State(guests): State<Arc<dyn Guests>>,
    Path(uid): Path<String>,
    Json(order): Json<Order>,
) -> Response {
    let here = Launcher {
        pod: &uid,
        node: "",
    };
    match guests.order(here, &order).await {
        Ok(answer) => Json(answer).into_response(),
        Err(why) => (StatusCode::CONFLICT, why).into_response(),
    }
}

/// Gives an order on a new connection to a node agent.
///
/// # Errors
/// A sentence: what the node agent says, or why it cannot be understood.
pub async fn order_over<C>(connection: C, pod: &str, order: &Order) -> Result<Value, String>
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let body = serde_json::to_vec(order).map_err(|e| e.to_string())?;
    let request = http::Request::put(format!("/v1/pods/{pod}/order"))
        .header(header::HOST, "node")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(body))
        .map_err(|e| e.to_string())?;
    let response = send(connection, request).await?;
    if response.status() != StatusCode::OK {
        return Err(refusal(response).await);
    }
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await;
    let body = body
        .map_err(|e| format!("its node's answer: {e}"))?
        .to_bytes();
    serde_json::from_slice(&body).map_err(|e| format!("its node's answer: {e}"))
}

/// One request on a new connection.
async fn send<C>(
    connection: C,
    request: http::Request<Full<Bytes>>,
) -> Result<http::Response<Incoming>, String>
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(connection))
        .await
        .map_err(|e| e.to_string())?;
    tokio::spawn(driver.with_upgrades());
    sender
        .send_request(request)
        .await
        .map_err(|e| e.to_string())
}

/// What a node agent says when it does not do what it was asked.
async fn refusal(response: http::Response<Incoming>) -> String {
    let code = response.status();
    let body = Limited::new(response.into_body(), MAX_REFUSAL);
    let body = body.collect().await.map(Collected::to_bytes);
    let why = String::from_utf8_lossy(&body.unwrap_or_default()).into_owned();
    match code {
        StatusCode::CONFLICT => why,
        code => format!("its node answers {code}: {why}"),
    }
}

/// Asks for a device on a new connection to a node agent.
///
/// # Errors
/// A sentence: what the node agent says, or why it cannot be understood.
pub async fn open_over<C>(connection: C, pod: &str, port: Port) -> Result<Box<dyn Device>, String>
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let request = http::Request::get(format!("/v1/pods/{pod}/{}", port.as_str()))
        .header(header::HOST, "node")
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, PROTOCOL)
        .body(Full::default())
        .map_err(|e| e.to_string())?;
    let response = send(connection, request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(response).await);
    }
    let upgraded: Upgraded = hyper::upgrade::on(response)
        .await
        .map_err(|e| e.to_string())?;
    Ok(Box::new(TokioIo::new(upgraded)))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use futures::future::BoxFuture;
    use hyper_util::rt::TokioExecutor;
    use hyper_util::server::conn::auto;
    use hyper_util::service::TowerToHyperService;
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Repeats what is typed.
    struct Parrot;

    impl Guests for Parrot {
        fn order<'a>(
            &'a self,
            of: Launcher<'a>,
            order: &'a Order,
        ) -> BoxFuture<'a, Result<Value, String>> {
            async move {
                match order {
                    Order::Unpause => Err(format!("pod {} is not paused", of.pod)),
                    // As long as a picture may be.
                    Order::Screenshot => Ok(Value::String("x".repeat(MAX_ANSWER - 2))),
                    other => Ok(serde_json::to_value(other).unwrap()),
                }
            }
            .boxed()
        }

        fn open<'a>(
            &'a self,
            of: Launcher<'a>,
            port: Port,
        ) -> BoxFuture<'a, Result<Box<dyn Device>, String>> {
            async move {
                if of.pod != "p1" || port != Port::Console {
                    return Err(format!("pod {} is not here", of.pod));
                }
                let (near, far) = tokio::io::duplex(64);
                tokio::spawn(async move {
                    let (mut from, mut to) = tokio::io::split(far);
                    let _ = to.write_all(b"login: ").await;
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
                Ok(Box::new(near) as Box<dyn Device>)
            }
            .boxed()
        }
    }

    fn agent() -> tokio::io::DuplexStream {
        let (near, far) = tokio::io::duplex(1024);
        tokio::spawn(async move {
            let service = TowerToHyperService::new(router(Arc::new(Parrot)));
            auto::Builder::new(TokioExecutor::new())
                .serve_connection_with_upgrades(TokioIo::new(far), service)
                .await
        });
        near
    }

    #[tokio::test]
    async fn bytes_go_both_ways() {
        let mut console = open_over(agent(), "p1", Port::Console).await.unwrap();
        console.write_all(b"root\n").await.unwrap();
        let mut seen = [0; 12];
        console.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"login: root\n");
    }

    #[tokio::test]
    async fn a_refusal_is_told() {
        let refused = open_over(agent(), "p2", Port::Console).await.err();
        assert_eq!(refused.as_deref(), Some("pod p2 is not here"));
    }

    #[tokio::test]
    async fn orders_are_carried_out_or_refused() {
        let freeze = Order::Freeze {
            thaw_after_seconds: 7,
        };
        let done = order_over(agent(), "p1", &freeze).await;
        assert_eq!(done, Ok(json!({"freeze": {"thaw_after_seconds": 7}})));
        let refused = order_over(agent(), "p1", &Order::Unpause).await;
        assert_eq!(refused, Err("pod p1 is not paused".to_owned()));
        let picture = order_over(agent(), "p1", &Order::Screenshot).await.unwrap();
        assert_eq!(picture.as_str().map(str::len), Some(MAX_ANSWER - 2));
    }
}
