//! The server's own certificate authority and the two certificates that it issues for itself; others on request.
//!
//! Everything lives in one directory: `ca`, `server` and `admin`, each a `.crt` and a `.key`. Keys have mode 0600.
//! A certificate is kept over restarts and made anew when a sixth of its life is left, when its names changed, or
//! when the authority itself had to be made anew, which happens only at start. Files are replaced atomically.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::auth::{CREDENTIAL, MASTERS, UserInfo, kubeconfig, subject, tokens};

const DAY: Duration = Duration::from_secs(86_400);
/// How long the server's and the admin's certificates are valid unless they are told otherwise.
pub const LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// An authority with less time than this left is replaced at start.
const RENEW_AUTHORITY: Duration = Duration::from_secs(60 * 86_400);

/// A certificate and its private key, PEM.
#[derive(Clone)]
pub struct Pem {
    /// One certificate.
    pub certificate: String,
    /// PKCS#8 key.
    pub key: String,
}

/// The key stays out of logs.
impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pem")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// What the server needs to serve and to be reached.
#[derive(Debug, Clone)]
pub struct Pki {
    /// The authority's certificate.
    pub ca: String,
    /// The server's own.
    pub server: Pem,
    /// A client of the group `system:masters`.
    pub admin: Pem,
}

/// Why the certificates are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or directory.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate cannot be made.
    #[error("cannot make the {what} certificate")]
    Make {
        /// Which.
        what: &'static str,
        /// Why.
        source: rcgen::Error,
    },
    /// There is no authority yet.
    #[error("no certificate authority in {0}: has the server been started?")]
    NoAuthority(PathBuf),
    /// The key of the tokens cannot be used.
    #[error("cannot use the key of the service accounts: {0}")]
    TokenKey(String),
}

impl Pki {
    /// Loads the certificates of `dir`, making those that are missing or stale. `names` are the host names and
    /// addresses of the server besides the loopback ones, `lifetime` is that of new certificates.
    pub fn ensure(dir: &Path, names: &[String], lifetime: Duration) -> Result<Self, PkiError> {
        std::fs::create_dir_all(dir)
            .and_then(|()| std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)))
            .map_err(|source| PkiError::File {
                path: dir.to_owned(),
                source,
            })?;
        match load(dir, "ca")? {
            Some(ca)
                if valid_for(&ca.certificate, RENEW_AUTHORITY)
                    && KeyPair::from_pem(&ca.key).is_ok() => {}
            _ => {
                let ca =
                    make_authority("berth-ca", DAY * 3650).map_err(|source| PkiError::Make {
                        what: "authority",
                        source,
                    })?;
                save(dir, "ca", ca)?;
                // What the old one signed is worth nothing.
                for name in ["server", "admin"] {
                    remove(&dir.join(format!("{name}.crt")))?;
                }
            }
        }
        Self::renew(dir, names, lifetime)
    }

    /// Loads the certificates, making those of the server and the admin anew that are missing or stale. The authority stays
    /// as it is.
    pub fn renew(dir: &Path, names: &[String], lifetime: Duration) -> Result<Self, PkiError> {
        let (ca, issuer) = authority(dir)?;
        let make = |what| move |source| PkiError::Make { what, source };
        let fresh = |pem: &Pem| {
            valid_for(&pem.certificate, lifetime / 6) && KeyPair::from_pem(&pem.key).is_ok()
        };
        let names = all_names(names);
        let server = match load(dir, "server")? {
            Some(server) if fresh(&server) && alternative_names(&server.certificate) == names => {
                server
            }
            _ => save(
                dir,
                "server",
                make_server(&issuer, "berth-apiserver", &names, lifetime)
                    .map_err(make("server"))?,
            )?,
        };
        let admin = match load(dir, "admin")? {
            Some(admin) if fresh(&admin) => admin,
            _ => save(
                dir,
                "admin",
                make_client(&issuer, kubeconfig::ADMIN, &[MASTERS], lifetime)
                    .map_err(make("admin"))?,
            )?,
        };
        Ok(Self { ca, server, admin })
    }

    /// How long it is until one of the certificates shall be renewed.
    pub fn renewal_in(&self, lifetime: Duration) -> Duration {
        let left = |pem: &Pem| remaining(&pem.certificate).saturating_sub(lifetime / 6);
        left(&self.server).min(left(&self.admin))
    }
}

/// Issues a client certificate with the authority of `dir`; with it comes the authority's own certificate.
pub fn issue_client(
    dir: &Path,
    user: &str,
    groups: &[&str],
    lifetime: Duration,
) -> Result<(String, Pem), PkiError> {
    let (ca, issuer) = authority(dir)?;
    let pem = make_client(&issuer, user, groups, lifetime).map_err(|source| PkiError::Make {
        what: "client",
        source,
    })?;
    Ok((ca, pem))
}

/// The authority's certificate, and what signs with its key.
fn authority(dir: &Path) -> Result<(String, Issuer<'static, KeyPair>), PkiError> {
    let ca = load(dir, "ca")?.ok_or_else(|| PkiError::NoAuthority(dir.to_owned()))?;
    let make = |source| PkiError::Make {
        what: "authority",
        source,
    };
    let issuer = issuer(&ca).map_err(make)?;
    Ok((ca.certificate, issuer))
}

/// The user that a verified client certificate speaks for; none if its subject has no common name.
pub fn user_of_certificate(der: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups: Vec<&str> = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .collect();
    let mut user = UserInfo::new(name, &groups);
    let mut id = "X509SHA256=".to_owned();
    for byte in digest(&SHA256, der).as_ref() {
        id.push_str(&format!("{byte:02x}"));
    }
    user.extra.insert(CREDENTIAL.to_owned(), vec![id]);
    Some(user)
}

/// When a certificate ends, in seconds since 1970; none if it cannot be read.
pub fn end_of_certificate(der: &[u8]) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// Replaces `path` by `content` in one step, with the mode given, durable on return.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = (|| {
        let _ = std::fs::remove_file(&temporary);
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        let parent = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        std::fs::File::open(parent)?.sync_all()
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn load(dir: &Path, name: &str) -> Result<Option<Pem>, PkiError> {
    let read = |path: PathBuf| match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File { path, source }),
    };
    let certificate = read(dir.join(format!("{name}.crt")))?;
    let key = read(dir.join(format!("{name}.key")))?;
    Ok(certificate
        .zip(key)
        .map(|(certificate, key)| Pem { certificate, key }))
}

/// The certificate goes last: a pair that was only half written is not mistaken for a whole one, since a new
/// key with an old certificate is made impossible by removing the latter first.
fn save(dir: &Path, name: &str, pem: Pem) -> Result<Pem, PkiError> {
    let (crt, key) = (
        dir.join(format!("{name}.crt")),
        dir.join(format!("{name}.key")),
    );
    remove(&crt)?;
    for (path, text, mode) in [(key, &pem.key, 0o600), (crt, &pem.certificate, 0o644)] {
        write_atomically(&path, text.as_bytes(), mode)
            .map_err(|source| PkiError::File { path, source })?;
    }
    Ok(pem)
}

fn remove(path: &Path) -> Result<(), PkiError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(PkiError::File {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Makes an authority, which signs itself.
///
/// # Errors
/// When there are no random numbers.
pub fn make_authority(name: &str, lifetime: Duration) -> Result<Pem, rcgen::Error> {
    let mut params = params(lifetime);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(Pem {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

/// What signs with an authority's key.
///
/// # Errors
/// When certificate or key cannot be read.
pub fn issuer(authority: &Pem) -> Result<Issuer<'static, KeyPair>, rcgen::Error> {
    let key = KeyPair::from_pem(&authority.key)?;
    Issuer::from_ca_cert_pem(&authority.certificate, key)
}

/// Makes the certificate of a server that is called by these names, the addresses among them.
///
/// # Errors
/// When a name is none.
pub fn make_server(
    issuer: &Issuer<'_, KeyPair>,
    server: &str,
    names: &BTreeSet<String>,
    lifetime: Duration,
) -> Result<Pem, rcgen::Error> {
    let mut params = params(lifetime);
    params.subject_alt_names =
        CertificateParams::new(names.iter().cloned().collect::<Vec<_>>())?.subject_alt_names;
    params.distinguished_name.push(DnType::CommonName, server);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    sign(params, issuer)
}

/// Makes a client certificate for a user and its groups.
pub fn make_client(
    issuer: &Issuer<'_, KeyPair>,
    user: &str,
    groups: &[&str],
    lifetime: Duration,
) -> Result<Pem, rcgen::Error> {
    let mut params = params(lifetime);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let pem = sign(params, issuer)?;
    let certificate = x509_parser::pem::parse_x509_pem(pem.certificate.as_bytes())
        .ok()
        .and_then(|(_, block)| subject::replace(&block.contents, issuer, user, groups))
        .ok_or(rcgen::Error::CouldNotParseCertificate)??;
    Ok(Pem {
        certificate: block("CERTIFICATE", &certificate),
        key: pem.key,
    })
}

/// One block of a PEM file.
fn block(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().copied().map(char::from));
        out.push('\n');
    }
    out + &format!("-----END {label}-----\n")
}

fn sign(mut params: CertificateParams, issuer: &Issuer<'_, KeyPair>) -> Result<Pem, rcgen::Error> {
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok(Pem {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

/// Starts an hour ago: clocks differ.
fn params(lifetime: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + lifetime).into();
    params
}

fn all_names(names: &[String]) -> BTreeSet<String> {
    let own = [
        "localhost",
        "127.0.0.1",
        "::1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    ];
    own.into_iter()
        .map(str::to_owned)
        .chain(names.iter().filter(|n| !n.is_empty()).cloned())
        .collect()
}

fn with_certificate<T>(pem: &str, read: impl FnOnce(&X509Certificate<'_>) -> T) -> Option<T> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    block
        .parse_x509()
        .ok()
        .map(|certificate| read(&certificate))
}

/// Whether a certificate is valid now and for longer than `margin`.
pub fn valid_for(pem: &str, margin: Duration) -> bool {
    let begun = with_certificate(pem, |certificate| {
        certificate.validity().not_before.timestamp() <= tokens::now()
    });
    begun.unwrap_or(false) && remaining(pem) > margin
}

/// How long a certificate is still valid; nothing if it cannot be read.
fn remaining(pem: &str) -> Duration {
    let end = with_certificate(pem, |certificate| {
        certificate.validity().not_after.timestamp()
    });
    let end = end.and_then(|end| u64::try_from(end).ok()).unwrap_or(0);
    (SystemTime::UNIX_EPOCH + Duration::from_secs(end))
        .duration_since(SystemTime::now())
        .unwrap_or_default()
}

/// The DNS names and addresses that a certificate is for; none if it cannot be read.
pub fn alternative_names(pem: &str) -> BTreeSet<String> {
    with_certificate(pem, |certificate| {
        let Ok(Some(extension)) = certificate.subject_alternative_name() else {
            return BTreeSet::new();
        };
        let name = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes)
                    .ok()
                    .map(|b| IpAddr::from(b).to_string()),
                16 => <[u8; 16]>::try_from(*bytes)
                    .ok()
                    .map(|b| IpAddr::from(b).to_string()),
                _ => None,
            },
            _ => None,
        };
        extension
            .value
            .general_names
            .iter()
            .filter_map(name)
            .collect()
    })
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_over_restarts_and_remade_for_new_names() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::ensure(dir.path(), &[], LIFETIME).unwrap();
        let again = Pki::ensure(dir.path(), &[], LIFETIME).unwrap();
        assert_eq!(first.server.certificate, again.server.certificate);
        assert_eq!(first.admin.certificate, again.admin.certificate);
        let other = Pki::ensure(
            dir.path(),
            &["berth.example".into(), "192.0.2.7".into()],
            LIFETIME,
        )
        .unwrap();
        assert_eq!(first.ca, other.ca);
        assert_ne!(first.server.certificate, other.server.certificate);
        assert!(alternative_names(&other.server.certificate).contains("192.0.2.7"));
        for name in ["ca", "server", "admin"] {
            let mode = std::fs::metadata(dir.path().join(format!("{name}.key")))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_new_authority_remakes_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::ensure(dir.path(), &[], LIFETIME).unwrap();
        std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
        let second = Pki::ensure(dir.path(), &[], LIFETIME).unwrap();
        assert_ne!(first.ca, second.ca);
        assert_ne!(first.admin.certificate, second.admin.certificate);
    }

    #[test]
    fn renewed_when_a_sixth_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::ensure(dir.path(), &[], LIFETIME).unwrap();
        let left = first.renewal_in(LIFETIME);
        assert!(left < LIFETIME && left > LIFETIME / 2, "{left:?}");
        // Of a life of ten years less than a sixth is left.
        let second = Pki::renew(dir.path(), &[], LIFETIME * 10).unwrap();
        assert_eq!(first.ca, second.ca);
        assert_ne!(first.server.certificate, second.server.certificate);
        assert_ne!(first.admin.certificate, second.admin.certificate);
        assert_eq!(first.renewal_in(LIFETIME * 10), Duration::ZERO);
    }

    #[test]
    fn issues_for_others_once_there_is_an_authority() {
        let dir = tempfile::tempdir().unwrap();
        let refused = issue_client(dir.path(), "eve", &[], LIFETIME);
        assert!(matches!(refused, Err(PkiError::NoAuthority(_))));
        let pki = Pki::ensure(dir.path(), &[], LIFETIME).unwrap();
        let (ca, pem) = issue_client(dir.path(), "eve", &["a", "b"], DAY).unwrap();
        assert_eq!(ca, pki.ca);
        assert!(remaining(&pem.certificate) <= DAY);
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.certificate.as_bytes()).unwrap();
        let user = user_of_certificate(&block.contents).unwrap();
        assert_eq!(user.groups, ["a", "b", "system:authenticated"]);
    }

    #[test]
    fn subject_names_user_and_groups() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(dir.path(), &[], LIFETIME).unwrap();
        let (_, block) =
            x509_parser::pem::parse_x509_pem(pki.admin.certificate.as_bytes()).unwrap();
        let user = user_of_certificate(&block.contents).unwrap();
        assert_eq!(user.name, "berth-admin");
        assert!(user.groups.contains(&MASTERS.to_owned()));
    }
}
