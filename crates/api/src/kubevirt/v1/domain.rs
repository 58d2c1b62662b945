//! The virtual hardware apart from its devices: processor, memory, firmware, machine, clock.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Devices, FeatureHyperv, FeatureKVM, HyperVPassthrough};
use crate::quantity;

/// The virtual hardware.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DomainSpec {
    /// The virtual processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CPU>,
    /// The memory that the guest sees. Either this or `resources.requests.memory` is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// What the scheduler reserves, and the limits of the machine's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// The emulated mainboard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// Firmware and the identity that it shows to the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// Platform features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Features>,
    /// The real-time clock and the timers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
    /// The case of the machine, as SMBIOS tells of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chassis: Option<Chassis>,
    /// Which disks have threads of their own in QEMU: `shared` (one for those that ask for none, one for each that asks) or
    /// `auto` (as many as twice the virtual processors, in turn). Without it no disk has. Disks on the virtio bus only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "ioThreadsPolicy")]
    pub io_threads_policy: Option<String>,
    /// What happens when the guest restarts itself: `Reboot` (the default), or `Terminate`: the run ends, and a
    /// VirtualMachine that is always to run starts it again with what its template says by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot_policy: Option<String>,
    /// Disks, network interfaces and other devices.
    pub devices: Devices,
}

/// The case of the machine, as SMBIOS tells of it: each at most 256 letters, digits, spaces and `._-+`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Chassis {
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<String>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The number in an inventory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asset: Option<String>,
    /// The number in a catalogue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sku: Option<String>,
}

/// The virtual processors: `sockets` × `cores` × `threads` of them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CPU {
    /// Cores in each socket, at least 1. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// Sockets, at least 1. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<u32>,
    /// Threads in each core, at least 1. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Model: `host-passthrough` (the default with KVM), `host-model`, or a named model of libvirt such as
    /// `Haswell`. Software emulation shows all it can emulate when nothing or a `host-…` value is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Give each virtual processor a processor of the node for itself. The pod then is of QoS class Guaranteed, and runs
    /// on nodes whose kubelet hands out CPUs (`cpuManagerPolicy: static`). Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedicated_cpu_placement: Option<bool>,
    /// Features of the processor that it has or lacks besides its model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<CPUFeature>,
}

/// A feature of the processor.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CPUFeature {
    /// Its name, as libvirt knows it, for example `aes`.
    pub name: String,
    /// `require` (the default), `optional`, `force`, `disable` or `forbid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

impl CPU {
    /// Whether each virtual processor has a processor of the node for itself.
    pub fn is_dedicated(&self) -> bool {
        self.dedicated_cpu_placement == Some(true)
    }

    /// Number of virtual processors; an unset factor counts as 1. Saturates instead of overflowing.
    pub fn vcpus(&self) -> u32 {
        let factor = |f: Option<u32>| f.unwrap_or(1);
        factor(self.sockets)
            .saturating_mul(factor(self.cores))
            .saturating_mul(factor(self.threads))
    }
}

/// The memory that the guest sees.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Amount of guest memory as a quantity of bytes, for example `512Mi`; at least 1Mi.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "quantity::de::option"
    )]
    #[schemars(schema_with = "quantity::schema::optional")]
    pub guest: Option<Quantity>,
}

/// What the scheduler reserves (`requests`) and what the pod may not exceed (`limits`).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ResourceRequirements {
    /// Reserved amounts; the keys are `cpu` and `memory`. Memory is the guest's, to which the overhead of the
    /// machine's own processes is added.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "quantity::de::map"
    )]
    #[schemars(schema_with = "quantity::schema::map")]
    pub requests: BTreeMap<String, Quantity>,
    /// Upper bounds; the keys are `cpu` and `memory`.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "quantity::de::map"
    )]
    #[schemars(schema_with = "quantity::schema::map")]
    pub limits: BTreeMap<String, Quantity>,
    /// Do not reserve what the machine's own processes need beside the guest. On a full node they may then be ended.
    /// Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit_guest_overhead: Option<bool>,
}

/// The emulated mainboard.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// Machine type: `q35` (the default) or `pc`, or a versioned name of these such as `pc-q35-7.2`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
}

/// Firmware and the identity that it shows to the guest.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Firmware {
    /// UUID of the machine, lower case with dashes. Default: derived from namespace and name, so that a machine
    /// that is started again keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Serial number of the system in SMBIOS: letters, digits and `. _ - +` and space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Which firmware starts the guest. Default: BIOS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootloader: Option<Bootloader>,
    /// A kernel that the firmware starts in place of what is on a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_boot: Option<KernelBoot>,
}

/// A kernel that the firmware starts.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KernelBoot {
    /// What the kernel is told, for example `console=ttyS0`; one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_args: Option<String>,
    /// The image that holds the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<KernelBootContainer>,
}

/// An OCI image with a kernel, its first file system, or both.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KernelBootContainer {
    /// Image reference: `[registry/]name[:tag][@sha256:…]`.
    pub image: String,
    /// When the image is pulled: `Always`, `IfNotPresent` or `Never`. Default: as for container disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,
    /// Name of a secret with the registry's credentials, as for container disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_secret: Option<String>,
    /// Absolute path of the kernel inside the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_path: Option<String>,
    /// Absolute path of the initial file system inside the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<String>,
}

/// The firmware UUID of a machine whose manifest gives none: the same for the same namespace and name, for ever.
pub fn default_firmware_uuid(namespace: &str, name: &str) -> String {
    const SPACE: uuid::Uuid = uuid::uuid!("b3d1c0f7-52d5-4e4c-9a63-1a0f1be8c7aa");
    uuid::Uuid::new_v5(&SPACE, format!("{namespace}/{name}").as_bytes()).to_string()
}

/// Which firmware starts the guest.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Bootloader {
    /// A BIOS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bios: Option<BIOS>,
    /// UEFI; excludes `bios`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub efi: Option<EFI>,
}

/// Settings of UEFI. Its variables are those of the node's firmware package at each start.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EFI {
    /// Whether only signed programs are started, by the keys that are usual on hardware. Needs `features.smm` and a q35
    /// machine. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure_boot: Option<bool>,
}

impl EFI {
    /// Whether only signed programs are started.
    pub fn is_secure(&self) -> bool {
        self.secure_boot != Some(false)
    }
}

/// Settings of the BIOS.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BIOS {
    /// Whether the BIOS also writes its screen to the serial console. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_serial: Option<bool>,
}

/// Platform features.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Features {
    /// ACPI, which the guest needs to hear a request to power off. Default: on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acpi: Option<FeatureState>,
    /// The advanced programmable interrupt controller. Default: on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apic: Option<FeatureAPIC>,
    /// Enlightenments of Hyper-V, one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hyperv: Option<FeatureHyperv>,
    /// All of them that the host has; excludes `hyperv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hyperv_passthrough: Option<HyperVPassthrough>,
    /// What the guest sees of KVM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvm: Option<FeatureKVM>,
    /// Spinlocks that tell the hypervisor. Default: off unless it is mentioned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pvspinlock: Option<FeatureState>,
    /// System management mode. Default: off unless it is mentioned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smm: Option<FeatureState>,
}

/// A feature that is on or off.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FeatureState {
    /// Whether the feature is on. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// The advanced programmable interrupt controller.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FeatureAPIC {
    /// Whether the controller is on. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Whether the guest may use the paravirtual end-of-interrupt notification. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_of_interrupt: Option<bool>,
}

/// The real-time clock and the timers. `utc` and `timezone` exclude each other; the default is UTC.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Clock {
    /// The clock shows UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utc: Option<ClockOffsetUTC>,
    /// The clock shows the local time of this zone of the tz database, for example `Europe/Berlin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Timer devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timer: Option<Timer>,
}

/// A clock that shows UTC.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClockOffsetUTC {
    /// Seconds by which the clock differs from UTC. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset_seconds: Option<i64>,
}

/// Timer devices. One that is not mentioned stays as the machine type has it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Timer {
    /// The high precision event timer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hpet: Option<HPETTimer>,
    /// The programmable interval timer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pit: Option<PITTimer>,
    /// The timer of the real-time clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtc: Option<RTCTimer>,
    /// The clock of Hyper-V, for Windows. Not under software emulation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hyperv: Option<HypervTimer>,
    /// The clock of KVM. Not under software emulation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvm: Option<KVMTimer>,
}

/// The clock of Hyper-V.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HypervTimer {
    /// Whether the guest sees this clock. Default true when it is mentioned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
}

/// The clock of KVM.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KVMTimer {
    /// Whether the guest sees this clock. Default true when it is mentioned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
}

/// The high precision event timer.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HPETTimer {
    /// Whether the guest sees this timer. Default true when it is mentioned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
}

/// The programmable interval timer.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PITTimer {
    /// Whether the guest sees this timer. Default true when it is mentioned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
    /// What happens to ticks that the guest missed: `delay` or `discard`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tick_policy: Option<String>,
}

/// The timer of the real-time clock.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RTCTimer {
    /// Whether the guest sees this timer. Default true when it is mentioned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
    /// What happens to ticks that the guest missed: `delay` or `catchup`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tick_policy: Option<String>,
    /// What the timer follows: `guest` or `wall`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track: Option<String>,
}
