//! Images to disks: `berth disk import` beside what everybody has, `curl` and `qemu-img convert`.
//!
//! A disk of 4 GiB with 1 GiB of content comes from a web server on this machine. Two peers: the file is fetched with curl and
//! then converted, and `qemu-img convert` reads straight from the address (where nothing is packed around the image). The
//! time is until the disk is on stable storage, for all of them: berth waits for that by itself, the peers are followed by
//! `sync`. The floor is a plain copy of the raw disk.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::bail;
use berth_e2e::{FileServer, berth_binary, run};

use crate::figures::Figures;

const SIZE: u64 = 4 << 30;
/// Pieces of 1 MiB with content: every fourth, in runs.
const CONTENT: u64 = 1024;
const ROUNDS: usize = 3;
const PORT: u16 = 8099;

/// What one way cost.
#[derive(Default)]
struct Cost {
    wall: Figures,
    cpu: Figures,
    memory: Figures,
    written: Figures,
}

pub(crate) fn run_all() -> anyhow::Result<()> {
    let dir = tempfile::Builder::new()
        .prefix("berth-bench-import")
        .tempdir()?;
    let path = |name: &str| dir.path().join(name);
    let raw = path("disk.raw");
    content(&raw)?;
    let images = images(dir.path())?;
    let _server = FileServer::on_loopback(dir.path(), PORT)?;
    println!(
        "\nimport: 4 GiB, 1 GiB of content (half of it noise), from a web server on this machine to a disk that is synced; {ROUNDS} rounds"
    );
    println!(
        "  {:<22} {:<26} {:<24} {:<22} {:<16} written",
        "", "wall", "ratio to berth", "CPU", "peak memory"
    );
    let out = path("out.raw");
    let floor = {
        let mut cost = Cost::default();
        for _ in 0..ROUNDS {
            cost.add(
                &out,
                &[vec![
                    "cp".into(),
                    raw.display().to_string(),
                    out.display().to_string(),
                ]],
                true,
            )?;
        }
        cost
    };
    floor.print("plain copy", "(the floor)", None);
    for (name, file) in &images {
        let url = format!("http://127.0.0.1:{PORT}/{file}");
        let out_name = out.display().to_string();
        let fetched = path(&format!("fetched-{file}")).display().to_string();
        let berth = vec![vec![
            berth_binary().display().to_string(),
            "--log".into(),
            "warn".into(),
            "disk".into(),
            "import".into(),
            url.clone(),
            out_name.clone(),
        ]];
        let convert = |from: &str| {
            [
                "qemu-img", "convert", "-f", "qcow2", "-O", "raw", from, &out_name,
            ]
            .map(str::to_owned)
            .to_vec()
        };
        let fetch = ["curl", "-s", "-f", "-o", &fetched, &url]
            .map(str::to_owned)
            .to_vec();
        let unpack = match file.rsplit('.').next() {
            Some("gz") => Some("gunzip"),
            Some("xz") => Some("unxz"),
            Some("zst") => Some("unzstd"),
            _ => None,
        };
        let mut two_step = vec![fetch];
        let inner = fetched
            .trim_end_matches(".gz")
            .trim_end_matches(".xz")
            .trim_end_matches(".zst");
        if let Some(unpack) = unpack {
            two_step.push(vec![unpack.to_owned(), "-f".to_owned(), fetched.clone()]);
        }
        two_step.push(convert(inner));
        let direct = unpack.is_none().then(|| vec![convert(&url)]);
        let (mut own, mut peer, mut straight) = (Cost::default(), Cost::default(), Cost::default());
        // Turn and turn about, so that what the machine does besides falls on all.
        for _ in 0..ROUNDS {
            own.add(&out, &berth, false)?;
            same(&raw, &out)?;
            peer.add(&out, &two_step, true)?;
            let _ = fs::remove_file(inner);
            let _ = fs::remove_file(&fetched);
            if let Some(direct) = &direct {
                straight.add(&out, direct, true)?;
            }
        }
        own.print(name, "berth disk import", None);
        peer.print("", "curl + qemu-img", Some(&own));
        if direct.is_some() {
            straight.print("", "qemu-img from the URL", Some(&own));
        }
    }
    Ok(())
}

impl Cost {
    /// Runs the commands one after the other and takes what they cost together.
    fn add(&mut self, out: &Path, commands: &[Vec<String>], sync: bool) -> anyhow::Result<()> {
        let _ = fs::remove_file(out);
        run(&mut Command::new("sync"), "")?.ok()?;
        let begin = Instant::now();
        let (mut cpu, mut memory, mut written) = (0.0, 0.0, 0.0);
        for command in commands {
            let used = used_by(command)?;
            cpu += used.0;
            memory = f64::max(memory, used.1);
            written += used.2;
        }
        if sync {
            run(Command::new("sync").arg(out), "")?.ok()?;
        }
        self.wall.add(begin.elapsed().as_secs_f64());
        self.cpu.add(cpu);
        self.memory.add(memory);
        self.written.add(written);
        Ok(())
    }

    fn print(&self, name: &str, way: &str, own: Option<&Self>) {
        let ratio = own.map_or(String::new(), |own| {
            format!("{:.2}x as long", self.wall.median() / own.wall.median())
        });
        println!(
            "  {name:<22} {way:<22} {:<26} {ratio:<16} {:<24} {:>6.0} MiB   {:>6.0} MiB",
            self.wall.brief("s"),
            self.cpu.brief("s"),
            self.memory.median(),
            self.written.median()
        );
    }
}

/// Seconds of CPU, peak MiB, MiB written, of a command that must succeed; by GNU time.
fn used_by(command: &[String]) -> anyhow::Result<(f64, f64, f64)> {
    let report = tempfile::NamedTempFile::new()?;
    let mut timed = Command::new("/usr/bin/time");
    // CPU of the program and of the kernel for it, KiB, blocks of 512 bytes.
    timed
        .args(["-f", "%U %S %M %O", "-o"])
        .arg(report.path())
        .args(command);
    run(&mut timed, "")?.ok()?;
    let text = fs::read_to_string(report.path())?;
    let numbers: Vec<f64> = text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let [user, system, memory, blocks] = numbers[..] else {
        bail!("time says {text:?}");
    };
    Ok((user + system, memory / 1024.0, blocks / 2048.0))
}

/// Runs of noise and of text with holes between them.
fn content(path: &Path) -> anyhow::Result<()> {
    let file = File::create(path)?;
    file.set_len(SIZE)?;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut noise = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut piece = vec![0u8; 1 << 20];
    for number in 0..CONTENT {
        // Sixteen in a row, then a hole three times as long.
        let at = (number / 16 * 64 + number % 16) << 20;
        if number % 2 == 0 {
            for chunk in piece.chunks_exact_mut(8) {
                chunk.copy_from_slice(&noise().to_le_bytes());
            }
        } else {
            for chunk in piece.chunks_exact_mut(64) {
                let text = format!(
                    "{:016x} the quick brown fox jumps over the lazy dog {:08}\n ",
                    noise(),
                    number
                );
                chunk.copy_from_slice(&text.as_bytes()[..64]);
            }
        }
        std::io::Seek::seek(&mut out, std::io::SeekFrom::Start(at))?;
        out.write_all(&piece)?;
    }
    out.flush()?;
    Ok(())
}

fn images(dir: &Path) -> anyhow::Result<Vec<(&'static str, String)>> {
    let on = |program: &str, arguments: &[&str]| -> anyhow::Result<()> {
        run(Command::new(program).args(arguments).current_dir(dir), "")?
            .ok()
            .map(drop)
    };
    let convert = ["convert", "-f", "raw", "-O", "qcow2"];
    on(
        "qemu-img",
        &[&convert[..], &["disk.raw", "plain.qcow2"]].concat(),
    )?;
    on(
        "qemu-img",
        &[&convert[..], &["-c", "disk.raw", "zlib.qcow2"]].concat(),
    )?;
    on(
        "qemu-img",
        &[
            &convert[..],
            &[
                "-c",
                "-o",
                "compression_type=zstd",
                "disk.raw",
                "zstd.qcow2",
            ],
        ]
        .concat(),
    )?;
    on("gzip", &["-1", "-k", "plain.qcow2"])?;
    on("xz", &["-0", "-T0", "-k", "plain.qcow2"])?;
    Ok(vec![
        ("qcow2", "plain.qcow2".into()),
        ("qcow2, zlib clusters", "zlib.qcow2".into()),
        ("qcow2, zstd clusters", "zstd.qcow2".into()),
        ("qcow2 in gzip", "plain.qcow2.gz".into()),
        ("qcow2 in xz", "plain.qcow2.xz".into()),
    ])
}

fn same(one: &Path, other: &Path) -> anyhow::Result<()> {
    run(Command::new("cmp").arg(one).arg(other), "")?
        .ok()
        .map(drop)
}
