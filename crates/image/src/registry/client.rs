//! Requests to one repository of a registry.

use std::error::Error;
use std::time::Duration;

use futures::StreamExt as _;
use http::StatusCode;
use http::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};

use super::{PullError, PullOptions};
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MAX_MANIFEST, OCI_INDEX, OCI_MANIFEST, clip};
use crate::{Credentials, Digest, ImageRef};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const USER_AGENT: &str = concat!("berth/", env!("CARGO_PKG_VERSION"));
/// What is read of an error's body.
const MAX_ERROR: usize = 4096;

/// Speaks to the registry of one image.
pub(super) struct Client {
    pub(super) oci: oci_client::Client,
    pub(super) reference: Reference,
    http: reqwest::Client,
    base: String,
    image: String,
    registry: String,
    credentials: Option<Credentials>,
    authorization: tokio::sync::Mutex<Option<HeaderValue>>,
}

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failed {
    NotFound,
    Unauthorized(String),
    /// Worth another attempt.
    Transient(String),
    /// Not worth one.
    Refused(String),
}

/// A manifest as it came, and the digest that the registry claims for it.
pub(super) struct RawManifest {
    pub(super) bytes: Vec<u8>,
    pub(super) claimed: Option<String>,
}

impl Client {
    pub(super) fn new(
        image: &ImageRef,
        options: &PullOptions,
        read_timeout: Duration,
    ) -> Result<Self, String> {
        let (registry, repository) = (image.registry().to_owned(), image.repository().to_owned());
        let reference = match (image.digest(), image.tag()) {
            (Some(digest), _) => {
                Reference::with_digest(registry.clone(), repository, digest.to_string())
            }
            (None, tag) => Reference::with_tag(
                registry.clone(),
                repository,
                tag.unwrap_or("latest").to_owned(),
            ),
        };
        let config = ClientConfig {
            protocol: if options.plain_http {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            // One request for a blob instead of one for each few megabytes.
            use_monolithic_push: true,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(read_timeout),
            user_agent: USER_AGENT,
            ..ClientConfig::default()
        };
        let oci = oci_client::Client::try_from(config).map_err(|e| chain(&e))?;
        let http = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(read_timeout)
            // A redirect must not take what was asked for securely over a plain connection.
            .https_only(!options.plain_http)
            .build()
            .map_err(|e| chain(&e))?;
        let scheme = if options.plain_http { "http" } else { "https" };
        Ok(Self {
            oci,
            http,
            base: format!(
                "{scheme}://{}/v2/{}",
                reference.resolve_registry(),
                image.repository()
            ),
            reference,
            image: image.to_string(),
            registry,
            credentials: options.credentials.clone(),
            authorization: tokio::sync::Mutex::default(),
        })
    }

    /// Finds out how the registry wants to be asked, and gets a token where it gives tokens.
    pub(super) async fn authenticate(&self, operation: RegistryOperation) -> Result<(), Failed> {
        let auth = match &self.credentials {
            Some(c) => RegistryAuth::Basic(c.username.clone(), c.password.clone()),
            None => RegistryAuth::Anonymous,
        };
        let token = self
            .oci
            .auth(&self.reference, &auth, operation)
            .await
            .map_err(|e| failed(&e))?;
        let header = match (token, &self.credentials) {
            (Some(token), _) => Some(format!("Bearer {token}")),
            (None, Some(c)) => Some(basic(c)),
            (None, None) => None,
        };
        let header = header.map(|text| HeaderValue::from_str(&text)).transpose();
        let mut header =
            header.map_err(|_| Failed::Unauthorized("the token is not printable".to_owned()))?;
        if let Some(header) = &mut header {
            header.set_sensitive(true);
        }
        *self.authorization.lock().await = header;
        Ok(())
    }

    /// Fetches the manifest or index named by a tag or digest.
    pub(super) async fn manifest(&self, version: &str) -> Result<RawManifest, Failed> {
        let accept = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST].join(", ");
        let mut headers = HeaderMap::new();
        headers.insert(
            ACCEPT,
            HeaderValue::from_str(&accept).expect("media types are printable"),
        );
        let response = self.get(&format!("manifests/{version}"), headers).await?;
        let claimed = response.headers().get("docker-content-digest");
        let claimed = claimed
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let mut bytes = Vec::new();
        let mut body = response.bytes_stream();
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece.map_err(|e| Failed::Transient(chain(&e)))?);
            if bytes.len() as u64 > MAX_MANIFEST {
                return Err(Failed::Refused(format!(
                    "a manifest of more than {MAX_MANIFEST} bytes"
                )));
            }
        }
        Ok(RawManifest { bytes, claimed })
    }

    /// Asks for a blob from `offset` on. The answer may begin at the start all the same: see its status.
    pub(super) async fn blob(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<reqwest::Response, Failed> {
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range =
                HeaderValue::from_str(&format!("bytes={offset}-")).expect("digits are printable");
            headers.insert(RANGE, range);
        }
        self.get(&format!("blobs/{digest}"), headers).await
    }

    /// One GET; when the token ran out, a second one with a new token.
    async fn get(&self, path: &str, headers: HeaderMap) -> Result<reqwest::Response, Failed> {
        for last in [false, true] {
            let mut request = self
                .http
                .get(format!("{}/{path}", self.base))
                .headers(headers.clone());
            if let Some(authorization) = &*self.authorization.lock().await {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = request
                .send()
                .await
                .map_err(|e| Failed::Transient(chain(&e)))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && !last {
                self.authenticate(RegistryOperation::Pull).await?;
                continue;
            }
            let said = said(response).await;
            let text = if said.is_empty() {
                status.to_string()
            } else {
                format!("{status}: {said}")
            };
            return Err(match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failed::Unauthorized(text),
                StatusCode::NOT_FOUND => Failed::NotFound,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                    Failed::Transient(text)
                }
                _ if status.is_server_error() => Failed::Transient(text),
                _ => Failed::Refused(text),
            });
        }
        unreachable!("the second round always returns")
    }

    /// The failure as the user sees it.
    pub(super) fn pull_error(&self, failed: Failed) -> PullError {
        let (image, registry) = (self.image.clone(), self.registry.clone());
        match failed {
            Failed::NotFound => PullError::NotFound { image, registry },
            Failed::Unauthorized(cause) => PullError::Unauthorized {
                image,
                registry,
                cause,
            },
            Failed::Transient(cause) => PullError::Unreachable {
                image,
                registry,
                cause,
            },
            Failed::Refused(cause) => PullError::Registry {
                image,
                registry,
                cause,
            },
        }
    }
}

fn basic(credentials: &Credentials) -> String {
    use base64::Engine as _;
    let pair = format!("{}:{}", credentials.username, credentials.password);
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(pair)
    )
}

/// The beginning of an error's body; the message in it when it is the registry's JSON.
async fn said(response: reqwest::Response) -> String {
    let mut body = response.bytes_stream();
    let mut bytes = Vec::new();
    while let Some(Ok(piece)) = body.next().await {
        bytes.extend_from_slice(&piece);
        if bytes.len() > MAX_ERROR {
            bytes.truncate(MAX_ERROR);
            break;
        }
    }
    let json: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    let message = json
        .as_ref()
        .and_then(|v| v.pointer("/errors/0/message"))
        .and_then(|v| v.as_str());
    match message {
        Some(message) => clip(message),
        None => clip(&String::from_utf8_lossy(&bytes)),
    }
}

/// What oci-client reports, sorted by what can be done about it.
pub(super) fn failed(error: &OciDistributionError) -> Failed {
    use OciDistributionError as E;
    let text = chain(error);
    match error {
        E::AuthenticationFailure(said) if said.trim().is_empty() => {
            Failed::Unauthorized("the credentials were not accepted".to_owned())
        }
        E::AuthenticationFailure(_) | E::UnauthorizedError { .. } => Failed::Unauthorized(text),
        E::RequestError(e)
            if matches!(
                e.status(),
                Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            ) =>
        {
            Failed::Unauthorized(text)
        }
        E::RequestError(_) | E::IoError(_) => Failed::Transient(text),
        E::ServerError { code, .. } if *code >= 500 || *code == 429 => Failed::Transient(text),
        _ => Failed::Refused(text),
    }
}

/// An error with its causes, in one line, each said once.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    clip(&text)
}
