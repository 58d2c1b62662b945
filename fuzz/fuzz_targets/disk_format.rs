//! Any bytes as a disk image: no panic, and a file that is told to be a disk has a size within the limit.
#![no_main]

use berth_image::format::{HEAD, TAIL, inspect_bytes};
use libfuzzer_sys::fuzz_target;

const LIMIT: u64 = 1 << 40;

fuzz_target!(|input: (u8, &[u8])| {
    let (magic, bytes) = input;
    // A hint now and then: the magic numbers are long for a fuzzer to find.
    let prefix: &[u8] = match magic % 4 {
        0 => b"QFI\xfb\0\0\0\x03",
        1 => b"QFI\xfb\0\0\0\x02",
        _ => b"",
    };
    let file = [prefix, bytes].concat();
    let size = file.len() as u64;
    let head = &file[..file.len().min(HEAD)];
    let tail = &file[file.len() - file.len().min(TAIL)..];
    if let Ok(info) = inspect_bytes(head, tail, size, LIMIT) {
        assert!(info.virtual_size <= LIMIT && info.file_size == size);
    }
});
