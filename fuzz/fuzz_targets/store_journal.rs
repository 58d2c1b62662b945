//! Any bytes as a journal of the store: no panic, and no memory beyond the input.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| berth_apiserver::fuzz::journal(input));
