//! Bodies as JSON, YAML and protobuf: no panic, no exhaustion.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| berth_apiserver::fuzz::body(input.0, input.1));
