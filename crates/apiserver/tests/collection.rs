//! Garbage collection by owner references: cascades, blocking, orphans, owners that are not there.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::sync::Arc;

use berth_apiserver::{AdmitAll, ApiServer};
use common::{SOON, Server, call, config_map, ok, options, widget};
use http::StatusCode;
use kube::Client;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn owned(mut object: Value, owners: &[(&Value, bool)]) -> Value {
    let owners: Vec<Value> = owners
        .iter()
        .map(|(owner, block)| {
            json!({"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"], "blockOwnerDeletion": block})
        })
        .collect();
    object["metadata"]["ownerReferences"] = json!(owners);
    object
}

/// Waits until a read of the object is as it should be; none means not found.
async fn until(client: &Client, uri: &str, what: &str, fine: impl Fn(Option<&Value>) -> bool) {
    let wait = async {
        loop {
            let (code, object) = call(client, "GET", uri, &Value::Null).await;
            if fine((code == StatusCode::OK).then_some(&object)) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, wait).await.is_ok(), "{what}");
}

async fn gone(client: &Client, uri: &str) {
    until(client, uri, uri, |object| object.is_none()).await;
}

#[tokio::test]
async fn dependents_follow_their_owner() {
    let server = Server::start().await;
    let client = server.client();
    let owner = ok(&client, "POST", WIDGETS, &widget("owner", 1)).await;
    let child = ok(
        &client,
        "POST",
        MAPS,
        &owned(config_map("child"), &[(&owner, true)]),
    )
    .await;
    ok(
        &client,
        "POST",
        MAPS,
        &owned(config_map("grandchild"), &[(&child, true)]),
    )
    .await;
    ok(&client, "POST", MAPS, &config_map("stranger")).await;
    let done = ok(&client, "DELETE", &format!("{WIDGETS}/owner"), &Value::Null).await;
    assert_eq!(done["status"], "Success");
    gone(&client, &format!("{MAPS}/child")).await;
    gone(&client, &format!("{MAPS}/grandchild")).await;
    ok(&client, "GET", &format!("{MAPS}/stranger"), &Value::Null).await;
}

#[tokio::test]
async fn in_the_foreground_the_owner_goes_last() {
    let server = Server::start().await;
    let client = server.client();
    let owner = ok(&client, "POST", MAPS, &config_map("owner")).await;
    let mut held = owned(config_map("held"), &[(&owner, true)]);
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    ok(&client, "POST", MAPS, &held).await;
    ok(
        &client,
        "POST",
        MAPS,
        &owned(config_map("free"), &[(&owner, true)]),
    )
    .await;
    let marked = ok(
        &client,
        "DELETE",
        &format!("{MAPS}/owner?propagationPolicy=Foreground"),
        &Value::Null,
    )
    .await;
    assert_eq!(
        marked["metadata"]["finalizers"],
        json!(["foregroundDeletion"])
    );
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
    gone(&client, &format!("{MAPS}/free")).await;
    until(
        &client,
        &format!("{MAPS}/held"),
        "the dependent is marked",
        |object| object.is_some_and(|o| o["metadata"]["deletionTimestamp"].is_string()),
    )
    .await;
    ok(&client, "GET", &format!("{MAPS}/owner"), &Value::Null).await;
    let patch = json!({"metadata": {"finalizers": null}}).to_string();
    common::call_as(
        &client,
        "PATCH",
        &format!("{MAPS}/held"),
        "application/merge-patch+json",
        patch,
    )
    .await;
    gone(&client, &format!("{MAPS}/held")).await;
    gone(&client, &format!("{MAPS}/owner")).await;
}

#[tokio::test]
async fn one_that_does_not_block_holds_no_owner() {
    let server = Server::start().await;
    let client = server.client();
    let owner = ok(&client, "POST", MAPS, &config_map("owner")).await;
    let mut held = owned(config_map("held"), &[(&owner, false)]);
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    ok(&client, "POST", MAPS, &held).await;
    ok(
        &client,
        "DELETE",
        &format!("{MAPS}/owner?propagationPolicy=Foreground"),
        &Value::Null,
    )
    .await;
    gone(&client, &format!("{MAPS}/owner")).await;
    until(
        &client,
        &format!("{MAPS}/held"),
        "the dependent is marked",
        |object| object.is_some_and(|o| o["metadata"]["deletionTimestamp"].is_string()),
    )
    .await;
}

#[tokio::test]
async fn orphans_stay_and_forget() {
    let server = Server::start().await;
    let client = server.client();
    let owner = ok(&client, "POST", MAPS, &config_map("owner")).await;
    ok(
        &client,
        "POST",
        MAPS,
        &owned(config_map("child"), &[(&owner, true)]),
    )
    .await;
    ok(
        &client,
        "DELETE",
        &format!("{MAPS}/owner"),
        &json!({"propagationPolicy": "Orphan"}),
    )
    .await;
    gone(&client, &format!("{MAPS}/owner")).await;
    let child = ok(&client, "GET", &format!("{MAPS}/child"), &Value::Null).await;
    assert!(
        child["metadata"].get("ownerReferences").is_none(),
        "{child}"
    );
}

#[tokio::test]
async fn who_has_another_owner_stays() {
    let server = Server::start().await;
    let client = server.client();
    let first = ok(&client, "POST", MAPS, &config_map("first")).await;
    let second = ok(&client, "POST", MAPS, &config_map("second")).await;
    ok(
        &client,
        "POST",
        MAPS,
        &owned(config_map("child"), &[(&first, true), (&second, true)]),
    )
    .await;
    ok(&client, "DELETE", &format!("{MAPS}/first"), &Value::Null).await;
    until(
        &client,
        &format!("{MAPS}/child"),
        "the reference to the first goes",
        |object| {
            object.is_some_and(|o| {
                o["metadata"]["ownerReferences"]
                    .as_array()
                    .is_some_and(|list| list.len() == 1 && list[0]["name"] == "second")
            })
        },
    )
    .await;
    ok(&client, "DELETE", &format!("{MAPS}/second"), &Value::Null).await;
    gone(&client, &format!("{MAPS}/child")).await;
}

#[tokio::test]
async fn an_owner_of_the_same_name_is_another_one() {
    let server = Server::start().await;
    let client = server.client();
    let old = ok(&client, "POST", MAPS, &config_map("owner")).await;
    ok(&client, "DELETE", &format!("{MAPS}/owner"), &Value::Null).await;
    let new = ok(&client, "POST", MAPS, &config_map("owner")).await;
    ok(
        &client,
        "POST",
        MAPS,
        &owned(config_map("late"), &[(&old, true)]),
    )
    .await;
    ok(
        &client,
        "POST",
        MAPS,
        &owned(config_map("right"), &[(&new, true)]),
    )
    .await;
    gone(&client, &format!("{MAPS}/late")).await;
    ok(&client, "GET", &format!("{MAPS}/right"), &Value::Null).await;
}

#[tokio::test]
async fn owners_elsewhere_are_none_and_an_event_says_so() {
    let server = Server::start().await;
    let client = server.client();
    let owner = ok(
        &client,
        "POST",
        "/api/v1/namespaces/kube-public/configmaps",
        &config_map("owner"),
    )
    .await;
    ok(
        &client,
        "POST",
        MAPS,
        &owned(config_map("child"), &[(&owner, true)]),
    )
    .await;
    gone(&client, &format!("{MAPS}/child")).await;
    let events = ok(
        &client,
        "GET",
        "/api/v1/namespaces/default/events",
        &Value::Null,
    )
    .await;
    let event = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["reason"] == "OwnerRefInvalidNamespace")
        .unwrap();
    let uid = owner["metadata"]["uid"].as_str().unwrap();
    assert_eq!(
        event["message"],
        format!(
            "ownerRef [v1/ConfigMap, namespace: default, name: owner, uid: {uid}] does not exist in namespace \"default\""
        )
    );

    // Cluster-scoped objects are owners everywhere.
    let namespace = ok(
        &client,
        "GET",
        "/api/v1/namespaces/kube-public",
        &Value::Null,
    )
    .await;
    ok(
        &client,
        "POST",
        MAPS,
        &owned(config_map("child"), &[(&namespace, true)]),
    )
    .await;
    // Judged after it in the same queue, and known to go.
    ok(
        &client,
        "POST",
        MAPS,
        &owned(config_map("marker"), &[(&owner, true)]),
    )
    .await;
    gone(&client, &format!("{MAPS}/marker")).await;
    ok(&client, "GET", &format!("{MAPS}/child"), &Value::Null).await;
}

#[tokio::test]
async fn what_was_left_is_found_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let api = ApiServer::open(options(&dir, Arc::new(AdmitAll)))
            .await
            .unwrap();
        let client = api.client("test");
        let owner = ok(&client, "POST", MAPS, &config_map("owner")).await;
        ok(
            &client,
            "POST",
            MAPS,
            &owned(config_map("child"), &[(&owner, true)]),
        )
        .await;
        // Its kind is not known to this server, so it is kept.
        let mut unknown = owned(config_map("unknown"), &[(&owner, true)]);
        unknown["metadata"]["ownerReferences"][0]["kind"] = json!("Unheard");
        ok(&client, "POST", MAPS, &unknown).await;
        ok(&client, "DELETE", &format!("{MAPS}/owner"), &Value::Null).await;
    }
    let api = ApiServer::open(options(&dir, Arc::new(AdmitAll)))
        .await
        .unwrap();
    let client = api.client("test");
    gone(&client, &format!("{MAPS}/child")).await;
    ok(&client, "GET", &format!("{MAPS}/unknown"), &Value::Null).await;
}

#[tokio::test]
async fn a_ring_of_owners_comes_apart() {
    let server = Server::start().await;
    let client = server.client();
    let a = ok(&client, "POST", MAPS, &config_map("a")).await;
    let b = ok(
        &client,
        "POST",
        MAPS,
        &owned(config_map("b"), &[(&a, true)]),
    )
    .await;
    let mut a = a.clone();
    a = owned(a, &[(&b, true)]);
    ok(&client, "PUT", &format!("{MAPS}/a"), &a).await;
    ok(
        &client,
        "DELETE",
        &format!("{MAPS}/a?propagationPolicy=Foreground"),
        &Value::Null,
    )
    .await;
    gone(&client, &format!("{MAPS}/a")).await;
    gone(&client, &format!("{MAPS}/b")).await;
}

#[tokio::test]
async fn a_second_word_on_the_dependents_counts() {
    let server = Server::start().await;
    let client = server.client();
    let owner = ok(&client, "POST", MAPS, &config_map("owner")).await;
    let mut held = owned(config_map("held"), &[(&owner, true)]);
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    ok(&client, "POST", MAPS, &held).await;
    ok(
        &client,
        "DELETE",
        &format!("{MAPS}/owner?propagationPolicy=Foreground"),
        &Value::Null,
    )
    .await;
    let done = ok(
        &client,
        "DELETE",
        &format!("{MAPS}/owner"),
        &json!({"propagationPolicy": "Background"}),
    )
    .await;
    assert_eq!(done["status"], "Success");
    gone(&client, &format!("{MAPS}/owner")).await;
}

/// The middle of the chain goes in the foreground, too, although what it owns waits already.
#[tokio::test]
async fn a_chain_that_waits_below_goes_on_above() {
    let server = Server::start().await;
    let client = server.client();
    let top = ok(&client, "POST", MAPS, &config_map("top")).await;
    let middle = ok(
        &client,
        "POST",
        MAPS,
        &owned(config_map("middle"), &[(&top, true)]),
    )
    .await;
    let bottom = ok(
        &client,
        "POST",
        MAPS,
        &owned(config_map("bottom"), &[(&middle, true)]),
    )
    .await;
    let mut held = owned(config_map("held"), &[(&bottom, true)]);
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    ok(&client, "POST", MAPS, &held).await;
    ok(
        &client,
        "DELETE",
        &format!("{MAPS}/bottom?propagationPolicy=Foreground"),
        &Value::Null,
    )
    .await;
    ok(
        &client,
        "DELETE",
        &format!("{MAPS}/top?propagationPolicy=Foreground"),
        &Value::Null,
    )
    .await;
    until(
        &client,
        &format!("{MAPS}/middle"),
        "the middle is marked",
        |object| {
            object.is_some_and(|o| o["metadata"]["finalizers"] == json!(["foregroundDeletion"]))
        },
    )
    .await;
    let patch = json!({"metadata": {"finalizers": null}}).to_string();
    common::call_as(
        &client,
        "PATCH",
        &format!("{MAPS}/held"),
        "application/merge-patch+json",
        patch,
    )
    .await;
    for name in ["held", "bottom", "middle", "top"] {
        gone(&client, &format!("{MAPS}/{name}")).await;
    }
}

/// Many at once: every one goes, none is asked for twice in vain.
#[tokio::test]
async fn a_large_family() {
    let server = Server::start().await;
    let client = server.client();
    let owner = ok(&client, "POST", MAPS, &config_map("owner")).await;
    let made = (0..300).map(|n| {
        let (client, child) = (
            client.clone(),
            owned(config_map(&format!("child-{n}")), &[(&owner, true)]),
        );
        async move { ok(&client, "POST", MAPS, &child).await }
    });
    futures::future::join_all(made).await;
    ok(
        &client,
        "DELETE",
        &format!("{MAPS}/owner?propagationPolicy=Foreground"),
        &Value::Null,
    )
    .await;
    gone(&client, &format!("{MAPS}/owner")).await;
    // What every namespace has is all that is left.
    let left = ok(&client, "GET", MAPS, &Value::Null).await;
    let left = left["items"].as_array().unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0]["metadata"]["name"], "kube-root-ca.crt");
}
