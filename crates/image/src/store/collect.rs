//! Freeing what no image needs.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::path::Path;

use super::{Store, StoreError, failed};
use crate::Digest;

/// What [`Store::collect`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs removed.
    pub blobs: usize,
    /// Extracted disks removed.
    pub disks: usize,
    /// Bytes freed (allocated bytes, for disks).
    pub bytes: u64,
    /// Somebody was writing, so nothing was done.
    pub busy: bool,
}

impl Store {
    /// Removes blobs that no name in the index needs, and the extracted disks of images that have no name, are not in
    /// `in_use` (manifest digests, [`ContainerDisk::image`](crate::ContainerDisk::image)), are not held
    /// ([`Store::hold`]) and are not mounted anywhere that `/proc` shows.
    ///
    /// Does nothing while a pull, build, import or extraction runs in any process.
    pub fn collect(&self, in_use: &BTreeSet<Digest>) -> Result<Collected, StoreError> {
        let Some(_exclusive) = self.exclusive()? else {
            return Ok(Collected {
                busy: true,
                ..Collected::default()
            });
        };
        let index = self.read_index()?;
        let manifests: HashSet<&Digest> =
            index.images.values().map(|entry| &entry.manifest).collect();
        let mut blobs: HashSet<String> = HashSet::new();
        for digest in &manifests {
            blobs.insert(digest.hex().to_owned());
            if let Some((_, manifest)) = self.manifest(digest) {
                blobs.extend(manifest.blobs().map(|blob| blob.digest.hex().to_owned()));
            }
        }
        let mut done = Collected::default();
        for (name, path) in children(&self.blobs_dir())? {
            if !blobs.contains(&name) {
                let size = fs::metadata(&path).map_or(0, |m| m.len());
                fs::remove_file(&path).map_err(failed("remove", &path))?;
                done.blobs += 1;
                done.bytes += size;
            }
        }
        let mounted = mounted_disks(Path::new("/proc"));
        for (name, path) in children(&self.disks_dir())? {
            let hex = name.split('-').next().unwrap_or_default();
            let needed = Digest::from_hex(hex)
                .is_some_and(|digest| manifests.contains(&digest) || in_use.contains(&digest));
            if needed || mounted.contains(&name) {
                continue;
            }
            let held = File::open(&path).map_err(failed("open", &path))?;
            if held.try_lock().is_err() {
                continue;
            }
            let bytes = allocated(&path);
            // Out of sight in one step; a crash in the middle leaves no half disk under its name.
            let doomed = self.tmp_dir().join(format!("removed-{name}"));
            fs::rename(&path, &doomed).map_err(failed("remove", &path))?;
            fs::remove_dir_all(&doomed).map_err(failed("remove", &doomed))?;
            done.disks += 1;
            done.bytes += bytes;
        }
        Ok(done)
    }
}

fn children(dir: &Path) -> Result<Vec<(String, std::path::PathBuf)>, StoreError> {
    let entries = fs::read_dir(dir).map_err(failed("list", dir))?;
    Ok(entries
        .flatten()
        .map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()))
        .collect())
}

fn allocated(disk: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let files = fs::read_dir(disk.join("disk"))
        .into_iter()
        .flatten()
        .flatten();
    files
        .filter_map(|f| f.metadata().ok())
        .map(|m| m.blocks() * 512)
        .sum()
}

/// The names of disk directories that are the source of a bind mount in the mount namespace of any process.
///
/// This is what protects the disk of a virtual machine that outlived the berth which started it.
fn mounted_disks(proc: &Path) -> HashSet<String> {
    let mut namespaces = HashSet::new();
    let mut found = HashSet::new();
    for process in fs::read_dir(proc).into_iter().flatten().flatten() {
        if !process
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|b| b.is_ascii_digit())
        {
            continue;
        }
        if let Ok(namespace) = fs::read_link(process.path().join("ns/mnt"))
            && !namespaces.insert(namespace)
        {
            continue;
        }
        let Ok(table) = fs::read(process.path().join("mountinfo")) else {
            continue;
        };
        for line in String::from_utf8_lossy(&table).lines() {
            // The fourth field is the path of the mount's root inside its filesystem.
            let root = line.split(' ').nth(3).unwrap_or_default();
            if let Some((_, rest)) = root.rsplit_once("/disks/") {
                found.insert(rest.split('/').next().unwrap_or_default().to_owned());
            }
        }
    }
    found
}
