//! Stored text shown without parsing says the same as when it is parsed.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| berth_apiserver::fuzz::stored(input));
