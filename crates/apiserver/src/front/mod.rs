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
use http::{Extensions, HeaderValue, Request, Response};
use uuid::Uuid;

use crate::auth::{RequestInfo, UserInfo};
use crate::error::ApiError;
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
struct Asker(Arc<Users>);

/// Who asks, and as whom the request runs if that is another.
#[derive(Default)]
pub(crate) struct Users {
    caller: OnceLock<UserInfo>,
    impersonated: OnceLock<UserInfo>,
}

/// Tells the door who asks.
pub(crate) fn known(extensions: &Extensions, caller: &UserInfo) {
    if let Some(asker) = extensions.get::<Asker>() {
        // Whoever is known stays so: the first answer is that of authentication.
        let _ = asker.0.caller.set(caller.clone());
    }
}

/// Tells the door that the request goes in, as the user in its extensions.
pub(crate) fn admitted(extensions: &Extensions) {
    if let (Some(asker), Some(user)) = (extensions.get::<Asker>(), extensions.get::<UserInfo>())
        && asker.0.caller.get() != Some(user)
    {
        let _ = asker.0.impersonated.set(user.clone());
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
    pub(crate) fn enter(&self, user: &UserInfo, info: &RequestInfo) -> Result<Permit, ApiError> {
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
            Some(trace) => trace.follow(response, &asker.0),
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
            info.first_subresource(),
            "attach" | "exec" | "proxy" | "log" | "portforward" | "console" | "vnc"
        )
}
