//! The end-to-end tests on a real cluster: the stories of standalone, and what only a cluster has. `make test-cluster`
//! makes the cluster, installs berth and says by `BERTH_CLUSTER` where it is.

#[path = "../stories/mod.rs"]
mod stories;

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_e2e::{Cluster, Target as _, manifest, run, wait_for};
use stories::{BOOT, MEMORY, SOON};

fn cluster(test: &str) -> anyhow::Result<Option<Cluster>> {
    let cluster = Cluster::start()?;
    if cluster.is_none() {
        berth_testing::skip(test, "no cluster: BERTH_CLUSTER is not set");
    }
    Ok(cluster)
}

/// Held by stories that the one which stops kubelets must not disturb.
static UNDISTURBED: RwLock<()> = RwLock::new(());

macro_rules! story {
    ($name:ident, $story:expr) => {
        #[test]
        fn $name() -> anyhow::Result<()> {
            let _undisturbed = UNDISTURBED.read().unwrap_or_else(PoisonError::into_inner);
            match cluster(stringify!($name))? {
                Some(cluster) => $story(&cluster),
                None => Ok(()),
            }
        }
    };
}

story!(
    a_manifest_becomes_a_guest,
    stories::a_manifest_becomes_a_guest
);
story!(the_seed_manifest_runs, |cluster: &Cluster| {
    stories::the_seed_manifest_runs(cluster, cluster.image())
});
story!(
    a_replace_needs_the_current_version,
    stories::a_replace_needs_the_current_version
);
story!(
    mistakes_are_refused_by_field,
    stories::mistakes_are_refused_by_field
);
story!(a_service_leads_to_the_guest, a_service);
story!(the_launcher_has_no_rights, no_rights);

#[test]
fn restarts_leave_the_guest_running() -> anyhow::Result<()> {
    let _alone = UNDISTURBED.write().unwrap_or_else(PoisonError::into_inner);
    match cluster("restarts_leave_the_guest_running")? {
        Some(cluster) => restarts(&cluster),
        None => Ok(()),
    }
}

/// While there are virtual machines berth stays.
#[test]
fn uninstall_refuses_while_there_are_machines() -> anyhow::Result<()> {
    let _undisturbed = UNDISTURBED.read().unwrap_or_else(PoisonError::into_inner);
    let Some(cluster) = cluster("uninstall_refuses_while_there_are_machines")? else {
        return Ok(());
    };
    cluster.apply(&manifest("kept", "localhost/none:1", MEMORY))?;
    let berth = berth_e2e::berth_binary();
    let refused = run(cluster.command(&berth).arg("uninstall"), "")?.err()?;
    ensure!(
        refused.contains("kept") && refused.contains(cluster.namespace()),
        "{refused}"
    );
    cluster
        .kubectl(&["-n", "berth", "get", "deployment", "berth-controller"])?
        .ok()
        .map(drop)
}

/// A Service in front of a virtual machine is a Service like any other.
fn a_service(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&manifest("web", cluster.image(), MEMORY))?;
    cluster.apply(
        "apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {vm.kubevirt.io/name: web}
  ports: [{port: 8080, targetPort: 80}]
",
    )?;
    cluster.wait_phase("web", "Running", SOON)?;
    cluster.wait_prompt("web", BOOT)?;
    let address = cluster
        .kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?
        .ok()?;
    let page = wait_for("the service answers", SOON, || {
        cluster.page(&format!("{address}:8080"))
    })?;
    ensure!(page.contains("hello from the guest"), "{page}");
    Ok(())
}

/// What the reference says of launcher pods, and what its processes really have.
fn no_rights(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&manifest("confined", cluster.image(), MEMORY))?;
    cluster.wait_phase("confined", "Running", SOON)?;
    let pod = cluster.launcher("confined")?;
    let text = |path: &str| pod.pointer(path).cloned().unwrap_or_default();
    ensure!(text("/spec/containers/0/name") == "compute");
    ensure!(text("/spec/automountServiceAccountToken") == false);
    ensure!(text("/spec/securityContext/runAsNonRoot") == true);
    ensure!(text("/metadata/annotations/kubevirt.io~1domain") == "confined");
    let node = text("/spec/nodeName");
    let node = node.as_str().context("the node")?;
    let uid = text("/metadata/uid");
    let uid = uid.as_str().context("the uid")?;
    // Every process of the pod, found by its control group.
    let found = cluster
        .on_node(
            node,
            "sh",
            &[
                "-c",
                &format!("grep -ls 'pod{uid}' /proc/[0-9]*/cgroup | cut -d/ -f3"),
            ],
        )?
        .ok()?;
    let mut looked_at = 0;
    for pid in found.lines() {
        let status = cluster.on_node(node, "cat", &[&format!("/proc/{pid}/status")])?;
        // One that has ended meanwhile.
        let Ok(status) = status.ok() else { continue };
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
                .unwrap_or_default()
                .to_owned()
        };
        let program = field("Name:");
        // It holds the pod's namespaces, and is the container runtime's.
        if program == "pause" {
            continue;
        }
        looked_at += 1;
        ensure!(
            field("Uid:").split_whitespace().all(|id| id == "107"),
            "{program} runs as {}",
            field("Uid:")
        );
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            ensure!(
                field(set).chars().all(|c| c == '0'),
                "{program} has {set} {}",
                field(set)
            );
        }
        ensure!(field("NoNewPrivs:") == "1", "{program} may gain privileges");
        ensure!(field("Seccomp:") == "2", "{program} has no filter");
    }
    ensure!(looked_at >= 3, "only {looked_at} processes were found");
    Ok(())
}

/// Neither the kubelet nor the node agent is what keeps a guest alive.
fn restarts(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&manifest("survivor", cluster.image(), MEMORY))?;
    cluster.wait_phase("survivor", "Running", SOON)?;
    cluster.wait_prompt("survivor", BOOT)?;
    let pod = cluster.launcher("survivor")?;
    let node = pod["spec"]["nodeName"].as_str().context("the node")?;
    cluster.on_node(node, "pkill", &["-x", "kubelet"])?.ok()?;
    cluster
        .kubectl(&[
            "-n",
            "berth",
            "delete",
            "pod",
            "-l",
            "app.kubernetes.io/name=berth-node",
        ])?
        .ok()?;
    cluster
        .kubectl(&[
            "-n",
            "berth",
            "rollout",
            "status",
            "daemonset/berth-node",
            "--timeout=60s",
        ])?
        .ok()?;
    let address = cluster.address("survivor")?;
    cluster.ping(&address, SOON)?;
    ensure!(cluster.vmi("survivor", ".status.phase")? == "Running");
    let now = cluster.launcher("survivor")?;
    ensure!(
        now["metadata"]["uid"] == pod["metadata"]["uid"]
            && now["status"]["containerStatuses"][0]["restartCount"] == 0,
        "the launcher pod is another one"
    );
    // The new agent has it in hand.
    cluster.delete("survivor", Duration::from_secs(60))
}
