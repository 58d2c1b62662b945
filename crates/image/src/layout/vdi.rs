//! VDI, as VirtualBox (include/VBox/vd-plugin.h) and QEMU (block/vdi.c) write it: a header, one table, blocks.

use super::{Blocks, Little};
use crate::format::{FormatError, ImageFormat};

/// The header ends here.
const HEADER: usize = 0x1c8;
const VERSION: u32 = 0x0001_0001;
const DYNAMIC: u32 = 1;
const FIXED: u32 = 2;
/// What is not there, and what the guest gave back.
const FIRST_UNUSED: u32 = 0xffff_fffe;
/// QEMU's own limit.
const MAX_BLOCKS: u64 = 0x2000_0000;

pub(super) fn open(head: &[u8]) -> Result<Blocks, FormatError> {
    if head.len() < HEADER {
        return Err(FormatError::CutOff {
            needed: HEADER as u64,
            size: head.len() as u64,
        });
    }
    let header = Little(head);
    let bad = |field, value: u64| FormatError::Header {
        format: ImageFormat::Vdi,
        field,
        value,
    };
    if header.u32(0x44) != VERSION {
        return Err(bad("version", header.u32(0x44).into()));
    }
    let kind = header.u32(0x4c);
    if kind != DYNAMIC && kind != FIXED {
        return Err(match kind {
            4 => FormatError::BackingFile("of a differencing image".to_owned()),
            other => bad("image type", other.into()),
        });
    }
    if head[0x1a8..0x1c8].iter().any(|&byte| byte != 0) {
        return Err(FormatError::BackingFile("of a linked image".to_owned()));
    }
    let (table, data) = (u64::from(header.u32(0x154)), u64::from(header.u32(0x158)));
    let (virtual_size, block) = (header.u64(0x170), u64::from(header.u32(0x178)));
    let extra = u64::from(header.u32(0x17c));
    let entries = u64::from(header.u32(0x180));
    if header.u32(0x168) != 512 {
        return Err(bad("sector size", header.u32(0x168).into()));
    }
    if !block.is_power_of_two() || !(4096..=64 << 20).contains(&block) {
        return Err(bad("block size", block));
    }
    if extra != 0 {
        return Err(bad("block extra data", extra));
    }
    if virtual_size == 0 {
        return Err(bad("disk size", 0));
    }
    if entries > MAX_BLOCKS || virtual_size.div_ceil(block) > entries {
        return Err(bad("blocks in image", entries));
    }
    if table < HEADER as u64 || !table.is_multiple_of(512) {
        return Err(bad("offset of the table", table));
    }
    if data < table + entries * 4 || !data.is_multiple_of(512) {
        return Err(bad("offset of the data", data));
    }
    Ok(Blocks {
        format: ImageFormat::Vdi,
        virtual_size: virtual_size.div_ceil(512) * 512,
        block,
        table,
        entries: virtual_size.div_ceil(block),
        next: 0,
        place: Box::new(move |entry| {
            let number = u32::from_le_bytes(entry);
            (number < FIRST_UNUSED).then(|| data + u64::from(number) * block)
        }),
    })
}
