//! Manifests of somebody who wants more than a virtual machine.

use anyhow::ensure;
use berth_e2e::{Target, manifest};
use serde_json::Value;

use super::{MEMORY, SOON};

/// No path of the host, no device, no word of libvirt or QEMU gets in; each is refused by its field.
pub(crate) fn a_hostile_manifest_gets_nothing(target: &dyn Target) -> anyhow::Result<()> {
    let good = manifest("hostile", target.image(), MEMORY);
    let image = format!("      image: {}\n", target.image());
    let source = format!("    containerDisk:\n{image}");
    let disk = "        disk:\n          bus: virtio\n";
    let cases: &[(&str, String, &str)] = &[
        (
            &source,
            "    hostDisk:\n      path: /etc/shadow\n      type: Disk\n".into(),
            "spec.volumes[0].hostDisk",
        ),
        (
            &source,
            "    hostPath:\n      path: /etc\n".into(),
            "spec.volumes[0].hostPath",
        ),
        (
            &image,
            format!("{image}      path: /disk/../../etc/shadow\n"),
            "spec.volumes[0].containerDisk.path",
        ),
        (
            &image,
            format!("{image}      path: /etc/shadow\n"),
            "spec.volumes[0].containerDisk.path",
        ),
        (
            disk,
            format!("{disk}        serial: \"a,file=/etc/shadow\"\n"),
            "spec.domain.devices.disks[0].serial",
        ),
        (
            disk,
            format!("{disk}        serial: \"a'/><hostdev/>\"\n"),
            "spec.domain.devices.disks[0].serial",
        ),
        (
            "      rng: {}\n",
            "      rng: {}\n      hostDevices:\n      - name: d\n        deviceName: vendor/d\n"
                .into(),
            "spec.domain.devices.hostDevices",
        ),
        (
            "      rng: {}\n",
            "      rng: {}\n      filesystems:\n      - name: root\n        virtiofs: {}\n".into(),
            "spec.domain.devices.filesystems",
        ),
        (
            "  domain:\n",
            "  hostname: \"a'/><x/>\"\n  domain:\n".into(),
            "spec.hostname",
        ),
        (
            "  domain:\n",
            "  serviceAccountName: admin\n  domain:\n".into(),
            "spec.serviceAccountName",
        ),
    ];
    for (from, to, field) in cases {
        ensure!(good.contains(from), "the case {to:?} replaces nothing");
        let refusal = target
            .kubectl_with(&["apply", "-f", "-"], &good.replacen(from, to, 1))?
            .err()?;
        ensure!(
            refusal.contains(field),
            "no {field:?} in the refusal of {to:?}: {refusal}"
        );
    }
    // What other programs read from annotations is a text like any other here.
    let marked = good.replacen(
        "  name: hostile\n",
        "  name: hostile\n  annotations:\n    hooks.kubevirt.io/hookSidecars: '[{\"image\": \"evil:1\"}]'\n",
        1,
    );
    target.apply(&marked)?;
    target.wait_phase("hostile", "Running", SOON)?;
    let pods = target.kubectl(&["get", "pods", "-o", "json"])?.ok()?;
    let pods: Value = serde_json::from_str(&pods)?;
    let spec = &pods["items"][0]["spec"];
    let list = |field: &str| spec[field].as_array().cloned().unwrap_or_default();
    for volume in list("volumes") {
        ensure!(volume["hostPath"].is_null(), "{volume}");
    }
    for container in list("containers").into_iter().chain(list("initContainers")) {
        ensure!(
            !container["image"].to_string().contains("evil"),
            "{container}"
        );
        ensure!(
            container["securityContext"]["privileged"] != true,
            "{container}"
        );
    }
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        ensure!(spec[field] != true, "{field}");
    }
    target
        .kubectl(&["delete", "vmi", "hostile", "--wait=false"])?
        .ok()
        .map(drop)
}
