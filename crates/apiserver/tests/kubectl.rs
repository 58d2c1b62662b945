//! The stock `kubectl` against the server, over HTTPS.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::process::Stdio;

use common::SOON;
use common::kubectl::Kubectl;
use tokio::io::{AsyncBufReadExt as _, BufReader};

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
    let table = k.ok(&["get", "configmaps", "m"]).await;
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
    assert!(next().await.starts_with("kube-root-ca.crt"));
    k.ok(&["create", "configmap", "second"]).await;
    assert!(next().await.starts_with("second"));
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cascades_and_quotas() {
    let Some(k) = Kubectl::start("cascades_and_quotas").await else {
        return;
    };
    let owner = async |name: &str| {
        k.ok(&["create", "configmap", name]).await;
        let uid = k
            .ok(&["get", "configmap", name, "-o", "jsonpath={.metadata.uid}"])
            .await;
        let child = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("{name}-child"),
            "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid, "blockOwnerDeletion": true}]}})
        .to_string();
        k.ok_with(&["create", "-f", "-"], &child).await;
    };
    let modern = k
        .fails(&["delete", "configmap", "none", "--cascade=foreground"], "")
        .await
        .contains("not found");
    if modern {
        owner("front").await;
        k.ok(&[
            "delete",
            "configmap",
            "front",
            "--cascade=foreground",
            "--wait",
        ])
        .await;
        // Foreground: when kubectl comes back the dependents are gone.
        assert!(
            k.fails(&["get", "configmap", "front-child"], "")
                .await
                .contains("not found")
        );
        owner("left").await;
        k.ok(&["delete", "configmap", "left", "--cascade=orphan", "--wait"])
            .await;
        let refs = k
            .ok(&[
                "get",
                "configmap",
                "left-child",
                "-o",
                "jsonpath={.metadata.ownerReferences}",
            ])
            .await;
        assert_eq!(refs, "");
    }
    owner("back").await;
    k.ok(&["delete", "configmap", "back"]).await;
    k.ok(&[
        "wait",
        "--for=delete",
        "configmap/back-child",
        "--timeout=20s",
    ])
    .await;

    k.ok(&["create", "quota", "few", "--hard=count/configmaps=3,pods=1"])
        .await;
    k.ok(&["create", "configmap", "a"]).await;
    let error = k.fails(&["create", "configmap", "a1"], "").await
        + &k.fails(&["create", "configmap", "a2"], "").await;
    assert!(error.contains("exceeded quota: few, requested: count/configmaps=1, used: count/configmaps=3, limited: count/configmaps=3"), "{error}");
    let shown = k.ok(&["describe", "quota", "few"]).await;
    let row: Vec<&str> = shown
        .lines()
        .find(|line| line.starts_with("count/configmaps"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(row, ["count/configmaps", "3", "3"], "{shown}");
    assert!(
        k.ok(&["get", "quota"])
            .await
            .contains("count/configmaps: 3/3")
    );
}
