//! Small file systems for guests: FAT, which every guest reads and needs no privilege to make.

use std::fs::OpenOptions;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

/// Room besides the files: tables and directories.
const SPACE: u64 = 1 << 20;

/// Makes a disk with these files, by their paths, for the launcher's eyes only. Replaces an older one. The same files make
/// the same disk.
pub(crate) fn write(path: &Path, label: &str, files: &[(String, Vec<u8>)]) -> io::Result<()> {
    let mut name = [b' '; 11];
    let label = label.as_bytes();
    let length = label.len().min(name.len());
    name[..length].copy_from_slice(&label[..length]);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    // Every file has its last cluster to itself.
    let rooms = files
        .iter()
        .map(|(_, bytes)| (bytes.len() as u64).next_multiple_of(4096));
    file.set_len((SPACE + rooms.sum::<u64>()).next_multiple_of(4096))?;
    fatfs::format_volume(
        &mut file,
        FormatVolumeOptions::new()
            .volume_label(name)
            .volume_id(0xbe27),
    )?;
    file.seek(SeekFrom::Start(0))?;
    let system = FileSystem::new(&mut file, FsOptions::new())?;
    let root = system.root_dir();
    for (name, bytes) in files {
        let mut dir = root.clone();
        let (parents, name) = name.rsplit_once('/').unwrap_or(("", name));
        for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
            dir = dir.create_dir(parent)?;
        }
        let mut entry = dir.create_file(name)?;
        entry.truncate()?;
        entry.write_all(bytes)?;
        entry.flush()?;
    }
    drop(root);
    system.unmount()
}
