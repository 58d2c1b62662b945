//! What one object takes from a quota, and which quotas are about it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::quantity::Quantity;
use crate::registry::meta;

/// Amounts by resource name, as in `spec.hard`.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

/// What matters of an object for quotas. Objects of kinds that are only counted have no amounts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usage {
    /// Besides `count/…`.
    pub(crate) amounts: Amounts,
    scopes: PodScopes,
}

/// What the scopes of quotas ask of a pod.
#[derive(Debug, Clone, Default)]
struct PodScopes {
    is_pod: bool,
    terminating: bool,
    best_effort: bool,
    priority_class: String,
}

/// Names under which kinds were counted before `count/…` was there.
const COUNTED: [&str; 6] = [
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

/// Resource names that every container has to say when a quota is about them.
const EXPLICIT: [&str; 6] = [
    "cpu",
    "limits.cpu",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.memory",
];

/// `plural` or `plural.group` of a stored resource `group/plural`.
pub(crate) fn qualified(resource: &str) -> String {
    match resource.split_once('/') {
        Some(("", plural)) => plural.to_owned(),
        Some((group, plural)) => format!("{plural}.{group}"),
        None => resource.to_owned(),
    }
}

/// Names that count every object of the stored resource.
pub(crate) fn counters(resource: &str) -> Vec<String> {
    let name = qualified(resource);
    let mut names = vec![format!("count/{name}")];
    if COUNTED.contains(&name.as_str()) {
        names.push(name);
    }
    names
}

/// Whether more than the number of such objects matters.
pub(crate) fn is_measured(resource: &str) -> bool {
    matches!(resource, "/pods" | "/persistentvolumeclaims")
}

/// What an object of a measured resource takes.
pub(crate) fn of(resource: &str, object: &Value) -> Usage {
    match resource {
        "/pods" => pod(object),
        "/persistentvolumeclaims" => claim(object),
        _ => Usage::default(),
    }
}

fn claim(object: &Value) -> Usage {
    let mut amounts = Amounts::new();
    let class = meta::text(object, &["spec", "storageClassName"]);
    let storage =
        Quantity::of(&object["spec"]["resources"]["requests"]["storage"]).unwrap_or_default();
    amounts.insert("requests.storage".into(), storage);
    if !class.is_empty() {
        let suffix = "storageclass.storage.k8s.io";
        amounts.insert(format!("{class}.{suffix}/requests.storage"), storage);
        amounts.insert(
            format!("{class}.{suffix}/persistentvolumeclaims"),
            Quantity::count(1),
        );
    }
    Usage {
        amounts,
        scopes: PodScopes::default(),
    }
}

fn pod(object: &Value) -> Usage {
    let spec = &object["spec"];
    let mut usage = Usage {
        amounts: Amounts::new(),
        scopes: PodScopes {
            is_pod: true,
            terminating: spec["activeDeadlineSeconds"].as_i64().is_some(),
            best_effort: containers(object).all(|container| {
                ["requests", "limits"].iter().all(|side| {
                    container["resources"][side]
                        .as_object()
                        .is_none_or(serde_json::Map::is_empty)
                })
            }),
            priority_class: meta::text(spec, &["priorityClassName"]).to_owned(),
        },
    };
    // One that has ended takes nothing any more.
    if matches!(
        meta::text(object, &["status", "phase"]),
        "Succeeded" | "Failed"
    ) {
        return usage;
    }
    let amounts = &mut usage.amounts;
    amounts.insert("pods".into(), Quantity::count(1));
    for side in ["requests", "limits"] {
        for (resource, amount) in pod_resources(spec, side) {
            if side == "requests"
                && matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage")
            {
                amounts.insert(resource.clone(), amount);
            }
            amounts.insert(format!("{side}.{resource}"), amount);
        }
    }
    usage
}

/// What a pod takes: its containers together, or more where an init container needs more, and the overhead.
fn pod_resources(spec: &Value, side: &str) -> BTreeMap<String, Quantity> {
    let listed = |list: &Value| -> Vec<(bool, BTreeMap<String, Quantity>)> {
        let containers = list.as_array().into_iter().flatten();
        containers
            .map(|c| {
                (
                    c["restartPolicy"] == "Always",
                    amounts_of(&c["resources"][side]),
                )
            })
            .collect()
    };
    let mut sum = BTreeMap::new();
    let mut peak: BTreeMap<String, Quantity> = BTreeMap::new();
    let mut sidecars = BTreeMap::new();
    for (stays, amounts) in listed(&spec["initContainers"]) {
        if stays {
            add(&mut sidecars, &amounts);
        } else {
            let mut while_running = sidecars.clone();
            add(&mut while_running, &amounts);
            for (name, amount) in while_running {
                let slot = peak.entry(name).or_default();
                *slot = slot.larger(amount);
            }
        }
    }
    for (_, amounts) in listed(&spec["containers"]) {
        add(&mut sum, &amounts);
    }
    add(&mut sum, &sidecars);
    for (name, amount) in peak {
        let slot = sum.entry(name).or_default();
        *slot = slot.larger(amount);
    }
    let overhead = amounts_of(&spec["overhead"]);
    for (name, amount) in overhead {
        if side == "requests" || sum.contains_key(&name) {
            let slot = sum.entry(name).or_default();
            *slot = slot.add(amount);
        }
    }
    sum
}

fn amounts_of(map: &Value) -> BTreeMap<String, Quantity> {
    let entries = map.as_object().into_iter().flatten();
    entries
        .filter_map(|(name, value)| Some((name.clone(), Quantity::of(value)?)))
        .collect()
}

/// Adds amounts to a sum.
pub(crate) fn add(sum: &mut Amounts, amounts: &Amounts) {
    for (name, amount) in amounts {
        let slot = sum.entry(name.clone()).or_default();
        *slot = slot.add(*amount);
    }
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["containers", "initContainers"]
        .into_iter()
        .filter_map(|list| pod["spec"][list].as_array())
        .flatten()
}

/// What the containers of a new pod leave unsaid although a quota is about it, in upstream's words.
pub(crate) fn unsaid(pod: &Value, hard: &Amounts) -> Option<String> {
    let mut missing: BTreeMap<&str, std::collections::BTreeSet<&str>> = BTreeMap::new();
    for container in containers(pod) {
        let resources = &container["resources"];
        for name in EXPLICIT.into_iter().filter(|name| hard.contains_key(*name)) {
            let (side, resource) = name.split_once('.').unwrap_or(("requests", name));
            if resources[side].get(resource).is_none() {
                missing
                    .entry(name)
                    .or_default()
                    .insert(meta::text(container, &["name"]));
            }
        }
    }
    let words: Vec<String> = missing
        .into_iter()
        .map(|(name, containers)| {
            let containers: Vec<&str> = containers.into_iter().collect();
            format!("{name} for: {}", containers.join(","))
        })
        .collect();
    (!words.is_empty()).then(|| format!("must specify {}", words.join("; ")))
}

impl Usage {
    /// Whether the quota's scopes take this object in. Quotas with scopes are about pods only.
    pub(crate) fn in_scope(&self, quota: &Value) -> bool {
        let plain = quota["spec"]["scopes"].as_array().into_iter().flatten();
        let plain = plain
            .filter_map(Value::as_str)
            .map(|scope| (scope, "Exists", Vec::new()));
        let selected = quota["spec"]["scopeSelector"]["matchExpressions"].as_array();
        let selected = selected.into_iter().flatten().map(|e| {
            let values = e["values"].as_array().into_iter().flatten();
            (
                meta::text(e, &["scopeName"]),
                meta::text(e, &["operator"]),
                values.filter_map(Value::as_str).collect(),
            )
        });
        let scopes = &self.scopes;
        plain
            .chain(selected)
            .all(|(scope, operator, values): (&str, &str, Vec<&str>)| {
                if !scopes.is_pod {
                    return false;
                }
                match scope {
                    "Terminating" => scopes.terminating,
                    "NotTerminating" => !scopes.terminating,
                    "BestEffort" => scopes.best_effort,
                    "NotBestEffort" => !scopes.best_effort,
                    "PriorityClass" => {
                        let class = scopes.priority_class.as_str();
                        match operator {
                            "In" => values.contains(&class),
                            "NotIn" => !values.contains(&class),
                            "DoesNotExist" => class.is_empty(),
                            _ => !class.is_empty(),
                        }
                    }
                    _ => false,
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(amounts: &Amounts) -> Vec<String> {
        amounts
            .iter()
            .map(|(name, amount)| format!("{name}={amount}"))
            .collect()
    }

    #[test]
    fn pods() {
        let object = json!({"spec": {
            "overhead": {"memory": "10Mi"},
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "2", "memory": "1Mi"}}}],
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "100Mi"}, "limits": {"cpu": 1}}},
                {"name": "b", "resources": {"requests": {"cpu": "700m"}}},
            ],
        }});
        let usage = pod(&object);
        assert_eq!(
            texts(&usage.amounts),
            [
                "cpu=2",
                "limits.cpu=1",
                "memory=110Mi",
                "pods=1",
                "requests.cpu=2",
                "requests.memory=110Mi"
            ]
        );
        let hard = Amounts::from([
            ("limits.cpu".to_owned(), Quantity::count(9)),
            ("requests.memory".to_owned(), Quantity::count(1)),
        ]);
        assert_eq!(
            unsaid(&object, &hard).as_deref(),
            Some("must specify limits.cpu for: b,i; requests.memory for: b")
        );
        assert!(usage.in_scope(&json!({"spec": {"scopes": ["NotBestEffort", "NotTerminating"]}})));
        assert!(!usage.in_scope(&json!({"spec": {"scopes": ["BestEffort"]}})));
        let ended = json!({"spec": object["spec"], "status": {"phase": "Failed"}});
        assert!(pod(&ended).amounts.is_empty());
    }

    #[test]
    fn names() {
        assert_eq!(
            counters("kubevirt.io/virtualmachines"),
            ["count/virtualmachines.kubevirt.io"]
        );
        assert_eq!(counters("/secrets"), ["count/secrets", "secrets"]);
        assert!(
            !of("/persistentvolumeclaims", &json!({}))
                .in_scope(&json!({"spec": {"scopes": ["BestEffort"]}}))
        );
    }
}
