//! Several users of one machine: each does what its role says, consoles and logs included.

use std::path::PathBuf;

use anyhow::ensure;
use berth_e2e::{Console, Machine, Target as _, manifest};

use crate::{BOOT, IMAGE, MEMORY, SOON, machine_with_guest};

/// A kubeconfig of a user, by the real command.
fn user(machine: &Machine, name: &str, groups: &[&str]) -> anyhow::Result<PathBuf> {
    let file = machine.state().join(format!("{name}.kubeconfig"));
    let (state, output) = (machine.state().to_string_lossy(), file.to_string_lossy());
    let mut arguments = vec![
        "kubeconfig",
        "--state-dir",
        &state,
        "--user",
        name,
        "--expiration",
        "1h",
        "--output",
        &output,
    ];
    for group in groups {
        arguments.extend(["--group", group]);
    }
    machine.berth(&arguments)?.ok()?;
    Ok(file)
}

#[test]
fn a_viewer_looks_and_an_editor_enters() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("users")? else {
        return Ok(());
    };
    let vera = user(&machine, "vera", &["lookers", "night"])?;
    let eddy = user(&machine, "eddy", &[])?;
    let (vera, eddy) = (vera.to_string_lossy(), eddy.to_string_lossy());
    for arguments in [
        ["lookers", "--clusterrole=view", "--group=lookers"],
        ["eddy", "--clusterrole=edit", "--user=eddy"],
    ] {
        let command = ["create", "rolebinding"];
        machine
            .kubectl(&[&command[..], &arguments].concat())?
            .ok()?;
    }
    let vm = manifest("vm", IMAGE, MEMORY);
    let apply = |file: &str| machine.kubectl_with(&["--kubeconfig", file, "apply", "-f", "-"], &vm);
    let refused = apply(&vera)?.err()?;
    ensure!(
        refused.contains(
            "cannot create resource \"virtualmachineinstances\" in API group \"kubevirt.io\""
        ),
        "{refused}"
    );
    apply(&eddy)?.ok()?;
    machine.wait_phase("vm", "Running", SOON)?;

    let seen = machine
        .kubectl(&["--kubeconfig", &vera, "get", "vmi,pods,events"])?
        .ok()?;
    ensure!(seen.contains("virt-launcher-vm"), "{seen}");
    let refused = machine
        .berth(&["console", "vm", "--kubeconfig", &vera])?
        .err()?;
    ensure!(
        refused.contains("403") || refused.contains("forbidden"),
        "{refused}"
    );
    let refused = machine
        .kubectl(&["--kubeconfig", &vera, "get", "secrets"])?
        .err()?;
    ensure!(refused.contains("forbidden"), "{refused}");
    let refused = machine
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

    let berth = berth_e2e::berth_binary();
    let mut console =
        Console::open(
            machine
                .inside(&berth)
                .args(["console", "vm", "--kubeconfig", &eddy]),
        )?;
    console.log_in(BOOT)?;
    machine
        .kubectl(&[
            "--kubeconfig",
            &eddy,
            "delete",
            "vmi",
            "vm",
            "--timeout=60s",
        ])?
        .ok()?;
    Ok(())
}
