//! What a kube-apiserver 1.34 said of these definitions, recorded once; the same is to be said here.

use serde_json::{Value, json};

use super::crd;

const RECORDED: &str = include_str!("../../tests/data/definitions.json");

fn definition(schema: &Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "as.cel.example.com"},
        "spec": {"group": "cel.example.com", "scope": "Namespaced", "names": {"plural": "as", "kind": "A"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
}

/// Whether two causes say the same; `…` stands for what only upstream would show.
fn same(recorded: &[String; 3], found: &[String; 3]) -> bool {
    let text = match (recorded[2].strip_prefix('…'), recorded[2].strip_suffix('…')) {
        (Some(end), _) => found[2].ends_with(end),
        (_, Some(start)) => found[2].starts_with(start),
        _ => recorded[2] == found[2],
    };
    text && recorded[..2] == found[..2]
}

#[test]
fn definitions_are_judged_as_upstream_judges_them() {
    let recorded: Value = serde_json::from_str(RECORDED).unwrap();
    let mut differences = Vec::new();
    let cases = recorded["cases"].as_array().unwrap();
    assert!(cases.len() > 300);
    for case in cases {
        let with_rule = |properties: &str, rule: &Value| {
            definition(
                &json!({"type": "object", "properties": recorded[properties],
                "x-kubernetes-validations": [{"rule": rule}]}),
            )
        };
        let mut crd = match (&case["rule"], &case["bounded"]) {
            (Value::Null, Value::Null) => case["definition"].clone(),
            (Value::Null, rule) => with_rule("bounded", rule),
            (rule, _) => with_rule("properties", rule),
        };
        crd::default(&mut crd);
        let mut found: Vec<[String; 3]> = crd::validate(&crd, None)
            .into_iter()
            .map(|e| [e.kind.reason().to_owned(), e.field, e.message])
            .collect();
        found.sort();
        let expected: Vec<[String; 3]> = serde_json::from_value(case["causes"].clone()).unwrap();
        let equal =
            expected.len() == found.len() && expected.iter().zip(&found).all(|(a, b)| same(a, b));
        if !equal {
            differences.push(format!(
                "{}\n   upstream: {expected:#?}\n   here: {found:#?}",
                case["name"]
            ));
        }
    }
    assert!(
        differences.is_empty(),
        "{} differ:\n{}",
        differences.len(),
        differences.join("\n")
    );
}
