//! What a node says of itself to the scheduler: that virtual machines can run on it, and which.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use berth_api::labels;
use berth_hypervisor::host::Host;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::NodeConfig;

/// Between two heartbeats.
const BEAT: Duration = Duration::from_secs(60);
/// How long QEMU may take to say what it can do; under emulation it takes seconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// Where the kubelet keeps what it does about CPUs, on the node.
const CPU_MANAGER_STATE: &str = "/proc/1/root/var/lib/kubelet/cpu_manager_state";
/// Labels that begin so are this agent's, and go when they do not hold any more.
const OWN: [&str; 7] = [
    labels::CPU_MODEL_PREFIX,
    labels::CPU_FEATURE_PREFIX,
    labels::CPU_VENDOR_PREFIX,
    labels::HOST_MODEL_PREFIX,
    labels::HOST_FEATURE_PREFIX,
    labels::MACHINE_TYPE_PREFIX,
    labels::HYPERV_PREFIX,
];

/// Labels the node and renews its heartbeat until `shutdown`.
pub(super) async fn run(config: &NodeConfig, client: &Client, shutdown: &CancellationToken) {
    let api: Api<Node> = Api::all(client.clone());
    // Machines that ask for nothing special need not wait until QEMU was asked.
    let asking = ask(&config.berth_binary);
    tokio::pin!(asking);
    let mut host = None;
    let mut beat = tokio::time::interval(BEAT);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = beat.tick() => {}
            answer = &mut asking, if host.is_none() => host = Some(answer),
        }
        let known = host.as_ref().and_then(Option::as_ref);
        if let Err(error) = tell(&api, &config.node_name, known).await {
            tracing::warn!(node = config.node_name, %error, "the node is not labelled, will be tried again");
        }
    }
}

async fn tell(api: &Api<Node>, name: &str, host: Option<&Host>) -> Result<(), kube::Error> {
    let node = api.get(name).await?;
    let state = std::fs::read_to_string(CPU_MANAGER_STATE).unwrap_or_default();
    let now = Timestamp::now();
    let patch = json!({"metadata": {
        "labels": changes(node.labels(), hands_out_cpus(&state), host),
        "annotations": {labels::HEARTBEAT: format!("{now:.0}")},
    }});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map(drop)
}

/// Whether the kubelet gives containers CPUs of their own, by the state that it keeps.
fn hands_out_cpus(state: &str) -> bool {
    serde_json::from_str::<Value>(state).is_ok_and(|state| state["policyName"] == "static")
}

/// The labels to set, and those to take off (null). What QEMU was not asked yet stays as it is.
fn changes(
    now: &BTreeMap<String, String>,
    hands_out_cpus: bool,
    host: Option<&Host>,
) -> BTreeMap<String, Value> {
    let mut wanted = BTreeMap::from([
        (labels::SCHEDULABLE.to_owned(), "true".to_owned()),
        (labels::CPU_MANAGER.to_owned(), hands_out_cpus.to_string()),
    ]);
    if let Some(host) = host {
        let kinds = [
            (labels::CPU_MODEL_PREFIX, &host.cpu_models),
            (labels::CPU_FEATURE_PREFIX, &host.features),
            (labels::CPU_VENDOR_PREFIX, &host.vendor),
            (labels::HOST_MODEL_PREFIX, &host.model),
            (labels::HOST_FEATURE_PREFIX, &host.features),
            (labels::MACHINE_TYPE_PREFIX, &host.machines),
            (labels::HYPERV_PREFIX, &host.hyperv),
        ];
        for (prefix, names) in kinds {
            let named = names.iter().filter(|name| is_label_name(name));
            wanted.extend(named.map(|name| (format!("{prefix}{name}"), "true".to_owned())));
        }
    }
    let mut changes: BTreeMap<String, Value> = BTreeMap::new();
    if host.is_some() {
        let stale: BTreeSet<&String> = now
            .keys()
            .filter(|key| OWN.iter().any(|prefix| key.starts_with(prefix)))
            .filter(|key| !wanted.contains_key(*key))
            .collect();
        changes.extend(stale.into_iter().map(|key| (key.clone(), Value::Null)));
    }
    let news = wanted
        .into_iter()
        .filter(|(key, value)| now.get(key) != Some(value));
    changes.extend(news.map(|(key, value)| (key, Value::String(value))));
    changes
}

/// Whether a name can be the second part of a label's key.
fn is_label_name(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() <= 63
        && edge(name.chars().next())
        && edge(name.chars().next_back())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// What libvirt says of this host, asked by a process of its own: it starts a daemon for it.
async fn ask(program: &Path) -> Option<Host> {
    let mut command = tokio::process::Command::new(program);
    command
        .args(["--log", "warn", "launcher", "--describe-host"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let answer = async {
        let output = tokio::time::timeout(PATIENCE, command.output())
            .await
            .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("it ended with {}", output.status));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
    };
    match answer.await {
        Ok(host) => Some(host),
        Err(error) => {
            tracing::warn!(%error, "libvirt does not describe this host: machines that ask for a model of a processor or a version of a machine type are not placed here");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_and_go_with_what_they_say() {
        let now = BTreeMap::from(
            [
                ("kubernetes.io/os", "linux"),
                (labels::SCHEDULABLE, "true"),
                (labels::CPU_MANAGER, "true"),
                ("cpu-model.node.kubevirt.io/Old", "true"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        let before = changes(&now, false, None);
        assert_eq!(
            before,
            BTreeMap::from([(labels::CPU_MANAGER.to_owned(), json!("false"))])
        );
        let host = Host {
            cpu_models: vec!["Haswell".into(), "no label".into()],
            vendor: vec!["Intel".into()],
            ..Host::default()
        };
        let after = changes(&now, true, Some(&host));
        assert_eq!(
            serde_json::to_value(after).unwrap(),
            json!({
                "cpu-model.node.kubevirt.io/Haswell": "true",
                "cpu-model.node.kubevirt.io/Old": null,
                "cpu-vendor.node.kubevirt.io/Intel": "true",
            })
        );
    }

    #[test]
    fn the_kubelet_hands_out_cpus_or_not() {
        assert!(hands_out_cpus(
            r#"{"policyName":"static","defaultCpuSet":"0-1","checksum":1}"#
        ));
        assert!(!hands_out_cpus(
            r#"{"policyName":"none","defaultCpuSet":"","checksum":1}"#
        ));
        assert!(!hands_out_cpus(""));
    }
}
