//! What calls cost at most, and how large their results are: upstream's figures.

use kube_cel::cel::common::ast::operators;

use super::cost::{CHARACTER, PATTERN};
use super::estimate::{Size, scaled};
use super::infer::{Known, Place};
use super::types::Type;

/// The cost and the size of a call.
pub(super) fn estimated<'a>(
    name: &str,
    target: Option<&Known<'a>>,
    args: &[Known<'a>],
    ty: Type<'a>,
    root: Place<'a>,
) -> Known<'a> {
    let size = |i: usize| args.get(i).map_or(Size::UNKNOWN, Known::size);
    let of_target = target.map_or(Size::UNKNOWN, Known::size);
    let once = |size: Size| scaled(size.max, CHARACTER);
    let mut result: Option<Size> = None;
    let mut entries = None;
    let mut place = None;
    let mut sum = args
        .iter()
        .chain(target)
        .fold(0u64, |sum, known| sum.saturating_add(known.cost));
    let is_text = |known: &Known<'_>| matches!(known.ty, Type::Named("string" | "bytes"));
    let own = match name {
        operators::CONDITIONAL => {
            let (yes, no) = (&args[1], &args[2]);
            sum = args[0].cost.saturating_add(yes.cost.max(no.cost));
            result = Some(yes.size().union(no.size()));
            0
        }
        operators::EQUALS | operators::NOT_EQUALS => {
            let opaque = |known: &Known<'_>| matches!(known.ty, Type::Named(name) if name.contains('.') && !name.starts_with("google"));
            if args.iter().all(opaque) {
                1
            } else {
                scaled(size(0).max.min(size(1).max), CHARACTER)
            }
        }
        operators::LESS
        | operators::LESS_EQUALS
        | operators::GREATER
        | operators::GREATER_EQUALS
            if args.iter().any(is_text) =>
        {
            scaled(size(0).max.min(size(1).max), CHARACTER)
        }
        operators::ADD
            if args
                .iter()
                .any(|a| is_text(a) || matches!(a.ty, Type::List(_))) =>
        {
            let total = size(0).plus(size(1));
            result = Some(total);
            entries = args[0]
                .entries
                .zip(args[1].entries)
                .map(|(a, b)| (a.0.union(b.0), a.1.union(b.1)));
            if args.iter().any(is_text) {
                scaled(total.max, CHARACTER)
            } else {
                1
            }
        }
        operators::IN if matches!(args[1].ty, Type::List(_)) => size(1).max,
        operators::INDEX | operators::OPT_INDEX => {
            result = args[0].entries.map(|(_, value)| value);
            place = Some(args[0].place.map_or(root, Place::item));
            1
        }
        "dyn" => {
            place = args[0].place;
            result = args[0].size;
            entries = args[0].entries;
            1
        }
        "matches" => {
            let (text, pattern) = if target.is_some() {
                (of_target, size(0))
            } else {
                (size(0), size(1))
            };
            let one = text.plus(Size::exactly(1));
            once(one).saturating_mul(scaled(pattern.max, PATTERN))
        }
        "contains" => once(of_target).saturating_mul(once(size(0))),
        "startsWith" | "endsWith" => once(size(0)),
        "format" => once(of_target),
        "bytes" if is_text(&args[0]) => {
            result = Some(Size {
                min: size(0).min,
                max: size(0).max.saturating_mul(4),
            });
            once(size(0))
        }
        "string" if matches!(args[0].ty, Type::Named("bytes")) => {
            result = Some(Size {
                min: size(0).min / 4,
                max: size(0).max,
            });
            once(size(0))
        }
        "strings.quote" => {
            let given = size(0);
            result = Some(Size {
                min: given.min + 2,
                max: given.max.saturating_mul(2).saturating_add(2),
            });
            once(given)
        }
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
            match target.map(|t| (&t.ty, t)) {
                Some((Type::List(item), known)) => {
                    let texts = matches!(item.as_ref(), Type::Named("string" | "bytes"));
                    let one = known
                        .place
                        .map_or(root, Place::item)
                        .size()
                        .unwrap_or(Size::UNKNOWN);
                    let each = if texts {
                        1u64.saturating_add(once(one))
                    } else {
                        1
                    };
                    of_target.max.saturating_mul(each)
                }
                _ => once(of_target),
            }
        }
        "url" | "jsonpatch.escapeKey" => {
            result = Some(size(0));
            once(size(0))
        }
        "lowerAscii" | "upperAscii" | "substring" | "trim" => {
            result = Some(of_target);
            once(of_target)
        }
        "replace" => {
            let (from, to) = (size(0), size(1));
            let (count, kept) = if from.min == 0 {
                (of_target.max.saturating_add(1), of_target.max)
            } else if to.max <= from.min {
                (0, of_target.max)
            } else {
                (of_target.max.div_ceil(from.min), 0)
            };
            let most = count.saturating_mul(to.max).saturating_add(kept);
            result = Some(Size { min: 0, max: most });
            scaled(of_target.max, 2.0 * CHARACTER)
        }
        "split" => {
            result = Some(Size {
                min: 0,
                max: of_target.max,
            });
            scaled(of_target.max, 2.0 * CHARACTER)
        }
        "join" => {
            let item = target
                .and_then(|t| t.place)
                .map_or(root, Place::item)
                .size();
            let between = if args.is_empty() { 0 } else { size(0).max };
            let each = item.unwrap_or(Size::UNKNOWN).max.saturating_add(between);
            let total = of_target.max.saturating_mul(each);
            result = Some(Size { min: 0, max: total });
            scaled(total, 2.0 * CHARACTER)
        }
        "find" | "findAll" => {
            result = Some(Size {
                min: 0,
                max: of_target.max,
            });
            once(of_target.plus(Size::exactly(1))).saturating_mul(scaled(size(0).max, PATTERN))
        }
        "sets.contains" | "sets.intersects" => {
            size(0).max.saturating_mul(size(1).max).saturating_add(1)
        }
        "sets.equivalent" => size(0)
            .max
            .saturating_mul(size(1).max)
            .saturating_mul(2)
            .saturating_add(1),
        "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" => {
            once(size(0))
        }
        "ip" if target.is_none() => once(size(0)),
        "ip.isCanonical" => scaled(size(0).max, 2.0 * CHARACTER),
        "validate" => scaled(once(size(0)), 128.0 * PATTERN),
        _ => 1,
    };
    Known {
        ty,
        cost: sum.saturating_add(own),
        place,
        size: result,
        entries,
    }
}
