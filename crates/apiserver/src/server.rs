//! Opening the API server, its HTTPS accept loop, and the client that needs no socket.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::IntoResponse as _;
use http::header::{HeaderValue, USER_AGENT};
use http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt as _;

use crate::admission::Admission;
use crate::auth::pki::{self, Pki, PkiError};
use crate::auth::{Decision, RequestInfo, UserInfo, kubeconfig};
use crate::error::{ApiError, Target};
use crate::registry::{Core, EndOfService};
use crate::store::StoreError;
use crate::store::durable::RedbStore;

/// Longest time for a TLS handshake: a peer that stalls holds no task for longer.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long open requests may go on after shutdown began.
const DRAIN: Duration = Duration::from_secs(5);
/// Paths that need no credentials.
const PUBLIC: [&str; 4] = ["/livez", "/readyz", "/healthz", "/version"];

/// What an API server is made of.
pub struct Options {
    /// Holds `apiserver/store.redb` and `pki/`.
    pub data_dir: PathBuf,
    /// Where it will listen; its address is among the names of the server certificate.
    pub listen: SocketAddr,
    /// Further names and addresses for the server certificate.
    pub server_names: Vec<String>,
    /// Decides on writes.
    pub admission: Arc<dyn Admission>,
    /// Definitions that are created or updated at start.
    pub crds: Vec<CustomResourceDefinition>,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store.
    #[error("cannot open the object store {path}")]
    Store {
        /// Where.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// The certificates.
    #[error("cannot prepare the certificates")]
    Pki(#[from] PkiError),
    /// TLS refuses its configuration.
    #[error("cannot configure TLS")]
    Tls(#[source] rustls::Error),
    /// The client verifier cannot be made of our own authority.
    #[error("cannot verify client certificates: {0}")]
    Verifier(String),
    /// A namespace or definition that is ensured at start is refused.
    #[error("cannot ensure {what}")]
    Ensure {
        /// Which.
        what: String,
        /// Why.
        source: Box<ApiError>,
    },
}

/// Why serving ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listening socket failed.
    #[error("cannot accept connections")]
    Accept(#[source] std::io::Error),
}

/// Why the kubeconfig could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub struct KubeconfigError {
    /// Where.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

/// The API server. Clones share it; background work ends with the last clone and the last in-process client.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    pki: Pki,
    tls: Arc<rustls::ServerConfig>,
    _background: DropGuard,
}

impl ApiServer {
    /// Opens the store, ensures certificates, default namespaces and the definitions given, and starts the
    /// background work (removal of what namespaces and definitions leave behind).
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        let dir = options.data_dir.join("apiserver");
        let path = dir.join("store.redb");
        // On a thread of its own: it may have to wait for a predecessor whose end needs this runtime.
        let opening = path.clone();
        let store = tokio::task::spawn_blocking(move || RedbStore::open(&opening))
            .await
            .unwrap_or(Err(StoreError::Closed))
            .map_err(|source| OpenError::Store { path, source })?;

        let mut names = options.server_names;
        names.push(options.listen.ip().to_string());
        let pki = Pki::ensure(&options.data_dir.join("pki"), &names)?;
        let tls = Arc::new(tls_config(&pki)?);

        let stop = CancellationToken::new();
        let core = Core::start(
            Arc::new(store),
            options.admission,
            options.listen.to_string(),
            &options.crds,
            stop.clone(),
        )
        .await
        .map_err(|(what, source)| OpenError::Ensure {
            what,
            source: Box::new(source),
        })?;
        Ok(Self {
            inner: Arc::new(Inner {
                core,
                pki,
                tls,
                _background: stop.drop_guard(),
            }),
        })
    }

    /// A client in this process, as `user` of the group `system:masters`. No socket is involved; connection
    /// upgrades (exec, console) do not work on it.
    pub fn client(&self, user: &str) -> kube::Client {
        let user = UserInfo::master(user);
        let server = self.inner.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let (server, user) = (server.clone(), user.clone());
            async move {
                let mut request = request.map(Body::new);
                // Without a name of its own the client manages fields under its user's.
                if let Ok(agent) = HeaderValue::from_str(&user.name) {
                    request.headers_mut().entry(USER_AGENT).or_insert(agent);
                }
                request.extensions_mut().insert(user);
                Ok::<_, Infallible>(server.core.handle(request).await)
            }
        });
        kube::Client::new(service, "default")
    }

    /// Writes a kubeconfig with the admin's certificate; mode 0600, replaced atomically.
    pub fn write_kubeconfig(&self, path: &Path, server: &str) -> Result<(), KubeconfigError> {
        let text = kubeconfig::render(server, &self.inner.pki.ca, &self.inner.pki.admin);
        pki::write_atomically(path, text.as_bytes(), 0o600).map_err(|source| KubeconfigError {
            path: path.to_owned(),
            source,
        })
    }

    /// Serves HTTPS until `shutdown`; then lets open requests end within a few seconds, watches at once.
    ///
    /// `extensions` are tried before the API; they see the caller's [`UserInfo`] in the request's extensions and
    /// may upgrade the connection.
    pub async fn serve(
        &self,
        listener: TcpListener,
        extensions: axum::Router,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let core = self.inner.core.clone();
        let api = tower::service_fn(move |request: Request<Body>| {
            let core = core.clone();
            async move { Ok::<_, Infallible>(core.handle(request).await) }
        });
        let front = Front {
            core: self.inner.core.clone(),
            router: extensions.fallback_service(api),
            end: shutdown.clone(),
        };
        let acceptor = TlsAcceptor::from(self.inner.tls.clone());
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(e) if transient(&e) => {
                    tracing::warn!("cannot accept a connection: {e}");
                    // Out of file descriptors: give others the time to close some.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                Err(e) => return Err(ServeError::Accept(e)),
            };
            let watcher = graceful.watcher();
            tokio::spawn(connection(stream, acceptor.clone(), front.clone(), watcher));
        }
        drop(listener);
        let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
        Ok(())
    }
}

fn transient(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        ConnectionAborted, ConnectionReset, Interrupted, OutOfMemory, WouldBlock,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted | OutOfMemory | WouldBlock
    ) || matches!(error.raw_os_error(), Some(23 | 24 | 105))
}

/// What stands before every request that comes by a socket.
#[derive(Clone)]
struct Front {
    core: Arc<Core>,
    router: axum::Router,
    end: CancellationToken,
}

impl Front {
    async fn call(self, mut request: Request<Body>, user: Option<UserInfo>) -> Response<Body> {
        let user = match user {
            Some(user) => user,
            None if PUBLIC.contains(&request.uri().path().trim_end_matches('/')) => {
                UserInfo::anonymous()
            }
            None => return ApiError::Unauthorized.into_response(),
        };
        let info = RequestInfo::parse(request.method(), request.uri());
        if !user.is_anonymous()
            && let Decision::Deny(why) = self.core.authorizer.authorize(&user, &info)
        {
            let mut text = info.refusal(&user.name);
            if !why.is_empty() {
                text = format!("{text}: {why}");
            }
            let target = Target::new(info.group, info.resource, info.name);
            return ApiError::Forbidden {
                target,
                why: text,
                cause: None,
            }
            .into_response();
        }
        request.extensions_mut().insert(user);
        request
            .extensions_mut()
            .insert(EndOfService(self.end.clone()));
        match self.router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    front: Front,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let _ = stream.set_nodelay(true);
    let end = front.end.clone();
    let stream = tokio::select! {
        () = end.cancelled() => return,
        handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)) => match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return tracing::debug!("TLS handshake failed: {e}"),
            Err(_) => return tracing::debug!("TLS handshake timed out"),
        },
    };
    let user = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|certificate| pki::user_of_certificate(certificate));
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let (front, user) = (front.clone(), user.clone());
        async move { Ok::<_, Infallible>(front.call(request.map(Body::new), user).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(120))
        .max_buf_size(256 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(64 * 1024)
        .max_concurrent_streams(500)
        .keep_alive_interval(Duration::from_secs(60))
        .keep_alive_timeout(Duration::from_secs(20))
        .enable_connect_protocol();
    let connection = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .into_owned();
    if let Err(e) = watcher.watch(connection).await {
        tracing::debug!("connection ended: {e}");
    }
}

fn tls_config(pki: &Pki) -> Result<rustls::ServerConfig, OpenError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&pki.ca)? {
        roots.add(certificate).map_err(OpenError::Tls)?;
    }
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        provider.clone(),
    )
    .allow_unauthenticated()
    .build()
    .map_err(|e| OpenError::Verifier(e.to_string()))?;
    let key = <PrivateKeyDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(
        pki.server.key.as_bytes(),
    )
    .map_err(bad_pem)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::DEFAULT_VERSIONS)
        .map_err(OpenError::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&pki.server.certificate)?, key)
        .map_err(OpenError::Tls)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, OpenError> {
    <CertificateDer<'_> as rustls::pki_types::pem::PemObject>::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(bad_pem)
}

// A function of this shape for `map_err`.
#[expect(clippy::needless_pass_by_value, reason = "the shape of map_err")]
fn bad_pem(error: rustls::pki_types::pem::Error) -> OpenError {
    OpenError::Tls(rustls::Error::General(error.to_string()))
}
