//! `make bench`: what berth costs, measured beside plain libvirt in the same run.
//!
//! Figures are printed with their spread; nothing here passes or fails. Give the name of a section to run only that one.
//! The section `cluster` needs a Kubernetes and runs only by name (`make bench-cluster`).

mod apiserver;
mod cluster;
mod figures;
mod import;
mod machines;
mod memory;
mod peer;
mod start;

use anyhow::Context as _;
use berth_e2e::{Machine, MachineOptions, Need, missing, small_guest};

/// The guest's memory.
const MEMORY: &str = "160Mi";
/// No QEMU: what is measured is all the rest.
const SETTINGS: &str = "apiVersion: berth.kubevirt.io/v1
kind: Berth
metadata: {name: berth}
spec: {configuration: {developerConfiguration: {featureGates: [FakeHypervisor]}}}
";
/// The small guest as a container disk.
const IMAGE: &str = "berth/small-guest:latest";

fn main() -> anyhow::Result<()> {
    if missing("bench", &[Need::Root, Need::Qemu, Need::SmallGuest]) {
        return Ok(());
    }
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        anyhow::bail!("another TLS provider is installed");
    }
    let only = std::env::args().nth(1);
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    println!(
        "machine: {cores} cores, {}",
        model.trim_start_matches([' ', '\t', ':'])
    );
    println!("berth:   {}", berth_e2e::berth_binary().display());

    if only.as_deref() == Some("cluster") {
        return cluster::run().context("cluster");
    }
    // How costs grow up to 100,000 objects takes minutes; who asks for the section alone gets the short form.
    let large = matches!(only.as_deref(), None | Some("apiserver-large"));
    if large || wanted("apiserver") {
        apiserver::run(large).context("API server")?;
        if only.is_some() {
            return Ok(());
        }
    }
    if wanted("import") {
        import::run_all().context("import")?;
        if only.is_some() {
            return Ok(());
        }
    }
    if wanted("machines") {
        machines::run().context("machines")?;
        if only.is_some() {
            return Ok(());
        }
    }
    let arguments = vec!["--log-format".to_owned(), "json".to_owned()];
    let machine = Machine::start_with(MachineOptions {
        arguments,
        ..MachineOptions::default()
    })?;
    machine.build_image(IMAGE, &small_guest())?;
    if wanted("memory") {
        memory::idle(&machine).context("memory of berth up")?;
    }
    if wanted("start") {
        start::run(&machine).context("start")?;
    }
    if wanted("memory") {
        memory::of_a_vm(&machine).context("memory of a VM")?;
    }
    Ok(())
}
