//! The CRDs as a cluster sees them. `BERTH_BLESS=1 cargo test -p berth-api` writes the golden file anew.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a test may panic, and takes literals"
)]

use std::path::Path;

use serde_json::{Value, json};

#[test]
fn the_crds_are_the_golden_ones() {
    let rendered: String = berth_api::crds()
        .iter()
        .map(|crd| format!("---\n{}", serde_saphyr::to_string(crd).unwrap()))
        .collect();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/crds.yaml");
    if std::env::var_os("BERTH_BLESS").is_some() {
        std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
        std::fs::write(&golden, &rendered).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    let first_difference = rendered
        .lines()
        .zip(expected.lines())
        .position(|(a, b)| a != b);
    assert!(
        rendered == expected,
        "the CRDs differ from {} (first at line {:?}); BERTH_BLESS=1 writes it anew",
        golden.display(),
        first_difference.map(|n| n + 1)
    );
}

/// The versions of the kinds of a group.
fn versions_of(group: &str) -> Vec<Value> {
    versions_where(|spec| spec["group"] == group)
}

fn versions_where(wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    let crds = serde_json::to_value(berth_api::crds()).unwrap();
    crds.as_array()
        .unwrap()
        .iter()
        .filter(|c| wanted(&c["spec"]))
        .flat_map(|c| c["spec"]["versions"].as_array().unwrap().clone())
        .collect()
}

fn versions() -> Vec<Value> {
    versions_where(|spec| spec["names"]["kind"] == "VirtualMachineInstance")
}

#[test]
fn one_version_is_stored_and_the_old_ones_are_deprecated() {
    let names: Vec<_> = versions()
        .iter()
        .map(|v| {
            (
                v["name"].clone(),
                v["served"].clone(),
                v["storage"].clone(),
                v["deprecated"].clone(),
            )
        })
        .collect();
    assert_eq!(
        names,
        [
            (json!("v1"), json!(true), json!(true), json!(null)),
            (json!("v1alpha3"), json!(true), json!(false), json!(true)),
            (json!("v1alpha2"), json!(true), json!(false), json!(true)),
        ]
    );
}

#[test]
fn kubectl_get_vmi_prints_the_known_columns() {
    for version in versions() {
        let columns: Vec<_> = version["additionalPrinterColumns"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|c| c["priority"].is_null())
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(columns, ["Age", "Phase", "IP", "NodeName", "Ready"]);
        assert_eq!(version["subresources"]["status"], json!({}));
    }
}

/// Walks a schema and calls `check` with the path and the schema of every level.
fn walk(path: &str, schema: &Value, check: &mut dyn FnMut(&str, &Value)) {
    check(path, schema);
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), child, check);
    }
    if schema["items"].is_object() {
        walk(&format!("{path}[]"), &schema["items"], check);
    }
    if schema["additionalProperties"].is_object() {
        walk(
            &format!("{path}{{}}"),
            &schema["additionalProperties"],
            check,
        );
    }
}

/// Whether a field belongs to a type of Kubernetes, whose words are not ours: `kubectl explain pod.spec` has them.
fn is_of_kubernetes(path: &str) -> bool {
    const TYPES: [&str; 8] = [
        "Probe.exec.",
        "Probe.httpGet.",
        "Probe.tcpSocket.",
        ".downwardAPI.fields[]",
        "spec.affinity.",
        "spec.dnsConfig.",
        "spec.tolerations[]",
        "spec.topologySpreadConstraints[]",
    ];
    TYPES.iter().any(|of| path.contains(of))
}

#[test]
fn the_schema_is_structural_described_and_open_at_the_root_and_in_spec_only() {
    // Machines go through admission, which says more about an unknown field than the API server does; settings do not.
    let all = ["kubevirt.io", "berth.kubevirt.io"].map(|group| (group, versions_of(group)));
    let all = all
        .iter()
        .flat_map(|(group, versions)| versions.iter().map(move |version| (*group, version)));
    for (group, version) in all {
        let is_machine = group == "kubevirt.io";
        walk(
            "",
            &version["schema"]["openAPIV3Schema"],
            &mut |path, schema| {
                let leaf_of_map = path.ends_with("{}") || path.ends_with("[]");
                let typed =
                    schema["type"].is_string() || schema["x-kubernetes-int-or-string"] == true;
                assert!(typed, "{path} has no type: {schema}");
                assert!(
                    path.is_empty()
                        || leaf_of_map
                        || is_of_kubernetes(path)
                        || schema["description"].is_string(),
                    "{path} is not described"
                );
                assert!(
                    schema["default"].is_null(),
                    "{path} has a default: {}",
                    schema["default"]
                );
                let object = schema["type"] == "object" && schema["additionalProperties"].is_null();
                let open = schema["x-kubernetes-preserve-unknown-fields"] == true;
                assert_eq!(
                    open,
                    is_machine && object && (path.is_empty() || path.starts_with(".spec")),
                    "{path}"
                );
                if let Some(format) = schema["format"].as_str() {
                    assert!(
                        ["int32", "int64", "date-time"].contains(&format),
                        "{path}: {format}"
                    );
                }
            },
        );
    }
}

#[test]
fn numbers_are_quantities_too() {
    let vmi: berth_api::kubevirt::v1::VirtualMachineInstance = serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "a"},
        "spec": {"domain": {"devices": {}, "memory": {"guest": 67108864}, "resources": {"requests": {"cpu": 2}}}}
    }))
    .unwrap();
    let written = serde_json::to_value(&vmi).unwrap();
    assert_eq!(written["spec"]["domain"]["memory"]["guest"], "67108864");
    assert_eq!(
        written["spec"]["domain"]["resources"]["requests"]["cpu"],
        "2"
    );
    assert_eq!(written["spec"]["domain"]["devices"], json!({}));
}
