//! VHDX ([MS-VHDX] 1.0 to 8.0, Microsoft): two headers, two region tables, metadata, and a table of blocks.
//!
//! An image with a log that was not replayed is refused: its tables may not be what they are meant to be.

use super::{Extent, Layout, LayoutError, Little, Source, exact, inside, sorted};
use crate::format::{FormatError, ImageFormat};

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
const REGION_TABLE: usize = 64 << 10;
/// The most that a metadata table may take; items are within 1 MiB behind it.
const METADATA: usize = 64 << 10;
const MIB: u64 = 1 << 20;
const MAX_SIZE: u64 = 64 << 40;

/// GUIDs as they are on disk: the first three numbers little endian.
const BAT: [u8; 16] = guid(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const METADATA_REGION: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
const FILE_PARAMETERS: [u8; 16] = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const DISK_SIZE: [u8; 16] = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
const LOGICAL_SECTOR: [u8; 16] = guid(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);
const PHYSICAL_SECTOR: [u8; 16] = guid(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556);
const PAGE_83: [u8; 16] = guid(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746);
const PARENT: [u8; 16] = guid(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);

const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (
        a.to_le_bytes(),
        b.to_le_bytes(),
        c.to_le_bytes(),
        d.to_be_bytes(),
    );
    [
        a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6],
        d[7],
    ]
}

pub(super) struct Vhdx {
    virtual_size: u64,
    block: u64,
    /// Blocks between two entries of the table that are about bitmaps.
    ratio: u64,
    bat: u64,
    next: u64,
}

/// What the metadata says, as far as it was found.
#[derive(Default)]
struct Metadata {
    block: Option<u64>,
    size: Option<u64>,
    sector: Option<u64>,
}

pub(super) fn open(source: &mut dyn Source) -> Result<Vhdx, LayoutError> {
    check_headers(source)?;
    let (bat, bat_length, metadata) = regions(source)?;
    let metadata = read_metadata(source, metadata)?;
    let missing = |field| bad(field, 0);
    let block = metadata.block.ok_or_else(|| missing("file parameters"))?;
    let virtual_size = metadata.size.ok_or_else(|| missing("virtual disk size"))?;
    let sector = metadata
        .sector
        .ok_or_else(|| missing("logical sector size"))?;
    if !block.is_power_of_two() || !(MIB..=256 * MIB).contains(&block) {
        return Err(bad("block size", block).into());
    }
    if sector != 512 && sector != 4096 {
        return Err(bad("logical sector size", sector).into());
    }
    if virtual_size == 0 || virtual_size > MAX_SIZE || !virtual_size.is_multiple_of(sector) {
        return Err(bad("virtual disk size", virtual_size).into());
    }
    let ratio = (1 << 23) * sector / block;
    let blocks = virtual_size.div_ceil(block);
    let entries = blocks + (blocks - 1) / ratio;
    if entries * 8 > bat_length {
        return Err(bad("length of the block allocation table", bat_length).into());
    }
    inside(
        ImageFormat::Vhdx,
        "block allocation table",
        bat,
        entries * 8,
        source,
    )?;
    Ok(Vhdx {
        virtual_size,
        block,
        ratio,
        bat,
        next: 0,
    })
}

/// The header that counts is the valid one with the higher number.
fn check_headers(source: &mut dyn Source) -> Result<(), LayoutError> {
    let mut current: Option<(u64, bool, u16)> = None;
    for at in HEADERS {
        let bytes = exact(source, at, 4096)?;
        let header = Little(&bytes);
        if !bytes.starts_with(b"head") || crc32c(&bytes, 4) != header.u32(4) {
            continue;
        }
        let number = header.u64(8);
        if current.is_none_or(|(other, ..)| number > other) {
            let log_is_empty = bytes[48..64].iter().all(|&byte| byte == 0);
            current = Some((number, log_is_empty, header.u16(66)));
        }
    }
    match current {
        None => Err(bad("headers", 0).into()),
        Some((_, _, version)) if version != 1 => Err(bad("version", version.into()).into()),
        Some((_, false, _)) => Err(FormatError::Unclean(ImageFormat::Vhdx).into()),
        Some((_, true, _)) => Ok(()),
    }
}

/// Place and length of the block allocation table, and the place of the metadata.
fn regions(source: &mut dyn Source) -> Result<(u64, u64, u64), LayoutError> {
    for at in REGIONS {
        let bytes = exact(source, at, REGION_TABLE)?;
        let table = Little(&bytes);
        if !bytes.starts_with(b"regi") || crc32c(&bytes, 4) != table.u32(4) {
            continue;
        }
        let count = table.u32(8);
        if count > 2047 {
            return Err(bad("number of regions", count.into()).into());
        }
        let (mut bat, mut metadata) = (None, None);
        for entry in bytes[16..].chunks_exact(32).take(count as usize) {
            let fields = Little(entry);
            let (offset, length) = (fields.u64(16), u64::from(fields.u32(24)));
            if !offset.is_multiple_of(MIB) || offset < MIB {
                return Err(bad("file offset of a region", offset).into());
            }
            if entry[..16] == BAT {
                bat = Some((offset, length));
            } else if entry[..16] == METADATA_REGION {
                metadata = Some(offset);
            } else if fields.u32(28) & 1 != 0 {
                return Err(bad("required region that is not known", offset).into());
            }
        }
        return match (bat, metadata) {
            (Some((bat, length)), Some(metadata)) => Ok((bat, length, metadata)),
            _ => Err(bad("number of regions", count.into()).into()),
        };
    }
    Err(bad("region tables", 0).into())
}

fn read_metadata(source: &mut dyn Source, at: u64) -> Result<Metadata, LayoutError> {
    let table = exact(source, at, METADATA)?;
    let count = Little(&table).u16(10);
    if !table.starts_with(b"metadata") || count > 2047 {
        return Err(bad("metadata table", at).into());
    }
    let mut found = Metadata::default();
    for entry in table[32..].chunks_exact(32).take(count.into()) {
        let fields = Little(entry);
        let (offset, length) = (u64::from(fields.u32(16)), fields.u32(20));
        let id: [u8; 16] = super::bytes(entry, 0);
        if ![FILE_PARAMETERS, DISK_SIZE, LOGICAL_SECTOR].contains(&id) {
            if id == PARENT {
                return Err(FormatError::BackingFile("of a differencing image".to_owned()).into());
            }
            // Bit 2: who does not know it must not open the file.
            if id != PHYSICAL_SECTOR && id != PAGE_83 && fields.u32(24) & 4 != 0 {
                return Err(bad("required metadata that is not known", offset).into());
            }
            continue;
        }
        if offset < METADATA as u64 || offset > MIB || length > 64 {
            return Err(bad("offset of metadata", offset).into());
        }
        let item = exact(source, at + offset, 8)?;
        let item = Little(&item);
        if id == FILE_PARAMETERS {
            // Bit 1: it has a parent.
            if item.u32(4) & 2 != 0 {
                return Err(FormatError::BackingFile("of a differencing image".to_owned()).into());
            }
            found.block = Some(item.u32(0).into());
        } else if id == DISK_SIZE {
            found.size = Some(item.u64(0));
        } else {
            found.sector = Some(item.u32(0).into());
        }
    }
    Ok(found)
}

impl Layout for Vhdx {
    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn covered(&self) -> u64 {
        self.next.saturating_mul(self.block).min(self.virtual_size)
    }

    /// A batch is the blocks up to the next entry about bitmaps, which tell nothing where there is no parent.
    fn next(&mut self, source: &mut dyn Source) -> Result<Option<Vec<Extent>>, LayoutError> {
        let blocks = self.virtual_size.div_ceil(self.block);
        if self.next >= blocks {
            return Ok(None);
        }
        let count = (blocks - self.next).min(self.ratio);
        let at = self.bat + (self.next + self.next / self.ratio) * 8;
        let table = exact(source, at, usize::try_from(count * 8).expect("a chunk"))?;
        let mut batch = Vec::new();
        for (index, entry) in (self.next..).zip(table.chunks_exact(8)) {
            let entry = u64::from_le_bytes(super::bytes(entry, 0));
            match entry & 7 {
                // Not present, undefined, zero, unmapped.
                0..=3 => {}
                6 => {
                    let (guest, place) = (index * self.block, entry & !(MIB - 1));
                    let length = self.block.min(self.virtual_size - guest);
                    inside(ImageFormat::Vhdx, "block", place, length, source)?;
                    batch.push(Extent::plain(guest, place, length));
                }
                other => return Err(bad("state of a block", other).into()),
            }
        }
        self.next += count;
        Ok(Some(sorted(batch)))
    }
}

/// CRC-32C of `bytes` with the four bytes of the checksum itself as zeros.
fn crc32c(bytes: &[u8], at: usize) -> u32 {
    let mut crc = u32::MAX;
    for (index, &byte) in bytes.iter().enumerate() {
        let byte = if (at..at + 4).contains(&index) {
            0
        } else {
            byte
        };
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

fn bad(field: &'static str, value: u64) -> FormatError {
    FormatError::Header {
        format: ImageFormat::Vhdx,
        field,
        value,
    }
}
