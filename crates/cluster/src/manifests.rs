//! The objects that install berth on a cluster. Pure.
//!
//! Each part has a service account of its own that may do what its code does and nothing more: the controller cannot
//! touch nodes, the node agent cannot make pods, neither reads Secrets of others.
//!
//! What waits for berth to answer comes last, and so is the first to go: the webhooks, the aggregated API.

use serde_json::{Value, json};

/// What an installation can be told.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Where berth's own parts run.
    pub namespace: String,
    /// Image of all parts, the launcher too.
    pub image: String,
    /// How often the controller runs.
    pub replicas: u32,
    /// What to log.
    pub log: String,
}

/// Port of webhooks and aggregated API in the controller's pod.
pub const CONTROLLER_PORT: u16 = 8443;
/// Port of the node agent in its pod.
pub const NODE_PORT: u16 = 8444;
/// The Deployment, its account, its Lease.
pub const CONTROLLER: &str = "berth-controller";
/// The DaemonSet and its account, and what node agents are called by the controller.
pub const NODE: &str = "berth-node";
/// The Service that the API server calls, and the Secret with its certificate.
pub(crate) const SERVICE: &str = "berth-api";
/// Both webhook configurations.
pub(crate) const CONFIGURATION: &str = "berth";
/// The APIServices.
pub(crate) const API_SERVICES: [&str; 2] = [
    "v1.subresources.kubevirt.io",
    "v1alpha3.subresources.kubevirt.io",
];
/// The Secret with the certificate of node agents.
pub(crate) const NODE_SERVER: &str = "berth-node-server";
/// The Secret with the controller's certificate for node agents, and the ConfigMap with its authority.
pub(crate) const NODE_CLIENT: &str = "berth-node-client";

/// Everything, in the order in which it has to be created.
pub fn objects(settings: &Settings) -> Vec<Value> {
    let mut all = vec![namespace(settings)];
    let crds = berth_api::crds();
    all.extend(crds.iter().map(object));
    all.extend(priority_classes());
    all.extend(berth_api::roles::roles().iter().map(object));
    all.extend(berth_api::roles::bindings().iter().map(object));
    all.extend(access(settings));
    all.extend(controller(settings));
    all.push(node(settings));
    all.extend(network_policies(settings));
    all.extend(webhooks(settings));
    all.extend(api_services(settings));
    all
}

fn object<T: serde::Serialize>(object: &T) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

fn namespace(settings: &Settings) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": settings.namespace, "labels": {
            // The node agent works on the machine itself.
            "pod-security.kubernetes.io/enforce": "privileged",
        }},
    })
}

fn priority_classes() -> Vec<Value> {
    let class = |name: &str, value: i32, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "description": description,
        })
    };
    vec![class(
        "berth-critical",
        1_000_000_000,
        "berth's own parts, without which no virtual machine starts or stops.",
    )]
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

/// The same, for objects of these names only.
fn named(groups: &[&str], resources: &[&str], names: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "resourceNames": names, "verbs": verbs})
}

/// Accounts, what they may do, and that they may.
fn access(settings: &Settings) -> Vec<Value> {
    const WATCH: &[&str] = &["get", "list", "watch"];
    const EVENTS: (&[&str], &[&str], &[&str]) = (
        &["", "events.k8s.io"],
        &["events"],
        &["create", "patch", "update"],
    );
    let machines = |verbs: &[&str]| rule(&["kubevirt.io"], &["virtualmachineinstances"], verbs);
    let status = rule(
        &["kubevirt.io"],
        &["virtualmachineinstances/status"],
        &["get", "patch", "update"],
    );
    let events = rule(EVENTS.0, EVENTS.1, EVENTS.2);
    let controller = vec![
        machines(&[
            "create", "delete", "get", "list", "watch", "patch", "update",
        ]),
        rule(
            &["kubevirt.io"],
            &["virtualmachines"],
            &["get", "list", "watch", "patch"],
        ),
        rule(
            &["kubevirt.io"],
            &["virtualmachines/status"],
            &["get", "patch"],
        ),
        status.clone(),
        // Owner references that block the owner's deletion need it.
        rule(
            &["kubevirt.io"],
            &[
                "virtualmachineinstances/finalizers",
                "virtualmachines/finalizers",
            ],
            &["update"],
        ),
        rule(
            &[""],
            &["pods"],
            &["create", "delete", "get", "list", "watch", "patch"],
        ),
        // Whether the guest of a launcher pod runs: its gate of readiness.
        rule(&[""], &["pods/status"], &["patch"]),
        rule(&["berth.kubevirt.io"], &["berths"], WATCH),
        rule(&["berth.kubevirt.io"], &["berths/status"], &["patch"]),
        rule(
            &[""],
            &["persistentvolumeclaims"],
            &["create", "get", "list", "watch", "patch"],
        ),
        rule(
            &["cdi.kubevirt.io"],
            &["datavolumes"],
            &["create", "get", "list", "watch"],
        ),
        rule(&["cdi.kubevirt.io"], &["datavolumes/status"], &["patch"]),
        rule(
            &["cdi.kubevirt.io"],
            &["datavolumes/finalizers"],
            &["update"],
        ),
        // What machines were started with.
        rule(
            &["apps"],
            &["controllerrevisions"],
            &["create", "delete", "list"],
        ),
        events.clone(),
        named(
            &["admissionregistration.k8s.io"],
            &[
                "mutatingwebhookconfigurations",
                "validatingwebhookconfigurations",
            ],
            &[CONFIGURATION],
            &["get", "patch"],
        ),
        named(
            &["apiregistration.k8s.io"],
            &["apiservices"],
            &API_SERVICES,
            &["get", "patch"],
        ),
    ];
    let node = vec![
        machines(WATCH),
        status,
        rule(&[""], &["pods"], WATCH),
        rule(&[""], &["nodes"], &["get", "patch"]),
        rule(&["berth.kubevirt.io"], &["berths"], WATCH),
        events,
    ];
    let own = vec![
        rule(&["coordination.k8s.io"], &["leases"], &["create"]),
        named(
            &["coordination.k8s.io"],
            &["leases"],
            &[CONTROLLER],
            &["get", "update"],
        ),
        rule(&[""], &["secrets", "configmaps"], &["create"]),
        named(
            &[""],
            &["secrets"],
            &[SERVICE, NODE_SERVER, NODE_CLIENT],
            &["get", "update"],
        ),
        named(&[""], &["configmaps"], &[NODE_CLIENT], &["get", "update"]),
    ];
    let own_of_node = vec![
        named(&[""], &["secrets"], &[NODE_SERVER], WATCH),
        named(&[""], &["configmaps"], &[NODE_CLIENT], WATCH),
    ];
    let namespace = &settings.namespace;
    let mut all = Vec::new();
    for (name, rules, own) in [(CONTROLLER, controller, own), (NODE, node, own_of_node)] {
        let subject = json!([{"kind": "ServiceAccount", "name": name, "namespace": namespace}]);
        all.push(json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": namespace},
        }));
        all.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": name}, "rules": rules,
        }));
        all.push(binding(
            ("ClusterRoleBinding", name, ""),
            ("ClusterRole", name),
            &subject,
        ));
        all.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": name, "namespace": namespace}, "rules": own,
        }));
        all.push(binding(
            ("RoleBinding", name, namespace),
            ("Role", name),
            &subject,
        ));
    }
    // What every aggregated API needs: whom to believe, and to ask what users may.
    let subject = json!([{"kind": "ServiceAccount", "name": CONTROLLER, "namespace": namespace}]);
    all.push(binding(
        ("ClusterRoleBinding", "berth-controller-auth-delegator", ""),
        ("ClusterRole", "system:auth-delegator"),
        &subject,
    ));
    all.push(binding(
        (
            "RoleBinding",
            "berth-controller-authentication-reader",
            "kube-system",
        ),
        ("Role", "extension-apiserver-authentication-reader"),
        &subject,
    ));
    all
}

/// A binding: its kind, name and namespace, the kind and name of what it gives, and to whom.
fn binding(own: (&str, &str, &str), role: (&str, &str), subjects: &Value) -> Value {
    let mut binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": own.0,
        "metadata": {"name": own.1}, "subjects": subjects,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role.0, "name": role.1},
    });
    if !own.2.is_empty() {
        binding["metadata"]["namespace"] = own.2.into();
    }
    binding
}

fn from_pod(field: &str) -> Value {
    json!({"fieldRef": {"fieldPath": field}})
}

fn controller(settings: &Settings) -> Vec<Value> {
    let Settings {
        namespace,
        image,
        replicas,
        log,
    } = settings;
    let app = json!({"app.kubernetes.io/name": CONTROLLER});
    let meta = |name: &str| json!({"name": name, "namespace": namespace, "labels": app});
    vec![
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta(CONTROLLER),
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": app},
                "template": {"metadata": {"labels": app}, "spec": {
                    "serviceAccountName": CONTROLLER,
                    "priorityClassName": "berth-critical",
                    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
                        "weight": 100,
                        "podAffinityTerm": {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": {"matchLabels": app},
                        },
                    }]}},
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": 1001, "runAsGroup": 1001,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [{
                        "name": "controller", "image": image, "imagePullPolicy": "IfNotPresent",
                        "command": ["/usr/bin/berth", "controller", "--log", log, "--launcher-image", image],
                        "env": [
                            {"name": "POD_NAME", "valueFrom": from_pod("metadata.name")},
                            {"name": "POD_NAMESPACE", "valueFrom": from_pod("metadata.namespace")},
                        ],
                        "ports": [{"name": "api", "containerPort": CONTROLLER_PORT}],
                        "readinessProbe": {
                            "httpGet": {"scheme": "HTTPS", "port": CONTROLLER_PORT, "path": "/readyz"},
                            "periodSeconds": 2,
                        },
                        "livenessProbe": {
                            "httpGet": {"scheme": "HTTPS", "port": CONTROLLER_PORT, "path": "/readyz"},
                            "initialDelaySeconds": 15, "periodSeconds": 15,
                        },
                        "resources": {"requests": {"cpu": "10m", "memory": "48Mi"}},
                        "securityContext": {
                            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }],
                }},
            },
        }),
        json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta(CONTROLLER),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": app}},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": meta(SERVICE),
            "spec": {"selector": app, "ports": [{"port": 443, "targetPort": CONTROLLER_PORT}]},
        }),
    ]
}

/// The node agent enters pods' namespaces, so it is the machine's root; it talks to nobody but the API server.
fn node(settings: &Settings) -> Value {
    let Settings {
        namespace,
        image,
        log,
        ..
    } = settings;
    let app = json!({"app.kubernetes.io/name": NODE});
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
    let volume = |name: &str, path: &str, kind: &str| json!({"name": name, "hostPath": {"path": path, "type": kind}});
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": NODE, "namespace": namespace, "labels": app},
        "spec": {
            "selector": {"matchLabels": app},
            "template": {"metadata": {"labels": app}, "spec": {
                "serviceAccountName": NODE,
                "priorityClassName": "system-node-critical",
                "hostPID": true,
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "tolerations": [{"operator": "Exists"}],
                "containers": [{
                    "name": "node", "image": image, "imagePullPolicy": "IfNotPresent",
                    "command": ["/usr/bin/berth", "node-agent", "--log", log],
                    "env": [
                        {"name": "NODE_NAME", "valueFrom": from_pod("spec.nodeName")},
                        {"name": "POD_NAMESPACE", "valueFrom": from_pod("metadata.namespace")},
                    ],
                    "ports": [{"name": "guests", "containerPort": NODE_PORT}],
                    "resources": {"requests": {"cpu": "10m", "memory": "48Mi"}},
                    "securityContext": {"privileged": true},
                    "volumeMounts": [
                        mount("state", "/var/lib/berth"),
                        mount("pods", "/var/lib/kubelet/pods"),
                        mount("device-plugins", "/var/lib/kubelet/device-plugins"),
                    ],
                }],
                "volumes": [
                    volume("state", "/var/lib/berth", "DirectoryOrCreate"),
                    volume("pods", "/var/lib/kubelet/pods", "Directory"),
                    volume("device-plugins", "/var/lib/kubelet/device-plugins", "Directory"),
                ],
            }},
        },
    })
}

/// For berth's kinds only, and closed when nobody answers: a VM that nobody looked at is worse than none.
fn webhooks(settings: &Settings) -> Vec<Value> {
    let webhook = |name: &str, path: &str| {
        json!({
            "name": name,
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "timeoutSeconds": 10,
            "clientConfig": {"service": {
                "name": SERVICE, "namespace": settings.namespace, "path": path, "port": 443,
            }},
            "rules": [{
                "apiGroups": ["kubevirt.io"], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"],
                "resources": ["virtualmachineinstances", "virtualmachines"],
            }, {
                "apiGroups": ["cdi.kubevirt.io"], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"],
                "resources": ["datavolumes"],
            }],
        })
    };
    vec![
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": CONFIGURATION},
            "webhooks": [webhook("mutate.berth.kubevirt.io", "/mutate")],
        }),
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": CONFIGURATION},
            "webhooks": [webhook("validate.berth.kubevirt.io", "/validate")],
        }),
    ]
}

/// Who may call berth's parts. API servers call from outside the pod network, so the controller is open on its one port;
/// node agents are called by the controller only.
fn network_policies(settings: &Settings) -> Vec<Value> {
    let policy = |name: &str, ingress: &Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": settings.namespace},
            "spec": {
                "podSelector": {"matchLabels": {"app.kubernetes.io/name": name}},
                "policyTypes": ["Ingress"],
                "ingress": [ingress],
            },
        })
    };
    let controller =
        json!({"podSelector": {"matchLabels": {"app.kubernetes.io/name": CONTROLLER}}});
    vec![
        policy(CONTROLLER, &json!({"ports": [{"port": CONTROLLER_PORT}]})),
        policy(
            NODE,
            &json!({"from": [controller], "ports": [{"port": NODE_PORT}]}),
        ),
    ]
}

/// The group of subresources, served by the controller.
fn api_services(settings: &Settings) -> Vec<Value> {
    let versions = API_SERVICES
        .iter()
        .filter_map(|name| Some((name, name.split_once('.')?)));
    versions
        .map(|(name, (version, group))| {
            json!({
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {"name": name},
                "spec": {
                    "group": group, "version": version,
                    "groupPriorityMinimum": 1000, "versionPriority": if version == "v1" { 20 } else { 10 },
                    "service": {"name": SERVICE, "namespace": settings.namespace, "port": 443},
                },
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            namespace: "machines".into(),
            image: "registry.example/berth:1".into(),
            replicas: 2,
            log: "info".into(),
        }
    }

    #[test]
    fn everything_of_a_namespace_is_in_the_one_that_was_asked_for() {
        let all = objects(&settings());
        for object in &all {
            let namespace = &object["metadata"]["namespace"];
            assert!(
                namespace.is_null() || namespace == "machines" || namespace == "kube-system",
                "{}",
                object["metadata"]
            );
        }
        let of = |kind: &str| all.iter().filter(|o| o["kind"] == kind).count();
        assert_eq!(
            (of("Deployment"), of("DaemonSet"), of("Namespace")),
            (1, 1, 1)
        );
    }

    #[test]
    fn no_part_of_berth_may_everything() {
        for object in access(&settings()) {
            for rule in object["rules"].as_array().into_iter().flatten() {
                for list in ["apiGroups", "resources", "verbs"] {
                    let all = rule[list].as_array().into_iter().flatten();
                    let wild = all.filter(|entry| *entry == "*").count();
                    assert!(wild == 0, "{}: {rule}", object["metadata"]["name"]);
                }
            }
        }
    }
}
