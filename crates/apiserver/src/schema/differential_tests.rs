//! Value rules against a second opinion: an ordinary JSON Schema validator, where the two dialects mean the same.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::Schema;

/// A schema that both sides read alike: no nulls, no formats, no Kubernetes keywords.
fn schemas() -> impl Strategy<Value = Value> {
    let bound = |low: &'static str, high: &'static str| {
        (prop::option::of(0..4_i64), prop::option::of(2..6_i64)).prop_map(move |(a, b)| {
            let mut map = Map::new();
            map.extend(a.map(|a| (low.to_owned(), json!(a))));
            map.extend(b.map(|b| (high.to_owned(), json!(b))));
            map
        })
    };
    let with = |kind: &'static str, rules: BoxedStrategy<Map<String, Value>>| {
        rules.prop_map(move |mut map| {
            map.insert("type".into(), json!(kind));
            Value::Object(map)
        })
    };
    let enumerated = prop::option::of(prop::sample::subsequence(vec!["a", "b", "ab", ""], 1..4));
    let leaf = prop_oneof![
        with("integer", bound("minimum", "maximum").boxed()),
        with("number", bound("minimum", "maximum").boxed()),
        (1..4_i64).prop_map(|n| json!({"type": "integer", "multipleOf": n})),
        with("string", bound("minLength", "maxLength").boxed()),
        enumerated.prop_map(|values| match values {
            Some(values) => json!({"type": "string", "enum": values}),
            None => json!({"type": "string", "pattern": "^a+b?$"}),
        }),
        Just(json!({"type": "boolean"})),
    ];
    leaf.prop_recursive(3, 24, 4, move |inner| {
        let required = || prop::sample::subsequence(vec!["a", "b", "c"], 0..3);
        let junctor = (
            prop::sample::select(vec!["allOf", "anyOf", "oneOf"]),
            prop::collection::vec(required(), 1..3),
        );
        let object = (
            prop::collection::btree_map(
                prop::sample::select(vec!["a", "b", "c"]),
                inner.clone(),
                0..3,
            ),
            required(),
            bound("minProperties", "maxProperties"),
            prop::option::of(junctor),
            prop::option::of(required()),
        )
            .prop_map(|(properties, required, mut map, junctor, not)| {
                map.insert("type".into(), json!("object"));
                map.insert("properties".into(), json!(properties));
                map.insert("required".into(), json!(required));
                if let Some((name, list)) = junctor {
                    let list: Vec<Value> = list.iter().map(|r| json!({"required": r})).collect();
                    map.insert(name.into(), json!(list));
                }
                if let Some(not) = not {
                    map.insert("not".into(), json!({"required": not}));
                }
                Value::Object(map)
            });
        let list = (inner.clone(), bound("minItems", "maxItems")).prop_map(|(items, mut map)| {
            map.insert("type".into(), json!("array"));
            map.insert("items".into(), items);
            Value::Object(map)
        });
        let map =
            inner.prop_map(|schema| json!({"type": "object", "additionalProperties": schema}));
        prop_oneof![3 => object, 2 => list, 1 => map]
    })
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        (-2..8_i64).prop_map(Value::from),
        (-4..16_i32).prop_map(|n| json!(f64::from(n) / 2.0)),
        "[ab]{0,5}".prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[abc]", inner, 0..4).prop_map(|m| json!(m)),
        ]
    })
}

/// A value that has a chance to fit.
fn pairs() -> impl Strategy<Value = (Value, Value)> {
    schemas().prop_flat_map(|schema| {
        let fitting = fitting(&schema);
        (Just(schema), prop_oneof![4 => fitting, 1 => values()])
    })
}

fn fitting(schema: &Value) -> BoxedStrategy<Value> {
    match schema["type"].as_str() {
        Some("integer") => (-1..8_i64).prop_map(Value::from).boxed(),
        Some("number") => (-2..16_i32).prop_map(|n| json!(f64::from(n) / 2.0)).boxed(),
        Some("string") => "[ab]{0,6}".prop_map(Value::from).boxed(),
        Some("boolean") => any::<bool>().prop_map(Value::from).boxed(),
        Some("array") => prop::collection::vec(fitting(&schema["items"]), 0..5)
            .prop_map(Value::from)
            .boxed(),
        _ => {
            let any_of =
                |name: &str| match (&schema["properties"][name], &schema["additionalProperties"]) {
                    (Value::Null, Value::Null) => values().boxed(),
                    (Value::Null, schema) | (schema, _) => fitting(schema),
                };
            let fields = ["a", "b", "c"]
                .map(|name| prop::option::of(any_of(name)).prop_map(move |v| v.map(|v| (name, v))));
            let [a, b, c] = fields;
            (a, b, c)
                .prop_map(|(a, b, c)| {
                    let all = [a, b, c].into_iter().flatten();
                    Value::Object(all.map(|(name, v)| (name.to_owned(), v)).collect())
                })
                .boxed()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn values_are_judged_as_json_schema_judges_them((schema, value) in pairs()) {
        let whole = json!({"type": "object", "properties": {"spec": schema}});
        let object = json!({"spec": value});
        let here = Schema::parse(&whole).unwrap().validate(&object);
        let there = jsonschema::is_valid(&whole, &object);
        prop_assert_eq!(here.is_empty(), there, "{} {}: {:?}", whole, object, here);
    }

    #[test]
    fn any_value_can_be_pruned_defaulted_and_judged((schema, value) in (schemas(), values()), old in values()) {
        let schema = Schema::parse(&json!({"type": "object", "properties": {"spec": schema}})).unwrap();
        let mut object = json!({"spec": value});
        schema.prune(&mut object);
        let once = object.clone();
        schema.prune(&mut object);
        prop_assert_eq!(&object, &once);
        schema.default(&mut object);
        let once = object.clone();
        schema.default(&mut object);
        prop_assert_eq!(&object, &once);
        let errors = schema.validate(&object);
        // What has not changed is tolerated, whatever it is.
        prop_assert!(schema.check(&object, Some(&object)).errors.len() <= errors.len());
        schema.check(&object, Some(&json!({"spec": old})));
    }
}
