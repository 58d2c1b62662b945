//! kube-rs: its watcher, reflector, Controller, finalizers and typed calls.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::Action;
use kube::runtime::finalizer::{Event, finalizer};
use kube::runtime::{Controller, WatchStreamExt as _, predicates, reflector, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::{Row, row};
use crate::fixtures::map;
use crate::session::Session;

const KUBE: &str = "https://kube.rs";
const SOON: Duration = Duration::from_secs(30);

fn maps(t: &Session) -> Api<ConfigMap> {
    Api::namespaced(t.target.client.clone(), &t.ns)
}

async fn make(api: &Api<ConfigMap>, name: &str) -> anyhow::Result<ConfigMap> {
    Ok(api
        .create(&PostParams::default(), &serde_json::from_value(map(name))?)
        .await?)
}

/// The reconciler of the Controller row: keeps a finalizer and copies `data.a` to an annotation.
async fn reconcile(
    object: Arc<ConfigMap>,
    api: Arc<Api<ConfigMap>>,
) -> Result<Action, kube::runtime::finalizer::Error<kube::Error>> {
    let writer = api.clone();
    finalizer(
        &api,
        "conformance.example.com/held",
        object,
        |event| async move {
            let (name, said) = match &event {
                Event::Apply(object) => (object.name_any(), "held"),
                Event::Cleanup(object) => (object.name_any(), "let go"),
            };
            let patch = json!({"metadata": {"annotations": {"said": said}}});
            writer
                .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
            Ok(Action::await_change())
        },
    )
    .await
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "kube-rs: typed create, list, replace, patch, apply, delete",
            KUBE,
            |t| async move {
                let api = maps(&t);
                let made = make(&api, "a").await?;
                let mut changed = made.clone();
                changed
                    .data
                    .get_or_insert_default()
                    .insert("b".into(), "2".into());
                api.replace("a", &PostParams::default(), &changed).await?;
                let stale = api.replace("a", &PostParams::default(), &changed).await;
                t.observe(
                    "stale",
                    json!(matches!(stale, Err(kube::Error::Api(ref e)) if e.code == 409)),
                );
                let patch = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"c": "3"}});
                let applied = api
                    .patch("a", &PatchParams::apply("suite"), &Patch::Apply(patch))
                    .await?;
                t.observe("data", json!(applied.data));
                let list = api.list(&ListParams::default().limit(1)).await?;
                t.observe("listed", json!(list.items.len()));
                let gone = api.delete("a", &DeleteParams::default()).await?;
                t.observe("deleted", json!(gone.is_right()));
                t.observe("missing", json!(api.get_opt("a").await?.is_none()));
                Ok(())
            },
        ),
        row(
            "kube-rs: watcher, by list and by streaming list",
            KUBE,
            |t| async move {
                let api = maps(&t);
                make(&api, "a").await?;
                for (how, config) in [
                    ("list", watcher::Config::default()),
                    ("stream", watcher::Config::default().streaming_lists()),
                ] {
                    let mut events = watcher(api.clone(), config).boxed();
                    let mut seen: Vec<String> = Vec::new();
                    let mut made = false;
                    while seen.iter().filter(|s| s.ends_with(" b")).count() < 2 {
                        let event = tokio::time::timeout(SOON, events.try_next())
                            .await
                            .with_context(|| format!("{how}: only {seen:?}"))??
                            .context("the watcher ended")?;
                        seen.push(match event {
                            watcher::Event::Init => "init".into(),
                            watcher::Event::InitApply(o) => format!("there {}", o.name_any()),
                            watcher::Event::InitDone => "done".into(),
                            watcher::Event::Apply(o) => format!("apply {}", o.name_any()),
                            watcher::Event::Delete(o) => format!("delete {}", o.name_any()),
                        });
                        if seen.last().is_some_and(|s| s == "done") && !made {
                            made = true;
                            make(&api, "b").await?;
                            api.delete("b", &DeleteParams::default()).await?;
                        }
                    }
                    t.expect(
                        seen == ["init", "there a", "done", "apply b", "delete b"],
                        &format!("{how}: {seen:?}"),
                    );
                    t.observe(how, json!(seen));
                }
                Ok(())
            },
        ),
        row("kube-rs: reflector and its store", KUBE, |t| async move {
            let api = maps(&t);
            make(&api, "a").await?;
            let (store, writer) = reflector::store();
            let stream = reflector(writer, watcher(api.clone(), watcher::Config::default()))
                .applied_objects()
                .predicate_filter(predicates::resource_version, Default::default())
                .boxed_local();
            let mut stream = stream;
            make(&api, "b").await?;
            let filled = async {
                while store.len() < 2 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::select! {
                () = filled => {}
                () = async { while stream.next().await.is_some() {} } => bail!("the reflector ended"),
                () = tokio::time::sleep(SOON) => bail!("the store does not fill"),
            }
            let mut names: Vec<String> = store.state().iter().map(|o| o.name_any()).collect();
            names.sort();
            t.expect(names == ["a", "b"], &format!("{names:?}"));
            t.observe("store", json!(names));
            Ok(())
        }),
        row(
            "kube-rs: a Controller with the finalizer helper",
            KUBE,
            |t| async move {
                let api = maps(&t);
                let controller = Controller::new(api.clone(), watcher::Config::default()).run(
                    reconcile,
                    |_, _, _| Action::requeue(Duration::from_millis(200)),
                    Arc::new(api.clone()),
                );
                let mut controller = controller.boxed_local();
                make(&api, "a").await?;
                let work = async {
                    loop {
                        let now = api.get("a").await?;
                        if now.annotations().get("said").is_some_and(|s| s == "held") {
                            t.observe("finalizers", json!(now.finalizers()));
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    api.delete("a", &DeleteParams::default()).await?;
                    while api.get_opt("a").await?.is_some() {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    anyhow::Ok(())
                };
                tokio::select! {
                    done = work => done?,
                    () = async { while controller.next().await.is_some() {} } => bail!("the controller ended"),
                    () = tokio::time::sleep(SOON) => bail!("the controller does not do its work"),
                }
                t.observe("gone", Value::Bool(true));
                Ok(())
            },
        ),
        row("kube-rs: discovery finds the kinds", KUBE, |t| async move {
            for aggregated in [false, true] {
                let discovery = kube::Discovery::new(t.target.client.clone())
                    .filter(&["conformance.example.com", "kubevirt.io"]);
                let found = if aggregated {
                    discovery.run_aggregated().await?
                } else {
                    discovery.run().await?
                };
                let group = found.get("conformance.example.com").context("no group")?;
                let mut kinds: Vec<String> = group
                    .recommended_resources()
                    .into_iter()
                    .map(|(r, c)| format!("{} {:?} {}", r.kind, c.scope, r.plural))
                    .collect();
                kinds.retain(|k| k.starts_with("Widget") || k.starts_with("Ring"));
                kinds.sort();
                t.observe("kinds", json!(kinds));
                t.expect(kinds.len() == 2, &format!("{kinds:?}"));
            }
            Ok(())
        }),
    ]
}
