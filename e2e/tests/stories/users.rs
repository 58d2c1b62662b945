//! Several users: each does what its role says, consoles included.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use berth_e2e::{Console, Target, manifest, run};
use serde_json::{Value, json};

use super::{BOOT, MEMORY, SOON};

/// The kubeconfig of a service account, with a role in the namespace.
fn user(target: &dyn Target, dir: &Path, name: &str, role: &str) -> anyhow::Result<PathBuf> {
    target.kubectl(&["create", "serviceaccount", name])?.ok()?;
    let account = format!("{}:{name}", target.namespace());
    target
        .kubectl(&[
            "create",
            "rolebinding",
            name,
            &format!("--clusterrole={role}"),
            &format!("--serviceaccount={account}"),
        ])?
        .ok()?;
    let token = target.kubectl(&["create", "token", name])?.ok()?;
    let own = target
        .kubectl(&[
            "config",
            "view",
            "--raw",
            "--minify",
            "--flatten",
            "-o",
            "json",
        ])?
        .ok()?;
    let mut config: Value = serde_json::from_str(&own).context("kubectl config view")?;
    config["users"][0]["user"] = json!({"token": token.trim()});
    let file = dir.join(format!("{name}.kubeconfig"));
    std::fs::write(&file, config.to_string())?;
    Ok(file)
}

/// A viewer looks, an editor makes a machine and opens its console, and neither does more.
pub(crate) fn a_viewer_looks_and_an_editor_enters(target: &dyn Target) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let vera = user(target, dir.path(), "vera", "view")?;
    let eddy = user(target, dir.path(), "eddy", "edit")?;
    let (vera, eddy) = (vera.to_string_lossy(), eddy.to_string_lossy());
    let vm = manifest("vm", target.image(), MEMORY);
    let apply = |file: &str| target.kubectl_with(&["--kubeconfig", file, "apply", "-f", "-"], &vm);
    let refused = apply(&vera)?.err()?;
    ensure!(
        refused.contains(
            "cannot create resource \"virtualmachineinstances\" in API group \"kubevirt.io\""
        ),
        "{refused}"
    );
    apply(&eddy)?.ok()?;
    target.wait_phase("vm", "Running", SOON)?;

    let seen = target
        .kubectl(&["--kubeconfig", &vera, "get", "vmi,pods,events"])?
        .ok()?;
    ensure!(seen.contains("virt-launcher-vm"), "{seen}");
    let console = [
        "console",
        "vm",
        "--namespace",
        target.namespace(),
        "--kubeconfig",
    ];
    let refused = run(target.berth_command().args(console).arg(&*vera), "")?.err()?;
    ensure!(
        refused.contains("403") || refused.contains("forbidden"),
        "{refused}"
    );
    let refused = target
        .kubectl(&["--kubeconfig", &vera, "get", "secrets"])?
        .err()?;
    ensure!(refused.contains("forbidden"), "{refused}");
    let refused = target
        .kubectl(&[
            "--kubeconfig",
            &eddy,
            "create",
            "rolebinding",
            "more",
            "--clusterrole=admin",
            "--user=eddy",
        ])?
        .err()?;
    ensure!(
        refused.contains("cannot create resource \"rolebindings\""),
        "{refused}"
    );

    let mut entered = Console::open(target.berth_command().args(console).arg(&*eddy))?;
    entered.log_in(BOOT)?;
    target
        .kubectl(&[
            "--kubeconfig",
            &eddy,
            "delete",
            "vmi",
            "vm",
            "--timeout=60s",
        ])?
        .ok()
        .map(drop)
}
