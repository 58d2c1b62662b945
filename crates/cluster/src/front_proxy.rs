//! Who asks an aggregated API, and whether it may.
//!
//! The cluster's API server passes requests on. It proves itself by a client certificate of the authority in the ConfigMap
//! `extension-apiserver-authentication`, and says in headers, which that ConfigMap names, for whom it asks. The question
//! whether the user may goes back to it as a SubjectAccessReview, so the cluster's own rules hold.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Json;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use berth_api::refusal;
use berth_apiserver::auth::RequestInfo;
use futures::StreamExt as _;
use http::{HeaderMap, Method, StatusCode};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};

use crate::aggregated::only_describes;
use crate::serve::{Authorities, Peer};

/// Where a cluster says whom to believe.
const NAMESPACE: &str = "kube-system";
const CONFIG_MAP: &str = "extension-apiserver-authentication";

/// Which headers tell of the user, and who may set them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Headers {
    /// Common names of certificates; any if there is none.
    allowed: Vec<String>,
    user: Vec<String>,
    group: Vec<String>,
    extra: Vec<String>,
}

impl Headers {
    fn of(data: &BTreeMap<String, String>) -> Self {
        let list = |key: &str| -> Vec<String> {
            data.get(key)
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default()
        };
        Self {
            allowed: list("requestheader-allowed-names"),
            user: list("requestheader-username-headers"),
            group: list("requestheader-group-headers"),
            extra: list("requestheader-extra-headers-prefix"),
        }
    }

    fn user(&self, headers: &HeaderMap) -> Option<User> {
        let text = |name: &String| headers.get(name)?.to_str().ok();
        let name = self.user.iter().find_map(text).filter(|n| !n.is_empty())?;
        let mut user = User {
            name: name.to_owned(),
            ..User::default()
        };
        for header in &self.group {
            let values = headers.get_all(header).into_iter();
            let values = values.filter_map(|value| value.to_str().ok());
            user.groups.extend(values.map(str::to_owned));
        }
        for (name, value) in headers {
            // Names of headers have been made lower case on the way.
            let key = self.extra.iter().find_map(|prefix| {
                name.as_str()
                    .strip_prefix(prefix.to_ascii_lowercase().as_str())
            });
            if let (Some(key), Ok(value)) = (key, value.to_str()) {
                let values = user.extra.entry(unescaped(key)).or_default();
                values.push(value.to_owned());
            }
        }
        Some(user)
    }
}

/// The key of an extra field, which may hold what headers may not: percent-encoded then.
fn unescaped(key: &str) -> String {
    let mut out = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                out.push(byte);
                rest = &after[2..];
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| key.to_owned())
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct User {
    name: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

/// Lets requests of the cluster's API server in, for users who may.
pub struct FrontProxy {
    client: Client,
    authorities: Authorities,
    headers: RwLock<Headers>,
}

impl FrontProxy {
    /// Believes nobody until [`FrontProxy::follow`] has read whom to believe.
    #[must_use]
    pub fn new(client: Client) -> Arc<Self> {
        Arc::new(Self {
            client,
            authorities: Authorities::default(),
            headers: RwLock::default(),
        })
    }

    /// Follows the ConfigMap. Does not end by itself.
    pub async fn follow(&self) {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let only = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
        let mut maps = Box::pin(watcher(api, only).default_backoff().applied_objects());
        while let Some(map) = maps.next().await {
            match map {
                Ok(map) => self.take(&map.data.unwrap_or_default()),
                Err(error) => {
                    tracing::warn!(%error, "configmap {NAMESPACE}/{CONFIG_MAP}, will be tried again");
                }
            }
        }
    }

    fn take(&self, data: &BTreeMap<String, String>) {
        let Some(authority) = data.get("requestheader-client-ca-file") else {
            tracing::warn!(
                "configmap {NAMESPACE}/{CONFIG_MAP} has no requestheader-client-ca-file: the cluster aggregates no APIs, \
                 and consoles cannot be served"
            );
            return;
        };
        if let Err(why) = self.authorities.set(authority) {
            tracing::warn!(
                why,
                "requestheader-client-ca-file of configmap {NAMESPACE}/{CONFIG_MAP}"
            );
            return;
        }
        *self.headers.write().unwrap_or_else(PoisonError::into_inner) = Headers::of(data);
    }

    fn user(&self, peer: Option<&Peer>, headers: &HeaderMap) -> Option<User> {
        let name = self.authorities.name_of(peer?)?;
        let known = self.headers.read().unwrap_or_else(PoisonError::into_inner);
        if !known.allowed.is_empty() && !known.allowed.contains(&name) {
            return None;
        }
        known.user(headers)
    }

    /// Why a user may not do it; none if it may.
    async fn refusal(
        &self,
        user: User,
        info: RequestInfo,
        path: &str,
    ) -> Result<Option<String>, kube::Error> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let mut spec = SubjectAccessReviewSpec {
            user: Some(user.name),
            groups: Some(user.groups),
            extra: Some(user.extra),
            ..SubjectAccessReviewSpec::default()
        };
        if info.resource.is_empty() {
            spec.non_resource_attributes = Some(NonResourceAttributes {
                path: some(path),
                verb: some(&info.verb),
            });
        } else {
            spec.resource_attributes = Some(ResourceAttributes {
                group: some(&info.group),
                version: some(&info.version),
                namespace: some(&info.namespace),
                resource: some(&info.resource),
                subresource: some(info.first_subresource()),
                name: some(&info.name),
                verb: some(&info.verb),
                ..ResourceAttributes::default()
            });
        }
        let review = SubjectAccessReview {
            spec,
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let parameters = PostParams::default();
        let ask = || reviews.create(&parameters, &review);
        let answer = match ask().await {
            // An idle connection that the other end has closed; a question may be asked twice.
            Err(kube::Error::Service(_) | kube::Error::HyperError(_)) => ask().await?,
            answer => answer?,
        };
        let status = answer.status.unwrap_or_default();
        if status.allowed {
            return Ok(None);
        }
        let SubjectAccessReviewSpec { user, .. } = answer.spec;
        let on = [info.resource.as_str(), info.subresource.as_str()]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("/");
        let mut why = format!(
            "{on}.{} {:?} is forbidden: User {:?} cannot {} resource {on:?} in API group {:?} in the namespace {:?}",
            info.group,
            info.name,
            user.unwrap_or_default(),
            info.verb,
            info.group,
            info.namespace
        );
        if info.resource.is_empty() {
            why = format!("forbidden: cannot {} path {:?}", info.verb, path);
        }
        if let Some(reason) = status.reason.filter(|reason| !reason.is_empty()) {
            why = format!("{why}: {reason}");
        }
        Ok(Some(why))
    }
}

/// Middleware: goes on with a request whose user may do what it asks for.
pub async fn guard(State(proxy): State<Arc<FrontProxy>>, request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if reads && only_describes(request.uri().path()) {
        return next.run(request).await;
    }
    let peer = request.extensions().get::<Peer>();
    let Some(user) = proxy.user(peer, request.headers()) else {
        return refused(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized");
    };
    let info = RequestInfo::parse(request.method(), request.uri());
    let path = request.uri().path().to_owned();
    match proxy.refusal(user, info, &path).await {
        Ok(None) => next.run(request).await,
        Ok(Some(why)) => refused(StatusCode::FORBIDDEN, "Forbidden", &why),
        Err(error) => {
            tracing::warn!(%error, "nobody says whether a user may");
            let why = "the API server does not say whether this is allowed";
            refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", why)
        }
    }
}

fn refused(code: StatusCode, reason: &str, message: &str) -> Response {
    let status = refusal::status(code.as_u16(), reason, message);
    (code, Json(status)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers() -> Headers {
        let data = [
            ("requestheader-allowed-names", r#"["front-proxy"]"#),
            ("requestheader-username-headers", r#"["X-Remote-User"]"#),
            ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
            (
                "requestheader-extra-headers-prefix",
                r#"["X-Remote-Extra-"]"#,
            ),
        ];
        Headers::of(&data.map(|(k, v)| (k.to_owned(), v.to_owned())).into())
    }

    #[test]
    fn the_user_is_in_the_headers() {
        let mut map = HeaderMap::new();
        assert_eq!(headers().user(&map), None);
        map.insert("x-remote-user", "eve".parse().unwrap());
        map.append("x-remote-group", "night".parse().unwrap());
        map.append("x-remote-group", "system:authenticated".parse().unwrap());
        map.append("x-remote-extra-example.org%2fclass", "a".parse().unwrap());
        map.append("x-remote-extra-example.org%2fclass", "b".parse().unwrap());
        map.append("x-other", "c".parse().unwrap());
        let user = headers().user(&map).unwrap();
        assert_eq!(user.name, "eve");
        assert_eq!(user.groups, ["night", "system:authenticated"]);
        let extra =
            BTreeMap::from([("example.org/class".to_owned(), vec!["a".into(), "b".into()])]);
        assert_eq!(user.extra, extra);
        // A name that is empty is none.
        map.insert("x-remote-user", "".parse().unwrap());
        assert_eq!(headers().user(&map), None);
    }

    #[test]
    fn keys_that_are_not_encoded_stay() {
        for key in ["plain", "%", "%2", "%zz", "100%é"] {
            assert_eq!(unescaped(key), key);
        }
    }
}
