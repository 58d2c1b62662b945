//! Manifests of the first years: `registryDisk`, `volumeName`, old API versions.

use berth_e2e::{Need, missing, small_guest};

use crate::SOON;

#[test]
fn the_seed_manifest_is_converted_with_a_warning_and_runs() -> anyhow::Result<()> {
    if missing("seed manifest", &[Need::Root, Need::Qemu, Need::SmallGuest]) {
        return Ok(());
    }
    let machine = berth_e2e::Machine::start()?;
    machine.build_image("windows2012dc:latest", &small_guest())?;
    crate::stories::the_seed_manifest_runs(&machine, "windows2012dc:latest")?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

#[test]
fn the_examples_of_kubevirt_run_or_are_refused_by_field() -> anyhow::Result<()> {
    crate::story("examples", crate::stories::examples::of_upstream)
}
