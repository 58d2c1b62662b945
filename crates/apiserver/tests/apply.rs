//! Server-side apply and managed fields by requests in process. Codes, words and entries were compared with those of the real
//! API server, release 1.34.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{Server, call, call_as, config_map, ok, widget};
use http::StatusCode;
use kube::Client;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";
const APPLY: &str = "application/apply-patch+yaml";

async fn try_apply(client: &Client, uri: &str, config: &Value) -> (StatusCode, Value) {
    call_as(client, "PATCH", uri, APPLY, config.to_string()).await
}

async fn apply(client: &Client, uri: &str, config: &Value) -> Value {
    let (code, answer) = try_apply(client, uri, config).await;
    assert!(code.is_success(), "{uri}: {answer}");
    answer
}

fn map(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// Manager, operation, subresource and fields of each entry.
fn entries(object: &Value) -> Vec<(String, String, String, Value)> {
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let list = object["metadata"]["managedFields"].as_array();
    list.into_iter()
        .flatten()
        .map(|entry| {
            assert_eq!(entry["fieldsType"], "FieldsV1");
            (
                text(entry, "manager"),
                text(entry, "operation"),
                text(entry, "subresource"),
                entry["fieldsV1"].clone(),
            )
        })
        .collect()
}

fn of<'a>(entries: &'a [(String, String, String, Value)], manager: &str) -> &'a Value {
    let found = entries.iter().find(|entry| entry.0 == manager);
    found.map_or(&Value::Null, |entry| &entry.3)
}

#[tokio::test]
async fn a_configuration_makes_changes_and_removes() {
    let server = Server::start().await;
    let client = server.client();
    let uri = format!("{MAPS}/a?fieldManager=m");
    let (code, made) = try_apply(&client, &uri, &map("a", &json!({"x": "1", "y": "2"}))).await;
    assert_eq!(code, StatusCode::CREATED);
    assert_eq!(
        entries(&made),
        [(
            "m".into(),
            "Apply".into(),
            String::new(),
            json!({"f:data": {"f:x": {}, "f:y": {}}})
        )]
    );
    let (code, same) = try_apply(&client, &uri, &map("a", &json!({"x": "1", "y": "2"}))).await;
    assert_eq!(
        (code, &same),
        (StatusCode::OK, &made),
        "nothing changed, not even the times"
    );

    let changed = apply(&client, &uri, &map("a", &json!({"x": "3"}))).await;
    assert_eq!(changed["data"], json!({"x": "3"}));
    assert_ne!(
        changed["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
    let dry = format!("{uri}&dryRun=All");
    assert_eq!(
        apply(&client, &dry, &map("a", &json!({"x": "4"}))).await["data"],
        json!({"x": "4"})
    );
    let stored = ok(&client, "GET", &format!("{MAPS}/a"), &Value::Null).await;
    assert_eq!(stored, changed);
    // YAML that is not JSON, too.
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  z: \"1\"\n";
    let (code, answer) = call_as(&client, "PATCH", &uri, APPLY, yaml.into()).await;
    assert_eq!(
        (code, &answer["data"]),
        (StatusCode::OK, &json!({"z": "1"}))
    );
}

#[tokio::test]
async fn what_is_refused_and_how() {
    let server = Server::start().await;
    let client = server.client();
    ok(
        &client,
        "POST",
        &format!("{MAPS}?fieldManager=u"),
        &config_map("a"),
    )
    .await;
    let uri = format!("{MAPS}/a?fieldManager=m");
    let other = format!("{MAPS}/b?fieldManager=m");
    let cm =
        |metadata: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
    let long = format!("{MAPS}/a?fieldManager={}", "a".repeat(129));
    let without = format!("{MAPS}/a");
    for (uri, config, code, message) in [
        (
            &without,
            map("a", &json!({})),
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ),
        (
            &long,
            map("a", &json!({})),
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Too long: may not be more than 128 bytes",
        ),
        (
            &uri,
            json!({"apiVersion": "v1", "kind": "Secret"}),
            400,
            "invalid object type: /v1, Kind=Secret",
        ),
        (&uri, json!({}), 400, "invalid object type: /, Kind="),
        (
            &uri,
            cm(json!({"managedFields": [{}]})),
            400,
            "metadata.managedFields must be nil",
        ),
        (
            &uri,
            cm(json!({"name": "b"})),
            400,
            "the name of the object (b) does not match the name on the URL (a)",
        ),
        (
            &other,
            cm(json!({"name": "c"})),
            400,
            "the name of the object (c) does not match the name on the URL (b)",
        ),
        (
            &other,
            cm(json!({})),
            400,
            "the name of the object (b based on URL) was undeterminable: name must be provided",
        ),
        (
            &other,
            cm(json!({"name": "b", "uid": "abc"})),
            409,
            "Operation cannot be fulfilled on configmaps \"b\": uid mismatch: the provided object specified uid abc, and no existing object was found",
        ),
        (
            &uri,
            cm(json!({"name": "a", "resourceVersion": "1"})),
            409,
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again",
        ),
        (
            &uri,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "dta": {"q": "1"}}),
            500,
            "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .dta: field not declared in schema",
        ),
        (
            &uri,
            map("a", &json!({"q": 1})),
            500,
            "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .data.q: expected string, got &value.valueUnstructured{Value:1}",
        ),
        (
            &uri,
            map("a", &json!({"a": "2"})),
            409,
            "Apply failed with 1 conflict: conflict with \"u\" using v1: .data.a",
        ),
    ] {
        let (got, status) = try_apply(&client, uri, &config).await;
        assert_eq!(
            (got.as_u16(), status["message"].as_str()),
            (code, Some(message)),
            "{config}"
        );
        assert_eq!(status.get("reason").is_none(), code == 500);
    }
    let (_, status) = try_apply(&client, &uri, &map("a", &json!({"a": "2"}))).await;
    assert_eq!(status["reason"], "Conflict");
    assert_eq!(
        status["details"],
        json!({"causes": [{"reason": "FieldManagerConflict", "message": "conflict with \"u\" using v1", "field": ".data.a"}]})
    );
    let (code, status) = call(
        &client,
        "PATCH",
        &format!("{MAPS}/a?force=true"),
        &json!({}),
    )
    .await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{status}");
    let twice =
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  b: \"1\"\n  b: \"2\"\n";
    let strict = format!("{uri}&fieldValidation=Strict");
    let (code, status) = call_as(&client, "PATCH", &strict, APPLY, twice.into()).await;
    assert_eq!(
        (code.as_u16(), status["message"].as_str().unwrap()),
        (
            400,
            "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 7: key \"b\" already set in map"
        )
    );
    let (code, answer) = call_as(&client, "PATCH", &uri, APPLY, twice.into()).await;
    assert_eq!((code.as_u16(), &answer["data"]["b"]), (200, &json!("2")));
    let (code, forced) = try_apply(
        &client,
        &format!("{uri}&force=true"),
        &map("a", &json!({"a": "2"})),
    )
    .await;
    assert_eq!((code.as_u16(), &forced["data"]["a"]), (200, &json!("2")));
    assert_eq!(of(&entries(&forced), "u"), &json!({"f:data": {}}));
}

#[tokio::test]
async fn creates_updates_and_patches_are_tracked() {
    let server = Server::start().await;
    let client = server.client();
    let made = ok(
        &client,
        "POST",
        &format!("{MAPS}?fieldManager=one"),
        &config_map("a"),
    )
    .await;
    assert_eq!(
        of(&entries(&made), "one"),
        &json!({"f:data": {".": {}, "f:a": {}}})
    );
    // The client in process has no name of its own: it is its user.
    let labels = json!({"metadata": {"labels": {"l": "1"}}});
    let merge = "application/merge-patch+json";
    let (_, patched) = call_as(
        &client,
        "PATCH",
        &format!("{MAPS}/a"),
        merge,
        labels.to_string(),
    )
    .await;
    assert_eq!(
        of(&entries(&patched), "test"),
        &json!({"f:metadata": {"f:labels": {".": {}, "f:l": {}}}})
    );
    let mut changed = patched.clone();
    changed["data"] = json!({"a": "2"});
    let changed = ok(
        &client,
        "PUT",
        &format!("{MAPS}/a?fieldManager=two"),
        &changed,
    )
    .await;
    assert_eq!(of(&entries(&changed), "one"), &json!({"f:data": {}}));
    assert_eq!(
        of(&entries(&changed), "two"),
        &json!({"f:data": {"f:a": {}}})
    );
    // Who leaves the managed fields out does not lose them.
    let mut bare = changed.clone();
    bare["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("managedFields");
    let same = ok(&client, "PUT", &format!("{MAPS}/a?fieldManager=two"), &bare).await;
    assert_eq!(same, changed);
    // Who empties them has none from then on, until somebody applies.
    let clear = json!({"metadata": {"managedFields": [{}]}}).to_string();
    let (_, cleared) = call_as(&client, "PATCH", &format!("{MAPS}/a"), merge, clear).await;
    assert_eq!(cleared["metadata"].get("managedFields"), None);
    let uri = format!("{MAPS}/a?fieldManager=m");
    let applied = apply(&client, &uri, &map("a", &json!({"b": "1"}))).await;
    let all = entries(&applied);
    assert_eq!(of(&all, "m"), &json!({"f:data": {"f:b": {}}}));
    assert_eq!(
        of(&all, "before-first-apply"),
        &json!({"f:data": {".": {}, "f:a": {}}, "f:metadata": {"f:labels": {".": {}, "f:l": {}}}})
    );
    let odd = json!({"metadata": {"managedFields": "x"}}).to_string();
    let (code, _) = call_as(&client, "PATCH", &format!("{MAPS}/a"), merge, odd).await;
    assert!(code.is_client_error());
    let list = ok(&client, "GET", MAPS, &Value::Null).await;
    let item = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|i| i["metadata"]["name"] == "a");
    assert_eq!(entries(item.unwrap()).len(), 2);
}

#[tokio::test]
async fn pods_are_tracked_as_upstream_tracks_them() {
    let server = Server::start().await;
    let client = server.client();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "nodeSelector": {"x": "y"},
        "containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "1"}],
            "volumeMounts": [{"name": "v", "mountPath": "/x"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    }});
    let made = ok(&client, "POST", &format!("{PODS}?fieldManager=u"), &pod).await;
    let fields = of(&entries(&made), "u").clone();
    let spec = &fields["f:spec"];
    assert_eq!(spec["f:nodeSelector"], json!({}));
    assert_eq!(
        spec["f:volumes"][r#"k:{"name":"v"}"#],
        json!({".": {}, "f:emptyDir": {}, "f:name": {}})
    );
    let container = &spec["f:containers"][r#"k:{"name":"c"}"#];
    assert_eq!(
        container["f:env"],
        json!({".": {}, r#"k:{"name":"A"}"#: {".": {}, "f:name": {}, "f:value": {}}})
    );
    assert_eq!(spec["f:containers"].get("."), None);
    assert_eq!(fields.get("f:status"), None);

    let uri = format!("{PODS}/p?fieldManager=m");
    let (_, refused) = try_apply(
        &client,
        &uri,
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "j"}]}}),
    )
    .await;
    assert_eq!(
        refused["message"],
        "Apply failed with 1 conflict: conflict with \"u\" using v1: .spec.containers[name=\"c\"].image"
    );
    let status = |phase: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": {"phase": phase}});
    let mine = apply(
        &client,
        &format!("{PODS}/p/status?fieldManager=s"),
        &status("Running"),
    )
    .await;
    assert_eq!(mine["status"]["phase"], "Running");
    let entry = entries(&mine).into_iter().find(|e| e.0 == "s").unwrap();
    assert_eq!(
        (entry.2.as_str(), entry.3),
        ("status", json!({"f:status": {"f:phase": {}}}))
    );
    let (_, refused) = try_apply(
        &client,
        &format!("{PODS}/p/status?fieldManager=t"),
        &status("Failed"),
    )
    .await;
    assert_eq!(
        refused["message"],
        "Apply failed with 1 conflict: conflict with \"s\" with subresource \"status\": .status.phase"
    );
    // By way of the object itself the status is nobody's to change, or to own.
    let main = apply(&client, &uri, &status("Failed")).await;
    assert_eq!(
        (main["status"]["phase"].as_str(), of(&entries(&main), "m")),
        (Some("Running"), &Value::Null)
    );
    let (code, _) = try_apply(
        &client,
        &format!("{PODS}/q/status?fieldManager=s"),
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "q"}, "status": {}}),
    )
    .await;
    assert_eq!(code, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn custom_resources_and_their_status() {
    let server = Server::start().await;
    let client = server.client();
    ok(
        &client,
        "POST",
        &format!("{WIDGETS}?fieldManager=u"),
        &widget("w", 1),
    )
    .await;
    let config = |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec});
    let uri = format!("{WIDGETS}/w?fieldManager=m");
    let (code, status) = try_apply(&client, &uri, &config(json!({"size": 2}))).await;
    assert_eq!(
        (code.as_u16(), status["message"].as_str().unwrap()),
        (
            409,
            "Apply failed with 1 conflict: conflict with \"u\" using example.com/v1: .spec.size"
        )
    );
    let shared = apply(&client, &uri, &config(json!({"size": 1}))).await;
    assert_eq!(
        of(&entries(&shared), "m"),
        &json!({"f:spec": {"f:size": {}}})
    );
    assert_eq!(
        of(&entries(&shared), "u"),
        &json!({"f:spec": {".": {}, "f:color": {}, "f:size": {}}})
    );
    let generation = shared["metadata"]["generation"].clone();
    let status = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "status": {"phase": "P"}});
    let with = apply(
        &client,
        &format!("{WIDGETS}/w/status?fieldManager=s"),
        &status,
    )
    .await;
    assert_eq!(
        (&with["status"]["phase"], &with["metadata"]["generation"]),
        (&json!("P"), &generation)
    );
    // Another version of the same object: the entry says which.
    let old = json!({"apiVersion": "example.com/v1alpha1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"color": "red"}});
    let alpha = "/apis/example.com/v1alpha1/namespaces/default/widgets/w?fieldManager=m&force=true";
    let changed = apply(&client, alpha, &old).await;
    assert_eq!(changed["spec"], json!({"size": 1, "color": "red"}));
    let list = changed["metadata"]["managedFields"].as_array().unwrap();
    let entry = list.iter().find(|e| e["manager"] == "m").unwrap();
    assert_eq!(
        (&entry["apiVersion"], &entry["fieldsV1"]),
        (
            &json!("example.com/v1alpha1"),
            &json!({"f:spec": {"f:color": {}}})
        )
    );
    let (code, _) = try_apply(&client, &uri, &config(json!({"size": 0, "color": "x"}))).await;
    assert_ne!(code, StatusCode::OK, "the schema is asked as well");
}

#[tokio::test]
async fn two_appliers_at_once_lose_nothing() {
    let server = Server::start().await;
    let client = server.client();
    let each = |n: usize| {
        let client = client.clone();
        async move {
            let uri = format!("{MAPS}/shared?fieldManager=m{n}");
            let mut data = serde_json::Map::new();
            data.insert(format!("k{n}"), json!("v"));
            apply(&client, &uri, &map("shared", &Value::Object(data))).await;
        }
    };
    futures::future::join_all((0..8).map(each)).await;
    let all = ok(&client, "GET", &format!("{MAPS}/shared"), &Value::Null).await;
    assert_eq!(all["data"].as_object().unwrap().len(), 8);
    assert_eq!(entries(&all).len(), 8);
}
