//! Field ownership: the walks of server-side apply over objects and their schemas.
//!
//! `set` holds sets of fields, `walk` what they are made from. Who owns which set, and what an apply comes to, is the
//! registry's affair. Mirrors `sigs.k8s.io/structured-merge-diff` (typed, fieldpath), as far as its results can be seen.

mod set;
mod walk;

use serde_json::Value;

pub(crate) use set::Set;
pub(crate) use walk::{Place, WalkError};

use super::Schema;

/// What one object has that another has not.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Fields that are new or have another value.
    pub(crate) set: Set,
    /// Fields that are gone.
    pub(crate) removed: Set,
}

impl Schema {
    /// Where a walk begins.
    pub(crate) fn place(&self) -> Place<'_> {
        Place::root(&self.root)
    }

    /// The fields that an object sets.
    ///
    /// # Errors
    /// Items of a set or map list that are there twice or lack their keys.
    pub(crate) fn fields(&self, object: &Value) -> Result<Set, WalkError> {
        walk::fields(object, Place::root(&self.root))
    }

    /// Whether an object has the types of the schema and only fields that it knows.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn check_types(&self, object: &Value) -> Result<(), WalkError> {
        walk::check_types(object, self.place())
    }

    /// What a write changes.
    pub(crate) fn changes(&self, old: &Value, new: &Value) -> Changes {
        let difference = walk::compare(old, new, Place::root(&self.root));
        let mut set = difference.added;
        set.add(&difference.modified);
        Changes {
            set,
            removed: difference.removed,
        }
    }

    /// The object with what is applied.
    ///
    /// # Errors
    /// As [`Self::fields`].
    pub(crate) fn merge(&self, live: &Value, applied: &Value) -> Result<Value, WalkError> {
        walk::merge(live, applied, Place::root(&self.root))
    }

    /// The object without what was applied `before` and is not `owned` any more.
    pub(crate) fn take_out(&self, object: &Value, before: &Set, owned: &Set) -> Value {
        let kept = walk::prune(object, before, Some(owned), Place::root(&self.root));
        kept.map_or(Value::Null, std::borrow::Cow::into_owned)
    }
}

#[cfg(test)]
mod tests;
