//! The store itself: building, importing, naming, collecting, sharing, and running out of space.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead as _, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use berth_image::format::{DiskFormat, FormatError};
use berth_image::{
    BuildError, Digest, DiskError, ImportError, NoProgress, PullOptions, PullPolicy, Store,
};
use common::{Layer, docker_archive, fixture, gzip, names, noise, qcow2, reference};

#[test]
fn what_was_built_is_the_disk_again() {
    let f = fixture();
    let path = f.write("windows.qcow2", &qcow2());
    let tag = reference("windows2012dc:latest");
    let image = f.store.build(&path, &tag).unwrap();
    assert_eq!(
        f.store
            .resolve(&reference("windows2012dc"))
            .unwrap()
            .as_ref(),
        Some(&image)
    );
    assert!(image.local);
    let disk = f.store.disk(&image).unwrap();
    assert_eq!(disk.format, DiskFormat::Qcow2);
    assert_eq!(std::fs::read(&disk.file).unwrap(), qcow2());
    // Another day, another name of the file, another store: the same image.
    let g = fixture();
    let renamed = g.write("other.img", &qcow2());
    assert_eq!(
        g.store.build(&renamed, &reference("other")).unwrap().digest,
        image.digest
    );
    f.assert_clean();
}

#[test]
fn a_large_sparse_disk_costs_little() {
    let f = fixture();
    let path = f.path("raw.img");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 30).unwrap();
    (&file).write_all(b"boot sector").unwrap();
    let image = f.store.build(&path, &reference("raw")).unwrap();
    assert!(image.size < 1 << 20, "{}", image.size);
    let disk = f.store.disk(&image).unwrap();
    let meta = disk.file.metadata().unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!((meta.len(), disk.virtual_size), (1 << 30, 1 << 30));
    assert!(meta.blocks() * 512 < 1 << 20);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 200 << 10, "peak memory {kib} KiB");
}

#[test]
fn only_disks_are_built() {
    let f = fixture();
    let built = |content: &[u8]| {
        f.store
            .build(&f.write("d", content), &reference("x"))
            .unwrap_err()
    };
    assert!(matches!(
        built(b""),
        BuildError::Disk {
            cause: FormatError::Empty,
            ..
        }
    ));
    assert!(matches!(
        built(b"KDMV"),
        BuildError::Disk {
            cause: FormatError::NotSupported("vmdk"),
            ..
        }
    ));
    let missing = f
        .store
        .build(&f.path("missing"), &reference("x"))
        .unwrap_err();
    assert!(
        missing.to_string().contains("missing: cannot read"),
        "{missing}"
    );
    let digest = reference(&format!("x@{}", Digest::of(b"")));
    assert!(matches!(
        f.store.build(&f.write("d", b"x"), &digest),
        Err(BuildError::ByDigest { .. })
    ));
    f.assert_empty();
}

#[test]
fn images_are_listed_and_removed_with_what_only_they_need() {
    let f = fixture();
    let shared = Layer::new().file("etc/base", &noise(5000)).done();
    let one = f.image(
        "one",
        &[shared.clone(), Layer::new().file("disk/a", b"1").done()],
    );
    let two = f.image(
        "two:v2",
        &[shared, Layer::new().file("disk/a", b"2").done()],
    );
    let disk = f.store.disk(&one).unwrap();
    f.store.disk(&two).unwrap();
    let listed: Vec<String> = f
        .store
        .list()
        .unwrap()
        .iter()
        .map(|i| i.reference.to_string())
        .collect();
    assert_eq!(
        listed,
        ["docker.io/library/one:latest", "docker.io/library/two:v2"]
    );
    assert!(!f.store.remove(&reference("three")).unwrap());
    assert!(f.store.remove(&reference("one")).unwrap());
    assert!(!disk.dir.exists());
    assert_eq!(
        std::fs::read(f.store.disk(&two).unwrap().file).unwrap(),
        b"2"
    );
    assert!(f.store.remove(&reference("two:v2")).unwrap());
    f.assert_empty();
}

#[test]
fn a_digest_finds_the_image_under_any_name_of_its_repository() {
    let f = fixture();
    let image = f.image("repo/x:1", &[Layer::new().file("disk/a", b"1").done()]);
    let found = f
        .store
        .resolve(&reference(&format!("repo/x@{}", image.digest)))
        .unwrap();
    assert_eq!(found.unwrap().digest, image.digest);
    assert_eq!(
        f.store
            .resolve(&reference(&format!("repo/y@{}", image.digest)))
            .unwrap(),
        None
    );
}

#[test]
fn disks_that_are_held_mounted_or_in_use_stay() {
    let f = fixture();
    let image = f.image("x:1", &[Layer::new().file("disk/a", b"1").done()]);
    let disk = f.store.disk(&image).unwrap();
    let hold = f.store.hold(&disk).unwrap();
    assert!(f.store.remove(&image.reference).unwrap());
    assert!(disk.file.exists());
    // Held by another open of the same directory, as another process has it.
    let other = Store::open(f.store.root()).unwrap();
    assert_eq!(other.collect(&BTreeSet::new()).unwrap().disks, 0);
    drop(hold);
    assert_eq!(
        f.store
            .collect(&BTreeSet::from([image.digest.clone()]))
            .unwrap()
            .disks,
        0
    );

    // In a mount namespace of its own, as a pod has it.
    let script = format!(
        "mount --bind {} /mnt && echo mounted && read -r _",
        disk.dir.display()
    );
    let child = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    match child {
        Ok(mut pod) => {
            let mut line = String::new();
            std::io::BufReader::new(pod.stdout.take().unwrap())
                .read_line(&mut line)
                .unwrap();
            if line == "mounted\n" {
                assert_eq!(f.store.collect(&BTreeSet::new()).unwrap().disks, 0);
                assert!(disk.file.exists());
            } else {
                berth_testing::skip(
                    "disks_that_are_held_mounted_or_in_use_stay (the mount)",
                    "cannot mount here",
                );
            }
            drop(pod.stdin.take());
            pod.wait().unwrap();
        }
        Err(e) => berth_testing::skip(
            "disks_that_are_held_mounted_or_in_use_stay (the mount)",
            &e.to_string(),
        ),
    }
    assert_eq!(f.store.collect(&BTreeSet::new()).unwrap().disks, 1);
    assert!(f.store.hold(&disk).is_err());
    f.assert_empty();
}

#[test]
fn what_a_crash_left_is_gone_at_the_next_open() {
    let f = fixture();
    let tmp = f.store.root().join("tmp");
    std::fs::write(tmp.join("blob-abc"), b"half").unwrap();
    std::fs::create_dir_all(tmp.join("disk-abc/disk")).unwrap();
    std::fs::write(tmp.join("disk-abc/disk/x"), b"half").unwrap();
    Store::open(f.store.root()).unwrap();
    assert_eq!(names(&tmp), Vec::<String>::new());
}

#[test]
fn processes_share_the_index() {
    let f = fixture();
    let disk = f.write("disk", &noise(4096));
    std::thread::scope(|scope| {
        for n in 0..8 {
            let disk = &disk;
            let root = f.store.root();
            scope.spawn(move || {
                let store = Store::open(root).unwrap();
                store.build(disk, &reference(&format!("image{n}"))).unwrap();
            });
        }
    });
    assert_eq!(f.store.list().unwrap().len(), 8);
    f.assert_clean();
}

#[test]
fn an_index_of_another_version_or_a_broken_one_is_not_overwritten() {
    let f = fixture();
    let index = f.store.root().join("index.json");
    std::fs::write(&index, br#"{"version": 7, "images": {}}"#).unwrap();
    let error = f.store.list().unwrap_err();
    assert!(error.to_string().contains("version 7"), "{error}");
    std::fs::write(&index, b"{").unwrap();
    assert!(
        f.store
            .build(&f.write("d", &noise(512)), &reference("x"))
            .is_err()
    );
    assert_eq!(std::fs::read(&index).unwrap(), b"{");
}

#[test]
fn an_image_with_a_missing_blob_is_not_there() {
    let f = fixture();
    let image = f.image("x:1", &[Layer::new().file("disk/a", b"1").done()]);
    let blobs = f.store.root().join("blobs/sha256");
    let blob = names(&blobs)
        .into_iter()
        .find(|name| name != image.digest.hex())
        .unwrap();
    std::fs::remove_file(blobs.join(blob)).unwrap();
    assert_eq!(f.store.resolve(&image.reference).unwrap(), None);
    assert!(f.store.list().unwrap().is_empty());
}

#[test]
fn archives_compressed_and_linked() {
    let f = fixture();
    let layer = Layer::new().file("disk/a", b"1").done();
    let archive = f.write(
        "a.tar.gz",
        &gzip(&docker_archive("zipped:1", std::slice::from_ref(&layer))),
    );
    assert_eq!(
        f.store.import_archive(&archive, None).unwrap()[0].reference,
        reference("zipped:1")
    );
    // Two images; the second one's layer is a link to the first one's.
    let manifest =
        br#"[{"Config": "c.json", "RepoTags": ["a:1", "b:1"], "Layers": ["l1/layer.tar"]},
                        {"Config": "c.json", "RepoTags": ["c:1"], "Layers": ["l2/layer.tar"]}]"#;
    let linked = Layer::new()
        .file("l1/layer.tar", &layer)
        .symlink("l2/layer.tar", "../l1/layer.tar")
        .file("c.json", b"{}")
        .file("manifest.json", manifest)
        .done();
    let images = f
        .store
        .import_archive(&f.write("b.tar", &linked), None)
        .unwrap();
    let tags: Vec<&str> = images.iter().map(|i| i.reference.repository()).collect();
    assert_eq!(tags, ["library/a", "library/b", "library/c"]);
    for image in &images {
        assert_eq!(
            std::fs::read(f.store.disk(image).unwrap().file).unwrap(),
            b"1"
        );
    }
    let one_name = f
        .store
        .import_archive(&f.path("b.tar"), Some(&reference("x")));
    assert!(matches!(
        one_name,
        Err(ImportError::Several { count: 2, .. })
    ));
    f.assert_clean();
}

/// An OCI layout; with `manifest.json` too, as `docker save` writes it since Docker 25.
fn oci_archive(
    annotations: &serde_json::Value,
    repo_tags: Option<&str>,
    blob_size: usize,
) -> Vec<u8> {
    let layer = gzip(&Layer::new().file("disk/a", b"1").done());
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": Digest::of(&layer), "size": layer.len() + blob_size}],
    })
    .to_string();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(manifest.as_bytes()),
         "size": manifest.len(), "annotations": annotations},
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(b"attestation"),
         "size": 11, "platform": {"os": "unknown", "architecture": "unknown"}},
    ]});
    let mut files = Layer::new()
        .file("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#)
        .file(&blob(&layer), &layer)
        .file(&blob(b"{}"), b"{}")
        .file(&blob(manifest.as_bytes()), manifest.as_bytes())
        .file("index.json", index.to_string().as_bytes());
    if let Some(tag) = repo_tags {
        let docker = serde_json::json!([{"Config": blob(b"{}"), "RepoTags": [tag], "Layers": [blob(&layer)]}]);
        files = files.file("manifest.json", docker.to_string().as_bytes());
    }
    files.done()
}

#[test]
fn the_oci_form_keeps_its_digest_and_finds_its_name() {
    let f = fixture();
    let import = |archive: &[u8]| f.store.import_archive(&f.write("a.tar", archive), None);
    let full = serde_json::json!({"io.containerd.image.name": "docker.io/library/vm:5",
                                  "org.opencontainers.image.ref.name": "5"});
    let image = import(&oci_archive(&full, Some("other:1"), 0))
        .unwrap()
        .remove(0);
    assert_eq!(image.reference, reference("vm:5"));
    assert_eq!(
        std::fs::read(f.store.disk(&image).unwrap().file).unwrap(),
        b"1"
    );
    // Only a tag in the index: the name is in docker's file, or nowhere.
    let tag = serde_json::json!({"org.opencontainers.image.ref.name": "5"});
    let again = import(&oci_archive(&tag, Some("vm:6"), 0))
        .unwrap()
        .remove(0);
    assert_eq!(
        (again.reference, again.digest),
        (reference("vm:6"), image.digest)
    );
    assert!(matches!(
        import(&oci_archive(&tag, None, 0)),
        Err(ImportError::Unnamed { .. })
    ));
    let g = fixture();
    let lying = g
        .store
        .import_archive(&g.write("a.tar", &oci_archive(&full, None, 1)), None);
    assert!(matches!(lying, Err(ImportError::WrongSize { .. })));
    g.assert_empty();
}

#[test]
fn broken_archives_leave_nothing() {
    let f = fixture();
    let import = |content: &[u8]| {
        let error = f
            .store
            .import_archive(&f.write("a.tar", content), None)
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&f.path("a.tar").display().to_string()),
            "{error}"
        );
        assert!(!error.to_string().contains('\n'), "{error}");
        f.assert_empty();
        error
    };
    let whole = docker_archive("x:1", &[Layer::new().file("disk/a", &noise(10_000)).done()]);
    assert!(matches!(import(&whole[..9000]), ImportError::Read { .. }));
    assert!(matches!(
        import(b"no archive at all"),
        ImportError::Read { .. }
    ));
    assert!(matches!(
        import(&Layer::new().file("x", b"y").done()),
        ImportError::NoImage { .. }
    ));
    assert!(matches!(
        import(&Layer::new().file("../x", b"y").done()),
        ImportError::Read { .. }
    ));
    let no_layer = br#"[{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["gone/layer.tar"]}]"#;
    let archive = Layer::new()
        .file("c.json", b"{}")
        .file("manifest.json", no_layer)
        .done();
    assert!(
        matches!(import(&archive), ImportError::Incomplete { file, .. } if file == "gone/layer.tar")
    );
    let unnamed = br#"[{"Config": "c.json", "RepoTags": null, "Layers": []}]"#;
    let archive = Layer::new()
        .file("c.json", b"{}")
        .file("manifest.json", unnamed)
        .done();
    assert!(matches!(import(&archive), ImportError::Unnamed { .. }));
    let archive = Layer::new().file("manifest.json", b"{}").done();
    assert!(matches!(import(&archive), ImportError::Description { .. }));
    let lying = Layer::new()
        .file(&format!("blobs/sha256/{}", "0".repeat(64)), b"x")
        .done();
    assert!(matches!(import(&lying), ImportError::WrongDigest { .. }));
}

#[tokio::test]
async fn a_local_image_is_used_without_asking() {
    let f = fixture();
    // Nobody listens there.
    let image = f.image(
        "127.0.0.1:1/x:1",
        &[Layer::new().file("disk/a", b"1").done()],
    );
    for policy in [
        PullPolicy::IfNotPresent,
        PullPolicy::Never,
        PullPolicy::Always,
    ] {
        let options = PullOptions {
            policy,
            plain_http: true,
            ..PullOptions::default()
        };
        let found = f
            .store
            .pull(&image.reference, &options, &NoProgress)
            .await
            .unwrap();
        assert_eq!(found.digest, image.digest);
    }
    let never = PullOptions {
        policy: PullPolicy::Never,
        ..PullOptions::default()
    };
    let error = f
        .store
        .pull(&reference("other"), &never, &NoProgress)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "image docker.io/library/other:latest: not in the store, and the pull policy is Never"
    );
}

#[test]
fn a_full_disk_is_an_error_that_leaves_nothing() {
    // The mount is this thread's alone.
    let thread = std::thread::spawn(|| {
        // SAFETY: the mount namespace is not shared memory, and the thread ends with this test.
        let unshared =
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) };
        if let Err(e) = unshared {
            return Some(format!("cannot make a mount namespace: {e}"));
        }
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        mount(
            "tmpfs",
            dir.path(),
            "tmpfs",
            MountFlags::empty(),
            Some(c"size=3m"),
        )
        .unwrap();
        full(dir.path());
        rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        None
    });
    if let Some(reason) = thread.join().unwrap() {
        berth_testing::skip("a_full_disk_is_an_error_that_leaves_nothing", &reason);
    }
}

fn full(dir: &Path) {
    let store = Store::open(dir.join("images")).unwrap();
    let outside = tempfile::tempdir().unwrap();
    let disk = outside.path().join("disk");
    std::fs::write(&disk, noise(8 << 20)).unwrap();
    let error = store.build(&disk, &reference("x")).unwrap_err();
    assert!(
        error.to_string().contains("No space left on device"),
        "{error}"
    );
    let archive = outside.path().join("a.tar");
    std::fs::write(
        &archive,
        docker_archive("x", &[Layer::new().file("disk/a", &noise(8 << 20)).done()]),
    )
    .unwrap();
    let error = store.import_archive(&archive, None).unwrap_err();
    assert!(
        error.to_string().contains("No space left on device"),
        "{error}"
    );
    // The image fits, its disk does not.
    let layer = gzip(&Layer::new().file("disk/a", &vec![7; 8 << 20]).done());
    std::fs::write(&archive, docker_archive("x", &[layer])).unwrap();
    let image = store.import_archive(&archive, None).unwrap().remove(0);
    let error = store.disk(&image).unwrap_err();
    assert!(matches!(error, DiskError::Store { .. }), "{error}");
    assert!(
        error.to_string().contains("No space left on device"),
        "{error}"
    );
    assert_eq!(names(&dir.join("images/tmp")), Vec::<String>::new());
    assert_eq!(names(&dir.join("images/disks")), Vec::<String>::new());
    let mut index = String::new();
    std::fs::File::open(dir.join("images/index.json"))
        .unwrap()
        .read_to_string(&mut index)
        .unwrap();
    assert!(index.contains("library/x:latest"), "{index}");
}

#[test]
fn the_store_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let f = fixture();
    let mode = || {
        std::fs::metadata(f.store.root())
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode(), 0o700);
    // One that was left open is closed.
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(f.store.root(), open).unwrap();
    berth_image::Store::open(f.store.root()).unwrap();
    assert_eq!(mode(), 0o700);
}
