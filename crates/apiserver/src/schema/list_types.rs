//! What the typed API does not tell of the built-in kinds' lists and maps: which lists are sets or maps by keys, which maps
//! are one value, and the defaults of keys. The facts are those of the published OpenAPI documents of Kubernetes 1.34
//! (`x-kubernetes-list-type`, `-list-map-keys`, `-map-type`).

use serde_json::{Map, Value, json};

use super::builtin::OBJECT_META;

/// A list whose items are told apart by these keys; without keys it is a set.
type Lists = &'static [(&'static str, &'static [&'static str])];

const CONTAINER: Lists = &[
    ("env", &["name"]),
    ("ports", &["containerPort", "protocol"]),
    ("volumeDevices", &["devicePath"]),
    ("volumeMounts", &["mountPath"]),
];
const CONDITIONS: Lists = &[("conditions", &["type"])];

const LISTS: &[(&str, Lists)] = &[
    (
        OBJECT_META,
        &[("finalizers", &[]), ("ownerReferences", &["uid"])],
    ),
    (
        "io.k8s.api.core.v1.PodSpec",
        &[
            ("containers", &["name"]),
            ("initContainers", &["name"]),
            ("ephemeralContainers", &["name"]),
            ("volumes", &["name"]),
            ("imagePullSecrets", &["name"]),
            ("hostAliases", &["ip"]),
            (
                "topologySpreadConstraints",
                &["topologyKey", "whenUnsatisfiable"],
            ),
            ("schedulingGates", &["name"]),
            ("resourceClaims", &["name"]),
        ],
    ),
    ("io.k8s.api.core.v1.Container", CONTAINER),
    ("io.k8s.api.core.v1.EphemeralContainer", CONTAINER),
    (
        "io.k8s.api.core.v1.ResourceRequirements",
        &[("claims", &["name"])],
    ),
    (
        "io.k8s.api.core.v1.PodStatus",
        &[("conditions", &["type"]), ("podIPs", &["ip"])],
    ),
    ("io.k8s.api.core.v1.NodeSpec", &[("podCIDRs", &[])]),
    (
        "io.k8s.api.core.v1.NodeStatus",
        &[("addresses", &["type"]), ("conditions", &["type"])],
    ),
    ("io.k8s.api.core.v1.NamespaceStatus", CONDITIONS),
    ("io.k8s.api.core.v1.PersistentVolumeClaimStatus", CONDITIONS),
    (
        "io.k8s.api.core.v1.ServiceAccount",
        &[("secrets", &["name"])],
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus",
        CONDITIONS,
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
        for (field, keys) in *lists {
            let Some(list) = properties.get_mut(*field).and_then(Value::as_object_mut) else {
                continue;
            };
            let sort = if keys.is_empty() { "set" } else { "map" };
            list.insert("x-kubernetes-list-type".into(), sort.into());
            if !keys.is_empty() {
                list.insert("x-kubernetes-list-map-keys".into(), json!(keys));
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
            for (field, _) in *lists {
                assert_eq!(
                    all[*name]["properties"][*field]["type"], "array",
                    "{name}.{field}"
                );
            }
        }
    }
}
