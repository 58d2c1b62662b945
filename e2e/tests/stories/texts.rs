//! Texts of the namespace in guests: Secrets, ConfigMaps, what the pod says of itself; and whom guests ask for addresses.

use anyhow::ensure;
use berth_e2e::{Target, manifest, wait_for};

use super::{BOOT, MEMORY, SOON};

const TEXTS: &str = r##"apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {user: admin, password: to be hidden}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: open}
data: {settings.ini: "[a]\nb=c\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: first-words}
stringData: {userdata: "#cloud-config\n{}\n", networkData: "version: 2\n"}
"##;

/// Each text is a file of a disk in the guest.
pub(crate) fn texts_are_disks(target: &dyn Target) -> anyhow::Result<()> {
    let volumes = [
        ("a", "secret: {secretName: hidden, volumeLabel: hidden}"),
        ("b", "configMap: {name: open}"),
        (
            "c",
            "downwardAPI: {fields: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}",
        ),
        (
            "d",
            "cloudInitNoCloud: {secretRef: {name: first-words}, networkDataSecretRef: {name: first-words}}",
        ),
        ("e", "secret: {secretName: none, optional: true}"),
    ];
    let disks: String = volumes
        .iter()
        .map(|(name, _)| {
            format!("      - {{name: {name}, disk: {{bus: virtio}}, serial: text-{name}}}\n")
        })
        .collect();
    let dns =
        "  dnsPolicy: None\n  dnsConfig: {nameservers: [192.0.2.53], searches: [lab.example]}\n";
    let mut text = manifest("reader", target.image(), MEMORY)
        .replacen(
            "      interfaces:\n",
            &format!("{disks}      interfaces:\n"),
            1,
        )
        .replacen(
            "  name: reader\n",
            "  name: reader\n  labels: {colour: blue}\n",
            1,
        )
        .replacen("spec:\n", &format!("spec:\n{dns}"), 1);
    for (name, source) in volumes {
        text += &format!("  - name: {name}\n    {source}\n");
    }
    target.apply(&text)?;
    // It waits for what is not there, and says for what.
    wait_for("the missing secret is told", SOON * 2, || {
        let told = target
            .kubectl(&["get", "events", "-o", "jsonpath={.items[*].message}"])?
            .ok()?;
        ensure!(told.contains("hidden\" not found"), "{told}");
        Ok(())
    })?;
    target.kubectl_with(&["apply", "-f", "-"], TEXTS)?.ok()?;
    // A kubelet looks again after up to two minutes.
    target.wait_phase("reader", "Running", SOON * 5)?;
    let mut console = target.console("reader")?;
    console.log_in(BOOT)?;
    let mount = "for d in /sys/block/vd*; do s=$(cat $d/serial); case $s in text-*) mkdir -p /m/$s; \
                 mount -t vfat -o ro /dev/${d##*/} /m/$s;; esac; done; ls /m";
    let seen = console.shell(mount, SOON)?;
    ensure!(seen.contains("text-e"), "{seen}");
    for (command, wanted) in [
        (
            "cat /m/text-a/user; cat /m/text-a/password",
            "adminto be hidden",
        ),
        ("cat /m/text-b/settings.ini", "b=c"),
        ("cat /m/text-c/labels", "colour=\"blue\""),
        ("cat /m/text-d/user-data", "#cloud-config"),
        ("cat /m/text-d/network-config", "version: 2"),
        ("ls /m/text-e | wc -l", "0"),
        (
            "head -c 65536 $(grep text-a /proc/mounts | cut -d' ' -f1) | grep -q hidden && echo label'led'",
            "labelled",
        ),
        ("cat /etc/resolv.conf", "nameserver 192.0.2.53"),
        ("cat /etc/resolv.conf", "search lab.example"),
    ] {
        let seen = console.shell(command, SOON)?;
        ensure!(seen.contains(wanted), "{command}: {seen}");
    }
    target.delete("reader", SOON * 2)?;
    for text in ["secret/hidden", "configmap/open", "secret/first-words"] {
        target.kubectl(&["delete", text])?.ok()?;
    }
    Ok(())
}
