//! The `scale` subresource of custom resources: `autoscaling/v1` Scale, read from and written to the paths that the
//! definition names.

use axum::body::Body;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::error::{ApiError, Cause};
use crate::patch::Patch;
use crate::registry::catalog::Scope;
use crate::registry::query::Call;
use crate::registry::{Core, content, meta};

impl Core {
    pub(crate) async fn scale(
        &self,
        call: &mut Call,
        scope: &Scope,
        method: &Method,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        let name = call.info.name.clone();
        if matches!(*method, Method::GET | Method::HEAD) {
            let stored = self.read(scope, &call.info.namespace_of(scope), &name)?;
            let shown = show(scope, &scope.present(&stored)?)?;
            return Ok(content::answer(StatusCode::OK, &shown, &call.warnings));
        }
        let media = content::media_type(&call.headers);
        let bytes = content::read(body).await?;
        let (patch, whole) = if *method == Method::PATCH {
            (
                Some(Patch::parse(&media, &bytes, scope.def.crd)?),
                Value::Null,
            )
        } else {
            (None, content::parse(&media, &bytes)?)
        };
        let object = self
            .update_object(call, scope, &|old| {
                let scale = match &patch {
                    Some(patch) => patch.apply(&show(scope, old)?)?,
                    None => whole.clone(),
                };
                resize(scope, &name, old, &scale)
            })
            .await?;
        Ok(content::answer(
            StatusCode::OK,
            &show(scope, &object)?,
            &call.warnings,
        ))
    }
}

/// A JSON path of a definition (`.spec.replicas`) as a JSON pointer.
fn pointer(path: &str) -> String {
    path.replace('.', "/")
}

fn show(scope: &Scope, object: &Value) -> Result<Value, ApiError> {
    let paths = &scope.version().scale_paths;
    let number = |path: &str| object.pointer(&pointer(path)).and_then(Value::as_i64);
    let Some(replicas) = number(&paths.spec) else {
        return Err(ApiError::Internal(format!(
            "the spec replicas field {:?} does not exist",
            paths.spec
        )));
    };
    let metadata = &object["metadata"];
    let mut shown = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": replicas},
        "status": {"replicas": number(&paths.status).unwrap_or(0)},
    });
    if metadata["namespace"].is_string() {
        shown["metadata"]["namespace"] = metadata["namespace"].clone();
    }
    let selector = object
        .pointer(&pointer(&paths.selector))
        .and_then(Value::as_str);
    if let Some(selector) = selector.filter(|_| !paths.selector.is_empty()) {
        shown["status"]["selector"] = json!(selector);
    }
    Ok(shown)
}

/// The object with the replicas of the scale.
fn resize(scope: &Scope, name: &str, old: &Value, scale: &Value) -> Result<Value, ApiError> {
    let given = meta::text(scale, &["kind"]);
    if !matches!(given, "" | "Scale") {
        return Err(ApiError::BadRequest(format!(
            "wrong object passed to Scale update: {given}"
        )));
    }
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => 0,
        value => value.as_i64().ok_or_else(|| {
            ApiError::BadRequest(format!(
                "Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal {value} into Go struct field \
                 ScaleSpec.spec.replicas of type int32"
            ))
        })?,
    };
    let path = &scope.version().scale_paths.spec;
    if replicas < 0 {
        let cause = Cause::invalid(path, replicas, "should be a non-negative integer");
        return Err(ApiError::Invalid {
            target: scope.kind_target(name),
            causes: vec![cause],
        });
    }
    let mut new = old.clone();
    let mut parts = path.split('.').filter(|part| !part.is_empty()).peekable();
    let mut at = &mut new;
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            at[part] = json!(replicas);
            break;
        }
        meta::entry(at, part);
        at = &mut at[part];
    }
    let metadata = meta::metadata(&mut new);
    // A scale without a revision is about whatever is stored.
    for field in ["uid", "resourceVersion"] {
        if let Some(value) = scale["metadata"][field]
            .as_str()
            .filter(|value| !value.is_empty())
        {
            metadata.insert(field.into(), json!(value));
        }
    }
    Ok(new)
}
