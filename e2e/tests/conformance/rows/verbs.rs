//! Create, get, update, delete and what they refuse.

use serde_json::json;

use super::{Row, doc, row};
use crate::fixtures::{MAPS, OLD_WIDGETS, PODS, SECRETS, WIDGETS, at, map, pod, widget};
use crate::session::JSON_BODY;

const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "create: the answer is the object, with what the server adds",
            doc::CONVENTIONS,
            |t| async move {
                t.post(MAPS, &map("a")).await?.is(201, &json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"a": "1"}, "metadata": {"generation": null}}))?;
                t.post(WIDGETS, &widget("w", 3)).await?.is(201, &json!({"metadata": {"generation": 1}, "spec": {"size": 3, "color": "blue", "replicas": 1}}))?;
                t.post(PODS, &pod("p")).await?.is(
                    201,
                    &json!({"status": {"phase": "Pending", "qosClass": "BestEffort"}}),
                )?;
                t.post(
                    SECRETS,
                    &json!({"metadata": {"name": "s"}, "stringData": {"k": "v"}}),
                )
                .await?
                .is(
                    201,
                    &json!({"data": {"k": "dg=="}, "type": "Opaque", "stringData": null}),
                )?;
                Ok(())
            },
        ),
        row(
            "create: a name that is taken is 409 AlreadyExists",
            doc::CONVENTIONS,
            |t| async move {
                t.post(MAPS, &map("a")).await?.ok()?;
                t.post(MAPS, &map("a")).await?.fails(
                    409,
                    "AlreadyExists",
                    "configmaps \"a\" already exists",
                )?;
                t.post(WIDGETS, &widget("w", 3)).await?.ok()?;
                t.post(WIDGETS, &widget("w", 3)).await?.is(409, &json!({"message": "widgets.conformance.example.com \"w\" already exists", "details": {"name": "w", "group": "conformance.example.com", "kind": "widgets"}}))?;
                Ok(())
            },
        ),
        row(
            "create: generateName gets five characters",
            doc::CONVENTIONS,
            |t| async move {
                for (path, body) in [
                    (MAPS, json!({"metadata": {"generateName": "made-"}})),
                    (
                        WIDGETS,
                        json!({"apiVersion": "conformance.example.com/v1", "kind": "Widget", "metadata": {"generateName": "made-"}, "spec": {"size": 1}}),
                    ),
                ] {
                    let made = t
                        .post(path, &body)
                        .await?
                        .is(201, &json!({"metadata": {"generateName": "made-"}}))?;
                    let name = made["metadata"]["name"].as_str().unwrap_or_default();
                    t.mask(name, "name");
                    anyhow::ensure!(name.len() == 10 && name.starts_with("made-"), "{name}");
                }
                Ok(())
            },
        ),
        row(
            "create: without a name is 422",
            doc::NAMES,
            |t| async move {
                t.post(MAPS, &json!({"data": {}})).await?.fails(422, "Invalid", "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required")?;
                let mut nameless = widget("", 1);
                nameless["metadata"] = json!({});
                t.post(WIDGETS, &nameless)
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                Ok(())
            },
        ),
        row(
            "create: a bad name is 422 with the rule",
            doc::NAMES,
            |t| async move {
                t.post(MAPS, &map("Bad_Name")).await?.is(422, &json!({"details": {"causes": [{"field": "metadata.name", "reason": "FieldValueInvalid"}]}}))?;
                t.post(WIDGETS, &widget("Bad_Name", 1))
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                t.post(PODS, &pod("has/slash"))
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                t.post(MAPS, &map(&"x".repeat(254)))
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                t.post("/api/v1/namespaces", &json!({"metadata": {"name": "a.b"}}))
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                Ok(())
            },
        ),
        row(
            "create: bad labels and annotations are 422",
            doc::LABELS,
            |t| async move {
                // One at a time: upstream tells of several in no particular order.
                for labels in [json!({"ok": "not ok!"}), json!({"-bad": "v"})] {
                    let mut bad = map("a");
                    bad["metadata"]["labels"] = labels;
                    t.post(MAPS, &bad)
                        .await?
                        .is(422, &json!({"reason": "Invalid"}))?;
                }
                let mut bad = widget("a", 1);
                bad["metadata"]["labels"] = json!({"a/b/c": "v"});
                bad["metadata"]["annotations"] = json!({"UPPER/x y": "v"});
                t.post(WIDGETS, &bad)
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                let mut bad = map("b");
                bad["metadata"]["annotations"] = json!({"big": "x".repeat(256 * 1024 + 1)});
                t.post(MAPS, &bad)
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                Ok(())
            },
        ),
        row(
            "create: bad finalizers and owners are 422",
            doc::FINALIZERS,
            |t| async move {
                let mut bad = map("a");
                bad["metadata"]["finalizers"] = json!(["plain", "un known/x"]);
                t.post(MAPS, &bad)
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                let mut bad = map("a");
                bad["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": ""}, {"apiVersion": "", "kind": "", "name": "", "uid": "u"}]);
                t.post(MAPS, &bad)
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                let mut bad = widget("a", 1);
                bad["metadata"]["ownerReferences"] = json!([
                    {"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "u1", "controller": true},
                    {"apiVersion": "v1", "kind": "ConfigMap", "name": "p", "uid": "u2", "controller": true},
                ]);
                t.post(WIDGETS, &bad)
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                let mut bad = map("a");
                bad["metadata"]["ownerReferences"] =
                    json!([{"apiVersion": "v1", "kind": "Event", "name": "o", "uid": "u"}]);
                t.post(MAPS, &bad)
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                Ok(())
            },
        ),
        row(
            "create: with a resourceVersion is refused",
            doc::CONVENTIONS,
            |t| async move {
                let mut body = map("a");
                body["metadata"]["resourceVersion"] = json!("1");
                t.post(MAPS, &body).await?.is(500, &json!({"message": "resourceVersion should not be set on objects to be created", "reason": null}))?;
                Ok(())
            },
        ),
        row(
            "create: in another namespace than the path's is 400",
            doc::CONVENTIONS,
            |t| async move {
                let mut body = map("a");
                body["metadata"]["namespace"] = json!("elsewhere");
                t.post(MAPS, &body).await?.fails(400, "BadRequest", "the namespace of the provided object does not match the namespace sent on the request")?;
                let mut body = widget("a", 1);
                body["metadata"]["namespace"] = json!("elsewhere");
                t.post(WIDGETS, &body)
                    .await?
                    .is(400, &json!({"reason": "BadRequest"}))?;
                Ok(())
            },
        ),
        row(
            "create: in a namespace that is not there is 404",
            doc::CONVENTIONS,
            |t| async move {
                t.post("/api/v1/namespaces/nowhere-at-all/configmaps", &map("a"))
                    .await?
                    .fails(404, "NotFound", "namespaces \"nowhere-at-all\" not found")?;
                t.post(
                    "/apis/conformance.example.com/v1/namespaces/nowhere-at-all/widgets",
                    &widget("a", 1),
                )
                .await?
                .is(
                    404,
                    &json!({"details": {"name": "nowhere-at-all", "kind": "namespaces"}}),
                )?;
                Ok(())
            },
        ),
        row(
            "create: a body of another kind or version is 400",
            doc::CONVENTIONS,
            |t| async move {
                t.post(MAPS, &pod("a"))
                    .await?
                    .is(400, &json!({"reason": "BadRequest"}))?;
                t.post(WIDGETS, &map("a"))
                    .await?
                    .is(400, &json!({"reason": "BadRequest"}))?;
                let mut old = widget("a", 1);
                old["apiVersion"] = json!("conformance.example.com/v1beta1");
                t.post(WIDGETS, &old)
                    .await?
                    .is(400, &json!({"reason": "BadRequest"}))?;
                let mut bare = widget("a", 1);
                bare.as_object_mut().map(|b| b.remove("kind"));
                t.post(WIDGETS, &bare)
                    .await?
                    .is(400, &json!({"reason": "BadRequest"}))?;
                let mut bare = widget("a", 1);
                bare.as_object_mut().map(|b| b.remove("apiVersion"));
                t.post(WIDGETS, &bare)
                    .await?
                    .is(400, &json!({"reason": "BadRequest"}))?;
                Ok(())
            },
        ),
        row(
            "create: a body that is no JSON, or none, is 400",
            doc::CONVENTIONS,
            |t| async move {
                for body in [
                    "",
                    "{",
                    "[]",
                    "\"text\"",
                    "{\"metadata\": 1}",
                    "{\"metadata\": {\"name\": 5}}",
                    "{\"metadata\": {\"labels\": {\"a\": 1}}}",
                ] {
                    t.call("POST", MAPS, &[JSON_BODY], body)
                        .await?
                        .is(400, &json!({"reason": "BadRequest"}))?;
                }
                for body in [
                    "",
                    "{",
                    "[]",
                    "{\"apiVersion\": \"conformance.example.com/v1\", \"kind\": \"Widget\", \"metadata\": {\"name\": 5}}",
                ] {
                    t.call("POST", WIDGETS, &[JSON_BODY], body)
                        .await?
                        .is(400, &json!({"reason": "BadRequest"}))?;
                }
                Ok(())
            },
        ),
        row(
            "create: YAML is understood",
            doc::CONCEPTS,
            |t| async move {
                let yaml = "metadata:\n  name: from-yaml\ndata:\n  a: '1'\n";
                t.call("POST", MAPS, &[("content-type", "application/yaml")], yaml)
                    .await?
                    .is(201, &json!({"data": {"a": "1"}}))?;
                let yaml = "apiVersion: conformance.example.com/v1\nkind: Widget\nmetadata:\n  name: from-yaml\nspec:\n  size: 1\n";
                t.call(
                    "POST",
                    WIDGETS,
                    &[("content-type", "application/yaml")],
                    yaml,
                )
                .await?
                .is(201, &json!({"spec": {"size": 1}}))?;
                Ok(())
            },
        ),
        row(
            "create: an unknown media type is 415",
            doc::CONCEPTS,
            |t| async move {
                t.call("POST", MAPS, &[("content-type", "text/plain")], "x")
                    .await?
                    .is(415, &json!({"reason": "UnsupportedMediaType"}))?;
                t.call("POST", WIDGETS, &[("content-type", "text/plain")], "x")
                    .await?
                    .is(415, &json!({"reason": "UnsupportedMediaType"}))?;
                Ok(())
            },
        ),
        row(
            "get: an unacceptable media type is 406",
            doc::CONCEPTS,
            |t| async move {
                t.post(MAPS, &map("a")).await?.ok()?;
                t.call("GET", &at(MAPS, "a"), &[("accept", "text/plain")], "")
                    .await?
                    .is(406, &json!({"reason": "NotAcceptable"}))?;
                t.call("GET", WIDGETS, &[("accept", "image/png")], "")
                    .await?
                    .is(406, &json!({"reason": "NotAcceptable"}))?;
                t.call("GET", &at(MAPS, "a"), &[("accept", "application/yaml")], "")
                    .await?;
                t.call("GET", &at(MAPS, "a"), &[("accept", "text/plain, */*")], "")
                    .await?
                    .is(200, &json!({"kind": "ConfigMap"}))?;
                Ok(())
            },
        ),
        row(
            "create: dryRun=All checks all and stores nothing",
            doc::CONCEPTS,
            |t| async move {
                let dry = format!("{MAPS}?dryRun=All");
                t.post(&dry, &map("a"))
                    .await?
                    .is(201, &json!({"metadata": {"name": "a"}}))?;
                t.get(&at(MAPS, "a")).await?.is(404, &json!({}))?;
                t.post(MAPS, &map("a")).await?.ok()?;
                t.post(&dry, &map("a"))
                    .await?
                    .is(409, &json!({"reason": "AlreadyExists"}))?;
                t.post(&format!("{WIDGETS}?dryRun=All"), &widget("w", 0))
                    .await?
                    .is(422, &json!({}))?;
                t.post(&format!("{MAPS}?dryRun=Some"), &map("b"))
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                let mut changed = map("a");
                changed["data"]["b"] = json!("2");
                t.put(&format!("{}?dryRun=All", at(MAPS, "a")), &changed)
                    .await?
                    .is(200, &json!({"data": {"b": "2"}}))?;
                t.merge(
                    &format!("{}?dryRun=All", at(MAPS, "a")),
                    &json!({"data": {"c": "3"}}),
                )
                .await?
                .is(200, &json!({"data": {"c": "3"}}))?;
                t.delete(&format!("{}?dryRun=All", at(MAPS, "a")), &json!(null))
                    .await?
                    .is(200, &json!({"status": "Success"}))?;
                t.delete(&at(MAPS, "a"), &json!({"dryRun": ["All"]}))
                    .await?
                    .is(200, &json!({"status": "Success"}))?;
                t.get(&at(MAPS, "a"))
                    .await?
                    .is(200, &json!({"data": {"a": "1", "b": null}}))?;
                Ok(())
            },
        ),
        row(
            "get: what is not there is 404 with details",
            doc::CONVENTIONS,
            |t| async move {
                t.get(&at(MAPS, "none")).await?.is(404, &json!({"message": "configmaps \"none\" not found", "details": {"name": "none", "kind": "configmaps", "group": null}}))?;
                t.get(&at(WIDGETS, "none")).await?.is(
                    404,
                    &json!({"message": "widgets.conformance.example.com \"none\" not found"}),
                )?;
                t.put(&at(MAPS, "none"), &map("none"))
                    .await?
                    .is(404, &json!({}))?;
                t.put(&at(WIDGETS, "none"), &widget("none", 1))
                    .await?
                    .is(404, &json!({}))?;
                t.merge(&at(WIDGETS, "none"), &json!({}))
                    .await?
                    .is(404, &json!({}))?;
                t.delete(&at(WIDGETS, "none"), &json!(null))
                    .await?
                    .is(404, &json!({}))?;
                t.get("/api/v1/namespaces/none-such")
                    .await?
                    .is(404, &json!({"details": {"kind": "namespaces"}}))?;
                Ok(())
            },
        ),
        row(
            "paths that name nothing are 404",
            doc::CONVENTIONS,
            |t| async move {
                for path in [
                    "/api/v1/namespaces/{ns}/gizmos",
                    "/apis/conformance.example.com/v2/namespaces/{ns}/widgets",
                    "/apis/nothing.example.com/v1/widgets",
                    "/apis/conformance.example.com/v1/namespaces/{ns}/rings",
                    "/apis/conformance.example.com/v1/widgets/w",
                    "/apis/conformance.example.com/v1/namespaces/{ns}/widgets/w/nothing",
                    "/api/v1/namespaces/{ns}/configmaps/a/status",
                    "/nothing",
                ] {
                    let answer = t.get(path).await?;
                    t.expect(answer.code == 404, path);
                }
                Ok(())
            },
        ),
        row(
            "verbs that a path does not have are 405",
            doc::CONVENTIONS,
            |t| async move {
                t.post(&at(MAPS, "a"), &map("a"))
                    .await?
                    .is(405, &json!({"reason": "MethodNotAllowed"}))?;
                // The server of custom resources looks at the verb only.
                t.post(&at(WIDGETS, "a"), &widget("a", 1))
                    .await?
                    .is(201, &json!({}))?;
                t.put(MAPS, &map("a"))
                    .await?
                    .is(405, &json!({"reason": "MethodNotAllowed"}))?;
                t.put(WIDGETS, &widget("a", 1)).await?.fails(
                    400,
                    "BadRequest",
                    "name must be provided",
                )?;
                t.merge(WIDGETS, &json!({})).await?.fails(
                    400,
                    "BadRequest",
                    "name must be provided",
                )?;
                t.post("/apis/conformance.example.com/v1/widgets", &widget("a", 1))
                    .await?
                    .is(404, &json!("404 page not found\n"))?;
                t.post("/api/v1/configmaps", &map("a"))
                    .await?
                    .is(405, &json!({}))?;
                t.delete("/api/v1/namespaces", &json!(null))
                    .await?
                    .is(405, &json!({}))?;
                t.post(&format!("{}/status", at(WIDGETS, "a")), &widget("a", 1))
                    .await?
                    .is(405, &json!({}))?;
                t.delete(&format!("{}/status", at(WIDGETS, "a")), &json!(null))
                    .await?
                    .is(405, &json!({}))?;
                Ok(())
            },
        ),
        row(
            "update: stale is 409, fresh is taken, nothing changed is no write",
            doc::CONVENTIONS,
            |t| async move {
                for (path, body) in [(MAPS, map("a")), (WIDGETS, widget("a", 1))] {
                    let first = t.post(path, &body).await?.ok()?;
                    let mut changed = first.clone();
                    changed["metadata"]["labels"] = json!({"x": "1"});
                    let second = t
                        .put(&at(path, "a"), &changed)
                        .await?
                        .is(200, &json!({"metadata": {"labels": {"x": "1"}}}))?;
                    anyhow::ensure!(
                        first["metadata"]["resourceVersion"]
                            != second["metadata"]["resourceVersion"]
                    );
                    let third = t.put(&at(path, "a"), &second).await?.ok()?;
                    anyhow::ensure!(
                        third["metadata"]["resourceVersion"]
                            == second["metadata"]["resourceVersion"],
                        "no change, no write"
                    );
                    t.put(&at(path, "a"), &changed)
                        .await?
                        .is(409, &json!({"reason": "Conflict"}))?;
                }
                Ok(())
            },
        ),
        row(
            "update: the words of a conflict",
            doc::CONVENTIONS,
            |t| async move {
                let first = t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                t.merge(&at(WIDGETS, "a"), &json!({"spec": {"size": 2}}))
                    .await?
                    .ok()?;
                t.put(&at(WIDGETS, "a"), &first).await?.fails(409, "Conflict", &format!("Operation cannot be fulfilled on widgets.conformance.example.com \"a\": {MODIFIED}"))?;
                t.merge(&at(WIDGETS, "a"), &json!({"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "spec": {"size": 3}})).await?.fails(409, "Conflict", &format!("Operation cannot be fulfilled on widgets.conformance.example.com \"a\": {MODIFIED}"))?;
                Ok(())
            },
        ),
        row(
            "update: custom resources must say what they replace",
            doc::CONVENTIONS,
            |t| async move {
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                t.put(&at(WIDGETS, "a"), &widget("a", 2)).await?.is(422, &json!({"kind": "Status", "status": "Failure", "code": 422, "reason": "Invalid"}))?;
                Ok(())
            },
        ),
        row(
            "update: built-in kinds need not say what they replace",
            doc::CONVENTIONS,
            |t| async move {
                t.post(MAPS, &map("a")).await?.ok()?;
                let mut changed = map("a");
                changed["data"] = json!({"b": "2"});
                t.put(&at(MAPS, "a"), &changed)
                    .await?
                    .is(200, &json!({"data": {"a": null, "b": "2"}}))?;
                changed["metadata"]["resourceVersion"] = json!("words");
                t.put(&at(MAPS, "a"), &changed).await?.is(500, &json!({}))?;
                changed["metadata"]["resourceVersion"] = json!("0");
                t.put(&at(MAPS, "a"), &changed).await?.is(200, &json!({}))?;
                Ok(())
            },
        ),
        row(
            "update: name and uid must be those of the object",
            doc::CONVENTIONS,
            |t| async move {
                for (path, body, other) in [
                    (MAPS, map("a"), map("b")),
                    (WIDGETS, widget("a", 1), widget("b", 1)),
                ] {
                    let made = t.post(path, &body).await?.ok()?;
                    t.put(&at(path, "a"), &other)
                        .await?
                        .is(400, &json!({"reason": "BadRequest"}))?;
                    let mut stranger = made.clone();
                    stranger["metadata"]["uid"] = json!("11111111-2222-3333-4444-555555555555");
                    t.put(&at(path, "a"), &stranger)
                        .await?
                        .is(409, &json!({"reason": "Conflict"}))?;
                    let mut moved = made.clone();
                    moved["metadata"]["namespace"] = json!("default");
                    t.put(&at(path, "a"), &moved)
                        .await?
                        .is(400, &json!({"reason": "BadRequest"}))?;
                    let mut nameless = made.clone();
                    nameless["metadata"]["name"] = json!("");
                    t.put(&at(path, "a"), &nameless).await?;
                }
                Ok(())
            },
        ),
        row(
            "update: what the server owns stays",
            doc::CONVENTIONS,
            |t| async move {
                let made = t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                let mut changed = made.clone();
                changed["metadata"]["creationTimestamp"] = json!("2001-01-01T00:00:00Z");
                changed["metadata"]["generation"] = json!(77);
                changed["spec"]["size"] = json!(2);
                let changed = t.put(&at(WIDGETS, "a"), &changed).await?.is(
                    200,
                    &json!({"metadata": {"generation": 2, "deletionTimestamp": null}}),
                )?;
                anyhow::ensure!(
                    changed["metadata"]["creationTimestamp"]
                        == made["metadata"]["creationTimestamp"]
                );
                let mut doomed = changed.clone();
                doomed["metadata"]["deletionTimestamp"] = json!("2001-01-01T00:00:00Z");
                t.put(&at(WIDGETS, "a"), &doomed)
                    .await?
                    .is(422, &json!({"reason": "Invalid"}))?;
                Ok(())
            },
        ),
        row(
            "generation counts changes of the spec only",
            doc::CRD,
            |t| async move {
                t.post(WIDGETS, &widget("a", 1))
                    .await?
                    .is(201, &json!({"metadata": {"generation": 1}}))?;
                let a = at(WIDGETS, "a");
                t.merge(&a, &json!({"metadata": {"labels": {"x": "y"}}}))
                    .await?
                    .is(200, &json!({"metadata": {"generation": 1}}))?;
                t.merge(&a, &json!({"spec": {"size": 2}}))
                    .await?
                    .is(200, &json!({"metadata": {"generation": 2}}))?;
                t.merge(&format!("{a}/status"), &json!({"status": {"phase": "Up"}, "spec": {"size": 9}})).await?.is(200, &json!({"metadata": {"generation": 2}, "status": {"phase": "Up"}, "spec": {"size": 2}}))?;
                t.merge(&a, &json!({"status": {"phase": "Down"}}))
                    .await?
                    .is(
                        200,
                        &json!({"metadata": {"generation": 2}, "status": {"phase": "Up"}}),
                    )?;
                t.post(PODS, &pod("p"))
                    .await?
                    .is(201, &json!({"metadata": {"generation": 1}}))?;
                Ok(())
            },
        ),
        row(
            "status: a create drops it, /status writes nothing else",
            doc::CRD,
            |t| async move {
                let mut body = widget("a", 1);
                body["status"] = json!({"phase": "Early"});
                t.post(WIDGETS, &body)
                    .await?
                    .is(201, &json!({"status": null}))?;
                let status = format!("{}/status", at(WIDGETS, "a"));
                let mut now = t.get(&status).await?.is(200, &json!({"kind": "Widget"}))?;
                now["status"] = json!({"phase": "Up", "unknown": 1});
                now["spec"]["size"] = json!(50);
                now["metadata"]["labels"] = json!({"x": "y"});
                now["metadata"]["annotations"] = json!({"x": "y"});
                now["metadata"]["finalizers"] = json!(["example.com/f"]);
                t.put(&status, &now).await?.is(200, &json!({"status": {"phase": "Up", "unknown": null}, "spec": {"size": 1}, "metadata": {"labels": null, "finalizers": null}}))?;
                now["status"] = json!({"phase": 5});
                now["metadata"]["resourceVersion"] =
                    t.get(&status).await?.ok()?["metadata"]["resourceVersion"].clone();
                t.put(&status, &now).await?.is(422, &json!({}))?;
                t.post(PODS, &pod("p")).await?.ok()?;
                t.strategic(&format!("{}/status", at(PODS, "p")), &json!({"metadata": {"labels": {"x": "y"}}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}})).await?.is(200, &json!({"status": {"phase": "Running"}}))?;
                Ok(())
            },
        ),
        row(
            "scale: reads and writes replicas",
            doc::CRD,
            |t| async move {
                t.post(WIDGETS, &widget("a", 1)).await?.ok()?;
                let scale = format!("{}/scale", at(WIDGETS, "a"));
                let mut now = t.get(&scale).await?.is(200, &json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "spec": {"replicas": 1}}))?;
                now["spec"]["replicas"] = json!(3);
                t.put(&scale, &now)
                    .await?
                    .is(200, &json!({"spec": {"replicas": 3}}))?;
                t.put(&scale, &now)
                    .await?
                    .is(409, &json!({"reason": "Conflict"}))?;
                t.merge(&scale, &json!({"spec": {"replicas": 4}}))
                    .await?
                    .is(200, &json!({"spec": {"replicas": 4}}))?;
                t.merge(&scale, &json!({"spec": {"replicas": -1}}))
                    .await?
                    .is(422, &json!({}))?;
                t.merge(
                    &format!("{}/status", at(WIDGETS, "a")),
                    &json!({"status": {"replicas": 4, "selector": "app=a"}}),
                )
                .await?
                .ok()?;
                t.get(&scale).await?.is(
                    200,
                    &json!({"status": {"replicas": 4, "selector": "app=a"}}),
                )?;
                t.get(&at(WIDGETS, "a")).await?.is(
                    200,
                    &json!({"spec": {"replicas": 4}, "metadata": {"generation": 3}}),
                )?;
                Ok(())
            },
        ),
        row(
            "a deprecated version warns, and shows the same objects",
            doc::CRD_VERSIONS,
            |t| async move {
                t.post(WIDGETS, &widget("a", 1)).await?.warns(&[])?.ok()?;
                t.get(&at(OLD_WIDGETS, "a"))
                    .await?
                    .warns(&["conformance.example.com/v1beta1 Widget is deprecated; use conformance.example.com/v1 Widget"])?
                    .is(
                        200,
                        &json!({"apiVersion": "conformance.example.com/v1beta1"}),
                    )?;
                let mut old = widget("b", 1);
                old["apiVersion"] = json!("conformance.example.com/v1beta1");
                t.post(OLD_WIDGETS, &old).await?.is(
                    201,
                    &json!({"apiVersion": "conformance.example.com/v1beta1"}),
                )?;
                t.get(&at(WIDGETS, "b"))
                    .await?
                    .is(200, &json!({"apiVersion": "conformance.example.com/v1"}))?;
                t.get(OLD_WIDGETS).await?.is(
                    200,
                    &json!({"apiVersion": "conformance.example.com/v1beta1", "kind": "WidgetList"}),
                )?;
                Ok(())
            },
        ),
    ]
}
