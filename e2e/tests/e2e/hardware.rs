//! Virtual hardware, as a guest sees it.

use crate::stories::hardware;
use crate::story;

#[test]
fn a_guest_finds_the_hardware_that_was_asked_for() -> anyhow::Result<()> {
    story("hardware", hardware::the_guest_finds_its_hardware)
}

#[test]
fn a_guest_reads_what_cloud_init_is_told() -> anyhow::Result<()> {
    story(
        "cloud-init",
        hardware::the_guest_reads_what_cloud_init_is_told,
    )
}

#[test]
fn a_kernel_comes_out_of_an_image() -> anyhow::Result<()> {
    story("kernel boot", hardware::a_kernel_out_of_an_image)
}
