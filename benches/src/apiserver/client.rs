//! The least client that can ask both servers: one HTTP/1.1 connection over TLS, bodies as bytes, nothing decoded that
//! need not be. What it costs is the same for either server, so it must be little.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::net::TcpStream;

/// Where a server is and how one gets in.
#[derive(Clone)]
pub(crate) struct Address {
    host: String,
    port: u16,
    tls: Arc<rustls::ClientConfig>,
}

impl Address {
    /// From a kubeconfig.
    pub(crate) async fn read(kubeconfig: &Path) -> anyhow::Result<Self> {
        let options = KubeConfigOptions::default();
        let config =
            kube::Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &options)
                .await?;
        let mut tls = config.rustls_client_config()?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            host: config
                .cluster_url
                .host()
                .context("no host in the kubeconfig")?
                .to_owned(),
            port: config.cluster_url.port_u16().unwrap_or(443),
            tls: Arc::new(tls),
        })
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let name = rustls::pki_types::ServerName::try_from(self.host.clone())?;
        let stream = tokio_rustls::TlsConnector::from(self.tls.clone())
            .connect(name, stream)
            .await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // How it ends is seen by the requests on it.
            let _ = connection.await;
        });
        Ok(Client {
            sender,
            host: format!("{}:{}", self.host, self.port),
        })
    }
}

/// One connection.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Client {
    /// Sends a request; the body is still to be read.
    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<http::Response<Incoming>> {
        self.send_as(method, path, "application/json", body).await
    }

    /// The same with another media type.
    pub(crate) async fn send_as(
        &mut self,
        method: &str,
        path: &str,
        media: &str,
        body: Bytes,
    ) -> anyhow::Result<http::Response<Incoming>> {
        self.sender.ready().await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host)
            .header("accept", "application/json")
            .header("content-type", media)
            .header("user-agent", "berth-bench")
            .body(Full::new(body))?;
        Ok(self.sender.send_request(request).await?)
    }

    /// A request and the whole answer, whatever its code.
    pub(crate) async fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let answer = self.send(method, path, body.into()).await?;
        let code = answer.status();
        Ok((code, answer.into_body().collect().await?.to_bytes()))
    }

    /// The same; a code that is not 2xx is an error.
    pub(crate) async fn ok(
        &mut self,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Bytes> {
        let (code, answer) = self.ask(method, path, body).await?;
        ensure!(
            code.is_success(),
            "{method} {path}: {code}: {}",
            String::from_utf8_lossy(&answer)
        );
        Ok(answer)
    }
}
