//! Continue tokens: no panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| berth_apiserver::fuzz::continue_token(input));
