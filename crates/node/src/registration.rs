//! The Node object: what this machine is and has, and that it is alive.
//!
//! The heartbeat is a Lease in `kube-node-lease`, renewed every [`BEAT`]; the Ready condition changes with the agent only.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::NodeConfig;

/// Between two renewals.
const BEAT: Duration = Duration::from_secs(10);
/// How long a lease holds: four beats may be lost.
const LEASE_SECONDS: i32 = 40;
/// Where leases of nodes are, as on every cluster.
const NAMESPACE: &str = "kube-node-lease";
/// Memory that the machine keeps for itself and for berth.
const RESERVED: u64 = 256 << 20;

/// Registers the machine and renews its lease until `shutdown`.
pub(crate) async fn run(config: Arc<NodeConfig>, client: Client, shutdown: CancellationToken) {
    let mut registered = false;
    let mut beat = tokio::time::interval(BEAT);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = beat.tick() => {}
        }
        let result = async {
            if !registered {
                register(&config, &client).await?;
            }
            renew(&config, &client).await
        };
        match result.await {
            Ok(()) => registered = true,
            Err(error) => {
                registered = false;
                tracing::warn!(node = config.node_name, %error, "the node is not registered, will be tried again");
            }
        }
    }
}

async fn register(config: &NodeConfig, client: &Client) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(client.clone());
    let name = &config.node_name;
    let labels = labels(name);
    match api
        .create(
            &PostParams::default(),
            &from(json!({"metadata": {"name": name, "labels": labels}})),
        )
        .await
    {
        Ok(_) => {}
        Err(kube::Error::Api(answer)) if answer.code == 409 => {
            let patch = json!({"metadata": {"labels": labels}});
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
        }
        Err(error) => return Err(error),
    }
    let status = json!({"status": status(config, Timestamp::now())});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    tracing::info!(node = name, "node registered");
    Ok(())
}

async fn renew(config: &NodeConfig, client: &Client) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let name = &config.node_name;
    let spec = json!({
        "holderIdentity": name,
        "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": format!("{:.6}", Timestamp::now()),
    });
    match api
        .patch(
            name,
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": spec})),
        )
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(answer)) if answer.code == 404 => {
            let lease = json!({"metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec});
            api.create(&PostParams::default(), &from(lease))
                .await
                .map(drop)
        }
        Err(error) => Err(error),
    }
}

/// An object from its JSON, written here.
fn from<T: serde::de::DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).expect("a well-formed object")
}

fn labels(name: &str) -> Value {
    json!({
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture(),
        "kubevirt.io/schedulable": "true",
    })
}

/// As Go and so Kubernetes name them.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn status(config: &NodeConfig, now: Timestamp) -> Value {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = memory_bytes();
    let now = Timestamp::from_second(now.as_second())
        .unwrap_or(now)
        .to_string();
    let capacity = |memory: u64| json!({"cpu": cpus.to_string(), "memory": memory.to_string(), "pods": config.max_pods.to_string()});
    let text = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let kernel = rustix::system::uname();
    json!({
        "capacity": capacity(memory),
        "allocatable": capacity(memory.saturating_sub(RESERVED)),
        "addresses": [
            {"type": "InternalIP", "address": config.network.gateway.to_string()},
            {"type": "Hostname", "address": config.node_name},
        ],
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "NodeAgentReady", "message": "berth is running virtual machines",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        }],
        "nodeInfo": {
            "machineID": text("/etc/machine-id"),
            "systemUUID": "",
            "bootID": text("/proc/sys/kernel/random/boot_id"),
            "kernelVersion": kernel.release().to_string_lossy(),
            "osImage": os_image(&text("/etc/os-release")),
            "containerRuntimeVersion": format!("berth://{}", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": format!("berth-v{}", env!("CARGO_PKG_VERSION")),
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": architecture(),
        },
    })
}

fn os_image(os_release: &str) -> String {
    let name = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|value| {
        value
            .trim()
            .trim_end_matches(" kB")
            .trim()
            .parse::<u64>()
            .ok()
    });
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_something() {
        assert!(memory_bytes() > RESERVED);
        assert_eq!(
            os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"),
            "Debian GNU/Linux 12"
        );
        let node: Node = from(json!({"metadata": {"name": "n", "labels": labels("n")}}));
        assert_eq!(
            node.metadata.labels.unwrap()["kubevirt.io/schedulable"],
            "true"
        );
    }
}
