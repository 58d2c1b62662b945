//! Watches: where they start, what they show, how they end.

use serde_json::{Value, json};

use super::{Row, doc, row};
use crate::fixtures::{MAPS, WIDGETS, at, map, widget};
use crate::session::Session;

/// Types and names of events.
fn kinds(events: &[Value]) -> Vec<String> {
    events
        .iter()
        .map(|e| {
            format!(
                "{} {}",
                e["type"].as_str().unwrap_or_default(),
                e["object"]["metadata"]["name"].as_str().unwrap_or_default()
            )
            .trim()
            .to_owned()
        })
        .collect()
}

fn rv(object: &Value) -> String {
    object["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

async fn list_rv(t: &Session, path: &str) -> anyhow::Result<String> {
    let rv = rv(&t.quiet("GET", path, &[], "").await?.ok()?);
    t.mask(&format!("resourceVersion={rv}"), "since");
    Ok(rv)
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "watch: from a revision, every change in order",
            doc::CONCEPTS,
            |t| async move {
                for (path, a, b) in [
                    (MAPS, map("a"), map("b")),
                    (WIDGETS, widget("a", 1), widget("b", 1)),
                ] {
                    t.post(path, &a).await?.ok()?;
                    let since = list_rv(&t, path).await?;
                    t.post(path, &b).await?.ok()?;
                    t.merge(&at(path, "a"), &json!({"metadata": {"labels": {"x": "y"}}}))
                        .await?
                        .ok()?;
                    t.delete(&at(path, "b"), &json!(null)).await?.ok()?;
                    let events = t
                        .watch(&format!(
                            "{path}?watch=1&timeoutSeconds=1&resourceVersion={since}"
                        ))
                        .await?;
                    t.expect(
                        kinds(&events) == ["ADDED b", "MODIFIED a", "DELETED b"],
                        &format!("{:?}", kinds(&events)),
                    );
                }
                Ok(())
            },
        ),
        row(
            "watch: without a revision, or from 0, what is there comes first",
            doc::CONCEPTS,
            |t| async move {
                t.post(WIDGETS, &widget("b", 1)).await?.ok()?;
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                for query in [
                    "watch=true&timeoutSeconds=1",
                    "watch=1&timeoutSeconds=1&resourceVersion=0",
                    "watch=1&timeoutSeconds=1&resourceVersion=",
                ] {
                    let events = t.watch(&format!("{WIDGETS}?{query}")).await?;
                    let mut kinds = kinds(&events);
                    kinds.sort();
                    t.expect(kinds == ["ADDED a", "ADDED b"], &format!("{kinds:?}"));
                }
                Ok(())
            },
        ),
        row(
            "watch: of one object by name",
            doc::CONCEPTS,
            |t| async move {
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                let since = list_rv(&t, WIDGETS).await?;
                t.post(WIDGETS, &widget("b", 1)).await?.ok()?;
                t.merge(&at(WIDGETS, "a"), &json!({"spec": {"size": 2}}))
                    .await?
                    .ok()?;
                let events = t.watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Da&resourceVersion={since}")).await?;
                t.expect(kinds(&events) == ["MODIFIED a"], "field selector");
                // The path of one object knows no watch.
                let one = t
                    .get(&format!("{}?watch=1&timeoutSeconds=1", at(WIDGETS, "a")))
                    .await?;
                t.expect(one.code == 200 && one.body["kind"] == "Widget", "a get");
                t.post(MAPS, &map("m")).await?.ok()?;
                let one = t
                    .get(&format!("{}?watch=1&timeoutSeconds=1", at(MAPS, "m")))
                    .await?;
                t.expect(one.code == 200 && one.body["kind"] == "ConfigMap", "a get");
                Ok(())
            },
        ),
        row(
            "watch: objects enter and leave a selection",
            doc::CONCEPTS,
            |t| async move {
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                let since = list_rv(&t, WIDGETS).await?;
                for label in [json!("y"), json!("z"), json!(null)] {
                    t.merge(
                        &at(WIDGETS, "a"),
                        &json!({"metadata": {"labels": {"x": label}}}),
                    )
                    .await?
                    .ok()?;
                }
                let events = t.watch(&format!("{WIDGETS}?watch=1&timeoutSeconds=1&labelSelector=x%3Dy&resourceVersion={since}")).await?;
                t.expect(
                    kinds(&events) == ["ADDED a", "DELETED a"],
                    &format!("{:?}", kinds(&events)),
                );
                let events = t
                    .watch(&format!(
                        "{WIDGETS}?watch=1&timeoutSeconds=1&labelSelector=x&resourceVersion={since}"
                    ))
                    .await?;
                t.expect(
                    kinds(&events) == ["ADDED a", "MODIFIED a", "DELETED a"],
                    &format!("{:?}", kinds(&events)),
                );
                Ok(())
            },
        ),
        row(
            "watch: sendInitialEvents ends with a marked bookmark",
            doc::WATCH_LIST,
            |t| async move {
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                let path = format!(
                    "{WIDGETS}?watch=1&timeoutSeconds=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
                );
                let answer = t.quiet("GET", &path, &[], "").await?;
                let events: Vec<Value> = answer.body.as_array().cloned().unwrap_or_default();
                t.expect(
                    events.get(1).is_some_and(|e| {
                        e["type"] == "BOOKMARK"
                            && e["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"]
                                == "true"
                    }),
                    &format!("{events:?}"),
                );
                // How many bookmarks come after is not said anywhere.
                t.observe(
                    "initial events",
                    json!(events.iter().take(2).collect::<Vec<_>>()),
                );
                let events = t.quiet("GET", &format!("{WIDGETS}?watch=1&timeoutSeconds=1&sendInitialEvents=false&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"), &[], "").await?;
                t.observe("sendInitialEvents=false", json!(events.code));
                Ok(())
            },
        ),
        row(
            "watch: parameters that do not go together are refused",
            doc::WATCH_LIST,
            |t| async move {
                for query in [
                    "sendInitialEvents=true&allowWatchBookmarks=true",
                    "sendInitialEvents=true&resourceVersionMatch=Exact&allowWatchBookmarks=true",
                    "resourceVersionMatch=NotOlderThan",
                    "resourceVersionMatch=Exact&resourceVersion=1",
                    "continue=x",
                ] {
                    for path in [WIDGETS, MAPS] {
                        t.call(
                            "GET",
                            &format!("{path}?watch=1&timeoutSeconds=1&{query}"),
                            &[],
                            "",
                        )
                        .await?;
                    }
                }
                for query in [
                    "resourceVersion=words",
                    "labelSelector=a%3D%3D%3D",
                    "fieldSelector=spec.none%3D1",
                    "timeoutSeconds=words",
                ] {
                    t.call(
                        "GET",
                        &format!("{WIDGETS}?watch=1&timeoutSeconds=1&{query}"),
                        &[],
                        "",
                    )
                    .await?;
                }
                Ok(())
            },
        ),
        row(
            "watch: a revision that is too old is 410 Expired",
            doc::CONCEPTS,
            |t| async move {
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                let answer = t
                    .quiet(
                        "GET",
                        &format!("{WIDGETS}?watch=1&timeoutSeconds=1&resourceVersion=1"),
                        &[],
                        "",
                    )
                    .await?;
                let status = if answer.code == 200 {
                    answer.body["object"].clone()
                } else {
                    answer.body
                };
                t.observe(
                    "too old",
                    json!([
                        answer.code,
                        status["code"],
                        status["reason"],
                        status["message"]
                            .as_str()
                            .map(|m| m.starts_with("too old resource version: 1 ("))
                    ]),
                );
                let expired = status["code"] == 410 && status["reason"] == "Expired";
                // Or the revision is still there, which berth may decide otherwise than etcd.
                let served = answer.code == 200 && (status.is_null() || status["kind"] == "Widget");
                t.expect(expired || served, &format!("{} {status}", answer.code));
                Ok(())
            },
        ),
        row(
            "watch: bookmarks at the end of the time",
            doc::CONCEPTS,
            |t| async move {
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                let path = format!(
                    "{WIDGETS}?watch=1&timeoutSeconds=3&allowWatchBookmarks=true&resourceVersion=0"
                );
                let answer = t.quiet("GET", &path, &[], "").await?;
                let bookmark = answer
                    .body
                    .as_array()
                    .and_then(|events| events.iter().rfind(|e| e["type"] == "BOOKMARK"));
                t.expect(bookmark.is_some(), &answer.body.to_string());
                // How many come is not said anywhere.
                t.observe("bookmark", bookmark.cloned().unwrap_or_default());
                Ok(())
            },
        ),
        row(
            "watch: as tables and as metadata",
            doc::CONCEPTS,
            |t| async move {
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                let path = format!("{WIDGETS}?watch=1&timeoutSeconds=1&resourceVersion=0");
                let metadata = t
                    .call(
                        "GET",
                        &path,
                        &[(
                            "accept",
                            "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
                        )],
                        "",
                    )
                    .await?
                    .ok()?;
                t.expect(
                    metadata["object"]["kind"] == "PartialObjectMetadata",
                    "metadata",
                );
                let table = t
                    .quiet(
                        "GET",
                        &path,
                        &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")],
                        "",
                    )
                    .await?
                    .ok()?;
                t.expect(table["object"]["kind"] == "Table", "table");
                t.observe("columns", table["object"]["columnDefinitions"].clone());
                Ok(())
            },
        ),
    ]
}
