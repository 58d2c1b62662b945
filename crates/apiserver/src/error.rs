//! Every failure that a client can see, and the only place where one becomes a Kubernetes `Status`.
//!
//! Codes, reasons, messages and `details` follow `k8s.io/apimachinery/pkg/api/errors`; clients read the messages,
//! so their words are part of the protocol.

use std::fmt;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

/// One thing that is wrong with one field of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Machine word, for example `FieldValueInvalid`.
    pub reason: String,
    /// Path of the field, for example `spec.domain.cpu`.
    pub field: String,
    /// What is wrong, without the path, for example `Required value`.
    pub message: String,
}

impl Cause {
    /// `Invalid value: <shown>: <why>`; `shown` is already quoted as wanted.
    pub fn invalid(
        field: impl Into<String>,
        shown: impl fmt::Display,
        why: impl fmt::Display,
    ) -> Self {
        Self {
            reason: "FieldValueInvalid".into(),
            field: field.into(),
            message: format!("Invalid value: {shown}: {why}"),
        }
    }

    /// Whether the rules of a definition are not asked any more when this is wrong.
    pub(crate) fn blocks_rules(&self) -> bool {
        matches!(
            self.reason.as_ref(),
            "FieldValueNotSupported"
                | "FieldValueRequired"
                | "FieldValueTooLong"
                | "FieldValueTooMany"
                | "FieldValueTypeInvalid"
        )
    }

    /// `Required value: <why>`.
    pub fn required(field: impl Into<String>, why: &str) -> Self {
        let message = if why.is_empty() {
            "Required value".into()
        } else {
            format!("Required value: {why}")
        };
        Self {
            reason: "FieldValueRequired".into(),
            field: field.into(),
            message,
        }
    }

    /// `Forbidden: <why>`.
    pub fn forbidden(field: impl Into<String>, why: impl fmt::Display) -> Self {
        Self {
            reason: "FieldValueForbidden".into(),
            field: field.into(),
            message: format!("Forbidden: {why}"),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

/// A resource as error messages name it: `pods`, `virtualmachineinstances.kubevirt.io`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    /// API group, empty for the core group.
    pub group: String,
    /// Plural resource, with `/subresource` where that is meant; the kind for [`ApiError::Invalid`].
    pub resource: String,
    /// Name of the object, may be empty.
    pub name: String,
}

impl Target {
    /// Names one object of a resource.
    pub fn new(
        group: impl Into<String>,
        resource: impl Into<String>,
        name: impl Into<String>,
    ) -> Self {
        Self {
            group: group.into(),
            resource: resource.into(),
            name: name.into(),
        }
    }

    /// A path that names no resource is forbidden without a name.
    fn forbidden(&self) -> String {
        if self.resource.is_empty() {
            "forbidden".into()
        } else {
            format!("{} is forbidden", self.named())
        }
    }

    fn named(&self) -> String {
        if self.name.is_empty() {
            self.qualified()
        } else {
            format!("{} {:?}", self.qualified(), self.name)
        }
    }

    fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.resource.clone()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }
}

/// Why a request was not served.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// The path names nothing that is served, in a group that is.
    #[error("the server could not find the requested resource")]
    NoSuchPath,
    /// The path is not one of the API at all; said in plain text.
    #[error("404 page not found")]
    PageNotFound,
    /// No object of that name.
    #[error("{} {:?} not found", .0.qualified(), .0.name)]
    NotFound(Target),
    /// Create of a name that is taken.
    #[error("{} {:?} already exists", .0.qualified(), .0.name)]
    AlreadyExists(Target),
    /// Create of a name whose last holder is still on its way out.
    #[error("object is being deleted: {} {:?} already exists", .0.qualified(), .0.name)]
    BeingDeleted(Target),
    /// The server could not make up a free name.
    #[error("{} {:?} already exists, the server was not able to generate a unique name for the object", .0.qualified(), .0.name)]
    NameNotGenerated(Target),
    /// Lost against another write, or a precondition does not hold.
    #[error("Operation cannot be fulfilled on {} {:?}: {why}", .target.qualified(), .target.name)]
    Conflict {
        /// The object.
        target: Target,
        /// Ends the message.
        why: String,
    },
    /// An apply of other values than other managers set.
    #[error("{message}")]
    ApplyConflict {
        /// Names managers and fields.
        message: String,
        /// One a field and manager.
        causes: Vec<Cause>,
    },
    /// The object breaks its rules. `target.resource` is the kind.
    #[error("{} {:?} is invalid: {}", .target.qualified(), .target.name, list(.causes))]
    Invalid {
        /// The object, by kind.
        target: Target,
        /// At least one.
        causes: Vec<Cause>,
    },
    /// A patch that cannot be applied to the object as it is.
    #[error("the server rejected our request due to an error in our request")]
    Unprocessable(String),
    /// The request cannot be understood.
    #[error("{0}")]
    BadRequest(String),
    /// No valid credentials.
    #[error("Unauthorized")]
    Unauthorized,
    /// Known user, not allowed.
    #[error("{}: {why}", .target.forbidden())]
    Forbidden {
        /// What was asked for.
        target: Target,
        /// Ends the message.
        why: String,
        /// Machine-readable cause, where clients look for one (`NamespaceTerminating`).
        cause: Option<Box<Cause>>,
    },
    /// The resource exists, the verb does not.
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    /// A subresource exists, the verb does not.
    #[error("{verb} is not supported on resources of kind {:?}", .target.qualified())]
    NotSupported {
        /// The resource; its name is not shown.
        target: Target,
        /// For example `delete`.
        verb: &'static str,
    },
    /// None of the media types that the client accepts is served here.
    #[error("only the following media types are accepted: {0}")]
    NotAcceptable(String),
    /// The body's media type is not understood here.
    #[error("the body of the request was in an unknown format - accepted media types include: {0}")]
    UnsupportedMediaType(String),
    /// The same where upstream's router refuses it before anybody looks at the request.
    #[error("415: Unsupported Media Type")]
    NotConsumed,
    /// The resourceVersion is no longer (or not) in the history.
    #[error("{0}")]
    Expired(String),
    /// The revision of a paged list is no longer in the history; the token goes on in the present.
    #[error(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
         the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
         Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
         deleted between the time the first chunk was returned and now may show up in the list."
    )]
    ExpiredContinue {
        /// For the remainder.
        token: String,
    },
    /// The body is over the limit, in bytes.
    #[error("Request entity too large: limit is {0}")]
    TooLarge(usize),
    /// The resourceVersion asked for has not been reached.
    #[error("Timeout: Too large resource version: {asked}, current: {current}")]
    FutureRevision {
        /// What the client asked for.
        asked: u64,
        /// Where the store is.
        current: u64,
    },
    /// The user has too much under way.
    #[error("Too many requests, please try again later.")]
    TooManyRequests,
    /// The body of the request did not come in time.
    #[error("Timeout: request did not complete within the allotted timeout")]
    TooSlow,
    /// The server is stopping or not yet ready.
    #[error("{0}")]
    Unavailable(String),
    /// What upstream answers without a reason, where it does not expect a client to come with such a thing.
    #[error("{0}")]
    Unexplained(String),
    /// A fault of the server itself.
    #[error("Internal error occurred: {0}")]
    Internal(String),
}

/// Each text once: upstream checks some things twice, shows both causes, and says it once.
fn list(causes: &[Cause]) -> String {
    let mut texts: Vec<String> = Vec::with_capacity(causes.len());
    for text in causes.iter().map(ToString::to_string) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match texts.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

impl ApiError {
    /// The HTTP code.
    pub fn code(&self) -> StatusCode {
        match self {
            Self::NoSuchPath | Self::PageNotFound | Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::AlreadyExists(_)
            | Self::NameNotGenerated(_)
            | Self::BeingDeleted(_)
            | Self::Conflict { .. }
            | Self::ApplyConflict { .. } => StatusCode::CONFLICT,
            Self::Invalid { .. } | Self::Unprocessable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::MethodNotAllowed | Self::NotSupported { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable(_) => StatusCode::NOT_ACCEPTABLE,
            Self::UnsupportedMediaType(_) | Self::NotConsumed => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Expired(_) | Self::ExpiredContinue { .. } => StatusCode::GONE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::FutureRevision { .. } | Self::TooSlow => StatusCode::GATEWAY_TIMEOUT,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unexplained(_) | Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NoSuchPath | Self::PageNotFound | Self::NotFound(_) => "NotFound",
            Self::AlreadyExists(_) | Self::NameNotGenerated(_) | Self::BeingDeleted(_) => {
                "AlreadyExists"
            }
            Self::Conflict { .. } | Self::ApplyConflict { .. } => "Conflict",
            Self::Invalid { .. } | Self::Unprocessable(_) => "Invalid",
            Self::BadRequest(_) => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden { .. } => "Forbidden",
            Self::MethodNotAllowed | Self::NotSupported { .. } => "MethodNotAllowed",
            Self::NotAcceptable(_) => "NotAcceptable",
            Self::UnsupportedMediaType(_) | Self::NotConsumed => "UnsupportedMediaType",
            Self::Expired(_) | Self::ExpiredContinue { .. } => "Expired",
            Self::TooLarge(_) => "RequestEntityTooLarge",
            Self::FutureRevision { .. } => "Timeout",
            Self::TooManyRequests => "TooManyRequests",
            Self::TooSlow => "Timeout",
            Self::Unavailable(_) => "ServiceUnavailable",
            Self::Unexplained(_) => "",
            Self::Internal(_) => "InternalError",
        }
    }

    fn details(&self) -> Option<Value> {
        let target = |target: &Target, causes: &[Cause]| {
            let mut details = Map::new();
            for (key, text) in [
                ("name", &target.name),
                ("group", &target.group),
                ("kind", &target.resource),
            ] {
                if !text.is_empty() {
                    details.insert(key.into(), json!(text));
                }
            }
            if !causes.is_empty() {
                details.insert("causes".into(), causes.iter().map(cause).collect());
            }
            Some(Value::Object(details))
        };
        match self {
            Self::NotConsumed => Some(json!({})),
            Self::NotFound(t)
            | Self::AlreadyExists(t)
            | Self::BeingDeleted(t)
            | Self::NotSupported { target: t, .. }
            | Self::Conflict { target: t, .. } => target(t, &[]),
            Self::NameNotGenerated(t) => target(t, &[]),
            Self::Forbidden {
                target: t, cause, ..
            } => target(
                t,
                cause
                    .as_deref()
                    .map(std::slice::from_ref)
                    .unwrap_or_default(),
            ),
            Self::ApplyConflict { causes, .. } => target(&Target::default(), causes),
            Self::Invalid { target: t, causes } => target(t, causes),
            Self::FutureRevision { .. } => Some(json!({
                "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                "retryAfterSeconds": 1,
            })),
            Self::NoSuchPath | Self::MethodNotAllowed | Self::Unprocessable(_) => Some(json!({})),
            Self::TooManyRequests => Some(json!({"retryAfterSeconds": 1})),
            _ => None,
        }
    }

    /// The `Status` object that the client receives.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.to_string(),
            "code": self.code().as_u16(),
        });
        if !self.reason().is_empty() {
            status["reason"] = json!(self.reason());
        }
        if let Self::ExpiredContinue { token } = self {
            status["metadata"]["continue"] = json!(token);
        }
        if let (Some(details), Some(status)) = (self.details(), status.as_object_mut()) {
            status.insert("details".into(), details);
        }
        status
    }
}

fn cause(cause: &Cause) -> Value {
    let mut out = Map::new();
    for (key, text) in [
        ("reason", &cause.reason),
        ("message", &cause.message),
        ("field", &cause.field),
    ] {
        if !text.is_empty() {
            out.insert(key.into(), json!(text));
        }
    }
    Value::Object(out)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Self::Internal(why) = &self {
            tracing::error!("request failed: {why}");
        }
        if self == Self::PageNotFound {
            return (self.code(), format!("{self}\n")).into_response();
        }
        let mut response = (self.code(), self.status().to_string()).into_response();
        if self == Self::TooManyRequests {
            let seconds = HeaderValue::from_static("1");
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_the_real_server() {
        let pods = Target::new("", "pods", "a");
        assert_eq!(
            ApiError::NotFound(pods.clone()).to_string(),
            r#"pods "a" not found"#
        );
        let vmis = Target::new("kubevirt.io", "virtualmachineinstances", "a");
        assert_eq!(
            ApiError::AlreadyExists(vmis.clone()).to_string(),
            r#"virtualmachineinstances.kubevirt.io "a" already exists"#
        );
        assert_eq!(
            ApiError::Conflict {
                target: vmis,
                why: "late".into()
            }
            .to_string(),
            r#"Operation cannot be fulfilled on virtualmachineinstances.kubevirt.io "a": late"#
        );
        let invalid = ApiError::Invalid {
            target: Target::new("", "Pod", "a"),
            causes: vec![
                Cause::required("spec.x", ""),
                Cause::invalid("spec.y", 1, "no"),
            ],
        };
        assert_eq!(
            invalid.to_string(),
            r#"Pod "a" is invalid: [spec.x: Required value, spec.y: Invalid value: 1: no]"#
        );
        assert_eq!(invalid.status()["details"]["causes"][0]["field"], "spec.x");
        let generated = ApiError::NameNotGenerated(Target::new("", "pods", "a-x"));
        assert_eq!(
            (generated.to_string().as_str(), generated.code().as_u16()),
            (
                r#"pods "a-x" already exists, the server was not able to generate a unique name for the object"#,
                409
            )
        );
        let forbidden = ApiError::Forbidden {
            target: Target::new("", "pods", ""),
            why: "no".into(),
            cause: None,
        };
        assert_eq!(forbidden.to_string(), "pods is forbidden: no");
    }
}
