//! qcow2 (docs/interop/qcow2.txt in QEMU): a table of tables of clusters, plain, packed with deflate or zstd, or divided
//! into 32 subclusters.
//!
//! Internal snapshots are passed over: what is read is the disk as it is now. There is a well-kept crate for qcow2, imago;
//! it knows no zstd, and gives content by its place on the disk, where one pass needs it by its place in the file.

use super::{Codec, Extent, Layout, LayoutError, Source, exact, inside, push, sorted};
use crate::format::{FormatError, ImageFormat, qcow2};

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ALL_ZERO: u64 = 1;
const SUBCLUSTERS: u64 = 32;

pub(super) struct Qcow2 {
    virtual_size: u64,
    cluster_bits: u32,
    codec: Codec,
    extended: bool,
    l1: Vec<u64>,
    next: usize,
}

impl Qcow2 {
    pub(super) fn open(
        head: &[u8],
        source: &mut dyn Source,
        limit: u64,
    ) -> Result<Self, LayoutError> {
        let file_size = source.size().unwrap_or(i64::MAX as u64);
        let virtual_size = qcow2::check(head, file_size, limit)?;
        let word = |at: usize| u32::from_be_bytes(super::bytes(head, at));
        let long = |at: usize| u64::from_be_bytes(super::bytes(head, at));
        let features = if word(4) == 3 { long(72) } else { 0 };
        let extended = features & qcow2::INCOMPATIBLE_EXTENDED_L2 != 0;
        let zstd = features & qcow2::INCOMPATIBLE_COMPRESSION != 0;
        let cluster_bits = word(20);
        if extended && cluster_bits < 14 {
            return Err(bad("cluster_bits", cluster_bits.into()).into());
        }
        let entries = usize::try_from(word(36)).expect("checked to be small");
        let table = exact(source, long(40), entries * 8)?;
        let this = Self {
            virtual_size,
            cluster_bits,
            codec: if zstd { Codec::Zstd } else { Codec::Deflate },
            extended,
            l1: table
                .chunks_exact(8)
                .map(|entry| u64::from_be_bytes(super::bytes(entry, 0)) & OFFSET)
                .collect(),
            next: 0,
        };
        // More entries than the disk needs are allowed, and are none of its content.
        let needed = virtual_size.div_ceil(this.covered_by_table());
        Ok(Self {
            l1: this.l1[..usize::try_from(needed).expect("checked to be there")].to_vec(),
            ..this
        })
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn entry_size(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    fn covered_by_table(&self) -> u64 {
        self.cluster() * (self.cluster() / self.entry_size())
    }

    fn packed(&self, entry: u64, guest: u64, length: u64) -> Extent {
        let offset_bits = 62 - (self.cluster_bits - 8);
        let place = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & !COMPRESSED & !(1 << 63)) >> offset_bits;
        Extent {
            guest,
            length,
            place,
            stored: (sectors + 1) * 512 - (place & 511),
            codec: self.codec,
        }
    }
}

impl Layout for Qcow2 {
    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn covered(&self) -> u64 {
        (self.next as u64)
            .saturating_mul(self.covered_by_table())
            .min(self.virtual_size)
    }

    fn next(&mut self, source: &mut dyn Source) -> Result<Option<Vec<Extent>>, LayoutError> {
        let Some(&table_at) = self.l1.get(self.next) else {
            return Ok(None);
        };
        let first = self.next as u64 * self.covered_by_table();
        self.next += 1;
        if table_at == 0 {
            return Ok(Some(Vec::new()));
        }
        let cluster = self.cluster();
        if !table_at.is_multiple_of(cluster) {
            return Err(bad("l2_table_offset", table_at).into());
        }
        inside(
            ImageFormat::Qcow2,
            "l2_table_offset",
            table_at,
            cluster,
            source,
        )?;
        let table = exact(source, table_at, 1 << self.cluster_bits)?;
        let step = usize::try_from(self.entry_size()).expect("8 or 16");
        let mut batch = Vec::new();
        for (index, entry) in (0u64..).zip(table.chunks_exact(step)) {
            let guest = first + index * cluster;
            if guest >= self.virtual_size {
                break;
            }
            let length = cluster.min(self.virtual_size - guest);
            let word = u64::from_be_bytes(super::bytes(entry, 0));
            if word & COMPRESSED != 0 {
                let extent = self.packed(word, guest, length);
                // The last sector of the last cluster may not be there.
                inside(
                    ImageFormat::Qcow2,
                    "cluster_offset",
                    extent.place,
                    1,
                    source,
                )?;
                batch.push(extent);
                continue;
            }
            let place = word & OFFSET;
            let bitmap = if self.extended {
                u64::from_be_bytes(super::bytes(entry, 8))
            } else if word & ALL_ZERO != 0 {
                0
            } else {
                u64::from(u32::MAX)
            };
            if place == 0 || bitmap & u64::from(u32::MAX) == 0 {
                continue;
            }
            if !place.is_multiple_of(cluster) {
                return Err(bad("cluster_offset", place).into());
            }
            inside(ImageFormat::Qcow2, "cluster_offset", place, length, source)?;
            if bitmap == u64::from(u32::MAX) {
                push(&mut batch, Extent::plain(guest, place, length));
                continue;
            }
            let part = cluster / SUBCLUSTERS;
            for number in 0..SUBCLUSTERS {
                let (allocated, zero) = (bitmap >> number & 1, bitmap >> (number + 32) & 1);
                if allocated & zero == 1 {
                    return Err(bad("subcluster bitmap", bitmap).into());
                }
                let from = number * part;
                if allocated == 1 && from < length {
                    let part = part.min(length - from);
                    push(&mut batch, Extent::plain(guest + from, place + from, part));
                }
            }
        }
        Ok(Some(sorted(batch)))
    }
}

fn bad(field: &'static str, value: u64) -> FormatError {
    FormatError::Header {
        format: ImageFormat::Qcow2,
        field,
        value,
    }
}
