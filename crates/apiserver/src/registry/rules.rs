//! The main rules of the built-in kinds, in upstream's words: what an object must be, and what of it never changes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::error::Cause;
use crate::quota::Quantity;
use crate::registry::catalog::Scope;
use crate::registry::meta;

/// Most bytes of the data of a config map or secret.
const DATA_LIMIT: usize = 1 << 20;

const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  \
    or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const FROZEN: &str = "field is immutable when `immutable` is set";

/// What is wrong with an object; `old` is the stored one on update.
pub(crate) fn check(scope: &Scope, object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    if scope.def.crd {
        return causes;
    }
    match (scope.def.group.as_str(), scope.def.plural.as_str()) {
        ("", "configmaps") => config_map(object, old, &mut causes),
        ("", "secrets") => secret(object, old, &mut causes),
        ("", "persistentvolumeclaims") => claim(object, old, &mut causes),
        ("", "pods") if old.is_none() => pod(object, &mut causes),
        ("", "events") => event(object, &mut causes),
        ("apps", "controllerrevisions") => controller_revision(object, old, &mut causes),
        ("coordination.k8s.io", "leases") => lease(object, &mut causes),
        ("storage.k8s.io", "storageclasses") => storage_class(object, old, &mut causes),
        _ => {}
    }
    causes
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn map<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    object[field].as_object().into_iter().flatten()
}

fn one_of(field: &str, value: &str, supported: &[&str]) -> Option<Cause> {
    (!supported.contains(&value)).then(|| {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        Cause {
            reason: "FieldValueNotSupported".into(),
            field: field.into(),
            message: format!(
                "Unsupported value: {value:?}: supported values: {}",
                list.join(", ")
            ),
        }
    })
}

/// What is wrong with the key of a config map or secret.
fn config_key(key: &str) -> Option<&'static str> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if key.len() > 253 {
        return Some("must be no more than 253 characters");
    }
    if key.is_empty() || !key.bytes().all(fine) {
        return Some(CONFIG_KEY);
    }
    match key {
        "." => Some("must not be '.'"),
        ".." => Some("must not be '..'"),
        key if key.starts_with("..") => Some("must not start with '..'"),
        _ => None,
    }
}

fn config_map(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let mut size = 0;
    for (key, value) in map(object, "data") {
        let field = format!("data[{key}]");
        if let Some(why) = config_key(key) {
            causes.push(Cause::invalid(&field, format!("{key:?}"), why));
        }
        if object["binaryData"].get(key).is_some() {
            causes.push(Cause::invalid(
                field,
                format!("{key:?}"),
                "duplicate of key present in binaryData",
            ));
        }
        size += value.as_str().map_or(0, str::len);
    }
    for (key, value) in map(object, "binaryData") {
        if let Some(why) = config_key(key) {
            causes.push(Cause::invalid(
                format!("binaryData[{key}]"),
                format!("{key:?}"),
                why,
            ));
        }
        size += value.as_str().map_or(0, decoded_len);
    }
    if size > DATA_LIMIT {
        causes.push(too_long(""));
    }
    if let Some(old) = old.filter(|old| old["immutable"] == true) {
        frozen(object, old, &["data", "binaryData"], causes);
    }
}

fn decoded_len(text: &str) -> usize {
    text.len() / 4 * 3
}

fn too_long(field: &str) -> Cause {
    Cause {
        reason: "FieldValueTooLong".into(),
        field: field.into(),
        message: format!("Too long: may not be more than {DATA_LIMIT} bytes"),
    }
}

fn frozen(object: &Value, old: &Value, fields: &[&str], causes: &mut Vec<Cause>) {
    if object["immutable"] != true {
        causes.push(Cause::forbidden("immutable", FROZEN));
    }
    let empty = json!({});
    let shown = |object: &Value, field: &str| match object.get(field) {
        None | Some(Value::Null) => empty.clone(),
        Some(value) => value.clone(),
    };
    for field in fields {
        if shown(object, field) != shown(old, field) {
            causes.push(Cause::forbidden(*field, FROZEN));
        }
    }
}

fn secret(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    if let Some(old) = old {
        if object["type"] != old["type"] {
            causes.push(Cause::invalid(
                "type",
                &object["type"],
                "field is immutable",
            ));
        }
        if old["immutable"] == true {
            frozen(object, old, &["data"], causes);
        }
    }
    let mut size = 0;
    for (key, value) in map(object, "data") {
        if let Some(why) = config_key(key) {
            causes.push(Cause::invalid(
                format!("data[{key}]"),
                format!("{key:?}"),
                why,
            ));
        }
        size += value.as_str().map_or(0, decoded_len);
    }
    if size > DATA_LIMIT {
        causes.push(too_long("data"));
    }
    let lacks = |key: &str| object["data"].get(key).is_none();
    let mut require = |keys: &[&str]| {
        for key in keys.iter().filter(|key| lacks(key)) {
            causes.push(Cause::required(format!("data[{key}]"), ""));
        }
    };
    match text(object, "/type") {
        "kubernetes.io/tls" => require(&["tls.crt", "tls.key"]),
        "kubernetes.io/ssh-auth" => require(&["ssh-privatekey"]),
        // One of the two is enough.
        "kubernetes.io/basic-auth" if lacks("username") && lacks("password") => {
            require(&["username", "password"]);
        }
        "kubernetes.io/dockerconfigjson" => docker_config(object, ".dockerconfigjson", causes),
        "kubernetes.io/dockercfg" => docker_config(object, ".dockercfg", causes),
        "kubernetes.io/service-account-token" => {
            let name = "kubernetes.io/service-account.name";
            if object["metadata"]["annotations"][name]
                .as_str()
                .is_none_or(str::is_empty)
            {
                causes.push(Cause::required(format!("metadata.annotations[{name}]"), ""));
            }
        }
        _ => {}
    }
}

fn docker_config(object: &Value, key: &str, causes: &mut Vec<Cause>) {
    let field = format!("data[{key}]");
    let Some(encoded) = object["data"][key].as_str() else {
        causes.push(Cause::required(field, ""));
        return;
    };
    let decoded = STANDARD.decode(encoded).unwrap_or_default();
    if let Err(e) = serde_json::from_slice::<Map<String, Value>>(&decoded) {
        causes.push(Cause::invalid(field, "\"<secret contents redacted>\"", e));
    }
}

fn claim(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let Some(old) = old else {
        return new_claim(object, causes);
    };
    let fixed = |claim: &Value, other: &Value| {
        let mut spec = claim["spec"].as_object().cloned().unwrap_or_default();
        // What was not said may be said once: the volume by whoever binds, the class by whoever knows the default.
        for once in ["volumeName", "storageClassName"] {
            if text(old, &format!("/spec/{once}")).is_empty() {
                spec.remove(once);
            }
        }
        spec.remove("volumeAttributesClassName");
        if text(old, "/status/phase") == "Bound"
            && let Some(resources) = spec.get_mut("resources").and_then(Value::as_object_mut)
        {
            resources.remove("requests");
        }
        // Defaults that were not there when the claim was stored are no change.
        if other["spec"].get("volumeMode").is_none() {
            spec.remove("volumeMode");
        }
        spec.retain(|_, value| !value.is_null());
        spec
    };
    if fixed(object, old) != fixed(old, object) {
        causes.push(Cause::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
    }
    let storage = |claim: &Value| {
        claim
            .pointer("/spec/resources/requests/storage")
            .and_then(Quantity::of)
            .unwrap_or_default()
    };
    let capacity = old
        .pointer("/status/capacity/storage")
        .and_then(Quantity::of)
        .unwrap_or_default();
    if storage(old).exceeds(storage(object)) && !storage(object).exceeds(capacity) {
        causes.push(Cause::forbidden(
            "spec.resources.requests.storage",
            "field can not be less than status.capacity",
        ));
    }
}

fn new_claim(object: &Value, causes: &mut Vec<Cause>) {
    let modes = list(object, "/spec/accessModes");
    if modes.is_empty() {
        causes.push(Cause::required(
            "spec.accessModes",
            "at least 1 access mode is required",
        ));
    }
    for mode in modes {
        causes.extend(one_of(
            "spec.accessModes",
            mode.as_str().unwrap_or_default(),
            &[
                "ReadOnlyMany",
                "ReadWriteMany",
                "ReadWriteOnce",
                "ReadWriteOncePod",
            ],
        ));
    }
    match object.pointer("/spec/resources/requests/storage") {
        None => causes.push(Cause::required("spec.resources[storage]", "")),
        Some(storage) => match Quantity::of(storage) {
            Some(amount) if amount.is_positive() => {}
            Some(amount) => causes.push(Cause::invalid(
                "spec.resources[storage]",
                format!("{:?}", amount.to_string()),
                "must be greater than zero",
            )),
            None => causes.push(Cause::invalid(
                "spec.resources[storage]",
                storage,
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            )),
        },
    }
    let mode = text(object, "/spec/volumeMode");
    if !mode.is_empty() {
        causes.extend(one_of("spec.volumeMode", mode, &["Block", "Filesystem"]));
    }
}

fn pod(object: &Value, causes: &mut Vec<Cause>) {
    let mut names = Vec::new();
    for field in ["initContainers", "containers"] {
        for (at, container) in list(object, &format!("/spec/{field}")).iter().enumerate() {
            let path = format!("spec.{field}[{at}]");
            let name = text(container, "/name");
            if name.is_empty() {
                causes.push(Cause::required(format!("{path}.name"), ""));
            } else if let Some(why) = meta::label_fault(name) {
                causes.push(Cause::invalid(
                    format!("{path}.name"),
                    format!("{name:?}"),
                    why,
                ));
            } else if names.contains(&name) {
                causes.push(Cause {
                    reason: "FieldValueDuplicate".into(),
                    field: format!("{path}.name"),
                    message: format!("Duplicate value: {name:?}"),
                });
            }
            names.push(name);
            if text(container, "/image").is_empty() {
                causes.push(Cause::required(format!("{path}.image"), ""));
            }
        }
    }
    causes.extend(one_of(
        "spec.restartPolicy",
        text(object, "/spec/restartPolicy"),
        &["Always", "OnFailure", "Never"],
    ));
}

fn event(object: &Value, causes: &mut Vec<Cause>) {
    for field in ["involvedObject", "regarding"] {
        let Some(about) = object[field]["namespace"]
            .as_str()
            .filter(|ns| !ns.is_empty())
        else {
            continue;
        };
        if about != meta::namespace(object) {
            causes.push(Cause::invalid(
                format!("{field}.namespace"),
                format!("{about:?}"),
                "does not match event.namespace",
            ));
        }
    }
}

fn lease(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    if let Some(seconds) = spec["leaseDurationSeconds"].as_i64().filter(|n| *n <= 0) {
        causes.push(Cause::invalid(
            "spec.leaseDurationSeconds",
            seconds,
            "must be greater than 0",
        ));
    }
    if let Some(count) = spec["leaseTransitions"].as_i64().filter(|n| *n < 0) {
        causes.push(Cause::invalid(
            "spec.leaseTransitions",
            count,
            "must be greater than or equal to 0",
        ));
    }
}

fn controller_revision(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    if object["data"].is_null() {
        causes.push(Cause::required("data", "data is mandatory"));
    }
    let revision = object["revision"].as_i64().unwrap_or_default();
    if revision < 0 {
        causes.push(Cause::invalid(
            "revision",
            &object["revision"],
            "must be greater than or equal to 0",
        ));
    }
    if old.is_some_and(|old| old["data"] != object["data"]) {
        causes.push(Cause::invalid(
            "data",
            &object["data"],
            "field is immutable",
        ));
    }
}

fn storage_class(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let Some(old) = old else {
        if text(object, "/provisioner").is_empty() {
            causes.push(Cause::required("provisioner", ""));
        }
        causes.extend(one_of(
            "reclaimPolicy",
            text(object, "/reclaimPolicy"),
            &["Delete", "Retain"],
        ));
        causes.extend(one_of(
            "volumeBindingMode",
            text(object, "/volumeBindingMode"),
            &["Immediate", "WaitForFirstConsumer"],
        ));
        return;
    };
    let empty = |value: &Value| match value {
        Value::Null => json!({}),
        value => value.clone(),
    };
    for field in ["parameters", "provisioner", "reclaimPolicy"] {
        if empty(&object[field]) != empty(&old[field]) {
            causes.push(Cause::forbidden(
                field,
                format!("updates to {field} are forbidden."),
            ));
        }
    }
    if object["volumeBindingMode"] != old["volumeBindingMode"] {
        causes.push(Cause::invalid(
            "volumeBindingMode",
            &object["volumeBindingMode"],
            "field is immutable",
        ));
    }
}
