//! An image on a web server: by ranges, several at once and ahead of the reader, where the server gives them; else as one
//! stream. A broken answer is asked for again from the byte on where it broke, a bounded number of times.
//!
//! No HEAD is sent: the first answer to a range tells all. Credentials and headers of the user's go to the host that was
//! named and are not taken along to another one; what was asked for by https is not followed to http.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use http::StatusCode;
use http::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE};
use reqwest::{Response, Url};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::source::{Source, SourceError};
use crate::format::HEAD;
use crate::registry::client::chain;

/// Bytes of one request.
const CHUNK: u64 = 2 << 20;
/// Chunks that are on the way or wait for the reader.
const AHEAD: usize = 4;
/// Holes in a plan up to this size are fetched: cheaper than another request.
const GAP: u64 = 128 << 10;
const REDIRECTS: usize = 10;
/// How often a stream that cannot be resumed is begun anew.
const RESTARTS: u32 = 2;

/// What to ask, and how.
#[derive(Clone)]
pub struct Http {
    /// The address, http or https.
    pub url: String,
    /// User and password.
    pub credentials: Option<(String, String)>,
    /// More headers, as `name: value`.
    pub headers: Vec<String>,
    /// Authorities to trust beside the system's, as PEM.
    pub authorities: Vec<Vec<u8>>,
    /// Whether any certificate will do.
    pub insecure: bool,
    /// The longest silence.
    pub patience: Duration,
    /// Attempts without a new byte before it has failed.
    pub attempts: u32,
    /// The pause after the first of them; doubled each time.
    pub pause: Duration,
}

impl Http {
    /// As most servers want it.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            credentials: None,
            headers: Vec::new(),
            authorities: Vec::new(),
            insecure: false,
            patience: Duration::from_secs(60),
            attempts: 6,
            pause: Duration::from_millis(500),
        }
    }
}

impl std::fmt::Debug for Http {
    /// Without what nobody else is to read.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http")
            .field("url", &shown(&self.url))
            .finish_non_exhaustive()
    }
}

/// An address without the password and the query, which may be a signature.
fn shown(url: &str) -> String {
    let Ok(mut url) = Url::parse(url) else {
        return url.chars().take(200).collect();
    };
    let _ = url.set_password(None);
    let _ = url.set_username("");
    if url.query().is_some() {
        url.set_query(Some("…"));
    }
    url.to_string().replace("%E2%80%A6", "…")
}

/// Why a request failed.
enum Failed {
    /// Worth another attempt.
    Transient(String),
    Final(String),
}

/// The server.
struct Remote {
    client: reqwest::Client,
    options: Http,
    origin: Url,
    headers: HeaderMap,
    /// Where redirects led.
    resolved: Mutex<Url>,
    came: AtomicU64,
}

/// What the first answer told.
pub(super) enum Opened {
    Ranges(HttpSource),
    /// The stream, and its length where the server told one.
    Stream(HttpStream, Option<u64>),
}

/// Asks for the beginning. Blocking, on a thread that is none of the runtime's.
pub(super) fn open(options: &Http, handle: &Handle) -> Result<Opened, SourceError> {
    let remote = Arc::new(Remote::new(options)?);
    let first = handle.block_on(remote.first())?;
    Ok(match first {
        First::Ranges { head, size, tag } => Opened::Ranges(HttpSource {
            remote,
            handle: handle.clone(),
            size,
            tag,
            head,
            planned: VecDeque::new(),
            flights: VecDeque::new(),
            current: (0..0, Vec::new()),
        }),
        First::Stream(response) => {
            let length = response.content_length();
            let stream = HttpStream {
                remote,
                handle: handle.clone(),
                length,
                tag: tag(&response),
                response: Some(response),
                piece: bytes::Bytes::new(),
                at: 0,
                restarts: 0,
            };
            Opened::Stream(stream, length)
        }
    })
}

enum First {
    Ranges {
        head: Vec<u8>,
        size: u64,
        tag: Option<HeaderValue>,
    },
    Stream(Response),
}

impl Remote {
    fn new(options: &Http) -> Result<Self, SourceError> {
        let bad = |what: String| SourceError::for_good(format!("{}: {what}", shown(&options.url)));
        let origin = Url::parse(&options.url).map_err(|e| bad(e.to_string()))?;
        if !matches!(origin.scheme(), "http" | "https") {
            return Err(bad("not an http or https address".to_owned()));
        }
        let mut headers = HeaderMap::new();
        for line in &options.headers {
            // The line may be a secret, so it is not repeated.
            let parsed = line.split_once(':').and_then(|(name, value)| {
                let name = HeaderName::try_from(name.trim()).ok()?;
                Some((name, HeaderValue::try_from(value.trim()).ok()?))
            });
            let (name, value) =
                parsed.ok_or_else(|| bad("an extra header is not `name: value`".to_owned()))?;
            headers.append(name, value);
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(options.patience)
            .redirect(reqwest::redirect::Policy::none())
            .tls_danger_accept_invalid_certs(options.insecure);
        let mut authorities = Vec::new();
        for pem in &options.authorities {
            let found = reqwest::Certificate::from_pem_bundle(pem)
                .map_err(|e| bad(format!("an authority is no certificate: {}", chain(&e))))?;
            authorities.extend(found);
        }
        if !authorities.is_empty() {
            builder = builder.tls_certs_merge(authorities);
        }
        Ok(Self {
            client: builder.build().map_err(|e| bad(chain(&e)))?,
            options: options.clone(),
            resolved: Mutex::new(origin.clone()),
            origin,
            headers,
            came: AtomicU64::new(0),
        })
    }

    /// What the server said in so many words.
    fn refused(&self, cause: &str) -> SourceError {
        SourceError::for_good(format!("{}: {cause}", shown(&self.options.url)))
    }

    fn failed(&self, cause: &str) -> SourceError {
        SourceError::new(format!("{}: {cause}", shown(&self.options.url)))
    }

    /// One request, redirects followed. Only an answer of success is returned.
    async fn get(&self, range: Option<&Range<u64>>) -> Result<Response, Failed> {
        let mut url = self
            .resolved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let was_resolved = url != self.origin;
        for _ in 0..=REDIRECTS {
            let mut request = self.client.get(url.clone());
            // With the port: another service of the same machine is another host.
            if url.origin() == self.origin.origin() {
                request = request.headers(self.headers.clone());
                if let Some((user, password)) = &self.options.credentials {
                    request = request.basic_auth(user, Some(password));
                }
            }
            if let Some(range) = range {
                request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
            }
            let answer = request.send().await;
            let response = answer.map_err(|e| Failed::Transient(chain(&e.without_url())))?;
            let status = response.status();
            if status.is_redirection() {
                let location = response
                    .headers()
                    .get(LOCATION)
                    .and_then(|l| l.to_str().ok());
                let next = location.and_then(|location| url.join(location).ok());
                let next =
                    next.ok_or_else(|| Failed::Final(format!("{status} without an address")))?;
                if url.scheme() == "https" && next.scheme() != "https" {
                    return Err(Failed::Final(format!(
                        "{status} leads from https to {}",
                        next.scheme()
                    )));
                }
                url = next;
                continue;
            }
            if status.is_success() {
                *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = url;
                return Ok(response);
            }
            let text = format!("the server answers {status}");
            // The address that redirects gave may have been good for a while only.
            *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = self.origin.clone();
            let again = status.is_server_error()
                || matches!(
                    status,
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                )
                || was_resolved;
            return Err(if again {
                Failed::Transient(text)
            } else {
                Failed::Final(text)
            });
        }
        Err(Failed::Final(format!("more than {REDIRECTS} redirects")))
    }

    async fn pause(&self, attempt: u32) {
        tokio::time::sleep(self.options.pause * 2u32.pow(attempt.saturating_sub(1).min(5))).await;
    }

    async fn first(&self) -> Result<First, SourceError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let cause = match self.try_first().await {
                Ok(first) => return Ok(first),
                Err(Failed::Final(cause)) => return Err(self.refused(&cause)),
                Err(Failed::Transient(cause)) => cause,
            };
            if attempt >= self.options.attempts {
                return Err(self.failed(&format!("{cause} ({attempt} attempts)")));
            }
            tracing::warn!(attempt, cause, "asking again");
            self.pause(attempt).await;
        }
    }

    async fn try_first(&self) -> Result<First, Failed> {
        let mut response = self.get(Some(&(0..HEAD as u64))).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(First::Stream(response));
        }
        let told = content_range(&response);
        let Some((0, end, Some(size))) = told else {
            // Ranges, but not in a way that can be relied on.
            response = self.get(None).await?;
            return Ok(First::Stream(response));
        };
        let tag = tag(&response);
        let mut head = Vec::new();
        self.body(response, end, &mut head)
            .await
            .map_err(Failed::Transient)?;
        Ok(First::Ranges { head, size, tag })
    }

    /// Adds what comes to `into`, which is not to become longer than `most`.
    async fn body(&self, response: Response, most: u64, into: &mut Vec<u8>) -> Result<(), String> {
        let mut body = response.bytes_stream();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|e| chain(&e.without_url()))?;
            self.came.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if into.len() as u64 + piece.len() as u64 > most {
                return Err("the server sends more than was asked for".to_owned());
            }
            into.extend_from_slice(&piece);
        }
        if (into.len() as u64) < most {
            return Err("the server broke off".to_owned());
        }
        Ok(())
    }

    /// A part of the file, whole.
    async fn fetch(
        self: Arc<Self>,
        range: Range<u64>,
        size: u64,
        expected: Option<HeaderValue>,
    ) -> Result<Vec<u8>, SourceError> {
        let length = range.end - range.start;
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        let mut attempt = 0;
        loop {
            let before = bytes.len();
            let at = range.start + before as u64;
            let cause = match self.get(Some(&(at..range.end))).await {
                Ok(response) if response.status() != StatusCode::PARTIAL_CONTENT => {
                    return Err(
                        self.failed("the server gave a part of the file before and now does not")
                    );
                }
                Ok(response) => {
                    let told = content_range(&response);
                    let right = matches!(told, Some((start, _, Some(total))) if start == at && total == size);
                    if !right || tag(&response) != expected {
                        return Err(self.failed("the file was changed while it was read"));
                    }
                    match self.body(response, length, &mut bytes).await {
                        Ok(()) => return Ok(bytes),
                        Err(cause) => cause,
                    }
                }
                Err(Failed::Final(cause)) => return Err(self.refused(&cause)),
                Err(Failed::Transient(cause)) => cause,
            };
            attempt = if bytes.len() > before { 1 } else { attempt + 1 };
            if attempt >= self.options.attempts {
                let at = range.start + bytes.len() as u64;
                return Err(self.failed(&format!("{cause}, at byte {at} ({attempt} attempts)")));
            }
            tracing::warn!(at, attempt, cause, "going on at this byte");
            self.pause(attempt).await;
        }
    }
}

fn tag(response: &Response) -> Option<HeaderValue> {
    response.headers().get(ETAG).cloned()
}

/// `bytes 0-99/1234` as start, end (exclusive) and size.
fn content_range(response: &Response) -> Option<(u64, u64, Option<u64>)> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let (start, last): (u64, u64) = (start.parse().ok()?, last.parse().ok()?);
    let size = size.parse().ok();
    let end = last.checked_add(1)?;
    (start < end && size.is_none_or(|size| end <= size)).then_some((start, end, size))
}

/// A chunk that is on its way.
struct Flight {
    range: Range<u64>,
    task: JoinHandle<Result<Vec<u8>, SourceError>>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A file of a server that gives ranges.
pub(super) struct HttpSource {
    remote: Arc<Remote>,
    handle: Handle,
    size: u64,
    tag: Option<HeaderValue>,
    head: Vec<u8>,
    planned: VecDeque<Range<u64>>,
    flights: VecDeque<Flight>,
    current: (Range<u64>, Vec<u8>),
}

impl HttpSource {
    fn launch(&mut self) {
        while self.flights.len() < AHEAD
            && let Some(range) = self.planned.pop_front()
        {
            let fetch = Arc::clone(&self.remote).fetch(range.clone(), self.size, self.tag.clone());
            let task = self.handle.spawn(fetch);
            self.flights.push_back(Flight { range, task });
        }
    }

    /// Makes the chunk with the byte `at` the current one.
    fn turn_to(&mut self, at: u64, length: usize) -> Result<(), SourceError> {
        let flying = self
            .flights
            .iter()
            .position(|flight| flight.range.contains(&at));
        if flying.is_none()
            && let Some(index) = self.planned.iter().position(|range| range.contains(&at))
        {
            self.planned.drain(..index);
            self.flights.clear();
            self.launch();
        }
        let flying = self
            .flights
            .iter()
            .position(|flight| flight.range.contains(&at));
        let (range, bytes) = if let Some(index) = flying {
            self.flights.drain(..index);
            let mut flight = self.flights.pop_front().expect("its place is known");
            let bytes = self.handle.block_on(&mut flight.task);
            let bytes =
                bytes.map_err(|_| SourceError::new("the download was stopped".to_owned()))??;
            (flight.range.clone(), bytes)
        } else {
            let range = at..self.size.min(at + length as u64);
            let fetch = Arc::clone(&self.remote).fetch(range.clone(), self.size, self.tag.clone());
            (range, self.handle.block_on(fetch)?)
        };
        self.launch();
        self.current = (range, bytes);
        Ok(())
    }
}

impl Source for HttpSource {
    fn size(&self) -> Option<u64> {
        Some(self.size)
    }

    fn plan(&mut self, ranges: &[Range<u64>]) {
        for range in ranges {
            let (mut start, end) = (range.start, range.end.min(self.size));
            if let Some(last) = self.planned.back_mut()
                && start >= last.end
                && start - last.end <= GAP
                && last.end - last.start < CHUNK
            {
                let until = end.min(last.start + CHUNK).max(last.end);
                last.end = until;
                start = start.max(until);
            }
            while start < end {
                let until = end.min(start + CHUNK);
                self.planned.push_back(start..until);
                start = until;
            }
        }
        self.launch();
    }

    fn read(&mut self, at: u64, length: usize, buffer: &mut Vec<u8>) -> Result<(), SourceError> {
        buffer.clear();
        let end = self.size.min(at.saturating_add(length as u64));
        let mut at = at;
        while at < end {
            let here = if at < self.head.len() as u64 {
                (0, &self.head)
            } else {
                if !self.current.0.contains(&at) {
                    let left = usize::try_from(end - at).expect("asked for");
                    self.turn_to(at, left)?;
                }
                (self.current.0.start, &self.current.1)
            };
            let from = usize::try_from(at - here.0).expect("inside a chunk");
            let n = (here.1.len() - from).min(usize::try_from(end - at).expect("asked for"));
            buffer.extend_from_slice(&here.1[from..from + n]);
            at += n as u64;
        }
        Ok(())
    }

    fn came(&self) -> u64 {
        self.remote.came.load(Ordering::Relaxed)
    }
}

/// A file of a server that gives it whole only.
pub(super) struct HttpStream {
    remote: Arc<Remote>,
    handle: Handle,
    length: Option<u64>,
    tag: Option<HeaderValue>,
    response: Option<Response>,
    piece: bytes::Bytes,
    at: u64,
    restarts: u32,
}

impl HttpStream {
    /// Begins anew and passes over what came before.
    async fn restart(&mut self) -> Result<(), String> {
        self.remote.pause(self.restarts).await;
        let response = self.remote.get(None).await.map_err(|failed| match failed {
            Failed::Transient(cause) | Failed::Final(cause) => cause,
        })?;
        if tag(&response) != self.tag || response.content_length() != self.length {
            return Err("the file was changed while it was read".to_owned());
        }
        self.response = Some(response);
        let mut left = self.at;
        while left > 0 {
            let piece = self.next().await?;
            let mut piece = piece.ok_or("the server broke off")?;
            let n = left.min(piece.len() as u64);
            self.piece = piece.split_off(usize::try_from(n).expect("a part of a piece"));
            left -= n;
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<bytes::Bytes>, String> {
        let Some(response) = &mut self.response else {
            return Err("the server broke off".to_owned());
        };
        let piece = response.chunk().await;
        let piece = piece.map_err(|e| chain(&e.without_url()))?;
        if let Some(piece) = &piece {
            self.remote
                .came
                .fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        Ok(piece)
    }

    async fn fill(&mut self) -> Result<(), SourceError> {
        while self.piece.is_empty() {
            let cause = match self.next().await {
                Ok(Some(piece)) => {
                    self.piece = piece;
                    continue;
                }
                Ok(None) if self.length.is_none_or(|length| self.at >= length) => return Ok(()),
                Ok(None) => "the server broke off".to_owned(),
                Err(cause) => cause,
            };
            self.response = None;
            let mut cause = cause;
            loop {
                if self.restarts >= RESTARTS {
                    let text = format!(
                        "{cause}, at byte {} of a file that the server gives whole only ({} attempts)",
                        self.at,
                        self.restarts + 1
                    );
                    return Err(self.remote.failed(&text));
                }
                self.restarts += 1;
                tracing::warn!(
                    at = self.at,
                    cause,
                    "beginning anew: the server gives no parts of files"
                );
                match self.restart().await {
                    Ok(()) => break,
                    Err(again) => cause = again,
                }
            }
        }
        Ok(())
    }
}

impl Read for HttpStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            let handle = self.handle.clone();
            handle.block_on(self.fill()).map_err(io::Error::other)?;
        }
        let n = self.piece.len().min(into.len());
        into[..n].copy_from_slice(&self.piece.split_to(n));
        self.at += n as u64;
        Ok(n)
    }
}
