//! Delete and deletecollection.

use serde_json::json;

use super::{Row, doc, row};
use crate::fixtures::{MAPS, PODS, WIDGETS, at, map, pod, widget};

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "delete: the answer is a Status with the uid",
            doc::CONCEPTS,
            |t| async move {
                t.post(MAPS, &map("a")).await?.ok()?;
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                t.delete(&at(MAPS, "a"), &json!(null)).await?.is(200, &json!({"kind": "Status", "status": "Success", "details": {"name": "a", "kind": "configmaps"}}))?;
                t.delete(&at(WIDGETS, "a"), &json!({}))
                    .await?
                    .is(200, &json!({"kind": "Status", "status": "Success"}))?;
                t.get(&at(WIDGETS, "a")).await?.is(404, &json!({}))?;
                Ok(())
            },
        ),
        row("delete: preconditions", doc::CONCEPTS, |t| async move {
            for (path, body) in [(MAPS, map("a")), (WIDGETS, widget("a", 1))] {
                let made = t.post(path, &body).await?.ok()?;
                let (uid, rv) = (
                    made["metadata"]["uid"].clone(),
                    made["metadata"]["resourceVersion"].clone(),
                );
                t.mask(
                    &format!("object meta: {}", rv.as_str().unwrap_or_default()),
                    "own",
                );
                t.delete(
                    &at(path, "a"),
                    &json!({"preconditions": {"uid": "11111111-2222-3333-4444-555555555555"}}),
                )
                .await?
                .is(409, &json!({"reason": "Conflict"}))?;
                t.delete(
                    &at(path, "a"),
                    &json!({"preconditions": {"resourceVersion": "1"}}),
                )
                .await?
                .is(409, &json!({"reason": "Conflict"}))?;
                t.delete(
                    &at(path, "a"),
                    &json!({"preconditions": {"uid": uid, "resourceVersion": rv}}),
                )
                .await?
                .is(200, &json!({"status": "Success"}))?;
            }
            Ok(())
        }),
        row(
            "delete: finalizers hold the object, and the last one lets it go",
            doc::FINALIZERS,
            |t| async move {
                for (path, mut body) in [(MAPS, map("a")), (WIDGETS, widget("a", 1))] {
                    body["metadata"]["finalizers"] = json!(["example.com/a", "example.com/b"]);
                    t.post(path, &body).await?.ok()?;
                    let marked = t
                        .delete(&at(path, "a"), &json!(null))
                        .await?
                        .is(200, &json!({"metadata": {"deletionGracePeriodSeconds": 0}}))?;
                    t.expect(
                        marked["metadata"]["deletionTimestamp"].is_string(),
                        "marked",
                    );
                    t.delete(&at(path, "a"), &json!(null))
                        .await?
                        .is(200, &json!({"metadata": {"name": "a"}}))?;
                    t.post(path, &body).await?.is(409, &json!({}))?;
                    t.merge(
                        &at(path, "a"),
                        &json!({"metadata": {"finalizers": ["example.com/a", "example.com/c"]}}),
                    )
                    .await?
                    .is(422, &json!({}))?;
                    t.merge(&at(path, "a"), &json!({"metadata": {"labels": {"x": "y"}}}))
                        .await?
                        .is(200, &json!({}))?;
                    t.merge(
                        &at(path, "a"),
                        &json!({"metadata": {"finalizers": ["example.com/b"]}}),
                    )
                    .await?
                    .is(200, &json!({}))?;
                    t.merge(&at(path, "a"), &json!({"metadata": {"finalizers": null}}))
                        .await?
                        .is(200, &json!({"metadata": {"finalizers": null}}))?;
                    t.get(&at(path, "a")).await?.is(404, &json!({}))?;
                }
                Ok(())
            },
        ),
        row(
            "delete: propagationPolicy puts finalizers on",
            "https://kubernetes.io/docs/concepts/architecture/garbage-collection/",
            |t| async move {
                for (path, body) in [(MAPS, map("a")), (WIDGETS, widget("a", 1))] {
                    for policy in ["Foreground", "Orphan"] {
                        t.post(path, &body).await?.ok()?;
                        t.delete(&at(path, "a"), &json!({"propagationPolicy": policy}))
                            .await?;
                        t.get(&at(path, "a")).await?;
                        t.merge(&at(path, "a"), &json!({"metadata": {"finalizers": null}}))
                            .await?;
                    }
                    t.post(path, &body).await?.ok()?;
                    t.delete(&at(path, "a"), &json!({"propagationPolicy": "Sideways"}))
                        .await?
                        .is(422, &json!({}))?;
                    t.delete(
                        &at(path, "a"),
                        &json!({"propagationPolicy": "Orphan", "orphanDependents": true}),
                    )
                    .await?
                    .is(422, &json!({}))?;
                    t.delete(&at(path, "a"), &json!({"gracePeriodSeconds": -3}))
                        .await?;
                    t.delete(
                        &format!("{}?propagationPolicy=Background", at(path, "a")),
                        &json!(null),
                    )
                    .await?;
                }
                Ok(())
            },
        ),
        row(
            "delete: bodies that are refused",
            doc::CONCEPTS,
            |t| async move {
                t.post(MAPS, &map("a")).await?.ok()?;
                t.delete(&at(MAPS, "a"), &json!({"gracePeriodSeconds": "soon"}))
                    .await?
                    .is(500, &json!({}))?;
                t.delete(&at(MAPS, "a"), &json!({"kind": "Pod", "apiVersion": "v1"}))
                    .await?
                    .is(500, &json!({}))?;
                t.delete(&at(MAPS, "a"), &json!({"dryRun": ["Some"]}))
                    .await?
                    .is(422, &json!({}))?;
                t.delete(
                    &format!("{}?gracePeriodSeconds=soon", at(MAPS, "a")),
                    &json!(null),
                )
                .await?
                .is(400, &json!({}))?;
                t.delete(
                    &at(MAPS, "a"),
                    &json!({"kind": "DeleteOptions", "apiVersion": "v1"}),
                )
                .await?
                .is(200, &json!({}))?;
                Ok(())
            },
        ),
        row(
            "delete: a pod that nobody runs goes at once",
            doc::PODS,
            |t| async move {
                t.post(PODS, &pod("p")).await?.ok()?;
                t.delete(&at(PODS, "p"), &json!(null))
                    .await?
                    .is(200, &json!({"kind": "Pod"}))?;
                t.get(&at(PODS, "p")).await?.is(404, &json!({}))?;
                Ok(())
            },
        ),
        row(
            "delete: a pod on a node ends gracefully",
            doc::PODS,
            |t| async move {
                let mut body = pod("p");
                body["spec"]["nodeName"] = json!("nowhere");
                t.post(PODS, &body).await?.ok()?;
                t.delete(&at(PODS, "p"), &json!({"gracePeriodSeconds": 20}))
                    .await?
                    .is(
                        200,
                        &json!({"metadata": {"deletionGracePeriodSeconds": 20}}),
                    )?;
                t.delete(&at(PODS, "p"), &json!({"gracePeriodSeconds": 60}))
                    .await?
                    .is(
                        200,
                        &json!({"metadata": {"deletionGracePeriodSeconds": 20}}),
                    )?;
                t.delete(&at(PODS, "p"), &json!({"gracePeriodSeconds": 5}))
                    .await?
                    .is(200, &json!({"metadata": {"deletionGracePeriodSeconds": 5}}))?;
                t.delete(&at(PODS, "p"), &json!({"gracePeriodSeconds": 0}))
                    .await?
                    .is(200, &json!({}))?;
                t.get(&at(PODS, "p")).await?.is(404, &json!({}))?;
                Ok(())
            },
        ),
        row(
            "deletecollection: by selector, dry run, all",
            doc::CONCEPTS,
            |t| async move {
                for (path, bodies) in [
                    (MAPS, ["a", "b", "c"].map(map)),
                    (WIDGETS, ["a", "b", "c"].map(|n| widget(n, 1))),
                ] {
                    for (i, mut body) in bodies.into_iter().enumerate() {
                        body["metadata"]["labels"] = json!({"n": i.to_string()});
                        t.post(path, &body).await?.ok()?;
                    }
                    t.delete(&format!("{path}?dryRun=All"), &json!(null))
                        .await?
                        .is(200, &json!({}))?;
                    t.delete(&format!("{path}?labelSelector=n%3D1"), &json!(null))
                        .await?
                        .is(200, &json!({}))?;
                    let left = t.get(path).await?.ok()?;
                    t.expect(
                        left["items"].as_array().is_some_and(|i| i.len() == 2),
                        "two left",
                    );
                    t.delete(path, &json!({"preconditions": {"uid": "x"}}))
                        .await?;
                    t.delete(path, &json!(null)).await?.is(200, &json!({}))?;
                    t.get(path).await?.is(200, &json!({"items": []}))?;
                }
                Ok(())
            },
        ),
    ]
}
