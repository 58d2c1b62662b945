//! The aggregated API: what the cluster's API server passes on for the group `subresources.kubevirt.io`.

use std::sync::Arc;

use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use berth_apiserver::discovery;
use berth_subresources::Guests;
use http::{HeaderMap, header};
use kube::Client;
use serde_json::json;

use crate::front_proxy::{self, FrontProxy};

/// The group for users who may, and the documents that API servers ask every aggregated API for.
pub fn router(proxy: Arc<FrontProxy>, client: Client, guests: Arc<dyn Guests>) -> Router {
    // Subresources have no schemas to tell of.
    let v2 = json!({"swagger": "2.0", "info": {"title": "berth", "version": "v1"}, "paths": {}});
    let v3 = json!({"paths": {}});
    berth_subresources::router(client, guests)
        .route("/apis", get(async |headers: HeaderMap| groups(&headers)))
        .route("/openapi/v2", get(async || Json(v2)))
        .route("/openapi/v3", get(async || Json(v3)))
        .layer(middleware::from_fn_with_state(proxy, front_proxy::guard))
}

/// Aggregated discovery where it is asked for. An API server that gets none takes the group for stale, and controllers that
/// have to know every resource, such as the one that empties namespaces, wait for it.
fn groups(headers: &HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok());
    let Some(version) = discovery::aggregated(accept.unwrap_or_default()) else {
        let groups = [berth_subresources::group()];
        let list = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups});
        return Json(list).into_response();
    };
    let list = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": [berth_subresources::group_discovery()],
    });
    let media =
        format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    ([(header::CONTENT_TYPE, media)], list.to_string()).into_response()
}

/// Whether a path only tells what there is: for everybody, as the API server asks for it in nobody's name.
pub(crate) fn only_describes(path: &str) -> bool {
    match path.trim_matches('/').split('/').collect::<Vec<_>>()[..] {
        ["apis"] | ["openapi", _] => true,
        ["apis", group] | ["apis", group, _] => group == berth_subresources::GROUP,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_for_everybody_and_nothing_else_is() {
        let group = berth_subresources::GROUP;
        for path in ["/apis", "/openapi/v2", "/openapi/v3"] {
            assert!(only_describes(path), "{path}");
        }
        assert!(only_describes(&format!("/apis/{group}")));
        assert!(only_describes(&format!("/apis/{group}/v1")));
        for path in ["/", "", "/openapi", "/apis/other", "/mutate"] {
            assert!(!only_describes(path), "{path}");
        }
        let console = "namespaces/lab/virtualmachineinstances/vm/console";
        assert!(!only_describes(&format!("/apis/{group}/v1/{console}")));
    }

    #[test]
    fn discovery_is_aggregated_for_those_who_ask() {
        let mut headers = HeaderMap::new();
        let kind = |headers: &HeaderMap| groups(headers).headers()[header::CONTENT_TYPE].clone();
        assert_eq!(kind(&headers), "application/json");
        let wanted = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        headers.insert(
            header::ACCEPT,
            format!("{wanted},application/json").parse().unwrap(),
        );
        assert_eq!(kind(&headers), wanted);
    }
}
