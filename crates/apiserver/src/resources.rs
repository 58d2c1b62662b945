//! What the server serves: one [`ResourceDef`] a resource, built in or made from a CustomResourceDefinition.
//!
//! Everything else in this crate (registry, discovery, tables, OpenAPI) reads these definitions and knows no kind by
//! itself. The built-in table mirrors upstream's names, scopes, short names, categories and subresources.

use std::sync::Arc;

use serde_json::Value;

use crate::schema::{self, FieldError, Schema};

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
    /// Columns of the server-side Table besides NAME; empty means NAME and AGE (custom resources) or the built-in printer.
    pub columns: Vec<Column>,
    /// Structural schema; `None` for built-in kinds and for versions without one.
    pub schema: Option<Arc<Schema>>,
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
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// `plural.group` (or the plural in the core group): how messages name the resource.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
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
    Vec::new()
}
