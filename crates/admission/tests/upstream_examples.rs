//! The example manifests of KubeVirt, where they lie beside the project (or in `BERTH_SHARED`): each
//! VirtualMachineInstance is admitted, or refused for fields of its own that it really has.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a test may panic, and takes literals"
)]

use std::path::PathBuf;

use berth_admission::{CauseReason, Operation, Request, admit};
use serde_json::Value;

#[test]
fn every_example_is_admitted_or_refused_by_field() {
    let shared = std::env::var_os("BERTH_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    let directory = shared.join("data/kubevirt-examples");
    let files = match std::fs::read_dir(&directory) {
        Ok(files) => files,
        Err(error) => {
            berth_testing::skip(
                "every_example_is_admitted_or_refused_by_field",
                &format!("no examples of KubeVirt: {}: {error}", directory.display()),
            );
            return;
        }
    };
    let (mut admitted, mut seen) = (Vec::new(), 0);
    for file in files {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        for document in text.split("\n---").map(|d| d.trim_start_matches("---")) {
            let object: Value = serde_saphyr::from_str(document).unwrap_or(Value::Null);
            if object["kind"] != "VirtualMachineInstance" {
                continue;
            }
            seen += 1;
            match admit(&request(&object)) {
                Ok(_) => admitted.push(name.clone()),
                Err(refusal) => {
                    for cause in refusal.causes {
                        println!("{name}: {cause}");
                        let there = object.pointer(&pointer(&cause.field)).is_some();
                        assert!(there, "{name}: {cause}");
                        assert_eq!(
                            cause.reason,
                            CauseReason::FieldValueNotSupported,
                            "{name}: {cause}"
                        );
                    }
                }
            }
        }
    }
    assert!(
        seen > 0,
        "{} has no VirtualMachineInstance",
        directory.display()
    );
    assert!(
        admitted.contains(&"vmi-ephemeral.yaml".to_owned()),
        "admitted only {admitted:?}"
    );
}

fn request(object: &Value) -> Request<'_> {
    Request {
        operation: Operation::Create,
        kind: "VirtualMachineInstance",
        subresource: None,
        namespace: "default",
        name: object["metadata"]["name"].as_str().unwrap(),
        object: Some(object),
        old_object: None,
    }
}

/// `spec.volumes[0].name` as a JSON pointer.
fn pointer(field: &str) -> String {
    format!("/{}", field.replace(['.', '['], "/").replace(']', ""))
}
