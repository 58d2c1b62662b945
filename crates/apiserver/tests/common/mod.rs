//! A server in a temporary directory.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod kubectl;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_apiserver::{Access, Admission, AdmitAll, ApiServer, Options, Tuning};
use http::{Request, StatusCode};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The longest that a test waits for something that must happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// An API server and what it stands on.
pub(crate) struct Server {
    pub(crate) api: ApiServer,
    pub(crate) dir: TempDir,
}

pub(crate) fn options(dir: &TempDir, admission: Arc<dyn Admission>) -> Options {
    Options {
        data_dir: dir.path().to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        server_names: Vec::new(),
        admission,
        crds: vec![widgets()],
        access: Access::default(),
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(Arc::new(AdmitAll)).await
    }

    pub(crate) async fn with(admission: Arc<dyn Admission>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let api = ApiServer::open(options(&dir, admission)).await.unwrap();
        Self { api, dir }
    }

    pub(crate) async fn tuned(tuning: Tuning) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = options(&dir, Arc::new(AdmitAll));
        let api = ApiServer::open_tuned(options, tuning).await.unwrap();
        Self { api, dir }
    }

    pub(crate) fn client(&self) -> Client {
        self.api.client("test")
    }

    /// Serves HTTPS on a free port; returns its address and a kubeconfig for it.
    pub(crate) async fn serve(
        &self,
        extensions: axum::Router,
        stop: &CancellationToken,
    ) -> (SocketAddr, PathBuf) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let kubeconfig = self.dir.path().join("admin.kubeconfig");
        self.api
            .write_kubeconfig(&kubeconfig, &format!("https://{address}"))
            .unwrap();
        let (api, stop) = (self.api.clone(), stop.clone());
        tokio::spawn(async move { api.serve(listener, extensions, stop).await.unwrap() });
        (address, kubeconfig)
    }
}

/// A custom resource with a status, printer columns and a deprecated version.
pub(crate) fn widgets() -> CustomResourceDefinition {
    let schema = json!({"openAPIV3Schema": {
        "type": "object",
        "properties": {
            "spec": {"type": "object", "required": ["size"], "properties": {
                "size": {"type": "integer", "minimum": 1},
                "color": {"type": "string", "default": "blue"},
            }},
            "status": {"type": "object", "properties": {"phase": {"type": "string"}}},
        },
    }});
    let columns = json!([{"name": "Phase", "type": "string", "jsonPath": ".status.phase"}]);
    serde_json::from_value(json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "shortNames": ["wi"], "categories": ["all"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": schema, "subresources": {"status": {}}, "additionalPrinterColumns": columns},
                {"name": "v1alpha1", "served": true, "storage": false, "deprecated": true, "schema": schema, "subresources": {"status": {}}, "additionalPrinterColumns": columns},
            ],
        },
    }))
    .unwrap()
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes: Vec<String> = std::iter::successors(Some(error), |e| e.source())
        .map(ToString::to_string)
        .collect();
    causes.join(": ")
}

pub(crate) fn widget(name: &str, size: i64) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"size": size}})
}

pub(crate) fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

/// One request; the code and the body.
pub(crate) async fn call(
    client: &Client,
    method: &str,
    uri: &str,
    body: &Value,
) -> (StatusCode, Value) {
    call_as(client, method, uri, "application/json", body.to_string()).await
}

/// One request with a body of any type.
pub(crate) async fn call_as(
    client: &Client,
    method: &str,
    uri: &str,
    media: &str,
    body: String,
) -> (StatusCode, Value) {
    let body = if body == "null" { String::new() } else { body };
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("content-type", media)
        .body(kube::client::Body::from(body.into_bytes()))
        .unwrap();
    let response = client.send(request).await.unwrap();
    let code = response.status();
    let bytes = http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap()
        .to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// A request that must succeed.
pub(crate) async fn ok(client: &Client, method: &str, uri: &str, body: &Value) -> Value {
    let (code, answer) = call(client, method, uri, body).await;
    assert!(code.is_success(), "{method} {uri}: {answer}");
    answer
}
