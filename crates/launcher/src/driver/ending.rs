//! The last words about a domain.

use berth_hypervisor::StopReason;

use crate::protocol::{DomainPhase, reason};
use crate::reaper::Exit;

/// The last state of the domain, from all that is known about its end.
pub(super) fn last_words(
    why: StopReason,
    exit: Option<Exit>,
    asked: bool,
    grace_exceeded: Option<u64>,
    log: impl FnOnce() -> Option<String>,
) -> (DomainPhase, &'static str, String) {
    match (why, exit) {
        (StopReason::Shutdown, _) => (
            DomainPhase::Shutoff,
            reason::SHUTDOWN,
            "the guest powered off".to_owned(),
        ),
        (_, _) if asked => {
            let (reason, message) = match grace_exceeded {
                // Without a grace period there was nothing to exceed.
                Some(seconds) if seconds > 0 => (
                    reason::GRACE_EXCEEDED,
                    format!(
                        "the guest did not power off within {seconds} s of being asked (ACPI), and its power was cut"
                    ),
                ),
                _ => (reason::DESTROYED, "the power was cut on request".to_owned()),
            };
            (DomainPhase::Shutoff, reason, message)
        }
        (StopReason::Destroyed, _) => (
            DomainPhase::Shutoff,
            reason::DESTROYED,
            "the power was cut, not by the launcher".to_owned(),
        ),
        (StopReason::Crashed, None | Some(Exit::Code(0))) => (
            DomainPhase::Crashed,
            reason::PANICKED,
            "the guest crashed".to_owned(),
        ),
        (_, Some(exit @ Exit::Signal(number))) => {
            let hint = if number == libc::SIGKILL {
                "; when nobody sent it, the kernel did, for want of memory"
            } else {
                ""
            };
            (
                DomainPhase::Crashed,
                reason::KILLED,
                format!("QEMU {exit}{hint}"),
            )
        }
        (_, exit) => {
            let exit =
                exit.map_or_else(|| "ended unexpectedly".to_owned(), |exit| exit.to_string());
            let log = log().map(|words| format!(": {words}")).unwrap_or_default();
            (
                DomainPhase::Crashed,
                reason::FAILED,
                format!("QEMU {exit}{log}"),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_words() {
        let log = || Some("no bits left".to_owned());
        let kill = Some(Exit::Signal(9));
        let cases = [
            (
                StopReason::Shutdown,
                Some(Exit::Code(0)),
                false,
                None,
                DomainPhase::Shutoff,
                reason::SHUTDOWN,
                "powered off",
            ),
            // It obeyed at the last moment, while its power was being cut.
            (
                StopReason::Shutdown,
                Some(Exit::Code(0)),
                true,
                Some(3),
                DomainPhase::Shutoff,
                reason::SHUTDOWN,
                "powered off",
            ),
            (
                StopReason::Destroyed,
                Some(Exit::Signal(15)),
                true,
                None,
                DomainPhase::Shutoff,
                reason::DESTROYED,
                "on request",
            ),
            (
                StopReason::Destroyed,
                kill,
                true,
                Some(3),
                DomainPhase::Shutoff,
                reason::GRACE_EXCEEDED,
                "within 3 s",
            ),
            (
                StopReason::Destroyed,
                kill,
                true,
                Some(0),
                DomainPhase::Shutoff,
                reason::DESTROYED,
                "on request",
            ),
            (
                StopReason::Crashed,
                kill,
                true,
                None,
                DomainPhase::Shutoff,
                reason::DESTROYED,
                "on request",
            ),
            (
                StopReason::Destroyed,
                None,
                false,
                None,
                DomainPhase::Shutoff,
                reason::DESTROYED,
                "not by the launcher",
            ),
            (
                StopReason::Crashed,
                Some(Exit::Code(0)),
                false,
                None,
                DomainPhase::Crashed,
                reason::PANICKED,
                "guest crashed",
            ),
            (
                StopReason::Failed,
                kill,
                false,
                None,
                DomainPhase::Crashed,
                reason::KILLED,
                "signal 9 (SIGKILL)",
            ),
            (
                StopReason::Crashed,
                Some(Exit::Signal(6)),
                false,
                None,
                DomainPhase::Crashed,
                reason::KILLED,
                "SIGABRT",
            ),
            (
                StopReason::Failed,
                Some(Exit::Code(1)),
                false,
                None,
                DomainPhase::Crashed,
                reason::FAILED,
                "exit code 1: no bits left",
            ),
            (
                StopReason::Unknown,
                None,
                false,
                None,
                DomainPhase::Crashed,
                reason::FAILED,
                "ended unexpectedly",
            ),
        ];
        for (why, exit, asked, exceeded, phase, word, part) in cases {
            let (is_phase, is_word, message) = last_words(why, exit, asked, exceeded, log);
            assert_eq!(
                (is_phase, is_word),
                (phase, word),
                "{why:?} {exit:?}: {message}"
            );
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
    }
}
