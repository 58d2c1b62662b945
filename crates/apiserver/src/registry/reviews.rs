//! The reviews of `authentication.k8s.io` and `authorization.k8s.io`: questions that are answered and not stored.

use axum::body::Body;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::auth::rbac::aggregate;
use crate::auth::tokens::ISSUER;
use crate::auth::{Decision, RequestInfo, UserInfo};
use crate::error::{ApiError, Cause, Target};
use crate::registry::catalog::Scope;
use crate::registry::query::Call;
use crate::registry::write::check_kind;
use crate::registry::{Core, content, meta};
use crate::schema::builtin;

impl Core {
    /// Answers a review.
    pub(crate) async fn review(
        &self,
        call: &Call,
        scope: &Scope,
        method: &Method,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        let in_place = scope.def.namespaced != call.info.namespace.is_empty();
        if !call.info.name.is_empty() {
            return Err(ApiError::NoSuchPath);
        }
        if method != Method::POST || !in_place {
            return Err(ApiError::MethodNotAllowed);
        }
        let mut review = content::parse(
            &content::media_type(&call.headers),
            &content::read(body).await?,
        )?;
        check_kind(scope, &mut review)?;
        meta::check_shape(&review, &scope.def.kind, &scope.version().name, false)?;
        if let Some(wrong) =
            builtin::type_errors(&scope.def.group, &scope.def.kind, &review).first()
        {
            let kind = &scope.def.kind;
            return Err(ApiError::BadRequest(format!(
                "{kind} in version \"v1\" cannot be handled as a {kind}: {wrong}"
            )));
        }
        let spec = review["spec"].clone();
        let status = match scope.def.kind.as_str() {
            "TokenReview" => self.review_token(&spec)?,
            "SelfSubjectReview" => {
                meta::metadata(&mut review).insert("creationTimestamp".into(), json!(meta::now()));
                json!({"userInfo": call.user.show()})
            }
            "SelfSubjectRulesReview" => {
                let status = self.review_rules(&call.user, &spec)?;
                // The answer does not repeat the question.
                review["spec"] = json!({});
                status
            }
            "SelfSubjectAccessReview" => {
                refuse(scope, check_attributes(&review, None))?;
                self.review_access(&call.user, &spec)
            }
            "LocalSubjectAccessReview" => {
                let namespace = call.info.namespace.as_str();
                let given = meta::namespace(&review);
                if !given.is_empty() && given != namespace {
                    return Err(ApiError::BadRequest(
                        "the namespace of the provided object does not match the namespace sent on the request".into(),
                    ));
                }
                meta::metadata(&mut review).insert("namespace".into(), json!(namespace));
                let mut causes = check_attributes(&review, Some(&spec));
                causes.extend(check_local(&spec, namespace));
                refuse(scope, causes)?;
                self.review_access(&subject(&spec), &spec)
            }
            _ => {
                refuse(scope, check_attributes(&review, Some(&spec)))?;
                self.review_access(&subject(&spec), &spec)
            }
        };
        // Answers have metadata, if only an empty one.
        meta::metadata(&mut review);
        review["status"] = status;
        Ok(content::answer(
            StatusCode::CREATED,
            &review,
            &call.warnings,
        ))
    }

    fn review_access(&self, user: &UserInfo, spec: &Value) -> Value {
        match self.rbac.authorize(user, &asked(spec)) {
            Decision::Allow(reason) if reason.is_empty() => json!({"allowed": true}),
            Decision::Allow(reason) => json!({"allowed": true, "reason": reason}),
            Decision::Deny(reason) if reason.is_empty() => json!({"allowed": false}),
            Decision::Deny(reason) => json!({"allowed": false, "reason": reason}),
        }
    }

    fn review_rules(&self, user: &UserInfo, spec: &Value) -> Result<Value, ApiError> {
        let namespace = meta::text(spec, &["namespace"]);
        if namespace.is_empty() {
            return Err(ApiError::BadRequest("no namespace on request".into()));
        }
        let (rules, errors) = self.rbac.rules(user, namespace);
        let (mut resources, mut paths) = (Vec::new(), Vec::new());
        for rule in rules {
            if !rule.resources.is_empty() {
                let mut shown = json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources});
                if !rule.resource_names.is_empty() {
                    shown["resourceNames"] = json!(rule.resource_names);
                }
                resources.push(shown);
            }
            if !rule.paths.is_empty() {
                paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.paths}));
            }
        }
        let mut status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": !errors.is_empty()});
        if !errors.is_empty() {
            status["evaluationError"] = json!(aggregate(errors));
        }
        Ok(status)
    }

    fn review_token(&self, spec: &Value) -> Result<Value, ApiError> {
        let token = meta::text(spec, &["token"]);
        if token.is_empty() {
            return Err(ApiError::BadRequest(
                "token is required for TokenReview in authentication".into(),
            ));
        }
        let mut wanted = texts(&spec["audiences"]);
        if wanted.is_empty() {
            wanted.push(ISSUER.to_owned());
        }
        Ok(match self.user_of_token(token, &wanted) {
            Ok((user, audiences)) => {
                json!({"authenticated": true, "user": user.show(), "audiences": audiences})
            }
            Err(why) => json!({"user": {}, "error": why}),
        })
    }
}

fn texts(list: &Value) -> Vec<String> {
    let all = list.as_array().into_iter().flatten();
    all.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The user that a review is about. Nothing is added to it: the asker knows its groups.
fn subject(spec: &Value) -> UserInfo {
    let extra = spec["extra"].as_object().into_iter().flatten();
    UserInfo {
        name: meta::text(spec, &["user"]).to_owned(),
        groups: texts(&spec["groups"]),
        uid: meta::text(spec, &["uid"]).to_owned(),
        extra: extra
            .map(|(key, values)| (key.clone(), texts(values)))
            .collect(),
    }
}

/// The request that a review is about.
fn asked(spec: &Value) -> RequestInfo {
    let resource = &spec["resourceAttributes"];
    if !resource.is_object() {
        let text = |key| meta::text(spec, &["nonResourceAttributes", key]).to_owned();
        return RequestInfo {
            verb: text("verb"),
            path: text("path"),
            ..RequestInfo::default()
        };
    }
    let text = |key| meta::text(resource, &[key]).to_owned();
    RequestInfo {
        is_resource: true,
        verb: text("verb"),
        path: String::new(),
        group: text("group"),
        version: text("version"),
        namespace: text("namespace"),
        resource: text("resource"),
        subresource: text("subresource"),
        name: text("name"),
    }
}

fn refuse(scope: &Scope, causes: Vec<Cause>) -> Result<(), ApiError> {
    if causes.is_empty() {
        return Ok(());
    }
    // Upstream leaves the kind out.
    Err(ApiError::Invalid {
        target: Target::new(&scope.def.group, "", ""),
        causes,
    })
}

/// What is wrong with a question about access; `subject` is the spec where that names the user.
fn check_attributes(review: &Value, subject: Option<&Value>) -> Vec<Cause> {
    let spec = &review["spec"];
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let mut causes = Vec::new();
    if resource.is_object() && path.is_object() {
        causes.push(Cause::invalid(
            "spec.nonResourceAttributes",
            shown(path),
            "cannot be specified in combination with resourceAttributes",
        ));
    }
    if !resource.is_object() && !path.is_object() {
        causes.push(Cause::invalid(
            "spec.resourceAttributes",
            "null",
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    }
    if let Some(spec) = subject
        && meta::text(spec, &["user"]).is_empty()
        && texts(&spec["groups"]).is_empty()
    {
        causes.push(Cause::invalid(
            "spec.user",
            "\"\"",
            "at least one of user or group must be specified",
        ));
    }
    causes
}

/// A path and its verb as upstream shows them.
fn shown(path: &Value) -> String {
    let text = |key| meta::text(path, &[key]);
    format!(r#"{{"Path":{:?},"Verb":{:?}}}"#, text("path"), text("verb"))
}

fn check_local(spec: &Value, namespace: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    let resource = &spec["resourceAttributes"];
    let asked = meta::text(resource, &["namespace"]);
    if resource.is_object() && asked != namespace {
        causes.push(Cause::invalid(
            "spec.resourceAttributes.namespace",
            format!("{asked:?}"),
            "must match metadata.namespace",
        ));
    }
    if spec["nonResourceAttributes"].is_object() {
        causes.push(Cause::invalid(
            "spec.nonResourceAttributes",
            shown(&spec["nonResourceAttributes"]),
            "disallowed on this kind of request",
        ));
    }
    causes
}
