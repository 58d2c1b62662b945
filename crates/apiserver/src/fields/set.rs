//! Sets of fields: a trie of steps, its algebra, and its FieldsV1 form.
//!
//! A path can be a member, have members below it, or both. No branch is ever empty.

use serde_json::{Map, Value, json};

use super::path::{Step, StepError};

/// A set of paths. Entries are sorted by step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set {
    entries: Vec<Entry>,
}

/// One step with what lies below it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    step: Step,
    member: bool,
    below: Set,
}

/// A set that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetError {
    /// The trie is made of objects only.
    #[error("expected an object, got {0}")]
    Shape(Value),
    /// A key of it.
    #[error("parsing key as path element: {0}")]
    Step(#[from] StepError),
}

impl Set {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The set of these paths of field names.
    pub(crate) fn of(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let steps: Vec<Step> = path.iter().map(|name| Step::field(name)).collect();
            set.insert(&steps);
        }
        set
    }

    /// Adds a path; the empty one stands for the whole object and is not tracked.
    pub(crate) fn insert(&mut self, path: &[Step]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        if rest.is_empty() {
            self.add(first.clone(), true, Self::default());
        } else {
            let mut below = Self::default();
            below.insert(rest);
            self.add(first.clone(), false, below);
        }
    }

    /// Adds a step, as a member, and/or with what is below it. Cheap when steps come in order.
    pub(crate) fn add(&mut self, step: Step, member: bool, below: Self) {
        if !member && below.is_empty() {
            return;
        }
        let at = match self.entries.last() {
            Some(last) if last.step >= step => {
                self.entries.binary_search_by(|entry| entry.step.cmp(&step))
            }
            _ => Err(self.entries.len()),
        };
        match at {
            Ok(at) => {
                let entry = &mut self.entries[at];
                entry.member |= member;
                entry.below = if entry.below.is_empty() {
                    below
                } else {
                    entry.below.union(&below)
                };
            }
            Err(at) => self.entries.insert(
                at,
                Entry {
                    step,
                    member,
                    below,
                },
            ),
        }
    }

    fn find(&self, step: &Step) -> Option<&Entry> {
        self.entries
            .binary_search_by(|entry| entry.step.cmp(step))
            .ok()
            .map(|at| &self.entries[at])
    }

    /// Whether the step itself is a member.
    pub(crate) fn has(&self, step: &Step) -> bool {
        self.find(step).is_some_and(|entry| entry.member)
    }

    /// What is below a step, if anything is.
    pub(crate) fn below(&self, step: &Step) -> Option<&Self> {
        self.find(step)
            .map(|entry| &entry.below)
            .filter(|below| !below.is_empty())
    }

    /// Whether the path is a member.
    pub(crate) fn contains(&self, path: &[Step]) -> bool {
        match path {
            [] => false,
            [last] => self.has(last),
            [first, rest @ ..] => self.below(first).is_some_and(|below| below.contains(rest)),
        }
    }

    /// Steps with whether they are members and what is below them.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (&Step, bool, &Self)> {
        self.entries
            .iter()
            .map(|entry| (&entry.step, entry.member, &entry.below))
    }

    /// Merges two sorted lists; `both` says what comes of a step that either or both have.
    fn zip(
        &self,
        other: &Self,
        both: impl Fn(Option<&Entry>, Option<&Entry>) -> (bool, Self),
    ) -> Self {
        let mut out = Self {
            entries: Vec::with_capacity(self.entries.len()),
        };
        let (mut left, mut right) = (self.entries.as_slice(), other.entries.as_slice());
        while let Some(step) = match (left.first(), right.first()) {
            (Some(l), Some(r)) => Some(if l.step <= r.step { &l.step } else { &r.step }),
            (l, r) => l.or(r).map(|entry| &entry.step),
        } {
            let l = left.first().filter(|entry| entry.step == *step);
            let r = right.first().filter(|entry| entry.step == *step);
            if l.is_some() {
                left = &left[1..];
            }
            if r.is_some() {
                right = &right[1..];
            }
            let (member, below) = both(l, r);
            if member || !below.is_empty() {
                out.entries.push(Entry {
                    step: step.clone(),
                    member,
                    below,
                });
            }
        }
        out
    }

    /// Paths of either.
    pub(crate) fn union(&self, other: &Self) -> Self {
        self.zip(other, |l, r| match (l, r) {
            (Some(l), Some(r)) => (l.member || r.member, l.below.union(&r.below)),
            (Some(one), None) | (None, Some(one)) => (one.member, one.below.clone()),
            (None, None) => (false, Self::default()),
        })
    }

    /// Paths of both.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        self.zip(other, |l, r| match (l, r) {
            (Some(l), Some(r)) => (l.member && r.member, l.below.intersection(&r.below)),
            _ => (false, Self::default()),
        })
    }

    /// Paths of this one that are not in the other.
    pub(crate) fn difference(&self, other: &Self) -> Self {
        self.zip(other, |l, r| match (l, r) {
            (Some(l), Some(r)) => (l.member && !r.member, l.below.difference(&r.below)),
            (Some(l), None) => (l.member, l.below.clone()),
            _ => (false, Self::default()),
        })
    }

    /// As [`Self::difference`], and what lies below a path of the other goes, too.
    pub(crate) fn without(&self, other: &Self) -> Self {
        self.zip(other, |l, r| match (l, r) {
            (Some(_), Some(r)) if r.member => (false, Self::default()),
            (Some(l), Some(r)) => (l.member, l.below.without(&r.below)),
            (Some(l), None) => (l.member, l.below.clone()),
            _ => (false, Self::default()),
        })
    }

    /// Calls for each member: at each level the members first, then what is below.
    pub(crate) fn each(&self, visit: &mut impl FnMut(&[Step])) {
        self.each_below(&mut Vec::new(), visit);
    }

    fn each_below(&self, prefix: &mut Vec<Step>, visit: &mut impl FnMut(&[Step])) {
        for entry in self.entries.iter().filter(|entry| entry.member) {
            prefix.push(entry.step.clone());
            visit(prefix);
            prefix.pop();
        }
        for entry in &self.entries {
            if !entry.below.is_empty() {
                prefix.push(entry.step.clone());
                entry.below.each_below(prefix, visit);
                prefix.pop();
            }
        }
    }

    /// The FieldsV1 form.
    pub(crate) fn encode(&self) -> Value {
        let mut out = Map::new();
        for entry in &self.entries {
            let mut below = entry.below.encode();
            if entry.member
                && !entry.below.is_empty()
                && let Some(map) = below.as_object_mut()
            {
                map.insert(".".into(), json!({}));
            }
            out.insert(entry.step.encode(), below);
        }
        Value::Object(out)
    }

    /// Reads the FieldsV1 form. Steps of an unknown kind are left out, as upstream does.
    pub(crate) fn decode(fields: &Value) -> Result<Self, SetError> {
        Ok(Self::decode_branch(fields)?.0)
    }

    fn decode_branch(fields: &Value) -> Result<(Self, bool), SetError> {
        let map = match fields {
            Value::Object(map) => map,
            Value::Null => return Ok((Self::default(), true)),
            other => return Err(SetError::Shape(other.clone())),
        };
        let mut set = Self::default();
        let mut member = false;
        for (key, value) in map {
            if key == "." {
                member = true;
                continue;
            }
            let Some(step) = Step::parse(key)? else {
                continue;
            };
            let (below, child) = Self::decode_branch(value)?;
            set.add(step, child, below);
        }
        member |= set.is_empty();
        Ok((set, member))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            "[a-c]".prop_map(|name| Step::field(&name)),
            (0..3i64).prop_map(|n| Step::keyed(vec![("name".into(), json!(n))])),
            "[x-z]".prop_map(|v| Step::Value(json!(v))),
            (0..2i64).prop_map(Step::Index),
        ]
    }

    fn paths() -> impl Strategy<Value = Vec<Vec<Step>>> {
        prop::collection::vec(prop::collection::vec(step(), 1..4), 0..8)
    }

    fn set(paths: &[Vec<Step>]) -> Set {
        let mut set = Set::default();
        for path in paths {
            set.insert(path);
        }
        set
    }

    fn members(set: &Set) -> Vec<String> {
        let mut out = Vec::new();
        set.each(&mut |path| out.push(path.iter().map(Step::encode).collect::<Vec<_>>().join(" ")));
        out.sort();
        out
    }

    proptest! {
        #[test]
        fn the_codec_round_trips(paths in paths()) {
            let set = set(&paths);
            let text = set.encode().to_string();
            let back = Set::decode(&serde_json::from_str(&text).unwrap()).unwrap();
            prop_assert_eq!(&back, &set);
            prop_assert_eq!(back.encode().to_string(), text);
        }

        #[test]
        fn sets_are_sets(a in paths(), b in paths()) {
            let (a, b) = (set(&a), set(&b));
            let (in_a, in_b) = (members(&a), members(&b));
            let mut either: Vec<String> = in_a.iter().chain(&in_b).cloned().collect();
            either.sort();
            either.dedup();
            prop_assert_eq!(members(&a.union(&b)), either);
            prop_assert_eq!(a.union(&b), b.union(&a));
            let both: Vec<String> = in_a.iter().filter(|p| in_b.contains(p)).cloned().collect();
            prop_assert_eq!(members(&a.intersection(&b)), both);
            let rest: Vec<String> = in_a.iter().filter(|p| !in_b.contains(p)).cloned().collect();
            prop_assert_eq!(members(&a.difference(&b)), rest);
            prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
            prop_assert!(a.without(&a).is_empty());
            let kept: Vec<String> = in_a.iter().filter(|p| {
                !in_b.iter().any(|q| *p == q || p.starts_with(&format!("{q} ")))
            }).cloned().collect();
            prop_assert_eq!(members(&a.without(&b)), kept);
        }

        #[test]
        fn what_is_inserted_is_contained(paths in paths()) {
            let set = set(&paths);
            for path in &paths {
                prop_assert!(set.contains(path));
            }
        }
    }

    #[test]
    fn the_form_is_upstreams() {
        let fields = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}}});
        let set = Set::decode(&fields).unwrap();
        assert_eq!(set.encode(), fields);
        assert_eq!(
            members(&set),
            [
                "f:metadata f:labels",
                "f:metadata f:labels f:a",
                r#"f:spec f:ports k:{"port":80,"protocol":"TCP"}"#,
                r#"f:spec f:ports k:{"port":80,"protocol":"TCP"} f:port"#,
            ]
        );
        assert!(Set::decode(&json!({"spec": {}})).is_err());
        assert!(Set::decode(&json!({"f:spec": 1})).is_err());
    }
}
