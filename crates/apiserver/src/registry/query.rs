//! Query parameters and the context of one request.

use http::header::USER_AGENT;
use http::{HeaderMap, HeaderValue, Uri};
use tokio_util::sync::CancellationToken;

use crate::auth::{RequestInfo, UserInfo};
use crate::error::ApiError;
use crate::registry::content::View;
use crate::registry::selector::Selector;
use crate::table::IncludeObject;

/// Decoded query parameters.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(uri: &Uri) -> Result<Self, ApiError> {
        axum::extract::Query::try_from_uri(uri)
            .map(|axum::extract::Query(pairs)| Self(pairs))
            .map_err(|e| ApiError::BadRequest(e.to_string()))
    }

    /// The value of a parameter; empty if it is not given.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|(key, value)| {
            key == name
                && matches!(
                    value.as_str(),
                    "" | "1" | "t" | "T" | "true" | "TRUE" | "True"
                )
        })
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                ApiError::BadRequest(format!(
                    "strconv.ParseInt: parsing {text:?}: invalid syntax"
                ))
            }),
        }
    }

    /// DeleteOptions can say it in the body.
    pub(crate) fn set_dry_run(&mut self) {
        self.0.push(("dryRun".into(), "All".into()));
    }

    /// Whether nothing shall be stored.
    pub(crate) fn dry_run(&self) -> Result<bool, ApiError> {
        let mut dry = false;
        for (_, value) in self.0.iter().filter(|(key, _)| key == "dryRun") {
            match value.as_str() {
                "" => {}
                "All" => dry = true,
                other => {
                    return Err(ApiError::BadRequest(format!(
                        "invalid dryRun: Unsupported value: {other:?}: supported values: \"All\""
                    )));
                }
            }
        }
        Ok(dry)
    }
}

/// What to do about fields that the schema does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// One request for objects, besides its body.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) info: RequestInfo,
    pub(crate) user: UserInfo,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) view: View,
    pub(crate) warnings: Vec<String>,
    /// Whether the objects that this request writes come with their managed fields, for they were made by an apply.
    pub(crate) applied: bool,
    /// Ends watches of a connection whose server is stopping.
    pub(crate) end: Option<CancellationToken>,
}

impl Call {
    pub(crate) fn new(
        info: RequestInfo,
        user: UserInfo,
        uri: &Uri,
        headers: HeaderMap,
        end: Option<CancellationToken>,
    ) -> Result<Self, ApiError> {
        let query = Query::parse(uri)?;
        let include = query.get("includeObject");
        let include = IncludeObject::parse(include).ok_or_else(|| {
            ApiError::BadRequest(format!("unrecognized includeObject value: {include:?}"))
        })?;
        let view = View::negotiate(&headers, include)?;
        Ok(Self {
            info,
            user,
            query,
            headers,
            view,
            warnings: Vec::new(),
            applied: false,
            end,
        })
    }

    /// A request that the server makes of itself.
    pub(crate) fn internal(user: &str) -> Self {
        Self {
            info: RequestInfo::default(),
            user: UserInfo::master(user),
            query: Query::default(),
            headers: HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static("berth"))]),
            view: View::Plain,
            warnings: Vec::new(),
            applied: false,
            end: None,
        }
    }

    pub(crate) fn field_validation(&self) -> Result<FieldValidation, ApiError> {
        match self.query.get("fieldValidation") {
            "" | "Warn" => Ok(FieldValidation::Warn),
            "Ignore" => Ok(FieldValidation::Ignore),
            "Strict" => Ok(FieldValidation::Strict),
            other => Err(ApiError::BadRequest(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }

    /// The selectors of the query and the name of the path.
    pub(crate) fn selector(&self) -> Result<Selector, ApiError> {
        let resource = format!("{}/{}", self.info.group, self.info.resource);
        let selector = Selector::parse(
            self.query.get("labelSelector"),
            self.query.get("fieldSelector"),
            &resource,
        )?;
        Ok(if self.info.name.is_empty() {
            selector
        } else {
            selector.with_name(&self.info.name)
        })
    }

    /// The namespace to list, none for all.
    pub(crate) fn list_namespace(&self, namespaced: bool) -> Option<String> {
        (namespaced && !self.info.namespace.is_empty()).then(|| self.info.namespace.clone())
    }
}
