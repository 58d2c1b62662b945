//! Watches by kube's own client, in process.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::sync::Arc;

use berth_apiserver::{AdmitAll, ApiServer};
use common::{SOON, Server, config_map, ok, widget};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DynamicObject, Patch, PatchParams, WatchEvent, WatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn next<S: futures::Stream<Item = kube::Result<WatchEvent<ConfigMap>>> + Unpin>(
    stream: &mut S,
) -> (String, String) {
    let event = tokio::time::timeout(SOON, stream.next())
        .await
        .expect("an event comes")
        .expect("the watch goes on")
        .unwrap();
    let name = |object: ConfigMap| object.metadata.name.unwrap_or_default();
    match event {
        WatchEvent::Added(object) => ("added".into(), name(object)),
        WatchEvent::Modified(object) => ("modified".into(), name(object)),
        WatchEvent::Deleted(object) => ("deleted".into(), name(object)),
        WatchEvent::Bookmark(_) => ("bookmark".into(), String::new()),
        WatchEvent::Error(status) => (format!("error {}", status.code), status.reason),
    }
}

fn pair(kind: &str, name: &str) -> (String, String) {
    (kind.into(), name.into())
}

#[tokio::test]
async fn a_selection_changes_under_the_watch() {
    let server = Server::start().await;
    let client = server.client();
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let start = maps
        .list(&Default::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    let mut stream = maps
        .watch(&WatchParams::default().labels("on=yes"), &start)
        .await
        .unwrap()
        .boxed();
    ok(&client, "POST", MAPS, &config_map("a")).await;
    for (labels, expected) in [
        (json!({"on": "yes"}), pair("added", "a")),
        (json!({"on": "yes", "x": "y"}), pair("modified", "a")),
        (json!({"on": "no"}), pair("deleted", "a")),
    ] {
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        maps.patch("a", &PatchParams::default(), &patch)
            .await
            .unwrap();
        assert_eq!(next(&mut stream).await, expected);
    }
    maps.delete("a", &Default::default()).await.unwrap();
    let mut all = maps
        .watch(&WatchParams::default(), &start)
        .await
        .unwrap()
        .boxed();
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(next(&mut all).await.0);
    }
    assert_eq!(
        seen,
        ["added", "modified", "modified", "modified", "deleted"],
        "replayed from the start"
    );
}

#[tokio::test]
async fn without_a_start_the_present_comes_first() {
    let server = Server::start().await;
    let client = server.client();
    ok(&client, "POST", MAPS, &config_map("a")).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let mut stream = maps
        .watch(&WatchParams::default(), "0")
        .await
        .unwrap()
        .boxed();
    assert_eq!(next(&mut stream).await, pair("added", "a"));
    assert_eq!(next(&mut stream).await, pair("added", "kube-root-ca.crt"));
    ok(&client, "POST", MAPS, &config_map("b")).await;
    assert_eq!(next(&mut stream).await, pair("added", "b"));
}

#[tokio::test]
async fn a_start_before_a_restart_has_expired() {
    let dir = tempfile::tempdir().unwrap();
    let start = {
        let api = ApiServer::open(common::options(&dir, Arc::new(AdmitAll)))
            .await
            .unwrap();
        let client = api.client("test");
        ok(&client, "POST", MAPS, &config_map("a")).await;
        let list = ok(&client, "GET", MAPS, &Value::Null).await;
        ok(&client, "POST", MAPS, &config_map("b")).await;
        list["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let api = ApiServer::open(common::options(&dir, Arc::new(AdmitAll)))
        .await
        .unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(api.client("test"));
    // a, b and kube-root-ca.crt
    assert_eq!(maps.list(&Default::default()).await.unwrap().items.len(), 3);
    let refused = maps
        .watch(&WatchParams::default(), &start)
        .await
        .err()
        .expect("expired");
    assert!(
        matches!(&refused, kube::Error::Api(status) if status.code == 410 && status.reason == "Expired"),
        "{refused}"
    );
}

#[tokio::test]
async fn kube_runtime_follows_by_list_and_by_stream() {
    let server = Server::start().await;
    let client = server.client();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Widget"));
    let widgets: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &resource);
    let uri = "/apis/example.com/v1/namespaces/default/widgets";
    ok(&client, "POST", uri, &widget("a", 1)).await;
    for config in [
        watcher::Config::default(),
        watcher::Config::default().streaming_lists(),
    ] {
        let stream = watcher(widgets.clone(), config).applied_objects();
        let mut stream = std::pin::pin!(stream);
        let first = tokio::time::timeout(SOON, stream.try_next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(first.metadata.name.as_deref(), Some("a"));
        let size = ok(&client, "GET", &format!("{uri}/a"), &Value::Null).await["spec"]["size"]
            .as_i64()
            .unwrap()
            + 1;
        let patch = Patch::Merge(json!({"spec": {"size": size}}));
        widgets
            .patch("a", &PatchParams::default(), &patch)
            .await
            .unwrap();
        let second = tokio::time::timeout(SOON, stream.try_next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(second.data["spec"]["size"], size);
    }
}

#[tokio::test]
async fn a_watch_ends_in_time_with_a_bookmark() {
    let server = Server::start().await;
    let client = server.client();
    let made = ok(&client, "POST", MAPS, &config_map("a")).await;
    let uri =
        "/api/v1/namespaces/default/secrets?watch=true&timeoutSeconds=1&allowWatchBookmarks=true";
    let request = http::Request::get(uri)
        .body(kube::client::Body::empty())
        .unwrap();
    let response = client.send(request).await.unwrap();
    let read = http_body_util::BodyExt::collect(response.into_body());
    let bytes = tokio::time::timeout(SOON, read)
        .await
        .expect("it ends")
        .unwrap()
        .to_bytes();
    let event: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["kind"]),
        (&json!("BOOKMARK"), &json!("Secret"))
    );
    assert_eq!(
        event["object"]["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
}
