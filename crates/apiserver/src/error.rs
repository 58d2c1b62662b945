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
    /// The path names nothing that is served.
    #[error("the server could not find the requested resource")]
    NoSuchPath,
    /// No object of that name.
    #[error("{} {:?} not found", .0.qualified(), .0.name)]
    NotFound(Target),
    /// Create of a name that is taken.
    #[error("{} {:?} already exists", .0.qualified(), .0.name)]
    AlreadyExists(Target),
    /// The server could not make up a free name.
    #[error("the server was not able to generate a unique name for the object")]
    NameNotGenerated(Target),
    /// Lost against another write, or a precondition does not hold.
    #[error("Operation cannot be fulfilled on {} {:?}: {why}", .target.qualified(), .target.name)]
    Conflict {
        /// The object.
        target: Target,
        /// Ends the message.
        why: String,
    },
    /// An apply would change what other managers own.
    #[error("{message}")]
    ApplyConflict {
        /// All of them, as text.
        message: String,
        /// One a field.
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
    #[error("{} is forbidden: {why}", .target.named())]
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
    /// None of the media types that the client accepts is served here.
    #[error("only the following media types are accepted: {0}")]
    NotAcceptable(String),
    /// The body's media type is not understood here.
    #[error("the body of the request was in an unknown format - accepted media types include: {0}")]
    UnsupportedMediaType(String),
    /// The resourceVersion is no longer (or not) in the history.
    #[error("{0}")]
    Expired(String),
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
    /// The server is stopping or not yet ready.
    #[error("{0}")]
    Unavailable(String),
    /// A failure that has no reason of its own; upstream has a few.
    #[error("{0}")]
    Unknown(String),
    /// A fault of the server itself.
    #[error("Internal error occurred: {0}")]
    Internal(String),
}

fn list(causes: &[Cause]) -> String {
    match causes {
        [one] => one.to_string(),
        many => format!(
            "[{}]",
            many.iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

impl ApiError {
    /// The HTTP code.
    pub fn code(&self) -> StatusCode {
        match self {
            Self::NoSuchPath | Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::AlreadyExists(_) | Self::Conflict { .. } | Self::ApplyConflict { .. } => {
                StatusCode::CONFLICT
            }
            Self::Invalid { .. } | Self::Unprocessable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable(_) => StatusCode::NOT_ACCEPTABLE,
            Self::UnsupportedMediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Expired(_) => StatusCode::GONE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NameNotGenerated(_) | Self::FutureRevision { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) | Self::Unknown(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NoSuchPath | Self::NotFound(_) => "NotFound",
            Self::AlreadyExists(_) => "AlreadyExists",
            Self::Conflict { .. } | Self::ApplyConflict { .. } => "Conflict",
            Self::Invalid { .. } | Self::Unprocessable(_) => "Invalid",
            Self::BadRequest(_) => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden { .. } => "Forbidden",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable(_) => "NotAcceptable",
            Self::UnsupportedMediaType(_) => "UnsupportedMediaType",
            Self::Expired(_) => "Expired",
            Self::TooLarge(_) => "RequestEntityTooLarge",
            Self::NameNotGenerated(_) => "ServerTimeout",
            Self::FutureRevision { .. } => "Timeout",
            Self::Unavailable(_) => "ServiceUnavailable",
            Self::Internal(_) => "InternalError",
            Self::Unknown(_) => "",
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
            Self::NotFound(t) | Self::AlreadyExists(t) | Self::Conflict { target: t, .. } => {
                target(t, &[])
            }
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
            Self::Invalid { target: t, causes } => target(t, causes),
            Self::ApplyConflict { causes, .. } => target(&Target::default(), causes),
            Self::Unprocessable(why) => {
                Some(json!({"causes": [{"reason": "UnexpectedServerResponse", "message": why}]}))
            }
            Self::FutureRevision { .. } => Some(json!({
                "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                "retryAfterSeconds": 1,
            })),
            Self::NoSuchPath => Some(json!({})),
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
            "reason": self.reason(),
            "code": self.code().as_u16(),
        });
        if self.reason().is_empty()
            && let Some(status) = status.as_object_mut()
        {
            status.remove("reason");
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
        let mut response = (self.code(), self.status().to_string()).into_response();
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
        let forbidden = ApiError::Forbidden {
            target: Target::new("", "pods", ""),
            why: "no".into(),
            cause: None,
        };
        assert_eq!(forbidden.to_string(), "pods is forbidden: no");
    }
}
