//! Watches: a list as `ADDED` events where the client asks for one, then every later write.
//!
//! # States
//! ```text
//!  start ── resourceVersion unset or 0, or sendInitialEvents ──► Initial ──► (bookmark) ─┐
//!     └──── resourceVersion N ──────────────────────────────────────────────────────────► Follow ──► End
//!  Follow: store event ──► ADDED | MODIFIED | DELETED as the selection sees it
//!          a minute of quiet ──► BOOKMARK          ring has moved past us ──► ERROR 410, End
//!          timeoutSeconds, server stops, definition or version gone ──► End
//! ```
//! # Guarantees
//! Events come in revision order and none is left out: one who cannot be served completely is told `410 Gone` and lists anew.
//! An object that enters or leaves the selection by a change is seen as added or deleted.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use k8s_openapi::jiff::Timestamp;
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::registry::catalog::Scope;
use crate::registry::content::{self, View};
use crate::registry::query::Call;
use crate::registry::selector::Selector;
use crate::registry::{Core, meta, raw, store_error};
use crate::store::{Event, Query, Subscription};
use crate::table;

/// A quiet watch gets a bookmark this often, so that it can go on from a recent revision.
const BOOKMARK: Duration = Duration::from_secs(60);
/// The longest that a client without a timeout of its own is served, in seconds; up to twice that, so that not all come back at once.
const DEFAULT_TIMEOUT: u64 = 1800;

/// Answers a watch request with a stream of JSON lines.
pub(crate) fn start(
    core: &Arc<Core>,
    call: &Call,
    scope: &Scope,
) -> Result<Response<Body>, ApiError> {
    let selector = call.selector()?;
    let asked = call.query.number("resourceVersion")?.unwrap_or(0);
    let send_initial = match call.query.get("sendInitialEvents") {
        "" => None,
        _ => Some(call.query.flag("sendInitialEvents")),
    };
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let namespace = call.list_namespace(scope.def.namespaced);
    let seconds = call.query.number("timeoutSeconds")?.filter(|s| *s > 0);
    let seconds =
        seconds.unwrap_or_else(|| rand::rng().random_range(DEFAULT_TIMEOUT..2 * DEFAULT_TIMEOUT));

    let ring = core.store.ring();
    // A revision from the future is that of another store's life: what the client has is worth nothing here.
    if asked > ring.head() {
        return Err(ApiError::Expired(format!(
            "too large resource version: {asked} ({})",
            ring.head()
        )));
    }
    let initial = send_initial.unwrap_or(asked == 0);
    let mut watch = Watch {
        core: core.clone(),
        scope: scope.clone(),
        selector,
        view: call.view,
        headers_sent: false,
        namespace: namespace.clone(),
    };
    let mut out = Vec::new();
    let subscription = if initial {
        // Subscribed first, so that nothing between the two is lost; what the list shows is skipped.
        let head = ring.head();
        let mut subscription = ring
            .subscribe(head)
            .map_err(|e| ApiError::Expired(e.to_string()))?;
        let query = Query {
            resource: scope.resource.clone(),
            namespace,
            after: None,
            limit: None,
        };
        let page = core.store.list(&query).map_err(|e| store_error(&e))?;
        for stored in &page.items {
            let object = scope.present(stored)?;
            if watch.selector.matches(&object) {
                watch.emit(&mut out, "ADDED", object);
            }
        }
        subscription.skip_to(page.revision);
        if send_initial == Some(true) && bookmarks {
            watch.bookmark(&mut out, page.revision, true);
        }
        subscription
    } else {
        let from = if asked == 0 { ring.head() } else { asked };
        ring.subscribe(from)
            .map_err(|e| ApiError::Expired(e.to_string()))?
    };

    let state = Follow {
        watch,
        subscription,
        pending: Some(out.into()),
        deadline: Instant::now() + Duration::from_secs(seconds),
        bookmarks: bookmarks.then(|| Instant::now() + BOOKMARK),
        end: call.end.clone().unwrap_or_default(),
        done: false,
    };
    let stream = futures::stream::unfold(state, |mut state| async move {
        state
            .next()
            .await
            .map(|bytes| (Ok::<_, std::convert::Infallible>(bytes), state))
    });
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    content::warn(headers, &call.warnings);
    Ok(response)
}

/// What the client wants to see, and how.
struct Watch {
    core: Arc<Core>,
    scope: Scope,
    selector: Selector,
    view: View,
    /// Column definitions go with the first table only.
    headers_sent: bool,
    namespace: Option<String>,
}

impl Watch {
    /// Adds one line.
    fn emit(&mut self, out: &mut Vec<u8>, kind: &str, object: Value) {
        let shown = match self.view {
            View::Plain => object,
            View::Metadata => content::partial(&object),
            // Tables have no bookmarks to speak of: a table without rows carries the revision.
            View::Table { version, include } => {
                let list_meta = json!({"resourceVersion": meta::resource_version(&object)});
                let rows: &[Value] = if kind == "BOOKMARK" {
                    &[]
                } else {
                    std::slice::from_ref(&object)
                };
                let (name, headers) = (&self.scope.version().name, !self.headers_sent);
                self.headers_sent = true;
                table::render(
                    &self.scope.def,
                    name,
                    rows,
                    list_meta,
                    include,
                    version,
                    headers,
                    Timestamp::now(),
                )
            }
        };
        out.extend_from_slice(
            json!({"type": kind, "object": shown})
                .to_string()
                .as_bytes(),
        );
        out.push(b'\n');
    }

    fn bookmark(&mut self, out: &mut Vec<u8>, revision: u64, end_of_initial: bool) {
        let mut metadata =
            json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if end_of_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({"kind": self.scope.def.kind, "apiVersion": self.scope.api_version(), "metadata": metadata});
        self.emit(out, "BOOKMARK", object);
    }

    fn error(out: &mut Vec<u8>, error: &ApiError) {
        out.extend_from_slice(
            json!({"type": "ERROR", "object": error.status()})
                .to_string()
                .as_bytes(),
        );
        out.push(b'\n');
    }

    /// Turns a write into what the selection sees of it.
    fn translate(&mut self, out: &mut Vec<u8>, event: &Event) -> Result<(), ApiError> {
        if event.key.resource != self.scope.resource
            || self
                .namespace
                .as_ref()
                .is_some_and(|namespace| *namespace != event.key.namespace)
        {
            return Ok(());
        }
        if self.translate_stored(out, event) {
            return Ok(());
        }
        let now = self
            .scope
            .present_event(event, false)?
            .filter(|object| self.selector.matches(object));
        let was_needed = now.is_none() || !self.selector.is_everything();
        let was = if was_needed {
            self.scope
                .present_event(event, true)?
                .filter(|object| self.selector.matches(object))
        } else {
            None
        };
        let existed = if was_needed {
            was.is_some()
        } else {
            event.previous.is_some()
        };
        match (now, was) {
            (Some(now), _) => self.emit(out, if existed { "MODIFIED" } else { "ADDED" }, now),
            (None, Some(was)) => self.emit(out, "DELETED", was),
            (None, None) => {}
        }
        Ok(())
    }

    /// The same for one who sees everything as it is stored. Says whether it did it.
    fn translate_stored(&self, out: &mut Vec<u8>, event: &Event) -> bool {
        if self.view != View::Plain
            || !self.selector.is_everything()
            || !self.scope.shows_stored(event.revision)
        {
            return false;
        }
        let (kind, value) = match (&event.value, &event.previous) {
            (Some(now), None) => ("ADDED", now),
            (Some(now), Some(_)) => ("MODIFIED", now),
            // What goes may be older than its definition.
            (None, _) => return false,
        };
        let begin = out.len();
        out.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
        if raw::append(out, value, event.revision, false).is_err() {
            out.truncate(begin);
            return false;
        }
        out.extend_from_slice(b"}\n");
        true
    }

    /// Whether the resource is still served in the version that is watched.
    fn is_served(&self) -> bool {
        let def = &self.scope.def;
        self.core
            .catalog
            .get()
            .find(&def.group, &def.plural)
            .is_some_and(|now| now.served_version(&self.scope.version().name).is_some())
    }
}

/// The state of the stream.
struct Follow {
    watch: Watch,
    subscription: Subscription,
    /// Goes out first.
    pending: Option<Bytes>,
    deadline: Instant,
    /// When the next bookmark is due, where they are wanted: a client that sees no events of its own still learns how
    /// far it has come, however busy the rest of the store is.
    bookmarks: Option<Instant>,
    end: CancellationToken,
    done: bool,
}

impl Follow {
    /// The next bytes; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(pending) = self.pending.take().filter(|bytes| !bytes.is_empty()) {
            return Some(pending);
        }
        while !self.done {
            let mut out = Vec::new();
            let due = self.bookmarks.unwrap_or(self.deadline);
            tokio::select! {
                biased;
                () = self.end.cancelled() => self.done = true,
                () = tokio::time::sleep_until(self.deadline) => {
                    self.done = true;
                    if self.bookmarks.is_some() {
                        let seen = self.subscription.seen();
                        self.watch.bookmark(&mut out, seen, false);
                    }
                }
                () = tokio::time::sleep_until(due), if self.bookmarks.is_some() => {
                    let seen = self.subscription.seen();
                    self.watch.bookmark(&mut out, seen, false);
                }
                events = self.subscription.next() => match events {
                    Ok(events) => {
                        for event in events {
                            if let Err(e) = self.watch.translate(&mut out, &event) {
                                Watch::error(&mut out, &e);
                                self.done = true;
                                break;
                            }
                        }
                        self.done |= self.watch.scope.def.crd && !self.watch.is_served();
                    }
                    Err(old) => {
                        Watch::error(&mut out, &ApiError::Expired(old.to_string()));
                        self.done = true;
                    }
                },
            }
            if !out.is_empty() {
                self.bookmarks = self.bookmarks.map(|_| Instant::now() + BOOKMARK);
                return Some(out.into());
            }
        }
        None
    }
}
