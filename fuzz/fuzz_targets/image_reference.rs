//! A reference that is accepted says the same when written and read again.
#![no_main]

use berth_image::ImageRef;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<ImageRef>() {
        let written = reference.to_string();
        let again: ImageRef = written.parse().expect("its own form is accepted");
        assert_eq!(again.to_string(), written);
    }
});
