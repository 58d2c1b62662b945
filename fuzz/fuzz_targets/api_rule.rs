//! A validation rule (CEL) of any text on values: no panic, and an end.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8], &[u8])| berth_apiserver::fuzz::rule(input.0, input.1, input.2));
