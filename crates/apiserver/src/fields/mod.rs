//! Who owns which fields of an object: server-side apply and `metadata.managedFields`.
//!
//! The module is pure: objects and owners in, objects and owners out. It mirrors `sigs.k8s.io/structured-merge-diff` and
//! `k8s.io/apimachinery/pkg/util/managedfields`:
//!
//! - `path`, `set`: paths of fields, sets of them, their FieldsV1 form.
//! - `walk`, `compare`, `merge`: the fields of a value, the difference of two, merging and removing; driven by the types of
//!   the schema.
//! - [`managers`]: the entries of `managedFields`.
//! - [`update`]: what a create, replace or patch does to the owners.
//! - [`apply`]: merging a configuration, conflicts, removal of what is no longer applied.

pub(crate) mod apply;
pub(crate) mod compare;
pub(crate) mod managers;
pub(crate) mod merge;
pub(crate) mod path;
pub(crate) mod set;
#[cfg(test)]
mod tests;
pub(crate) mod update;
pub(crate) mod walk;

use serde_json::Value;

use crate::fields::set::Set;
use crate::schema::shape::Type;

/// What the owners of an object's fields depend on besides the object.
pub(crate) struct Context<'a> {
    /// The type of the object in the version of the request.
    pub(crate) of: Type<'a>,
    /// That version, as `apiVersion` has it.
    pub(crate) api_version: &'a str,
    /// The type in another version; `None` if there is no such version any more.
    pub(crate) of_version: &'a dyn Fn(&str) -> Version<'a>,
    /// The subresource of the request, empty for the object itself.
    pub(crate) subresource: &'a str,
    /// Fields that this request cannot change: nobody comes to own them by it.
    pub(crate) reset: Set,
    /// Now.
    pub(crate) now: &'a str,
}

/// What is known of another version of an object.
#[derive(Clone, Copy)]
pub(crate) enum Version<'a> {
    /// Its fields are the same, of this type.
    Known(Type<'a>),
    /// It looks otherwise; its owners are left alone.
    Foreign,
    /// It is no more; nor are its owners.
    Gone,
}

impl<'a> Context<'a> {
    fn version(&self, api_version: &str) -> Version<'a> {
        if api_version == self.api_version {
            Version::Known(self.of)
        } else {
            (self.of_version)(api_version)
        }
    }
}

/// Fields that no manager owns, for they are the object's identity or the server's.
fn stripped() -> &'static Set {
    static STRIPPED: std::sync::LazyLock<Set> = std::sync::LazyLock::new(|| {
        Set::of(&[
            &["apiVersion"],
            &["kind"],
            &["metadata"],
            &["metadata", "name"],
            &["metadata", "namespace"],
            &["metadata", "creationTimestamp"],
            &["metadata", "selfLink"],
            &["metadata", "uid"],
            &["metadata", "clusterName"],
            &["metadata", "generation"],
            &["metadata", "managedFields"],
            &["metadata", "resourceVersion"],
        ])
    });
    &STRIPPED
}

/// The object without its managed fields: they do not manage themselves.
fn bare(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}
