//! Any schema and any object: no panic in parsing, pruning, defaulting, validating.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8])| berth_apiserver::fuzz::schema(input.0, input.1));
