//! Server-side apply and the owners of fields, as clients see them. The expectations are those of
//! <https://kubernetes.io/docs/reference/using-api/server-side-apply/>.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{Server, call, call_as, config_map, ok};
use http::StatusCode;
use kube::Client;
use serde_json::{Value, json};

const MEDIA: &str = "application/apply-patch+yaml";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

async fn apply(client: &Client, path: &str, manager: &str, object: &Value) -> (StatusCode, Value) {
    let uri = format!("{path}?fieldManager={manager}");
    call_as(client, "PATCH", &uri, MEDIA, object.to_string()).await
}

async fn applied(client: &Client, path: &str, manager: &str, object: &Value) -> Value {
    let (code, answer) = apply(client, path, manager, object).await;
    assert!(code.is_success(), "{answer}");
    answer
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of a literal")]
fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data})
}

/// Manager, operation and fields of each entry.
fn owners(object: &Value) -> Vec<(String, String, Value)> {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
    entries
        .iter()
        .map(|e| {
            (
                text(e, "manager"),
                text(e, "operation"),
                e["fieldsV1"].clone(),
            )
        })
        .collect()
}

#[tokio::test]
async fn apply_creates_updates_and_takes_back() {
    let server = Server::start().await;
    let client = server.client();
    let path = format!("{MAPS}/m");
    let (code, made) = apply(&client, &path, "one", &map(json!({"a": "1", "b": "2"}))).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    assert_eq!(
        owners(&made),
        [(
            "one".into(),
            "Apply".into(),
            json!({"f:data": {"f:a": {}, "f:b": {}}})
        )]
    );
    // Twice is once: not even a new revision.
    let again = applied(&client, &path, "one", &map(json!({"a": "1", "b": "2"}))).await;
    assert_eq!(again, made);
    // Another manager adds its own and shares what it agrees on.
    let two = applied(&client, &path, "two", &map(json!({"b": "2", "c": "3"}))).await;
    assert_eq!(two["data"], json!({"a": "1", "b": "2", "c": "3"}));
    // A field goes when its last owner drops it.
    let dropped = applied(&client, &path, "one", &map(json!({"a": "1"}))).await;
    assert_eq!(dropped["data"], json!({"a": "1", "b": "2", "c": "3"}));
    let dropped = applied(&client, &path, "two", &map(json!({"c": "3"}))).await;
    assert_eq!(dropped["data"], json!({"a": "1", "c": "3"}));
    let dropped = applied(
        &client,
        &path,
        "one",
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}}),
    )
    .await;
    assert_eq!(dropped["data"], json!({"c": "3"}));
    assert_eq!(owners(&dropped).len(), 1);
}

#[tokio::test]
async fn conflicts_name_managers_and_fields_and_force_wins() {
    let server = Server::start().await;
    let client = server.client();
    let path = format!("{MAPS}/m");
    applied(&client, &path, "one", &map(json!({"a": "1", "b": "1"}))).await;
    let (code, refused) = apply(&client, &path, "two", &map(json!({"a": "2"}))).await;
    assert_eq!(code, StatusCode::CONFLICT);
    assert_eq!(
        refused["message"],
        "Apply failed with 1 conflict: conflict with \"one\": .data.a"
    );
    assert_eq!(refused["reason"], "Conflict");
    assert_eq!(
        refused["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".data.a"}])
    );
    let (_, refused) = apply(&client, &path, "two", &map(json!({"a": "2", "b": "2"}))).await;
    assert_eq!(
        refused["message"],
        "Apply failed with 2 conflicts: conflicts with \"one\":\n- .data.a\n- .data.b"
    );
    let uri = format!("{path}?fieldManager=two&force=true");
    let (code, forced) = call_as(
        &client,
        "PATCH",
        &uri,
        MEDIA,
        map(json!({"a": "2"})).to_string(),
    )
    .await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(forced["data"], json!({"a": "2", "b": "1"}));
    let owners = owners(&forced);
    assert!(owners.contains(&("one".into(), "Apply".into(), json!({"f:data": {"f:b": {}}}))));
    assert!(owners.contains(&("two".into(), "Apply".into(), json!({"f:data": {"f:a": {}}}))));
}

#[tokio::test]
async fn other_writes_own_what_they_change() {
    let server = Server::start().await;
    let client = server.client();
    let made = ok(
        &client,
        "POST",
        &format!("{MAPS}?fieldManager=maker"),
        &config_map("m"),
    )
    .await;
    assert_eq!(
        owners(&made),
        [(
            "maker".into(),
            "Update".into(),
            json!({"f:data": {".": {}, "f:a": {}}})
        )]
    );
    let path = format!("{MAPS}/m");
    // An update takes the field from who had it; applying another value then conflicts with the updater.
    let mut object = made.clone();
    object["data"] = json!({"a": "9", "n": "1"});
    let updated = ok(
        &client,
        "PUT",
        &format!("{path}?fieldManager=updater"),
        &object,
    )
    .await;
    let found = owners(&updated);
    assert!(
        found.contains(&("maker".into(), "Update".into(), json!({"f:data": {}})))
            || found.contains(&(
                "maker".into(),
                "Update".into(),
                json!({"f:data": {".": {}}})
            )),
        "{found:?}"
    );
    assert!(
        found.contains(&(
            "updater".into(),
            "Update".into(),
            json!({"f:data": {"f:a": {}, "f:n": {}}})
        )),
        "{found:?}"
    );
    let (code, refused) = apply(&client, &path, "applier", &map(json!({"a": "1"}))).await;
    assert_eq!(code, StatusCode::CONFLICT);
    assert_eq!(
        refused["message"],
        "Apply failed with 1 conflict: conflict with \"updater\" using v1: .data.a"
    );
    // One empty entry clears them all.
    let mut object = ok(&client, "GET", &path, &Value::Null).await;
    object["metadata"]["managedFields"] = json!([{}]);
    let cleared = ok(&client, "PUT", &path, &object).await;
    assert!(cleared["metadata"].get("managedFields").is_none());
    // What was there before anybody applied has an owner of its own then.
    let first = applied(&client, &path, "applier", &map(json!({"a": "9"}))).await;
    assert!(
        owners(&first)
            .iter()
            .any(|(manager, operation, _)| manager == "before-first-apply" && operation == "Update")
    );
}

#[tokio::test]
async fn custom_resources_and_their_status_have_owners_apart() {
    let server = Server::start().await;
    let client = server.client();
    let path = format!("{WIDGETS}/w");
    let widget = |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec});
    // Defaults are nobody's: they do not conflict with who applies them later.
    let made = applied(&client, &path, "user", &widget(json!({"size": 1}))).await;
    assert_eq!(made["spec"]["color"], "blue");
    assert_eq!(owners(&made)[0].2, json!({"f:spec": {"f:size": {}}}));
    assert_eq!(made["metadata"]["generation"], 1);
    let same = applied(&client, &path, "user", &widget(json!({"size": 1}))).await;
    assert_eq!(
        same["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
    let status = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"},
        "spec": {"size": 7}, "status": {"phase": "Ready"}});
    let with_status = applied(&client, &format!("{path}/status"), "controller", &status).await;
    assert_eq!(with_status["spec"]["size"], 1);
    assert_eq!(with_status["status"]["phase"], "Ready");
    let entries = with_status["metadata"]["managedFields"].as_array().unwrap();
    let own = entries
        .iter()
        .find(|e| e["manager"] == "controller")
        .unwrap();
    assert_eq!(own["subresource"], "status");
    assert_eq!(own["fieldsV1"], json!({"f:status": {"f:phase": {}}}));
    // A status of nothing cannot be applied: status does not make objects.
    let (code, _) = apply(
        &client,
        &format!("{WIDGETS}/none/status"),
        "controller",
        &status,
    )
    .await;
    assert!(code == StatusCode::NOT_FOUND || code == StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn what_an_apply_must_not_say() {
    let server = Server::start().await;
    let client = server.client();
    let path = format!("{MAPS}/m");
    let (code, answer) = call_as(&client, "PATCH", &path, MEDIA, map(json!({})).to_string()).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        answer["message"],
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
    );
    let mut managed = map(json!({}));
    managed["metadata"]["managedFields"] = json!([]);
    let (code, answer) = apply(&client, &path, "one", &managed).await;
    assert_eq!(
        (code, answer["message"].as_str().unwrap()),
        (
            StatusCode::BAD_REQUEST,
            "metadata.managedFields must be nil"
        )
    );
    let (code, _) = apply(&client, &format!("{MAPS}/other"), "one", &map(json!({}))).await;
    assert_eq!(code, StatusCode::BAD_REQUEST);
    let (code, answer) = call_as(
        &client,
        "PATCH",
        &format!("{path}?force=true"),
        "application/merge-patch+json",
        "{}".into(),
    )
    .await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        answer["message"],
        "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch"
    );
    // A dry run leaves nothing.
    let uri = format!("{path}?fieldManager=one&dryRun=All");
    let (code, _) = call_as(
        &client,
        "PATCH",
        &uri,
        MEDIA,
        map(json!({"a": "1"})).to_string(),
    )
    .await;
    assert_eq!(code, StatusCode::CREATED);
    let (code, _) = call(&client, "GET", &path, &Value::Null).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    // A configuration that names an old revision does not win over a newer one.
    applied(&client, &path, "one", &map(json!({"a": "1"}))).await;
    let mut stale = map(json!({"a": "2"}));
    stale["metadata"]["resourceVersion"] = json!("2");
    let (code, _) = apply(&client, &path, "one", &stale).await;
    assert_eq!(code, StatusCode::CONFLICT);
}

#[tokio::test]
async fn many_updaters_share_an_entry() {
    let server = Server::start().await;
    let client = server.client();
    ok(&client, "POST", MAPS, &config_map("m")).await;
    let path = format!("{MAPS}/m");
    for number in 0..15 {
        let uri = format!("{path}?fieldManager=updater-{number}");
        let body = json!({"data": {format!("key-{number}"): "1"}}).to_string();
        let (code, _) = call_as(&client, "PATCH", &uri, "application/merge-patch+json", body).await;
        assert_eq!(code, StatusCode::OK);
    }
    let object = ok(&client, "GET", &path, &Value::Null).await;
    let owners = owners(&object);
    assert_eq!(owners.len(), 10, "{owners:?}");
    assert!(
        owners
            .iter()
            .any(|(manager, ..)| manager == "ancient-changes")
    );
}
