//! berth's own command, as a person meets it.

use std::process::Command;

use anyhow::ensure;
use berth_e2e::{Machine, Need, Target as _, berth_binary, missing, run};

fn berth(arguments: &[&str]) -> anyhow::Result<berth_e2e::Outcome> {
    run(
        Command::new(berth_binary())
            .args(arguments)
            .env("KUBECONFIG", "/nonexistent"),
        "",
    )
}

#[test]
fn errors_take_one_line_and_exit_codes_tell_kinds_apart() -> anyhow::Result<()> {
    let version = berth(&["version", "--client"])?.ok()?;
    ensure!(
        version == format!("Client Version: {}\n", env!("CARGO_PKG_VERSION")),
        "{version}"
    );
    let failed = berth(&["console", "nobody"])?;
    ensure!(
        failed.code == 1 && failed.stderr.lines().count() == 1,
        "{failed}"
    );
    ensure!(
        failed.stderr.starts_with("error: ") && failed.stderr.contains("/nonexistent"),
        "{failed}"
    );
    let wrong = berth(&["--no-such-flag"])?;
    ensure!(wrong.code == 2, "{wrong}");
    let directory = tempfile::tempdir()?;
    let store = directory.path().join("store");
    let missing = berth(&[
        "image",
        "build",
        "--root",
        &store.to_string_lossy(),
        "-t",
        "a:b",
        "/no/such/disk",
    ])?;
    ensure!(
        missing.code == 1 && missing.stderr.contains("/no/such/disk"),
        "{missing}"
    );
    ensure!(!store.exists(), "a failed build left a store");
    let log = berth(&["--log", "berth=loud", "crds"])?;
    ensure!(log.code == 2 && log.stderr.contains("berth=loud"), "{log}");
    for shell in ["bash", "zsh", "fish"] {
        let script = berth(&["completion", shell])?.ok()?;
        ensure!(
            script.contains("console") && script.contains("image"),
            "{shell}: {script}"
        );
    }
    Ok(())
}

#[test]
fn crds_come_as_json_and_yaml() -> anyhow::Result<()> {
    let json: serde_json::Value =
        serde_json::from_str(&berth(&["crds", "--output", "json"])?.ok()?)?;
    let names: Vec<_> = json["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|crd| &crd["metadata"]["name"])
        .collect();
    ensure!(
        names
            .iter()
            .any(|name| *name == "virtualmachineinstances.kubevirt.io"),
        "{names:?}"
    );
    let yaml = berth(&["crds", "--output", "yaml"])?.ok()?;
    ensure!(yaml.contains("kind: CustomResourceDefinition"), "{yaml}");
    Ok(())
}

#[test]
fn the_kubeconfig_is_roots_alone_and_strangers_are_turned_away() -> anyhow::Result<()> {
    if missing("kubeconfig", &[Need::Root]) {
        return Ok(());
    }
    use std::os::unix::fs::PermissionsExt as _;
    let machine = Machine::start()?;
    let kubeconfig = machine.state().join("admin.kubeconfig");
    let mode = std::fs::metadata(&kubeconfig)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{} has mode {mode:o}", kubeconfig.display());
    let version = machine.berth(&["version"])?.ok()?;
    ensure!(version.contains("Server Version: v"), "{version}");
    // Without a certificate there is nothing but health and version.
    let ask = |path: &str| {
        machine.exec(
            "curl",
            &[
                "-sk",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                &format!("https://127.0.0.1:6443{path}"),
            ],
        )
    };
    ensure!(ask("/readyz")?.ok()? == "200");
    ensure!(ask("/version")?.ok()? == "200");
    ensure!(ask("/api/v1/namespaces/default/secrets")?.ok()? == "401");
    ensure!(ask("/apis/kubevirt.io/v1/virtualmachineinstances")?.ok()? == "401");
    let listening = machine.exec("ss", &["-Hltn"])?.ok()?;
    ensure!(
        listening.lines().all(|line| line.contains("127.0.0.1:")),
        "something listens beyond loopback: {listening}"
    );
    // A second one on the same state is refused instead of ruining it.
    let second = machine.berth(&[
        "up",
        "--state-dir",
        &machine.state().to_string_lossy(),
        "--run-dir",
        "/tmp/berth-e2e-second",
        "--listen",
        "127.0.0.1:7443",
    ])?;
    ensure!(
        second.code == 1 && second.stderr.contains("already"),
        "{second}"
    );
    Ok(())
}
