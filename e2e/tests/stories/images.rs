//! Container disks: where they come from, and what is wrong with some of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use berth_e2e::{Outcome, REGISTRY, Target, berth_binary, manifest, run, small_guest};

use super::{BOOT, MEMORY, SOON, on_node};

/// A `docker save` archive or an OCI one, made by skopeo from an OCI layout that the test wrote with plain tar.
pub(crate) fn archive(
    directory: &Path,
    kind: &str,
    files: &[(&str, &Path)],
) -> anyhow::Result<PathBuf> {
    archive_with(directory, kind, files, &[])
}

/// The same, with more arguments for the tar of the layer.
pub(crate) fn archive_with(
    directory: &Path,
    kind: &str,
    files: &[(&str, &Path)],
    tar: &[&str],
) -> anyhow::Result<PathBuf> {
    let tree = directory.join("tree");
    for (inside, from) in files {
        let target = tree.join(inside);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(from, target)?;
    }
    fs::create_dir_all(&tree)?;
    let layout = directory.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    let blob = |bytes: &Path| -> anyhow::Result<(String, u64)> {
        let sum = run(Command::new("sha256sum").arg(bytes), "")?.ok()?;
        let hex = sum.split(' ').next().unwrap_or_default().to_owned();
        let size = fs::metadata(bytes)?.len();
        fs::rename(bytes, layout.join("blobs/sha256").join(&hex))?;
        Ok((format!("sha256:{hex}"), size))
    };
    let layer = directory.join("layer.tar");
    run(
        Command::new("tar")
            .arg("-cf")
            .arg(&layer)
            .args(tar)
            .arg("-C")
            .arg(&tree)
            .arg("."),
        "",
    )?
    .ok()?;
    let (layer, layer_size) = blob(&layer)?;
    let scratch = directory.join("scratch");
    fs::write(
        &scratch,
        format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
        ),
    )?;
    let (config, config_size) = blob(&scratch)?;
    fs::write(
        &scratch,
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{config_size}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{layer}","size":{layer_size}}}]}}"#
        ),
    )?;
    let (manifest, manifest_size) = blob(&scratch)?;
    fs::write(
        layout.join("index.json"),
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{manifest}","size":{manifest_size},"annotations":{{"org.opencontainers.image.ref.name":"latest"}}}}]}}"#
        ),
    )?;
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    let out = directory.join(format!("{kind}.tar"));
    let target = format!("{kind}:{}:old/windows2012dc:latest", out.display());
    let source = format!("oci:{}:latest", layout.display());
    run(
        Command::new("skopeo").args(["--insecure-policy", "copy", "-q", &source, &target]),
        "",
    )?
    .ok()?;
    Ok(out)
}

/// Waits for a warning about the VMI itself.
pub(crate) fn wait_for_event(target: &dyn Target, vmi: &str, text: &str) -> anyhow::Result<()> {
    let about = format!(
        "type=Warning,involvedObject.kind=VirtualMachineInstance,involvedObject.name={vmi}"
    );
    berth_e2e::wait_for(&format!("an event of {vmi} says {text:?}"), SOON, || {
        let events = target
            .kubectl(&[
                "get",
                "events",
                "--field-selector",
                &about,
                "-o",
                "jsonpath={.items[*].message}",
            ])?
            .ok()?;
        ensure!(events.contains(text), "{events}");
        Ok(())
    })
}

/// berth's own command, where the registry is.
fn berth(target: &dyn Target, arguments: &[&str], input: &str) -> anyhow::Result<Outcome> {
    run(target.on_first_node(&berth_binary()).args(arguments), input)
}

/// By tag and by digest from a registry that wants a login of `anna` (`sesame`) and runs already.
pub(crate) fn from_a_registry(target: &dyn Target) -> anyhow::Result<()> {
    let elsewhere = tempfile::tempdir()?;
    let root = elsewhere.path().to_string_lossy().into_owned();
    let guest = small_guest().to_string_lossy().into_owned();
    let image = format!("{REGISTRY}/guests/small:1");
    berth(
        target,
        &["image", "build", "--root", &root, "-t", &image, &guest],
        "",
    )?
    .ok()?;
    let push = |creds: &str| {
        let arguments = ["image", "push", "--root", &root, "--plain-http", &image];
        berth(target, &[&arguments[..], &["--creds", creds]].concat(), "")
    };
    let refused = push("anna:wrong")?.err()?;
    ensure!(
        !refused.contains("wrong"),
        "the password is in the message: {refused}"
    );
    push("anna:sesame")?.ok()?;

    // Without a secret the pull fails and says so; with it, it works.
    let here =
        |name: &str, image: &str| on_node(&manifest(name, image, MEMORY), target.first_node());
    target.apply(&here("stranger", &image))?;
    target.wait_condition("stranger", "Synchronized", REGISTRY, SOON)?;
    target.delete("stranger", SOON)?;
    target
        .kubectl(&[
            "create",
            "secret",
            "docker-registry",
            "annas",
            "--docker-server",
            REGISTRY,
            "--docker-username",
            "anna",
            "--docker-password",
            "sesame",
        ])?
        .ok()?;
    let with_secret = |name: &str, image: &str| {
        here(name, image).replace(
            &format!("      image: {image}\n"),
            &format!("      image: {image}\n      imagePullSecret: annas\n"),
        )
    };
    target.apply(&with_secret("by-tag", &image))?;
    target.wait_phase("by-tag", "Running", SOON)?;
    target.console("by-tag")?.log_in(BOOT)?;
    target.delete("by-tag", SOON * 2)?;

    let other = tempfile::tempdir()?;
    let other = other.path().to_string_lossy().into_owned();
    let pull = ["image", "pull", "--root", &other, "--plain-http"];
    let pulled = berth(
        target,
        &[&pull[..], &["--creds", "anna:sesame", &image]].concat(),
        "",
    )?
    .ok()?;
    let login = ["--username", "anna", "--password-stdin", &image];
    let by_stdin = berth(target, &[&pull[..], &login].concat(), "sesame\n")?.ok()?;
    ensure!(by_stdin == pulled, "{by_stdin:?} is not {pulled:?}");
    let digest = pulled
        .split_whitespace()
        .find(|word| word.starts_with("sha256:"));
    let digest = digest.with_context(|| format!("no digest in {pulled:?}"))?;
    ensure!(digest.len() == 71, "{digest:?} is no whole digest");
    let by_digest = format!("{REGISTRY}/guests/small@{digest}");
    target.apply(&with_secret("by-digest", &by_digest))?;
    target.wait_phase("by-digest", "Running", SOON)?;
    target.delete("by-digest", SOON * 2)
}

/// The old Dockerfile: COPY x.qcow2 /disk/windows2012dc.img, a qcow2 under a name that says otherwise.
pub(crate) fn what_docker_save_wrote_boots(target: &dyn Target, kind: &str) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let files = [("disk/windows2012dc.img", &*small_guest())];
    let tar = archive(directory.path(), kind, &files)?;
    let image = format!("localhost/from/{kind}:1");
    target.import(kind, &tar, &image)?;
    target.apply(&manifest(kind, &image, MEMORY))?;
    target.wait_phase(kind, "Running", SOON)?;
    target.console(kind)?.log_in(BOOT)?;
    target.delete(kind, SOON * 2)
}

/// An image must have one disk; of several, one may be named.
pub(crate) fn no_disk_or_several(target: &dyn Target) -> anyhow::Result<()> {
    let some = Path::new("/etc/hostname");
    let cases: &[(&str, &[(&str, &Path)])] = &[
        ("empty", &[("etc/motd", some)]),
        ("double", &[("disk/one.img", some), ("disk/two.img", some)]),
    ];
    for (name, files) in cases {
        let directory = tempfile::tempdir()?;
        let tar = archive(directory.path(), "oci-archive", files)?;
        let image = format!("localhost/wrong/{name}:1");
        // Whether the import or the VMI tells it, it is told; an import that refuses leaves nothing.
        if let Err(refused) = target.import("oci-archive", &tar, &image) {
            ensure!(format!("{refused:#}").contains("/disk"), "{refused:#}");
            continue;
        }
        target.apply(&manifest(name, &image, "64Mi"))?;
        let message = target.wait_condition(name, "Synchronized", "/disk", SOON)?;
        ensure!(
            *name == "empty" || message.contains("one.img") && message.contains("two.img"),
            "{message}"
        );
        wait_for_event(target, name, "/disk")?;
        target.delete(name, SOON)?;
    }
    Ok(())
}

/// A guest that no one here wrote: Debian's iPXE ISO, an isohybrid that boots as a disk. It shows what DHCP gave it before it
/// looks for something to boot.
pub(crate) fn ipxe_takes_its_address(target: &dyn Target) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let files = [("disk/ipxe.iso", Path::new("/usr/lib/ipxe/ipxe.iso"))];
    let tar = archive(directory.path(), "oci-archive", &files)?;
    target.import("oci-archive", &tar, "localhost/ipxe:1")?;
    let with_serial_bios = manifest("ipxe", "localhost/ipxe:1", "96Mi").replace(
        "    devices:\n",
        "    firmware:\n      bootloader:\n        bios:\n          useSerial: true\n    devices:\n",
    );
    target.apply(&with_serial_bios)?;
    target.wait_phase("ipxe", "Running", SOON)?;
    let address = target.address("ipxe")?;
    let mut console = target.console("ipxe")?;
    console.expect("iPXE", BOOT)?;
    let shown = console.expect(&format!("net0: {address}/255.255."), BOOT)?;
    ensure!(shown.contains("Configuring"), "{shown}");
    target.ping(&address, SOON)?;
    target.delete("ipxe", SOON * 2)
}
