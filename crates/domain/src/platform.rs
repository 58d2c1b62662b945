//! The machine without its devices.

use berth_api::kubevirt::v1::{CPU, DomainSpec, EFI, Features, default_firmware_uuid};
use berth_api::quantity::parse_bytes;

use crate::xml::Element;
use crate::{DomainError, DomainInput, FIRMWARE_DIR};

/// What Windows tries before it gives a spinlock up, where the manifest says nothing.
const SPINLOCK_RETRIES: u32 = 4096;

/// `uuid` and, if there is something to tell the guest, `sysinfo`.
pub(crate) fn identity(namespace: &str, name: &str, domain: &DomainSpec) -> Vec<Element> {
    let firmware = domain.firmware.as_ref();
    let uuid = firmware
        .and_then(|f| f.uuid.clone())
        .unwrap_or_else(|| default_firmware_uuid(namespace, name));
    let mut elements = vec![Element::new("uuid").text(uuid)];
    let entry = |name: &'static str, text: &String| {
        Element::new("entry").attribute("name", name).text(text)
    };
    let system = firmware
        .and_then(|f| f.serial.as_ref())
        .map(|serial| Element::new("system").child(entry("serial", serial)));
    let chassis = domain.chassis.as_ref().map(|chassis| {
        let entries = [
            ("manufacturer", &chassis.manufacturer),
            ("version", &chassis.version),
            ("serial", &chassis.serial),
            ("asset", &chassis.asset),
            ("sku", &chassis.sku),
        ];
        let given = entries
            .into_iter()
            .filter_map(|(name, text)| Some(entry(name, text.as_ref()?)));
        Element::new("chassis").children(given)
    });
    if system.is_some() || chassis.is_some() {
        let sysinfo = Element::new("sysinfo").attribute("type", "smbios");
        elements.push(sysinfo.children(system).children(chassis));
    }
    elements
}

/// Guest memory in KiB, the unit that libvirt keeps, rounded up.
pub(crate) fn memory(domain: &DomainSpec) -> Result<Element, DomainError> {
    let guest = domain
        .memory
        .as_ref()
        .and_then(|m| m.guest.as_ref())
        .ok_or(DomainError::NoMemory)?;
    let bytes = parse_bytes(guest).map_err(DomainError::Memory)?;
    Ok(Element::new("memory")
        .attribute("unit", "KiB")
        .text(bytes.div_ceil(1024)))
}

/// `vcpu` and `cpu`.
pub(crate) fn processor(domain: &DomainSpec, emulation: bool) -> [Element; 2] {
    let none = CPU::default();
    let cpu = domain.cpu.as_ref().unwrap_or(&none);
    let topology = Element::new("topology")
        .attribute("sockets", cpu.sockets.unwrap_or(1))
        .attribute("dies", 1)
        .attribute("cores", cpu.cores.unwrap_or(1))
        .attribute("threads", cpu.threads.unwrap_or(1));
    let element = Element::new("cpu");
    // The processor of the host is no model that software emulation could take up.
    let element = match (cpu.model.as_deref(), emulation) {
        (None | Some("host-passthrough" | "host-model"), true) => {
            element.attribute("mode", "maximum")
        }
        (None | Some("host-passthrough"), false) => element.attribute("mode", "host-passthrough"),
        (Some("host-model"), false) => element.attribute("mode", "host-model"),
        (Some(model), _) => element
            .attribute("mode", "custom")
            .attribute("match", "exact")
            // Emulation lacks a feature or two of most models; the guest asks the processor, not the name.
            .attribute("check", if emulation { "none" } else { "partial" })
            .child(
                Element::new("model")
                    .attribute("fallback", "forbid")
                    .text(model),
            ),
    };
    [
        Element::new("vcpu")
            .attribute("placement", "static")
            .text(cpu.vcpus()),
        element
            .child(topology)
            .children(cpu.features.iter().map(|feature| {
                Element::new("feature")
                    .attribute("policy", feature.policy.as_deref().unwrap_or("require"))
                    .attribute("name", &feature.name)
            })),
    ]
}

/// Which of the host's processors each virtual one runs on. QEMU's own threads may use all that the pod has.
pub(crate) fn pinning(domain: &DomainSpec, cpus: &[u32]) -> Result<Option<Element>, DomainError> {
    let Some(cpu) = domain.cpu.as_ref().filter(|cpu| cpu.is_dedicated()) else {
        return Ok(None);
    };
    let vcpus = cpu.vcpus();
    if (cpus.len() as u64) < u64::from(vcpus) {
        return Err(DomainError::TooFewCpus {
            vcpus,
            cpus: cpus.len(),
        });
    }
    let all: Vec<String> = cpus.iter().map(u32::to_string).collect();
    let pins = (0..vcpus).zip(cpus).map(|(vcpu, cpu)| {
        Element::new("vcpupin")
            .attribute("vcpu", vcpu)
            .attribute("cpuset", cpu)
    });
    Ok(Some(Element::new("cputune").children(pins).child(
        Element::new("emulatorpin").attribute("cpuset", all.join(",")),
    )))
}

/// Machine type and firmware. The boot order is with the devices.
pub(crate) fn os(input: &DomainInput<'_>) -> Result<Element, DomainError> {
    let domain = &input.vmi.spec.domain;
    let machine = domain
        .machine
        .as_ref()
        .and_then(|m| m.type_.as_deref())
        .unwrap_or("q35");
    let firmware = domain.firmware.as_ref();
    let bios = firmware
        .and_then(|f| f.bootloader.as_ref())
        .and_then(|b| b.bios.as_ref());
    let efi = firmware
        .and_then(|f| f.bootloader.as_ref())
        .and_then(|b| b.efi.as_ref());
    let use_serial = bios.and_then(|b| b.use_serial) == Some(true);
    if use_serial && domain.devices.autoattach_serial_console == Some(false) {
        return Err(DomainError::NoSerialForBios);
    }
    let smbios = firmware.is_some_and(|f| f.serial.is_some()) || domain.chassis.is_some();
    Ok(Element::new("os")
        .child(
            Element::new("type")
                .attribute("arch", "x86_64")
                .attribute("machine", machine)
                .text("hvm"),
        )
        .children(efi.into_iter().flat_map(|efi| uefi(efi, &input.nvram)))
        .children(kernel(input)?)
        .children(smbios.then(|| Element::new("smbios").attribute("mode", "sysinfo")))
        .children(use_serial.then(|| Element::new("bios").attribute("useserial", "yes"))))
}

/// A kernel in place of what is on a disk.
fn kernel(input: &DomainInput<'_>) -> Result<Vec<Element>, DomainError> {
    let firmware = input.vmi.spec.domain.firmware.as_ref();
    let Some(boot) = firmware.and_then(|firmware| firmware.kernel_boot.as_ref()) else {
        return Ok(Vec::new());
    };
    let kernel = input.kernel.as_deref().ok_or(DomainError::NoKernel)?;
    let parts = [
        ("kernel", Some(kernel)),
        ("initrd", input.initrd.as_deref()),
        ("cmdline", boot.kernel_args.as_deref()),
    ];
    let given = parts
        .into_iter()
        .filter_map(|(name, text)| Some((name, text?)));
    Ok(given
        .map(|(name, text)| Element::new(name).text(text))
        .collect())
}

/// UEFI's code, which nobody writes, and its variables, which are copied from those that the code comes with.
fn uefi(efi: &EFI, nvram: &str) -> [Element; 2] {
    let secure = efi.is_secure();
    let (code, variables) = if secure {
        ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd")
    } else {
        ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")
    };
    [
        Element::new("loader")
            .attribute("readonly", "yes")
            .attribute("secure", if secure { "yes" } else { "no" })
            .attribute("type", "pflash")
            .text(format!("{FIRMWARE_DIR}/{code}")),
        Element::new("nvram")
            .attribute("template", format!("{FIRMWARE_DIR}/{variables}"))
            .text(nvram),
    ]
}

/// ACPI and APIC, on unless switched off; the others as they are given. What only a hypervisor can do is left out under
/// emulation.
pub(crate) fn features(domain: &DomainSpec, emulation: bool) -> Element {
    let features = domain.features.as_ref();
    let acpi = features
        .and_then(|f| f.acpi.as_ref())
        .and_then(|a| a.enabled)
        != Some(false);
    let apic = features.and_then(|f| f.apic.as_ref());
    let eoi = apic.and_then(|a| a.end_of_interrupt);
    let apic = apic.and_then(|a| a.enabled) != Some(false);
    Element::new("features")
        .children(acpi.then(|| Element::new("acpi")))
        .children(apic.then(|| Element::new("apic").maybe("eoi", eoi.map(on_off))))
        .children(
            features
                .filter(|_| !emulation)
                .into_iter()
                .flat_map(of_hypervisor),
        )
        .children(
            features.and_then(|f| f.smm.as_ref()).map(|smm| {
                Element::new("smm").attribute("state", on_off(smm.enabled != Some(false)))
            }),
        )
}

/// What a hypervisor tells its guests.
fn of_hypervisor(features: &Features) -> Vec<Element> {
    let state = |name, enabled: Option<bool>| {
        Element::new(name).attribute("state", on_off(enabled != Some(false)))
    };
    let mut list = Vec::new();
    let all = features.hyperv_passthrough.as_ref();
    if all.is_some_and(|all| all.enabled != Some(false)) {
        list.push(Element::new("hyperv").attribute("mode", "passthrough"));
    } else if let Some(hyperv) = &features.hyperv {
        let simple = [
            ("relaxed", &hyperv.relaxed),
            ("vapic", &hyperv.vapic),
            ("vpindex", &hyperv.vpindex),
            ("runtime", &hyperv.runtime),
            ("synic", &hyperv.synic),
            ("reset", &hyperv.reset),
            ("frequencies", &hyperv.frequencies),
            ("reenlightenment", &hyperv.reenlightenment),
            ("tlbflush", &hyperv.tlbflush),
            ("ipi", &hyperv.ipi),
            ("evmcs", &hyperv.evmcs),
        ];
        let simple = simple
            .into_iter()
            .filter_map(|(name, feature)| Some(state(name, feature.as_ref()?.enabled)));
        let spinlocks = hyperv.spinlocks.as_ref().map(|spinlocks| {
            let element = state("spinlocks", spinlocks.enabled);
            let retries = spinlocks.spinlocks.unwrap_or(SPINLOCK_RETRIES);
            element.maybe(
                "retries",
                (spinlocks.enabled != Some(false)).then_some(retries),
            )
        });
        let timer = hyperv.synictimer.as_ref().map(|timer| {
            let direct = timer.direct.as_ref();
            state("stimer", timer.enabled)
                .children(direct.map(|direct| state("direct", direct.enabled)))
        });
        let vendor = hyperv.vendorid.as_ref().map(|vendor| {
            state("vendor_id", vendor.enabled).maybe("value", vendor.vendorid.as_ref())
        });
        list.push(
            Element::new("hyperv")
                .attribute("mode", "custom")
                .children(simple)
                .children(spinlocks)
                .children(timer)
                .children(vendor),
        );
    }
    if let Some(hidden) = features.kvm.as_ref().and_then(|kvm| kvm.hidden) {
        let hidden = Element::new("hidden").attribute("state", on_off(hidden));
        list.push(Element::new("kvm").child(hidden));
    }
    list.extend(
        features
            .pvspinlock
            .as_ref()
            .map(|lock| state("pvspinlock", lock.enabled)),
    );
    list
}

/// The clock shows UTC, UTC and an offset, or the local time of a zone.
pub(crate) fn clock(domain: &DomainSpec, emulation: bool) -> Element {
    let spec = domain.clock.as_ref();
    let offset = spec
        .and_then(|c| c.utc.as_ref())
        .and_then(|u| u.offset_seconds)
        .filter(|s| *s != 0);
    let zone = spec.and_then(|c| c.timezone.as_deref());
    let element = Element::new("clock");
    let element = match (zone, offset) {
        (Some(zone), _) => element
            .attribute("offset", "timezone")
            .attribute("timezone", zone),
        (None, Some(seconds)) => element
            .attribute("offset", "variable")
            .attribute("adjustment", seconds)
            .attribute("basis", "utc"),
        (None, None) => element.attribute("offset", "utc"),
    };
    let Some(timer) = spec.and_then(|c| c.timer.as_ref()) else {
        return element;
    };
    let new = |name, present: Option<bool>| {
        Element::new("timer")
            .attribute("name", name)
            .attribute("present", yes_no(present != Some(false)))
    };
    element
        .children(timer.rtc.as_ref().map(|t| {
            new("rtc", t.present)
                .maybe("track", t.track.as_deref())
                .maybe("tickpolicy", t.tick_policy.as_deref())
        }))
        .children(
            timer
                .pit
                .as_ref()
                .map(|t| new("pit", t.present).maybe("tickpolicy", t.tick_policy.as_deref())),
        )
        .children(timer.hpet.as_ref().map(|t| new("hpet", t.present)))
        .children(
            (timer.hyperv.as_ref().filter(|_| !emulation)).map(|t| new("hypervclock", t.present)),
        )
        .children((timer.kvm.as_ref().filter(|_| !emulation)).map(|t| new("kvmclock", t.present)))
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}
