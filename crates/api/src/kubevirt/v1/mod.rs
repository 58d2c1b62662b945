//! `kubevirt.io/v1`: the VirtualMachineInstance, what it asks for ([`spec`](VirtualMachineInstanceSpec)) and
//! what became of it ([`status`](VirtualMachineInstanceStatus)).

mod devices;
mod domain;
mod instance;
mod status;
mod storage;

pub use devices::*;
pub use domain::*;
pub use instance::*;
pub use status::*;
pub use storage::*;
