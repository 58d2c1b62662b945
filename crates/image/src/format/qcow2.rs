//! The qcow2 header: enough of it to know that the file stands alone and asks for nothing absurd.
//!
//! Mirrors the limits QEMU itself has (`block/qcow2.c`: 32 MiB of L1 table, 8 MiB of refcount table, 64 KiB of
//! snapshot entries), so what passes here is also what QEMU opens.

use super::{FormatError, ImageFormat};

const V2_LENGTH: u64 = 72;
const V3_LENGTH: u64 = 104;
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
const MAX_SNAPSHOTS: u64 = 65536;
const MAX_BACKING_NAME: u64 = 1023;
const MAX_EXTENSIONS: usize = 64;

const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_EXTERNAL_DATA: u64 = 1 << 2;
pub(crate) const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
pub(crate) const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = INCOMPATIBLE_DIRTY
    | INCOMPATIBLE_CORRUPT
    | INCOMPATIBLE_EXTERNAL_DATA
    | INCOMPATIBLE_COMPRESSION
    | INCOMPATIBLE_EXTENDED_L2;

const EXTENSION_END: u32 = 0;
const EXTENSION_EXTERNAL_DATA: u32 = 0x4441_5441;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;

/// Checks the header in `head` and returns the virtual size in bytes.
pub(crate) fn check(
    head: &[u8],
    file_size: u64,
    max_virtual_size: u64,
) -> Result<u64, FormatError> {
    let header = Fields { head, file_size };
    let version = header.u32(4)?;
    if !(2..=3).contains(&version) {
        return Err(FormatError::Version(version));
    }
    let features = if version == 3 { check_v3(&header)? } else { 0 };

    let (backing_offset, backing_size) = (header.u64(8)?, u64::from(header.u32(16)?));
    if backing_offset != 0 || backing_size != 0 {
        return Err(FormatError::BackingFile(
            header.text(backing_offset, backing_size.min(MAX_BACKING_NAME)),
        ));
    }
    match header.u32(32)? {
        0 => {}
        1 => return Err(FormatError::Encrypted("qcow2 aes")),
        2 => return Err(FormatError::Encrypted("qcow2 luks")),
        other => return Err(bad("crypt_method", other.into())),
    }

    let cluster_bits = header.u32(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(bad("cluster_bits", cluster_bits.into()));
    }
    let cluster = 1u64 << cluster_bits;
    let virtual_size = header.u64(24)?;
    if virtual_size == 0 {
        return Err(bad("size", 0));
    }
    if virtual_size > max_virtual_size {
        return Err(FormatError::TooLarge {
            size: virtual_size,
            limit: max_virtual_size,
        });
    }
    check_l1(&header, virtual_size, cluster, features)?;
    check_refcounts(&header, cluster)?;
    check_snapshots(&header)?;
    check_extensions(&header, version, cluster)?;
    Ok(virtual_size.div_ceil(512) * 512)
}

/// The fields that only version 3 has; returns the incompatible features.
fn check_v3(header: &Fields<'_>) -> Result<u64, FormatError> {
    let features = header.u64(72)?;
    if features & !KNOWN != 0 {
        return Err(FormatError::UnknownFeatures(features & !KNOWN));
    }
    if features & INCOMPATIBLE_EXTERNAL_DATA != 0 {
        return Err(FormatError::ExternalData);
    }
    if features & INCOMPATIBLE_CORRUPT != 0 {
        return Err(FormatError::MarkedCorrupt);
    }
    let refcount_order = header.u32(96)?;
    if refcount_order > 6 {
        return Err(bad("refcount_order", refcount_order.into()));
    }
    let length = u64::from(header.u32(100)?);
    if length < V3_LENGTH || length % 8 != 0 || length > 4096 {
        return Err(bad("header_length", length));
    }
    let compression = if length > V3_LENGTH {
        header.u8(104)?
    } else {
        0
    };
    let declared = features & INCOMPATIBLE_COMPRESSION != 0;
    // 0 is zlib, 1 is zstd; the feature bit stands exactly when it is not zlib.
    if compression > 1 || declared != (compression == 1) {
        return Err(bad("compression_type", compression.into()));
    }
    Ok(features)
}

fn check_l1(
    header: &Fields<'_>,
    virtual_size: u64,
    cluster: u64,
    features: u64,
) -> Result<(), FormatError> {
    let l2_entry = if features & INCOMPATIBLE_EXTENDED_L2 != 0 {
        16
    } else {
        8
    };
    let covered_by_l1_entry = cluster * (cluster / l2_entry);
    let (entries, offset) = (u64::from(header.u32(36)?), header.u64(40)?);
    let needed = virtual_size.div_ceil(covered_by_l1_entry);
    if entries * 8 > MAX_L1_BYTES || entries < needed {
        return Err(bad("l1_size", entries));
    }
    header.inside("l1_table_offset", offset, entries * 8, cluster)
}

fn check_refcounts(header: &Fields<'_>, cluster: u64) -> Result<(), FormatError> {
    let (offset, clusters) = (header.u64(48)?, u64::from(header.u32(56)?));
    if clusters == 0 || clusters * cluster > MAX_REFCOUNT_TABLE_BYTES {
        return Err(bad("refcount_table_clusters", clusters));
    }
    header.inside("refcount_table_offset", offset, clusters * cluster, cluster)
}

fn check_snapshots(header: &Fields<'_>) -> Result<(), FormatError> {
    let (count, offset) = (u64::from(header.u32(60)?), header.u64(64)?);
    if count > MAX_SNAPSHOTS {
        return Err(bad("nb_snapshots", count));
    }
    if count == 0 {
        return Ok(());
    }
    // A snapshot entry has at least 40 bytes.
    header.inside("snapshots_offset", offset, count * 40, 8)
}

/// Walks the header extensions: two of them put content elsewhere or hide it.
fn check_extensions(header: &Fields<'_>, version: u32, cluster: u64) -> Result<(), FormatError> {
    let mut offset = if version == 3 {
        u64::from(header.u32(100)?)
    } else {
        V2_LENGTH
    };
    let end = cluster.min(header.head.len() as u64);
    for _ in 0..MAX_EXTENSIONS {
        if offset + 8 > end {
            return Ok(());
        }
        let (kind, length) = (header.u32(offset)?, u64::from(header.u32(offset + 4)?));
        match kind {
            EXTENSION_END => return Ok(()),
            EXTENSION_EXTERNAL_DATA => return Err(FormatError::ExternalData),
            EXTENSION_ENCRYPTION => return Err(FormatError::Encrypted("qcow2 luks")),
            _ => {}
        }
        offset += 8 + length.div_ceil(8) * 8;
        if offset > end {
            return Err(bad("header extension length", length));
        }
    }
    Err(bad("number of header extensions", MAX_EXTENSIONS as u64))
}

fn bad(field: &'static str, value: u64) -> FormatError {
    FormatError::Header {
        format: ImageFormat::Qcow2,
        field,
        value,
    }
}

struct Fields<'a> {
    head: &'a [u8],
    file_size: u64,
}

impl Fields<'_> {
    fn bytes<const N: usize>(&self, offset: u64) -> Result<[u8; N], FormatError> {
        usize::try_from(offset)
            .ok()
            .and_then(|start| self.head.get(start..start.checked_add(N)?)?.try_into().ok())
            .ok_or(FormatError::CutOff {
                needed: offset + N as u64,
                size: self.file_size,
            })
    }

    fn u8(&self, offset: u64) -> Result<u8, FormatError> {
        Ok(self.bytes::<1>(offset)?[0])
    }

    fn u32(&self, offset: u64) -> Result<u32, FormatError> {
        Ok(u32::from_be_bytes(self.bytes(offset)?))
    }

    fn u64(&self, offset: u64) -> Result<u64, FormatError> {
        Ok(u64::from_be_bytes(self.bytes(offset)?))
    }

    /// What is there as text, for a message.
    fn text(&self, offset: u64, length: u64) -> String {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let length = usize::try_from(length).unwrap_or(0);
        let bytes = start
            .checked_add(length)
            .and_then(|end| self.head.get(start..end))
            .unwrap_or_default();
        String::from_utf8_lossy(bytes).chars().take(200).collect()
    }

    /// A table must be aligned, behind the header, and inside the file.
    fn inside(
        &self,
        field: &'static str,
        offset: u64,
        length: u64,
        align: u64,
    ) -> Result<(), FormatError> {
        let end = offset.checked_add(length);
        if offset < V2_LENGTH
            || !offset.is_multiple_of(align)
            || end.is_none_or(|end| end > self.file_size)
        {
            return Err(bad(field, offset));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The start of a qcow2 file of 1 GiB with clusters of 64 KiB.
    pub(crate) fn header(version: u32) -> Vec<u8> {
        let mut head = vec![0; 65536];
        let mut put =
            |offset: usize, bytes: &[u8]| head[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb");
        put(4, &version.to_be_bytes());
        put(20, &16u32.to_be_bytes());
        put(24, &(1u64 << 30).to_be_bytes());
        put(36, &2u32.to_be_bytes());
        put(40, &0x30000u64.to_be_bytes());
        put(48, &0x10000u64.to_be_bytes());
        put(56, &1u32.to_be_bytes());
        if version == 3 {
            put(96, &4u32.to_be_bytes());
            put(100, &112u32.to_be_bytes());
        }
        head
    }

    fn with(version: u32, changes: &[(usize, &[u8])]) -> Result<u64, FormatError> {
        let mut head = header(version);
        for (offset, bytes) in changes {
            head[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        check(&head, 1 << 20, 64 << 40)
    }

    #[test]
    fn plain_images_pass() {
        assert_eq!(with(2, &[]), Ok(1 << 30));
        assert_eq!(with(3, &[]), Ok(1 << 30));
        assert_eq!(
            with(3, &[(79, &[0b1_1001]), (104, &[1]), (39, &[4])]),
            Ok(1 << 30)
        );
    }

    #[test]
    fn what_reaches_outside_is_refused() {
        let name: &[u8] = b"/etc/shadow";
        let error = with(
            3,
            &[
                (8, &512u64.to_be_bytes()),
                (16, &11u32.to_be_bytes()),
                (512, name),
            ],
        )
        .unwrap_err();
        assert_eq!(error, FormatError::BackingFile("/etc/shadow".into()));
        // A length without an offset, and the other way round, are no way around it.
        assert!(matches!(
            with(3, &[(16, &11u32.to_be_bytes())]),
            Err(FormatError::BackingFile(_))
        ));
        assert!(matches!(
            with(2, &[(8, &u64::MAX.to_be_bytes())]),
            Err(FormatError::BackingFile(_))
        ));
        assert_eq!(with(3, &[(79, &[4])]), Err(FormatError::ExternalData));
        assert_eq!(
            with(3, &[(112, b"DATA\0\0\0\x08")]),
            Err(FormatError::ExternalData)
        );
    }

    #[test]
    fn encryption_and_unknown_features_are_refused() {
        assert_eq!(
            with(2, &[(35, &[1])]),
            Err(FormatError::Encrypted("qcow2 aes"))
        );
        assert_eq!(
            with(3, &[(35, &[2])]),
            Err(FormatError::Encrypted("qcow2 luks"))
        );
        assert_eq!(
            with(3, &[(79, &[0x20])]),
            Err(FormatError::UnknownFeatures(0x20))
        );
        assert_eq!(
            with(3, &[(72, &[0x80])]),
            Err(FormatError::UnknownFeatures(1 << 63))
        );
        assert_eq!(with(3, &[(79, &[2])]), Err(FormatError::MarkedCorrupt));
        assert_eq!(with(1, &[]), Err(FormatError::Version(1)));
        assert_eq!(with(4, &[]), Err(FormatError::Version(4)));
    }

    #[test]
    fn absurd_sizes_are_refused() {
        let refused = |changes: &[(usize, &[u8])], name: &str| match with(3, changes) {
            Err(FormatError::Header { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        };
        refused(&[(20, &8u32.to_be_bytes())], "cluster_bits");
        refused(&[(20, &22u32.to_be_bytes())], "cluster_bits");
        refused(&[(24, &0u64.to_be_bytes())], "size");
        refused(&[(36, &u32::MAX.to_be_bytes())], "l1_size");
        refused(&[(36, &1u32.to_be_bytes())], "l1_size");
        refused(&[(40, &0x30001u64.to_be_bytes())], "l1_table_offset");
        refused(&[(40, &(1u64 << 40).to_be_bytes())], "l1_table_offset");
        refused(
            &[(40, &0xffff_ffff_ffff_0000u64.to_be_bytes())],
            "l1_table_offset",
        );
        refused(&[(40, &0u64.to_be_bytes())], "l1_table_offset");
        refused(&[(56, &u32::MAX.to_be_bytes())], "refcount_table_clusters");
        refused(&[(56, &0u32.to_be_bytes())], "refcount_table_clusters");
        refused(
            &[(48, &(1u64 << 50).to_be_bytes())],
            "refcount_table_offset",
        );
        refused(&[(60, &u32::MAX.to_be_bytes())], "nb_snapshots");
        refused(&[(60, &9u32.to_be_bytes())], "snapshots_offset");
        refused(&[(96, &7u32.to_be_bytes())], "refcount_order");
        refused(&[(100, &8u32.to_be_bytes())], "header_length");
        refused(&[(104, &[2])], "compression_type");
        refused(&[(104, &[1])], "compression_type");
        refused(
            &[(112, &[9, 9, 9, 9, 0xff, 0xff, 0xff, 0xff])],
            "header extension length",
        );
        assert!(matches!(
            with(3, &[(24, &u64::MAX.to_be_bytes())]),
            Err(FormatError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_cut_header_is_named() {
        assert!(matches!(
            check(&header(3)[..60], 60, 1 << 40),
            Err(FormatError::CutOff { size: 60, .. })
        ));
    }
}
