//! Laying a configuration over an object, removing fields from one, and sets of fields as a schema has them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::path::Step;
use super::set::Set;
use super::walk::{Mismatch, item_step, items, steps};
use crate::schema::shape::{Items, List, Shape, Type, as_map};

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
