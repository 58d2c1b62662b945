//! ResourceQuota: counts, requests, words of refusal, many creates at once, status.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{SOON, Server, call, config_map, ok, widget};
use futures::StreamExt as _;
use http::StatusCode;
use kube::Client;
use serde_json::{Value, json};

const NS: &str = "/api/v1/namespaces/default";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

async fn quota(client: &Client, name: &str, spec: Value) -> Value {
    let object = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": spec});
    ok(client, "POST", &format!("{NS}/resourcequotas"), &object).await
}

async fn used(client: &Client, name: &str, wanted: &Value) {
    let uri = format!("{NS}/resourcequotas/{name}");
    let wait = async {
        loop {
            let quota = ok(client, "GET", &uri, &Value::Null).await;
            if quota["status"]["used"] == *wanted {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(SOON, wait).await.is_err() {
        panic!(
            "{} is not {wanted}",
            ok(client, "GET", &uri, &Value::Null).await
        );
    }
}

fn pod(name: &str, resources: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
}

#[tokio::test]
async fn counts_hold_under_concurrency() {
    let server = Server::start().await;
    let client = server.client();
    ok(&client, "POST", WIDGETS, &widget("before", 1)).await;
    quota(
        &client,
        "few",
        json!({"hard": {"count/widgets.example.com": "5"}}),
    )
    .await;
    let made: Vec<StatusCode> = futures::stream::iter(0..40)
        .map(|n| {
            let client = client.clone();
            async move {
                call(&client, "POST", WIDGETS, &widget(&format!("w{n}"), 1))
                    .await
                    .0
            }
        })
        .buffer_unordered(40)
        .collect()
        .await;
    let count = |code| made.iter().filter(|made| **made == code).count();
    assert_eq!(
        (count(StatusCode::CREATED), count(StatusCode::FORBIDDEN)),
        (4, 36)
    );
    used(&client, "few", &json!({"count/widgets.example.com": "5"})).await;

    let (_, refused) = call(&client, "POST", WIDGETS, &widget("more", 1)).await;
    assert_eq!(
        refused["message"],
        "widgets.example.com \"more\" is forbidden: exceeded quota: few, requested: count/widgets.example.com=1, used: \
         count/widgets.example.com=5, limited: count/widgets.example.com=5"
    );
    assert_eq!(
        (&refused["reason"], &refused["code"]),
        (&json!("Forbidden"), &json!(403))
    );
    ok(
        &client,
        "DELETE",
        &format!("{WIDGETS}/before"),
        &Value::Null,
    )
    .await;
    ok(&client, "POST", WIDGETS, &widget("more", 1)).await;
    used(&client, "few", &json!({"count/widgets.example.com": "5"})).await;
    ok(&client, "DELETE", WIDGETS, &Value::Null).await;
    used(&client, "few", &json!({"count/widgets.example.com": "0"})).await;
}

#[tokio::test]
async fn requests_and_limits_of_pods() {
    let server = Server::start().await;
    let client = server.client();
    let pods = format!("{NS}/pods");
    quota(&client, "compute", json!({"hard": {"requests.cpu": "1", "requests.memory": "1Gi", "limits.memory": "2Gi", "pods": "10"}})).await;
    let (code, refused) = call(&client, "POST", &pods, &pod("a", &json!({}))).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(
        refused["message"],
        "pods \"a\" is forbidden: failed quota: compute: must specify limits.memory for: c; requests.cpu for: c; \
         requests.memory for: c"
    );
    let small = json!({"requests": {"cpu": "600m"}, "limits": {"memory": "512Mi"}});
    let made = ok(&client, "POST", &pods, &pod("a", &small)).await;
    assert_eq!(
        made["spec"]["containers"][0]["resources"]["requests"]["memory"],
        "512Mi"
    );
    used(&client, "compute", &json!({"requests.cpu": "600m", "requests.memory": "512Mi", "limits.memory": "512Mi", "pods": "1"})).await;
    let (_, refused) = call(&client, "POST", &pods, &pod("b", &small)).await;
    assert_eq!(
        refused["message"],
        "pods \"b\" is forbidden: exceeded quota: compute, requested: requests.cpu=600m, used: requests.cpu=600m, \
         limited: requests.cpu=1"
    );
    // A pod that has ended takes nothing.
    let mut ended = made.clone();
    ended["status"]["phase"] = json!("Succeeded");
    ok(&client, "PUT", &format!("{pods}/a/status"), &ended).await;
    ok(&client, "POST", &pods, &pod("b", &small)).await;
}

#[tokio::test]
async fn scopes_claims_and_rules() {
    let server = Server::start().await;
    let client = server.client();
    quota(
        &client,
        "best-effort",
        json!({"hard": {"pods": "0"}, "scopes": ["BestEffort"]}),
    )
    .await;
    let pods = format!("{NS}/pods");
    let (code, _) = call(&client, "POST", &pods, &pod("a", &json!({}))).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    ok(
        &client,
        "POST",
        &pods,
        &pod("a", &json!({"requests": {"cpu": "1"}})),
    )
    .await;

    quota(
        &client,
        "storage",
        json!({"hard": {"requests.storage": "3Gi", "persistentvolumeclaims": 2}}),
    )
    .await;
    let claims = format!("{NS}/persistentvolumeclaims");
    let claim = |name: &str, size: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}})
    };
    ok(&client, "POST", &claims, &claim("a", "2Gi")).await;
    let (_, refused) = call(&client, "POST", &claims, &claim("b", "2Gi")).await;
    assert_eq!(
        refused["message"],
        "persistentvolumeclaims \"b\" is forbidden: exceeded quota: storage, requested: requests.storage=2Gi, used: \
         requests.storage=2Gi, limited: requests.storage=3Gi"
    );

    let bad = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "bad"},
        "spec": {"hard": {"foo": "1", "pods": "-1"}}});
    let (code, refused) = call(&client, "POST", &format!("{NS}/resourcequotas"), &bad).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        refused["message"],
        "ResourceQuota \"bad\" is invalid: [spec.hard[foo]: Invalid value: \"foo\": must be a standard resource for quota, \
         spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0]"
    );
}

#[tokio::test]
async fn the_quota_of_one_namespace_is_none_of_another() {
    let server = Server::start().await;
    let client = server.client();
    quota(&client, "none", json!({"hard": {"configmaps": "0"}})).await;
    let (code, _) = call(
        &client,
        "POST",
        &format!("{NS}/configmaps"),
        &config_map("a"),
    )
    .await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    ok(
        &client,
        "POST",
        "/api/v1/namespaces/kube-public/configmaps",
        &config_map("a"),
    )
    .await;
    ok(
        &client,
        "DELETE",
        &format!("{NS}/resourcequotas/none"),
        &Value::Null,
    )
    .await;
    ok(
        &client,
        "POST",
        &format!("{NS}/configmaps"),
        &config_map("a"),
    )
    .await;
}
