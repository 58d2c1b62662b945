//! VMDK, the sparse extent with its descriptor inside ("Virtual Disk Format 5.0", VMware): a directory of tables of grains,
//! plain or packed.
//!
//! streamOptimized images have their directory at the end, behind the data. Where the file is a stream and has no end yet,
//! such an image is read by the markers in front of its grains instead, which is what they are for.

use super::{Codec, Extent, Layout, LayoutError, Little, Source, exact, inside, push, sorted};
use crate::format::{FormatError, ImageFormat};

const SECTOR: u64 = 512;
const ZERO_GRAIN: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;
const MARKERS: u32 = 1 << 17;
const AT_END: u64 = u64::MAX;
const DEFLATE: u16 = 1;
const MAX_DESCRIPTOR: u64 = 1 << 20;
/// Entries of a table, and bytes of it.
const ENTRIES: u64 = 512;
const TABLE: usize = 2048;
/// QEMU's own limit: 512 MiB of directory are more than any disk needs.
const MAX_DIRECTORY: u64 = 1 << 20;
/// Markers without grains that may follow each other.
const BATCH: usize = 1024;

pub(super) struct Vmdk {
    virtual_size: u64,
    /// Bytes of a grain.
    grain: u64,
    packed: bool,
    zero_grains: bool,
    way: Way,
    covered: u64,
}

/// How the grains are found.
enum Way {
    Tables { directory: Vec<u32>, next: usize },
    Markers { at: u64 },
    Done,
}

impl Vmdk {
    pub(super) fn open(head: &[u8], source: &mut dyn Source) -> Result<Self, LayoutError> {
        if head.len() < 512 {
            return Err(FormatError::CutOff {
                needed: 512,
                size: head.len() as u64,
            }
            .into());
        }
        check_descriptor(head, source)?;
        let markers = Little(head).u32(8) & MARKERS != 0;
        let at_end = Little(head).u64(56) == AT_END;
        let footer = match (at_end, source.size()) {
            (true, Some(size)) => {
                let at = size
                    .checked_sub(1024)
                    .ok_or_else(|| bad("directory offset", AT_END))?;
                Some(exact(source, at, 512)?)
            }
            _ => None,
        };
        if footer.as_ref().is_some_and(|f| !f.starts_with(b"KDMV")) {
            return Err(bad("footer", 0).into());
        }
        let header = Little(footer.as_deref().unwrap_or(head));
        let (version, flags) = (header.u32(4), header.u32(8));
        let (capacity, grain) = (header.u64(12), header.u64(20));
        if !(1..=3).contains(&version) {
            return Err(bad("version", version.into()).into());
        }
        if !grain.is_power_of_two() || !(8..=2048).contains(&grain) {
            return Err(bad("grain size", grain).into());
        }
        if capacity == 0 || capacity > (64 << 40) / SECTOR {
            return Err(bad("capacity", capacity).into());
        }
        let packed = flags & COMPRESSED != 0;
        if packed && header.u16(77) != DEFLATE {
            return Err(bad("compression algorithm", header.u16(77).into()).into());
        }
        if u64::from(header.u32(44)) != ENTRIES {
            return Err(bad("entries of a grain table", header.u32(44).into()).into());
        }
        if head[72] != 0 {
            return Err(FormatError::Unclean(ImageFormat::Vmdk).into());
        }
        let grain = grain * SECTOR;
        let way = if at_end && footer.is_none() {
            if !(markers && packed) {
                return Err(bad("directory offset", AT_END).into());
            }
            let overhead = header.u64(64);
            if overhead == 0 || overhead > u64::from(u32::MAX) {
                return Err(bad("overhead", overhead).into());
            }
            Way::Markers {
                at: overhead * SECTOR,
            }
        } else {
            let tables = capacity.div_ceil(grain / SECTOR * ENTRIES);
            if tables > MAX_DIRECTORY {
                return Err(bad("capacity", capacity).into());
            }
            let at = header
                .u64(56)
                .checked_mul(SECTOR)
                .ok_or_else(|| bad("directory offset", header.u64(56)))?;
            inside(
                ImageFormat::Vmdk,
                "directory offset",
                at,
                tables * 4,
                source,
            )?;
            let length = usize::try_from(tables * 4).expect("checked to be small");
            let directory = exact(source, at, length)?;
            Way::Tables {
                directory: directory
                    .chunks_exact(4)
                    .map(|entry| u32::from_le_bytes(super::bytes(entry, 0)))
                    .collect(),
                next: 0,
            }
        };
        Ok(Self {
            virtual_size: capacity * SECTOR,
            grain,
            packed,
            zero_grains: flags & ZERO_GRAIN != 0,
            way,
            covered: 0,
        })
    }

    /// One table: 512 grains.
    fn table(
        &self,
        index: usize,
        sector: u32,
        source: &mut dyn Source,
    ) -> Result<Vec<Extent>, LayoutError> {
        let first = index as u64 * ENTRIES * self.grain;
        let at = u64::from(sector) * SECTOR;
        inside(ImageFormat::Vmdk, "grain table", at, TABLE as u64, source)?;
        let table = exact(source, at, TABLE)?;
        let mut batch = Vec::new();
        for (number, entry) in (0u64..).zip(table.chunks_exact(4)) {
            let sector = u32::from_le_bytes(super::bytes(entry, 0));
            let guest = first + number * self.grain;
            if guest >= self.virtual_size {
                break;
            }
            if sector == 0 || (sector == 1 && self.zero_grains) {
                continue;
            }
            let length = self.grain.min(self.virtual_size - guest);
            let place = u64::from(sector) * SECTOR;
            if self.packed {
                inside(ImageFormat::Vmdk, "grain", place, 12, source)?;
                batch.push(self.packed_grain(guest, place, length));
            } else {
                inside(ImageFormat::Vmdk, "grain", place, length, source)?;
                push(&mut batch, Extent::plain(guest, place, length));
            }
        }
        let mut batch = sorted(batch);
        // Nothing says how long a packed grain is but its marker: it ends where the next one begins at the latest.
        for index in 1..batch.len() {
            let next = batch[index].place;
            let grain = &mut batch[index - 1];
            if grain.codec == Codec::Grain {
                grain.stored = grain.stored.min(next - grain.place);
            }
        }
        Ok(batch)
    }

    /// Deflate makes nothing much longer, so this is all that a grain can take.
    fn packed_grain(&self, guest: u64, place: u64, length: u64) -> Extent {
        Extent {
            guest,
            length,
            place,
            stored: 12 + self.grain + self.grain / 8 + 512,
            codec: Codec::Grain,
        }
    }

    /// Follows the markers to the next grain, which is a batch of its own: where the one behind it is, only it says.
    fn marked(
        &self,
        mut at: u64,
        source: &mut dyn Source,
    ) -> Result<(Vec<Extent>, Way), LayoutError> {
        for _ in 0..BATCH {
            let marker = exact(source, at, 16)?;
            let marker = Little(&marker);
            let (value, size) = (marker.u64(0), u64::from(marker.u32(8)));
            if size == 0 {
                match marker.u32(12) {
                    // The end of the stream.
                    0 => return Ok((Vec::new(), Way::Done)),
                    // Tables, which repeat what the markers say.
                    1..=3 if value <= MAX_DIRECTORY * 4 / SECTOR + 1 => at += (value + 1) * SECTOR,
                    other => return Err(bad("marker", other.into()).into()),
                }
                continue;
            }
            let guest = value
                .checked_mul(SECTOR)
                .filter(|guest| *guest < self.virtual_size);
            let guest = guest.ok_or_else(|| bad("sector of a grain", value))?;
            if !guest.is_multiple_of(self.grain) {
                return Err(bad("sector of a grain", value).into());
            }
            let length = self.grain.min(self.virtual_size - guest);
            let mut extent = self.packed_grain(guest, at, length);
            if 12 + size > extent.stored {
                return Err(bad("size of a grain", size).into());
            }
            extent.stored = 12 + size;
            let next = at + (12 + size).div_ceil(SECTOR) * SECTOR;
            return Ok((vec![extent], Way::Markers { at: next }));
        }
        Err(bad("number of markers", BATCH as u64).into())
    }
}

impl Layout for Vmdk {
    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn covered(&self) -> u64 {
        self.covered.min(self.virtual_size)
    }

    fn next(&mut self, source: &mut dyn Source) -> Result<Option<Vec<Extent>>, LayoutError> {
        if let Way::Markers { at } = self.way {
            let (batch, way) = self.marked(at, source)?;
            self.way = way;
            if let Some(extent) = batch.last() {
                self.covered = extent.guest + extent.length;
            }
            return Ok(Some(batch));
        }
        match &mut self.way {
            Way::Done | Way::Markers { .. } => Ok(None),
            Way::Tables { directory, next } => {
                let index = *next;
                let Some(&sector) = directory.get(index) else {
                    return Ok(None);
                };
                *next += 1;
                self.covered += ENTRIES * self.grain;
                if sector == 0 {
                    return Ok(Some(Vec::new()));
                }
                self.table(index, sector, source).map(Some)
            }
        }
    }
}

/// The descriptor inside the file must tell of this file and no other.
fn check_descriptor(head: &[u8], source: &mut dyn Source) -> Result<(), LayoutError> {
    let header = Little(head);
    let (at, length) = (header.u64(28), header.u64(36));
    // Extents without a descriptor are parts of a disk that a file beside them describes.
    if at == 0 || length == 0 || length > MAX_DESCRIPTOR / SECTOR {
        return Err(bad("descriptor size", length).into());
    }
    let at = at
        .checked_mul(SECTOR)
        .ok_or_else(|| bad("descriptor offset", at))?;
    let bytes = usize::try_from(length * SECTOR).expect("checked to be small");
    let text = exact(source, at, bytes)?;
    let end = text
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(text.len());
    let text = String::from_utf8_lossy(&text[..end]).into_owned();
    let mut extents = 0;
    for line in text.lines().map(str::trim) {
        let setting = |name: &str| {
            let value = line.strip_prefix(name)?.trim_start().strip_prefix('=')?;
            Some(value.trim().trim_matches('"').to_owned())
        };
        if let Some(parent) = setting("parentFileNameHint") {
            return Err(FormatError::BackingFile(parent.chars().take(200).collect()).into());
        }
        if let Some(id) = setting("parentCID")
            && !id.eq_ignore_ascii_case("ffffffff")
        {
            return Err(FormatError::BackingFile(format!("parentCID {id:.20}")).into());
        }
        if let Some(kind) = setting("createType")
            && !["monolithicSparse", "streamOptimized"].contains(&kind.as_str())
        {
            return Err(FormatError::ExternalData.into());
        }
        if ["RW ", "RDONLY ", "NOACCESS "]
            .iter()
            .any(|access| line.starts_with(access))
        {
            extents += 1;
            if line.split_whitespace().nth(2) != Some("SPARSE") {
                return Err(FormatError::ExternalData.into());
            }
        }
    }
    if extents != 1 {
        return Err(FormatError::ExternalData.into());
    }
    Ok(())
}

fn bad(field: &'static str, value: u64) -> FormatError {
    FormatError::Header {
        format: ImageFormat::Vmdk,
        field,
        value,
    }
}
