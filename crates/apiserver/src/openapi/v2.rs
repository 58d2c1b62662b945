//! OpenAPI v2 (Swagger): what kubectl before 1.24 reads, as protobuf, and older tools as JSON.

use std::sync::Arc;

use prost::Message as _;
use serde_json::{Map, Value, json};

use super::gnostic;
use super::paths::{self, Operation, Path};
use crate::discovery::{self, Document};
use crate::resources::{ResourceDef, VersionDef};
use crate::schema::builtin::{self, REF_PREFIX};

/// Content type of the protobuf form. Clients ask for `…spec.v2@v1.0+protobuf`; `@` is not allowed in a Content-Type that the same
/// clients parse, so the answer has a dot there, as upstream's.
pub(super) const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The whole API in one document, protobuf if the Accept header asks for it.
pub(super) fn document(defs: &[Arc<ResourceDef>], accept: &str) -> Document {
    let swagger = swagger(defs);
    if accept.contains("com.github.proto-openapi.spec.v2") {
        let body = gnostic::document(&swagger).encode_to_vec();
        return Document {
            content_type: PROTOBUF.to_owned(),
            etag: None,
            body: body.into(),
        }
        .with_etag();
    }
    Document::json("application/json", &swagger).with_etag()
}

/// The document as JSON.
pub(super) fn swagger(defs: &[Arc<ResourceDef>]) -> Value {
    let builtin_kinds = defs
        .iter()
        .filter(|d| !d.crd)
        .map(|d| (d.group.as_str(), d.kind.as_str()));
    let mut definitions = builtin::definitions(builtin_kinds);
    let mut done = std::collections::HashSet::new();
    let mut all_paths = Map::new();
    for (group, versions) in discovery::groups(defs) {
        for (def, version) in versions
            .into_iter()
            .flat_map(|v| discovery::of_version(defs, group, v))
        {
            let generated = if def.crd {
                None
            } else {
                definitions.remove(&paths::schema_name(def, version))
            };
            for (name, mut schema) in paths::definitions(def, version, generated) {
                downgrade(&mut schema, def.crd);
                done.insert(name.clone());
                definitions.insert(name, schema);
            }
            for path in paths::paths(def, version) {
                all_paths.insert(path.path.clone(), path_item(def, version, &path));
            }
        }
    }
    for (name, definition) in &mut definitions {
        if !done.contains(name) {
            downgrade(definition, false);
        }
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "berth", "version": env!("CARGO_PKG_VERSION")},
        "paths": all_paths,
        "definitions": definitions,
    })
}

/// Turns a v3 schema into what v2 can say. Where v2 cannot say it (anyOf, nullable, a field that is integer or string) clients must not
/// refuse what the server takes, so the statement is widened.
fn downgrade(schema: &mut Value, custom: bool) {
    let Some(map) = schema.as_object_mut() else {
        return;
    };
    if let Some(only) = map
        .get("allOf")
        .and_then(Value::as_array)
        .and_then(|l| l.first())
        .filter(|f| f.get("$ref").is_some())
    {
        let reference = only["$ref"].clone();
        map.insert("$ref".into(), reference);
    }
    for key in ["allOf", "anyOf", "oneOf", "not"] {
        map.remove(key);
    }
    if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
        let target = reference.replace(REF_PREFIX, "#/definitions/");
        map.insert("$ref".into(), target.into());
        return;
    }
    let nullable = map.remove("nullable").is_some_and(|v| v == true);
    let either = map.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
    let preserves = map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    if custom {
        // A client that fills in defaults by itself would own them.
        map.remove("default");
    }
    if either && custom {
        map.remove("type");
        map.remove("format");
    } else if either {
        // The name by which clients know a field that takes both.
        map.insert("type".into(), "string".into());
        map.insert("format".into(), "int-or-string".into());
    } else if nullable || preserves {
        // A client that validates refuses null and unknown fields against a typed object, and the server is to have its say: say
        // nothing, then it accepts them. Upstream publishes such schemas in the same way.
        map.retain(|key, _| key == "description" || key.starts_with("x-kubernetes"));
        return;
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties
            .values_mut()
            .for_each(|inner| downgrade(inner, custom));
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            downgrade(inner, custom);
        }
    }
}

fn path_item(def: &ResourceDef, version: &VersionDef, path: &Path) -> Value {
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
            parameters.push(json!({"name": name, "in": "path", "required": true, "type": "string", "uniqueItems": true}));
        }
    }
    if !parameters.is_empty() {
        item.insert("parameters".to_owned(), parameters.into());
    }
    item.into()
}

fn describe(def: &ResourceDef, version: &VersionDef, path: &Path, operation: Operation) -> Value {
    let object =
        json!({"$ref": format!("#/definitions/{}", paths::content_name(def, version, path))});
    let answer = match operation.action {
        "list" => json!({"$ref": format!("#/definitions/{}", paths::list_name(def, version))}),
        "delete" | "deletecollection" => {
            json!({"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.Status"})
        }
        _ => object.clone(),
    };
    let mut parameters: Vec<Value> = paths::parameters(operation)
        .into_iter()
        .map(|(name, kind, help)| json!({"name": name, "in": "query", "description": help, "type": kind, "uniqueItems": true}))
        .collect();
    if operation.body {
        let schema = if operation.method == "patch" {
            json!({"type": "object"})
        } else {
            object
        };
        parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": schema}));
    }
    let consumes = if operation.method == "patch" {
        json!(paths::patch_types(def))
    } else {
        json!(["application/json"])
    };
    json!({
        "operationId": format!("{}{}", operation.action, path.path.replace(['/', '.', '{', '}', '-'], "_")),
        "consumes": consumes,
        "produces": ["application/json"],
        "schemes": ["https"],
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "schema": answer}, "401": {"description": "Unauthorized"}},
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": paths::path_gvk(def, version, path),
    })
}
