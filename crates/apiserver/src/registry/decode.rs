//! Bodies of writes: what a typed decoder would refuse, and what `fieldValidation` says of the rest.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::error::{ApiError, Cause, Target};
use crate::golang;
use crate::patch::Patch;
use crate::registry::catalog::Scope;
use crate::registry::content;
use crate::registry::query::{Call, FieldValidation, MAX_FIELD_MANAGER};
use crate::schema::{FieldError, builtin, strict};

/// Reads the object of a create or replace; fields that occur twice are remembered for [`unknown`].
pub(crate) fn object(call: &mut Call, kind: &str, bytes: &[u8]) -> Result<Value, ApiError> {
    check_options(call)?;
    let media = content::media_type(&call.headers);
    let object = content::decode(kind, &media, bytes)?;
    if media == "application/json" {
        call.duplicates = strict::duplicate_fields(bytes);
    }
    Ok(object)
}

/// Refuses options that do not exist.
pub(crate) fn check_options(call: &Call) -> Result<(), ApiError> {
    let mut causes = Vec::new();
    let unsupported = |field: &str, shown: String, supported: &str| Cause {
        reason: "FieldValueNotSupported".into(),
        field: field.into(),
        message: format!("Unsupported value: {shown}: supported values: {supported}"),
    };
    let dry_run: Vec<&str> = call
        .query
        .all("dryRun")
        .into_iter()
        .filter(|v| !v.is_empty())
        .collect();
    if dry_run.iter().any(|value| *value != "All") {
        causes.push(unsupported("dryRun", format!("{dry_run:?}"), r#""All""#));
    }
    let validation = call.query.get("fieldValidation");
    if !matches!(validation, "" | "Ignore" | "Strict" | "Warn") {
        causes.push(unsupported(
            "fieldValidation",
            format!("{validation:?}"),
            r#""", "Ignore", "Strict", "Warn""#,
        ));
    }
    if call.query.get("fieldManager").len() > MAX_FIELD_MANAGER {
        causes.push(Cause {
            reason: "FieldValueTooLong".into(),
            field: "fieldManager".into(),
            message: format!("Too long: may not be more than {MAX_FIELD_MANAGER} bytes"),
        });
    }
    if causes.is_empty() {
        return Ok(());
    }
    let kind = match call.info.verb.as_str() {
        "create" => "CreateOptions",
        "patch" => "PatchOptions",
        _ => "UpdateOptions",
    };
    Err(ApiError::Invalid {
        target: Target::new("meta.k8s.io", kind, ""),
        causes,
    })
}

/// Warns of or refuses fields that are unknown or occur twice, as the client wishes.
pub(crate) fn unknown(call: &mut Call, scope: &Scope, object: &Value) -> Result<(), ApiError> {
    let validation = call.field_validation()?;
    let duplicates = std::mem::take(&mut call.duplicates);
    if validation == FieldValidation::Ignore {
        return Ok(());
    }
    let (def, version) = (&scope.def, &scope.version().name);
    let mut problems: Vec<String> = duplicates
        .iter()
        .map(|path| format!("duplicate field {path:?}"))
        .collect();
    problems.extend(strict::problems(def, version, object, None));
    if validation == FieldValidation::Warn {
        call.warnings.extend(problems);
    } else if !problems.is_empty() && def.crd && call.info.verb == "patch" {
        // What a patch makes of a custom resource is decoded after the request was.
        let why = format!("strict decoding error: {}", problems.join(", "));
        return Err(refused_patch(&object.to_string(), why));
    } else if !problems.is_empty() {
        return Err(ApiError::BadRequest(strict::refusal(
            &def.kind, version, &problems,
        )));
    }
    Ok(())
}

/// A patch whose result cannot be decoded; `shown` is that result, or the patch.
fn refused_patch(shown: &str, why: String) -> ApiError {
    ApiError::Invalid {
        target: Target::new("", "", ""),
        causes: vec![Cause::invalid("patch", format!("{shown:?}"), why)],
    }
}

/// Refuses what a patch makes of an object of a built-in kind, if it is none of that kind.
pub(crate) fn patched(scope: &Scope, patch: &Patch, object: &Value) -> Result<(), ApiError> {
    let def = &scope.def;
    let given = |field: &str, expected: &str| match object[field].as_str() {
        None | Some("") => expected.to_owned(),
        Some(given) => given.to_owned(),
    };
    let version = scope.api_version();
    let (given_kind, given_version) = (given("kind", &def.kind), given("apiVersion", &version));
    let why = if given_kind != def.kind || given_version != version {
        Some(format!(
            "no kind {given_kind:?} is registered for version {given_version:?} in scheme \"pkg/runtime/scheme.go:110\""
        ))
    } else {
        fault(scope, object)
    };
    match (why, patch) {
        (None, _) => Ok(()),
        (Some(why), Patch::Strategic(patch)) => Err(refused_patch(&golang::value(patch), why)),
        (Some(why), _) => Err(refused_patch(&object.to_string(), why)),
    }
}

/// Refuses an object that no typed client could read again. Of custom resources only the metadata is typed here; the rest
/// is their schema's business.
pub(crate) fn typed(scope: &Scope, object: &Value) -> Result<(), ApiError> {
    let (kind, version) = (&scope.def.kind, &scope.version().name);
    match fault(scope, object) {
        None => Ok(()),
        Some(why) => Err(ApiError::BadRequest(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {why}"
        ))),
    }
}

/// Why no typed client could read an object, in the words of the decoder that clients know.
fn fault(scope: &Scope, object: &Value) -> Option<String> {
    let def = &scope.def;
    // Custom resources have their metadata decoded by itself.
    let prefix = if def.crd { "" } else { "metadata." };
    if let Some(why) = metadata_fault(&object["metadata"], prefix) {
        return Some(why);
    }
    if def.crd {
        return None;
    }
    if let Some(error) = builtin::type_errors(&def.group, &def.kind, object).first() {
        return Some(unmarshal(&def.group, &def.kind, object, error));
    }
    let bytes = match (def.group.as_str(), def.plural.as_str()) {
        ("", "configmaps") => "binaryData",
        ("", "secrets") => "data",
        _ => return None,
    };
    for value in object[bytes]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(_, value)| value)
    {
        let text: String = value
            .as_str()
            .unwrap_or_default()
            .split(['\r', '\n'])
            .collect();
        if let Err(e) = STANDARD.decode(&text) {
            let at = match e {
                base64::DecodeError::InvalidByte(at, _)
                | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                _ => text.len(),
            };
            return Some(format!("illegal base64 data at input byte {at}"));
        }
    }
    None
}

/// A type error in the words of the decoder that clients know.
fn unmarshal(group: &str, kind: &str, object: &Value, error: &FieldError) -> String {
    let parts = split(&error.field);
    let all = builtin::definitions([(group, kind)]);
    let mut name = builtin::definition_name(group, kind).unwrap_or_default();
    let (mut at, mut value) = (all.get(name), Some(object));
    let mut path = Vec::new();
    let mut holder = last_word(name);
    for part in &parts {
        value = value.and_then(|value| match value {
            Value::Array(list) => part.parse::<usize>().ok().and_then(|n| list.get(n)),
            value => value.get(part),
        });
        let Some(schema) = at else { break };
        let next = if let Some(property) = schema.get("properties").and_then(|p| p.get(part)) {
            path.push(part.as_str());
            holder = last_word(name);
            Some(property)
        } else {
            schema
                .get("items")
                .or_else(|| schema.get("additionalProperties"))
        };
        let (schema, definition) = follow(next, &all);
        if let Some(definition) = definition {
            name = definition;
        }
        at = schema;
    }
    format!(
        "json: cannot unmarshal {} into Go struct field {holder}.{} of type {}",
        value.map_or("object", golang::json_type),
        path.join("."),
        go_type(at, &all, 0)
    )
}

/// A field of the metadata that is of the wrong type. The schemas of kinds leave the metadata out.
fn metadata_fault(metadata: &Value, prefix: &str) -> Option<String> {
    let wrong = |field: &str, value: &Value, wanted: &str| {
        Some(format!(
            "json: cannot unmarshal {} into Go struct field ObjectMeta.{prefix}{field} of type {wanted}",
            golang::json_type(value)
        ))
    };
    let is_text = |value: &Value| value.is_string() || value.is_null();
    for (field, value) in metadata.as_object().into_iter().flatten() {
        let fault = match (field.as_str(), value) {
            (_, Value::Null) => None,
            ("labels" | "annotations", Value::Object(map)) => map
                .values()
                .find(|value| !is_text(value))
                .and_then(|value| wrong(field, value, "string")),
            ("labels" | "annotations", value) => wrong(field, value, "map[string]string"),
            ("finalizers", Value::Array(list)) => list
                .iter()
                .find(|value| !is_text(value))
                .and_then(|value| wrong(field, value, "string")),
            ("finalizers", value) => wrong(field, value, "[]string"),
            ("name" | "generateName" | "namespace" | "uid" | "resourceVersion", value)
                if !value.is_string() =>
            {
                wrong(
                    field,
                    value,
                    if field == "uid" {
                        "types.UID"
                    } else {
                        "string"
                    },
                )
            }
            _ => None,
        };
        if fault.is_some() {
            return fault;
        }
    }
    None
}

/// The parts of `spec.containers[0].name`.
fn split(field: &str) -> Vec<String> {
    let parts = field
        .split(['.', '['])
        .map(|part| part.trim_end_matches(']'));
    parts
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

fn last_word(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// What a schema refers to, and the name of it.
fn follow<'a>(
    schema: Option<&'a Value>,
    all: &'a Map<String, Value>,
) -> (Option<&'a Value>, Option<&'a str>) {
    let reference = schema.and_then(|schema| {
        let only = schema
            .get("allOf")
            .and_then(|list| list.get(0))
            .unwrap_or(schema);
        only.get("$ref")
            .and_then(Value::as_str)?
            .strip_prefix(builtin::REF_PREFIX)
    });
    match reference.and_then(|name| all.get_key_value(name)) {
        Some((name, target)) => (Some(target), Some(name)),
        None => (schema, None),
    }
}

/// The name of the type that was expected.
fn go_type(schema: Option<&Value>, all: &Map<String, Value>, depth: usize) -> String {
    let (target, name) = follow(schema, all);
    let Some(target) = target.filter(|_| depth < 4) else {
        return "interface {}".into();
    };
    if let Some(name) = name.filter(|_| target.get("properties").is_some()) {
        return format!("v1.{}", last_word(name));
    }
    match target.get("type").and_then(Value::as_str) {
        Some("boolean") => "bool".into(),
        Some("integer") => target["format"].as_str().unwrap_or("int64").into(),
        Some("number") => "float64".into(),
        Some("array") => format!("[]{}", go_type(target.get("items"), all, depth + 1)),
        Some("object") if target.get("additionalProperties").is_some() => {
            format!(
                "map[string]{}",
                go_type(target.get("additionalProperties"), all, depth + 1)
            )
        }
        Some("object") => "struct".into(),
        _ => "string".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(group: &str, kind: &str, object: &Value) -> String {
        let errors = builtin::type_errors(group, kind, object);
        unmarshal(group, kind, object, &errors[0])
    }

    #[test]
    fn words_of_the_decoder() {
        let map = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data});
        for (object, words) in [
            (
                map(json!({"k": 1})),
                "number into Go struct field ConfigMap.data of type string",
            ),
            (
                map(json!(["x"])),
                "array into Go struct field ConfigMap.data of type map[string]string",
            ),
            (
                json!({"immutable": "x"}),
                "string into Go struct field ConfigMap.immutable of type bool",
            ),
        ] {
            assert_eq!(
                refused("", "ConfigMap", &object),
                format!("json: cannot unmarshal {words}")
            );
        }
        for (metadata, words) in [
            (
                json!({"name": 1}),
                "number into Go struct field ObjectMeta.metadata.name of type string",
            ),
            (
                json!({"labels": {"a": 1}}),
                "number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
        ] {
            assert_eq!(
                metadata_fault(&metadata, "metadata."),
                Some(format!("json: cannot unmarshal {words}"))
            );
        }
        let pod = json!({"spec": {"containers": [{"name": "a", "image": true}]}});
        assert_eq!(
            refused("", "Pod", &pod),
            "json: cannot unmarshal bool into Go struct field Container.spec.containers.image of type string"
        );
        let pod = json!({"spec": {"containers": "x"}});
        assert_eq!(
            refused("", "Pod", &pod),
            "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container"
        );
    }
}
