//! The values that rules work on. Objects and lists of the document are looked at in place; nothing is copied unless a library
//! function needs it.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube_cel::cel::Value as Cel;
use kube_cel::cel::objects::{Key, Map, OptionalValue};
use serde_json::Value;

use super::names;
use crate::schema::node::{Additional, Kind, ListType, Node};

/// One value during an evaluation.
#[derive(Clone, Debug)]
pub(super) enum Val<'a> {
    /// A scalar, or what only the library knows.
    Plain(Cel),
    /// An object or a list of the document, with its schema; true if it is a whole resource.
    Data(&'a Value, &'a Node, bool),
    List(Rc<Vec<Self>>),
    Map(Rc<Vec<(Cel, Self)>>),
    Optional(Option<Rc<Self>>),
    Type(Box<str>),
}

/// The metadata that rules may see: the two names.
static METADATA: LazyLock<Node> = LazyLock::new(|| {
    let properties = ["name", "generateName"].map(|name| (name.into(), text_node()));
    Node {
        kind: Some(Kind::Object),
        properties: properties.into_iter().collect(),
        ..Node::default()
    }
});
static TEXT: LazyLock<Node> = LazyLock::new(text_node);

fn text_node() -> Node {
    Node {
        kind: Some(Kind::String),
        ..Node::default()
    }
}

/// The schema of a property as rules see it; a resource always has its type and its names.
pub(super) fn property<'a>(node: &'a Node, resource: bool, name: &str) -> Option<&'a Node> {
    if resource {
        match name {
            "apiVersion" | "kind" => return Some(&TEXT),
            "metadata" => return Some(&METADATA),
            _ => {}
        }
    }
    node.properties.get(name)
}

impl<'a> Val<'a> {
    /// A value of the document.
    pub(super) fn of(value: &'a Value, node: &'a Node, resource: bool) -> Self {
        Self::Plain(match value {
            Value::Object(_) | Value::Array(_) => return Self::Data(value, node, resource),
            Value::Null => Cel::Null,
            Value::Bool(b) => Cel::Bool(*b),
            Value::String(text) => formatted(text, node),
            Value::Number(n) => match (n.as_i64(), n.as_f64()) {
                (Some(i), _) if node.kind != Some(Kind::Number) => Cel::Int(i),
                #[expect(clippy::cast_possible_truncation, reason = "a whole number")]
                (_, Some(f)) if node.kind == Some(Kind::Integer) && f.fract() == 0.0 => {
                    Cel::Int(f as i64)
                }
                (_, f) => Cel::Float(f.unwrap_or(f64::NAN)),
            },
        })
    }

    pub(super) fn bool(value: bool) -> Self {
        Self::Plain(Cel::Bool(value))
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Plain(Cel::Bool(b)) => Some(*b),
            _ => None,
        }
    }

    /// A result of the library.
    pub(super) fn from_library(value: Cel) -> Self {
        match value {
            Cel::List(list) => Self::List(Rc::new(
                list.iter().cloned().map(Self::from_library).collect(),
            )),
            Cel::Map(map) => {
                let mut entries: Vec<_> = map
                    .map
                    .iter()
                    .map(|(k, v)| (Cel::from(k), Self::from_library(v.clone())))
                    .collect();
                entries.sort_by(|a, b| a.0.partial_cmp(&b.0).unwrap_or(std::cmp::Ordering::Equal));
                Self::Map(Rc::new(entries))
            }
            Cel::Opaque(opaque) => match opaque.downcast_ref::<OptionalValue>() {
                Some(optional) => Self::Optional(
                    optional
                        .value()
                        .map(|v| Rc::new(Self::from_library(v.clone()))),
                ),
                None => Self::Plain(Cel::Opaque(opaque)),
            },
            other => Self::Plain(other),
        }
    }

    /// The form that the library takes.
    pub(super) fn to_library(&self) -> Cel {
        match self {
            Self::Plain(value) => value.clone(),
            Self::Type(name) => Cel::String(Arc::new(name.to_string())),
            Self::Optional(None) => Cel::Opaque(Arc::new(OptionalValue::none())),
            Self::Optional(Some(value)) => {
                Cel::Opaque(Arc::new(OptionalValue::of(value.to_library())))
            }
            Self::List(_) | Self::Data(Value::Array(_), ..) => Cel::List(Arc::new(
                self.items()
                    .unwrap_or_default()
                    .iter()
                    .map(Val::to_library)
                    .collect(),
            )),
            Self::Map(_) | Self::Data(..) => {
                let mut map = HashMap::new();
                for (key, value) in self.entries().unwrap_or_default() {
                    if let Ok(key) = TryInto::<Key>::try_into(key) {
                        map.insert(key, value.to_library());
                    }
                }
                Cel::Map(Map { map: Arc::new(map) })
            }
        }
    }

    /// The items of a list; none if it is none.
    pub(super) fn items(&self) -> Option<Vec<Self>> {
        match self {
            Self::List(list) => Some(list.to_vec()),
            Self::Data(Value::Array(list), node, _) => {
                let items = node.items.as_deref().unwrap_or(&TEXT);
                Some(
                    list.iter()
                        .map(|v| Val::of(v, items, items.embedded))
                        .collect(),
                )
            }
            _ => None,
        }
    }

    /// The entries of a map or an object, keys as rules write them.
    pub(super) fn entries(&self) -> Option<Vec<(Cel, Self)>> {
        match self {
            Self::Map(map) => Some(map.to_vec()),
            Self::Data(Value::Object(map), node, resource) => Some(
                map.iter()
                    .filter_map(|(name, value)| {
                        let (key, schema) = match &node.additional {
                            Additional::Schema(schema) => (name.clone(), schema.as_ref()),
                            _ => (names::escape(name)?, property(node, *resource, name)?),
                        };
                        Some((
                            Cel::String(Arc::new(key)),
                            Val::of(value, schema, schema.embedded),
                        ))
                    })
                    .collect(),
            ),
            _ => None,
        }
    }

    /// The value of a field or a key; none if it is not there.
    pub(super) fn get(&self, name: &str) -> Option<Self> {
        match self {
            Self::Map(map) => map
                .iter()
                .find(|(k, _)| matches!(k, Cel::String(s) if s.as_str() == name))
                .map(|(_, v)| v.clone()),
            Self::Data(Value::Object(map), node, resource) => {
                if let Additional::Schema(schema) = &node.additional {
                    return map.get(name).map(|v| Val::of(v, schema, schema.embedded));
                }
                let plain = names::unescape(name);
                let (value, schema) = match property(node, *resource, name) {
                    Some(schema) => (map.get(name)?, schema),
                    None => (map.get(&plain)?, property(node, *resource, &plain)?),
                };
                Some(Val::of(value, schema, schema.embedded))
            }
            _ => None,
        }
    }

    /// Number of characters, bytes, items or entries; 1 for what has no size.
    pub(super) fn size(&self) -> u64 {
        let n = match self {
            Self::Plain(Cel::String(text)) => text.chars().count(),
            Self::Plain(Cel::Bytes(bytes)) => bytes.len(),
            Self::List(list) => list.len(),
            Self::Map(map) => map.len(),
            Self::Data(Value::Array(list), ..) => list.len(),
            Self::Data(Value::Object(map), ..) => map.len(),
            _ => 1,
        };
        n as u64
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self, Self::List(_) | Self::Data(Value::Array(_), ..))
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self, Self::Map(_) | Self::Data(Value::Object(_), ..))
    }

    /// How the items of a list are told apart.
    pub(super) fn list_type(&self) -> &'a ListType {
        match self {
            Self::Data(_, node, _) => &node.list,
            _ => &ListType::Atomic,
        }
    }

    /// What `type(…)` gives.
    pub(super) fn type_name(&self) -> &str {
        match self {
            Self::Plain(value) => match value {
                Cel::Null => "null_type",
                Cel::Bool(_) => "bool",
                Cel::Int(_) => "int",
                Cel::UInt(_) => "uint",
                Cel::Float(_) => "double",
                Cel::String(_) => "string",
                Cel::Bytes(_) => "bytes",
                Cel::Duration(_) => "google.protobuf.Duration",
                Cel::Timestamp(_) => "google.protobuf.Timestamp",
                Cel::Opaque(opaque) => opaque.runtime_type_name(),
                _ => "dyn",
            },
            Self::List(_) | Self::Data(Value::Array(_), ..) => "list",
            Self::Map(_) => "map",
            Self::Data(_, node, _) => match node.additional {
                Additional::Schema(_) => "map",
                _ => "object",
            },
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
        }
    }
}

fn formatted(text: &str, node: &Node) -> Cel {
    let plain = || Cel::String(Arc::new(text.to_owned()));
    if node.int_or_string {
        return plain();
    }
    let format = node.rules.as_ref().and_then(|r| r.format.as_deref());
    match format {
        Some("byte") => STANDARD
            .decode(text)
            .map_or_else(|_| plain(), |bytes| Cel::Bytes(Arc::new(bytes))),
        Some("duration") => super::library::parse("duration", text).unwrap_or_else(plain),
        Some("date-time") => super::library::parse("timestamp", text).unwrap_or_else(plain),
        Some("date") => {
            super::library::parse("timestamp", &format!("{text}T00:00:00Z")).unwrap_or_else(plain)
        }
        _ => plain(),
    }
}
