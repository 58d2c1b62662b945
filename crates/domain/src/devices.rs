//! The devices of the machine.

use berth_api::kubevirt::v1::{CPU, Devices, Disk, DomainSpec, Input, Interface};

use crate::xml::Element;
use crate::{DEFAULT_EMULATOR, DiskInput, DomainError, DomainInput, NicInput};

/// The `devices` element.
pub(crate) fn devices(input: &DomainInput<'_>) -> Result<Element, DomainError> {
    let spec = &input.vmi.spec.domain.devices;
    let boot = BootOrder::of(spec);
    let display = input
        .vnc_socket
        .as_deref()
        .filter(|_| spec.autoattach_graphics_device != Some(false));
    Ok(Element::new("devices")
        .child(Element::new("emulator").text(input.emulator.as_deref().unwrap_or(DEFAULT_EMULATOR)))
        .children(controllers(spec))
        .children(disks(&input.vmi.spec.domain, &input.disks, &boot)?)
        .children(nics(spec, &input.nics)?)
        .children(
            (spec.autoattach_serial_console != Some(false))
                .then(|| serial(&input.serial_socket))
                .into_iter()
                .flatten(),
        )
        .children(input.agent_socket.as_deref().map(agent_channel))
        .children(
            spec.inputs
                .iter()
                .map(input_device)
                .collect::<Result<Vec<_>, _>>()?,
        )
        .children(graphics(display, spec))
        .children(sound(spec))
        .children(watchdog(spec))
        .children(spec.rng.as_ref().map(|_| rng(spec)))
        .child(Element::new("memballoon").attribute(
            "model",
            if spec.autoattach_mem_balloon == Some(false) {
                "none"
            } else {
                virtio(spec)
            },
        ))
        .children(spec.panic_devices.iter().filter_map(|device| {
            let model = device.model.as_deref().unwrap_or("isa");
            // It is one of Hyper-V's own, which only a hypervisor can show.
            (model == "isa" || !input.emulation)
                .then(|| Element::new("panic").attribute("model", model))
        })))
}

/// The model of a virtio device.
fn virtio(spec: &Devices) -> &'static str {
    if spec.use_virtio_transitional == Some(true) {
        "virtio-transitional"
    } else {
        "virtio"
    }
}

fn sound(spec: &Devices) -> Option<Element> {
    let sound = spec.sound.as_ref()?;
    let model = sound.model.as_deref().unwrap_or("ich9");
    Some(Element::new("sound").attribute("model", model))
}

fn watchdog(spec: &Devices) -> Option<Element> {
    let watchdog = spec.watchdog.as_ref()?;
    let card = watchdog.i6300esb.as_ref()?;
    Some(
        Element::new("watchdog")
            .attribute("model", "i6300esb")
            .attribute("action", card.action.as_deref().unwrap_or("reset"))
            .child(alias(&watchdog.name)),
    )
}

/// Which thread of QEMU serves each disk, counted from 1; none for those that have none.
fn threads(domain: &DomainSpec) -> Vec<Option<usize>> {
    let on_virtio = |disk: &Disk| bus(disk) == "virtio";
    let own = |disk: &Disk| on_virtio(disk) && disk.dedicated_io_thread == Some(true);
    let vcpus = domain.cpu.as_ref().map_or(1, CPU::vcpus).max(1) as usize;
    let disks = &domain.devices.disks;
    let others = disks
        .iter()
        .filter(|disk| on_virtio(disk) && !own(disk))
        .count();
    // How many the disks that ask for none share.
    let shared = match domain.io_threads_policy.as_deref() {
        Some("shared") => others.min(1),
        Some("auto") => others.min(vcpus.saturating_mul(2)),
        _ => 0,
    };
    let (mut turn, mut next_own) = (0, shared);
    disks
        .iter()
        .map(|disk| {
            if own(disk) {
                next_own += 1;
                return Some(next_own);
            }
            if shared == 0 || !on_virtio(disk) {
                return None;
            }
            turn += 1;
            Some((turn - 1) % shared + 1)
        })
        .collect()
}

/// How many threads serve disks.
pub(crate) fn io_threads(domain: &DomainSpec) -> Option<Element> {
    let count = threads(domain).into_iter().flatten().max()?;
    Some(Element::new("iothreads").text(count))
}

/// `0000:81:01.0`, which admission has looked at.
fn pci_address(text: &str) -> Option<Element> {
    let (place, function) = text.rsplit_once('.')?;
    let mut parts = place.split(':');
    let (domain, bus, slot) = (parts.next()?, parts.next()?, parts.next()?);
    let hex = |part: &str| format!("0x{part}");
    Some(
        Element::new("address")
            .attribute("type", "pci")
            .attribute("domain", hex(domain))
            .attribute("bus", hex(bus))
            .attribute("slot", hex(slot))
            .attribute("function", hex(function)),
    )
}

/// Who is tried first. As soon as one device of the spec has a place, only those that have one are booted from;
/// otherwise the disks are tried as they are listed.
struct BootOrder {
    explicit: bool,
}

impl BootOrder {
    fn of(spec: &Devices) -> Self {
        let disks = spec.disks.iter().any(|d| d.boot_order.is_some());
        Self {
            explicit: disks || spec.interfaces.iter().any(|i| i.boot_order.is_some()),
        }
    }

    fn of_disk(&self, disk: &Disk, index: usize) -> Option<usize> {
        if self.explicit {
            disk.boot_order.map(|n| n as usize)
        } else {
            Some(index + 1)
        }
    }
}

fn boot(order: Option<impl std::fmt::Display>) -> Option<Element> {
    order.map(|order| Element::new("boot").attribute("order", order))
}

/// Only what libvirt would not add as we want it. It gives every machine a USB controller unless told otherwise.
fn controllers(spec: &Devices) -> Vec<Element> {
    let uses = |wanted: &str| spec.disks.iter().any(|disk| bus(disk) == wanted);
    let usb = uses("usb")
        || spec
            .inputs
            .iter()
            .any(|i| i.bus.as_deref().unwrap_or("usb") == "usb");
    let controller = |kind, model| {
        Element::new("controller")
            .attribute("type", kind)
            .attribute("index", 0)
            .attribute("model", model)
    };
    let mut list = vec![controller("usb", if usb { "qemu-xhci" } else { "none" })];
    if uses("scsi") {
        let transitional = spec.use_virtio_transitional == Some(true);
        let model = if transitional {
            "virtio-transitional"
        } else {
            "virtio-scsi"
        };
        list.push(controller("scsi", model));
    }
    list
}

/// The bus of a disk, by default that which admission sets.
fn bus(disk: &Disk) -> &str {
    match (&disk.disk, &disk.cdrom) {
        (_, Some(target)) => target.bus.as_deref().unwrap_or("sata"),
        (target, None) => target
            .as_ref()
            .and_then(|t| t.bus.as_deref())
            .unwrap_or("virtio"),
    }
}

/// The names that the disks have in the domain, in their order.
///
/// # Errors
/// When a disk names a bus that there is not.
pub fn disk_targets(domain: &DomainSpec) -> Result<Vec<String>, DomainError> {
    let (mut fast, mut other) = (0, 0);
    let disks = domain.devices.disks.iter().enumerate();
    disks
        .map(|(i, disk)| match bus(disk) {
            "virtio" => Ok(device_name("vd", &mut fast)),
            // One row of names: libvirt wants them unique, and derives the place on the bus from them.
            "sata" | "scsi" | "usb" => Ok(device_name("sd", &mut other)),
            bus => {
                let field = format!("spec.domain.devices.disks[{i}] bus");
                let value = bus.to_owned();
                Err(DomainError::Value { field, value })
            }
        })
        .collect()
}

fn disks(
    domain: &DomainSpec,
    files: &[DiskInput],
    order: &BootOrder,
) -> Result<Vec<Element>, DomainError> {
    let targets = disk_targets(domain)?;
    let threads = threads(domain);
    let vcpus = domain.cpu.as_ref().map_or(1, CPU::vcpus).max(1);
    let queues = (domain.devices.block_multi_queue == Some(true)).then_some(vcpus);
    let model = virtio(&domain.devices);
    domain
        .devices
        .disks
        .iter()
        .enumerate()
        .map(|(i, disk)| {
            let bus = bus(disk);
            let file = files
                .iter()
                .find(|f| f.volume == disk.name)
                .ok_or_else(|| DomainError::NoDisk(disk.name.clone()))?;
            let on_virtio = bus == "virtio";
            let place = Place {
                bus,
                target: &targets[i],
                model: (on_virtio && model != "virtio").then_some(model),
                queues: queues.filter(|_| on_virtio),
                thread: threads.get(i).copied().flatten(),
                order: order.of_disk(disk, i),
            };
            disk_device(disk, &place, file)
        })
        .collect()
}

/// What a disk is to the machine, apart from what its own spec says.
struct Place<'a> {
    bus: &'a str,
    target: &'a str,
    model: Option<&'a str>,
    queues: Option<u32>,
    thread: Option<usize>,
    order: Option<usize>,
}

fn disk_device(disk: &Disk, place: &Place<'_>, file: &DiskInput) -> Result<Element, DomainError> {
    if !matches!(file.format.as_str(), "qcow2" | "raw") {
        let field = format!("format of volume {}", file.volume);
        return Err(DomainError::Value {
            field,
            value: file.format.clone(),
        });
    }
    let read_only =
        disk.cdrom.is_some() || disk.disk.as_ref().and_then(|d| d.readonly) == Some(true);
    if file.read_only && !read_only {
        return Err(DomainError::ReadOnlyFile(
            disk.name.clone(),
            file.path.clone(),
        ));
    }
    let driver = Element::new("driver")
        .attribute("name", "qemu")
        .attribute("type", &file.format)
        .maybe("cache", disk.cache.as_deref())
        .maybe(
            "error_policy",
            (!read_only).then(|| disk.error_policy.as_deref().unwrap_or("stop")),
        )
        .maybe("io", disk.io.as_deref())
        .maybe("iothread", place.thread)
        .maybe("queues", place.queues)
        .maybe("discard", (!read_only).then_some("unmap"));
    let sizes = disk
        .block_size
        .as_ref()
        .and_then(|size| size.custom.as_ref());
    let tray = disk.cdrom.as_ref().and_then(|cdrom| cdrom.tray.as_deref());
    let pci = disk
        .disk
        .as_ref()
        .and_then(|disk| disk.pci_address.as_deref());
    Ok(Element::new("disk")
        .attribute("type", if file.block { "block" } else { "file" })
        .attribute(
            "device",
            if disk.cdrom.is_some() {
                "cdrom"
            } else {
                "disk"
            },
        )
        .maybe("model", place.model)
        .child(driver)
        .child(
            Element::new("source").attribute(if file.block { "dev" } else { "file" }, &file.path),
        )
        .children(sizes.map(|sizes| {
            Element::new("blockio")
                .attribute("logical_block_size", sizes.logical)
                .attribute("physical_block_size", sizes.physical)
        }))
        .child(
            Element::new("target")
                .attribute("dev", place.target)
                .attribute("bus", place.bus)
                .maybe("tray", tray),
        )
        .children(read_only.then(|| Element::new("readonly")))
        .children((disk.shareable == Some(true)).then(|| Element::new("shareable")))
        .children(
            disk.serial
                .as_ref()
                .map(|serial| Element::new("serial").text(serial)),
        )
        .children(boot(place.order))
        .children(pci.and_then(pci_address))
        .child(alias(&disk.name)))
}

/// `vda`, `vdb` … `vdz`, `vdaa` …; counts `next` up.
fn device_name(prefix: &str, next: &mut usize) -> String {
    let mut letters = Vec::new();
    let mut n = *next + 1;
    *next += 1;
    while n > 0 {
        n -= 1;
        letters.push(char::from(b'a' + u8::try_from(n % 26).unwrap_or_default()));
        n /= 26;
    }
    letters
        .iter()
        .rev()
        .fold(prefix.to_owned(), |name, letter| format!("{name}{letter}"))
}

/// Ties the device to its name in the spec; libvirt keeps aliases that begin with `ua-`.
fn alias(name: &str) -> Element {
    Element::new("alias").attribute("name", format!("ua-{name}"))
}

fn nics(spec: &Devices, taps: &[NicInput]) -> Result<Vec<Element>, DomainError> {
    spec.interfaces
        .iter()
        .enumerate()
        .map(|(i, interface)| {
            let tap = taps
                .iter()
                .find(|t| t.network == interface.name)
                .ok_or_else(|| DomainError::NoNic(interface.name.clone()))?;
            nic_device(i, interface, tap, virtio(spec))
        })
        .collect()
}

fn nic_device(
    index: usize,
    interface: &Interface,
    nic: &NicInput,
    virtio: &'static str,
) -> Result<Element, DomainError> {
    let model = interface.model.as_deref().unwrap_or("virtio");
    if !matches!(model, "virtio" | "e1000" | "e1000e" | "rtl8139") {
        let field = format!("spec.domain.devices.interfaces[{index}].model");
        return Err(DomainError::Value {
            field,
            value: model.to_owned(),
        });
    }
    let rom_off = interface
        .boot_order
        .is_none()
        .then(|| Element::new("rom").attribute("enabled", "no"));
    Ok(Element::new("interface")
        .attribute("type", "ethernet")
        .child(Element::new("mac").attribute("address", &nic.mac))
        .child(
            Element::new("target")
                .attribute("dev", &nic.tap)
                .attribute("managed", "no"),
        )
        .child(
            Element::new("model").attribute("type", if model == "virtio" { virtio } else { model }),
        )
        .child(Element::new("mtu").attribute("size", nic.mtu))
        .children(boot(interface.boot_order))
        .children(rom_off)
        .children(
            (interface.state.as_deref() == Some("down"))
                .then(|| Element::new("link").attribute("state", "down")),
        )
        .children(
            interface
                .acpi_index
                .map(|index| Element::new("acpi").attribute("index", index)),
        )
        .children(interface.pci_address.as_deref().and_then(pci_address))
        // An interface and a disk may have the same name, two aliases may not.
        .child(Element::new("alias").attribute("name", format!("ua-nic-{}", interface.name))))
}

/// The first serial port and the console on it.
fn serial(socket: &str) -> [Element; 2] {
    let source = || {
        Element::new("source")
            .attribute("mode", "bind")
            .attribute("path", socket)
    };
    [
        Element::new("serial")
            .attribute("type", "unix")
            .child(source())
            .child(
                Element::new("target")
                    .attribute("type", "isa-serial")
                    .attribute("port", 0),
            ),
        Element::new("console")
            .attribute("type", "unix")
            .child(source())
            .child(
                Element::new("target")
                    .attribute("type", "serial")
                    .attribute("port", 0),
            ),
    ]
}

fn agent_channel(socket: &str) -> Element {
    Element::new("channel")
        .attribute("type", "unix")
        .child(
            Element::new("source")
                .attribute("mode", "bind")
                .attribute("path", socket),
        )
        .child(
            Element::new("target")
                .attribute("type", "virtio")
                .attribute("name", "org.qemu.guest_agent.0"),
        )
}

fn input_device(input: &Input) -> Result<Element, DomainError> {
    let bus = input.bus.as_deref().unwrap_or("usb");
    if input.type_ != "tablet" || !matches!(bus, "usb" | "virtio") {
        let field = format!("spec.domain.devices.inputs {}", input.name);
        return Err(DomainError::Value {
            field,
            value: format!("{} on {bus}", input.type_),
        });
    }
    Ok(Element::new("input")
        .attribute("type", "tablet")
        .attribute("bus", bus))
}

/// A display on a unix socket, or none: without the `none` libvirt adds a video card to a display only, but a
/// later version may think otherwise.
fn graphics(socket: Option<&str>, spec: &Devices) -> Vec<Element> {
    let video = |model: Element| Element::new("video").child(model);
    let model = Element::new("model");
    match socket {
        None => vec![video(model.attribute("type", "none"))],
        Some(path) => vec![
            Element::new("graphics").attribute("type", "vnc").child(
                Element::new("listen")
                    .attribute("type", "socket")
                    .attribute("socket", path),
            ),
            video({
                let video = spec.video.as_ref().and_then(|video| video.type_.as_deref());
                let type_ = video.unwrap_or("vga");
                model
                    .attribute("type", type_)
                    .maybe("vram", matches!(type_, "vga" | "bochs").then_some(16384))
                    .attribute("heads", 1)
            }),
        ],
    }
}

fn rng(spec: &Devices) -> Element {
    Element::new("rng").attribute("model", virtio(spec)).child(
        Element::new("backend")
            .attribute("model", "random")
            .text("/dev/urandom"),
    )
}

#[cfg(test)]
mod tests {
    use super::device_name;

    #[test]
    fn names_go_on_after_z() {
        let mut next = 0;
        let names: Vec<_> = (0..704).map(|_| device_name("vd", &mut next)).collect();
        assert_eq!((names[0].as_str(), names[25].as_str()), ("vda", "vdz"));
        assert_eq!(
            (names[26].as_str(), names[701].as_str(), names[702].as_str()),
            ("vdaa", "vdzz", "vdaaa")
        );
    }
}
