//! What a kube-apiserver 1.34 said of these objects, one write after the other, recorded once; the same is to be said here.

use serde_json::{Value, json};

use super::Schema;

const RECORDED: &str = include_str!("../../tests/data/objects.json");

/// A write that came out otherwise than upstream's.
fn play(suite: &Value, differences: &mut Vec<String>) {
    let mut schema = Schema::parse(&suite["schema"]).unwrap();
    let (mut stored, mut count) = (Value::Null, 0);
    for step in suite["steps"].as_array().unwrap() {
        if step["schema"].is_object() {
            schema = Schema::parse(&step["schema"]).unwrap();
            continue;
        }
        let create = step.get("create");
        count += u32::from(create.is_some());
        let name = if create.is_some() {
            json!(format!("o{count}"))
        } else {
            stored["metadata"]["name"].clone()
        };
        let mut object = json!({"apiVersion": "cel.example.com/v1", "kind": "A", "metadata": {"name": name},
            "spec": create.or(step.get("update")).unwrap()});
        schema.prune(&mut object);
        schema.default(&mut object);
        let found = schema.check(&object, create.is_none().then_some(&stored));
        let mut causes: Vec<[String; 3]> = found
            .errors
            .into_iter()
            .map(|e| [e.kind.reason().to_owned(), e.field, e.message])
            .collect();
        causes.sort();
        let expected: Vec<[String; 3]> =
            serde_json::from_value(step.get("causes").cloned().unwrap_or(json!([]))).unwrap();
        let warnings: Vec<String> =
            serde_json::from_value(step.get("warnings").cloned().unwrap_or(json!([]))).unwrap();
        let warnings: Vec<String> = warnings
            .iter()
            .map(|header| {
                header
                    .trim_start_matches("299 - ")
                    .trim_matches('"')
                    .replace("\\\"", "\"")
            })
            .collect();
        // A body that cannot be decoded is refused before its schema is asked.
        if step["code"] == 400 {
            continue;
        }
        if causes != expected || found.warnings != warnings {
            differences.push(format!(
                "{} {object}\n   upstream: {expected:#?} {warnings:?}\n   here: {causes:#?} {:?}",
                suite["name"], found.warnings
            ));
        }
        // What upstream accepted is what the next update starts from.
        if step["code"].as_u64() < Some(300) {
            stored = object;
        }
    }
}

#[test]
fn objects_are_judged_as_upstream_judges_them() {
    let recorded: Value = serde_json::from_str(RECORDED).unwrap();
    let suites = recorded.as_array().unwrap();
    assert!(suites.len() > 15);
    let mut differences = Vec::new();
    for suite in suites {
        play(suite, &mut differences);
    }
    assert!(
        differences.is_empty(),
        "{} differ:\n{}",
        differences.len(),
        differences.join("\n")
    );
}
