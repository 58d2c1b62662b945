//! Imports of every format, from files and servers, good and bad; `qemu-img` says what is right.
#![allow(clippy::unwrap_used)]

mod server;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_image::NoProgress;
use berth_image::format::{Compression, ImageFormat};
use berth_image::import::{self, Error, From, Http, Imported, Request, Room};
use server::{Behaviour, Server, serve};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// A disk with content of all kinds: text, noise, holes, single sectors, a ragged end.
fn disk(size: usize) -> Vec<u8> {
    let mut disk = vec![0; size];
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut at = 0;
    while at < size {
        let length = (noise() as usize % (700 * 1024)).min(size - at);
        match noise() % 4 {
            0 => disk[at..at + length]
                .iter_mut()
                .for_each(|byte| *byte = noise() as u8),
            1 => disk[at..at + length]
                .iter_mut()
                .enumerate()
                .for_each(|(n, byte)| *byte = b"all work and no play "[n % 21]),
            _ => {
                let sector = (at + length / 2) / 512 * 512;
                if sector + 512 <= size {
                    disk[sector..sector + 512].fill(7);
                }
            }
        }
        at += length.max(512);
    }
    disk
}

struct Bench {
    dir: TempDir,
    raw: PathBuf,
    content: Vec<u8>,
}

impl Bench {
    fn new(size: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let content = disk(size);
        let raw = dir.path().join("disk.raw");
        fs::write(&raw, &content).unwrap();
        Self { dir, raw, content }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, program: &str, args: &[&str]) -> Vec<u8> {
        let out = Command::new(program)
            .args(args)
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        out.stdout
    }

    /// The disk in another format.
    fn image(&self, format: &str, options: &str, packed: bool) -> PathBuf {
        let name = format!("image.{format}");
        let mut args = vec!["convert", "-f", "raw", "-O", format];
        if packed {
            args.push("-c");
        }
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend(["disk.raw", name.as_str()]);
        let _ = fs::remove_file(self.path(&name));
        self.run("qemu-img", &args);
        self.path(&name)
    }

    /// What qemu-img reads out of an image.
    fn oracle(&self, image: &Path, format: &str) -> Vec<u8> {
        let format = if format == "vhd" { "vpc" } else { format };
        let image = image.to_str().unwrap();
        self.run(
            "qemu-img",
            &["convert", "-f", format, "-O", "raw", image, "oracle.raw"],
        );
        fs::read(self.path("oracle.raw")).unwrap()
    }

    fn import(&self, from: From) -> Result<Imported, Error> {
        self.import_with(Request::new(from, self.path("out.raw")))
    }

    fn import_with(&self, request: Request) -> Result<Imported, Error> {
        let result = on_runtime(move || import::run(request, &NoProgress, &AtomicBool::new(false)));
        assert!(
            !self.path("out.raw.importing").exists(),
            "something half done was left"
        );
        if result.is_err() {
            assert!(
                !self.path("out.raw").exists(),
                "a failed import left a disk"
            );
        }
        result
    }

    /// Imports and compares; the disk is gone afterwards.
    fn check(&self, what: &str, from: From, expected: &[u8]) -> Imported {
        let done = self.import(from).unwrap_or_else(|e| panic!("{what}: {e}"));
        let out = fs::read(self.path("out.raw")).unwrap();
        assert_eq!(out.len(), expected.len(), "{what}: length");
        let differs = out.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{what}: the first byte that differs");
        fs::remove_file(self.path("out.raw")).unwrap();
        done
    }
}

fn on_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    let result = std::thread::spawn(move || {
        let _inside = handle.enter();
        work()
    });
    result.join().unwrap()
}

fn http(server: &Server) -> Http {
    Http {
        patience: Duration::from_secs(5),
        pause: Duration::from_millis(2),
        ..Http::new(&server.url)
    }
}

/// Every option of an image that changes how it is read.
const IMAGES: &[(&str, &str, bool)] = &[
    ("raw", "", false),
    ("qcow2", "compat=0.10", false),
    ("qcow2", "", false),
    ("qcow2", "", true),
    ("qcow2", "compat=0.10", true),
    ("qcow2", "compression_type=zstd", true),
    ("qcow2", "cluster_size=512", false),
    ("qcow2", "cluster_size=4k", true),
    ("qcow2", "cluster_size=2M", false),
    ("qcow2", "cluster_size=2M", true),
    ("qcow2", "extended_l2=on", false),
    ("qcow2", "extended_l2=on,cluster_size=1M", false),
    ("qcow2", "refcount_bits=1", false),
    ("qcow2", "lazy_refcounts=on,preallocation=metadata", false),
    ("qcow2", "preallocation=full", false),
    ("vmdk", "", false),
    ("vmdk", "subformat=streamOptimized", false),
    (
        "vmdk",
        "adapter_type=lsilogic,hwversion=13,zeroed_grain=on",
        false,
    ),
    ("vdi", "", false),
    ("vdi", "static=on", false),
    ("vpc", "", false),
    ("vpc", "force_size=on", false),
    ("vpc", "subformat=fixed", false),
    ("vpc", "subformat=fixed,force_size=on", false),
    ("vhdx", "", false),
    ("vhdx", "subformat=fixed", false),
    ("vhdx", "block_size=1M", false),
    ("vhdx", "block_state_zero=off", false),
];

#[test]
fn every_format_reads_as_qemu_img_reads_it() {
    let bench = Bench::new(21 * MIB + 512 * 5);
    for &(format, options, packed) in IMAGES {
        let what = format!("{format} {options} {packed}");
        let image = bench.image(format, options, packed);
        let expected = bench.oracle(&image, format);
        assert_eq!(expected[..bench.content.len()], bench.content, "{what}");
        let size = expected.len() as u64;

        let done = bench.check(&what, From::File(image.clone()), &expected);
        let told = if format == "vpc" { "vhd" } else { format };
        assert_eq!(done.format.as_str(), told, "{what}");
        assert_eq!((done.virtual_size, done.spooled), (size, 0), "{what}");

        let bytes = fs::read(&image).unwrap();
        let ranges = serve(bytes.clone(), Behaviour::default());
        bench.check(
            &format!("{what} by ranges"),
            From::Http(http(&ranges)),
            &expected,
        );

        let whole = serve(
            bytes.clone(),
            Behaviour {
                no_ranges: true,
                ..Behaviour::default()
            },
        );
        let done = bench.check(
            &format!("{what} as a stream"),
            From::Http(http(&whole)),
            &expected,
        );
        // What has to be kept is tables in the middle of data, and no data. A fixed VHD tells its format at its end.
        assert!(
            done.spooled <= 3 * MIB as u64,
            "{what}: {} bytes were kept",
            done.spooled
        );
        println!(
            "{what}: {} of {} bytes were kept",
            done.spooled,
            bytes.len()
        );

        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&bytes).unwrap();
        let stream = From::Stream {
            stream: Box::new(std::io::Cursor::new(gzip.finish().unwrap())),
            length: None,
        };
        let done = bench.check(&format!("{what} in gzip"), stream, &expected);
        assert_eq!(done.compression, Some(Compression::Gzip), "{what}");
    }
}

#[test]
fn packed_images_are_unpacked_on_the_way() {
    let bench = Bench::new(9 * MIB);
    let image = bench.image("qcow2", "", true);
    for (program, ending, compression) in [
        ("gzip", "gz", Compression::Gzip),
        ("xz", "xz", Compression::Xz),
        ("zstd", "zst", Compression::Zstd),
    ] {
        for file in [&bench.raw, &image] {
            let file = file.to_str().unwrap();
            bench.run(program, &["-kf", file]);
            let packed = PathBuf::from(format!("{file}.{ending}"));
            let done = bench.check(program, From::File(packed.clone()), &bench.content);
            assert_eq!(done.compression, Some(compression));
            let server = serve(fs::read(&packed).unwrap(), Behaviour::default());
            bench.check(program, From::Http(http(&server)), &bench.content);
        }
    }
    let twice = bench.path("twice.gz");
    let mut gzip = flate2::write::GzEncoder::new(
        fs::File::create(&twice).unwrap(),
        flate2::Compression::fast(),
    );
    gzip.write_all(&fs::read(bench.path("disk.raw.gz")).unwrap())
        .unwrap();
    gzip.finish().unwrap();
    let error = bench.import(From::File(twice)).unwrap_err();
    assert!(error.to_string().contains("compressed (gzip)"), "{error}");
}

#[test]
fn zeros_are_holes() {
    let bench = Bench::new(MIB);
    let mut content = vec![0; 300 * MIB];
    content[200 * MIB..201 * MIB].fill(1);
    fs::write(&bench.raw, &content).unwrap();
    let image = bench.image("qcow2", "", false);
    for from in [&bench.raw, &image] {
        bench.import(From::File(from.clone())).unwrap();
        let blocks = fs::metadata(bench.path("out.raw")).unwrap().blocks() * 512;
        assert!(blocks <= 2 * MIB as u64, "{blocks} bytes");
        fs::remove_file(bench.path("out.raw")).unwrap();
    }
    let mut request = Request::new(From::File(image), bench.path("out.raw"));
    request.preallocate = true;
    request.size = Some(310 * MIB as u64);
    bench.import_with(request).unwrap();
    let meta = fs::metadata(bench.path("out.raw")).unwrap();
    assert_eq!(meta.len(), 310 * MIB as u64);
    assert!(meta.blocks() * 512 >= 310 * MIB as u64);
}

#[test]
fn a_server_that_breaks_off_is_asked_again_at_the_byte() {
    let bench = Bench::new(12 * MIB);
    let bytes = fs::read(bench.image("qcow2", "", false)).unwrap();
    let breaking = |no_ranges, breaks| Behaviour {
        no_ranges,
        breaks_after: Some(700_000),
        breaks,
        ..Behaviour::default()
    };
    let server = serve(bytes.clone(), breaking(false, None));
    bench.check("ranges", From::Http(http(&server)), &bench.content);
    // Resumed, not begun anew: nothing much is sent twice.
    let sent = server.sent.load(Ordering::Relaxed);
    assert!(
        sent < bytes.len() as u64 * 3 / 2,
        "{sent} of {} bytes",
        bytes.len()
    );
    // In order, too.
    let mut request = Request::new(From::Http(http(&server)), bench.path("out.raw"));
    request.checksum = Some(format!("sha256:{}", sha256(&bytes)).parse().unwrap());
    bench.import_with(request).unwrap();
    fs::remove_file(bench.path("out.raw")).unwrap();

    let server = serve(bytes.clone(), breaking(true, Some(2)));
    bench.check(
        "whole, twice broken",
        From::Http(http(&server)),
        &bench.content,
    );
    let server = serve(bytes, breaking(true, None));
    let error = bench.import(From::Http(http(&server))).unwrap_err();
    assert!(
        error.to_string().contains("broke off") || error.to_string().contains("end of"),
        "{error}"
    );
    assert!(error.is_transient());
    assert_eq!(
        server.asked.lock().unwrap().len(),
        3,
        "it is not asked for ever"
    );
}

#[test]
fn servers_with_habits() {
    let bench = Bench::new(3 * MIB);
    let bytes = fs::read(bench.image("qcow2", "", false)).unwrap();
    let refused = |what: &str, behaviour: Behaviour, words: &str| {
        let server = serve(bytes.clone(), behaviour);
        let error = bench
            .import(From::Http(http(&server)))
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{what}: {error}");
        assert!(error.contains(&server.url), "{what}: {error}");
    };
    // 503 for a while, and for ever.
    let server = serve(
        bytes.clone(),
        Behaviour {
            unavailable: 3,
            ..Behaviour::default()
        },
    );
    bench.check("503 three times", From::Http(http(&server)), &bench.content);
    refused(
        "503",
        Behaviour {
            unavailable: 1000,
            ..Behaviour::default()
        },
        "503",
    );
    let server = serve(
        bytes.clone(),
        Behaviour {
            no_length: true,
            no_ranges: true,
            ..Behaviour::default()
        },
    );
    bench.check("no length", From::Http(http(&server)), &bench.content);
    refused(
        "a length that is a lie",
        Behaviour {
            lies: 1000,
            no_ranges: true,
            ..Behaviour::default()
        },
        "",
    );
    refused(
        "a change in between",
        Behaviour {
            changes: true,
            breaks_after: Some(200_000),
            ..Behaviour::default()
        },
        "changed while it was read",
    );
    // Basic auth, headers, and redirects.
    let secret = Behaviour {
        authorization: Some("Basic bWU6c2VjcmV0"),
        token: Some("t0ken"),
        ..Behaviour::default()
    };
    refused("no credentials", secret.clone(), "401");
    let server = serve(bytes.clone(), secret);
    let mut options = http(&server);
    options.credentials = Some(("me".into(), "secret".into()));
    options.headers = vec!["X-Token: t0ken".into()];
    bench.check("credentials", From::Http(options.clone()), &bench.content);
    let elsewhere = serve(
        Vec::new(),
        Behaviour {
            redirect: Some(server.url.clone()),
            ..Behaviour::default()
        },
    );
    let mut options = Http {
        url: elsewhere.url.clone(),
        ..options
    };
    let error = bench
        .import(From::Http(options.clone()))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("401") && !error.contains("secret"),
        "not taken to another host: {error}"
    );
    assert!(
        server
            .asked
            .lock()
            .unwrap()
            .last()
            .unwrap()
            .get("authorization")
            .is_none()
    );
    let open = serve(bytes.clone(), Behaviour::default());
    let elsewhere = serve(
        Vec::new(),
        Behaviour {
            redirect: Some(open.url.clone()),
            ..Behaviour::default()
        },
    );
    options.url = elsewhere.url;
    bench.check("redirected", From::Http(options), &bench.content);
    let circle = serve(
        Vec::new(),
        Behaviour {
            redirect: Some("/again".into()),
            ..Behaviour::default()
        },
    );
    let error = bench
        .import(From::Http(http(&circle)))
        .unwrap_err()
        .to_string();
    assert!(error.contains("redirects"), "{error}");
    let error = bench
        .import(From::Http(Http::new("ftp://example.org/x")))
        .unwrap_err()
        .to_string();
    assert!(error.contains("not an http"), "{error}");
}

#[test]
fn checksums_are_over_the_bytes_as_they_come() {
    let bench = Bench::new(2 * MIB);
    let image = bench.image("qcow2", "", true);
    bench.run("gzip", &["-kf", image.to_str().unwrap()]);
    let packed = bench.path("image.qcow2.gz");
    for (program, name) in [
        ("md5sum", "md5"),
        ("sha1sum", "sha1"),
        ("sha256sum", "sha256"),
        ("sha512sum", "sha512"),
    ] {
        for file in [&image, &packed] {
            let sum = String::from_utf8(bench.run(program, &[file.to_str().unwrap()])).unwrap();
            let sum = format!("{name}:{}", sum.split_whitespace().next().unwrap());
            let request = |sum: &str| {
                let mut request = Request::new(From::File(file.clone()), bench.path("out.raw"));
                request.checksum = Some(sum.parse().unwrap());
                request
            };
            bench.import_with(request(&sum)).unwrap();
            assert_eq!(fs::read(bench.path("out.raw")).unwrap(), bench.content);
            fs::remove_file(bench.path("out.raw")).unwrap();
            let last = if sum.ends_with('0') { "1" } else { "0" };
            let wrong = format!("{}{last}", &sum[..sum.len() - 1]);
            let error = bench.import_with(request(&wrong)).unwrap_err();
            assert!(
                error.to_string().contains(&wrong) && error.to_string().contains(&sum),
                "{error}"
            );
            assert!(!error.is_transient());
        }
    }
}

#[test]
fn what_has_no_room_is_refused() {
    let bench = Bench::new(2 * MIB);
    let room = |from, available| {
        let mut request = Request::new(from, bench.path("out.raw"));
        request.room = Some(Room {
            available,
            claim: Some((2_000_000, 0.06)),
        });
        bench.import_with(request)
    };
    let images =
        ["raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx"].map(|format| bench.image(format, "", false));
    for image in images.iter().chain([&bench.raw]) {
        let error = room(From::File(image.clone()), MIB as u64)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("Virtual image size 2")
                && error.contains(
                    "larger than the available size 1048576 (PVC size 2000000, reserved overhead 6"
                ),
            "{error}"
        );
        assert!(error.ends_with("A larger PVC is required."), "{error}");
    }
    room(From::File(bench.raw.clone()), 2 * MIB as u64).unwrap();
    fs::remove_file(bench.path("out.raw")).unwrap();
    // A stream of which nobody knows how long it is, and one that unpacks to much more than it says.
    let bomb = |bytes: u64| {
        let packed = zstd::encode_all(std::io::repeat(0).take(bytes), 3).unwrap();
        From::Stream {
            stream: Box::new(std::io::Cursor::new(packed)),
            length: None,
        }
    };
    let error = room(bomb(64 << 20), MIB as u64).unwrap_err().to_string();
    assert!(error.contains("larger than the available size"), "{error}");
    let mut qcow2 = fs::read(&images[1]).unwrap();
    qcow2.resize(300 * MIB, 0);
    let packed = zstd::encode_all(qcow2.as_slice(), 1).unwrap();
    let stream = From::Stream {
        stream: Box::new(std::io::Cursor::new(packed)),
        length: None,
    };
    let error = room(stream, 2 * MIB as u64).unwrap_err().to_string();
    assert!(error.contains("unpacks to more than"), "{error}");
}

#[test]
fn a_disk_that_fills_up_leaves_nothing() {
    let bench = Bench::new(2 * MIB);
    // A limit of this process's files would end the test itself, so a small file system it is.
    let small = bench.path("small");
    fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "none"])
        .arg(&small)
        .status()
        .unwrap();
    assert!(mounted.success(), "cannot mount a tmpfs");
    let noise = bench.path("noise");
    fs::write(
        &noise,
        disk(0x40_0000)
            .iter()
            .map(|byte| byte ^ 0x5a)
            .collect::<Vec<u8>>(),
    )
    .unwrap();
    let request = Request::new(From::File(noise), small.join("out.raw"));
    let error =
        on_runtime(move || import::run(request, &NoProgress, &AtomicBool::new(false))).unwrap_err();
    let left = fs::read_dir(&small).unwrap().count();
    assert!(
        Command::new("umount")
            .arg(&small)
            .status()
            .unwrap()
            .success()
    );
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!(left, 0);
}

#[test]
fn an_import_can_be_stopped() {
    let bench = Bench::new(2 * MIB);
    let request = Request::new(From::File(bench.raw.clone()), bench.path("out.raw"));
    let error =
        on_runtime(move || import::run(request, &NoProgress, &AtomicBool::new(true))).unwrap_err();
    assert!(matches!(error, Error::Stopped));
    assert!(!bench.path("out.raw").exists() && !bench.path("out.raw.importing").exists());
}

#[test]
fn inspecting_tells_what_an_import_would_meet() {
    let bench = Bench::new(2 * MIB);
    let image = bench.image("qcow2", "", true);
    bench.run("gzip", &["-kf", image.to_str().unwrap()]);
    let server = serve(
        fs::read(bench.path("image.qcow2.gz")).unwrap(),
        Behaviour::default(),
    );
    let options = http(&server);
    let told = on_runtime(move || import::inspect(From::Http(options))).unwrap();
    assert_eq!(
        (told.format, told.compression),
        (ImageFormat::Qcow2, Some(Compression::Gzip))
    );
    assert_eq!(told.virtual_size, Some(2 * MIB as u64));
    assert!(told.ranges);
    assert_eq!(
        told.file_size,
        Some(fs::metadata(bench.path("image.qcow2.gz")).unwrap().len())
    );
    let raw = bench.raw.clone();
    let told = on_runtime(move || import::inspect(From::File(raw))).unwrap();
    assert_eq!(
        (told.format, told.virtual_size),
        (ImageFormat::Raw, Some(2 * MIB as u64))
    );
}

/// What could reach out of the file, or is two things, is refused before anything is written.
#[test]
fn hostile_images_are_refused() {
    let bench = Bench::new(2 * MIB);
    let refused = |what: &str, path: PathBuf, words: &str| {
        let error = bench.import(From::File(path)).unwrap_err().to_string();
        assert!(error.contains(words), "{what}: {error}");
    };
    bench.image("qcow2", "", false);
    bench.run(
        "qemu-img",
        &[
            "create",
            "-f",
            "qcow2",
            "-b",
            "image.qcow2",
            "-F",
            "qcow2",
            "child.qcow2",
        ],
    );
    refused("qcow2 child", bench.path("child.qcow2"), "backing file");
    bench.run(
        "qemu-img",
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "data_file=data.raw,data_file_raw=on",
            "ext.qcow2",
            "2M",
        ],
    );
    refused("external data", bench.path("ext.qcow2"), "external file");
    bench.image("vmdk", "", false);
    bench.run(
        "qemu-img",
        &[
            "create",
            "-f",
            "vmdk",
            "-b",
            "image.vmdk",
            "-F",
            "vmdk",
            "child.vmdk",
        ],
    );
    refused("vmdk child", bench.path("child.vmdk"), "backing file");
    bench.run(
        "qemu-img",
        &[
            "create",
            "-f",
            "vmdk",
            "-o",
            "subformat=monolithicFlat",
            "flat.vmdk",
            "2M",
        ],
    );
    refused(
        "flat vmdk",
        bench.path("flat.vmdk"),
        "its data is in other files",
    );
    bench.run(
        "qemu-img",
        &[
            "create",
            "-f",
            "vmdk",
            "-o",
            "subformat=twoGbMaxExtentSparse",
            "two.vmdk",
            "2M",
        ],
    );
    refused(
        "extents",
        bench.path("two.vmdk"),
        "its data is in other files",
    );
    refused("an extent", bench.path("two-s001.vmdk"), "external file");
    bench.image("vpc", "", false);
    for (format, name) in [
        ("vmdk", "image.vmdk"),
        ("qcow2", "image.qcow2"),
        ("vhdx", "image.vhdx"),
        ("vdi", "image.vdi"),
    ] {
        let path = bench.image(format, "", false);
        let mut bytes = fs::read(&path).unwrap();
        bytes[32769..32774].copy_from_slice(b"CD001");
        fs::write(bench.path("poly"), &bytes).unwrap();
        refused(
            name,
            bench.path("poly"),
            &format!("multiple formats detected: {format} and iso"),
        );
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(&fs::read(bench.path("image.vpc")).unwrap()[..512]);
        fs::write(bench.path("poly"), &bytes).unwrap();
        refused(
            name,
            bench.path("poly"),
            &format!("multiple formats detected: {format} and vhd"),
        );
        let server = serve(
            bytes,
            Behaviour {
                no_ranges: true,
                ..Behaviour::default()
            },
        );
        let error = bench
            .import(From::Http(http(&server)))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("multiple formats detected"),
            "{name} as a stream: {error}"
        );
    }
}

/// A cut image is never a disk: all that is missing is missed.
#[test]
fn cut_images_are_refused() {
    let bench = Bench::new(3 * MIB);
    for &(format, options, packed) in IMAGES {
        if format == "raw" || options.contains("preallocation") {
            continue;
        }
        let image = bench.image(format, options, packed);
        let whole = fs::read(&image).unwrap();
        for part in [1, 2, 5, 9] {
            let cut = &whole[..whole.len() * part / 10];
            fs::write(bench.path("cut"), cut).unwrap();
            let stream = || From::Stream {
                stream: Box::new(std::io::Cursor::new(cut.to_vec())),
                length: None,
            };
            for from in [From::File(bench.path("cut")), stream()] {
                let done = bench.import(from);
                // Without its end a fixed VHD is raw, and what is cut of the last block may not be of the disk.
                if done.is_ok() && (!options.contains("fixed") || format != "vpc") {
                    let out = fs::read(bench.path("out.raw")).unwrap();
                    let same = out[..bench.content.len()] == bench.content;
                    assert!(same, "{format} {options}: {part}/10 is a disk");
                }
                let _ = fs::remove_file(bench.path("out.raw"));
            }
        }
    }
}

/// Any damage gives an answer: no panic, no endless loop, and no disk larger than its room.
#[test]
fn damaged_images_give_an_answer() {
    let bench = Bench::new(2 * MIB);
    let mut state = 88_172_645_463_325_252u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for &(format, options, packed) in IMAGES {
        if options.contains("fixed") || options.contains("full") {
            continue;
        }
        let whole = fs::read(bench.image(format, options, packed)).unwrap();
        let tables = whole.len().min(400 * 1024) as u64;
        for round in 0..12 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random() % 6 {
                let most = if round % 2 == 0 { 512 } else { tables };
                let at = (random() % most) as usize;
                bytes[at] = random() as u8;
            }
            fs::write(bench.path("bad"), &bytes).unwrap();
            for stream in [false, true] {
                let from = if stream {
                    From::Stream {
                        stream: Box::new(std::io::Cursor::new(bytes.clone())),
                        length: None,
                    }
                } else {
                    From::File(bench.path("bad"))
                };
                let mut request = Request::new(from, bench.path("out.raw"));
                request.room = Some(Room {
                    available: 64 << 20,
                    claim: None,
                });
                if let Ok(done) = bench.import_with(request) {
                    assert!(done.virtual_size <= 64 << 20);
                    fs::remove_file(bench.path("out.raw")).unwrap();
                }
            }
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
