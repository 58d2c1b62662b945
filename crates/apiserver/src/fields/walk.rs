//! Walks of typed values: the fields that they have, how two of them differ, merging, removing.
//!
//! The semantics are those of `sigs.k8s.io/structured-merge-diff`. `None` stands for a value that is not there, which is not
//! the same as `null`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::path::{Step, same};
use super::set::Set;
use crate::schema::shape::{Items, List, Scalar, Shape, Type, as_map};

/// A value that does not fit its type, with the path to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{why}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub(crate) struct Mismatch {
    pub(crate) path: String,
    pub(crate) why: String,
}

impl Mismatch {
    fn new(why: impl Into<String>) -> Self {
        Self {
            path: String::new(),
            why: why.into(),
        }
    }

    fn below(mut self, step: &Step) -> Self {
        self.path.insert_str(0, &step.to_string());
        self
    }
}

/// All that does not fit, as upstream prints it.
pub(crate) fn print(errors: &[Mismatch]) -> String {
    match errors {
        [one] => one.to_string(),
        many => many
            .iter()
            .fold("errors:".to_owned(), |out, e| format!("{out}\n  {e}")),
    }
}

/// How one object differs from another.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Comparison {
    pub(crate) removed: Set,
    pub(crate) modified: Set,
    pub(crate) added: Set,
}

impl Comparison {
    /// Leaves out fields and what is below them.
    pub(crate) fn without(self, fields: &Set) -> Self {
        if fields.is_empty() {
            return self;
        }
        Self {
            removed: self.removed.without(fields),
            modified: self.modified.without(fields),
            added: self.added.without(fields),
        }
    }

    fn add(&mut self, step: &Step, own: Own, below: Self) {
        let Self {
            removed,
            modified,
            added,
        } = below;
        for (set, member, below) in [
            (&mut self.removed, own.removed, removed),
            (&mut self.modified, own.modified, modified),
            (&mut self.added, own.added, added),
        ] {
            if member || !below.is_empty() {
                set.add(step.clone(), member, below);
            }
        }
    }
}

/// What happened to a field itself, as opposed to what is below it.
#[derive(Clone, Copy, Default)]
struct Own {
    removed: bool,
    modified: bool,
    added: bool,
}

/// The step that tells an item of a list from the others.
fn item_step(list: &List<'_>, item: &Value) -> Result<Step, Mismatch> {
    match list.items {
        Items::Atomic => Err(Mismatch::new("invalid indexing of non-associative list")),
        Items::Set => match item {
            Value::Object(_) => Err(Mismatch::new(
                "associative list without keys has an element that's a map type",
            )),
            Value::Array(_) => Err(Mismatch::new(
                "not supported: associative list with lists as elements",
            )),
            Value::Null => Err(Mismatch::new(
                "associative list without keys has an element that's an explicit null",
            )),
            plain => Ok(Step::Value(plain.clone())),
        },
        Items::Keys(keys) => {
            let map = match item {
                Value::Object(map) => map,
                Value::Null => {
                    return Err(Mismatch::new(
                        "associative list with keys may not have a null element",
                    ));
                }
                _ => {
                    return Err(Mismatch::new(
                        "associative list with keys may not have non-map elements",
                    ));
                }
            };
            // A key that is neither given nor has a default is part of what tells the item apart: by its absence.
            let found: Vec<(Box<str>, Value)> = keys
                .iter()
                .filter_map(|key| {
                    let value = map.get(&**key).or_else(|| list.item.key_default(key))?;
                    Some((key.clone(), value.clone()))
                })
                .collect();
            if found.is_empty() {
                let names: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
                return Err(Mismatch::new(format!(
                    "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                    names.join(" ")
                )));
            }
            Ok(Step::keyed(found))
        }
    }
}

fn steps(list: &List<'_>, items: &[Value]) -> Result<Vec<Step>, Mismatch> {
    items
        .iter()
        .enumerate()
        .map(|(at, item)| {
            item_step(list, item).map_err(|e| Mismatch::new(format!("element {at}: {}", e.why)))
        })
        .collect()
}

fn items(value: Option<&Value>) -> &[Value] {
    value
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// What does not fit the type: unknown fields, wrong scalars, items that occur twice.
pub(crate) fn validate(of: Type<'_>, value: &Value) -> Vec<Mismatch> {
    let mut errors = Vec::new();
    match of.shape(Some(value)) {
        Shape::Scalar(scalar) => errors.extend(check_scalar(scalar, value)),
        Shape::List(list) => match value {
            Value::Null => {}
            Value::Array(all) => validate_items(&list, all, &mut errors),
            other => errors.push(Mismatch::new(format!("expected list, got {}", go(other)))),
        },
        Shape::Map(fields) => match value {
            Value::Null => {}
            Value::Object(map) => {
                for (key, value) in map {
                    let step = Step::field(key);
                    match fields.get(key) {
                        Some((of, _)) => {
                            errors.extend(validate(of, value).into_iter().map(|e| e.below(&step)));
                        }
                        None => {
                            errors.push(Mismatch::new("field not declared in schema").below(&step));
                            break;
                        }
                    }
                }
            }
            other => errors.push(Mismatch::new(format!("expected map, got {}", go(other)))),
        },
    }
    errors
}

fn validate_items(list: &List<'_>, all: &[Value], errors: &mut Vec<Mismatch>) {
    let mut seen = BTreeSet::new();
    for (at, item) in all.iter().enumerate() {
        let step = if matches!(list.items, Items::Atomic) {
            Step::Index(i64::try_from(at).unwrap_or(i64::MAX))
        } else {
            match item_step(list, item) {
                Ok(step) => step,
                Err(e) => {
                    errors.push(Mismatch::new(format!("element {at}: {}", e.why)));
                    return;
                }
            }
        };
        errors.extend(
            validate(list.item, item)
                .into_iter()
                .map(|e| e.below(&step)),
        );
        if !seen.insert(step.clone()) {
            errors.push(Mismatch::new(format!("duplicate entries for key {step}")));
        }
    }
}

fn check_scalar(scalar: Scalar, value: &Value) -> Option<Mismatch> {
    let (fits, wanted) = match (scalar, value) {
        (_, Value::Null) => return None,
        (Scalar::Any, other) => (
            !other.is_array() && !other.is_object(),
            "expected any scalar",
        ),
        (Scalar::Number, other) => (other.is_number(), "expected numeric (int or float)"),
        (Scalar::Text, other) => (other.is_string(), "expected string"),
        (Scalar::Boolean, other) => (other.is_boolean(), "expected boolean"),
    };
    (!fits).then(|| {
        let shown = match scalar {
            Scalar::Number => match value {
                Value::String(_) => "string".to_owned(),
                Value::Bool(_) => "bool".to_owned(),
                Value::Array(_) => "[]interface {}".to_owned(),
                _ => "map[string]interface {}".to_owned(),
            },
            Scalar::Text => format!("&value.valueUnstructured{{Value:{}}}", go(value)),
            Scalar::Any | Scalar::Boolean => format!("&{{{}}}", go(value)),
        };
        Mismatch::new(format!("{wanted}, got {shown}"))
    })
}

/// A value as upstream's messages show it.
fn go(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The fields that a value has: its leaves, the items of its lists, and the keys of its maps that the schema does not name.
pub(crate) fn fields_of(of: Type<'_>, value: &Value) -> Result<Set, Mismatch> {
    Ok(fields_below(of, value)?.1)
}

/// Whether the value itself is a leaf, and the fields below it.
fn fields_below(of: Type<'_>, value: &Value) -> Result<(bool, Set), Mismatch> {
    let mut set = Set::default();
    match of.shape(Some(value)) {
        Shape::Scalar(_) => return Ok((true, set)),
        Shape::List(list) => {
            if matches!(list.items, Items::Atomic) {
                return Ok((true, set));
            }
            let all = items(Some(value));
            let steps = steps(&list, all)?;
            let mut seen: BTreeMap<&Step, usize> = BTreeMap::new();
            for step in &steps {
                *seen.entry(step).or_default() += 1;
            }
            for (step, item) in steps.iter().zip(all) {
                // Items that occur twice are owned as one, without what is in them.
                let below = if seen.get(step).is_some_and(|n| *n > 1) {
                    Set::default()
                } else {
                    fields_below(list.item, item).map_err(|e| e.below(step))?.1
                };
                set.add(step.clone(), true, below);
            }
        }
        Shape::Map(fields) => {
            if fields.atomic {
                return Ok((true, set));
            }
            for (key, value) in as_map(Some(value)).into_iter().flatten() {
                let step = Step::field(key);
                let (of, named) = fields.get(key).unwrap_or((Type::deduced(), false));
                let (leaf, below) = fields_below(of, value).map_err(|e| e.below(&step))?;
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                set.add(step, leaf || empty || !named, below);
            }
        }
    }
    Ok((false, set))
}

/// Whether two shapes are walked in the same way.
fn alike(a: &Shape<'_>, b: &Shape<'_>) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

/// How `new` differs from `old`.
pub(crate) fn compare(of: Type<'_>, old: &Value, new: &Value) -> Result<Comparison, Mismatch> {
    let mut out = Comparison::default();
    compare_below(of, Some(old), Some(new), &mut out)?;
    Ok(out)
}

fn compare_below(
    of: Type<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    out: &mut Comparison,
) -> Result<Own, Mismatch> {
    if old == new {
        return Ok(Own::default());
    }
    let (left, right) = (of.shape(old), of.shape(new));
    let mut own = Own::default();
    let leaf = if new.is_none() {
        compare_as(&left, old, new, out, &mut own)?
    } else if old.is_none() || alike(&left, &right) {
        compare_as(&right, old, new, out, &mut own)?
    } else {
        compare_as(&left, old, new, out, &mut own)?;
        compare_as(&right, old, new, out, &mut own)?
    };
    if !leaf {
        own.added |= old.is_none();
        own.removed |= new.is_none();
    }
    Ok(own)
}

/// Compares as values of one shape; returns whether they are leaves.
fn compare_as(
    shape: &Shape<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    out: &mut Comparison,
    own: &mut Own,
) -> Result<bool, Mismatch> {
    let leaf = |own: &mut Own| {
        match (old, new) {
            (None, _) => own.added = true,
            (_, None) => own.removed = true,
            (Some(old), Some(new)) => own.modified |= !same(old, new),
        }
        Ok(true)
    };
    match shape {
        Shape::Scalar(_) => leaf(own),
        Shape::List(list) => {
            let (before, after) = (items(old), items(new));
            let empty = before.is_empty() && after.is_empty();
            if matches!(list.items, Items::Atomic) || empty {
                return leaf(own);
            }
            compare_items(list, before, after, out)?;
            Ok(false)
        }
        Shape::Map(fields) => {
            let (before, after) = (as_map(old), as_map(new));
            let empty = |map: Option<&Map<String, Value>>| map.is_none_or(Map::is_empty);
            if fields.atomic || empty(before) && empty(after) {
                return leaf(own);
            }
            let keys: BTreeSet<&String> = before
                .into_iter()
                .chain(after)
                .flat_map(Map::keys)
                .collect();
            for key in keys {
                let (old, new) = (
                    before.and_then(|map| map.get(key)),
                    after.and_then(|map| map.get(key)),
                );
                if old == new {
                    continue;
                }
                let (of, _) = fields.get(key).unwrap_or((Type::deduced(), false));
                compare_child(of, &Step::field(key), old, new, out)?;
            }
            Ok(false)
        }
    }
}

fn compare_child(
    of: Type<'_>,
    step: &Step,
    old: Option<&Value>,
    new: Option<&Value>,
    out: &mut Comparison,
) -> Result<(), Mismatch> {
    let mut below = Comparison::default();
    let own = compare_below(of, old, new, &mut below).map_err(|e| e.below(step))?;
    out.add(step, own, below);
    Ok(())
}

fn compare_items(
    list: &List<'_>,
    before: &[Value],
    after: &[Value],
    out: &mut Comparison,
) -> Result<(), Mismatch> {
    let mut found: BTreeMap<Step, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for (step, item) in steps(list, before)?.into_iter().zip(before) {
        found.entry(step).or_default().0.push(item);
    }
    for (step, item) in steps(list, after)?.into_iter().zip(after) {
        found.entry(step).or_default().1.push(item);
    }
    for (step, (old, new)) in found {
        match (old.len(), new.len()) {
            (0 | 1, 0 | 1) => {
                compare_child(
                    list.item,
                    &step,
                    old.first().copied(),
                    new.first().copied(),
                    out,
                )?;
            }
            // Items that occur twice are compared as a whole.
            (2.., 2..) => {
                let equal = old.len() == new.len() && old.iter().zip(&new).all(|(a, b)| same(a, b));
                if !equal {
                    out.modified.add(step, true, Set::default());
                }
            }
            (2.., _) => {
                if let Some(item) = new.first() {
                    compare_child(list.item, &step, None, Some(item), out)?;
                }
                out.removed.add(step, true, Set::default());
            }
            _ => {
                if let Some(item) = old.first() {
                    compare_child(list.item, &step, Some(item), None, out)?;
                }
                out.added.add(step, true, Set::default());
            }
        }
    }
    Ok(())
}

/// The object with the applied configuration laid over it. Nothing is removed; where both say something the
/// configuration wins. Lists are ordered like the configuration where it changes them.
pub(crate) fn merge(of: Type<'_>, object: &Value, config: &Value) -> Result<Value, Mismatch> {
    Ok(merge_below(of, Some(object), Some(config))?.unwrap_or_default())
}

fn merge_below(
    of: Type<'_>,
    left: Option<&Value>,
    right: Option<&Value>,
) -> Result<Option<Value>, Mismatch> {
    let Some(config) = right else {
        return Ok(left.cloned());
    };
    match of.shape(right) {
        Shape::Scalar(_) => Ok(Some(config.clone())),
        Shape::List(list) => {
            let (before, after) = (items(left), items(right));
            let empty = before.is_empty() && after.is_empty();
            if matches!(list.items, Items::Atomic) || empty {
                return Ok(Some(config.clone()));
            }
            let merged = merge_items(&list, before, after)?;
            Ok((!merged.is_empty()).then_some(Value::Array(merged)))
        }
        Shape::Map(fields) => {
            let (before, after) = (as_map(left), as_map(right));
            let empty = |map: Option<&Map<String, Value>>| map.is_none_or(Map::is_empty);
            if fields.atomic || empty(before) && empty(after) {
                return Ok(Some(config.clone()));
            }
            let mut out = before.cloned().unwrap_or_default();
            for (key, value) in after.into_iter().flatten() {
                let (of, _) = fields.get(key).unwrap_or((Type::deduced(), false));
                let merged = merge_below(of, before.and_then(|map| map.get(key)), Some(value))
                    .map_err(|e| e.below(&Step::field(key)))?;
                match merged {
                    Some(merged) => out.insert(key.clone(), merged),
                    None => out.remove(key),
                };
            }
            Ok(Some(Value::Object(out)))
        }
    }
}

fn merge_items(list: &List<'_>, before: &[Value], after: &[Value]) -> Result<Vec<Value>, Mismatch> {
    let (left, right) = (steps(list, before)?, steps(list, after)?);
    // An item of the object that occurs twice is not merged with the configuration's: that one replaces both.
    let mut mine: BTreeMap<&Step, Option<&Value>> = BTreeMap::new();
    for (step, item) in left.iter().zip(before) {
        mine.entry(step)
            .and_modify(|known| *known = None)
            .or_insert(Some(item));
    }
    let theirs: BTreeMap<&Step, &Value> = right.iter().zip(after).collect();
    if theirs.len() < right.len() {
        let mut seen = BTreeSet::new();
        let twice = right.iter().find(|step| !seen.insert(*step));
        let twice = twice.map(ToString::to_string).unwrap_or_default();
        return Err(Mismatch::new(format!("duplicate entries for key {twice}")));
    }
    let mut shared = right
        .iter()
        .filter(|step| mine.contains_key(step))
        .peekable();
    let mut done: BTreeSet<&Step> = BTreeSet::new();
    let (mut l, mut r) = (0, 0);
    let mut plan: Vec<(bool, usize)> = Vec::new();
    while l < left.len() || r < right.len() {
        if let (Some(mine), Some(wanted)) = (left.get(l), right.get(r)) {
            if mine == wanted {
                plan.push((true, r));
                done.insert(wanted);
                l += 1;
                r += 1;
                shared.next();
                continue;
            }
            if theirs.contains_key(mine) && shared.peek().is_some_and(|next| *next != mine) {
                // Shared, but its turn is later.
                l += 1;
                continue;
            }
        }
        if let Some(mine) = left.get(l) {
            if !theirs.contains_key(mine) {
                plan.push((false, l));
                l += 1;
                continue;
            }
            if done.contains(mine) {
                l += 1;
            }
        }
        if let Some(wanted) = right.get(r) {
            plan.push((true, r));
            done.insert(wanted);
            r += 1;
            if shared.peek().is_some_and(|next| *next == wanted) {
                shared.next();
            }
        }
    }
    plan.into_iter()
        .map(|(wanted, at)| {
            if !wanted {
                return Ok(before[at].clone());
            }
            let step = &right[at];
            let mine = mine.get(step).copied().flatten();
            merge_below(list.item, mine, Some(&after[at]))
                .map(Option::unwrap_or_default)
                .map_err(|e| e.below(step))
        })
        .collect()
}

/// What becomes of a field of which all is removed, but not the field itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Emptied {
    /// It is `null`: it is still known that it was there.
    Null,
    /// It goes.
    Gone,
}

/// The value without these fields and items; `None` where nothing is left.
pub(crate) fn remove(of: Type<'_>, value: &Value, gone: &Set, emptied: Emptied) -> Option<Value> {
    match (of.shape(Some(value)), value) {
        (Shape::List(list), Value::Array(all)) if !all.is_empty() => {
            if matches!(list.items, Items::Atomic) {
                return None;
            }
            let mut kept = Vec::with_capacity(all.len());
            for item in all {
                let Ok(step) = item_step(&list, item) else {
                    kept.push(item.clone());
                    continue;
                };
                if gone.has(&step) {
                    continue;
                }
                match gone.below(&step) {
                    Some(below) => kept.extend(remove(list.item, item, below, emptied)),
                    None => kept.push(item.clone()),
                }
            }
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        (Shape::Map(fields), Value::Object(map)) if !map.is_empty() => {
            if fields.atomic {
                return None;
            }
            let mut kept = Map::new();
            let mut had = false;
            for (key, value) in map {
                let step = Step::field(key);
                if gone.has(&step) {
                    continue;
                }
                let left = match gone.below(&step) {
                    Some(below) => {
                        let of = fields.get(key).map_or_else(Type::deduced, |(of, _)| of);
                        remove(of, value, below, emptied)
                    }
                    None => Some(value.clone()),
                };
                had = true;
                match left {
                    Some(left) => kept.insert(key.clone(), left),
                    None if emptied == Emptied::Null => kept.insert(key.clone(), Value::Null),
                    None => None,
                };
            }
            had.then_some(Value::Object(kept))
        }
        _ => Some(value.clone()),
    }
}

/// The set with the fields that the schema names and that have members below them: those are not members by themselves.
pub(crate) fn with_named(of: Type<'_>, set: &Set) -> Set {
    let (fields, list) = (
        of.shape(Some(&Value::Object(Map::new()))),
        of.shape(Some(&Value::Array(Vec::new()))),
    );
    let mut out = Set::default();
    for (step, member, below) in set.steps() {
        let (inner, named) = match (step, &fields, &list) {
            (Step::Field(name), Shape::Map(fields), _) => {
                let (of, named) = fields.get(name).unwrap_or((Type::deduced(), false));
                (of, named && !below.is_empty())
            }
            (Step::Key(_), _, Shape::List(list)) => (list.item, false),
            _ => (Type::deduced(), false),
        };
        out.add(step.clone(), member || named, with_named(inner, below));
    }
    out
}

/// The set as it would have been if the schema had always been as it is: what has become atomic is owned as a whole.
pub(crate) fn reconcile(of: Type<'_>, set: &Set) -> Set {
    reconcile_below(of, set).unwrap_or_default()
}

/// `None` if the value as a whole takes the place of its fields.
fn reconcile_below(of: Type<'_>, set: &Set) -> Option<Set> {
    let keyed = set
        .steps()
        .any(|(step, _, _)| !matches!(step, Step::Field(_)));
    let shape = if keyed {
        of.shape(Some(&Value::Array(Vec::new())))
    } else {
        of.shape(Some(&Value::Object(Map::new())))
    };
    let mut out = Set::default();
    for (step, member, below) in set.steps() {
        let inner = match (&shape, step) {
            (Shape::Map(fields), Step::Field(name)) => {
                if fields.atomic && !fields.unknown() {
                    return None;
                }
                fields.get(name).map(|(of, _)| of)
            }
            (Shape::List(list), Step::Key(_) | Step::Value(_) | Step::Index(_)) => {
                if matches!(list.items, Items::Atomic) {
                    return None;
                }
                Some(list.item)
            }
            _ => None,
        };
        let reconciled = match inner {
            Some(of) if !below.is_empty() => reconcile_below(of, below),
            _ => Some(below.clone()),
        };
        match reconciled {
            Some(below) => out.add(step.clone(), member, below),
            None => out.add(step.clone(), true, Set::default()),
        }
    }
    Some(out)
}
