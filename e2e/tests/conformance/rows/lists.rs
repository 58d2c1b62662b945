//! Lists: selectors, pages, revisions, views.

use serde_json::{Value, json};

use super::{Row, doc, row};
use crate::fixtures::{MAPS, PODS, WIDGETS, at, map, pod, widget};
use crate::session::Session;

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
    items
        .iter()
        .filter_map(|i| i["metadata"]["name"].as_str())
        .collect()
}

async fn labelled(t: &Session) -> anyhow::Result<()> {
    for (name, labels) in [
        ("a", json!({"tier": "web", "n": "1"})),
        ("b", json!({"tier": "db", "n": "2"})),
        ("c", json!({"tier": "web", "gone": "x"})),
        ("d", json!({})),
    ] {
        let mut body = map(name);
        body["metadata"]["labels"] = labels.clone();
        t.post(MAPS, &body).await?.ok()?;
        let mut body = widget(name, 1);
        body["metadata"]["labels"] = labels;
        t.post(WIDGETS, &body).await?.ok()?;
    }
    Ok(())
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "list: kind, items in order of names, a resourceVersion",
            doc::CONCEPTS,
            |t| async move {
                for name in ["b", "a", "c"] {
                    t.post(MAPS, &map(name)).await?.ok()?;
                    t.post(WIDGETS, &widget(name, 1)).await?.ok()?;
                }
                let list = t
                    .get(MAPS)
                    .await?
                    .is(200, &json!({"kind": "ConfigMapList", "apiVersion": "v1"}))?;
                t.expect(names(&list) == ["a", "b", "c"], "order");
                let list = t.get(WIDGETS).await?.is(
                    200,
                    &json!({"kind": "WidgetList", "apiVersion": "conformance.example.com/v1"}),
                )?;
                t.expect(names(&list) == ["a", "b", "c"], "order");
                t.get("/apis/conformance.example.com/v1/rings?labelSelector=none")
                    .await?
                    .is(200, &json!({"kind": "RingList", "items": []}))?;
                t.get("/api/v1/namespaces/nowhere/configmaps")
                    .await?
                    .is(200, &json!({"items": []}))?;
                Ok(())
            },
        ),
        row("list: label selectors", doc::LABELS, |t| async move {
            labelled(&t).await?;
            for (selector, expected) in [
                ("tier%3Dweb", vec!["a", "c"]),
                ("tier%3D%3Dweb", vec!["a", "c"]),
                ("tier!%3Dweb", vec!["b", "d"]),
                ("tier%20in%20(web,db)", vec!["a", "b", "c"]),
                ("tier%20notin%20(web)", vec!["b", "d"]),
                ("gone", vec!["c"]),
                ("!gone", vec!["a", "b", "d"]),
                ("tier%3Dweb,!gone", vec!["a"]),
                ("n%3E1", vec!["b"]),
                ("n%3C2", vec!["a"]),
                ("tier%3D", vec![]),
                ("", vec!["a", "b", "c", "d"]),
            ] {
                for path in [MAPS, WIDGETS] {
                    let list = t
                        .get(&format!("{path}?labelSelector={selector}"))
                        .await?
                        .ok()?;
                    t.expect(
                        names(&list) == expected,
                        &format!("{path} {selector}: {:?}", names(&list)),
                    );
                }
            }
            Ok(())
        }),
        row(
            "list: selectors that do not parse are 400",
            doc::LABELS,
            |t| async move {
                for selector in [
                    "a%3Db%3Dc",
                    "a%20in%20b",
                    "%3Db",
                    "a,,b",
                    "a%20in%20(b",
                    "-a",
                    "a%3D-b-",
                    "n%3Ex",
                    "a%20b",
                ] {
                    t.get(&format!("{MAPS}?labelSelector={selector}"))
                        .await?
                        .is(400, &json!({"reason": "BadRequest"}))?;
                    t.get(&format!("{WIDGETS}?labelSelector={selector}"))
                        .await?
                        .is(400, &json!({"reason": "BadRequest"}))?;
                }
                Ok(())
            },
        ),
        row("list: field selectors", doc::FIELDS, |t| async move {
            labelled(&t).await?;
            for (selector, expected) in [
                ("metadata.name%3Db", vec!["b"]),
                ("metadata.name!%3Db", vec!["a", "c", "d"]),
                ("metadata.namespace%3Dnone", vec![]),
            ] {
                for path in [MAPS, WIDGETS] {
                    let list = t
                        .get(&format!("{path}?fieldSelector={selector}"))
                        .await?
                        .ok()?;
                    t.expect(names(&list) == expected, selector);
                }
            }
            t.post(PODS, &pod("p")).await?.ok()?;
            for selector in [
                "status.phase%3DPending",
                "spec.nodeName%3D",
                "spec.restartPolicy%3DAlways",
                "spec.schedulerName%3Ddefault-scheduler",
                "spec.serviceAccountName%3D",
            ] {
                let list = t
                    .get(&format!("{PODS}?fieldSelector={selector}"))
                    .await?
                    .is(200, &json!({}))?;
                t.expect(names(&list) == ["p"], selector);
            }
            t.get(&format!("{MAPS}?fieldSelector=data.a%3D1"))
                .await?
                .is(400, &json!({"reason": "BadRequest"}))?;
            t.get(&format!("{WIDGETS}?fieldSelector=spec.size%3D1"))
                .await?
                .is(400, &json!({"reason": "BadRequest"}))?;
            t.get(&format!("{MAPS}?fieldSelector=metadata.name"))
                .await?
                .is(400, &json!({"reason": "BadRequest"}))?;
            let list = t
                .get(&format!("{WIDGETS}?fieldSelector=spec.color%3Dblue"))
                .await?
                .is(200, &json!({}))?;
            t.expect(names(&list).len() == 4, "selectable field");
            Ok(())
        }),
        row(
            "list: pages by limit and continue",
            doc::CONCEPTS,
            |t| async move {
                for path in [MAPS, WIDGETS] {
                    for name in ["a", "b", "c", "d", "e"] {
                        t.post(
                            path,
                            &if path == MAPS {
                                map(name)
                            } else {
                                widget(name, 1)
                            },
                        )
                        .await?
                        .ok()?;
                    }
                    let first = t
                        .get(&format!("{path}?limit=2"))
                        .await?
                        .is(200, &json!({"metadata": {"remainingItemCount": 3}}))?;
                    t.expect(names(&first) == ["a", "b"], "first page");
                    let token = first["metadata"]["continue"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned();
                    t.mask(&token, "token-1");
                    let second = t
                        .get(&format!("{path}?limit=2&continue={token}"))
                        .await?
                        .is(200, &json!({"metadata": {"remainingItemCount": 1}}))?;
                    t.expect(names(&second) == ["c", "d"], "second page");
                    t.expect(
                        first["metadata"]["resourceVersion"]
                            == second["metadata"]["resourceVersion"],
                        "pages share their revision",
                    );
                    let token = second["metadata"]["continue"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned();
                    t.mask(&token, "token-2");
                    let third = t
                        .get(&format!("{path}?limit=2&continue={token}"))
                        .await?
                        .is(200, &json!({"metadata": {"remainingItemCount": null}}))?;
                    t.expect(names(&third) == ["e"], "last page");
                    t.get(&format!("{path}?limit=5"))
                        .await?
                        .is(200, &json!({}))?;
                    t.get(&format!("{path}?limit=2&labelSelector=x%3Dy"))
                        .await?
                        .is(200, &json!({"items": []}))?;
                    t.get(&format!("{path}?continue=rubbish"))
                        .await?
                        .is(400, &json!({"reason": "BadRequest"}))?;
                    let rv = first["metadata"]["resourceVersion"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned();
                    t.mask(&format!("resourceVersion={rv}&"), "rv");
                    t.get(&format!("{path}?resourceVersion={rv}&continue={token}"))
                        .await?
                        .is(400, &json!({"reason": "BadRequest"}))?;
                }
                Ok(())
            },
        ),
        row(
            "list: pages show the revision of the first",
            doc::CONCEPTS,
            |t| async move {
                for name in ["a", "c", "d"] {
                    t.post(MAPS, &map(name)).await?.ok()?;
                }
                let first = t.get(&format!("{MAPS}?limit=1")).await?.ok()?;
                t.post(MAPS, &map("b")).await?.ok()?;
                t.delete(&at(MAPS, "d"), &json!(null)).await?.ok()?;
                let token = first["metadata"]["continue"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                t.mask(&token, "token");
                let rest = t.get(&format!("{MAPS}?continue={token}")).await?.ok()?;
                t.expect(
                    names(&rest) == ["c", "d"],
                    &format!("the rest as of the first page, not {:?}", names(&rest)),
                );
                Ok(())
            },
        ),
        row(
            "list: resourceVersion and resourceVersionMatch",
            doc::CONCEPTS,
            |t| async move {
                let made = t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                let rv = made["metadata"]["resourceVersion"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                t.mask(&format!("resourceVersion={rv}"), "rv");
                let exact = format!("{WIDGETS}?resourceVersion={rv}&resourceVersionMatch=Exact");
                let list = t
                    .get(&exact)
                    .await?
                    .is(200, &json!({"metadata": {"resourceVersion": rv}}))?;
                t.expect(names(&list) == ["a"], "exact");
                t.get(&format!(
                    "{WIDGETS}?resourceVersion={rv}&resourceVersionMatch=NotOlderThan"
                ))
                .await?
                .is(200, &json!({}))?;
                t.get(&format!("{WIDGETS}?resourceVersion={rv}"))
                    .await?
                    .is(200, &json!({}))?;
                t.get(&format!("{WIDGETS}?resourceVersion=0"))
                    .await?
                    .is(200, &json!({}))?;
                t.post(WIDGETS, &widget("b", 1)).await?.ok()?;
                let list = t
                    .get(&exact)
                    .await?
                    .is(200, &json!({"metadata": {"resourceVersion": rv}}))?;
                t.expect(names(&list) == ["a"], "exact shows the past");
                for (query, code) in [
                    ("resourceVersionMatch=Exact", 422),
                    ("resourceVersion=0&resourceVersionMatch=Exact", 422),
                    ("resourceVersion=5&resourceVersionMatch=Whatever", 422),
                    ("sendInitialEvents=true", 422),
                    ("resourceVersion=words", 400),
                    ("resourceVersion=-1", 400),
                    ("limit=words", 400),
                    ("timeoutSeconds=words", 400),
                ] {
                    t.get(&format!("{WIDGETS}?{query}"))
                        .await?
                        .is(code, &json!({}))?;
                }
                Ok(())
            },
        ),
        row(
            "get: resourceVersion is a lower bound",
            doc::CONCEPTS,
            |t| async move {
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                t.get(&format!("{}?resourceVersion=0", at(WIDGETS, "a")))
                    .await?
                    .is(200, &json!({}))?;
                t.get(&format!("{}?resourceVersion=1", at(WIDGETS, "a")))
                    .await?
                    .is(200, &json!({}))?;
                t.get(&format!("{}?resourceVersion=words", at(WIDGETS, "a")))
                    .await?
                    .is(500, &json!({}))?;
                Ok(())
            },
        ),
        row(
            "views: Table and PartialObjectMetadata",
            doc::CONCEPTS,
            |t| async move {
                t.post(WIDGETS, &widget("a", 7)).await?.ok()?;
                t.post(MAPS, &map("a")).await?.ok()?;
                t.post(PODS, &pod("p")).await?.ok()?;
                for path in [
                    WIDGETS.to_owned(),
                    at(WIDGETS, "a"),
                    MAPS.to_owned(),
                    PODS.to_owned(),
                    "/apis/conformance.example.com/v1/rings".to_owned(),
                ] {
                    let table = t
                        .quiet(
                            "GET",
                            &path,
                            &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")],
                            "",
                        )
                        .await?;
                    t.expect(table.body["kind"] == "Table", "Table");
                    let mut body = table.body;
                    for row in body["rows"].as_array_mut().into_iter().flatten() {
                        for cell in row["cells"].as_array_mut().into_iter().flatten() {
                            if cell
                                .as_str()
                                .is_some_and(|c| c.ends_with('s') && c.len() < 4)
                            {
                                *cell = json!("<age>");
                            }
                        }
                    }
                    t.observe(&path, body);
                    let kind = if path.ends_with("/a") {
                        "PartialObjectMetadata"
                    } else {
                        "PartialObjectMetadataList"
                    };
                    let accept = format!("application/json;as={kind};v=v1;g=meta.k8s.io");
                    t.call("GET", &path, &[("accept", &accept)], "").await?;
                }
                t.call(
                    "GET",
                    &format!("{WIDGETS}?includeObject=None"),
                    &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")],
                    "",
                )
                .await?;
                t.call(
                    "GET",
                    &format!("{WIDGETS}?includeObject=Some"),
                    &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")],
                    "",
                )
                .await?;
                t.call(
                    "GET",
                    WIDGETS,
                    &[("accept", "application/json;as=Nothing;v=v1;g=meta.k8s.io")],
                    "",
                )
                .await?
                .is(406, &json!({}))?;
                Ok(())
            },
        ),
    ]
}
