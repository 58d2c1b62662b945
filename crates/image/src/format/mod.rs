//! What a disk file is, told from its content alone.
//!
//! QEMU is given raw and qcow2 only ([`inspect`]); [`crate::import`] reads what [`tell`] knows and writes raw. The checks
//! are our own reading of the header, made before any other program opens the file: a qcow2 file that names another file,
//! uses a feature we do not know, or asks for absurd tables never reaches QEMU. A file that is raw is later attached as
//! raw, never probed, so what its guest writes into it cannot turn it into something else.

mod boot;
pub(crate) mod qcow2;

pub use boot::is_bootable;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How the bytes of a disk are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Byte n of the disk is byte n of the file.
    Raw,
    /// QEMU's qcow2, version 2 or 3.
    Qcow2,
}

impl DiskFormat {
    /// The name libvirt and QEMU use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl std::fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The formats that an import reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// Byte n of the disk is byte n of the file.
    Raw,
    /// QEMU's qcow2, version 2 or 3.
    Qcow2,
    /// VMware's sparse extent with its descriptor inside, streamOptimized or not.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Virtual PC's, fixed or dynamic; `qemu-img` calls it vpc.
    Vhd,
    /// Hyper-V's.
    Vhdx,
}

impl ImageFormat {
    /// Its usual name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
        }
    }
}

impl std::fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a file can be packed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// The .xz container.
    Xz,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// Its usual name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }

    /// Told from the first six bytes. No disk and no tar begins with these.
    pub fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            // A skippable frame in front, as some parallel compressors write it.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            _ => None,
        }
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What [`tell`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A disk.
    Image(ImageFormat),
    /// Something packed, most likely a disk.
    Packed(Compression),
}

/// What [`inspect`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskInfo {
    /// The format.
    pub format: DiskFormat,
    /// The size that the guest sees, in bytes; a multiple of 512.
    pub virtual_size: u64,
    /// The length of the file, in bytes.
    pub file_size: u64,
}

/// Why a file is not a disk that can be used. One line; says what was found.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FormatError {
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Read(String),
    /// Not a regular file.
    #[error("it is not a regular file")]
    NotAFile,
    /// Nothing in it.
    #[error("it is empty")]
    Empty,
    /// A disk format that is not read yet.
    #[error("it is a {0} disk, which is not supported here: convert it to qcow2 or raw")]
    NotSupported(&'static str),
    /// A compressed file where none can be, or a format of compression that is not read.
    #[error("it is compressed ({0}): decompress it first")]
    Compressed(&'static str),
    /// More than one format claims the file.
    #[error("multiple formats detected: {0} and {1}")]
    Ambiguous(&'static str, &'static str),
    /// Encrypted content.
    #[error("it is encrypted ({0}), which is not supported")]
    Encrypted(&'static str),
    /// The guest would see the content of another file.
    #[error("it has a backing file ({0:?}), which is not allowed")]
    BackingFile(String),
    /// The data is in another file.
    #[error("it keeps its data in an external file, which is not allowed")]
    ExternalData,
    /// Changes that were not carried out before the image was closed.
    #[error(
        "it is a {0} image that was not closed properly: open and close it with the program that wrote it"
    )]
    Unclean(ImageFormat),
    /// A qcow2 version that does not exist, or is too old.
    #[error("qcow2 version {0} is not supported")]
    Version(u32),
    /// Incompatible features that are not known.
    #[error("unknown incompatible qcow2 features {0:#x}")]
    UnknownFeatures(u64),
    /// The image says of itself that it is broken.
    #[error("it is marked corrupt")]
    MarkedCorrupt,
    /// The header or a table contradicts itself or the file.
    #[error("bad {format} image: {field} is {value}")]
    Header {
        /// Of which format.
        format: ImageFormat,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The file ends inside its header.
    #[error("it is cut off: {needed} bytes are needed, the file has {size}")]
    CutOff {
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        size: u64,
    },
    /// Larger than allowed.
    #[error("its virtual size of {size} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
}

/// Bytes of the beginning that [`inspect_bytes`] wants (or the whole file when it is shorter).
pub const HEAD: usize = 128 * 1024;
/// Bytes of the end that [`inspect_bytes`] wants.
pub const TAIL: usize = 512;
/// The largest virtual size that [`inspect`] accepts: 64 TiB.
pub const MAX_VIRTUAL_SIZE: u64 = 64 << 40;

/// Tells what the file at `path` is. The last component must not be a symlink.
pub fn inspect(path: &Path) -> Result<DiskInfo, FormatError> {
    let read = |e: io::Error| FormatError::Read(e.to_string());
    let meta = std::fs::symlink_metadata(path).map_err(read)?;
    if !meta.is_file() {
        return Err(FormatError::NotAFile);
    }
    inspect_file(&File::open(path).map_err(read)?)
}

/// A file of which nothing is asked but that it is one.
pub(crate) fn plain(path: &Path) -> Result<DiskInfo, FormatError> {
    let meta = std::fs::symlink_metadata(path).map_err(|e| FormatError::Read(e.to_string()))?;
    if !meta.is_file() {
        return Err(FormatError::NotAFile);
    }
    Ok(DiskInfo {
        format: DiskFormat::Raw,
        virtual_size: meta.len(),
        file_size: meta.len(),
    })
}

/// Tells what an open file is.
pub fn inspect_file(file: &File) -> Result<DiskInfo, FormatError> {
    let read = |e: io::Error| FormatError::Read(e.to_string());
    let meta = file.metadata().map_err(read)?;
    if !meta.is_file() {
        return Err(FormatError::NotAFile);
    }
    let size = meta.len();
    let mut head = vec![0; usize::try_from(size).unwrap_or(HEAD).min(HEAD)];
    file.read_exact_at(&mut head, 0).map_err(read)?;
    let mut tail = vec![0; usize::try_from(size).unwrap_or(TAIL).min(TAIL)];
    let tail_start = size - tail.len() as u64;
    file.read_exact_at(&mut tail, tail_start).map_err(read)?;
    inspect_bytes(&head, &tail, size, MAX_VIRTUAL_SIZE)
}

/// The decision itself, pure: `head` and `tail` are the first [`HEAD`] and last [`TAIL`] bytes of a file of
/// `file_size` bytes (all of it when it is shorter).
pub fn inspect_bytes(
    head: &[u8],
    tail: &[u8],
    file_size: u64,
    max_virtual_size: u64,
) -> Result<DiskInfo, FormatError> {
    if file_size == 0 {
        return Err(FormatError::Empty);
    }
    match tell(head, tail)? {
        Told::Packed(compression) => return Err(FormatError::Compressed(compression.as_str())),
        Told::Image(ImageFormat::Raw) => {}
        Told::Image(ImageFormat::Qcow2) => {
            let virtual_size = qcow2::check(head, file_size, max_virtual_size)?;
            return Ok(DiskInfo {
                format: DiskFormat::Qcow2,
                virtual_size,
                file_size,
            });
        }
        Told::Image(other) => return Err(FormatError::NotSupported(other.as_str())),
    }
    // Sectors are 512 bytes; QEMU pads the last one with zeros.
    let virtual_size = file_size.div_ceil(512).saturating_mul(512);
    if virtual_size > max_virtual_size {
        return Err(FormatError::TooLarge {
            size: virtual_size,
            limit: max_virtual_size,
        });
    }
    Ok(DiskInfo {
        format: DiskFormat::Raw,
        virtual_size,
        file_size,
    })
}

/// What a file is, by its first [`HEAD`] and last [`TAIL`] bytes (all of it when it is shorter); `tail` is empty where the
/// end is not known yet. Refuses what is two things at once. Headers are not looked into.
pub fn tell(head: &[u8], tail: &[u8]) -> Result<Told, FormatError> {
    // An ISO 9660 image leaves its first 32 KiB free, and a VHD may be told by its end only: a file can be valid twice.
    let is_iso = at(head, 32769).starts_with(b"CD001");
    let ends_as_vhd = tail.starts_with(b"conectix");
    match leading_format(head) {
        Some(Leading::Image(format)) => {
            if ends_as_vhd && format != ImageFormat::Vhd {
                Err(FormatError::Ambiguous(format.as_str(), "vhd"))
            } else if is_iso {
                Err(FormatError::Ambiguous(format.as_str(), "iso"))
            } else {
                Ok(Told::Image(format))
            }
        }
        Some(Leading::Packed(compression)) => Ok(Told::Packed(compression)),
        Some(Leading::Encrypted(name)) => Err(FormatError::Encrypted(name)),
        Some(Leading::Compressed(name)) => Err(FormatError::Compressed(name)),
        Some(Leading::Other(name)) => Err(FormatError::NotSupported(name)),
        None if ends_as_vhd => Ok(Told::Image(ImageFormat::Vhd)),
        None => Ok(Told::Image(ImageFormat::Raw)),
    }
}

#[derive(Clone, Copy)]
enum Leading {
    Image(ImageFormat),
    Packed(Compression),
    Encrypted(&'static str),
    Compressed(&'static str),
    Other(&'static str),
}

fn leading_format(head: &[u8]) -> Option<Leading> {
    if let Some(compression) = Compression::of(head) {
        return Some(Leading::Packed(compression));
    }
    let magics: [(&[u8], usize, Leading); 14] = [
        (b"QFI\xfb", 0, Leading::Image(ImageFormat::Qcow2)),
        (b"LUKS\xba\xbe", 0, Leading::Encrypted("luks")),
        (b"KDMV", 0, Leading::Image(ImageFormat::Vmdk)),
        (b"COWD", 0, Leading::Other("vmdk (COWD)")),
        (
            b"# Disk DescriptorFile",
            0,
            Leading::Other("vmdk descriptor, its data is in other files"),
        ),
        (b"\x7f\x10\xda\xbe", 0x40, Leading::Image(ImageFormat::Vdi)),
        (b"vhdxfile", 0, Leading::Image(ImageFormat::Vhdx)),
        (b"conectix", 0, Leading::Image(ImageFormat::Vhd)),
        (b"QED\0", 0, Leading::Other("qed")),
        (b"WithoutFreeSpace", 0, Leading::Other("parallels")),
        (b"WithouFreSpacExt", 0, Leading::Other("parallels")),
        (b"OOOM", 0, Leading::Other("user-mode-linux cow")),
        (b"BZh", 0, Leading::Compressed("bzip2")),
        (b"PK\x03\x04", 0, Leading::Compressed("zip")),
    ];
    magics
        .into_iter()
        .find(|(magic, offset, _)| at(head, *offset).starts_with(magic))
        .map(|(.., found)| found)
}

/// `bytes` from `offset` on; nothing when it is shorter.
fn at(bytes: &[u8], offset: usize) -> &[u8] {
    bytes.get(offset..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::qcow2::tests::header;
    use super::*;

    fn whole(bytes: &[u8]) -> Result<DiskInfo, FormatError> {
        let head = &bytes[..bytes.len().min(HEAD)];
        let tail = &bytes[bytes.len().saturating_sub(TAIL)..];
        inspect_bytes(head, tail, bytes.len() as u64, MAX_VIRTUAL_SIZE)
    }

    #[test]
    fn what_has_no_magic_is_raw() {
        let info = whole(&vec![0xeb; 1000]).unwrap();
        assert_eq!((info.format, info.virtual_size), (DiskFormat::Raw, 1024));
        let mut iso = vec![0; 40 * 1024];
        iso[32769..32774].copy_from_slice(b"CD001");
        assert_eq!(whole(&iso).unwrap().format, DiskFormat::Raw);
        assert_eq!(whole(b""), Err(FormatError::Empty));
    }

    #[test]
    fn other_formats_are_refused_by_name() {
        let with = |offset: usize, magic: &[u8]| {
            let mut bytes = vec![0; 64 * 1024];
            bytes[offset..offset + magic.len()].copy_from_slice(magic);
            whole(&bytes).unwrap_err().to_string()
        };
        assert!(with(0, b"KDMV").contains("vmdk disk, which is not supported here"));
        assert!(with(0, b"# Disk DescriptorFile\nversion=1").contains("vmdk"));
        assert!(with(0x40, &0xbeda_107f_u32.to_le_bytes()).contains("vdi"));
        assert!(with(0, b"vhdxfile").contains("vhdx"));
        assert!(with(64 * 1024 - 512, b"conectix").contains("vhd"));
        assert!(with(0, b"LUKS\xba\xbe").contains("encrypted (luks)"));
        assert!(with(0, b"\x1f\x8b\x08").contains("compressed (gzip)"));
    }

    #[test]
    fn a_file_that_is_two_things_is_refused() {
        let mut bytes = header(3);
        bytes.resize(1 << 20, 0);
        assert!(whole(&bytes).is_ok());
        let mut iso = bytes.clone();
        iso[32769..32774].copy_from_slice(b"CD001");
        assert_eq!(whole(&iso), Err(FormatError::Ambiguous("qcow2", "iso")));
        let end = bytes.len() - 512;
        bytes[end..end + 8].copy_from_slice(b"conectix");
        assert_eq!(whole(&bytes), Err(FormatError::Ambiguous("qcow2", "vhd")));
    }

    #[test]
    fn symlinks_and_directories_are_not_disks() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(inspect(dir.path()), Err(FormatError::NotAFile));
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        assert_eq!(
            inspect(&dir.path().join("link")),
            Err(FormatError::NotAFile)
        );
        assert!(matches!(
            inspect(&dir.path().join("none")),
            Err(FormatError::Read(_))
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = whole(&bytes);
        }

        #[test]
        fn any_damage_to_a_header_gives_an_answer(
            damage in proptest::collection::vec((0usize..200, any::<u8>()), 1..12),
            length in 0usize..(1 << 18),
        ) {
            let mut bytes = header(3);
            bytes.resize(1 << 20, 0);
            for (offset, byte) in damage {
                bytes[4 + offset] = byte;
            }
            bytes.truncate(length);
            if let Ok(info) = whole(&bytes) {
                prop_assert!(info.virtual_size <= MAX_VIRTUAL_SIZE);
                prop_assert_eq!(info.virtual_size % 512, 0);
            }
        }
    }
}
