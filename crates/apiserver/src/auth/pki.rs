//! The server's own certificate authority and the two certificates that it issues at start.
//!
//! Everything lives in one directory: `ca`, `server` and `admin`, each a `.crt` and a `.key`. Keys have mode 0600.
//! A certificate is kept over restarts and made anew when it is close to its end, when its names changed, or
//! when the authority itself had to be made anew. Files are replaced atomically.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::auth::{MASTERS, UserInfo};

const DAY: Duration = Duration::from_secs(86_400);
/// Certificates with less time than this left are replaced at start.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 86_400);

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
}

impl Pki {
    /// Loads the certificates of `dir`, making those that are missing or stale. `names` are the host names and
    /// addresses of the server besides the loopback ones.
    pub fn ensure(dir: &Path, names: &[String]) -> Result<Self, PkiError> {
        std::fs::create_dir_all(dir)
            .and_then(|()| std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)))
            .map_err(|source| PkiError::File {
                path: dir.to_owned(),
                source,
            })?;
        let (ca, ca_is_new) = match load(dir, "ca")? {
            Some(ca)
                if valid_for(&ca.certificate, RENEW_BEFORE)
                    && KeyPair::from_pem(&ca.key).is_ok() =>
            {
                (ca, false)
            }
            _ => (save(dir, "ca", make_ca()?)?, true),
        };
        let make = |what| move |source| PkiError::Make { what, source };
        let ca_key = KeyPair::from_pem(&ca.key).map_err(make("authority"))?;
        let issuer =
            Issuer::from_ca_cert_pem(&ca.certificate, ca_key).map_err(make("authority"))?;

        let names = all_names(names);
        let server = match load(dir, "server")? {
            Some(server)
                if !ca_is_new
                    && valid_for(&server.certificate, RENEW_BEFORE)
                    && alternative_names(&server.certificate) == names
                    && KeyPair::from_pem(&server.key).is_ok() =>
            {
                server
            }
            _ => save(
                dir,
                "server",
                make_server(&issuer, &names).map_err(make("server"))?,
            )?,
        };
        let admin = match load(dir, "admin")? {
            Some(admin)
                if !ca_is_new
                    && valid_for(&admin.certificate, RENEW_BEFORE)
                    && KeyPair::from_pem(&admin.key).is_ok() =>
            {
                admin
            }
            _ => save(
                dir,
                "admin",
                make_client(&issuer, "berth-admin", &[MASTERS]).map_err(make("admin"))?,
            )?,
        };
        Ok(Self {
            ca: ca.certificate,
            server,
            admin,
        })
    }
}

/// The user that a verified client certificate speaks for; none if its subject has no common name.
pub fn user_of_certificate(der: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .map(str::to_owned)
        .collect();
    groups.push("system:authenticated".to_owned());
    Some(UserInfo { name, groups })
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
    match std::fs::remove_file(&crt) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(PkiError::File {
                path: crt,
                source: e,
            });
        }
        _ => {}
    }
    for (path, text, mode) in [(key, &pem.key, 0o600), (crt, &pem.certificate, 0o644)] {
        write_atomically(&path, text.as_bytes(), mode)
            .map_err(|source| PkiError::File { path, source })?;
    }
    Ok(pem)
}

fn make_ca() -> Result<Pem, PkiError> {
    let make = |source| PkiError::Make {
        what: "authority",
        source,
    };
    let mut params = params(3650);
    params
        .distinguished_name
        .push(DnType::CommonName, "berth-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    let key = KeyPair::generate().map_err(make)?;
    let certificate = params.self_signed(&key).map_err(make)?;
    Ok(Pem {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

fn make_server(
    issuer: &Issuer<'_, KeyPair>,
    names: &BTreeSet<String>,
) -> Result<Pem, rcgen::Error> {
    let mut params = params(365);
    params.subject_alt_names =
        CertificateParams::new(names.iter().cloned().collect::<Vec<_>>())?.subject_alt_names;
    params
        .distinguished_name
        .push(DnType::CommonName, "berth-apiserver");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    sign(params, issuer)
}

/// Makes a client certificate for a user and its groups.
pub fn make_client(
    issuer: &Issuer<'_, KeyPair>,
    user: &str,
    groups: &[&str],
) -> Result<Pem, rcgen::Error> {
    let mut params = params(365);
    params.distinguished_name.push(DnType::CommonName, user);
    for group in groups {
        params
            .distinguished_name
            .push(DnType::OrganizationName, *group);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    sign(params, issuer)
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
fn params(days: u32) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + DAY * days).into();
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

fn valid_for(pem: &str, margin: Duration) -> bool {
    with_certificate(pem, |certificate| {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let at = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
        let validity = certificate.validity();
        validity.not_before.timestamp() <= at(now)
            && validity.not_after.timestamp() > at(now + margin)
    })
    .unwrap_or(false)
}

fn alternative_names(pem: &str) -> BTreeSet<String> {
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
        let first = Pki::ensure(dir.path(), &[]).unwrap();
        let again = Pki::ensure(dir.path(), &[]).unwrap();
        assert_eq!(first.server.certificate, again.server.certificate);
        assert_eq!(first.admin.certificate, again.admin.certificate);
        let other = Pki::ensure(dir.path(), &["berth.example".into(), "192.0.2.7".into()]).unwrap();
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
        let first = Pki::ensure(dir.path(), &[]).unwrap();
        std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
        let second = Pki::ensure(dir.path(), &[]).unwrap();
        assert_ne!(first.ca, second.ca);
        assert_ne!(first.admin.certificate, second.admin.certificate);
    }

    #[test]
    fn subject_names_user_and_groups() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(dir.path(), &[]).unwrap();
        let (_, block) =
            x509_parser::pem::parse_x509_pem(pki.admin.certificate.as_bytes()).unwrap();
        let user = user_of_certificate(&block.contents).unwrap();
        assert_eq!(user.name, "berth-admin");
        assert!(user.groups.contains(&MASTERS.to_owned()));
    }
}
