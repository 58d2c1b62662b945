//! What cannot work is told where the user looks.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;

use anyhow::ensure;
use berth_e2e::{REGISTRY, Target, manifest, wait_for};

use super::images::{archive, wait_for_event};
use super::{MEMORY, SOON, on_node};

/// An image that the registry, which runs already, does not have.
pub(crate) fn a_missing_image(target: &dyn Target) -> anyhow::Result<()> {
    let image = format!("{REGISTRY}/no/such:thing");
    let lost = on_node(&manifest("lost", &image, "64Mi"), target.first_node());
    target.apply(&lost)?;
    target.wait_condition("lost", "Synchronized", &image, SOON)?;
    let reason = target.vmi(
        "lost",
        ".status.conditions[?(@.type=='Synchronized')].reason",
    )?;
    ensure!(
        reason == "ErrImagePull" || reason == "ImagePullBackOff",
        "{reason}"
    );
    wait_for_event(target, "lost", &image)?;
    target.delete("lost", SOON)
}

/// Nothing on the disk that firmware could boot.
pub(crate) fn an_image_that_cannot_boot(target: &dyn Target) -> anyhow::Result<()> {
    let mut disk = tempfile::NamedTempFile::new()?;
    disk.write_all(&vec![0x55; 4 << 20])?;
    // Files of an image are read by the launcher's own user.
    std::fs::set_permissions(disk.path(), PermissionsExt::from_mode(0o644))?;
    let directory = tempfile::tempdir()?;
    let tar = archive(
        directory.path(),
        "oci-archive",
        &[("disk/blank.img", disk.path())],
    )?;
    target.import("oci-archive", &tar, "localhost/blank:1")?;
    target.apply(&manifest("blank", "localhost/blank:1", "64Mi"))?;
    target.wait_phase("blank", "Running", SOON)?;
    wait_for("a warning about the disk", SOON, || {
        let events = target
            .kubectl(&["get", "events", "--field-selector", "type=Warning"])?
            .ok()?;
        ensure!(
            events.contains("NotBootable") && events.contains("root"),
            "{events}"
        );
        Ok(())
    })?;
    target.delete("blank", SOON * 2)
}

/// More than any node has.
pub(crate) fn too_large(target: &dyn Target) -> anyhow::Result<()> {
    target.apply(&manifest("giant", target.image(), "4000Gi"))?;
    target.wait_condition("giant", "PodScheduled", "Insufficient memory", SOON)?;
    ensure!(target.vmi("giant", ".status.phase")? == "Scheduling");
    target.delete("giant", SOON)?;
    // One that fits is not held up.
    target.apply(&manifest("small", target.image(), MEMORY).replace(
        "terminationGracePeriodSeconds: 30",
        "terminationGracePeriodSeconds: 1",
    ))?;
    target.wait_phase("small", "Running", SOON)?;
    target.delete("small", SOON)
}
