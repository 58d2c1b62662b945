//! A backup of a running server, and a server made of it.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::path::{Path, PathBuf};

use berth_apiserver::backup::{self, BackupError};
use berth_apiserver::{AdmitAll, ApiServer};
use common::{Server, call, config_map, ok, options, widget};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;

const URI: &str = "/api/v1/namespaces/default/configmaps";

async fn save(server: &Server, to: &Path) -> PathBuf {
    let request = Request::get(backup::PATH)
        .body(kube::client::Body::empty())
        .unwrap();
    let response = server.client().send(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], backup::MEDIA);
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let path = to.join("backup");
    std::fs::write(&path, bytes).unwrap();
    path
}

async fn all(client: &kube::Client, uri: &str) -> Vec<Value> {
    let list = ok(client, "GET", uri, &Value::Null).await;
    let items = list["items"].as_array().unwrap().iter();
    // Each namespace has one of its own.
    let own = |item: &&Value| item["metadata"]["name"] != "kube-root-ca.crt";
    items.filter(own).cloned().collect()
}

fn revision(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str().unwrap();
    text.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_is_one_moment() {
    let server = Server::start().await;
    let client = server.client();
    let widgets = "/apis/example.com/v1/namespaces/default/widgets";
    ok(&client, "POST", widgets, &widget("w", 3)).await;
    // One writer: each object is made after the one before it, so a moment has no holes.
    let writing = tokio::spawn({
        let client = client.clone();
        async move {
            for n in 0..200 {
                ok(&client, "POST", URI, &config_map(&format!("n{n:03}"))).await;
            }
        }
    });
    while all(&client, URI).await.len() < 20 {
        tokio::task::yield_now().await;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = save(&server, dir.path()).await;
    writing.await.unwrap();
    let last = ok(&client, "GET", URI, &Value::Null).await;
    let summary = backup::verify(&file).unwrap();
    assert!(summary.revision <= revision(&last));

    let target = tempfile::tempdir().unwrap();
    assert_eq!(
        backup::restore(&file, target.path(), false).unwrap(),
        summary
    );
    let restored = ApiServer::open(options(&target, std::sync::Arc::new(AdmitAll)))
        .await
        .unwrap();
    let client = restored.client("test");
    let found = all(&client, URI).await;
    assert!(found.len() >= 20 && found.len() <= 200);
    for (n, item) in found.iter().enumerate() {
        assert_eq!(item["metadata"]["name"], format!("n{n:03}"), "no holes");
        assert!(revision(item) <= summary.revision);
    }
    assert_eq!(all(&client, widgets).await[0]["spec"]["color"], "blue");

    // Whoever has seen what came after the backup is told that it is gone.
    let old = format!("{URI}?watch=true&resourceVersion={}", revision(&last));
    let (code, _) = call(&client, "GET", &old, &Value::Null).await;
    assert_eq!(code, StatusCode::GONE);
    let new = ok(&client, "POST", URI, &config_map("new")).await;
    assert!(revision(&new) > revision(&last) + 1_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_is_careful() {
    let server = Server::start().await;
    ok(&server.client(), "POST", URI, &config_map("a")).await;
    let dir = tempfile::tempdir().unwrap();
    let file = save(&server, dir.path()).await;
    let data = server.dir.path();
    assert!(matches!(
        backup::restore(&file, data, false),
        Err(BackupError::Exists(_))
    ));
    let (path, target) = (file.clone(), data.to_owned());
    let in_use = tokio::task::spawn_blocking(move || backup::restore(&path, &target, true));
    assert!(matches!(in_use.await.unwrap(), Err(BackupError::InUse(_))));
    ok(&server.client(), "POST", URI, &config_map("b")).await;
    let Server { api, dir: data } = server;
    drop(api);

    // Damaged: the store that is there stays as it is.
    let good = std::fs::read(&file).unwrap();
    for (bytes, error) in [
        (good[..good.len() - 1].to_vec(), "not complete"),
        ([&good[..100], b"?", &good[101..]].concat(), "damaged"),
        (b"something else".to_vec(), "not a backup"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let said = backup::restore(&file, data.path(), true).unwrap_err();
        assert!(said.to_string().contains(error), "{said}");
        assert!(said.to_string().contains("backup"), "{said}");
    }
    let open = async || {
        ApiServer::open(options(&data, std::sync::Arc::new(AdmitAll)))
            .await
            .unwrap()
    };
    let api = open().await;
    assert_eq!(all(&api.client("test"), URI).await.len(), 2);
    drop(api);

    std::fs::write(&file, &good).unwrap();
    backup::restore(&file, data.path(), true).unwrap();
    let left: Vec<_> = std::fs::read_dir(data.path().join("apiserver"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["store.redb"]);
    let api = open().await;
    assert_eq!(all(&api.client("test"), URI).await.len(), 1);
}
