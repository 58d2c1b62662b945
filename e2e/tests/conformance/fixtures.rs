//! What is installed on both servers before the rows run: berth's definitions, and definitions of the suite's own.

use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use berth_e2e::{Side, berth_binary, run};
use serde_json::{Value, json};

use crate::session::{JSON_BODY, Session, Target};

/// The paths of a row's objects.
pub(crate) const MAPS: &str = "/api/v1/namespaces/{ns}/configmaps";
pub(crate) const PODS: &str = "/api/v1/namespaces/{ns}/pods";
pub(crate) const SECRETS: &str = "/api/v1/namespaces/{ns}/secrets";
pub(crate) const WIDGETS: &str = "/apis/conformance.example.com/v1/namespaces/{ns}/widgets";
pub(crate) const OLD_WIDGETS: &str =
    "/apis/conformance.example.com/v1beta1/namespaces/{ns}/widgets";
pub(crate) const VMIS: &str = "/apis/kubevirt.io/v1/namespaces/{ns}/virtualmachineinstances";
pub(crate) const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Installs them and waits until they are served.
pub(crate) async fn install(target: &Rc<Target>) -> anyhow::Result<()> {
    let session = Session::new(target, "default");
    let mut definitions = vec![widgets(), rings()];
    if target.server.side() == Side::Kubernetes {
        // berth's own server has them from its start.
        let list = run(
            Command::new(berth_binary()).args(["crds", "--output", "json"]),
            "",
        )?
        .ok()?;
        let list: Value = serde_json::from_str(&list).context("berth crds")?;
        let items = list["items"].as_array().or(list.as_array()).cloned();
        definitions.extend(items.context("berth crds has no items")?);
    }
    for definition in definitions {
        session
            .quiet("POST", DEFINITIONS, &[JSON_BODY], &definition.to_string())
            .await?
            .ok()?;
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        served(&session, name, &definition).await?;
    }
    Ok(())
}

/// Waits until a definition is established and its resource answers.
pub(crate) async fn served(
    session: &Session,
    name: &str,
    definition: &Value,
) -> anyhow::Result<()> {
    let version = definition["spec"]["versions"]
        .as_array()
        .and_then(|all| all.iter().find(|v| v["served"] == true))
        .map_or(&Value::Null, |v| &v["name"]);
    let path = format!(
        "/apis/{}/{}/{}",
        definition["spec"]["group"].as_str().unwrap_or_default(),
        version.as_str().unwrap_or_default(),
        definition["spec"]["names"]["plural"]
            .as_str()
            .unwrap_or_default(),
    );
    let begin = Instant::now();
    while session.quiet("GET", &path, &[], "").await?.code != 200 {
        ensure!(
            begin.elapsed() < Duration::from_secs(30),
            "{name} is not served at {path}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A namespaced kind with most of what a structural schema can say; two versions, status, scale, columns.
fn widgets() -> Value {
    let schema = json!({"openAPIV3Schema": {
        "type": "object",
        "description": "Widget is a thing of the conformance suite.",
        "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object",
                "description": "What is wanted.",
                "required": ["size"],
                "properties": {
                    "size": {"type": "integer", "minimum": 1, "maximum": 100, "description": "How large it is."},
                    "replicas": {"type": "integer", "format": "int32", "default": 1, "minimum": 0},
                    "color": {"type": "string", "enum": ["red", "green", "blue"], "default": "blue"},
                    "note": {"type": "string", "pattern": "^[a-z ]*$", "maxLength": 20},
                    "ratio": {"type": "number", "multipleOf": 0.5},
                    "when": {"type": "string", "format": "date-time"},
                    "port": {"x-kubernetes-int-or-string": true},
                    "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set", "maxItems": 4},
                    "parts": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["name"],
                        "items": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {
                                "name": {"type": "string"},
                                "count": {"type": "integer", "default": 1},
                                "notes": {"type": "array", "items": {"type": "string"}},
                            },
                        },
                    },
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "place": {
                        "type": "object",
                        "x-kubernetes-map-type": "atomic",
                        "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
                    },
                    "maybe": {"type": "string", "nullable": true},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "least": {"type": "integer"},
                    "most": {"type": "integer"},
                    "fixed": {
                        "type": "string",
                        "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "fixed does not change"}],
                    },
                },
                "x-kubernetes-validations": [
                    {"rule": "!has(self.least) || !has(self.most) || self.least <= self.most", "message": "least must not be above most"},
                    {"rule": "self.size != 13", "messageExpression": "'this size ' + 'brings bad luck'", "fieldPath": ".size", "reason": "FieldValueForbidden"},
                ],
            },
            "status": {
                "type": "object",
                "properties": {
                    "phase": {"type": "string"},
                    "replicas": {"type": "integer"},
                    "selector": {"type": "string"},
                    "conditions": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["type"],
                        "items": {
                            "type": "object",
                            "required": ["type", "status"],
                            "properties": {
                                "type": {"type": "string"},
                                "status": {"type": "string"},
                                "reason": {"type": "string"},
                                "message": {"type": "string"},
                            },
                        },
                    },
                },
            },
        },
    }});
    let version = |name: &str, storage: bool| {
        json!({
            "name": name, "served": true, "storage": storage, "schema": schema,
            "subresources": {
                "status": {},
                "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"},
            },
            "selectableFields": [{"jsonPath": ".spec.color"}],
            "additionalPrinterColumns": [
                {"name": "Size", "type": "integer", "jsonPath": ".spec.size", "description": "How large it is."},
                {"name": "Color", "type": "string", "jsonPath": ".spec.color", "priority": 1},
                {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
                {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            ],
        })
    };
    let mut old = version("v1beta1", false);
    old["deprecated"] = json!(true);
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.conformance.example.com"},
        "spec": {
            "group": "conformance.example.com",
            "scope": "Namespaced",
            "names": {
                "plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList",
                "shortNames": ["wgt"], "categories": ["all", "things"],
            },
            "versions": [version("v1", true), old],
        },
    })
}

/// A cluster-scoped kind without any subresource.
fn rings() -> Value {
    simple("rings", "Ring", "Cluster")
}

/// A definition with one version and a free spec.
pub(crate) fn simple(plural: &str, kind: &str, scope: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.conformance.example.com")},
        "spec": {
            "group": "conformance.example.com",
            "scope": scope,
            "names": {"plural": plural, "kind": kind},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object",
                "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}},
            }}}],
        },
    })
}

pub(crate) fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

pub(crate) fn widget(name: &str, size: i64) -> Value {
    json!({"apiVersion": "conformance.example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"size": size}})
}

pub(crate) fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "example.com/i:1"}]}})
}

/// `path/name`.
pub(crate) fn at(path: &str, name: &str) -> String {
    format!("{path}/{name}")
}
