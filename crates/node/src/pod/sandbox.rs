//! Makes a pod's sandbox, starts its command in it, and takes it down again.
//!
//! ```text
//!  record ─► network ─► control groups ─► directories ─► berth pod-init ─► the command runs
//!    ▲ written first, so that whatever comes after is found again and taken down
//! ```
//!
//! Taking down goes on after an error and gives all of them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use berth_network::MacAddr;

use super::cgroup::{self, Limits};
use super::init::{InitConfig, Report};
use super::process::ProcessId;
use super::record::{Record, log_file, termination_log, volume_dir};
use super::rootfs::{BERTH, Bind, Device, Root};
use super::texts::{self, Texts};
use crate::NodeConfig;
use crate::volumes::{self, Attached, Local};

/// Where a pod finds what QEMU can do, so that its libvirtd need not find out.
const CAPABILITIES: &str = "/var/cache/berth-qemu-capabilities";
/// The path of the launcher in the Pod's command. The machine's own binary stands for it.
const BERTH_IN_IMAGE: &str = "/usr/bin/berth";

/// A step of making a sandbox that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    /// Namespace, link, address.
    #[error("network: {0}")]
    Network(#[from] berth_network::Error),
    /// Groups and limits.
    #[error("control groups: {0}")]
    Cgroups(#[source] io::Error),
    /// Files of the pod.
    #[error("{}: {source}", path.display())]
    Files { path: PathBuf, source: io::Error },
    /// `berth pod-init`.
    #[error("starting the sandbox: {0}")]
    Init(String),
}

/// What failed while a sandbox was taken down.
#[derive(Debug, thiserror::Error)]
pub enum TeardownError {
    /// Link or namespace.
    #[error("pod {pod}: network: {source}")]
    Network {
        /// Namespace and name.
        pod: String,
        /// The cause.
        source: berth_network::Error,
    },
    /// Control groups.
    #[error("pod {pod}: control group: {source}")]
    Cgroup {
        /// Namespace and name.
        pod: String,
        /// The cause.
        source: io::Error,
    },
    /// Files.
    #[error("{}: {source}", path.display())]
    Files {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A process that does not end.
    #[error("pod {pod}: its process {pid} did not end")]
    Process {
        /// Namespace and name.
        pod: String,
        /// Which.
        pid: u32,
    },
    /// The node's network.
    #[error("the node's network: {0}")]
    Node(#[source] berth_network::Error),
}

/// The parts of a Pod that its sandbox is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) hostname: String,
    pub(crate) command: Vec<String>,
    pub(crate) environment: Vec<String>,
    pub(crate) limits: Limits,
    /// Volume → where it is mounted.
    pub(crate) empty_dirs: BTreeMap<String, String>,
    /// Volume → its files.
    pub(crate) texts: BTreeMap<String, Texts>,
    pub(crate) resolver: Resolver,
    /// It fills or copies volumes and ends, and has no machine.
    pub(crate) works_on_volumes: bool,
}

/// Whom the pod asks for addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    /// Whether those of the node are among them.
    pub(crate) of_node: bool,
    pub(crate) servers: Vec<String>,
    pub(crate) search: Vec<String>,
    pub(crate) options: Vec<String>,
}

/// Makes the sandbox of a record and starts the command. Blocks. After a failure [`tear_down`] removes what there is.
pub(crate) fn start(
    config: &NodeConfig,
    record: &Record,
    spec: &Spec,
) -> Result<ProcessId, SandboxError> {
    let dir = config.pods_dir().join(&record.pod_uid);
    berth_network::create_netns(&record.netns)?;
    let mac = MacAddr::local(&record.pod_uid);
    berth_network::attach_pod(
        &config.network,
        &record.netns,
        &record.pod_uid,
        record.ip,
        mac,
    )?;
    cgroup::create(&record.cgroups, &spec.limits).map_err(SandboxError::Cgroups)?;
    let owner = (record.user, record.group);
    for volume in spec.empty_dirs.keys() {
        make_dir(&volume_dir(&dir, volume), 0o700, Some(owner))?;
    }
    for (volume, texts) in &spec.texts {
        let path = volume_dir(&dir, volume);
        texts::write(&path, texts, record.group)
            .map_err(|source| SandboxError::Files { path, source })?;
    }
    let driver = Local::new(config.volumes_dir());
    for attached in record.claims.values() {
        volumes::hand_over(attached, &driver, record.user, record.group).map_err(|source| {
            let path = attached.source.clone();
            SandboxError::Files { path, source }
        })?;
    }
    if spec.works_on_volumes {
        let path = termination_log(&dir);
        fs::write(&path, b"")
            .and_then(|()| chown(&path, Some(record.user), Some(record.group)))
            .map_err(|source| SandboxError::Files { path, source })?;
    }
    let log = log_file(&dir);
    if let Some(parent) = log.parent() {
        make_dir(parent, 0o700, None)?;
    }
    let root = dir.join("root");
    make_dir(&root, 0o755, None)?;
    let init = InitConfig {
        root: Root {
            dir: root,
            files: etc(config, record, &spec.hostname, &spec.resolver),
            binds: binds(config, record, spec, &dir),
            kvm: !spec.works_on_volumes && kvm_is_usable(),
            devices: devices(record)?,
        },
        netns: Some(record.netns.clone()),
        cgroups: record.cgroups.clone(),
        hostname: spec.hostname.clone(),
        uid: record.user,
        gid: record.group,
        command: command(&spec.command),
        environment: environment(spec),
        log,
    };
    let pid = spawn(config, &dir.join("init.json"), &init)?;
    ProcessId::of(pid)
        .map_err(|error| SandboxError::Init(format!("its process {pid} ended at once: {error}")))
}

/// Runs `berth pod-init` and waits for its report.
pub(crate) fn spawn(
    config: &NodeConfig,
    file: &Path,
    init: &InitConfig,
) -> Result<u32, SandboxError> {
    let failed = |source| SandboxError::Files {
        path: file.to_owned(),
        source,
    };
    let json = serde_json::to_vec_pretty(init).map_err(|error| failed(error.into()))?;
    fs::write(file, json).map_err(failed)?;
    let output = Command::new(&config.berth_binary)
        .arg("pod-init")
        .arg(file)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .map_err(|error| {
            SandboxError::Init(format!(
                "cannot run {}: {error}",
                config.berth_binary.display()
            ))
        })?;
    match serde_json::from_slice(&output.stdout) {
        Ok(Report::Started(pid)) => Ok(pid),
        Ok(Report::Failed(message)) => Err(SandboxError::Init(message)),
        Err(_) => Err(SandboxError::Init(format!(
            "pod-init ended with {} and told nothing",
            output.status
        ))),
    }
}

/// Whether this machine's KVM is of use; asked once.
pub(crate) fn kvm_is_usable() -> bool {
    static USABLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *USABLE.get_or_init(|| berth_hypervisor::kvm::probe().usable)
}

fn make_dir(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<(), SandboxError> {
    let failed = |source| SandboxError::Files {
        path: path.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(failed)?;
    owner.map_or(Ok(()), |(uid, gid)| {
        chown(path, Some(uid), Some(gid)).map_err(failed)
    })
}

fn command(given: &[String]) -> Vec<String> {
    let mut command = given.to_vec();
    if let Some(program) = command
        .first_mut()
        .filter(|program| *program == BERTH_IN_IMAGE)
    {
        BERTH.clone_into(program);
    }
    command
}

fn environment(spec: &Spec) -> Vec<String> {
    let fixed = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"].map(str::to_owned);
    fixed
        .into_iter()
        .chain(spec.environment.iter().cloned())
        .collect()
}

fn binds(config: &NodeConfig, record: &Record, spec: &Spec, dir: &Path) -> Vec<Bind> {
    let bind = |source: PathBuf, target: &str, writable| Bind {
        source,
        target: target.to_owned(),
        writable,
    };
    let mut binds = vec![bind(config.berth_binary.clone(), BERTH, false)];
    let capabilities = config.capabilities_dir();
    if capabilities.is_dir() {
        binds.push(bind(capabilities, CAPABILITIES, false));
    }
    binds.extend(
        spec.empty_dirs
            .iter()
            .map(|(volume, at)| bind(volume_dir(dir, volume), at, true)),
    );
    binds.extend(
        spec.texts
            .iter()
            .map(|(volume, texts)| bind(volume_dir(dir, volume), &texts.mount_path, false)),
    );
    binds.extend(
        record
            .disks
            .values()
            .map(|disk| bind(disk.dir.clone(), &disk.mount_path, false)),
    );
    let directories = record.claims.values().filter(|attached| !attached.block);
    binds.extend(
        directories.map(|claim| bind(claim.source.clone(), &claim.target, !claim.read_only)),
    );
    if spec.works_on_volumes {
        binds.push(bind(termination_log(dir), "/dev/termination-log", true));
        // Authorities of servers.
        let certificates = Path::new("/etc/ssl/certs");
        if certificates.is_dir() {
            binds.push(bind(certificates.to_owned(), "/etc/ssl/certs", false));
        }
    }
    binds
}

/// The block devices of claims.
fn devices(record: &Record) -> Result<Vec<Device>, SandboxError> {
    let blocks = record.claims.values().filter(|attached| attached.block);
    let device = |attached: &Attached| {
        let failed = |source| SandboxError::Files {
            path: attached.source.clone(),
            source,
        };
        let (major, minor) = attached.device().map_err(failed)?;
        Ok(Device {
            target: attached.target.clone(),
            major,
            minor,
        })
    };
    blocks.map(device).collect()
}

/// What programs look for in `/etc`.
pub(crate) fn etc(
    config: &NodeConfig,
    record: &Record,
    hostname: &str,
    resolver: &Resolver,
) -> BTreeMap<String, String> {
    let Record {
        user, group, ip, ..
    } = record;
    let of_node = config.dns.iter().filter(|_| resolver.of_node);
    let servers = of_node
        .map(ToString::to_string)
        .chain(resolver.servers.iter().cloned());
    let mut resolv: String = servers
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    let of_node = config.search.iter().filter(|_| resolver.of_node);
    let search: Vec<&str> = of_node
        .chain(&resolver.search)
        .map(String::as_str)
        .collect();
    for (word, list) in [
        ("search", search.join(" ")),
        ("options", resolver.options.join(" ")),
    ] {
        if !list.is_empty() {
            resolv += &format!("{word} {list}\n");
        }
    }
    [
        ("/etc/passwd", format!("root:x:0:0:root:/root:/usr/sbin/nologin\nqemu:x:{user}:{group}:qemu:/var/run/berth:/usr/sbin/nologin\n")),
        ("/etc/group", format!("root:x:0:\ntty:x:5:\nqemu:x:{group}:\n")),
        ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
        ("/etc/hosts", format!("127.0.0.1 localhost\n::1 localhost\n{ip} {hostname}\n")),
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/resolv.conf", resolv),
    ]
    .into_iter()
    .map(|(path, content)| (path.to_owned(), content))
    .collect()
}

/// Removes network and control groups of a pod whose processes have ended. Blocks.
pub(crate) fn release(config: &NodeConfig, record: &Record) -> Vec<TeardownError> {
    let pod = format!("{}/{}", record.namespace, record.name);
    let network = |source| TeardownError::Network {
        pod: pod.clone(),
        source,
    };
    let mut errors: Vec<_> = berth_network::detach_pod(&config.network, &record.pod_uid)
        .into_iter()
        .map(network)
        .collect();
    errors.extend(
        berth_network::delete_netns(&record.netns)
            .err()
            .map(network),
    );
    cgroup::kill(&record.cgroups);
    let groups = cgroup::remove(&record.cgroups).into_iter();
    errors.extend(groups.map(|source| TeardownError::Cgroup {
        pod: pod.clone(),
        source,
    }));
    errors.extend(record.claims.values().filter_map(|attached| {
        let path = attached.source.clone();
        let failed = volumes::detach(attached).err()?;
        Some(TeardownError::Files {
            path,
            source: failed,
        })
    }));
    errors
}

/// Removes a pod's files. The record goes last: while it is there, what else is there is known. Blocks.
#[expect(
    clippy::result_large_err,
    reason = "failing is rare, and the errors are collected by value"
)]
pub(crate) fn remove_files(config: &NodeConfig, pod_uid: &str) -> Result<(), TeardownError> {
    let dir = config.pods_dir().join(pod_uid);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| TeardownError::Files { path, source }
    };
    match fs::read_dir(&dir) {
        Ok(entries) => {
            for entry in entries
                .flatten()
                .filter(|entry| entry.file_name() != "sandbox.json")
            {
                let path = entry.path();
                let removed = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    fs::remove_dir_all(&path)
                } else {
                    fs::remove_file(&path)
                };
                removed.map_err(failed(&path))?;
            }
            fs::remove_dir_all(&dir).map_err(failed(&dir))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(&dir)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_launchers_path_in_the_image_is_this_machines_binary() {
        let given = ["/usr/bin/berth", "launcher", "--name", "/usr/bin/berth"].map(str::to_owned);
        assert_eq!(
            command(&given),
            ["/opt/berth/berth", "launcher", "--name", "/usr/bin/berth"]
        );
        let other = ["/usr/bin/busybox".to_owned()];
        assert_eq!(command(&other), other);
    }
}
