//! Quantities as Kubernetes writes them (`100m`, `2Gi`, `1e3`): exact sums, comparison and the canonical text.

use std::fmt;

/// Billionths; enough for every suffix.
const ONE: i128 = 1_000_000_000;

/// An amount. Compared by value; shown in the family of suffixes that it was written in.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Quantity {
    nano: i128,
    binary: bool,
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Quantity {
    /// So many whole things.
    pub(crate) fn count(n: usize) -> Self {
        Self {
            nano: i128::try_from(n).unwrap_or(i128::MAX / ONE) * ONE,
            binary: false,
        }
    }

    /// Reads a quantity; none if the text is not one (or is absurdly large).
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (negative, digits) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = digits
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(digits.len());
        let (number, suffix) = digits.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 30
        {
            return None;
        }
        let (multiplier, exponent, binary) = scale(suffix)?;
        let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
        // mantissa × multiplier × 10^(exponent − digits of the fraction), in billionths; a rest is rounded up.
        let power = exponent + 9 - i32::try_from(fraction.len()).ok()?;
        let scaled = mantissa.checked_mul(multiplier)?;
        let factor = 10_i128.checked_pow(power.unsigned_abs());
        let nano = if power >= 0 {
            if scaled == 0 {
                0
            } else {
                scaled.checked_mul(factor?)?
            }
        } else {
            factor.map_or(i128::from(scaled > 0), |factor| {
                scaled / factor + i128::from(scaled % factor != 0)
            })
        };
        Some(Self {
            nano: if negative { -nano } else { nano },
            binary,
        })
    }

    /// Of a JSON value: quantities may be written as numbers.
    pub(crate) fn of(value: &serde_json::Value) -> Option<Self> {
        match value {
            serde_json::Value::String(text) => Self::parse(text),
            serde_json::Value::Number(number) => Self::parse(&number.to_string()),
            _ => None,
        }
    }

    pub(crate) fn add(self, other: Self) -> Self {
        Self {
            nano: self.nano.saturating_add(other.nano),
            binary: if self.nano == 0 {
                other.binary
            } else {
                self.binary
            },
        }
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            nano: self.nano.saturating_sub(other.nano),
            ..self
        }
    }

    pub(crate) fn larger(self, other: Self) -> Self {
        if other.nano > self.nano { other } else { self }
    }

    pub(crate) fn exceeds(self, other: Self) -> bool {
        self.nano > other.nano
    }

    pub(crate) fn is_negative(self) -> bool {
        self.nano < 0
    }

    pub(crate) fn is_positive(self) -> bool {
        self.nano > 0
    }

    pub(crate) fn is_whole(self) -> bool {
        self.nano % ONE == 0
    }
}

/// Multiplier, power of ten, and whether the suffix is of the binary family.
fn scale(suffix: &str) -> Option<(i128, i32, bool)> {
    let binary = |power: u32| Some((1_i128 << (10 * power), 0, true));
    let decimal = |power: i32| Some((1, power, false));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        other => {
            let power: i32 = other.strip_prefix(['e', 'E'])?.parse().ok()?;
            (-30..=30).contains(&power).then_some((1, power, false))
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        // Small amounts have no binary suffix to go with.
        if self.binary && self.nano.abs() >= 1024 * ONE {
            let mut value = self.nano / ONE + i128::from(self.nano % ONE > 0);
            let mut suffixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter();
            let mut suffix = suffixes.next();
            while value % 1024 == 0
                && let Some(next) = suffixes.next()
            {
                value /= 1024;
                suffix = Some(next);
            }
            return write!(f, "{value}{}", suffix.unwrap_or(&""));
        }
        let mut value = self.nano;
        let mut suffixes = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"].iter();
        let mut suffix = suffixes.next();
        while value % 1000 == 0
            && let Some(next) = suffixes.next()
        {
            value /= 1000;
            suffix = Some(next);
        }
        write!(f, "{value}{}", suffix.unwrap_or(&""))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> String {
        Quantity::parse(text).unwrap().to_string()
    }

    #[test]
    fn canonical_texts() {
        for (given, canonical) in [
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1", "1"),
            ("1000", "1k"),
            ("1500m", "1500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("512", "512"),
            ("0", "0"),
            ("1e3", "1k"),
            ("1E", "1E"),
            ("-5", "-5"),
            (".5", "500m"),
            ("100Ki", "100Ki"),
        ] {
            assert_eq!(shown(given), canonical, "{given}");
        }
        for bad in ["", "x", "1x", "1.2.3", "-", "Ki", "1 ", "1e", "1e999"] {
            assert!(Quantity::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn sums() {
        let half = Quantity::parse("500m").unwrap();
        assert_eq!(half.add(half).to_string(), "1");
        let gi = Quantity::default().add(Quantity::parse("1Gi").unwrap());
        assert_eq!(gi.add(Quantity::parse("1Gi").unwrap()).to_string(), "2Gi");
        assert!(gi.exceeds(Quantity::parse("1G").unwrap()));
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = Quantity::parse(&text).map(|q| q.to_string());
        }

        #[test]
        fn the_canonical_text_means_the_same(n in 0_u64..1 << 50, suffix in prop::sample::select(vec!["", "m", "k", "M", "Ki", "Mi", "Gi"])) {
            let quantity = Quantity::parse(&format!("{n}{suffix}")).unwrap();
            prop_assert_eq!(Quantity::parse(&quantity.to_string()), Some(quantity));
        }
    }
}
