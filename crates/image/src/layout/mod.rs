//! Where in a file of a disk image the content of the disk is: one reader a format, all of them tables to walk.
//!
//! A reader is asked for one batch of [`Extent`]s after the other, ordered by their place in the file, so that a file that
//! comes as a stream is read in one go where its writer put tables in front of data, as all common ones do. What no extent
//! tells of reads as zeros. Tables are read a piece at a time: memory does not depend on the size of the disk. Every number
//! is checked before it is used; `qemu-img` is the oracle of the tests, not a part of this.

mod qcow2;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

use crate::format::{FormatError, ImageFormat};
use crate::import::source::{Source, SourceError};

/// How a piece of the disk is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// As it is; `stored` and `length` are equal.
    Plain,
    /// RFC 1951, one stream.
    Deflate,
    /// One zstd frame.
    Zstd,
    /// A grain of a VMDK: 12 bytes of marker (sector, bytes), then RFC 1950.
    Grain,
}

/// A piece of the disk that has content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where on the disk, in bytes.
    pub(crate) guest: u64,
    /// Bytes on the disk.
    pub(crate) length: u64,
    /// Where in the file, in bytes.
    pub(crate) place: u64,
    /// Bytes in the file; with a codec at most so many.
    pub(crate) stored: u64,
    /// How.
    pub(crate) codec: Codec,
}

impl Extent {
    fn plain(guest: u64, place: u64, length: u64) -> Self {
        Self {
            guest,
            length,
            place,
            stored: length,
            codec: Codec::Plain,
        }
    }
}

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayoutError {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// The reader of one image.
pub(crate) trait Layout: Send {
    /// Bytes that the guest sees.
    fn virtual_size(&self) -> u64;

    /// The next pieces, ordered by place; empty where there is nothing in a part, none at the end.
    fn next(&mut self, source: &mut dyn Source) -> Result<Option<Vec<Extent>>, LayoutError>;

    /// How much of the disk the batches so far were about, in bytes.
    fn covered(&self) -> u64;
}

/// Opens an image that is not raw. `head` is its beginning. No virtual size above `limit` is accepted: nothing is read for
/// one that has no room.
pub(crate) fn open(
    format: ImageFormat,
    head: &[u8],
    source: &mut dyn Source,
    limit: u64,
) -> Result<Box<dyn Layout>, LayoutError> {
    let layout: Box<dyn Layout> = match format {
        ImageFormat::Raw => unreachable!("raw images have no tables"),
        ImageFormat::Qcow2 => Box::new(qcow2::Qcow2::open(head, source, limit)?),
        ImageFormat::Vmdk => Box::new(vmdk::Vmdk::open(head, source)?),
        ImageFormat::Vdi => Box::new(vdi::open(head)?),
        ImageFormat::Vhd => vhd::open(head, source)?,
        ImageFormat::Vhdx => Box::new(vhdx::open(source)?),
    };
    let size = layout.virtual_size();
    if size > limit {
        return Err(FormatError::TooLarge { size, limit }.into());
    }
    Ok(layout)
}

/// The length of a fixed VHD's content, told by the 512 bytes at the end of a file of `file_size` bytes.
pub(crate) fn fixed_vhd(footer: &[u8], file_size: u64) -> Result<u64, FormatError> {
    vhd::fixed(footer, file_size)
}

/// Little endian numbers of a header that was checked to be long enough.
struct Little<'a>(&'a [u8]);

impl Little<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(bytes(self.0, at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(bytes(self.0, at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(bytes(self.0, at))
    }
}

/// The bytes at a place; zeros where there are none, which no check lets pass as anything else.
fn bytes<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    from.get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok())
        .unwrap_or([0; N])
}

/// Reads exactly so much, or says that the file is cut off.
fn exact(source: &mut dyn Source, at: u64, length: usize) -> Result<Vec<u8>, LayoutError> {
    let mut buffer = Vec::with_capacity(length);
    source.read(at, length, &mut buffer)?;
    if buffer.len() < length {
        return Err(FormatError::CutOff {
            needed: at.saturating_add(length as u64),
            size: at.saturating_add(buffer.len() as u64),
        }
        .into());
    }
    Ok(buffer)
}

/// Adds an extent to those of a batch; plain ones that go on where the last one ended are one with it.
fn push(batch: &mut Vec<Extent>, extent: Extent) {
    if let Some(last) = batch.last_mut()
        && last.codec == Codec::Plain
        && extent.codec == Codec::Plain
        && last.guest + last.length == extent.guest
        && last.place + last.stored == extent.place
    {
        last.length += extent.length;
        last.stored += extent.stored;
    } else {
        batch.push(extent);
    }
}

/// A disk of equal blocks whose places are in one table of 32-bit numbers: VDI and dynamic VHD. Places may be in any order;
/// the table is read in pieces, which bounds memory.
struct Blocks {
    format: ImageFormat,
    virtual_size: u64,
    block: u64,
    table: u64,
    entries: u64,
    next: u64,
    /// Where in the file the content of the block is that the number stands for; none for zeros.
    place: Box<dyn Fn([u8; 4]) -> Option<u64> + Send>,
}

/// Entries of a table that are read in one go.
const PIECE: u64 = 64 * 1024;

impl Layout for Blocks {
    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn covered(&self) -> u64 {
        self.next.saturating_mul(self.block).min(self.virtual_size)
    }

    fn next(&mut self, source: &mut dyn Source) -> Result<Option<Vec<Extent>>, LayoutError> {
        if self.next >= self.entries {
            return Ok(None);
        }
        let count = (self.entries - self.next).min(PIECE);
        let at = self.table + self.next * 4;
        let table = exact(source, at, usize::try_from(count * 4).expect("a piece"))?;
        let mut batch = Vec::new();
        for (index, entry) in (self.next..).zip(table.chunks_exact(4)) {
            let guest = index * self.block;
            let Some(place) = (self.place)(bytes(entry, 0)) else {
                continue;
            };
            if guest >= self.virtual_size {
                break;
            }
            let length = self.block.min(self.virtual_size - guest);
            inside(self.format, "block", place, length, source)?;
            batch.push(Extent::plain(guest, place, length));
        }
        self.next += count;
        Ok(Some(sorted(batch)))
    }
}

/// By place, and joined where they follow each other on both sides.
fn sorted(mut batch: Vec<Extent>) -> Vec<Extent> {
    batch.sort_by_key(|extent| (extent.place, extent.guest));
    let mut joined = Vec::with_capacity(batch.len());
    for extent in batch {
        push(&mut joined, extent);
    }
    joined
}

/// A piece of the file must be behind its first sector and, where the length of the file is known, before its end.
fn inside(
    format: ImageFormat,
    field: &'static str,
    place: u64,
    length: u64,
    source: &dyn Source,
) -> Result<(), FormatError> {
    let end = place.checked_add(length);
    let too_far = match (end, source.size()) {
        (None, _) => true,
        (Some(end), Some(size)) => end > size,
        (Some(end), None) => end > i64::MAX as u64,
    };
    if place < 512 || too_far {
        return Err(FormatError::Header {
            format,
            field,
            value: place,
        });
    }
    Ok(())
}
