//! Whether firmware would find something to boot at the beginning of a disk.
//!
//! A disk without it is no error: it may hold data only. But a machine whose boot disk lacks it stands still with a
//! message that nobody sees, so it is worth a warning.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::DiskFormat;

/// The last two bytes of a boot sector.
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// Where an ISO 9660 image names itself.
const ISO_AT: u64 = 32769;

/// Whether the disk in the file at `path` begins with a boot sector or is an ISO image. None where telling would take more
/// than looking: the beginning of a qcow2 image may be compressed.
pub fn is_bootable(path: &Path, format: DiskFormat) -> io::Result<Option<bool>> {
    let file = File::open(path)?;
    match format {
        DiskFormat::Raw => {
            let iso = read::<5>(&file, ISO_AT)?.is_some_and(|name| &name == b"CD001");
            Ok(Some(iso || read(&file, 510)? == Some(SIGNATURE)))
        }
        DiskFormat::Qcow2 => match first_cluster(&file)? {
            Cluster::Data(at) => Ok(Some(read(&file, at + 510)? == Some(SIGNATURE))),
            Cluster::Zero => Ok(Some(false)),
            Cluster::Compressed => Ok(None),
        },
    }
}

enum Cluster {
    Data(u64),
    Zero,
    Compressed,
}

/// Follows the two tables of a qcow2 image (docs/interop/qcow2.txt in QEMU) to the cluster that the guest sees first.
fn first_cluster(file: &File) -> io::Result<Cluster> {
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    const COMPRESSED: u64 = 1 << 62;
    const ALL_ZERO: u64 = 1;
    let entry = |at: u64| Ok::<_, io::Error>(read(file, at)?.map_or(0, u64::from_be_bytes));
    let l1_table = entry(40)?;
    let l2_table = entry(l1_table)? & OFFSET;
    if l1_table == 0 || l2_table == 0 {
        return Ok(Cluster::Zero);
    }
    let cluster = entry(l2_table)?;
    Ok(match cluster & OFFSET {
        _ if cluster & COMPRESSED != 0 => Cluster::Compressed,
        _ if cluster & ALL_ZERO != 0 => Cluster::Zero,
        0 => Cluster::Zero,
        at => Cluster::Data(at),
    })
}

/// Bytes at a place; none where the file ends before.
fn read<const N: usize>(file: &File, at: u64) -> io::Result<Option<[u8; N]>> {
    let mut bytes = [0; N];
    match file.read_exact_at(&mut bytes, at) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bootable(bytes: &[u8], format: DiskFormat) -> Option<bool> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        is_bootable(file.path(), format).unwrap()
    }

    /// A qcow2 image with one entry in each table, as far as the function looks.
    fn qcow2(l2_entry: u64, sector: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 4 << 16];
        image[40..48].copy_from_slice(&(1_u64 << 16).to_be_bytes());
        image[1 << 16..][..8].copy_from_slice(&((2_u64 << 16) | 1 << 63).to_be_bytes());
        image[2 << 16..][..8].copy_from_slice(&l2_entry.to_be_bytes());
        image[3 << 16..][..sector.len()].copy_from_slice(sector);
        image
    }

    #[test]
    fn signatures_are_found_where_they_are() {
        let mut sector = vec![0; 512];
        assert_eq!(bootable(&sector, DiskFormat::Raw), Some(false));
        assert_eq!(bootable(&[1, 2, 3], DiskFormat::Raw), Some(false));
        sector[510..].copy_from_slice(&SIGNATURE);
        assert_eq!(bootable(&sector, DiskFormat::Raw), Some(true));
        let mut iso = vec![0; 40000];
        iso[32769..32774].copy_from_slice(b"CD001");
        assert_eq!(bootable(&iso, DiskFormat::Raw), Some(true));

        let data = (3 << 16) | (1 << 63);
        assert_eq!(
            bootable(&qcow2(data, &sector), DiskFormat::Qcow2),
            Some(true)
        );
        assert_eq!(
            bootable(&qcow2(data, &[0; 512]), DiskFormat::Qcow2),
            Some(false)
        );
        assert_eq!(bootable(&qcow2(0, &sector), DiskFormat::Qcow2), Some(false));
        assert_eq!(
            bootable(&qcow2(data | 1, &sector), DiskFormat::Qcow2),
            Some(false)
        );
        assert_eq!(
            bootable(&qcow2(1 << 62 | 77, &sector), DiskFormat::Qcow2),
            None
        );
        assert_eq!(
            bootable(b"QFI\xfb", DiskFormat::Qcow2),
            Some(false),
            "too short for its tables"
        );
    }
}
