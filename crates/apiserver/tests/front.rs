//! The front door: TLS, client certificates, public paths, extension routes, shutdown.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::routing::get;
use axum::{Extension, Router};
use berth_apiserver::UserInfo;
use berth_apiserver::auth::pki::{LIFETIME, Pem, issue_client};
use common::{SOON, Server, ok};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

async fn connect(
    server: &Server,
    address: SocketAddr,
    user: Option<&Pem>,
    h2: bool,
) -> TlsStream<TcpStream> {
    let ca = std::fs::read(server.dir.path().join("pki/ca.crt")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&ca).unwrap())
        .unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_root_certificates(roots);
    let mut config = match user {
        Some(pem) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(pem.certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).unwrap(),
            )
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![if h2 {
        b"h2".to_vec()
    } else {
        b"http/1.1".to_vec()
    }];
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap()
}

async fn fetch(
    server: &Server,
    address: SocketAddr,
    user: Option<&Pem>,
    path: &str,
) -> (StatusCode, Value) {
    let stream = connect(server, address, user, true).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("https://localhost{path}"))
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let code = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (
        code,
        serde_json::from_slice(&body)
            .unwrap_or(Value::String(String::from_utf8_lossy(&body).into_owned())),
    )
}

fn client_certificate(server: &Server, user: &str, groups: &[&str]) -> Pem {
    issue_client(&server.dir.path().join("pki"), user, groups, LIFETIME)
        .unwrap()
        .1
}

fn extensions() -> Router {
    let whoami = |Extension(user): Extension<UserInfo>| async move { user.name };
    let upgrade = |request: axum::extract::Request| async move {
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(request).await.unwrap();
            let mut io = TokioIo::new(upgraded);
            let mut word = [0; 4];
            io.read_exact(&mut word).await.unwrap();
            word.reverse();
            io.write_all(&word).await.unwrap();
        });
        (
            StatusCode::SWITCHING_PROTOCOLS,
            [("connection", "upgrade"), ("upgrade", "echo")],
        )
    };
    Router::new()
        .route("/api/v1/namespaces/{ns}/pods/{name}/log", get(whoami))
        .route(
            "/apis/sub.example.com/v1/namespaces/{ns}/things/{name}/console",
            get(upgrade),
        )
}

#[tokio::test]
async fn who_may_enter() {
    let server = Server::start().await;
    let stop = CancellationToken::new();
    let (address, kubeconfig) = server.serve(extensions(), &stop).await;
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(kubeconfig).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    for path in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(
            fetch(&server, address, None, path).await,
            (StatusCode::OK, json!("ok"))
        );
    }
    assert_eq!(
        fetch(&server, address, None, "/version").await.0,
        StatusCode::OK
    );
    let (code, refused) = fetch(&server, address, None, "/api/v1/namespaces").await;
    assert_eq!(
        (code, &refused["message"]),
        (StatusCode::UNAUTHORIZED, &json!("Unauthorized"))
    );
    assert_eq!(
        fetch(&server, address, None, "/api").await.0,
        StatusCode::UNAUTHORIZED
    );

    let admin = client_certificate(&server, "boss", &["system:masters"]);
    assert_eq!(
        fetch(&server, address, Some(&admin), "/api/v1/namespaces")
            .await
            .0,
        StatusCode::OK
    );
    let (code, name) = fetch(
        &server,
        address,
        Some(&admin),
        "/api/v1/namespaces/a/pods/b/log",
    )
    .await;
    assert_eq!((code, name), (StatusCode::OK, json!("boss")));
    let guest = client_certificate(&server, "guest", &["visitors"]);
    let (code, refused) = fetch(&server, address, Some(&guest), "/api/v1/namespaces/a/pods").await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(
        refused["message"],
        "pods is forbidden: User \"guest\" cannot list resource \"pods\" in API group \"\" in the namespace \"a\""
    );
    assert_eq!(
        fetch(
            &server,
            address,
            Some(&guest),
            "/api/v1/namespaces/a/pods/b/log"
        )
        .await
        .0,
        StatusCode::FORBIDDEN
    );
    stop.cancel();
}

#[tokio::test]
async fn a_stranger_is_turned_away() {
    let (server, other) = (Server::start().await, Server::start().await);
    let stop = CancellationToken::new();
    let (address, _) = server.serve(Router::new(), &stop).await;
    let forged = client_certificate(&other, "boss", &["system:masters"]);
    let mut stream = connect(&server, address, Some(&forged), false).await;
    let _ = stream
        .write_all(b"GET /api HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await;
    let mut answer = Vec::new();
    assert!(
        stream.read_to_end(&mut answer).await.is_err(),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    stop.cancel();
}

#[tokio::test]
async fn extensions_can_upgrade() {
    let server = Server::start().await;
    let stop = CancellationToken::new();
    let (address, _) = server.serve(extensions(), &stop).await;
    let admin = client_certificate(&server, "boss", &["system:masters"]);
    let mut stream = connect(&server, address, Some(&admin), false).await;
    let request = "GET /apis/sub.example.com/v1/namespaces/a/things/b/console HTTP/1.1\r\nhost: localhost\r\n\
                   connection: upgrade\r\nupgrade: echo\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(
        answer.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    stream.write_all(b"abcd").await.unwrap();
    let mut word = [0; 4];
    stream.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"dcba");
    stop.cancel();
}

#[tokio::test]
async fn a_certificate_that_ends_ends_for_open_connections() {
    let server = Server::start().await;
    let stop = CancellationToken::new();
    let (address, _) = server.serve(Router::new(), &stop).await;
    let pki = server.dir.path().join("pki");
    let life = std::time::Duration::from_secs(3);
    let (_, brief) = issue_client(&pki, "boss", &["system:masters"], life).unwrap();
    let mut stream = connect(&server, address, Some(&brief), false).await;
    let mut code = async || {
        stream
            .write_all(b"GET /api HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .await
            .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let (_, length) = head.split_once("content-length: ").unwrap();
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        stream.read_exact(&mut vec![0; length]).await.unwrap();
        head["http/1.1 ".len()..][..3].to_owned()
    };
    assert_eq!(code().await, "200");
    let ended = async {
        while code().await != "401" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, ended).await.expect("it ends");
    stop.cancel();
}

#[tokio::test]
async fn shutdown_ends_watches() {
    let server = Server::start().await;
    let stop = CancellationToken::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (api, token) = (server.api.clone(), stop.clone());
    let serving = tokio::spawn(async move { api.serve(listener, Router::new(), token).await });
    let admin = client_certificate(&server, "boss", &["system:masters"]);
    let mut stream = connect(&server, address, Some(&admin), false).await;
    stream
        .write_all(b"GET /api/v1/namespaces?watch=true HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    stop.cancel();
    let mut rest = Vec::new();
    let ended = async {
        let _ = stream.read_to_end(&mut rest).await;
        serving.await.unwrap().unwrap();
    };
    tokio::time::timeout(SOON, ended).await.expect("it ends");
    assert!(
        rest.ends_with(b"0\r\n\r\n"),
        "the stream ends in good order"
    );
    ok(&server.client(), "GET", "/api/v1/namespaces", &Value::Null).await;
}
