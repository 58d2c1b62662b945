//! `metadata.managedFields` of the objects that pass through the registry.
//!
//! They are taken off an object when it comes in, tracked between defaulting and admission (so nobody owns what admission
//! fills in, as upstream), and put back before the object is stored.

use std::sync::Arc;

use http::header;
use serde_json::{Value, json};

use crate::error::{ApiError, Cause, Target};
use crate::fields::managers::same_but_times;
use crate::fields::path::same;
use crate::fields::set::Set;
use crate::fields::{self, Context, Version};
use crate::registry::catalog::Scope;
use crate::registry::meta;
use crate::registry::policy::Policy;
use crate::registry::query::Call;
use crate::schema::shape::Type;
use crate::schema::{Schema, builtin};

/// Most bytes of a manager's name.
const MAX_NAME: usize = 128;

impl Call {
    /// Who makes this change: `fieldManager`, or else what the client calls itself.
    pub(crate) fn manager(&self) -> Result<String, ApiError> {
        let given = self.query.get("fieldManager");
        let causes = check_name(given);
        if !causes.is_empty() {
            let kind = match self.info.verb.as_str() {
                "create" => "CreateOptions",
                "patch" => "PatchOptions",
                _ => "UpdateOptions",
            };
            return Err(ApiError::Invalid {
                target: Target::new("meta.k8s.io", kind, ""),
                causes,
            });
        }
        if !given.is_empty() {
            return Ok(given.to_owned());
        }
        let agent = self
            .headers
            .get(header::USER_AGENT)
            .and_then(|agent| agent.to_str().ok())
            .unwrap_or_default();
        let prefix = agent.split('/').next().unwrap_or_default();
        let mut name = String::new();
        for c in prefix.chars().filter(|c| is_print(*c)) {
            if name.len() + c.len_utf8() > MAX_NAME {
                break;
            }
            name.push(c);
        }
        Ok(name)
    }
}

fn is_print(c: char) -> bool {
    c == ' ' || !(c.is_control() || c.is_whitespace())
}

/// What is wrong with the name of a manager.
pub(crate) fn check_name(name: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    if name.len() > MAX_NAME {
        causes.push(Cause {
            reason: "FieldValueTooLong".into(),
            field: "fieldManager".into(),
            message: format!("Too long: may not be more than {MAX_NAME} bytes"),
        });
    }
    for (at, c) in name.char_indices().filter(|(_, c)| !is_print(*c)) {
        let why = format!(
            "invalid character U+{:04X} (at position {at})",
            u32::from(c)
        );
        causes.push(Cause::invalid("fieldManager", format!("{name:?}"), why));
    }
    causes
}

/// Takes the managed fields off an object.
pub(crate) fn take(object: &mut Value) -> Option<Value> {
    object
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
        .and_then(|metadata| metadata.remove("managedFields"))
}

/// The managed fields of an object that is about to be written. `given` is what it came with.
pub(crate) fn track(
    call: &Call,
    scope: &Scope,
    live: Option<&Value>,
    new: &Value,
    given: Option<Value>,
) -> Result<Option<Value>, ApiError> {
    if call.applied {
        return Ok(given);
    }
    let manager = call.manager()?;
    Ok(with_context(call, scope, |context, blank| {
        let filled = live.and_then(|live| fill(live, blank));
        let live = filled.as_ref().or(live);
        fields::update::track(context, live, new, given.as_ref(), blank, &manager)
    }))
}

/// The object with the fields that are always there to the typed API; `None` if it has them.
fn fill(object: &Value, blank: &Value) -> Option<Value> {
    fn lacks(object: &Value, blank: &Value) -> bool {
        blank.as_object().into_iter().flatten().any(|(key, blank)| {
            !blank.is_null() && object.get(key).is_none_or(|value| lacks(value, blank))
        })
    }
    fn add(object: &mut Value, blank: &Value) {
        let (Some(map), Some(blank)) = (object.as_object_mut(), blank.as_object()) else {
            return;
        };
        for (key, blank) in blank.iter().filter(|(_, blank)| !blank.is_null()) {
            add(map.entry(key).or_insert_with(|| json!({})), blank);
        }
    }
    lacks(object, blank).then(|| {
        let mut object = object.clone();
        add(&mut object, blank);
        object
    })
}

/// Puts managed fields on an object. If nothing has changed but their times, nothing has changed.
pub(crate) fn put(object: &mut Value, entries: Option<Value>, old: Option<&Value>) {
    let stored = old.and_then(|old| old.pointer("/metadata/managedFields"));
    let metadata = meta::metadata(object);
    if entries.as_ref() != stored && same_but_times(entries.as_ref(), stored) {
        meta::put(metadata, "managedFields", stored.cloned());
        if old.is_some_and(|old| same(old, object)) {
            return;
        }
    }
    meta::put(meta::metadata(object), "managedFields", entries);
}

/// Calls with what the owners of an object's fields depend on, and what an object of the kind is before anything is said.
pub(crate) fn with_context<R>(
    call: &Call,
    scope: &Scope,
    run: impl FnOnce(&Context<'_>, &Value) -> R,
) -> R {
    let def = &scope.def;
    let schema: Option<Arc<Schema>> = if def.crd {
        scope.version().schema.clone()
    } else {
        builtin::strict_schema(&def.group, &def.kind)
    };
    let api_version = scope.api_version();
    let of_version = |other: &str| -> Version<'_> {
        if !def.crd {
            // The two faces of events differ in their fields; other built-in kinds have one version only.
            return if def.plural == "events" {
                Version::Foreign
            } else {
                Version::Gone
            };
        }
        let found = def
            .versions
            .iter()
            .find(|version| def.api_version(&version.name) == other);
        match found {
            None => Version::Gone,
            Some(version) => Version::Known(
                version
                    .schema
                    .as_deref()
                    .map_or_else(Type::deduced, |schema| Type::object(schema, true)),
            ),
        }
    };
    let now = meta::now();
    let context = Context {
        of: schema
            .as_deref()
            .map_or_else(Type::deduced, |schema| Type::object(schema, def.crd)),
        api_version: &api_version,
        of_version: &of_version,
        subresource: &call.info.subresource,
        reset: reset(scope, &call.info.subresource),
        now: &now,
    };
    run(&context, &blank(scope))
}

/// Fields that a request cannot change.
fn reset(scope: &Scope, subresource: &str) -> Set {
    match (subresource, scope.policy) {
        ("", _) if scope.version().status => Set::of(&[&["status"]]),
        ("status", Policy::Definition) => Set::of(&[&["metadata"], &["spec"]]),
        ("status", Policy::Pod) => Set::of(&[
            &["spec"],
            &["metadata", "deletionTimestamp"],
            &["metadata", "ownerReferences"],
        ]),
        ("status", _) => Set::of(&[&["spec"]]),
        _ => Set::default(),
    }
}

/// A new object of the kind, before anybody says anything: the typed API has some fields that are always there. Who fills
/// them owns what he fills in, not the field as such.
fn blank(scope: &Scope) -> Value {
    if scope.def.crd {
        return json!({});
    }
    let mut blank = match scope.def.kind.as_str() {
        "Pod" => json!({"spec": {"containers": null}, "status": {}}),
        "Namespace" | "PersistentVolume" | "ResourceQuota" | "Service" | "LimitRange" => {
            json!({"spec": {}, "status": {}})
        }
        "Node" => {
            json!({"spec": {}, "status": {"daemonEndpoints": {"kubeletEndpoint": {}}, "nodeInfo": {}}})
        }
        "PersistentVolumeClaim" => json!({"spec": {"resources": {}}, "status": {}}),
        "Event" if scope.def.group.is_empty() => json!({"involvedObject": {}, "source": {}}),
        "Event" => json!({"regarding": {}, "deprecatedSource": {}}),
        "Lease" => json!({"spec": {}}),
        "RoleBinding" | "ClusterRoleBinding" => json!({"roleRef": {}}),
        "Role" | "ClusterRole" => json!({"rules": null}),
        "CustomResourceDefinition" => {
            json!({"spec": {"names": {}, "versions": null}, "status": {}})
        }
        _ => json!({}),
    };
    blank["metadata"] = json!({});
    blank
}
