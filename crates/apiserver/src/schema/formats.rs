//! String formats that a schema may name. An unknown format allows everything, as upstream has it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::jiff::civil::Date;

/// Whether `text` is of `format`.
pub(super) fn valid(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => date_time(text),
        "date" => text.len() == 10 && text.parse::<Date>().is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => mac(text),
        "uuid" => uuid(text, None),
        "uuid3" => uuid(text, Some('3')),
        "uuid4" => uuid(text, Some('4')),
        "uuid5" => uuid(text, Some('5')),
        "byte" => STANDARD.decode(text).is_ok(),
        "email" => text
            .split_once('@')
            .is_some_and(|(user, host)| !user.is_empty() && hostname(host)),
        "hostname" => hostname(text),
        "uri" => {
            text.starts_with('/')
                || text
                    .parse::<http::Uri>()
                    .is_ok_and(|u| u.scheme().is_some())
        }
        "duration" => duration(text),
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "hexcolor" => {
            text.strip_prefix('#')
                .unwrap_or(text)
                .len()
                .is_multiple_of(3)
                && (3..=7).contains(&text.len())
                && text
                    .strip_prefix('#')
                    .unwrap_or(text)
                    .bytes()
                    .all(|b| b.is_ascii_hexdigit())
        }
        _ => true,
    }
}

/// RFC 3339; the seconds and the zone may not be left out.
fn date_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 20
        && matches!(bytes[10], b'T' | b't' | b' ')
        && text.parse::<k8s_openapi::jiff::Timestamp>().is_ok()
}

fn cidr(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else {
        return false;
    };
    let Ok(prefix) = prefix.parse::<u8>() else {
        return false;
    };
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => prefix <= 32,
        Ok(IpAddr::V6(_)) => prefix <= 128,
        Err(_) => false,
    }
}

fn mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    parts.len() == 6
        && parts
            .iter()
            .all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Dashes are optional, as in upstream's pattern.
fn uuid(text: &str, version: Option<char>) -> bool {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let dashes = text.len() - digits.len();
    digits.len() == 32
        && dashes <= 4
        && digits.bytes().all(|b| b.is_ascii_hexdigit())
        && version.is_none_or(|v| digits.chars().nth(12) == Some(v))
}

fn hostname(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

/// Go durations such as `1h30m`, `-1.5s`, `0`.
fn duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let figures = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        if rest[..figures].parse::<f64>().is_err() {
            return false;
        }
        rest = &rest[figures..];
        let Some(unit) = ["ns", "us", "µs", "ms", "s", "m", "h", "d", "w"]
            .iter()
            .find(|u| {
                rest.strip_prefix(**u).is_some_and(|after| {
                    after.is_empty() || after.starts_with(|c: char| c.is_ascii_digit())
                })
            })
        else {
            return false;
        };
        rest = &rest[unit.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_accept_and_refuse() {
        let good = [
            ("date-time", "2026-11-24T03:30:00Z"),
            ("date-time", "2026-11-24T03:30:00.5+01:00"),
            ("date", "2026-02-28"),
            ("ipv4", "10.0.0.1"),
            ("ipv6", "fe80::1"),
            ("cidr", "10.0.0.0/8"),
            ("mac", "02:00:00:00:00:01"),
            ("uuid", "0a3f9c1e-5f0f-4b0e-9a5e-000000000001"),
            ("byte", "aGk="),
            ("hostname", "a.example"),
            ("duration", "1h30m"),
            ("duration", "250ms"),
            ("uri", "https://a.example/x"),
            ("whatever", "anything"),
        ];
        for (format, text) in good {
            assert!(valid(format, text), "{format} {text}");
        }
        let bad = [
            ("date-time", "2026-11-24"),
            ("date-time", "yesterday"),
            ("date", "2026-02-30"),
            ("ipv4", "10.0.0.256"),
            ("cidr", "10.0.0.0/33"),
            ("mac", "02:00:00:00:00"),
            ("uuid", "x"),
            ("byte", "*"),
            ("hostname", "-a"),
            ("duration", "1x"),
            ("duration", ""),
        ];
        for (format, text) in bad {
            assert!(!valid(format, text), "{format} {text}");
        }
    }
}
