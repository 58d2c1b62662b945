//! Disks made of images by the command alone, with no server.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use berth_e2e::{FileServer, Need, berth_binary, missing, run};

/// 48 MiB: noise, which nothing makes smaller, and a hole.
fn disk_and_image(dir: &Path) -> anyhow::Result<()> {
    let mut content = vec![0; 48 << 20];
    let mut state = 42u64;
    for chunk in content[..40 << 20].chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    fs::write(dir.join("disk.raw"), content)?;
    let convert = [
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "disk.raw",
        "disk.qcow2",
    ];
    run(Command::new("qemu-img").args(convert).current_dir(dir), "")?.ok()?;
    Ok(())
}

fn berth(dir: &Path, arguments: &[&str]) -> anyhow::Result<berth_e2e::Outcome> {
    let mut command = Command::new(berth_binary());
    command
        .args(["--log", "off"])
        .args(arguments)
        .current_dir(dir);
    run(&mut command, "")
}

#[test]
fn disks_are_made_with_no_server() -> anyhow::Result<()> {
    if missing("disks_are_made_with_no_server", &[Need::Qemu]) {
        return Ok(());
    }
    let temporary = tempfile::tempdir()?;
    let dir = temporary.path();
    disk_and_image(dir)?;
    let _server = FileServer::on_loopback(dir, 8097)?;
    let url = "http://127.0.0.1:8097/disk.qcow2";
    let told = berth(dir, &["image", "inspect", url])?.ok()?;
    for words in [
        "format:        qcow2",
        "virtual size:  48.0MiB (50331648 bytes)",
        "in place",
        "checks:        passed",
    ] {
        ensure!(told.contains(words), "{words}: {told}");
    }
    let json = berth(dir, &["image", "inspect", "disk.raw", "-o", "json"])?.ok()?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    ensure!(
        json["format"] == "raw" && json["virtualSize"] == 48 << 20,
        "{json}"
    );
    let same = |one: &str, other: &str| {
        run(Command::new("cmp").args([one, other]).current_dir(dir), "")?
            .ok()
            .map(drop)
    };
    berth(dir, &["disk", "import", url, "one.raw"])?.ok()?;
    same("disk.raw", "one.raw")?;
    let sum = run(
        Command::new("sha512sum").arg("disk.qcow2").current_dir(dir),
        "",
    )?
    .ok()?;
    let sum = format!("sha512:{}", sum.split_whitespace().next().context("a sum")?);
    let told = berth(
        dir,
        &[
            "disk",
            "import",
            "disk.qcow2",
            "two.raw",
            "--checksum",
            &sum,
            "--size",
            "64Mi",
        ],
    )?
    .ok()?;
    ensure!(told.starts_with("two.raw: 64.0MiB (qcow2)"), "{told}");
    ensure!(fs::metadata(dir.join("two.raw"))?.len() == 64 << 20);
    berth(dir, &["disk", "clone", "one.raw", "three.raw"])?.ok()?;
    same("disk.raw", "three.raw")?;
    for packed in ["four.raw.gz", "four.raw.xz", "four.raw.zst", "four.raw"] {
        berth(dir, &["disk", "export", "one.raw", packed])?.ok()?;
        berth(dir, &["disk", "import", packed, "five.raw"])?.ok()?;
        same("disk.raw", "five.raw")?;
        fs::remove_file(dir.join("five.raw"))?;
    }
    // What fails says so in one line, and leaves nothing.
    let wrong = format!("sha256:{}", "0".repeat(64));
    for (arguments, words) in [
        (
            vec![
                "disk",
                "import",
                url,
                "none.raw",
                "--checksum",
                wrong.as_str(),
            ],
            "the checksum is wrong",
        ),
        (
            vec!["disk", "import", url, "none.raw", "--size", "10Mi"],
            "larger than the available size 10485760",
        ),
        (
            vec![
                "disk",
                "import",
                "http://127.0.0.1:8097/nothing",
                "none.raw",
            ],
            "404",
        ),
        (
            vec!["disk", "import", "missing.raw", "none.raw"],
            "missing.raw",
        ),
        (
            vec!["disk", "import", "disk.raw", "one.raw"],
            "one.raw exists already",
        ),
        (
            vec!["disk", "clone", "missing.raw", "none.raw"],
            "missing.raw",
        ),
        (
            vec!["disk", "export", "missing.raw", "none.raw"],
            "missing.raw",
        ),
        (
            vec!["disk", "import", "disk.raw", "none.raw", "--size", "many"],
            "\"many\"",
        ),
        (vec!["image", "inspect", "missing.raw"], "missing.raw"),
    ] {
        let failed = berth(dir, &arguments)?;
        ensure!(
            failed.code == 1 && failed.stderr.lines().count() == 1,
            "{arguments:?}: {failed}"
        );
        ensure!(failed.stderr.contains(words), "{words}: {failed}");
    }
    ensure!(!dir.join("none.raw").exists() && !dir.join("none.raw.importing").exists());
    Ok(())
}

/// Killed at any moment, an import leaves no disk under its name or a whole one, and the next one comes to its end.
#[test]
fn an_import_that_is_killed_leaves_no_half_disk() -> anyhow::Result<()> {
    if missing(
        "an_import_that_is_killed_leaves_no_half_disk",
        &[Need::Qemu],
    ) {
        return Ok(());
    }
    let temporary = tempfile::tempdir()?;
    let dir = temporary.path();
    disk_and_image(dir)?;
    let _server = FileServer::on_loopback(dir, 8098)?;
    let out = dir.join("out.raw");
    let start = || {
        Command::new(berth_binary())
            .args([
                "--log",
                "off",
                "disk",
                "import",
                "http://127.0.0.1:8098/disk.qcow2",
                "out.raw",
            ])
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    };
    let content = fs::read(dir.join("disk.raw"))?;
    let begin = Instant::now();
    ensure!(start()?.wait()?.success());
    let whole = begin.elapsed();
    fs::remove_file(&out)?;
    let (mut killed, mut finished) = (0, 0);
    for round in 0..50 {
        let mut child = start()?;
        // From its first moment to a little after its usual end.
        std::thread::sleep(whole * round / 45);
        child.kill()?;
        child.wait()?;
        if out.exists() {
            finished += 1;
            ensure!(
                fs::read(&out)? == content,
                "round {round}: the disk is another"
            );
            fs::remove_file(&out)?;
        } else {
            killed += 1;
        }
    }
    println!("{killed} rounds were killed before the disk was there, {finished} after");
    ensure!(killed > 0, "nothing was killed in time");
    ensure!(start()?.wait()?.success(), "what was left is in the way");
    ensure!(fs::read(&out)? == content);
    let left: Vec<_> = fs::read_dir(dir)?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    ensure!(left.len() == 3, "{left:?}");
    Ok(())
}

/// Where the file system shares blocks, a copy of 20 GiB is a matter of a moment and takes no room.
#[test]
fn a_clone_shares_blocks_where_it_can() -> anyhow::Result<()> {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    if missing("a_clone_shares_blocks_where_it_can", &[Need::Root]) {
        return Ok(());
    }
    let knows = fs::read_to_string("/proc/filesystems")?;
    if !knows.contains("\txfs\n") {
        berth_testing::skip(
            "a_clone_shares_blocks_where_it_can",
            "the kernel knows no xfs",
        );
        return Ok(());
    }
    let temporary = tempfile::tempdir()?;
    let (image, mount) = (
        temporary.path().join("xfs.img"),
        temporary.path().join("mnt"),
    );
    fs::File::create(&image)?.set_len(1 << 30)?;
    fs::create_dir(&mount)?;
    run(Command::new("mkfs.xfs").arg("-q").arg(&image), "")?.ok()?;
    run(
        Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&mount),
        "",
    )?
    .ok()?;
    let story = || -> anyhow::Result<()> {
        let file = fs::File::create(mount.join("disk.raw"))?;
        file.set_len(20 << 30)?;
        for gib in 0..20 {
            file.write_all_at(
                &vec![u8::try_from(gib).unwrap_or(1) + 1; 8 << 20],
                gib << 30,
            )?;
        }
        file.sync_all()?;
        let free = || -> anyhow::Result<u64> {
            let of = rustix::fs::statvfs(&mount)?;
            Ok(of.f_bavail * of.f_frsize)
        };
        let before = free()?;
        let told = berth(&mount, &["disk", "clone", "disk.raw", "copy.raw"])?.ok()?;
        ensure!(told.contains("shares the blocks"), "{told}");
        let took = before.saturating_sub(free()?);
        ensure!(took < 16 << 20, "the copy took {took} bytes");
        ensure!(fs::metadata(mount.join("copy.raw"))?.size() == 20 << 30);
        let mut found = [0; 4];
        fs::File::open(mount.join("copy.raw"))?.read_exact_at(&mut found, 19 << 30)?;
        ensure!(found == [20; 4]);
        Ok(())
    };
    let told = story();
    run(Command::new("umount").arg(&mount), "")?.ok()?;
    told
}
