//! The disk inside an image: which images have one, and what becomes of hostile ones.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use berth_image::format::{DiskFormat, FormatError};
use berth_image::{DiskError, Limits};
use common::{Fixture, Layer, fixture, fixture_with, gzip, names, noise, qcow2};
use tar::EntryType;

fn refused(f: &Fixture, layers: &[Vec<u8>]) -> DiskError {
    let image = f.image("x:1", layers);
    let error = f.store.disk(&image).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("image docker.io/library/x:1: "), "{text}");
    assert!(!text.contains('\n'), "{text}");
    f.assert_clean();
    assert_eq!(names(&f.store.root().join("disks")), Vec::<String>::new());
    error
}

#[test]
fn the_old_form_works_whatever_the_suffix() {
    let f = fixture();
    // COPY disk.qcow2 /disk/windows2012dc.img
    let layer = Layer::new()
        .dir("disk/")
        .file("disk/windows2012dc.img", &qcow2())
        .done();
    let image = f.image("windows2012dc:latest", &[gzip(&layer)]);
    let disk = f.store.disk(&image).unwrap();
    assert_eq!(
        (disk.format, disk.virtual_size),
        (DiskFormat::Qcow2, 1 << 30)
    );
    assert_eq!(
        disk.dir,
        f.store.root().join("disks").join(image.digest.hex())
    );
    assert_eq!(disk.file, disk.dir.join("disk/windows2012dc.img"));
    assert_eq!(std::fs::read(&disk.file).unwrap(), qcow2());
    assert_eq!(
        disk.file.metadata().unwrap().permissions().mode() & 0o7777,
        0o444
    );
    assert_eq!(
        disk.dir.metadata().unwrap().permissions().mode() & 0o7777,
        0o755
    );
    // The second time nothing is written.
    let inode = disk.file.metadata().unwrap().ino();
    assert_eq!(f.store.disk(&image).unwrap(), disk);
    assert_eq!(disk.file.metadata().unwrap().ino(), inode);
    f.assert_clean();
}

#[test]
fn a_raw_disk_is_written_with_holes() {
    let f = fixture();
    let mut raw = noise(8192);
    raw.resize(32 << 20, 0);
    raw.extend(noise(4096));
    let image = f.image("raw", &[Layer::new().file("./disk/a", &raw).done()]);
    let disk = f.store.disk(&image).unwrap();
    assert_eq!(
        (disk.format, disk.virtual_size),
        (DiskFormat::Raw, raw.len() as u64)
    );
    assert!(std::fs::read(&disk.file).unwrap() == raw);
    assert!(disk.file.metadata().unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn none_several_and_nested() {
    let f = fixture();
    assert!(matches!(
        refused(&f, &[Layer::new().dir("disk/").file("etc/x", b"x").done()]),
        DiskError::Missing { .. }
    ));
    assert!(matches!(refused(&f, &[]), DiskError::Missing { .. }));
    let two = Layer::new()
        .file("disk/a", b"a")
        .file("disk/b", b"b")
        .done();
    let error = refused(&f, &[two]);
    assert!(
        error.to_string().ends_with("found /disk/a, /disk/b"),
        "{error}"
    );
    let layers = [
        Layer::new().file("disk/a", b"a").done(),
        Layer::new().file("disk/b", b"b").done(),
    ];
    assert!(matches!(refused(&f, &layers), DiskError::Several { .. }));
    let nested = Layer::new().file("disk/dir/a", b"a").done();
    assert!(matches!(
        refused(&f, &[nested]),
        DiskError::NotAFile {
            kind: "file in a directory",
            ..
        }
    ));
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let f = fixture();
    let kind_of = |layers: &[Vec<u8>]| match refused(&f, layers) {
        DiskError::NotAFile { kind, .. } => kind,
        other => panic!("{other}"),
    };
    assert_eq!(
        kind_of(&[Layer::new().symlink("disk/a", "/etc/shadow").done()]),
        "symlink"
    );
    assert_eq!(
        kind_of(&[Layer::new().symlink("disk", "/etc").done()]),
        "symlink"
    );
    let link = Layer::new()
        .file("x", b"x")
        .entry(EntryType::Link, "disk/a", "x", b"")
        .done();
    assert_eq!(kind_of(&[link]), "hard link");
    assert_eq!(
        kind_of(&[Layer::new()
            .entry(EntryType::Block, "disk/a", "", b"")
            .done()]),
        "device node"
    );
    assert_eq!(
        kind_of(&[Layer::new()
            .entry(EntryType::Char, "disk/a", "", b"")
            .done()]),
        "device node"
    );
    assert_eq!(
        kind_of(&[Layer::new()
            .entry(EntryType::Fifo, "disk/a", "", b"")
            .done()]),
        "fifo"
    );
    let in_its_place = refused(&f, &[Layer::new().file("disk", b"x").done()]);
    assert!(
        matches!(in_its_place, DiskError::Missing { .. }),
        "{in_its_place}"
    );
    // A link that replaces the directory, in a later layer and in the same one.
    let file = Layer::new().file("disk/a", b"a").done();
    assert_eq!(
        kind_of(&[file, Layer::new().symlink("disk", "/etc").done()]),
        "symlink"
    );
    let both = Layer::new()
        .symlink("disk", "/etc")
        .file("disk/passwd", b"a")
        .done();
    assert!(matches!(refused(&f, &[both]), DiskError::Several { .. }));
}

#[test]
fn paths_that_climb_out_are_refused() {
    let f = fixture();
    for path in ["../../etc/cron.d/x", "disk/../../x", "/disk/x", "disk/.."] {
        let error = refused(&f, &[Layer::new().file(path, b"x").done()]);
        assert!(
            matches!(&error, DiskError::Escapes { entry, .. } if entry == path),
            "{error}"
        );
    }
    let error = refused(&f, &[Layer::new().file("disk/a\nb", b"x").done()]);
    assert!(matches!(error, DiskError::BadName { .. }), "{error}");
}

#[test]
fn later_layers_win_and_whiteouts_count() {
    let f = fixture();
    let base = Layer::new()
        .dir("disk/")
        .file("disk/old", b"old")
        .file("disk/other", b"other")
        .done();
    let content = |layers: &[Vec<u8>]| {
        let image = f.image("x:1", layers);
        let disk = f.store.disk(&image).unwrap();
        (
            disk.file.file_name().unwrap().to_owned(),
            std::fs::read(&disk.file).unwrap(),
        )
    };
    let whiteouts = Layer::new()
        .file("disk/.wh.old", b"")
        .file("disk/.wh.other", b"")
        .file("disk/new", b"new")
        .done();
    assert_eq!(
        content(&[base.clone(), whiteouts]),
        ("new".into(), b"new".to_vec())
    );
    let opaque = Layer::new()
        .dir("disk/")
        .file("disk/.wh..wh..opq", b"")
        .file("disk/new", b"2")
        .done();
    assert_eq!(
        content(&[base.clone(), opaque]),
        ("new".into(), b"2".to_vec())
    );
    let dir_gone = Layer::new().file(".wh.disk", b"").done();
    let again = Layer::new().file("disk/third", b"3").done();
    assert_eq!(
        content(&[base.clone(), dir_gone.clone(), again]),
        ("third".into(), b"3".to_vec())
    );
    assert!(matches!(
        refused_image(&f, &[base.clone(), dir_gone]),
        DiskError::Missing { .. }
    ));
    // A whiteout hides lower layers, not its own.
    let own = Layer::new()
        .file("disk/.wh.old", b"")
        .file("disk/.wh.other", b"")
        .file("disk/old", b"fresh")
        .done();
    assert_eq!(
        content(&[base.clone(), own]),
        ("old".into(), b"fresh".to_vec())
    );
    let replaced = [
        Layer::new().file("disk/a", b"1").done(),
        Layer::new().file("disk/a", b"2").done(),
    ];
    assert_eq!(content(&replaced), ("a".into(), b"2".to_vec()));
    // The last of the same path in one layer counts.
    let twice = Layer::new()
        .file("disk/a", b"first, and longer")
        .file("disk/a", b"last")
        .done();
    assert_eq!(content(&[twice]), ("a".into(), b"last".to_vec()));
    // A directory in place of a lower link.
    let layers = [
        Layer::new().symlink("disk", "/etc").done(),
        Layer::new().dir("disk/").file("disk/a", b"ok").done(),
    ];
    assert_eq!(content(&layers), ("a".into(), b"ok".to_vec()));
}

fn refused_image(f: &Fixture, layers: &[Vec<u8>]) -> DiskError {
    let image = f.image("x:1", layers);
    f.store.disk(&image).unwrap_err()
}

#[test]
fn a_file_replaced_by_a_directory_leaves_nothing_behind() {
    let f = fixture();
    let layer = Layer::new()
        .file("disk/a", b"gone")
        .dir("disk/a")
        .file("disk/b", b"b")
        .done();
    let disk = f.store.disk(&f.image("x:1", &[layer])).unwrap();
    assert_eq!(names(&disk.dir.join("disk")), ["b"]);
}

#[test]
fn hostile_disks_are_refused_and_not_kept() {
    let f = fixture();
    let with = |offset: usize, bytes: &[u8]| {
        let mut disk = qcow2();
        disk[offset..offset + bytes.len()].copy_from_slice(bytes);
        match refused(&f, &[Layer::new().file("disk/a.img", &disk).done()]) {
            DiskError::Format { entry, cause, .. } => {
                assert_eq!(entry, "/disk/a.img");
                cause
            }
            other => panic!("{other}"),
        }
    };
    assert!(matches!(with(15, &[1]), FormatError::BackingFile(_)));
    assert_eq!(with(79, &[4]), FormatError::ExternalData);
    assert!(matches!(
        with(36, &[0xff; 4]),
        FormatError::Header {
            field: "l1_size",
            ..
        }
    ));
    assert_eq!(
        with(32769, b"CD001"),
        FormatError::Ambiguous("qcow2", "iso")
    );
    assert_eq!(with(0, b"KDMV"), FormatError::NotSupported("vmdk"));
    let empty = refused(&f, &[Layer::new().file("disk/a", b"").done()]);
    assert!(
        empty.to_string().ends_with("/disk/a: it is empty"),
        "{empty}"
    );
}

#[test]
fn bombs_stop_at_the_limit() {
    let f = fixture_with(Limits {
        unpacked_bytes: 8 << 20,
        ..Limits::default()
    });
    let layer = Layer::new().file("disk/a", &vec![0; 16 << 20]).done();
    let bomb = gzip(&layer);
    let archive = f.write("a.tar", &common::docker_archive("x:1", &[bomb]));
    let image = f.store.import_archive(&archive, None).unwrap().remove(0);
    let error = f.store.disk(&image).unwrap_err();
    assert!(
        matches!(
            error,
            DiskError::TooLarge {
                limit: 8_388_608,
                ..
            }
        ),
        "{error}"
    );
    f.assert_clean();
}

#[test]
fn broken_layers_are_named() {
    let f = fixture();
    let whole = Layer::new().file("disk/a", &noise(100_000)).done();
    for broken in [
        whole[..50_000].to_vec(),
        gzip(&whole)[..50_000].to_vec(),
        b"no tar, ".repeat(200),
        vec![0x1f, 0x8b, 0],
    ] {
        let error = refused(&f, &[broken]);
        assert!(matches!(error, DiskError::Layer { .. }), "{error}");
    }
}

#[test]
fn a_blob_that_changed_in_the_store_is_noticed() {
    let f = fixture();
    let layer = Layer::new().file("disk/a", &noise(10_000)).done();
    let image = f.image("x:1", std::slice::from_ref(&layer));
    let digest = berth_image::Digest::of(&layer);
    let path = f.store.root().join("blobs/sha256").join(digest.hex());
    let mut changed = layer;
    changed[5000] ^= 1;
    std::fs::write(&path, changed).unwrap();
    let error = f.store.disk(&image).unwrap_err();
    assert!(
        matches!(&error, DiskError::Damaged { layer, .. } if *layer == digest),
        "{error}"
    );
    assert_eq!(names(&f.store.root().join("tmp")), Vec::<String>::new());
}

#[test]
fn a_path_in_the_image_may_be_given() {
    let f = fixture();
    let layer = Layer::new()
        .file("disk/a", b"a")
        .file("disk/b", b"b")
        .file("custom/c.img", &qcow2())
        .symlink("l", "disk")
        .done();
    let image = f.image("x:1", &[layer]);
    let disk = f.store.disk_at(&image, "/custom/c.img").unwrap();
    assert_eq!(disk.format, DiskFormat::Qcow2);
    assert!(disk.file.ends_with("disk/c.img"));
    // As a plain file it is whatever it is.
    let file = f.store.file_at(&image, "/custom/c.img").unwrap();
    assert_eq!(file.format, DiskFormat::Raw);
    assert_ne!(file.dir, disk.dir);
    assert_eq!(
        std::fs::read(f.store.disk_at(&image, "//disk/./b").unwrap().file).unwrap(),
        b"b"
    );
    assert!(matches!(
        f.store.disk_at(&image, "/disk/none"),
        Err(DiskError::Missing { .. })
    ));
    assert!(matches!(
        f.store.disk_at(&image, "/disk"),
        Err(DiskError::Several { .. } | DiskError::NotAFile { .. })
    ));
    assert!(matches!(
        f.store.disk_at(&image, "/l/a"),
        Err(DiskError::NotAFile {
            kind: "symlink",
            ..
        })
    ));
    for bad in ["disk/a", "/", "/../etc/passwd", "/disk/../../x", ""] {
        assert!(
            matches!(f.store.disk_at(&image, bad), Err(DiskError::BadName { .. })),
            "{bad}"
        );
    }
}

#[test]
fn many_threads_extract_once() {
    let f = fixture();
    let image = f.image(
        "x:1",
        &[Layer::new().file("disk/a", &noise(1 << 20)).done()],
    );
    let inodes: std::collections::BTreeSet<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| f.store.disk(&image).unwrap().file.metadata().unwrap().ino()))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(inodes.len(), 1);
    f.assert_clean();
}
