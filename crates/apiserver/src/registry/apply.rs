//! PATCH with a configuration to apply (`application/apply-patch+yaml`): server-side apply.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::error::{ApiError, Cause, Target};
use crate::fields;
use crate::fields::apply::ApplyError;
use crate::registry::catalog::Scope;
use crate::registry::policy::Policy;
use crate::registry::query::Call;
use crate::registry::read::show;
use crate::registry::write::modified;
use crate::registry::{Core, content, managed, meta};

/// The media type of a configuration.
pub(crate) const MEDIA: &str = "application/apply-patch+yaml";

/// How often an object may be made or go between the look at it and the write.
const TRIES: usize = 8;

/// Only an apply can be forced.
pub(crate) fn check_not_forced(call: &Call) -> Result<(), ApiError> {
    if call.query.get("force").is_empty() {
        return Ok(());
    }
    Err(invalid_options(vec![Cause::forbidden(
        "force",
        "may not be specified for non-apply patch",
    )]))
}

fn invalid_options(causes: Vec<Cause>) -> ApiError {
    ApiError::Invalid {
        target: Target::new("meta.k8s.io", "PatchOptions", ""),
        causes,
    }
}

impl Core {
    /// Applies a configuration to the object or the status that the call names; an object that is not there is created.
    pub(crate) async fn apply(
        &self,
        call: &mut Call,
        scope: &Scope,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        let bytes = content::read(body).await?;
        let manager = call.query.get("fieldManager").to_owned();
        if manager.is_empty() {
            return Err(invalid_options(vec![Cause::required(
                "fieldManager",
                "is required for apply patch",
            )]));
        }
        call.manager()?;
        let config = parse(&bytes)?;
        check_config(scope, &config)?;
        let force = call.query.flag("force");
        call.applied = true;

        let name = call.info.name.clone();
        let namespace = call.info.namespace_of(scope);
        let warnings = call.warnings.len();
        for _ in 0..TRIES {
            call.warnings.truncate(warnings);
            let there = match self.read(scope, &namespace, &name) {
                Ok(_) => true,
                Err(ApiError::NotFound(_)) if call.info.subresource.is_empty() => false,
                Err(other) => return Err(other),
            };
            if there {
                let context = call.clone();
                let produce =
                    |old: &Value| merge(&context, scope, old, false, &config, &manager, force);
                match self.update_object(call, scope, &produce).await {
                    Err(ApiError::NotFound(_)) if call.info.subresource.is_empty() => continue,
                    other => return Ok(show(call, scope, StatusCode::OK, &other?)),
                }
            }
            let object = self.first(call, scope, &config, &manager, force)?;
            match self.create_object(call, scope, object).await {
                // Somebody was faster; a dry run sees that only here, too.
                Err(ApiError::AlreadyExists(_)) => {}
                other => return Ok(show(call, scope, StatusCode::CREATED, &other?)),
            }
        }
        Err(modified(scope.target(&name)))
    }

    /// The object that an apply creates.
    fn first(
        &self,
        call: &Call,
        scope: &Scope,
        config: &Value,
        manager: &str,
        force: bool,
    ) -> Result<Value, ApiError> {
        let empty = json!({"apiVersion": scope.api_version(), "kind": scope.def.kind, "metadata": {}});
        let object = merge(call, scope, &empty, true, config, manager, force)?;
        let uid = meta::text(&object, &["metadata", "uid"]);
        if !uid.is_empty() {
            return Err(ApiError::Conflict {
                target: scope.target(&call.info.name),
                why: format!(
                    "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                ),
            });
        }
        let name = meta::name(&object);
        if !name.is_empty() && name != call.info.name {
            return Err(ApiError::BadRequest(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                call.info.name
            )));
        }
        Ok(object)
    }
}

/// A configuration is YAML, of which JSON is a part.
fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let start = body.iter().find(|byte| !byte.is_ascii_whitespace());
    let parsed = if start == Some(&b'{') && content::parse_json(body).is_ok() {
        content::parse_json(body)
    } else {
        content::parse("application/yaml", body)
    };
    let bad = |why: &str| ApiError::BadRequest(format!("error decoding YAML: {why}"));
    match parsed {
        Ok(config) if config.is_object() => Ok(config),
        Ok(_) => Err(bad("the configuration must be an object")),
        Err(error) => Err(bad(&error.to_string())),
    }
}

fn check_config(scope: &Scope, config: &Value) -> Result<(), ApiError> {
    let (api_version, kind) = (meta::text(config, &["apiVersion"]), meta::text(config, &["kind"]));
    if api_version != scope.api_version() || kind != scope.def.kind {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        return Err(ApiError::BadRequest(format!(
            "invalid object type: {group}/{version}, Kind={kind}"
        )));
    }
    meta::check_shape(config)?;
    if config
        .pointer("/metadata/managedFields")
        .is_some_and(|entries| !entries.is_null())
    {
        return Err(ApiError::BadRequest(
            "metadata.managedFields must be nil".into(),
        ));
    }
    Ok(())
}

/// The object with the configuration laid over it.
fn merge(
    call: &Call,
    scope: &Scope,
    live: &Value,
    created: bool,
    config: &Value,
    manager: &str,
    force: bool,
) -> Result<Value, ApiError> {
    let applied = managed::with_context(call, scope, |context, blank| {
        fields::apply::apply(context, live, created, config, blank, manager, force)
    });
    let mut object = applied.map_err(refusal)?;
    // To a typed decoder null is absence. In a definition it can be a default.
    if !scope.def.crd && scope.policy != Policy::Definition {
        drop_nulls(&mut object);
    }
    Ok(object)
}

fn refusal(error: ApplyError) -> ApiError {
    match error {
        ApplyError::Conflicts(conflicts) => ApiError::ApplyConflict {
            causes: conflicts
                .iter()
                .map(|conflict| Cause {
                    reason: "FieldManagerConflict".into(),
                    field: conflict.field(),
                    message: conflict.message(),
                })
                .collect(),
            message: ApplyError::Conflicts(conflicts).to_string(),
        },
        other => ApiError::Unknown(other.to_string()),
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
