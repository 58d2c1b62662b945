//! The REST verbs, the same for every resource.
//!
//! A request is parsed to a [`RequestInfo`], its resource is found in the catalog, and one generic verb does the rest.
//! What is particular to a few resources (namespaces, pods, definitions, secrets) is in `policy`, as answers to
//! questions that the verbs ask of every resource.

pub(crate) mod access;
pub(crate) mod accounts;
pub(crate) mod apply;
pub(crate) mod binding;
pub(crate) mod bootstrap;
pub(crate) mod catalog;
pub(crate) mod content;
pub(crate) mod decode;
pub(crate) mod defaults;
pub(crate) mod delete;
pub(crate) mod delete_options;
pub(crate) mod history;
pub(crate) mod label_selector;
pub(crate) mod list_options;
pub(crate) mod managers;
pub(crate) mod meta;
pub(crate) mod metadata;
pub(crate) mod namespaces;
pub(crate) mod pods;
pub(crate) mod policy;
pub(crate) mod protobuf;
pub(crate) mod query;
pub(crate) mod raw;
pub(crate) mod read;
pub(crate) mod reaper;
pub(crate) mod reviews;
pub(crate) mod rights;
pub(crate) mod rules;
pub(crate) mod scale;
pub(crate) mod selector;
pub(crate) mod tend;
pub(crate) mod tokens;
pub(crate) mod update;
pub(crate) mod write;

use std::sync::Arc;

use axum::body::Body;
use axum::response::IntoResponse as _;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::auth::rbac::Rbac;
use crate::auth::tokens::TokenKey;
use crate::auth::{RequestInfo, UserInfo};
use crate::discovery::Document;
use crate::error::{ApiError, Target};
use crate::registry::catalog::{Catalog, Scope, Snapshot};
use crate::registry::query::Call;
use crate::resources::ResourceDef;
use crate::store::{Query, Store, StoreError};
use crate::{backup, discovery, openapi, resources};

/// In a request's extensions: cancelled when the server that carries the connection stops.
#[derive(Clone, Debug)]
pub(crate) struct EndOfService(pub(crate) CancellationToken);

/// Everything behind the front door.
pub(crate) struct Core {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) admission: Arc<dyn Admission>,
    pub(crate) rbac: Rbac,
    /// Signs and checks the tokens of service accounts.
    pub(crate) tokens: TokenKey,
    /// The authority's certificate, for those who shall trust this server.
    pub(crate) ca: String,
    pub(crate) catalog: Catalog,
    /// Held shared from the check that a namespace or definition takes new objects until they are stored, and
    /// alone while one is marked as terminating: so nothing is added behind the back of the removal.
    pub(crate) gate: tokio::sync::RwLock<()>,
    /// Serialises changes of definitions with the reload of the catalog that follows each.
    pub(crate) reload: tokio::sync::Mutex<()>,
    pub(crate) quotas: crate::quota::Quotas,
    pub(crate) homes: policy::Homes,
    /// Host and port for clients that ask plain `/api`.
    address: String,
}

/// What the server vouches with, and for whom.
pub(crate) struct Identity {
    pub(crate) tokens: TokenKey,
    /// The authority's certificate.
    pub(crate) ca: String,
    /// Roles and bindings that are ensured.
    pub(crate) objects: Vec<Value>,
    /// Whether to do what a cluster's controller manager does, too.
    pub(crate) controllers: bool,
}

impl Core {
    /// Loads the catalog, ensures namespaces and definitions, starts the background work until `stop`.
    pub(crate) async fn start(
        store: Arc<dyn Store>,
        admission: Arc<dyn Admission>,
        address: String,
        crds: &[CustomResourceDefinition],
        identity: Identity,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, (String, ApiError)> {
        let core = Arc::new(Self {
            rbac: Rbac::new(store.clone()),
            tokens: identity.tokens,
            ca: identity.ca,
            store,
            admission,
            catalog: Catalog::default(),
            gate: tokio::sync::RwLock::default(),
            reload: tokio::sync::Mutex::default(),
            quotas: crate::quota::Quotas::default(),
            homes: policy::Homes::default(),
            address,
        });
        core.reload_catalog()
            .map_err(|e| ("the catalog".to_owned(), e))?;
        for name in policy::DEFAULT_NAMESPACES {
            core.ensure_namespace(name)
                .await
                .map_err(|e| (format!("namespace {name}"), e))?;
        }
        for crd in crds {
            let name = crd.metadata.name.clone().unwrap_or_default();
            core.ensure_definition(crd)
                .await
                .map_err(|e| (format!("definition {name}"), e))?;
        }
        core.ensure_access(&identity.objects).await?;
        tokio::spawn(reaper::run(core.clone(), stop.clone()));
        tokio::spawn(bootstrap::run(core.clone(), stop.clone()));
        if identity.controllers {
            core.settle_namespaces()
                .await
                .map_err(|e| ("service accounts".to_owned(), e))?;
            tokio::spawn(accounts::run(core.clone(), stop.clone()));
            tokio::spawn(crate::gc::run(core.clone(), stop.clone()));
            tokio::spawn(crate::quota::run(core.clone(), stop));
        }
        Ok(core)
    }

    /// Reads the definitions anew. Those that cannot be served are left out, with a line in the log.
    pub(crate) fn reload_catalog(&self) -> Result<(), ApiError> {
        let mut defs: Vec<Arc<ResourceDef>> =
            resources::builtin().into_iter().map(Arc::new).collect();
        let query = Query {
            resource: policy::DEFINITIONS.into(),
            namespace: None,
            after: None,
            limit: None,
        };
        for stored in self.store.list(&query).map_err(|e| store_error(&e))?.items {
            let crd: Value = serde_json::from_slice(&stored.value).map_err(|e| {
                ApiError::Internal(format!("definition {} is damaged: {e}", stored.key.name))
            })?;
            if !policy::is_established(&crd) {
                continue;
            }
            match ResourceDef::from_crd(&crd) {
                Ok(mut def) => {
                    def.since = stored.revision;
                    defs.push(Arc::new(def));
                }
                Err(errors) => tracing::error!(
                    "definition {} cannot be served: {errors:?}",
                    stored.key.name
                ),
            }
        }
        self.catalog.set(Snapshot::new(defs));
        Ok(())
    }

    /// Answers any request; its user is in the extensions.
    pub(crate) async fn handle(self: &Arc<Self>, request: Request<Body>) -> Response<Body> {
        let head = *request.method() == Method::HEAD;
        let response = self
            .route(request)
            .await
            .unwrap_or_else(ApiError::into_response);
        if head {
            response.map(|_| Body::empty())
        } else {
            response
        }
    }

    async fn route(self: &Arc<Self>, request: Request<Body>) -> Result<Response<Body>, ApiError> {
        let info = RequestInfo::parse(request.method(), request.uri());
        if info.path == backup::PATH && *request.method() == Method::GET {
            let user = request.extensions().get::<UserInfo>();
            return backup::answer(&*self.store, user.ok_or(ApiError::Unauthorized)?);
        }
        if !info.is_resource {
            return self.document(&info, request.headers());
        }
        let (parts, body) = request.into_parts();
        let user = parts
            .extensions
            .get::<UserInfo>()
            .cloned()
            .ok_or(ApiError::Unauthorized)?;
        let end = parts
            .extensions
            .get::<EndOfService>()
            .map(|end| end.0.clone());
        let snapshot = self.catalog.get();
        let unknown = || snapshot.unknown_path(&info.group, &info.version);
        let def = snapshot
            .find(&info.group, &info.resource)
            .ok_or_else(unknown)?;
        let scope = Scope::new(def, &info.version).ok_or_else(unknown)?;
        // Objects of a namespace are reached through it; cluster-scoped ones never are.
        let in_namespace = !info.namespace.is_empty() && scope.policy != policy::Policy::Namespace;
        if in_namespace && !def.namespaced
            || (def.namespaced && !in_namespace && !info.name.is_empty())
        {
            return Err(unknown());
        }
        let mut call = Call::new(info, user, &parts.uri, parts.headers, end)?;
        call.warnings
            .extend(scope.version().deprecation_warning.clone());

        if def.is_review() {
            return self.review(&call, &scope, &parts.method, body).await;
        }

        let sub = call.info.subresource.clone();
        match (
            parts.method.as_str(),
            call.info.name.is_empty(),
            sub.as_str(),
        ) {
            // The path of one object knows no watch; a field selector for its name does.
            ("GET" | "HEAD", true, "") if call.query.flag("watch") => {
                crate::watch::start(self, &call, &scope)
            }
            ("GET" | "HEAD", true, "") => self.list(&call, &scope).await,
            ("GET" | "HEAD", false, "") => self.get(&call, &scope),
            ("GET" | "HEAD", false, "status") if scope.version().status => self.get(&call, &scope),
            ("POST", true, "") if def.namespaced && !in_namespace => Err(if def.crd {
                ApiError::PageNotFound
            } else {
                ApiError::MethodNotAllowed
            }),
            // Upstream's server of custom resources looks at the verb only.
            ("POST", false, "") if def.crd => self.create(&mut call, &scope, body).await,
            ("PUT" | "PATCH", true, "") if def.crd => {
                Err(ApiError::BadRequest("name must be provided".into()))
            }
            ("POST", true, "") => self.create(&mut call, &scope, body).await,
            ("PUT", false, "") => self.replace(&mut call, &scope, body).await,
            ("PUT", false, "status") if scope.version().status => {
                self.replace(&mut call, &scope, body).await
            }
            ("PATCH", false, "") => self.patch(&mut call, &scope, body).await,
            ("PATCH", false, "status") if scope.version().status => {
                self.patch(&mut call, &scope, body).await
            }
            ("DELETE", false, "") => self.delete(&mut call, &scope, body).await,
            ("DELETE", true, "") => self.delete_collection(&mut call, &scope, body).await,
            ("GET" | "HEAD" | "PUT" | "PATCH", false, "scale") if scope.version().scale => {
                self.scale(&mut call, &scope, &parts.method, body).await
            }
            ("PUT", false, "finalize") if scope.policy == policy::Policy::Namespace => {
                self.finalize(&mut call, &scope, body).await
            }
            ("POST", false, "binding") if scope.policy == policy::Policy::Pod => {
                self.bind(&mut call, &scope, body).await
            }
            ("POST", false, "token") if &*scope.resource == "/serviceaccounts" => {
                self.request_token(&mut call, &scope, body).await
            }
            (method, false, "status") if def.crd && scope.version().status => {
                Err(ApiError::NotSupported {
                    target: scope.target(""),
                    verb: if method == "DELETE" {
                        "delete"
                    } else {
                        "create"
                    },
                })
            }
            (_, _, "" | "status") if sub.is_empty() || scope.version().status => {
                Err(ApiError::MethodNotAllowed)
            }
            ("GET" | "HEAD" | "PUT" | "PATCH" | "DELETE", false, "token")
                if &*scope.resource == "/serviceaccounts" =>
            {
                Err(ApiError::MethodNotAllowed)
            }
            _ if def.crd => Err(ApiError::NotFound(scope.target(&call.info.name))),
            _ => Err(ApiError::NoSuchPath),
        }
    }

    /// Paths that are not about objects.
    fn document(
        &self,
        info: &RequestInfo,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, ApiError> {
        if !matches!(info.verb.as_str(), "get" | "head") {
            return Err(ApiError::MethodNotAllowed);
        }
        let path = match info.path.trim_end_matches('/') {
            "" => "/",
            path => path,
        };
        match path {
            "/livez" | "/readyz" | "/healthz" => return Ok("ok".into_response()),
            "/version" => return Ok(content::answer(StatusCode::OK, &version(), &[])),
            "/.well-known/openid-configuration" => {
                let document = crate::auth::tokens::discovery(&self.address);
                return Ok(content::answer(StatusCode::OK, &document, &[]));
            }
            "/openid/v1/jwks" => {
                return Ok(issuer_keys(&self.tokens));
            }
            _ => {}
        }
        let accept = content::accept(headers);
        let snapshot = self.catalog.get();
        if path == "/" {
            return Ok(content::answer(StatusCode::OK, &self.paths(&snapshot), &[]));
        }
        let document = if path.starts_with("/openapi") {
            openapi::document(&snapshot.defs, path, &accept)
        } else {
            discovery::document(&snapshot.defs, path, &accept, &self.address)
        };
        document
            .map(|document| send(document, headers))
            .ok_or(ApiError::PageNotFound)
    }

    fn paths(&self, snapshot: &Snapshot) -> Value {
        let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
        for def in snapshot.defs.iter().filter(|def| !def.group.is_empty()) {
            for version in def.versions.iter().filter(|v| v.served) {
                paths.push(format!("/apis/{}", def.group));
                paths.push(format!("/apis/{}/{}", def.group, version.name));
            }
        }
        paths.extend(
            [
                "/.well-known/openid-configuration",
                "/healthz",
                "/livez",
                "/openid/v1/jwks",
                "/openapi/v2",
                "/openapi/v3",
                "/readyz",
                "/version",
            ]
            .map(str::to_owned),
        );
        paths.sort();
        paths.dedup();
        json!({ "paths": paths })
    }
}

/// The keys that tokens can be checked with, in their own media type.
fn issuer_keys(tokens: &TokenKey) -> Response<Body> {
    let mut response = content::answer(StatusCode::OK, &tokens.jwks(), &[]);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/jwk-set+json"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=3600"),
    );
    response
}

/// The Kubernetes release whose API this server follows.
fn version() -> Value {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "major": "1",
        "minor": "34",
        "gitVersion": concat!("v1.34.0+berth.", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{arch}"),
    })
}

fn send(document: Document, headers: &HeaderMap) -> Response<Body> {
    let unchanged = document.etag.as_ref().is_some_and(|etag| {
        headers
            .get(header::IF_NONE_MATCH)
            .and_then(|v| v.to_str().ok())
            .is_some_and(|v| v.split(',').any(|t| t.trim() == etag))
    });
    let mut response = if unchanged {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let mut response = Response::new(Body::from(document.body));
        if let Ok(value) = HeaderValue::from_str(&document.content_type) {
            response.headers_mut().insert(header::CONTENT_TYPE, value);
        }
        response
    };
    let out = response.headers_mut();
    out.insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Some(value) = document
        .etag
        .as_deref()
        .and_then(|etag| HeaderValue::from_str(etag).ok())
    {
        out.insert(header::ETAG, value);
    }
    response
}

/// A failure of the store that is not about the request.
pub(crate) fn store_error(error: &StoreError) -> ApiError {
    match error {
        StoreError::Closed => ApiError::Unavailable("the server is shutting down".into()),
        other => {
            let cause = std::error::Error::source(other)
                .map(|s| format!(": {s}"))
                .unwrap_or_default();
            ApiError::Internal(format!("{other}{cause}"))
        }
    }
}

impl RequestInfo {
    /// The namespace part of the key of the object that the request names: a namespace itself has none.
    pub(crate) fn namespace_of(&self, scope: &Scope) -> String {
        if scope.def.namespaced {
            self.namespace.clone()
        } else {
            String::new()
        }
    }
}

/// Success without an object to show.
pub(crate) fn success(target: &Target, uid: &str) -> Value {
    let mut details = json!({"name": target.name, "kind": target.resource});
    if !target.group.is_empty() {
        details["group"] = json!(target.group);
    }
    if !uid.is_empty() {
        details["uid"] = json!(uid);
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
