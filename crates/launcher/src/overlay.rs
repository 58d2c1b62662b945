//! The empty qcow2 overlay that makes a shared, read-only disk writable for one guest.
//!
//! Written here and not by `qemu-img`: it is one header and an empty table, and it names the format of the backing file,
//! so that QEMU never guesses it from bytes that a guest or an image author controls.
//!
//! Layout, in clusters of 64 KiB: header, refcount table, one refcount block, L1 table. The format is in QEMU's
//! `docs/interop/qcow2.txt`.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

/// log2 of the cluster size.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes of the disk that one entry of the L1 table stands for.
const L1_REACH: u64 = CLUSTER / 8 * CLUSTER;
/// Clusters before the L1 table.
const L1_START: u64 = 3;
/// QEMU's own limit for the L1 table: 32 MiB, that is 2 PiB of disk.
const MAX_L1_ENTRIES: u64 = (32 << 20) / 8;
/// `QFI\xfb`
const MAGIC: u32 = 0x5146_49fb;
/// Header extension with the format of the backing file.
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// Length of a version 3 header.
const HEADER: u32 = 104;

/// Why an overlay cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OverlayError {
    #[error("cannot read disk {path}: {source}")]
    Read { path: String, source: io::Error },
    #[error("disk {path} is not {format}")]
    NotThatFormat { path: String, format: String },
    #[error("disk {0} has a backing file of its own")]
    BackingFile(String),
    #[error("disk {path} claims to have {size} bytes")]
    Size { path: String, size: u64 },
    #[error("the path of disk {0} is too long")]
    Path(String),
    #[error("cannot write overlay {path}: {source}")]
    Write { path: String, source: io::Error },
}

/// Makes an overlay at `overlay` over the file `backing` of this format (`raw` or `qcow2`). Replaces an older overlay.
pub(crate) fn create(overlay: &Path, backing: &str, format: &str) -> Result<(), OverlayError> {
    let size = virtual_size(backing, format)?;
    let bytes = render(backing, format, size)?;
    let write = || {
        let mut file = File::create(overlay)?;
        file.write_all(&bytes)?;
        // The rest of the L1 table: zero, and no blocks on the node's disk.
        file.set_len((L1_START + l1_clusters(size)) * CLUSTER)
    };
    write().map_err(|source| OverlayError::Write {
        path: overlay.display().to_string(),
        source,
    })
}

fn l1_entries(size: u64) -> u64 {
    size.div_ceil(L1_REACH).max(1)
}

fn l1_clusters(size: u64) -> u64 {
    (l1_entries(size) * 8).div_ceil(CLUSTER)
}

/// The size of the disk that the guest sees.
fn virtual_size(backing: &str, format: &str) -> Result<u64, OverlayError> {
    let read = |source| OverlayError::Read {
        path: backing.to_owned(),
        source,
    };
    let mut file = File::open(backing).map_err(read)?;
    let size = match format {
        // As QEMU does it: a last sector that is not full counts as one.
        "raw" => file.metadata().map_err(read)?.len().div_ceil(512) * 512,
        "qcow2" => {
            let mut header = [0_u8; 32];
            file.read_exact(&mut header).map_err(read)?;
            if be32(&header, 0) != MAGIC {
                return Err(OverlayError::NotThatFormat {
                    path: backing.to_owned(),
                    format: format.to_owned(),
                });
            }
            if be64(&header, 8) != 0 {
                return Err(OverlayError::BackingFile(backing.to_owned()));
            }
            be64(&header, 24)
        }
        other => {
            return Err(OverlayError::NotThatFormat {
                path: backing.to_owned(),
                format: other.to_owned(),
            });
        }
    };
    if l1_entries(size) > MAX_L1_ENTRIES {
        return Err(OverlayError::Size {
            path: backing.to_owned(),
            size,
        });
    }
    Ok(size)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The first clusters up to the L1 table.
fn render(backing: &str, format: &str, size: u64) -> Result<Vec<u8>, OverlayError> {
    // An extension is padded to eight bytes; an empty one ends the list; the name of the backing file follows.
    let padded = format.len().div_ceil(8) * 8;
    let name_at = HEADER as usize + 8 + padded + 8;
    // The format allows 1023 bytes.
    let name_len = u32::try_from(backing.len()).ok().filter(|len| *len <= 1023);
    let name_len = name_len.ok_or_else(|| OverlayError::Path(backing.to_owned()))?;
    let l1_entries = u32::try_from(l1_entries(size)).expect("bounded by MAX_L1_ENTRIES");

    let mut out = Vec::with_capacity((L1_START * CLUSTER) as usize);
    let mut u32s = |values: &[u32]| {
        values
            .iter()
            .for_each(|value| out.extend_from_slice(&value.to_be_bytes()));
    };
    u32s(&[MAGIC, 3]);
    u32s(&[0, name_at as u32, name_len, CLUSTER_BITS]);
    u32s(&[(size >> 32) as u32, size as u32]);
    u32s(&[0, l1_entries]); // no encryption
    u32s(&[0, (L1_START * CLUSTER) as u32, 0, CLUSTER as u32]); // L1 table, refcount table
    u32s(&[1, 0, 0, 0]); // one cluster of refcount table, no snapshots
    u32s(&[0, 0, 0, 0, 0, 0]); // no incompatible, compatible or autoclear features
    u32s(&[4, HEADER]); // refcounts of 2^4 bits
    u32s(&[EXTENSION_BACKING_FORMAT, format.len() as u32]);
    out.extend_from_slice(format.as_bytes());
    out.resize(name_at, 0);
    out.extend_from_slice(backing.as_bytes());

    out.resize(CLUSTER as usize, 0);
    out.extend_from_slice(&(2 * CLUSTER).to_be_bytes()); // where the refcount block is
    out.resize(2 * CLUSTER as usize, 0);
    for _ in 0..L1_START + l1_clusters(size) {
        out.extend_from_slice(&1_u16.to_be_bytes());
    }
    out.resize(L1_START as usize * CLUSTER as usize, 0);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn qemu_img(test: &str, args: &[&str]) -> Option<serde_json::Value> {
        let output = match Command::new("qemu-img").args(args).output() {
            Ok(output) => output,
            Err(error) => {
                berth_testing::skip(test, &format!("qemu-img: {error}"));
                return None;
            }
        };
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Some(serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    #[test]
    fn qemu_reads_our_overlays_of_every_size() {
        const TEST: &str = "qemu_reads_our_overlays_of_every_size";
        let dir = tempfile::tempdir().unwrap();
        let backing = dir.path().join("disk.img");
        let overlay = dir.path().join("overlay.qcow2");
        for size in [512_u64, (1 << 20) + 1, 1 << 29, (1 << 29) + 512, 5 << 40] {
            File::create(&backing).unwrap().set_len(size).unwrap();
            create(&overlay, backing.to_str().unwrap(), "raw").unwrap();
            let Some(info) = qemu_img(TEST, &["info", "--output=json", overlay.to_str().unwrap()])
            else {
                return;
            };
            assert_eq!(info["format"], "qcow2");
            assert_eq!(info["virtual-size"], size.div_ceil(512) * 512);
            assert_eq!(info["backing-filename"], backing.to_str().unwrap());
            assert_eq!(info["backing-filename-format"], "raw");
            let check =
                qemu_img(TEST, &["check", "--output=json", overlay.to_str().unwrap()]).unwrap();
            assert_eq!(check["check-errors"], 0, "{check}");
            assert_eq!(check.get("leaks"), None, "{check}");
            assert_eq!(check.get("corruptions"), None, "{check}");
        }
    }

    #[test]
    fn a_qcow2_disk_gives_its_virtual_size() {
        const TEST: &str = "a_qcow2_disk_gives_its_virtual_size";
        let dir = tempfile::tempdir().unwrap();
        let backing = dir.path().join("disk.qcow2");
        let overlay = dir.path().join("overlay.qcow2");
        let path = backing.to_str().unwrap();
        if qemu_img(TEST, &["create", "-q", "-f", "qcow2", path, "10G"]).is_none() {
            return;
        }
        create(&overlay, path, "qcow2").unwrap();
        let info = qemu_img(TEST, &["info", "--output=json", overlay.to_str().unwrap()]).unwrap();
        assert_eq!(
            (&info["virtual-size"], &info["backing-filename-format"]),
            (&(10_u64 << 30).into(), &"qcow2".into())
        );
        assert!(matches!(
            create(&dir.path().join("o2"), overlay.to_str().unwrap(), "qcow2"),
            Err(OverlayError::BackingFile(_))
        ));
    }

    #[test]
    fn what_is_not_the_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let backing = dir.path().join("disk.img");
        std::fs::write(&backing, [0; 4096]).unwrap();
        let path = backing.to_str().unwrap();
        let make = |format| {
            create(&dir.path().join("o"), path, format)
                .unwrap_err()
                .to_string()
        };
        assert!(make("qcow2").contains("is not qcow2"));
        assert!(make("vmdk").contains("is not vmdk"));
        assert!(
            create(&dir.path().join("o"), "/no/such/disk", "raw")
                .unwrap_err()
                .to_string()
                .contains("/no/such/disk")
        );
    }
}
