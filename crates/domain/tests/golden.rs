//! Machines and the domain XML that they become, one file each in `tests/golden`.
//! `BERTH_BLESS=1 cargo test -p berth-domain` writes the files anew.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a test may panic, and takes literals"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use berth_api::kubevirt::v1::VirtualMachineInstance;
use berth_domain::{DiskInput, DomainError, DomainInput, NicInput, domain_xml};
use serde_json::{Value, json};

fn vmi(spec: Value) -> VirtualMachineInstance {
    serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm1", "namespace": "default", "uid": "4e5d7f0c-0000-4000-8000-000000000001"},
        "spec": spec,
    }))
    .unwrap()
}

/// The input that a node agent would give: an overlay for each disk, a tap for each interface.
fn input(vmi: &VirtualMachineInstance) -> DomainInput<'_> {
    let devices = &vmi.spec.domain.devices;
    let nic = |(i, name): (usize, &String)| NicInput {
        network: name.clone(),
        tap: format!("tap{i}"),
        mac: format!("02:00:00:00:00:{i:02x}"),
        mtu: 1450,
    };
    DomainInput {
        vmi,
        disks: devices
            .disks
            .iter()
            .map(|d| DiskInput {
                volume: d.name.clone(),
                path: format!("/var/run/berth/disks/{}.qcow2", d.name),
                format: "qcow2".to_owned(),
                read_only: false,
                block: false,
            })
            .collect(),
        nics: devices
            .interfaces
            .iter()
            .map(|i| &i.name)
            .enumerate()
            .map(nic)
            .collect(),
        cpus: vec![],
        emulation: true,
        emulator: None,
        serial_socket: "/var/run/berth/serial.sock".to_owned(),
        vnc_socket: Some("/var/run/berth/vnc.sock".to_owned()),
        nvram: "/var/run/berth/nvram.fd".to_owned(),
        kernel: Some("/var/run/berth-disks/.boot-kernel".to_owned()),
        initrd: Some("/var/run/berth-disks/.boot-initrd".to_owned()),
        agent_socket: None,
    }
}

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn assert_golden(name: &str, input: &DomainInput<'_>) {
    let xml = domain_xml(input).unwrap();
    let path = golden_dir().join(format!("{name}.xml"));
    if std::env::var_os("BERTH_BLESS").is_some() {
        std::fs::create_dir_all(golden_dir()).unwrap();
        std::fs::write(&path, &xml).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        xml == expected,
        "{} differs; BERTH_BLESS=1 writes it anew. Now:\n{xml}",
        path.display()
    );
    validate(&path);
}

/// libvirt's own schema must accept it. The script that checks is a front of xmllint.
fn validate(path: &Path) {
    for tool in ["xmllint", "virt-xml-validate"] {
        if let Err(error) = Command::new(tool).arg("--version").output() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            berth_testing::skip(&format!("validity of {name}"), &format!("{tool}: {error}"));
            return;
        }
    }
    let out = Command::new("virt-xml-validate")
        .arg(path)
        .arg("domain")
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{}: {}{}",
        path.display(),
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

#[test]
fn a_container_disk_on_the_pod_network() {
    let vmi = vmi(json!({
        "domain": {
            "cpu": {"cores": 1, "sockets": 1, "threads": 1},
            "memory": {"guest": "128Mi"},
            "machine": {"type": "q35"},
            "firmware": {"uuid": "5d307ca9-b3ef-428c-8861-06e72d69f223"},
            "devices": {
                "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                "interfaces": [{"name": "default", "bridge": {}, "model": "virtio"}]
            }
        },
        "networks": [{"name": "default", "pod": {}}],
        "volumes": [{"name": "root", "containerDisk": {"image": "alpine"}}]
    }));
    assert_golden("minimal-emulated", &input(&vmi));
    assert_golden(
        "minimal-kvm",
        &DomainInput {
            emulation: false,
            vnc_socket: None,
            ..input(&vmi)
        },
    );
}

#[test]
fn a_kernel_in_place_of_a_disk() {
    let vmi = vmi(json!({
        "domain": {
            "memory": {"guest": "128Mi"},
            "firmware": {"kernelBoot": {
                "kernelArgs": "console=ttyS0 quiet=<&>",
                "container": {"image": "k", "kernelPath": "/boot/vmlinuz", "initrdPath": "/boot/initrd"},
            }},
            "devices": {}
        },
    }));
    assert_golden("kernel-boot", &input(&vmi));
    let without = DomainInput {
        kernel: None,
        ..input(&vmi)
    };
    assert_eq!(domain_xml(&without), Err(DomainError::NoKernel));
}

#[test]
fn the_bios_on_the_serial_line_boots_from_the_network_first() {
    let vmi = vmi(json!({
        "domain": {
            "memory": {"guest": "64M"},
            "machine": {"type": "pc"},
            "firmware": {"serial": "abc-1", "bootloader": {"bios": {"useSerial": true}}},
            "devices": {
                "autoattachGraphicsDevice": false,
                "autoattachMemBalloon": false,
                "rng": {},
                "disks": [
                    {"name": "iso", "cdrom": {"bus": "sata"}, "bootOrder": 2},
                    {"name": "data", "disk": {"bus": "virtio", "readonly": true}, "serial": "D-1"}
                ],
                "interfaces": [
                    {"name": "default", "bridge": {}, "model": "e1000", "bootOrder": 1},
                    {"name": "second", "bridge": {}, "model": "rtl8139"}
                ]
            }
        }
    }));
    assert_golden("network-boot", &input(&vmi));
}

#[test]
fn uefi_with_and_without_secure_boot() {
    let firmware = |efi: serde_json::Value, smm: bool| {
        vmi(json!({
            "domain": {
                "memory": {"guest": "256Mi"},
                "machine": {"type": "q35"},
                "features": {"smm": {"enabled": smm}},
                "firmware": {"bootloader": {"efi": efi}},
                "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]}
            }
        }))
    };
    assert_golden(
        "uefi",
        &input(&firmware(json!({"secureBoot": false}), false)),
    );
    assert_golden("uefi-secure-boot", &input(&firmware(json!({}), true)));
}

#[test]
fn every_knob() {
    let vmi = vmi(json!({
        "domain": {
            "cpu": {"cores": 2, "sockets": 2, "threads": 2, "model": "Haswell"},
            "memory": {"guest": "1025"},
            "features": {"acpi": {"enabled": true}, "apic": {"endOfInterrupt": true}},
            "clock": {"utc": {"offsetSeconds": -3600}, "timer": {
                "hpet": {"present": false}, "pit": {"tickPolicy": "delay"},
                "rtc": {"tickPolicy": "catchup", "track": "guest"}
            }},
            "devices": {
                "inputs": [{"name": "t", "type": "tablet"}, {"name": "v", "type": "tablet", "bus": "virtio"}],
                "disks": [
                    {"name": "a", "disk": {"bus": "sata"}, "cache": "none", "io": "native"},
                    {"name": "b", "disk": {"bus": "scsi"}, "cache": "writethrough", "serial": "B"},
                    {"name": "c", "disk": {"bus": "usb"}, "io": "threads"},
                    {"name": "d"},
                    {"name": "e", "cdrom": {}}
                ]
            }
        }
    }));
    let mut input = input(&vmi);
    input.agent_socket = Some("/var/run/berth/agent.sock".to_owned());
    input.disks[3].format = "raw".to_owned();
    input.disks[3].path = "/var/run/berth/disks/d.img".to_owned();
    input.disks[4].read_only = true;
    assert_golden("every-knob", &input);
}

/// What Windows guests are given, and old and unusual ones.
fn everything_else() -> serde_json::Value {
    json!({
        "domain": {
            "chassis": {"manufacturer": "Maker", "version": "1.0", "serial": "C-1", "asset": "A 1", "sku": "S-1"},
            "cpu": {"cores": 2, "features": [{"name": "aes"}, {"name": "vmx", "policy": "disable"}]},
            "memory": {"guest": "1Gi"},
            "rebootPolicy": "Terminate",
            "ioThreadsPolicy": "auto",
            "features": {
                "hyperv": {
                    "relaxed": {}, "vapic": {"enabled": true}, "vpindex": {}, "runtime": {}, "synic": {},
                    "reset": {"enabled": false}, "frequencies": {}, "reenlightenment": {}, "tlbflush": {}, "ipi": {},
                    "evmcs": {}, "spinlocks": {"spinlocks": 8191}, "synictimer": {"direct": {}},
                    "vendorid": {"vendorid": "berth"}
                },
                "kvm": {"hidden": true}, "pvspinlock": {"enabled": false}, "smm": {}
            },
            "clock": {"timer": {"hyperv": {}, "kvm": {"present": false}}},
            "devices": {
                "useVirtioTransitional": true, "blockMultiQueue": true, "rng": {},
                "watchdog": {"name": "dog", "i6300esb": {"action": "poweroff"}},
                "sound": {"name": "ears"}, "video": {"type": "virtio"},
                "panicDevices": [{}, {"model": "hyperv"}],
                "disks": [
                    {"name": "a", "disk": {"pciAddress": "0000:00:1a.0"}, "dedicatedIOThread": true, "errorPolicy": "enospace"},
                    {"name": "b", "disk": {}, "blockSize": {"custom": {"logical": 512, "physical": 4096}}},
                    {"name": "c", "disk": {}, "cache": "none", "shareable": true},
                    {"name": "d", "disk": {}}, {"name": "e", "disk": {}}, {"name": "f", "disk": {}},
                    {"name": "g", "disk": {"bus": "scsi"}},
                    {"name": "cd", "cdrom": {"tray": "open"}}
                ],
                "interfaces": [
                    {"name": "default", "bridge": {}, "acpiIndex": 7, "state": "down", "pciAddress": "0000:00:1b.0"}
                ]
            }
        }
    })
}

#[test]
fn everything_else_with_and_without_a_hypervisor() {
    let vmi = vmi(everything_else());
    assert_golden(
        "everything-else-kvm",
        &DomainInput {
            emulation: false,
            ..input(&vmi)
        },
    );
    assert_golden("everything-else-emulated", &input(&vmi));
    let passthrough = self::vmi(json!({
        "domain": {
            "memory": {"guest": "64Mi"}, "ioThreadsPolicy": "shared",
            "features": {"hypervPassthrough": {}},
            "devices": {"disks": [{"name": "a"}, {"name": "b"}]}
        }
    }));
    assert_golden(
        "hyperv-passthrough",
        &DomainInput {
            emulation: false,
            ..input(&passthrough)
        },
    );
}

#[test]
fn features_off_and_a_zone() {
    let vmi = vmi(json!({
        "domain": {
            "cpu": {"model": "host-model"},
            "memory": {"guest": "1Gi"},
            "features": {"acpi": {"enabled": false}, "apic": {"enabled": false}},
            "clock": {"timezone": "Europe/Berlin"},
            "devices": {"autoattachSerialConsole": false}
        }
    }));
    assert_golden(
        "bare",
        &DomainInput {
            emulation: false,
            ..input(&vmi)
        },
    );
}

#[test]
fn who_has_processors_for_himself_is_pinned_to_them() {
    let vmi = vmi(json!({
        "domain": {
            "cpu": {"cores": 2, "dedicatedCpuPlacement": true}, "memory": {"guest": "1Gi"},
            "devices": {"autoattachSerialConsole": false}
        }
    }));
    let mut input = input(&vmi);
    input.cpus = vec![3, 7];
    assert_golden("dedicated", &input);
    input.cpus = vec![3];
    assert_eq!(
        domain_xml(&input),
        Err(DomainError::TooFewCpus { vcpus: 2, cpus: 1 })
    );
}

#[test]
fn hostile_names_stay_text() {
    let hostile = "/x'/><seclabel type='dynamic'/><evil & \"]]>";
    let vmi = vmi(json!({
        "domain": {"memory": {"guest": "64Mi"}, "firmware": {"serial": hostile}, "devices": {
            "disks": [{"name": "a", "disk": {}}]
        }}
    }));
    let mut input = input(&vmi);
    input.disks[0].path = hostile.to_owned();
    assert_golden("hostile", &input);
    input.disks[0].path = "/x\n".to_owned();
    assert_eq!(
        domain_xml(&input),
        Err(DomainError::Text("/x\n".to_owned()))
    );
}

#[test]
fn what_is_missing_is_named() {
    let complete = json!({
        "domain": {"memory": {"guest": "64Mi"}, "devices": {
            "disks": [{"name": "root"}], "interfaces": [{"name": "default", "bridge": {}}]
        }}
    });
    let vm = vmi(complete.clone());
    let no_disk = DomainInput {
        disks: vec![],
        ..input(&vm)
    };
    assert_eq!(
        domain_xml(&no_disk),
        Err(DomainError::NoDisk("root".to_owned()))
    );
    let no_nic = DomainInput {
        nics: vec![],
        ..input(&vm)
    };
    assert_eq!(
        domain_xml(&no_nic),
        Err(DomainError::NoNic("default".to_owned()))
    );
    let mut read_only = input(&vm);
    read_only.disks[0].read_only = true;
    assert!(matches!(
        domain_xml(&read_only),
        Err(DomainError::ReadOnlyFile(..))
    ));
    let mut vmdk = input(&vm);
    vmdk.disks[0].format = "vmdk".to_owned();
    let error = domain_xml(&vmdk).unwrap_err().to_string();
    assert_eq!(error, "format of volume root: \"vmdk\" is not supported");

    let mut spec = complete;
    spec["domain"]["memory"] = json!({});
    let vm = vmi(spec);
    assert_eq!(domain_xml(&input(&vm)), Err(DomainError::NoMemory));
}
