//! HTTPS for berth's own parts: what the API server calls, and what the controller calls on nodes.
//!
//! Any client certificate is taken whose key the caller has; whose it is, and what it is worth, [`Authorities`] tells the
//! routes that care. Authorities come and go while connections are open, and callers of webhooks need none.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 1024;
/// For the handshake, and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// The certificates that the caller showed, its own first. An extension of every request.
#[derive(Debug, Clone)]
pub struct Peer(Arc<[CertificateDer<'static>]>);

/// Whom client certificates are believed from; nobody at first.
#[derive(Debug, Default)]
pub struct Authorities(RwLock<Option<Arc<dyn ClientCertVerifier>>>);

impl Authorities {
    /// Believes these, and no others any more.
    ///
    /// # Errors
    /// When there is no certificate in the text, or one that cannot be used.
    pub fn set(&self, pem: &str) -> Result<(), String> {
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots(pem)?))
            .build()
            .map_err(|e| e.to_string())?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(verifier);
        Ok(())
    }

    /// The common name of a caller that one of them vouches for.
    #[must_use]
    pub fn name_of(&self, peer: &Peer) -> Option<String> {
        let verifier = self
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()?;
        let (own, between) = peer.0.split_first()?;
        verifier
            .verify_client_cert(own, between, UnixTime::now())
            .ok()?;
        berth_apiserver::auth::pki::user_of_certificate(own).map(|user| user.name)
    }
}

/// Certificates to believe in.
///
/// # Errors
/// When there is none in the text, or one that cannot be used.
pub(crate) fn roots(pem: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| e.to_string())?;
        roots.add(certificate).map_err(|e| e.to_string())?;
    }
    if roots.is_empty() {
        return Err("no certificate of an authority".into());
    }
    Ok(roots)
}

/// Takes every certificate of which the caller has the key.
#[derive(Debug)]
struct AnyCaller(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyCaller {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Serves whatever certificate is the newest.
#[derive(Debug, Default)]
pub struct Newest(RwLock<Option<Arc<CertifiedKey>>>);

impl Newest {
    pub(crate) fn set(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
    }
}

impl ResolvesServerCert for Newest {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn tls(newest: Arc<Newest>) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(Arc::new(AnyCaller(provider)))
        .with_cert_resolver(newest);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// Serves routes over TLS until `shutdown`.
///
/// # Errors
/// When connections cannot be accepted.
pub async fn serve(
    listener: TcpListener,
    certificate: Arc<Newest>,
    routes: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(certificate)));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return Ok(());
        };
        let (stream, peer) = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                // One connection less, or too many open files for a moment: not the end of the server.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (acceptor, routes, shutdown) = (acceptor.clone(), routes.clone(), shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = connection(&acceptor, stream, peer, routes) => {}
            }
            drop(place);
        });
    }
}

async fn connection(acceptor: &TlsAcceptor, stream: TcpStream, peer: SocketAddr, routes: Router) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "no TLS");
            return;
        }
        Err(_) => return,
    };
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let caller = Peer(
        shown
            .iter()
            .cloned()
            .map(CertificateDer::into_owned)
            .collect(),
    );
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(60))
        .keep_alive_timeout(PATIENCE);
    let service = TowerToHyperService::new(routes.layer(axum::Extension(caller)));
    if let Err(error) = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await
    {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use berth_apiserver::auth::pki;

    use super::*;

    fn peer(pem: &str) -> Peer {
        let chain = CertificateDer::pem_slice_iter(pem.as_bytes());
        Peer(chain.map(Result::unwrap).collect())
    }

    #[test]
    fn only_who_an_authority_vouches_for_has_a_name() {
        let made = |name: &str| {
            let authority = pki::make_authority("a", pki::LIFETIME).unwrap();
            let issuer = pki::issuer(&authority).unwrap();
            let client = pki::make_client(&issuer, name, &[], pki::LIFETIME).unwrap();
            let server = pki::make_server(&issuer, name, &["x".into()].into(), pki::LIFETIME);
            (
                authority.certificate,
                client.certificate,
                server.unwrap().certificate,
            )
        };
        let (authority, client, server) = made("front-proxy");
        let (_, stranger, _) = made("front-proxy");
        let authorities = Authorities::default();
        assert_eq!(authorities.name_of(&peer(&client)), None);
        authorities.set(&authority).unwrap();
        assert_eq!(
            authorities.name_of(&peer(&client)).as_deref(),
            Some("front-proxy")
        );
        assert_eq!(authorities.name_of(&peer(&stranger)), None);
        assert_eq!(authorities.name_of(&peer("")), None);
        // What is made for a server makes no client.
        assert_eq!(authorities.name_of(&peer(&server)), None);
        assert!(authorities.set("nonsense").is_err());
    }
}
