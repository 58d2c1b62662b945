//! JSON patch, merge patch, strategic merge patch, and what they refuse.

use serde_json::json;

use super::{Row, doc, row};
use crate::fixtures::{MAPS, PODS, WIDGETS, at, map, pod, widget};

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "merge patch: adds, replaces, null removes, lists are replaced",
            doc::KUBECTL_PATCH,
            |t| async move {
                let mut body = widget("a", 1);
                body["spec"]["tags"] = json!(["x", "y"]);
                t.post(WIDGETS, &body).await?.ok()?;
                t.merge(
                    &at(WIDGETS, "a"),
                    &json!({"spec": {"tags": ["z"], "color": null, "note": "hello"}}),
                )
                .await?
                .is(
                    200,
                    &json!({"spec": {"tags": ["z"], "color": "blue", "note": "hello", "size": 1}}),
                )?;
                t.post(MAPS, &map("a")).await?.ok()?;
                t.merge(&at(MAPS, "a"), &json!({"data": {"a": null, "b": "2"}}))
                    .await?
                    .is(200, &json!({"data": {"a": null, "b": "2"}}))?;
                Ok(())
            },
        ),
        row(
            "json patch: add, test, replace, move, copy, remove",
            doc::KUBECTL_PATCH,
            |t| async move {
                t.post(MAPS, &map("a")).await?.ok()?;
                t.json_patch(
                    &at(MAPS, "a"),
                    &json!([
                        {"op": "test", "path": "/data/a", "value": "1"},
                        {"op": "add", "path": "/data/b", "value": "2"},
                        {"op": "copy", "from": "/data/b", "path": "/data/c"},
                        {"op": "move", "from": "/data/a", "path": "/data/d.e"},
                        {"op": "replace", "path": "/data/b", "value": "3"},
                    ]),
                )
                .await?
                .is(
                    200,
                    &json!({"data": {"a": null, "b": "3", "c": "2", "d.e": "1"}}),
                )?;
                t.json_patch(&at(MAPS, "a"), &json!([{"op": "remove", "path": "/data"}]))
                    .await?
                    .is(200, &json!({"data": null}))?;
                Ok(())
            },
        ),
        row(
            "json patch: what cannot be applied is 422",
            doc::KUBECTL_PATCH,
            |t| async move {
                t.post(MAPS, &map("a")).await?.ok()?;
                for patch in [
                    json!([{"op": "test", "path": "/data/a", "value": "2"}]),
                    json!([{"op": "remove", "path": "/data/none"}]),
                    json!([{"op": "add", "path": "/none/deep", "value": "1"}]),
                ] {
                    t.json_patch(&at(MAPS, "a"), &patch)
                        .await?
                        .is(422, &json!({"reason": "Invalid"}))?;
                }
                for patch in [json!({"op": "add"}), json!("text"), json!([1])] {
                    t.json_patch(&at(MAPS, "a"), &patch)
                        .await?
                        .is(400, &json!({"reason": "BadRequest"}))?;
                }
                t.json_patch(
                    &at(MAPS, "a"),
                    &json!([{"op": "explode", "path": "/data/a"}]),
                )
                .await?;
                t.json_patch(&at(MAPS, "a"), &json!([{"path": "/data/a", "value": "9"}]))
                    .await?;
                Ok(())
            },
        ),
        row(
            "strategic merge patch: lists merge by their keys",
            doc::KUBECTL_PATCH,
            |t| async move {
                let mut body = pod("p");
                body["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": "1"}]);
                body["spec"]["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
                t.post(PODS, &body).await?.ok()?;
                t.strategic(&at(PODS, "p"), &json!({"spec": {"containers": [{"name": "c", "image": "example.com/i:2"}]}})).await?.is(200, &json!({"spec": {"containers": [{"name": "c", "image": "example.com/i:2", "env": [{"name": "A", "value": "1"}]}]}}))?;
                t.strategic(
                    &at(PODS, "p"),
                    &json!({"metadata": {"finalizers": ["example.com/a"]}}),
                )
                .await?
                .is(200, &json!({"metadata": {"finalizers": ["example.com/a"]}}))?;
                t.strategic(
                    &at(PODS, "p"),
                    &json!({"metadata": {"finalizers": ["example.com/b"]}}),
                )
                .await?
                .ok()?;
                t.strategic(&at(PODS, "p"), &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["example.com/a"]}})).await?.ok()?;
                t.strategic(
                    &at(PODS, "p"),
                    &json!({"metadata": {"labels": {"$patch": "replace", "x": "y"}}}),
                )
                .await?
                .is(200, &json!({}))?;
                t.strategic(
                    &at(PODS, "p"),
                    &json!({"spec": {"containers": [{"name": "d", "image": "example.com/j"}]}}),
                )
                .await?
                .is(422, &json!({"reason": "Invalid"}))?;
                t.strategic(
                    &at(PODS, "p"),
                    &json!({"spec": {"containers": [{"image": "no-key"}]}}),
                )
                .await?;
                t.merge(&at(PODS, "p"), &json!({"metadata": {"finalizers": null}}))
                    .await?
                    .ok()?;
                Ok(())
            },
        ),
        row(
            "strategic merge patch: 415 for custom resources",
            doc::CRD,
            |t| async move {
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                t.strategic(&at(WIDGETS, "a"), &json!({"spec": {"size": 2}}))
                    .await?
                    .is(415, &json!({"reason": "UnsupportedMediaType"}))?;
                Ok(())
            },
        ),
        row(
            "patch: an unknown media type is 415",
            doc::CONCEPTS,
            |t| async move {
                t.post(MAPS, &map("a")).await?.ok()?;
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                for path in [at(MAPS, "a"), at(WIDGETS, "a")] {
                    t.patch(&path, "application/json", &json!({}))
                        .await?
                        .is(415, &json!({"reason": "UnsupportedMediaType"}))?;
                    t.patch(&path, "text/plain", &json!({}))
                        .await?
                        .is(415, &json!({}))?;
                }
                Ok(())
            },
        ),
        row(
            "patch: name, uid and namespace do not change",
            doc::CONVENTIONS,
            |t| async move {
                for (path, body) in [(MAPS, map("a")), (WIDGETS, widget("a", 1))] {
                    t.post(path, &body).await?.ok()?;
                    t.merge(&at(path, "a"), &json!({"metadata": {"name": "b"}}))
                        .await?
                        .is(400, &json!({}))?;
                    t.merge(
                        &at(path, "a"),
                        &json!({"metadata": {"namespace": "default"}}),
                    )
                    .await?
                    .is(400, &json!({}))?;
                    t.merge(
                        &at(path, "a"),
                        &json!({"metadata": {"uid": "11111111-2222-3333-4444-555555555555"}}),
                    )
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                    t.merge(&at(path, "a"), &json!({"kind": "Other"}))
                        .await?
                        .is(422, &json!({}))?;
                    t.merge(&at(path, "a"), &json!({"apiVersion": "other/v1"}))
                        .await?
                        .is(422, &json!({}))?;
                    t.merge(
                        &at(path, "a"),
                        &json!({"metadata": {"creationTimestamp": "2001-01-01T00:00:00Z"}}),
                    )
                    .await?;
                    t.merge(&at(path, "a"), &json!({"metadata": null})).await?;
                }
                Ok(())
            },
        ),
        row(
            "patch: a body that does not parse is 400",
            doc::CONVENTIONS,
            |t| async move {
                t.post(MAPS, &map("a")).await?.ok()?;
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                for media in [
                    "application/merge-patch+json",
                    "application/json-patch+json",
                ] {
                    for path in [at(MAPS, "a"), at(WIDGETS, "a")] {
                        t.call("PATCH", &path, &[("content-type", media)], "{")
                            .await?
                            .is(400, &json!({}))?;
                        t.call("PATCH", &path, &[("content-type", media)], "")
                            .await?;
                        t.call("PATCH", &path, &[("content-type", media)], "[1, 2]")
                            .await?;
                    }
                }
                t.call(
                    "PATCH",
                    &at(MAPS, "a"),
                    &[("content-type", "application/strategic-merge-patch+json")],
                    "{",
                )
                .await?
                .is(400, &json!({}))?;
                Ok(())
            },
        ),
        row(
            "patch: the result is validated",
            doc::CONVENTIONS,
            |t| async move {
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                t.merge(&at(WIDGETS, "a"), &json!({"spec": {"size": 0}}))
                    .await?
                    .is(
                        422,
                        &json!({"details": {"causes": [{"field": "spec.size"}]}}),
                    )?;
                t.merge(&at(WIDGETS, "a"), &json!({"spec": {"size": null}}))
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                t.merge(&at(WIDGETS, "a"), &json!({"spec": {"size": "ten"}}))
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                t.post(MAPS, &map("a")).await?.ok()?;
                t.merge(&at(MAPS, "a"), &json!({"data": {"not ok": "x"}}))
                    .await?
                    .is(422, &json!({}))?;
                t.merge(&at(MAPS, "a"), &json!({"data": {"n": 5}}))
                    .await?
                    .is(422, &json!({}))?;
                t.merge(&at(MAPS, "a"), &json!({"immutable": true}))
                    .await?
                    .ok()?;
                t.merge(&at(MAPS, "a"), &json!({"data": {"a": "2"}}))
                    .await?
                    .is(422, &json!({}))?;
                t.merge(&at(MAPS, "a"), &json!({"immutable": false}))
                    .await?
                    .is(422, &json!({}))?;
                Ok(())
            },
        ),
    ]
}
