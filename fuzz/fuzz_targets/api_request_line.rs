//! A request line: no panic, and a resource path names a resource.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &str)| berth_apiserver::fuzz::request_line(input.0, input.1));
