//! What the front door refuses and records, over real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use berth_apiserver::Tuning;
use berth_apiserver::auth::pki::{Pem, make_client};
use berth_apiserver::front::Limits;
use berth_apiserver::front::audit::{AuditLog, ROTATE};
use common::{SOON, Server, config_map, ok};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

const URI: &str = "/api/v1/namespaces/default/configmaps";

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A serving server and who may enter.
struct House {
    server: Server,
    address: SocketAddr,
    admin: Pem,
    guest: Pem,
    _stop: tokio_util::sync::DropGuard,
}

impl House {
    async fn open(tuning: Tuning) -> Self {
        let server = Server::tuned(tuning).await;
        let stop = CancellationToken::new();
        let (address, _) = server.serve(Router::new(), &stop).await;
        let read =
            |name: &str| std::fs::read_to_string(server.dir.path().join("pki").join(name)).unwrap();
        let key = rcgen::KeyPair::from_pem(&read("ca.key")).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca.crt"), key).unwrap();
        Self {
            admin: make_client(&issuer, "boss", &["system:masters"], DAY).unwrap(),
            guest: make_client(&issuer, "guest", &["visitors"], DAY).unwrap(),
            server,
            address,
            _stop: stop.drop_guard(),
        }
    }

    async fn limited(limits: Limits) -> Self {
        Self::open(Tuning {
            limits,
            ..Tuning::default()
        })
        .await
    }

    async fn connect(&self, user: &Pem) -> TlsStream<TcpStream> {
        let ca = std::fs::read(self.server.dir.path().join("pki/ca.crt")).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(&ca).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(user.certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(user.key.as_bytes()).unwrap(),
            )
            .unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap()
    }

    /// One request on a connection of its own; the head and the body of the answer.
    async fn ask(&self, user: &Pem, request: &str) -> (String, String) {
        let mut stream = self.connect(user).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        answer(&mut stream).await
    }

    async fn get(&self, user: &Pem, uri: &str) -> (String, String) {
        self.ask(
            user,
            &format!("GET {uri} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"),
        )
        .await
    }
}

async fn head(stream: &mut TlsStream<TcpStream>) -> String {
    let mut text = Vec::new();
    let reading = async {
        while !text.ends_with(b"\r\n\r\n") {
            text.push(stream.read_u8().await.unwrap());
        }
    };
    tokio::time::timeout(SOON, reading)
        .await
        .expect("an answer");
    String::from_utf8(text).unwrap().to_ascii_lowercase()
}

/// The answer of a connection that ends with it.
async fn answer(stream: &mut TlsStream<TcpStream>) -> (String, String) {
    let head = head(stream).await;
    let mut body = Vec::new();
    let reading = stream.read_to_end(&mut body);
    let _ = tokio::time::timeout(SOON, reading).await.expect("an end");
    (head, String::from_utf8(body).unwrap())
}

fn status(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}"))
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let house = House::limited(Limits::default()).await;
    let mut stream = house.connect(&house.admin).await;
    let length = (3 << 20) + 1;
    let request = format!(
        "POST {URI} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let _ = stream.write_all(&vec![b' '; length]).await;
    let (head, body) = answer(&mut stream).await;
    assert!(head.starts_with("http/1.1 413"), "{head}");
    let status = status(&body);
    assert_eq!(status["reason"], "RequestEntityTooLarge");
    assert_eq!(
        status["message"],
        "Request entity too large: limit is 3145728"
    );
}

#[tokio::test]
async fn headers_over_the_limit_are_refused() {
    let house = House::limited(Limits::default()).await;
    let mut stream = house.connect(&house.admin).await;
    let request = format!(
        "GET {URI} HTTP/1.1\r\nhost: localhost\r\nx-long: {}\r\n\r\n",
        "y".repeat(400_000)
    );
    let _ = stream.write_all(request.as_bytes()).await;
    let head = head(&mut stream).await;
    assert!(head.starts_with("http/1.1 431"), "{head}");
}

#[tokio::test]
async fn a_slow_head_and_a_slow_body_run_out_of_time() {
    let limits = Limits {
        header: Duration::from_millis(300),
        body: Duration::from_millis(300),
        ..Limits::default()
    };
    let house = House::limited(limits).await;
    let start = Instant::now();
    let mut slow = house.connect(&house.admin).await;
    slow.write_all(b"GET /api HTTP/1.1\r\nhost: loc")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(SOON, slow.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the connection is closed");
    assert!(!String::from_utf8_lossy(&rest).contains("200"));

    let mut slow = house.connect(&house.admin).await;
    let request = format!(
        "POST {URI} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    slow.write_all(request.as_bytes()).await.unwrap();
    let (head, body) = answer(&mut slow).await;
    assert!(head.starts_with("http/1.1 504"), "{head}");
    assert_eq!(status(&body)["reason"], "Timeout");
    assert!(start.elapsed() < SOON);
    assert!(house.get(&house.admin, "/api").await.0.contains(" 200 "));
}

#[tokio::test]
async fn one_user_cannot_take_all() {
    let limits = Limits {
        requests: 1,
        long_running: 2,
        ..Limits::default()
    };
    let house = House::limited(limits).await;
    // A request that is under way until its body comes.
    let mut open = house.connect(&house.admin).await;
    let body = config_map("late").to_string();
    let request = format!(
        "POST {URI} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    open.write_all(request.as_bytes()).await.unwrap();
    let deadline = Instant::now() + SOON;
    let (refused, text) = loop {
        let (head, body) = house.get(&house.admin, URI).await;
        if head.contains(" 429 ") {
            break (head, body);
        }
        assert!(Instant::now() < deadline, "{head}");
    };
    assert!(refused.contains("retry-after: 1\r\n"), "{refused}");
    let refusal = status(&text);
    assert_eq!(refusal["reason"], "TooManyRequests");
    assert_eq!(
        refusal["message"],
        "Too many requests, please try again later."
    );
    assert_eq!(refusal["details"]["retryAfterSeconds"], 1);
    // Another user is not concerned, and watches are counted apart.
    let (head, _) = house.get(&house.guest, URI).await;
    assert!(head.contains(" 403 "), "{head}");
    let watch = format!("GET {URI}?watch=true HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let mut watches = Vec::new();
    for _ in 0..2 {
        let mut stream = house.connect(&house.admin).await;
        stream.write_all(watch.as_bytes()).await.unwrap();
        assert!(self::head(&mut stream).await.contains(" 200 "));
        watches.push(stream);
    }
    let (head, _) = house
        .ask(
            &house.admin,
            &watch.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n"),
        )
        .await;
    assert!(head.contains(" 429 "), "{head}");
    // What was under way goes on, and its end makes room.
    open.write_all(body.as_bytes()).await.unwrap();
    assert!(answer(&mut open).await.0.contains(" 201 "));
    assert!(house.get(&house.admin, URI).await.0.contains(" 200 "));
    drop(watches);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_does_not_read_is_let_go() {
    let limits = Limits {
        long_running: 1,
        stalled: Duration::from_millis(500),
        ..Limits::default()
    };
    let house = House::limited(limits).await;
    let mut stream = house.connect(&house.admin).await;
    let watch = format!("GET {URI}?watch=true HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(watch.as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.contains(" 200 "));
    // Far more than the sockets hold; and nobody reads.
    let client = house.server.client();
    let mut object = config_map("big");
    object["data"]["fill"] = json!("x".repeat(900_000));
    ok(&client, "POST", URI, &object).await;
    for n in 0..12 {
        object["data"]["n"] = json!(n.to_string());
        ok(&client, "PUT", &format!("{URI}/big"), &object).await;
    }
    // Its place is free once the server has given it up.
    let deadline = Instant::now() + SOON;
    loop {
        let mut other = house.connect(&house.admin).await;
        other.write_all(watch.as_bytes()).await.unwrap();
        if head(&mut other).await.contains(" 200 ") {
            break;
        }
        assert!(Instant::now() < deadline, "the stalled watch is still held");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn old_tls_is_refused() {
    let house = House::limited(Limits::default()).await;
    // A ClientHello of TLS 1.1.
    let mut hello = vec![3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x13, 1, 0]);
    let mut handshake = vec![1, 0, 0, u8::try_from(hello.len()).unwrap()];
    handshake.extend(hello);
    let mut record = vec![22, 3, 1, 0, u8::try_from(handshake.len()).unwrap()];
    record.extend(handshake);
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(SOON, reading).await.expect("an end");
    // A fatal alert, and no ServerHello.
    assert_eq!(
        (answer.first(), answer.get(5)),
        (Some(&21), Some(&2)),
        "{answer:?}"
    );
}

#[tokio::test]
async fn what_nests_too_deep_is_refused_and_harms_nothing() {
    let house = House::limited(Limits::default()).await;
    let client = house.server.client();
    let deep = "[".repeat(5000) + &"]".repeat(5000);
    let (code, _) = common::call_as(&client, "POST", URI, "application/json", deep).await;
    assert_eq!(code, http::StatusCode::BAD_REQUEST);

    // Twice what the parser takes, by a patch that goes in where it is deep already.
    let nested = |depth: usize| (0..depth).fold(json!({}), |inner, _| json!({ "a": inner }));
    let uri = "/apis/sub.example.com/v1/namespaces/default/things";
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.sub.example.com"},
        "spec": {"group": "sub.example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]},
    });
    ok(
        &client,
        "POST",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        &definition,
    )
    .await;
    let thing = json!({"apiVersion": "sub.example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": nested(100)});
    ok(&client, "POST", uri, &thing).await;
    let path = format!("/spec{}", "/a".repeat(100));
    let patch = json!([{"op": "add", "path": format!("{path}/b"), "value": nested(100)}]);
    let (code, answer) = common::call_as(
        &client,
        "PATCH",
        &format!("{uri}/t"),
        "application/json-patch+json",
        patch.to_string(),
    )
    .await;
    assert_eq!(code, http::StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("nested deeper")
    );
    ok(&client, "GET", &format!("{uri}/t"), &Value::Null).await;
}

fn events(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn the_audit_log_says_who_did_what_and_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let house = House::open(Tuning {
        audit: Some(AuditLog::open(&path, ROTATE).unwrap()),
        ..Tuning::default()
    })
    .await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"p": "hunter2"}}).to_string();
    let request = format!(
        "POST /api/v1/namespaces/default/secrets?token=hunter2 HTTP/1.1\r\nhost: localhost\r\nuser-agent: tester/1\r\nconnection: close\r\n\
         authorization: Bearer hunter2\r\naudit-id: my-own-id\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{secret}",
        secret.len()
    );
    let (head, _) = house.ask(&house.admin, &request).await;
    assert!(
        head.contains(" 201 ") && head.contains("audit-id: my-own-id"),
        "{head}"
    );
    let (head, _) = house.get(&house.guest, "/berth/backup").await;
    assert!(head.contains(" 403 "), "{head}");
    let _ = house.get(&house.guest, "/livez").await;
    let (head, _) = house
        .get(&house.admin, &format!("{URI}?watch=true&timeoutSeconds=1"))
        .await;
    assert!(head.contains(" 200 "), "{head}");

    let deadline = Instant::now() + SOON;
    while events(&path).len() < 4 {
        assert!(Instant::now() < deadline, "{:?}", events(&path));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!std::fs::read_to_string(&path).unwrap().contains("hunter2"));
    let all = events(&path);
    let created = &all[0];
    for (pointer, expected) in [
        ("/kind", json!("Event")),
        ("/apiVersion", json!("audit.k8s.io/v1")),
        ("/level", json!("Metadata")),
        ("/stage", json!("ResponseComplete")),
        ("/auditID", json!("my-own-id")),
        ("/verb", json!("create")),
        ("/user/username", json!("boss")),
        ("/user/groups/0", json!("system:masters")),
        ("/sourceIPs", json!(["127.0.0.1"])),
        ("/userAgent", json!("tester/1")),
        ("/objectRef/resource", json!("secrets")),
        ("/objectRef/namespace", json!("default")),
        ("/responseStatus/code", json!(201)),
        (
            "/annotations/authorization.k8s.io~1decision",
            json!("allow"),
        ),
    ] {
        assert_eq!(
            created.pointer(pointer),
            Some(&expected),
            "{pointer}: {created}"
        );
    }
    assert_eq!(all[1]["user"]["username"], "guest");
    assert_eq!(
        all[1]["annotations"]["authorization.k8s.io/decision"],
        "forbid"
    );
    assert_eq!(
        (&all[2]["stage"], &all[2]["verb"]),
        (&json!("ResponseStarted"), &json!("watch"))
    );
    assert_eq!(all[3]["stage"], "ResponseComplete");
    assert_eq!(all[2]["auditID"], all[3]["auditID"]);
}
