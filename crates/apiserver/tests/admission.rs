//! Admission sees every way to write, can refuse with causes or with a message, and can warn.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::sync::{Arc, Mutex};

use berth_apiserver::{Admission, AdmissionDenied, AdmissionRequest, Admitted, Operation};
use common::{Server, call, call_as, ok, widget};
use http::StatusCode;
use serde_json::{Value, json};

const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

/// Writes down what it is asked, and forbids what is called `locked`.
#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl Admission for Recorder {
    fn admit(&self, request: AdmissionRequest<'_>) -> Result<Admitted, AdmissionDenied> {
        if request.kind != "Widget" {
            return Ok(Admitted::default());
        }
        let objects = (request.object.is_some(), request.old_object.is_some());
        let expected = match request.operation {
            Operation::Create => (true, false),
            Operation::Update => (true, true),
            Operation::Delete => (false, true),
        };
        assert_eq!(objects, expected, "{:?}", request.operation);
        let sub = request
            .subresource
            .map(|s| format!("/{s}"))
            .unwrap_or_default();
        let dry = if request.dry_run { " dry" } else { "" };
        self.0.lock().unwrap().push(format!(
            "{:?} {}{sub}{dry}",
            request.operation, request.name
        ));
        if request.name == "locked" {
            return Err(AdmissionDenied::Forbidden("it is locked".into()));
        }
        Ok(Admitted {
            object: None,
            warnings: Vec::new(),
        })
    }
}

#[tokio::test]
async fn every_write_is_seen() {
    let recorder = Arc::new(Recorder::default());
    let server = Server::with(recorder.clone()).await;
    let client = server.client();
    let seen = || std::mem::take(&mut *recorder.0.lock().unwrap());
    let one = format!("{WIDGETS}/a");

    let mut made = ok(&client, "POST", WIDGETS, &widget("a", 1)).await;
    assert_eq!(seen(), ["Create a"]);
    ok(
        &client,
        "POST",
        &format!("{WIDGETS}?dryRun=All"),
        &widget("b", 1),
    )
    .await;
    assert_eq!(seen(), ["Create b dry"]);
    made["spec"]["size"] = json!(2);
    ok(&client, "PUT", &one, &made).await;
    assert_eq!(seen(), ["Update a"]);
    for (media, body) in [
        ("application/merge-patch+json", json!({"spec": {"size": 3}})),
        (
            "application/json-patch+json",
            json!([{"op": "replace", "path": "/spec/size", "value": 4}]),
        ),
    ] {
        let (code, _) = call_as(&client, "PATCH", &one, media, body.to_string()).await;
        assert_eq!(
            (code, seen()),
            (StatusCode::OK, vec!["Update a".to_owned()]),
            "{media}"
        );
    }
    let status = json!({"status": {"phase": "Up"}}).to_string();
    let (code, _) = call_as(
        &client,
        "PATCH",
        &format!("{one}/status"),
        "application/merge-patch+json",
        status,
    )
    .await;
    assert_eq!(
        (code, seen()),
        (StatusCode::OK, vec!["Update a/status".to_owned()])
    );
    let mut now = ok(&client, "GET", &one, &Value::Null).await;
    now["status"]["phase"] = json!("Down");
    ok(&client, "PUT", &format!("{one}/status"), &now).await;
    assert_eq!(seen(), ["Update a/status"]);
    ok(
        &client,
        "DELETE",
        &format!("{one}?dryRun=All"),
        &Value::Null,
    )
    .await;
    assert_eq!(seen(), ["Delete a dry"]);
    ok(&client, "DELETE", &one, &Value::Null).await;
    assert_eq!(seen(), ["Delete a"]);
    for name in ["c", "d"] {
        ok(&client, "POST", WIDGETS, &widget(name, 1)).await;
    }
    seen();
    ok(&client, "DELETE", WIDGETS, &Value::Null).await;
    assert_eq!(seen(), ["Delete c", "Delete d"]);
}

#[tokio::test]
async fn a_refusal_can_be_forbidden() {
    let server = Server::with(Arc::new(Recorder::default())).await;
    let client = server.client();
    let (code, refused) = call(&client, "POST", WIDGETS, &widget("locked", 1)).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(refused["reason"], "Forbidden");
    assert_eq!(
        refused["message"],
        "widgets.example.com \"locked\" is forbidden: it is locked"
    );
}
