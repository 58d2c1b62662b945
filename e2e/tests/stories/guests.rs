//! Guests with an agent, and what can be done to a guest that runs.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use berth_e2e::{Console, Target, manifest, repository, run, wait_for};
use serde_json::Value;

use super::machines::{berth, delete, machine, uid, wait_status};
use super::{BOOT, MEMORY, SOON};

/// What the file systems of the guest are frozen or thawed by: a PUT, of which kubectl knows but this way.
fn put(
    target: &dyn Target,
    vmi: &str,
    verb: &str,
    body: &str,
) -> anyhow::Result<berth_e2e::Outcome> {
    let path = format!(
        "/apis/subresources.kubevirt.io/v1/namespaces/{}/virtualmachineinstances/{vmi}/{verb}",
        target.namespace()
    );
    target.kubectl_with(&["replace", "--raw", &path, "-f", "-"], body)
}

/// Waits until a field of a machine's instance has this value.
pub(super) fn wait_field(
    target: &dyn Target,
    vmi: &str,
    path: &str,
    wanted: &str,
    limit: Duration,
) -> anyhow::Result<()> {
    wait_for(&format!("{path} of {vmi} is {wanted:?}"), limit, || {
        let now = target.vmi(vmi, path)?;
        ensure!(now == wanted, "it is {now:?}");
        Ok(())
    })
    .with_context(|| target.log_tail())
}

/// What the manifest gives a guest to shut down.
const GRACE: Duration = Duration::from_secs(30);
const AGENT: &str = ".status.conditions[?(@.type=='AgentConnected')].status";

/// What the agent tells is shown and asked for; file systems are frozen and thawed by it.
pub(crate) fn an_agent_tells(target: &dyn Target) -> anyhow::Result<()> {
    let told = manifest("told", target.image(), MEMORY)
        .replace(
            "      interfaces:\n",
            "      - name: data\n        disk: {bus: virtio}\n      interfaces:\n",
        )
        .replace(
            "  volumes:\n",
            "  volumes:\n  - name: data\n    emptyDisk: {capacity: 32Mi}\n",
        );
    target.apply(&told)?;
    target.wait_phase("told", "Running", SOON)?;
    wait_field(target, "told", AGENT, "True", BOOT)?;
    wait_field(
        target,
        "told",
        ".status.guestOSInfo.id",
        "berth-guest",
        SOON,
    )?;
    let first = ".status.interfaces[0]";
    wait_field(
        target,
        "told",
        &format!("{first}.interfaceName"),
        "eth0",
        SOON * 2,
    )?;
    let source = target.vmi("told", &format!("{first}.infoSource"))?;
    ensure!(source == "domain, guest-agent", "{source}");
    let machine = target.vmi("told", ".status.machine.type")?;
    ensure!(machine.starts_with("pc-q35-"), "{machine}");

    let mut console = target.console("told")?;
    console.log_in(BOOT)?;
    console.shell(
        "mke2fs /dev/vdb && mkdir /data && mount -t ext4 /dev/vdb /data",
        SOON,
    )?;
    let info: Value = serde_json::from_str(&berth(target, &["guestosinfo", "told"])?.ok()?)?;
    // By DHCP.
    ensure!(info["hostname"] == "told", "{info}");
    ensure!(info["os"]["versionId"] == "1", "{info}");
    ensure!(
        info["kind"] == "VirtualMachineInstanceGuestAgentInfo",
        "{info}"
    );
    let knows = info["supportedCommands"].as_array().into_iter().flatten();
    ensure!(
        knows.into_iter().any(|c| c["name"] == "guest-ping"),
        "{info}"
    );
    let mounted = berth(target, &["fslist", "told", "-o", "table"])?.ok()?;
    ensure!(
        mounted.contains("/data") && mounted.contains("ext4"),
        "{mounted}"
    );
    let users = berth(target, &["userlist", "told", "-o", "yaml"])?.ok()?;
    ensure!(users.contains("items: []"), "{users}");

    put(target, "told", "freeze", r#"{"unfreezeTimeout": "0s"}"#)?.ok()?;
    wait_field(target, "told", ".status.fsFreezeStatus", "frozen", SOON)?;
    console.send_line("(echo written >/data/file; sync; echo IT'IS'WRITTEN) &")?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(
        console
            .expect("ITISWRITTEN", Duration::from_secs(1))
            .is_err(),
        "a frozen file system was written to"
    );
    put(target, "told", "unfreeze", "{}")?.ok()?;
    console.expect("ITISWRITTEN", SOON)?;
    wait_field(target, "told", ".status.fsFreezeStatus", "", SOON)?;
    // One that nobody thaws is thawed in time.
    put(target, "told", "freeze", r#"{"unfreezeTimeout": "2s"}"#)?.ok()?;
    console.send_line("echo again >/data/file; echo THAWED'AGAIN'")?;
    console.expect("THAWEDAGAIN", SOON)?;
    let refused = put(target, "told", "freeze", r#"{"unfreezeTimeout": "soon"}"#)?.err()?;
    ensure!(refused.contains("unfreezeTimeout"), "{refused}");
    target.delete("told", SOON * 2)
}

/// The guest's kernel gives each of its runs a number.
fn boot_id(console: &mut Console) -> anyhow::Result<String> {
    let id = console.shell("cat /proc/sys/kernel/random/boot_id", SOON)?;
    Ok(id.trim().to_owned())
}

/// A guest is asked to restart, and is reset; it is the same machine.
pub(crate) fn restarted_inside(target: &dyn Target) -> anyhow::Result<()> {
    target.apply(&manifest("again", target.image(), MEMORY))?;
    target.wait_phase("again", "Running", SOON)?;
    let first = uid(target, "again")?;
    let mut console = target.console("again")?;
    console.log_in(BOOT)?;
    let mut last = boot_id(&mut console)?;
    for verb in ["soft-reboot", "reset"] {
        let said = berth(target, &[verb, "again"])?.ok()?;
        ensure!(
            said.contains("VMI again was scheduled to"),
            "{verb}: {said}"
        );
        // The prompt of the next run, not of this one.
        console.expect("login: ", BOOT)?;
        console.log_in(BOOT)?;
        let now = boot_id(&mut console)?;
        ensure!(now != last, "{verb} and the same run");
        last = now;
        wait_field(target, "again", ".status.phase", "Running", SOON)?;
        ensure!(uid(target, "again")? == first);
    }
    berth(target, &["pause", "vmi", "again"])?.ok()?;
    let refused = wait_for("the pause is told", SOON, || {
        berth(target, &["soft-reboot", "again"])?.err()
    })?;
    ensure!(refused.contains("VMI is paused"), "{refused}");
    target.delete("again", SOON * 2)
}

/// Started standing still; ended without being asked; and what would happen.
pub(crate) fn started_paused_and_ended_at_once(target: &dyn Target) -> anyhow::Result<()> {
    target.apply(&machine(target, "blunt", "runStrategy: Halted"))?;
    wait_status(target, "blunt", "Stopped", SOON)?;
    berth(target, &["start", "blunt", "--paused", "--dry-run"])?.ok()?;
    wait_status(target, "blunt", "Stopped", SOON)?;
    berth(target, &["start", "blunt", "--paused"])?.ok()?;
    wait_status(target, "blunt", "Paused", SOON)?;
    ensure!(target.vmi("blunt", ".spec.startStrategy")? == "Paused");
    let refused = berth(target, &["guestosinfo", "blunt"])?.err()?;
    ensure!(
        refused.contains("VMI does not have guest agent connected"),
        "{refused}"
    );
    berth(target, &["unpause", "vm", "blunt"])?.ok()?;
    wait_status(target, "blunt", "Running", SOON)?;
    let mut console = target.console("blunt")?;
    console.log_in(BOOT)?;
    // A guest that would not end by itself.
    console.shell("killall acpid", SOON)?;
    let first = uid(target, "blunt")?;
    let begin = Instant::now();
    berth(target, &["restart", "blunt", "--force", "--grace-period=0"])?.ok()?;
    wait_for("another instance runs", SOON, || {
        let (now, phase) = (uid(target, "blunt")?, target.vmi("blunt", ".status.phase")?);
        ensure!(now != first && phase == "Running", "{now} {phase}");
        Ok(())
    })?;
    ensure!(target.vmi("blunt", ".spec.startStrategy")?.is_empty());
    let took = begin.elapsed();
    ensure!(took < GRACE, "it took {took:?}, as if it had been asked");
    berth(target, &["stop", "blunt", "--force", "--grace-period=0"])?.ok()?;
    wait_status(target, "blunt", "Stopped", SOON)?;
    delete(target, "blunt")
}

/// UEFI starts the guest, and what the screen shows then.
pub(crate) fn by_uefi(target: &dyn Target) -> anyhow::Result<()> {
    let efi = "  domain:\n    firmware: {bootloader: {efi: {secureBoot: false}}}\n";
    let plain = manifest("uefi", target.image(), "256Mi");
    ensure!(plain.contains("  domain:\n"), "{plain}");
    target.apply(&plain.replacen("  domain:\n", efi, 1))?;
    target.wait_phase("uefi", "Running", SOON)?;
    let mut console = target.console("uefi")?;
    console.log_in(BOOT)?;
    let seen = console.shell("ls /sys/firmware/efi", SOON)?;
    ensure!(seen.contains("runtime"), "{seen}");
    let picture = berth(target, &["vnc", "screenshot", "uefi", "--file=-"])?;
    ensure!(picture.code == 0, "{picture}");
    ensure!(
        picture.stdout.contains("PNG") && picture.stdout.contains("IHDR"),
        "no picture"
    );
    let secure = plain.replacen("  domain:\n", &efi.replace("false", "true"), 1);
    let refused = target
        .kubectl_with(&["apply", "-f", "-"], &secure.replace("uefi", "secure"))?
        .err()?;
    ensure!(refused.contains("spec.domain.features.smm"), "{refused}");
    target.delete("uefi", SOON * 2)
}

/// A manifest of `berth create vm`, and what it becomes.
pub(crate) fn created_by_command(target: &dyn Target) -> anyhow::Result<()> {
    let disk = format!("--volume-containerdisk=src:{}", target.image());
    let mut command = target.berth_command();
    command.args(["create", "vm", "--name=made", "--memory=160Mi", &disk]);
    let printed = berth_e2e::run(&mut command, "")?.ok()?;
    target
        .kubectl_with(&["create", "-f", "-"], &printed)?
        .ok()?;
    wait_status(target, "made", "Running", SOON)?;
    target.console("made")?.log_in(BOOT)?;
    berth(target, &["stop", "made", "--grace-period=1"])?.ok()?;
    wait_status(target, "made", "Stopped", SOON)?;
    delete(target, "made")
}

/// Nobody has its other half.
const OTHER_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f nobody";

fn secret(name: &str, key: &str, text: &str) -> Value {
    serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {key: text}})
}

/// A whole Debian with cloud-init, from its manifest to its orderly end.
pub(crate) fn a_whole_debian(target: &dyn Target) -> anyhow::Result<()> {
    const IMAGE: &str = "localhost/debian:12";
    let disk = repository().join(".cache/debian.qcow2");
    ensure!(
        disk.exists(),
        "no {}: guest/debian.sh makes it",
        disk.display()
    );
    let dir = tempfile::tempdir()?;
    let (archive, key) = (dir.path().join("debian.tar"), dir.path().join("key"));
    let mut pack = Command::new("python3");
    pack.arg(repository().join("scripts/cluster/image.py"))
        .args([IMAGE.as_ref(), archive.as_os_str(), "/none".as_ref()])
        .arg(format!("{}=/disk/debian.qcow2", disk.display()));
    run(&mut pack, "")?.ok()?;
    target.import("oci-archive", &archive, IMAGE)?;
    let mut keygen = Command::new("ssh-keygen");
    keygen
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key);
    run(&mut keygen, "")?.ok()?;
    let public = std::fs::read_to_string(key.with_extension("pub"))?;
    const TOLD: &str = "  - name: told
    cloudInitNoCloud:
      userData: |
        #cloud-config
        manage_etc_hosts: true
      networkData: |
        version: 2
        ethernets:
          eth0:
            dhcp4: true
            addresses: [192.0.2.7/24]
";
    // One key by cloud-init, another one and a password by the agent.
    let secrets = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [
        secret("first-key", "mine", &public),
        secret("second-key", "later", OTHER_KEY),
        secret("password", "debian", "one two\n"),
    ]});
    target
        .kubectl_with(&["apply", "-f", "-"], &secrets.to_string())?
        .ok()?;
    let access = "  accessCredentials:
  - sshPublicKey:
      source: {secret: {secretName: first-key}}
      propagationMethod: {noCloud: {}}
  - sshPublicKey:
      source: {secret: {secretName: second-key}}
      propagationMethod: {qemuGuestAgent: {users: [debian]}}
  - userPassword:
      source: {secret: {secretName: password}}
      propagationMethod: {qemuGuestAgent: {}}
";
    let manifest = manifest("whole", IMAGE, "512Mi")
        .replace(
            "      interfaces:\n",
            "      - name: told\n        disk: {bus: virtio}\n      interfaces:\n",
        )
        .replacen("spec:\n", &format!("spec:\n{access}"), 1);
    target.apply(&(manifest + TOLD))?;
    target.wait_phase("whole", "Running", SOON)?;
    wait_field(target, "whole", AGENT, "True", BOOT * 2)?;
    wait_field(target, "whole", ".status.guestOSInfo.id", "debian", SOON)?;
    wait_for("the address of the network data", BOOT, || {
        let addresses = target.vmi("whole", ".status.interfaces[0].ipAddresses")?;
        ensure!(addresses.contains("192.0.2.7"), "{addresses}");
        Ok(())
    })?;
    let known = format!("--known-hosts={}", dir.path().join("hosts").display());
    let ssh = |command: &str| {
        let identity = key.display().to_string();
        berth(
            target,
            &[
                "ssh",
                "debian@vmi/whole",
                "-i",
                &identity,
                &known,
                "-t=-oStrictHostKeyChecking=accept-new",
                "-t=-oBatchMode=yes",
                "-t=-q",
                "-c",
                command,
            ],
        )?
        .ok()
    };
    let name = wait_for("the guest lets in who has the key", BOOT, || {
        ssh("hostname")
    })?;
    ensure!(name.trim() == "whole", "{name}");
    // Its own exit status tells of an error; what is said tells which.
    let told =
        "cloud-init status --wait --long; grep -E 'ERROR|WARN' /var/log/cloud-init.log; true";
    let done = ssh(told)?;
    ensure!(done.contains("status: done"), "{done}");
    let synchronized = ".status.conditions[?(@.type=='AccessCredentialsSynchronized')].status";
    wait_field(target, "whole", synchronized, "True", SOON * 2)?;
    let keys = ssh("cat .ssh/authorized_keys")?;
    ensure!(
        keys.contains(OTHER_KEY) && keys.contains(public.trim()),
        "{keys}"
    );
    let check = "sudo python3 -W ignore -c 'import crypt, spwd; h = spwd.getspnam(\"debian\").sp_pwdp; \
                 print(crypt.crypt(\"one two\", h) == h)'";
    ensure!(ssh(check)?.contains("True"), "the password is another one");
    // A key that leaves the secret leaves the guest; the user's own stays.
    let none = secret("second-key", "later", "# none\n").to_string();
    target.kubectl_with(&["apply", "-f", "-"], &none)?.ok()?;
    wait_for("the key is taken away", BOOT, || {
        let keys = ssh("cat .ssh/authorized_keys")?;
        ensure!(
            !keys.contains(OTHER_KEY) && keys.contains(public.trim()),
            "{keys}"
        );
        Ok(())
    })?;
    let file = dir.path().join("release");
    let identity = key.display().to_string();
    berth(
        target,
        &[
            "scp",
            "-i",
            &identity,
            &known,
            "-t=-q",
            "debian@vmi/whole:/etc/debian_version",
            &file.display().to_string(),
        ],
    )?
    .ok()?;
    let release = std::fs::read_to_string(&file)?;
    ensure!(release.starts_with("12."), "{release}");
    let users = berth(target, &["userlist", "whole"])?.ok()?;
    ensure!(users.contains("\"items\""), "{users}");
    let begin = Instant::now();
    target.delete("whole", GRACE * 2)?;
    let took = begin.elapsed();
    // By itself; it would have been cut off at the end of its grace period.
    ensure!(took < Duration::from_secs(10), "its end took {took:?}");
    Ok(())
}
