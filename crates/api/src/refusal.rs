//! The body of a refusal: a `Status`, as every part that answers requests sends it.

use serde_json::{Value, json};

/// A failure with its HTTP code, its reason in one word of Kubernetes, and a sentence.
#[must_use]
pub fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    })
}
