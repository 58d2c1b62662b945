//! Schemas of the kinds that need no CustomResourceDefinition, from the typed API that the workspace already carries.
//!
//! They are generated when they are asked for: documents are rare, and a tree of all core types would weigh on an idle server.
//! Only the field trees that strict decoding needs (no descriptions) stay, one a kind, once it was used.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::authentication::v1 as authentication;
use k8s_openapi::api::authorization::v1 as authorization;
use k8s_openapi::api::autoscaling::v1 as autoscaling;
use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::events::v1 as events;
use k8s_openapi::api::policy::v1 as policy;
use k8s_openapi::api::rbac::v1 as rbac;
use k8s_openapi::api::storage::v1 as storage;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::schemars::SchemaGenerator;
use k8s_openapi::schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::node::Node;
use super::{FieldError, FieldErrorKind, Schema, list_types};

/// Where generated definitions refer to each other.
pub const REF_PREFIX: &str = "#/components/schemas/";

/// Name of the ObjectMeta definition, which custom resources refer to as well.
pub const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Name of the definition of what `scale` gives and takes.
pub const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";

/// The definition of a free JSON value in a CustomResourceDefinition.
const ANY_JSON: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON";

/// A built-in kind: its group, its name, the name of its definition, how to generate it.
struct Kind {
    group: &'static str,
    kind: &'static str,
    definition: &'static str,
    generate: fn(&mut SchemaGenerator),
}

macro_rules! kinds {
    ($($group:literal $kind:ident in $module:ident as $definition:literal;)*) => {
        &[$(Kind { group: $group, kind: stringify!($kind), definition: $definition, generate: |generator| {
            generator.subschema_for::<$module::$kind>();
        } }),*]
    };
}

static KINDS: &[Kind] = kinds! {
    "" Namespace in core as "io.k8s.api.core.v1.Namespace";
    "" Node in core as "io.k8s.api.core.v1.Node";
    "" Pod in core as "io.k8s.api.core.v1.Pod";
    "" Binding in core as "io.k8s.api.core.v1.Binding";
    "" Event in core as "io.k8s.api.core.v1.Event";
    "" ConfigMap in core as "io.k8s.api.core.v1.ConfigMap";
    "" Secret in core as "io.k8s.api.core.v1.Secret";
    "" ResourceQuota in core as "io.k8s.api.core.v1.ResourceQuota";
    "" ServiceAccount in core as "io.k8s.api.core.v1.ServiceAccount";
    "" PersistentVolumeClaim in core as "io.k8s.api.core.v1.PersistentVolumeClaim";
    "" PersistentVolume in core as "io.k8s.api.core.v1.PersistentVolume";
    "apps" ControllerRevision in apps as "io.k8s.api.apps.v1.ControllerRevision";
    "coordination.k8s.io" Lease in coordination as "io.k8s.api.coordination.v1.Lease";
    "events.k8s.io" Event in events as "io.k8s.api.events.v1.Event";
    "policy" Eviction in policy as "io.k8s.api.policy.v1.Eviction";
    "storage.k8s.io" StorageClass in storage as "io.k8s.api.storage.v1.StorageClass";
    "rbac.authorization.k8s.io" Role in rbac as "io.k8s.api.rbac.v1.Role";
    "rbac.authorization.k8s.io" ClusterRole in rbac as "io.k8s.api.rbac.v1.ClusterRole";
    "rbac.authorization.k8s.io" RoleBinding in rbac as "io.k8s.api.rbac.v1.RoleBinding";
    "rbac.authorization.k8s.io" ClusterRoleBinding in rbac as "io.k8s.api.rbac.v1.ClusterRoleBinding";
    "authentication.k8s.io" TokenRequest in authentication as "io.k8s.api.authentication.v1.TokenRequest";
    "authentication.k8s.io" TokenReview in authentication as "io.k8s.api.authentication.v1.TokenReview";
    "authentication.k8s.io" SelfSubjectReview in authentication as "io.k8s.api.authentication.v1.SelfSubjectReview";
    "authorization.k8s.io" SubjectAccessReview in authorization as "io.k8s.api.authorization.v1.SubjectAccessReview";
    "authorization.k8s.io" LocalSubjectAccessReview in authorization
        as "io.k8s.api.authorization.v1.LocalSubjectAccessReview";
    "authorization.k8s.io" SelfSubjectAccessReview in authorization
        as "io.k8s.api.authorization.v1.SelfSubjectAccessReview";
    "authorization.k8s.io" SelfSubjectRulesReview in authorization
        as "io.k8s.api.authorization.v1.SelfSubjectRulesReview";
    "apiextensions.k8s.io" CustomResourceDefinition in apiextensions
        as "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition";
};

/// The definition name of a built-in kind.
pub fn definition_name(group: &str, kind: &str) -> Option<&'static str> {
    KINDS
        .iter()
        .find(|k| k.group == group && k.kind == kind)
        .map(|k| k.definition)
}

/// The definitions of the given `(group, kind)`s with everything that they refer to, and those of the machinery (ObjectMeta, ListMeta,
/// DeleteOptions, Status, Scale).
pub fn definitions<'a>(wanted: impl IntoIterator<Item = (&'a str, &'a str)>) -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    generator.subschema_for::<meta::ObjectMeta>();
    generator.subschema_for::<meta::ListMeta>();
    generator.subschema_for::<meta::DeleteOptions>();
    generator.subschema_for::<meta::Status>();
    generator.subschema_for::<autoscaling::Scale>();
    for (group, name) in wanted {
        if let Some(kind) = KINDS.iter().find(|k| k.group == group && k.kind == name) {
            (kind.generate)(&mut generator);
        }
    }
    let mut found: Map<String, Value> = generator.take_definitions(true).into_iter().collect();
    // Any JSON value; the typed API says object, and then a default of `"a"` in a definition would be refused.
    if let Some(any) = found.get_mut(ANY_JSON).and_then(Value::as_object_mut) {
        any.remove("type");
    }
    list_types::annotate(&mut found);
    found
}

/// The field tree of a built-in kind, `None` for a kind that is not built in.
pub fn strict_schema(group: &str, kind: &str) -> Option<Arc<Schema>> {
    static TREES: LazyLock<Mutex<HashMap<&'static str, Arc<Schema>>>> =
        LazyLock::new(Mutex::default);
    let definition = definition_name(group, kind)?;
    let mut trees = TREES
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(tree) = trees.get(definition) {
        return Some(tree.clone());
    }
    let all = definitions([(group, kind)]);
    let expanded = expand(all.get(definition)?, &all, &mut vec![definition]);
    let tree = Arc::new(Schema {
        root: Node::parse(&expanded, "").ok()?,
        source: Box::default(),
    });
    trees.insert(definition, tree.clone());
    Some(tree)
}

/// Fields of a built-in object whose JSON type is wrong; such an object must not be stored, for no typed client could read it again.
pub fn type_errors(group: &str, kind: &str, object: &Value) -> Vec<FieldError> {
    let Some(tree) = strict_schema(group, kind) else {
        return Vec::new();
    };
    let mut errors = tree.validate(object);
    errors.retain(|e| e.kind == FieldErrorKind::TypeInvalid);
    errors
}

/// Replaces references by what they refer to and keeps only structure. `null` means absent to the real server's decoder, so
/// everything is nullable; what has no fields of its own (a raw extension, a schema in a schema) keeps whatever it holds.
fn expand(schema: &Value, all: &Map<String, Value>, open: &mut Vec<&str>) -> Value {
    let mut schema = schema;
    if let Some(only) = schema
        .get("allOf")
        .and_then(Value::as_array)
        .and_then(|l| l.first())
    {
        schema = only;
    }
    if let Some(name) = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|r| r.strip_prefix(REF_PREFIX))
    {
        return match all.get_key_value(name) {
            Some((name, target)) if !open.contains(&name.as_str()) => {
                let mut deeper = open.clone();
                deeper.push(name);
                expand(target, all, &mut deeper)
            }
            _ => json!({"nullable": true, "x-kubernetes-preserve-unknown-fields": true}),
        };
    }
    let mut out = Map::new();
    out.insert("nullable".into(), true.into());
    for key in [
        "type",
        "default",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-map-type",
        list_types::STRATEGY,
        list_types::MERGE_KEY,
    ] {
        if let Some(v) = schema.get(key) {
            out.insert(key.into(), v.clone());
        }
    }
    let mut structured = false;
    if let Some(Value::Object(properties)) = schema.get("properties") {
        structured = true;
        let fields: Map<String, Value> = properties
            .iter()
            .map(|(name, s)| (name.clone(), expand(s, all, open)))
            .collect();
        out.insert("properties".into(), fields.into());
    }
    for key in ["additionalProperties", "items"] {
        if let Some(inner) = schema.get(key).filter(|i| i.is_object()) {
            structured = true;
            out.insert(key.into(), expand(inner, all, open));
        }
    }
    let container = !matches!(
        schema.get("type").and_then(Value::as_str),
        Some("string" | "integer" | "number" | "boolean")
    ) && !out.contains_key("x-kubernetes-int-or-string");
    if container && !structured {
        out.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_definition() {
        let all = definitions(KINDS.iter().map(|k| (k.group, k.kind)));
        for kind in KINDS {
            assert!(all.contains_key(kind.definition), "{}", kind.definition);
        }
        assert!(all.contains_key(OBJECT_META));
    }

    #[test]
    fn wrong_types_are_found_and_nulls_are_not() {
        let pod = json!({"metadata": {}, "spec": {"containers": "x", "nodeName": null}});
        let errors = type_errors("", "Pod", &pod);
        assert_eq!(errors.len(), 1);
        assert_eq!(
            errors[0].to_string(),
            "spec.containers: Invalid value: \"string\": spec.containers in body must be of type array: \"string\""
        );
        let quantities = json!({"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}]}});
        assert_eq!(type_errors("", "Pod", &quantities), []);
    }

    #[test]
    fn a_definition_of_definitions_keeps_nested_schemas() {
        let crd = json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec":
            {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "string", "default": "x", "enum": ["x", 1]}}}}}}}]}});
        assert_eq!(
            type_errors("apiextensions.k8s.io", "CustomResourceDefinition", &crd),
            []
        );
        let tree =
            strict_schema("apiextensions.k8s.io", "CustomResourceDefinition").expect("built in");
        assert_eq!(tree.unknown_fields(&crd), Vec::<String>::new());
    }
}
