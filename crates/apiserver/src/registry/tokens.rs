//! `serviceaccounts/token`: issues a token of a service account, bound to an object if that is asked for.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::auth::tokens::{self, Claims, ISSUER, Private, Reference};
use crate::error::{ApiError, Cause, Target};
use crate::registry::catalog::Scope;
use crate::registry::query::Call;
use crate::registry::{Core, content, meta};

const GROUP: &str = "authentication.k8s.io";
/// Seconds that a token lives unless the client says otherwise, and at least.
const LIFE: i64 = 3600;
const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;

impl Core {
    pub(crate) async fn request_token(
        &self,
        call: &mut Call,
        scope: &Scope,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        let mut request = content::parse(
            &content::media_type(&call.headers),
            &content::read(body).await?,
        )?;
        let (name, namespace) = (call.info.name.clone(), call.info.namespace.clone());
        check_kind(&request)?;
        meta::check_shape(&request, "TokenRequest", "v1", false)?;
        let invalid = |name: &str, causes| ApiError::Invalid {
            target: Target::new(GROUP, "TokenRequest", name),
            causes,
        };
        for (field, own) in [("name", &name), ("namespace", &namespace)] {
            let given = meta::text(&request, &["metadata", field]);
            if !given.is_empty() && given != own {
                let why = format!("must match the service account {field} if specified");
                let cause = Cause::invalid(format!("metadata.{field}"), format!("{given:?}"), why);
                return Err(invalid(&name, vec![cause]));
            }
        }
        let account = scope.present(&self.read(scope, &namespace, &name)?)?;
        let uid = meta::text(&account, &["metadata", "uid"]).to_owned();
        let given = meta::text(&request, &["metadata", "uid"]);
        if !given.is_empty() && given != uid {
            return Err(ApiError::Conflict {
                target: Target::new(GROUP, "TokenRequest", name),
                why: format!(
                    "the UID in the token request ({given}) does not match the UID of the service account ({uid})"
                ),
            });
        }

        let now = tokens::now();
        let spec = meta::entry(&mut request, "spec");
        let audiences = spec.entry("audiences").or_insert(Value::Null);
        if audiences.as_array().is_none_or(Vec::is_empty) {
            *audiences = json!([ISSUER]);
        }
        let audiences = audiences.as_array().into_iter().flatten();
        let aud = audiences
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        let seconds = spec.entry("expirationSeconds").or_insert(Value::Null);
        if seconds.is_null() {
            *seconds = json!(LIFE);
        }
        let seconds = seconds.as_i64().ok_or_else(|| {
            ApiError::BadRequest("spec.expirationSeconds must be an integer".into())
        })?;
        let why = if seconds < SHORTEST {
            Some("may not specify a duration less than 10 minutes")
        } else if seconds > LONGEST {
            Some("may not specify a duration larger than 2^32 seconds")
        } else {
            None
        };
        if let Some(why) = why {
            let cause = Cause::invalid("spec.expirationSeconds", seconds, why);
            return Err(invalid("", vec![cause]));
        }

        let mut private = Private {
            namespace: namespace.clone(),
            serviceaccount: Reference {
                name: name.clone(),
                uid: uid.clone(),
            },
            ..Private::default()
        };
        let bound = request["spec"]["boundObjectRef"].clone();
        if bound.is_object() {
            self.bind_token(&mut private, &bound)?;
        }
        let claims = Claims {
            aud,
            exp: Some(now + seconds),
            iat: Some(now),
            iss: ISSUER.to_owned(),
            jti: Some(Uuid::new_v4().to_string()),
            private: Some(private),
            nbf: Some(now),
            sub: format!("system:serviceaccount:{namespace}:{name}"),
            legacy: None,
        };
        let token = self
            .tokens
            .sign(&claims)
            .map_err(|e| ApiError::Internal(format!("failed to generate token: {e}")))?;

        let metadata = meta::metadata(&mut request);
        metadata.insert("name".into(), json!(name));
        metadata.insert("namespace".into(), json!(namespace));
        metadata.insert("uid".into(), json!(uid));
        metadata.insert("creationTimestamp".into(), json!(meta::now()));
        if bound.is_null() {
            request["spec"]["boundObjectRef"] = Value::Null;
        }
        request["apiVersion"] = json!("authentication.k8s.io/v1");
        request["kind"] = json!("TokenRequest");
        request["status"] = json!({"token": token, "expirationTimestamp": meta::after(seconds)});
        Ok(content::answer(
            StatusCode::CREATED,
            &request,
            &call.warnings,
        ))
    }

    /// Looks up what the token shall be bound to.
    fn bind_token(&self, private: &mut Private, bound: &Value) -> Result<(), ApiError> {
        let (version, kind, name) = (
            meta::text(bound, &["apiVersion"]),
            meta::text(bound, &["kind"]),
            meta::text(bound, &["name"]),
        );
        let (plural, namespace) = match (version, kind) {
            ("v1", "Pod") => ("pods", private.namespace.as_str()),
            ("v1", "Secret") => ("secrets", private.namespace.as_str()),
            ("v1", "Node") => ("nodes", ""),
            _ => {
                let (group, version) = version.split_once('/').unwrap_or(("", version));
                return Err(ApiError::BadRequest(format!(
                    "cannot bind token to object of type {group}/{version}, Kind={kind}"
                )));
            }
        };
        let read = |plural: &str, namespace: &str, name: &str| {
            let snapshot = self.catalog.get();
            let def = snapshot.find("", plural).ok_or(ApiError::NoSuchPath)?;
            let scope = Scope::stored(def);
            scope.present(&self.read(&scope, namespace, name)?)
        };
        let object = read(plural, namespace, name)?;
        let uid = meta::text(&object, &["metadata", "uid"]).to_owned();
        let given = meta::text(bound, &["uid"]);
        if !given.is_empty() && given != uid {
            return Err(ApiError::Conflict {
                target: Target::new("", kind, name),
                why: format!(
                    "the UID in the bound object reference ({given}) does not match the UID in record. The object might have been deleted and then recreated"
                ),
            });
        }
        let reference = Some(Reference {
            name: name.to_owned(),
            uid,
        });
        match kind {
            "Secret" => private.secret = reference,
            "Node" => private.node = reference,
            _ => {
                let account = match meta::text(&object, &["spec", "serviceAccountName"]) {
                    "" => "default",
                    account => account,
                };
                if account != private.serviceaccount.name {
                    return Err(ApiError::BadRequest(format!(
                        "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                        private.serviceaccount.name
                    )));
                }
                let node = meta::text(&object, &["spec", "nodeName"]);
                if !node.is_empty() {
                    let uid = match read("nodes", "", node) {
                        Ok(object) => meta::text(&object, &["metadata", "uid"]).to_owned(),
                        Err(ApiError::NotFound(_)) => String::new(),
                        Err(other) => return Err(other),
                    };
                    private.node = Some(Reference {
                        name: node.to_owned(),
                        uid,
                    });
                }
                private.pod = reference;
            }
        }
        Ok(())
    }
}

fn check_kind(request: &Value) -> Result<(), ApiError> {
    if !request.is_object() {
        return Err(ApiError::BadRequest(
            "the request body must be an object".into(),
        ));
    }
    match meta::text(request, &["kind"]) {
        "" | "TokenRequest" => Ok(()),
        other => Err(ApiError::BadRequest(format!(
            "{other} in version \"v1\" cannot be handled as a TokenRequest: kind does not match"
        ))),
    }
}
