//! Comparing values, and looking into them.

use std::rc::Rc;

use kube_cel::cel::Value as Cel;
use kube_cel::cel::common::ast::operators;

use super::cost;
use super::eval::{Fault, Outcome, Run, failed, no_overload};
use super::val::Val;
use crate::schema::node::{self, ListType};

/// How deep a value may nest for comparison.
const VALUE_DEPTH: usize = 128;

impl Run {
    pub(super) fn matches<'a>(&mut self, text: &Val<'a>, pattern: &Val<'a>) -> Outcome<'a> {
        let (Val::Plain(Cel::String(text)), Val::Plain(Cel::String(pattern))) = (text, pattern)
        else {
            return no_overload();
        };
        self.charge(cost::matching(text.len(), pattern.len()))?;
        if !self.patterns.contains_key(pattern.as_str()) {
            // What compiling takes is not in upstream's count.
            #[expect(clippy::cast_precision_loss, reason = "a length")]
            self.charge(pattern.len() as f64)?;
            if self.patterns.len() >= 64 {
                self.patterns.clear();
            }
            self.patterns
                .insert(pattern.to_string(), node::compile(pattern).ok());
        }
        match self.patterns.get(pattern.as_str()) {
            Some(Some(regex)) => Ok(Val::bool(regex.is_match(text))),
            _ => failed(format!("error parsing regexp: `{pattern}`")),
        }
    }

    pub(super) fn contained<'a>(&mut self, item: &Val<'a>, container: &Val<'a>) -> Outcome<'a> {
        if container.is_map() {
            self.charge(1.0)?;
            return Ok(Val::bool(match item {
                Val::Plain(Cel::String(name)) if !matches!(container, Val::Map(_)) => {
                    container.get(name).is_some()
                }
                Val::Plain(key) => container
                    .entries()
                    .unwrap_or_default()
                    .iter()
                    .any(|(known, _)| same_scalar(known, key)),
                _ => false,
            }));
        }
        let Some(items) = container.items() else {
            return no_overload();
        };
        for other in items {
            self.charge(1.0)?;
            if self.equal(item, &other, 0)? {
                return Ok(Val::bool(true));
            }
        }
        Ok(Val::bool(false))
    }

    /// `+` of lists; where items have an identity it is a union.
    pub(super) fn concatenated<'a>(&mut self, a: &Val<'a>, b: &Val<'a>) -> Outcome<'a> {
        let (mut items, more) = (a.items().unwrap_or_default(), b.items().unwrap_or_default());
        #[expect(clippy::cast_precision_loss, reason = "a length")]
        self.charge(1.0 + (items.len() + more.len()) as f64 * 0.1)?;
        for value in more {
            let mut place = None;
            if !matches!(a.list_type(), ListType::Atomic) {
                for (i, known) in items.iter().enumerate() {
                    if self.same_item(a.list_type(), known, &value)? {
                        place = Some(i);
                        break;
                    }
                }
            }
            match place {
                Some(i) => items[i] = value,
                None => items.push(value),
            }
        }
        Ok(Val::List(Rc::new(items)))
    }

    fn same_item<'a>(&mut self, list: &ListType, a: &Val<'a>, b: &Val<'a>) -> Result<bool, Fault> {
        let ListType::Map(keys) = list else {
            return self.equal(a, b, 0);
        };
        for key in keys {
            let same = match (a.get(key), b.get(key)) {
                (Some(x), Some(y)) => self.equal(&x, &y, 0)?,
                (None, None) => true,
                _ => false,
            };
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Equality; the order of items that have an identity does not count.
    pub(super) fn equal<'a>(
        &mut self,
        a: &Val<'a>,
        b: &Val<'a>,
        depth: usize,
    ) -> Result<bool, Fault> {
        self.charge(cost::equality(a, b))?;
        if depth > VALUE_DEPTH {
            return Err(Fault::Limit);
        }
        match (a, b) {
            (Val::Plain(x), Val::Plain(y)) => Ok(same_scalar(x, y)),
            (Val::Type(x), Val::Type(y)) => Ok(x == y),
            (Val::Optional(x), Val::Optional(y)) => match (x, y) {
                (None, None) => Ok(true),
                (Some(x), Some(y)) => self.equal(x, y, depth + 1),
                _ => Ok(false),
            },
            _ if a.is_list() && b.is_list() => self.equal_lists(a, b, depth),
            _ if a.is_map() && b.is_map() => {
                let (x, y) = (
                    a.entries().unwrap_or_default(),
                    b.entries().unwrap_or_default(),
                );
                if x.len() != y.len() {
                    return Ok(false);
                }
                for (key, value) in &x {
                    let other = match key {
                        Cel::String(name) => b.get(name),
                        key => y
                            .iter()
                            .find(|(k, _)| same_scalar(k, key))
                            .map(|(_, v)| v.clone()),
                    };
                    let same = match other {
                        Some(other) => self.equal(value, &other, depth + 1)?,
                        None => false,
                    };
                    if !same {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn equal_lists<'a>(&mut self, a: &Val<'a>, b: &Val<'a>, depth: usize) -> Result<bool, Fault> {
        let (x, y) = (a.items().unwrap_or_default(), b.items().unwrap_or_default());
        if x.len() != y.len() {
            return Ok(false);
        }
        let ordered = matches!(a.list_type(), ListType::Atomic);
        for (i, item) in x.iter().enumerate() {
            let mut found = false;
            if ordered {
                found = self.equal(item, &y[i], depth + 1)?;
            } else {
                for other in &y {
                    if self.equal(item, other, depth + 1)? {
                        found = true;
                        break;
                    }
                }
            }
            if !found {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

pub(super) fn inside<'v, 'a>(value: &'v Val<'a>) -> Option<&'v Val<'a>> {
    match value {
        Val::Optional(inner) => inner.as_deref(),
        other => Some(other),
    }
}

pub(super) fn field<'a>(operand: &Val<'a>, name: &str) -> Outcome<'a> {
    match operand {
        Val::Optional(inner) => Ok(Val::Optional(
            inner.as_ref().and_then(|v| v.get(name)).map(Rc::new),
        )),
        other if other.is_map() => other
            .get(name)
            .map_or_else(|| failed(format!("no such key: {name}")), Ok),
        _ => no_overload(),
    }
}

pub(super) fn index<'a>(
    container: Option<&Val<'a>>,
    key: &Val<'a>,
) -> Result<Option<Val<'a>>, Fault> {
    let Some(container) = container else {
        return Ok(None);
    };
    let Val::Plain(key) = key else {
        return no_overload();
    };
    if container.is_map() {
        return Ok(match key {
            Cel::String(name) => container.get(name),
            key => container
                .entries()
                .unwrap_or_default()
                .into_iter()
                .find(|(known, _)| same_scalar(known, key))
                .map(|(_, v)| v),
        });
    }
    let Some(place) = whole(key) else {
        return no_overload();
    };
    match container {
        Val::List(list) => Ok(usize::try_from(place)
            .ok()
            .and_then(|i| list.get(i))
            .cloned()),
        Val::Data(serde_json::Value::Array(list), schema, _) => Ok(usize::try_from(place)
            .ok()
            .and_then(|i| list.get(i))
            .zip(schema.items.as_deref())
            .map(|(v, items)| Val::of(v, items, items.embedded))),
        _ => no_overload(),
    }
}

fn whole(key: &Cel) -> Option<i64> {
    match key {
        Cel::Int(i) => Some(*i),
        Cel::UInt(u) => i64::try_from(*u).ok(),
        #[expect(clippy::cast_possible_truncation, reason = "a whole number")]
        Cel::Float(f) if f.fract() == 0.0 => Some(*f as i64),
        _ => None,
    }
}

pub(super) fn compare<'a>(operator: &str, a: &Val<'a>, b: &Val<'a>) -> Outcome<'a> {
    let (Val::Plain(x), Val::Plain(y)) = (a, b) else {
        return no_overload();
    };
    let Some(order) = order(x, y) else {
        return no_overload();
    };
    Ok(Val::bool(match operator {
        operators::LESS => order.is_lt(),
        operators::LESS_EQUALS => order.is_le(),
        operators::GREATER => order.is_gt(),
        _ => order.is_ge(),
    }))
}

fn order(x: &Cel, y: &Cel) -> Option<std::cmp::Ordering> {
    match (x, y) {
        (Cel::Bytes(a), Cel::Bytes(b)) => Some(a.cmp(b)),
        (Cel::Null, _) | (_, Cel::Null) => None,
        _ => x.partial_cmp(y),
    }
}

fn same_scalar(x: &Cel, y: &Cel) -> bool {
    let numeric = |v: &Cel| matches!(v, Cel::Int(_) | Cel::UInt(_) | Cel::Float(_));
    if numeric(x) && numeric(y) {
        return x.partial_cmp(y) == Some(std::cmp::Ordering::Equal);
    }
    x == y
}

pub(super) fn zero(value: &Val<'_>) -> bool {
    match value {
        Val::Plain(value) => value.is_zero(),
        Val::Optional(inner) => inner.is_none(),
        other => other.size() == 0,
    }
}

pub(super) fn shown(key: &Val<'_>) -> String {
    match key {
        Val::Plain(Cel::String(text)) => text.to_string(),
        Val::Plain(Cel::Int(i)) => i.to_string(),
        Val::Plain(Cel::UInt(u)) => u.to_string(),
        Val::Plain(Cel::Float(f)) => f.to_string(),
        Val::Plain(Cel::Bool(b)) => b.to_string(),
        other => other.type_name().to_owned(),
    }
}
