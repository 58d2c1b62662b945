//! How the lists and maps of the built-in kinds are merged: one table for server-side apply, strategic merge patch and the
//! documents that clients read.
//!
//! The facts are those of the `listType`, `listMapKey`, `mapType`, `patchStrategy` and `patchMergeKey` markers of `k8s.io/api`.
//! A list that has no row is atomic, a map that has none is granular.

use serde_json::{Map, Value, json};

/// How a field is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    /// A list of plain values, each of which has owners of its own; patches add to it.
    Set,
    /// A list of plain values as above, but patches replace it.
    AppliedSet,
    /// A list whose items are told apart by these keys; patches use the first of them.
    Keys(&'static [&'static str]),
    /// As above; patches name the fields of an item that stay (`$retainKeys`).
    Retained(&'static [&'static str]),
    /// A list whose items are told apart by these keys when it is applied; patches replace it.
    AppliedKeys(&'static [&'static str]),
    /// A list that is applied as a whole; patches tell its items apart by this key.
    PatchedKey(&'static str),
    /// A map that is applied as a whole.
    AtomicMap,
    /// A reference to an atomic type whose fields have owners of their own here.
    GranularMap,
}

use Merge::{AppliedKeys, AppliedSet, AtomicMap, GranularMap, Keys, PatchedKey, Retained, Set};

type Fields = &'static [(&'static str, Merge)];

const CONTAINER: Fields = &[
    ("env", Keys(&["name"])),
    ("ports", Keys(&["containerPort", "protocol"])),
    ("volumeDevices", Keys(&["devicePath"])),
    ("volumeMounts", Keys(&["mountPath"])),
];
const CONDITIONS: Fields = &[("conditions", Keys(&["type"]))];

/// Definitions, without `io.k8s.`, and those of their fields that are not merged in the usual way.
const TABLE: &[(&str, Fields)] = &[
    ("api.core.v1.Container", CONTAINER),
    (
        "api.core.v1.ContainerRestartRuleOnExitCodes",
        &[("values", AppliedSet)],
    ),
    (
        "api.core.v1.ContainerStatus",
        &[
            ("allocatedResourcesStatus", Keys(&["name"])),
            ("volumeMounts", Keys(&["mountPath"])),
        ],
    ),
    ("api.core.v1.EphemeralContainer", CONTAINER),
    ("api.core.v1.NamespaceStatus", CONDITIONS),
    ("api.core.v1.NodeSpec", &[("podCIDRs", Set)]),
    (
        "api.core.v1.NodeStatus",
        &[
            ("addresses", Keys(&["type"])),
            ("conditions", Keys(&["type"])),
        ],
    ),
    (
        "api.core.v1.PersistentVolumeClaimStatus",
        &[
            ("allocatedResourceStatuses", GranularMap),
            ("conditions", Keys(&["type"])),
        ],
    ),
    (
        "api.core.v1.PersistentVolumeSpec",
        &[("claimRef", GranularMap)],
    ),
    (
        "api.core.v1.PodSpec",
        &[
            ("containers", Keys(&["name"])),
            ("ephemeralContainers", Keys(&["name"])),
            ("hostAliases", Keys(&["ip"])),
            ("imagePullSecrets", Keys(&["name"])),
            ("initContainers", Keys(&["name"])),
            ("nodeSelector", AtomicMap),
            ("resourceClaims", Retained(&["name"])),
            ("schedulingGates", Keys(&["name"])),
            (
                "topologySpreadConstraints",
                Keys(&["topologyKey", "whenUnsatisfiable"]),
            ),
            ("volumes", Retained(&["name"])),
        ],
    ),
    (
        "api.core.v1.PodStatus",
        &[
            ("conditions", Keys(&["type"])),
            ("hostIPs", PatchedKey("ip")),
            ("podIPs", Keys(&["ip"])),
            ("resourceClaimStatuses", Retained(&["name"])),
        ],
    ),
    (
        "api.core.v1.ResourceRequirements",
        &[("claims", AppliedKeys(&["name"]))],
    ),
    (
        "api.core.v1.ResourceStatus",
        &[("resources", AppliedKeys(&["resourceID"]))],
    ),
    (
        "api.core.v1.ServiceAccount",
        &[("secrets", Keys(&["name"]))],
    ),
    (
        "api.core.v1.ServiceSpec",
        &[
            ("ports", Keys(&["port", "protocol"])),
            ("selector", AtomicMap),
        ],
    ),
    ("api.core.v1.ServiceStatus", CONDITIONS),
    (
        "apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus",
        &[("conditions", AppliedKeys(&["type"]))],
    ),
    (
        "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
        &[("x-kubernetes-validations", Keys(&["rule"]))],
    ),
    (
        "apimachinery.pkg.apis.meta.v1.ObjectMeta",
        &[("finalizers", Set), ("ownerReferences", Keys(&["uid"]))],
    ),
];

/// Definitions, without `io.k8s.`, whose objects are applied as a whole.
const ATOMIC: &[&str] = &[
    "api.core.v1.ConfigMapKeySelector",
    "api.core.v1.FileKeySelector",
    "api.core.v1.LocalObjectReference",
    "api.core.v1.NodeSelector",
    "api.core.v1.NodeSelectorTerm",
    "api.core.v1.ObjectFieldSelector",
    "api.core.v1.ObjectReference",
    "api.core.v1.ResourceFieldSelector",
    "api.core.v1.ScopeSelector",
    "api.core.v1.SecretKeySelector",
    "api.core.v1.SecretReference",
    "api.core.v1.TopologySelectorTerm",
    "api.core.v1.TypedLocalObjectReference",
    "api.rbac.v1.RoleRef",
    "api.rbac.v1.Subject",
    "apimachinery.pkg.apis.meta.v1.LabelSelector",
    "apimachinery.pkg.apis.meta.v1.OwnerReference",
];

fn lookup(definition: &str, field: &str) -> Option<Merge> {
    let short = definition.strip_prefix("io.k8s.")?;
    let (_, fields) = TABLE.iter().find(|(name, _)| *name == short)?;
    fields
        .iter()
        .find(|(name, _)| *name == field)
        .map(|(_, merge)| *merge)
}

/// Writes what the table says into definitions.
pub(super) fn annotate(definitions: &mut Map<String, Value>) {
    for (name, definition) in definitions.iter_mut() {
        let short = name.strip_prefix("io.k8s.").unwrap_or_default();
        if ATOMIC.contains(&short) {
            definition["x-kubernetes-map-type"] = json!("atomic");
        }
        let Some(Value::Object(properties)) = definition.get_mut("properties") else {
            continue;
        };
        for (field, property) in properties {
            let Some(property) = property.as_object_mut() else {
                continue;
            };
            match lookup(name, field) {
                Some(merge) => describe(property, merge),
                None if property.get("type").is_some_and(|t| t == "array") => {
                    property.insert("x-kubernetes-list-type".into(), json!("atomic"));
                }
                None => {}
            }
        }
    }
}

fn describe(property: &mut Map<String, Value>, merge: Merge) {
    let mut put = |key: &str, value: Value| {
        property.insert(format!("x-kubernetes-{key}"), value);
    };
    let (list, keys, strategy, key) = match merge {
        Set => ("set", None, Some("merge"), None),
        AppliedSet => ("set", None, None, None),
        Keys(keys) => ("map", Some(keys), Some("merge"), Some(keys[0])),
        Retained(keys) => ("map", Some(keys), Some("merge,retainKeys"), Some(keys[0])),
        AppliedKeys(keys) => ("map", Some(keys), None, None),
        PatchedKey(key) => ("atomic", None, Some("merge"), Some(key)),
        AtomicMap => return put("map-type", json!("atomic")),
        GranularMap => return put("map-type", json!("granular")),
    };
    put("list-type", json!(list));
    if let Some(keys) = keys {
        put("list-map-keys", json!(keys));
    }
    if let Some(strategy) = strategy {
        put("patch-strategy", json!(strategy));
    }
    if let Some(key) = key {
        put("patch-merge-key", json!(key));
    }
}

/// What a key of a keyed list is where an item leaves it out; none if it may be left out.
pub(super) fn key_default(item: &str, definition: &Value, key: &str) -> Option<Value> {
    if key == "protocol" {
        return Some(json!("TCP"));
    }
    let required = definition
        .get("required")
        .and_then(Value::as_array)
        .is_some_and(|list| list.iter().any(|name| name == key));
    if !required && item != "io.k8s.api.core.v1.LocalObjectReference" {
        return None;
    }
    let number = definition
        .get("properties")
        .and_then(|properties| properties.get(key))
        .and_then(|property| property.get("type"))
        .is_some_and(|kind| kind == "integer");
    Some(if number { json!(0) } else { json!("") })
}

#[cfg(test)]
mod tests {
    use super::super::builtin::{self, OBJECT_META};
    use super::*;

    #[test]
    fn every_row_has_its_field() {
        let mut all = builtin::definitions([
            ("", "Pod"),
            ("", "Node"),
            ("", "Namespace"),
            ("", "PersistentVolume"),
            ("", "PersistentVolumeClaim"),
            ("", "ServiceAccount"),
            ("storage.k8s.io", "StorageClass"),
            ("apiextensions.k8s.io", "CustomResourceDefinition"),
        ]);
        annotate(&mut all);
        let mut rows = 0;
        for (name, fields) in TABLE {
            let Some(definition) = all.get(&format!("io.k8s.{name}")) else {
                // Of a kind that is not served, or of a later release than the typed API.
                continue;
            };
            for (field, _) in *fields {
                if definition["properties"].get(*field).is_some() {
                    rows += 1;
                }
            }
        }
        assert!(rows >= 35, "{rows}");
        let found = ATOMIC
            .iter()
            .filter(|name| all.contains_key(&format!("io.k8s.{name}")))
            .count();
        assert!(found >= 13, "{found}");
        let meta = &all[OBJECT_META]["properties"];
        assert_eq!(
            meta["ownerReferences"]["x-kubernetes-list-map-keys"],
            json!(["uid"])
        );
        assert_eq!(meta["finalizers"]["x-kubernetes-patch-strategy"], "merge");
        let ports = &all["io.k8s.api.core.v1.Container"]["properties"]["ports"];
        assert_eq!(
            ports["x-kubernetes-list-map-keys"],
            json!(["containerPort", "protocol"])
        );
        assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
        let command = &all["io.k8s.api.core.v1.Container"]["properties"]["command"];
        assert_eq!(command["x-kubernetes-list-type"], "atomic");
        assert_eq!(
            all["io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector"]["x-kubernetes-map-type"],
            "atomic"
        );
    }
}
