//! The generic REST verbs.
use std::sync::Arc;
use axum::{body::Body, response::IntoResponse as _};
use http::{Request, Response};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use tokio_util::sync::CancellationToken;
use crate::{admission::Admission, auth::{Authorizer, MastersOnly}, error::ApiError, store::Store};
/// End.
#[derive(Clone, Debug)]
pub(crate) struct EndOfService(pub(crate) CancellationToken);
pub(crate) struct Core { pub(crate) authorizer: Arc<dyn Authorizer> }
impl Core {
    pub(crate) async fn start(_store: Arc<dyn Store>, _admission: Arc<dyn Admission>, _crds: &[CustomResourceDefinition], _stop: CancellationToken) -> Result<Arc<Self>, (String, ApiError)> {
        Ok(Arc::new(Self { authorizer: Arc::new(MastersOnly) }))
    }
    pub(crate) async fn handle(&self, _r: Request<Body>) -> Response<Body> { ApiError::NoSuchPath.into_response() }
}
