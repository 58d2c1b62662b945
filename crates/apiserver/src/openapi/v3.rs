//! OpenAPI v3: what kubectl 1.24 and newer reads.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::paths::{self, Operation, Path};
use crate::discovery::{self, Document, hash};
use crate::resources::{ResourceDef, VersionDef};
use crate::schema::builtin::{self, REF_PREFIX};

/// The index: one URL a group version, with a hash, so that clients cache each for good.
pub(super) fn index(defs: &[Arc<ResourceDef>]) -> Document {
    let mut found = Map::new();
    for (group, versions) in discovery::groups(defs) {
        for version in versions {
            let key = if group.is_empty() {
                format!("api/{version}")
            } else {
                format!("apis/{group}/{version}")
            };
            let url = format!(
                "/openapi/v3/{key}?hash={}",
                fingerprint(defs, group, version)
            );
            found.insert(key, json!({"serverRelativeURL": url}));
        }
    }
    Document::json("application/json", &json!({"paths": found})).with_etag()
}

/// Changes whenever the document does. Made from what the document is made from: that is far cheaper than making it.
fn fingerprint(defs: &[Arc<ResourceDef>], group: &str, version: &str) -> String {
    let mut text = String::from(env!("CARGO_PKG_VERSION"));
    for (def, version) in discovery::of_version(defs, group, version) {
        text.push_str(&format!(
            "\n{} {} {} {}",
            def.plural, def.kind, def.list_kind, def.namespaced
        ));
        text.push_str(&format!(" {} {}\n", version.status, version.scale));
        text.push_str(version.schema.as_ref().map_or("", |s| s.source()));
    }
    hash(text.as_bytes())
}

/// The document of one group version.
pub(super) fn document(defs: &[Arc<ResourceDef>], group: &str, version: &str) -> Option<Document> {
    let found = discovery::of_version(defs, group, version);
    if found.is_empty() {
        return None;
    }
    let builtin_kinds = found
        .iter()
        .filter(|(d, _)| !d.crd)
        .map(|(d, _)| (d.group.as_str(), d.kind.as_str()));
    let mut schemas = builtin::definitions(builtin_kinds);
    let mut all_paths = Map::new();
    for (def, version) in &found {
        let generated = if def.crd {
            None
        } else {
            schemas.remove(&paths::schema_name(def, version))
        };
        for (name, schema) in paths::definitions(def, version, generated) {
            schemas.insert(name, schema);
        }
        for path in paths::paths(def, version) {
            let (key, item) = path_item(def, version, &path);
            all_paths.insert(key, item);
        }
    }
    for schema in schemas.values_mut() {
        wrap_references(schema);
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "berth", "version": env!("CARGO_PKG_VERSION")},
        "paths": all_paths,
        "components": {"schemas": schemas},
    });
    let etag = Some(format!("\"{}\"", fingerprint(defs, group, version)));
    Some(Document {
        etag,
        ..Document::json("application/json", &document)
    })
}

/// OpenAPI 3.0 ignores whatever stands beside a `$ref`, so a reference with a description goes into `allOf`.
fn wrap_references(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.len() > 1
                && let Some(reference) = map.get("$ref").filter(|r| r.is_string()).cloned()
            {
                map.remove("$ref");
                map.insert("allOf".into(), json!([{"$ref": reference}]));
            }
            map.values_mut().for_each(wrap_references);
        }
        Value::Array(list) => list.iter_mut().for_each(wrap_references),
        _ => {}
    }
}

fn path_item(def: &ResourceDef, version: &VersionDef, path: &Path) -> (String, Value) {
    let mut item = Map::new();
    for operation in &path.operations {
        item.insert(
            operation.method.to_owned(),
            describe(def, version, path, *operation),
        );
    }
    let mut parameters = Vec::new();
    for (name, present) in [("namespace", path.namespaced), ("name", path.named)] {
        if present {
            parameters.push(json!({"name": name, "in": "path", "required": true,
                "schema": {"type": "string", "uniqueItems": true}}));
        }
    }
    if !parameters.is_empty() {
        item.insert("parameters".to_owned(), parameters.into());
    }
    (path.path.clone(), item.into())
}

fn describe(def: &ResourceDef, version: &VersionDef, path: &Path, operation: Operation) -> Value {
    let object =
        json!({"$ref": format!("{REF_PREFIX}{}", paths::content_name(def, version, path))});
    let answer = match operation.action {
        "list" => json!({"$ref": format!("{REF_PREFIX}{}", paths::list_name(def, version))}),
        "delete" | "deletecollection" => {
            json!({"$ref": format!("{REF_PREFIX}io.k8s.apimachinery.pkg.apis.meta.v1.Status")})
        }
        _ => object.clone(),
    };
    let parameters: Vec<Value> = paths::parameters(operation)
        .into_iter()
        .map(|(name, kind, help)| {
            json!({"name": name, "in": "query", "description": help, "schema": {"type": kind, "uniqueItems": true}})
        })
        .collect();
    let mut found = json!({
        "tags": [format!("{}_{}", if def.group.is_empty() { "core" } else { &def.group }, version.name)],
        "operationId": format!("{}{}", operation.action, path.path.replace(['/', '.', '{', '}', '-'], "_")),
        "parameters": parameters,
        "responses": {
            "200": {"description": "OK", "content": {"application/json": {"schema": answer}}},
            "401": {"description": "Unauthorized"},
        },
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": paths::path_gvk(def, version, path),
    });
    match operation.method {
        "patch" => {
            let content: Map<String, Value> = paths::patch_types(def)
                .iter()
                .map(|media| ((*media).to_owned(), json!({"schema": {"type": "object"}})))
                .collect();
            found["requestBody"] = json!({"required": true, "content": content});
        }
        _ if operation.body => {
            found["requestBody"] =
                json!({"required": true, "content": {"application/json": {"schema": object}}});
        }
        _ => {}
    }
    found
}
