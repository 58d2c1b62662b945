//! The devices of the machine.

use berth_api::kubevirt::v1::{Devices, Disk, Input, Interface};

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
        .children(disks(spec, &input.disks, &boot)?)
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
        .children(graphics(display))
        .children(spec.rng.as_ref().map(|_| rng()))
        .child(Element::new("memballoon").attribute(
            "model",
            if spec.autoattach_mem_balloon == Some(false) {
                "none"
            } else {
                "virtio"
            },
        )))
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
        list.push(controller("scsi", "virtio-scsi"));
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

fn disks(
    spec: &Devices,
    files: &[DiskInput],
    order: &BootOrder,
) -> Result<Vec<Element>, DomainError> {
    let (mut virtio, mut other) = (0, 0);
    spec.disks
        .iter()
        .enumerate()
        .map(|(i, disk)| {
            let bus = bus(disk);
            let target = match bus {
                "virtio" => device_name("vd", &mut virtio),
                // One row of names: libvirt wants them unique, and derives the place on the bus from them.
                "sata" | "scsi" | "usb" => device_name("sd", &mut other),
                _ => {
                    let field = format!("spec.domain.devices.disks[{i}] bus");
                    return Err(DomainError::Value {
                        field,
                        value: bus.to_owned(),
                    });
                }
            };
            let file = files
                .iter()
                .find(|f| f.volume == disk.name)
                .ok_or_else(|| DomainError::NoDisk(disk.name.clone()))?;
            disk_device(disk, bus, &target, file, order.of_disk(disk, i))
        })
        .collect()
}

fn disk_device(
    disk: &Disk,
    bus: &str,
    target: &str,
    file: &DiskInput,
    order: Option<usize>,
) -> Result<Element, DomainError> {
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
        .maybe("error_policy", (!read_only).then_some("stop"))
        .maybe("io", disk.io.as_deref())
        .maybe("discard", (!read_only).then_some("unmap"));
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
        .child(driver)
        .child(
            Element::new("source").attribute(if file.block { "dev" } else { "file" }, &file.path),
        )
        .child(
            Element::new("target")
                .attribute("dev", target)
                .attribute("bus", bus),
        )
        .children(read_only.then(|| Element::new("readonly")))
        .children(
            disk.serial
                .as_ref()
                .map(|serial| Element::new("serial").text(serial)),
        )
        .children(boot(order))
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
            nic_device(i, interface, tap)
        })
        .collect()
}

fn nic_device(index: usize, interface: &Interface, nic: &NicInput) -> Result<Element, DomainError> {
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
        .child(Element::new("model").attribute("type", model))
        .child(Element::new("mtu").attribute("size", nic.mtu))
        .children(boot(interface.boot_order))
        .children(rom_off)
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
fn graphics(socket: Option<&str>) -> Vec<Element> {
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
            video(
                model
                    .attribute("type", "vga")
                    .attribute("vram", 16384)
                    .attribute("heads", 1),
            ),
        ],
    }
}

fn rng() -> Element {
    Element::new("rng").attribute("model", "virtio").child(
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
