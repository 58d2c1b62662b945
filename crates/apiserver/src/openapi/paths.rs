//! The paths of a resource, as one list that both document versions write in their own dialect.

use serde_json::{Value, json};

use crate::resources::{ResourceDef, VersionDef};
use crate::schema::builtin::{OBJECT_META, REF_PREFIX, SCALE, definition_name};

/// One path with its operations.
pub(super) struct Path {
    pub(super) path: String,
    pub(super) namespaced: bool,
    pub(super) named: bool,
    pub(super) operations: Vec<Operation>,
    /// Whether it is about the number of replicas and not about the object.
    pub(super) scale: bool,
}

/// One method of a path.
#[derive(Clone, Copy)]
pub(super) struct Operation {
    pub(super) method: &'static str,
    /// Value of `x-kubernetes-action`.
    pub(super) action: &'static str,
    /// Whether a body is read, and so `dryRun`, `fieldManager` and `fieldValidation` mean something.
    pub(super) body: bool,
}

const GET: Operation = op("get", "get", false);
const LIST: Operation = op("get", "list", false);
const POST: Operation = op("post", "post", true);
const PUT: Operation = op("put", "put", true);
const PATCH: Operation = op("patch", "patch", true);
const DELETE: Operation = op("delete", "delete", false);
const DELETE_COLLECTION: Operation = op("delete", "deletecollection", false);

const fn op(method: &'static str, action: &'static str, body: bool) -> Operation {
    Operation {
        method,
        action,
        body,
    }
}

/// Media types of a PATCH: clients ask this list for what they may send.
pub(super) fn patch_types(def: &ResourceDef) -> &'static [&'static str] {
    if def.crd {
        &[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/apply-patch+yaml",
        ]
    } else {
        &[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
            "application/apply-patch+yaml",
        ]
    }
}

/// Query parameters of an operation: name, type, meaning.
pub(super) fn parameters(operation: Operation) -> Vec<(&'static str, &'static str, &'static str)> {
    let mut found = vec![(
        "pretty",
        "string",
        "If 'true', the output is pretty printed.",
    )];
    if operation.body || operation.method == "delete" {
        found.push((
            "dryRun",
            "string",
            "With 'All', everything is checked and nothing is stored.",
        ));
    }
    if operation.body {
        found.push((
            "fieldManager",
            "string",
            "Name of the actor that makes the change.",
        ));
        found.push((
            "fieldValidation",
            "string",
            "What to do with unknown and duplicate fields: 'Ignore', 'Warn' or 'Strict'.",
        ));
    }
    if operation.method == "patch" {
        found.push((
            "force",
            "boolean",
            "Whether an apply takes over fields of other managers.",
        ));
    }
    if operation.action == "list" {
        found.push(("labelSelector", "string", "Restricts the list by labels."));
        found.push(("fieldSelector", "string", "Restricts the list by fields."));
        found.push(("limit", "integer", "Largest number of items in the answer."));
        found.push((
            "continue",
            "string",
            "Token of the previous part of the list.",
        ));
        found.push((
            "resourceVersion",
            "string",
            "Where a watch starts, or how fresh a list must be.",
        ));
        found.push((
            "timeoutSeconds",
            "integer",
            "How long a list or watch may take.",
        ));
        found.push(("watch", "boolean", "Watch for changes instead of listing."));
    }
    found
}

/// All paths of one version of a resource.
pub(super) fn paths(def: &ResourceDef, version: &VersionDef) -> Vec<Path> {
    let root = if def.group.is_empty() {
        format!("/api/{}", version.name)
    } else {
        format!("/apis/{}/{}", def.group, version.name)
    };
    let collection = if def.namespaced {
        format!("{root}/namespaces/{{namespace}}/{}", def.plural)
    } else {
        format!("{root}/{}", def.plural)
    };
    let path = |path: String, named: bool, operations: &[Operation]| Path {
        path,
        namespaced: def.namespaced,
        named,
        operations: operations.to_vec(),
        scale: false,
    };
    if def.is_review() {
        return vec![path(collection, false, &[POST])];
    }
    let object = format!("{collection}/{{name}}");
    let mut found = vec![
        path(collection, false, &[LIST, POST, DELETE_COLLECTION]),
        path(object.clone(), true, &[GET, PUT, PATCH, DELETE]),
    ];
    if def.namespaced {
        found.push(Path {
            namespaced: false,
            ..path(format!("{root}/{}", def.plural), false, &[LIST])
        });
    }
    for (name, there) in [("scale", version.scale), ("status", version.status)] {
        if there {
            found.push(Path {
                scale: name == "scale",
                ..path(format!("{object}/{name}"), true, &[GET, PUT, PATCH])
            });
        }
    }
    found
}

/// Name of the definition of what a path gives and takes.
pub(super) fn content_name(def: &ResourceDef, version: &VersionDef, path: &Path) -> String {
    if path.scale {
        SCALE.to_owned()
    } else {
        schema_name(def, version)
    }
}

/// Name of the definition of a resource version: upstream's for built-in kinds, the reversed group for custom ones.
pub(super) fn schema_name(def: &ResourceDef, version: &VersionDef) -> String {
    match definition_name(&def.group, &def.kind) {
        Some(name) if !def.crd => name.to_owned(),
        _ => {
            let reversed: Vec<&str> = def.group.split('.').rev().collect();
            format!("{}.{}.{}", reversed.join("."), version.name, def.kind)
        }
    }
}

/// Name of the list's definition.
pub(super) fn list_name(def: &ResourceDef, version: &VersionDef) -> String {
    let name = schema_name(def, version);
    format!(
        "{}{}",
        name.strip_suffix(def.kind.as_str()).unwrap_or_default(),
        def.list_kind
    )
}

/// Value of `x-kubernetes-group-version-kind` of one kind.
pub(super) fn gvk(def: &ResourceDef, version: &VersionDef) -> Value {
    json!({"group": def.group, "version": version.name, "kind": def.kind})
}

/// The same of what a path gives and takes.
pub(super) fn path_gvk(def: &ResourceDef, version: &VersionDef, path: &Path) -> Value {
    if path.scale {
        json!({"group": "autoscaling", "version": "v1", "kind": "Scale"})
    } else {
        gvk(def, version)
    }
}

/// The definition of the object and that of its list, in the v3 dialect.
pub(super) fn definitions(
    def: &ResourceDef,
    version: &VersionDef,
    generated: Option<Value>,
) -> [(String, Value); 2] {
    let name = schema_name(def, version);
    let mut object = generated
        .or_else(|| {
            version
                .schema
                .as_ref()
                .and_then(|s| serde_json::from_str(s.source()).ok())
        })
        .unwrap_or_else(|| json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
    if def.crd {
        if !object["properties"].is_object() {
            object["properties"] = json!({});
        }
        object["properties"]["apiVersion"] = json!({"type": "string", "description": "Group and version of this form of the object."});
        object["properties"]["kind"] =
            json!({"type": "string", "description": "Kind of the object."});
        object["properties"]["metadata"] = json!({"description": "Standard object metadata.", "allOf": [{"$ref": format!("{REF_PREFIX}{OBJECT_META}")}]});
    }
    object["x-kubernetes-group-version-kind"] = json!([gvk(def, version)]);
    let mut list = json!({
        "type": "object",
        "description": format!("A list of {}.", def.plural),
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"allOf": [{"$ref": format!("{REF_PREFIX}io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta")}]},
            "items": {"type": "array", "items": {"$ref": format!("{REF_PREFIX}{name}")}},
        },
        "x-kubernetes-group-version-kind": [{"group": def.group, "version": version.name, "kind": def.list_kind}],
    });
    if !version.selectable_fields.is_empty() {
        let fields: Vec<Value> = version
            .selectable_fields
            .iter()
            .map(|path| json!({"fieldPath": path.trim_start_matches('.')}))
            .collect();
        object["x-kubernetes-selectable-fields"] = json!(fields);
        list["x-kubernetes-selectable-fields"] = json!(fields);
    }
    if def.crd {
        say_int_or_string(&mut object);
    }
    [(name, object), (list_name(def, version), list)]
}

/// Says in plain OpenAPI what `x-kubernetes-int-or-string` means, where the definition does not.
fn say_int_or_string(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else {
        return;
    };
    let either = map.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
    if either && !map.contains_key("anyOf") && !map.contains_key("allOf") {
        map.insert(
            "anyOf".into(),
            json!([{"type": "integer"}, {"type": "string"}]),
        );
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(say_int_or_string);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            say_int_or_string(inner);
        }
    }
}
