//! The built-in kinds: what a typed decoder refuses, unknown and repeated fields, their main rules.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{Server, call, call_as, ok};
use http::StatusCode;
use kube::Client;
use serde_json::{Value, json};

const NS: &str = "/api/v1/namespaces/default";

fn object(kind: &str, name: &str, more: &Value) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
    for (key, value) in more.as_object().unwrap() {
        object[key] = value.clone();
    }
    object
}

async fn refused(client: &Client, method: &str, uri: &str, body: &Value, code: u16) -> String {
    let (status, answer) = call(client, method, uri, body).await;
    assert_eq!(status.as_u16(), code, "{answer}");
    answer["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn types() {
    let server = Server::start().await;
    let client = server.client();
    let maps = format!("{NS}/configmaps");
    let start = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: ";
    for (more, why) in [
        (
            json!({"data": {"k": 1}}),
            "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
        ),
        (
            json!({"immutable": "x"}),
            "json: cannot unmarshal string into Go struct field ConfigMap.immutable of type bool",
        ),
        (
            json!({"binaryData": {"k": "!!"}}),
            "illegal base64 data at input byte 0",
        ),
        (
            json!({"metadata": {"name": "a", "labels": {"a": 1}}}),
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
    ] {
        let message = refused(
            &client,
            "POST",
            &maps,
            &object("ConfigMap", "a", &more),
            400,
        )
        .await;
        assert_eq!(message, format!("{start}{why}"));
    }
    ok(
        &client,
        "POST",
        &maps,
        &object("ConfigMap", "a", &json!({"data": {"k": "v"}})),
    )
    .await;
    let (code, answer) = call_as(
        &client,
        "PATCH",
        &format!("{maps}/a"),
        "application/merge-patch+json",
        json!({"data": {"k": 1}}).to_string(),
    )
    .await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    assert_eq!(answer["details"]["causes"][0]["field"], "patch");
}

#[tokio::test]
async fn unknown_and_repeated_fields() {
    let server = Server::start().await;
    let client = server.client();
    let maps = format!("{NS}/configmaps");
    let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"},"dataa":{"k":"v"},"data":{"k":"1","k":"2"}}"#;
    let (code, answer) = call_as(
        &client,
        "POST",
        &format!("{maps}?fieldValidation=Strict"),
        "application/json",
        body.into(),
    )
    .await;
    assert_eq!(code, StatusCode::BAD_REQUEST);
    assert_eq!(
        answer["message"],
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \"data.k\", \
         unknown field \"dataa\""
    );
    let request = http::Request::post(&maps)
        .header("content-type", "application/json")
        .body(kube::client::Body::from(body.as_bytes().to_vec()))
        .unwrap();
    let response = client.send(request).await.unwrap();
    let warnings: Vec<_> = response
        .headers()
        .get_all("warning")
        .iter()
        .map(|w| w.to_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        warnings,
        [
            r#"299 - "duplicate field \"data.k\"""#,
            r#"299 - "unknown field \"dataa\"""#
        ]
    );
    let quiet = http::Request::post(format!("{maps}?fieldValidation=Ignore&dryRun=All"))
        .header("content-type", "application/json")
        .body(kube::client::Body::from(
            body.replace("\"b\"", "\"c\"").into_bytes(),
        ))
        .unwrap();
    assert!(
        client
            .send(quiet)
            .await
            .unwrap()
            .headers()
            .get("warning")
            .is_none()
    );
    let message = refused(
        &client,
        "POST",
        &format!("{maps}?fieldValidation=Foo"),
        &object("ConfigMap", "c", &json!({})),
        422,
    )
    .await;
    assert_eq!(
        message,
        "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"Foo\": supported values: \"\", \
         \"Ignore\", \"Strict\", \"Warn\""
    );
    let message = refused(
        &client,
        "POST",
        &format!("{maps}?dryRun=Foo"),
        &object("ConfigMap", "c", &json!({})),
        422,
    )
    .await;
    assert_eq!(
        message,
        "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"Foo\"]: supported values: \"All\""
    );
}

#[tokio::test]
async fn rules_of_new_objects() {
    let server = Server::start().await;
    let client = server.client();
    let storage = "/apis/storage.k8s.io/v1/storageclasses".to_owned();
    let class = |more: &Value| {
        let mut class = object("StorageClass", "x", more);
        class["apiVersion"] = json!("storage.k8s.io/v1");
        class
    };
    let key = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  \
        or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
    let rows: Vec<(String, Value, String)> = vec![
        (
            format!("{NS}/configmaps"),
            object("ConfigMap", "c", &json!({"data": {"a b": "x"}, "binaryData": {"..": "eA=="}})),
            format!("ConfigMap \"c\" is invalid: [data[a b]: Invalid value: \"a b\": {key}, binaryData[..]: Invalid value: \"..\": must not be '..']"),
        ),
        (
            format!("{NS}/configmaps"),
            object("ConfigMap", "c", &json!({"data": {"ab": "x"}, "binaryData": {"ab": "eA=="}})),
            "ConfigMap \"c\" is invalid: data[ab]: Invalid value: \"ab\": duplicate of key present in binaryData".into(),
        ),
        (
            format!("{NS}/configmaps"),
            object("ConfigMap", "z", &json!({"metadata": {"name": "z", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod"}], "finalizers": ["foo"]}})),
            "ConfigMap \"z\" is invalid: [metadata.ownerReferences.name: Invalid value: \"\": must not be empty, \
             metadata.ownerReferences.uid: Invalid value: \"\": must not be empty, metadata.finalizers[0]: Invalid value: \
             \"foo\": name is neither a standard finalizer name nor is it fully qualified]".into(),
        ),
        (
            format!("{NS}/secrets"),
            object("Secret", "s", &json!({"type": "kubernetes.io/tls", "data": {}})),
            "Secret \"s\" is invalid: [data[tls.crt]: Required value, data[tls.key]: Required value]".into(),
        ),
        (
            format!("{NS}/secrets"),
            object("Secret", "s", &json!({"type": "kubernetes.io/basic-auth"})),
            "Secret \"s\" is invalid: [data[username]: Required value, data[password]: Required value]".into(),
        ),
        (
            format!("{NS}/secrets"),
            object("Secret", "s", &json!({"type": "kubernetes.io/dockerconfigjson"})),
            "Secret \"s\" is invalid: data[.dockerconfigjson]: Required value".into(),
        ),
        (storage.clone(), class(&json!({})), "StorageClass.storage.k8s.io \"x\" is invalid: provisioner: Required value".into()),
        (
            storage,
            class(&json!({"provisioner": "a.b/c", "reclaimPolicy": "Foo", "volumeBindingMode": "Bar"})),
            "StorageClass.storage.k8s.io \"x\" is invalid: [reclaimPolicy: Unsupported value: \"Foo\": supported values: \
             \"Delete\", \"Retain\", volumeBindingMode: Unsupported value: \"Bar\": supported values: \"Immediate\", \
             \"WaitForFirstConsumer\"]".into(),
        ),
        (
            format!("{NS}/persistentvolumeclaims"),
            object("PersistentVolumeClaim", "p", &json!({"spec": {}})),
            "PersistentVolumeClaim \"p\" is invalid: [spec.accessModes: Required value: at least 1 access mode is required, \
             spec.resources[storage]: Required value]".into(),
        ),
        (
            format!("{NS}/pods"),
            object("Pod", "p", &json!({"spec": {"containers": [{"name": "A", "image": ""}, {"name": "b", "image": "x"}, {"name": "b", "image": "x"}], "restartPolicy": "Foo"}})),
            "Pod \"p\" is invalid: [spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of \
             lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. \
             'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?'), \
             spec.containers[0].image: Required value, spec.containers[2].name: Duplicate value: \"b\", \
             spec.restartPolicy: Unsupported value: \"Foo\": supported values: \"Always\", \"OnFailure\", \"Never\"]".into(),
        ),
        (
            format!("{NS}/events"),
            object("Event", "e", &json!({"involvedObject": {"namespace": "other"}})),
            "Event \"e\" is invalid: involvedObject.namespace: Invalid value: \"other\": does not match event.namespace".into(),
        ),
    ];
    for (uri, body, message) in rows {
        assert_eq!(refused(&client, "POST", &uri, &body, 422).await, message);
    }
}

#[tokio::test]
async fn what_does_not_change() {
    let server = Server::start().await;
    let client = server.client();
    let secrets = format!("{NS}/secrets");
    ok(
        &client,
        "POST",
        &secrets,
        &object(
            "Secret",
            "s",
            &json!({"immutable": true, "data": {"a": "eA=="}}),
        ),
    )
    .await;
    let changed = object(
        "Secret",
        "s",
        &json!({"type": "foo/x", "data": {"a": "eQ=="}}),
    );
    assert_eq!(
        refused(&client, "PUT", &format!("{secrets}/s"), &changed, 422).await,
        "Secret \"s\" is invalid: [type: Invalid value: \"foo/x\": field is immutable, immutable: Forbidden: field is immutable \
         when `immutable` is set, data: Forbidden: field is immutable when `immutable` is set]"
    );
    let classes = "/apis/storage.k8s.io/v1/storageclasses";
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "x"}, "provisioner": "a.b/c"});
    ok(&client, "POST", classes, &class).await;
    let mut other = class.clone();
    other["provisioner"] = json!("a.b/d");
    other["volumeBindingMode"] = json!("WaitForFirstConsumer");
    assert_eq!(
        refused(&client, "PUT", &format!("{classes}/x"), &other, 422).await,
        "StorageClass.storage.k8s.io \"x\" is invalid: [provisioner: Forbidden: updates to provisioner are forbidden., \
         volumeBindingMode: Invalid value: \"WaitForFirstConsumer\": field is immutable]"
    );
    let claims = format!("{NS}/persistentvolumeclaims");
    let claim = |size: &str, volume: &str| {
        object(
            "PersistentVolumeClaim",
            "p",
            &json!({"spec": {"accessModes": ["ReadWriteOnce"], "volumeName": volume,
            "resources": {"requests": {"storage": size}}}}),
        )
    };
    ok(&client, "POST", &claims, &claim("1Gi", "")).await;
    let message = refused(
        &client,
        "PUT",
        &format!("{claims}/p"),
        &claim("2Gi", ""),
        422,
    )
    .await;
    assert!(message.starts_with("PersistentVolumeClaim \"p\" is invalid: spec: Forbidden: spec is immutable after creation except"), "{message}");
    let mut bound = ok(&client, "PUT", &format!("{claims}/p"), &claim("1Gi", "pv")).await;
    bound["status"] = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
    ok(&client, "PUT", &format!("{claims}/p/status"), &bound).await;
    ok(&client, "PUT", &format!("{claims}/p"), &claim("2Gi", "pv")).await;
}

#[tokio::test]
async fn some_kinds_are_created_by_an_update() {
    let server = Server::start().await;
    let client = server.client();
    let lease =
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}});
    let (code, made) = call(
        &client,
        "PUT",
        "/apis/coordination.k8s.io/v1/namespaces/default/leases/l",
        &lease,
    )
    .await;
    assert_eq!(
        (code, made["metadata"]["uid"].is_string()),
        (StatusCode::CREATED, true)
    );
    let (code, _) = call(
        &client,
        "PUT",
        &format!("{NS}/serviceaccounts/a"),
        &object("ServiceAccount", "a", &json!({})),
    )
    .await;
    assert_eq!(code, StatusCode::NOT_FOUND);
}
