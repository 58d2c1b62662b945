//! Opening the API server, its HTTPS accept loop, and the client that needs no socket.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::IntoResponse as _;
use http::{HeaderValue, Request, Response, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt as _;

use crate::admission::Admission;
use crate::auth::pki::{self, PkiError};
use crate::auth::serving::{Certificates, TlsError};
use crate::auth::tokens::{self, TokenKey};
use crate::auth::{Access, RequestInfo, UserInfo, rbac};
use crate::error::ApiError;
use crate::front::audit::AuditLog;
use crate::front::slow::Unstalled;
use crate::front::{self, Door, Limits};
use crate::registry::{Core, EndOfService, Identity};
use crate::store::StoreError;
use crate::store::durable::{self, RedbStore};

/// Longest time for a TLS handshake: a peer that stalls holds no task for longer.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long open requests may go on after shutdown began.
const DRAIN: Duration = Duration::from_secs(5);

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
    /// Roles besides the default ones, and how long certificates live.
    pub access: Access,
}

/// What most servers leave as it is.
pub struct Tuning {
    /// Most bytes that all objects may take.
    pub store_limit: u64,
    /// How long after the start the store begins its journal. It takes some milliseconds, which a start has not; without
    /// it a write takes longer.
    pub journal_after: Duration,
    /// What a client may ask for at a time, and how long it may take.
    pub limits: Limits,
    /// Where requests are recorded.
    pub audit: Option<AuditLog>,
    /// Whether to do what a cluster's controller manager does: collect what has no owner, count quotas, give each
    /// namespace its service account. Without it this is a bare API server, as kube-apiserver is one.
    pub controllers: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            store_limit: durable::DEFAULT_LIMIT,
            journal_after: Duration::from_secs(1),
            limits: Limits::default(),
            audit: None,
            controllers: true,
        }
    }
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
    /// The certificates, or the key of the tokens.
    #[error("cannot prepare the certificates")]
    Pki(#[from] PkiError),
    /// TLS with them.
    #[error("cannot prepare TLS")]
    Tls(#[from] TlsError),
    /// A role or binding of the embedder has no JSON form.
    #[error("cannot read a role or binding")]
    Role(#[source] serde_json::Error),
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
    pub source: PkiError,
}

/// The API server. Clones share it; background work ends with the last clone and the last in-process client.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    certificates: Arc<Certificates>,
    tls: Arc<rustls::ServerConfig>,
    door: Door,
    _background: DropGuard,
}

impl ApiServer {
    /// Opens the store, ensures certificates, default namespaces, roles and the definitions given, and starts the
    /// background work (removal of what namespaces and definitions leave behind, service accounts, renewal of certificates).
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        Self::open_tuned(options, Tuning::default()).await
    }

    /// The same, with other limits or an audit log.
    pub async fn open_tuned(options: Options, tuning: Tuning) -> Result<Self, OpenError> {
        let path = store_path(&options.data_dir);
        let (limit, journal_after) = (tuning.store_limit, tuning.journal_after);
        // On a thread of its own: it may have to wait for a predecessor whose end needs this runtime.
        let opening = path.clone();
        let store = tokio::task::spawn_blocking(move || {
            RedbStore::open_tuned(&opening, limit, journal_after)
        })
        .await
        .unwrap_or(Err(StoreError::Closed))
        .map_err(|source| OpenError::Store { path, source })?;

        let mut names = options.server_names;
        names.push(options.listen.ip().to_string());
        let directory = options.data_dir.join("pki");
        let access = options.access;
        let certificates = Arc::new(Certificates::open(
            directory.clone(),
            names,
            access.certificate_lifetime,
        )?);
        let tls = Arc::new(certificates.config()?);
        let mut objects = rbac::defaults::objects();
        for role in &access.roles {
            objects.push(serde_json::to_value(role).map_err(OpenError::Role)?);
        }
        for binding in &access.bindings {
            objects.push(serde_json::to_value(binding).map_err(OpenError::Role)?);
        }
        let identity = Identity {
            tokens: TokenKey::ensure(&directory)?,
            ca: certificates.ca(),
            objects,
            controllers: tuning.controllers,
        };

        let stop = CancellationToken::new();
        let core = Core::start(
            Arc::new(store),
            options.admission,
            options.listen.to_string(),
            &options.crds,
            identity,
            stop.clone(),
        )
        .await
        .map_err(|(what, source)| OpenError::Ensure {
            what,
            source: Box::new(source),
        })?;
        tokio::spawn(certificates.clone().keep_fresh(stop.clone()));
        Ok(Self {
            inner: Arc::new(Inner {
                core,
                certificates,
                tls,
                door: Door::new(tuning.limits, tuning.audit.map(Arc::new)),
                _background: stop.drop_guard(),
            }),
        })
    }

    /// A client in this process, as `user` of the group `system:masters`. No socket is involved; connection
    /// upgrades (exec, console) do not work on it.
    pub fn client(&self, user: &str) -> kube::Client {
        self.client_as(UserInfo::master(user))
    }

    /// A client in this process, as a user of any groups; it may do what that user may.
    pub fn client_as(&self, user: UserInfo) -> kube::Client {
        let server = self.inner.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let (server, user) = (server.clone(), user.clone());
            async move {
                let mut request = request.map(Body::new);
                // Owners of fields are told apart by their program, and here all are one.
                if let Ok(name) = HeaderValue::from_str(&user.name) {
                    request
                        .headers_mut()
                        .entry(header::USER_AGENT)
                        .or_insert(name);
                }
                let answer = async |request: Request<Body>| {
                    let (mut parts, body) = request.into_parts();
                    front::known(&parts.extensions, &user);
                    match admit(&server.core, user, &mut parts) {
                        Ok(()) => {
                            front::admitted(&parts.extensions);
                            server.core.handle(Request::from_parts(parts, body)).await
                        }
                        Err(refusal) => refusal.into_response(),
                    }
                };
                // No limits, for controllers are not to wait for those whom they serve; but on record like everybody.
                let response = server.door.clone().pass(request, None, answer).await;
                Ok::<_, Infallible>(response)
            }
        });
        kube::Client::new(service, "default")
    }

    /// Writes a kubeconfig with the admin's certificate; mode 0600, replaced atomically. It is written anew when the
    /// certificate is renewed.
    pub fn write_kubeconfig(&self, path: &Path, server: &str) -> Result<(), KubeconfigError> {
        self.inner
            .certificates
            .write_kubeconfig(path.to_owned(), server.to_owned())
            .map_err(|source| KubeconfigError {
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
            door: self.inner.door.clone(),
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

/// Where the objects of a data directory are.
pub(crate) fn store_path(data_dir: &Path) -> PathBuf {
    data_dir.join("apiserver").join("store.redb")
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
    door: Door,
    end: CancellationToken,
}

impl Front {
    async fn call(self, request: Request<Body>, user: Option<UserInfo>) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        let admitted = self
            .core
            .authenticate(user, &mut parts.headers, &parts.uri)
            .and_then(|caller| {
                front::known(&parts.extensions, &caller);
                let info = RequestInfo::parse(&parts.method, &parts.uri);
                let permit = self.door.enter(&caller, &info)?;
                admit(&self.core, caller, &mut parts)?;
                Ok(permit)
            });
        let permit = match admitted {
            Ok(permit) => permit,
            Err(refusal) => return refusal.into_response(),
        };
        front::admitted(&parts.extensions);
        parts.extensions.insert(EndOfService(self.end.clone()));
        match self.router.oneshot(Request::from_parts(parts, body)).await {
            Ok(response) => permit.until_taken(response),
            Err(never) => match never {},
        }
    }
}

/// Lets a request in, as the user that it runs as.
fn admit(core: &Core, caller: UserInfo, parts: &mut http::request::Parts) -> Result<(), ApiError> {
    let info = RequestInfo::parse(&parts.method, &parts.uri);
    let user = core.admit_user(caller, &mut parts.headers, &parts.uri, &info)?;
    parts.extensions.insert(user);
    Ok(())
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    front: Front,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let _ = stream.set_nodelay(true);
    let peer = stream.peer_addr().ok().map(|address| address.ip());
    let limits = front.door.limits.clone();
    let end = front.end.clone();
    let stream = tokio::select! {
        () = end.cancelled() => return,
        handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)) => match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return tracing::debug!("TLS handshake failed: {e}"),
            Err(_) => return tracing::debug!("TLS handshake timed out"),
        },
    };
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let user = certificate.and_then(|der| pki::user_of_certificate(der));
    let ends = certificate.and_then(|der| pki::end_of_certificate(der));
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let (front, user) = (front.clone(), user.clone());
        let (door, request) = (front.door.clone(), request.map(Body::new));
        async move {
            // It was valid when the connection began; connections can be old.
            let expired = ends.is_some_and(|end| end < tokens::now());
            let answered = door.pass(request, peer, |request| async move {
                if expired {
                    return ApiError::Unauthorized.into_response();
                }
                front.call(request, user).await
            });
            Ok::<_, Infallible>(answered.await)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
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
        .serve_connection_with_upgrades(
            TokioIo::new(Unstalled::new(stream, limits.stalled)),
            service,
        )
        .into_owned();
    if let Err(e) = watcher.watch(connection).await {
        tracing::debug!("connection ended: {e}");
    }
}
