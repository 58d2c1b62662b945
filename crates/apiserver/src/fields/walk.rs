//! Walks of one typed value: whether it fits its type, and which fields it has.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::path::Step;
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
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self {
            path: String::new(),
            why: why.into(),
        }
    }

    pub(super) fn below(mut self, step: &Step) -> Self {
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

/// The step that tells an item of a list from the others.
pub(super) fn item_step(list: &List<'_>, item: &Value) -> Result<Step, Mismatch> {
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

pub(super) fn steps(list: &List<'_>, items: &[Value]) -> Result<Vec<Step>, Mismatch> {
    items
        .iter()
        .enumerate()
        .map(|(at, item)| {
            item_step(list, item).map_err(|e| Mismatch::new(format!("element {at}: {}", e.why)))
        })
        .collect()
}

pub(super) fn items(value: Option<&Value>) -> &[Value] {
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
