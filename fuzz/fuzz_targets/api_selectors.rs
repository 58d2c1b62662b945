//! Selectors against any object: no panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str, &[u8])| berth_apiserver::fuzz::selectors(input.0, input.1, input.2));
