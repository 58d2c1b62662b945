//! The devices of a virtual machine.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Disks, network interfaces and other devices.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Devices {
    /// Disks and CD-ROM drives. Each shows the volume of the same name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Network interfaces. Each connects to the network of the same name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Pointing devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Input>,
    /// A virtio random number generator, fed by the node's /dev/urandom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rng: Option<Rng>,
    /// Whether a display is attached. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoattach_graphics_device: Option<bool>,
    /// Whether a serial console is attached. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoattach_serial_console: Option<bool>,
    /// Whether the virtio memory balloon is attached. Default true.
    #[serde(
        default,
        rename = "autoattachMemBalloon",
        skip_serializing_if = "Option::is_none"
    )]
    pub autoattach_mem_balloon: Option<bool>,
    /// Whether a machine that names no network gets an interface on the pod network. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoattach_pod_interface: Option<bool>,
    /// Whether a copy of what the guest writes to its serial console is kept in the file `serial.log` of the
    /// launcher's directory, bounded in size. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_serial_console: Option<bool>,
    /// Whether a machine that names no input has a tablet, so that a display has a pointer. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoattach_input_device: Option<bool>,
    /// Show virtio devices to guests that know only the first version of it. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_virtio_transitional: Option<bool>,
    /// As many queues for each virtio disk as there are virtual processors. Default false: one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_multi_queue: Option<bool>,
    /// A watchdog that acts when the guest does not feed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<Watchdog>,
    /// A sound card, whose sound nobody hears.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sound: Option<SoundDevice>,
    /// What kind the video card is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video: Option<VideoDevice>,
    /// Devices by which a guest tells that it has crashed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub panic_devices: Vec<PanicDevice>,
}

/// A watchdog that acts when the guest does not feed it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Watchdog {
    /// Name of the device.
    pub name: String,
    /// The card i6300esb.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "i6300esb")]
    pub i6300esb: Option<I6300ESBWatchdog>,
}

/// The card i6300esb.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct I6300ESBWatchdog {
    /// What happens: `reset` (the default), `poweroff` or `shutdown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
}

/// A sound card.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SoundDevice {
    /// Name of the device.
    pub name: String,
    /// `ich9` (the default) or `ac97`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// A video card.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VideoDevice {
    /// `vga` (the default), `virtio`, `bochs` or `ramfb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "type")]
    pub type_: Option<String>,
}

/// A device by which a guest tells that it has crashed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PanicDevice {
    /// `isa` (the default), or `hyperv` for Windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// A disk or a CD-ROM drive. Exactly one of `disk` and `cdrom` must be set; admission sets `disk` when none is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Name of the volume that the device shows; unique among the disks.
    pub name: String,
    /// The volume is shown as a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskTarget>,
    /// The volume is shown as a CD-ROM in its drive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cdrom: Option<CDRomTarget>,
    /// Place in the boot order, 1 first; unique among all devices. When no device has one, the disks are tried in
    /// their order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_order: Option<u64>,
    /// Serial number that the guest sees: letters, digits and `. _ - +`, no more than fit the bus (20 for virtio
    /// and sata, 36 for scsi and usb).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Host caching: `none`, `writethrough` or `writeback`. Default: QEMU's, which is `writeback`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// How the host does the reads and writes: `threads` (the default) or `native`, which needs `cache: none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<String>,
    /// What happens on an error of the disk: `stop` (the default: the guest is paused), `report` to the guest, `ignore`, or
    /// `enospace`: stop when it is full, else report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_policy: Option<String>,
    /// Whether other machines may write it at the same time; for a disk on a claim with `cache: none`, and file systems that
    /// expect it. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shareable: Option<bool>,
    /// A thread of its own in QEMU, for a disk on the virtio bus. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "dedicatedIOThread")]
    pub dedicated_io_thread: Option<bool>,
    /// Sizes of blocks that the guest sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<BlockSize>,
}

/// Sizes of blocks that the guest sees.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BlockSize {
    /// Sizes as given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<CustomBlockSize>,
}

/// Sizes of blocks in bytes: powers of two from 512 to 2097152.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CustomBlockSize {
    /// What the disk is addressed by; no more than `physical`.
    pub logical: u64,
    /// What the disk reads and writes best.
    pub physical: u64,
}

/// A volume that is shown as a disk.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DiskTarget {
    /// Bus: `virtio` (the default), `sata`, `scsi` or `usb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
    /// Whether the guest is kept from writing. Default false. Not possible on the `sata` bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readonly: Option<bool>,
    /// Place on the PCI bus, `DOMAIN:BUS:SLOT.FUNCTION` in hex, for example `0000:81:01.0`. On the virtio bus
    /// only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_address: Option<String>,
}

/// A volume that is shown as a CD-ROM in its drive.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CDRomTarget {
    /// Bus: `sata` (the default) or `scsi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
    /// A CD-ROM cannot be written: only `true`, the default, is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readonly: Option<bool>,
    /// The drive at the start: `closed` (the default) or `open`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tray: Option<String>,
}

/// A network interface. Exactly one way to connect it must be set.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Name of the network that the interface connects to; unique among the interfaces.
    pub name: String,
    /// A layer 2 connection: the guest takes over the address of the pod, which DHCP gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<InterfaceBridge>,
    /// The guest has an address of a network of its own, behind the pod's: what comes to the pod's address goes to the guest,
    /// what the guest sends leaves with the pod's address. IPv4 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<InterfaceMasquerade>,
    /// With `masquerade`: the only ports of the pod's address that lead to the guest. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Emulated card: `virtio` (the default), `e1000`, `e1000e` or `rtl8139`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Hardware address, six hex bytes with colons or dashes, unicast. Default: that of the pod's interface, which
    /// the machine takes over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    /// Place in the boot order (network boot by the card's own ROM), 1 first; unique among all devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_order: Option<u64>,
    /// A number from 1 to 16383 by which the guest can name the interface, unique among the interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acpi_index: Option<i32>,
    /// Place on the PCI bus, `DOMAIN:BUS:SLOT.FUNCTION` in hex, for example `0000:81:01.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_address: Option<String>,
    /// The link at the start: `up` (the default) or `down`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// A layer 2 connection. It has no settings.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct InterfaceBridge {}

/// A network of the guest's own behind the pod's address. It has no settings.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct InterfaceMasquerade {}

/// A port of the guest.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Name, unique among the ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `TCP` (the default) or `UDP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The number, from 1 to 65535.
    pub port: i32,
}

/// A pointing device.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// Name, unique among the inputs.
    pub name: String,
    /// Kind of device: `tablet`.
    #[serde(rename = "type")]
    pub type_: String,
    /// Bus: `usb` (the default) or `virtio`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
}

/// A virtio random number generator. It has no settings.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct Rng {}
