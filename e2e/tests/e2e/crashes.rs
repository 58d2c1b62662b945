//! `kill -9` of this and that.

use crate::stories::crashes;
use crate::story;

#[test]
fn a_guest_outlives_berth_up_and_is_found_again() -> anyhow::Result<()> {
    story("berth up killed", crashes::a_guest_outlives_berth)
}

#[test]
fn a_guest_that_ended_while_berth_was_away_is_told_right() -> anyhow::Result<()> {
    story(
        "ended meanwhile",
        crashes::an_end_while_berth_is_away_is_told,
    )
}

#[test]
fn a_killed_qemu_is_a_failed_vmi_with_the_reason() -> anyhow::Result<()> {
    story("QEMU killed", crashes::a_killed_qemu_is_told)
}

#[test]
fn a_killed_libvirt_is_started_again() -> anyhow::Result<()> {
    story("libvirt killed", crashes::a_killed_libvirt_is_started_again)
}

#[test]
fn each_part_is_killed_in_each_phase() -> anyhow::Result<()> {
    story("crash matrix", crashes::each_part_is_killed_in_each_phase)
}
