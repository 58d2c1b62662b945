//! Server-side apply and tracking, on a deployment-like kind of which everything is known, and as laws.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::apply::{ApplyError, apply};
use super::set::Set;
use super::update::track;
use super::{Context, Version, compare, managers, merge, walk};
use crate::schema::shape::Type;
use crate::schema::{Schema, builtin};

const NOW: &str = "2026-01-01T00:00:00Z";

fn schema() -> Schema {
    Schema::parse(&json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "replicas": {"type": "integer"},
            "image": {"type": "string"},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
                "items": {"type": "object", "properties": {"port": {"type": "integer"},
                    "protocol": {"type": "string", "default": "TCP"}, "name": {"type": "string"}}}},
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "args": {"type": "array", "items": {"type": "string"}},
            "selector": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "any": {"x-kubernetes-int-or-string": true},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }},
        "status": {"type": "object", "properties": {"phase": {"type": "string"}}},
    }}))
    .unwrap()
}

/// A kind with one object, and what its owners do.
struct World {
    schema: Schema,
    object: Value,
    subresource: &'static str,
    now: String,
}

impl World {
    fn new() -> Self {
        Self {
            schema: schema(),
            object: Value::Null,
            subresource: "",
            now: NOW.to_owned(),
        }
    }

    fn with<R>(&self, run: impl FnOnce(&Context<'_>) -> R) -> R {
        let other = |_: &str| Version::Gone;
        run(&Context {
            of: Type::object(&self.schema, true),
            api_version: "example.com/v1",
            of_version: &other,
            subresource: self.subresource,
            reset: Set::default(),
            now: &self.now,
        })
    }

    fn try_apply(&mut self, manager: &str, spec: &Value, force: bool) -> Result<(), ApplyError> {
        let mut config =
            json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}});
        if !spec.is_null() {
            config["spec"] = spec.clone();
        }
        let created = self.object.is_null();
        let live = if created {
            json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {}})
        } else {
            self.object.clone()
        };
        let new = self
            .with(|context| apply(context, &live, created, &config, &json!({}), manager, force))?;
        self.object = new;
        Ok(())
    }

    fn apply(&mut self, manager: &str, spec: &Value) {
        self.try_apply(manager, spec, false).unwrap();
    }

    fn refused(&mut self, manager: &str, spec: &Value) -> String {
        self.try_apply(manager, spec, false)
            .unwrap_err()
            .to_string()
    }

    fn update(&mut self, manager: &str, spec: &Value) {
        let mut new = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": spec});
        let live = (!self.object.is_null()).then_some(&self.object);
        let entries = self.with(|context| track(context, live, &new, None, &json!({}), manager));
        if let Some(entries) = entries {
            new["metadata"]["managedFields"] = entries;
        }
        self.object = new;
    }

    fn spec(&self) -> Value {
        self.object["spec"].clone()
    }

    /// The fields of a manager, without the times.
    fn owned(&self, manager: &str) -> Value {
        self.object["metadata"]["managedFields"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|entry| entry["manager"] == manager)
            .map_or(Value::Null, |entry| entry["fieldsV1"]["f:spec"].clone())
    }
}

#[test]
fn items_of_keyed_lists_have_owners() {
    let mut w = World::new();
    w.apply("a", &json!({"ports": [{"port": 80, "name": "web"}]}));
    assert_eq!(
        w.owned("a"),
        json!({"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {}}}})
    );
    w.apply(
        "b",
        &json!({"ports": [{"port": 80, "protocol": "UDP"}, {"port": 443}]}),
    );
    assert_eq!(w.spec()["ports"].as_array().unwrap().len(), 3);
    w.apply("b", &json!({"ports": [{"port": 443}]}));
    assert_eq!(
        w.spec()["ports"],
        json!([{"port": 80, "name": "web"}, {"port": 443}])
    );
    w.apply("b", &json!({}));
    assert_eq!(w.spec()["ports"], json!([{"port": 80, "name": "web"}]));
    w.apply("a", &json!({"image": "x"}));
    assert_eq!(w.spec(), json!({"image": "x"}));
}

#[test]
fn an_item_that_two_apply_loses_only_what_its_owner_drops() {
    let mut w = World::new();
    w.apply("a", &json!({"ports": [{"port": 80, "name": "web"}]}));
    w.apply("b", &json!({"ports": [{"port": 80}]}));
    w.apply("a", &json!({}));
    assert_eq!(w.spec()["ports"], json!([{"port": 80}]));
}

#[test]
fn items_that_others_updated_stay() {
    let mut w = World::new();
    w.apply("a", &json!({"ports": [{"port": 80}]}));
    w.update("u", &json!({"ports": [{"port": 80}, {"port": 81}]}));
    w.apply("a", &json!({}));
    assert_eq!(w.spec()["ports"], json!([{"port": 81}]));
}

#[test]
fn sets_and_atomic_lists() {
    let mut w = World::new();
    w.apply("a", &json!({"set": ["x", "y"], "args": ["1"]}));
    w.apply("b", &json!({"set": ["y", "z"]}));
    assert_eq!(w.spec()["set"], json!(["x", "y", "z"]));
    w.apply("a", &json!({"set": ["x"], "args": ["1"]}));
    assert_eq!(w.spec()["set"], json!(["x", "y", "z"]), "y is b's as well");
    w.apply("b", &json!({}));
    assert_eq!(w.spec()["set"], json!(["x"]));
    assert_eq!(
        w.refused("b", &json!({"args": ["1", "2"]})),
        "Apply failed with 1 conflict: conflict with \"a\": .spec.args"
    );
    w.apply("b", &json!({"args": ["1"]}));
    assert_eq!(w.owned("b"), json!({"f:args": {}}));
}

#[test]
fn maps_granular_and_atomic() {
    let mut w = World::new();
    w.apply("a", &json!({"labels": {"x": "1"}, "selector": {"x": "1"}}));
    w.apply("b", &json!({"labels": {"y": "1"}}));
    assert_eq!(w.spec()["labels"], json!({"x": "1", "y": "1"}));
    assert!(
        w.refused("b", &json!({"selector": {"y": "1"}}))
            .ends_with(".spec.selector")
    );
    w.apply("a", &json!({"selector": {"z": "1"}}));
    assert_eq!(
        w.spec(),
        json!({"labels": {"y": "1"}, "selector": {"z": "1"}})
    );
}

#[test]
fn unknown_maps_are_deduced() {
    let mut w = World::new();
    w.apply("a", &json!({"free": {"x": {"y": 1}, "l": [1]}, "any": 1}));
    w.apply("b", &json!({"free": {"x": {"z": 2}}}));
    assert_eq!(w.spec()["free"], json!({"x": {"y": 1, "z": 2}, "l": [1]}));
    w.apply("a", &json!({"any": "50%"}));
    assert_eq!(w.spec(), json!({"free": {"x": {"z": 2}}, "any": "50%"}));
}

#[test]
fn conflicts_are_told_as_upstream_tells_them() {
    let mut w = World::new();
    w.apply("a", &json!({"replicas": 1, "image": "x"}));
    w.update("u", &json!({"replicas": 1, "image": "y"}));
    assert_eq!(w.owned("a"), json!({"f:replicas": {}}), "an update takes");
    assert_eq!(
        w.refused("b", &json!({"replicas": 2, "image": "z"})),
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.replicas\nconflicts with \"u\" using example.com/v1:\n- .spec.image"
    );
    w.subresource = "scale";
    assert_eq!(
        w.refused("c", &json!({"image": "z"})),
        "Apply failed with 1 conflict: conflict with \"u\" using example.com/v1: .spec.image"
    );
    w.try_apply("c", &json!({"image": "z"}), true).unwrap();
    w.subresource = "";
    assert_eq!(
        w.refused("b", &json!({"image": "q"})),
        "Apply failed with 1 conflict: conflict with \"c\" with subresource \"scale\": .spec.image"
    );
    w.try_apply("b", &json!({"replicas": 2}), true).unwrap();
    assert_eq!(w.spec(), json!({"replicas": 2, "image": "z"}));
    assert_eq!(w.owned("a"), Value::Null, "nothing is left to own");
    assert_eq!(w.owned("b"), json!({"f:replicas": {}}));
}

#[test]
fn an_empty_map_that_is_applied_keeps_what_nobody_owns() {
    let mut w = World::new();
    w.apply("a", &json!({"replicas": 1}));
    // As a default does.
    w.object["spec"]["image"] = json!("x");
    w.apply("a", &json!({}));
    assert_eq!(w.spec(), json!({"image": "x"}));
    assert_eq!(w.owned("a"), json!({}));
}

#[test]
fn the_same_value_is_shared() {
    let mut w = World::new();
    w.apply("a", &json!({"replicas": 3}));
    w.apply("b", &json!({"replicas": 3}));
    w.apply("a", &json!({}));
    assert_eq!(w.spec(), json!({"replicas": 3}));
    w.apply("b", &json!({}));
    assert_eq!(w.object.get("spec").and_then(|s| s.get("replicas")), None);
}

#[test]
fn an_update_is_not_undone_by_those_who_do_not_own_it() {
    let mut w = World::new();
    w.update("u", &json!({"replicas": 3, "image": "x"}));
    assert_eq!(
        w.owned("u"),
        json!({".": {}, "f:image": {}, "f:replicas": {}})
    );
    w.apply("a", &json!({"image": "x"}));
    w.apply("a", &json!({}));
    assert_eq!(w.spec(), json!({"replicas": 3, "image": "x"}));
}

#[test]
fn fields_without_owners_belong_to_those_before_the_first_apply() {
    let mut w = World::new();
    w.object = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": {"replicas": 1}});
    w.update("u", &json!({"replicas": 2}));
    assert_eq!(
        w.object["metadata"].get("managedFields"),
        None,
        "not tracked"
    );
    assert_eq!(
        w.refused("a", &json!({"replicas": 3})),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using example.com/v1: .spec.replicas"
    );
    w.apply("a", &json!({"replicas": 2}));
    assert_eq!(
        w.owned("before-first-apply"),
        json!({".": {}, "f:replicas": {}})
    );
    assert_eq!(w.owned("a"), json!({"f:replicas": {}}));
}

#[test]
fn what_client_side_apply_left_is_kubectls() {
    let mut w = World::new();
    w.update(
        "kubectl-client-side-apply",
        &json!({"replicas": 1, "image": "x"}),
    );
    w.object["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration":
        json!({"apiVersion": "example.com/v1", "kind": "Thing", "spec": {"replicas": 1}}).to_string()});
    assert!(
        w.refused("other", &json!({"replicas": 2}))
            .contains("1 conflict")
    );
    assert!(
        w.refused("kubectl", &json!({"image": "y"}))
            .ends_with(".spec.image")
    );
    w.apply("kubectl", &json!({"replicas": 2}));
    let annotation =
        &w.object["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
    assert!(annotation.as_str().unwrap().contains("\"replicas\":2"));
}

#[test]
fn configurations_must_fit() {
    let mut w = World::new();
    for (spec, why) in [
        (
            json!({"size": 1}),
            ".spec.size: field not declared in schema",
        ),
        (
            json!({"replicas": "1"}),
            ".spec.replicas: expected numeric (int or float), got string",
        ),
        (
            json!({"set": ["a", "a"]}),
            ".spec.set: duplicate entries for key [=\"a\"]",
        ),
        (
            json!({"ports": [{"port": 1}, {"port": 1, "protocol": "TCP"}]}),
            ".spec.ports: duplicate entries for key [port=1,protocol=\"TCP\"]",
        ),
        (
            json!({"ports": [null]}),
            ".spec.ports: element 0: associative list with keys may not have a null element",
        ),
    ] {
        assert_eq!(
            w.refused("a", &spec),
            format!("failed to create typed patch object (/a; example.com/v1, Kind=Thing): {why}")
        );
    }
}

#[test]
fn items_that_occur_twice_are_one() {
    let mut w = World::new();
    w.update(
        "u",
        &json!({"ports": [{"port": 1, "name": "x"}, {"port": 1, "name": "y"}]}),
    );
    assert_eq!(
        w.owned("u")["f:ports"],
        json!({".": {}, "k:{\"port\":1,\"protocol\":\"TCP\"}": {}})
    );
    w.try_apply("a", &json!({"ports": [{"port": 1, "name": "z"}]}), true)
        .unwrap();
    assert_eq!(w.spec()["ports"], json!([{"port": 1, "name": "z"}]));
}

#[test]
fn the_configurations_order_wins_where_it_says_something() {
    let mut w = World::new();
    w.update("u", &json!({"set": ["a", "b", "c", "d"]}));
    w.apply("m", &json!({"set": ["d", "b", "x"]}));
    assert_eq!(w.spec()["set"], json!(["a", "c", "d", "b", "x"]));
}

#[test]
fn old_updates_are_merged() {
    let mut w = World::new();
    for n in 0..14 {
        w.now = format!("2026-01-01T00:00:{n:02}Z");
        let labels: serde_json::Map<String, Value> =
            (0..=n).map(|i| (format!("l{i:02}"), json!("x"))).collect();
        w.update(&format!("u{n:02}"), &json!({"labels": labels}));
    }
    let entries = w.object["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(entries.len(), 10);
    let ancient = entries
        .iter()
        .find(|e| e["manager"] == "ancient-changes")
        .unwrap();
    assert_eq!(ancient["time"], "2026-01-01T00:00:04Z");
    assert_eq!(
        ancient["fieldsV1"]["f:spec"]["f:labels"],
        json!({".": {}, "f:l00": {}, "f:l01": {}, "f:l02": {}, "f:l03": {}, "f:l04": {}})
    );
}

#[test]
fn what_becomes_atomic_is_owned_as_a_whole() {
    let set = Set::of(&[&["spec", "selector", "x"], &["spec", "labels", "y"]]);
    let schema = schema();
    let reconciled = merge::reconcile(Type::object(&schema, true), &set);
    assert_eq!(
        reconciled,
        Set::of(&[&["spec", "selector"], &["spec", "labels", "y"]])
    );
}

#[test]
fn clients_may_clear_the_managed_fields() {
    let mut w = World::new();
    w.update("u", &json!({"replicas": 1}));
    for clear in [json!([]), json!([{}])] {
        assert!(managers::is_reset(&clear));
        let new = w.object.clone();
        let entries = w.with(|c| track(c, Some(&w.object), &new, Some(&clear), &json!({}), "u"));
        assert_eq!(entries, None);
    }
    let new = w.object.clone();
    let odd = json!([{"manager": "x", "operation": "Steal", "apiVersion": "v1", "fieldsType": "FieldsV1"}]);
    let kept = w.with(|c| track(c, Some(&w.object), &new, Some(&odd), &json!({}), "u"));
    assert_eq!(kept.as_ref(), w.object.pointer("/metadata/managedFields"));
}

/// What tracking costs a write; figures are printed by `cargo test --release -- --nocapture cost`.
#[test]
fn the_cost_of_tracking_stays_small() {
    let schema = builtin::strict_schema("", "Pod").unwrap();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b", "c": "d"}}, "spec": {
        "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "s", "terminationGracePeriodSeconds": 30,
        "containers": (0..2).map(|n| json!({"name": format!("c{n}"), "image": "i", "command": ["a", "b"],
            "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
            "volumeMounts": [{"name": "v", "mountPath": "/x"}, {"name": "w", "mountPath": "/y"}]})).collect::<Vec<_>>(),
        "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}]}});
    let other = |_: &str| Version::Gone;
    let context = |subresource, now| Context {
        of: Type::object(&schema, false),
        api_version: "v1",
        of_version: &other,
        subresource,
        reset: Set::default(),
        now,
    };
    let blank = json!({"metadata": {}, "spec": {"containers": null}, "status": {}});
    let rounds: u32 = 200;
    let start = Instant::now();
    let mut made = pod.clone();
    for _ in 0..rounds {
        made["metadata"]["managedFields"] =
            track(&context("", NOW), None, &pod, None, &blank, "kubectl").unwrap();
    }
    let create = start.elapsed() / rounds;
    let mut changed = made.clone();
    changed["status"] =
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    let start = Instant::now();
    let mut entries = None;
    for _ in 0..rounds {
        entries = track(
            &context("status", NOW),
            Some(&made),
            &changed,
            None,
            &blank,
            "kubelet",
        );
    }
    let update = start.elapsed() / rounds;
    assert_eq!(entries.unwrap().as_array().unwrap().len(), 2);
    println!("tracking a create takes {create:?}, a status update {update:?}");
    // Far above what it takes without optimisation, far below a slip to something quadratic.
    assert!(
        create + update < Duration::from_millis(20),
        "{create:?} {update:?}"
    );
}

fn ports() -> impl Strategy<Value = Value> {
    prop::collection::btree_map(1..5u8, prop::option::of("[ab]"), 1..4).prop_map(|ports| {
        ports
            .into_iter()
            .map(|(port, name)| match name {
                Some(name) => json!({"port": port, "name": name}),
                None => json!({"port": port}),
            })
            .collect()
    })
}

fn spec() -> impl Strategy<Value = Value> {
    (
        prop::option::of(0..3u8),
        prop::option::of(ports()),
        prop::option::of(prop::collection::btree_set("[a-d]", 1..3)),
        prop::option::of(prop::collection::btree_map("[k-n]", "[xy]", 1..3)),
        prop::option::of(prop::collection::vec("[pq]", 0..3)),
    )
        .prop_map(|(replicas, ports, set, labels, args)| {
            let mut spec = serde_json::Map::new();
            let mut put = |key: &str, value: Option<Value>| {
                if let Some(value) = value {
                    spec.insert(key.to_owned(), value);
                }
            };
            put("replicas", replicas.map(|v| json!(v)));
            put("ports", ports);
            put("set", set.map(|v| json!(v)));
            put("labels", labels.map(|v| json!(v)));
            put("args", args.map(|v| json!(v)));
            Value::Object(spec)
        })
        .prop_filter("says something", |spec| spec != &json!({}))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// To apply twice is to apply once, whatever was there.
    #[test]
    fn applying_again_changes_nothing(before in spec(), other in spec(), mine in spec()) {
        let mut w = World::new();
        w.update("u", &before);
        w.try_apply("b", &other, true).unwrap();
        w.try_apply("a", &mine, true).unwrap();
        let once = w.object.clone();
        w.now = "2027-01-01T00:00:00Z".to_owned();
        w.try_apply("a", &mine, false).unwrap();
        prop_assert_eq!(&w.object, &once);
    }

    /// After a forced apply the object says what was applied, and the applier owns it.
    #[test]
    fn force_takes_ownership(before in spec(), other in spec(), mine in spec()) {
        let mut w = World::new();
        w.update("u", &before);
        w.try_apply("b", &other, true).unwrap();
        w.try_apply("a", &mine, true).unwrap();
        let schema = schema();
        let of = Type::object(&schema, true);
        let wanted = walk::fields_of(of, &json!({"spec": mine})).unwrap();
        let managers = managers::decode(&w.object["metadata"]["managedFields"]).unwrap();
        let own = managers.iter().find(|(m, _)| m.name == "a").map(|(_, m)| m.set.clone()).unwrap_or_default();
        prop_assert_eq!(&own, &wanted);
        let has = walk::fields_of(of, &w.object).unwrap();
        prop_assert!(wanted.difference(&has).is_empty());
        let changes = compare::compare(of, &json!({"spec": mine}), &json!({"spec": w.spec()})).unwrap();
        prop_assert!(changes.modified.intersection(&wanted).is_empty());
    }

    /// What an applier alone applied goes when it applies nothing; what others have stays.
    #[test]
    fn a_field_goes_with_its_last_owner(other in spec(), mine in spec()) {
        let mut alone = World::new();
        alone.apply("b", &other);
        let mut w = World::new();
        w.apply("b", &other);
        if w.try_apply("a", &mine, false).is_ok() {
            w.apply("a", &Value::Null);
            let schema = schema();
            let of = Type::object(&schema, true);
            let (left, wanted) = (walk::fields_of(of, &w.object).unwrap(), walk::fields_of(of, &alone.object).unwrap());
            prop_assert_eq!(left.difference(super::stripped()), wanted.difference(super::stripped()));
            w.apply("b", &Value::Null);
            prop_assert_eq!(w.object.get("spec"), None);
        }
    }

    /// Two who apply different fields may do so in either order.
    #[test]
    fn disjoint_applies_commute(mine in spec(), labels in prop::collection::btree_map("[s-v]", "[xy]", 1..3), image in "[a-c]") {
        let other = json!({"labels": labels, "image": image});
        let (mut one, mut two) = (World::new(), World::new());
        one.apply("a", &mine);
        one.apply("b", &other);
        two.apply("b", &other);
        two.apply("a", &mine);
        prop_assert_eq!(one.spec(), two.spec());
        let entries = |w: &World| w.object["metadata"]["managedFields"].clone();
        prop_assert!(managers::same_but_times(Some(&entries(&one)), Some(&entries(&two))));
    }

    /// Nobody owns what is not there, and an updater owns all that it created.
    #[test]
    fn owners_own_what_is_there(created in spec(), changed in spec()) {
        let mut w = World::new();
        w.update("u", &created);
        w.update("v", &changed);
        let schema = schema();
        let of = Type::object(&schema, true);
        let there = compare::compare(of, &json!({}), &w.object).unwrap().added;
        let managers = managers::decode(&w.object["metadata"]["managedFields"]).unwrap();
        let mut all = Set::default();
        for managed in managers.values() {
            prop_assert!(managed.set.difference(&there).is_empty());
            all = all.union(&managed.set);
        }
        let unowned = there.difference(super::stripped()).difference(&all);
        prop_assert!(unowned.is_empty(), "{}", unowned.encode());
    }
}
