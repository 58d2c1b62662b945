//! The types of expressions, and the signatures of operators and functions.

use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use super::names;
use super::val::property;
use crate::schema::node::{Additional, Kind, Node};

/// What is known of a value before there is one.
#[derive(Clone, Debug)]
pub(super) enum Type<'a> {
    /// Anything; checked when it is evaluated.
    Dyn,
    /// A scalar or a type of the library, by its name.
    Named(&'static str),
    List(Rc<Self>),
    Map(Rc<Self>, Rc<Self>),
    Optional(Rc<Self>),
    /// An object of the schema; true for a whole resource.
    Object(&'a Node, bool),
    /// The type of types.
    OfTypes,
    /// Stands for one type in a signature.
    Var(char),
}

pub(super) const BOOL: Type<'static> = Type::Named("bool");
pub(super) const INT: Type<'static> = Type::Named("int");
pub(super) const TEXT: Type<'static> = Type::Named("string");

impl fmt::Display for Type<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => f.write_str("dyn"),
            Self::Named(name) => f.write_str(name),
            Self::List(item) => write!(f, "list({item})"),
            Self::Map(key, value) => write!(f, "map({key}, {value})"),
            Self::Optional(inner) => write!(f, "optional_type({inner})"),
            Self::Object(..) => f.write_str("object"),
            Self::OfTypes => f.write_str("type"),
            Self::Var(name) => write!(f, "{name}"),
        }
    }
}

impl<'a> Type<'a> {
    /// The type of a schema's values; none if rules cannot see them.
    pub(super) fn of(node: &'a Node, resource: bool) -> Option<Self> {
        if node.int_or_string {
            return Some(Self::Dyn);
        }
        Some(match node.kind? {
            Kind::Array => {
                let items = node.items.as_deref()?;
                Self::List(Rc::new(Self::of(items, items.embedded)?))
            }
            Kind::Object => match &node.additional {
                Additional::Schema(schema) => {
                    Self::Map(Rc::new(TEXT), Rc::new(Self::of(schema, schema.embedded)?))
                }
                _ => Self::Object(node, resource),
            },
            Kind::Boolean => BOOL,
            Kind::Number => Self::Named("double"),
            Kind::Integer => INT,
            Kind::String => match node.rules.as_ref().and_then(|r| r.format.as_deref()) {
                Some("byte") => Self::Named("bytes"),
                Some("duration") => Self::Named("google.protobuf.Duration"),
                Some("date" | "date-time") => Self::Named("google.protobuf.Timestamp"),
                _ => TEXT,
            },
        })
    }

    /// The type of a field of an object; the field is named as rules name it.
    pub(super) fn field(
        node: &'a Node,
        resource: bool,
        identifier: &str,
    ) -> Option<(Self, &'a Node)> {
        let plain = names::unescape(identifier);
        let schema = property(node, resource, identifier)
            .filter(|_| names::escape(identifier).is_some())
            .or_else(|| property(node, resource, &plain))?;
        Some((Self::of(schema, schema.embedded)?, schema))
    }

    pub(super) fn is_scalar(&self) -> bool {
        match self {
            Self::Named(name) => matches!(
                *name,
                "bool"
                    | "int"
                    | "uint"
                    | "double"
                    | "google.protobuf.Duration"
                    | "google.protobuf.Timestamp"
            ),
            Self::Optional(inner) => inner.is_scalar(),
            _ => false,
        }
    }

    /// Whether a value of type `other` can stand where this type is wanted.
    pub(super) fn takes(&self, other: &Self, bound: &mut HashMap<char, Self>) -> bool {
        match (self, other) {
            (Self::Var(name), other) => match bound.get(name).cloned() {
                Some(Self::Dyn) | None => {
                    bound.insert(*name, other.clone());
                    true
                }
                Some(known) => {
                    if matches!(known, Self::Named("null")) && !matches!(other, Self::Named("null"))
                    {
                        bound.insert(*name, other.clone());
                    }
                    known.takes(other, bound) || other.takes(&known, bound)
                }
            },
            (Self::Dyn, _) | (_, Self::Dyn) | (Self::OfTypes, Self::OfTypes) => true,
            (Self::Named(a), Self::Named(b)) => {
                a == b
                    || (*b == "null"
                        && !matches!(*a, "bool" | "int" | "uint" | "double" | "string" | "bytes"))
            }
            (Self::Object(..) | Self::Optional(_), Self::Named("null")) => true,
            (Self::List(a), Self::List(b)) | (Self::Optional(a), Self::Optional(b)) => {
                a.takes(b, bound)
            }
            (Self::Map(a, b), Self::Map(c, d)) => a.takes(c, bound) && b.takes(d, bound),
            (Self::Object(a, _), Self::Object(b, _)) => std::ptr::eq(*a, *b),
            _ => false,
        }
    }

    /// The type with the variables of a signature filled in.
    pub(super) fn filled(&self, bound: &HashMap<char, Self>) -> Self {
        match self {
            Self::Var(name) => bound.get(name).cloned().unwrap_or(Self::Dyn),
            Self::List(item) => Self::List(Rc::new(item.filled(bound))),
            Self::Map(key, value) => {
                Self::Map(Rc::new(key.filled(bound)), Rc::new(value.filled(bound)))
            }
            Self::Optional(inner) => Self::Optional(Rc::new(inner.filled(bound))),
            other => other.clone(),
        }
    }
}

/// One way to call a function.
pub(super) struct Overload {
    pub(super) target: Option<Type<'static>>,
    pub(super) args: Vec<Type<'static>>,
    pub(super) result: Type<'static>,
}

/// The ways to call a function; empty if there is none of that name.
pub(super) fn overloads(name: &str) -> Vec<Overload> {
    SIGNATURES
        .iter()
        .filter(|(names, _)| names.split(' ').any(|n| n == name))
        .flat_map(|(_, list)| list.split("; "))
        .map(parse_overload)
        .collect()
}

fn parse_overload(text: &str) -> Overload {
    let mut rest = text;
    let target = if rest.starts_with('(') {
        None
    } else {
        let (target, after) = parse_type(rest);
        rest = after.strip_prefix('.').unwrap_or(after);
        Some(target)
    };
    let mut args = Vec::new();
    rest = rest.strip_prefix('(').unwrap_or(rest);
    while !rest.starts_with(')') && !rest.is_empty() {
        let (arg, after) = parse_type(rest);
        args.push(arg);
        rest = after.strip_prefix(", ").unwrap_or(after);
    }
    rest = rest.strip_prefix(") ").unwrap_or(rest);
    Overload {
        target,
        args,
        result: parse_type(rest).0,
    }
}

fn parse_type(text: &str) -> (Type<'static>, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_alphanumeric())
        .unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let inner = |rest: &'_ str| -> (Rc<Type<'static>>, String) {
        let (inner, after) = parse_type(rest.strip_prefix('(').unwrap_or(rest));
        (Rc::new(inner), after.to_owned())
    };
    let tail = |after: &str| &text[text.len() - after.len()..];
    match word {
        "list" => {
            let (item, after) = inner(rest);
            (
                Type::List(item),
                tail(after.strip_prefix(')').unwrap_or(&after)),
            )
        }
        "optional" => {
            let (item, after) = inner(rest);
            (
                Type::Optional(item),
                tail(after.strip_prefix(')').unwrap_or(&after)),
            )
        }
        "map" => {
            let (key, after) = inner(rest);
            let (value, after) = parse_type(tail(after.strip_prefix(", ").unwrap_or(&after)));
            (
                Type::Map(key, Rc::new(value)),
                after.strip_prefix(')').unwrap_or(after),
            )
        }
        "type" => (Type::OfTypes, rest),
        "dyn" => (Type::Dyn, rest),
        word => {
            let known = NAMES.iter().find(|(short, _)| *short == word);
            match (known, word.chars().next()) {
                (Some((_, name)), _) => (Type::Named(name), rest),
                (None, Some(variable)) => (Type::Var(variable), rest),
                (None, None) => (Type::Dyn, rest),
            }
        }
    }
}

const NAMES: [(&str, &str); 15] = [
    ("bool", "bool"),
    ("int", "int"),
    ("uint", "uint"),
    ("double", "double"),
    ("string", "string"),
    ("bytes", "bytes"),
    ("null", "null"),
    ("timestamp", "google.protobuf.Timestamp"),
    ("duration", "google.protobuf.Duration"),
    ("quantity", "kubernetes.Quantity"),
    ("ip", "net.IP"),
    ("cidr", "net.CIDR"),
    ("url", "kubernetes.URL"),
    ("semver", "kubernetes.Semver"),
    ("format", "kubernetes.NamedFormat"),
];

/// Names (separated by spaces) and the ways to call them (separated by `; `).
const SIGNATURES: &[(&str, &str)] = &[
    ("_&&_ _||_", "(bool, bool) bool"),
    ("!_", "(bool) bool"),
    ("@not_strictly_false", "(bool) bool"),
    ("_?_:_", "(bool, A, A) A"),
    ("_==_ _!=_", "(A, A) bool"),
    (
        "_<_ _<=_ _>_ _>=_",
        "(bool, bool) bool; (int, int) bool; (int, uint) bool; (int, double) bool; (uint, uint) bool; (uint, int) bool; \
         (uint, double) bool; (double, double) bool; (double, int) bool; (double, uint) bool; (string, string) bool; \
         (bytes, bytes) bool; (timestamp, timestamp) bool; (duration, duration) bool",
    ),
    (
        "_+_",
        "(int, int) int; (uint, uint) uint; (double, double) double; (string, string) string; (bytes, bytes) bytes; \
         (list(A), list(A)) list(A); (timestamp, duration) timestamp; (duration, timestamp) timestamp; \
         (duration, duration) duration",
    ),
    (
        "_-_",
        "(int, int) int; (uint, uint) uint; (double, double) double; (timestamp, timestamp) duration; \
         (timestamp, duration) timestamp; (duration, duration) duration",
    ),
    (
        "_*_ _/_",
        "(int, int) int; (uint, uint) uint; (double, double) double",
    ),
    ("_%_", "(int, int) int; (uint, uint) uint"),
    ("-_", "(int) int; (double) double"),
    (
        "_[_]",
        "(list(A), int) A; (map(A, B), A) B; (optional(list(A)), int) optional(A); (optional(map(A, B)), A) optional(B)",
    ),
    (
        "_[?_]",
        "(list(A), int) optional(A); (map(A, B), A) optional(B); (optional(list(A)), int) optional(A); (optional(map(A, B)), A) optional(B)",
    ),
    ("@in", "(A, list(A)) bool; (A, map(A, B)) bool"),
    (
        "size",
        "(string) int; (bytes) int; (list(A)) int; (map(A, B)) int; string.() int; bytes.() int; list(A).() int; map(A, B).() int",
    ),
    ("type", "(A) type"),
    ("dyn", "(A) dyn"),
    (
        "int",
        "(int) int; (uint) int; (double) int; (string) int; (timestamp) int; (duration) int",
    ),
    (
        "uint",
        "(uint) uint; (int) uint; (double) uint; (string) uint",
    ),
    (
        "double",
        "(double) double; (int) double; (uint) double; (string) double",
    ),
    ("bool", "(bool) bool; (string) bool"),
    (
        "string",
        "(string) string; (bool) string; (int) string; (uint) string; (double) string; (bytes) string; (timestamp) string; \
         (duration) string; (ip) string; (cidr) string",
    ),
    ("bytes", "(bytes) bytes; (string) bytes"),
    (
        "timestamp",
        "(timestamp) timestamp; (string) timestamp; (int) timestamp",
    ),
    (
        "duration",
        "(duration) duration; (string) duration; (int) duration",
    ),
    ("contains startsWith endsWith", "string.(string) bool"),
    ("matches", "string.(string) bool; (string, string) bool"),
    (
        "getFullYear getMonth getDayOfYear getDayOfMonth getDate getDayOfWeek",
        "timestamp.() int; timestamp.(string) int",
    ),
    (
        "getHours getMinutes getSeconds getMilliseconds",
        "timestamp.() int; timestamp.(string) int; duration.() int",
    ),
    ("charAt", "string.(int) string"),
    (
        "indexOf lastIndexOf",
        "string.(string) int; string.(string, int) int; list(A).(A) int",
    ),
    ("lowerAscii upperAscii trim", "string.() string"),
    (
        "replace",
        "string.(string, string) string; string.(string, string, int) string",
    ),
    (
        "split",
        "string.(string) list(string); string.(string, int) list(string)",
    ),
    ("substring", "string.(int) string; string.(int, int) string"),
    (
        "join",
        "list(string).() string; list(string).(string) string",
    ),
    ("format", "string.(list(dyn)) string"),
    ("strings.quote", "(string) string"),
    ("first last", "list(A).() optional(A)"),
    ("find", "string.(string) string"),
    (
        "findAll",
        "string.(string) list(string); string.(string, int) list(string)",
    ),
    (
        "isSorted",
        "list(int).() bool; list(uint).() bool; list(double).() bool; list(bool).() bool; list(duration).() bool; \
         list(timestamp).() bool; list(string).() bool; list(bytes).() bool",
    ),
    (
        "sum",
        "list(int).() int; list(uint).() uint; list(double).() double; list(duration).() duration",
    ),
    (
        "min max",
        "list(int).() int; list(uint).() uint; list(double).() double; list(bool).() bool; list(duration).() duration; \
         list(timestamp).() timestamp; list(string).() string; list(bytes).() bytes",
    ),
    (
        "sets.contains sets.equivalent sets.intersects",
        "(list(A), list(A)) bool",
    ),
    ("url", "(string) url"),
    (
        "isURL isQuantity isIP isCIDR ip.isCanonical",
        "(string) bool",
    ),
    (
        "getScheme getHost getHostname getPort getEscapedPath",
        "url.() string",
    ),
    ("getQuery", "url.() map(string, list(string))"),
    ("quantity", "(string) quantity"),
    ("sign", "quantity.() int"),
    (
        "isGreaterThan isLessThan",
        "quantity.(quantity) bool; semver.(semver) bool",
    ),
    ("compareTo", "quantity.(quantity) int; semver.(semver) int"),
    ("asApproximateFloat", "quantity.() double"),
    ("asInteger", "quantity.() int"),
    ("isInteger", "quantity.() bool"),
    (
        "add sub",
        "quantity.(quantity) quantity; quantity.(int) quantity",
    ),
    ("ip", "(string) ip; cidr.() ip"),
    ("family", "ip.() int"),
    (
        "isUnspecified isLoopback isLinkLocalMulticast isLinkLocalUnicast isGlobalUnicast",
        "ip.() bool",
    ),
    ("cidr", "(string) cidr"),
    ("containsIP", "cidr.(string) bool; cidr.(ip) bool"),
    ("containsCIDR", "cidr.(string) bool; cidr.(cidr) bool"),
    ("prefixLength", "cidr.() int"),
    ("masked", "cidr.() cidr"),
    ("semver", "(string) semver; (string, bool) semver"),
    ("isSemver", "(string) bool; (string, bool) bool"),
    ("major minor patch", "semver.() int"),
    ("format.named", "(string) optional(format)"),
    (
        "format.dns1123Label format.dns1123Subdomain format.dns1035Label format.qualifiedName format.dns1123LabelPrefix \
         format.dns1123SubdomainPrefix format.dns1035LabelPrefix format.labelValue format.uri format.uuid format.byte \
         format.date format.datetime",
        "() format",
    ),
    ("validate", "format.(string) optional(list(string))"),
    ("optional.of optional.ofNonZeroValue", "(A) optional(A)"),
    ("optional.none", "() optional(A)"),
    ("hasValue", "optional(A).() bool"),
    ("value", "optional(A).() A"),
    ("or", "optional(A).(optional(A)) optional(A)"),
    ("orValue", "optional(A).(A) A"),
];
