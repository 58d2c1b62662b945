//! What a pod wants of the place where it runs, beside room: labels of the node, taints that it stands, pods that are near or
//! far, and an even spread. As kube-scheduler decides it; namespaces are named, not selected.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt as _;
use kube::core::{Selector, SelectorExt as _};

/// The pods that are bound, and the nodes that there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Neighbours<'a> {
    /// Pods that are not over, with the nodes that they are on.
    pub(super) pods: &'a [(&'a Pod, &'a Node)],
    /// Every node.
    pub(super) nodes: &'a [&'a Node],
}

/// Why a node does not suit a pod, in kube-scheduler's words; none where it does.
pub(super) fn objection(pod: &Pod, node: &Node, near: &Neighbours<'_>) -> Option<String> {
    if let Some(taint) = untolerated(pod, node) {
        let value = taint.value.as_deref().unwrap_or_default();
        return Some(format!(
            "node(s) had untolerated taint {{{}: {value}}}",
            taint.key
        ));
    }
    if !selected(pod, node) {
        return Some("node(s) didn't match Pod's node affinity/selector".to_owned());
    }
    if let Some(why) = unspread(pod, node, near) {
        return Some(why.to_owned());
    }
    if !has_company(pod, node, near) {
        return Some("node(s) didn't match pod affinity rules".to_owned());
    }
    let avoids = |pod: &Pod, other: &Pod, place: &Node| {
        required(pod, Kind::Anti)
            .iter()
            .any(|term| same_place(term, node, place) && selects(term, pod, other))
    };
    if near.pods.iter().any(|(other, at)| avoids(pod, other, at)) {
        return Some("node(s) didn't match pod anti-affinity rules".to_owned());
    }
    if near.pods.iter().any(|(other, at)| avoids(other, pod, at)) {
        return Some("node(s) didn't satisfy existing pods anti-affinity rules".to_owned());
    }
    None
}

/// How much a pod would like a node that suits it: the sum of the weights of what it prefers.
pub(super) fn preference(pod: &Pod, node: &Node, near: &Neighbours<'_>) -> i64 {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let Some(affinity) = affinity else { return 0 };
    let of_node = affinity.node_affinity.iter().flat_map(|affinity| {
        affinity
            .preferred_during_scheduling_ignored_during_execution
            .iter()
            .flatten()
    });
    let mut sum: i64 = of_node
        .filter(|term| matches(&term.preference, node))
        .map(|term| i64::from(term.weight))
        .sum();
    let near_to = affinity.pod_affinity.iter().flat_map(|affinity| {
        affinity
            .preferred_during_scheduling_ignored_during_execution
            .iter()
            .flatten()
            .map(|term| (i64::from(term.weight), &term.pod_affinity_term))
    });
    let far_from = affinity.pod_anti_affinity.iter().flat_map(|affinity| {
        affinity
            .preferred_during_scheduling_ignored_during_execution
            .iter()
            .flatten()
            .map(|term| (-i64::from(term.weight), &term.pod_affinity_term))
    });
    for (weight, term) in near_to.chain(far_from) {
        let meets =
            |(other, at): &&(&Pod, &Node)| same_place(term, node, at) && selects(term, pod, other);
        let count = near.pods.iter().filter(meets).count();
        sum += weight * i64::try_from(count).unwrap_or(i64::MAX);
    }
    sum
}

/// A taint that keeps the pod away. Cordoned nodes are looked at elsewhere.
fn untolerated<'a>(pod: &Pod, node: &'a Node) -> Option<&'a Taint> {
    let taints = node.spec.iter().filter_map(|s| s.taints.as_ref()).flatten();
    let tolerations: Vec<&Toleration> = pod
        .spec
        .iter()
        .filter_map(|s| s.tolerations.as_ref())
        .flatten()
        .collect();
    taints
        .into_iter()
        .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
        .find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let effect = text(&toleration.effect);
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = text(&toleration.key);
    if text(&toleration.operator) == "Exists" {
        return key.is_empty() || key == taint.key;
    }
    key == taint.key && text(&toleration.value) == text(&taint.value)
}

/// Whether the node has the labels that the pod requires.
fn selected(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let mut wanted = spec.node_selector.iter().flatten();
    if wanted.any(|(key, value)| node.labels().get(key) != Some(value)) {
        return false;
    }
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| {
        a.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    required.is_none_or(|required| {
        let terms = &required.node_selector_terms;
        terms.iter().any(|term| matches(term, node))
    })
}

/// Whether a node meets all of a term; one that asks for nothing is met by none.
fn matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels: Vec<_> = term.match_expressions.iter().flatten().collect();
    let fields: Vec<_> = term.match_fields.iter().flatten().collect();
    if labels.is_empty() && fields.is_empty() {
        return false;
    }
    let name = node.name_any();
    labels
        .iter()
        .all(|one| meets(one, node.labels().get(&one.key)))
        && fields
            .iter()
            .all(|one| one.key == "metadata.name" && meets(one, Some(&name)))
}

fn meets(wanted: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let bound = values.first().and_then(number);
    match (wanted.operator.as_str(), value) {
        ("In", Some(value)) => values.contains(value),
        ("NotIn", value) => value.is_none_or(|value| !values.contains(value)),
        ("Exists", value) => value.is_some(),
        ("DoesNotExist", value) => value.is_none(),
        ("Gt", Some(value)) => number(value).zip(bound).is_some_and(|(v, b)| v > b),
        ("Lt", Some(value)) => number(value).zip(bound).is_some_and(|(v, b)| v < b),
        _ => false,
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Near,
    Anti,
}

fn required(pod: &Pod, kind: Kind) -> &[PodAffinityTerm] {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let terms = affinity.and_then(|affinity| match kind {
        Kind::Near => affinity
            .pod_affinity
            .as_ref()?
            .required_during_scheduling_ignored_during_execution
            .as_deref(),
        Kind::Anti => affinity
            .pod_anti_affinity
            .as_ref()?
            .required_during_scheduling_ignored_during_execution
            .as_deref(),
    });
    terms.unwrap_or_default()
}

/// Whether two nodes are one place to this term.
fn same_place(term: &PodAffinityTerm, node: &Node, other: &Node) -> bool {
    let of = |node: &Node| node.labels().get(&term.topology_key).cloned();
    of(node).is_some_and(|place| Some(place) == of(other))
}

/// Whether a term of one pod means another.
fn selects(term: &PodAffinityTerm, pod: &Pod, other: &Pod) -> bool {
    let namespaces = term.namespaces.as_deref().unwrap_or_default();
    let everywhere = term.namespace_selector.as_ref().is_some_and(|selector| {
        let labels = selector.match_labels.as_ref();
        labels.is_none_or(BTreeMap::is_empty)
            && selector
                .match_expressions
                .as_ref()
                .is_none_or(Vec::is_empty)
    });
    let there = other.namespace().unwrap_or_default();
    let meant = everywhere
        || namespaces.contains(&there)
        || (namespaces.is_empty()
            && term.namespace_selector.is_none()
            && pod.namespace().unwrap_or_default() == there);
    meant && is_selected(term.label_selector.as_ref(), other.labels())
}

/// A selector that is not there selects nothing, an empty one all.
fn is_selected(selector: Option<&LabelSelector>, labels: &BTreeMap<String, String>) -> bool {
    let selector = selector.and_then(|s| Selector::try_from(s.clone()).ok());
    selector.is_some_and(|selector| selector.matches(labels))
}

/// Whether the pods that this one must be near are where the node is. The first of pods that want each other may begin.
fn has_company(pod: &Pod, node: &Node, near: &Neighbours<'_>) -> bool {
    required(pod, Kind::Near).iter().all(|term| {
        let meant = || {
            near.pods
                .iter()
                .filter(|(other, _)| selects(term, pod, other))
        };
        if meant().next().is_none() {
            return selects(term, pod, pod) && node.labels().contains_key(&term.topology_key);
        }
        meant().any(|(_, at)| same_place(term, node, at))
    })
}

/// Why the pods would be spread too unevenly.
fn unspread(pod: &Pod, node: &Node, near: &Neighbours<'_>) -> Option<&'static str> {
    const UNEVEN: &str = "node(s) didn't match pod topology spread constraints";
    let constraints = pod.spec.as_ref()?.topology_spread_constraints.as_ref()?;
    let namespace = pod.namespace();
    for constraint in constraints {
        if constraint.when_unsatisfiable != "DoNotSchedule" {
            continue;
        }
        let key = &constraint.topology_key;
        let Some(here) = node.labels().get(key) else {
            return Some(
                "node(s) didn't match pod topology spread constraints (missing required label)",
            );
        };
        let selector = constraint.label_selector.as_ref();
        let mut counts: BTreeMap<&String, i32> = near
            .nodes
            .iter()
            .filter(|node| selected(pod, node))
            .filter_map(|node| Some((node.labels().get(key)?, 0)))
            .collect();
        for (other, at) in near.pods {
            let counted = other.namespace() == namespace && is_selected(selector, other.labels());
            if let Some(count) = at.labels().get(key).and_then(|place| counts.get_mut(place))
                && counted
            {
                *count += 1;
            }
        }
        let domains = i32::try_from(counts.len()).unwrap_or(i32::MAX);
        let few = constraint.min_domains.is_some_and(|least| domains < least);
        let least = if few {
            0
        } else {
            counts.values().min().copied().unwrap_or(0)
        };
        let own = i32::from(is_selected(selector, pod.labels()));
        let there = counts.get(here).copied().unwrap_or(0);
        if there + own - least > constraint.max_skew {
            return Some(UNEVEN);
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "a test takes literals")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, labels: Value, taints: Value) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels}, "spec": {"taints": taints},
        }))
        .unwrap()
    }

    fn pod(app: &str, spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({
            "metadata": {"name": app, "namespace": "lab", "labels": {"app": app}}, "spec": spec,
        }))
        .unwrap()
    }

    fn why(pod: &Pod, node: &Node, pods: &[(&Pod, &Node)]) -> String {
        let near = Neighbours {
            pods,
            nodes: &[node],
        };
        objection(pod, node, &near).unwrap_or_default()
    }

    #[test]
    fn taints_keep_away_who_does_not_stand_them() {
        let tainted = node(
            "n",
            json!({}),
            json!([
                {"key": "gpu", "value": "yes", "effect": "NoSchedule"},
                {"key": "soft", "effect": "PreferNoSchedule"},
            ]),
        );
        assert_eq!(
            why(&pod("a", json!({})), &tainted, &[]),
            "node(s) had untolerated taint {gpu: yes}"
        );
        for (toleration, stands) in [
            (
                json!({"key": "gpu", "value": "yes", "effect": "NoSchedule"}),
                true,
            ),
            (json!({"key": "gpu", "operator": "Exists"}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"key": "gpu", "value": "no"}), false),
            (
                json!({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}),
                false,
            ),
        ] {
            let pod = pod("a", json!({"tolerations": [toleration]}));
            assert_eq!(why(&pod, &tainted, &[]).is_empty(), stands, "{toleration}");
        }
    }

    #[test]
    fn labels_of_the_node_by_every_operator() {
        let labelled = node("n", json!({"zone": "a", "cores": "8"}), json!(null));
        for (key, operator, values, suits) in [
            ("zone", "In", json!(["a", "b"]), true),
            ("zone", "In", json!(["b"]), false),
            ("zone", "NotIn", json!(["b"]), true),
            ("none", "NotIn", json!(["b"]), true),
            ("zone", "Exists", json!(null), true),
            ("zone", "DoesNotExist", json!(null), false),
            ("cores", "Gt", json!(["4"]), true),
            ("cores", "Lt", json!(["4"]), false),
            ("zone", "Gt", json!(["4"]), false),
        ] {
            let one = json!({"key": key, "operator": operator, "values": values});
            let spec = json!({"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution":
                    {"nodeSelectorTerms": [{"matchExpressions": [one]}]}}}});
            let told = why(&pod("a", spec), &labelled, &[]);
            assert_eq!(told.is_empty(), suits, "{key} {operator}: {told}");
        }
        let named = |name: &str| {
            let one = json!({"key": "metadata.name", "operator": "In", "values": [name]});
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchFields": [one]}]}}}})
        };
        assert_eq!(why(&pod("a", named("n")), &labelled, &[]), "");
        assert!(why(&pod("a", named("m")), &labelled, &[]).contains("node affinity"));
    }

    #[test]
    fn pods_are_near_or_far() {
        let (here, there) = (
            node("n", json!({"zone": "a"}), json!(null)),
            node("m", json!({"zone": "b"}), json!(null)),
        );
        let term = |app: &str| json!([{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}}]);
        let wants = |kind: &str, app: &str| json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": term(app)}}});
        let web = pod("web", json!({}));
        let near = pod("db", wants("podAffinity", "web"));
        assert!(why(&near, &here, &[]).contains("pod affinity rules"));
        assert_eq!(why(&near, &here, &[(&web, &here)]), "");
        assert!(!why(&near, &here, &[(&web, &there)]).is_empty());
        // The first of its kind.
        assert_eq!(why(&pod("db", wants("podAffinity", "db")), &here, &[]), "");
        let far = pod("db", wants("podAntiAffinity", "web"));
        assert!(why(&far, &here, &[(&web, &here)]).contains("didn't match pod anti-affinity"));
        assert_eq!(why(&far, &here, &[(&web, &there)]), "");
        // The one that is there keeps others away, too.
        assert!(why(&web, &here, &[(&far, &here)]).contains("existing pods anti-affinity"));
        let mut elsewhere = web.clone();
        elsewhere.metadata.namespace = Some("other".to_owned());
        assert_eq!(why(&far, &here, &[(&elsewhere, &here)]), "");
        let likes = pod(
            "db",
            json!({"affinity": {"podAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 7, "podAffinityTerm": term("web")[0]}]}}}),
        );
        let pods = [(&web, &here)];
        let near = Neighbours {
            pods: &pods,
            nodes: &[&here, &there],
        };
        assert_eq!(preference(&likes, &here, &near), 7);
        assert_eq!(preference(&likes, &there, &near), 0);
    }

    #[test]
    fn pods_are_spread() {
        let (here, there) = (
            node("n", json!({"zone": "a"}), json!(null)),
            node("m", json!({"zone": "b"}), json!(null)),
        );
        let spread = pod(
            "web",
            json!({"topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}}}]}),
        );
        let one = pod("web", json!({}));
        let pods = [(&one, &here)];
        let near = Neighbours {
            pods: &pods,
            nodes: &[&here, &there],
        };
        let told = objection(&spread, &here, &near).unwrap_or_default();
        assert!(told.contains("topology spread constraints"), "{told}");
        assert_eq!(objection(&spread, &there, &near), None);
        let bare = node("x", json!({}), json!(null));
        assert!(why(&spread, &bare, &[]).contains("missing required label"));
    }
}
