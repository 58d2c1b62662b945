//! What the typed API does not tell of the built-in kinds' lists and maps: which lists are sets or maps by keys, which maps
//! are one value, and the defaults of keys. The facts are those of the published OpenAPI documents of Kubernetes 1.34
//! (`x-kubernetes-list-type`, `-list-map-keys`, `-map-type`, `-patch-strategy`, `-patch-merge-key`). Clients read them in
//! ours; server-side apply and strategic merge patches go by them.

use serde_json::{Map, Value, json};

use super::builtin::OBJECT_META;

/// How a strategic merge patch treats a list, in a schema.
pub(super) const STRATEGY: &str = "x-kubernetes-patch-strategy";
/// By what it tells the items of a list apart.
pub(super) const MERGE_KEY: &str = "x-kubernetes-patch-merge-key";

/// A list whose items are told apart, by whom and by what.
struct List {
    field: &'static str,
    /// For server-side apply: the keys of an item; without keys the list is a set. None: the list is one value.
    apply: Option<&'static [&'static str]>,
    /// For strategic merge patches: the key of an item; empty for a set. None: a patch replaces the list.
    patch: Option<&'static str>,
    /// Patches may say which fields of an item are kept.
    retain: bool,
}

impl List {
    /// Both tell the items apart by these keys; patches by the first.
    const fn keyed(field: &'static str, keys: &'static [&'static str]) -> Self {
        Self {
            field,
            apply: Some(keys),
            patch: Some(keys[0]),
            retain: false,
        }
    }

    const fn set(field: &'static str) -> Self {
        Self {
            field,
            apply: Some(&[]),
            patch: Some(""),
            retain: false,
        }
    }

    const fn only_applied(field: &'static str, keys: &'static [&'static str]) -> Self {
        Self {
            patch: None,
            ..Self::keyed(field, keys)
        }
    }

    const fn only_patched(field: &'static str, keys: &'static [&'static str]) -> Self {
        Self {
            apply: None,
            ..Self::keyed(field, keys)
        }
    }

    const fn retaining(self) -> Self {
        Self {
            retain: true,
            ..self
        }
    }
}

const CONTAINER: &[List] = &[
    List::keyed("env", &["name"]),
    List::keyed("ports", &["containerPort", "protocol"]),
    List::keyed("volumeDevices", &["devicePath"]),
    List::keyed("volumeMounts", &["mountPath"]),
];
const CONDITIONS: &[List] = &[List::keyed("conditions", &["type"])];

const LISTS: &[(&str, &[List])] = &[
    (
        OBJECT_META,
        &[
            List::set("finalizers"),
            List::keyed("ownerReferences", &["uid"]),
        ],
    ),
    (
        "io.k8s.api.core.v1.PodSpec",
        &[
            List::keyed("containers", &["name"]),
            List::keyed("initContainers", &["name"]),
            List::keyed("ephemeralContainers", &["name"]),
            List::keyed("volumes", &["name"]).retaining(),
            List::keyed("imagePullSecrets", &["name"]),
            List::keyed("hostAliases", &["ip"]),
            List::keyed(
                "topologySpreadConstraints",
                &["topologyKey", "whenUnsatisfiable"],
            ),
            List::keyed("schedulingGates", &["name"]),
            List::keyed("resourceClaims", &["name"]).retaining(),
        ],
    ),
    ("io.k8s.api.core.v1.Container", CONTAINER),
    ("io.k8s.api.core.v1.EphemeralContainer", CONTAINER),
    (
        "io.k8s.api.core.v1.ResourceRequirements",
        &[List::only_applied("claims", &["name"])],
    ),
    (
        "io.k8s.api.core.v1.PodStatus",
        &[
            List::keyed("conditions", &["type"]),
            List::only_patched("hostIPs", &["ip"]),
            List::keyed("podIPs", &["ip"]),
            List::keyed("resourceClaimStatuses", &["name"]).retaining(),
        ],
    ),
    ("io.k8s.api.core.v1.NodeSpec", &[List::set("podCIDRs")]),
    (
        "io.k8s.api.core.v1.NodeStatus",
        &[
            List::keyed("addresses", &["type"]),
            List::keyed("conditions", &["type"]),
        ],
    ),
    ("io.k8s.api.core.v1.NamespaceStatus", CONDITIONS),
    ("io.k8s.api.core.v1.PersistentVolumeClaimStatus", CONDITIONS),
    (
        "io.k8s.api.core.v1.ServiceAccount",
        &[List::keyed("secrets", &["name"])],
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus",
        &[List::only_applied("conditions", &["type"])],
    ),
];

/// Maps that have one owner as a whole.
const ATOMIC: &[&str] = &[
    "io.k8s.api.core.v1.ConfigMapKeySelector",
    "io.k8s.api.core.v1.FileKeySelector",
    "io.k8s.api.core.v1.LocalObjectReference",
    "io.k8s.api.core.v1.NodeSelector",
    "io.k8s.api.core.v1.NodeSelectorTerm",
    "io.k8s.api.core.v1.ObjectFieldSelector",
    "io.k8s.api.core.v1.ObjectReference",
    "io.k8s.api.core.v1.ResourceFieldSelector",
    "io.k8s.api.core.v1.ScopeSelector",
    "io.k8s.api.core.v1.ScopedResourceSelectorRequirement",
    "io.k8s.api.core.v1.SecretKeySelector",
    "io.k8s.api.core.v1.SecretReference",
    "io.k8s.api.core.v1.TopologySelectorTerm",
    "io.k8s.api.core.v1.TypedLocalObjectReference",
    "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector",
    "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference",
    "io.k8s.api.rbac.v1.RoleRef",
    "io.k8s.api.rbac.v1.Subject",
];

/// Puts them into generated definitions.
pub(super) fn annotate(definitions: &mut Map<String, Value>) {
    for (name, lists) in LISTS {
        let Some(properties) = properties(definitions, name) else {
            continue;
        };
        for list in *lists {
            let Some(property) = properties
                .get_mut(list.field)
                .and_then(Value::as_object_mut)
            else {
                continue;
            };
            if let Some(keys) = list.apply {
                let sort = if keys.is_empty() { "set" } else { "map" };
                property.insert("x-kubernetes-list-type".into(), sort.into());
                if !keys.is_empty() {
                    property.insert("x-kubernetes-list-map-keys".into(), json!(keys));
                }
            }
            if let Some(key) = list.patch {
                let strategy = if list.retain {
                    "merge,retainKeys"
                } else {
                    "merge"
                };
                property.insert(STRATEGY.into(), strategy.into());
                if !key.is_empty() {
                    property.insert(MERGE_KEY.into(), key.into());
                }
            }
        }
    }
    for name in ATOMIC {
        if let Some(map) = definitions.get_mut(*name).and_then(Value::as_object_mut) {
            map.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
    }
    // A key that is left out counts with its default.
    let ports = properties(definitions, "io.k8s.api.core.v1.ContainerPort");
    if let Some(protocol) = ports.and_then(|fields| fields.get_mut("protocol")) {
        protocol["default"] = "TCP".into();
    }
}

fn properties<'a>(
    definitions: &'a mut Map<String, Value>,
    name: &str,
) -> Option<&'a mut Map<String, Value>> {
    definitions
        .get_mut(name)?
        .get_mut("properties")?
        .as_object_mut()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::builtin;

    #[test]
    fn every_entry_names_something_that_exists() {
        let all = builtin::definitions([
            ("", "Namespace"),
            ("", "Node"),
            ("", "Pod"),
            ("", "ServiceAccount"),
            ("", "PersistentVolumeClaim"),
            ("", "PersistentVolume"),
            ("apiextensions.k8s.io", "CustomResourceDefinition"),
        ]);
        for (name, lists) in LISTS {
            for List { field, .. } in *lists {
                assert_eq!(
                    all[*name]["properties"][*field]["type"], "array",
                    "{name}.{field}"
                );
            }
        }
    }
}
