//! VirtualMachines.

use berth_api::labels::VM_FINALIZER;
use serde_json::Value;

use crate::cause::{Cause, Refusal};
use crate::{Admitted, datavolume, fields, instance, legacy, syntax};

const KIND: &str = "VirtualMachine";
/// Where the spec of the instance is.
const TEMPLATE: &str = "spec.template.spec";

/// A new machine or a change of one: all that is wrong with it, and with the instance that would be made of it.
pub(crate) fn admit(
    namespace: &str,
    name: &str,
    object: &Value,
    old: Option<&Value>,
) -> Result<Admitted, Refusal> {
    let mut causes = Vec::new();
    if old.is_none() {
        instance::check_name(name, &mut causes);
    }
    fields::check_top(KIND, object, old, &mut causes);
    let mut object = object.clone();
    // Controllers can always write metadata, whatever later versions of berth think of this spec.
    if let Some(old) = old
        && object.get("spec") == old.get("spec")
    {
        Refusal::from_causes(causes)?;
        return Ok(Admitted {
            object: Some(object),
            warnings: Vec::new(),
        });
    }
    let mut warnings = Vec::new();
    let Some(spec) = object.get_mut("spec").filter(|s| !s.is_null()) else {
        causes.push(Cause::required("spec", "a VirtualMachine needs a spec"));
        return Err(Refusal { causes });
    };
    fields::drop_nulls(spec);
    if let Some(template) = spec.pointer_mut("/template/spec") {
        let mut found = Vec::new();
        let mut told = Vec::new();
        legacy::convert(template, &mut told, &mut found);
        causes.extend(found.into_iter().map(in_template));
        warnings.extend(told.iter().map(|warning| rooted(warning)));
    }
    fields::check(KIND, "spec", spec, &mut causes);
    strategy(spec, &mut warnings, &mut causes);
    if causes.is_empty() {
        templates(spec, &mut causes);
    }
    Refusal::from_causes(causes)?;
    let template = spec.pointer("/template/spec").ok_or_else(|| Refusal {
        causes: vec![Cause::required(TEMPLATE, "what an instance is made of")],
    })?;
    instance::complete(namespace, name, template).map_err(|refusal| Refusal {
        causes: refusal.causes.into_iter().map(in_template).collect(),
    })?;
    if old.is_none() {
        instance::add_finalizer(&mut object, VM_FINALIZER);
    }
    Ok(Admitted {
        object: Some(object),
        warnings,
    })
}

/// The DataVolumes that are made with the machine: each is one of its volumes.
fn templates(spec: &Value, causes: &mut Vec<Cause>) {
    let none = Vec::new();
    let list = |pointer: &str| spec.pointer(pointer).and_then(Value::as_array);
    let volumes = list("/template/spec/volumes").unwrap_or(&none);
    let mut seen: Vec<&str> = Vec::new();
    for (index, template) in list("/dataVolumeTemplates")
        .unwrap_or(&none)
        .iter()
        .enumerate()
    {
        let path = format!("spec.dataVolumeTemplates[{index}]");
        let name = template
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let field = format!("{path}.metadata.name");
        if !syntax::is_dns_subdomain(name) {
            causes.push(Cause::invalid(
                &field,
                name,
                "must be a name: lower case letters, digits and inner dashes and dots",
            ));
        } else if seen.contains(&name) {
            causes.push(Cause::duplicate(&field, name));
        } else if !volumes
            .iter()
            .any(|v| v.pointer("/dataVolume/name").and_then(Value::as_str) == Some(name))
        {
            causes.push(Cause::invalid(
                &field,
                name,
                "must be a dataVolume of spec.template.spec.volumes",
            ));
        }
        seen.push(name);
        datavolume::check_value(&format!("{path}.spec"), &template["spec"], causes);
    }
}

/// Exactly one of the two ways to say when it runs.
fn strategy(spec: &Value, warnings: &mut Vec<String>, causes: &mut Vec<Cause>) {
    let given = |field: &str| spec.get(field).is_some();
    match (given("running"), given("runStrategy")) {
        (true, true) => causes.push(Cause::forbidden(
            "spec.running",
            "cannot be given together with spec.runStrategy",
        )),
        (false, false) => causes.push(Cause::required(
            "spec.runStrategy",
            "Always, Halted, Manual, RerunOnFailure or Once",
        )),
        (true, false) => {
            warnings.push("spec.running is deprecated: use spec.runStrategy".to_owned());
        }
        (false, true) => {}
    }
}

/// A cause about an instance's spec, as one about the template.
fn in_template(mut cause: Cause) -> Cause {
    cause.field = rooted(&cause.field);
    cause.message = rooted(&cause.message);
    cause
}

/// Every path in a text that begins with an instance's `spec.` made one of the template.
fn rooted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(at) = rest.find("spec.") {
        let (before, found) = rest.split_at(at);
        out += before;
        // Not the end of another word, and not in the middle of a path.
        let joined = before
            .chars()
            .next_back()
            .is_some_and(|c| c.is_ascii_alphanumeric() || c == '.');
        out += if joined {
            "spec."
        } else {
            "spec.template.spec."
        };
        rest = &found["spec.".len()..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_template() {
        assert_eq!(
            rooted("spec.domain.cpu: needs spec.volumes[0], not myspec.x or a.spec.b"),
            "spec.template.spec.domain.cpu: needs spec.template.spec.volumes[0], not myspec.x or a.spec.b"
        );
        assert_eq!(rooted("no path"), "no path");
    }
}
