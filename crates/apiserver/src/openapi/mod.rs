//! `/openapi/v3` and `/openapi/v2`.

use std::sync::Arc;

use crate::discovery::Document;
use crate::resources::ResourceDef;

/// The document at `path` (`/openapi/v2`, `/openapi/v3`, `/openapi/v3/api/v1`, `/openapi/v3/apis/G/V`), or `None` if there is none.
/// Computed for each call and not kept: clients cache by the hash in the index and the ETag.
pub fn document(_defs: &[Arc<ResourceDef>], _path: &str, _accept: &str) -> Option<Document> {
    None
}
