//! A configuration applied to an object: no panic, what has owners is read as it was written, and the same again changes
//! nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8], &[u8])| berth_apiserver::fuzz::apply(
    input.0, input.1, input.2
));
