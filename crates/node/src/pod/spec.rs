//! What the runtime reads from a Pod. It runs launcher pods only: one container; image volumes, claims, empty directories and texts. And
//! pods that work on volumes, which are the same without a machine.

use std::collections::BTreeMap;

use berth_api::{labels, quantity};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::ResourceExt as _;

use super::cgroup::Limits;
use super::record::USER_BASE;
use super::sandbox::{Resolver, Spec};
use super::texts::is_texts;

/// A pod that this runtime does not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; this runtime runs pods of berth's only")]
pub(crate) struct Unsupported {
    field: String,
    problem: String,
}

fn unsupported(field: impl Into<String>, problem: impl Into<String>) -> Unsupported {
    Unsupported {
        field: field.into(),
        problem: problem.into(),
    }
}

/// The parts that a sandbox is made of, and the user and group where the pod names them.
pub(crate) fn read(pod: &Pod) -> Result<(Spec, Option<(u32, u32)>), Unsupported> {
    let spec = pod
        .spec
        .as_ref()
        .ok_or_else(|| unsupported("spec", "missing"))?;
    let is = |label: &str, value: &str| pod.labels().get(label).map(String::as_str) == Some(value);
    let works_on_volumes = is(labels::CDI, labels::IMPORTER);
    if !is(labels::APP, labels::LAUNCHER) && !works_on_volumes {
        return Err(unsupported(
            format!("metadata.labels[{}]", labels::APP),
            format!("not {}", labels::LAUNCHER),
        ));
    }
    let [container] = spec.containers.as_slice() else {
        return Err(unsupported(
            "spec.containers",
            format!("{} containers", spec.containers.len()),
        ));
    };
    if spec
        .init_containers
        .as_ref()
        .is_some_and(|list| !list.is_empty())
    {
        return Err(unsupported("spec.initContainers", "not empty"));
    }
    let command: Vec<_> = [&container.command, &container.args]
        .into_iter()
        .flatten()
        .flatten()
        .cloned()
        .collect();
    if command.is_empty() {
        return Err(unsupported("spec.containers[0].command", "missing"));
    }
    let mut empty_dirs = BTreeMap::new();
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let mount = container
            .volume_mounts
            .iter()
            .flatten()
            .find(|mount| mount.name == volume.name);
        match (mount, &volume.empty_dir, &volume.image) {
            (None, ..) | (_, None, Some(_)) => {}
            (Some(_), None, None) if is_texts(volume) => {}
            (_, None, None) if volume.persistent_volume_claim.is_some() => {}
            (Some(mount), Some(_), None) => {
                empty_dirs.insert(volume.name.clone(), mount.mount_path.clone());
            }
            _ => {
                return Err(unsupported(
                    format!("spec.volumes[{index}]"),
                    "neither image nor emptyDir, persistentVolumeClaim, secret, configMap or downwardAPI",
                ));
            }
        }
    }
    let environment = container
        .env
        .iter()
        .flatten()
        .filter_map(|entry| Some(format!("{}={}", entry.name, entry.value.as_ref()?)));
    let sandbox = Spec {
        hostname: spec
            .hostname
            .clone()
            .or_else(|| pod.metadata.name.clone())
            .unwrap_or_default(),
        command,
        environment: environment.collect(),
        limits: limits(container),
        empty_dirs,
        texts: BTreeMap::new(),
        resolver: resolver(spec),
        works_on_volumes,
    };
    Ok((sandbox, user(pod, container)?))
}

/// What the pod's resolver is to use. A machine without a cluster has one kind of name servers: its own.
fn resolver(spec: &PodSpec) -> Resolver {
    let config = spec.dns_config.clone().unwrap_or_default();
    let options = config.options.into_iter().flatten().filter_map(|option| {
        let name = option.name?;
        Some(match option.value {
            Some(value) => format!("{name}:{value}"),
            None => name,
        })
    });
    Resolver {
        of_node: spec.dns_policy.as_deref() != Some("None"),
        servers: config.nameservers.unwrap_or_default(),
        search: config.searches.unwrap_or_default(),
        options: options.collect(),
    }
}

fn user(pod: &Pod, container: &Container) -> Result<Option<(u32, u32)>, Unsupported> {
    let own = container.security_context.as_ref();
    let whole = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref());
    let user = own
        .and_then(|context| context.run_as_user)
        .or_else(|| whole.and_then(|context| context.run_as_user));
    let group = own
        .and_then(|context| context.run_as_group)
        .or_else(|| whole.and_then(|context| context.run_as_group));
    let Some(user) = user else { return Ok(None) };
    match (u32::try_from(user), u32::try_from(group.unwrap_or(user))) {
        // From the base on they are given out, and a pod that chose one could be another's user.
        (Ok(user), Ok(group)) if user >= USER_BASE || group >= USER_BASE => Err(unsupported(
            "spec.securityContext.runAsUser",
            format!("users and groups from {USER_BASE} on are given out by the node"),
        )),
        (Ok(user), Ok(group)) if user > 0 && group > 0 => Ok(Some((user, group))),
        _ => Err(unsupported(
            "spec.securityContext.runAsUser",
            "not an unprivileged user",
        )),
    }
}

fn limits(container: &Container) -> Limits {
    let of = |list: Option<&BTreeMap<String, _>>, name: &str| {
        list.and_then(|list| list.get(name)).cloned()
    };
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    Limits {
        memory: of(limits, "memory").and_then(|quantity| quantity::parse_bytes(&quantity).ok()),
        cpu_max_millis: of(limits, "cpu")
            .and_then(|quantity| quantity::parse_millis(&quantity).ok()),
        cpu_request_millis: of(requests, "cpu")
            .and_then(|quantity| quantity::parse_millis(&quantity).ok())
            .unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(change: impl FnOnce(&mut serde_json::Value)) -> Pod {
        let mut pod = json!({
            "metadata": {
                "name": "virt-launcher-a-x", "namespace": "lab", "uid": "u1",
                "labels": {"kubevirt.io": "virt-launcher"},
            },
            "spec": {
                "hostname": "a",
                "containers": [{
                    "name": "compute", "image": "berth-launcher:1", "command": ["/usr/bin/berth", "launcher"],
                    "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
                    "volumeMounts": [
                        {"name": "run", "mountPath": "/var/run/berth"},
                        {"name": "disk-root", "mountPath": "/var/run/berth-disks/root", "readOnly": true},
                    ],
                }],
                "volumes": [
                    {"name": "run", "emptyDir": {}},
                    {"name": "disk-root", "image": {"reference": "a:b", "pullPolicy": "Always"}},
                ],
            },
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_launcher_pod_is_read() {
        let (spec, user) = read(&pod(|_| {})).unwrap();
        assert_eq!((spec.hostname.as_str(), user), ("a", None));
        assert_eq!(spec.command, ["/usr/bin/berth", "launcher"]);
        assert_eq!(
            spec.limits,
            Limits {
                memory: Some(2 << 30),
                cpu_max_millis: None,
                cpu_request_millis: 100
            }
        );
        assert_eq!(spec.empty_dirs["run"], "/var/run/berth");
    }

    #[test]
    fn name_servers_are_the_nodes_and_the_pods() {
        let read_dns = |dns: serde_json::Value| {
            let (spec, _) = read(&pod(|pod| {
                pod["spec"]["dnsPolicy"] = dns["policy"].clone();
                pod["spec"]["dnsConfig"] = dns["config"].clone();
            }))
            .unwrap();
            spec.resolver
        };
        assert!(read_dns(json!({"policy": "ClusterFirst"})).of_node);
        let own = read_dns(json!({"policy": "None", "config": {
            "nameservers": ["192.0.2.1"], "searches": ["lab.example"], "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}],
        }}));
        let wanted = Resolver {
            of_node: false,
            servers: vec!["192.0.2.1".into()],
            search: vec!["lab.example".into()],
            options: vec!["ndots:2".into(), "rotate".into()],
        };
        assert_eq!(own, wanted);
    }

    #[test]
    fn other_pods_are_refused_by_field() {
        let refused =
            |change: fn(&mut serde_json::Value)| read(&pod(change)).unwrap_err().to_string();
        assert!(
            refused(
                |pod| pod["spec"]["volumes"][0] = json!({"name": "run", "hostPath": {"path": "/"}})
            )
            .contains("spec.volumes[0]")
        );
        assert!(refused(|pod| pod["spec"]["containers"] = json!([])).contains("0 containers"));
        assert!(
            refused(|pod| pod["spec"]["securityContext"] = json!({"runAsUser": 0}))
                .contains("runAsUser")
        );
        assert!(
            refused(|pod| pod["spec"]["securityContext"] = json!({"runAsUser": 2_000_000}))
                .contains("given out by the node")
        );
        assert!(
            refused(|pod| pod["metadata"]["labels"] = json!({"app": "web"}))
                .contains("metadata.labels[kubevirt.io]")
        );
        assert!(
            refused(|pod| pod["spec"]["containers"][0]["command"] = json!([])).contains("command")
        );
    }
}
