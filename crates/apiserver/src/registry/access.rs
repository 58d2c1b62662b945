//! What stands before every request: who asks, as whom, and whether that one may.

use http::{HeaderMap, HeaderValue, Uri, header};
use serde_json::Value;

use crate::auth::tokens::{self, Claims, ISSUER, LEGACY_ISSUER, Legacy, Private, Reference};
use crate::auth::{
    CREDENTIAL, Decision, RequestInfo, UserInfo, impersonation, split_service_account,
};
use crate::error::{ApiError, Target};
use crate::registry::query::Query;
use crate::registry::selector::Selector;
use crate::registry::{Core, meta, store_error};
use crate::store::Key;

/// How browsers send a token with a web socket: as a sub-protocol.
const PROTOCOL_TOKEN: &str = "base64url.bearer.authorization.k8s.io.";
/// What a token is told that none of our keys signed.
const INVALID: &str = "invalid bearer token";

/// Paths that need no rights.
const HEALTH: [&str; 3] = ["/livez", "/readyz", "/healthz"];
/// The other path that needs no credentials.
const VERSION: &str = "/version";

impl Core {
    /// Who asks. `certificate` is the user of a client certificate, which goes before a token.
    ///
    /// # Errors
    /// `Unauthorized` for bad tokens, and without credentials where the path is not public.
    pub(crate) fn authenticate(
        &self,
        certificate: Option<UserInfo>,
        headers: &mut HeaderMap,
        uri: &Uri,
    ) -> Result<UserInfo, ApiError> {
        let token = bearer(headers);
        // Nobody behind this needs it, and it must not end up in a log.
        headers.remove(header::AUTHORIZATION);
        match (certificate, token) {
            (Some(user), _) => Ok(user),
            (None, Some(token)) => self
                .user_of_token(&token, &[ISSUER.to_owned()])
                .map(|(user, _)| user)
                .map_err(|why| {
                    tracing::debug!("a token was refused: {why}");
                    ApiError::Unauthorized
                }),
            (None, None) => {
                let path = uri.path().trim_end_matches('/');
                if path == VERSION || HEALTH.contains(&path) {
                    Ok(UserInfo::anonymous())
                } else {
                    Err(ApiError::Unauthorized)
                }
            }
        }
    }

    /// The user that the request runs as: the caller, or the one whom the caller may act as. Then whether that user may do it.
    pub(crate) fn admit_user(
        &self,
        caller: UserInfo,
        headers: &mut HeaderMap,
        uri: &Uri,
        info: &RequestInfo,
    ) -> Result<UserInfo, ApiError> {
        let user = match impersonation::read(headers).map_err(ApiError::Internal)? {
            None => caller,
            Some(wanted) => {
                for need in &wanted.needs {
                    self.permit(&caller, need)?;
                }
                impersonation::strip(headers);
                tracing::debug!("{} acts as {}", caller.name, wanted.user.name);
                wanted.user
            }
        };
        // Probes must not depend on what is in the store.
        if !HEALTH.contains(&uri.path().trim_end_matches('/')) {
            self.permit(&user, &narrowed(info, uri))?;
        }
        Ok(user)
    }

    /// Refuses what the user may not do.
    pub(crate) fn permit(&self, user: &UserInfo, info: &RequestInfo) -> Result<(), ApiError> {
        let Decision::Deny(why) = self.rbac.authorize(user, info) else {
            return Ok(());
        };
        let mut text = info.refusal(&user.name);
        if !why.is_empty() {
            text = format!("{text}: {why}");
        }
        Err(ApiError::Forbidden {
            target: Target::new(&info.group, &info.resource, &info.name),
            why: text,
            cause: None,
        })
    }

    /// The user that a token speaks for, and the audiences of `wanted` that it is for.
    ///
    /// # Errors
    /// Why it does not, in upstream's words.
    pub(crate) fn user_of_token(
        &self,
        token: &str,
        wanted: &[String],
    ) -> Result<(UserInfo, Vec<String>), String> {
        let refused = |why: String| format!("[{INVALID}, {why}]");
        let claims = self.tokens.verify(token).ok_or(INVALID)?;
        if claims.iss != ISSUER && claims.iss != LEGACY_ISSUER {
            return Err(INVALID.to_owned());
        }
        // Tokens in secrets name no audience; they are for this server.
        let own = [ISSUER.to_owned()];
        let audiences = if claims.aud.is_empty() {
            &own[..]
        } else {
            &claims.aud
        };
        let shared: Vec<String> = wanted
            .iter()
            .filter(|audience| audiences.contains(audience))
            .cloned()
            .collect();
        if shared.is_empty() {
            use crate::auth::rbac::rule::quoted;
            return Err(refused(format!(
                "token audiences {} is invalid for the target audiences {}",
                quoted(audiences),
                quoted(wanted)
            )));
        }
        let user = match (&claims.private, &claims.legacy) {
            (Some(private), _) if claims.iss == ISSUER => self.user_of_bound(&claims, private),
            (_, Some(legacy)) if claims.iss == LEGACY_ISSUER => {
                self.user_of_legacy(token, &claims, legacy)
            }
            _ => return Err(INVALID.to_owned()),
        };
        Ok((user.map_err(refused)?, shared))
    }

    fn user_of_bound(&self, claims: &Claims, private: &Private) -> Result<UserInfo, String> {
        claims.check_times(tokens::now())?;
        let namespace = private.namespace.as_str();
        let account = &private.serviceaccount;
        let object = self
            .lookup("/serviceaccounts", namespace, &account.name)?
            .ok_or_else(|| format!("serviceaccounts {:?} not found", account.name))?;
        let uid = meta::text(&object, &["metadata", "uid"]);
        if uid != account.uid {
            return Err(format!(
                "service account UID ({uid}) does not match claim ({})",
                account.uid
            ));
        }
        if expired(&object) {
            return Err(format!(
                "service account {namespace}/{} has been deleted",
                account.name
            ));
        }
        let mut user = UserInfo::service_account(namespace, &account.name);
        user.uid.clone_from(&account.uid);
        let mut extra = |key: &str, value: &str| {
            if !value.is_empty() {
                user.extra.insert(key.to_owned(), vec![value.to_owned()]);
            }
        };
        if let Some(jti) = &claims.jti {
            extra(CREDENTIAL, &format!("JTI={jti}"));
        }
        if let Some(secret) = &private.secret {
            self.still_there("/secrets", namespace, secret, "secret", "secret")?;
        }
        if let Some(pod) = &private.pod {
            self.still_there("/pods", namespace, pod, "pod", "pod")?;
            extra("authentication.kubernetes.io/pod-name", &pod.name);
            extra("authentication.kubernetes.io/pod-uid", &pod.uid);
        }
        if let Some(node) = &private.node {
            if private.pod.is_none() {
                self.still_there("/nodes", "", node, "node", "node")?;
            }
            extra("authentication.kubernetes.io/node-name", &node.name);
            extra("authentication.kubernetes.io/node-uid", &node.uid);
        }
        Ok(user)
    }

    fn still_there(
        &self,
        resource: &str,
        namespace: &str,
        reference: &Reference,
        kind: &str,
        claim: &str,
    ) -> Result<(), String> {
        let gone = || "service account token has been invalidated".to_owned();
        let object = self
            .lookup(resource, namespace, &reference.name)?
            .ok_or_else(gone)?;
        let uid = meta::text(&object, &["metadata", "uid"]);
        if uid != reference.uid {
            return Err(format!(
                "{kind} UID ({uid}) does not match service account {claim} ref claim ({})",
                reference.uid
            ));
        }
        if expired(&object) {
            Err(gone())
        } else {
            Ok(())
        }
    }

    fn user_of_legacy(
        &self,
        token: &str,
        claims: &Claims,
        legacy: &Legacy,
    ) -> Result<UserInfo, String> {
        let named = (legacy.namespace.as_str(), legacy.account.as_str());
        if split_service_account(&claims.sub) != Some(named) {
            return Err("sub claim is invalid".into());
        }
        let secret = self
            .lookup("/secrets", &legacy.namespace, &legacy.secret)?
            .filter(|secret| !meta::is_deleting(secret))
            .ok_or("Token has been invalidated")?;
        let stored = decode(meta::text(&secret, &["data", "token"]));
        if aws_lc_rs::constant_time::verify_slices_are_equal(&stored, token.as_bytes()).is_err() {
            return Err("Token does not match server's copy".into());
        }
        let account = self
            .lookup("/serviceaccounts", &legacy.namespace, &legacy.account)?
            .ok_or_else(|| format!("serviceaccounts {:?} not found", legacy.account))?;
        if meta::is_deleting(&account) {
            return Err(format!(
                "ServiceAccount {}/{} has been deleted",
                legacy.namespace, legacy.account
            ));
        }
        let uid = meta::text(&account, &["metadata", "uid"]);
        if uid != legacy.uid {
            return Err(format!(
                "ServiceAccount UID ({uid}) does not match claim ({})",
                legacy.uid
            ));
        }
        let mut user = UserInfo::service_account(&legacy.namespace, &legacy.account);
        user.uid.clone_from(&legacy.uid);
        Ok(user)
    }

    fn lookup(&self, resource: &str, namespace: &str, name: &str) -> Result<Option<Value>, String> {
        let key = Key::new(&resource.into(), namespace, name);
        let stored = self
            .store
            .get(&key)
            .map_err(|e| store_error(&e).to_string())?;
        stored
            .map(|stored| serde_json::from_slice(&stored.value))
            .transpose()
            .map_err(|e| format!("stored object is damaged: {e}"))
    }
}

/// Marked for deletion for longer than clocks may differ.
fn expired(object: &Value) -> bool {
    let mark = meta::text(object, &["metadata", "deletionTimestamp"]);
    let mark = mark.parse::<k8s_openapi::jiff::Timestamp>();
    mark.is_ok_and(|mark| mark.as_second() < tokens::now() - 60)
}

fn decode(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap_or_default()
}

/// A list, watch or deletecollection that a field selector narrows to one name is about that name. The selector is read
/// as the request will read it: what it lets through has that name.
fn narrowed(info: &RequestInfo, uri: &Uri) -> RequestInfo {
    let mut info = info.clone();
    if info.is_resource && info.name.is_empty() && info.verb != "create" {
        let resource = format!("{}/{}", info.group, info.resource);
        let name = Query::parse(uri).ok().and_then(|query| {
            let selector = Selector::parse("", query.get("fieldSelector"), &resource).ok()?;
            selector.required_name().map(str::to_owned)
        });
        info.name = name.unwrap_or_default();
    }
    info
}

/// The token of a request, from its header or from the sub-protocols of a web socket, from which it is then taken.
fn bearer(headers: &mut HeaderMap) -> Option<String> {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok());
    if let Some((scheme, token)) = given.and_then(|text| text.trim().split_once(' '))
        && scheme.eq_ignore_ascii_case("bearer")
        && !token.trim().is_empty()
    {
        return Some(token.trim().to_owned());
    }
    let offered: Vec<String> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(|protocol| protocol.trim().to_owned())
        .collect();
    let encoded = offered
        .iter()
        .find_map(|protocol| protocol.strip_prefix(PROTOCOL_TOKEN))?;
    use base64::Engine as _;
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(encoded)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let rest: Vec<&str> = offered
        .iter()
        .map(String::as_str)
        .filter(|protocol| !protocol.starts_with(PROTOCOL_TOKEN))
        .collect();
    headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    if let Ok(value) = HeaderValue::from_str(&rest.join(", "))
        && !rest.is_empty()
    {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    // An empty token is none of ours, and is refused.
    Some(token.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_of_one_name_is_that_name() {
        let name = |method: &str, uri: &str| {
            let uri: Uri = uri.parse().unwrap();
            narrowed(&RequestInfo::parse(&method.parse().unwrap(), &uri), &uri).name
        };
        let secrets = "/api/v1/namespaces/a/secrets?fieldSelector";
        assert_eq!(
            name("GET", &format!("{secrets}=metadata.name%3Ds&watch=true")),
            "s"
        );
        assert_eq!(
            name(
                "DELETE",
                &format!("{secrets}=metadata.namespace=a,metadata.name==s")
            ),
            "s"
        );
        assert_eq!(name("GET", &format!("{secrets}=metadata.name!=s")), "");
        assert_eq!(
            name("GET", &format!("{secrets}=&fieldSelector=metadata.name=s")),
            ""
        );
        assert_eq!(name("POST", &format!("{secrets}=metadata.name=s")), "");
        assert_eq!(
            name(
                "GET",
                "/api/v1/namespaces/a/secrets/t?fieldSelector=metadata.name=s"
            ),
            "t"
        );
    }

    #[test]
    fn tokens_come_in_two_ways() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer(&mut headers), None);
        headers.insert(header::AUTHORIZATION, "Basic eDp5".parse().unwrap());
        assert_eq!(bearer(&mut headers), None);
        headers.insert(header::AUTHORIZATION, "bearer  abc".parse().unwrap());
        assert_eq!(bearer(&mut headers).as_deref(), Some("abc"));
        headers.remove(header::AUTHORIZATION);
        let protocols = format!("v5.channel.k8s.io, {PROTOCOL_TOKEN}YWJj");
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocols.parse().unwrap());
        assert_eq!(bearer(&mut headers).as_deref(), Some("abc"));
        assert_eq!(headers[header::SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
    }
}
