//! Quantities: no panic, no overflow.
#![no_main]

use berth_api::quantity::{parse_bytes, parse_millis};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: String| {
    let quantity = Quantity(text);
    let _ = parse_bytes(&quantity);
    let _ = parse_millis(&quantity);
});
