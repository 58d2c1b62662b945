//! Times as people read them in tables: `5m30s`, `3d`, `2y40d`.

use k8s_openapi::jiff::Timestamp;

/// The time since `then` (RFC 3339), `<unknown>` if there is none, `<invalid>` if it is no time.
pub(super) fn age(then: Option<&str>, now: Timestamp) -> String {
    match then {
        None | Some("") => "<unknown>".to_owned(),
        Some(text) => match text.parse::<Timestamp>() {
            Ok(then) => human(now.as_second() - then.as_second()),
            Err(_) => "<invalid>".to_owned(),
        },
    }
}

/// A duration with two or three significant digits, as kubectl rounds it.
pub(super) fn human(seconds: i64) -> String {
    // The clock of another machine may be a little ahead.
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let pair = |big: i64, big_unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{big}{big_unit}")
        } else {
            format!("{big}{big_unit}{small}{small_unit}")
        }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => pair(days, "d", hours % 24, "h"),
        () if days < 730 => format!("{days}d"),
        () if days < 2920 => pair(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_like_kubectl() {
        let (m, h, d) = (60, 3600, 86400);
        let cases = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (5 * m + 30, "5m30s"),
            (10 * m + 30, "10m"),
            (179 * m, "179m"),
            (3 * h, "3h"),
            (7 * h + 5 * m, "7h5m"),
            (9 * h + 5 * m, "9h"),
            (47 * h, "47h"),
            (2 * d, "2d"),
            (3 * d + 4 * h, "3d4h"),
            (9 * d + 4 * h, "9d"),
            (729 * d, "729d"),
            (740 * d, "2y10d"),
            (3000 * d, "8y"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn ages() {
        let now: Timestamp = "2026-11-24T03:00:00Z".parse().expect("a time");
        assert_eq!(age(Some("2026-11-24T02:59:00Z"), now), "60s");
        assert_eq!(age(None, now), "<unknown>");
        assert_eq!(age(Some("soon"), now), "<invalid>");
    }
}
