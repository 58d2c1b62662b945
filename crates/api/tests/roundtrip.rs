//! KubeVirt's round-trip objects, where they lie beside the project (or in `BERTH_SHARED`): objects with every field set. Of
//! what our definitions describe, nothing is lost or changed on its way through our types.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a test may panic, and takes literals"
)]

use std::path::PathBuf;

use berth_api::kubevirt::v1::{VirtualMachine, VirtualMachineInstance};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Leaves what the schema describes; counts the values that are left.
fn prune(schema: &JSONSchemaProps, value: &mut Value) -> usize {
    match value {
        Value::Object(members) => {
            let known = schema.properties.as_ref();
            let any = match &schema.additional_properties {
                Some(JSONSchemaPropsOrBool::Schema(any)) => Some(&**any),
                _ => None,
            };
            let of = |name: &String| known.and_then(|known| known.get(name)).or(any);
            members.retain(|name, _| of(name).is_some());
            let counts = members
                .iter_mut()
                .filter_map(|(name, value)| Some(prune(of(name)?, value)));
            counts.sum::<usize>().max(1)
        }
        Value::Array(items) => match &schema.items {
            Some(JSONSchemaPropsOrArray::Schema(of)) => {
                items.iter_mut().map(|item| prune(of, item)).sum()
            }
            _ => 0,
        },
        _ => 1,
    }
}

fn schema_of(kind: &str) -> JSONSchemaProps {
    let crds = berth_api::crds().into_iter();
    let mut of_kind = crds.filter(|crd| crd.spec.names.kind == kind);
    let versions = of_kind.next().unwrap().spec.versions;
    let stored = versions
        .into_iter()
        .find(|version| version.storage)
        .unwrap();
    stored.schema.unwrap().open_api_v3_schema.unwrap()
}

/// How many values came through, of how many that the object has.
fn round_trip<T: Serialize + DeserializeOwned>(kind: &str) -> Option<usize> {
    let shared = std::env::var_os("BERTH_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    let path = shared.join(format!(
        "data/kubevirt-roundtrip/kubevirt.io.v1.{kind}.json"
    ));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            let why = format!("no round-trip objects: {}: {error}", path.display());
            berth_testing::skip("nothing_is_lost_on_the_way", &why);
            return None;
        }
    };
    // Closed sets, and words that are made up there.
    let text = text
        .replace("phaseValue", "Running")
        .replace("runStrategyValue", "Always")
        .replace("printableStatusValue", "Stopped")
        .replace("actionValue", "Start");
    let mut object: Value = serde_json::from_str(&text).unwrap();
    let schema = schema_of(kind);
    let mut count = 0;
    for part in ["spec", "status"] {
        let of = &schema.properties.as_ref().unwrap()[part];
        count += prune(of, &mut object[part]);
    }
    let typed: T = serde_json::from_value(object.clone()).unwrap();
    let after = serde_json::to_value(&typed).unwrap();
    for part in ["spec", "status"] {
        let mut differences = Vec::new();
        compare(part, &object[part], &after[part], &mut differences);
        assert!(differences.is_empty(), "{kind}: {}", differences.join("\n"));
    }
    Some(count)
}

fn compare(path: &str, before: &Value, after: &Value, found: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (name, value) in before {
                let now = after.get(name).unwrap_or(&Value::Null);
                compare(&format!("{path}.{name}"), value, now, found);
            }
            let new = after.keys().filter(|name| !before.contains_key(*name));
            found.extend(new.map(|name| format!("{path}.{name} is new")));
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (i, (before, after)) in before.iter().zip(after).enumerate() {
                compare(&format!("{path}[{i}]"), before, after, found);
            }
        }
        _ if before == after => {}
        _ => found.push(format!("{path}: {before} became {after}")),
    }
}

#[test]
fn nothing_is_lost_on_the_way() {
    if let Some(count) = round_trip::<VirtualMachineInstance>("VirtualMachineInstance") {
        assert!(
            count > 150,
            "only {count} values of an instance are described"
        );
    }
    if let Some(count) = round_trip::<VirtualMachine>("VirtualMachine") {
        assert!(
            count > 150,
            "only {count} values of a machine are described"
        );
    }
}
