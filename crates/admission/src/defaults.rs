//! What a manifest leaves open. Every default is a function of the object alone, and setting it twice changes
//! nothing: the same manifest applied again gives the same spec.

use berth_api::kubevirt::v1::{
    BIOS, CPU, Disk, DiskTarget, Firmware, Input, Interface, InterfaceBridge, Machine, Memory,
    Network, PodNetwork, VirtualMachineInstanceSpec, default_firmware_uuid,
};

/// Seconds that a guest has to power off when the manifest does not say.
const GRACE_PERIOD: i64 = 30;

/// Fills in the defaults of a machine.
pub(crate) fn set(namespace: &str, name: &str, spec: &mut VirtualMachineInstanceSpec) {
    spec.architecture.get_or_insert_with(|| "amd64".to_owned());
    spec.termination_grace_period_seconds
        .get_or_insert(GRACE_PERIOD);

    let machine = spec.domain.machine.get_or_insert_with(Machine::default);
    // Old manifests write `type: ""` for the default.
    if machine.type_.as_deref().is_none_or(str::is_empty) {
        machine.type_ = Some("q35".to_owned());
    }
    let cpu = spec.domain.cpu.get_or_insert_with(CPU::default);
    cpu.sockets.get_or_insert(1);
    cpu.cores.get_or_insert(1);
    cpu.threads.get_or_insert(1);

    set_memory(spec);
    set_firmware(namespace, name, spec);
    set_disks(spec);
    set_network(spec);
}

/// The reservation doubles as the guest's memory where only that is given.
fn set_memory(spec: &mut VirtualMachineInstanceSpec) {
    if spec
        .domain
        .memory
        .as_ref()
        .is_some_and(|m| m.guest.is_some())
    {
        return;
    }
    let resources = spec.domain.resources.as_ref();
    let amount =
        resources.and_then(|r| r.requests.get("memory").or_else(|| r.limits.get("memory")));
    if let Some(amount) = amount.cloned() {
        spec.domain.memory.get_or_insert_with(Memory::default).guest = Some(amount);
    }
}

fn set_firmware(namespace: &str, name: &str, spec: &mut VirtualMachineInstanceSpec) {
    // Without a name yet there is nothing to derive from; the domain derives it once there is one.
    if !name.is_empty() {
        let firmware = spec.domain.firmware.get_or_insert_with(Firmware::default);
        firmware
            .uuid
            .get_or_insert_with(|| default_firmware_uuid(namespace, name));
    }
    if let Some(bootloader) = spec
        .domain
        .firmware
        .as_mut()
        .and_then(|f| f.bootloader.as_mut())
        .filter(|bootloader| bootloader.efi.is_none())
    {
        bootloader.bios.get_or_insert_with(BIOS::default);
    }
}

/// Every volume gets a disk, every disk a target and every target a bus.
fn set_disks(spec: &mut VirtualMachineInstanceSpec) {
    let disks = &mut spec.domain.devices.disks;
    for volume in &spec.volumes {
        if !disks.iter().any(|d| d.name == volume.name) {
            disks.push(Disk {
                name: volume.name.clone(),
                ..Disk::default()
            });
        }
    }
    for disk in disks {
        if disk.disk.is_none() && disk.cdrom.is_none() {
            disk.disk = Some(DiskTarget::default());
        }
        if let Some(target) = &mut disk.disk {
            target.bus.get_or_insert_with(|| "virtio".to_owned());
        }
        if let Some(target) = &mut disk.cdrom {
            target.bus.get_or_insert_with(|| "sata".to_owned());
        }
    }
}

/// A machine that says nothing of networks joins the pod network.
fn set_network(spec: &mut VirtualMachineInstanceSpec) {
    let devices = &mut spec.domain.devices;
    let silent = devices.interfaces.is_empty() && spec.networks.is_empty();
    if silent && devices.autoattach_pod_interface != Some(false) {
        devices.interfaces.push(Interface {
            name: "default".to_owned(),
            bridge: Some(InterfaceBridge {}),
            ..Interface::default()
        });
        spec.networks.push(Network {
            name: "default".to_owned(),
            pod: Some(PodNetwork::default()),
        });
    }
    for interface in &mut devices.interfaces {
        interface.model.get_or_insert_with(|| "virtio".to_owned());
    }
    if devices.inputs.is_empty() && devices.autoattach_input_device == Some(true) {
        devices.inputs.push(Input {
            name: "default-0".to_owned(),
            type_: "tablet".to_owned(),
            bus: None,
        });
    }
    for input in &mut devices.inputs {
        input.bus.get_or_insert_with(|| "usb".to_owned());
    }
}
