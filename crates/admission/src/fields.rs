//! The walk of an object along the published schema: every field that the schema does not describe, and every
//! value of another type than it says.
//!
//! The schema is the one that `berth crds` prints, so what is described, what is accepted and what is honoured
//! cannot drift apart.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use serde_json::Value;

use crate::cause::Cause;

/// Schemas of the storage versions, by kind.
fn schemas() -> &'static BTreeMap<String, JSONSchemaProps> {
    static SCHEMAS: OnceLock<BTreeMap<String, JSONSchemaProps>> = OnceLock::new();
    SCHEMAS.get_or_init(|| {
        berth_api::crds()
            .into_iter()
            .filter_map(|crd| {
                let stored = crd.spec.versions.into_iter().find(|v| v.storage)?;
                Some((crd.spec.names.kind, stored.schema?.open_api_v3_schema?))
            })
            .collect()
    })
}

/// Takes out members that are `null`: in a manifest that is a key with nothing after it, which says nothing.
pub(crate) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, v| !v.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Refuses the top-level fields of an object of `kind` that it does not have, but for those that `old` has too: what is
/// stored already must not keep anybody from writing the rest.
pub(crate) fn check_top(kind: &str, object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    const EVERY_OBJECT: [&str; 3] = ["apiVersion", "kind", "metadata"];
    let Some(properties) = schemas().get(kind).and_then(|s| s.properties.as_ref()) else {
        return;
    };
    let known = || {
        EVERY_OBJECT
            .into_iter()
            .chain(properties.keys().map(String::as_str))
    };
    for name in object.as_object().into_iter().flat_map(|o| o.keys()) {
        if known().any(|k| k == name) || old.is_some_and(|o| o.get(name).is_some()) {
            continue;
        }
        let near = known().find(|k| is_slip_of(name, k));
        let hint = near.map(|near| format!("did you mean {near:?}?"));
        causes.push(Cause::unsupported_field(name, &hint.unwrap_or_default()));
    }
}

/// Checks `value`, which is at the top-level field `root` of `kind`.
pub(crate) fn check(kind: &str, root: &str, value: &Value, causes: &mut Vec<Cause>) {
    let schema = schemas()
        .get(kind)
        .and_then(|s| s.properties.as_ref())
        .and_then(|p| p.get(root));
    if let Some(schema) = schema {
        walk(root, schema, value, causes);
    }
}

fn walk(path: &str, schema: &JSONSchemaProps, value: &Value, causes: &mut Vec<Cause>) {
    if schema.x_kubernetes_int_or_string == Some(true) {
        if !(value.is_string() || value.is_number()) {
            causes.push(wrong_type(path, value, "a quantity: a number or a string"));
        }
        return;
    }
    match (schema.type_.as_deref(), value) {
        (Some("object"), Value::Object(members)) => walk_object(path, schema, members, causes),
        (Some("array"), Value::Array(items)) => {
            if let Some(JSONSchemaPropsOrArray::Schema(item_schema)) = &schema.items {
                for (i, item) in items.iter().enumerate() {
                    walk(&format!("{path}[{i}]"), item_schema, item, causes);
                }
            }
        }
        (Some("string"), Value::String(_)) | (Some("boolean"), Value::Bool(_)) | (None, _) => {}
        (Some("integer"), Value::Number(n)) if n.is_i64() || n.is_u64() => {
            let number = n.as_f64().unwrap_or(f64::MAX);
            if let Some(least) = schema.minimum.filter(|m| number < *m) {
                causes.push(Cause::invalid(
                    path,
                    format_args!("{n}"),
                    format!("must be no less than {least}"),
                ));
            }
            if let Some(most) = schema.maximum.filter(|m| number > *m) {
                causes.push(Cause::invalid(
                    path,
                    format_args!("{n}"),
                    format!("must be no more than {most}"),
                ));
            }
        }
        (Some(expected), other) => causes.push(wrong_type(path, other, expected)),
    }
}

fn walk_object(
    path: &str,
    schema: &JSONSchemaProps,
    members: &serde_json::Map<String, Value>,
    causes: &mut Vec<Cause>,
) {
    static NONE: BTreeMap<String, JSONSchemaProps> = BTreeMap::new();
    let properties = schema.properties.as_ref().unwrap_or(&NONE);
    for (name, member) in members {
        let here = format!("{path}.{name}");
        match (properties.get(name), &schema.additional_properties) {
            (Some(known), _) => walk(&here, known, member, causes),
            (None, Some(JSONSchemaPropsOrBool::Schema(values))) => {
                walk(&here, values, member, causes);
            }
            (None, Some(JSONSchemaPropsOrBool::Bool(true))) => {}
            (None, _) => {
                let mut hint = hint(path, name).to_owned();
                if hint.is_empty()
                    && let Some(near) = properties.keys().find(|known| is_slip_of(name, known))
                {
                    hint = format!("did you mean {near:?}?");
                }
                causes.push(Cause::unsupported_field(here, &hint));
            }
        }
    }
    for name in schema.required.iter().flatten() {
        if !members.contains_key(name) {
            causes.push(Cause::required(format!("{path}.{name}"), "must be given"));
        }
    }
}

fn wrong_type(path: &str, value: &Value, expected: &str) -> Cause {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    // A scalar is shown; something larger would drown the message.
    match value {
        Value::Array(_) | Value::Object(_) => {
            Cause::invalid(path, found, format!("must be of type {expected}"))
        }
        scalar => Cause::invalid(
            path,
            format_args!("{scalar}"),
            format!("must be of type {expected}, not {found}"),
        ),
    }
}

/// What to do instead, for fields that manifests are known to carry.
fn hint(path: &str, name: &str) -> &'static str {
    if path.starts_with("spec.domain.devices.interfaces[") {
        return match name {
            "slirp" | "macvtap" | "passt" => {
                "this binding was removed from KubeVirt in version 1.3; use bridge"
            }
            "sriov" | "passtBinding" | "binding" => {
                "the bindings that berth has are bridge and masquerade"
            }
            _ => "",
        };
    }
    if path.starts_with("spec.volumes[") {
        return match name {
            "registryDisk" => "use containerDisk",
            _ => {
                "the volume sources that berth has are containerDisk, persistentVolumeClaim, dataVolume, ephemeral, cloudInitNoCloud, cloudInitConfigDrive, emptyDisk, secret, configMap and downwardAPI"
            }
        };
    }
    if path.starts_with("spec.domain.devices.disks[") && path.ends_with(".disk") && name == "dev" {
        return "the device name is chosen by berth, in the order of the disks; use bus";
    }
    if path == "spec.domain.firmware.bootloader.efi" && name == "persistent" {
        return "the variables of UEFI are new at each start";
    }
    if path.ends_with(".source") && path.contains("spec") {
        return match name {
            "upload" | "s3" | "gcs" | "imageio" | "vddk" | "snapshot" => {
                "the sources that berth has are http, registry, pvc and blank"
            }
            _ => "",
        };
    }
    if path.starts_with("spec.networks[") && name == "multus" {
        return "the network that berth has is pod";
    }
    ""
}

/// Whether `name` is likely a slip of the pen for `known`: another case, or one letter too many, too few, wrong,
/// or swapped with its neighbour.
fn is_slip_of(name: &str, known: &str) -> bool {
    if name.eq_ignore_ascii_case(known) {
        return true;
    }
    let (a, b): (Vec<char>, Vec<char>) = (name.chars().collect(), known.chars().collect());
    if a.len() < 3 || a.len().abs_diff(b.len()) > 1 {
        return false;
    }
    let start = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let end = a[start..]
        .iter()
        .rev()
        .zip(b[start..].iter().rev())
        .take_while(|(x, y)| x == y)
        .count();
    let (rest_a, rest_b) = (&a[start..a.len() - end], &b[start..b.len() - end]);
    match (rest_a, rest_b) {
        ([], [_]) | ([_], []) | ([_], [_]) => true,
        ([p, q], [r, s]) => p == s && q == r,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::is_slip_of;

    #[test]
    fn slips() {
        for (name, known) in [
            ("memmory", "memory"),
            ("memry", "memory"),
            ("Memory", "memory"),
            ("mmeory", "memory"),
            ("disk", "disks"),
        ] {
            assert!(is_slip_of(name, known), "{name} {known}");
        }
        for (name, known) in [
            ("gpus", "rng"),
            ("rng", "inputs"),
            ("memory", "cpu"),
            ("io", "in"),
        ] {
            assert!(!is_slip_of(name, known), "{name} {known}");
        }
    }
}
