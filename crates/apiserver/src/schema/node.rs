//! The parsed form of a schema: what pruning, defaulting and validation walk.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Number, Value};

use super::FieldError;
use super::cel::Rule;
use super::list_types::{MERGE_KEY, STRATEGY};

/// A schema of one value.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) kind: Option<Kind>,
    pub(super) nullable: bool,
    pub(super) preserve_unknown: bool,
    pub(super) int_or_string: bool,
    pub(super) embedded: bool,
    pub(super) properties: BTreeMap<Box<str>, Self>,
    pub(super) additional: Additional,
    pub(super) items: Option<Box<Self>>,
    pub(super) default: Option<Value>,
    pub(super) list: ListType,
    /// A map that has one owner as a whole (`x-kubernetes-map-type: atomic`).
    pub(super) atomic: bool,
    /// Most nodes have none, so they cost one pointer.
    pub(super) rules: Option<Box<Rules>>,
    /// `x-kubernetes-validations`.
    pub(super) validations: Option<Box<[Rule]>>,
    /// Whether this schema or one inside it has `validations`.
    pub(super) has_rules: bool,
    /// Whether one of those rules may take more stack than a server thread has.
    pub(super) has_deep_rules: bool,
}

/// JSON type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

/// What `additionalProperties` says.
#[derive(Debug, Default)]
pub(super) enum Additional {
    #[default]
    None,
    Any,
    Schema(Box<Node>),
}

/// What `x-kubernetes-list-type` says.
#[derive(Debug, Default)]
pub(super) enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Vec<Box<str>>),
}

/// Rules of values, as opposed to structure.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) format: Option<Box<str>>,
    pub(super) pattern: Option<Pattern>,
    pub(super) values: Vec<Value>,
    pub(super) required: Vec<Box<str>>,
    pub(super) minimum: Option<Number>,
    pub(super) exclusive_minimum: bool,
    pub(super) maximum: Option<Number>,
    pub(super) exclusive_maximum: bool,
    pub(super) multiple_of: Option<Number>,
    pub(super) min_length: Option<u64>,
    pub(super) max_length: Option<u64>,
    pub(super) min_items: Option<u64>,
    pub(super) max_items: Option<u64>,
    pub(super) unique_items: bool,
    pub(super) min_properties: Option<u64>,
    pub(super) max_properties: Option<u64>,
    pub(super) all_of: Vec<Node>,
    pub(super) any_of: Vec<Node>,
    pub(super) one_of: Vec<Node>,
    pub(super) not: Option<Box<Node>>,
    /// Strategic merge patches merge this list, by this key of its items or, if empty, as a set.
    pub(super) merge_key: Option<Box<str>>,
}

/// A regular expression, compiled when it is first needed: compiled ones are large and most are never used.
#[derive(Debug)]
pub(super) struct Pattern {
    pub(super) source: Box<str>,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    pub(super) fn matches(&self, text: &str) -> bool {
        // One that does not compile was refused with its CRD; one that did come in (another engine's dialect) must not block writes.
        self.compiled
            .get_or_init(|| compile(&self.source).ok())
            .as_ref()
            .is_none_or(|r| r.is_match(text))
    }
}

/// Compiles a schema's pattern.
pub(super) fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(1 << 20).build()
}

impl Kind {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

impl Node {
    /// Parses `source`, which sits at `path` of the definition.
    pub(super) fn parse(source: &Value, path: &str) -> Result<Self, FieldError> {
        let Some(map) = source.as_object() else {
            return Err(FieldError::invalid(path, source, "must be a schema object"));
        };
        let kind = match map.get("type") {
            None => None,
            Some(Value::String(s)) if s.is_empty() => None,
            Some(Value::String(s)) => Some(Kind::parse(s).ok_or_else(|| {
                FieldError::not_supported(
                    join(path, "type"),
                    &map["type"],
                    &["array", "boolean", "integer", "number", "object", "string"],
                )
            })?),
            Some(other) => {
                return Err(FieldError::invalid(
                    join(path, "type"),
                    other,
                    "must be a string",
                ));
            }
        };
        let mut properties = BTreeMap::new();
        if let Some(Value::Object(given)) = map.get("properties") {
            for (name, schema) in given {
                properties.insert(
                    name.as_str().into(),
                    Self::parse(schema, &format!("{}[{name}]", join(path, "properties")))?,
                );
            }
        }
        let additional = match map.get("additionalProperties") {
            None | Some(Value::Null | Value::Bool(false)) => Additional::None,
            Some(Value::Bool(true)) => Additional::Any,
            Some(schema) => Additional::Schema(Box::new(Self::parse(
                schema,
                &join(path, "additionalProperties"),
            )?)),
        };
        let items = match map.get("items") {
            None | Some(Value::Null) => None,
            Some(schema) => Some(Box::new(Self::parse(schema, &join(path, "items"))?)),
        };
        let list = match text(map, "x-kubernetes-list-type") {
            Some("set") => ListType::Set,
            Some("map") => ListType::Map(texts(map, "x-kubernetes-list-map-keys")),
            _ => ListType::Atomic,
        };
        let mut node = Self {
            kind,
            nullable: flag(map, "nullable"),
            preserve_unknown: flag(map, "x-kubernetes-preserve-unknown-fields"),
            int_or_string: flag(map, "x-kubernetes-int-or-string"),
            embedded: flag(map, "x-kubernetes-embedded-resource"),
            properties,
            additional,
            items,
            default: map.get("default").filter(|d| !d.is_null()).cloned(),
            list,
            atomic: text(map, "x-kubernetes-map-type") == Some("atomic"),
            rules: Rules::parse(map, path)?.map(Box::new),
            validations: None,
            has_rules: false,
            has_deep_rules: false,
        };
        let validations = Rule::parse_all(map.get("x-kubernetes-validations"), &node);
        if !validations.is_empty() {
            node.validations = Some(validations.into());
        }
        let inner = match &node.additional {
            Additional::Schema(schema) => Some(schema.as_ref()),
            _ => None,
        };
        let parts = node
            .properties
            .values()
            .chain(node.items.as_deref())
            .chain(inner);
        let (rules, deep) = parts.fold((false, false), |(rules, deep), part| {
            (rules || part.has_rules, deep || part.has_deep_rules)
        });
        let own = node.validations.as_deref().unwrap_or_default();
        node.has_rules = rules || !own.is_empty();
        node.has_deep_rules = deep || own.iter().any(|rule| rule.deep);
        Ok(node)
    }
}

impl Rules {
    fn parse(map: &Map<String, Value>, path: &str) -> Result<Option<Self>, FieldError> {
        let any = [
            "format",
            "pattern",
            "enum",
            "required",
            "minimum",
            "maximum",
            "multipleOf",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "uniqueItems",
            "minProperties",
            "maxProperties",
            "allOf",
            "anyOf",
            "oneOf",
            "not",
            STRATEGY,
        ]
        .iter()
        .any(|k| map.contains_key(*k));
        if !any {
            return Ok(None);
        }
        let nested = |key: &str| -> Result<Vec<Node>, FieldError> {
            let Some(Value::Array(list)) = map.get(key) else {
                return Ok(Vec::new());
            };
            list.iter()
                .enumerate()
                .map(|(i, s)| Node::parse(s, &format!("{}[{i}]", join(path, key))))
                .collect()
        };
        let count = |key: &str| map.get(key).and_then(Value::as_u64);
        let figure = |key: &str| map.get(key).and_then(Value::as_number).cloned();
        Ok(Some(Self {
            format: text(map, "format").map(Into::into),
            pattern: text(map, "pattern")
                .filter(|p| !p.is_empty())
                .map(|p| Pattern {
                    source: p.into(),
                    compiled: OnceLock::new(),
                }),
            values: map
                .get("enum")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default(),
            required: texts(map, "required"),
            minimum: figure("minimum"),
            exclusive_minimum: flag(map, "exclusiveMinimum"),
            maximum: figure("maximum"),
            exclusive_maximum: flag(map, "exclusiveMaximum"),
            multiple_of: figure("multipleOf"),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            unique_items: flag(map, "uniqueItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            all_of: nested("allOf")?,
            any_of: nested("anyOf")?,
            one_of: nested("oneOf")?,
            not: match map.get("not") {
                None | Some(Value::Null) => None,
                Some(schema) => Some(Box::new(Node::parse(schema, &join(path, "not"))?)),
            },
            merge_key: map
                .contains_key(STRATEGY)
                .then(|| text(map, MERGE_KEY).unwrap_or_default().into()),
        }))
    }
}

/// `path.name`, or `name` at the root.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn flag(map: &Map<String, Value>, key: &str) -> bool {
    map.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    map.get(key).and_then(Value::as_str)
}

fn texts(map: &Map<String, Value>, key: &str) -> Vec<Box<str>> {
    map.get(key)
        .and_then(Value::as_array)
        .map(|list| {
            list.iter()
                .filter_map(Value::as_str)
                .map(Into::into)
                .collect()
        })
        .unwrap_or_default()
}
