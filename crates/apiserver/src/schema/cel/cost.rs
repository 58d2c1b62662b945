//! What calls cost at run time: upstream's figures, and more where the work grows faster than those.

use kube_cel::cel::Value as Cel;
use kube_cel::cel::common::ast::operators;

use super::val::Val;

/// Of one character that is looked at.
pub(super) const CHARACTER: f64 = 0.1;
/// Of one character of a pattern.
pub(super) const PATTERN: f64 = 0.25;

#[expect(clippy::cast_precision_loss, reason = "sizes of a request")]
fn scaled(size: u64, factor: f64) -> f64 {
    (size as f64 * factor).ceil()
}

/// Looking at a whole text, list or map once.
fn traversal(value: &Val<'_>) -> f64 {
    match value {
        Val::Plain(Cel::String(text)) => scaled(text.len() as u64, CHARACTER),
        Val::Plain(Cel::Bytes(bytes)) => scaled(bytes.len() as u64, CHARACTER),
        value if value.is_list() => value
            .items()
            .unwrap_or_default()
            .iter()
            .map(traversal)
            .sum(),
        value if value.is_map() => value
            .entries()
            .unwrap_or_default()
            .iter()
            .map(|(_, v)| 1.0 + traversal(v))
            .sum(),
        _ => 1.0,
    }
}

/// Of one step of a comparison.
pub(super) fn equality(a: &Val<'_>, b: &Val<'_>) -> f64 {
    scaled(a.size().min(b.size()), CHARACTER)
}

pub(super) fn ordering(a: &Val<'_>, b: &Val<'_>) -> f64 {
    scaled(a.size().min(b.size()), CHARACTER).max(1.0)
}

pub(super) fn matching(text: usize, pattern: usize) -> f64 {
    scaled(text as u64 + 1, CHARACTER) * scaled(pattern as u64, PATTERN)
}

/// Of a library function; for a member function the target is the first argument.
pub(super) fn call(name: &str, target: Option<&Val<'_>>, args: &[Val<'_>]) -> f64 {
    let all: Vec<&Val<'_>> = target.into_iter().chain(args).collect();
    let size = |i: usize| all.get(i).map_or(0, |v| v.size());
    let text = |i: usize, factor: f64| scaled(size(i), CHARACTER * factor).max(1.0);
    match name {
        operators::ADD => scaled(size(0) + size(1), CHARACTER).max(1.0),
        "startsWith" | "endsWith" | "bytes" | "string" | "strings.quote" | "format" => {
            text(0, 1.0) + args.iter().map(traversal).sum::<f64>() * CHARACTER
        }
        "contains" => text(0, 1.0) * text(1, 1.0),
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "reverse" | "slice"
        | "flatten" | "first" | "last" => all.first().map_or(1.0, |v| traversal(v)),
        // Not in upstream's count, and slower than one look at each item.
        "distinct" | "sort" | "sortBy" => scaled(size(0) * size(0), CHARACTER).max(1.0),
        "sets.contains" | "sets.intersects" | "sets.equivalent" => {
            let pairs = size(0)
                .saturating_mul(size(1))
                .saturating_mul(if name == "sets.equivalent" { 2 } else { 1 });
            scaled(pairs, 1.0).max(1.0)
        }
        "replace" => {
            // The result can be far larger than its parts.
            let found = size(0) / size(1).max(1) + 1;
            text(0, 2.0) + scaled(found.saturating_mul(size(2)), CHARACTER)
        }
        "split" => text(0, 2.0),
        "join" => {
            all.first().map_or(1.0, |v| traversal(v))
                + scaled(size(0).saturating_mul(size(1)), CHARACTER)
        }
        "find" | "findAll" => matching(
            usize::try_from(size(0)).unwrap_or(usize::MAX),
            usize::try_from(size(1)).unwrap_or(usize::MAX),
        )
        .max(1.0),
        "validate" => matching(usize::try_from(size(1)).unwrap_or(usize::MAX), 128),
        "url"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "ip"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver"
        | "isURL"
        | "duration"
        | "timestamp"
        | "charAt" => text(0, 1.0),
        "ip.isCanonical" => text(0, 2.0),
        _ => 1.0,
    }
}
