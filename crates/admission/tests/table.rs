//! What is accepted and what it becomes; what is refused and in which words.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a test may panic, and takes literals"
)]

use berth_admission::{Admitted, CauseReason, Operation, Refusal, Request, admit};
use serde_json::{Value, json};

fn object(spec: Value) -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm1", "namespace": "default"}, "spec": spec
    })
}

/// A spec that passes.
fn good() -> Value {
    json!({
        "domain": {
            "memory": {"guest": "128Mi"},
            "devices": {
                "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                "interfaces": [{"name": "default", "bridge": {}}]
            }
        },
        "networks": [{"name": "default", "pod": {}}],
        "volumes": [{"name": "root", "containerDisk": {"image": "alpine:3"}}]
    })
}

fn write(operation: Operation, object: &Value, old: Option<&Value>) -> Result<Admitted, Refusal> {
    admit(&Request {
        operation,
        kind: "VirtualMachineInstance",
        subresource: None,
        namespace: "default",
        name: object["metadata"]["name"].as_str().unwrap_or_default(),
        object: Some(object),
        old_object: old,
    })
}

fn create(spec: Value) -> Result<Admitted, Refusal> {
    write(Operation::Create, &object(spec), None)
}

/// The spec of [`good`] with the value at `pointer` set; `null` takes it out.
fn with(pointer: &str, value: Value) -> Value {
    let mut spec = good();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = spec
        .pointer_mut(parent)
        .unwrap_or_else(|| panic!("no {parent}"));
    match parent {
        Value::Array(items) => items.push(value),
        _ if value.is_null() => drop(parent.as_object_mut().unwrap().remove(key)),
        _ => parent[key] = value,
    }
    spec
}

#[test]
fn the_defaults() {
    let admitted = create(json!({
        "domain": {"resources": {"requests": {"memory": "64M", "cpu": 1}}, "devices": {
            "disks": [{"name": "cd", "cdrom": {}}]
        }},
        "volumes": [
            {"name": "cd", "containerDisk": {"image": "ipxe"}},
            {"name": "extra", "containerDisk": {"image": "alpine"}}
        ]
    }))
    .unwrap();
    assert_eq!(admitted.warnings, Vec::<String>::new());
    let object = admitted.object.unwrap();
    assert_eq!(
        object["metadata"]["finalizers"],
        json!(["kubevirt.io/foregroundDeleteVirtualMachine"])
    );
    let uuid = object["spec"]["domain"]["firmware"]["uuid"].clone();
    assert_eq!(uuid.as_str().unwrap().len(), 36);
    assert_eq!(
        object["spec"],
        json!({
            "architecture": "amd64",
            "terminationGracePeriodSeconds": 30,
            "domain": {
                "cpu": {"cores": 1, "sockets": 1, "threads": 1},
                "memory": {"guest": "64M"},
                "resources": {"requests": {"memory": "64M", "cpu": "1"}},
                "machine": {"type": "q35"},
                "firmware": {"uuid": uuid},
                "devices": {
                    "disks": [
                        {"name": "cd", "cdrom": {"bus": "sata"}},
                        {"name": "extra", "disk": {"bus": "virtio"}}
                    ],
                    "interfaces": [{"name": "default", "bridge": {}, "model": "virtio"}]
                }
            },
            "networks": [{"name": "default", "pod": {}}],
            "volumes": [
                {"name": "cd", "containerDisk": {"image": "ipxe"}},
                {"name": "extra", "containerDisk": {"image": "alpine"}}
            ]
        })
    );
}

#[test]
fn no_network_where_none_is_wanted() {
    let spec = json!({"domain": {"memory": {"guest": "64Mi"}, "devices": {"autoattachPodInterface": false}}});
    let object = create(spec).unwrap().object.unwrap();
    assert_eq!(object["spec"]["networks"], Value::Null);
    assert_eq!(
        object["spec"]["domain"]["devices"]["interfaces"],
        Value::Null
    );
}

#[test]
fn the_old_form_is_converted_with_warnings() {
    let old = json!({
        "terminationGracePeriodSeconds": 30,
        "domain": {
            "resources": {"requests": {"memory": "64M"}},
            "machine": {"type": ""},
            "devices": {"disks": [
                {"name": "mydisk", "volumeName": "myvolume", "disk": {"bus": "virtio"}, "bootOrder": 1},
                {"volumeName": "other", "cdrom": null}
            ]}
        },
        "volumes": [
            {"name": "myvolume", "registryDisk": {"image": "windows2012dc:latest", "imagePullSecret": "s"}},
            {"name": "other", "registryDisk": {"image": "a"}}
        ]
    });
    let admitted = create(old).unwrap();
    let spec = &admitted.object.unwrap()["spec"];
    assert_eq!(
        spec["domain"]["devices"]["disks"],
        json!([
            {"name": "myvolume", "disk": {"bus": "virtio"}, "bootOrder": 1},
            {"name": "other", "disk": {"bus": "virtio"}}
        ])
    );
    assert_eq!(
        spec["volumes"][0],
        json!({"name": "myvolume", "containerDisk": {"image": "windows2012dc:latest", "imagePullSecret": "s"}})
    );
    assert_eq!(spec["domain"]["machine"]["type"], "q35");
    assert_eq!(
        admitted.warnings,
        [
            "spec.domain.devices.disks[0].volumeName is deprecated: use spec.domain.devices.disks[0].name with the name of the volume",
            "spec.domain.devices.disks[1].volumeName is deprecated: use spec.domain.devices.disks[1].name with the name of the volume",
            "spec.volumes[0].registryDisk is deprecated: use spec.volumes[0].containerDisk",
            "spec.volumes[1].registryDisk is deprecated: use spec.volumes[1].containerDisk",
        ]
    );
}

/// (what is set, to what, the whole refusal)
fn refused() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        // Fields and types.
        (
            "/domain/devices/gpus",
            json!([{"name": "a"}]),
            "spec.domain.devices.gpus: Unsupported value: this field is not supported by berth",
        ),
        (
            "/domain/memmory",
            json!({}),
            "spec.domain.memmory: Unsupported value: this field is not supported by berth: did you mean \"memory\"?",
        ),
        (
            "/domain/devices/interfaces/0/sriov",
            json!({}),
            "spec.domain.devices.interfaces[0].sriov: Unsupported value: this field is not supported by berth: the bindings that berth has are bridge and masquerade",
        ),
        (
            "/domain/devices/interfaces/0/slirp",
            json!({}),
            "spec.domain.devices.interfaces[0].slirp: Unsupported value: this field is not supported by berth: this binding was removed from KubeVirt in version 1.3; use bridge",
        ),
        (
            "/domain/devices/interfaces/0/bridge",
            json!({"x": 1}),
            "spec.domain.devices.interfaces[0].bridge.x: Unsupported value: this field is not supported by berth",
        ),
        (
            "/domain/devices/disks/0/disk/dev",
            json!("vda"),
            "spec.domain.devices.disks[0].disk.dev: Unsupported value: this field is not supported by berth: the device name is chosen by berth, in the order of the disks; use bus",
        ),
        (
            "/volumes/0/hostDisk",
            json!({"path": "/etc/shadow", "type": "Disk"}),
            "spec.volumes[0].hostDisk: Unsupported value: this field is not supported by berth: the volume sources that berth has are containerDisk, persistentVolumeClaim, dataVolume, ephemeral, cloudInitNoCloud, cloudInitConfigDrive, emptyDisk, secret, configMap and downwardAPI",
        ),
        (
            "/domain/cpu",
            json!({"cores": "two"}),
            "spec.domain.cpu.cores: Invalid value: \"two\": must be of type integer, not string",
        ),
        (
            "/domain/cpu",
            json!({"cores": -1}),
            "spec.domain.cpu.cores: Invalid value: -1: must be no less than 0",
        ),
        (
            "/domain/devices",
            Value::Null,
            "spec.domain.devices: Required value: must be given",
        ),
        (
            "/volumes/0/containerDisk",
            json!({}),
            "spec.volumes[0].containerDisk.image: Required value: must be given",
        ),
        (
            "/volumes/0/registryDisk",
            json!({"image": "a"}),
            "spec.volumes[0].registryDisk: Forbidden: is the old name of spec.volumes[0].containerDisk, which is given too",
        ),
        // Hardware.
        (
            "/architecture",
            json!("arm64"),
            "spec.architecture: Unsupported value: \"arm64\": supported values: \"amd64\"",
        ),
        (
            "/hostname",
            json!("a.b"),
            "spec.hostname: Invalid value: \"a.b\": must be a DNS label: at most 63 lower case letters, digits and inner dashes",
        ),
        (
            "/domain/memory",
            Value::Null,
            "spec.domain.memory.guest: Required value: this or spec.domain.resources.requests.memory must be given",
        ),
        (
            "/domain/memory",
            json!({"guest": "1K"}),
            "spec.domain.memory.guest: Invalid value: \"1K\": quantity \"1K\" must be a number with an optional suffix such as m, k, M, G, Ki, Mi or Gi",
        ),
        (
            "/domain/memory",
            json!({"guest": "1k"}),
            "spec.domain.memory.guest: Invalid value: \"1k\": must be at least 1Mi",
        ),
        (
            "/domain/resources",
            json!({"limits": {"memory": "64Mi"}}),
            "spec.domain.resources.limits.memory: Invalid value: \"64Mi\": must be no less than the memory of the guest",
        ),
        (
            "/domain/resources",
            json!({"limits": {"cpu": 1}, "requests": {"cpu": "1001m"}}),
            "spec.domain.resources.requests.cpu: Invalid value: \"1001m\": must be no more than the limit 1",
        ),
        (
            "/domain/resources",
            json!({"requests": {"nvidia.com/gpu": 1}}),
            "spec.domain.resources.requests.nvidia.com/gpu: Unsupported value: this field is not supported by berth: the resources that berth has are cpu and memory",
        ),
        (
            "/domain/cpu",
            json!({"cores": 0}),
            "spec.domain.cpu.cores: Invalid value: 0: must be at least 1",
        ),
        (
            "/domain/cpu",
            json!({"cores": 16, "sockets": 16}),
            "spec.domain.cpu: Invalid value: 256: sockets × cores × threads must be no more than 255",
        ),
        (
            "/domain",
            json!({
                "cpu": {"cores": 2, "dedicatedCpuPlacement": true}, "memory": {"guest": "64Mi"}, "devices": {"interfaces": [{"name": "default", "bridge": {}}]},
                "resources": {"requests": {"cpu": "1500m"}},
            }),
            "spec.domain.resources.requests.cpu: Invalid value: \"1500m\": must be the number of virtual processors, 2, with spec.domain.cpu.dedicatedCpuPlacement",
        ),
        (
            "/domain/features",
            json!({"hyperv": {"synic": {}, "spinlocks": {"spinlocks": 1}, "vendorid": {"vendorid": "far too long a name"}}}),
            "spec.domain.features.hyperv.vpindex: Required value: spec.domain.features.hyperv.synic needs it; spec.domain.features.hyperv.spinlocks.spinlocks: Invalid value: 1: must be at least 4096; spec.domain.features.hyperv.vendorid.vendorid: Invalid value: \"far too long a name\": must be 1 to 12 letters, digits and spaces",
        ),
        (
            "/domain/features",
            json!({"hyperv": {"tlbflush": {"direct": {}}}}),
            "spec.domain.features.hyperv.tlbflush.direct: Unsupported value: this field is not supported by berth",
        ),
        (
            "/domain/chassis",
            json!({"sku": "<x>"}),
            "spec.domain.chassis.sku: Invalid value: \"<x>\": must be 1 to 256 letters, digits, spaces and ._-+",
        ),
        (
            "/domain/cpu",
            json!({"features": [{"name": "aes"}, {"name": "aes", "policy": "maybe"}]}),
            "spec.domain.cpu.features[1].policy: Unsupported value: \"maybe\": supported values: \"force\", \"require\", \"optional\", \"disable\", \"forbid\"; spec.domain.cpu.features[1].name: Duplicate value: \"aes\"",
        ),
        (
            "/domain/devices/watchdog",
            json!({"name": "dog", "diag288": {}}),
            "spec.domain.devices.watchdog.diag288: Unsupported value: this field is not supported by berth",
        ),
        (
            "/domain/devices/watchdog",
            json!({"name": "dog", "i6300esb": {"action": "bark"}}),
            "spec.domain.devices.watchdog.i6300esb.action: Unsupported value: \"bark\": supported values: \"poweroff\", \"reset\", \"shutdown\"",
        ),
        (
            "/domain/devices/disks/0/shareable",
            json!(true),
            "spec.domain.devices.disks[0].shareable: Invalid value: true: needs a volume on a persistentVolumeClaim that is not read-only",
        ),
        (
            "/domain/devices/disks/0/blockSize",
            json!({"custom": {"logical": 4096, "physical": 1000}}),
            "spec.domain.devices.disks[0].blockSize.custom.physical: Invalid value: 1000: must be a power of two from 512 to 2097152; spec.domain.devices.disks[0].blockSize.custom.logical: Invalid value: 4096: must be no more than spec.domain.devices.disks[0].blockSize.custom.physical, 1000",
        ),
        (
            "/domain/devices/interfaces/0/pciAddress",
            json!("0000:81:20.0"),
            "spec.domain.devices.interfaces[0].pciAddress: Invalid value: \"0000:81:20.0\": must be a place on the PCI bus, for example 0000:81:01.0",
        ),
        (
            "/domain/devices/interfaces/0/acpiIndex",
            json!(16384),
            "spec.domain.devices.interfaces[0].acpiIndex: Invalid value: 16384: must be from 1 to 16383",
        ),
        (
            "/volumes",
            json!([{"name": "root", "cloudInitNoCloud": {"userData": "a", "userDataBase64": "YQ=="}}]),
            "spec.volumes[0].cloudInitNoCloud.userDataBase64: Forbidden: cannot be given together with spec.volumes[0].cloudInitNoCloud.userData",
        ),
        (
            "/volumes",
            json!([{"name": "root", "cloudInitConfigDrive": {"userDataBase64": "s3cret!"}}]),
            "spec.volumes[0].cloudInitConfigDrive.userDataBase64: Invalid value: \"…\": must be base64",
        ),
        (
            "/volumes",
            json!([{"name": "root", "emptyDisk": {"capacity": "1k"}}]),
            "spec.volumes[0].emptyDisk.capacity: Invalid value: \"1k\": must be at least 1Mi",
        ),
        (
            "/volumes",
            json!([{"name": "root", "emptyDisk": {"capacity": "1Gi"}, "containerDisk": {"image": "a"}}]),
            "spec.volumes[0].emptyDisk: Forbidden: must not be set beside containerDisk: a volume has one source",
        ),
        (
            "/domain/machine",
            json!({"type": "virt"}),
            "spec.domain.machine.type: Unsupported value: \"virt\": supported values: \"q35\", \"pc\", \"pc-q35-<version>\", \"pc-i440fx-<version>\"",
        ),
        (
            "/domain/firmware",
            json!({"uuid": "x"}),
            "spec.domain.firmware.uuid: Invalid value: \"x\": must be a UUID that is not nil: hex digits in groups of 8, 4, 4, 4 and 12, joined by dashes",
        ),
        (
            "/domain/firmware",
            json!({"serial": "a'b"}),
            "spec.domain.firmware.serial: Invalid value: \"a'b\": must be 1 to 256 letters, digits, spaces and ._-+",
        ),
        (
            "/domain/clock",
            json!({"utc": {}, "timezone": "UTC"}),
            "spec.domain.clock.timezone: Forbidden: cannot be given together with spec.domain.clock.utc",
        ),
        // Disks and volumes.
        (
            "/domain/devices/disks/-",
            json!({"name": "root"}),
            "spec.domain.devices.disks[1].name: Duplicate value: \"root\"",
        ),
        (
            "/domain/devices/disks/-",
            json!({"name": "ghost"}),
            "spec.domain.devices.disks[1].name: Invalid value: \"ghost\": there is no volume of this name in spec.volumes",
        ),
        (
            "/domain/devices/disks/0/cdrom",
            json!({}),
            "spec.domain.devices.disks[0].cdrom: Forbidden: cannot be given together with spec.domain.devices.disks[0].disk",
        ),
        (
            "/domain/devices/disks/0/disk",
            json!({"bus": "ide"}),
            "spec.domain.devices.disks[0].disk.bus: Unsupported value: \"ide\": supported values: \"virtio\", \"sata\", \"scsi\", \"usb\"",
        ),
        (
            "/domain/devices/disks/0/disk",
            json!({"bus": "sata", "readonly": true}),
            "spec.domain.devices.disks[0].disk.readonly: Invalid value: true: a disk on the sata bus cannot be read-only; use another bus or a cdrom",
        ),
        (
            "/domain/devices/disks/0/serial",
            json!("<x>"),
            "spec.domain.devices.disks[0].serial: Invalid value: \"<x>\": must be 1 to 20 letters, digits and ._-+ on this bus",
        ),
        (
            "/domain/devices/disks/0/io",
            json!("native"),
            "spec.domain.devices.disks[0].io: Invalid value: \"native\": needs spec.domain.devices.disks[0].cache to be none",
        ),
        (
            "/domain/devices/disks/0/bootOrder",
            json!(0),
            "spec.domain.devices.disks[0].bootOrder: Invalid value: 0: must be at least 1",
        ),
        (
            "/volumes/0/containerDisk",
            Value::Null,
            "spec.volumes[0]: Required value: must have a source: containerDisk, persistentVolumeClaim, dataVolume, ephemeral, cloudInitNoCloud, cloudInitConfigDrive, emptyDisk, secret, configMap or downwardAPI",
        ),
        (
            "/volumes/0/containerDisk",
            json!({"image": ""}),
            "spec.volumes[0].containerDisk.image: Required value: must be the reference of an image",
        ),
        (
            "/volumes/0/containerDisk",
            json!({"image": "a'/><evil>"}),
            "spec.volumes[0].containerDisk.image: Invalid value: \"a'/><evil>\": must have a name of lower case letters, digits and inner . _ - in parts joined by /",
        ),
        (
            "/volumes/0/containerDisk/path",
            json!("/disk/../etc"),
            "spec.volumes[0].containerDisk.path: Invalid value: \"/disk/../etc\": must be an absolute path below /disk/ without empty, . or .. parts",
        ),
        (
            "/volumes/-",
            json!({"name": "texts", "secret": {"volumeLabel": "much too long"}}),
            "spec.volumes[1].secret.secretName: Required value: must be given; spec.volumes[1].secret.volumeLabel: Invalid value: \"much too long\": must be 1 to 11 letters, digits and -_",
        ),
        (
            "/volumes/-",
            json!({"name": "texts", "downwardAPI": {"fields": [{"path": "../up", "fieldRef": {"fieldPath": "status.podIP"}}]}}),
            "spec.volumes[1].downwardAPI.fields[0].path: Invalid value: \"../up\": must be the name of a file: letters, digits and -_.; spec.volumes[1].downwardAPI.fields[0].fieldRef.fieldPath: Invalid value: \"status.podIP\": must be metadata.labels, metadata.annotations, one of them as metadata.labels['<key>'], or one of: metadata.name, metadata.namespace, metadata.uid, spec.nodeName",
        ),
        (
            "/volumes/-",
            json!({"name": "told", "cloudInitNoCloud": {"userData": "a", "secretRef": {"name": "s"}}}),
            "spec.volumes[1].cloudInitNoCloud.secretRef: Forbidden: cannot be given together with spec.volumes[1].cloudInitNoCloud.userData",
        ),
        (
            "/domain/firmware",
            json!({"kernelBoot": {"kernelArgs": "a\nb"}}),
            "spec.domain.firmware.kernelBoot.kernelArgs: Invalid value: \"a\\nb\": must be one line of no more than 2048 bytes; spec.domain.firmware.kernelBoot.container: Required value: the image that the kernel is in",
        ),
        (
            "/domain/firmware",
            json!({"kernelBoot": {"container": {"image": "k", "initrdPath": "boot/../x"}}}),
            "spec.domain.firmware.kernelBoot.container.initrdPath: Invalid value: \"boot/../x\": must be an absolute path without empty, . or .. parts; spec.domain.firmware.kernelBoot.container.kernelPath: Required value: where the kernel is in the image",
        ),
        // Probes, credentials and name servers.
        (
            "/readinessProbe",
            json!({"periodSeconds": -1}),
            "spec.readinessProbe: Required value: must have a question: exec, guestAgentPing, httpGet or tcpSocket; spec.readinessProbe.periodSeconds: Invalid value: -1: must be at least 1",
        ),
        (
            "/livenessProbe",
            json!({"tcpSocket": {"port": 0, "host": "10.0.0.1"}, "successThreshold": 2}),
            "spec.livenessProbe.tcpSocket.port: Invalid value: 0: must be from 1 to 65535; spec.livenessProbe.tcpSocket.host: Forbidden: the guest itself is asked; spec.livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            "/livenessProbe",
            json!({"guestAgentPing": {}, "httpGet": {"port": "http"}}),
            "spec.livenessProbe.httpGet: Forbidden: must not be set beside guestAgentPing: a probe has one question; spec.livenessProbe.httpGet.port: Invalid value: \"http\": must be a number: a guest's ports have no names",
        ),
        (
            "/accessCredentials",
            json!([{"sshPublicKey": {"source": {"secret": {"secretName": "keys"}}, "propagationMethod": {"noCloud": {}}}}]),
            "spec.accessCredentials[0].sshPublicKey.propagationMethod.noCloud: Invalid value: \"{}\": needs a volume cloudInitNoCloud in spec.volumes",
        ),
        (
            "/accessCredentials",
            json!([{"userPassword": {}}, {}]),
            "spec.accessCredentials[0].userPassword.source.secret.secretName: Required value: must be the name of a secret; spec.accessCredentials[0].userPassword.propagationMethod.qemuGuestAgent: Required value: the one way that passwords go; spec.accessCredentials[1]: Required value: must have a kind: sshPublicKey or userPassword",
        ),
        (
            "/dnsPolicy",
            json!("None"),
            "spec.dnsConfig.nameservers: Required value: at least one, when spec.dnsPolicy is None",
        ),
        (
            "/dnsConfig",
            json!({"nameservers": ["dns.example"], "searches": ["_"]}),
            "spec.dnsConfig.nameservers[0]: Invalid value: \"dns.example\": must be an IP address; spec.dnsConfig.searches[0]: Invalid value: \"_\": must be a domain of the DNS",
        ),
        // Interfaces and networks.
        (
            "/domain/devices/interfaces/0/bridge",
            Value::Null,
            "spec.domain.devices.interfaces[0]: Required value: must have a way to connect: bridge or masquerade",
        ),
        (
            "/domain/devices/interfaces/0/masquerade",
            json!({}),
            "spec.domain.devices.interfaces[0].masquerade: Forbidden: must not be set beside bridge: an interface has one way to connect",
        ),
        (
            "/domain/devices/interfaces/0/ports",
            json!([{"port": 0, "protocol": "SCTP"}]),
            "spec.domain.devices.interfaces[0].ports: Invalid value: 1: needs spec.domain.devices.interfaces[0].masquerade: a bridge passes everything on; spec.domain.devices.interfaces[0].ports[0].protocol: Unsupported value: \"SCTP\": supported values: \"TCP\", \"UDP\"; spec.domain.devices.interfaces[0].ports[0].port: Invalid value: 0: must be from 1 to 65535",
        ),
        (
            "/networks/0/pod/vmNetworkCIDR",
            json!("10.0.2.0/31"),
            "spec.networks[0].pod.vmNetworkCIDR: Invalid value: \"10.0.2.0/31\": must be a network of IPv4 with at least four addresses, for example 10.0.2.0/24",
        ),
        (
            "/domain/devices/interfaces/0/macAddress",
            json!("zz"),
            "spec.domain.devices.interfaces[0].macAddress: Invalid value: \"zz\": must be six bytes in hex, for example 02:00:00:00:00:01",
        ),
        (
            "/domain/devices/interfaces/0/macAddress",
            json!("01:00:5e:00:00:01"),
            "spec.domain.devices.interfaces[0].macAddress: Invalid value: \"01:00:5e:00:00:01\": must be a unicast address: the lowest bit of its first byte is a multicast mark",
        ),
        (
            "/domain/devices/interfaces/0/model",
            json!("ne2k"),
            "spec.domain.devices.interfaces[0].model: Unsupported value: \"ne2k\": supported values: \"virtio\", \"e1000\", \"e1000e\", \"rtl8139\"",
        ),
        (
            "/networks/-",
            json!({"name": "lonely", "pod": {}}),
            "spec.networks[1].name: Invalid value: \"lonely\": there is no interface of this name in spec.domain.devices.interfaces; spec.networks[1].pod: Forbidden: a machine joins the pod network once, and spec.networks[0] does already",
        ),
    ]
}

#[test]
fn each_refusal_names_field_and_value() {
    for (pointer, value, expected) in refused() {
        match create(with(pointer, value.clone())) {
            Ok(_) => panic!("{pointer} = {value} is admitted"),
            Err(refusal) => assert_eq!(refusal.to_string(), expected, "{pointer} = {value}"),
        }
    }
}

#[test]
fn every_cause_is_told_at_once() {
    let mut spec = good();
    spec["utilityVolumes"] = json!([]);
    spec["domain"]["devices"]["tpm"] = json!({});
    spec["volumes"][0]["sysprep"] = json!({"secret": {"name": "not-to-be-told"}});
    let refusal = create(spec).unwrap_err();
    let fields: Vec<_> = refusal.causes.iter().map(|c| c.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "spec.domain.devices.tpm",
            "spec.utilityVolumes",
            "spec.volumes[0].sysprep"
        ]
    );
    assert!(
        refusal
            .causes
            .iter()
            .all(|c| c.reason == CauseReason::FieldValueNotSupported)
    );
    assert!(!refusal.to_string().contains("not-to-be-told"));
}

#[test]
fn what_is_on_the_edge_is_admitted() {
    for (pointer, value) in [
        ("/domain/memory", json!({"guest": 1_048_576})),
        ("/domain/cpu", json!({"cores": 255, "model": "host-model"})),
        ("/domain/machine", json!({"type": "pc-q35-7.2"})),
        ("/domain/devices/rng", json!({})),
        (
            "/domain/devices/disks/0/serial",
            json!("12345678901234567890"),
        ),
        (
            "/domain/devices/interfaces/0/macAddress",
            json!("02-00-00-00-00-0A"),
        ),
        ("/volumes/0/containerDisk/path", json!("/disk/a b.img")),
        ("/hostname", Value::Null),
        ("/terminationGracePeriodSeconds", json!(0)),
    ] {
        if let Err(refusal) = create(with(pointer, value)) {
            panic!("{pointer}: {refusal}");
        }
    }
}

#[test]
fn names_and_the_finalizer() {
    let mut long = object(good());
    long["metadata"]["name"] = json!("a".repeat(64));
    let refusal = write(Operation::Create, &long, None).unwrap_err();
    assert_eq!(refusal.causes[0].field, "metadata.name");

    let mut own = object(good());
    own["metadata"]["finalizers"] = json!(["x/y"]);
    let admitted = write(Operation::Create, &own, None)
        .unwrap()
        .object
        .unwrap();
    let expected = json!(["x/y", "kubevirt.io/foregroundDeleteVirtualMachine"]);
    assert_eq!(admitted["metadata"]["finalizers"], expected);
}

#[test]
fn without_a_spec() {
    let refusal = write(Operation::Create, &json!({"metadata": {"name": "a"}}), None).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "spec: Required value: a VirtualMachineInstance needs a spec"
    );
    let refusal = create(json!("x")).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "spec: Invalid value: \"x\": must be of type object, not string"
    );
}

#[test]
fn an_update_may_not_change_the_spec() {
    let stored = create(good()).unwrap().object.unwrap();

    // The same manifest again.
    let mut again = stored.clone();
    again["spec"] = good();
    let admitted = write(Operation::Update, &again, Some(&stored))
        .unwrap()
        .object
        .unwrap();
    assert_eq!(admitted["spec"], stored["spec"]);

    // Metadata, also on a spec that would not be admitted today.
    let mut odd = stored.clone();
    odd["spec"]["domain"]["fromTheFuture"] = json!(1);
    let mut labelled = odd.clone();
    labelled["metadata"]["labels"] = json!({"a": "b"});
    labelled["metadata"]["finalizers"] = json!([]);
    let admitted = write(Operation::Update, &labelled, Some(&odd)).unwrap();
    assert_eq!(admitted.object, Some(labelled));

    let mut changed = stored.clone();
    changed["spec"]["domain"]["cpu"]["cores"] = json!(2);
    changed["spec"]["hostname"] = json!("other");
    let refusal = write(Operation::Update, &changed, Some(&stored)).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "spec: Forbidden: update of VMI object is restricted: a VirtualMachineInstance cannot change once it exists \
         (changed: spec.domain.cpu.cores, spec.hostname)"
    );
}

#[test]
fn admission_is_idempotent() {
    let once = create(good()).unwrap();
    let twice = write(Operation::Create, once.object.as_ref().unwrap(), None).unwrap();
    assert_eq!(once, twice);
}

#[test]
fn what_is_not_ours_passes() {
    let pod = json!({"spec": {"anything": 1}});
    for (kind, subresource, operation) in [
        ("Pod", None, Operation::Create),
        ("VirtualMachineInstance", Some("status"), Operation::Update),
    ] {
        let request = Request {
            operation,
            kind,
            subresource,
            namespace: "default",
            name: "a",
            object: Some(&pod),
            old_object: None,
        };
        assert_eq!(admit(&request).unwrap().object.as_ref(), Some(&pod));
    }
    let deletion = Request {
        operation: Operation::Delete,
        kind: "VirtualMachineInstance",
        subresource: None,
        namespace: "default",
        name: "a",
        object: None,
        old_object: Some(&pod),
    };
    assert_eq!(admit(&deletion).unwrap(), Admitted::default());
}

#[test]
fn fields_outside_the_spec_are_refused_by_name() {
    let mut vmi = object(good());
    vmi["foo"] = json!(1);
    vmi["stauts"] = json!({});
    let refusal = write(Operation::Create, &vmi, None).unwrap_err();
    let told: Vec<_> = refusal
        .causes
        .iter()
        .map(|c| (c.reason, c.to_string()))
        .collect();
    let unsupported = CauseReason::FieldValueNotSupported;
    let words = "Unsupported value: this field is not supported by berth";
    assert_eq!(
        told,
        [
            (unsupported, format!("foo: {words}")),
            (
                unsupported,
                format!("stauts: {words}: did you mean \"status\"?")
            ),
        ]
    );
    // Neither later, but what is stored already is nobody's hindrance.
    let plain = object(good());
    assert!(write(Operation::Update, &vmi, Some(&plain)).is_err());
    assert!(write(Operation::Update, &vmi, Some(&vmi)).is_ok());
}
