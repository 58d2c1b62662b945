//! How two typed values differ. `None` stands for a value that is not there, which is not the same as `null`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::path::{Step, same};
use super::set::Set;
use super::walk::{Mismatch, items, steps};
use crate::schema::shape::{Items, List, Shape, Type, as_map};

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
