//! The objects that install berth on a cluster. Pure.
//!
//! Each part has a service account of its own that may do what its code does and nothing more: the controller cannot
//! touch nodes, the node agent cannot make pods, neither reads Secrets of others.

use serde_json::{Value, json};

use crate::certificates::Place;

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

/// Port of the webhooks in the controller's pod.
pub const WEBHOOK_PORT: u16 = 8443;
const CONTROLLER: &str = "berth-controller";
const NODE: &str = "berth-node";
const WEBHOOK: &str = "berth-webhook";

/// Where the controller keeps the webhooks' certificate.
pub fn certificate_place(namespace: &str) -> Place {
    Place {
        namespace: namespace.to_owned(),
        secret: WEBHOOK.to_owned(),
        service: WEBHOOK.to_owned(),
        configuration: "berth".to_owned(),
    }
}

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
    all.extend(webhooks(settings));
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
        machines(&["get", "list", "watch", "patch", "update"]),
        status.clone(),
        // Owner references that block the owner's deletion need it.
        rule(
            &["kubevirt.io"],
            &["virtualmachineinstances/finalizers"],
            &["update"],
        ),
        rule(
            &[""],
            &["pods"],
            &["create", "delete", "get", "list", "watch", "patch"],
        ),
        rule(&[""], &["persistentvolumeclaims"], &["get"]),
        events.clone(),
        named(
            &["admissionregistration.k8s.io"],
            &[
                "mutatingwebhookconfigurations",
                "validatingwebhookconfigurations",
            ],
            &["berth"],
            &["get", "patch"],
        ),
    ];
    let node = vec![
        machines(WATCH),
        status,
        rule(&[""], &["pods"], WATCH),
        rule(&[""], &["nodes"], &["get", "patch"]),
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
        rule(&[""], &["secrets"], &["create"]),
        named(&[""], &["secrets"], &[WEBHOOK], &["get", "update"]),
    ];
    let namespace = &settings.namespace;
    let mut all = Vec::new();
    for (name, rules) in [(CONTROLLER, controller), (NODE, node)] {
        let subject = json!([{"kind": "ServiceAccount", "name": name, "namespace": namespace}]);
        all.push(json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": namespace},
        }));
        all.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": name}, "rules": rules,
        }));
        all.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": name}, "subjects": subject,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        }));
    }
    all.push(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": CONTROLLER, "namespace": namespace}, "rules": own,
    }));
    all.push(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": CONTROLLER, "namespace": namespace},
        "subjects": [{"kind": "ServiceAccount", "name": CONTROLLER, "namespace": namespace}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": CONTROLLER},
    }));
    all
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
                        "ports": [{"name": "webhook", "containerPort": WEBHOOK_PORT}],
                        "readinessProbe": {
                            "httpGet": {"scheme": "HTTPS", "port": WEBHOOK_PORT, "path": "/readyz"},
                            "periodSeconds": 2,
                        },
                        "livenessProbe": {
                            "httpGet": {"scheme": "HTTPS", "port": WEBHOOK_PORT, "path": "/readyz"},
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
            "apiVersion": "v1", "kind": "Service", "metadata": meta(WEBHOOK),
            "spec": {"selector": app, "ports": [{"port": 443, "targetPort": WEBHOOK_PORT}]},
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
                    "env": [{"name": "NODE_NAME", "valueFrom": from_pod("spec.nodeName")}],
                    "resources": {"requests": {"cpu": "10m", "memory": "48Mi"}},
                    "securityContext": {"privileged": true},
                    "volumeMounts": [
                        mount("state", "/var/lib/berth"),
                        mount("pods", "/var/lib/kubelet/pods"),
                    ],
                }],
                "volumes": [
                    volume("state", "/var/lib/berth", "DirectoryOrCreate"),
                    volume("pods", "/var/lib/kubelet/pods", "Directory"),
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
                "name": WEBHOOK, "namespace": settings.namespace, "path": path, "port": 443,
            }},
            "rules": [{
                "apiGroups": ["kubevirt.io"], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"],
                "resources": ["virtualmachineinstances", "virtualmachines"],
            }],
        })
    };
    vec![
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "berth"},
            "webhooks": [webhook("mutate.berth.kubevirt.io", "/mutate")],
        }),
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "berth"},
            "webhooks": [webhook("validate.berth.kubevirt.io", "/validate")],
        }),
    ]
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
                namespace.is_null() || namespace == "machines",
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
