//! Server-side apply and managedFields.

use serde_json::{Value, json};

use super::{Row, doc, row};
use crate::fixtures::{MAPS, PODS, WIDGETS, at, map, pod, widget};
use crate::session::JSON_BODY;

fn by(path: &str, manager: &str) -> String {
    format!("{path}?fieldManager={manager}")
}

fn size(value: i64) -> Value {
    json!({"apiVersion": "conformance.example.com/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": {"size": value}})
}

fn parts(list: Value) -> Value {
    let mut body = size(1);
    body["spec"]["parts"] = list;
    body
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "managedFields: by create, update, patch and status",
            doc::APPLY,
            |t| async move {
                t.keep_managed_fields();
                for (path, body) in [
                    (MAPS, map("a")),
                    (WIDGETS, widget("a", 1)),
                    (PODS, pod("a")),
                ] {
                    t.post(&by(path, "maker"), &body)
                        .await?
                        .is(201, &json!({}))?;
                    t.merge(
                        &by(&at(path, "a"), "patcher"),
                        &json!({"metadata": {"labels": {"x": "y"}}}),
                    )
                    .await?
                    .is(200, &json!({}))?;
                    let now = t.get(&at(path, "a")).await?.ok()?;
                    t.expect(
                        now["metadata"]["managedFields"]
                            .as_array()
                            .is_some_and(|m| m.len() == 2),
                        "two managers",
                    );
                }
                t.merge(
                    &format!("{}/status?fieldManager=phaser", at(WIDGETS, "a")),
                    &json!({"status": {"phase": "Up"}}),
                )
                .await?
                .is(200, &json!({}))?;
                t.json_patch(
                    &by(&at(WIDGETS, "a"), "remover"),
                    &json!([{"op": "remove", "path": "/metadata/labels"}]),
                )
                .await?;
                t.merge(
                    &at(WIDGETS, "a"),
                    &json!({"metadata": {"managedFields": [{}]}}),
                )
                .await?
                .is(200, &json!({"metadata": {"managedFields": null}}))?;
                Ok(())
            },
        ),
        row(
            "managedFields: the manager's name comes from the user agent",
            doc::APPLY,
            |t| async move {
                t.keep_managed_fields();
                t.call("POST", MAPS, &[JSON_BODY, ("user-agent", "my-tool/v1.2 (linux)")], &map("a").to_string()).await?.is(201, &json!({"metadata": {"managedFields": [{"manager": "my-tool", "operation": "Update"}]}}))?;
                t.post(&by(MAPS, &"x".repeat(129)), &map("b"))
                    .await?
                    .is(422, &json!({}))?;
                Ok(())
            },
        ),
        row(
            "apply: creates, 201 then 200, twice is no write",
            doc::APPLY,
            |t| async move {
                t.keep_managed_fields();
                let first = t.apply(&by(&at(WIDGETS, "a"), "one"), &size(1)).await?.is(201, &json!({"spec": {"size": 1, "color": "blue"}, "metadata": {"managedFields": [{"manager": "one", "operation": "Apply"}]}}))?;
                let second = t
                    .apply(&by(&at(WIDGETS, "a"), "one"), &size(1))
                    .await?
                    .is(200, &json!({}))?;
                t.expect(
                    first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"],
                    "no write",
                );
                t.apply(
                    &by(&at(MAPS, "m"), "one"),
                    &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "1"}}),
                )
                .await?
                .is(201, &json!({"metadata": {"name": "m"}}))?;
                Ok(())
            },
        ),
        row(
            "apply: a conflict names the managers, force takes over",
            doc::APPLY,
            |t| async move {
                t.keep_managed_fields();
                t.apply(&by(&at(WIDGETS, "a"), "one"), &size(1))
                    .await?
                    .ok()?;
                t.apply(&by(&at(WIDGETS, "a"), "two"), &size(2)).await?.is(409, &json!({"reason": "Conflict", "details": {"causes": [{"reason": "FieldManagerConflict", "field": ".spec.size"}]}}))?;
                t.apply(&by(&at(WIDGETS, "a"), "two"), &size(1))
                    .await?
                    .is(200, &json!({}))?;
                t.apply(
                    &format!("{}&force=true", by(&at(WIDGETS, "a"), "two")),
                    &size(2),
                )
                .await?
                .is(200, &json!({"spec": {"size": 2}}))?;
                t.merge(
                    &by(&at(WIDGETS, "a"), "three"),
                    &json!({"spec": {"size": 3}}),
                )
                .await?
                .is(200, &json!({}))?;
                t.apply(&by(&at(WIDGETS, "a"), "two"), &size(2))
                    .await?
                    .is(409, &json!({}))?;
                Ok(())
            },
        ),
        row(
            "apply: what the last owner drops goes",
            doc::APPLY,
            |t| async move {
                t.keep_managed_fields();
                let mut full = size(1);
                full["spec"]["note"] = json!("hello");
                full["spec"]["labels"] = json!({"a": "1", "b": "2"});
                full["spec"]["tags"] = json!(["x", "y"]);
                t.apply(&by(&at(WIDGETS, "a"), "one"), &full).await?.ok()?;
                let mut other = size(1);
                other["spec"]["labels"] = json!({"b": "2", "c": "3"});
                other["spec"]["tags"] = json!(["y", "z"]);
                t.apply(&by(&at(WIDGETS, "a"), "two"), &other)
                    .await?
                    .is(200, &json!({"spec": {"tags": ["x", "y", "z"]}}))?;
                t.apply(&by(&at(WIDGETS, "a"), "one"), &size(1)).await?.is(200, &json!({"spec": {"note": null, "labels": {"a": null, "b": "2", "c": "3"}, "tags": ["y", "z"]}}))?;
                Ok(())
            },
        ),
        row(
            "apply: lists with keys merge item by item",
            doc::APPLY,
            |t| async move {
                t.keep_managed_fields();
                t.apply(
                    &by(&at(WIDGETS, "a"), "one"),
                    &parts(json!([{"name": "p", "count": 2}])),
                )
                .await?
                .ok()?;
                t.apply(&by(&at(WIDGETS, "a"), "two"), &parts(json!([{"name": "q", "count": 3, "notes": ["n"]}]))).await?.is(200, &json!({"spec": {"parts": [{"name": "p", "count": 2}, {"name": "q", "count": 3}]}}))?;
                t.apply(
                    &by(&at(WIDGETS, "a"), "two"),
                    &parts(json!([{"name": "q", "count": 3}, {"name": "p", "count": 9}])),
                )
                .await?
                .is(409, &json!({}))?;
                t.apply(&by(&at(WIDGETS, "a"), "one"), &parts(json!([])))
                    .await?
                    .is(200, &json!({"spec": {"parts": [{"name": "q"}]}}))?;
                t.apply(
                    &by(&at(WIDGETS, "a"), "two"),
                    &parts(json!([{"name": "q"}, {"name": "q"}])),
                )
                .await?;
                Ok(())
            },
        ),
        row(
            "apply: atomic maps have one owner",
            doc::APPLY,
            |t| async move {
                t.keep_managed_fields();
                let place = |value: Value| {
                    let mut body = size(1);
                    body["spec"]["place"] = value;
                    body
                };
                t.apply(
                    &by(&at(WIDGETS, "a"), "one"),
                    &place(json!({"x": 1, "y": 2})),
                )
                .await?
                .ok()?;
                t.apply(&by(&at(WIDGETS, "a"), "two"), &place(json!({"x": 1})))
                    .await?
                    .is(409, &json!({}))?;
                t.apply(
                    &format!("{}&force=true", by(&at(WIDGETS, "a"), "two")),
                    &place(json!({"x": 3})),
                )
                .await?
                .is(200, &json!({"spec": {"place": {"x": 3, "y": null}}}))?;
                Ok(())
            },
        ),
        row(
            "apply: to the status subresource",
            doc::APPLY,
            |t| async move {
                t.keep_managed_fields();
                t.post(&by(WIDGETS, "maker"), &widget("a", 1)).await?.ok()?;
                let status = json!({"apiVersion": "conformance.example.com/v1", "kind": "Widget", "status": {"phase": "Up", "conditions": [{"type": "Ready", "status": "True"}]}});
                t.apply(
                    &by(&format!("{}/status", at(WIDGETS, "a")), "agent"),
                    &status,
                )
                .await?
                .is(
                    200,
                    &json!({"status": {"phase": "Up"}, "metadata": {"generation": 1}}),
                )?;
                Ok(())
            },
        ),
        row("apply: a pod, by its keys", doc::APPLY, |t| async move {
            t.keep_managed_fields();
            let mut body = pod("p");
            body["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80}]);
            body["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": "1"}]);
            t.apply(&by(&at(PODS, "p"), "one"), &body)
                .await?
                .is(201, &json!({}))?;
            body["spec"]["containers"][0]["image"] = json!("example.com/i:2");
            t.apply(&by(&at(PODS, "p"), "one"), &body)
                .await?
                .is(200, &json!({}))?;
            Ok(())
        }),
        row("apply: what is refused", doc::APPLY, |t| async move {
            t.apply(&at(WIDGETS, "a"), &size(1))
                .await?
                .is(422, &json!({}))?;
            t.apply(&by(&at(WIDGETS, "b"), "one"), &size(1))
                .await?
                .is(400, &json!({}))?;
            let mut owned = size(1);
            owned["metadata"]["managedFields"] = json!([{"manager": "x"}]);
            t.apply(&by(&at(WIDGETS, "a"), "one"), &owned)
                .await?
                .is(400, &json!({}))?;
            t.apply(&by(&at(WIDGETS, "a"), "one"), &size(0))
                .await?
                .is(422, &json!({}))?;
            let mut unknown = size(1);
            unknown["spec"]["unknown"] = json!(1);
            t.apply(
                &format!("{}&fieldValidation=Strict", by(&at(WIDGETS, "a"), "one")),
                &unknown,
            )
            .await?;
            t.apply(&by(&at(WIDGETS, "a"), "one"), &json!({"spec": {}}))
                .await?
                .is(400, &json!({}))?;
            t.apply(
                &by(&at(MAPS, "m"), "one"),
                &json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": 1}}),
            )
            .await?;
            t.merge(&format!("{}?force=true", at(MAPS, "m")), &json!({}))
                .await?
                .is(422, &json!({}))?;
            t.apply(&format!("{}&dryRun=All", by(&at(WIDGETS, "dry"), "one")), &json!({"apiVersion": "conformance.example.com/v1", "kind": "Widget", "metadata": {"name": "dry"}, "spec": {"size": 1}})).await?.is(201, &json!({}))?;
            t.get(&at(WIDGETS, "dry")).await?.is(404, &json!({}))?;
            Ok(())
        }),
    ]
}
