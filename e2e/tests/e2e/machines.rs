//! Virtual machines that are started and stopped.

use crate::stories::{machines, ways_in};
use crate::story;

#[test]
fn a_machine_is_started_restarted_and_stopped() -> anyhow::Result<()> {
    story("start, restart, stop", machines::started_restarted_stopped)
}

#[test]
fn a_machine_is_paused_and_goes_on() -> anyhow::Result<()> {
    story("pause", machines::paused)
}

#[test]
fn a_machine_runs_as_its_strategy_says() -> anyhow::Result<()> {
    story("run strategies", machines::strategies)
}

#[test]
fn ports_and_display_lead_to_the_guest() -> anyhow::Result<()> {
    story("ways in", ways_in::ports_and_display)
}

#[test]
fn what_is_wrong_with_a_machine_is_told() -> anyhow::Result<()> {
    story("mistaken machines", machines::what_is_wrong_is_told)
}

#[test]
fn a_hundred_rounds_of_start_and_stop_leave_nothing() -> anyhow::Result<()> {
    story("a hundred rounds", |target| {
        machines::rounds_of_start_and_stop(target, 100)
    })
}

#[test]
fn what_a_user_changes_is_never_lost() -> anyhow::Result<()> {
    story("changes", machines::no_change_is_lost)
}

#[test]
fn machines_are_placed_as_asked() -> anyhow::Result<()> {
    story("placement", machines::placed_as_asked)
}
