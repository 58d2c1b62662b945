//! Objects walked by their schema: which fields a value sets, what two values differ in, a configuration merged into an
//! object, fields taken out of one.
//!
//! What a list is (one value, a set, a map by keys) and whether a map is one value comes from the schema. Where there is
//! none (unknown fields that are preserved) maps have fields and lists are one value, as upstream deduces it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;

use crate::golang;
use serde_json::{Map, Value, json};

use super::super::node::{Additional, Kind, ListType, Node};
use super::set::{Set, field, shown};

/// Two items of a list that the schema makes a set or a map are the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WalkError {
    /// An item twice.
    #[error("{0}: duplicate entries for key {1}")]
    Duplicate(String, String),
    /// An item without its keys.
    #[error("{0}: associative list with keys has an element that omits key field {1:?}")]
    NoKey(String, String),
    /// An item of another type.
    #[error("{0}: {1}")]
    Item(String, &'static str),
    /// Values of other types than the schema has, and fields that it has not: where, and what is wrong.
    #[error("{}", listed(.0))]
    Types(Vec<(String, String)>),
}

fn listed(errors: &[(String, String)]) -> String {
    let shown = |(path, why): &(String, String)| format!("{path}: {why}");
    match errors {
        [one] => shown(one),
        many => {
            let lines: Vec<_> = many.iter().map(|e| format!("\n  {}", shown(e))).collect();
            format!("errors:{}", lines.concat())
        }
    }
}

/// What a value is to the walk.
enum Parts<'a> {
    /// One value, whatever is in it.
    Leaf,
    /// Has fields.
    Map(&'a Map<String, Value>),
    /// Has items that are told apart.
    List(&'a Vec<Value>),
}

fn parts<'a>(value: &'a Value, place: Place<'_>) -> Parts<'a> {
    match value {
        Value::Object(map) if !place.node.is_some_and(|node| node.atomic) => Parts::Map(map),
        Value::Array(list)
            if place
                .node
                .is_some_and(|node| !matches!(node.list, ListType::Atomic)) =>
        {
            Parts::List(list)
        }
        _ => Parts::Leaf,
    }
}

/// Where in a schema a walk is.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// None where there is no schema.
    node: Option<&'a Node>,
    /// At the top of an object: its metadata is that of all objects, whatever the schema says.
    root: bool,
}

impl<'a> Place<'a> {
    pub(super) fn root(node: &'a Node) -> Self {
        Self {
            node: Some(node),
            root: true,
        }
    }

    fn inner(node: Option<&'a Node>) -> Self {
        Self { node, root: false }
    }

    /// Where nothing is known.
    pub(crate) fn nowhere() -> Self {
        Self::inner(None)
    }

    /// By what strategic merge patches tell the items of this list apart: a key, or nothing if it is a set. None: the
    /// list is replaced.
    pub(crate) fn merge_key(self) -> Option<&'a str> {
        self.node?.rules.as_ref()?.merge_key.as_deref()
    }

    /// At a field.
    pub(crate) fn below(self, name: &str) -> Self {
        if self.root && name == "metadata" {
            return Self::inner(Some(&METADATA));
        }
        Self::inner(self.node.and_then(|node| {
            node.properties.get(name).or(match &node.additional {
                Additional::Schema(schema) => Some(schema),
                Additional::None | Additional::Any => None,
            })
        }))
    }

    /// At an item.
    pub(crate) fn items(self) -> Self {
        Self::inner(self.node.and_then(|node| node.items.as_deref()))
    }

    /// In the metadata, of which only a part is written down here.
    fn metadata(self) -> bool {
        self.node.is_some_and(|node| std::ptr::eq(node, &*METADATA))
    }

    /// Whether the schema itself names this field.
    fn names(self, name: &str) -> bool {
        (self.root && name == "metadata")
            || self
                .node
                .is_some_and(|node| node.properties.contains_key(name))
    }
}

/// The metadata of all objects, as far as it is not plain values.
static METADATA: LazyLock<Node> = LazyLock::new(|| {
    let names = json!({"type": "object", "additionalProperties": {"type": "string"}});
    let schema = json!({"type": "object", "properties": {
        "name": {"type": "string"},
        "generateName": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": names,
        "annotations": names,
        "finalizers": {
            "type": "array",
            "x-kubernetes-list-type": "set",
            "x-kubernetes-patch-strategy": "merge",
            "items": {"type": "string"},
        },
        "ownerReferences": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["uid"],
            "x-kubernetes-patch-strategy": "merge",
            "x-kubernetes-patch-merge-key": "uid",
            "items": {"type": "object", "x-kubernetes-map-type": "atomic"},
        },
    }});
    Node::parse(&schema, "").expect("written here")
});

/// The step that leads to an item. A key that is left out counts with its default.
fn step_of(item: &Value, list: Place<'_>, path: &str) -> Result<Box<str>, WalkError> {
    let Some(ListType::Map(keys)) = list.node.map(|list| &list.list) else {
        return if item.is_object() || item.is_array() {
            Err(WalkError::Item(
                path.to_owned(),
                "associative list without keys has an element that's a map type",
            ))
        } else {
            Ok(format!("v:{item}").into())
        };
    };
    let Some(item) = item.as_object() else {
        return Err(WalkError::Item(
            path.to_owned(),
            "associative list with keys may not have non-map elements",
        ));
    };
    let mut found = Map::new();
    for key in keys {
        let default = || list.items().below(key).node?.default.as_ref();
        if let Some(value) = item.get(&**key).or_else(default) {
            found.insert(key.to_string(), value.clone());
        }
    }
    if found.is_empty() {
        let key = keys.first().map(ToString::to_string).unwrap_or_default();
        return Err(WalkError::NoKey(path.to_owned(), key));
    }
    Ok(format!("k:{}", Value::Object(found)).into())
}

/// The steps to all items, in order.
fn steps(list: &[Value], place: Place<'_>, path: &str) -> Result<Vec<Box<str>>, WalkError> {
    list.iter().map(|item| step_of(item, place, path)).collect()
}

/// Whether a value has the types of its schema and only fields that it knows.
pub(super) fn check_types(value: &Value, place: Place<'_>) -> Result<(), WalkError> {
    let mut errors = Vec::new();
    check_at(value, place, "", &mut errors);
    if errors.is_empty() {
        return Ok(());
    }
    Err(WalkError::Types(errors))
}

fn check_at(value: &Value, place: Place<'_>, path: &str, errors: &mut Vec<(String, String)>) {
    let Some(node) = place.node.filter(|node| !node.int_or_string) else {
        return;
    };
    let mut wrong = |wanted: &str, found: String| {
        errors.push((path.to_owned(), format!("expected {wanted}, got {found}")));
    };
    // As the walker upstream prints what it has in hand: a pointer to a struct.
    let pointer = || format!("&{{{}}}", golang::value(value));
    match (node.kind, value) {
        (None, _) | (_, Value::Null) => {}
        (Some(Kind::Object), Value::Object(map)) => {
            for (name, value) in map {
                let below = format!("{path}.{name}");
                let inner = place.below(name);
                let known = inner.node.is_some()
                    || node.preserve_unknown
                    || node.embedded
                    || node.properties.is_empty()
                    || matches!(node.additional, Additional::Any)
                    || (place.root && matches!(name.as_str(), "apiVersion" | "kind"));
                if !known && !place.metadata() {
                    errors.push((below, "field not declared in schema".into()));
                    continue;
                }
                check_at(value, inner, &below, errors);
            }
        }
        (Some(Kind::Array), Value::Array(list)) => {
            for (index, item) in list.iter().enumerate() {
                let step = match place.node.map(|node| &node.list) {
                    None | Some(ListType::Atomic) => None,
                    _ => step_of(item, place, path).ok(),
                };
                let step = step.map_or_else(|| format!("[{index}]"), |step| shown(&step));
                check_at(item, place.items(), &format!("{path}{step}"), errors);
            }
        }
        (Some(Kind::String), Value::String(_))
        | (Some(Kind::Integer | Kind::Number), Value::Number(_))
        | (Some(Kind::Boolean), Value::Bool(_)) => {}
        (Some(Kind::Object), _) => wrong("map", pointer()),
        (Some(Kind::Array), _) => wrong("list", pointer()),
        (Some(Kind::Boolean), _) => wrong("boolean", pointer()),
        (Some(Kind::Integer | Kind::Number), _) => wrong(
            "numeric (int or float)",
            golang::dynamic_type(value).to_owned(),
        ),
        (Some(Kind::String), _) => wrong(
            "string",
            format!(
                "&value.valueUnstructured{{Value:{}}}",
                golang::syntax(value)
            ),
        ),
    }
}

/// The fields that a value sets.
///
/// # Errors
/// An item of a set or map list that is there twice or has no keys.
pub(super) fn fields(value: &Value, place: Place<'_>) -> Result<Set, WalkError> {
    let mut set = Set::default();
    collect(value, place, "", &mut set)?;
    set.member = false;
    Ok(set)
}

fn collect(value: &Value, place: Place<'_>, path: &str, set: &mut Set) -> Result<(), WalkError> {
    match parts(value, place) {
        Parts::Leaf => set.member = true,
        Parts::Map(map) => {
            for (name, value) in map {
                let mut inner = Set::default();
                let below = format!("{path}.{name}");
                collect(value, place.below(name), &below, &mut inner)?;
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                inner.member |= empty || !place.names(name);
                // Of a list whose items are told apart nothing is set as long as it has none.
                if !inner.is_empty() {
                    set.children.insert(field(name), inner);
                }
            }
        }
        Parts::List(list) => {
            let mut seen = HashSet::new();
            for (item, step) in list.iter().zip(steps(list, place, path)?) {
                if !seen.insert(step.clone()) {
                    return Err(WalkError::Duplicate(path.to_owned(), shown(&step)));
                }
                let inner = set.children.entry(step).or_default();
                collect(item, place.items(), path, inner)?;
                inner.member = true;
            }
        }
    }
    Ok(())
}

/// What differs between two values.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) added: Set,
    pub(super) modified: Set,
    pub(super) removed: Set,
}

/// Compares two values of one schema.
pub(super) fn compare(old: &Value, new: &Value, place: Place<'_>) -> Difference {
    let mut out = Difference::default();
    let mut path = Vec::new();
    compare_at(Some(old), Some(new), place, &mut path, &mut out);
    out
}

fn put(set: &mut Set, path: &[Box<str>]) {
    let mut at = set;
    for step in path {
        at = at.children.entry(step.clone()).or_default();
    }
    at.member = true;
}

fn compare_at<'a>(
    old: Option<&'a Value>,
    new: Option<&'a Value>,
    place: Place<'_>,
    path: &mut Vec<Box<str>>,
    out: &mut Difference,
) {
    // Most of two objects is the same.
    if old == new {
        return;
    }
    let empty = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    };
    let leaf = |out: &mut Difference, path: &[Box<str>]| match (old, new) {
        (None, _) => put(&mut out.added, path),
        (_, None) => put(&mut out.removed, path),
        _ => put(&mut out.modified, path),
    };
    let sort = |value: Option<&'a Value>| value.map(|value| parts(value, place));
    if empty(old) && empty(new) {
        return leaf(out, path);
    }
    match (sort(old), sort(new)) {
        (Some(Parts::Leaf), _)
        | (_, Some(Parts::Leaf))
        | (Some(Parts::Map(_)), Some(Parts::List(_)))
        | (Some(Parts::List(_)), Some(Parts::Map(_)))
        | (None, None) => leaf(out, path),
        (Some(Parts::Map(_)) | None, Some(Parts::Map(_)) | None) => {
            let names = |value: Option<&'a Value>| {
                value
                    .and_then(Value::as_object)
                    .into_iter()
                    .flat_map(Map::keys)
            };
            let get = |value: Option<&'a Value>, name: &str| value.and_then(|v| v.get(name));
            let gone = names(old).filter(|name| get(new, name).is_none());
            for name in names(new).chain(gone) {
                path.push(field(name));
                let (old, new) = (get(old, name), get(new, name));
                compare_at(old, new, place.below(name), path, out);
                path.pop();
            }
            whole(old, new, path, out);
        }
        (Some(Parts::List(_)) | None, Some(Parts::List(_)) | None) => {
            let items = |value: Option<&'a Value>| -> BTreeMap<Box<str>, &'a Value> {
                let list = value
                    .and_then(Value::as_array)
                    .map_or(&[][..], Vec::as_slice);
                list.iter()
                    .filter_map(|item| Some((step_of(item, place, "").ok()?, item)))
                    .collect()
            };
            let (olds, news) = (items(old), items(new));
            let gone = olds.keys().filter(|step| !news.contains_key(*step));
            for step in news.keys().chain(gone) {
                path.push(step.clone());
                let (old, new) = (olds.get(step).copied(), news.get(step).copied());
                compare_at(old, new, place.items(), path, out);
                path.pop();
            }
            whole(old, new, path, out);
        }
    }
}

/// A map or list that came or went is a member itself.
fn whole(old: Option<&Value>, new: Option<&Value>, path: &[Box<str>], out: &mut Difference) {
    if path.is_empty() {
        return;
    }
    match (old, new) {
        (None, Some(_)) => put(&mut out.added, path),
        (Some(_), None) => put(&mut out.removed, path),
        _ => {}
    }
}

/// Merges what is applied into an object: leaves are the applied ones, maps and lists of items are united.
pub(super) fn merge(live: &Value, applied: &Value, place: Place<'_>) -> Result<Value, WalkError> {
    match (parts(live, place), parts(applied, place)) {
        (Parts::Map(live), Parts::Map(applied)) => {
            let mut out = live.clone();
            for (name, value) in applied {
                let merged = match live.get(name) {
                    Some(own) => merge(own, value, place.below(name))?,
                    None => value.clone(),
                };
                out.insert(name.clone(), merged);
            }
            Ok(Value::Object(out))
        }
        (Parts::List(live), Parts::List(applied)) => merge_lists(live, applied, place),
        _ => Ok(applied.clone()),
    }
}

/// Items keep the order in which they are applied; the others stay where they stood among their neighbours.
fn merge_lists(live: &[Value], applied: &[Value], place: Place<'_>) -> Result<Value, WalkError> {
    let lefts = steps(live, place, "")?;
    let rights = steps(applied, place, "")?;
    let on_right: HashSet<&str> = rights.iter().map(|step| &**step).collect();
    let mut out = Vec::with_capacity(live.len().max(applied.len()));
    let take = |right: usize| match lefts.iter().position(|step| *step == rights[right]) {
        Some(left) => merge(&live[left], &applied[right], place.items()),
        None => Ok(applied[right].clone()),
    };
    let on_left: HashSet<&str> = lefts.iter().map(|step| &**step).collect();
    let (mut left, mut right) = (0, 0);
    while left < live.len() || right < applied.len() {
        if let Some(step) = lefts.get(left) {
            if !on_right.contains(&**step) {
                out.push(live[left].clone());
                left += 1;
                continue;
            }
            // The next item that both have. Only this one holds back what stands before it in the applied list.
            let next = rights[right..]
                .iter()
                .find(|step| on_left.contains(&***step));
            if next != Some(step) {
                left += 1;
                continue;
            }
            if rights[right] == *step {
                left += 1;
            }
        }
        if right < applied.len() {
            out.push(take(right)?);
            right += 1;
        }
    }
    Ok(Value::Array(out))
}

/// Takes out of an object what was applied before and nobody owns any more.
///
/// `before` is what the manager applied the last time, `owned` what anybody owns now. A map that is emptied by it goes
/// too. What nobody ever owned stays, except inside an item of a list that goes.
pub(super) fn prune<'a>(
    value: &'a Value,
    before: &Set,
    owned: Option<&Set>,
    place: Place<'_>,
) -> Option<Cow<'a, Value>> {
    if before.member && owned.is_none() {
        return None;
    }
    if before.children.is_empty() {
        return Some(Cow::Borrowed(value));
    }
    let inner = |step: &str, value: &'a Value, place| match before.below(step) {
        Some(before) => {
            let owned = owned.and_then(|owned| owned.below(step));
            prune(value, before, owned, place)
        }
        None => Some(Cow::Borrowed(value)),
    };
    let kept = match parts(value, place) {
        Parts::Leaf => return Some(Cow::Borrowed(value)),
        Parts::Map(map) => {
            let kept: Map<String, Value> = map
                .iter()
                .filter_map(|(name, value)| {
                    let kept = inner(&field(name), value, place.below(name))?;
                    Some((name.clone(), kept.into_owned()))
                })
                .collect();
            (kept.is_empty() && !map.is_empty(), Value::Object(kept))
        }
        Parts::List(list) => {
            let kept: Vec<Value> = list
                .iter()
                .filter_map(|item| match step_of(item, place, "") {
                    Ok(step) => inner(&step, item, place.items()).map(Cow::into_owned),
                    Err(_) => Some(item.clone()),
                })
                .collect();
            (kept.is_empty() && !list.is_empty(), Value::Array(kept))
        }
    };
    match kept {
        (true, _) if owned.is_none() => None,
        (_, kept) => Some(Cow::Owned(kept)),
    }
}
