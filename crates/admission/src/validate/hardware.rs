//! Processor, memory, machine, firmware and clock.

use std::collections::BTreeMap;

use berth_api::kubevirt::v1::{
    CPU, Clock, DomainSpec, FeatureState, Features, Firmware, ResourceRequirements,
};
use berth_api::quantity::{parse_bytes, parse_millis};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::devices::{check_image, is_image_path};
use super::one_of;
use crate::cause::Cause;
use crate::syntax;

/// Processors that a guest can address without extensions.
const VCPUS_MAX: u64 = 255;
/// Longest text for a kernel: what Linux takes.
const KERNEL_ARGS_MAX: usize = 2048;
/// Less memory than this starts no firmware.
const MEMORY_MIN: u64 = 1 << 20;

pub(super) fn check(domain: &DomainSpec, causes: &mut Vec<Cause>) {
    if let Some(cpu) = &domain.cpu {
        check_cpu(cpu, causes);
    }
    check_memory_and_resources(domain, causes);
    if let Some(machine) = domain.machine.as_ref().and_then(|m| m.type_.as_deref())
        && !is_machine_type(machine)
    {
        causes.push(Cause::not_one_of(
            "spec.domain.machine.type",
            machine,
            &["q35", "pc", "pc-q35-<version>", "pc-i440fx-<version>"],
        ));
    }
    if let Some(firmware) = &domain.firmware {
        check_firmware(firmware, causes);
        check_efi(domain, firmware, causes);
        check_kernel(firmware, causes);
        let bios = firmware.bootloader.as_ref().and_then(|b| b.bios.as_ref());
        if bios.and_then(|b| b.use_serial) == Some(true)
            && domain.devices.autoattach_serial_console == Some(false)
        {
            causes.push(Cause::invalid(
                "spec.domain.firmware.bootloader.bios.useSerial",
                true,
                "needs a serial console, which spec.domain.devices.autoattachSerialConsole switches off",
            ));
        }
    }
    if let Some(clock) = &domain.clock {
        check_clock(clock, causes);
    }
    if let Some(features) = &domain.features {
        check_features(features, causes);
    }
    if let Some(chassis) = &domain.chassis {
        for (name, text) in [
            ("manufacturer", &chassis.manufacturer),
            ("version", &chassis.version),
            ("serial", &chassis.serial),
            ("asset", &chassis.asset),
            ("sku", &chassis.sku),
        ] {
            if let Some(text) = text {
                check_smbios(&format!("spec.domain.chassis.{name}"), text, causes);
            }
        }
    }
    one_of(
        "spec.domain.ioThreadsPolicy",
        domain.io_threads_policy.as_deref(),
        &["shared", "auto"],
        causes,
    );
    one_of(
        "spec.domain.rebootPolicy",
        domain.reboot_policy.as_deref(),
        &["Reboot", "Terminate"],
        causes,
    );
}

/// UEFI, and what secure boot stands on.
fn check_kernel(firmware: &Firmware, causes: &mut Vec<Cause>) {
    const BOOT: &str = "spec.domain.firmware.kernelBoot";
    let Some(boot) = &firmware.kernel_boot else {
        return;
    };
    let arguments = boot.kernel_args.as_deref().unwrap_or_default();
    if arguments.len() > KERNEL_ARGS_MAX || arguments.chars().any(char::is_control) {
        causes.push(Cause::invalid(
            format!("{BOOT}.kernelArgs"),
            arguments,
            format!("must be one line of no more than {KERNEL_ARGS_MAX} bytes"),
        ));
    }
    let Some(container) = &boot.container else {
        causes.push(Cause::required(
            format!("{BOOT}.container"),
            "the image that the kernel is in",
        ));
        return;
    };
    let path = format!("{BOOT}.container");
    check_image(
        &path,
        &container.image,
        container.image_pull_policy.as_deref(),
        container.image_pull_secret.as_deref(),
        causes,
    );
    for (name, file) in [
        ("kernelPath", &container.kernel_path),
        ("initrdPath", &container.initrd_path),
    ] {
        if let Some(file) = file
            && !is_image_path(file)
        {
            causes.push(Cause::invalid(
                format!("{path}.{name}"),
                file,
                "must be an absolute path without empty, . or .. parts",
            ));
        }
    }
    if container.kernel_path.is_none() {
        causes.push(Cause::required(
            format!("{path}.kernelPath"),
            "where the kernel is in the image",
        ));
    }
}

fn check_efi(domain: &DomainSpec, firmware: &Firmware, causes: &mut Vec<Cause>) {
    const EFI: &str = "spec.domain.firmware.bootloader.efi";
    let Some(bootloader) = &firmware.bootloader else {
        return;
    };
    let Some(efi) = &bootloader.efi else { return };
    if bootloader.bios.is_some() {
        causes.push(Cause::forbidden(
            EFI,
            "cannot be given together with spec.domain.firmware.bootloader.bios",
        ));
    }
    if !efi.is_secure() {
        return;
    }
    let smm = domain.features.as_ref().and_then(|f| f.smm.as_ref());
    if smm.is_none_or(|smm| smm.enabled == Some(false)) {
        causes.push(Cause::required(
            "spec.domain.features.smm",
            format!("secure boot needs it, which is on unless {EFI}.secureBoot is false"),
        ));
    }
    let machine = domain.machine.as_ref().and_then(|m| m.type_.as_deref());
    if let Some(machine) = machine.filter(|machine| !machine.contains("q35")) {
        causes.push(Cause::invalid(
            "spec.domain.machine.type",
            machine,
            format!("must be a q35 for secure boot, which is on unless {EFI}.secureBoot is false"),
        ));
    }
}

/// A text that the guest reads in SMBIOS.
fn check_smbios(field: &str, text: &str, causes: &mut Vec<Cause>) {
    if !(text.len() <= 256 && syntax::is_word(text, "._-+ ")) {
        causes.push(Cause::invalid(
            field,
            text,
            "must be 1 to 256 letters, digits, spaces and ._-+",
        ));
    }
}

/// Enlightenments with what each of them stands on.
fn check_features(features: &Features, causes: &mut Vec<Cause>) {
    const HYPERV: &str = "spec.domain.features.hyperv";
    let Some(hyperv) = &features.hyperv else {
        return;
    };
    if features.hyperv_passthrough.is_some() {
        causes.push(Cause::forbidden(
            "spec.domain.features.hypervPassthrough",
            format!("cannot be given together with {HYPERV}"),
        ));
    }
    let is_on = |feature: &Option<FeatureState>| {
        feature
            .as_ref()
            .is_some_and(|feature| feature.enabled != Some(false))
    };
    let timer = hyperv
        .synictimer
        .as_ref()
        .is_some_and(|timer| timer.enabled != Some(false));
    for (name, on, needs, there) in [
        ("synic", is_on(&hyperv.synic), "vpindex", &hyperv.vpindex),
        ("reset", is_on(&hyperv.reset), "synic", &hyperv.synic),
        (
            "tlbflush",
            is_on(&hyperv.tlbflush),
            "vpindex",
            &hyperv.vpindex,
        ),
        ("ipi", is_on(&hyperv.ipi), "vpindex", &hyperv.vpindex),
        ("evmcs", is_on(&hyperv.evmcs), "vapic", &hyperv.vapic),
        ("synictimer", timer, "synic", &hyperv.synic),
    ] {
        if on && !is_on(there) {
            causes.push(Cause::required(
                format!("{HYPERV}.{needs}"),
                format!("{HYPERV}.{name} needs it"),
            ));
        }
    }
    if let Some(retries) = hyperv.spinlocks.as_ref().and_then(|s| s.spinlocks)
        && retries < 4096
    {
        causes.push(Cause::invalid(
            format!("{HYPERV}.spinlocks.spinlocks"),
            retries,
            "must be at least 4096",
        ));
    }
    if let Some(vendor) = &hyperv.vendorid
        && vendor.enabled != Some(false)
    {
        let name = vendor.vendorid.as_deref().unwrap_or_default();
        if !(name.len() <= 12 && syntax::is_word(name, " ")) {
            causes.push(Cause::invalid(
                format!("{HYPERV}.vendorid.vendorid"),
                name,
                "must be 1 to 12 letters, digits and spaces",
            ));
        }
    }
}

fn check_cpu(cpu: &CPU, causes: &mut Vec<Cause>) {
    let factors = [
        ("sockets", cpu.sockets),
        ("cores", cpu.cores),
        ("threads", cpu.threads),
    ];
    for (name, factor) in factors {
        if factor == Some(0) {
            causes.push(Cause::invalid(
                format!("spec.domain.cpu.{name}"),
                0,
                "must be at least 1",
            ));
        }
    }
    let vcpus = u64::from(cpu.vcpus());
    if vcpus > VCPUS_MAX {
        causes.push(Cause::invalid(
            "spec.domain.cpu",
            vcpus,
            format!("sockets × cores × threads must be no more than {VCPUS_MAX}"),
        ));
    }
    if let Some(model) = &cpu.model
        && !(model.len() <= 64 && syntax::is_word(model, "_.-"))
    {
        causes.push(Cause::invalid(
            "spec.domain.cpu.model",
            model,
            "must be host-passthrough, host-model or the name of a model: at most 64 letters, digits and _.-",
        ));
    }
    for (i, feature) in cpu.features.iter().enumerate() {
        let path = format!("spec.domain.cpu.features[{i}]");
        if !(feature.name.len() <= 64 && syntax::is_word(&feature.name, "_.-")) {
            causes.push(Cause::invalid(
                format!("{path}.name"),
                &feature.name,
                "must be the name of a feature: 1 to 64 letters, digits and _.-",
            ));
        }
        one_of(
            &format!("{path}.policy"),
            feature.policy.as_deref(),
            &["force", "require", "optional", "disable", "forbid"],
            causes,
        );
        if cpu.features[..i].iter().any(|f| f.name == feature.name) {
            causes.push(Cause::duplicate(format!("{path}.name"), &feature.name));
        }
    }
}

/// A pod has CPUs for itself when its requests are its limits; what is not given follows from the machine.
fn check_dedicated(cpu: &CPU, resources: &ResourceRequirements, causes: &mut Vec<Cause>) {
    let why = "with spec.domain.cpu.dedicatedCpuPlacement";
    let vcpus = cpu.vcpus();
    for (list, amounts) in [
        ("requests", &resources.requests),
        ("limits", &resources.limits),
    ] {
        if let Some(given) = amounts.get("cpu")
            && parse_millis(given).is_ok_and(|millis| millis != u64::from(vcpus) * 1000)
        {
            causes.push(Cause::invalid(
                format!("spec.domain.resources.{list}.cpu"),
                &given.0,
                format!("must be the number of virtual processors, {vcpus}, {why}"),
            ));
        }
    }
    if let (Some(request), Some(limit)) = (
        resources.requests.get("memory"),
        resources.limits.get("memory"),
    ) && parse_bytes(request).ok() != parse_bytes(limit).ok()
    {
        causes.push(Cause::invalid(
            "spec.domain.resources.limits.memory",
            &limit.0,
            format!("must be the request, {}, {why}", request.0),
        ));
    }
}

fn check_memory_and_resources(domain: &DomainSpec, causes: &mut Vec<Cause>) {
    let guest = domain.memory.as_ref().and_then(|m| m.guest.as_ref());
    let guest_bytes = match guest {
        None => {
            causes.push(Cause::required(
                "spec.domain.memory.guest",
                "this or spec.domain.resources.requests.memory must be given",
            ));
            None
        }
        Some(quantity) => amount("spec.domain.memory.guest", quantity, parse_bytes, causes)
            .inspect(|bytes| {
                if *bytes < MEMORY_MIN {
                    causes.push(Cause::invalid(
                        "spec.domain.memory.guest",
                        &quantity.0,
                        "must be at least 1Mi",
                    ));
                }
            }),
    };
    let Some(resources) = &domain.resources else {
        return;
    };
    if let Some(cpu) = domain.cpu.as_ref().filter(|cpu| cpu.is_dedicated()) {
        check_dedicated(cpu, resources, causes);
    }
    let requests = amounts(
        "spec.domain.resources.requests",
        &resources.requests,
        causes,
    );
    let limits = amounts("spec.domain.resources.limits", &resources.limits, causes);
    for (name, limit) in &limits {
        let shown = &resources.limits[*name].0;
        if requests.get(name).is_some_and(|request| request > limit) {
            causes.push(Cause::invalid(
                format!("spec.domain.resources.requests.{name}"),
                &resources.requests[*name].0,
                format!("must be no more than the limit {shown}"),
            ));
        }
        if *name == "memory" && guest_bytes.is_some_and(|bytes| bytes > *limit) {
            causes.push(Cause::invalid(
                "spec.domain.resources.limits.memory",
                shown,
                "must be no less than the memory of the guest",
            ));
        }
    }
}

/// Bytes of memory and thousandths of processors; other resources are refused.
fn amounts<'a>(
    path: &str,
    list: &'a BTreeMap<String, Quantity>,
    causes: &mut Vec<Cause>,
) -> BTreeMap<&'a str, u64> {
    list.iter()
        .filter_map(|(name, quantity)| {
            let field = format!("{path}.{name}");
            let value = match name.as_str() {
                "cpu" => amount(&field, quantity, parse_millis, causes)?,
                "memory" => amount(&field, quantity, parse_bytes, causes)?,
                _ => {
                    causes.push(Cause::unsupported_field(
                        field,
                        "the resources that berth has are cpu and memory",
                    ));
                    return None;
                }
            };
            Some((name.as_str(), value))
        })
        .collect()
}

fn amount<E: std::fmt::Display>(
    field: &str,
    quantity: &Quantity,
    parse: impl Fn(&Quantity) -> Result<u64, E>,
    causes: &mut Vec<Cause>,
) -> Option<u64> {
    parse(quantity)
        .map_err(|error| causes.push(Cause::invalid(field, &quantity.0, error)))
        .ok()
}

/// `q35`, `pc`, or one of them with the version of a QEMU, as its list of machines has it.
fn is_machine_type(name: &str) -> bool {
    let version = name
        .strip_prefix("pc-q35-")
        .or_else(|| name.strip_prefix("pc-i440fx-"));
    matches!(name, "q35" | "pc")
        || version.is_some_and(|v| {
            v.len() <= 16
                && v.split('.').count() >= 2
                && v.split('.')
                    .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
        })
}

fn check_firmware(firmware: &Firmware, causes: &mut Vec<Cause>) {
    if let Some(uuid) = &firmware.uuid
        && !is_uuid(uuid)
    {
        causes.push(Cause::invalid(
            "spec.domain.firmware.uuid",
            uuid,
            "must be a UUID that is not nil: hex digits in groups of 8, 4, 4, 4 and 12, joined by dashes",
        ));
    }
    if let Some(serial) = &firmware.serial {
        check_smbios("spec.domain.firmware.serial", serial, causes);
    }
}

/// libvirt refuses the nil UUID.
fn is_uuid(s: &str) -> bool {
    let groups: Vec<_> = s.split('-').collect();
    groups.iter().map(|g| g.len()).eq([8, 4, 4, 4, 12])
        && groups
            .iter()
            .all(|g| g.bytes().all(|b| b.is_ascii_hexdigit()))
        && s.bytes().any(|b| b != b'0' && b != b'-')
}

fn check_clock(clock: &Clock, causes: &mut Vec<Cause>) {
    if clock.utc.is_some() && clock.timezone.is_some() {
        causes.push(Cause::forbidden(
            "spec.domain.clock.timezone",
            "cannot be given together with spec.domain.clock.utc",
        ));
    }
    if let Some(zone) = &clock.timezone
        && !(zone.len() <= 64 && syntax::is_word(zone, "/_+-") && !zone.starts_with('/'))
    {
        causes.push(Cause::invalid(
            "spec.domain.clock.timezone",
            zone,
            "must be a name of the tz database such as Europe/Berlin",
        ));
    }
    if let Some(seconds) = clock.utc.as_ref().and_then(|u| u.offset_seconds)
        && i32::try_from(seconds).is_err()
    {
        causes.push(Cause::invalid(
            "spec.domain.clock.utc.offsetSeconds",
            seconds,
            "must fit 32 bits",
        ));
    }
    let Some(timer) = &clock.timer else { return };
    let pit = timer.pit.as_ref().and_then(|t| t.tick_policy.as_deref());
    one_of(
        "spec.domain.clock.timer.pit.tickPolicy",
        pit,
        &["delay", "discard"],
        causes,
    );
    let rtc = timer.rtc.as_ref();
    let policy = rtc.and_then(|t| t.tick_policy.as_deref());
    one_of(
        "spec.domain.clock.timer.rtc.tickPolicy",
        policy,
        &["delay", "catchup"],
        causes,
    );
    let track = rtc.and_then(|t| t.track.as_deref());
    one_of(
        "spec.domain.clock.timer.rtc.track",
        track,
        &["guest", "wall"],
        causes,
    );
}
