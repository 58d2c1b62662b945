//! Sets of fields, as `FieldsV1` writes them.
//!
//! A set is a tree of steps. A step is written as upstream writes it: `f:name` a field, `k:{"name":"a"}` the item of a
//! list with these keys, `v:1` the item of a list that is this value, `i:0` the item at this index. A node of the tree
//! may be a member itself (`.`) besides what is in it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Deeper sets are refused: nothing that is stored is as deep.
const MAX_DEPTH: usize = 128;

/// A set of fields below some place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Set {
    /// Whether the place itself is in the set.
    pub(super) member: bool,
    pub(super) children: BTreeMap<Box<str>, Self>,
}

/// Why a `fieldsV1` cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FieldsError {
    /// Not a tree of objects.
    #[error("fieldsV1 must be an object of objects")]
    Shape,
    /// A step of an unknown sort.
    #[error("unrecognized field path element {0:?}")]
    Step(String),
    /// Too many levels.
    #[error("fieldsV1 is nested too deeply")]
    Depth,
}

/// `f:name`.
pub(super) fn field(name: &str) -> Box<str> {
    format!("f:{name}").into()
}

impl Set {
    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// Adds everything of another set.
    pub(crate) fn add(&mut self, other: &Self) {
        self.member |= other.member;
        for (step, theirs) in &other.children {
            self.children.entry(step.clone()).or_default().add(theirs);
        }
    }

    /// Removes everything that another set holds too; not what lies below it.
    pub(crate) fn subtract(&mut self, other: &Self) {
        if other.member {
            self.member = false;
        }
        for (step, theirs) in &other.children {
            if let Some(own) = self.children.get_mut(step) {
                own.subtract(theirs);
                if own.is_empty() {
                    self.children.remove(step);
                }
            }
        }
    }

    /// Removes the members of another set with all that lies below them.
    pub(crate) fn subtract_below(&mut self, other: &Self) {
        self.children.retain(|step, own| {
            let Some(theirs) = other.children.get(step) else {
                return true;
            };
            if theirs.member {
                return false;
            }
            own.subtract_below(theirs);
            !own.is_empty()
        });
    }

    /// Keeps what lies at and below one step.
    pub(crate) fn keep_only(&mut self, step: &str) {
        self.children.retain(|own, _| **own == *step);
        self.member = false;
    }

    /// What both hold.
    pub(crate) fn common(&self, other: &Self) -> Self {
        let mut out = Self {
            member: self.member && other.member,
            children: BTreeMap::new(),
        };
        for (step, own) in &self.children {
            if let Some(theirs) = other.children.get(step) {
                let both = own.common(theirs);
                if !both.is_empty() {
                    out.children.insert(step.clone(), both);
                }
            }
        }
        out
    }

    /// The part below one step; none if nothing is there.
    pub(super) fn below(&self, step: &str) -> Option<&Self> {
        self.children.get(step)
    }

    /// Puts in the place that `path` leads to.
    pub(crate) fn insert(&mut self, path: &[&str]) {
        let mut at = self;
        for step in path {
            at = at.children.entry((*step).into()).or_default();
        }
        at.member = true;
    }

    /// The members as messages name them: `.spec.ports[containerPort=80,protocol="TCP"].name`.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, path: &str, out: &mut Vec<String>) {
        if self.member {
            out.push(path.to_owned());
        }
        for (step, below) in &self.children {
            below.collect(&format!("{path}{}", shown(step)), out);
        }
    }

    /// Reads a `fieldsV1`.
    pub(crate) fn decode(value: &Value) -> Result<Self, FieldsError> {
        Self::decode_at(value, 0)
    }

    fn decode_at(value: &Value, depth: usize) -> Result<Self, FieldsError> {
        if depth > MAX_DEPTH {
            return Err(FieldsError::Depth);
        }
        let map = value.as_object().ok_or(FieldsError::Shape)?;
        // An empty node is a member: it would not be written otherwise. At the root it is the empty set.
        let mut out = Self {
            member: depth > 0 && map.is_empty(),
            children: BTreeMap::new(),
        };
        for (step, below) in map {
            if step == "." {
                out.member = depth > 0;
                continue;
            }
            let step = canonical(step)?;
            let below = Self::decode_at(below, depth + 1)?;
            out.children.entry(step).or_default().add(&below);
        }
        Ok(out)
    }

    /// Writes a `fieldsV1`.
    pub(crate) fn encode(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        for (step, below) in &self.children {
            map.insert(step.to_string(), below.encode());
        }
        Value::Object(map)
    }
}

/// A step in the one way in which this module writes it, so that equal steps are equal text.
fn canonical(step: &str) -> Result<Box<str>, FieldsError> {
    let bad = || FieldsError::Step(step.to_owned());
    let (sort, rest) = step.split_once(':').ok_or_else(bad)?;
    match sort {
        "f" => Ok(step.into()),
        "i" => rest
            .parse::<u64>()
            .map(|index| format!("i:{index}").into())
            .map_err(|_| bad()),
        "k" => match serde_json::from_str::<Value>(rest) {
            Ok(keys @ Value::Object(_)) => Ok(format!("k:{keys}").into()),
            _ => Err(bad()),
        },
        "v" => serde_json::from_str::<Value>(rest)
            .map(|value| format!("v:{value}").into())
            .map_err(|_| bad()),
        _ => Err(bad()),
    }
}

/// A step as messages show it.
pub(super) fn shown(step: &str) -> String {
    match step.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let pairs: Vec<_> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("[{}]", pairs.join(","))
        }
        Some(("v", value)) => format!("[={value}]"),
        Some((_, index)) => format!("[{index}]"),
        None => step.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn set() -> impl Strategy<Value = Set> {
        let step = prop_oneof![
            Just("f:a"),
            Just("f:b"),
            Just("f:c"),
            Just(r#"k:{"name":"x"}"#),
            Just(r#"v:"y""#),
            Just("i:1"),
        ];
        let path = prop::collection::vec(step, 1..4);
        prop::collection::vec(path, 0..8).prop_map(|paths| {
            let mut set = Set::default();
            for path in paths {
                set.insert(&path);
            }
            set
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(set in set()) {
            prop_assert_eq!(Set::decode(&set.encode()), Ok(set));
        }

        #[test]
        fn laws(a in set(), b in set()) {
            let union = |a: &Set, b: &Set| { let mut out = a.clone(); out.add(b); out };
            let minus = |a: &Set, b: &Set| { let mut out = a.clone(); out.subtract(b); out };
            prop_assert_eq!(union(&a, &b), union(&b, &a));
            prop_assert_eq!(a.common(&b), b.common(&a));
            prop_assert_eq!(union(&a, &a), a.clone());
            prop_assert!(minus(&a, &a).is_empty());
            prop_assert!(minus(&a, &b).common(&b).is_empty());
            prop_assert_eq!(union(&minus(&a, &b), &a.common(&b)), a);
        }
    }

    #[test]
    fn the_form_is_upstreams() {
        let fields = json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:ports": {
            "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}, "f:names": {"v:\"a\"": {}}}});
        let set = Set::decode(&fields).unwrap();
        assert_eq!(set.encode(), fields);
        assert_eq!(
            set.paths(),
            [
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.names[=\"a\"]",
                ".spec.ports[containerPort=80,protocol=\"TCP\"]",
                ".spec.ports[containerPort=80,protocol=\"TCP\"].containerPort",
            ]
        );
        for bad in [
            json!([]),
            json!({"f:a": 1}),
            json!({"x:a": {}}),
            json!({"k:1": {}}),
        ] {
            assert!(Set::decode(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_in_another_order_are_the_same_keys() {
        let a = Set::decode(&json!({"k:{\"b\":1,\"a\":2}": {}})).unwrap();
        let b = Set::decode(&json!({"k:{\"a\":2, \"b\":1}": {}})).unwrap();
        assert_eq!(a, b);
    }
}
