//! What a value may be and how it is merged, as seen by those who merge objects: server-side apply and strategic merge patch.
//!
//! A schema's node allows a scalar, a list, a map, or any of them; the value at hand decides which it is. Where nothing is
//! known the type is deduced from the value: maps are merged field by field, lists are replaced.

use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};

use super::node::{Additional, Kind, ListType, Node, Patched};
use super::{Schema, builtin};

/// The type of a value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Type<'a>(Of<'a>);

#[derive(Clone, Copy, Debug)]
enum Of<'a> {
    /// As the node says. `object`: it has metadata, whether the node says so or not. `free`: unknown fields are kept.
    Node {
        node: &'a Node,
        object: bool,
        free: bool,
    },
    /// Plain text.
    Text,
    /// Whatever the value is.
    Deduced,
    /// Whatever the value is, as a whole.
    Untyped,
}

/// What a value is, by its type and itself.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape<'a> {
    Scalar(Scalar),
    List(List<'a>),
    Map(Fields<'a>),
}

/// What a scalar must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scalar {
    Any,
    Number,
    Text,
    Boolean,
}

/// A list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List<'a> {
    pub(crate) items: Items<'a>,
    pub(crate) item: Type<'a>,
}

/// How the items of a list are told apart.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Items<'a> {
    /// They are not.
    Atomic,
    /// By their values.
    Set,
    /// By the values of these fields.
    Keys(&'a [Box<str>]),
}

/// How a strategic merge patch tells items apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchItems<'a> {
    Whole,
    Set,
    ByKey(&'a str),
}

/// A map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    pub(crate) atomic: bool,
    of: Of<'a>,
}

impl<'a> Type<'a> {
    /// A whole object.
    pub(crate) fn object(schema: &'a Schema, custom: bool) -> Self {
        Self(Of::Node {
            node: &schema.root,
            object: custom,
            free: schema.root.preserve_unknown,
        })
    }

    /// An object of which nothing is known.
    pub(crate) fn deduced() -> Self {
        Self(Of::Deduced)
    }

    fn of(node: &'a Node, free: bool) -> Self {
        Self(Of::Node {
            node,
            object: node.embedded,
            free: free || node.preserve_unknown,
        })
    }

    fn kind(self) -> Option<Kind> {
        match self.0 {
            Of::Node { node, .. } => node.kind,
            Of::Text => Some(Kind::String),
            Of::Deduced | Of::Untyped => None,
        }
    }

    /// What the value is. One that is none of what its type allows is taken for what it should be.
    pub(crate) fn shape(self, value: Option<&Value>) -> Shape<'a> {
        let kind = self.kind();
        let any = kind.is_none();
        match value {
            Some(Value::Number(_) | Value::String(_) | Value::Bool(_)) if any => {
                Shape::Scalar(Scalar::Any)
            }
            Some(Value::Array(_)) if any || kind == Some(Kind::Array) => Shape::List(self.list()),
            _ => match kind {
                None | Some(Kind::Object) => Shape::Map(self.fields()),
                Some(Kind::Array) => Shape::List(self.list()),
                Some(Kind::String) => Shape::Scalar(Scalar::Text),
                Some(Kind::Integer | Kind::Number) => Shape::Scalar(Scalar::Number),
                Some(Kind::Boolean) => Shape::Scalar(Scalar::Boolean),
            },
        }
    }

    fn list(self) -> List<'a> {
        let Of::Node { node, free, .. } = self.0 else {
            return List {
                items: Items::Atomic,
                item: Self(Of::Untyped),
            };
        };
        List {
            items: match &node.list {
                ListType::Atomic => Items::Atomic,
                ListType::Set => Items::Set,
                ListType::Map(keys) => Items::Keys(keys),
            },
            item: node
                .items
                .as_deref()
                .map_or(Self(Of::Untyped), |item| Self::of(item, free)),
        }
    }

    fn fields(self) -> Fields<'a> {
        Fields {
            atomic: match self.0 {
                Of::Node { node, .. } => node.atomic_map,
                Of::Untyped => true,
                Of::Text | Of::Deduced => false,
            },
            of: self.0,
        }
    }

    /// How a strategic merge patch merges this list.
    pub(crate) fn patched(self) -> PatchItems<'a> {
        match self.0 {
            Of::Node { node, .. } => match &node.patched {
                Patched::Whole => PatchItems::Whole,
                Patched::Set => PatchItems::Set,
                Patched::ByKey(key) => PatchItems::ByKey(key),
            },
            _ => PatchItems::Whole,
        }
    }

    /// The type of the items, if this is a list.
    pub(crate) fn item(self) -> Self {
        self.list().item
    }

    /// The type of a field, if this is a map; deduced where nothing is known of it.
    pub(crate) fn field(self, name: &str) -> Self {
        self.fields()
            .get(name)
            .map_or(Self(Of::Deduced), |(field, _)| field)
    }

    /// The value of a key where an item of this type leaves it out.
    pub(crate) fn key_default(self, key: &str) -> Option<&'a Value> {
        match self.0 {
            Of::Node { node, .. } => node.properties.get(key)?.default.as_ref(),
            _ => None,
        }
    }
}

impl<'a> Fields<'a> {
    /// The type of a field, and whether the schema names it; none if there is no such field.
    pub(crate) fn get(self, name: &str) -> Option<(Type<'a>, bool)> {
        let Of::Node { node, object, free } = self.of else {
            return Some((Type(self.of), false)).map(|(of, named)| match of.0 {
                Of::Untyped => (of, named),
                _ => (Type(Of::Deduced), named),
            });
        };
        if object {
            match name {
                "apiVersion" | "kind" => return Some((Type(Of::Text), true)),
                "metadata" => return Some((object_meta(), true)),
                _ => {}
            }
        }
        if let Some(field) = node.properties.get(name) {
            return Some((Type::of(field, free), true));
        }
        match &node.additional {
            Additional::Schema(schema) => Some((Type::of(schema, free), false)),
            Additional::Any => Some((Type(Of::Deduced), false)),
            // A map of which nothing is said takes anything.
            Additional::None if free || node.properties.is_empty() => {
                Some((Type(Of::Deduced), false))
            }
            Additional::None => None,
        }
    }

    /// Whether nothing at all is known of the fields.
    pub(crate) fn unknown(self) -> bool {
        match self.of {
            Of::Node { node, object, .. } => {
                !object
                    && node.properties.is_empty()
                    && !matches!(node.additional, Additional::Schema(_))
            }
            _ => true,
        }
    }
}

/// The type of metadata.
fn object_meta() -> Type<'static> {
    static META: OnceLock<Option<Arc<Schema>>> = OnceLock::new();
    META.get_or_init(builtin::object_meta)
        .as_ref()
        .map_or(Type(Of::Deduced), |schema| Type::of(&schema.root, false))
}

/// The map under a value, if it is one that has fields.
pub(crate) fn as_map(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}
