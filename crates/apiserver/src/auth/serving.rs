//! TLS of the server: its configuration, and its certificate, which is replaced while the server runs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

use crate::auth::kubeconfig;
use crate::auth::pki::{self, Pem, Pki, PkiError};

/// The clock may be set, and the machine may sleep: nothing waits for longer than this before it looks again.
const LOOK: Duration = Duration::from_secs(3600);
/// Renewing failed, or has just been done.
const PAUSE: Duration = Duration::from_secs(1);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificates.
    #[error("cannot prepare the certificates")]
    Pki(#[from] PkiError),
    /// TLS refuses its configuration.
    #[error("cannot configure TLS")]
    Tls(#[from] rustls::Error),
    /// A file holds something else.
    #[error("cannot read a certificate or key: {0}")]
    Pem(pem::Error),
    /// The client verifier cannot be made of our own authority.
    #[error("cannot verify client certificates: {0}")]
    Verifier(String),
}

/// The certificates of a running server, and the files that hold the admin's.
pub struct Certificates {
    dir: PathBuf,
    names: Vec<String>,
    lifetime: Duration,
    current: RwLock<Pki>,
    serving: Arc<Serving>,
    kubeconfigs: Mutex<Vec<(PathBuf, String)>>,
}

/// The certificate that new connections get.
#[derive(Debug)]
struct Serving(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(
            self.0
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        )
    }
}

impl Certificates {
    /// Loads or makes the certificates of a directory.
    pub fn open(dir: PathBuf, names: Vec<String>, lifetime: Duration) -> Result<Self, TlsError> {
        let pki = Pki::ensure(&dir, &names, lifetime)?;
        let serving = Arc::new(Serving(RwLock::new(certified(&pki.server)?)));
        Ok(Self {
            dir,
            names,
            lifetime,
            current: RwLock::new(pki),
            serving,
            kubeconfigs: Mutex::default(),
        })
    }

    /// The authority's certificate.
    pub fn ca(&self) -> String {
        self.current().ca
    }

    fn current(&self) -> Pki {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The configuration of the server. Client certificates are optional, and verified where one comes.
    pub fn config(&self) -> Result<rustls::ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        for certificate in chain(&self.ca())? {
            roots.add(certificate)?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()
                .map_err(|e| TlsError::Verifier(e.to_string()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::DEFAULT_VERSIONS)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.serving.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Writes a kubeconfig with the admin's certificate, mode 0600, replaced atomically; it is written anew when that changes.
    pub fn write_kubeconfig(&self, path: PathBuf, server: String) -> Result<(), PkiError> {
        let mut files = self
            .kubeconfigs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        write_admin(&self.current(), &path, &server)?;
        files.retain(|(other, _)| *other != path);
        files.push((path, server));
        Ok(())
    }

    /// Renews what is close to its end, until `stop`.
    pub async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let wait = self.current().renewal_in(self.lifetime).clamp(PAUSE, LOOK);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let this = self.clone();
            // Files are written and synced: not on a thread that serves.
            match tokio::task::spawn_blocking(move || this.renew()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!("cannot renew the certificates: {error}"),
                Err(error) => tracing::error!("renewing the certificates failed: {error}"),
            }
        }
    }

    fn renew(&self) -> Result<(), TlsError> {
        let (old, new) = (
            self.current(),
            Pki::renew(&self.dir, &self.names, self.lifetime)?,
        );
        if old.server.certificate != new.server.certificate {
            let key = certified(&new.server)?;
            *self
                .serving
                .0
                .write()
                .unwrap_or_else(PoisonError::into_inner) = key;
            tracing::info!("the server's certificate was renewed");
        }
        let files = self
            .kubeconfigs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new.clone();
        if old.admin.certificate != new.admin.certificate {
            for (path, server) in files.iter() {
                write_admin(&new, path, server)?;
                tracing::info!(kubeconfig = %path.display(), "the admin's certificate was renewed");
            }
        }
        Ok(())
    }
}

fn write_admin(pki: &Pki, path: &std::path::Path, server: &str) -> Result<(), PkiError> {
    let text = kubeconfig::render(server, &pki.ca, kubeconfig::ADMIN, &pki.admin);
    pki::write_atomically(path, text.as_bytes(), 0o600).map_err(|source| PkiError::File {
        path: path.to_owned(),
        source,
    })
}

fn certified(pem: &Pem) -> Result<Arc<CertifiedKey>, TlsError> {
    let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).map_err(TlsError::Pem)?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
    Ok(Arc::new(CertifiedKey::new(chain(&pem.certificate)?, key)))
}

fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(TlsError::Pem)
}
