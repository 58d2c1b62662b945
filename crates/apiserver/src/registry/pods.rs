//! What the API server itself writes into a new pod: its class of service, its priority, and the tolerations that let it
//! stay a while on a node that is in trouble. Upstream has these in the pod strategy and in the admission plugins
//! `Priority` and `DefaultTolerationSeconds`.

use serde_json::{Map, Value, json};

use crate::registry::meta;

/// How long a pod stays on a node that is not ready or not reachable, in seconds.
const STAY: u64 = 300;

/// The classes of priority that every cluster has. There are no others here.
const PRIORITIES: [(&str, i32); 2] = [
    ("system-cluster-critical", 2_000_000_000),
    ("system-node-critical", 2_000_001_000),
];

/// Completes a pod that is about to be created; or why it is forbidden.
pub(crate) fn complete(pod: &mut Value) -> Result<(), String> {
    let class = class_of_service(pod);
    meta::entry(pod, "status").insert("qosClass".into(), json!(class));
    let spec = meta::entry(pod, "spec");
    let named = spec.get("priorityClassName").and_then(Value::as_str);
    let priority = match named.filter(|name| !name.is_empty()) {
        None => 0,
        Some(name) => {
            let known = PRIORITIES.iter().find(|(known, _)| *known == name);
            let found = known.map(|(_, priority)| *priority);
            found.ok_or_else(|| format!("no PriorityClass with name {name} was found"))?
        }
    };
    spec.entry("priority").or_insert(json!(priority));
    spec.entry("preemptionPolicy")
        .or_insert(json!("PreemptLowerPriority"));
    tolerate(spec);
    Ok(())
}

fn tolerate(spec: &mut Map<String, Value>) {
    let tolerations = spec.entry("tolerations").or_insert(json!([]));
    let Some(tolerations) = tolerations.as_array_mut() else {
        return;
    };
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let covered = tolerations.iter().any(|t| {
            let text = |field: &str| t[field].as_str().unwrap_or_default();
            (text("key") == key || text("key").is_empty())
                && matches!(text("effect"), "" | "NoExecute")
        });
        if !covered {
            tolerations.push(json!({
                "key": key,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": STAY,
            }));
        }
    }
}

/// `Guaranteed` if every container has equal requests and limits of both CPU and memory, `BestEffort` if none has any,
/// else `Burstable`.
fn class_of_service(pod: &Value) -> &'static str {
    let containers: Vec<&Value> = ["containers", "initContainers"]
        .iter()
        .filter_map(|list| pod["spec"][*list].as_array())
        .flatten()
        .collect();
    let given = |container: &Value, what: &str, name: &str| -> Option<Value> {
        let value = container["resources"][what].get(name)?;
        let zero = value == 0 || value.as_str().is_some_and(|v| v == "0");
        (!zero).then(|| value.clone())
    };
    let compute = ["cpu", "memory"];
    let none = containers.iter().all(|container| {
        ["requests", "limits"].iter().all(|what| {
            compute
                .iter()
                .all(|name| given(container, what, name).is_none())
        })
    });
    if none {
        return "BestEffort";
    }
    let all_equal = containers.iter().all(|container| {
        compute.iter().all(|name| {
            let limit = given(container, "limits", name);
            // A request that is left out is the limit.
            let request = given(container, "requests", name).or_else(|| limit.clone());
            limit.is_some() && limit == request
        })
    });
    if all_equal { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_service() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        for (resources, class) in [
            (json!({}), "BestEffort"),
            (json!({"limits": {"example.com/kvm": "1"}}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}}),
                "Guaranteed",
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}),
                "Burstable",
            ),
        ] {
            assert_eq!(
                class_of_service(&pod(resources.clone())),
                class,
                "{resources}"
            );
        }
    }

    #[test]
    fn tolerations_are_added_once() {
        let mut pod = json!({"spec": {"containers": [], "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]}});
        complete(&mut pod).unwrap();
        assert_eq!(pod["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
        let once = pod.clone();
        complete(&mut pod).unwrap();
        assert_eq!(pod, once);
    }
}
