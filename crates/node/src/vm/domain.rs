//! From the launcher's words to [`Guest`]: the one place that knows how domains are described.

use berth_image::format::DiskFormat;
use berth_launcher::protocol::{DomainPhase, DomainState, LauncherState, reason};

use super::status::{End, Guest};

/// What a launcher that is there says of its guest. A failed attempt to start it may be followed by another.
pub(super) fn guest_of(state: &LauncherState) -> Guest {
    let Some(domain) = &state.domain else {
        return Guest::Absent;
    };
    match domain.state {
        DomainPhase::Running | DomainPhase::ShuttingDown => Guest::Running,
        DomainPhase::Paused => Guest::Paused(domain.reason.clone()),
        DomainPhase::Shutoff if domain.reason == reason::DESTROYED => {
            Guest::Ended(End::Destroyed(words(domain)))
        }
        DomainPhase::Shutoff if domain.reason == reason::GRACE_EXCEEDED => {
            Guest::Ended(End::GraceExceeded(words(domain)))
        }
        DomainPhase::Shutoff => Guest::Ended(End::Shutdown),
        DomainPhase::Crashed => Guest::Ended(End::Crashed(words(domain))),
    }
}

/// How it ended, by the last words of a launcher that is gone. `deleted`: somebody wanted it gone.
pub(super) fn end_of(state: &LauncherState, deleted: bool) -> End {
    match (guest_of(state), &state.failure) {
        (Guest::Ended(end), _) => end,
        (Guest::Absent, _) if deleted => End::NeverStarted,
        (Guest::Absent, Some(failure)) => End::NotStarted(failure.clone()),
        // A launcher that is gone runs no guest, whatever it said last.
        (Guest::Absent | Guest::Running | Guest::Paused(_), _) => End::LauncherGone,
    }
}

fn words(domain: &DomainState) -> String {
    let words = if domain.message.is_empty() {
        &domain.reason
    } else {
        &domain.message
    };
    words.trim_end_matches('.').to_owned()
}

/// QEMU's name of a disk format.
pub(super) fn format_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(state: DomainPhase, why: &str) -> LauncherState {
        let domain = DomainState {
            state,
            reason: why.to_owned(),
            message: String::new(),
            qemu_pid: None,
            uuid: "u".to_owned(),
            machine: None,
        };
        LauncherState {
            domain: Some(domain),
            ..LauncherState::default()
        }
    }

    #[test]
    fn every_state_has_a_meaning() {
        let table = [
            (DomainPhase::Running, "booted", Guest::Running),
            (DomainPhase::ShuttingDown, "shutdown", Guest::Running),
            (
                DomainPhase::Paused,
                "ioerror",
                Guest::Paused("ioerror".to_owned()),
            ),
            (
                DomainPhase::Shutoff,
                "shutdown",
                Guest::Ended(End::Shutdown),
            ),
            (
                DomainPhase::Shutoff,
                "destroyed",
                Guest::Ended(End::Destroyed("destroyed".to_owned())),
            ),
            (
                DomainPhase::Shutoff,
                "graceexceeded",
                Guest::Ended(End::GraceExceeded("graceexceeded".to_owned())),
            ),
            (
                DomainPhase::Crashed,
                "killed",
                Guest::Ended(End::Crashed("killed".to_owned())),
            ),
        ];
        for (state, why, guest) in table {
            assert_eq!(guest_of(&said(state, why)), guest, "{state:?} {why}");
        }
        assert_eq!(guest_of(&LauncherState::default()), Guest::Absent);
    }

    #[test]
    fn the_last_words_of_a_launcher() {
        let failed = LauncherState {
            failure: Some("no such machine".to_owned()),
            ..LauncherState::default()
        };
        assert_eq!(
            end_of(&failed, false),
            End::NotStarted("no such machine".to_owned())
        );
        assert_eq!(end_of(&failed, true), End::NeverStarted);
        assert_eq!(end_of(&LauncherState::default(), false), End::LauncherGone);
        assert_eq!(
            end_of(&said(DomainPhase::Running, "booted"), true),
            End::LauncherGone
        );
        assert_eq!(
            end_of(&said(DomainPhase::Shutoff, "shutdown"), false),
            End::Shutdown
        );
    }
}
