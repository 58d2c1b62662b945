//! Discovery and OpenAPI.

use serde_json::{Value, json};

use super::{Row, doc, row};

/// The resources of a legacy list, without what the real server has and berth does not claim to.
fn only(resources: &Value, names: &[&str]) -> Value {
    let list = resources.as_array().map_or(&[][..], Vec::as_slice);
    let mut list: Vec<Value> = list
        .iter()
        .filter(|r| {
            names.contains(
                &r["name"]
                    .as_str()
                    .or(r["resource"].as_str())
                    .unwrap_or_default(),
            )
        })
        .cloned()
        .collect();
    for item in &mut list {
        item.as_object_mut()
            .map(|item| item.remove("storageVersionHash"));
        // Order means nothing here.
        for words in ["verbs", "subresources"] {
            if let Some(list) = item.get_mut(words).and_then(Value::as_array_mut) {
                list.sort_by_key(|entry| (entry["subresource"].to_string(), entry.to_string()));
                for entry in list {
                    if let Some(verbs) = entry.get_mut("verbs").and_then(Value::as_array_mut) {
                        verbs.sort_by_key(ToString::to_string);
                    }
                }
            }
        }
    }
    list.sort_by_key(|item| item["name"].to_string());
    list.into()
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "discovery: resources of a group, as lists",
            doc::OPENAPI,
            |t| async move {
                let list = t
                    .quiet("GET", "/apis/conformance.example.com/v1", &[], "")
                    .await?
                    .ok()?;
                t.observe(
                    "group",
                    json!([list["kind"], list["apiVersion"], list["groupVersion"]]),
                );
                let found = only(
                    &list["resources"],
                    &["widgets", "widgets/status", "widgets/scale", "rings"],
                );
                t.expect(found.as_array().is_some_and(|f| f.len() == 4), "resources");
                t.observe("resources", found);
                let core = t.quiet("GET", "/api/v1", &[], "").await?.ok()?;
                for name in [
                    "configmaps",
                    "pods",
                    "pods/status",
                    "pods/binding",
                    "namespaces",
                    "namespaces/status",
                    "namespaces/finalize",
                    "nodes",
                    "nodes/status",
                    "secrets",
                    "events",
                    "serviceaccounts",
                    "serviceaccounts/token",
                    "persistentvolumeclaims",
                    "persistentvolumeclaims/status",
                    "persistentvolumes",
                ] {
                    t.observe(name, only(&core["resources"], &[name]));
                }
                t.get("/apis/conformance.example.com").await?.is(
                    200,
                    &json!({"kind": "APIGroup", "preferredVersion": {"version": "v1"}}),
                )?;
                let api = t.quiet("GET", "/api", &[], "").await?.ok()?;
                t.observe("versions", json!([api["kind"], api["versions"]]));
                Ok(())
            },
        ),
        row(
            "discovery: aggregated",
            "https://github.com/kubernetes/enhancements/tree/master/keps/sig-api-machinery/3352-aggregated-discovery",
            |t| async move {
                let accept = (
                    "accept",
                    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                );
                let all = t.quiet("GET", "/apis", &[accept], "").await?.ok()?;
                t.observe("kind", json!([all["kind"], all["apiVersion"]]));
                let groups = all["items"].as_array().cloned().unwrap_or_default();
                let ours = groups
                    .iter()
                    .find(|g| g["metadata"]["name"] == "conformance.example.com")
                    .cloned()
                    .unwrap_or_default();
                for version in ours["versions"].as_array().into_iter().flatten() {
                    t.observe(
                        "version",
                        json!([
                            version["version"],
                            version["freshness"],
                            only(&version["resources"], &["widgets", "rings"])
                        ]),
                    );
                }
                t.expect(
                    ours["versions"]
                        .as_array()
                        .is_some_and(|v| v.len() == 2 || v.len() == 3),
                    "two versions",
                );
                let core = t.quiet("GET", "/api", &[accept], "").await?.ok()?;
                for name in ["configmaps", "pods", "namespaces"] {
                    let mut found = only(&core["items"][0]["versions"][0]["resources"], &[name]);
                    // Which subresources berth has is in the list above.
                    found[0].as_object_mut().map(|r| r.remove("subresources"));
                    t.observe(name, found);
                }
                Ok(())
            },
        ),
        row(
            "openapi v3: the schema of a custom resource",
            doc::OPENAPI,
            |t| async move {
                let index = t.quiet("GET", "/openapi/v3", &[], "").await?.ok()?;
                let url = index["paths"]["apis/conformance.example.com/v1"]["serverRelativeURL"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                t.expect(
                    url.starts_with("/openapi/v3/apis/conformance.example.com/v1?hash="),
                    &url,
                );
                // Without the hash: while other rows define kinds, an old hash is redirected to the new one.
                let url = url.split('?').next().unwrap_or_default().to_owned();
                let document = t.quiet("GET", &url, &[], "").await?.ok()?;
                t.observe(
                    "Widget",
                    document["components"]["schemas"]["com.example.conformance.v1.Widget"].clone(),
                );
                t.observe(
                    "WidgetList",
                    document["components"]["schemas"]["com.example.conformance.v1.WidgetList"]
                        .clone(),
                );
                let paths: Vec<&String> = document["paths"]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(k, _)| k)
                    .filter(|k| k.contains("widgets"))
                    .collect();
                t.observe("paths", json!(paths));
                Ok(())
            },
        ),
        row(
            "openapi v2: the definition of a custom resource",
            doc::OPENAPI,
            |t| async move {
                let document = t.quiet("GET", "/openapi/v2", &[], "").await?.ok()?;
                t.observe(
                    "Widget",
                    document["definitions"]["com.example.conformance.v1.Widget"].clone(),
                );
                t.observe("versions", json!([document["swagger"]]));
                Ok(())
            },
        ),
        row(
            "health and version need no credentials",
            "https://kubernetes.io/docs/reference/using-api/health-checks/",
            |t| async move {
                for path in ["/livez", "/readyz", "/healthz"] {
                    let answer = t.get(path).await?;
                    t.expect(answer.code == 200 && answer.body == "ok", path);
                }
                let version = t.quiet("GET", "/version", &[], "").await?.ok()?;
                t.expect(
                    version["major"].is_string()
                        && version["minor"].is_string()
                        && version["gitVersion"].is_string(),
                    "version",
                );
                Ok(())
            },
        ),
    ]
}
