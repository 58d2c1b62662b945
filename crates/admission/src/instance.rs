//! VirtualMachineInstances.

use berth_api::kubevirt::v1::VirtualMachineInstanceSpec;
use berth_api::labels::VMI_FINALIZER;
use serde_json::{Map, Value, json};

use crate::cause::{Cause, Refusal};
use crate::{Admitted, defaults, fields, legacy, syntax, validate};

const KIND: &str = "VirtualMachineInstance";

/// A new machine: its spec in the one form that the rest of berth knows, and the finalizer that keeps the object
/// until its pod is gone.
pub(crate) fn admit_create(
    namespace: &str,
    name: &str,
    object: &Value,
) -> Result<Admitted, Refusal> {
    let mut object = object.clone();
    let mut causes = Vec::new();
    check_name(name, &mut causes);
    fields::check_top(KIND, &object, None, &mut causes);
    let warnings = normalize(namespace, name, &mut object, causes)?;
    add_finalizer(&mut object, VMI_FINALIZER);
    Ok(Admitted {
        object: Some(object),
        warnings,
    })
}

/// The name becomes a label value of the launcher pod.
pub(crate) fn check_name(name: &str, causes: &mut Vec<Cause>) {
    if name.len() > syntax::LABEL_MAX {
        causes.push(Cause::invalid(
            "metadata.name",
            name,
            format!("must be no more than {} characters", syntax::LABEL_MAX),
        ));
    }
}

/// A machine that exists: its spec must mean what it meant.
pub(crate) fn admit_update(
    namespace: &str,
    name: &str,
    object: &Value,
    old: &Value,
) -> Result<Admitted, Refusal> {
    let mut causes = Vec::new();
    fields::check_top(KIND, object, Some(old), &mut causes);
    Refusal::from_causes(causes)?;
    // First, so that controllers can always write metadata, whatever later versions of berth think of this spec.
    if object.get("spec") == old.get("spec") {
        return Ok(Admitted {
            object: Some(object.clone()),
            warnings: Vec::new(),
        });
    }
    let mut object = object.clone();
    let warnings = normalize(namespace, name, &mut object, Vec::new())?;
    let mut changed = Vec::new();
    differences("spec", old.get("spec"), object.get("spec"), &mut changed);
    if changed.is_empty() {
        // Equal but for the way it is written; what is stored stays.
        if let (Some(new), Some(stored)) = (object.get_mut("spec"), old.get("spec")) {
            *new = stored.clone();
        }
        return Ok(Admitted {
            object: Some(object),
            warnings,
        });
    }
    Err(Refusal {
        causes: vec![Cause::forbidden(
            "spec",
            format!(
                "update of VMI object is restricted: a VirtualMachineInstance cannot change once it exists \
                 (changed: {})",
                changed.join(", ")
            ),
        )],
    })
}

/// Brings the spec into its one form, or says everything that is wrong with it. Returns the warnings.
fn normalize(
    namespace: &str,
    name: &str,
    object: &mut Value,
    mut causes: Vec<Cause>,
) -> Result<Vec<String>, Refusal> {
    let Some(spec) = object.get_mut("spec").filter(|s| !s.is_null()) else {
        causes.push(Cause::required(
            "spec",
            "a VirtualMachineInstance needs a spec",
        ));
        return Err(Refusal { causes });
    };
    fields::drop_nulls(spec);
    let mut warnings = Vec::new();
    legacy::convert(spec, &mut warnings, &mut causes);
    fields::check(KIND, "spec", spec, &mut causes);
    // The typed steps need a spec of the right shape, and would only repeat what is known to be wrong.
    Refusal::from_causes(causes)?;
    *spec = complete(namespace, name, spec)?;
    Ok(warnings)
}

/// A spec of the right shape with its defaults, or what is wrong with it.
pub(crate) fn complete(namespace: &str, name: &str, spec: &Value) -> Result<Value, Refusal> {
    let mut typed: VirtualMachineInstanceSpec =
        serde_json::from_value(spec.clone()).map_err(|error| Refusal {
            causes: vec![Cause::invalid("spec", KIND, error)],
        })?;
    defaults::set(namespace, name, &mut typed);
    Refusal::from_causes(validate::instance_spec(&typed))?;
    serde_json::to_value(&typed).map_err(|error| Refusal {
        causes: vec![Cause::invalid("spec", KIND, error)],
    })
}

pub(crate) fn add_finalizer(object: &mut Value, finalizer: &str) {
    let Some(metadata) = object
        .as_object_mut()
        .map(|o| {
            o.entry("metadata")
                .or_insert_with(|| Value::Object(Map::new()))
        })
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([]));
    if finalizers.is_null() {
        *finalizers = json!([]);
    }
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|f| f == finalizer)
    {
        list.push(json!(finalizer));
    }
}

/// Paths at which two values differ, as deep as both are objects or lists of the same length.
fn differences(path: &str, old: Option<&Value>, new: Option<&Value>, out: &mut Vec<String>) {
    match (old, new) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let added = new.keys().filter(|k| !old.contains_key(*k));
            for key in old.keys().chain(added) {
                differences(&format!("{path}.{key}"), old.get(key), new.get(key), out);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) if old.len() == new.len() => {
            for (i, (old, new)) in old.iter().zip(new).enumerate() {
                differences(&format!("{path}[{i}]"), Some(old), Some(new), out);
            }
        }
        (old, new) if old != new => out.push(path.to_owned()),
        _ => {}
    }
}
