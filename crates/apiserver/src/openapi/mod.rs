//! `/openapi/v3` (an index and one document a group version) and `/openapi/v2` (one document, JSON or protobuf).
//!
//! Documents are made when they are asked for and not kept: they are megabytes, clients cache them by hash, and the server
//! should be small when nobody asks. Clients that matter here: `kubectl explain` and `kubectl apply` of 1.27 and newer read v3
//! (whether PATCH takes `fieldValidation`, the fields of a kind), older ones read the protobuf form of v2 and validate by it.

use std::sync::Arc;

use crate::discovery::Document;
use crate::resources::ResourceDef;

mod gnostic;
mod paths;
mod v2;
mod v3;

/// The document at `path` (`/openapi/v2`, `/openapi/v3`, `/openapi/v3/api/v1`, `/openapi/v3/apis/G/V`), or `None` if there is none.
/// Computed for each call and not kept: clients cache by the hash in the index and the ETag.
pub fn document(defs: &[Arc<ResourceDef>], path: &str, accept: &str) -> Option<Document> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    match parts.as_slice() {
        ["openapi", "v2"] => Some(v2::document(defs, accept)),
        ["openapi", "v3"] => Some(v3::index(defs)),
        ["openapi", "v3", "api", version] => v3::document(defs, "", version),
        ["openapi", "v3", "apis", group, version] => v3::document(defs, group, version),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
