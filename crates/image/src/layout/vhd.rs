//! VHD ("Virtual Hard Disk Image Format Specification" 1.0, Microsoft 2006): fixed ones are raw with a footer, dynamic ones
//! have a table of blocks, each behind a bitmap of its sectors.
//!
//! As QEMU does, a block is read whole, whatever its bitmap says: sectors that were never written are zeros there, too.

use super::{Blocks, Extent, Layout, LayoutError, Source, exact};
use crate::format::{FormatError, ImageFormat};

const FOOTER: usize = 512;
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;
const UNUSED: u32 = u32::MAX;
/// Disks of this many sectors by their geometry may be larger: it cannot say more.
const LARGEST_GEOMETRY: u64 = 65535 * 16 * 255;
/// Programs whose footers mean their size, and not their geometry, as the size of the disk; QEMU's list.
const SIZE_IS_MEANT: [&[u8; 4]; 6] = [b"win ", b"qem2", b"d2v ", b"tap\0", b"vs  ", b"wa\0\0"];

struct Footer {
    kind: u32,
    header_at: u64,
    virtual_size: u64,
}

fn footer(bytes: &[u8]) -> Result<Footer, FormatError> {
    if bytes.len() < FOOTER {
        return Err(FormatError::CutOff {
            needed: FOOTER as u64,
            size: bytes.len() as u64,
        });
    }
    let bytes = &bytes[..FOOTER];
    let word = |at: usize| u32::from_be_bytes(super::bytes(bytes, at));
    let long = |at: usize| u64::from_be_bytes(super::bytes(bytes, at));
    if !bytes.starts_with(b"conectix") {
        return Err(bad("cookie", long(0)));
    }
    if checksum(bytes, 64) != word(64) {
        return Err(bad("checksum", word(64).into()));
    }
    let geometry = u64::from(u16::from_be_bytes(super::bytes(bytes, 56)))
        * u64::from(bytes[58])
        * u64::from(bytes[59]);
    let means_size = SIZE_IS_MEANT.iter().any(|name| bytes[28..32] == **name);
    let virtual_size = if means_size || geometry == LARGEST_GEOMETRY || geometry == 0 {
        long(48)
    } else {
        geometry * 512
    };
    if virtual_size == 0 || !virtual_size.is_multiple_of(512) {
        return Err(bad("current size", virtual_size));
    }
    Ok(Footer {
        kind: word(60),
        header_at: long(16),
        virtual_size,
    })
}

/// The length of a fixed image's content, told by its last 512 bytes.
pub(super) fn fixed(bytes: &[u8], file_size: u64) -> Result<u64, FormatError> {
    let footer = footer(bytes)?;
    if footer.kind != FIXED {
        return Err(refused(footer.kind));
    }
    if file_size < footer.virtual_size.saturating_add(FOOTER as u64) {
        return Err(bad("current size", footer.virtual_size));
    }
    Ok(footer.virtual_size)
}

pub(super) fn open(head: &[u8], source: &mut dyn Source) -> Result<Box<dyn Layout>, LayoutError> {
    if !head.starts_with(b"conectix") {
        // Told by its end, so the length is known.
        let size = source.size().unwrap_or(0);
        let end = size.saturating_sub(FOOTER as u64);
        let virtual_size = fixed(&exact(source, end, FOOTER)?, size)?;
        return Ok(Box::new(Fixed {
            virtual_size,
            done: false,
        }));
    }
    let footer = footer(head)?;
    if footer.kind != DYNAMIC {
        return Err(refused(footer.kind).into());
    }
    let header = exact(source, footer.header_at, 1024)?;
    let word = |at: usize| u32::from_be_bytes(super::bytes(&header, at));
    let long = |at: usize| u64::from_be_bytes(super::bytes(&header, at));
    if !header.starts_with(b"cxsparse") {
        return Err(bad("dynamic header", footer.header_at).into());
    }
    if checksum(&header, 36) != word(36) {
        return Err(bad("checksum of the dynamic header", word(36).into()).into());
    }
    let (table, entries, block) = (long(16), u64::from(word(28)), u64::from(word(32)));
    if !block.is_power_of_two() || !(512..=256 << 20).contains(&block) {
        return Err(bad("block size", block).into());
    }
    let needed = footer.virtual_size.div_ceil(block);
    if needed > entries {
        return Err(bad("max table entries", entries).into());
    }
    super::inside(ImageFormat::Vhd, "table offset", table, needed * 4, source)?;
    let bitmap = (block / 512).div_ceil(8).div_ceil(512) * 512;
    Ok(Box::new(Blocks {
        format: ImageFormat::Vhd,
        virtual_size: footer.virtual_size,
        block,
        table,
        entries: needed,
        next: 0,
        place: Box::new(move |entry| {
            let sector = u32::from_be_bytes(entry);
            (sector != UNUSED).then(|| u64::from(sector) * 512 + bitmap)
        }),
    }))
}

/// A fixed image: its content, as long as the footer says.
struct Fixed {
    virtual_size: u64,
    done: bool,
}

impl Layout for Fixed {
    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn covered(&self) -> u64 {
        if self.done { self.virtual_size } else { 0 }
    }

    fn next(&mut self, _: &mut dyn Source) -> Result<Option<Vec<Extent>>, LayoutError> {
        if self.done {
            return Ok(None);
        }
        self.done = true;
        Ok(Some(vec![Extent::plain(0, 0, self.virtual_size)]))
    }
}

fn refused(kind: u32) -> FormatError {
    match kind {
        DIFFERENCING => FormatError::BackingFile("of a differencing image".to_owned()),
        other => bad("disk type", other.into()),
    }
}

/// The complement of the sum of all bytes but the four of the checksum.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    !(sum(bytes) - sum(&bytes[at..at + 4]))
}

fn bad(field: &'static str, value: u64) -> FormatError {
    FormatError::Header {
        format: ImageFormat::Vhd,
        field,
        value,
    }
}
