//! The real kubectl.

use serde_json::json;

use super::{Row, doc, row};
use crate::fixtures::{MAPS, PODS, WIDGETS, at, map, pod, widget};
use crate::session::Session;

const MANIFEST: &str = "apiVersion: conformance.example.com/v1
kind: Widget
metadata:
  name: a
  labels: {app: a}
spec:
  size: 3
  tags: [x]
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: m
data:
  key: value
";

/// Runs commands that must succeed; what they print is compared.
async fn all(t: &Session, commands: &[&str]) -> anyhow::Result<()> {
    for command in commands {
        let words: Vec<&str> = command.split(' ').collect();
        let outcome = t.kubectl(&words, "").await?;
        t.expect(outcome.code == 0, &outcome.to_string());
    }
    Ok(())
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "kubectl apply: created, unchanged, configured; delete",
            doc::KUBECTL,
            |t| async move {
                let out = t.kubectl(&["apply", "-f", "-"], MANIFEST).await?.ok()?;
                t.expect(
                    out.contains("widget.conformance.example.com/a created"),
                    &out,
                );
                let out = t.kubectl(&["apply", "-f", "-"], MANIFEST).await?.ok()?;
                t.expect(out.contains("configmap/m unchanged"), &out);
                let out = t
                    .kubectl(
                        &["apply", "-f", "-"],
                        &MANIFEST
                            .replace("key: value", "other: value")
                            .replace("size: 3", "size: 4"),
                    )
                    .await?
                    .ok()?;
                t.expect(
                    out.contains("configmap/m configured") && out.contains("/a configured"),
                    &out,
                );
                t.get(&at(MAPS, "m"))
                    .await?
                    .is(200, &json!({"data": {"key": null, "other": "value"}}))?;
                let bad = t
                    .kubectl(
                        &["apply", "-f", "-"],
                        &MANIFEST.replace("size: 3", "size: 0\n  typo: 1"),
                    )
                    .await?;
                t.expect(bad.code == 1, "refused");
                t.kubectl(
                    &["apply", "--dry-run=server", "-f", "-"],
                    &MANIFEST.replace("size: 3", "size: 5"),
                )
                .await?
                .ok()?;
                t.kubectl(&["delete", "-f", "-"], MANIFEST).await?.ok()?;
                Ok(())
            },
        ),
        row(
            "kubectl apply --server-side: conflicts and --force-conflicts",
            doc::APPLY,
            |t| async move {
                t.kubectl(&["apply", "--server-side", "-f", "-"], MANIFEST)
                    .await?
                    .ok()?;
                t.kubectl(&["apply", "--server-side", "-f", "-"], MANIFEST)
                    .await?
                    .ok()?;
                let conflict = t
                    .kubectl(
                        &["apply", "--server-side", "--field-manager=other", "-f", "-"],
                        &MANIFEST.replace("size: 3", "size: 4"),
                    )
                    .await?;
                t.expect(
                    conflict.code == 1 && conflict.stderr.contains("conflict with \"kubectl\""),
                    &conflict.to_string(),
                );
                t.kubectl(
                    &[
                        "apply",
                        "--server-side",
                        "--field-manager=other",
                        "--force-conflicts",
                        "-f",
                        "-",
                    ],
                    &MANIFEST.replace("size: 3", "size: 4"),
                )
                .await?
                .ok()?;
                t.get(&at(WIDGETS, "a"))
                    .await?
                    .is(200, &json!({"spec": {"size": 4}}))?;
                Ok(())
            },
        ),
        row("kubectl diff", doc::KUBECTL, |t| async move {
            t.kubectl(&["apply", "-f", "-"], MANIFEST).await?.ok()?;
            let same = t.kubectl_quietly(&["diff", "-f", "-"], MANIFEST).await?;
            t.expect(same.code == 0 && same.stdout.is_empty(), &same.to_string());
            let other = t
                .kubectl_quietly(
                    &["diff", "-f", "-"],
                    &MANIFEST.replace("size: 3", "size: 9"),
                )
                .await?;
            t.expect(other.code == 1, &other.to_string());
            let lines: Vec<&str> = other
                .stdout
                .lines()
                .filter(|l| {
                    l.starts_with(['+', '-']) && !l.starts_with("+++") && !l.starts_with("---")
                })
                .collect();
            t.observe("lines", json!(lines));
            t.expect(
                lines.contains(&"+  size: 9") && lines.contains(&"-  size: 3"),
                &other.stdout,
            );
            Ok(())
        }),
        row("kubectl edit", doc::KUBECTL, |t| async move {
            t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
            let edited =
                run_with_editor(&t, "sed -i s/size:.1/size:\\ 7/", &["edit", "widget", "a"])
                    .await?;
            t.expect(
                edited.contains("widget.conformance.example.com/a edited"),
                &edited,
            );
            t.get(&at(WIDGETS, "a"))
                .await?
                .is(200, &json!({"spec": {"size": 7}}))?;
            Ok(())
        }),
        row(
            "kubectl get: tables, wide, labels, short names, categories",
            doc::KUBECTL,
            |t| async move {
                t.kubectl(&["apply", "-f", "-"], MANIFEST).await?.ok()?;
                t.post(PODS, &pod("p")).await?.ok()?;
                all(
                    &t,
                    &[
                        "get widgets",
                        "get wgt -o wide",
                        "get things",
                        "get widgets.v1.conformance.example.com a",
                        "get widget a --show-labels",
                        "get cm m",
                        "get pods",
                        "get pods -o wide",
                        "get widgets,configmaps",
                        "get wgt -L app",
                        "get wgt -o name",
                        "get wgt --no-headers",
                        "get wgt -l app=a -o name",
                        "get wgt --field-selector metadata.name=none",
                        "get serviceaccounts",
                    ],
                )
                .await
            },
        ),
        row(
            "kubectl get -o jsonpath, go-template, custom-columns, yaml",
            doc::KUBECTL,
            |t| async move {
                t.kubectl(&["apply", "-f", "-"], MANIFEST).await?.ok()?;
                all(
                    &t,
                    &[
                        "get wgt a -o jsonpath={.spec.size}",
                        "get wgt -o jsonpath={.items[*].metadata.name}",
                        "get wgt a -o go-template={{.spec.color}}",
                        "get wgt -o custom-columns=N:.metadata.name,S:.spec.size",
                        "get wgt --sort-by=.spec.size",
                    ],
                )
                .await?;
                let yaml = t
                    .kubectl_quietly(&["get", "cm", "m", "-o", "yaml"], "")
                    .await?
                    .ok()?;
                t.expect(yaml.contains("key: value"), &yaml);
                Ok(())
            },
        ),
        row(
            "kubectl get: what is not there",
            doc::KUBECTL,
            |t| async move {
                for words in [
                    &["get", "widget", "none"][..],
                    &["get", "gizmos"],
                    &["delete", "cm", "none"],
                    &["get", "wgt"],
                    &["create", "-f", "/nothing"],
                    &["label", "wgt", "none", "a=b"],
                ] {
                    t.kubectl(words, "").await?;
                }
                Ok(())
            },
        ),
        row("kubectl explain", doc::KUBECTL, |t| async move {
            all(
                &t,
                &[
                    "explain widgets",
                    "explain widget.spec",
                    "explain widget.spec.parts",
                    "explain widget.spec.size",
                    "explain vmi.spec.domain.cpu",
                    "explain configmap",
                    "explain widget --recursive",
                    "explain widget.spec --output=plaintext-openapiv2",
                ],
            )
            .await?;
            let none = t.kubectl(&["explain", "widget.spec.none"], "").await?;
            t.expect(none.code == 1, "no such field");
            Ok(())
        }),
        row("kubectl wait", doc::KUBECTL, |t| async move {
            t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
            t.merge(&format!("{}/status", at(WIDGETS, "a")), &json!({"status": {"phase": "Up", "conditions": [{"type": "Ready", "status": "True"}]}})).await?.ok()?;
            all(
                &t,
                &[
                    "wait wgt/a --for=condition=Ready --timeout=10s",
                    "wait wgt/a --for=jsonpath={.status.phase}=Up --timeout=10s",
                    "wait wgt/a --for=create --timeout=10s",
                    "delete wgt/a",
                    "wait wgt/a --for=delete --timeout=10s",
                ],
            )
            .await?;
            t.post(WIDGETS, &widget("b", 1)).await?.ok()?;
            let late = t
                .kubectl(
                    &["wait", "wgt/b", "--for=condition=Ready", "--timeout=1s"],
                    "",
                )
                .await?;
            t.expect(late.code == 1, "in vain");
            Ok(())
        }),
        row("kubectl describe", doc::KUBECTL, |t| async move {
            t.kubectl(&["apply", "-f", "-"], MANIFEST).await?.ok()?;
            all(&t, &["describe cm m", "describe wgt a"]).await
        }),
        row(
            "kubectl label, annotate, patch, replace, scale",
            doc::KUBECTL,
            |t| async move {
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                t.post(MAPS, &map("m")).await?.ok()?;
                all(&t, &["label wgt a x=y", "label wgt a x=z --overwrite", "label wgt a x-", "annotate wgt a note=hi", "annotate cm m note=hi", "patch wgt a --type merge -p {\"spec\":{\"size\":2}}", "patch cm m -p {\"data\":{\"b\":\"2\"}}", "patch cm m --type json -p [{\"op\":\"remove\",\"path\":\"/data/b\"}]", "patch wgt a --subresource=status --type merge -p {\"status\":{\"phase\":\"Up\"}}", "get wgt a --subresource=status", "scale wgt a --replicas=3"]).await?;
                let refused = t.kubectl(&["label", "wgt", "a", "x=y z"], "").await?;
                t.expect(refused.code == 1, "a bad label");
                t.kubectl(&["patch", "wgt", "a", "-p", "{\"spec\":{\"size\":2}}"], "")
                    .await?;
                let replaced = t
                    .kubectl_quietly(&["replace", "-f", "-"], &widget("a", 9).to_string())
                    .await?;
                t.observe("replace", json!([replaced.code, replaced.stdout]));
                Ok(())
            },
        ),
        row(
            "kubectl create: the generators",
            doc::KUBECTL,
            |t| async move {
                all(
                    &t,
                    &[
                        "create configmap c --from-literal=a=b",
                        "create secret generic s --from-literal=a=b",
                        "create serviceaccount sa",
                        "get secret s -o jsonpath={.data.a}",
                        "create ns kubectl-made-this",
                        "delete secret s",
                        "create role r --verb=get --resource=pods",
                        "create rolebinding rb --role=r --serviceaccount=default:sa",
                    ],
                )
                .await
            },
        ),
        row("kubectl events", doc::KUBECTL, |t| async move {
            let event = json!({"metadata": {"name": "e"}, "involvedObject": {"apiVersion": "v1", "kind": "ConfigMap", "name": "m", "namespace": t.ns}, "reason": "Tried", "message": "it was tried", "type": "Normal", "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z", "count": 1, "source": {"component": "suite"}});
            t.post("/api/v1/namespaces/{ns}/events", &event)
                .await?
                .ok()?;
            for words in [
                &["events"][..],
                &["get", "events"],
                &["events", "--for", "configmap/m"],
            ] {
                let out = t.kubectl_quietly(words, "").await?.ok()?;
                t.expect(out.contains("Tried") && out.contains("it was tried"), &out);
                t.observe("lines", json!(out.lines().count()));
            }
            Ok(())
        }),
        row(
            "kubectl api-resources, api-versions, version",
            doc::KUBECTL,
            |t| async move {
                let out = t
                    .kubectl_quietly(&["api-resources", "--no-headers"], "")
                    .await?
                    .ok()?;
                for line in [
                    "widgets wgt conformance.example.com/v1 true Widget",
                    "configmaps cm v1 true ConfigMap",
                    "pods po v1 true Pod",
                    "namespaces ns v1 false Namespace",
                    "nodes no v1 false Node",
                ] {
                    let found = out
                        .lines()
                        .any(|l| l.split_whitespace().collect::<Vec<_>>().join(" ") == line);
                    t.expect(found, line);
                }
                let out = t.kubectl_quietly(&["api-versions"], "").await?.ok()?;
                for line in [
                    "conformance.example.com/v1",
                    "conformance.example.com/v1beta1",
                    "v1",
                    "kubevirt.io/v1",
                ] {
                    t.expect(out.lines().any(|l| l == line), line);
                }
                t.kubectl_quietly(&["version"], "").await?.ok()?;
                Ok(())
            },
        ),
        row("kubectl auth can-i, whoami", doc::RBAC, |t| async move {
            all(
                &t,
                &[
                    "auth can-i create widgets",
                    "auth can-i --list --no-headers",
                ],
            )
            .await
            .or_else(|e| anyhow::bail!("{e}"))?;
            let no = t
                .kubectl(&["auth", "can-i", "get", "secrets", "--as=nobody"], "")
                .await?;
            t.expect(no.stdout.trim() == "no", &no.to_string());
            let who = t
                .kubectl_quietly(
                    &["auth", "whoami", "-o", "jsonpath={.status.userInfo.groups}"],
                    "",
                )
                .await?
                .ok()?;
            t.expect(who.contains("system:masters"), &who);
            Ok(())
        }),
        row(
            "kubectl create token, and what it may do",
            doc::AUTHN,
            |t| async move {
                all(&t, &["create serviceaccount robot"]).await?;
                let token = t
                    .kubectl_quietly(&["create", "token", "robot"], "")
                    .await?
                    .ok()?;
                t.expect(token.trim().split('.').count() == 3, "a JWT");
                let out = t
                    .kubectl_quietly(
                        &[
                            "create",
                            "token",
                            "robot",
                            "--duration=10m",
                            "-o",
                            "jsonpath={.kind}",
                        ],
                        "",
                    )
                    .await?
                    .ok()?;
                t.expect(out == "TokenRequest", &out);
                t.kubectl(&["create", "token", "none"], "").await?;
                let me = format!("--as=system:serviceaccount:{}:robot", t.ns);
                let refused = t.kubectl(&["get", "cm", &me], "").await?;
                t.expect(
                    refused.code == 1
                        && refused
                            .stderr
                            .contains("cannot list resource \"configmaps\""),
                    &refused.to_string(),
                );
                all(
                    &t,
                    &["create role reader --verb=get,list --resource=configmaps"],
                )
                .await?;
                let account = format!("--serviceaccount={}:robot", t.ns);
                t.kubectl(
                    &["create", "rolebinding", "reader", "--role=reader", &account],
                    "",
                )
                .await?
                .ok()?;
                // The authorizer sees the binding by a watch.
                let begin = std::time::Instant::now();
                loop {
                    let allowed = t.kubectl_quietly(&["get", "cm", &me], "").await?;
                    if allowed.code == 0 {
                        break;
                    }
                    anyhow::ensure!(
                        begin.elapsed() < std::time::Duration::from_secs(20),
                        "{allowed}"
                    );
                }
                t.kubectl(&["delete", "cm", "x", &me], "").await?;
                Ok(())
            },
        ),
    ]
}

/// kubectl with an editor of one line of shell.
async fn run_with_editor(t: &Session, editor: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), format!("#!/bin/sh\n{editor} \"$1\"\n"))?;
    let mut command = std::process::Command::new(berth_e2e::reference_program("kubectl"));
    command
        .arg("--namespace")
        .arg(&t.ns)
        .args(arguments)
        .env("KUBECONFIG", t.target.server.kubeconfig())
        .env("KUBE_EDITOR", format!("sh {}", file.path().display()));
    let outcome = tokio::task::spawn_blocking(move || berth_e2e::run(&mut command, "")).await??;
    t.observe(
        "edit",
        json!([outcome.code, outcome.stdout, outcome.stderr]),
    );
    outcome.ok()
}
