//! From a VirtualMachineInstance to the domain XML of libvirt, as a pure function.
//!
//! [`domain_xml`] looks at nothing but its [`DomainInput`]: the same input gives the same bytes, which the golden
//! files in `tests/golden` hold. It expects a spec that passed admission (defaults set, names matched) and fails
//! with a [`DomainError`] instead of guessing where it did not.
//!
//! The XML is for QEMU 7.2 and libvirt 9.0 or later, in a session-mode libvirtd that has no privilege: taps exist
//! already (`managed='no'`), there is no security label, and every path is one inside the launcher's pod.
//!
//! # Choices
//! - No device that nobody asked for: no USB controller without a USB device, no boot ROM on a NIC that is not
//!   in the boot order (an iPXE ROM costs a second of start), no video without a display.
//! - A full disk of the node pauses the guest (`error_policy='stop'`) and does not corrupt it.
//! - Without KVM the processor is `maximum`: all that software emulation can do.

mod devices;
mod platform;
mod xml;

use berth_api::kubevirt::v1::VirtualMachineInstance;
use berth_api::quantity::QuantityError;

pub use devices::disk_targets;
use xml::Element;

/// All that a domain is made of.
#[derive(Debug, Clone)]
pub struct DomainInput<'a> {
    /// The machine, as admitted.
    pub vmi: &'a VirtualMachineInstance,
    /// The file behind each volume that a disk of the spec shows; order does not matter.
    pub disks: Vec<DiskInput>,
    /// The tap behind each interface of the spec; order does not matter.
    pub nics: Vec<NicInput>,
    /// Path of the kernel that the firmware starts, where the spec names one.
    pub kernel: Option<String>,
    /// Path of its initial file system.
    pub initrd: Option<String>,
    /// The host's processors that the pod may use; only looked at where each virtual processor has one for itself.
    pub cpus: Vec<u32>,
    /// Whether the guest is emulated in software because KVM cannot be used.
    pub emulation: bool,
    /// Path of the QEMU binary; none for [`DEFAULT_EMULATOR`].
    pub emulator: Option<String>,
    /// Path of the unix socket that QEMU binds for the serial console.
    pub serial_socket: String,
    /// Path of the unix socket that QEMU binds for VNC; none for no display, whatever the spec says.
    pub vnc_socket: Option<String>,
    /// Path of the file for the variables of UEFI.
    pub nvram: String,
    /// Path of the unix socket that QEMU binds for the guest agent; none for no channel.
    pub agent_socket: Option<String>,
}

/// The QEMU of Debian and most others.
pub const DEFAULT_EMULATOR: &str = "/usr/bin/qemu-system-x86_64";

/// Where the UEFI of Debian's package `ovmf` is.
const FIRMWARE_DIR: &str = "/usr/share/OVMF";

/// The file behind a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskInput {
    /// Name of the volume.
    pub volume: String,
    /// Path of the file.
    pub path: String,
    /// `qcow2` or `raw`.
    pub format: String,
    /// Whether the file itself may not be written; a disk on it must then be read-only too.
    pub read_only: bool,
    /// Whether it is a block device.
    pub block: bool,
}

/// The tap behind an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicInput {
    /// Name of the network, which is that of the interface.
    pub network: String,
    /// Name of the tap.
    pub tap: String,
    /// Hardware address that the guest sees.
    pub mac: String,
    /// MTU that the guest is told (virtio only).
    pub mtu: u32,
}

/// Why a domain cannot be made of the input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// The object has no such metadata.
    #[error("the machine has no metadata.{0}")]
    Metadata(&'static str),
    /// The spec names a kernel, and none is there.
    #[error("spec.domain.firmware.kernelBoot: the kernel is not in the launcher pod")]
    NoKernel,
    /// Neither admission nor the user set the memory.
    #[error("spec.domain.memory.guest is not set")]
    NoMemory,
    /// The memory is not a quantity.
    #[error("spec.domain.memory.guest: {0}")]
    Memory(QuantityError),
    /// A value that admission lets nobody set.
    #[error("{field}: {value:?} is not supported")]
    Value {
        /// Path of the field.
        field: String,
        /// Its value.
        value: String,
    },
    /// The machine has its processors for itself, and the pod has fewer.
    #[error(
        "spec.domain.cpu.dedicatedCpuPlacement: {vcpus} virtual processors, and the pod has {cpus} of the node's"
    )]
    TooFewCpus {
        /// How many the guest has.
        vcpus: u32,
        /// How many the pod has.
        cpus: usize,
    },
    /// A disk of the spec has no file.
    #[error("disk {0:?} has no volume behind it")]
    NoDisk(String),
    /// A disk that the guest may write is on a file that may not be written.
    #[error("disk {0:?} can be written and its file {1:?} cannot")]
    ReadOnlyFile(String, String),
    /// An interface of the spec has no tap.
    #[error("interface {0:?} has no tap behind it")]
    NoNic(String),
    /// The firmware should write to a serial console that is not there.
    #[error(
        "spec.domain.firmware.bootloader.bios.useSerial needs spec.domain.devices.autoattachSerialConsole"
    )]
    NoSerialForBios,
    /// A text that XML cannot carry.
    #[error("{0:?} has a control character")]
    Text(String),
}

/// Name of the domain in libvirt: `<namespace>_<name>`. Neither part can have an underscore.
pub fn domain_name(namespace: &str, name: &str) -> String {
    format!("{namespace}_{name}")
}

/// The domain XML.
///
/// # Errors
/// The input is not complete, or has a value that admission refuses.
pub fn domain_xml(input: &DomainInput<'_>) -> Result<String, DomainError> {
    let metadata = &input.vmi.metadata;
    let name = metadata
        .name
        .as_deref()
        .ok_or(DomainError::Metadata("name"))?;
    let namespace = metadata
        .namespace
        .as_deref()
        .ok_or(DomainError::Metadata("namespace"))?;
    let domain = &input.vmi.spec.domain;

    Element::new("domain")
        .attribute("type", if input.emulation { "qemu" } else { "kvm" })
        .child(Element::new("name").text(domain_name(namespace, name)))
        .children(platform::identity(namespace, name, domain))
        .child(platform::memory(domain)?)
        .children(platform::processor(domain, input.emulation))
        .children(devices::io_threads(domain))
        .children(platform::pinning(domain, &input.cpus)?)
        .child(platform::os(input)?)
        .child(platform::features(domain, input.emulation))
        .child(platform::clock(domain, input.emulation))
        .child(Element::new("on_poweroff").text("destroy"))
        .child(Element::new("on_reboot").text(
            if domain.reboot_policy.as_deref() == Some("Terminate") {
                "destroy"
            } else {
                "restart"
            },
        ))
        .child(Element::new("on_crash").text("destroy"))
        .child(devices::devices(input)?)
        .child(Element::new("seclabel").attribute("type", "none"))
        .render()
}
