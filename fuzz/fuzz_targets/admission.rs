//! Any JSON as a VirtualMachineInstance: no panic, and what is admitted is admitted again unchanged.
#![no_main]

use berth_admission::{Operation, Request, admit};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|text: &[u8]| {
    let Ok(object) = serde_json::from_slice::<Value>(text) else { return };
    let request = |object| Request {
        operation: Operation::Create,
        kind: "VirtualMachineInstance",
        subresource: None,
        namespace: "default",
        name: "fuzz",
        object: Some(object),
        old_object: None,
    };
    let Ok(admitted) = admit(&request(&object)) else { return };
    let admitted = admitted.object.expect("an admitted creation has an object");
    let again = admit(&request(&admitted)).expect("what was admitted is admitted again");
    assert_eq!(again.object.as_ref(), Some(&admitted));
});
