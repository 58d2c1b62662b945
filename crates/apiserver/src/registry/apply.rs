//! PATCH with a configuration to apply (`application/apply-patch+yaml`): server-side apply.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::error::{ApiError, Cause, Target};
use crate::fields;
use crate::fields::apply::ApplyError;
use crate::registry::catalog::Scope;
use crate::registry::policy::Policy;
use crate::registry::query::{Call, FieldValidation};
use crate::registry::read::show;
use crate::registry::write::modified;
use crate::registry::{Core, content, managed, meta};
use crate::schema::strict;

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
        let config = parse(call, &bytes)?;
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
        let empty =
            json!({"apiVersion": scope.api_version(), "kind": scope.def.kind, "metadata": {}});
        let mut object = merge(call, scope, &empty, true, config, manager, force)?;
        let uid = meta::text(&object, &["metadata", "uid"]);
        if !uid.is_empty() {
            return Err(ApiError::Conflict {
                target: scope.target(&call.info.name),
                why: format!(
                    "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                ),
            });
        }
        // It says which object to change, and there is none: then it says nothing.
        meta::metadata(&mut object).remove("resourceVersion");
        let name = meta::name(&object);
        if name.is_empty() {
            return Err(ApiError::BadRequest(format!(
                "the name of the object ({} based on URL) was undeterminable: name must be provided",
                call.info.name
            )));
        }
        if name != call.info.name {
            return Err(ApiError::BadRequest(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                call.info.name
            )));
        }
        Ok(object)
    }
}

/// A configuration is YAML, of which JSON is a part. A key that stands twice is told of or refused, as the client wishes.
fn parse(call: &mut Call, body: &[u8]) -> Result<Value, ApiError> {
    let bad = |why: &dyn std::fmt::Display| {
        ApiError::BadRequest(format!(
            "error decoding YAML: error converting YAML to JSON: {why}"
        ))
    };
    let start = body.iter().find(|byte| !byte.is_ascii_whitespace());
    let json = (start == Some(&b'{'))
        .then(|| content::parse_json(body).ok())
        .flatten();
    let (config, twice) = match json {
        Some(config) => {
            let twice = strict::duplicate_fields(body).into_iter().next();
            (config, twice.map(|path| (1, path)))
        }
        None => {
            let text = std::str::from_utf8(body).map_err(|e| bad(&e))?;
            match serde_saphyr::from_str(text) {
                Ok(config) => (config, None),
                Err(error) => {
                    let lenient = serde_saphyr::options! {
                        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins
                    };
                    let config = serde_saphyr::from_str_with_options(text, lenient)
                        .map_err(|e| bad(&first_line(&e.to_string())))?;
                    (config, Some(twice(&error.to_string())))
                }
            }
        }
    };
    if let Some((line, key)) = twice {
        let why = format!(
            "error converting YAML to JSON: yaml: unmarshal errors:\n  line {line}: key {key:?} already set in map"
        );
        match call.field_validation()? {
            FieldValidation::Strict => {
                return Err(ApiError::BadRequest(format!(
                    "error strict decoding YAML: {why}"
                )));
            }
            FieldValidation::Warn => call.warnings.push(why),
            FieldValidation::Ignore => {}
        }
    }
    if config.is_object() {
        return Ok(config);
    }
    let kind = match config {
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        _ => "number",
    };
    Err(ApiError::BadRequest(format!(
        "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"
    )))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Line and name of the key that the decoder says to stand twice.
fn twice(error: &str) -> (usize, String) {
    let line = error
        .split_once("line ")
        .and_then(|(_, rest)| rest.split(' ').next())
        .and_then(|line| line.parse().ok())
        .unwrap_or(1);
    let key = error
        .split_once("duplicate mapping key: ")
        .and_then(|(_, rest)| rest.split(',').next())
        .unwrap_or_else(|| first_line(error));
    (line, key.to_owned())
}

fn check_config(scope: &Scope, config: &Value) -> Result<(), ApiError> {
    let (api_version, kind) = (
        meta::text(config, &["apiVersion"]),
        meta::text(config, &["kind"]),
    );
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
