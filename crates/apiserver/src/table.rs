//! The server-side Table: what `kubectl get` prints.

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::resources::ResourceDef;

/// How much of each object a row carries (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Object metadata as a PartialObjectMetadata.
    #[default]
    Metadata,
    /// Nothing.
    None,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// Parses the query parameter; `None` if it has another value.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// The Table version that the Accept header asks for before plain JSON (`v1` or `v1beta1`), if any.
pub fn requested(_accept: &str) -> Option<&'static str> {
    None
}

/// A Table (`meta.k8s.io/<table_version>`) of `objects`. `list_meta` is the list's metadata (resourceVersion, continue …) or, for a
/// single object, its resourceVersion. `headers` false leaves the column definitions out: rows of a watch after the first event.
pub fn render<'a>(
    _def: &ResourceDef,
    _version: &str,
    _objects: impl IntoIterator<Item = &'a Value>,
    _list_meta: Value,
    _include: IncludeObject,
    _table_version: &str,
    _headers: bool,
    _now: Timestamp,
) -> Value {
    Value::Null
}
