//! Kubernetes quantities: a decimal number with a suffix, such as `1500m`, `512Mi`, `1.5G` or `12e6`.
//!
//! The grammar is that of the API server: an optional sign, digits with at most one dot, and then one of the
//! binary suffixes `Ki Mi Gi Ti Pi Ei`, the decimal ones `n u m k M G T P E`, or an exponent `e`/`E` with an
//! optional sign. Amounts here are never negative. What does not fit the unit exactly is rounded up, as
//! Kubernetes does, so that a reservation is never smaller than what was asked for.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Why a quantity cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// It does not follow the grammar.
    #[error(
        "quantity {0:?} must be a number with an optional suffix such as m, k, M, G, Ki, Mi or Gi"
    )]
    Syntax(String),
    /// It is below zero.
    #[error("quantity {0:?} must not be negative")]
    Negative(String),
    /// It does not fit 63 bits in its unit.
    #[error("quantity {0:?} is too large")]
    TooLarge(String),
}

/// Number of bytes, rounded up.
///
/// # Errors
/// Not a quantity, negative, or more than 2^63 - 1.
pub fn parse_bytes(quantity: &Quantity) -> Result<u64, QuantityError> {
    parse(&quantity.0, 0)
}

/// Number of thousandths, rounded up: `parse_millis("1.5")` is 1500. The unit of CPU time.
///
/// # Errors
/// Not a quantity, negative, or more than 2^63 - 1 thousandths.
pub fn parse_millis(quantity: &Quantity) -> Result<u64, QuantityError> {
    parse(&quantity.0, 3)
}

/// A quantity for a number of bytes: with the largest binary suffix that shows it exactly.
pub fn from_bytes(bytes: u64) -> Quantity {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut value = bytes;
    let mut unit = 0;
    while value != 0 && value.is_multiple_of(1024) && unit + 1 < UNITS.len() {
        value /= 1024;
        unit += 1;
    }
    Quantity(format!("{value}{}", UNITS[unit]))
}

/// A quantity for a number of thousandths: `1500m`, or `2` for 2000.
pub fn from_millis(millis: u64) -> Quantity {
    Quantity(if millis.is_multiple_of(1000) {
        (millis / 1000).to_string()
    } else {
        format!("{millis}m")
    })
}

/// The value times ten to the power `scale`, rounded up.
fn parse(text: &str, scale: i32) -> Result<u64, QuantityError> {
    let syntax = || QuantityError::Syntax(text.to_owned());
    let too_large = || QuantityError::TooLarge(text.to_owned());
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let number_end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(syntax());
    }
    let (binary, exponent) = unit(suffix).ok_or_else(syntax)?;

    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    if whole.is_empty() && fraction.is_empty() {
        return Ok(0);
    }
    if negative {
        return Err(QuantityError::Negative(text.to_owned()));
    }
    // mantissa × 2^binary × 10^exponent, the point taken out of the mantissa.
    let fraction_digits = i32::try_from(fraction.len()).map_err(|_| syntax())?;
    let exponent = exponent
        .saturating_add(scale)
        .saturating_sub(fraction_digits);
    let digits: String = [whole, fraction].concat();
    let digits = digits.trim_start_matches('0');
    // 30 digits keep the product with 2^60 out of u128 at most by a too large value or by what rounding absorbs.
    let (digits, exponent, cut) = if digits.len() > 20 {
        let dropped = digits.len() - 20;
        let lost = digits[20..].bytes().any(|b| b != b'0');
        (
            &digits[..20],
            exponent.saturating_add(i32::try_from(dropped).map_err(|_| syntax())?),
            lost,
        )
    } else {
        (digits, exponent, false)
    };
    let mut value: u128 = digits.parse().map_err(|_| syntax())?;
    value += u128::from(cut);
    // At most 67 + 60 bits.
    value = value
        .checked_shl(binary)
        .filter(|v| v >> binary == value)
        .ok_or_else(too_large)?;
    if exponent >= 0 {
        let factor = 10u128
            .checked_pow(exponent.unsigned_abs())
            .ok_or_else(too_large)?;
        value = value.checked_mul(factor).ok_or_else(too_large)?;
    } else {
        value = match 10u128.checked_pow(exponent.unsigned_abs()) {
            Some(divisor) => value.div_ceil(divisor),
            None => 1,
        };
    }
    u64::try_from(value)
        .ok()
        .filter(|v| i64::try_from(*v).is_ok())
        .ok_or_else(too_large)
}

/// Power of two and power of ten that a suffix stands for.
fn unit(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            (0, exponent.parse().ok()?)
        }
    })
}

/// Reading quantities that a manifest wrote as bare numbers: `cpu: 2` is an integer in YAML.
pub(crate) mod de {
    use std::collections::BTreeMap;

    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use serde::{Deserialize, Deserializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        Integer(i64),
        Float(f64),
    }

    impl From<Written> for Quantity {
        fn from(written: Written) -> Self {
            Self(match written {
                Written::Text(s) => s,
                Written::Integer(n) => n.to_string(),
                Written::Float(n) => n.to_string(),
            })
        }
    }

    pub(crate) fn option<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Quantity>, D::Error> {
        Ok(Option::<Written>::deserialize(d)?.map(Quantity::from))
    }

    pub(crate) fn map<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<BTreeMap<String, Quantity>, D::Error> {
        let written = Option::<BTreeMap<String, Written>>::deserialize(d)?.unwrap_or_default();
        Ok(written.into_iter().map(|(k, v)| (k, v.into())).collect())
    }
}

/// Schemas of quantities, which are integers or strings in Kubernetes.
pub(crate) mod schema {
    use schemars::{Schema, SchemaGenerator, json_schema};

    pub(crate) fn optional(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true, "anyOf": [{ "type": "integer" }, { "type": "string" }] })
    }

    pub(crate) fn map(g: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": optional(g) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(s: &str) -> Result<u64, QuantityError> {
        parse_bytes(&Quantity(s.to_owned()))
    }
    fn millis(s: &str) -> Result<u64, QuantityError> {
        parse_millis(&Quantity(s.to_owned()))
    }

    #[test]
    fn every_suffix() {
        for (text, value) in [
            ("0", 0),
            ("-0", 0),
            ("1", 1),
            ("+1", 1),
            ("1024M", 1_024_000_000),
            ("64Mi", 64 << 20),
            ("1Gi", 1 << 30),
            ("0.5Gi", 512 << 20),
            (".5Ki", 512),
            ("5.Ki", 5120),
            ("1e3", 1000),
            ("1E3", 1000),
            ("1E", 1_000_000_000_000_000_000),
            ("12e-1", 2),
            ("1m", 1),
            ("100n", 1),
            ("7Ei", 7 << 60),
            ("1e+6", 1_000_000),
            ("000000000000000000000000000000001", 1),
            ("9223372036854775807", i64::MAX as u64),
            (
                "0.000000000000000000000000000000000000000000000000000000001",
                1,
            ),
        ] {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
        assert_eq!(millis("100m"), Ok(100));
        assert_eq!(millis("1.5"), Ok(1500));
        assert_eq!(millis("2"), Ok(2000));
        assert_eq!(millis("1n"), Ok(1));
    }

    #[test]
    fn what_is_no_quantity() {
        for text in [
            "", " ", "Mi", ".", "1.2.3", "1 Mi", "1mi", "1KI", "1K", "0x10", "1e", "1e+", "e3",
            "--1", "1MiB", "ten", "１",
        ] {
            assert!(
                matches!(bytes(text), Err(QuantityError::Syntax(_))),
                "{text:?}: {:?}",
                bytes(text)
            );
        }
        assert!(matches!(bytes("-1"), Err(QuantityError::Negative(_))));
        for text in [
            "8Ei",
            "9223372036854775808",
            "1e30",
            "1e2147483647",
            "99999999999999999999999999999999999999999",
        ] {
            assert!(
                matches!(bytes(text), Err(QuantityError::TooLarge(_))),
                "{text}: {:?}",
                bytes(text)
            );
        }
    }

    proptest! {
        #[test]
        fn bytes_survive_a_round_trip(n in 0..=i64::MAX as u64) {
            prop_assert_eq!(parse_bytes(&from_bytes(n)), Ok(n));
        }

        #[test]
        fn whole_units_survive_a_round_trip(n in 0u64..1 << 20, shift in 0u32..5) {
            let n = n << (10 * shift);
            prop_assert_eq!(parse_bytes(&from_bytes(n)), Ok(n));
        }

        #[test]
        fn millis_survive_a_round_trip(n in 0..=i64::MAX as u64 / 1000) {
            prop_assert_eq!(parse_millis(&from_millis(n)), Ok(n));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-+]?[0-9.]{0,50}[a-zA-Z]{0,3}[-+]?[0-9]{0,12}") {
            let _ = bytes(&text);
            let _ = millis(&text);
        }

        #[test]
        fn the_decimal_point_only_shifts(n in 0u64..1_000_000_000) {
            let text = format!("{}.{:03}k", n / 1000, n % 1000);
            prop_assert_eq!(bytes(&text), Ok(n));
        }
    }
}
