//! The end of namespaces, the scale subresource, options of deletes, leader election.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{SOON, Server, call, call_as, config_map, ok, widget};
use http::StatusCode;
use kube::Client;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";
const MERGE: &str = "application/merge-patch+json";

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

#[tokio::test]
async fn a_namespace_tells_what_holds_it() {
    let server = Server::start().await;
    let client = server.client();
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "space"}});
    ok(&client, "POST", "/api/v1/namespaces", &space).await;
    let maps = "/api/v1/namespaces/space/configmaps";
    let mut held = config_map("held");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    ok(&client, "POST", maps, &held).await;
    ok(&client, "POST", maps, &config_map("free")).await;
    let marked = ok(&client, "DELETE", "/api/v1/namespaces/space", &Value::Null).await;
    assert_eq!(marked["status"]["phase"], "Terminating");
    let uri = "/api/v1/namespaces/space";
    until(&client, uri, "conditions", |space| {
        space.is_some_and(|space| {
            let message = |kind: &str| {
                let list = space["status"]["conditions"].as_array().into_iter().flatten();
                list.filter(|c| c["type"] == kind && c["status"] == "True")
                    .map(|c| c["message"].as_str().unwrap().to_owned())
                    .next()
            };
            message("NamespaceContentRemaining").as_deref()
                == Some("Some resources are remaining: configmaps. has 1 resource instances")
                && message("NamespaceFinalizersRemaining").as_deref()
                    == Some("Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances")
        })
    })
    .await;
    let (code, refused) = call(&client, "POST", maps, &config_map("late")).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(
        refused["message"],
        "configmaps \"late\" is forbidden: unable to create new content in namespace space because it is being terminated"
    );
    assert_eq!(
        refused["details"]["causes"],
        json!([{"reason": "NamespaceTerminating", "message": "namespace space is being terminated", "field": "metadata.namespace"}])
    );
    let free = json!({"metadata": {"finalizers": null}}).to_string();
    call_as(&client, "PATCH", &format!("{maps}/held"), MERGE, free).await;
    until(&client, uri, "gone", |space| space.is_none()).await;
}

#[tokio::test]
async fn a_namespace_waits_for_its_own_finalizers() {
    let server = Server::start().await;
    let client = server.client();
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "space"}});
    let mut space = ok(&client, "POST", "/api/v1/namespaces", &space).await;
    let uri = "/api/v1/namespaces/space";
    assert_eq!(space["spec"]["finalizers"], json!(["kubernetes"]));
    // Only by way of `finalize`.
    space["spec"]["finalizers"] = json!(["kubernetes", "example.com/own"]);
    let bad = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "space"}, "spec": {"finalizers": ["foo"]}});
    let (code, refused) = call(&client, "PUT", &format!("{uri}/finalize"), &bad).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        refused["message"],
        "Namespace \"space\" is invalid: spec.finalizers[0]: Invalid value: \"foo\": name is neither a standard finalizer \
         name nor is it fully qualified"
    );
    ok(&client, "PUT", &format!("{uri}/finalize"), &space).await;
    ok(&client, "DELETE", uri, &Value::Null).await;
    until(
        &client,
        uri,
        "the content is gone, its own finalizer is left",
        |space| {
            space.is_some_and(|space| space["spec"]["finalizers"] == json!(["example.com/own"]))
        },
    )
    .await;
    let mut space = ok(&client, "GET", uri, &Value::Null).await;
    space["spec"]["finalizers"] = json!([]);
    ok(&client, "PUT", &format!("{uri}/finalize"), &space).await;
    until(&client, uri, "gone", |space| space.is_none()).await;
}

#[tokio::test]
async fn scale() {
    let server = Server::start().await;
    let client = server.client();
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "sets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "sets", "kind": "Set"}, "versions": [{
            "name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": {"replicas": {"type": "integer", "maximum": 10}}},
                "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}},
            }}},
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector"}},
        }]},
    });
    ok(
        &client,
        "POST",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        &crd,
    )
    .await;
    let sets = "/apis/example.com/v1/namespaces/default/sets";
    let set = json!({"apiVersion": "example.com/v1", "kind": "Set", "metadata": {"name": "s"}, "spec": {"replicas": 2}});
    let made = ok(&client, "POST", sets, &set).await;
    let status = json!({"status": {"replicas": 1, "selector": "a=b"}}).to_string();
    call_as(&client, "PATCH", &format!("{sets}/s/status"), MERGE, status).await;
    let uri = format!("{sets}/s/scale");
    let scale = ok(&client, "GET", &uri, &Value::Null).await;
    assert_eq!(
        (&scale["kind"], &scale["apiVersion"]),
        (&json!("Scale"), &json!("autoscaling/v1"))
    );
    assert_eq!(
        (&scale["spec"], &scale["status"]),
        (
            &json!({"replicas": 2}),
            &json!({"replicas": 1, "selector": "a=b"})
        )
    );
    assert_eq!(scale["metadata"]["uid"], made["metadata"]["uid"]);
    let mut more = scale.clone();
    more["spec"]["replicas"] = json!(5);
    assert_eq!(ok(&client, "PUT", &uri, &more).await["spec"]["replicas"], 5);
    let (code, _) = call(&client, "PUT", &uri, &more).await;
    assert_eq!(code, StatusCode::CONFLICT, "the revision is that of before");
    more["metadata"]["resourceVersion"] = json!("");
    more["spec"]["replicas"] = json!(-1);
    let (code, refused) = call(&client, "PUT", &uri, &more).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        refused["message"],
        "Set.example.com \"s\" is invalid: .spec.replicas: Invalid value: -1: should be a non-negative integer"
    );
    let (code, done) = call_as(
        &client,
        "PATCH",
        &uri,
        MERGE,
        json!({"spec": {"replicas": 7}}).to_string(),
    )
    .await;
    assert_eq!(
        (code, &done["spec"]["replicas"]),
        (StatusCode::OK, &json!(7))
    );
    let (code, _) = call_as(
        &client,
        "PATCH",
        &uri,
        MERGE,
        json!({"spec": {"replicas": 11}}).to_string(),
    )
    .await;
    assert_eq!(
        code,
        StatusCode::UNPROCESSABLE_ENTITY,
        "the object's own rules hold"
    );
    let set = ok(&client, "GET", &format!("{sets}/s"), &Value::Null).await;
    assert_eq!(
        (&set["spec"]["replicas"], &set["metadata"]["generation"]),
        (&json!(7), &json!(3))
    );
    let (code, _) = call(&client, "GET", &format!("{WIDGETS}/w/scale"), &Value::Null).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn options_of_deletes() {
    let server = Server::start().await;
    let client = server.client();
    let made = ok(&client, "POST", MAPS, &config_map("a")).await;
    let uri = format!("{MAPS}/a");
    let (code, refused) = call(
        &client,
        "DELETE",
        &format!("{uri}?propagationPolicy=Foo"),
        &Value::Null,
    )
    .await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        refused["message"],
        "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"Foo\": supported values: \
         \"Foreground\", \"Background\", \"Orphan\", \"nil\""
    );
    let (code, refused) = call(
        &client,
        "DELETE",
        &uri,
        &json!({"preconditions": {"uid": "x"}}),
    )
    .await;
    assert_eq!(code, StatusCode::CONFLICT);
    assert_eq!(
        refused["message"],
        format!(
            "Operation cannot be fulfilled on ConfigMap \"a\": the UID in the precondition (x) does not match the UID in record \
             ({}). The object might have been deleted and then recreated",
            made["metadata"]["uid"].as_str().unwrap()
        )
    );
    let (code, _) = call(
        &client,
        "DELETE",
        &uri,
        &json!({"preconditions": {"resourceVersion": "1"}}),
    )
    .await;
    assert_eq!(code, StatusCode::CONFLICT);
    let (code, _) = call(
        &client,
        "DELETE",
        &format!("{uri}?gracePeriodSeconds=abc"),
        &Value::Null,
    )
    .await;
    assert_eq!(code, StatusCode::BAD_REQUEST);
    for dry in [json!({"dryRun": ["All"]}), Value::Null] {
        let uri = if dry.is_null() {
            format!("{uri}?dryRun=All")
        } else {
            uri.clone()
        };
        ok(&client, "DELETE", &uri, &dry).await;
    }
    ok(&client, "GET", &uri, &Value::Null).await;
    let exact = json!({"preconditions": {"uid": made["metadata"]["uid"], "resourceVersion": made["metadata"]["resourceVersion"]}});
    ok(&client, "DELETE", &uri, &exact).await;
    // Of a collection, too.
    for name in ["a", "b"] {
        ok(&client, "POST", WIDGETS, &widget(name, 1)).await;
    }
    let list = ok(
        &client,
        "DELETE",
        &format!("{WIDGETS}?propagationPolicy=Foreground"),
        &Value::Null,
    )
    .await;
    assert_eq!(
        list["items"][1]["metadata"]["finalizers"],
        json!(["foregroundDeletion"])
    );
    until(&client, WIDGETS, "none is left", |list| {
        list.is_some_and(|l| l["items"] == json!([]))
    })
    .await;
}

/// The way of client-go's and kube's electors: who writes over what it has read leads; who loses reads anew.
#[tokio::test]
async fn one_of_many_leads() {
    let server = Server::start().await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let lease = |holder: &str| {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "leader"},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 0,
                "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:00.000000Z"}})
    };
    let candidates: Vec<String> = (0..8).map(|n| format!("candidate-{n}")).collect();
    let client = server.client();
    let tries = candidates.iter().map(|name| {
        let (client, lease) = (client.clone(), lease(name));
        async move { call(&client, "POST", leases, &lease).await.0 }
    });
    let made = futures::future::join_all(tries).await;
    assert_eq!(
        made.iter()
            .filter(|code| **code == StatusCode::CREATED)
            .count(),
        1
    );

    // The lease has run out: all of them see the same revision and want it.
    for round in 1..=5 {
        let seen = ok(&client, "GET", &format!("{leases}/leader"), &Value::Null).await;
        let tries = candidates.iter().map(|name| {
            let mut mine = seen.clone();
            mine["spec"]["holderIdentity"] = json!(format!("{name}-{round}"));
            mine["spec"]["leaseTransitions"] = json!(round);
            let client = client.clone();
            async move { call(&client, "PUT", &format!("{leases}/leader"), &mine).await }
        });
        let answers = futures::future::join_all(tries).await;
        let won: Vec<&Value> = answers
            .iter()
            .filter(|(code, _)| *code == StatusCode::OK)
            .map(|(_, lease)| lease)
            .collect();
        assert_eq!(won.len(), 1, "one leads");
        assert!(
            answers
                .iter()
                .filter(|(code, _)| *code != StatusCode::OK)
                .all(|(code, _)| *code == StatusCode::CONFLICT)
        );
        let now = ok(&client, "GET", &format!("{leases}/leader"), &Value::Null).await;
        assert_eq!(
            now["spec"]["holderIdentity"],
            won[0]["spec"]["holderIdentity"]
        );
    }
    let (_, bad) = call(
        &client,
        "POST",
        leases,
        &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "l"}, "spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}}),
    )
    .await;
    assert_eq!(
        bad["message"],
        "Lease.coordination.k8s.io \"l\" is invalid: [spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0, \
         spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0]"
    );
}
