//! `kubevirt.io/v1`: the VirtualMachine, which is started and stopped, and the VirtualMachineInstance, one run of it: what it
//! asks for ([`spec`](VirtualMachineInstanceSpec)) and what became of it ([`status`](VirtualMachineInstanceStatus)).

mod access;
mod devices;
mod domain;
mod features;
mod guest;
mod instance;
mod machine;
mod plain;
mod probe;
mod status;
mod storage;
mod texts;

pub use access::*;
pub use devices::*;
pub use domain::*;
pub use features::*;
pub use guest::*;
pub use instance::*;
pub use machine::*;
pub use probe::*;
pub use status::*;
pub use storage::*;
pub use texts::*;
