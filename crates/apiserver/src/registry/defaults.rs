//! Defaults of the built-in kinds: only those that clients or other parts of a cluster rely on being there.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::registry::meta;
use crate::resources::ResourceDef;

/// Fills in what the client left out. Idempotent.
pub(crate) fn fill(def: &ResourceDef, object: &mut Value) {
    match (def.group.as_str(), def.plural.as_str()) {
        ("", "pods") => pod(meta::entry(object, "spec")),
        ("", "secrets") => secret(object),
        ("", "events") => {
            if let Some(event) = object.as_object_mut() {
                missing(event, "reportingComponent", json!(""));
                missing(event, "reportingInstance", json!(""));
            }
        }
        ("", "persistentvolumeclaims") => missing(
            meta::entry(object, "spec"),
            "volumeMode",
            json!("Filesystem"),
        ),
        ("", "persistentvolumes") => {
            let spec = meta::entry(object, "spec");
            missing(spec, "volumeMode", json!("Filesystem"));
            missing(spec, "persistentVolumeReclaimPolicy", json!("Retain"));
        }
        ("storage.k8s.io", "storageclasses") => {
            if let Some(class) = object.as_object_mut() {
                missing(class, "reclaimPolicy", json!("Delete"));
                missing(class, "volumeBindingMode", json!("Immediate"));
            }
        }
        (crate::auth::rbac::GROUP, _) => crate::auth::rbac::validate::default(object),
        _ => {}
    }
}

fn missing(map: &mut Map<String, Value>, key: &str, value: Value) {
    let slot = map.entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = value;
    }
}

fn pod(spec: &mut Map<String, Value>) {
    for (key, value) in [
        ("restartPolicy", json!("Always")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("enableServiceLinks", json!(true)),
        ("securityContext", json!({})),
    ] {
        missing(spec, key, value);
    }
    for list in ["containers", "initContainers"] {
        for container in spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let Some(container) = container.as_object_mut() else {
                continue;
            };
            let image = container
                .get("image")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let tag = image
                .rsplit('/')
                .next()
                .and_then(|last| last.split_once(':'))
                .map(|(_, tag)| tag);
            let latest = !image.contains('@') && matches!(tag, None | Some("latest"));
            missing(
                container,
                "imagePullPolicy",
                json!(if latest { "Always" } else { "IfNotPresent" }),
            );
            missing(
                container,
                "terminationMessagePath",
                json!("/dev/termination-log"),
            );
            missing(container, "terminationMessagePolicy", json!("File"));
            let ports = container.get_mut("ports").and_then(Value::as_array_mut);
            for port in ports.into_iter().flatten() {
                if let Some(port) = port.as_object_mut() {
                    missing(port, "protocol", json!("TCP"));
                }
            }
            missing(container, "resources", json!({}));
            // Who says only a limit asks for as much.
            let resources = meta::entry_of(container, "resources");
            if let Some(Value::Object(limits)) = resources.get("limits").cloned() {
                let requests = meta::entry_of(resources, "requests");
                for (name, limit) in limits {
                    missing(requests, &name, limit);
                }
            }
        }
    }
}

/// `stringData` is for writing only: it goes into `data`.
fn secret(object: &mut Value) {
    let Some(secret) = object.as_object_mut() else {
        return;
    };
    missing(secret, "type", json!("Opaque"));
    if let Some(Value::Object(texts)) = secret.remove("stringData") {
        let data = meta::entry(object, "data");
        for (key, text) in texts {
            data.insert(
                key,
                json!(STANDARD.encode(text.as_str().unwrap_or_default())),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_data_becomes_data() {
        let mut object = json!({"stringData": {"a": "b"}, "data": {"c": "ZA=="}});
        secret(&mut object);
        assert_eq!(
            object,
            json!({"type": "Opaque", "data": {"a": "Yg==", "c": "ZA=="}})
        );
    }

    #[test]
    fn pods_keep_what_they_say() {
        let mut spec = json!({"restartPolicy": "Never", "containers": [{"image": "r:5000/a"}, {"image": "a:1"}]});
        pod(spec.as_object_mut().unwrap());
        assert_eq!(spec["restartPolicy"], "Never");
        assert_eq!(spec["terminationGracePeriodSeconds"], 30);
        assert_eq!(spec["containers"][0]["imagePullPolicy"], "Always");
        assert_eq!(spec["containers"][1]["imagePullPolicy"], "IfNotPresent");
    }
}
