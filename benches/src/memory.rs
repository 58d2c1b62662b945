//! Memory: of `berth up` with nothing to do, and of what runs beside a QEMU.
//!
//! Private memory (`Private_Clean` and `Private_Dirty` of smaps_rollup) is what one more VM costs; what is shared with
//! other processes (programs, libraries) is there once.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use berth_e2e::{Machine, Target as _, manifest};

use crate::figures::Figures;
use crate::peer::Peer;
use crate::{IMAGE, MEMORY};

const VMS: usize = 3;
/// What KubeVirt 1.9 reserves for the same part: launcher-monitor 25, launcher 100, virtlogd 25, virtqemud 40 MiB
/// (pkg/hypervisor/kvm/hypervisorbackend.go).
const KUBEVIRT_RESERVES: f64 = 190.0;

/// Fields of smaps_rollup, in MiB.
fn smaps(pid: &str) -> anyhow::Result<BTreeMap<String, f64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("process {pid}"))?;
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let kib: f64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some((name.to_owned(), kib / 1024.0))
    };
    Ok(text.lines().filter_map(field).collect())
}

fn private(pid: &str) -> anyhow::Result<f64> {
    let fields = smaps(pid)?;
    Ok(["Private_Clean", "Private_Dirty"]
        .iter()
        .filter_map(|name| fields.get(*name))
        .sum())
}

/// Resident memory, in MiB.
pub(crate) fn rss(pid: &str) -> anyhow::Result<f64> {
    Ok(smaps(pid)?.get("Rss").copied().unwrap_or(f64::NAN))
}

/// `berth up` after its start, no VM yet.
pub(crate) fn idle(machine: &Machine) -> anyhow::Result<()> {
    println!("\n== memory of `berth up`, no VM");
    let pid = machine.berth_pid().to_string();
    let mut figures = Figures::default();
    // It settles while the first watches are set up.
    for _ in 0..5 {
        std::thread::sleep(Duration::from_secs(1));
        figures.add(rss(&pid)?);
    }
    println!(
        "RSS                               {}   goal: below 64 MiB",
        figures.show("MiB")
    );
    println!(
        "private                           {:>8.1} MiB",
        private(&pid)?
    );
    Ok(())
}

/// Launcher and libvirtd of a few VMs, beside a libvirtd with the same domain and nothing else.
pub(crate) fn of_a_vm(machine: &Machine) -> anyhow::Result<()> {
    println!("\n== private memory beside QEMU, {VMS} VMs at once");
    for index in 0..VMS {
        machine.apply(&manifest(&format!("vm-{index}"), IMAGE, MEMORY))?;
    }
    for index in 0..VMS {
        let name = format!("vm-{index}");
        machine.wait_phase(&name, "Running", Duration::from_secs(60))?;
        // Past the boot: DHCP was spoken, the console has passed.
        machine.ping(&machine.address(&name)?, Duration::from_secs(120))?;
    }
    let mut kinds: BTreeMap<&str, Figures> = BTreeMap::new();
    for line in &machine.census()?.processes {
        let (pid, command) = line.split_once(' ').unwrap_or((line, ""));
        let kind = if command.contains("qemu-system") {
            "qemu (the guest's memory with it)"
        } else if command.contains("libvirtd") || command.contains("virtqemud") {
            "libvirtd"
        } else if command.contains("launcher") {
            "launcher"
        } else {
            "other"
        };
        kinds.entry(kind).or_default().add(private(pid)?);
    }
    for (kind, figures) in &kinds {
        println!("{kind:<33} {}", figures.show("MiB"));
    }
    let beside: f64 = kinds
        .iter()
        .filter(|(kind, _)| !kind.starts_with("qemu"))
        .map(|(_, figures)| figures.median())
        .sum();
    let libvirtd = Peer::warm().context("plain libvirt")?.running()?;
    let plain = private(&libvirtd.pid().to_string())?;
    println!("beside QEMU, a VM                 {beside:>8.1} MiB   goal: below 32 MiB");
    println!(
        "plain libvirtd, same domain       {plain:>8.1} MiB   ratio {:.2}",
        beside / plain
    );
    println!(
        "KubeVirt 1.9 reserves for it      {KUBEVIRT_RESERVES:>8.1} MiB   ratio {:.2}",
        beside / KUBEVIRT_RESERVES
    );
    let pid = machine.berth_pid().to_string();
    println!(
        "berth up with {VMS} VMs, RSS          {:>8.1} MiB",
        smaps(&pid)?.get("Rss").copied().unwrap_or(f64::NAN)
    );
    for index in 0..VMS {
        machine.delete(&format!("vm-{index}"), Duration::from_secs(60))?;
    }
    Ok(())
}
