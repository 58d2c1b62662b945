//! The audit log: one line of JSON an event, as `audit.k8s.io/v1` has them at level `Metadata`.
//!
//! It says who asked for what, when, from where, and what the answer was. It never holds bodies, headers other than the
//! user agent, or credentials. A thread of its own writes; a request never waits for it. What cannot be written is
//! counted and the loss is said in the server's log at once and again, with the number, when writing works.
//!
//! The file is rotated by size: `FILE`, `FILE.1`, … up to [`KEPT`].

use std::fs::File;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use axum::body::Body;
use http::{Request, Response, StatusCode, header};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::auth::{RequestInfo, UserInfo};
use crate::front::in_flight::Held;
use crate::front::{Users, is_long_running};

/// How many older files are kept.
pub const KEPT: u32 = 5;
/// A file of this size is the last line's.
pub const ROTATE: u64 = 100 << 20;
/// Lines that wait for the disk; more are lost, and said to be.
const QUEUE: usize = 4096;
/// A user agent is cut after so many characters, a request line after more.
const AGENT: usize = 256;
const URI: usize = 4096;

/// An open audit log.
pub struct AuditLog {
    lines: Option<SyncSender<Vec<u8>>>,
    lost: Arc<AtomicU64>,
    writer: Option<JoinHandle<()>>,
}

impl AuditLog {
    /// Appends to a file, of mode 0600; `-` is the standard output. A file gets a successor at `rotate` bytes.
    pub fn open(path: &Path, rotate: u64) -> io::Result<Self> {
        let target = if path == Path::new("-") {
            Target::Stdout
        } else {
            let (file, size) = append(path)?;
            Target::File {
                path: path.to_owned(),
                file,
                size,
                rotate,
            }
        };
        let (lines, queue) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = lost.clone();
        let writer = std::thread::Builder::new()
            .name("audit-log".into())
            .spawn(move || write_lines(target, &queue, &counted))?;
        Ok(Self {
            lines: Some(lines),
            lost,
            writer: Some(writer),
        })
    }

    fn record(&self, event: &Value) {
        let mut line = event.to_string().into_bytes();
        line.push(b'\n');
        let sent = self
            .lines
            .as_ref()
            .is_some_and(|q| q.try_send(line).is_ok());
        if !sent && self.lost.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::error!("the audit log does not keep up: events are lost");
        }
    }
}

/// Waits until everything is written.
impl Drop for AuditLog {
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

enum Target {
    Stdout,
    File {
        path: PathBuf,
        file: File,
        size: u64,
        rotate: u64,
    },
}

impl Target {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(line)?;
                out.flush()
            }
            Self::File {
                path,
                file,
                size,
                rotate,
            } => {
                if *size > 0 && *size + line.len() as u64 > *rotate {
                    shift(path)?;
                    (*file, *size) = append(path)?;
                }
                // A line that was cut by a full disk is not continued by the next one.
                let written = file.write_all(line);
                match written {
                    Ok(()) => *size += line.len() as u64,
                    Err(_) => file.set_len(*size)?,
                }
                written
            }
        }
    }
}

fn append(path: &Path) -> io::Result<(File, u64)> {
    let file = File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let meta = file.metadata()?;
    if meta.is_file() {
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    }
    Ok((file, meta.len()))
}

/// `FILE` becomes `FILE.1`, that `FILE.2`, and the last one goes.
fn shift(path: &Path) -> io::Result<()> {
    let numbered = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    for n in (1..KEPT).rev() {
        match std::fs::rename(numbered(n), numbered(n + 1)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    std::fs::rename(path, numbered(1))
}

fn write_lines(mut target: Target, queue: &Receiver<Vec<u8>>, lost: &AtomicU64) {
    while let Ok(line) = queue.recv() {
        match target.write(&line) {
            Ok(()) => {
                let lost = lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    tracing::error!("the audit log works again; {lost} events were lost");
                }
            }
            Err(e) => {
                if lost.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::error!("the audit log cannot be written, events are lost: {e}");
                }
            }
        }
    }
}

/// One request on its way through.
pub(crate) struct Trace {
    log: Arc<AuditLog>,
    info: RequestInfo,
    id: String,
    uri: String,
    agent: String,
    peer: Option<IpAddr>,
    received: Timestamp,
}

impl Trace {
    pub(crate) fn new(
        log: Arc<AuditLog>,
        request: &Request<Body>,
        info: RequestInfo,
        peer: Option<IpAddr>,
        id: String,
    ) -> Self {
        let agent = request
            .headers()
            .get(header::USER_AGENT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let uri = request.uri();
        Self {
            log,
            info,
            id,
            uri: shown_uri(uri.path(), uri.query()),
            agent: agent.chars().take(AGENT).collect(),
            peer,
            received: Timestamp::now(),
        }
    }

    /// Records the answer once it is complete, and its beginning too if it may go on for long.
    pub(crate) fn follow(self, response: Response<Body>, users: &Users) -> Response<Body> {
        if matches!(self.info.path.as_str(), "/livez" | "/readyz" | "/healthz") {
            return response;
        }
        let mut event = self.event(users, response.status());
        if is_long_running(&self.info) && response.status().is_success() {
            event["stage"] = json!("ResponseStarted");
            event["stageTimestamp"] = json!(micros(Timestamp::now()));
            self.log.record(&event);
        }
        let ending = Ending {
            log: self.log,
            event,
        };
        response.map(|body| {
            Body::new(Held {
                body,
                _with: Some(ending),
            })
        })
    }

    fn event(&self, users: &Users, code: StatusCode) -> Value {
        let mut event = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": "Metadata",
            "auditID": self.id,
            "requestURI": self.uri,
            "verb": self.info.verb,
            "user": users.caller.get().map_or_else(|| json!({}), shown_user),
            "responseStatus": {"metadata": {}, "code": code.as_u16()},
            "requestReceivedTimestamp": micros(self.received),
        });
        if let Some(user) = users.impersonated.get() {
            event["impersonatedUser"] = shown_user(user);
        }
        if let Some(peer) = self.peer {
            event["sourceIPs"] = json!([peer.to_canonical().to_string()]);
        }
        if !self.agent.is_empty() {
            event["userAgent"] = json!(self.agent);
        }
        if self.info.is_resource {
            event["objectRef"] = self.object();
        }
        let decision = match code {
            StatusCode::UNAUTHORIZED => return event,
            StatusCode::FORBIDDEN => "forbid",
            _ => "allow",
        };
        event["annotations"] = json!({"authorization.k8s.io/decision": decision});
        event
    }

    fn object(&self) -> Value {
        let info = &self.info;
        let mut object = Map::new();
        for (field, text) in [
            ("resource", &info.resource),
            ("namespace", &info.namespace),
            ("name", &info.name),
            ("apiGroup", &info.group),
            ("apiVersion", &info.version),
            ("subresource", &info.subresource),
        ] {
            if !text.is_empty() {
                object.insert(field.into(), json!(text));
            }
        }
        Value::Object(object)
    }
}

/// Recorded when the answer has been taken, or the client has gone.
struct Ending {
    log: Arc<AuditLog>,
    event: Value,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.event["stage"] = json!("ResponseComplete");
        self.event["stageTimestamp"] = json!(micros(Timestamp::now()));
        self.log.record(&self.event);
    }
}

fn shown_user(user: &UserInfo) -> Value {
    json!({"username": user.name, "groups": user.groups})
}

fn micros(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// The request line without what could be a credential.
fn shown_uri(path: &str, query: Option<&str>) -> String {
    let mut shown = path.to_owned();
    for (at, pair) in query.into_iter().flat_map(|q| q.split('&')).enumerate() {
        shown.push(if at == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some((key, _)) if key.to_ascii_lowercase().contains("token") => {
                shown.push_str(key);
                shown.push_str("=REDACTED");
            }
            _ => shown.push_str(pair),
        }
    }
    if shown.len() > URI {
        shown.truncate(shown.floor_char_boundary(URI));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_do_not_show() {
        assert_eq!(
            shown_uri("/api", Some("access_token=abc&watch=1")),
            "/api?access_token=REDACTED&watch=1"
        );
        assert_eq!(shown_uri("/api", None), "/api");
    }

    #[test]
    fn rotates_and_keeps_a_bounded_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let log = AuditLog::open(&path, 200).unwrap();
        for n in 0..100 {
            log.record(&json!({"n": n, "pad": "x".repeat(60)}));
        }
        drop(log);
        let mut all: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .collect();
        all.sort_by_key(std::fs::DirEntry::file_name);
        assert_eq!(all.len(), KEPT as usize + 1);
        for entry in &all {
            let meta = entry.metadata().unwrap();
            assert!(meta.len() <= 200, "{entry:?}");
            assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        }
        let newest = std::fs::read_to_string(&path).unwrap();
        assert!(
            newest
                .trim_end()
                .lines()
                .last()
                .unwrap()
                .contains("\"n\":99")
        );
    }

    #[test]
    fn what_is_lost_is_counted_and_nothing_waits() {
        // Every write to it fails as on a full disk.
        let log = AuditLog::open(Path::new("/dev/full"), ROTATE);
        let Ok(log) = log else {
            panic!("{:?}", log.err());
        };
        for _ in 0..10 {
            log.record(&json!({}));
        }
        let lost = log.lost.clone();
        drop(log);
        assert_eq!(lost.load(Ordering::Relaxed), 10);
    }
}
