//! Any bytes as an image of any format, as a file and as a stream: no panic, no disk above its room, and both readings give
//! the same disk where both give one.
#![no_main]

use std::io::Cursor;
use std::sync::atomic::AtomicBool;

use berth_image::NoProgress;
use berth_image::import::{From, Request, Room, run};
use libfuzzer_sys::fuzz_target;

const ROOM: u64 = 8 << 20;

fuzz_target!(|input: (u8, u16, &[u8])| {
    let (magic, pad, bytes) = input;
    // Magic numbers are long for a fuzzer to find, and tables are far into a file.
    let (at, word): (usize, &[u8]) = match magic % 7 {
        0 => (0, b"QFI\xfb\0\0\0\x03"),
        1 => (0, b"KDMV\x01\0\0\0"),
        2 => (0x40, b"\x7f\x10\xda\xbe\x01\0\x01\0"),
        3 => (0, b"conectix"),
        4 => (0, b"vhdxfile"),
        5 => (0, b"\x1f\x8b\x08"),
        _ => (0, b""),
    };
    let mut image = bytes.to_vec();
    image.resize(image.len().max(at + word.len()) + usize::from(pad) * 16, 0);
    image[at..at + word.len()].copy_from_slice(word);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("image");
    std::fs::write(&file, &image).expect("written");
    let import = |from, out: &str| {
        let mut request = Request::new(from, dir.path().join(out));
        request.room = Some(Room { available: ROOM, claim: None });
        let done = run(request, &NoProgress, &AtomicBool::new(false)).ok()?;
        assert!(done.virtual_size <= ROOM);
        std::fs::read(dir.path().join(out)).ok()
    };
    let one = import(From::File(file), "one");
    let stream = Box::new(Cursor::new(image));
    let other = import(From::Stream { stream, length: None }, "other");
    // A VMDK is read by its directory or by the markers in front of its grains, which a hostile one lets differ.
    if let (Some(one), Some(other)) = (one, other)
        && magic % 7 != 1
    {
        assert!(one == other, "two readings of one image");
    }
});
