//! Admission webhooks: `POST /mutate` and `POST /validate`, an `AdmissionReview` (`admission.k8s.io/v1`) each way.
//!
//! Both ask [`berth_admission::admit`]. What it fills in goes back as a JSON patch; after all other webhooks have had
//! their say, `/validate` asks again and only refuses. The function is pure, so whoever can reach the port learns nothing
//! and changes nothing.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use berth_admission::{Admitted, Operation, Refusal, Request, admit};
use bytes::Bytes;
use serde_json::{Value, json};

/// Largest review: an object and its predecessor, each at most what an API server accepts, and what is around them.
const MAX_BODY: usize = 7 << 20;

/// The routes: the two webhooks, and `/readyz` for probes.
pub fn router() -> Router {
    let webhook = |patches: bool| post(move |body: Bytes| async move { answer(&body, patches) });
    Router::new()
        .route("/mutate", webhook(true))
        .route("/validate", webhook(false))
        .route("/readyz", get(|| async { "ok" }))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

fn answer(body: &[u8], patches: bool) -> Response {
    match serde_json::from_slice::<Value>(body)
        .map_err(|e| e.to_string())
        .and_then(|review| respond(&review, patches))
    {
        Ok(review) => axum::Json(review).into_response(),
        Err(why) => (StatusCode::BAD_REQUEST, why).into_response(),
    }
}

/// The answer to a review. An error is the caller's: it sent no review.
fn respond(review: &Value, patches: bool) -> Result<Value, String> {
    let version = review["apiVersion"].as_str().unwrap_or_default();
    if version != "admission.k8s.io/v1" || review["kind"] != "AdmissionReview" {
        return Err(format!(
            "expected an AdmissionReview of admission.k8s.io/v1, got {} of {version:?}",
            review["kind"]
        ));
    }
    let request = &review["request"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let uid = text(&request["uid"]);
    if uid.is_empty() {
        return Err("request.uid: missing".into());
    }
    let operation = match request["operation"].as_str() {
        Some("CREATE") => Operation::Create,
        Some("UPDATE") => Operation::Update,
        Some("DELETE") => Operation::Delete,
        // What is no write is nobody's business here.
        _ => return Ok(allowed(&uid, None, &[])),
    };
    let object = Some(&request["object"]).filter(|o| o.is_object());
    let decision = admit(&Request {
        operation,
        kind: &text(&request["kind"]["kind"]),
        subresource: request["subResource"].as_str().filter(|s| !s.is_empty()),
        namespace: &text(&request["namespace"]),
        name: &text(&request["name"]),
        object,
        old_object: Some(&request["oldObject"]).filter(|o| o.is_object()),
    });
    Ok(match decision {
        Ok(Admitted {
            object: admitted,
            warnings,
        }) => {
            let patch = match (object, admitted) {
                (Some(before), Some(after)) if patches && *before != after => {
                    Some(json_patch::diff(before, &after))
                }
                _ => None,
            };
            // Each is said once, by the webhook that changes.
            let warnings = if patches { warnings } else { Vec::new() };
            allowed(&uid, patch.as_ref(), &warnings)
        }
        Err(refusal) => refused(&uid, &refusal),
    })
}

fn review(response: &Value) -> Value {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

fn allowed(uid: &str, patch: Option<&json_patch::Patch>, warnings: &[String]) -> Value {
    let mut response = json!({"uid": uid, "allowed": true});
    if let Some(patch) = patch {
        let text = serde_json::to_vec(patch).unwrap_or_default();
        response["patchType"] = "JSONPatch".into();
        response["patch"] = json!(k8s_openapi::ByteString(text));
    }
    if !warnings.is_empty() {
        response["warnings"] = json!(warnings);
    }
    review(&response)
}

/// Every cause, with its field; the message repeats them, for clients that show nothing else.
fn refused(uid: &str, refusal: &Refusal) -> Value {
    let causes: Vec<Value> = refusal
        .causes
        .iter()
        .map(|cause| {
            json!({"reason": cause.reason.as_str(), "field": cause.field, "message": cause.message})
        })
        .collect();
    let shown: Vec<String> = refusal
        .causes
        .iter()
        .map(|cause| format!("{}: {}", cause.field, cause.message))
        .collect();
    review(&json!({
        "uid": uid,
        "allowed": false,
        "status": {
            "status": "Failure",
            "code": 422,
            "reason": "Invalid",
            "message": shown.join(", "),
            "details": {"causes": causes},
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(operation: &str, object: &Value, old: &Value) -> Value {
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u1", "operation": operation, "namespace": "lab", "name": "a",
                "kind": {"group": "kubevirt.io", "version": "v1", "kind": "VirtualMachineInstance"},
                "object": object, "oldObject": old,
            },
        })
    }

    fn vmi(devices: &Value) -> Value {
        json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "a", "namespace": "lab"},
            "spec": {"domain": {"devices": devices, "memory": {"guest": "64Mi"}}},
        })
    }

    #[test]
    fn what_is_filled_in_comes_as_a_patch() {
        let object = vmi(&json!({}));
        let answer = respond(&asked("CREATE", &object, &Value::Null), true).unwrap();
        let response = &answer["response"];
        assert_eq!(
            (&response["uid"], &response["allowed"]),
            (&json!("u1"), &json!(true))
        );
        assert_eq!(response["patchType"], "JSONPatch");
        let patch: k8s_openapi::ByteString =
            serde_json::from_value(response["patch"].clone()).unwrap();
        let patch: json_patch::Patch = serde_json::from_slice(&patch.0).unwrap();
        let mut patched = object.clone();
        json_patch::patch(&mut patched, &patch).unwrap();
        assert_ne!(patched, object);
        // Done once, it is done.
        let again = respond(&asked("CREATE", &patched, &Value::Null), true).unwrap();
        assert_eq!(again["response"], json!({"uid": "u1", "allowed": true}));
        let only_looked = respond(&asked("CREATE", &object, &Value::Null), false).unwrap();
        assert_eq!(
            only_looked["response"],
            json!({"uid": "u1", "allowed": true})
        );
    }

    #[test]
    fn a_refusal_names_every_field() {
        let object = vmi(&json!({"disks": [{"name": "d", "disk": {"bus": "nonsense"}}]}));
        let answer = respond(&asked("CREATE", &object, &Value::Null), false).unwrap();
        let response = &answer["response"];
        assert_eq!(response["allowed"], false);
        assert_eq!(response["status"]["code"], 422);
        let causes = response["status"]["details"]["causes"].as_array().unwrap();
        assert!(!causes.is_empty());
        let message = response["status"]["message"].as_str().unwrap();
        for cause in causes {
            assert!(
                message.contains(cause["field"].as_str().unwrap()),
                "{message}"
            );
        }
    }

    #[test]
    fn what_is_no_review_is_the_callers_fault() {
        for body in [
            json!({}),
            json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"}),
        ] {
            assert!(respond(&body, true).is_err(), "{body}");
        }
        let response = answer(b"not json", true);
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let deletion = respond(&asked("DELETE", &Value::Null, &vmi(&json!({}))), true).unwrap();
        assert_eq!(deletion["response"]["allowed"], true);
    }
}
