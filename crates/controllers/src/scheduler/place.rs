//! Where a pod may run: a pure decision over nodes and what is already promised on them.
//!
//! The checks are the ones a virtual machine's launcher pod can meet on a small installation: the node is there
//! (Ready), accepts pods (not cordoned), is a place where the pod wants to be (`affinity`) and has room for the requests. The words of a
//! refusal follow kube-scheduler's (`0/1 nodes are available: 1 Insufficient memory.`), because users and tools
//! know them.

use std::collections::{BTreeMap, HashMap};

use berth_api::quantity::{parse_bytes, parse_millis};
use k8s_openapi::api::core::v1::{Container, Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::affinity::{self, Neighbours};

/// What a pod asks of a node, or what a node offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory: u64,
    /// Pods: 1 for a pod, the node's limit for a node.
    pub pods: u64,
}

impl Resources {
    /// The sum of two amounts.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory: self.memory.saturating_add(other.memory),
            pods: self.pods.saturating_add(other.pods),
        }
    }

    /// The requests of a pod: its containers summed, or its largest init container where that is more.
    #[must_use]
    pub fn of_pod(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else {
            return Self {
                pods: 1,
                ..Self::default()
            };
        };
        let sum = spec
            .containers
            .iter()
            .map(container_requests)
            .fold(Self::default(), Self::plus);
        let init = spec
            .init_containers
            .iter()
            .flatten()
            .map(container_requests);
        let peak = init.fold(sum, |a, b| Self {
            cpu_millis: a.cpu_millis.max(b.cpu_millis),
            memory: a.memory.max(b.memory),
            pods: 0,
        });
        let overhead = spec.overhead.as_ref().map(amounts).unwrap_or_default();
        Self {
            pods: 1,
            ..peak.plus(overhead)
        }
    }

    /// What a node can give to pods. A resource that the node does not report is not limited.
    #[must_use]
    pub fn allocatable(node: &Node) -> Self {
        let unlimited = Self {
            cpu_millis: u64::MAX,
            memory: u64::MAX,
            pods: u64::MAX,
        };
        let Some(list) = node.status.as_ref().and_then(|s| s.allocatable.as_ref()) else {
            return unlimited;
        };
        Self {
            cpu_millis: list.get("cpu").and_then(millis).unwrap_or(u64::MAX),
            memory: list.get("memory").and_then(bytes).unwrap_or(u64::MAX),
            pods: list.get("pods").and_then(bytes).unwrap_or(u64::MAX),
        }
    }
}

fn container_requests(c: &Container) -> Resources {
    // A limit without a request is a request of the same size, as the API server of a cluster defaults it.
    let Some(r) = &c.resources else {
        return Resources::default();
    };
    let limits = r.limits.as_ref().map(amounts).unwrap_or_default();
    let Some(requests) = &r.requests else {
        return limits;
    };
    let asked = amounts(requests);
    Resources {
        cpu_millis: if requests.contains_key("cpu") {
            asked.cpu_millis
        } else {
            limits.cpu_millis
        },
        memory: if requests.contains_key("memory") {
            asked.memory
        } else {
            limits.memory
        },
        pods: 0,
    }
}

fn amounts(list: &BTreeMap<String, Quantity>) -> Resources {
    Resources {
        cpu_millis: list.get("cpu").and_then(millis).unwrap_or(0),
        memory: list.get("memory").and_then(bytes).unwrap_or(0),
        pods: 0,
    }
}

fn millis(q: &Quantity) -> Option<u64> {
    parse_millis(q).ok()
}

fn bytes(q: &Quantity) -> Option<u64> {
    parse_bytes(q).ok()
}

/// Requests already promised on each node, by node name.
pub type Committed = HashMap<String, Resources>;

/// Sums the requests of all pods that are bound to a node and not over.
pub fn committed<'a>(pods: impl Iterator<Item = &'a Pod>) -> Committed {
    let mut by_node = Committed::new();
    for pod in pods.filter(|p| !is_over(p)) {
        if let Some(node) = bound_node(pod) {
            let entry = by_node.entry(node.to_owned()).or_default();
            *entry = entry.plus(Resources::of_pod(pod));
        }
    }
    by_node
}

/// True when the pod's containers have ended for good, so that its requests are free again.
#[must_use]
pub fn is_over(pod: &Pod) -> bool {
    matches!(
        pod.status.as_ref().and_then(|s| s.phase.as_deref()),
        Some("Succeeded" | "Failed")
    )
}

/// The node that the pod is bound to.
#[must_use]
pub fn bound_node(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()
        .and_then(|s| s.node_name.as_deref())
        .filter(|n| !n.is_empty())
}

/// Why no node takes a pod; its `Display` is the message that users see.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.message())]
pub struct Unschedulable {
    nodes: usize,
    reasons: BTreeMap<String, usize>,
}

impl Unschedulable {
    fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let reasons: Vec<String> = self
            .reasons
            .iter()
            .map(|(reason, n)| format!("{n} {reason}"))
            .collect();
        format!(
            "0/{} nodes are available: {}.",
            self.nodes,
            reasons.join(", ")
        )
    }
}

/// Chooses the node for `pod`: of those that fit, the one that it prefers most, then the one with the most memory left, then the
/// first by name. `pods`: all that there are, for those that want to be near or far.
///
/// # Errors
/// [`Unschedulable`] with every node's reasons counted when no node fits.
pub fn place(
    pod: &Pod,
    nodes: &[impl AsRef<Node>],
    committed: &Committed,
    pods: &[impl AsRef<Pod>],
) -> Result<String, Unschedulable> {
    let nodes: Vec<&Node> = nodes.iter().map(AsRef::as_ref).collect();
    let placed: Vec<(&Pod, &Node)> = pods
        .iter()
        .map(AsRef::as_ref)
        .filter(|pod| !is_over(pod))
        .filter_map(|pod| {
            let name = bound_node(pod)?;
            let node = nodes
                .iter()
                .find(|n| n.metadata.name.as_deref() == Some(name));
            Some((pod, *node?))
        })
        .collect();
    let near = Neighbours {
        pods: &placed,
        nodes: &nodes,
    };
    let want = Resources::of_pod(pod);
    let mut refused = Unschedulable {
        nodes: nodes.len(),
        reasons: BTreeMap::new(),
    };
    let mut best: Option<((i64, u64), String)> = None;
    for node in nodes.iter().copied() {
        let name = node.metadata.name.clone().unwrap_or_default();
        let used = committed.get(&name).copied().unwrap_or_default();
        let reasons = objections(pod, want, node, used, &near);
        if reasons.is_empty() {
            let left = Resources::allocatable(node)
                .memory
                .saturating_sub(used.memory);
            let left = (affinity::preference(pod, node, &near), left);
            let better = match &best {
                None => true,
                Some((most, chosen)) => left > *most || (left == *most && name < *chosen),
            };
            if better {
                best = Some((left, name));
            }
        }
        for reason in reasons {
            *refused.reasons.entry(reason).or_default() += 1;
        }
    }
    best.map(|(_, name)| name).ok_or(refused)
}

/// What speaks against this node. The first kind of objection hides the later ones, as with kube-scheduler.
fn objections(
    pod: &Pod,
    want: Resources,
    node: &Node,
    used: Resources,
    near: &Neighbours<'_>,
) -> Vec<String> {
    if node
        .spec
        .as_ref()
        .and_then(|s| s.unschedulable)
        .unwrap_or(false)
    {
        return vec!["node(s) were unschedulable".to_owned()];
    }
    if !is_ready(node) {
        return vec!["node(s) were not ready".to_owned()];
    }
    if let Some(why) = affinity::objection(pod, node, near) {
        return vec![why];
    }
    let has = Resources::allocatable(node);
    let total = used.plus(want);
    let mut short = Vec::new();
    if total.pods > has.pods {
        short.push("Too many pods".to_owned());
    }
    if want.cpu_millis > 0 && total.cpu_millis > has.cpu_millis {
        short.push("Insufficient cpu".to_owned());
    }
    if want.memory > 0 && total.memory > has.memory {
        short.push("Insufficient memory".to_owned());
    }
    short
}

fn is_ready(node: &Node) -> bool {
    let conditions = node
        .status
        .iter()
        .filter_map(|s| s.conditions.as_ref())
        .flatten();
    conditions
        .into_iter()
        .any(|c| c.type_ == "Ready" && c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn node(name: &str, ready: &str, memory: &str) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {"zone": "a"}},
                "status": {
                    "allocatable": {"cpu": "2", "memory": memory, "pods": "3"},
                    "conditions": [{"type": "Ready", "status": ready}],
                },
            }))
            .unwrap(),
        )
    }

    fn pod(memory: &str, cpu: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "compute", "resources": {"requests": {"memory": memory, "cpu": cpu}}}]},
        }))
        .unwrap()
    }

    fn bound(memory: &str, node: &str, phase: &str) -> Pod {
        let mut p = pod(memory, "100m");
        p.spec.as_mut().unwrap().node_name = Some(node.to_owned());
        p.status = serde_json::from_value(json!({"phase": phase})).unwrap();
        p
    }

    fn none() -> [Arc<Pod>; 0] {
        []
    }

    fn why(pod: &Pod, nodes: &[Arc<Node>], pods: &[Pod]) -> String {
        place(pod, nodes, &committed(pods.iter()), &none())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn takes_the_node_with_the_most_memory_left() {
        let nodes = [node("a", "True", "2Gi"), node("b", "True", "4Gi")];
        assert_eq!(
            place(&pod("1Gi", "1"), &nodes, &Committed::new(), &none()),
            Ok("b".to_owned())
        );
        let used = committed([bound("3Gi", "b", "Running")].iter());
        assert_eq!(
            place(&pod("1Gi", "1"), &nodes, &used, &none()),
            Ok("a".to_owned())
        );
    }

    #[test]
    fn equal_nodes_are_taken_by_name() {
        let nodes = [node("b", "True", "2Gi"), node("a", "True", "2Gi")];
        assert_eq!(
            place(&pod("1Gi", "1"), &nodes, &Committed::new(), &none()),
            Ok("a".to_owned())
        );
    }

    #[test]
    fn says_what_is_missing() {
        let one = [node("a", "True", "1Gi")];
        assert_eq!(
            why(&pod("1Gi", "1"), &[], &[]),
            "no nodes available to schedule pods"
        );
        assert_eq!(
            why(&pod("2Gi", "1"), &one, &[]),
            "0/1 nodes are available: 1 Insufficient memory."
        );
        assert_eq!(
            why(&pod("2Gi", "2500m"), &one, &[]),
            "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."
        );
        assert_eq!(
            why(
                &pod("2Gi", "1"),
                &[node("a", "False", "4Gi"), node("b", "True", "1Gi")],
                &[]
            ),
            "0/2 nodes are available: 1 Insufficient memory, 1 node(s) were not ready."
        );
    }

    #[test]
    fn counts_running_pods_and_forgets_finished_ones() {
        let one = [node("a", "True", "2Gi")];
        let running = [bound("1536Mi", "a", "Running")];
        assert_eq!(
            why(&pod("1Gi", "0"), &one, &running),
            "0/1 nodes are available: 1 Insufficient memory."
        );
        let over = committed([bound("1536Mi", "a", "Failed")].iter());
        assert_eq!(
            place(&pod("1Gi", "0"), &one, &over, &none()),
            Ok("a".to_owned())
        );
        let many = [
            bound("1Mi", "a", "Running"),
            bound("1Mi", "a", "Pending"),
            bound("1Mi", "a", "Running"),
        ];
        assert_eq!(
            why(&pod("1Mi", "0"), &one, &many),
            "0/1 nodes are available: 1 Too many pods."
        );
    }

    #[test]
    fn honours_cordon_and_selector() {
        let mut cordoned = (*node("a", "True", "2Gi")).clone();
        cordoned.spec = serde_json::from_value(json!({"unschedulable": true})).unwrap();
        assert_eq!(
            why(&pod("1Mi", "1m"), &[Arc::new(cordoned)], &[]),
            "0/1 nodes are available: 1 node(s) were unschedulable."
        );
        let mut choosy = pod("1Mi", "1m");
        choosy.spec.as_mut().unwrap().node_selector =
            Some([("zone".to_owned(), "b".to_owned())].into());
        assert_eq!(
            why(&choosy, &[node("a", "True", "2Gi")], &[]),
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
        );
    }

    #[test]
    fn a_limit_without_a_request_counts() {
        let p: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": "1Gi"}}}],
                     "initContainers": [{"name": "i", "resources": {"requests": {"memory": "2Gi", "cpu": "1"}}}]},
        }))
        .unwrap();
        assert_eq!(
            Resources::of_pod(&p),
            Resources {
                cpu_millis: 1000,
                memory: 2 << 30,
                pods: 1
            }
        );
    }
}
