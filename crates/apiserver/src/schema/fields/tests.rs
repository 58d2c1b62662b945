use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn schema() -> Schema {
    let text = json!({"type": "string"});
    Schema::parse(&json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "a": text, "b": text,
            "labels": {"type": "object", "additionalProperties": text},
            "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": text},
            "names": {"type": "array", "x-kubernetes-list-type": "set", "items": text},
            "args": {"type": "array", "items": text},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
                "items": {"type": "object", "properties": {
                    "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}, "name": text}}},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }},
    }}))
    .unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of a literal")]
fn spec(spec: Value) -> Value {
    json!({ "spec": spec })
}

fn paths(object: &Value) -> Vec<String> {
    schema().fields(object).unwrap().paths()
}

#[test]
fn fields_of_each_sort_of_value() {
    let object = spec(json!({
        "a": "1", "labels": {"x": "y"}, "whole": {"x": "y"}, "names": ["n"], "args": ["p", "q"],
        "ports": [{"port": 80, "name": "web"}], "open": {"any": {"deep": [1]}},
    }));
    assert_eq!(
        paths(&object),
        [
            ".spec.a",
            ".spec.args",
            ".spec.labels.x",
            ".spec.names[=\"n\"]",
            ".spec.open.any",
            ".spec.open.any.deep",
            ".spec.ports[port=80,protocol=\"TCP\"]",
            ".spec.ports[port=80,protocol=\"TCP\"].name",
            ".spec.ports[port=80,protocol=\"TCP\"].port",
            ".spec.whole",
        ]
    );
    let metadata = json!({"metadata": {"labels": {"a": "b"}, "finalizers": ["f/x"],
        "ownerReferences": [{"uid": "1", "name": "n"}]}});
    assert_eq!(
        paths(&metadata),
        [
            ".metadata.finalizers[=\"f/x\"]",
            ".metadata.labels.a",
            ".metadata.ownerReferences[uid=\"1\"]",
        ]
    );
}

#[test]
fn lists_of_items_that_cannot_be_told_apart_are_refused() {
    for bad in [
        json!({"names": ["x", "x"]}),
        json!({"ports": [{"port": 1}, {"port": 1, "protocol": "TCP"}]}),
        json!({"names": [{}]}),
        json!({"ports": ["x"]}),
    ] {
        assert!(schema().fields(&spec(bad.clone())).is_err(), "{bad}");
    }
}

#[test]
fn lists_merge_by_key_and_keep_the_applied_order() {
    let merge = |live: Value, applied: Value| {
        schema().merge(&spec(live), &spec(applied)).unwrap()["spec"].clone()
    };
    assert_eq!(
        merge(
            json!({"names": ["a", "b", "c"]}),
            json!({"names": ["c", "x", "a"]})
        )["names"],
        json!(["b", "c", "x", "a"])
    );
    assert_eq!(
        merge(
            json!({"ports": [{"port": 1, "name": "one"}, {"port": 2}], "args": ["x"]}),
            json!({"ports": [{"port": 2, "name": "two"}, {"port": 1, "protocol": "UDP"}], "args": ["y"]})
        ),
        json!({"ports": [{"port": 1, "name": "one"}, {"port": 2, "name": "two"}, {"port": 1, "protocol": "UDP"}], "args": ["y"]})
    );
}

#[test]
fn what_is_not_applied_any_more_goes_with_its_last_owner() {
    let schema = schema();
    let live = spec(
        json!({"a": "1", "labels": {"x": "1", "y": "2"}, "ports": [{"port": 1, "name": "n"}, {"port": 2}]}),
    );
    let before = schema.fields(&live).unwrap();
    // Nobody owns anything: all goes, with the maps that it leaves empty.
    assert_eq!(schema.take_out(&live, &before, &Set::default()), json!({}));
    let owned = schema
        .fields(&spec(json!({"labels": {"y": "2"}, "ports": [{"port": 2}]})))
        .unwrap();
    assert_eq!(
        schema.take_out(&live, &before, &owned),
        spec(json!({"labels": {"y": "2"}, "ports": [{"port": 2}]}))
    );
    // What nobody ever applied stays.
    let more = spec(json!({"a": "1", "labels": {"x": "1", "y": "2", "z": "3"}}));
    assert_eq!(
        schema.take_out(&more, &before, &Set::default()),
        spec(json!({"labels": {"z": "3"}}))
    );
}

#[test]
fn a_write_changes_what_differs() {
    let changes = schema().changes(
        &spec(json!({"a": "1", "b": "1", "names": ["x", "y"], "whole": {"k": "1"}})),
        &spec(json!({"a": "2", "labels": {"k": "v"}, "names": ["y", "z"], "whole": {"k": "2"}})),
    );
    assert_eq!(
        changes.set.paths(),
        [
            ".spec.a",
            ".spec.labels",
            ".spec.labels.k",
            ".spec.names[=\"z\"]",
            ".spec.whole"
        ]
    );
    assert_eq!(changes.removed.paths(), [".spec.b", ".spec.names[=\"x\"]"]);
}

/// A spec of a few fields, each there or not.
fn some_spec() -> impl Strategy<Value = Value> {
    let letter = || prop::option::of(0..3u8);
    (
        letter(),
        letter(),
        prop::collection::btree_map("[xyz]", 0..3u8, 0..3),
        prop::collection::btree_set(0..4u8, 0..4),
        prop::collection::btree_map(1..4u16, 0..3u8, 0..3),
    )
        .prop_map(|(a, b, labels, names, ports)| {
            let mut out = json!({});
            if let Some(a) = a {
                out["a"] = json!(a.to_string());
            }
            if let Some(b) = b {
                out["b"] = json!(b.to_string());
            }
            if !labels.is_empty() {
                out["labels"] = labels
                    .into_iter()
                    .map(|(k, v)| (k, json!(v.to_string())))
                    .collect();
            }
            if !names.is_empty() {
                out["names"] = names.into_iter().map(|n| json!(n.to_string())).collect();
            }
            if !ports.is_empty() {
                out["ports"] = ports
                    .into_iter()
                    .map(|(port, name)| json!({"port": port, "name": name.to_string()}))
                    .collect();
            }
            spec(out)
        })
}

proptest! {
    #[test]
    fn merging_twice_is_merging_once(live in some_spec(), applied in some_spec()) {
        let once = schema().merge(&live, &applied).unwrap();
        prop_assert_eq!(schema().merge(&once, &applied).unwrap(), once.clone());
        // Everything that was applied is there.
        let mut missing = schema().fields(&applied).unwrap();
        missing.subtract(&schema().fields(&once).unwrap());
        // An empty map is a field, one with something in it is not.
        let mut spec = Set::default();
        spec.insert(&["f:spec"]);
        missing.subtract(&spec);
        prop_assert!(missing.is_empty());
    }

    #[test]
    fn equal_objects_have_no_changes_and_changes_are_fields(a in some_spec(), b in some_spec()) {
        prop_assert!(schema().changes(&a, &a).set.is_empty());
        let changes = schema().changes(&a, &b);
        // An empty map is a field, one with something in it is not.
        for path in schema().fields(&a).unwrap().paths().into_iter().filter(|path| path != ".spec") {
            let gone = !schema().fields(&b).unwrap().paths().contains(&path);
            prop_assert_eq!(gone, changes.removed.paths().contains(&path), "{}", path);
        }
    }
}
