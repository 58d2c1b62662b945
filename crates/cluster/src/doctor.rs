//! Looks at a cluster and says what is missing for virtual machines to run there.
//!
//! [`examine`] reads and changes nothing; what it makes of each object is a pure function.

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

use berth_api::labels;
use berth_api::settings::v1::{Berth, Configuration, NAME};

use crate::manifests::{API_SERVICES, CONFIGURATION, CONTROLLER, NODE};

/// The oldest minor version of Kubernetes 1 that berth runs on.
const OLDEST: u32 = 31;
/// A node agent beats every minute.
const LATE: SignedDuration = SignedDuration::from_mins(3);

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Good,
    /// Works, but less well than it should.
    Poor,
    /// Virtual machines do not run, or cannot be reached, until this is mended.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How it is.
    pub grade: Grade,
    /// What was found, with what to do about it unless it is good.
    pub text: String,
}

fn finding(grade: Grade, text: impl Into<String>) -> Finding {
    Finding {
        grade,
        text: text.into(),
    }
}

/// Looks at everything.
///
/// # Errors
/// When the API server cannot be asked, or does not let the user look.
pub async fn examine(client: &Client, namespace: &str) -> Result<Vec<Finding>, kube::Error> {
    let version = client.apiserver_version().await?;
    let mut found = vec![of_version(&version.major, &version.minor)];
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in berth_api::crds() {
        let name = crd.name_any();
        found.push(of_definition(
            &name,
            definitions.get_opt(&name).await?.as_ref(),
        ));
    }
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    found.push(of_controller(
        namespace,
        deployments.get_opt(CONTROLLER).await?.as_ref(),
    ));
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    found.push(of_agents(namespace, sets.get_opt(NODE).await?.as_ref()));

    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let mutating = mutating.get_opt(CONFIGURATION).await?;
    let webhooks = mutating.and_then(|c| c.webhooks).unwrap_or_default();
    found.push(of_webhooks(
        "mutating",
        webhooks.iter().map(|w| w.client_config.ca_bundle.is_some()),
    ));
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let validating = validating.get_opt(CONFIGURATION).await?;
    let webhooks = validating.and_then(|c| c.webhooks).unwrap_or_default();
    found.push(of_webhooks(
        "validating",
        webhooks.iter().map(|w| w.client_config.ca_bundle.is_some()),
    ));
    let services: Api<APIService> = Api::all(client.clone());
    for name in API_SERVICES {
        found.push(of_service(name, services.get_opt(name).await?.as_ref()));
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes.list(&ListParams::default()).await?.items;
    let berths: Api<Berth> = Api::all(client.clone());
    // No such kind yet is said already.
    let berth = match berths.get_opt(NAME).await {
        Err(kube::Error::Api(answer)) if answer.code == 404 => None,
        other => other?,
    };
    let configuration = berth.map(|berth| berth.spec.configuration);
    let configuration = configuration.unwrap_or_default();
    found.extend(of_settings(&configuration));
    found.extend(of_nodes(&nodes, &configuration, Timestamp::now()));
    Ok(found)
}

fn of_version(major: &str, minor: &str) -> Finding {
    // Some distributions add a sign: "31+".
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse();
    let shown = format!("Kubernetes {major}.{minor}");
    match (number(major), number(minor)) {
        (Ok(1), Ok(minor)) if minor < OLDEST => finding(
            Grade::Bad,
            format!("{shown}: berth needs 1.{OLDEST} or newer; upgrade the cluster"),
        ),
        (Ok(1), Ok(_)) => finding(Grade::Good, shown),
        _ => finding(
            Grade::Poor,
            format!("{shown}: berth was made for Kubernetes 1.{OLDEST} and newer"),
        ),
    }
}

fn of_definition(name: &str, crd: Option<&CustomResourceDefinition>) -> Finding {
    let conditions = crd.map(|crd| {
        let status = crd.status.as_ref();
        status
            .and_then(|s| s.conditions.clone())
            .unwrap_or_default()
    });
    match conditions {
        None => missing(&format!("definition {name}")),
        Some(all)
            if all
                .iter()
                .any(|c| c.type_ == "Established" && c.status == "True") =>
        {
            finding(Grade::Good, format!("definition {name}"))
        }
        Some(all) => {
            let why: Vec<String> = all
                .into_iter()
                .filter(|c| c.status != "True")
                .filter_map(|c| c.message)
                .collect();
            let why = why.join("; ");
            finding(
                Grade::Bad,
                format!("definition {name} is not established: {why}"),
            )
        }
    }
}

fn missing(what: &str) -> Finding {
    finding(
        Grade::Bad,
        format!("{what} is missing; install berth: berth manifests | kubectl apply -f -"),
    )
}

fn of_controller(namespace: &str, controller: Option<&Deployment>) -> Finding {
    let shown = format!("deployment {namespace}/{CONTROLLER}");
    let Some(controller) = controller else {
        return missing(&shown);
    };
    let wanted = controller.spec.as_ref().and_then(|s| s.replicas);
    let wanted = wanted.unwrap_or(1);
    let ready = controller.status.as_ref().and_then(|s| s.ready_replicas);
    let idle = "no virtual machine is admitted or started";
    of_pods(
        (namespace, CONTROLLER),
        &shown,
        ready.unwrap_or(0),
        wanted,
        idle,
    )
}

/// How many pods of a part are ready; `idle` is what does not happen without any.
fn of_pods(part: (&str, &str), shown: &str, ready: i32, wanted: i32, idle: &str) -> Finding {
    let (namespace, app) = part;
    let shown = format!("{shown}: {ready} of {wanted} ready");
    let look =
        format!("look: kubectl -n {namespace} describe pods -l app.kubernetes.io/name={app}");
    match ready {
        0 => finding(Grade::Bad, format!("{shown}; {idle}; {look}")),
        ready if ready < wanted => finding(Grade::Poor, format!("{shown}; {look}")),
        _ => finding(Grade::Good, shown),
    }
}

fn of_agents(namespace: &str, agents: Option<&DaemonSet>) -> Finding {
    let shown = format!("daemonset {namespace}/{NODE}");
    let Some(agents) = agents else {
        return missing(&shown);
    };
    let status = agents.status.clone().unwrap_or_default();
    let (ready, wanted) = (status.number_ready, status.desired_number_scheduled);
    of_pods(
        (namespace, NODE),
        &shown,
        ready,
        wanted,
        "no virtual machine runs",
    )
}

/// Of each webhook, whether it has the certificate of the controller's authority.
fn of_webhooks(kind: &str, certified: impl Iterator<Item = bool>) -> Finding {
    let shown = format!("{kind} webhook configuration {CONFIGURATION}");
    let all: Vec<bool> = certified.collect();
    if all.is_empty() {
        return missing(&shown);
    }
    if all.iter().all(|certified| *certified) {
        return finding(Grade::Good, shown);
    }
    finding(
        Grade::Bad,
        format!("{shown} has no caBundle: the controller has not run yet, or may not write it"),
    )
}

fn of_service(name: &str, service: Option<&APIService>) -> Finding {
    let shown = format!("apiservice {name}");
    let Some(service) = service else {
        return missing(&shown);
    };
    let conditions = service.status.as_ref().and_then(|s| s.conditions.as_ref());
    let available = conditions
        .into_iter()
        .flatten()
        .find(|c| c.type_ == "Available");
    match available {
        Some(condition) if condition.status == "True" => finding(Grade::Good, shown),
        condition => {
            let why = condition.and_then(|c| c.message.as_deref()).unwrap_or("");
            finding(
                Grade::Bad,
                format!("{shown} is not available, so there are no consoles: {why}"),
            )
        }
    }
}

fn of_settings(configuration: &Configuration) -> Option<Finding> {
    let unknown = configuration.unknown_gates();
    (!unknown.is_empty()).then(|| {
        let names = unknown.join(", ");
        finding(
            Grade::Poor,
            format!("berth {NAME}: featureGates that mean nothing here: {names}"),
        )
    })
}

fn of_nodes(nodes: &[Node], configuration: &Configuration, now: Timestamp) -> Vec<Finding> {
    let mut usable = 0;
    let mut found = Vec::new();
    for node in nodes {
        let told = of_node(node, configuration, now);
        usable += usize::from(told.grade == Grade::Good);
        found.push(told);
    }
    if usable == 0 {
        let text = "no node runs virtual machines";
        found.push(finding(Grade::Bad, text));
    }
    found
}

/// What the node's kubelet does not hand out, of what every launcher asks for.
fn lacks<'a>(node: &Node, configuration: &Configuration) -> Option<&'a str> {
    let has = |device: &str| {
        let status = node.status.as_ref();
        let amounts = status.and_then(|status| status.allocatable.as_ref());
        amounts
            .and_then(|amounts| amounts.get(device))
            .is_some_and(|amount| amount.0 != "0")
    };
    if !has(labels::DEVICE_TUN) {
        return Some("its kubelet hands out no /dev/net/tun; is the module tun there?");
    }
    if !configuration.developer_configuration.use_emulation && !has(labels::DEVICE_KVM) {
        return Some(
            "it has no usable KVM; to emulate guests in software set spec.configuration.developerConfiguration.useEmulation of berth berth",
        );
    }
    None
}

fn of_node(node: &Node, configuration: &Configuration, now: Timestamp) -> Finding {
    let shown = format!("node {}", node.name_any());
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    let poor = |why: &str| finding(Grade::Poor, format!("{shown}: {why}"));
    if !ready {
        return poor("its kubelet is not ready");
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        return poor("cordoned; kubectl uncordon lets new virtual machines on it");
    }
    if node.labels().get(labels::SCHEDULABLE).map(String::as_str) != Some("true") {
        return poor("no node agent has said that virtual machines can run on it");
    }
    if let Some(why) = lacks(node, configuration) {
        return poor(why);
    }
    let beat = node.annotations().get(labels::HEARTBEAT);
    let beat = beat.and_then(|text| text.parse::<Timestamp>().ok());
    match beat {
        Some(beat) if now.duration_since(beat) <= LATE => finding(Grade::Good, shown),
        Some(beat) => poor(&format!("its node agent was last heard of at {beat:.0}")),
        None => poor("its node agent was never heard of"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn versions() {
        for (version, grade) in [
            (("1", "34"), Grade::Good),
            (("1", "31+"), Grade::Good),
            (("1", "30"), Grade::Bad),
            (("2", "0"), Grade::Poor),
            (("", ""), Grade::Poor),
        ] {
            assert_eq!(of_version(version.0, version.1).grade, grade, "{version:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_missing() {
        for told in [
            of_definition("x", None),
            of_controller("berth", None),
            of_agents("berth", None),
            of_webhooks("mutating", std::iter::empty()),
            of_service("v1.x", None),
        ] {
            assert_eq!(told.grade, Grade::Bad);
            assert!(told.text.contains("is missing; install berth"), "{told:?}");
        }
    }

    #[test]
    fn parts_that_are_not_all_ready() {
        let controller = |ready: i32| {
            let object = json!({"spec": {"replicas": 2, "selector": {}, "template": {}}, "status": {"readyReplicas": ready}});
            of_controller("berth", Some(&read(object))).grade
        };
        assert_eq!(
            [0, 1, 2].map(controller),
            [Grade::Bad, Grade::Poor, Grade::Good]
        );
        assert_eq!(
            of_webhooks("mutating", [true, false].into_iter()).grade,
            Grade::Bad
        );
        let service = |status: &str| {
            let conditions =
                json!([{"type": "Available", "status": status, "message": "no endpoints"}]);
            of_service(
                "v1.x",
                Some(&read(json!({"status": {"conditions": conditions}}))),
            )
        };
        assert_eq!(service("True").grade, Grade::Good);
        assert!(service("False").text.contains("no endpoints"));
    }

    #[test]
    fn nodes_without_an_agent_run_no_machines() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let node = |label: &str, beat: &str, cordoned: bool| -> Node {
            read(json!({
                "metadata": {"name": "n", "labels": {labels::SCHEDULABLE: label}, "annotations": {labels::HEARTBEAT: beat}},
                "spec": {"unschedulable": cordoned},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "allocatable": {labels::DEVICE_TUN: "1000", labels::DEVICE_KVM: "1000"},
                },
            }))
        };
        let plain = Configuration::default();
        let fresh = "2026-01-01T11:59:00Z";
        let good = node("true", fresh, false);
        assert_eq!(of_node(&good, &plain, now).grade, Grade::Good);
        for poor in [
            node("false", fresh, false),
            node("true", "2026-01-01T11:00:00Z", false),
            node("true", "soon", false),
            node("true", fresh, true),
            Node::default(),
        ] {
            assert_eq!(of_node(&poor, &plain, now).grade, Grade::Poor);
            let all = of_nodes(&[poor], &plain, now);
            assert!(all.iter().any(|told| told.grade == Grade::Bad), "{all:?}");
        }
        let mut without = good.clone();
        let amounts = without.status.as_mut().and_then(|s| s.allocatable.as_mut());
        amounts.unwrap().remove(labels::DEVICE_KVM);
        assert_eq!(of_node(&without, &plain, now).grade, Grade::Poor);
        let emulated: Configuration =
            read(json!({"developerConfiguration": {"useEmulation": true}}));
        assert_eq!(of_node(&without, &emulated, now).grade, Grade::Good);
        assert_eq!(of_nodes(&[good], &plain, now).len(), 1);
        assert_eq!(of_nodes(&[], &plain, now).len(), 1);
    }
}
