//! PersistentVolumes of a standalone machine: made, grown, removed, and put into pods.
//!
//! - [`Driver`]: what is behind a volume. One is there: [`local::Local`], directories and files of this machine. Another
//!   (one that speaks to a CSI driver) is another implementation and another name in a StorageClass.
//! - `provision`: PersistentVolumes for the claims that ask a driver, and their end.
//! - [`attach`]: a claim of a pod → a directory or a device of this machine.
//!
//! Which claim gets which volume is decided elsewhere (`berth_controllers::volume`).

mod local;
mod provision;

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use berth_api::storage::BLOCK;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{Api, Client, ResourceExt as _};
use serde::{Deserialize, Serialize};

pub(crate) use local::Local;
pub(crate) use provision::run;

/// What is behind volumes. Each call blocks, and is idempotent: it may have been made before, in part or whole.
pub(crate) trait Driver: Send + Sync + 'static {
    /// The name, as StorageClasses and PersistentVolumes have it.
    fn name(&self) -> &'static str;

    /// Makes the volume `handle` of `bytes`; `block` without a file system.
    fn create(&self, handle: &str, bytes: u64, block: bool) -> io::Result<()>;

    /// Makes it larger.
    fn grow(&self, handle: &str, bytes: u64, block: bool) -> io::Result<()>;

    /// Removes it with its content.
    fn delete(&self, handle: &str) -> io::Result<()>;

    /// The directory or device that a pod gets.
    fn attach(&self, handle: &str, block: bool) -> io::Result<PathBuf>;
}

/// A claim's volume as a pod gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Attached {
    /// The directory or device of this machine.
    pub(crate) source: PathBuf,
    /// Where it is in the pod.
    pub(crate) target: String,
    /// Whether it is a device.
    pub(crate) block: bool,
    /// Whether the pod may only read it.
    pub(crate) read_only: bool,
    /// Whether the device was made for the pod, and goes with it.
    pub(crate) loops: bool,
    /// Whether it is a directory of the machine that somebody named (`hostPath`), which stays whose it is.
    #[serde(default)]
    pub(crate) is_host_path: bool,
    /// How large the disk is to be that the launcher makes where there is none, in bytes.
    pub(crate) size: Option<u64>,
}

impl Attached {
    /// Major and minor number of the device.
    pub(crate) fn device(&self) -> io::Result<(u32, u32)> {
        let number = std::fs::metadata(&self.source)?.rdev();
        Ok((rustix::fs::major(number), rustix::fs::minor(number)))
    }
}

/// A volume of a pod that is on a claim: its name there, the claim, and where it is to be.
struct Wanted {
    volume: String,
    claim: String,
    target: String,
    read_only: bool,
}

fn wanted(pod: &Pod) -> Vec<Wanted> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for volume in spec.volumes.iter().flatten() {
        let Some(source) = &volume.persistent_volume_claim else {
            continue;
        };
        for container in &spec.containers {
            let mounts = container.volume_mounts.iter().flatten();
            let devices = container.volume_devices.iter().flatten();
            let mounted = mounts
                .filter(|mount| mount.name == volume.name)
                .map(|mount| (mount.mount_path.clone(), mount.read_only == Some(true)));
            let devices = devices
                .filter(|device| device.name == volume.name)
                .map(|device| (device.device_path.clone(), false));
            all.extend(mounted.chain(devices).map(|(target, read_only)| Wanted {
                volume: volume.name.clone(),
                claim: source.claim_name.clone(),
                target,
                read_only: read_only || source.read_only == Some(true),
            }));
        }
    }
    all
}

/// The volumes of a pod's claims, by the pod's names for them.
///
/// # Errors
/// A sentence for the user that names the claim.
pub(crate) async fn attach(
    client: &Client,
    driver: &Local,
    pod: &Pod,
) -> Result<Vec<(String, Attached)>, String> {
    let namespace = pod.namespace().unwrap_or_default();
    let sizes = pod.annotations().get(berth_api::launcher::CLAIM_SIZES);
    let sizes = sizes.map(|text| berth_api::launcher::ClaimSizes::read(text).0);
    let mut all = Vec::new();
    for wanted in wanted(pod) {
        let problem = |what: String| format!("claim {namespace}/{}: {what}", wanted.claim);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
        let claim = claims
            .get(&wanted.claim)
            .await
            .map_err(|e| problem(e.to_string()))?;
        let phase = claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if phase != Some("Bound") {
            return Err(problem(format!(
                "it is {}, not Bound",
                phase.unwrap_or("Pending")
            )));
        }
        let spec = claim.spec.clone().unwrap_or_default();
        let name = spec.volume_name.unwrap_or_default();
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        let volume = volumes
            .get(&name)
            .await
            .map_err(|e| problem(e.to_string()))?;
        let is_host_path = volume
            .spec
            .as_ref()
            .is_some_and(|spec| spec.host_path.is_some());
        let (driver, block) = (driver.clone(), spec.volume_mode.as_deref() == Some(BLOCK));
        let found = crate::blocking(move || find(&volume, &driver, block)).await;
        let (source, loops) = found.map_err(|e| problem(format!("volume {name}: {e}")))?;
        let size = wanted
            .volume
            .strip_prefix(berth_api::launcher::CLAIM_PREFIX)
            .and_then(|volume| sizes.as_ref()?.get(volume).copied());
        all.push((
            wanted.volume,
            Attached {
                source,
                target: wanted.target,
                block,
                read_only: wanted.read_only,
                loops,
                is_host_path,
                size: size.filter(|bytes| *bytes > 0),
            },
        ));
    }
    Ok(all)
}

/// What is behind a PersistentVolume on this machine, and whether it is a loop device of ours.
fn find(volume: &PersistentVolume, driver: &Local, block: bool) -> io::Result<(PathBuf, bool)> {
    let spec = volume.spec.clone().unwrap_or_default();
    if let Some(csi) = spec.csi {
        if csi.driver != driver.name() {
            return Err(io::Error::other(format!(
                "no driver {:?} is here",
                csi.driver
            )));
        }
        return Ok((driver.attach(&csi.volume_handle, block)?, block));
    }
    let path = spec
        .local
        .map(|local| local.path)
        .or_else(|| spec.host_path.map(|host| host.path));
    let Some(path) = path else {
        return Err(io::Error::other(
            "it is neither local, hostPath nor of a driver of this machine",
        ));
    };
    let path = Path::new(&path);
    let kind = std::fs::metadata(path)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
    let wrong = match (block, kind.file_type()) {
        (true, kind) if !kind.is_block_device() => Some("a block device"),
        (false, kind) if !kind.is_dir() => Some("a directory"),
        _ => None,
    };
    match wrong {
        Some(what) => Err(io::Error::other(format!(
            "{} is not {what}",
            path.display()
        ))),
        None => Ok((path.to_owned(), false)),
    }
}

/// Lets a pod's user use what is on a volume: the directory and the disk in it. Blocks.
pub(crate) fn hand_over(
    attached: &Attached,
    driver: &Local,
    user: u32,
    group: u32,
) -> io::Result<()> {
    let is_ours = attached.source.starts_with(driver.root());
    // Who only reads gets a volume of ours as it is for all, and one that was made by hand as it is.
    if attached.block || (attached.read_only && !is_ours) {
        return Ok(());
    }
    let hand = |file: &std::fs::File, mode: u32| {
        // Volumes of ours are reached through the pods that have them only, and more than one may.
        if is_ours {
            rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(mode))
        } else {
            let (user, group) = (
                rustix::fs::Uid::from_raw(user),
                rustix::fs::Gid::from_raw(group),
            );
            rustix::fs::fchown(file, Some(user), Some(group))
        }
    };
    if !attached.is_host_path {
        hand(&std::fs::File::open(&attached.source)?, 0o777)?;
    }
    // Whoever had the volume before may have put anything there: no links, no pipes.
    let disk = attached.source.join(berth_api::launcher::CLAIM_DISK);
    let flags = rustix::fs::OFlags::RDONLY
        | rustix::fs::OFlags::NOFOLLOW
        | rustix::fs::OFlags::NONBLOCK
        | rustix::fs::OFlags::CLOEXEC;
    match rustix::fs::open(&disk, flags, rustix::fs::Mode::empty()) {
        Ok(file) => {
            let file = std::fs::File::from(file);
            let kind = file.metadata()?;
            if kind.is_file() && kind.nlink() == 1 {
                hand(&file, 0o666)?;
            }
            Ok(())
        }
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Gives back what [`attach`] took for a pod that has ended. Blocks.
pub(crate) fn detach(attached: &Attached) -> io::Result<()> {
    if attached.loops {
        return local::release_loop(&attached.source);
    }
    Ok(())
}
