//! Which request is taken when: a pure decision, one table.

use crate::protocol::Call;

/// Where the launcher is in the life of its domain; the state machine is drawn in the crate's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No domain yet, or none any more after a failed creation.
    Idle,
    /// QEMU is being started.
    Creating,
    /// The domain runs or is paused.
    Alive,
    /// The power button was pressed and the grace period runs.
    ShuttingDown,
    /// The power is being cut.
    Destroying,
}

/// A call, reduced to what the decision depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Sync of the machine that this launcher was started for.
    Sync,
    /// Sync of another machine.
    SyncOther,
    /// Shutdown with a grace period.
    Shutdown,
    /// Kill, or shutdown without grace.
    Kill,
    /// Pause.
    Pause,
    /// Resume.
    Resume,
    /// Something of a guest that runs.
    Ask,
    /// Status.
    Status,
}

impl Asked {
    /// What the call asks of the launcher of the machine with this UID.
    pub(crate) fn of(call: &Call, uid: &str) -> Self {
        match call {
            Call::Sync(request) if request.vmi.metadata.uid.as_deref() == Some(uid) => Self::Sync,
            Call::Sync(_) => Self::SyncOther,
            Call::Shutdown { grace_seconds: 0 } | Call::Kill => Self::Kill,
            Call::Shutdown { .. } => Self::Shutdown,
            Call::Pause => Self::Pause,
            Call::Resume => Self::Resume,
            Call::Ask(_) => Self::Ask,
            Call::Status => Self::Status,
        }
    }
}

/// What to do with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Answer with the present state.
    Answer,
    /// Start QEMU and answer when that is done.
    Create,
    /// Answer together with the creation that is under way.
    Join,
    /// Press the power button. When the grace period runs already, the earlier end counts.
    PowerOff,
    /// Once the creation is done, press the power button.
    PowerOffAfterCreation,
    /// Cut the power.
    Destroy,
    /// Once the creation is done, cut the power.
    DestroyAfterCreation,
    /// Stop the guest between two instructions.
    Suspend,
    /// Let it go on.
    Resume,
    /// Find it out, beside everything else.
    Ask,
    /// There is nothing to stop: the launcher ends.
    End,
    /// Say no, with this reason.
    Refuse(&'static str),
}

/// Decides.
pub(crate) fn admit(phase: Phase, asked: Asked) -> Verdict {
    match (asked, phase) {
        (Asked::Status, _) => Verdict::Answer,
        (Asked::SyncOther, _) => {
            Verdict::Refuse("this launcher was started for another virtual machine")
        }
        (Asked::Sync, Phase::Idle) => Verdict::Create,
        (Asked::Sync, Phase::Creating) => Verdict::Join,
        (Asked::Sync, Phase::Alive) => Verdict::Answer,
        (Asked::Sync, Phase::ShuttingDown | Phase::Destroying) => {
            Verdict::Refuse("the virtual machine is being shut down")
        }
        (Asked::Pause, Phase::Alive) => Verdict::Suspend,
        (Asked::Resume, Phase::Alive) => Verdict::Resume,
        (Asked::Ask, Phase::Alive) => Verdict::Ask,
        (Asked::Pause | Asked::Resume | Asked::Ask, Phase::Idle | Phase::Creating) => {
            Verdict::Refuse("the guest does not run yet")
        }
        (Asked::Pause | Asked::Resume | Asked::Ask, Phase::ShuttingDown | Phase::Destroying) => {
            Verdict::Refuse("the virtual machine is being shut down")
        }
        (Asked::Shutdown | Asked::Kill, Phase::Idle) => Verdict::End,
        (Asked::Shutdown, Phase::Creating) => Verdict::PowerOffAfterCreation,
        (Asked::Shutdown, Phase::Alive | Phase::ShuttingDown) => Verdict::PowerOff,
        (Asked::Kill, Phase::Creating) => Verdict::DestroyAfterCreation,
        (Asked::Kill, Phase::Alive | Phase::ShuttingDown) => Verdict::Destroy,
        (Asked::Shutdown | Asked::Kill, Phase::Destroying) => Verdict::Answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table() {
        use Verdict::{
            Answer, Create, Destroy, DestroyAfterCreation, End, Join, PowerOff,
            PowerOffAfterCreation, Resume, Suspend,
        };
        let refuse_early = Verdict::Refuse("the guest does not run yet");
        let refuse_other = Verdict::Refuse("this launcher was started for another virtual machine");
        let refuse_late = Verdict::Refuse("the virtual machine is being shut down");
        let phases = [
            Phase::Idle,
            Phase::Creating,
            Phase::Alive,
            Phase::ShuttingDown,
            Phase::Destroying,
        ];
        for (asked, verdicts) in [
            (
                Asked::Sync,
                [Create, Join, Answer, refuse_late, refuse_late],
            ),
            (Asked::SyncOther, [refuse_other; 5]),
            (
                Asked::Shutdown,
                [End, PowerOffAfterCreation, PowerOff, PowerOff, Answer],
            ),
            (
                Asked::Kill,
                [End, DestroyAfterCreation, Destroy, Destroy, Answer],
            ),
            (
                Asked::Pause,
                [
                    refuse_early,
                    refuse_early,
                    Suspend,
                    refuse_late,
                    refuse_late,
                ],
            ),
            (
                Asked::Resume,
                [refuse_early, refuse_early, Resume, refuse_late, refuse_late],
            ),
            (
                Asked::Ask,
                [
                    refuse_early,
                    refuse_early,
                    Verdict::Ask,
                    refuse_late,
                    refuse_late,
                ],
            ),
            (Asked::Status, [Answer; 5]),
        ] {
            for (phase, verdict) in phases.into_iter().zip(verdicts) {
                assert_eq!(admit(phase, asked), verdict, "{asked:?} while {phase:?}");
            }
        }
    }

    #[test]
    fn no_grace_is_a_kill() {
        assert_eq!(
            Asked::of(&Call::Shutdown { grace_seconds: 0 }, "u"),
            Asked::Kill
        );
        assert_eq!(
            Asked::of(&Call::Shutdown { grace_seconds: 1 }, "u"),
            Asked::Shutdown
        );
    }
}
