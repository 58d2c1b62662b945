//! How large values can be and what an expression can cost at most, known from the bounds that a schema gives.
//!
//! The figures are upstream's: they decide which definitions are accepted.

use crate::schema::node::{Additional, Kind, Node};

/// The largest request, in bytes.
pub(super) const REQUEST: u64 = 3 * 1024 * 1024;

/// A size between two bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Size {
    pub(super) min: u64,
    pub(super) max: u64,
}

impl Size {
    pub(super) const UNKNOWN: Self = Self {
        min: 0,
        max: u64::MAX,
    };

    pub(super) fn exactly(n: u64) -> Self {
        Self { min: n, max: n }
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            min: self.min.saturating_add(other.min),
            max: self.max.saturating_add(other.max),
        }
    }
}

/// `n * factor`, rounded up.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate, and the cast saturates"
)]
pub(super) fn scaled(n: u64, factor: f64) -> u64 {
    if n == u64::MAX {
        return n;
    }
    (n as f64 * factor).ceil() as u64
}

/// The least that a value takes when it is written down.
pub(super) fn smallest(node: &Node) -> u64 {
    if node.int_or_string {
        return 1;
    }
    match node.kind {
        Some(Kind::Boolean) => 4,
        Some(Kind::Integer | Kind::Number) | None => 1,
        Some(Kind::Array) => 2,
        Some(Kind::String) => match format(node) {
            Some("duration") => 3,
            Some("date") => 12,
            Some("date-time") => 21,
            _ => 2,
        },
        Some(Kind::Object) => {
            if matches!(node.additional, Additional::Schema(_)) {
                return 2;
            }
            let required = node.rules.as_ref().map_or(&[][..], |r| &r.required);
            2 + required
                .iter()
                .filter_map(|name| Some((name, node.properties.get(name.as_ref())?)))
                .filter(|(_, schema)| schema.default.is_none())
                .map(|(name, schema)| name.len() as u64 + smallest(schema) + 4)
                .sum::<u64>()
        }
    }
}

/// The most items, entries or characters that a value can have.
pub(super) fn largest(node: &Node) -> u64 {
    let rules = node.rules.as_deref();
    let length = rules.and_then(|r| r.max_length);
    if node.int_or_string {
        return length.map_or(REQUEST - 2, |n| n.saturating_mul(4));
    }
    match node.kind {
        Some(Kind::Array) => rules
            .and_then(|r| r.max_items)
            .unwrap_or_else(|| (REQUEST - 2) / (node.items.as_deref().map_or(1, smallest) + 1)),
        Some(Kind::Object) => match &node.additional {
            Additional::Schema(schema) => rules
                .and_then(|r| r.max_properties)
                .unwrap_or_else(|| (REQUEST - 2) / (smallest(schema) + 6)),
            _ => 0,
        },
        Some(Kind::String) => match (format(node), length) {
            (Some("duration" | "date-time"), _) => 32,
            (Some("date"), _) => 12,
            (Some("byte"), Some(n)) => n,
            (_, Some(n)) => n.saturating_mul(4),
            _ => {
                let words = rules.map_or(&[][..], |r| &r.values);
                let longest = words.iter().filter_map(|v| v.as_str()).map(str::len).max();
                longest.map_or(REQUEST - 2, |n| n as u64)
            }
        },
        _ => 0,
    }
}

fn format(node: &Node) -> Option<&str> {
    node.rules.as_ref().and_then(|r| r.format.as_deref())
}

/// How often a value of at least this size can occur in a request.
pub(super) fn cardinality(smallest: u64) -> u64 {
    REQUEST / (smallest + 1)
}

/// How often the children of a value occur for each of it; none if there is no bound.
pub(super) fn children(node: &Node) -> Option<u64> {
    let rules = node.rules.as_deref();
    match node.kind {
        Some(Kind::Object) => match node.additional {
            Additional::None => Some(1),
            _ => rules.and_then(|r| r.max_properties),
        },
        Some(Kind::Array) => rules.and_then(|r| r.max_items),
        _ => None,
    }
}
