//! Requests to one repository of a registry.

use std::error::Error;
use std::time::Duration;

use futures::StreamExt as _;
use http::StatusCode;
use http::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE};

use super::{PullError, PullOptions};
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MAX_MANIFEST, OCI_INDEX, OCI_MANIFEST, clip};
use crate::{Credentials, Digest, ImageRef};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const USER_AGENT: &str = concat!("berth/", env!("CARGO_PKG_VERSION"));
/// What is read of an error's body.
const MAX_ERROR: usize = 4096;

/// What is to be done with a repository, as token servers distinguish it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Pull,
    Push,
}

/// Speaks to the registry of one image.
pub(super) struct Client {
    pub(super) http: reqwest::Client,
    /// Without a limit to the silence before the answer, which is long where much is sent.
    pub(super) upload: reqwest::Client,
    /// Scheme, host and port.
    pub(super) origin: String,
    /// The address of the repository.
    pub(super) base: String,
    pub(super) repository: String,
    pub(super) credentials: Option<Credentials>,
    pub(super) plain_http: bool,
    /// Longest silence.
    pub(super) patience: Duration,
    operation: Operation,
    image: String,
    registry: String,
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
        patience: Duration,
        operation: Operation,
    ) -> Result<Self, String> {
        let builder = || {
            reqwest::Client::builder()
                .user_agent(USER_AGENT)
                .connect_timeout(CONNECT_TIMEOUT)
                // A redirect must not take what was asked for securely over a plain connection.
                .https_only(!options.plain_http)
        };
        let http = builder()
            .read_timeout(patience)
            .build()
            .map_err(|e| chain(&e))?;
        let upload = builder().build().map_err(|e| chain(&e))?;
        let scheme = if options.plain_http { "http" } else { "https" };
        let host = match image.registry() {
            "docker.io" => "index.docker.io",
            other => other,
        };
        let origin = format!("{scheme}://{host}");
        Ok(Self {
            http,
            upload,
            base: format!("{origin}/v2/{}", image.repository()),
            origin,
            repository: image.repository().to_owned(),
            credentials: options.credentials.clone(),
            plain_http: options.plain_http,
            patience,
            operation,
            image: image.to_string(),
            registry: image.registry().to_owned(),
            authorization: tokio::sync::Mutex::default(),
        })
    }

    /// Finds out how the registry wants to be asked, and gets a token where it gives tokens.
    pub(super) async fn authenticate(&self) -> Result<(), Failed> {
        let header = self.authorization(self.operation).await?;
        *self.authorization.lock().await = header;
        Ok(())
    }

    /// The request with what [`Client::authenticate`] found out.
    pub(super) async fn authorized(
        &self,
        request: reqwest::RequestBuilder,
    ) -> reqwest::RequestBuilder {
        match &*self.authorization.lock().await {
            Some(authorization) => request.header(AUTHORIZATION, authorization),
            None => request,
        }
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
        let most = usize::try_from(MAX_MANIFEST).unwrap_or(usize::MAX);
        let bytes = body(response, most, "a manifest").await?;
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

    async fn get(&self, path: &str, headers: HeaderMap) -> Result<reqwest::Response, Failed> {
        let request = || {
            self.http
                .get(format!("{}/{path}", self.base))
                .headers(headers.clone())
        };
        self.send(request).await
    }

    /// One request; when the token ran out, a second one with a new token. Only an answer of success is returned.
    pub(super) async fn send(
        &self,
        request: impl Fn() -> reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, Failed> {
        let mut renewed = false;
        loop {
            let response = self
                .authorized(request())
                .await
                .send()
                .await
                .map_err(|e| Failed::Transient(chain(&e)))?;
            if response.status() == StatusCode::UNAUTHORIZED && !renewed {
                self.authenticate().await?;
                renewed = true;
                continue;
            }
            return accepted(response).await;
        }
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

/// The answer, if it is one of success.
pub(super) async fn accepted(response: reqwest::Response) -> Result<reqwest::Response, Failed> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let said = said(response).await;
    let text = if said.is_empty() {
        status.to_string()
    } else {
        format!("{status}: {said}")
    };
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failed::Unauthorized(text),
        StatusCode::NOT_FOUND => Failed::NotFound,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Failed::Transient(text),
        _ if status.is_server_error() => Failed::Transient(text),
        _ => Failed::Refused(text),
    })
}

/// The whole of an answer that must not be longer than `most` bytes.
pub(super) async fn body(
    response: reqwest::Response,
    most: usize,
    what: &str,
) -> Result<Vec<u8>, Failed> {
    let mut bytes = Vec::new();
    let mut body = response.bytes_stream();
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece.map_err(|e| Failed::Transient(chain(&e)))?);
        if bytes.len() > most {
            return Err(Failed::Refused(format!("{what} of more than {most} bytes")));
        }
    }
    Ok(bytes)
}

/// The beginning of an error's body; the message in it when it is the registry's JSON.
pub(super) async fn said(response: reqwest::Response) -> String {
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

/// An error with its causes, in one line, each said once.
pub(crate) fn chain(error: &dyn Error) -> String {
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
