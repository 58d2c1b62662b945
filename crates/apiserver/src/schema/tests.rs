use proptest::prelude::*;
use serde_json::json;

use super::*;

fn schema(source: &Value) -> Schema {
    Schema::parse(source).expect("a schema")
}

/// A schema with a bit of everything.
fn everything() -> Schema {
    schema(&json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["x"], "properties": {
            "x": {"type": "string", "maxLength": 5, "minLength": 2, "pattern": "^[a-z]+$"},
            "replicas": {"type": "integer", "minimum": 1, "maximum": 9, "default": 1},
            "mode": {"type": "string", "enum": ["b", "c"], "default": "b"},
            "port": {"x-kubernetes-int-or-string": true},
            "since": {"type": "string", "format": "date-time", "nullable": true},
            "nested": {"type": "object", "default": {}, "properties": {"on": {"type": "boolean", "default": true}}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"known": {"type": "object", "properties": {"a": {"type": "string"}}}}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "maxItems": 3, "items": {"type": "string"}},
            "disks": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "order": {"type": "integer", "default": 7}}}},
            "template": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
            "either": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}
        }}
    }}))
}

fn errors(spec: &Value) -> Vec<String> {
    everything()
        .validate(&json!({"spec": spec}))
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn errors_read_like_upstream() {
    let cases = [
        (
            json!({"x": "ab", "replicas": "3"}),
            r#"spec.replicas: Invalid value: "string": spec.replicas in body must be of type integer: "string""#,
        ),
        (json!({}), "spec.x: Required value"),
        (
            json!({"x": "ab", "mode": "a"}),
            r#"spec.mode: Unsupported value: "a": supported values: "b", "c""#,
        ),
        (
            json!({"x": "ab", "replicas": 0}),
            "spec.replicas: Invalid value: 0: spec.replicas in body should be greater than or equal to 1",
        ),
        (
            json!({"x": "ab", "replicas": 10}),
            "spec.replicas: Invalid value: 10: spec.replicas in body should be less than or equal to 9",
        ),
        (
            json!({"x": "ab", "replicas": null}),
            r#"spec.replicas: Invalid value: "null": spec.replicas in body must be of type integer: "null""#,
        ),
        (
            json!({"x": "abcdef"}),
            "spec.x: Too long: may not be more than 5 bytes",
        ),
        (
            json!({"x": "a"}),
            r#"spec.x: Invalid value: "a": spec.x in body should be at least 2 chars long"#,
        ),
        (
            json!({"x": "AB"}),
            r#"spec.x: Invalid value: "AB": spec.x in body should match '^[a-z]+$'"#,
        ),
        (
            json!({"x": "ab", "since": "now"}),
            r#"spec.since: Invalid value: "now": spec.since in body must be of type date-time: "now""#,
        ),
        (
            json!({"x": "ab", "port": true}),
            r#"spec.port: Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean""#,
        ),
        (
            json!({"x": "ab", "tags": ["a", "b", "a"]}),
            r#"spec.tags[2]: Duplicate value: "a""#,
        ),
        (
            json!({"x": "ab", "tags": ["a", "b", "c", "d"]}),
            "spec.tags: Too many: 4: must have at most 3 items",
        ),
        (
            json!({"x": "ab", "disks": [{"name": "a"}, {"name": "a"}]}),
            r#"spec.disks[1]: Duplicate value: {"name":"a"}"#,
        ),
        (
            json!({"x": "ab", "disks": [{}]}),
            "spec.disks[0].name: Required value",
        ),
        (
            json!({"x": "ab", "labels": {"l": 1}}),
            r#"spec.labels.l: Invalid value: "integer": spec.labels.l in body must be of type string: "integer""#,
        ),
        (
            json!({"x": "ab", "template": {"kind": "A"}}),
            "spec.template.apiVersion: Required value",
        ),
        (
            json!({"x": "ab", "either": {"a": "1", "b": "2"}}),
            r#"<nil>: Invalid value: "": "spec.either" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(errors(&spec), [expected], "{spec}");
    }
    let good = json!({"x": "ab", "port": "http", "since": null, "replicas": 2.0, "either": {"a": ""}, "tags": ["a", "b"]});
    assert_eq!(errors(&good), Vec::<String>::new());
}

#[test]
fn unknown_fields_go_and_are_named() {
    let object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n", "nme": 1}, "extra": 1,
        "spec": {"x": "ab", "y": 1, "free": {"any": {"deep": 1}, "known": {"a": "1", "b": 2}},
            "labels": {"k": "v"}, "disks": [{"name": "a", "q": 1}],
            "template": {"apiVersion": "v1", "kind": "X", "metadata": {"name": "t", "odd": 1}, "spec": {"kept": 1}}}});
    let mut unknown = everything().unknown_fields(&object);
    unknown.sort();
    assert_eq!(
        unknown,
        [
            "extra",
            "metadata.nme",
            "spec.disks[0].q",
            "spec.free.known.b",
            "spec.template.metadata.odd",
            "spec.y"
        ]
    );
    let mut pruned = object.clone();
    everything().prune(&mut pruned);
    assert_eq!(everything().unknown_fields(&pruned), Vec::<String>::new());
    assert_eq!(
        pruned["spec"]["free"],
        json!({"any": {"deep": 1}, "known": {"a": "1"}})
    );
    assert_eq!(pruned["spec"]["template"]["spec"], json!({"kept": 1}));
    assert_eq!(pruned["metadata"], json!({"name": "n"}));
}

#[test]
fn defaults_fill_in_order() {
    let mut object = json!({"spec": {"mode": null, "since": null, "disks": [{"name": "a"}]}});
    everything().default(&mut object);
    assert_eq!(
        object,
        json!({"spec": {"mode": "b", "replicas": 1, "since": null, "nested": {"on": true}, "disks": [{"name": "a", "order": 7}]}})
    );
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z]{0,6}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("spec"),
        Just("x"),
        Just("replicas"),
        Just("mode"),
        Just("nested"),
        Just("on"),
        Just("free"),
        Just("known"),
        Just("labels"),
        Just("disks"),
        Just("name"),
        Just("template"),
        Just("metadata"),
        Just("kind"),
        Just("other"),
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn pruning_is_idempotent_and_agrees_with_the_list(spec in values()) {
        let schema = everything();
        let mut object = json!({"spec": spec});
        let unknown = schema.unknown_fields(&object);
        let before = object.clone();
        schema.prune(&mut object);
        prop_assert_eq!(unknown.is_empty(), before == object);
        prop_assert!(schema.unknown_fields(&object).is_empty());
        let once = object.clone();
        schema.prune(&mut object);
        prop_assert_eq!(object, once);
    }

    #[test]
    fn defaulting_is_idempotent_and_survives_pruning(spec in values()) {
        let schema = everything();
        let mut object = json!({"spec": spec});
        schema.prune(&mut object);
        schema.default(&mut object);
        let once = object.clone();
        schema.default(&mut object);
        prop_assert_eq!(&object, &once);
        schema.prune(&mut object);
        prop_assert_eq!(object, once);
    }

    #[test]
    fn validation_never_panics(spec in values()) {
        everything().validate(&json!({"spec": spec}));
    }
}

mod definitions {
    use super::super::crd;
    use super::*;

    fn good() -> Value {
        let mut crd = json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}},
                "additionalPrinterColumns": [{"name": "A", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]}]}});
        crd::default(&mut crd);
        crd
    }

    fn after(pointer: &str, value: Value) -> Vec<String> {
        let mut crd = good();
        *crd.pointer_mut(pointer)
            .unwrap_or_else(|| panic!("{pointer} is missing")) = value;
        crd::validate(&crd, None)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_good_definition_passes_and_makes_a_resource() {
        let mut crd = good();
        assert_eq!(crd::validate(&crd, None), []);
        assert_eq!(crd["spec"]["names"]["singular"], "widget");
        assert!(crd::accept(&mut crd, "2026-11-24T03:00:00Z"));
        assert!(!crd::accept(&mut crd, "2026-11-25T03:00:00Z"));
        assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
        let def = crate::resources::ResourceDef::from_crd(&crd).expect("a resource");
        assert_eq!(
            (def.list_kind.as_str(), def.namespaced, def.crd),
            ("WidgetList", true, true)
        );
        assert_eq!(def.versions[0].columns.len(), 1);
    }

    #[test]
    fn bad_definitions_are_refused() {
        let schema = "/spec/versions/0/schema/openAPIV3Schema";
        let at = "spec.validation.openAPIV3Schema";
        let cases = [
            ("/metadata/name", json!("x"), r#"metadata.name: Invalid value: "x": must be spec.names.plural+"."+spec.group"#.to_owned()),
            ("/spec/scope", json!("x"), r#"spec.scope: Unsupported value: "x": supported values: "Cluster", "Namespaced""#.to_owned()),
            (
                "/spec/versions/0/storage",
                json!(false),
                r#"spec.versions: Invalid value: [{"Name":"v1","Served":true,"Storage":false,"Deprecated":false,"DeprecationWarning":null,"Schema":null,"Subresources":null,"AdditionalPrinterColumns":null,"SelectableFields":null}]: must have exactly one version marked as storage version"#.to_owned(),
            ),
            (schema, json!({"type": "string"}), format!(r#"{at}.type: Invalid value: "string": must be object at the root"#)),
            (
                schema,
                json!({"type": "object", "properties": {"a": {}}}),
                format!("{at}.properties[a].type: Required value: must not be empty for specified object fields"),
            ),
            (
                schema,
                json!({"type": "object", "properties": {"a": {"type": "array"}}}),
                format!("{at}.properties[a].items: Required value: must be specified"),
            ),
            (
                schema,
                json!({"type": "object", "anyOf": [{"type": "object"}]}),
                format!("{at}.anyOf[0].type: Forbidden: must be empty to be structural"),
            ),
            (
                schema,
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
                format!("{at}.additionalProperties: Forbidden: must not be used at the root"),
            ),
            (
                "/spec/versions/0/additionalPrinterColumns/0/type",
                json!("x"),
                r#"spec.additionalPrinterColumns[0].type: Invalid value: "x": must be one of boolean,date,integer,number,string"#.to_owned(),
            ),
        ];
        for (pointer, value, expected) in cases {
            assert_eq!(
                after(pointer, value.clone())[0],
                expected,
                "{pointer} = {value}"
            );
        }
        assert_eq!(
            after(schema, Value::Null),
            ["spec.versions[0].schema.openAPIV3Schema: Required value"]
        );
    }

    #[test]
    fn some_fields_never_change() {
        let mut old = good();
        crd::accept(&mut old, "2026-01-01T00:00:00Z");
        let mut new = old.clone();
        new["spec"]["scope"] = json!("Cluster");
        let errors = crd::validate(&new, Some(&old));
        assert_eq!(
            errors[0].to_string(),
            r#"spec.scope: Invalid value: "Cluster": field is immutable"#
        );
    }

    #[test]
    fn versions_are_ordered_by_stability() {
        let mut names = vec!["v1alpha3", "v1", "foo", "v2beta1", "v1beta2", "v10", "v2"];
        names.sort_by_key(|n| std::cmp::Reverse(crd::version_order(n)));
        assert_eq!(
            names,
            ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1alpha3", "foo"]
        );
    }
}
