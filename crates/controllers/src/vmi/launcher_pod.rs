//! VirtualMachineInstance → launcher pod. Pure; the golden file under `snapshots/` shows the result.
//!
//! Standalone the pod has exactly one container. Container disks come in as image volumes, so there is no helper
//! container a disk and nothing to copy: the node agent pulls the images.
//!
//! A kubelet that knows no image volumes pulls an image only for a container. So on a cluster each container disk has one
//! that does nothing but hold its image; the node agent mounts the disk file from there into the launcher's container.
//!
//! Requests: the guest's memory plus what runs beside it ([`overhead`]), and a tenth of a CPU for each vCPU.
//! Limits are set only where the user gave them; a guessed memory limit kills guests.

use std::collections::BTreeMap;

use berth_api::kubevirt::v1::{
    CPU, ContainerDiskSource, ResourceRequirements, VirtualMachineInstance,
    VirtualMachineInstanceSpec, Volume, hostname,
};
use berth_api::launcher::{
    BOOT_INITRD, BOOT_KERNEL, CLAIM_PREFIX, CLAIM_SIZES, CLAIMS_DIR, ClaimSizes, DEVICES_DIR,
    DISK_PATHS, DISKS_DIR, DiskPaths, RUN_DIR, TEXTS_DIR, credential_volume, holder_name,
    network_data_volume, texts_volume,
};
use berth_api::settings::v1::{Configuration, Gate, LogVerbosity};
use berth_api::{labels, quantity};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use crate::{Runner, Settings};

/// Grace when the VirtualMachineInstance says none, in seconds.
pub const DEFAULT_GRACE: i64 = 30;
/// What the pod gets on top of the guest's grace, so that the launcher can end the guest and say so.
const GRACE_MARGIN: i64 = 30;
/// The user of everything in a launcher pod on a cluster: `qemu`, as it is called everywhere.
pub const QEMU_USER: i64 = 107;
/// Where the program that holds an image is, in the containers of container disks: those images have no programs.
const HOLD_DIR: &str = "/berth-hold";

const MI: u64 = 1 << 20;
/// What software emulation keeps of translated code, where the pod's memory is limited: the limit must not end the guest.
const TRANSLATED: u64 = 1 << 30;

/// What is known of a claim when the pod is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whether it is a block device.
    pub block: bool,
    /// How large it is, or is to be, in bytes.
    pub size: u64,
}

/// Claims by name.
pub type Claims = BTreeMap<String, Claim>;

/// The launcher pod of `vmi`, to be named `virt-launcher-<name>-<suffix>`. `claims` are those that its volumes name.
#[must_use]
pub fn launcher_pod(
    vmi: &VirtualMachineInstance,
    claims: &Claims,
    settings: &Settings,
    configuration: &Configuration,
    suffix: &str,
) -> core::Pod {
    let name = vmi.name_any();
    let namespace = vmi.namespace().unwrap_or_else(|| "default".to_owned());
    let uid = vmi.uid().unwrap_or_default();
    let disks = container_disks(&vmi.spec);

    let mut mounts = vec![mount("run", RUN_DIR)];
    let mut volumes = vec![empty("run")];
    let on_cluster = settings.runner == Runner::Cluster;
    let image_volumes = !on_cluster || configuration.is_open(Gate::ImageVolume);
    for (volume, disk) in disks.iter().filter(|_| image_volumes) {
        mounts.push(core::VolumeMount {
            name: holder_name(volume),
            mount_path: format!("{DISKS_DIR}/{volume}"),
            // One file of an image that holds several. Kubelets know the way to a directory only, so the node agent looks
            // there.
            sub_path: disk.path.clone().filter(|_| !on_cluster),
            read_only: Some(true),
            ..core::VolumeMount::default()
        });
        volumes.push(core::Volume {
            name: holder_name(volume),
            image: Some(core::ImageVolumeSource {
                reference: Some(disk.image.clone()),
                pull_policy: disk.image_pull_policy.clone(),
            }),
            ..core::Volume::default()
        });
    }

    let (mut devices, mut sizes) = (Vec::new(), ClaimSizes::default());
    for (volume, claim) in claimed(&vmi.spec) {
        let known = claims.get(claim).copied();
        let name = format!("{CLAIM_PREFIX}{}", volume.name);
        if known.is_some_and(|claim| claim.block) {
            devices.push(core::VolumeDevice {
                name: name.clone(),
                device_path: format!("{DEVICES_DIR}/{}", volume.name),
            });
        } else {
            // What is not to be written is not writable.
            mounts.push(core::VolumeMount {
                read_only: volume.ephemeral.is_some().then_some(true),
                ..mount(&name, &format!("{CLAIMS_DIR}/{}", volume.name))
            });
            if let Some(claim) = known {
                sizes.0.insert(volume.name.clone(), claim.size);
            }
        }
        volumes.push(core::Volume {
            name,
            persistent_volume_claim: Some(core::PersistentVolumeClaimVolumeSource {
                claim_name: claim.to_owned(),
                read_only: None,
            }),
            ..core::Volume::default()
        });
    }

    for (name, source) in texts(&vmi.spec) {
        mounts.push(core::VolumeMount {
            read_only: Some(true),
            ..mount(&name, &format!("{TEXTS_DIR}/{name}"))
        });
        volumes.push(core::Volume { name, ..source });
    }

    let command = [
        "/usr/bin/berth",
        "launcher",
        "--name",
        &name,
        "--namespace",
        &namespace,
        "--uid",
        &uid,
    ];
    let mut command: Vec<String> = command
        .iter()
        .chain(&["--run-dir", RUN_DIR])
        .map(ToString::to_string)
        .collect();
    let developer = &configuration.developer_configuration;
    if let Some(verbosity) = developer.log_verbosity.virt_launcher {
        command.extend(["--log", LogVerbosity::filter(verbosity)].map(str::to_owned));
    }
    if configuration.is_open(Gate::FakeHypervisor) {
        command.push("--fake-hypervisor".to_owned());
    }
    let compute = core::Container {
        name: labels::COMPUTE_CONTAINER.to_owned(),
        image: Some(settings.launcher_image.clone()),
        image_pull_policy: Some(pull_policy(configuration)),
        command: Some(command),
        resources: Some(resources(&vmi.spec, configuration)),
        volume_mounts: Some(mounts),
        volume_devices: (!devices.is_empty()).then_some(devices),
        ..core::Container::default()
    };
    let mut annotations = pod_annotations(vmi);
    if !sizes.0.is_empty() {
        annotations.insert(CLAIM_SIZES.to_owned(), sizes.write());
    }
    if on_cluster && image_volumes {
        let named = disks
            .iter()
            .filter_map(|(volume, disk)| Some(((*volume).to_owned(), disk.path.clone()?)));
        let named = DiskPaths(named.collect());
        if !named.0.is_empty() {
            annotations.insert(DISK_PATHS.to_owned(), named.write());
        }
    }
    let mut pod = core::Pod {
        metadata: kube::core::ObjectMeta {
            name: Some(pod_name(&name, suffix)),
            namespace: Some(namespace),
            labels: Some(pod_labels(vmi)),
            annotations: Some(annotations),
            owner_references: owner(vmi).map(|o| vec![o]),
            ..Default::default()
        },
        spec: Some(core::PodSpec {
            restart_policy: Some("Never".to_owned()),
            termination_grace_period_seconds: Some(
                grace_seconds(&vmi.spec).saturating_add(GRACE_MARGIN),
            ),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            hostname: Some(hostname(&name, &vmi.spec)),
            node_selector: (!vmi.spec.node_selector.is_empty())
                .then(|| vmi.spec.node_selector.clone()),
            subdomain: vmi.spec.subdomain.clone(),
            dns_policy: vmi.spec.dns_policy.clone(),
            dns_config: vmi.spec.dns_config.clone(),
            affinity: vmi.spec.affinity.clone(),
            tolerations: some(&vmi.spec.tolerations),
            topology_spread_constraints: some(&vmi.spec.topology_spread_constraints),
            priority_class_name: vmi.spec.priority_class_name.clone(),
            scheduler_name: vmi.spec.scheduler_name.clone(),
            image_pull_secrets: pull_secrets(&vmi.spec),
            containers: vec![compute],
            volumes: Some(volumes),
            ..core::PodSpec::default()
        }),
        status: None,
    };
    if on_cluster && let Some(spec) = &mut pod.spec {
        let held = if image_volumes { &[] } else { &*disks };
        for_kubelet(spec, vmi, held, settings, configuration);
    }
    pod
}

/// A list, if it has anything in it.
fn some<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}

fn pull_policy(configuration: &Configuration) -> String {
    let policy = configuration.image_pull_policy.clone();
    policy.unwrap_or_else(|| "IfNotPresent".to_owned())
}

fn mount(volume: &str, path: &str) -> core::VolumeMount {
    core::VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        ..core::VolumeMount::default()
    }
}

fn empty(volume: &str) -> core::Volume {
    core::Volume {
        name: volume.to_owned(),
        empty_dir: Some(core::EmptyDirVolumeSource::default()),
        ..core::Volume::default()
    }
}

/// What a kubelet has to be told that the node agent's runtime does anyway: an unprivileged user without capabilities, a
/// root that is read-only, where the disks are; and the containers that hold the images.
fn for_kubelet(
    spec: &mut core::PodSpec,
    vmi: &VirtualMachineInstance,
    disks: &[(&str, ContainerDiskSource)],
    settings: &Settings,
    configuration: &Configuration,
) {
    let confined = || {
        Some(core::SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(core::Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..core::Capabilities::default()
            }),
            ..core::SecurityContext::default()
        })
    };
    spec.security_context = Some(core::PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(QEMU_USER),
        run_as_group: Some(QEMU_USER),
        fs_group: Some(QEMU_USER),
        seccomp_profile: Some(core::SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        }),
        ..core::PodSecurityContext::default()
    });
    spec.readiness_gates = Some(vec![core::PodReadinessGate {
        condition_type: labels::UNPAUSED.to_owned(),
    }]);
    let selector = spec.node_selector.get_or_insert_default();
    selector.extend(node_labels(&vmi.spec, configuration));
    let devices = devices(&vmi.spec, configuration);
    let volumes = spec.volumes.get_or_insert_default();
    volumes.push(empty("tmp"));
    if !disks.is_empty() {
        volumes.push(empty("disks"));
    }
    for container in &mut spec.containers {
        container.security_context = confined();
        let mounts = container.volume_mounts.get_or_insert_default();
        if !disks.is_empty() {
            mounts.push(core::VolumeMount {
                read_only: Some(true),
                ..mount("disks", DISKS_DIR)
            });
        }
        mounts.push(mount("tmp", "/tmp"));
        // Of such a resource the request is the limit.
        let resources = container.resources.get_or_insert_default();
        for list in [&mut resources.requests, &mut resources.limits] {
            let one = |name: &str| (name.to_owned(), Quantity("1".to_owned()));
            list.get_or_insert_default()
                .extend(devices.iter().copied().map(one));
        }
    }
    if disks.is_empty() {
        return;
    }
    volumes.push(empty("hold"));
    let dedicated = is_dedicated(&vmi.spec);
    let small = |cpu: &str, memory: &str| {
        let of = |cpu: &str, memory: &str| {
            BTreeMap::from([
                ("cpu".to_owned(), Quantity(cpu.to_owned())),
                ("memory".to_owned(), Quantity(memory.to_owned())),
            ])
        };
        Some(core::ResourceRequirements {
            // A pod has CPUs for itself only if all its containers ask for what they may use.
            requests: Some(if dedicated {
                of(cpu, memory)
            } else {
                of("1m", "1Mi")
            }),
            limits: Some(of(cpu, memory)),
            claims: None,
        })
    };
    spec.init_containers = Some(vec![core::Container {
        name: "hold".to_owned(),
        image: Some(settings.launcher_image.clone()),
        image_pull_policy: Some(pull_policy(configuration)),
        command: Some(
            ["/usr/bin/berth", "install-hold", HOLD_DIR]
                .map(str::to_owned)
                .to_vec(),
        ),
        resources: small("100m", "64Mi"),
        volume_mounts: Some(vec![mount("hold", HOLD_DIR)]),
        security_context: confined(),
        ..core::Container::default()
    }]);
    let holders = disks.iter().map(|(volume, disk)| core::Container {
        name: holder_name(volume),
        image: Some(disk.image.clone()),
        image_pull_policy: disk.image_pull_policy.clone(),
        // The program ignores what the node agent reads: which file is meant, where an image holds several.
        command: Some(
            [Some(format!("{HOLD_DIR}/berth-hold")), disk.path.clone()]
                .into_iter()
                .flatten()
                .collect(),
        ),
        resources: small("10m", "16Mi"),
        volume_mounts: Some(vec![core::VolumeMount {
            read_only: Some(true),
            ..mount("hold", HOLD_DIR)
        }]),
        security_context: confined(),
        ..core::Container::default()
    });
    spec.containers.extend(holders);
}

fn is_dedicated(spec: &VirtualMachineInstanceSpec) -> bool {
    spec.domain.cpu.as_ref().is_some_and(CPU::is_dedicated)
}

/// What a node must say of itself to run this machine.
fn node_labels(
    spec: &VirtualMachineInstanceSpec,
    configuration: &Configuration,
) -> BTreeMap<String, String> {
    let mut names = vec![labels::SCHEDULABLE.to_owned()];
    let emulated = configuration.developer_configuration.use_emulation;
    let cpu = spec.domain.cpu.as_ref();
    let model = cpu.and_then(|cpu| cpu.model.as_deref());
    // Software emulation takes any model up and leaves out what it cannot do.
    if let Some(model) = model.filter(|model| !model.starts_with("host-") && !emulated) {
        names.push(format!("{}{model}", labels::CPU_MODEL_PREFIX));
    }
    let machine = spec
        .domain
        .machine
        .as_ref()
        .and_then(|m| m.type_.as_deref());
    // `q35` and `pc` stand for the newest of their kind, which every node has.
    if let Some(machine) = machine.filter(|machine| machine.contains('-')) {
        names.push(format!("{}{machine}", labels::MACHINE_TYPE_PREFIX));
    }
    if is_dedicated(spec) {
        names.push(labels::CPU_MANAGER.to_owned());
    }
    names
        .into_iter()
        .map(|name| (name, "true".to_owned()))
        .collect()
}

/// The devices of the node that the launcher needs.
fn devices(spec: &VirtualMachineInstanceSpec, configuration: &Configuration) -> Vec<&'static str> {
    let emulated = configuration.developer_configuration.use_emulation
        || configuration.is_open(Gate::FakeHypervisor);
    let interfaces = &spec.domain.devices.interfaces;
    let is_virtio = |model: &Option<String>| model.as_deref().is_none_or(|m| m == "virtio");
    let mut devices = Vec::new();
    if !emulated {
        devices.push(labels::DEVICE_KVM);
    }
    if !interfaces.is_empty() {
        devices.push(labels::DEVICE_TUN);
    }
    if !emulated && interfaces.iter().any(|i| is_virtio(&i.model)) {
        devices.push(labels::DEVICE_VHOST_NET);
    }
    devices
}

/// The guest's grace period in seconds.
#[must_use]
pub fn grace_seconds(spec: &VirtualMachineInstanceSpec) -> i64 {
    spec.termination_grace_period_seconds
        .unwrap_or(DEFAULT_GRACE)
        .max(0)
}

/// The volumes on claims, and the claims' names.
pub fn claimed(spec: &VirtualMachineInstanceSpec) -> impl Iterator<Item = (&Volume, &str)> {
    let volumes = spec.volumes.iter();
    volumes.filter_map(|volume| Some((volume, volume.claim()?.0)))
}

/// The container disks with the names of their volumes, and what the firmware starts, which comes the same way.
fn container_disks(spec: &VirtualMachineInstanceSpec) -> Vec<(&str, ContainerDiskSource)> {
    let volumes = spec.volumes.iter();
    let disks = volumes.filter_map(|v| Some((v.name.as_str(), v.container_disk.clone()?)));
    let boot = spec.domain.firmware.as_ref();
    let boot = boot.and_then(|firmware| firmware.kernel_boot.as_ref()?.container.as_ref());
    let files = boot.into_iter().flat_map(|from| {
        let file = |path: &Option<String>| {
            Some(ContainerDiskSource {
                image: from.image.clone(),
                image_pull_policy: from.image_pull_policy.clone(),
                image_pull_secret: from.image_pull_secret.clone(),
                path: Some(path.clone()?),
            })
        };
        let all = [
            (BOOT_KERNEL, file(&from.kernel_path)),
            (BOOT_INITRD, file(&from.initrd_path)),
        ];
        all.into_iter()
            .filter_map(|(name, source)| Some((name, source?)))
    });
    disks.chain(files).collect()
}

/// What the pod is to bring of texts: the names of its volumes, and where the texts come from.
fn texts(spec: &VirtualMachineInstanceSpec) -> Vec<(String, core::Volume)> {
    // The launcher's user alone, by its group where a kubelet lays them down.
    const MODE: i32 = 0o440;
    let secret = |name: &str, optional| core::Volume {
        secret: Some(core::SecretVolumeSource {
            secret_name: Some(name.to_owned()),
            optional,
            default_mode: Some(MODE),
            items: None,
        }),
        ..core::Volume::default()
    };
    let mut all = Vec::new();
    for volume in &spec.volumes {
        let name = texts_volume(&volume.name);
        if let Some(source) = &volume.secret {
            let wanted = source.secret_name.as_deref().unwrap_or_default();
            all.push((name, secret(wanted, source.optional)));
        } else if let Some(source) = &volume.config_map {
            let config_map = core::ConfigMapVolumeSource {
                name: source.name.clone().unwrap_or_default(),
                optional: source.optional,
                default_mode: Some(MODE),
                items: None,
            };
            let source = core::Volume {
                config_map: Some(config_map),
                ..core::Volume::default()
            };
            all.push((name, source));
        } else if let Some(source) = &volume.downward_api {
            let downward_api = core::DownwardAPIVolumeSource {
                items: Some(source.fields.clone()),
                default_mode: Some(MODE),
            };
            let source = core::Volume {
                downward_api: Some(downward_api),
                ..core::Volume::default()
            };
            all.push((name, source));
        } else if let Some(source) = volume.cloud_init() {
            if let Some(user) = &source.secret_ref {
                all.push((name, secret(&user.name, None)));
            }
            if let Some(network) = &source.network_data_secret_ref {
                let name = network_data_volume(&volume.name);
                all.push((name, secret(&network.name, None)));
            }
        }
    }
    for (index, credential) in spec.access_credentials.iter().enumerate() {
        if let Some(name) = credential.secret() {
            all.push((credential_volume(index), secret(name, None)));
        }
    }
    all
}

fn pull_secrets(spec: &VirtualMachineInstanceSpec) -> Option<Vec<core::LocalObjectReference>> {
    let secrets = container_disks(spec)
        .into_iter()
        .filter_map(|(_, source)| source.image_pull_secret);
    let mut names: Vec<String> = secrets.filter(|s| !s.is_empty()).collect();
    names.sort();
    names.dedup();
    (!names.is_empty()).then(|| {
        names
            .into_iter()
            .map(|name| core::LocalObjectReference { name })
            .collect()
    })
}

fn pod_labels(vmi: &VirtualMachineInstance) -> BTreeMap<String, String> {
    let mut all = vmi.labels().clone();
    // It names the node of the VMI; on a pod it would be a second, stale truth.
    all.remove(labels::NODE_NAME);
    all.insert(labels::APP.to_owned(), labels::LAUNCHER.to_owned());
    all.insert(labels::CREATED_BY.to_owned(), vmi.uid().unwrap_or_default());
    all.insert(labels::VMI_ID.to_owned(), id_of(&vmi.name_any()));
    all.insert(
        labels::VM_NAME.to_owned(),
        cut(&vmi.name_any(), 63).to_owned(),
    );
    all
}

/// A name, or if it is too long for a label its beginning and a digest of the whole.
fn id_of(name: &str) -> String {
    if name.len() <= 63 {
        return name.to_owned();
    }
    let digest = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_DNS, name.as_bytes()).simple();
    format!("{}-{:.8}", cut(name, 54), digest.to_string())
}

fn pod_annotations(vmi: &VirtualMachineInstance) -> BTreeMap<String, String> {
    let own = vmi
        .annotations()
        .iter()
        .filter(|(key, _)| !key.starts_with("kubectl.kubernetes.io/"));
    let mut all: BTreeMap<String, String> = own.map(|(k, v)| (k.clone(), v.clone())).collect();
    all.insert(labels::DOMAIN_ANNOTATION.to_owned(), vmi.name_any());
    all.insert(
        labels::DEFAULT_CONTAINER_ANNOTATION.to_owned(),
        labels::COMPUTE_CONTAINER.to_owned(),
    );
    all
}

fn owner(vmi: &VirtualMachineInstance) -> Option<OwnerReference> {
    let mut owner = vmi.controller_owner_ref(&())?;
    owner.block_owner_deletion = Some(true);
    Some(owner)
}

/// A pod name is at most 253 characters; the machine's part gives way.
fn pod_name(vmi: &str, suffix: &str) -> String {
    let room = 253 - labels::LAUNCHER_PREFIX.len() - 1 - suffix.len();
    format!("{}{}-{suffix}", labels::LAUNCHER_PREFIX, cut(vmi, room))
}

fn cut(text: &str, max: usize) -> &str {
    text[..text.floor_char_boundary(max)].trim_end_matches(['-', '.', '_'])
}

fn resources(
    spec: &VirtualMachineInstanceSpec,
    configuration: &Configuration,
) -> core::ResourceRequirements {
    let developer = &configuration.developer_configuration;
    let none = ResourceRequirements::default();
    let given = spec.domain.resources.as_ref().unwrap_or(&none);
    let bytes = |q: &Quantity| quantity::parse_bytes(q).ok();
    let guest = spec
        .domain
        .memory
        .as_ref()
        .and_then(|m| m.guest.as_ref())
        .and_then(bytes);
    let limit = given.limits.get("memory").and_then(bytes);
    let dedicated = is_dedicated(spec);
    // Who has CPUs for himself shares no memory either.
    let overcommit = developer.memory_overcommit.filter(|_| !dedicated);
    let overcommit = u64::from(overcommit.unwrap_or(100).max(1));
    // A request below the guest's memory is how a user overcommits; without one the guest's memory is the request.
    let memory = given
        .requests
        .get("memory")
        .and_then(bytes)
        .or_else(|| {
            guest.map(|guest| guest / overcommit * 100 + guest % overcommit * 100 / overcommit)
        })
        .or(limit);
    let vcpus = spec.domain.cpu.as_ref().map_or(1, CPU::vcpus).max(1);
    let beside = overhead(guest.or(memory).unwrap_or(0), vcpus, graphics(spec));
    let translated = if dedicated && developer.use_emulation {
        TRANSLATED
    } else {
        0
    };
    let beside = times(beside, configuration.overhead_ratio()).saturating_add(translated);
    // It then counts in the limit only.
    let reserved = if given.overcommit_guest_overhead == Some(true) && !dedicated {
        0
    } else {
        beside
    };
    let share = u64::from(developer.cpu_allocation_ratio.unwrap_or(10).max(1));

    let mut requests = given.requests.clone();
    requests.insert(
        "memory".to_owned(),
        quantity::from_bytes(memory.unwrap_or(0).saturating_add(reserved)),
    );
    requests.entry("cpu".to_owned()).or_insert_with(|| {
        given
            .limits
            .get("cpu")
            .cloned()
            .unwrap_or_else(|| quantity::from_millis((u64::from(vcpus) * 1000).div_ceil(share)))
    });
    let mut limits = given.limits.clone();
    if dedicated {
        let whole = quantity::from_millis(u64::from(vcpus) * 1000);
        requests.insert("cpu".to_owned(), whole.clone());
        limits.insert("cpu".to_owned(), whole);
        // The request has what runs beside the guest in it already.
        let memory = requests.get("memory").cloned().unwrap_or_default();
        limits.insert("memory".to_owned(), memory);
        return core::ResourceRequirements {
            requests: Some(requests),
            limits: Some(limits),
            claims: None,
        };
    }
    if let Some(limit) = limit {
        limits.insert(
            "memory".to_owned(),
            quantity::from_bytes(limit.saturating_add(beside)),
        );
    }
    core::ResourceRequirements {
        requests: Some(requests),
        limits: (!limits.is_empty()).then_some(limits),
        claims: None,
    }
}

/// An amount of memory times a ratio from 1.0 on, to the next byte.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "amounts of memory are far below 2^53"
)]
fn times(bytes: u64, ratio: f64) -> u64 {
    (bytes as f64 * ratio).ceil() as u64
}

fn graphics(spec: &VirtualMachineInstanceSpec) -> bool {
    spec.domain
        .devices
        .autoattach_graphics_device
        .unwrap_or(true)
}

/// Memory that a machine needs besides its guest's, in bytes: launcher and libvirtd (32 MiB), QEMU itself
/// (50 MiB, 8 MiB a vCPU, 8 MiB for its IO thread, 32 MiB for graphics) and page tables (1/512 of the guest).
///
/// Software emulation also keeps translated code; that depends on the node, which is not known yet, and is not
/// reserved.
#[must_use]
pub fn overhead(guest_bytes: u64, vcpus: u32, graphics: bool) -> u64 {
    const PROCESSES: u64 = 32 * MI;
    const QEMU: u64 = 50 * MI;
    const IO_THREAD: u64 = 8 * MI;
    let video = if graphics { 32 * MI } else { 0 };
    PROCESSES + QEMU + IO_THREAD + video + u64::from(vcpus) * 8 * MI + guest_bytes / 512
}

#[cfg(test)]
#[path = "launcher_pod_tests.rs"]
mod tests;
