//! Guests with an agent, and what can be done to a guest that runs.

use crate::stories::{guests, probes, texts};
use crate::story;

#[test]
fn what_an_agent_tells_is_shown() -> anyhow::Result<()> {
    story("guest agent", guests::an_agent_tells)
}

#[test]
fn a_guest_is_restarted_inside_its_machine() -> anyhow::Result<()> {
    story("soft reboot and reset", guests::restarted_inside)
}

#[test]
fn a_machine_is_started_paused_and_ended_at_once() -> anyhow::Result<()> {
    story(
        "paused start, forced end",
        guests::started_paused_and_ended_at_once,
    )
}

#[test]
fn a_guest_is_started_by_uefi() -> anyhow::Result<()> {
    story("UEFI", guests::by_uefi)
}

#[test]
fn a_machine_is_created_by_command() -> anyhow::Result<()> {
    story("create vm", guests::created_by_command)
}

#[test]
fn a_whole_debian_is_told_by_cloud_init() -> anyhow::Result<()> {
    story("Debian", guests::a_whole_debian)
}

#[test]
fn a_guest_is_ready_when_its_probe_says_so() -> anyhow::Result<()> {
    story("readiness", probes::ready_when_it_says_so)
}

#[test]
fn a_guest_that_is_found_dead_is_ended() -> anyhow::Result<()> {
    story("liveness", probes::ended_when_dead)
}

#[test]
fn texts_of_the_namespace_are_disks() -> anyhow::Result<()> {
    story("texts", texts::texts_are_disks)
}
