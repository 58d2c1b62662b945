//! Manifests of the first years: `registryDisk`, `volumeName`, old API versions.

use anyhow::ensure;
use berth_e2e::{Need, missing, repository, small_guest};

use crate::{BOOT, SOON};

#[test]
fn the_seed_manifest_is_converted_with_a_warning_and_runs() -> anyhow::Result<()> {
    if missing("seed manifest", &[Need::Root, Need::Qemu, Need::SmallGuest]) {
        return Ok(());
    }
    let machine = berth_e2e::Machine::start()?;
    machine.build_image("windows2012dc:latest", &small_guest())?;
    let seed = std::fs::read_to_string(repository().join("examples/vmi-seed.yaml"))?;
    let applied = machine.kubectl_with(&["apply", "-f", "-"], &seed)?;
    ensure!(applied.code == 0, "{applied}");
    for word in ["Warning:", "registryDisk", "containerDisk", "volumeName"] {
        ensure!(applied.stderr.contains(word), "no {word:?} in: {applied}");
    }
    machine.wait_phase("windows2012dc", "Running", SOON)?;
    ensure!(
        machine.vmi("windows2012dc", ".spec.volumes[0].containerDisk.image")?
            == "windows2012dc:latest"
    );
    ensure!(
        machine
            .vmi("windows2012dc", ".spec.volumes[0].registryDisk")?
            .is_empty()
    );
    ensure!(
        machine.vmi("windows2012dc", ".spec.domain.devices.disks[0].name")?
            == machine.vmi("windows2012dc", ".spec.volumes[0].name")?
    );
    machine.console("windows2012dc")?.log_in(BOOT)?;
    // Applied again, it is the same object and nothing to do.
    machine.kubectl_with(&["apply", "-f", "-"], &seed)?.ok()?;
    machine.delete("windows2012dc", SOON * 2)?;
    let newer = seed.replace("v1alpha2", "v1alpha3");
    machine.kubectl_with(&["apply", "-f", "-"], &newer)?.ok()?;
    machine.wait_phase("windows2012dc", "Running", SOON)?;
    machine.delete("windows2012dc", SOON * 2)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}
