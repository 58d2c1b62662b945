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
        "email" => email(text),
        "hostname" => hostname(text),
        "uri" => {
            text.starts_with('/')
                || text.split_once(':').is_some_and(|(scheme, rest)| {
                    !rest.is_empty()
                        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                        && scheme
                            .bytes()
                            .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
                        && !rest.contains(|c: char| c.is_ascii_control() || c == ' ')
                })
        }
        "duration" => duration(text),
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "isbn" => isbn10(text) || isbn13(text),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "creditcard" => credit_card(text),
        "ssn" => ssn(text),
        "rgbcolor" => rgb(text),
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
        && matches!(bytes[10], b'T' | b't')
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

/// Six, eight or twenty bytes, in pairs of figures or in fours.
fn mac(text: &str) -> bool {
    let groups = |separator: char, width: usize| {
        let parts: Vec<&str> = text.split(separator).collect();
        matches!(parts.len() * width / 2, 6 | 8 | 20)
            && parts
                .iter()
                .all(|p| p.len() == width && p.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    groups(':', 2) || groups('-', 2) || groups('.', 4)
}

/// An address, or a name with the address in angle brackets.
fn email(text: &str) -> bool {
    let address = match text.strip_suffix('>').and_then(|t| t.rsplit_once('<')) {
        Some((_, address)) => address,
        None => text,
    };
    address.rsplit_once('@').is_some_and(|(user, host)| {
        let plain = |part: &str| {
            !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || c == '@')
        };
        plain(user) && plain(host) && host.split('.').all(|label| !label.is_empty())
    })
}

fn isbn10(text: &str) -> bool {
    let figures: Vec<char> = text.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    let value = |(i, c): (usize, &char)| match c {
        'X' if i == 9 => Some(10),
        c => c.to_digit(10),
    };
    let sum: Option<u32> = figures
        .iter()
        .enumerate()
        .map(|(i, c)| {
            value((i, c))
                .zip(u32::try_from(i + 1).ok())
                .map(|(v, n)| v * n)
        })
        .sum();
    figures.len() == 10 && sum.is_some_and(|sum| sum.is_multiple_of(11))
}

fn isbn13(text: &str) -> bool {
    let figures: Option<Vec<u32>> = text
        .chars()
        .filter(|c| !matches!(c, '-' | ' '))
        .map(|c| c.to_digit(10))
        .collect();
    figures.is_some_and(|figures| {
        let sum: u32 = figures
            .iter()
            .enumerate()
            .map(|(i, f)| if i % 2 == 0 { *f } else { 3 * f })
            .sum();
        figures.len() == 13 && sum.is_multiple_of(10)
    })
}

/// Thirteen to sixteen figures with the right check figure.
fn credit_card(text: &str) -> bool {
    let figures: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    let sum: u32 = figures
        .iter()
        .rev()
        .enumerate()
        .map(|(i, f)| match i % 2 {
            0 => *f,
            _ if *f > 4 => 2 * f - 9,
            _ => 2 * f,
        })
        .sum();
    (13..=16).contains(&figures.len()) && sum.is_multiple_of(10)
}

fn ssn(text: &str) -> bool {
    let figures: String = text.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    figures.len() == 9 && figures.bytes().all(|b| b.is_ascii_digit()) && text.len() <= 11
}

fn rgb(text: &str) -> bool {
    let Some(inner) = text.strip_prefix("rgb(").and_then(|t| t.strip_suffix(')')) else {
        return false;
    };
    let parts: Vec<&str> = inner.split(',').map(str::trim).collect();
    parts.len() == 3 && parts.iter().all(|p| p.parse::<u8>().is_ok())
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
    let labels: Vec<&str> = text.split('.').collect();
    let last = labels.last().copied().unwrap_or_default();
    // The last of several labels is a word.
    let ends_well = labels.len() == 1 || (last.len() >= 2 && last.chars().all(char::is_alphabetic));
    (1..=255).contains(&text.len())
        && ends_well
        && labels.iter().all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.chars().all(|c| c.is_alphanumeric() || c == '-')
        })
}

/// Go durations such as `1h30m`, `-1.5s`, `0`, and figures with words such as `1 day`.
fn duration(text: &str) -> bool {
    const UNITS: [&str; 34] = [
        "nanoseconds",
        "nanosecond",
        "nanos",
        "nano",
        "ns",
        "microseconds",
        "microsecond",
        "micros",
        "micro",
        "us",
        "µs",
        "milliseconds",
        "millisecond",
        "millis",
        "milli",
        "ms",
        "seconds",
        "second",
        "secs",
        "sec",
        "s",
        "minutes",
        "minute",
        "mins",
        "min",
        "m",
        "hours",
        "hour",
        "hrs",
        "hr",
        "h",
        "days",
        "day",
        "d",
    ];
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
        rest = rest[figures..].trim_start();
        let unit = rest
            .find(|c: char| !c.is_alphabetic())
            .unwrap_or(rest.len());
        let word = &rest[..unit];
        if !UNITS.contains(&word) && !matches!(word, "w" | "week" | "weeks") {
            return false;
        }
        rest = rest[unit..].trim_start();
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
