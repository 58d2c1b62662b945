//! KubeVirt's example manifests, where they lie beside the project (or in `BERTH_SHARED`).

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use berth_e2e::{Target, repository, wait_for};

use super::machines::{berth, wait_status};
use super::{BOOT, SOON};

/// What is there of a machine that an example names and that is not: the reason of its waiting.
const WAITS: [&str; 3] = ["FailedPvcNotFound", "DataVolumeNotReady", "Unschedulable"];

/// Each is run as far as this machine can, or refused for a field that it has.
pub(crate) fn of_upstream(target: &dyn Target) -> anyhow::Result<()> {
    let shared = std::env::var_os("BERTH_SHARED")
        .map_or_else(|| repository().join("../shared"), PathBuf::from);
    let dir = shared.join("data/kubevirt-examples");
    let Ok(files) = std::fs::read_dir(&dir) else {
        let why = format!("no examples of KubeVirt in {}", dir.display());
        berth_testing::skip("examples of KubeVirt", &why);
        return Ok(());
    };
    let mut paths: Vec<PathBuf> = files.flatten().map(|file| file.path()).collect();
    paths.sort();
    let (mut ran, mut refused) = (0, 0);
    for path in paths {
        let text = std::fs::read_to_string(&path)?;
        for document in text.split("\n---").map(|d| d.trim_start_matches("---")) {
            let kind = |kind: &str| document.contains(&format!("\nkind: {kind}\n"));
            let (vm, vmi) = (kind("VirtualMachine"), kind("VirtualMachineInstance"));
            if !vm && !vmi {
                continue;
            }
            let outcome = one(target, &with_image(document, target.image()), vm)
                .with_context(|| path.display().to_string())?;
            match outcome {
                Some(why) => {
                    println!("{}: refused: {why}", path.display());
                    refused += 1;
                }
                None => ran += 1,
            }
        }
    }
    println!("{ran} examples ran, {refused} were refused");
    ensure!(ran >= 6, "only {ran} ran");
    Ok(())
}

/// The image of upstream's registry stands for any that boots.
fn with_image(document: &str, image: &str) -> String {
    let lines = document
        .lines()
        .map(|line| match line.split_once("image: registry:5000/") {
            Some((before, _)) => format!("{before}image: {image}\n"),
            None => format!("{line}\n"),
        });
    lines.collect()
}

/// None when it ran; else why it was refused.
fn one(target: &dyn Target, document: &str, is_vm: bool) -> anyhow::Result<Option<String>> {
    let mut names = document
        .lines()
        .filter_map(|line| line.strip_prefix("  name: "));
    let name = names.next().context("no name")?.trim().to_owned();
    let applied = target.kubectl_with(&["apply", "-f", "-"], document)?;
    if applied.code != 0 {
        let said = applied.err()?;
        // By a field, and one that is there.
        let field = said
            .split(|c: char| c.is_whitespace() || c == ':' || c == '[' || c == ']')
            .filter(|word| word.starts_with("spec."))
            .filter_map(|word| word.rsplit('.').next())
            .find(|last| document.contains(&format!("{last}:")));
        ensure!(field.is_some(), "no field of it is named: {said}");
        return Ok(Some(said));
    }
    if is_vm {
        wait_status(target, &name, "Stopped", SOON)?;
        berth(target, &["start", &name])?.ok()?;
    }
    wait_for("it runs or says what it waits for", BOOT, || {
        let phase = target.vmi(&name, ".status.phase")?;
        let reasons = target.vmi(&name, ".status.conditions[*].reason")?;
        let waits = WAITS.iter().any(|reason| reasons.contains(reason));
        ensure!(phase == "Running" || waits, "{phase}: {reasons}");
        Ok(())
    })?;
    let kind = if is_vm { "vm" } else { "vmi" };
    target
        .kubectl(&["delete", kind, &name, "--timeout=60s"])?
        .ok()?;
    Ok(None)
}
