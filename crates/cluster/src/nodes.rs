//! The way from the controller to the node agents: to the devices of guests.
//!
//! Both ends have certificates that the controller makes ([`crate::certificates`]): a node agent answers nobody but the
//! controller, and the controller asks nobody but node agents.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use berth_subresources::{Device, Guests, Launcher, Order, Port, remote};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::manifests::{NODE, NODE_PORT};
use crate::serve::{Authorities, Peer};

/// For a connection and its handshake.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the controller shows itself to node agents, and knows them.
#[derive(Default)]
pub struct Link(RwLock<Option<Arc<ClientConfig>>>);

impl Link {
    pub(crate) fn set(&self, config: ClientConfig) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(config));
    }

    fn config(&self) -> Option<Arc<ClientConfig>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Guests on all nodes, by way of their agents.
pub struct RemoteGuests {
    /// To find the node agents.
    pub client: Client,
    /// Where they run.
    pub namespace: String,
    /// How they are spoken to.
    pub link: Arc<Link>,
}

impl RemoteGuests {
    /// The address of a node's agent.
    async fn agent(&self, node: &str) -> Result<IpAddr, String> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let of_node = ListParams::default()
            .labels(&format!("app.kubernetes.io/name={NODE}"))
            .fields(&format!("spec.nodeName={node}"));
        let pods = api
            .list(&of_node)
            .await
            .map_err(|e| format!("the agent of node {node} cannot be looked up: {e}"))?;
        pods.items
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .find_map(|pod| pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok())
            .ok_or_else(|| format!("no node agent runs on node {node}"))
    }

    /// A connection to the agent of a launcher's node.
    async fn connect(&self, of: Launcher<'_>) -> Result<TlsStream<TcpStream>, String> {
        let config = self.link.config().ok_or("there is no certificate yet")?;
        let address = self.agent(of.node).await?;
        let unreached = |why: String| format!("the agent of node {} at {address}: {why}", of.node);
        let connecting = async {
            let stream = TcpStream::connect((address, NODE_PORT)).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(NODE).map_err(std::io::Error::other)?;
            TlsConnector::from(config).connect(name, stream).await
        };
        tokio::time::timeout(PATIENCE, connecting)
            .await
            .map_err(|_| unreached("no answer".into()))?
            .map_err(|e| unreached(e.to_string()))
    }
}

impl Guests for RemoteGuests {
    fn open<'a>(
        &'a self,
        of: Launcher<'a>,
        port: Port,
    ) -> BoxFuture<'a, Result<Box<dyn Device>, String>> {
        async move { remote::open_over(self.connect(of).await?, of.pod, port).await }.boxed()
    }

    fn order<'a>(
        &'a self,
        of: Launcher<'a>,
        order: &'a Order,
    ) -> BoxFuture<'a, Result<Value, String>> {
        async move { remote::order_over(self.connect(of).await?, of.pod, order).await }.boxed()
    }
}

/// Middleware of a node agent: goes on with requests of the controller.
pub async fn guard(
    State(authorities): State<Arc<Authorities>>,
    request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Peer>();
    match peer.and_then(|peer| authorities.name_of(peer)) {
        Some(_) => next.run(request).await,
        None => (StatusCode::UNAUTHORIZED, "Unauthorized").into_response(),
    }
}
