//! What is read of a guest: `GET …/virtualmachineinstances/{name}/guestosinfo`, `userlist`, `filesystemlist`, by the agent in
//! the guest, and `vnc/screenshot`.
//!
//! 404 when there is no such machine, 409 while its guest does not run or, for the first three, no agent answers in it, 400
//! for a screenshot of a machine without a screen.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header;
use serde_json::{Value, json};

use crate::lifecycle::ordered;
use crate::{Order, Refused, Shared};

/// The version of the kinds that are answered.
const VERSION: &str = "kubevirt.io/v1";

/// Of one machine: its namespace and its name.
type Of = Path<(String, String)>;

pub(crate) async fn info(shared: State<Shared>, of: Of) -> Response {
    answer(ordered(&shared, &of, Order::GuestInfo).await, |mut info| {
        info["kind"] = "VirtualMachineInstanceGuestAgentInfo".into();
        info["apiVersion"] = VERSION.into();
        info
    })
}

pub(crate) async fn users(shared: State<Shared>, of: Of) -> Response {
    let found = ordered(&shared, &of, Order::Users).await;
    answer(found, |users| {
        list("VirtualMachineInstanceGuestOSUserList", &users)
    })
}

pub(crate) async fn file_systems(shared: State<Shared>, of: Of) -> Response {
    let found = ordered(&shared, &of, Order::FileSystems).await;
    answer(found, |mounted| {
        list("VirtualMachineInstanceFileSystemList", &mounted)
    })
}

pub(crate) async fn screenshot(shared: State<Shared>, of: Of) -> Response {
    let found = ordered(&shared, &of, Order::Screenshot).await;
    let png = found.and_then(|data| {
        let text = data.as_str().ok_or(Refused::Answer)?;
        BASE64.decode(text).map_err(|_| Refused::Answer)
    });
    match png {
        Ok(png) => ([(header::CONTENT_TYPE, "image/png")], png).into_response(),
        Err(refused) => refused.into_response(),
    }
}

fn answer(found: Result<Value, Refused>, shape: impl FnOnce(Value) -> Value) -> Response {
    match found {
        Ok(value) => Json(shape(value)).into_response(),
        Err(refused) => refused.into_response(),
    }
}

fn list(kind: &str, items: &Value) -> Value {
    json!({"kind": kind, "apiVersion": VERSION, "metadata": {}, "items": items})
}
