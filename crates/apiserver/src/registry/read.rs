//! Get and list, and how objects are shown.

use axum::body::Body;
use http::{Response, StatusCode};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::registry::catalog::Scope;
use crate::registry::content::{self, View};
use crate::registry::history::PastError;
use crate::registry::list_options::{self, Continue};
use crate::registry::query::Call;
use crate::registry::{Core, meta, raw, store_error};
use crate::store::{Key, Query, Stored};
use crate::table;

/// How many records are read from the store at a time when a selector may drop most of them.
const CHUNK: usize = 500;

impl Core {
    /// One object, or `NotFound`.
    pub(crate) fn read(
        &self,
        scope: &Scope,
        namespace: &str,
        name: &str,
    ) -> Result<Stored, ApiError> {
        let key = Key::new(&scope.resource, namespace, name);
        let found = self.store.get(&key).map_err(|e| store_error(&e))?;
        found.ok_or_else(|| ApiError::NotFound(scope.target(name)))
    }

    pub(crate) fn get(&self, call: &Call, scope: &Scope) -> Result<Response<Body>, ApiError> {
        self.check_reached(list_options::revision(call)?)?;
        let stored = self.read(scope, &call.info.namespace_of(scope), &call.info.name)?;
        let object = scope.present(&stored)?;
        Ok(show(call, scope, StatusCode::OK, &object))
    }

    pub(crate) async fn list(
        &self,
        call: &Call,
        scope: &Scope,
    ) -> Result<Response<Body>, ApiError> {
        list_options::validate(call, false)?;
        if let Some(whole) = self.list_raw(call, scope)? {
            return Ok(whole);
        }
        let (items, list_meta) = self.list_objects(call, scope).await?;
        let body = match call.view {
            View::Table { version, include } => {
                let (name, now) = (&scope.version().name, Timestamp::now());
                table::render(
                    &scope.def,
                    name,
                    &items,
                    Value::Object(list_meta),
                    include,
                    version,
                    true,
                    now,
                )
            }
            View::Metadata => json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": list_meta,
                "items": items.iter().map(content::partial).collect::<Vec<_>>(),
            }),
            View::Plain => {
                let items: Vec<Value> = items
                    .into_iter()
                    .map(|item| without_kind(scope, item))
                    .collect();
                let mut list_meta = list_meta;
                if scope.def.crd {
                    list_meta.entry("continue").or_insert_with(|| json!(""));
                }
                json!({
                    "kind": scope.def.list_kind,
                    "apiVersion": scope.api_version(),
                    "metadata": list_meta,
                    "items": items,
                })
            }
        };
        Ok(content::answer(StatusCode::OK, &body, &call.warnings))
    }

    /// A list of everything, as it is stored; none where the request asks for more than that.
    fn list_raw(&self, call: &Call, scope: &Scope) -> Result<Option<Response<Body>>, ApiError> {
        let particular = [
            "limit",
            "continue",
            "resourceVersionMatch",
            "sendInitialEvents",
        ];
        let plain = matches!(call.query.get("resourceVersion"), "" | "0")
            && particular.iter().all(|p| call.query.get(p).is_empty());
        if call.view != View::Plain || !plain || !call.selector(scope)?.is_everything() {
            return Ok(None);
        }
        let query = Query {
            resource: scope.resource.clone(),
            namespace: call.list_namespace(scope.def.namespaced),
            after: None,
            limit: None,
        };
        let page = self.store.list(&query).map_err(|e| store_error(&e))?;
        let version = scope.api_version();
        let bytes: usize = page.items.iter().map(|stored| stored.value.len()).sum();
        let mut out = Vec::with_capacity(bytes + 64 * page.items.len() + 256);
        let mut list_meta = json!({"resourceVersion": page.revision.to_string()});
        if scope.def.crd {
            // Upstream's lists of custom resources say so even where nothing goes on.
            list_meta["continue"] = json!("");
        }
        let head = json!({
            "apiVersion": version,
            "kind": scope.def.list_kind,
            "metadata": list_meta,
        })
        .to_string();
        out.extend_from_slice(head.trim_end_matches('}').as_bytes());
        out.extend_from_slice(b"},\"items\":[");
        for (at, stored) in page.items.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            let shown = scope.shows_stored(stored.revision)
                && raw::append(&mut out, &stored.value, stored.revision, !scope.def.crd).is_ok();
            if !shown {
                let item = without_kind(scope, scope.present(stored)?);
                out.extend_from_slice(item.to_string().as_bytes());
            }
        }
        out.extend_from_slice(b"]}");
        Ok(Some(content::answer_text(
            StatusCode::OK,
            out.into(),
            &call.warnings,
        )))
    }

    /// The objects that a list or deletecollection is about, and the list's metadata.
    pub(crate) async fn list_objects(
        &self,
        call: &Call,
        scope: &Scope,
    ) -> Result<(Vec<Value>, Map<String, Value>), ApiError> {
        list_options::validate(call, false)?;
        let selector = call.selector(scope)?;
        let limit = call.query.limit()?;
        let start = match call.query.get("continue") {
            "" => None,
            token => Some(Continue::parse(token)?),
        };
        let asked = list_options::revision(call)
            .map_err(|e| ApiError::BadRequest(format!("invalid resource version: {e}")))?;
        if asked.is_some() && start.is_some() {
            return Err(ApiError::BadRequest(
                "specifying resource version is not allowed when using continue".into(),
            ));
        }
        self.check_reached(asked)?;
        let exact = call.query.get("resourceVersionMatch") == "Exact";
        let namespace = call.list_namespace(scope.def.namespaced);
        let mut after = start.as_ref().map(|token| token.key(&scope.resource));
        // The revision that all pages are of; none until the first is read.
        let mut revision = match &start {
            Some(token) => Some(token.rv).filter(|rv| *rv > 0),
            None => asked.filter(|_| exact),
        };
        let mut items: Vec<Value> = Vec::new();
        let mut list_meta = Map::new();
        loop {
            let query = Query {
                resource: scope.resource.clone(),
                namespace: namespace.clone(),
                after: after.take(),
                // Without a limit one snapshot has to hold all of it.
                limit: limit.map(|limit| {
                    (limit - items.len()).max(if selector.is_everything() { 1 } else { CHUNK })
                }),
            };
            let page = self
                .page(&query, revision)
                .await
                .map_err(|e| match (e, &start) {
                    (PastError::Api(e), _) => e,
                    (PastError::TooOld, Some(token)) => ApiError::ExpiredContinue {
                        token: token.inconsistent().token(),
                    },
                    (PastError::TooOld, None) => ApiError::Expired(
                        "The resourceVersion for the provided list is too old.".into(),
                    ),
                })?;
            revision.get_or_insert(page.revision);
            let mut more = page.more;
            let count = page.items.len();
            for (at, stored) in page.items.iter().enumerate() {
                let object = scope.present(stored)?;
                if selector.matches(&object) {
                    items.push(object);
                }
                after = Some(stored.key.clone());
                if limit.is_some_and(|limit| items.len() >= limit) {
                    more |= at + 1 < count;
                    break;
                }
            }
            let full = limit.is_some_and(|limit| items.len() >= limit);
            if !more {
                break;
            }
            if full {
                if let Some(last) = after {
                    let mut token = Continue {
                        rv: revision.unwrap_or_default(),
                        ns: last.namespace.clone(),
                        name: last.name.clone(),
                        left: None,
                    };
                    // Only where every object is meant can those that are left be counted without reading them.
                    if selector.is_everything() {
                        let known = start.as_ref().and_then(|token| token.left);
                        let left = match known {
                            Some(left) => left.saturating_sub(items.len()),
                            // Of the first page the objects are known, and to count all of a range costs nothing.
                            None if start.is_none() => {
                                let all = Query {
                                    after: None,
                                    ..query
                                };
                                let all = self.store.count(&all).map_err(|e| store_error(&e))?;
                                all.saturating_sub(items.len()).max(1)
                            }
                            None => self
                                .store
                                .count(&Query {
                                    after: Some(last),
                                    ..query
                                })
                                .map_err(|e| store_error(&e))?,
                        };
                        token.left = Some(left);
                        list_meta.insert("remainingItemCount".into(), json!(left));
                    }
                    list_meta.insert("continue".into(), json!(token.token()));
                }
                break;
            }
        }
        let revision = revision.unwrap_or_else(|| self.store.ring().head());
        list_meta.insert("resourceVersion".into(), json!(revision.to_string()));
        Ok((items, list_meta))
    }

    /// Refuses reads of a revision that has not been reached.
    fn check_reached(&self, asked: Option<u64>) -> Result<(), ApiError> {
        let current = self.store.ring().head();
        match asked.filter(|asked| *asked > current) {
            Some(asked) => Err(ApiError::FutureRevision { asked, current }),
            None => Ok(()),
        }
    }
}

/// Items of built-in lists carry no kind and version of their own, those of custom resources do; as upstream.
pub(crate) fn without_kind(scope: &Scope, mut item: Value) -> Value {
    if !scope.def.crd
        && let Some(map) = item.as_object_mut()
    {
        map.remove("kind");
        map.remove("apiVersion");
    }
    item
}

/// An answer of one object, in the view that the client asked for.
pub(crate) fn show(call: &Call, scope: &Scope, code: StatusCode, object: &Value) -> Response<Body> {
    let shown = match call.view {
        View::Plain => return content::answer(code, object, &call.warnings),
        View::Metadata => content::partial(object),
        View::Table { version, include } => {
            let list_meta = json!({"resourceVersion": meta::resource_version(object)});
            let name = &scope.version().name;
            table::render(
                &scope.def,
                name,
                [object],
                list_meta,
                include,
                version,
                true,
                Timestamp::now(),
            )
        }
    };
    content::answer(code, &shown, &call.warnings)
}
