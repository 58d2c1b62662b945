//! What berth accepts, what it changes on the way in, what it refuses, and the words of the refusal.
//!
//! [`admit`] is a pure function of one write. The embedded API server calls it in process; on a cluster a webhook
//! server does. It works in this order:
//!
//! 1. `legacy`: fields of old API versions become their successors, each with a warning;
//! 2. `fields`: every field that the published schema does not describe is refused by its path, all of them at
//!    once, and so is a value of the wrong type;
//! 3. `defaults`: what the manifest leaves open is filled in. Filling in is idempotent;
//! 4. `validate`: the rules that a schema cannot say.
//!
//! A VirtualMachine may change at any time. Its template is checked as the instance that would be made of it, and stored as
//! it was given: defaults are the instance's, so that a manifest that is applied again is never a change.
//!
//! A VirtualMachineInstance cannot change once it exists: an update may touch its metadata and status only. The
//! same manifest applied again is no change, because the new spec goes through the same steps before the two are
//! compared.

mod cause;
mod datavolume;
mod defaults;
mod fields;
mod instance;
mod legacy;
mod machine;
mod syntax;
mod validate;

use serde_json::Value;

pub use cause::{Cause, CauseReason, Refusal};
pub use syntax::is_dns_label;

/// What is being done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// A change of an object that exists, or of one of its subresources.
    Update,
    /// Its deletion.
    Delete,
}

/// One write.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What is being done.
    pub operation: Operation,
    /// Kind of the object, in any version of its group.
    pub kind: &'a str,
    /// For example `status`; none for the object itself.
    pub subresource: Option<&'a str>,
    /// Namespace of the object.
    pub namespace: &'a str,
    /// Name of the object; empty while the API server has still to generate it.
    pub name: &'a str,
    /// The object as it would be stored; none for a deletion.
    pub object: Option<&'a Value>,
    /// The object as it is stored; none for a creation.
    pub old_object: Option<&'a Value>,
}

/// The write may go on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Admitted {
    /// The object to store; none for a deletion.
    pub object: Option<Value>,
    /// Sentences for the user, each naming a field.
    pub warnings: Vec<String>,
}

/// Decides on one write.
///
/// Kinds that berth does not know, subresources and deletions are admitted unchanged.
///
/// # Errors
/// Every cause for which the object is refused, not only the first.
pub fn admit(request: &Request<'_>) -> Result<Admitted, Refusal> {
    let unchanged = || Admitted {
        object: request.object.cloned(),
        warnings: Vec::new(),
    };
    match (request.kind, request.subresource, request.object) {
        ("VirtualMachine", None, Some(object)) => match request.operation {
            Operation::Delete => Ok(unchanged()),
            Operation::Create | Operation::Update => {
                machine::admit(request.namespace, request.name, object, request.old_object)
            }
        },
        ("VirtualMachineInstance", None, Some(object)) => {
            match (request.operation, request.old_object) {
                (Operation::Create, _) => {
                    instance::admit_create(request.namespace, request.name, object)
                }
                (Operation::Update, Some(old)) => {
                    instance::admit_update(request.namespace, request.name, object, old)
                }
                (Operation::Update, None) | (Operation::Delete, _) => Ok(unchanged()),
            }
        }
        ("DataVolume", None, Some(object)) if request.operation != Operation::Delete => {
            datavolume::admit(request.namespace, object, request.old_object)
        }
        _ => Ok(unchanged()),
    }
}
