//! Several users of one machine: each does what its role says, consoles and logs included.

use std::path::PathBuf;

use anyhow::ensure;
use berth_e2e::{Machine, Target as _, manifest};

use crate::stories::users;
use crate::{IMAGE, MEMORY, machine_with_guest};

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
    users::a_viewer_looks_and_an_editor_enters(&machine)
}

/// The same rights by certificate: of a group, and of a user.
#[test]
fn certificates_name_users_and_their_groups() -> anyhow::Result<()> {
    let Some(machine) = machine_with_guest("certificates of users")? else {
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
    // Nobody waits for its guest, which still boots when it is deleted.
    let vm = manifest("vm", IMAGE, MEMORY).replace(
        "terminationGracePeriodSeconds: 30",
        "terminationGracePeriodSeconds: 1",
    );
    let apply = |file: &str| machine.kubectl_with(&["--kubeconfig", file, "apply", "-f", "-"], &vm);
    let refused = apply(&vera)?.err()?;
    ensure!(refused.contains("User \"vera\" cannot create"), "{refused}");
    apply(&eddy)?.ok()?;
    machine
        .kubectl(&["--kubeconfig", &vera, "get", "vmi", "vm"])?
        .ok()?;
    machine
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
