//! A namespace of the cluster of `make cluster`, with berth installed on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::{Outcome, Target, berth_binary, reference_program, run, wait_for};

/// The small guest, as `scripts/test-cluster.sh` loads it into the nodes.
const GUEST: &str = "localhost/small-guest:1";
/// Where the cluster records its processes.
const RUN: &str = "/run/berth-cluster";

/// The node whose name is known to be there.
const FIRST: &str = "node0";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A namespace of its own for a story; deleted with all that is in it when dropped.
pub struct Cluster {
    namespace: String,
    kubeconfig: PathBuf,
}

impl Cluster {
    /// Makes the namespace. None where no cluster is told of: `BERTH_CLUSTER` is the path of its kubeconfig.
    pub fn start() -> anyhow::Result<Option<Self>> {
        let Some(kubeconfig) = std::env::var_os("BERTH_CLUSTER") else {
            return Ok(None);
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cluster = Self {
            namespace: format!("story-{}-{number}", std::process::id()),
            kubeconfig: kubeconfig.into(),
        };
        cluster
            .kubectl(&["create", "namespace", &cluster.namespace])?
            .ok()?;
        // Launcher pods get by with what the strictest of the standards allows.
        cluster
            .kubectl(&[
                "label",
                "namespace",
                &cluster.namespace,
                "pod-security.kubernetes.io/enforce=restricted",
            ])?
            .ok()?;
        Ok(Some(cluster))
    }

    /// A command with the cluster's kubeconfig.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("NO_COLOR", "1");
        command
    }

    /// The launcher pod of a VMI.
    pub fn launcher(&self, vmi: &str) -> anyhow::Result<serde_json::Value> {
        let selector = format!("vm.kubevirt.io/name={vmi}");
        let pods = self.kubectl(&["get", "pods", "-l", &selector, "-o", "json"])?;
        let pods: serde_json::Value = serde_json::from_str(&pods.ok()?)?;
        let items = pods["items"].as_array().context("a list of pods")?;
        ensure!(items.len() == 1, "{} launcher pods of {vmi}", items.len());
        Ok(items[0].clone())
    }

    /// The first process of a node of this machine's cluster, by which its namespaces are found.
    fn inner(&self, node: &str) -> anyhow::Result<String> {
        let record = std::fs::read_to_string(Path::new(RUN).join(format!("{node}.pid")))
            .with_context(|| format!("{node} is no node of this machine's cluster"))?;
        let outer = record.split_whitespace().next().unwrap_or_default();
        let inner = run(Command::new("pgrep").args(["-P", outer]), "")?.ok()?;
        let inner = inner.lines().next().context("the node's first process")?;
        Ok(inner.to_owned())
    }

    /// kubectl in the namespace of berth's own parts.
    fn in_berth(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.kubectl(&[&["--namespace", "berth"], arguments].concat())?
            .ok()
    }

    /// The names of the nodes.
    fn nodes(&self) -> anyhow::Result<Vec<String>> {
        let names = self.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"])?;
        Ok(names.ok()?.split_whitespace().map(str::to_owned).collect())
    }

    /// Runs a program in the namespaces of a node of this machine's cluster.
    pub fn on_node(
        &self,
        node: &str,
        program: &str,
        arguments: &[&str],
    ) -> anyhow::Result<Outcome> {
        let inner = self.inner(node)?;
        run(
            Command::new("nsenter")
                .args(["--target", &inner, "--mount", "--net", "--pid", "--"])
                .arg(program)
                .args(arguments),
            "",
        )
    }
}

impl Target for Cluster {
    fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<Outcome> {
        run(
            self.command(&reference_program("kubectl"))
                .args(["--namespace", &self.namespace])
                .args(arguments),
            input,
        )
    }

    fn exec(&self, program: &str, arguments: &[&str]) -> anyhow::Result<Outcome> {
        run(Command::new(program).args(arguments), "")
    }

    fn on_first_node(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        // Its network alone: programs and files are the machine's.
        let inner = self.inner(FIRST).unwrap_or_default();
        command
            .args(["--target", &inner, "--net", "--"])
            .arg(program)
            .env("NO_COLOR", "1");
        command
    }

    fn first_node(&self) -> &str {
        FIRST
    }

    fn import(&self, kind: &str, archive: &Path, image: &str) -> anyhow::Result<()> {
        // The runtime takes the name from what `docker save` writes.
        let files = tempfile::tempdir()?;
        let named = files.path().join("named.tar");
        run(
            Command::new("skopeo")
                .args(["--insecure-policy", "copy", "--quiet"])
                .arg(format!("{kind}:{}", archive.display()))
                .arg(format!("docker-archive:{}:{image}", named.display())),
            "",
        )?
        .ok()?;
        let named = named.to_string_lossy();
        let socket = "/run/containerd/containerd.sock";
        let import = [
            "--address",
            socket,
            "--namespace",
            "k8s.io",
            "images",
            "import",
            &named,
        ];
        for node in self.nodes()? {
            self.on_node(&node, "ctr", &import)?.ok()?;
        }
        Ok(())
    }

    fn take_berth_away(&self) -> anyhow::Result<()> {
        self.in_berth(&["scale", "deployment/berth-controller", "--replicas=0"])?;
        // No node matches, so the agents go and nobody makes new ones.
        let nowhere =
            r#"{"spec":{"template":{"spec":{"nodeSelector":{"berth.test/away":"true"}}}}}"#;
        self.in_berth(&[
            "patch",
            "daemonset/berth-node",
            "--type=merge",
            "-p",
            nowhere,
        ])?;
        self.in_berth(&["delete", "pods", "--all", "--grace-period=0", "--force"])?;
        wait_for("nothing of berth runs", Duration::from_secs(60), || {
            let pods = self.in_berth(&["get", "pods", "-o", "name"])?;
            ensure!(pods.trim().is_empty(), "{pods}");
            Ok(())
        })
    }

    fn bring_berth_back(&self) -> anyhow::Result<()> {
        let anywhere =
            r#"{"spec":{"template":{"spec":{"nodeSelector":{"berth.test/away":null}}}}}"#;
        self.in_berth(&[
            "patch",
            "daemonset/berth-node",
            "--type=merge",
            "-p",
            anywhere,
        ])?;
        self.in_berth(&["scale", "deployment/berth-controller", "--replicas=2"])?;
        for part in ["deployment/berth-controller", "daemonset/berth-node"] {
            self.in_berth(&["rollout", "status", part, "--timeout=120s"])?;
        }
        Ok(())
    }

    fn kill_in_pod(&self, vmi: &str, program: &str) -> anyhow::Result<()> {
        let pod = self.launcher(vmi)?;
        let text = |path: &str| pod.pointer(path).and_then(serde_json::Value::as_str);
        let (uid, node) = (
            text("/metadata/uid").context("its uid")?,
            text("/spec/nodeName").context("its node")?,
        );
        let script = format!(
            "for group in $(grep -ls 'pod{uid}' /proc/[0-9]*/cgroup); do \
               process=${{group%/cgroup}}; \
               tr '\\0' ' ' <$process/cmdline | grep -qs '{program}' && kill -9 ${{process#/proc/}} && echo killed; \
             done; true"
        );
        let said = self.on_node(node, "sh", &["-c", &script])?.ok()?;
        ensure!(
            said.trim() == "killed",
            "not one {program} in the pod of {vmi}: {said:?}"
        );
        Ok(())
    }

    fn residue(&self) -> anyhow::Result<BTreeMap<String, usize>> {
        wait_for("no pod is left", Duration::from_secs(60), || {
            let pods = self.kubectl(&["get", "pods", "-o", "name"])?.ok()?;
            ensure!(pods.trim().is_empty(), "{pods}");
            Ok(())
        })?;
        // Other stories' pods come and go; what is the node agent's alone can be counted.
        let mut all = BTreeMap::new();
        for node in self.nodes()? {
            let script = "agent=$(pgrep -f '^/usr/bin/berth node-agent' | head -n 1); \
                echo descriptors $(ls /proc/$agent/fd | wc -l); \
                echo mounts $(wc -l < /proc/$agent/mountinfo); \
                echo threads $(ls /proc/$agent/task | wc -l)";
            for line in self.on_node(&node, "sh", &["-c", script])?.ok()?.lines() {
                let (kind, count) = line.split_once(' ').context("a count")?;
                all.insert(
                    format!("{kind} of the agent on {node}"),
                    count.trim().parse()?,
                );
            }
        }
        Ok(all)
    }

    fn wait_prompt(&self, name: &str, limit: Duration) -> anyhow::Result<()> {
        wait_for(
            &format!("the guest of {name} asks for a login"),
            limit,
            || {
                let pod = self.launcher(name)?;
                let text = |path: &str| {
                    pod.pointer(path)
                        .and_then(serde_json::Value::as_str)
                        .map(str::to_owned)
                        .with_context(|| format!("{path} of the launcher pod"))
                };
                let log = format!(
                    "/var/lib/kubelet/pods/{}/volumes/kubernetes.io~empty-dir/run/serial.log",
                    text("/metadata/uid")?
                );
                let said = self
                    .on_node(&text("/spec/nodeName")?, "cat", &[&log])?
                    .ok()?;
                ensure!(said.contains("login:"), "it says {said:?}");
                Ok(())
            },
        )
    }

    fn berth_command(&self) -> Command {
        self.command(&berth_binary())
    }

    fn image(&self) -> &str {
        GUEST
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn log_tail(&self) -> String {
        ["deployment/berth-controller", "daemonset/berth-node"]
            .map(|part| {
                let logs = [
                    "--namespace",
                    "berth",
                    "logs",
                    "--tail=40",
                    "--all-pods",
                    part,
                ];
                match self.kubectl(&logs) {
                    Ok(logs) => format!("log of {part}:\n{}{}", logs.stdout, logs.stderr),
                    Err(error) => format!("no log of {part}: {error:#}"),
                }
            })
            .join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.kubectl(&["delete", "namespace", &self.namespace, "--timeout=60s"]);
    }
}
