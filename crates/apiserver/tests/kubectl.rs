//! The stock `kubectl` against the server, over HTTPS.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::path::PathBuf;
use std::process::{Output, Stdio};

use common::{SOON, Server};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;
use tokio_util::sync::{CancellationToken, DropGuard};

struct Kubectl {
    server: Server,
    kubeconfig: PathBuf,
    _stop: DropGuard,
}

impl Kubectl {
    async fn start(test: &str) -> Option<Self> {
        if Command::new("kubectl")
            .args(["version", "--client"])
            .output()
            .await
            .is_err()
        {
            berth_testing::skip(test, "no kubectl on this machine");
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

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.server.dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, args: &[&str], input: &str) -> Output {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
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

    /// Output of a command that must succeed.
    async fn ok(&self, args: &[&str]) -> String {
        self.ok_with(args, "").await
    }

    async fn ok_with(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input).await;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "kubectl {args:?}: {out}{err}");
        out.into_owned()
    }

    /// What kubectl says when it fails, as it must.
    async fn fails(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input).await;
        assert!(!output.status.success(), "kubectl {args:?} should fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn built_in_objects() {
    let Some(k) = Kubectl::start("built_in_objects").await else {
        return;
    };
    assert!(k.ok(&["version"]).await.contains("Server Version: v1."));
    k.ok(&["create", "configmap", "m", "--from-literal=a=1"])
        .await;
    assert!(
        k.fails(&["create", "configmap", "m"], "")
            .await
            .contains("configmaps \"m\" already exists")
    );
    let table = k.ok(&["get", "configmaps"]).await;
    assert!(
        table.starts_with("NAME   DATA   AGE\nm      1      "),
        "{table}"
    );
    assert_eq!(
        k.ok(&["get", "cm", "m", "-o", "jsonpath={.data.a}"]).await,
        "1"
    );
    assert!(
        k.ok(&["get", "cm", "-A", "-o", "wide"])
            .await
            .contains("default")
    );
    k.ok(&["label", "cm", "m", "x=y"]).await;
    k.ok(&["annotate", "cm", "m", "note=hello"]).await;
    assert_eq!(
        k.ok(&["get", "cm", "-l", "x=y", "-o", "name"]).await,
        "configmap/m\n"
    );
    k.ok(&["label", "cm", "m", "x-"]).await;
    assert_eq!(k.ok(&["get", "cm", "-l", "x=y", "-o", "name"]).await, "");
    k.ok(&["patch", "cm", "m", "-p", r#"{"data":{"b":"2"}}"#])
        .await;
    k.ok(&[
        "patch",
        "cm",
        "m",
        "--type=merge",
        "-p",
        r#"{"data":{"c":"3"}}"#,
    ])
    .await;
    k.ok(&[
        "patch",
        "cm",
        "m",
        "--type=json",
        "-p",
        r#"[{"op":"remove","path":"/data/a"}]"#,
    ])
    .await;
    assert_eq!(
        k.ok(&["get", "cm", "m", "-o", "jsonpath={.data}"]).await,
        r#"{"b":"2","c":"3"}"#
    );
    let yaml = k.ok(&["get", "cm", "m", "-o", "yaml"]).await;
    k.ok_with(
        &["replace", "-f", "-"],
        &yaml.replace("b: \"2\"", "b: \"9\""),
    )
    .await;
    let conflict = k.fails(&["replace", "-f", "-"], &yaml).await;
    assert!(
        conflict.contains("the object has been modified; please apply your changes"),
        "{conflict}"
    );
    assert!(k.ok(&["describe", "cm", "m"]).await.contains("note: hello"));

    k.ok(&["create", "secret", "generic", "s", "--from-literal=p=q"])
        .await;
    k.ok(&["create", "serviceaccount", "robot"]).await;
    assert!(k.ok(&["get", "secret", "s"]).await.contains("Opaque"));
    assert!(k.ok(&["get", "ns"]).await.contains("kube-system"));
    k.ok(&["delete", "cm", "m"]).await;
    assert!(
        k.fails(&["get", "cm", "m"], "")
            .await
            .contains("Error from server (NotFound): configmaps \"m\" not found")
    );
    assert!(
        k.fails(&["get", "nothings"], "")
            .await
            .contains("doesn't have a resource type")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_and_namespaces() {
    let Some(k) = Kubectl::start("apply_and_namespaces").await else {
        return;
    };
    let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: '1', b: '2'}\n";
    assert!(
        k.ok_with(&["apply", "-f", "-"], manifest)
            .await
            .contains("configmap/m created")
    );
    assert!(
        k.ok_with(&["apply", "-f", "-"], manifest)
            .await
            .contains("unchanged")
    );
    assert!(
        k.ok_with(&["apply", "-f", "-"], &manifest.replace(", b: '2'", ""))
            .await
            .contains("configured")
    );
    assert_eq!(
        k.ok(&["get", "cm", "m", "-o", "jsonpath={.data}"]).await,
        r#"{"a":"1"}"#
    );
    assert!(
        k.ok_with(&["apply", "--dry-run=server", "-f", "-"], manifest)
            .await
            .contains("server dry run")
    );
    let output = k.run(&["diff", "-f", "-"], manifest).await;
    assert_eq!(output.status.code(), Some(1), "there is a difference");

    k.ok(&["create", "namespace", "n"]).await;
    k.ok(&["-n", "n", "create", "configmap", "in"]).await;
    k.ok(&["delete", "namespace", "n"]).await;
    assert!(
        k.fails(&["-n", "n", "create", "configmap", "in"], "")
            .await
            .contains("namespaces \"n\" not found")
    );
    assert!(
        k.fails(&["delete", "namespace", "default"], "")
            .await
            .contains("may not be deleted")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_objects() {
    let Some(k) = Kubectl::start("custom_objects").await else {
        return;
    };
    let manifest =
        "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w}\nspec: {size: 3}\n";
    assert!(
        k.ok_with(&["apply", "-f", "-"], manifest)
            .await
            .contains("widget.example.com/w created")
    );
    assert!(
        k.ok_with(&["apply", "-f", "-"], &manifest.replace('3', "4"))
            .await
            .contains("configured")
    );
    let table = k.ok(&["get", "wi"]).await;
    assert!(table.starts_with("NAME   PHASE\nw "), "{table}");
    k.ok(&[
        "patch",
        "widget",
        "w",
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status":{"phase":"Up"}}"#,
    ])
    .await;
    k.ok(&[
        "wait",
        "widget/w",
        "--for=jsonpath={.status.phase}=Up",
        "--timeout=20s",
    ])
    .await;
    assert!(
        k.ok(&["get", "widgets.v1alpha1.example.com", "w", "-o", "yaml"])
            .await
            .contains("example.com/v1alpha1")
    );
    assert!(k.ok(&["get", "all"]).await.contains("widget.example.com/w"));
    assert!(k.ok(&["api-resources"]).await.contains("widgets"));
    assert!(k.ok(&["explain", "widget.spec"]).await.contains("size"));
    assert!(k.ok(&["get", "crd"]).await.contains("widgets.example.com"));
    let unknown = k
        .fails(
            &["apply", "-f", "-"],
            &manifest.replace("size: 3", "size: 3, colour: red"),
        )
        .await;
    assert!(
        unknown.contains("unknown field \"spec.colour\""),
        "{unknown}"
    );
    let wrong = k
        .fails(&["apply", "-f", "-"], &manifest.replace('3', "0"))
        .await;
    assert!(wrong.contains("spec.size"), "{wrong}");
    k.ok(&["delete", "widget", "w", "--timeout=20s"]).await;
    k.ok(&["delete", "crd", "widgets.example.com", "--timeout=20s"])
        .await;
    k.fails(&["get", "widgets"], "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching() {
    let Some(k) = Kubectl::start("watching").await else {
        return;
    };
    k.ok(&["create", "configmap", "first"]).await;
    let mut child = k
        .command(&["get", "cm", "--watch"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        tokio::time::timeout(SOON, lines.next_line())
            .await
            .expect("a line")
            .unwrap()
            .unwrap()
    };
    assert!(next().await.starts_with("NAME"));
    assert!(next().await.starts_with("first"));
    k.ok(&["create", "configmap", "second"]).await;
    assert!(next().await.starts_with("second"));
    child.kill().await.unwrap();
}
