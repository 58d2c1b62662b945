//! The front door: what every request that comes by a socket passes, whoever it is from and whatever it asks.
//!
//! - [`in_flight`]: how many requests one user may have under way.
//! - [`slow`]: how long a client may take to send and to read.
//! - [`audit`]: who asked for what, and what came of it.
//!
//! A request is received here, its user becomes known further in ([`known`]), and its answer leaves here.

pub mod audit;
pub(crate) mod in_flight;
pub(crate) mod slow;

use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use http::{HeaderValue, Request, Response};
use uuid::Uuid;

use crate::auth::{RequestInfo, UserInfo};
use crate::front::audit::{AuditLog, Trace};
use crate::front::in_flight::{InFlight, Permit};

/// How much a client may ask for and how long it may take. The defaults suit one machine.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests of one user that are answered at the same time.
    pub requests: usize,
    /// Watches, logs and consoles of one user, which are not counted as requests.
    pub long_running: usize,
    /// For the headers of a request; as long is a connection kept that is not used.
    pub header: Duration,
    /// For the body of a request.
    pub body: Duration,
    /// How long a client may take nothing of what is there for it.
    pub stalled: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 400,
            long_running: 2000,
            header: Duration::from_secs(32),
            body: Duration::from_secs(60),
            stalled: Duration::from_secs(60),
        }
    }
}

/// The door of one server; clones are the same door.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) limits: Limits,
    in_flight: Arc<InFlight>,
    audit: Option<Arc<AuditLog>>,
}

/// In a request's extensions: filled once it is known who asks.
#[derive(Clone, Default)]
struct Asker(Arc<OnceLock<UserInfo>>);

/// Tells the door who asks.
pub(crate) fn known(request: &Request<Body>, user: &UserInfo) {
    if let Some(asker) = request.extensions().get::<Asker>() {
        // Whoever is known stays so: the first answer is that of authentication.
        let _ = asker.0.set(user.clone());
    }
}

impl Door {
    pub(crate) fn new(limits: Limits, audit: Option<Arc<AuditLog>>) -> Self {
        let in_flight = Arc::new(InFlight::new(limits.requests, limits.long_running));
        Self {
            limits,
            in_flight,
            audit,
        }
    }

    /// Lets a user's request in, or not: 429.
    pub(crate) fn enter(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
    ) -> Result<Permit, Response<Body>> {
        self.in_flight.enter(&user.name, is_long_running(info))
    }

    /// Carries one request through.
    pub(crate) async fn pass<F: Future<Output = Response<Body>>>(
        self,
        request: Request<Body>,
        peer: Option<IpAddr>,
        answer: impl FnOnce(Request<Body>) -> F,
    ) -> Response<Body> {
        let asker = Asker::default();
        let id = audit_id(&request);
        let trace = self.audit.as_ref().map(|log| {
            let info = RequestInfo::parse(request.method(), request.uri());
            Trace::new(log.clone(), &request, info, peer, id.clone())
        });
        let limit = self.limits.body;
        let mut request = request.map(|body| slow::timed(body, limit));
        request.extensions_mut().insert(asker.clone());
        let mut response = answer(request).await;
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert("audit-id", value);
        }
        match trace {
            Some(trace) => trace.follow(response, asker.0.get()),
            None => response,
        }
    }
}

/// The client's own id, if it looks like one.
fn audit_id(request: &Request<Body>) -> String {
    request
        .headers()
        .get("audit-id")
        .and_then(|value| value.to_str().ok())
        .filter(|id| {
            (1..=64).contains(&id.len())
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
        .map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

/// Requests that may go on for as long as the client likes, as upstream tells them.
fn is_long_running(info: &RequestInfo) -> bool {
    info.verb == "watch"
        || matches!(
            info.subresource.as_str(),
            "attach" | "exec" | "proxy" | "log" | "portforward" | "console" | "vnc"
        )
}
