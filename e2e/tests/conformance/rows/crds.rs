//! Custom resources: pruning, defaults, validation, field validation, CEL, and the life of a definition.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use super::{Row, doc, row};
use crate::fixtures::{DEFINITIONS, MAPS, VMIS, WIDGETS, at, served, simple, widget};
use crate::session::{JSON_BODY, Session};

fn with(name: &str, field: &str, value: Value) -> Value {
    let mut body = widget(name, 1);
    body["spec"][field] = value;
    body
}

/// The causes and the message of a refusal, recorded; they need not come in the same order on both.
async fn refused(t: &Session, body: &Value) -> anyhow::Result<()> {
    t.post(WIDGETS, body)
        .await?
        .is(422, &json!({"reason": "Invalid"}))?;
    Ok(())
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "pruning: unknown fields go, but where they are preserved",
            doc::CRD,
            |t| async move {
                let mut body = widget("a", 1);
                body["spec"]["unknown"] = json!(1);
                body["extra"] = json!({"x": 1});
                body["metadata"]["strange"] = json!(1);
                body["spec"]["free"] = json!({"anything": {"goes": [1, "two"]}});
                body["spec"]["parts"] = json!([{"name": "p", "other": 1}]);
                t.post(&format!("{WIDGETS}?fieldValidation=Ignore"), &body).await?.warns(&[])?.is(201, &json!({"extra": null, "spec": {"unknown": null, "free": {"anything": {"goes": [1, "two"]}}, "parts": [{"name": "p", "other": null, "count": 1}]}}))?;
                Ok(())
            },
        ),
        row(
            "fieldValidation: Warn says what is unknown or double",
            doc::CONCEPTS,
            |t| async move {
                let mut body = widget("a", 1);
                body["spec"]["unknown"] = json!(1);
                body["extra"] = json!(1);
                t.post(WIDGETS, &body)
                    .await?
                    .warns(&["unknown field \"extra\"", "unknown field \"spec.unknown\""])?
                    .is(201, &json!({}))?;
                let double = r#"{"apiVersion": "conformance.example.com/v1", "kind": "Widget", "metadata": {"name": "b"}, "spec": {"size": 1, "size": 2}}"#;
                t.call("POST", WIDGETS, &[JSON_BODY], double)
                    .await?
                    .warns(&["duplicate field \"spec.size\""])?
                    .is(201, &json!({"spec": {"size": 2}}))?;
                let double =
                    r#"{"metadata": {"name": "m"}, "data": {"a": "1", "a": "2"}, "more": 1}"#;
                t.call("POST", MAPS, &[JSON_BODY], double)
                    .await?
                    .is(201, &json!({}))?;
                Ok(())
            },
        ),
        row(
            "fieldValidation: Strict refuses what is unknown or double",
            doc::CONCEPTS,
            |t| async move {
                let mut body = widget("a", 1);
                body["spec"]["unknown"] = json!(1);
                body["extra"] = json!(1);
                t.post(&format!("{WIDGETS}?fieldValidation=Strict"), &body)
                    .await?
                    .is(400, &json!({"reason": "BadRequest"}))?;
                let double = r#"{"apiVersion": "conformance.example.com/v1", "kind": "Widget", "metadata": {"name": "b"}, "spec": {"size": 1, "size": 2}}"#;
                t.call(
                    "POST",
                    &format!("{WIDGETS}?fieldValidation=Strict"),
                    &[JSON_BODY],
                    double,
                )
                .await?
                .is(400, &json!({}))?;
                t.post(
                    &format!("{MAPS}?fieldValidation=Strict"),
                    &json!({"metadata": {"name": "m"}, "more": 1}),
                )
                .await?
                .is(400, &json!({}))?;
                t.post(
                    &format!("{WIDGETS}?fieldValidation=Sometimes"),
                    &widget("a", 1),
                )
                .await?
                .is(422, &json!({}))?;
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                t.merge(
                    &format!("{}?fieldValidation=Strict", at(WIDGETS, "a")),
                    &json!({"spec": {"unknown": 1}}),
                )
                .await?
                .is(422, &json!({}))?;
                t.merge(
                    &format!("{}?fieldValidation=Warn", at(WIDGETS, "a")),
                    &json!({"spec": {"unknown": 1}}),
                )
                .await?
                .is(200, &json!({}))?;
                Ok(())
            },
        ),
        row(
            "defaults: filled in, also for null where null is not allowed",
            doc::CRD,
            |t| async move {
                t.post(WIDGETS, &widget("a", 1))
                    .await?
                    .is(201, &json!({"spec": {"color": "blue", "replicas": 1}}))?;
                t.post(WIDGETS, &with("b", "color", json!(null)))
                    .await?
                    .is(201, &json!({"spec": {"color": "blue"}}))?;
                t.post(WIDGETS, &with("c", "maybe", json!(null)))
                    .await?
                    .is(201, &json!({}))?;
                t.post(WIDGETS, &with("d", "note", json!(null)))
                    .await?
                    .is(201, &json!({"spec": {"note": null}}))?;
                Ok(())
            },
        ),
        row("validation: numbers", doc::CRD, |t| async move {
            for size in [
                json!(0),
                json!(101),
                json!(1.5),
                json!("1"),
                json!(true),
                json!([1]),
                json!({}),
            ] {
                refused(&t, &with("a", "size", size)).await?;
            }
            refused(&t, &with("a", "ratio", json!(0.3))).await?;
            refused(&t, &with("a", "replicas", json!(3_000_000_000_i64))).await?;
            t.post(WIDGETS, &with("a", "ratio", json!(1.5)))
                .await?
                .is(201, &json!({"spec": {"ratio": 1.5}}))?;

            Ok(())
        }),
        row("validation: strings", doc::CRD, |t| async move {
            refused(&t, &with("a", "color", json!("pink"))).await?;
            refused(&t, &with("a", "note", json!("UPPER"))).await?;
            refused(&t, &with("a", "note", json!("this is longer than twenty"))).await?;
            refused(&t, &with("a", "when", json!("yesterday"))).await?;
            refused(&t, &with("a", "port", json!(1.5))).await?;
            refused(&t, &with("a", "port", json!(true))).await?;
            t.post(WIDGETS, &with("a", "port", json!("http")))
                .await?
                .is(201, &json!({}))?;
            t.post(WIDGETS, &with("b", "when", json!("2026-01-01T00:00:00Z")))
                .await?
                .is(201, &json!({}))?;
            Ok(())
        }),
        row("validation: lists and maps", doc::CRD, |t| async move {
            refused(&t, &with("a", "tags", json!(["x", "x"]))).await?;
            refused(&t, &with("a", "tags", json!(["1", "2", "3", "4", "5"]))).await?;
            refused(&t, &with("a", "tags", json!([1]))).await?;
            refused(&t, &with("a", "tags", json!("x"))).await?;
            refused(
                &t,
                &with("a", "parts", json!([{"name": "p"}, {"name": "p"}])),
            )
            .await?;
            refused(&t, &with("a", "parts", json!([{"count": 2}]))).await?;
            refused(&t, &with("a", "labels", json!({"a": 1}))).await?;
            refused(&t, &with("a", "place", json!([]))).await?;
            refused(&t, &with("a", "free", json!("text"))).await?;
            Ok(())
        }),
        row(
            "validation: several faults in one answer",
            doc::CRD,
            |t| async move {
                let mut body = widget("a", 0);
                body["spec"]["note"] = json!("UPPER");
                body["spec"]["color"] = json!("pink");
                // Upstream finds them in the order of a Go map, which is by chance.
                let answer = t
                    .quiet("POST", WIDGETS, &[JSON_BODY], &body.to_string())
                    .await?;
                let causes = answer.body["details"]["causes"].as_array();
                let mut causes = causes.cloned().unwrap_or_default();
                causes.sort_by_key(|cause| cause["field"].to_string());
                t.observe("refused", json!([answer.code, causes]));
                t.expect(causes.len() == 4, "three faults, and no rules");
                t.post(WIDGETS, &json!({"apiVersion": "conformance.example.com/v1", "kind": "Widget", "metadata": {"name": "a"}})).await?.is(422, &json!({"details": {"causes": [{"field": "spec", "reason": "FieldValueRequired"}, {"field": "<nil>"}]}}))?;
                t.post(WIDGETS, &json!({"apiVersion": "conformance.example.com/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": "text"})).await?.is(422, &json!({}))?;
                t.post(WIDGETS, &json!({"apiVersion": "conformance.example.com/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": null})).await?.is(422, &json!({}))?;
                Ok(())
            },
        ),
        row(
            "CEL: rules, messages, reasons, transitions",
            doc::CRD,
            |t| async move {
                let mut body = widget("a", 1);
                body["spec"]["least"] = json!(5);
                body["spec"]["most"] = json!(2);
                t.post(WIDGETS, &body).await?.is(422, &json!({"details": {"causes": [{"reason": "FieldValueInvalid", "field": "spec"}]}}))?;
                t.post(WIDGETS, &widget("a", 13)).await?.is(422, &json!({"details": {"causes": [{"reason": "FieldValueForbidden", "field": "spec.size", "message": "Forbidden: this size brings bad luck"}]}}))?;
                t.post(WIDGETS, &with("a", "fixed", json!("x")))
                    .await?
                    .is(201, &json!({}))?;
                t.merge(&at(WIDGETS, "a"), &json!({"spec": {"fixed": "y"}}))
                    .await?
                    .is(422, &json!({}))?;
                t.merge(&at(WIDGETS, "a"), &json!({"spec": {"size": 2}}))
                    .await?
                    .is(200, &json!({}))?;
                Ok(())
            },
        ),
        row(
            "definition: established, discoverable, used, removed with its objects",
            doc::CRD,
            |t| async move {
                let crd = simple("lives", "Life", "Namespaced");
                let name = "lives.conformance.example.com";
                t.post(DEFINITIONS, &crd).await?.is(201, &json!({"spec": {"names": {"listKind": "LifeList", "singular": "life"}, "conversion": {"strategy": "None"}}}))?;
                served(&t, name, &crd).await?;
                let now = t
                    .quiet("GET", &at(DEFINITIONS, name), &[], "")
                    .await?
                    .ok()?;
                t.observe("status", now["status"].clone());
                t.expect(
                    now["status"]["storedVersions"] == json!(["v1"]),
                    "storedVersions",
                );
                let lives = "/apis/conformance.example.com/v1/namespaces/{ns}/lives";
                let life = json!({"apiVersion": "conformance.example.com/v1", "kind": "Life", "metadata": {"name": "l"}, "spec": {"size": 1}});
                t.post(lives, &life)
                    .await?
                    .is(201, &json!({"spec": {"size": 1}}))?;
                t.delete(&at(DEFINITIONS, name), &json!(null))
                    .await?
                    .is(200, &json!({}))?;
                let begin = Instant::now();
                while t.quiet("GET", &at(DEFINITIONS, name), &[], "").await?.code != 404 {
                    ensure!(
                        begin.elapsed() < Duration::from_secs(60),
                        "{name} does not go"
                    );
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                let gone = t.quiet("GET", lives, &[], "").await?;
                t.expect(gone.code == 404, "its resource is gone");
                Ok(())
            },
        ),
        row(
            "definition: a new version takes effect, a stored one cannot go",
            doc::CRD_VERSIONS,
            |t| async move {
                let mut crd = simple("verses", "Verse", "Namespaced");
                let name = "verses.conformance.example.com";
                t.post(DEFINITIONS, &crd).await?.ok()?;
                served(&t, name, &crd).await?;
                let verse = json!({"apiVersion": "conformance.example.com/v1", "kind": "Verse", "metadata": {"name": "v"}, "spec": {"size": 1}});
                t.post(
                    "/apis/conformance.example.com/v1/namespaces/{ns}/verses",
                    &verse,
                )
                .await?
                .ok()?;
                let mut second = crd["spec"]["versions"][0].clone();
                second["name"] = json!("v2");
                second["storage"] = json!(false);
                crd["spec"]["versions"] = json!([second, crd["spec"]["versions"][0]]);
                t.merge(
                    &at(DEFINITIONS, name),
                    &json!({"spec": {"versions": crd["spec"]["versions"]}}),
                )
                .await?
                .is(200, &json!({}))?;
                served(&t, name, &crd).await?;
                t.get("/apis/conformance.example.com/v2/namespaces/{ns}/verses/v")
                    .await?
                    .is(
                        200,
                        &json!({"apiVersion": "conformance.example.com/v2", "spec": {"size": 1}}),
                    )?;
                second["storage"] = json!(true);
                t.merge(
                    &at(DEFINITIONS, name),
                    &json!({"spec": {"versions": [second]}}),
                )
                .await?
                .is(422, &json!({}))?;
                t.merge(
                    &at(DEFINITIONS, name),
                    &json!({"spec": {"scope": "Cluster"}}),
                )
                .await?
                .is(422, &json!({}))?;
                t.merge(
                    &at(DEFINITIONS, name),
                    &json!({"spec": {"names": {"kind": "Poem"}}}),
                )
                .await?;
                t.quiet("DELETE", &at(DEFINITIONS, name), &[], "")
                    .await?
                    .ok()?;
                Ok(())
            },
        ),
        row("definition: what is refused", doc::CRD, |t| async move {
            let good = simple("wrongs", "Wrong", "Namespaced");
            let mut all = Vec::new();
            let mut change = |pointer: &str, value: Value| {
                let mut crd = good.clone();
                if let Some(place) = crd.pointer_mut(pointer) {
                    *place = value;
                }
                all.push(crd);
            };
            change("/metadata/name", json!("other.example.com"));
            change("/spec/scope", json!("Galaxy"));
            change("/spec/group", json!("NOT OK"));
            change("/spec/names/plural", json!("Wrongs"));
            change("/spec/versions", json!([]));
            change("/spec/versions/0/storage", json!(false));
            change("/spec/versions/0/name", json!("V 1"));
            change("/spec/versions/0/schema", json!({}));
            change(
                "/spec/versions/0/schema/openAPIV3Schema/properties/spec",
                json!({"properties": {"a": {"type": "string"}}}),
            );
            change(
                "/spec/versions/0/schema/openAPIV3Schema/properties/spec",
                json!({"type": "thing"}),
            );
            change(
                "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/size",
                json!({"type": "integer", "default": "x"}),
            );
            change(
                "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/size",
                json!({"type": "array"}),
            );
            change(
                "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/size",
                json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "set"}),
            );
            change(
                "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/size",
                json!({"type": "array", "items": {"type": "object", "properties": {"n": {"type": "string"}}}, "x-kubernetes-list-type": "map"}),
            );
            change(
                "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/size",
                json!({"type": "string", "pattern": "("}),
            );
            change(
                "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/size",
                json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self =="}]}),
            );
            change(
                "/spec/versions/0/schema/openAPIV3Schema/type",
                json!("string"),
            );
            for crd in all {
                t.post(DEFINITIONS, &crd)
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
            }
            Ok(())
        }),
        row(
            "definition: names that are taken are not accepted",
            doc::CRD,
            |t| async move {
                let mut crd = simple("gadgets", "Widget", "Namespaced");
                crd["metadata"]["name"] = json!("gadgets.conformance.example.com");
                t.post(DEFINITIONS, &crd).await?.is(201, &json!({}))?;
                let begin = Instant::now();
                let status = loop {
                    let now = t
                        .quiet(
                            "GET",
                            &at(DEFINITIONS, "gadgets.conformance.example.com"),
                            &[],
                            "",
                        )
                        .await?
                        .ok()?;
                    if now["status"]["conditions"]
                        .as_array()
                        .is_some_and(|c| c.len() == 2)
                    {
                        break now["status"].clone();
                    }
                    ensure!(
                        begin.elapsed() < Duration::from_secs(30),
                        "no conditions: {now}"
                    );
                    tokio::time::sleep(Duration::from_millis(50)).await;
                };
                t.observe("status", status);
                t.quiet(
                    "DELETE",
                    &at(DEFINITIONS, "gadgets.conformance.example.com"),
                    &[],
                    "",
                )
                .await?
                .ok()?;
                Ok(())
            },
        ),
        row(
            "VirtualMachineInstance: the definition is served alike",
            "https://kubevirt.io/user-guide/",
            |t| async move {
                let list = t.get(VMIS).await?.is(
                    200,
                    &json!({"kind": "VirtualMachineInstanceList", "items": []}),
                )?;
                t.expect(list["apiVersion"] == "kubevirt.io/v1", "apiVersion");
                let bad = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm"}, "spec": {"domain": {"devices": {"disks": "none"}}}});
                let answer = t
                    .quiet("POST", VMIS, &[JSON_BODY], &bad.to_string())
                    .await?;
                t.observe("bad type", json!([answer.code, answer.body["reason"]]));
                Ok(())
            },
        ),
    ]
}
