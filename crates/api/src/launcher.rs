//! What the controller writes into a launcher pod and the node agent reads from it.

use std::collections::BTreeMap;

/// Where the launcher's sockets, overlays and final state are, inside the pod.
pub const RUN_DIR: &str = "/var/run/berth";
/// Under which the container disks are mounted, inside the pod.
pub const DISKS_DIR: &str = "/var/run/berth-disks";
/// What the names of containers that hold container disks begin with; the volume's name follows.
const HOLDER_PREFIX: &str = "disk-";
/// The same of what the firmware starts.
const BOOT_PREFIX: &str = "boot-";
/// Stands among the volumes for the kernel that the firmware starts. No volume is called so.
pub const BOOT_KERNEL: &str = ".boot-kernel";
/// The same for its initial file system.
pub const BOOT_INITRD: &str = ".boot-initrd";

/// Name of the pod's volume or container that holds what belongs to a volume, or to one of [`BOOT_KERNEL`] and
/// [`BOOT_INITRD`].
#[must_use]
pub fn holder_name(volume: &str) -> String {
    match volume.strip_prefix('.') {
        Some(boot) => boot.to_owned(),
        None => format!("{HOLDER_PREFIX}{volume}"),
    }
}

/// What a pod's volume or container of this name holds, the other way round.
#[must_use]
pub fn held_by(name: &str) -> Option<String> {
    if name.starts_with(BOOT_PREFIX) {
        return Some(format!(".{name}"));
    }
    name.strip_prefix(HOLDER_PREFIX).map(str::to_owned)
}

/// Whether what is held is a plain file and no disk.
#[must_use]
pub fn is_boot_file(volume: &str) -> bool {
    volume.starts_with('.')
}
/// What the names of volumes on claims begin with; the volume's name follows.
pub const CLAIM_PREFIX: &str = "claim-";
/// Under which the file systems of claims are mounted, inside the pod.
pub const CLAIMS_DIR: &str = "/var/run/berth-claims";
/// The disk in the file system of a claim.
pub const CLAIM_DISK: &str = "disk.img";
/// Where the block devices of claims are, inside the pod.
pub const DEVICES_DIR: &str = "/dev/berth";
/// Annotation of the pod: [`ClaimSizes`].
pub const CLAIM_SIZES: &str = "berth.kubevirt.io/claim-sizes";

/// Under which the texts of Secrets, ConfigMaps and of the pod itself are mounted, inside the pod, by the names of the pod's
/// volumes.
pub const TEXTS_DIR: &str = "/var/run/berth-texts";

/// Name of the pod's volume with the texts of a machine's volume: its own, or the user data of cloud-init.
#[must_use]
pub fn texts_volume(volume: &str) -> String {
    format!("text-{volume}")
}

/// Name of the pod's volume with the configuration of the network for cloud-init.
#[must_use]
pub fn network_data_volume(volume: &str) -> String {
    format!("netd-{volume}")
}

/// Name of the pod's volume with the keys or passwords of the access credential at this place of the list.
#[must_use]
pub fn credential_volume(index: usize) -> String {
    format!("access-{index}")
}

/// Annotation of the pod: [`DiskPaths`].
pub const DISK_PATHS: &str = "berth.kubevirt.io/disk-paths";

/// Which file of a container disk's image is meant, by the volume's name, where container disks are image volumes. Nothing
/// is said of an image that holds one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskPaths(pub BTreeMap<String, String>);

impl DiskPaths {
    /// The value of the annotation, JSON: paths may hold anything.
    #[must_use]
    pub fn write(&self) -> String {
        serde_json::to_string(&self.0).unwrap_or_default()
    }

    /// Reads the value; what cannot be read says nothing.
    #[must_use]
    pub fn read(value: &str) -> Self {
        Self(serde_json::from_str(value).unwrap_or_default())
    }
}

/// How large the disk of each claim with a file system is to be, in bytes, by the volume's name. Nothing is said of one
/// whose size is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimSizes(pub BTreeMap<String, u64>);

impl ClaimSizes {
    /// The value of the annotation: `volume=bytes,…`. Names of volumes are DNS labels.
    #[must_use]
    pub fn write(&self) -> String {
        let entries: Vec<String> = self
            .0
            .iter()
            .map(|(volume, size)| format!("{volume}={size}"))
            .collect();
        entries.join(",")
    }

    /// Reads the value; entries that are no such thing are left out.
    #[must_use]
    pub fn read(value: &str) -> Self {
        let entries = value.split(',').filter_map(|entry| entry.split_once('='));
        let sizes =
            entries.filter_map(|(volume, size)| Some((volume.to_owned(), size.parse().ok()?)));
        Self(sizes.filter(|(_, size)| *size > 0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_were_written() {
        let sizes = ClaimSizes(BTreeMap::from([
            ("data".into(), 1024),
            ("more".into(), u64::MAX),
        ]));
        assert_eq!(ClaimSizes::read(&sizes.write()), sizes);
        assert_eq!(
            ClaimSizes::read("none=0,bad,x=-1,=,y=z,"),
            ClaimSizes::default()
        );
    }
}
