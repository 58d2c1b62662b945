//! Lists in pages and of the past, what may be asked of lists and watches, field selectors.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{Server, call, config_map, ok, widget};
use http::StatusCode;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn pages_are_one_snapshot() {
    let server = Server::start().await;
    let client = server.client();
    for name in ["a", "b", "c", "d", "e"] {
        ok(&client, "POST", MAPS, &config_map(name)).await;
    }
    let before = ok(&client, "GET", MAPS, &Value::Null).await;
    let first = ok(&client, "GET", &format!("{MAPS}?limit=2"), &Value::Null).await;
    assert_eq!(names(&first), ["a", "b"]);
    // The fourth is `kube-root-ca.crt`, which every namespace has.
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    // All kinds of writes behind the back of the reader.
    ok(&client, "DELETE", &format!("{MAPS}/c"), &Value::Null).await;
    ok(&client, "POST", MAPS, &config_map("bb")).await;
    ok(&client, "POST", MAPS, &config_map("ba")).await;
    let mut changed = config_map("d");
    changed["data"] = json!({"a": "changed"});
    ok(&client, "PUT", &format!("{MAPS}/d"), &changed).await;
    ok(&client, "DELETE", &format!("{MAPS}/e"), &Value::Null).await;
    ok(&client, "POST", MAPS, &config_map("e")).await;

    let mut all = first["items"].as_array().unwrap().clone();
    let mut page = first.clone();
    while let Some(token) = page["metadata"]["continue"].as_str() {
        page = ok(
            &client,
            "GET",
            &format!("{MAPS}?limit=1&continue={token}"),
            &Value::Null,
        )
        .await;
        assert_eq!(
            page["metadata"]["resourceVersion"],
            first["metadata"]["resourceVersion"]
        );
        all.extend(page["items"].as_array().unwrap().clone());
    }
    assert!(page["metadata"].get("remainingItemCount").is_none());
    assert_eq!(
        json!(all),
        before["items"],
        "contents and revisions of the first page's time"
    );

    let revision = before["metadata"]["resourceVersion"].as_str().unwrap();
    let exact = ok(
        &client,
        "GET",
        &format!("{MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact"),
        &Value::Null,
    )
    .await;
    assert_eq!(exact["items"], before["items"]);
    let newer = ok(
        &client,
        "GET",
        &format!("{MAPS}?resourceVersion={revision}&resourceVersionMatch=NotOlderThan"),
        &Value::Null,
    )
    .await;
    let now = ["a", "b", "ba", "bb", "d", "e", "kube-root-ca.crt"];
    assert_eq!(names(&newer), now);
    let selected = ok(
        &client,
        "GET",
        &format!("{MAPS}?limit=2&labelSelector=!x"),
        &Value::Null,
    )
    .await;
    assert!(
        selected["metadata"].get("remainingItemCount").is_none(),
        "not known with a selector"
    );
}

#[tokio::test]
async fn a_token_that_is_too_old_offers_another() {
    let server = Server::start().await;
    let client = server.client();
    for name in ["a", "b", "c"] {
        ok(&client, "POST", MAPS, &config_map(name)).await;
    }
    let first = ok(&client, "GET", &format!("{MAPS}?limit=1"), &Value::Null).await;
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    drop(client);
    let Server { api, dir } = server;
    drop(api);
    // Another life of the server has no memory of what was before it.
    let api = berth_apiserver::ApiServer::open(common::options(
        &dir,
        std::sync::Arc::new(berth_apiserver::AdmitAll),
    ))
    .await
    .unwrap();
    let client = api.client("test");
    let uri = format!("{MAPS}?limit=1&continue={token}");
    ok(&client, "GET", &uri, &Value::Null).await;
    ok(&client, "DELETE", &format!("{MAPS}/c"), &Value::Null).await;
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap();
    let (code, old) = call(
        &client,
        "GET",
        &format!("{MAPS}?resourceVersion=1&resourceVersionMatch=Exact"),
        &Value::Null,
    )
    .await;
    assert_eq!(
        (code, &old["reason"]),
        (StatusCode::GONE, &json!("Expired")),
        "{revision}"
    );
    let old_token = berth_token(1, "a");
    let (code, expired) = call(
        &client,
        "GET",
        &format!("{MAPS}?limit=1&continue={old_token}"),
        &Value::Null,
    )
    .await;
    assert_eq!(
        (code, &expired["reason"]),
        (StatusCode::GONE, &json!("Expired"))
    );
    assert!(
        expired["message"]
            .as_str()
            .unwrap()
            .starts_with("The provided continue parameter is too old")
    );
    let rest = expired["metadata"]["continue"].as_str().unwrap();
    let rest = ok(
        &client,
        "GET",
        &format!("{MAPS}?limit=5&continue={rest}"),
        &Value::Null,
    )
    .await;
    assert_eq!(names(&rest), ["b", "kube-root-ca.crt"]);
}

/// A token as the server makes them, of a revision of our choice.
fn berth_token(revision: u64, name: &str) -> String {
    use base64::Engine as _;
    let token = json!({"rv": revision, "ns": "default", "name": name}).to_string();
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token)
}

#[tokio::test]
async fn combinations_that_mean_nothing() {
    let server = Server::start().await;
    let client = server.client();
    let invalid = |what: &str| format!("ListOptions.meta.k8s.io \"\" is invalid: {what}");
    for (query, code, message) in [
        (
            "resourceVersionMatch=Exact",
            422,
            invalid("resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"),
        ),
        (
            "resourceVersion=0&resourceVersionMatch=Exact",
            422,
            invalid("resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""),
        ),
        (
            "resourceVersion=1&resourceVersionMatch=Foo",
            422,
            invalid("resourceVersionMatch: Unsupported value: \"Foo\": supported values: \"Exact\", \"NotOlderThan\", \"\""),
        ),
        ("sendInitialEvents=true", 422, invalid("sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list")),
        (
            "watch=1&sendInitialEvents=true",
            422,
            invalid("resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
        ),
        (
            "watch=1&resourceVersionMatch=NotOlderThan",
            422,
            invalid("resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"),
        ),
        (
            "resourceVersion=abc",
            400,
            "invalid resource version: resourceVersion: Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax".to_owned(),
        ),
        ("limit=abc", 400, "strconv.ParseInt: parsing \"abc\": invalid syntax".to_owned()),
        (
            "fieldSelector=spec.x%3D1",
            400,
            "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"".to_owned(),
        ),
        ("fieldSelector=xx", 400, "invalid selector: 'xx'; can't understand 'xx'".to_owned()),
    ] {
        let (status, answer) = call(&client, "GET", &format!("{MAPS}?{query}"), &Value::Null).await;
        assert_eq!((status.as_u16(), answer["message"].as_str().unwrap()), (code, message.as_str()), "{query}");
    }
    let (code, future) = call(
        &client,
        "GET",
        &format!("{MAPS}?resourceVersion=999999"),
        &Value::Null,
    )
    .await;
    assert_eq!((code.as_u16(), &future["reason"]), (504, &json!("Timeout")));
    assert_eq!(
        future["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
    ok(&client, "GET", &format!("{MAPS}?limit=-1"), &Value::Null).await;
}

#[tokio::test]
async fn custom_resources_offer_fields() {
    let server = Server::start().await;
    let client = server.client();
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.example.com";
    let mut crd = ok(&client, "GET", crds, &Value::Null).await;
    crd["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec.color"}]);
    ok(&client, "PUT", crds, &crd).await;
    let widgets = "/apis/example.com/v1/namespaces/default/widgets";
    ok(&client, "POST", widgets, &widget("blue", 1)).await;
    let mut red = widget("red", 1);
    red["spec"]["color"] = json!("red");
    ok(&client, "POST", widgets, &red).await;
    let list = ok(
        &client,
        "GET",
        &format!("{widgets}?fieldSelector=spec.color%3Dred"),
        &Value::Null,
    )
    .await;
    assert_eq!(names(&list), ["red"]);
    let (_, refused) = call(
        &client,
        "GET",
        &format!("{widgets}?fieldSelector=spec.size%3D1"),
        &Value::Null,
    )
    .await;
    assert_eq!(refused["message"], "field label not supported: spec.size");
}
