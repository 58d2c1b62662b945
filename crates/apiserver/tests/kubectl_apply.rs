//! The stock `kubectl apply` against the server: on the server's side, from the client's side to it, and what it says of conflicts.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::path::PathBuf;
use std::process::{Output, Stdio};

use common::{SOON, Server};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio_util::sync::{CancellationToken, DropGuard};

struct Kubectl {
    server: Server,
    kubeconfig: PathBuf,
    _stop: DropGuard,
}

impl Kubectl {
    async fn start() -> Option<Self> {
        let version = Command::new("kubectl")
            .args(["version", "--client"])
            .output();
        if version.await.is_err() {
            println!("SKIPPED: no kubectl on this machine");
            return None;
        }
        let server = Server::start().await;
        let stop = CancellationToken::new();
        let (_, kubeconfig) = server.serve(axum::Router::new(), &stop).await;
        Some(Self {
            server,
            kubeconfig,
            _stop: stop.drop_guard(),
        })
    }

    async fn run(&self, args: &[&str], input: &str) -> Output {
        let mut child = Command::new("kubectl")
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.server.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        tokio::time::timeout(2 * SOON, child.wait_with_output())
            .await
            .expect("kubectl ends")
            .unwrap()
    }

    async fn ok(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input).await;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "kubectl {args:?}: {out}{err}");
        out.into_owned()
    }

    async fn fails(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input).await;
        assert!(!output.status.success(), "kubectl {args:?} should fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    async fn data(&self) -> String {
        self.ok(&["get", "cm", "m", "-o", "jsonpath={.data}"], "")
            .await
    }
}

const APPLY: [&str; 4] = ["apply", "--server-side", "-f", "-"];

fn map(data: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\ndata: {data}\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_servers_side() {
    let Some(k) = Kubectl::start().await else {
        return;
    };
    let said = k.ok(&APPLY, &map("{a: '1', b: '2'}")).await;
    assert_eq!(said.trim(), "configmap/m serverside-applied");
    k.ok(&APPLY, &map("{a: '1'}")).await;
    assert_eq!(k.data().await, r#"{"a":"1"}"#, "b is no longer applied");

    let other = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
    let refused = k.fails(&other, &map("{a: '2'}")).await;
    assert!(
        refused.contains("Apply failed with 1 conflict: conflict with \"kubectl\": .data.a"),
        "{refused}"
    );
    assert!(refused.contains("--force-conflicts"), "{refused}");
    k.ok(
        &[&other[..], &["--force-conflicts"]].concat(),
        &map("{a: '2'}"),
    )
    .await;
    let yaml = k
        .ok(
            &["get", "cm", "m", "-o", "yaml", "--show-managed-fields"],
            "",
        )
        .await;
    assert!(
        yaml.contains("manager: other") && yaml.contains("operation: Apply"),
        "{yaml}"
    );
    assert!(
        !yaml.contains("manager: kubectl\n"),
        "nothing is left to it: {yaml}"
    );
    let hidden = k.ok(&["get", "cm", "m", "-o", "yaml"], "").await;
    assert!(!hidden.contains("managedFields"), "{hidden}");

    k.ok(&["label", "cm", "m", "x=y"], "").await;
    let refused = k
        .fails(
            &other,
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m, labels: {x: z}}\n",
        )
        .await;
    assert!(
        refused.contains("conflict with \"kubectl-label\" using v1: .metadata.labels.x"),
        "{refused}"
    );
    let diff = k
        .run(
            &["diff", "--server-side", "--force-conflicts", "-f", "-"],
            &map("{a: '5'}"),
        )
        .await;
    let out = String::from_utf8_lossy(&diff.stdout);
    assert_eq!(
        diff.status.code(),
        Some(1),
        "{out}{}",
        String::from_utf8_lossy(&diff.stderr)
    );
    assert!(
        out.contains("-  a: \"2\"") && out.contains("+  a: \"5\""),
        "{out}"
    );
    assert_eq!(k.data().await, r#"{"a":"2"}"#, "a diff changes nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_the_clients_side_and_back() {
    let Some(k) = Kubectl::start().await else {
        return;
    };
    k.ok(&["apply", "-f", "-"], &map("{a: '1', b: '2'}")).await;
    // What was applied from the client's side is taken over without a conflict, and removed when it is dropped.
    k.ok(&APPLY, &map("{a: '9'}")).await;
    assert_eq!(k.data().await, r#"{"a":"9"}"#);
    let yaml = k
        .ok(
            &["get", "cm", "m", "-o", "yaml", "--show-managed-fields"],
            "",
        )
        .await;
    assert!(!yaml.contains("kubectl-client-side-apply"), "{yaml}");
    // Back: the annotation was kept up to date.
    k.ok(&["apply", "-f", "-"], &map("{c: '3'}")).await;
    assert_eq!(k.data().await, r#"{"c":"3"}"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_by_its_subresource() {
    let Some(k) = Kubectl::start().await else {
        return;
    };
    let widget = "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w}\n";
    k.ok(&APPLY, &format!("{widget}spec: {{size: 1}}\n")).await;
    let status = [
        "apply",
        "--server-side",
        "--subresource=status",
        "--field-manager=ctl",
        "-f",
        "-",
    ];
    k.ok(&status, &format!("{widget}status: {{phase: Ready}}\n"))
        .await;
    assert_eq!(
        k.ok(
            &[
                "get",
                "widget",
                "w",
                "-o",
                "jsonpath={.status.phase} {.spec.size}"
            ],
            ""
        )
        .await,
        "Ready 1"
    );
    k.ok(&APPLY, &format!("{widget}spec: {{size: 2}}\n")).await;
    assert_eq!(
        k.ok(
            &[
                "get",
                "widget",
                "w",
                "-o",
                "jsonpath={.status.phase} {.spec.size}"
            ],
            ""
        )
        .await,
        "Ready 2"
    );
    let other = [
        "apply",
        "--server-side",
        "--subresource=status",
        "--field-manager=o",
        "-f",
        "-",
    ];
    let refused = k
        .fails(&other, &format!("{widget}status: {{phase: Failed}}\n"))
        .await;
    assert!(
        refused.contains("conflict with \"ctl\" with subresource \"status\": .status.phase"),
        "{refused}"
    );
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - {name: c, image: i, ports: [{containerPort: 80}]}\n";
    k.ok(&APPLY, pod).await;
    let added = ["apply", "--server-side", "--field-manager=o", "-f", "-"];
    k.ok(
        &added,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {a: b}}\n",
    )
    .await;
    k.ok(&added, "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n")
        .await;
    assert_eq!(
        k.ok(
            &["get", "pod", "p", "-o", "jsonpath={.metadata.labels}"],
            ""
        )
        .await,
        ""
    );
}
