//! Devices with the volumes and networks behind them.

use std::collections::BTreeSet;

use berth_api::kubevirt::v1::{
    CloudInitSource, ContainerDiskSource, Devices, Disk, Interface, VirtualMachineInstanceSpec,
    Volume,
};

use berth_api::quantity::parse_bytes;

use super::{exactly_one, one_of};
use crate::cause::Cause;
use crate::syntax;

/// Largest text for cloud-init, in bytes.
const CLOUD_INIT_MAX: usize = 64 << 10;
/// Smallest empty disk, in bytes.
const EMPTY_DISK_MIN: u64 = 1 << 20;
/// The pod's volumes are called `claim-<name>` and the like, and that is a DNS label too.
const VOLUME_NAME_MAX: usize = syntax::LABEL_MAX - "claim-".len();
/// More devices than that no machine has.
const BOOT_ORDER_MAX: u64 = 1 << 16;
/// Longest label of a disk of texts: what FAT has room for.
const LABEL_MAX: usize = 11;
/// What a pod says of itself, of single values.
const POD_FIELDS: [&str; 4] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
];

pub(super) fn check(spec: &VirtualMachineInstanceSpec, causes: &mut Vec<Cause>) {
    let devices = &spec.domain.devices;
    let disks = Names::check(
        "spec.domain.devices.disks",
        devices.disks.iter().map(|d| &*d.name),
        causes,
    );
    let volumes = Names::check(
        "spec.volumes",
        spec.volumes.iter().map(|v| &*v.name),
        causes,
    );
    disks.each_in(&volumes, "volume", causes);

    let nics = Names::check(
        "spec.domain.devices.interfaces",
        devices.interfaces.iter().map(|i| &*i.name),
        causes,
    );
    let networks = Names::check(
        "spec.networks",
        spec.networks.iter().map(|n| &*n.name),
        causes,
    );
    nics.each_in(&networks, "network", causes);
    networks.each_in(&nics, "interface", causes);

    for (i, disk) in devices.disks.iter().enumerate() {
        check_disk(&format!("spec.domain.devices.disks[{i}]"), disk, causes);
    }
    for (i, volume) in spec.volumes.iter().enumerate() {
        check_volume(&format!("spec.volumes[{i}]"), volume, causes);
    }
    check_interfaces(&devices.interfaces, causes);
    check_networks(spec, causes);
    check_boot_order(spec, causes);

    Names::check(
        "spec.domain.devices.inputs",
        devices.inputs.iter().map(|i| &*i.name),
        causes,
    );
    check_others(devices, causes);
    check_shareable(spec, causes);
    for (i, input) in devices.inputs.iter().enumerate() {
        let path = format!("spec.domain.devices.inputs[{i}]");
        one_of(
            &format!("{path}.type"),
            Some(&input.type_),
            &["tablet"],
            causes,
        );
        one_of(
            &format!("{path}.bus"),
            input.bus.as_deref(),
            &["usb", "virtio"],
            causes,
        );
    }
}

/// Devices without a counterpart elsewhere in the spec.
fn check_others(devices: &Devices, causes: &mut Vec<Cause>) {
    const DEVICES: &str = "spec.domain.devices";
    if let Some(watchdog) = &devices.watchdog {
        Names::check(
            "spec.domain.devices.watchdog",
            std::iter::once(&*watchdog.name),
            causes,
        );
        match &watchdog.i6300esb {
            None => causes.push(Cause::required(
                format!("{DEVICES}.watchdog.i6300esb"),
                "the watchdog that berth has",
            )),
            Some(card) => one_of(
                &format!("{DEVICES}.watchdog.i6300esb.action"),
                card.action.as_deref(),
                &["poweroff", "reset", "shutdown"],
                causes,
            ),
        }
    }
    let sound = devices.sound.as_ref().and_then(|s| s.model.as_deref());
    one_of(
        &format!("{DEVICES}.sound.model"),
        sound,
        &["ich9", "ac97"],
        causes,
    );
    let video = devices.video.as_ref().and_then(|v| v.type_.as_deref());
    one_of(
        &format!("{DEVICES}.video.type"),
        video,
        &["vga", "virtio", "bochs", "ramfb"],
        causes,
    );
    if video.is_some() && devices.autoattach_graphics_device == Some(false) {
        causes.push(Cause::forbidden(
            format!("{DEVICES}.video"),
            format!("cannot be given while {DEVICES}.autoattachGraphicsDevice is false"),
        ));
    }
    for (i, device) in devices.panic_devices.iter().enumerate() {
        one_of(
            &format!("{DEVICES}.panicDevices[{i}].model"),
            device.model.as_deref(),
            &["isa", "hyperv"],
            causes,
        );
    }
}

/// A disk of several machines must be one file for all of them: no overlay, nothing cached.
fn check_shareable(spec: &VirtualMachineInstanceSpec, causes: &mut Vec<Cause>) {
    for (i, disk) in spec.domain.devices.disks.iter().enumerate() {
        if disk.shareable != Some(true) {
            continue;
        }
        let path = format!("spec.domain.devices.disks[{i}]");
        let volume = spec.volumes.iter().find(|v| v.name == disk.name);
        let claim = volume.and_then(|v| v.claim());
        if claim.is_none_or(|(_, read_only)| read_only) {
            causes.push(Cause::invalid(
                format!("{path}.shareable"),
                true,
                "needs a volume on a persistentVolumeClaim that is not read-only",
            ));
        } else if disk.cache.as_deref() != Some("none") {
            causes.push(Cause::invalid(
                format!("{path}.shareable"),
                true,
                format!("needs {path}.cache to be none"),
            ));
        }
    }
}

/// `DOMAIN:BUS:SLOT.FUNCTION` in hex.
fn is_pci_address(text: &str) -> bool {
    let hex = |part: &str, length: usize, most: u32| {
        part.len() == length
            && part.bytes().all(|b| b.is_ascii_hexdigit())
            && u32::from_str_radix(part, 16).is_ok_and(|number| number <= most)
    };
    let Some((place, function)) = text.rsplit_once('.') else {
        return false;
    };
    let parts: Vec<&str> = place.split(':').collect();
    matches!(parts[..], [domain, bus, slot] if hex(domain, 4, 0xffff) && hex(bus, 2, 0xff) && hex(slot, 2, 0x1f))
        && hex(function, 1, 7)
}

fn check_pci_address(field: &str, text: Option<&str>, causes: &mut Vec<Cause>) {
    if let Some(text) = text
        && !is_pci_address(text)
    {
        causes.push(Cause::invalid(
            field,
            text,
            "must be a place on the PCI bus, for example 0000:81:01.0",
        ));
    }
}

/// The names in one list of the spec.
struct Names<'a> {
    path: &'static str,
    names: Vec<&'a str>,
}

impl<'a> Names<'a> {
    /// Each must be a DNS label and unique.
    fn check(
        path: &'static str,
        names: impl Iterator<Item = &'a str>,
        causes: &mut Vec<Cause>,
    ) -> Self {
        let names: Vec<_> = names.collect();
        let mut seen = BTreeSet::new();
        for (i, name) in names.iter().enumerate() {
            let field = format!("{path}[{i}].name");
            if name.is_empty() {
                causes.push(Cause::required(field, "must be given"));
            } else if !syntax::is_dns_label(name) {
                causes.push(Cause::invalid(
                    field,
                    name,
                    "must be a DNS label: at most 63 lower case letters, digits and inner dashes",
                ));
            } else if !seen.insert(*name) {
                causes.push(Cause::duplicate(field, name));
            }
        }
        Self { path, names }
    }

    /// Each must have its counterpart, a `what`, in `others`.
    fn each_in(&self, others: &Self, what: &str, causes: &mut Vec<Cause>) {
        for (i, name) in self.names.iter().enumerate() {
            if !name.is_empty() && !others.names.contains(name) {
                causes.push(Cause::invalid(
                    format!("{}[{i}].name", self.path),
                    name,
                    format!("there is no {what} of this name in {}", others.path),
                ));
            }
        }
    }
}

fn check_disk(path: &str, disk: &Disk, causes: &mut Vec<Cause>) {
    if disk.disk.is_some() && disk.cdrom.is_some() {
        causes.push(Cause::forbidden(
            format!("{path}.cdrom"),
            format!("cannot be given together with {path}.disk"),
        ));
    }
    if let Some(target) = &disk.disk {
        one_of(
            &format!("{path}.disk.bus"),
            target.bus.as_deref(),
            &["virtio", "sata", "scsi", "usb"],
            causes,
        );
        if target.bus.as_deref() == Some("sata") && target.readonly == Some(true) {
            causes.push(Cause::invalid(
                format!("{path}.disk.readonly"),
                true,
                "a disk on the sata bus cannot be read-only; use another bus or a cdrom",
            ));
        }
    }
    if let Some(target) = &disk.cdrom {
        one_of(
            &format!("{path}.cdrom.bus"),
            target.bus.as_deref(),
            &["sata", "scsi"],
            causes,
        );
        if target.readonly == Some(false) {
            causes.push(Cause::invalid(
                format!("{path}.cdrom.readonly"),
                false,
                "a cdrom cannot be written",
            ));
        }
    }
    let bus = disk.disk.as_ref().map_or_else(
        || disk.cdrom.as_ref().and_then(|t| t.bus.as_deref()),
        |t| t.bus.as_deref(),
    );
    // What the device models of QEMU store; they would cut the rest off unseen.
    let serial_max = if matches!(bus, Some("scsi" | "usb")) {
        36
    } else {
        20
    };
    if let Some(serial) = &disk.serial
        && !(serial.len() <= serial_max && syntax::is_word(serial, "._-+"))
    {
        causes.push(Cause::invalid(
            format!("{path}.serial"),
            serial,
            format!("must be 1 to {serial_max} letters, digits and ._-+ on this bus"),
        ));
    }
    one_of(
        &format!("{path}.cache"),
        disk.cache.as_deref(),
        &["none", "writethrough", "writeback"],
        causes,
    );
    one_of(
        &format!("{path}.io"),
        disk.io.as_deref(),
        &["threads", "native"],
        causes,
    );
    one_of(
        &format!("{path}.errorPolicy"),
        disk.error_policy.as_deref(),
        &["stop", "ignore", "report", "enospace"],
        causes,
    );
    if let Some(target) = &disk.disk {
        let field = format!("{path}.disk.pciAddress");
        check_pci_address(&field, target.pci_address.as_deref(), causes);
        if let Some(address) = &target.pci_address
            && target.bus.as_deref() != Some("virtio")
        {
            causes.push(Cause::invalid(field, address, "needs the bus virtio"));
        }
    }
    if let Some(target) = &disk.cdrom {
        one_of(
            &format!("{path}.cdrom.tray"),
            target.tray.as_deref(),
            &["closed", "open"],
            causes,
        );
    }
    if disk.dedicated_io_thread == Some(true) && bus != Some("virtio") {
        causes.push(Cause::invalid(
            format!("{path}.dedicatedIOThread"),
            true,
            "needs the bus virtio",
        ));
    }
    if let Some(sizes) = disk.block_size.as_ref().and_then(|s| s.custom.as_ref()) {
        let path = format!("{path}.blockSize.custom");
        for (name, size) in [("logical", sizes.logical), ("physical", sizes.physical)] {
            if !(size.is_power_of_two() && (512..=2 << 20).contains(&size)) {
                causes.push(Cause::invalid(
                    format!("{path}.{name}"),
                    size,
                    "must be a power of two from 512 to 2097152",
                ));
            }
        }
        if sizes.logical > sizes.physical {
            causes.push(Cause::invalid(
                format!("{path}.logical"),
                sizes.logical,
                format!("must be no more than {path}.physical, {}", sizes.physical),
            ));
        }
    }
    if disk.io.as_deref() == Some("native") && disk.cache.as_deref() != Some("none") {
        causes.push(Cause::invalid(
            format!("{path}.io"),
            "native",
            format!("needs {path}.cache to be none"),
        ));
    }
}

fn check_volume(path: &str, volume: &Volume, causes: &mut Vec<Cause>) {
    if volume.name.len() > VOLUME_NAME_MAX {
        causes.push(Cause::invalid(
            format!("{path}.name"),
            &volume.name,
            format!("must be no more than {VOLUME_NAME_MAX} characters"),
        ));
    }
    let given = [
        ("containerDisk", volume.container_disk.is_some()),
        (
            "persistentVolumeClaim",
            volume.persistent_volume_claim.is_some(),
        ),
        ("dataVolume", volume.data_volume.is_some()),
        ("ephemeral", volume.ephemeral.is_some()),
        ("cloudInitNoCloud", volume.cloud_init_no_cloud.is_some()),
        (
            "cloudInitConfigDrive",
            volume.cloud_init_config_drive.is_some(),
        ),
        ("emptyDisk", volume.empty_disk.is_some()),
        ("secret", volume.secret.is_some()),
        ("configMap", volume.config_map.is_some()),
        ("downwardAPI", volume.downward_api.is_some()),
    ];
    exactly_one(path, ("a volume", "source"), &given, causes);
    check_texts(path, volume, causes);
    if let Some(source) = &volume.container_disk {
        check_container_disk(&format!("{path}.containerDisk"), source, causes);
    }
    if let Some(ephemeral) = &volume.ephemeral
        && ephemeral.persistent_volume_claim.is_none()
    {
        let field = format!("{path}.ephemeral.persistentVolumeClaim");
        causes.push(Cause::required(field, "the claim"));
    }
    if let Some((name, _)) = volume.claim() {
        let (field, what) = if volume.persistent_volume_claim.is_some() {
            (
                "persistentVolumeClaim.claimName",
                "must be the name of a claim",
            )
        } else if volume.data_volume.is_some() {
            ("dataVolume.name", "must be the name of a DataVolume")
        } else {
            (
                "ephemeral.persistentVolumeClaim.claimName",
                "must be the name of a claim",
            )
        };
        let field = format!("{path}.{field}");
        if name.is_empty() {
            causes.push(Cause::required(field, what));
        } else if !syntax::is_dns_subdomain(name) {
            causes.push(Cause::invalid(field, name, what));
        }
    }
    for (name, source) in [
        ("cloudInitNoCloud", &volume.cloud_init_no_cloud),
        ("cloudInitConfigDrive", &volume.cloud_init_config_drive),
    ] {
        if let Some(source) = source {
            check_cloud_init(&format!("{path}.{name}"), source, causes);
        }
    }
    if let Some(disk) = &volume.empty_disk {
        let field = format!("{path}.emptyDisk.capacity");
        let Some(capacity) = &disk.capacity else {
            causes.push(Cause::required(field, "how large the disk is"));
            return;
        };
        match parse_bytes(capacity) {
            Ok(bytes) if bytes >= EMPTY_DISK_MIN => {}
            Ok(_) => causes.push(Cause::invalid(field, &capacity.0, "must be at least 1Mi")),
            Err(error) => causes.push(Cause::invalid(field, &capacity.0, error)),
        }
    }
}

/// Disks whose files come from Secrets, ConfigMaps or the pod.
fn check_texts(path: &str, volume: &Volume, causes: &mut Vec<Cause>) {
    let named = [
        (
            "secret.secretName",
            volume.secret.as_ref().map(|s| &s.secret_name),
        ),
        (
            "configMap.name",
            volume.config_map.as_ref().map(|s| &s.name),
        ),
    ];
    for (field, name) in named {
        let Some(name) = name else { continue };
        let name = name.as_deref().unwrap_or_default();
        check_reference(&format!("{path}.{field}"), name, causes);
    }
    if let Some(label) = volume.texts_label()
        && !(label.len() <= LABEL_MAX && syntax::is_word(label, "-_"))
    {
        let source = if volume.secret.is_some() {
            "secret"
        } else if volume.config_map.is_some() {
            "configMap"
        } else {
            "downwardAPI"
        };
        causes.push(Cause::invalid(
            format!("{path}.{source}.volumeLabel"),
            label,
            format!("must be 1 to {LABEL_MAX} letters, digits and -_"),
        ));
    }
    let files = volume.downward_api.iter().flat_map(|source| &source.fields);
    for (i, file) in files.enumerate() {
        let field = format!("{path}.downwardAPI.fields[{i}]");
        if !syntax::is_word(&file.path, "-_.") || matches!(&*file.path, "." | "..") {
            causes.push(Cause::invalid(
                format!("{field}.path"),
                &file.path,
                "must be the name of a file: letters, digits and -_.",
            ));
        }
        if file.resource_field_ref.is_some() {
            causes.push(Cause::unsupported_field(
                format!("{field}.resourceFieldRef"),
                "",
            ));
        }
        match file.field_ref.as_ref().map(|of| &*of.field_path) {
            None => causes.push(Cause::required(
                format!("{field}.fieldRef"),
                "what the file is to tell",
            )),
            Some(of) if is_pod_field(of) => {}
            Some(of) => causes.push(Cause::invalid(
                format!("{field}.fieldRef.fieldPath"),
                of,
                format!(
                    "must be metadata.labels, metadata.annotations, one of them as metadata.labels['<key>'], or one of: {}",
                    POD_FIELDS.join(", ")
                ),
            )),
        }
    }
}

/// What of a pod can be told.
fn is_pod_field(path: &str) -> bool {
    let keyed = |map: &str| {
        let key = path.strip_prefix(map)?.strip_prefix("['")?;
        Some(syntax::is_label_key(key.strip_suffix("']")?))
    };
    POD_FIELDS.contains(&path)
        || ["metadata.labels", "metadata.annotations"]
            .iter()
            .any(|map| path == *map || keyed(map) == Some(true))
}

/// The name of a Secret or a ConfigMap.
fn check_reference(field: &str, name: &str, causes: &mut Vec<Cause>) {
    if name.is_empty() {
        causes.push(Cause::required(field, "must be given"));
    } else if !syntax::is_dns_subdomain(name) {
        causes.push(Cause::invalid(
            field,
            name,
            "must be a name: lower case letters, digits and inner dashes and dots",
        ));
    }
}

/// The texts are secrets as like as not: a refusal never repeats them.
fn check_cloud_init(path: &str, source: &CloudInitSource, causes: &mut Vec<Cause>) {
    let texts = [
        (
            ("userData", source.user_data.is_some()),
            ("userDataBase64", source.user_data_base64.is_some()),
            source.user(),
        ),
        (
            ("networkData", source.network_data.is_some()),
            ("networkDataBase64", source.network_data_base64.is_some()),
            source.network(),
        ),
    ];
    for ((plain, is_plain), (encoded, is_encoded), text) in texts {
        if is_plain && is_encoded {
            causes.push(Cause::forbidden(
                format!("{path}.{encoded}"),
                format!("cannot be given together with {path}.{plain}"),
            ));
        }
        let field = format!("{path}.{}", if is_plain { plain } else { encoded });
        match text {
            Err(why) => causes.push(Cause::invalid(field, "…", why)),
            Ok(Some(text)) if text.len() > CLOUD_INIT_MAX => causes.push(Cause::invalid(
                field,
                text.len(),
                format!("must be no more than {CLOUD_INIT_MAX} bytes"),
            )),
            Ok(_) => {}
        }
    }
    for (text, given, reference, secret) in [
        (
            "userData",
            source.user_data.is_some() || source.user_data_base64.is_some(),
            "secretRef",
            &source.secret_ref,
        ),
        (
            "networkData",
            source.network_data.is_some() || source.network_data_base64.is_some(),
            "networkDataSecretRef",
            &source.network_data_secret_ref,
        ),
    ] {
        let Some(secret) = secret else { continue };
        check_reference(&format!("{path}.{reference}.name"), &secret.name, causes);
        if given {
            causes.push(Cause::forbidden(
                format!("{path}.{reference}"),
                format!("cannot be given together with {path}.{text}"),
            ));
        }
    }
    let secret = source.secret_ref.is_some();
    if source.user_data.is_none() && source.user_data_base64.is_none() && !secret {
        causes.push(Cause::required(
            format!("{path}.userData"),
            "cloud-init looks for nothing else",
        ));
    }
}

/// An image and how it is pulled.
pub(super) fn check_image(
    path: &str,
    image: &str,
    policy: Option<&str>,
    secret: Option<&str>,
    causes: &mut Vec<Cause>,
) {
    if let Some(why) = syntax::image_reference_error(image) {
        let field = format!("{path}.image");
        causes.push(if image.is_empty() {
            Cause::required(field, "must be the reference of an image")
        } else {
            Cause::invalid(field, image, why)
        });
    }
    one_of(
        &format!("{path}.imagePullPolicy"),
        policy,
        &["Always", "IfNotPresent", "Never"],
        causes,
    );
    if let Some(secret) = secret
        && !syntax::is_dns_subdomain(secret)
    {
        causes.push(Cause::invalid(
            format!("{path}.imagePullSecret"),
            secret,
            "must be the name of a secret",
        ));
    }
}

fn check_container_disk(path: &str, source: &ContainerDiskSource, causes: &mut Vec<Cause>) {
    check_image(
        path,
        &source.image,
        source.image_pull_policy.as_deref(),
        source.image_pull_secret.as_deref(),
        causes,
    );
    if let Some(file) = &source.path
        && !is_disk_path(file)
    {
        causes.push(Cause::invalid(
            format!("{path}.path"),
            file,
            "must be an absolute path below /disk/ without empty, . or .. parts",
        ));
    }
}

/// `/disk/` and a file below it.
fn is_disk_path(path: &str) -> bool {
    path.starts_with("/disk/") && is_image_path(path)
}

/// An absolute path of a file, of characters that are plain in every place a path is used.
pub(super) fn is_image_path(path: &str) -> bool {
    path.len() <= 1024
        && path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/')
                .all(|part| syntax::is_word(part, "._-+@ ") && part != "." && part != "..")
        })
}

fn check_interfaces(interfaces: &[Interface], causes: &mut Vec<Cause>) {
    let mut macs = BTreeSet::new();
    for (i, interface) in interfaces.iter().enumerate() {
        let path = format!("spec.domain.devices.interfaces[{i}]");
        let ways = [
            ("bridge", interface.bridge.is_some()),
            ("masquerade", interface.masquerade.is_some()),
        ];
        exactly_one(&path, ("an interface", "way to connect"), &ways, causes);
        check_ports(&path, interface, causes);
        one_of(
            &format!("{path}.model"),
            interface.model.as_deref(),
            &["virtio", "e1000", "e1000e", "rtl8139"],
            causes,
        );
        one_of(
            &format!("{path}.state"),
            interface.state.as_deref(),
            &["up", "down"],
            causes,
        );
        check_pci_address(
            &format!("{path}.pciAddress"),
            interface.pci_address.as_deref(),
            causes,
        );
        if let Some(index) = interface.acpi_index {
            let field = format!("{path}.acpiIndex");
            if !(1..16_384).contains(&index) {
                causes.push(Cause::invalid(field, index, "must be from 1 to 16383"));
            } else if interfaces[..i]
                .iter()
                .any(|other| other.acpi_index == Some(index))
            {
                causes.push(Cause::duplicate(field, index));
            }
        }
        let Some(text) = &interface.mac_address else {
            continue;
        };
        let field = format!("{path}.macAddress");
        match syntax::parse_mac(text) {
            None => {
                causes.push(Cause::invalid(
                    field,
                    text,
                    "must be six bytes in hex, for example 02:00:00:00:00:01",
                ));
            }
            Some(mac) if mac == [0; 6] => {
                causes.push(Cause::invalid(field, text, "must not be zero"));
            }
            Some(mac) if mac[0] & 1 == 1 => causes.push(Cause::invalid(
                field,
                text,
                "must be a unicast address: the lowest bit of its first byte is a multicast mark",
            )),
            Some(mac) if !macs.insert(mac) => causes.push(Cause::duplicate(field, text)),
            Some(_) => {}
        }
    }
}

fn check_ports(path: &str, interface: &Interface, causes: &mut Vec<Cause>) {
    if interface.masquerade.is_none() && !interface.ports.is_empty() {
        causes.push(Cause::invalid(
            format!("{path}.ports"),
            interface.ports.len(),
            format!("needs {path}.masquerade: a bridge passes everything on"),
        ));
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in interface.ports.iter().enumerate() {
        let field = |name: &str| format!("{path}.ports[{i}].{name}");
        one_of(
            &field("protocol"),
            port.protocol.as_deref(),
            &["TCP", "UDP"],
            causes,
        );
        if !(1..=65535).contains(&port.port) {
            causes.push(Cause::invalid(
                field("port"),
                port.port,
                "must be from 1 to 65535",
            ));
        } else if !numbers.insert((port.protocol.as_deref().unwrap_or("TCP"), port.port)) {
            causes.push(Cause::duplicate(field("port"), port.port));
        }
        if let Some(name) = &port.name {
            if !syntax::is_dns_label(name) {
                causes.push(Cause::invalid(field("name"), name, "must be a DNS label"));
            } else if !names.insert(name) {
                causes.push(Cause::duplicate(field("name"), name));
            }
        }
    }
}

fn check_networks(spec: &VirtualMachineInstanceSpec, causes: &mut Vec<Cause>) {
    let mut pod_network = None;
    for (i, network) in spec.networks.iter().enumerate() {
        let path = format!("spec.networks[{i}]");
        if let Some(pod) = &network.pod
            && pod.guest_network().is_none()
        {
            causes.push(Cause::invalid(
                format!("{path}.pod.vmNetworkCIDR"),
                pod.vm_network_cidr.as_deref().unwrap_or_default(),
                "must be a network of IPv4 with at least four addresses, for example 10.0.2.0/24",
            ));
        }
        if network.pod.is_none() {
            causes.push(Cause::required(path, "must have a source: pod"));
        } else if let Some(first) = pod_network.replace(i) {
            causes.push(Cause::forbidden(
                format!("{path}.pod"),
                format!(
                    "a machine joins the pod network once, and spec.networks[{first}] does already"
                ),
            ));
        }
    }
}

/// Disks and interfaces share one order.
fn check_boot_order(spec: &VirtualMachineInstanceSpec, causes: &mut Vec<Cause>) {
    let devices = &spec.domain.devices;
    let disks = devices
        .disks
        .iter()
        .enumerate()
        .map(|(i, d)| ("disks", i, d.boot_order));
    let nics = devices
        .interfaces
        .iter()
        .enumerate()
        .map(|(i, n)| ("interfaces", i, n.boot_order));
    let mut seen = BTreeSet::new();
    for (list, i, order) in disks.chain(nics) {
        let Some(order) = order else { continue };
        let field = format!("spec.domain.devices.{list}[{i}].bootOrder");
        if order == 0 {
            causes.push(Cause::invalid(field, order, "must be at least 1"));
        } else if order > BOOT_ORDER_MAX {
            causes.push(Cause::invalid(
                field,
                order,
                format!("must be no more than {BOOT_ORDER_MAX}"),
            ));
        } else if !seen.insert(order) {
            causes.push(Cause::duplicate(field, order));
        }
    }
}
