//! Launcher pods of machines; the whole of some is under `snapshots/`.

use super::*;
use serde_json::json;

fn vmi(spec: &serde_json::Value) -> VirtualMachineInstance {
    serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {
            "name": "first.light", "namespace": "lab", "uid": "0a1b",
            "labels": {"app": "web", "kubevirt.io/nodeName": "old"},
            "annotations": {"note": "kept", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
        },
        "spec": spec,
    }))
    .unwrap()
}

fn settings() -> Settings {
    Settings {
        launcher_image: "berth-launcher:0.1.0".to_owned(),
        ..Settings::default()
    }
}

#[test]
fn a_machine_with_a_container_disk() {
    let vmi = vmi(&json!({
        "terminationGracePeriodSeconds": 5,
        "nodeSelector": {"disk": "fast"},
        "domain": {
            "cpu": {"cores": 2},
            "memory": {"guest": "1Gi"},
            "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]},
        },
        "volumes": [{"name": "root", "containerDisk": {
            "image": "registry.example/guest:1", "imagePullPolicy": "Always", "imagePullSecret": "login"}}],
    }));
    let pod = launcher_pod(
        &vmi,
        &Claims::new(),
        &settings(),
        &Configuration::default(),
        "abcde",
    );
    insta::assert_snapshot!(serde_json::to_string_pretty(&pod).unwrap());
}

#[test]
fn on_a_cluster_a_container_holds_each_image() {
    let vmi = vmi(&json!({
        "domain": {"memory": {"guest": "1Gi"}, "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]}},
        "volumes": [
            {"name": "root", "containerDisk": {"image": "registry.example/guest:1"}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "files"}},
            {"name": "raw", "persistentVolumeClaim": {"claimName": "blocks"}},
        ],
    }));
    let claim = |block| Claim {
        block,
        size: 1 << 30,
    };
    let claims = Claims::from([
        ("files".into(), claim(false)),
        ("blocks".into(), claim(true)),
    ]);
    let settings = Settings {
        runner: Runner::Cluster,
        ..settings()
    };
    let pod = launcher_pod(&vmi, &claims, &settings, &Configuration::default(), "abcde");
    insta::assert_snapshot!(serde_json::to_string_pretty(&pod).unwrap());
}

fn configuration(developer: &serde_json::Value) -> Configuration {
    serde_json::from_value(json!({"developerConfiguration": developer})).unwrap()
}

#[test]
fn the_settings_say_what_a_pod_asks_for() {
    let vmi = vmi(&json!({
        "domain": {
            "cpu": {"model": "Haswell"}, "machine": {"type": "pc-q35-7.2"}, "memory": {"guest": "1Gi"},
            "devices": {
                "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                "interfaces": [{"name": "default", "bridge": {}}],
            },
        },
        "networks": [{"name": "default", "pod": {}}],
        "volumes": [{"name": "root", "containerDisk": {"image": "registry.example/guest:1", "path": "/a.img"}}],
    }));
    let settings = Settings {
        runner: Runner::Cluster,
        ..settings()
    };
    let pod = |configuration: &Configuration| {
        let pod = launcher_pod(&vmi, &Claims::new(), &settings, configuration, "abcde");
        serde_json::to_value(pod).unwrap()
    };
    let plain = pod(&Configuration::default());
    assert_eq!(
        plain["spec"]["nodeSelector"],
        json!({
            "kubevirt.io/schedulable": "true", "cpu-model.node.kubevirt.io/Haswell": "true",
            "machine-type.node.kubevirt.io/pc-q35-7.2": "true",
        })
    );
    let one = json!({"devices.kubevirt.io/kvm": "1", "devices.kubevirt.io/tun": "1", "devices.kubevirt.io/vhost-net": "1"});
    assert_eq!(plain["spec"]["containers"][0]["resources"]["limits"], one);
    let other = pod(&configuration(&json!({
        "useEmulation": true, "featureGates": ["ImageVolume", "FakeHypervisor"],
        "cpuAllocationRatio": 4, "memoryOvercommit": 200, "logVerbosity": {"virtLauncher": 4},
    })));
    let spec = &other["spec"];
    assert_eq!(
        spec["nodeSelector"],
        json!({"kubevirt.io/schedulable": "true", "machine-type.node.kubevirt.io/pc-q35-7.2": "true"})
    );
    assert_eq!(spec["containers"].as_array().unwrap().len(), 1);
    assert!(spec["initContainers"].is_null());
    let compute = &spec["containers"][0];
    assert_eq!(
        compute["resources"],
        json!({
            // 512 MiB and what runs beside a guest of 1 GiB: 32 + 50 + 8 + 32 + 8 + 2.
            "requests": {"cpu": "250m", "memory": "644Mi", "devices.kubevirt.io/tun": "1"},
            "limits": {"devices.kubevirt.io/tun": "1"},
        })
    );
    let command = compute["command"].as_array().unwrap();
    assert!(command.contains(&json!("info,berth=debug")), "{command:?}");
    assert!(command.contains(&json!("--fake-hypervisor")), "{command:?}");
    assert_eq!(
        other["metadata"]["annotations"][DISK_PATHS],
        r#"{"root":"/a.img"}"#
    );
    let volumes = spec["volumes"].as_array().unwrap();
    assert!(
        volumes
            .iter()
            .any(|v| v["image"]["reference"] == "registry.example/guest:1")
    );
}

#[test]
fn who_has_cpus_for_himself_is_guaranteed_them() {
    let vmi = vmi(&json!({
        "domain": {
            "cpu": {"cores": 2, "dedicatedCpuPlacement": true}, "memory": {"guest": "1Gi"},
            "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]},
        },
        "volumes": [{"name": "root", "containerDisk": {"image": "registry.example/guest:1"}}],
    }));
    let settings = Settings {
        runner: Runner::Cluster,
        ..settings()
    };
    let pod = launcher_pod(
        &vmi,
        &Claims::new(),
        &settings,
        &Configuration::default(),
        "abcde",
    );
    let spec = pod.spec.unwrap();
    assert_eq!(spec.node_selector.unwrap()[labels::CPU_MANAGER], "true");
    let init = spec.init_containers.unwrap();
    for container in init.iter().chain(&spec.containers) {
        let resources = container.resources.clone().unwrap();
        let (mut requests, limits) = (resources.requests.unwrap(), resources.limits.unwrap());
        requests.retain(|name, _| !name.starts_with("devices."));
        for (name, amount) in requests {
            assert_eq!(limits[&name], amount, "{}: {name}", container.name);
        }
    }
    let limits = spec.containers[0]
        .resources
        .clone()
        .unwrap()
        .limits
        .unwrap();
    assert_eq!(limits["cpu"].0, "2");
}

fn amounts(spec: &serde_json::Value) -> (serde_json::Value, serde_json::Value) {
    let resources = resources(&vmi(spec).spec, &Configuration::default());
    let r = serde_json::to_value(resources).unwrap();
    (r["requests"].clone(), r["limits"].clone())
}

#[test]
fn limits_only_where_the_user_gave_them() {
    // 32 + 50 + 8 + 32 + 8 for one vCPU, and 1 MiB of page tables for 512 MiB.
    let (requests, limits) =
        amounts(&json!({"domain": {"devices": {}, "memory": {"guest": "512Mi"}}}));
    assert_eq!(requests, json!({"cpu": "100m", "memory": "643Mi"}));
    assert!(limits.is_null());
    let (requests, limits) = amounts(&json!({"domain": {
        "devices": {"autoattachGraphicsDevice": false}, "cpu": {"sockets": 2, "cores": 2},
        "resources": {"requests": {"memory": "512Mi"}, "limits": {"memory": "512Mi", "cpu": "2"}},
    }}));
    assert_eq!(requests, json!({"cpu": "2", "memory": "635Mi"}));
    assert_eq!(limits, json!({"cpu": "2", "memory": "635Mi"}));
}

#[test]
fn a_request_below_the_guest_is_overcommitment() {
    let (requests, _) = amounts(&json!({"domain": {
        "devices": {}, "memory": {"guest": "1Gi"}, "resources": {"requests": {"memory": "256Mi"}},
    }}));
    assert_eq!(requests["memory"], "388Mi");
}

#[test]
fn names_stay_within_their_bounds() {
    let long = "a".repeat(253);
    assert_eq!(pod_name(&long, "abcde").len(), 253);
    assert_eq!(id_of("web"), "web");
    assert_eq!(id_of(&long).len(), 63);
    assert_ne!(id_of(&long), id_of(&"a".repeat(252)));
}
