//! What the API server's hot path costs, without sockets: create, get, update and list of so many config maps and
//! custom resources, on a real file. `cargo run --release -p berth-apiserver --example hot_path [OBJECTS]`.

#![allow(
    clippy::unwrap_used,
    reason = "a measurement that fails has nothing to say"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_apiserver::{Access, AdmitAll, ApiServer, Options};
use http::Request;
use http_body_util::BodyExt as _;
use kube::Client;
use serde_json::{Value, json};

/// Clients that write at the same time.
const CLIENTS: usize = 16;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let count: usize = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(10_000);
    let root = std::env::current_dir().unwrap().join("target");
    let dir = root.join(format!("hot-path.{}", std::process::id()));
    let server = open(&dir).await;
    let client = server.client("bench");

    println!("{count} objects, {CLIENTS} clients");
    one_by_one(&client).await;
    for (what, uri, make) in [
        (
            "config maps",
            "/api/v1/namespaces/default/configmaps",
            config_map as fn(usize) -> Value,
        ),
        (
            "widgets",
            "/apis/example.com/v1/namespaces/default/widgets",
            widget,
        ),
    ] {
        let took = many(&client, count, move |n| {
            ("POST", uri.to_owned(), make(n).to_string())
        })
        .await;
        rate(what, "create", count, took);
        let took = many(&client, count, move |n| {
            ("GET", format!("{uri}/n{n:06}"), String::new())
        })
        .await;
        rate(what, "get", count, took);
        let took = many(&client, count, move |n| {
            let mut object = make(n);
            object["metadata"]["labels"] = json!({"a": "b"});
            ("PATCH", format!("{uri}/n{n:06}"), object.to_string())
        })
        .await;
        rate(what, "patch", count, took);
        for query in ["", "?limit=500", "?labelSelector=a%3Db"] {
            let start = Instant::now();
            let mut bytes = 0;
            for _ in 0..5 {
                bytes = send(&client, "GET", &format!("{uri}{query}"), String::new()).await;
            }
            println!(
                "{what:12} list{query:22} {:>9.1} ms, {bytes} bytes",
                start.elapsed().as_secs_f64() * 200.0
            );
        }
    }
    println!("resident: {} MiB", resident() >> 10);
    drop((client, server));
    let start = Instant::now();
    let again = open(&dir).await;
    println!(
        "open again: {:.1} ms; resident {} MiB",
        start.elapsed().as_secs_f64() * 1e3,
        resident() >> 10
    );
    drop(again);
    let file = std::fs::metadata(dir.join("apiserver/store.redb"))
        .unwrap()
        .len();
    println!("file: {} MiB", file >> 20);
    std::fs::remove_dir_all(&dir).unwrap();
}

async fn open(dir: &std::path::Path) -> ApiServer {
    let options = Options {
        data_dir: dir.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        server_names: Vec::new(),
        admission: Arc::new(AdmitAll),
        crds: vec![serde_json::from_value(definition()).unwrap()],
        access: Access::default(),
    };
    ApiServer::open(options).await.unwrap()
}

fn definition() -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "size": {"type": "integer"},
            "color": {"type": "string", "default": "blue"},
            "disks": {"type": "array", "items": {"type": "object", "properties": {
                "name": {"type": "string"}, "bus": {"type": "string", "default": "virtio"}}}},
        }},
    }}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}]},
    })
}

fn config_map(n: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("n{n:06}")},
        "data": {"a": "x".repeat(700), "b": n.to_string()}})
}

fn widget(n: usize) -> Value {
    let disks: Vec<Value> = (0..10)
        .map(|d| json!({"name": format!("disk-number-{d}-of-{n}")}))
        .collect();
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": format!("n{n:06}")},
        "spec": {"size": n, "disks": disks}})
}

async fn one_by_one(client: &Client) {
    let count = 300;
    let start = Instant::now();
    for n in 0..count {
        let mut object = config_map(n);
        object["metadata"]["name"] = json!(format!("single-{n}"));
        let uri = "/api/v1/namespaces/kube-system/configmaps";
        send(client, "POST", uri, object.to_string()).await;
    }
    rate("one client", "create", count, start.elapsed());
}

async fn many<F>(client: &Client, count: usize, request: F) -> Duration
where
    F: Fn(usize) -> (&'static str, String, String) + Copy + Send + 'static,
{
    let start = Instant::now();
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|first| {
            let client = client.clone();
            tokio::spawn(async move {
                for n in (first..count).step_by(CLIENTS) {
                    let (method, uri, body) = request(n);
                    send(&client, method, &uri, body).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    start.elapsed()
}

async fn send(client: &Client, method: &str, uri: &str, body: String) -> usize {
    let media = if method == "PATCH" {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("content-type", media)
        .body(kube::client::Body::from(body.into_bytes()))
        .unwrap();
    let response = client.send(request).await.unwrap();
    let code = response.status();
    let mut bytes = 0;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        bytes += frame.unwrap().into_data().map_or(0, |data| data.len());
    }
    assert!(code.is_success(), "{method} {uri}: {code}");
    bytes
}

fn rate(what: &str, verb: &str, count: usize, took: Duration) {
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let rate = count as f64 / took.as_secs_f64();
    println!(
        "{what:12} {verb:8} {rate:>9.0} /s  ({:.2} s)",
        took.as_secs_f64()
    );
}

/// Resident memory in KiB.
fn resident() -> usize {
    std::fs::read_to_string("/proc/self/status")
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}
