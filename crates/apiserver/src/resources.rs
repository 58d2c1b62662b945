//! What the server serves: one [`ResourceDef`] a resource, built in or made from a CustomResourceDefinition.
//!
//! Everything else in this crate (registry, discovery, tables, OpenAPI) reads these definitions and knows no kind by
//! itself. The built-in table mirrors upstream's names, scopes, short names, categories and subresources.

use std::sync::Arc;

use serde_json::Value;

use crate::schema::{self, FieldError, Schema};

mod access;
mod events;

/// One resource of the API: all its versions, its names and where its objects are stored.
#[derive(Clone, Debug)]
pub struct ResourceDef {
    /// API group, empty for the core group.
    pub group: String,
    /// Kind, e.g. `Pod`.
    pub kind: String,
    /// Kind of the list, e.g. `PodList`.
    pub list_kind: String,
    /// Name in the URL, e.g. `pods`.
    pub plural: String,
    /// Singular name that clients accept, e.g. `pod`.
    pub singular: String,
    /// Short names that clients accept, e.g. `po`.
    pub short_names: Vec<String>,
    /// Categories such as `all`.
    pub categories: Vec<String>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Versions, the preferred one first.
    pub versions: Vec<VersionDef>,
    /// Name of the version in which objects are stored.
    pub storage_version: String,
    /// True if a CustomResourceDefinition made this resource.
    pub crd: bool,
    /// Subresources besides `status` and `scale` (e.g. `pods/log`).
    pub subresources: Vec<Subresource>,
    /// Set if this resource is another face of a stored one (`events.k8s.io` of the core events).
    pub alias: Option<Alias>,
    /// Revision of the last write of the definition; 0 for built-in kinds.
    pub since: u64,
}

/// One version of a resource.
#[derive(Clone, Debug)]
pub struct VersionDef {
    /// Version name, e.g. `v1`.
    pub name: String,
    /// Whether the version answers requests.
    pub served: bool,
    /// Warning header for every request of this version, if it is deprecated.
    pub deprecation_warning: Option<String>,
    /// Whether the `status` subresource is on.
    pub status: bool,
    /// Whether the `scale` subresource is on.
    pub scale: bool,
    /// Where the `scale` subresource finds its numbers.
    pub scale_paths: ScalePaths,
    /// JSON paths (`.spec.color`) that field selectors may name besides name and namespace.
    pub selectable_fields: Vec<String>,
    /// Columns of the server-side Table besides NAME; empty means NAME and AGE (custom resources) or the built-in printer.
    pub columns: Vec<Column>,
    /// Structural schema; `None` for built-in kinds and for versions without one.
    pub schema: Option<Arc<Schema>>,
}

/// JSON paths of the `scale` subresource; empty where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScalePaths {
    /// Replicas that are wanted, e.g. `.spec.replicas`.
    pub spec: String,
    /// Replicas that are there, e.g. `.status.replicas`.
    pub status: String,
    /// Label selector of the replicas, as text.
    pub selector: String,
}

/// A column of a CRD's `additionalPrinterColumns`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Header.
    pub name: String,
    /// OpenAPI type: `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: String,
    /// OpenAPI format, often empty.
    pub format: String,
    /// Help text.
    pub description: String,
    /// 0 is shown always, above 0 only by `-o wide`.
    pub priority: i32,
    /// JSONPath of the cell, e.g. `.status.phase`.
    pub json_path: String,
}

/// A subresource besides `status` and `scale`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// Last part of the URL, e.g. `log`.
    pub name: &'static str,
    /// Group of the kind that it takes or returns.
    pub group: &'static str,
    /// Version of that kind.
    pub version: &'static str,
    /// Kind that it takes or returns.
    pub kind: &'static str,
    /// Verbs for discovery.
    pub verbs: &'static [&'static str],
}

/// A second face of a stored resource: requests are converted to and from the stored form.
#[derive(Clone, Copy, Debug)]
pub struct Alias {
    /// Group of the stored resource.
    pub group: &'static str,
    /// Plural of the stored resource.
    pub plural: &'static str,
    /// Turns an object of this resource into the stored form.
    pub to_storage: fn(&mut Value),
    /// Turns a stored object into the form of this resource.
    pub from_storage: fn(&mut Value),
}

impl ResourceDef {
    /// The version named `name`, if it is served.
    pub fn served_version(&self, name: &str) -> Option<&VersionDef> {
        self.versions.iter().find(|v| v.served && v.name == name)
    }

    /// `group/version`, or the bare version in the core group: the `apiVersion` of objects.
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() {
            version.to_owned()
        } else {
            format!("{}/{version}", self.group)
        }
    }

    /// `plural.group` (or the plural in the core group): how messages name the resource.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Group and plural under which objects are stored.
    pub fn storage_key(&self) -> (&str, &str) {
        match &self.alias {
            Some(alias) => (alias.group, alias.plural),
            None => (&self.group, &self.plural),
        }
    }

    /// The definition that a (validated and defaulted) CustomResourceDefinition object describes.
    ///
    /// # Errors
    /// The field errors of a schema that is not structural.
    pub fn from_crd(crd: &Value) -> Result<Self, Vec<FieldError>> {
        schema::crd::resource_def(crd)
    }
}

/// The resources that need no CustomResourceDefinition.
pub fn builtin() -> Vec<ResourceDef> {
    // group, version, kind, plural, short names, namespaced, status
    type Row = (
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static [&'static str],
        bool,
        bool,
    );
    const ROWS: &[Row] = &[
        ("", "v1", "Namespace", "namespaces", &["ns"], false, true),
        ("", "v1", "Node", "nodes", &["no"], false, true),
        ("", "v1", "Pod", "pods", &["po"], true, true),
        ("", "v1", "Event", "events", &["ev"], true, false),
        ("", "v1", "ConfigMap", "configmaps", &["cm"], true, false),
        ("", "v1", "Secret", "secrets", &[], true, false),
        (
            "",
            "v1",
            "ResourceQuota",
            "resourcequotas",
            &["quota"],
            true,
            true,
        ),
        (
            "",
            "v1",
            "ServiceAccount",
            "serviceaccounts",
            &["sa"],
            true,
            false,
        ),
        (
            "",
            "v1",
            "PersistentVolumeClaim",
            "persistentvolumeclaims",
            &["pvc"],
            true,
            true,
        ),
        (
            "",
            "v1",
            "PersistentVolume",
            "persistentvolumes",
            &["pv"],
            false,
            true,
        ),
        (
            "events.k8s.io",
            "v1",
            "Event",
            "events",
            &["ev"],
            true,
            false,
        ),
        (
            "apps",
            "v1",
            "ControllerRevision",
            "controllerrevisions",
            &[],
            true,
            false,
        ),
        (
            "coordination.k8s.io",
            "v1",
            "Lease",
            "leases",
            &[],
            true,
            false,
        ),
        (
            "storage.k8s.io",
            "v1",
            "StorageClass",
            "storageclasses",
            &["sc"],
            false,
            false,
        ),
        (
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
            &["crd", "crds"],
            false,
            true,
        ),
    ];
    ROWS.iter()
        .map(
            |&(group, version, kind, plural, short_names, namespaced, status)| ResourceDef {
                group: group.to_owned(),
                kind: kind.to_owned(),
                list_kind: format!("{kind}List"),
                plural: plural.to_owned(),
                singular: kind.to_lowercase(),
                short_names: short_names.iter().map(|s| (*s).to_owned()).collect(),
                categories: categories(kind),
                namespaced,
                versions: vec![VersionDef {
                    name: version.to_owned(),
                    served: true,
                    deprecation_warning: None,
                    status,
                    scale: false,
                    scale_paths: ScalePaths::default(),
                    selectable_fields: Vec::new(),
                    columns: Vec::new(),
                    schema: None,
                }],
                storage_version: version.to_owned(),
                crd: false,
                subresources: subresources(kind),
                alias: (group == "events.k8s.io").then_some(events::ALIAS),
                since: 0,
            },
        )
        .chain(access::builtin())
        .collect()
}

fn categories(kind: &str) -> Vec<String> {
    let found: &[&str] = match kind {
        "Pod" => &["all"],
        "CustomResourceDefinition" => &["api-extensions"],
        _ => &[],
    };
    found.iter().map(|s| (*s).to_owned()).collect()
}

fn subresources(kind: &str) -> Vec<Subresource> {
    match kind {
        "Pod" => vec![
            Subresource {
                name: "binding",
                group: "",
                version: "v1",
                kind: "Binding",
                verbs: &["create"],
            },
            Subresource {
                name: "log",
                group: "",
                version: "v1",
                kind: "Pod",
                verbs: &["get"],
            },
        ],
        "ServiceAccount" => vec![access::TOKEN],
        "Namespace" => vec![Subresource {
            name: "finalize",
            group: "",
            version: "v1",
            kind: "Namespace",
            verbs: &["update"],
        }],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_clash() {
        let defs = builtin();
        let mut names: Vec<_> = defs
            .iter()
            .map(|d| (d.group.clone(), d.plural.clone()))
            .collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), defs.len());
        let pods = defs.iter().find(|d| d.plural == "pods").expect("pods");
        assert_eq!(
            (pods.api_version("v1"), pods.qualified()),
            ("v1".to_owned(), "pods".to_owned())
        );
        let leases = defs.iter().find(|d| d.plural == "leases").expect("leases");
        assert_eq!(leases.api_version("v1"), "coordination.k8s.io/v1");
        assert_eq!(leases.qualified(), "leases.coordination.k8s.io");
        assert!(leases.served_version("v1").is_some() && leases.served_version("v2").is_none());
    }
}
