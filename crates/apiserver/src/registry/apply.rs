//! Server-side apply: a PATCH that says what its manager wants the object to be, as far as it cares.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::error::{ApiError, Cause, Target};
use crate::registry::catalog::Scope;
use crate::registry::managers::{self, Writer};
use crate::registry::query::Call;
use crate::registry::read::show;
use crate::registry::{Core, content, meta};

/// The media type of what is applied.
pub(crate) const MEDIA: &str = "application/apply-patch+yaml";
/// How often an object may come or go between looking and writing.
const TRIES: usize = 5;

impl Core {
    pub(crate) async fn apply(
        &self,
        call: &mut Call,
        scope: &Scope,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        if call.query.get("fieldManager").is_empty() {
            return Err(options_error(Cause::required(
                "fieldManager",
                "is required for apply patch",
            )));
        }
        let force = call.query.flag("force");
        let config = content::parse("application/yaml", &content::read(body).await?)?;
        if !config.is_object() {
            return Err(ApiError::BadRequest(format!(
                "error decoding YAML: {config} is not an object"
            )));
        }
        check(call, scope, &config)?;
        call.applied = true;
        let writer = Writer::of(call, scope, true);
        for _ in 0..TRIES {
            let namespace = call.info.namespace_of(scope);
            let exists = match self.read(scope, &namespace, &call.info.name) {
                Ok(_) => true,
                Err(ApiError::NotFound(_)) if call.info.subresource.is_empty() => false,
                Err(other) => return Err(other),
            };
            let done = if exists {
                self.update_object(call, scope, &|live| {
                    managers::apply(scope, &writer, live, &config, force)
                })
                .await
                .map(|object| (StatusCode::OK, object))
            } else {
                // Who may patch may not therefore create.
                let mut create = call.info.clone();
                create.verb = "create".into();
                self.permit(&call.user, &create)?;
                let object = managers::apply(scope, &writer, &json!({}), &config, force)?;
                self.create_object(call, scope, object)
                    .await
                    .map(|object| (StatusCode::CREATED, object))
            };
            match done {
                Ok((code, object)) => return Ok(show(call, scope, code, &object)),
                Err(ApiError::NotFound(_)) if exists => {}
                Err(ApiError::AlreadyExists(_)) if !exists => {}
                Err(other) => return Err(other),
            }
        }
        Err(ApiError::Unavailable(
            "the object keeps coming and going".into(),
        ))
    }
}

/// What a configuration must not say, and a PATCH must not ask for.
fn check(call: &Call, scope: &Scope, config: &Value) -> Result<(), ApiError> {
    let managed = config.pointer("/metadata/managedFields");
    if managed.is_some_and(|fields| !fields.is_null()) {
        return Err(ApiError::BadRequest(
            "metadata.managedFields must be nil".into(),
        ));
    }
    meta::check_shape(
        config,
        &scope.def.kind,
        &scope.version().name,
        scope.def.crd,
    )?;
    let name = meta::name(config);
    if !name.is_empty() && name != call.info.name {
        return Err(ApiError::BadRequest(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.info.name
        )));
    }
    let text = |field| meta::text(config, &[field]);
    if text("apiVersion").is_empty() && text("kind").is_empty() {
        return Err(ApiError::BadRequest("invalid object type: /, Kind=".into()));
    }
    // What is missing is not filled in: the configuration has to stand for itself.
    for field in ["apiVersion", "kind"] {
        if meta::text(config, &[field]).is_empty() {
            return Err(ApiError::BadRequest(format!(
                "error decoding YAML: Object '{}' is missing in '{config}'",
                if field == "kind" { "Kind" } else { field }
            )));
        }
    }
    let version = scope.api_version();
    if meta::text(config, &["apiVersion"]) != version {
        return Err(ApiError::BadRequest(format!(
            "Incorrect version specified in apply patch. Specified patch version: {}, expected: {version}",
            meta::text(config, &["apiVersion"]),
        )));
    }
    Ok(())
}

/// `force` belongs to apply alone.
pub(crate) fn check_force(call: &Call) -> Result<(), ApiError> {
    if call.query.get("force").is_empty() {
        return Ok(());
    }
    Err(options_error(Cause::forbidden(
        "force",
        "may not be specified for non-apply patch",
    )))
}

fn options_error(cause: Cause) -> ApiError {
    ApiError::Invalid {
        target: Target::new("meta.k8s.io", "PatchOptions", ""),
        causes: vec![cause],
    }
}
