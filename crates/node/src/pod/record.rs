//! What is known of each pod's sandbox, on disk: `pods/<uid>/sandbox.json`.
//!
//! A record is written before the first thing of a sandbox is made and after each step that must not be forgotten, so an
//! agent that dies anywhere finds what there is to take over or to clean up. The records are also the only memory of
//! which addresses and users are taken.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_api::launcher::{CLAIM_DISK, CLAIM_PREFIX, held_by};
use berth_image::format::DiskFormat;
use berth_network::ipam::{Exhausted, Pool};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::process::ProcessId;
use crate::volumes::Attached;
use crate::{ClaimedDisk, NodeConfig, PodLocation, PodSandboxes};

/// The first user and group of pods; each pod has its own.
pub(super) const USER_BASE: u32 = 2_000_000;
/// Name of the pod volume that becomes the launcher's run directory.
const RUN_VOLUME: &str = "run";
const FILE: &str = "sandbox.json";

/// One pod's sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) pod_uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) ip: Ipv4Addr,
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) netns: PathBuf,
    pub(crate) cgroups: Vec<PathBuf>,
    /// Image volumes by the pod's name for them.
    pub(crate) disks: BTreeMap<String, Disk>,
    /// Volumes of claims by the pod's name for them.
    #[serde(default)]
    pub(crate) claims: BTreeMap<String, Attached>,
    /// The pod's first process, from before its command runs.
    pub(crate) process: Option<ProcessId>,
    /// When its command began to run.
    pub(crate) started_at: Option<Timestamp>,
    /// How it ended. Network and control groups are free from then on.
    pub(crate) ended: Option<Ended>,
}

/// The file in an image volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Disk {
    /// The directory that is mounted.
    pub(crate) dir: PathBuf,
    /// The file, on this machine.
    pub(crate) file: PathBuf,
    /// Where the directory is mounted in the pod.
    pub(crate) mount_path: String,
    pub(crate) qcow2: bool,
}

/// The end of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ended {
    pub(crate) exit_code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) reason: String,
    pub(crate) message: Option<String>,
    pub(crate) at: Timestamp,
}

impl Disk {
    fn format(&self) -> DiskFormat {
        if self.qcow2 {
            DiskFormat::Qcow2
        } else {
            DiskFormat::Raw
        }
    }

    fn path_in_pod(&self) -> String {
        let name = self.file.file_name().unwrap_or_default().to_string_lossy();
        format!("{}/disk/{name}", self.mount_path.trim_end_matches('/'))
    }
}

/// Why there is no sandbox for a pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReserveError {
    #[error(transparent)]
    NoAddress(#[from] Exhausted),
    #[error("cannot write the pod's state: {0}")]
    Write(#[from] io::Error),
    #[error("{0:?} cannot name a pod's directory")]
    Uid(String),
}

/// A pod that asks for a sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) pod_uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// The pod's `securityContext`, where it names a user.
    pub(crate) user: Option<(u32, u32)>,
    pub(crate) cgroups: Vec<PathBuf>,
    pub(crate) disks: BTreeMap<String, Disk>,
    pub(crate) claims: BTreeMap<String, Attached>,
}

/// The sandboxes of this node. The memory of the records; the disk has the same.
pub struct Sandboxes {
    config: Arc<NodeConfig>,
    records: Mutex<BTreeMap<String, Record>>,
}

impl Sandboxes {
    /// None are known before they are read.
    #[must_use]
    pub(crate) fn new(config: Arc<NodeConfig>) -> Self {
        Self {
            config,
            records: Mutex::default(),
        }
    }

    /// Reads all records. A directory without one holds nothing but files. Blocks.
    ///
    /// # Errors
    /// When the directory of pods cannot be made or read.
    pub(crate) fn read_all(&self) -> io::Result<()> {
        let pods = self.config.pods_dir();
        // Pods' users pass through to nothing but what is bound for them.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&pods)?;
        let found = read_dir(&pods)?;
        *self.lock() = found.into_iter().map(|r| (r.pod_uid.clone(), r)).collect();
        Ok(())
    }

    /// Gives a pod its address and user, and puts that on record. Blocks.
    ///
    /// # Errors
    /// When every address is taken, or the record cannot be written; nothing stays taken then.
    pub(crate) fn reserve(&self, request: Request) -> Result<Record, ReserveError> {
        if request.pod_uid.is_empty()
            || request.pod_uid.contains(['/', '\0'])
            || request.pod_uid.starts_with('.')
        {
            return Err(ReserveError::Uid(request.pod_uid));
        }
        let record = {
            let mut records = self.lock();
            let running = || records.values().filter(|r| r.ended.is_none());
            let addresses: BTreeSet<Ipv4Addr> = running().map(|r| r.ip).collect();
            // A user's files outlive its processes, so the user stays taken until the pod's directory is gone.
            let users: BTreeSet<u32> = records.values().map(|r| r.user).collect();
            let network = &self.config.network;
            let ip = Pool::new(network.gateway, network.prefix).allocate(&addresses)?;
            let free = (USER_BASE..)
                .find(|u| !users.contains(u))
                .unwrap_or(USER_BASE);
            let (user, group) = request.user.unwrap_or((free, free));
            let record = Record {
                netns: self.config.netns_dir().join(&request.pod_uid),
                pod_uid: request.pod_uid,
                namespace: request.namespace,
                name: request.name,
                ip,
                user,
                group,
                cgroups: request.cgroups,
                disks: request.disks,
                claims: request.claims,
                process: None,
                started_at: None,
                ended: None,
            };
            records.insert(record.pod_uid.clone(), record.clone());
            record
        };
        if let Err(error) = self.write(&record) {
            self.lock().remove(&record.pod_uid);
            return Err(error.into());
        }
        Ok(record)
    }

    /// Puts a changed record on disk, then in memory. Blocks.
    ///
    /// # Errors
    /// When it cannot be written; the old one stays.
    pub(crate) fn update(&self, record: &Record) -> io::Result<()> {
        self.write(record)?;
        self.lock().insert(record.pod_uid.clone(), record.clone());
        Ok(())
    }

    /// Forgets a pod, whose directory is gone.
    pub(crate) fn forget(&self, pod_uid: &str) {
        self.lock().remove(pod_uid);
    }

    /// The record of a pod.
    pub(crate) fn get(&self, pod_uid: &str) -> Option<Record> {
        self.lock().get(pod_uid).cloned()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Record> {
        self.lock().values().cloned().collect()
    }

    /// The pod's directory.
    pub(crate) fn dir(&self, pod_uid: &str) -> PathBuf {
        self.config.pods_dir().join(pod_uid)
    }

    /// The file that the pod's output goes to.
    pub(crate) fn log_file(&self, pod_uid: &str) -> PathBuf {
        log_file(&self.dir(pod_uid))
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        let dir = self.dir(&record.pod_uid);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&dir)?;
        let (new, file) = (dir.join(".sandbox.json.new"), dir.join(FILE));
        let written = (|| {
            let mut new_file = File::create(&new)?;
            new_file.write_all(&serde_json::to_vec_pretty(record)?)?;
            new_file.sync_all()?;
            fs::rename(&new, &file)?;
            File::open(&dir)?.sync_all()
        })();
        if written.is_err() && !file.exists() {
            // Out of disk, say. Nothing half-done stays.
            let _ = fs::remove_file(&new);
            let _ = fs::remove_dir(&dir);
        }
        written
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        // Every change is a single insert or remove, so a panic elsewhere leaves nothing half-changed.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PodSandboxes for Sandboxes {
    fn locate(&self, pod_uid: &str) -> Option<PodLocation> {
        let record = self.get(pod_uid)?;
        // Before its process is known there is nothing to find.
        let process = record.process.as_ref()?;
        let disks = record.disks.iter().filter_map(|(name, disk)| {
            Some((
                held_by(name)?,
                (disk.file.clone(), disk.path_in_pod(), disk.format()),
            ))
        });
        let claims = record.claims.iter().filter_map(|(name, attached)| {
            let target = attached.target.trim_end_matches('/');
            let disk = ClaimedDisk {
                path: if attached.block {
                    target.to_owned()
                } else {
                    format!("{target}/{CLAIM_DISK}")
                },
                block: attached.block,
                size: attached.size,
            };
            Some((name.strip_prefix(CLAIM_PREFIX)?.to_owned(), disk))
        });
        Some(PodLocation {
            netns: record.netns.clone(),
            claims: claims.collect(),
            run_dir: run_dir(&self.dir(pod_uid)),
            disks: disks.collect(),
            uid: record.user,
            gid: record.group,
            pid: if record.ended.is_some() {
                0
            } else {
                process.pid
            },
        })
    }
}

/// Reads the records below the directory of pods. One that cannot be read is told and left alone.
pub(crate) fn read_dir(pods: &Path) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(pods)? {
        let path = entry?.path();
        let file = path.join(FILE);
        match fs::read(&file) {
            Ok(json) => match serde_json::from_slice::<Record>(&json) {
                Ok(record)
                    if path
                        .file_name()
                        .is_some_and(|n| n == record.pod_uid.as_str()) =>
                {
                    records.push(record);
                }
                Ok(record) => {
                    tracing::error!(file = %file.display(), pod = record.pod_uid, "the state of another pod, ignored");
                }
                Err(error) => {
                    tracing::error!(file = %file.display(), %error, "the state of a pod cannot be read");
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Nothing was made for it yet, or nothing but files is left.
                if let Err(error) = fs::remove_dir_all(&path) {
                    tracing::warn!(path = %path.display(), %error, "cannot remove what is left of a pod");
                }
            }
            Err(error) => {
                tracing::error!(file = %file.display(), %error, "the state of a pod cannot be read");
            }
        }
    }
    Ok(records)
}

/// The directory of an `emptyDir` volume.
pub(crate) fn volume_dir(pod_dir: &Path, volume: &str) -> PathBuf {
    pod_dir.join("volumes").join(volume)
}

/// What the pod sees as `/var/run/berth`.
pub(crate) fn run_dir(pod_dir: &Path) -> PathBuf {
    volume_dir(pod_dir, RUN_VOLUME)
}

/// Where a pod that does one thing writes what came of it; `/dev/termination-log` inside.
pub(crate) fn termination_log(pod_dir: &Path) -> PathBuf {
    pod_dir.join("termination-log")
}

pub(crate) fn log_file(pod_dir: &Path) -> PathBuf {
    pod_dir.join("logs").join("compute.log")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use berth_network::NodeNetwork;

    pub(crate) fn config(dir: &Path) -> Arc<NodeConfig> {
        Arc::new(NodeConfig {
            node_name: "n1".to_owned(),
            state_dir: dir.join("state"),
            run_dir: dir.join("run"),
            network: NodeNetwork {
                bridge: "b0".to_owned(),
                gateway: Ipv4Addr::new(10, 9, 0, 1),
                prefix: 29,
                mtu: 1500,
            },
            dns: Vec::new(),
            search: Vec::new(),
            berth_binary: PathBuf::from("/usr/bin/berth"),
            insecure_registries: Vec::new(),
            max_pods: crate::DEFAULT_MAX_PODS,
        })
    }

    fn request(uid: &str) -> Request {
        Request {
            pod_uid: uid.to_owned(),
            namespace: "lab".to_owned(),
            name: format!("pod-{uid}"),
            user: None,
            cgroups: Vec::new(),
            disks: BTreeMap::new(),
            claims: BTreeMap::new(),
        }
    }

    #[test]
    fn addresses_and_users_are_each_pods_own_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let sandboxes = Sandboxes::new(config(dir.path()));
        sandboxes.read_all().unwrap();
        let a = sandboxes.reserve(request("a")).unwrap();
        let b = sandboxes.reserve(request("b")).unwrap();
        assert_eq!((a.ip.to_string().as_str(), a.user), ("10.9.0.2", 2_000_000));
        assert_eq!((b.ip.to_string().as_str(), b.user), ("10.9.0.3", 2_000_001));

        let again = Sandboxes::new(config(dir.path()));
        again.read_all().unwrap();
        assert_eq!(again.get("b"), Some(b));
        let c = again.reserve(request("c")).unwrap();
        assert_eq!((c.ip.to_string().as_str(), c.user), ("10.9.0.4", 2_000_002));
    }

    #[test]
    fn the_address_of_a_pod_that_ended_is_free_and_its_user_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let sandboxes = Sandboxes::new(config(dir.path()));
        let mut a = sandboxes.reserve(request("a")).unwrap();
        a.ended = Some(Ended {
            exit_code: 0,
            signal: None,
            reason: "Completed".to_owned(),
            message: None,
            at: Timestamp::UNIX_EPOCH,
        });
        sandboxes.update(&a).unwrap();
        let b = sandboxes.reserve(request("b")).unwrap();
        assert_eq!(b.ip, a.ip);
        assert_ne!(b.user, a.user);
    }

    #[test]
    fn a_full_network_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let sandboxes = Sandboxes::new(config(dir.path()));
        for uid in ["a", "b", "c", "d", "e"] {
            sandboxes.reserve(request(uid)).unwrap();
        }
        assert!(matches!(
            sandboxes.reserve(request("f")),
            Err(ReserveError::NoAddress(_))
        ));
        assert!(!sandboxes.dir("f").exists());
        assert!(matches!(
            sandboxes.reserve(request("../x")),
            Err(ReserveError::Uid(_))
        ));
    }

    #[test]
    fn a_pod_is_found_from_its_first_process_on() {
        let dir = tempfile::tempdir().unwrap();
        let sandboxes = Sandboxes::new(config(dir.path()));
        let disk = Disk {
            dir: "/images/d".into(),
            file: "/images/d/disk/windows.img".into(),
            mount_path: "/var/run/berth-disks/root".to_owned(),
            qcow2: true,
        };
        let mut a = sandboxes
            .reserve(Request {
                disks: [("disk-root".to_owned(), disk)].into(),
                ..request("a")
            })
            .unwrap();
        assert_eq!(sandboxes.locate("a"), None);
        a.process = Some(ProcessId {
            pid: 7,
            start_time: 1,
            boot: String::new(),
        });
        sandboxes.update(&a).unwrap();
        let found = sandboxes.locate("a").unwrap();
        assert_eq!(found.pid, 7);
        assert_eq!(found.run_dir, sandboxes.dir("a").join("volumes/run"));
        let (_, path, format) = &found.disks["root"];
        assert_eq!(path, "/var/run/berth-disks/root/disk/windows.img");
        assert_eq!(*format, DiskFormat::Qcow2);
    }
}
