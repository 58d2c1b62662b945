//! Patches of any object: no panic, no growth without bound, and a merge patch is idempotent.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8], &[u8])| berth_apiserver::fuzz::patch(input.0, input.1, input.2));
