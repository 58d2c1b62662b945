//! Fields of API versions before `containerDisk` had its name.
//!
//! | old | new |
//! |---|---|
//! | `spec.domain.devices.disks[].volumeName`, beside a `name` of the disk's own | `name`, equal to the volume's |
//! | `spec.volumes[].registryDisk` | `spec.volumes[].containerDisk`, with the same fields |

use serde_json::{Map, Value};

use crate::cause::Cause;

/// Rewrites old fields in place. Each one that is found gets a warning that names it and its successor.
pub(crate) fn convert(spec: &mut Value, warnings: &mut Vec<String>, causes: &mut Vec<Cause>) {
    if let Some(disks) = spec
        .pointer_mut("/domain/devices/disks")
        .and_then(Value::as_array_mut)
    {
        for (i, disk) in disks.iter_mut().enumerate() {
            if let Some(disk) = disk.as_object_mut() {
                convert_disk(
                    &format!("spec.domain.devices.disks[{i}]"),
                    disk,
                    warnings,
                    causes,
                );
            }
        }
    }
    if let Some(volumes) = spec.get_mut("volumes").and_then(Value::as_array_mut) {
        for (i, volume) in volumes.iter_mut().enumerate() {
            if let Some(volume) = volume.as_object_mut() {
                convert_volume(&format!("spec.volumes[{i}]"), volume, warnings, causes);
            }
        }
    }
}

/// The old disk had a name of its own that nothing else refers to, so the volume's name can take its place.
fn convert_disk(
    path: &str,
    disk: &mut Map<String, Value>,
    warnings: &mut Vec<String>,
    causes: &mut Vec<Cause>,
) {
    let Some(volume) = disk.remove("volumeName") else {
        return;
    };
    match volume {
        Value::String(name) if !name.is_empty() => {
            disk.insert("name".to_owned(), Value::String(name));
            warnings.push(format!(
                "{path}.volumeName is deprecated: use {path}.name with the name of the volume"
            ));
        }
        other => causes.push(Cause::invalid(
            format!("{path}.volumeName"),
            format_args!("{other}"),
            "must be the name of a volume",
        )),
    }
}

fn convert_volume(
    path: &str,
    volume: &mut Map<String, Value>,
    warnings: &mut Vec<String>,
    causes: &mut Vec<Cause>,
) {
    let Some(source) = volume.remove("registryDisk") else {
        return;
    };
    if volume.contains_key("containerDisk") {
        causes.push(Cause::forbidden(
            format!("{path}.registryDisk"),
            format!("is the old name of {path}.containerDisk, which is given too"),
        ));
        return;
    }
    volume.insert("containerDisk".to_owned(), source);
    warnings.push(format!(
        "{path}.registryDisk is deprecated: use {path}.containerDisk"
    ));
}
