//! The `scale` subresource of custom resources: `autoscaling/v1` Scale, read from and written to the paths that the
//! definition names.

use axum::body::Body;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::golang;
use crate::patch::Patch;
use crate::registry::catalog::Scope;
use crate::registry::query::Call;
use crate::registry::{Core, content, meta};
use crate::schema::FieldError;

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
                    Some(patch) => patch.apply(&show(scope, old)?, None)?,
                    None => whole.clone(),
                };
                resize(scope, old, &scale)
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

/// What is wrong with the numbers of replicas of a custom resource that can be scaled.
pub(crate) fn check(scope: &Scope, object: &Value) -> Vec<FieldError> {
    let paths = &scope.version().scale_paths;
    let mut errors = Vec::new();
    for path in [&paths.spec, &paths.status] {
        if path.is_empty() {
            continue;
        }
        let mut wrong = |shown: &Value, detail: &str| {
            errors.push(FieldError::invalid(path.as_str(), shown, detail));
        };
        match replicas_at(object, path) {
            Ok(Some(replicas)) if replicas < 0 => {
                wrong(&json!(replicas), "should be a non-negative integer");
            }
            Ok(Some(replicas)) if replicas > i64::from(i32::MAX) => {
                let detail = format!("should be less than or equal to {}", i32::MAX);
                wrong(&json!(replicas), &detail);
            }
            Ok(_) => {}
            Err(why) => wrong(&json!(0), &why),
        }
    }
    errors
}

/// The number at a path; none if it or a part of the way to it is missing. The refusal is upstream's, with Go's types.
fn replicas_at(object: &Value, path: &str) -> Result<Option<i64>, String> {
    let refuse = |way: &str, found: &Value, expected: &str| {
        let kind = match found {
            Value::Null => "<nil>",
            found => golang::dynamic_type(found),
        };
        format!(
            "{way} accessor error: {} is of the type {kind}, expected {expected}",
            golang::value(found)
        )
    };
    let mut at = object;
    let mut way = String::new();
    for part in path.split('.').filter(|part| !part.is_empty()) {
        way = format!("{way}.{part}");
        at = match at {
            Value::Null => return Ok(None),
            Value::Object(map) => match map.get(part) {
                Some(inner) => inner,
                None => return Ok(None),
            },
            other => return Err(refuse(&way, other, "map[string]interface{}")),
        };
    }
    at.as_i64()
        .map(Some)
        .ok_or_else(|| refuse(&way, at, "int64"))
}

/// The object with the replicas of the scale.
fn resize(scope: &Scope, old: &Value, scale: &Value) -> Result<Value, ApiError> {
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
