//! Discovery: `/api`, `/apis` and below, plain and aggregated.

use std::sync::Arc;

use bytes::Bytes;

use crate::resources::ResourceDef;

/// A finished document.
#[derive(Clone, Debug)]
pub struct Document {
    /// Value of the Content-Type header.
    pub content_type: String,
    /// Value of the ETag header, quotes included, if there is one.
    pub etag: Option<String>,
    /// The body.
    pub body: Bytes,
}

/// The document at `path` (`/api`, `/api/v1`, `/apis`, `/apis/G`, `/apis/G/V`), or `None`: not a discovery path, or no such group.
/// `server_address` is `host:port` for the answer of plain `/api`. The caller adds `Vary: Accept`.
pub fn document(_defs: &[Arc<ResourceDef>], _path: &str, _accept: &str, _server_address: &str) -> Option<Document> {
    None
}
