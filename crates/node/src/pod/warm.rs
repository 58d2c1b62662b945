//! What QEMU can do, found out once a node.
//!
//! A libvirtd that starts for the first time asks QEMU for seconds; one that finds the answers written down takes
//! milliseconds. So they are gathered in a sandbox like a pod's, by the launcher, and every pod sees them read-only. A
//! guest's user never writes what another guest's libvirtd reads.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::sync::watch;

use super::init::InitConfig;
use super::process::ProcessId;
use super::record::Record;
use super::rootfs::{BERTH, Bind, Root};
use super::sandbox::{self, Resolver};
use crate::{NodeConfig, blocking};

/// The user that gathers; below those of pods.
const USER: u32 = 1_999_999;
/// Emulated machines answer slowly too.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the answers depend on; libvirt looks at the same, and asks again where they do not fit.
const PROGRAMS: [&str; 4] = [
    "/usr/bin/qemu-system-x86_64",
    "/usr/sbin/libvirtd",
    "/usr/sbin/virtqemud",
    "/usr/lib/x86_64-linux-gnu/libvirt.so.0",
];

/// Makes sure that the answers are there and fit this machine; says when it is done, well or not.
pub(super) async fn ensure(config: Arc<NodeConfig>, done: watch::Sender<bool>) {
    let begin = Instant::now();
    match blocking(move || gather(&config)).await {
        Ok(false) => {}
        Ok(true) => tracing::info!(
            ms = begin.elapsed().as_millis(),
            "QEMU's capabilities are known"
        ),
        Err(error) => tracing::warn!(
            "QEMU's capabilities are not known, each VM finds out by itself: {error}"
        ),
    }
    done.send_replace(true);
}

/// Whether they had to be gathered.
fn gather(config: &NodeConfig) -> Result<bool, String> {
    let (dir, key) = (config.capabilities_dir(), fingerprint());
    let key_file = dir.with_extension("key");
    let at = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| format!("{path}: {error}")
    };
    if dir.is_dir() && fs::read_to_string(&key_file).is_ok_and(|known| known == key) {
        return Ok(false);
    }
    let work = dir.with_extension("new");
    remove(&work)?;
    let make = |path: &Path, mode| {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(at(path))
    };
    make(&work, 0o700)?;
    let (root, out, run) = (work.join("root"), work.join("out"), work.join("run"));
    make(&root, 0o755)?;
    for path in [&out, &run] {
        make(path, 0o700)?;
        chown(path, Some(USER), Some(USER)).map_err(at(path))?;
    }
    let result = probe(config, &work, root, &out, &run);
    if result.is_err() {
        remove(&work)?;
        return result.map(|()| true);
    }
    // Root's from here on: nobody that runs a guest may change them.
    publish(&out).map_err(at(&out))?;
    let _ = fs::remove_file(&key_file);
    remove(&dir)?;
    fs::rename(&out, &dir).map_err(at(&dir))?;
    fs::write(&key_file, key).map_err(at(&key_file))?;
    remove(&work)?;
    Ok(true)
}

fn probe(
    config: &NodeConfig,
    work: &Path,
    root: std::path::PathBuf,
    out: &Path,
    run: &Path,
) -> Result<(), String> {
    let log = work.join("log");
    let bind = |source: &Path, target: &str, writable| Bind {
        source: source.to_owned(),
        target: target.to_owned(),
        writable,
    };
    let nobody = Record {
        pod_uid: String::new(),
        namespace: String::new(),
        name: "capabilities".to_owned(),
        ip: Ipv4Addr::LOCALHOST,
        user: USER,
        group: USER,
        netns: std::path::PathBuf::new(),
        cgroups: Vec::new(),
        disks: BTreeMap::new(),
        claims: BTreeMap::new(),
        process: None,
        started_at: None,
        ended: None,
    };
    let init = InitConfig {
        root: Root {
            dir: root,
            files: sandbox::etc(config, &nobody, "capabilities", &Resolver::default()),
            binds: vec![
                bind(&config.berth_binary, BERTH, false),
                bind(out, "/out", true),
                bind(run, "/var/run/berth", true),
            ],
            kvm: sandbox::kvm_is_usable(),
            devices: Vec::new(),
        },
        netns: None,
        cgroups: Vec::new(),
        hostname: "capabilities".to_owned(),
        uid: USER,
        gid: USER,
        command: [
            BERTH,
            "launcher",
            "--run-dir",
            "/var/run/berth",
            "--warm-capabilities",
            "/out",
        ]
        .map(str::to_owned)
        .to_vec(),
        environment: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
            .map(str::to_owned)
            .to_vec(),
        log: log.clone(),
    };
    let pid = sandbox::spawn(config, &work.join("init.json"), &init)
        .map_err(|error| error.to_string())?;
    // None when it has ended already.
    let process = ProcessId::of(pid)
        .and_then(|id| id.hold())
        .map_err(|error| error.to_string())?;
    if let Some(process) = process {
        let answered = process.wait_blocking(PATIENCE);
        if !answered {
            let _ = process.signal(Signal::KILL);
            process.wait_blocking(super::END);
        }
        // It was inherited, and would stay as a zombie.
        process.reap();
        if !answered {
            return Err(format!("no answer within {} s", PATIENCE.as_secs()));
        }
    }
    if fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Ok(());
    }
    let log = fs::read_to_string(&log).unwrap_or_default();
    Err(log
        .lines()
        .last()
        .unwrap_or("the launcher said nothing")
        .to_owned())
}

fn publish(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        chown(&path, Some(0), Some(0))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444))?;
    }
    chown(dir, Some(0), Some(0))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

fn remove(dir: &Path) -> Result<(), String> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn fingerprint() -> String {
    let program = |path: &&str| {
        let metadata = fs::metadata(path).ok()?;
        Some(format!("{path} {} {}\n", metadata.len(), metadata.mtime()))
    };
    let programs: String = PROGRAMS.iter().filter_map(program).collect();
    let kernel = rustix::system::uname();
    format!(
        "{programs}kernel {}\nkvm {}\n",
        kernel.release().to_string_lossy(),
        sandbox::kvm_is_usable()
    )
}
