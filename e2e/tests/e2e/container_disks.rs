//! Container disks: where they come from, and what is wrong with some of them.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use berth_e2e::{
    Machine, MachineOptions, Need, REGISTRY, Registry, Target as _, manifest, missing, run,
    small_guest,
};

use crate::{BOOT, MEMORY, SOON};

fn insecure() -> MachineOptions {
    MachineOptions {
        arguments: vec!["--insecure-registry".into(), REGISTRY.into()],
        ..MachineOptions::default()
    }
}

#[test]
fn a_registry_by_tag_and_by_digest_with_credentials() -> anyhow::Result<()> {
    if missing(
        "registry",
        &[Need::Root, Need::Qemu, Need::SmallGuest, Need::Registry],
    ) {
        return Ok(());
    }
    let machine = Machine::start_with(insecure())?;
    let _registry = Registry::on(&machine, Some(("anna", "sesame")))?;
    let elsewhere = tempfile::tempdir()?;
    let root = elsewhere.path().to_string_lossy().into_owned();
    let guest = small_guest().to_string_lossy().into_owned();
    let image = format!("{REGISTRY}/guests/small:1");
    machine
        .berth(&["image", "build", "--root", &root, "-t", &image, &guest])?
        .ok()?;
    let push = |creds: &[&str]| {
        machine.berth(
            &[
                &["image", "push", "--root", &root, "--plain-http", &image][..],
                creds,
            ]
            .concat(),
        )
    };
    let refused = push(&["--creds", "anna:wrong"])?.err()?;
    ensure!(
        !refused.contains("wrong"),
        "the password is in the message: {refused}"
    );
    push(&["--creds", "anna:sesame"])?.ok()?;

    // Without a secret the pull fails and says so; with it, it works.
    machine.apply(&manifest("stranger", &image, MEMORY))?;
    machine.wait_condition("stranger", "Synchronized", REGISTRY, SOON)?;
    machine.delete("stranger", SOON)?;
    // A secret that is not there is named where the user looks.
    machine.apply(&manifest("forgetful", &image, MEMORY).replace(
        &format!("      image: {image}\n"),
        &format!("      image: {image}\n      imagePullSecret: annas\n"),
    ))?;
    let named = r#"imagePullSecret "annas" does not exist"#;
    machine.wait_condition("forgetful", "Synchronized", named, SOON)?;
    wait_for_event(&machine, "forgetful", named)?;
    machine.delete("forgetful", SOON)?;
    machine
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
        manifest(name, image, MEMORY).replace(
            &format!("      image: {image}\n"),
            &format!("      image: {image}\n      imagePullSecret: annas\n"),
        )
    };
    machine.apply(&with_secret("by-tag", &image))?;
    machine.wait_phase("by-tag", "Running", SOON)?;
    machine.console("by-tag")?.log_in(BOOT)?;
    machine.delete("by-tag", SOON * 2)?;

    let other = tempfile::tempdir()?;
    let other = other.path().to_string_lossy().into_owned();
    let pulled = machine
        .berth(&[
            "image",
            "pull",
            "--root",
            &other,
            "--plain-http",
            "--creds",
            "anna:sesame",
            &image,
        ])?
        .ok()?;
    let by_stdin = run(
        machine
            .inside(&berth_e2e::berth_binary())
            .args(["image", "pull", "--root", &other, "--plain-http"])
            .args(["--username", "anna", "--password-stdin", &image]),
        "sesame\n",
    )?
    .ok()?;
    ensure!(by_stdin == pulled, "{by_stdin:?} is not {pulled:?}");
    let digest = pulled
        .split_whitespace()
        .find(|word| word.starts_with("sha256:"));
    let digest = digest.with_context(|| format!("no digest in {pulled:?}"))?;
    ensure!(digest.len() == 71, "{digest:?} is no whole digest");
    let by_digest = format!("{REGISTRY}/guests/small@{digest}");
    machine.apply(&with_secret("by-digest", &by_digest))?;
    machine.wait_phase("by-digest", "Running", SOON)?;
    machine.delete("by-digest", SOON * 2)?;
    machine.wait_nothing_left(SOON)?;
    let log = fs::read_to_string(machine.log_path())?;
    ensure!(!log.contains("sesame"), "the password is in the log");
    Ok(())
}

/// Waits for a warning about the VMI itself.
fn wait_for_event(machine: &Machine, vmi: &str, text: &str) -> anyhow::Result<()> {
    let about = format!(
        "type=Warning,involvedObject.kind=VirtualMachineInstance,involvedObject.name={vmi}"
    );
    berth_e2e::wait_for(&format!("an event of {vmi} says {text:?}"), SOON, || {
        let events = machine
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

#[test]
fn what_a_registry_does_wrong_is_told_on_the_vmi() -> anyhow::Result<()> {
    if missing("a bad registry", &[Need::Root, Need::Qemu, Need::Registry]) {
        return Ok(());
    }
    let machine = Machine::start_with(insecure())?;
    let registry = Registry::on(&machine, None)?;
    let elsewhere = tempfile::tempdir()?;
    let root = elsewhere.path().join("store");
    let disk = elsewhere.path().join("disk.img");
    for (name, told) in [("liar", "has wrong content"), ("stub", "has wrong size")] {
        let image = format!("{REGISTRY}/bad/{name}:1");
        // Nothing that compresses: the layer must be the largest blob.
        let mut noise = vec![0; 200 << 10];
        fs::File::open("/dev/urandom")?.read_exact(&mut noise)?;
        fs::write(&disk, noise)?;
        let at = root.to_string_lossy();
        machine
            .berth(&[
                "image",
                "build",
                "--root",
                &at,
                "-t",
                &image,
                &disk.to_string_lossy(),
            ])?
            .ok()?;
        machine
            .berth(&["image", "push", "--root", &at, "--plain-http", &image])?
            .ok()?;
        // Behind the registry's back: it serves what it finds.
        let layer = registry.largest_blob()?;
        let mut blob = fs::read(&layer)?;
        match name {
            "liar" => blob.reverse(),
            _ => blob.truncate(blob.len() / 2),
        }
        fs::write(&layer, blob)?;
        machine.apply(&manifest(name, &image, "64Mi"))?;
        machine.wait_condition(name, "Synchronized", told, SOON)?;
        wait_for_event(&machine, name, told)?;
        machine.delete(name, SOON)?;
        fs::remove_file(&layer)?;
    }
    // Nothing of either is in the node's store.
    let store = machine.state().join("images");
    let list = machine
        .berth(&["image", "list", "--root", &store.to_string_lossy()])?
        .ok()?;
    ensure!(!list.contains("bad/"), "{list}");
    for part in ["disks", "tmp"] {
        ensure!(
            fs::read_dir(store.join(part))?.next().is_none(),
            "{part} is not empty"
        );
    }
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

#[test]
fn https_is_spoken_unless_told_otherwise() -> anyhow::Result<()> {
    if missing("plain HTTP", &[Need::Root, Need::Registry]) {
        return Ok(());
    }
    let machine = Machine::start()?;
    let _registry = Registry::on(&machine, None)?;
    let image = format!("{REGISTRY}/guests/small:1");
    machine.apply(&manifest("careful", &image, "64Mi"))?;
    machine.wait_condition("careful", "Synchronized", &image, SOON)?;
    machine.delete("careful", SOON)?;
    Ok(())
}

/// A `docker save` archive or an OCI one, made by skopeo from an OCI layout that the test wrote with plain tar.
fn archive(
    directory: &Path,
    kind: &str,
    files: &[(&str, &Path)],
) -> anyhow::Result<std::path::PathBuf> {
    archive_with(directory, kind, files, &[])
}

/// The same, with more arguments for the tar of the layer.
fn archive_with(
    directory: &Path,
    kind: &str,
    files: &[(&str, &Path)],
    tar: &[&str],
) -> anyhow::Result<std::path::PathBuf> {
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

#[test]
fn what_docker_save_wrote_is_imported_and_boots() -> anyhow::Result<()> {
    if missing(
        "docker save",
        &[Need::Root, Need::Qemu, Need::SmallGuest, Need::Skopeo],
    ) {
        return Ok(());
    }
    let machine = Machine::start()?;
    let root = machine
        .state()
        .join("images")
        .to_string_lossy()
        .into_owned();
    // The old Dockerfile: COPY x.qcow2 /disk/windows2012dc.img, a qcow2 under a name that says otherwise.
    for kind in ["docker-archive", "oci-archive"] {
        let directory = tempfile::tempdir()?;
        let tar = archive(
            directory.path(),
            kind,
            &[("disk/windows2012dc.img", &small_guest())],
        )?;
        let tag = format!("from/{kind}:1");
        machine
            .berth(&[
                "image",
                "import",
                "--root",
                &root,
                "-t",
                &tag,
                &tar.to_string_lossy(),
            ])?
            .ok()?;
        machine.apply(&manifest(kind, &tag, MEMORY))?;
        machine.wait_phase(kind, "Running", SOON)?;
        machine.console(kind)?.log_in(BOOT)?;
        machine.delete(kind, SOON * 2)?;
        machine
            .berth(&["image", "rm", "--root", &root, &tag])?
            .ok()?;
    }
    let list = machine.berth(&["image", "list", "--root", &root])?.ok()?;
    ensure!(!list.contains("from/"), "{list}");
    Ok(())
}

#[test]
fn images_with_no_disk_or_several_are_told_apart() -> anyhow::Result<()> {
    if missing("wrong contents", &[Need::Root, Need::Skopeo]) {
        return Ok(());
    }
    let machine = Machine::start()?;
    let root = machine
        .state()
        .join("images")
        .to_string_lossy()
        .into_owned();
    let some = Path::new("/etc/hostname");
    let cases: &[(&str, &[(&str, &Path)])] = &[
        ("empty", &[("etc/motd", some)]),
        ("double", &[("disk/one.img", some), ("disk/two.img", some)]),
    ];
    for (name, files) in cases {
        let directory = tempfile::tempdir()?;
        let tar = archive(directory.path(), "oci-archive", files)?;
        let tag = format!("wrong/{name}:1");
        // Whether the import or the VMI tells it, it is told; an import that refuses leaves nothing.
        let import = machine.berth(&[
            "image",
            "import",
            "--root",
            &root,
            "-t",
            &tag,
            &tar.to_string_lossy(),
        ])?;
        if import.code != 0 {
            ensure!(import.stderr.contains("/disk"), "{import}");
            continue;
        }
        machine.apply(&manifest(name, &tag, "64Mi"))?;
        let message = machine.wait_condition(name, "Synchronized", "/disk", SOON)?;
        ensure!(
            *name == "empty" || message.contains("one.img") && message.contains("two.img"),
            "{message}"
        );
        let events = machine
            .kubectl(&["get", "events", "--field-selector", "type=Warning"])?
            .ok()?;
        ensure!(events.contains("/disk"), "{events}");
        machine.delete(name, SOON)?;
    }
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

#[test]
fn a_path_that_climbs_out_is_told_on_the_vmi() -> anyhow::Result<()> {
    if missing("climbing path", &[Need::Root, Need::Qemu, Need::Skopeo]) {
        return Ok(());
    }
    let machine = Machine::start()?;
    let root = machine
        .state()
        .join("images")
        .to_string_lossy()
        .into_owned();
    let directory = tempfile::tempdir()?;
    let climb = ["-P", "--transform", "s,^./disk/,../disk/,"];
    let files = [("disk/one.img", Path::new("/etc/hostname"))];
    let tar = archive_with(directory.path(), "oci-archive", &files, &climb)?;
    machine
        .berth(&[
            "image",
            "import",
            "--root",
            &root,
            "-t",
            "bad/climber:1",
            &tar.to_string_lossy(),
        ])?
        .ok()?;
    machine.apply(&manifest("climber", "bad/climber:1", "64Mi"))?;
    machine.wait_condition("climber", "Synchronized", "climbs out of the image", SOON)?;
    wait_for_event(&machine, "climber", "climbs out of the image")?;
    machine.delete("climber", SOON)?;
    machine.wait_nothing_left(SOON)?;
    Ok(())
}

#[test]
fn a_disk_that_points_at_another_file_is_refused() -> anyhow::Result<()> {
    if missing("backing file", &[Need::Root, Need::Qemu]) {
        return Ok(());
    }
    let machine = Machine::start()?;
    let root = machine
        .state()
        .join("images")
        .to_string_lossy()
        .into_owned();
    let directory = tempfile::tempdir()?;
    let evil = directory.path().join("evil.qcow2");
    run(
        Command::new("qemu-img")
            .args([
                "create",
                "-q",
                "-f",
                "qcow2",
                "-u",
                "-b",
                "/etc/shadow",
                "-F",
                "raw",
            ])
            .arg(&evil)
            .arg("1M"),
        "",
    )?
    .ok()?;
    let refused = machine
        .berth(&[
            "image",
            "build",
            "--root",
            &root,
            "-t",
            "evil:1",
            &evil.to_string_lossy(),
        ])?
        .err()?;
    ensure!(
        refused.contains("backing file") && refused.contains("/etc/shadow"),
        "{refused}"
    );
    let list = machine.berth(&["image", "list", "--root", &root])?.ok()?;
    ensure!(!list.contains("evil"), "{list}");
    Ok(())
}
