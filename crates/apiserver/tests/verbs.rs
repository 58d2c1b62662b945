//! The REST verbs, by requests in process: codes, reasons and words as of the real API server.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::sync::Arc;

use berth_apiserver::{Admission, AdmissionDenied, AdmissionRequest, Admitted, Cause, Operation};
use common::{Server, call, call_as, config_map, ok, widget};
use http::StatusCode;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

#[tokio::test]
async fn a_life() {
    let server = Server::start().await;
    let client = server.client();
    let made = ok(&client, "POST", MAPS, &config_map("a")).await;
    assert!(
        made["metadata"]["uid"].is_string() && made["metadata"]["creationTimestamp"].is_string()
    );
    let (code, again) = call(&client, "POST", MAPS, &config_map("a")).await;
    assert_eq!(
        (code, &again["reason"]),
        (StatusCode::CONFLICT, &json!("AlreadyExists"))
    );
    assert_eq!(again["message"], r#"configmaps "a" already exists"#);

    let mut changed = made.clone();
    changed["data"]["b"] = json!("2");
    let updated = ok(&client, "PUT", &format!("{MAPS}/a"), &changed).await;
    assert_ne!(
        updated["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
    let same = ok(&client, "PUT", &format!("{MAPS}/a"), &updated).await;
    assert_eq!(
        same["metadata"]["resourceVersion"], updated["metadata"]["resourceVersion"],
        "no change, no write"
    );

    let (code, stale) = call(&client, "PUT", &format!("{MAPS}/a"), &changed).await;
    assert_eq!(
        (code, &stale["reason"]),
        (StatusCode::CONFLICT, &json!("Conflict"))
    );
    assert_eq!(
        stale["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes \
         to the latest version and try again"
    );

    let gone = ok(&client, "DELETE", &format!("{MAPS}/a"), &Value::Null).await;
    assert_eq!(
        (&gone["status"], &gone["details"]["uid"]),
        (&json!("Success"), &made["metadata"]["uid"])
    );
    let (code, missing) = call(&client, "GET", &format!("{MAPS}/a"), &Value::Null).await;
    assert_eq!(
        (code, &missing["message"]),
        (StatusCode::NOT_FOUND, &json!(r#"configmaps "a" not found"#))
    );
    let (code, _) = call(&client, "PUT", &format!("{MAPS}/a"), &config_map("a")).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn custom_resources_must_say_what_they_replace() {
    let server = Server::start().await;
    let client = server.client();
    let made = ok(&client, "POST", WIDGETS, &widget("w", 1)).await;
    assert_eq!(made["spec"]["color"], "blue");
    assert_eq!(made["metadata"]["generation"], 1);
    let (code, refused) = call(&client, "PUT", &format!("{WIDGETS}/w"), &widget("w", 2)).await;
    assert_eq!(
        (code, &refused["reason"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("Invalid"))
    );
    assert_eq!(
        refused["message"],
        "Widget.example.com \"w\" is invalid: metadata.resourceVersion: Invalid value: 0x0: must be specified for an \
         update"
    );
    assert_eq!(
        refused["details"]["causes"],
        json!([{"reason": "FieldValueInvalid", "field": "metadata.resourceVersion",
            "message": "Invalid value: 0x0: must be specified for an update"}])
    );

    let mut new = made.clone();
    new["spec"]["size"] = json!(2);
    let updated = ok(&client, "PUT", &format!("{WIDGETS}/w"), &new).await;
    assert_eq!(updated["metadata"]["generation"], 2);
    let (code, stale) = call(&client, "PUT", &format!("{WIDGETS}/w"), &new).await;
    assert_eq!(code, StatusCode::CONFLICT);
    assert_eq!(
        stale["message"],
        "Operation cannot be fulfilled on widgets.example.com \"w\": the object has been modified; please apply your \
         changes to the latest version and try again"
    );

    let (code, invalid) = call(&client, "POST", WIDGETS, &widget("x", 0)).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        invalid["message"].as_str().unwrap().contains("spec.size"),
        "{invalid}"
    );
}

#[tokio::test]
async fn status_and_spec_are_apart() {
    let server = Server::start().await;
    let client = server.client();
    let mut new = widget("w", 1);
    new["status"] = json!({"phase": "Never"});
    let made = ok(&client, "POST", WIDGETS, &new).await;
    assert!(made.get("status").is_none());
    let mut status = made.clone();
    status["status"] = json!({"phase": "Up"});
    status["spec"]["size"] = json!(9);
    status["metadata"]["labels"] = json!({"a": "b"});
    let done = ok(&client, "PUT", &format!("{WIDGETS}/w/status"), &status).await;
    assert_eq!(
        (&done["status"]["phase"], &done["spec"]["size"]),
        (&json!("Up"), &json!(1))
    );
    assert_eq!(done["metadata"]["generation"], 1);
    assert!(done["metadata"].get("labels").is_none());
    let mut spec = done.clone();
    spec["status"]["phase"] = json!("Down");
    let done = ok(&client, "PUT", &format!("{WIDGETS}/w"), &spec).await;
    assert_eq!(done["status"]["phase"], "Up");
}

#[tokio::test]
async fn versions_share_objects_and_old_ones_warn() {
    let server = Server::start().await;
    let client = server.client();
    ok(&client, "POST", WIDGETS, &widget("w", 1)).await;
    let request = http::Request::get("/apis/example.com/v1alpha1/namespaces/default/widgets/w")
        .body(kube::client::Body::empty())
        .unwrap();
    let response = client.send(request).await.unwrap();
    let warning = response.headers()["warning"].to_str().unwrap().to_owned();
    assert!(
        warning.starts_with("299 - \"") && warning.contains("deprecated"),
        "{warning}"
    );
    let (_, old) = call(
        &client,
        "GET",
        "/apis/example.com/v1alpha1/namespaces/default/widgets/w",
        &Value::Null,
    )
    .await;
    assert_eq!(
        (&old["apiVersion"], &old["spec"]["size"]),
        (&json!("example.com/v1alpha1"), &json!(1))
    );
    let (code, _) = call(
        &client,
        "GET",
        "/apis/example.com/v9/namespaces/default/widgets",
        &Value::Null,
    )
    .await;
    assert_eq!(code, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn unknown_fields() {
    let server = Server::start().await;
    let client = server.client();
    let mut new = widget("w", 1);
    new["spec"]["colour"] = json!("red");
    let (code, refused) = call(
        &client,
        "POST",
        &format!("{WIDGETS}?fieldValidation=Strict"),
        &new,
    )
    .await;
    assert_eq!(code, StatusCode::BAD_REQUEST);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("unknown field \"spec.colour\""),
        "{refused}"
    );
    let made = ok(&client, "POST", WIDGETS, &new).await;
    assert!(made["spec"].get("colour").is_none());
}

#[tokio::test]
async fn patches() {
    let server = Server::start().await;
    let client = server.client();
    let made = ok(&client, "POST", MAPS, &config_map("a")).await;
    let uri = format!("{MAPS}/a");
    let patch = async |media: &str, body: Value| {
        call_as(&client, "PATCH", &uri, media, body.to_string()).await
    };
    let (code, merged) = patch(
        "application/merge-patch+json",
        json!({"data": {"a": null, "b": "2"}}),
    )
    .await;
    assert_eq!(
        (code, &merged["data"]),
        (StatusCode::OK, &json!({"b": "2"}))
    );
    let (code, done) = patch(
        "application/json-patch+json",
        json!([{"op": "add", "path": "/data/c", "value": "3"}]),
    )
    .await;
    assert_eq!(
        (code, &done["data"]),
        (StatusCode::OK, &json!({"b": "2", "c": "3"}))
    );
    let (code, failed) = patch(
        "application/json-patch+json",
        json!([{"op": "test", "path": "/data/c", "value": "4"}]),
    )
    .await;
    assert_eq!(
        (code, &failed["reason"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("Invalid"))
    );
    let (code, _) = patch(
        "application/strategic-merge-patch+json",
        json!({"metadata": {"finalizers": ["x/y"]}}),
    )
    .await;
    assert_eq!(code, StatusCode::OK);
    let stale = json!({"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "data": {"z": "1"}});
    let (code, _) = patch("application/merge-patch+json", stale).await;
    assert_eq!(code, StatusCode::CONFLICT);
    let (code, _) = patch("application/apply-patch+cbor", json!({})).await;
    assert_eq!(code, StatusCode::UNSUPPORTED_MEDIA_TYPE);

    ok(&client, "POST", WIDGETS, &widget("w", 1)).await;
    let (code, _) = call_as(
        &client,
        "PATCH",
        &format!("{WIDGETS}/w"),
        "application/strategic-merge-patch+json",
        "{}".into(),
    )
    .await;
    assert_eq!(code, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn finalizers_hold() {
    let server = Server::start().await;
    let client = server.client();
    let mut new = widget("w", 1);
    new["metadata"]["finalizers"] = json!(["example.com/hold"]);
    ok(&client, "POST", WIDGETS, &new).await;
    let uri = format!("{WIDGETS}/w");
    let marked = ok(&client, "DELETE", &uri, &Value::Null).await;
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(marked["metadata"]["generation"], 2);
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}});
    let (code, refused) = call_as(
        &client,
        "PATCH",
        &uri,
        "application/merge-patch+json",
        more.to_string(),
    )
    .await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    let none = json!({"metadata": {"finalizers": null}}).to_string();
    let (code, _) = call_as(&client, "PATCH", &uri, "application/merge-patch+json", none).await;
    assert_eq!(code, StatusCode::OK);
    let (code, _) = call(&client, "GET", &uri, &Value::Null).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn preconditions_and_dry_run() {
    let server = Server::start().await;
    let client = server.client();
    ok(
        &client,
        "POST",
        &format!("{MAPS}?dryRun=All"),
        &config_map("a"),
    )
    .await;
    let (code, _) = call(&client, "GET", &format!("{MAPS}/a"), &Value::Null).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    ok(&client, "POST", MAPS, &config_map("a")).await;
    ok(
        &client,
        "DELETE",
        &format!("{MAPS}/a"),
        &json!({"dryRun": ["All"]}),
    )
    .await;
    let (code, _) = call(
        &client,
        "DELETE",
        &format!("{MAPS}/a"),
        &json!({"preconditions": {"uid": "other"}}),
    )
    .await;
    assert_eq!(code, StatusCode::CONFLICT);
    ok(&client, "GET", &format!("{MAPS}/a"), &Value::Null).await;
}

#[tokio::test]
async fn pods_stop_before_they_go() {
    let server = Server::start().await;
    let client = server.client();
    ok(&client, "POST", PODS, &pod("idle")).await;
    ok(&client, "DELETE", &format!("{PODS}/idle"), &Value::Null).await;
    let (code, _) = call(&client, "GET", &format!("{PODS}/idle"), &Value::Null).await;
    assert_eq!(
        code,
        StatusCode::NOT_FOUND,
        "no node runs it: it goes at once"
    );

    ok(&client, "POST", PODS, &pod("busy")).await;
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "busy"}, "target": {"kind": "Node", "name": "n"}});
    ok(&client, "POST", &format!("{PODS}/busy/binding"), &binding).await;
    let (code, _) = call(&client, "POST", &format!("{PODS}/busy/binding"), &binding).await;
    assert_eq!(code, StatusCode::CONFLICT);
    let bound = ok(
        &client,
        "GET",
        &format!("{PODS}?fieldSelector=spec.nodeName%3Dn"),
        &Value::Null,
    )
    .await;
    assert_eq!(bound["items"].as_array().unwrap().len(), 1);
    let marked = ok(&client, "DELETE", &format!("{PODS}/busy"), &Value::Null).await;
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    ok(&client, "GET", &format!("{PODS}/busy"), &Value::Null).await;
    ok(
        &client,
        "DELETE",
        &format!("{PODS}/busy"),
        &json!({"gracePeriodSeconds": 0}),
    )
    .await;
    let (code, _) = call(&client, "GET", &format!("{PODS}/busy"), &Value::Null).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn lists_select_and_page() {
    let server = Server::start().await;
    let client = server.client();
    for n in 0..7 {
        let mut new = config_map(&format!("m{n}"));
        new["metadata"]["labels"] = json!({"odd": if n % 2 == 1 { "yes" } else { "no" }});
        ok(&client, "POST", MAPS, &new).await;
    }
    let odd = ok(
        &client,
        "GET",
        &format!("{MAPS}?labelSelector=odd%3Dyes"),
        &Value::Null,
    )
    .await;
    assert_eq!(odd["items"].as_array().unwrap().len(), 3);
    assert_eq!(odd["kind"], "ConfigMapList");
    let (mut names, mut token) = (Vec::new(), String::new());
    loop {
        let page = ok(
            &client,
            "GET",
            &format!("{MAPS}?labelSelector=odd%3Dno&limit=2&continue={token}"),
            &Value::Null,
        )
        .await;
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|i| i["metadata"]["name"].clone()),
        );
        token = page["metadata"]["continue"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["m0", "m2", "m4", "m6"]);
    let (code, _) = call(
        &client,
        "GET",
        &format!("{MAPS}?fieldSelector=data.a%3D1"),
        &Value::Null,
    )
    .await;
    assert_eq!(code, StatusCode::BAD_REQUEST);
    ok(
        &client,
        "DELETE",
        &format!("{MAPS}?labelSelector=odd%3Dyes"),
        &Value::Null,
    )
    .await;
    let left = ok(&client, "GET", "/api/v1/configmaps", &Value::Null).await;
    assert_eq!(left["items"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn namespaces_contain() {
    let server = Server::start().await;
    let client = server.client();
    let (code, missing) = call(
        &client,
        "POST",
        "/api/v1/namespaces/x/configmaps",
        &config_map("a"),
    )
    .await;
    assert_eq!(
        (code, &missing["message"]),
        (StatusCode::NOT_FOUND, &json!(r#"namespaces "x" not found"#))
    );
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}});
    let made = ok(&client, "POST", "/api/v1/namespaces", &namespace).await;
    assert_eq!(made["status"]["phase"], "Active");
    let mut held = config_map("a");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    ok(&client, "POST", "/api/v1/namespaces/x/configmaps", &held).await;
    ok(
        &client,
        "POST",
        "/api/v1/namespaces/x/configmaps",
        &config_map("b"),
    )
    .await;
    let marked = ok(&client, "DELETE", "/api/v1/namespaces/x", &Value::Null).await;
    assert_eq!(marked["status"]["phase"], "Terminating");
    let (code, refused) = call(
        &client,
        "POST",
        "/api/v1/namespaces/x/configmaps",
        &config_map("c"),
    )
    .await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(
        refused["message"],
        "configmaps \"c\" is forbidden: unable to create new content in namespace x because it is being terminated"
    );
    let none = json!({"metadata": {"finalizers": null}}).to_string();
    let uri = "/api/v1/namespaces/x/configmaps/a";
    call_as(&client, "PATCH", uri, "application/merge-patch+json", none).await;
    gone(&client, "/api/v1/namespaces/x").await;
    let (code, _) = call(
        &client,
        "DELETE",
        "/api/v1/namespaces/default",
        &Value::Null,
    )
    .await;
    assert_eq!(code, StatusCode::FORBIDDEN);
}

/// Waits until there is no such object.
async fn gone(client: &kube::Client, uri: &str) {
    let wait = async {
        while call(client, "GET", uri, &Value::Null).await.0 != StatusCode::NOT_FOUND {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(common::SOON, wait)
        .await
        .expect("it goes");
}

#[tokio::test]
async fn definitions_make_resources() {
    let server = Server::start().await;
    let client = server.client();
    let mut gadgets = serde_json::to_value(common::widgets()).unwrap();
    gadgets["metadata"]["name"] = json!("gadgets.example.com");
    gadgets["spec"]["names"] = json!({"plural": "gadgets", "kind": "Gadget"});
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let made = ok(&client, "POST", crds, &gadgets).await;
    let conditions = made["status"]["conditions"].as_array().unwrap();
    assert!(
        conditions
            .iter()
            .any(|c| c["type"] == "Established" && c["status"] == "True"),
        "{made}"
    );
    let mut gadget = widget("g", 1);
    gadget["kind"] = json!("Gadget");
    let uri = "/apis/example.com/v1/namespaces/default/gadgets";
    ok(&client, "POST", uri, &gadget).await;
    ok(
        &client,
        "DELETE",
        &format!("{crds}/gadgets.example.com"),
        &Value::Null,
    )
    .await;
    gone(&client, &format!("{crds}/gadgets.example.com")).await;
    gone(&client, uri).await;
    ok(&client, "POST", crds, &gadgets).await;
    let empty = ok(&client, "GET", uri, &Value::Null).await;
    assert_eq!(
        empty["items"],
        json!([]),
        "the objects went with their definition"
    );
}

#[tokio::test]
async fn bodies_of_the_wrong_kind() {
    let server = Server::start().await;
    let client = server.client();
    for (uri, body, code) in [
        (
            MAPS,
            json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "a"}}),
            400,
        ),
        (
            MAPS,
            json!({"kind": "ConfigMap", "apiVersion": "v2", "metadata": {"name": "a"}}),
            400,
        ),
        (MAPS, json!([]), 400),
        (MAPS, json!({"metadata": {"name": "Bad_Name"}}), 422),
        (MAPS, json!({"metadata": {}}), 422),
        (
            MAPS,
            json!({"metadata": {"name": "a", "namespace": "other"}}),
            400,
        ),
        (
            MAPS,
            json!({"metadata": {"name": "a", "labels": {"a": 1}}}),
            400,
        ),
        (
            MAPS,
            json!({"metadata": {"name": "a", "resourceVersion": "5"}}),
            400,
        ),
        (
            "/api/v1/configmaps",
            json!({"metadata": {"name": "a"}}),
            405,
        ),
        (
            "/api/v1/namespaces/default/nodes",
            json!({"metadata": {"name": "a"}}),
            404,
        ),
        ("/api/v1/nothings", json!({}), 404),
    ] {
        let (got, answer) = call(&client, "POST", uri, &body).await;
        assert_eq!(got.as_u16(), code, "{uri} {body}: {answer}");
        assert_eq!(answer["kind"], "Status");
    }
    let yaml = "metadata:\n  generateName: a-\ndata: {k: v}\n";
    let (code, made) = call_as(&client, "POST", MAPS, "application/yaml", yaml.into()).await;
    assert_eq!(
        (code, made["metadata"]["name"].as_str().unwrap().len()),
        (StatusCode::CREATED, 7)
    );
}

struct Guard;

impl Admission for Guard {
    fn admit(&self, request: AdmissionRequest<'_>) -> Result<Admitted, AdmissionDenied> {
        if request.kind != "Widget" || request.operation == Operation::Delete {
            return Ok(Admitted::default());
        }
        let mut object = request.object.cloned().unwrap_or_default();
        if object["spec"]["size"] == 13 {
            return Err(AdmissionDenied {
                causes: vec![Cause::invalid("spec.size", 13, "brings bad luck")],
            });
        }
        object["metadata"]["name"] = json!("hijacked");
        object["metadata"]["annotations"] = json!({"seen": request.name});
        Ok(Admitted {
            object: Some(object),
            warnings: vec!["mind the \"gap\"".into()],
        })
    }
}

#[tokio::test]
async fn admission_changes_and_refuses() {
    let server = Server::with(Arc::new(Guard)).await;
    let client = server.client();
    let made = ok(&client, "POST", WIDGETS, &widget("w", 1)).await;
    assert_eq!(
        (
            &made["metadata"]["name"],
            &made["metadata"]["annotations"]["seen"]
        ),
        (&json!("w"), &json!("w"))
    );
    let (code, refused) = call(&client, "POST", WIDGETS, &widget("x", 13)).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        refused["message"],
        "Widget.example.com \"x\" is invalid: spec.size: Invalid value: 13: brings bad luck"
    );
}

#[tokio::test]
async fn events_have_two_faces() {
    let server = Server::start().await;
    let client = server.client();
    let event = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "e"},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Started",
        "note": "up and running",
        "type": "Normal",
        "action": "Start",
        "reportingController": "test",
        "reportingInstance": "test-1",
    });
    ok(
        &client,
        "POST",
        "/apis/events.k8s.io/v1/namespaces/default/events",
        &event,
    )
    .await;
    let uri =
        "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp,reason%3DStarted";
    let list = ok(&client, "GET", uri, &Value::Null).await;
    assert_eq!(list["items"][0]["message"], "up and running");
    let again = ok(
        &client,
        "GET",
        "/apis/events.k8s.io/v1/namespaces/default/events/e",
        &Value::Null,
    )
    .await;
    assert_eq!(
        (&again["apiVersion"], &again["note"]),
        (&json!("events.k8s.io/v1"), &json!("up and running"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patches_without_a_revision_do_not_get_lost() {
    let server = Server::start().await;
    let client = server.client();
    ok(&client, "POST", MAPS, &config_map("a")).await;
    let tasks: Vec<_> = (0..12)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move {
                let patch = json!({"data": {format!("k{n}"): "v"}}).to_string();
                call_as(
                    &client,
                    "PATCH",
                    &format!("{MAPS}/a"),
                    "application/merge-patch+json",
                    patch,
                )
                .await
                .0
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), StatusCode::OK);
    }
    let all = ok(&client, "GET", &format!("{MAPS}/a"), &Value::Null).await;
    assert_eq!(all["data"].as_object().unwrap().len(), 13);
}
