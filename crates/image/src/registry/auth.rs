//! How a registry wants to be asked: its challenge, and the token server that the challenge names.
//!
//! Both answers come from a registry that is not trusted: they are bounded in size and time, and the credentials go to
//! no token server without TLS, unless the registry itself is spoken to without.

use base64::Engine as _;
use http::StatusCode;
use http::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::Url;
use serde::Deserialize;

use super::client::{Client, Failed, Operation, body, chain, said};
use crate::Credentials;
use crate::manifest::clip;

/// Largest answer of a token server.
const MAX_TOKEN: usize = 64 << 10;

impl Client {
    /// The header for requests of this kind; none where the registry wants none.
    pub(super) async fn authorization(
        &self,
        operation: Operation,
    ) -> Result<Option<HeaderValue>, Failed> {
        let response = self
            .http
            .get(format!("{}/v2/", self.origin))
            .timeout(self.patience)
            .send()
            .await
            .map_err(|e| Failed::Transient(chain(&e)))?;
        let text = match (bearer_challenge(response.headers()), &self.credentials) {
            (Some(challenge), _) => format!("Bearer {}", self.token(&challenge, operation).await?),
            (None, Some(credentials)) => basic(credentials),
            (None, None) => return Ok(None),
        };
        let mut header = HeaderValue::from_str(&text)
            .map_err(|_| Failed::Unauthorized("the token is not printable".to_owned()))?;
        header.set_sensitive(true);
        Ok(Some(header))
    }

    async fn token(&self, challenge: &Challenge, operation: Operation) -> Result<String, Failed> {
        let realm = clip(&challenge.realm);
        let mut url = challenge.token_server(self.plain_http)?;
        let actions = match operation {
            Operation::Pull => "pull",
            Operation::Push => "pull,push",
        };
        url.query_pairs_mut().append_pair(
            "scope",
            &format!("repository:{}:{actions}", self.repository),
        );
        if let Some(service) = &challenge.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let mut request = self.http.get(url).timeout(self.patience);
        if let Some(c) = &self.credentials {
            request = request.basic_auth(&c.username, Some(&c.password));
        }
        let response = request
            .send()
            .await
            .map_err(|e| Failed::Transient(chain(&e)))?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Failed::Transient(format!(
                "the token server {realm:?} answers {status}"
            )));
        }
        if !status.is_success() {
            let said = said(response).await;
            return Err(Failed::Unauthorized(if said.is_empty() {
                "the credentials were not accepted".to_owned()
            } else {
                said
            }));
        }
        let bytes = body(response, MAX_TOKEN, "a token").await?;
        // What is no token may hold one all the same: it is not shown.
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| {
            Failed::Refused(format!(
                "with the token server {realm:?}, which gives no token"
            ))
        })?;
        Ok(match answer {
            Answer::Token { token } => token,
            Answer::AccessToken { access_token } => access_token,
        })
    }
}

/// What a token server says: Docker's word, or that of OAuth 2.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Token { token: String },
    AccessToken { access_token: String },
}

/// `Bearer realm="https://auth.example/token",service="registry.example"`.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: Option<String>,
}

impl Challenge {
    /// Where the token is; not without TLS, unless that is allowed.
    fn token_server(&self, plain_http: bool) -> Result<Url, Failed> {
        let realm = clip(&self.realm);
        let url: Url = self.realm.parse().map_err(|_| {
            Failed::Refused(format!("with the token server {realm:?}, which is no URL"))
        })?;
        match url.scheme() {
            "https" => Ok(url),
            "http" if plain_http => Ok(url),
            _ => Err(Failed::Refused(format!(
                "with the token server {realm:?}, which has no TLS"
            ))),
        }
    }
}

fn bearer_challenge(headers: &HeaderMap) -> Option<Challenge> {
    headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .find_map(parse_bearer)
}

fn parse_bearer(text: &str) -> Option<Challenge> {
    let (scheme, mut rest) = text.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, None);
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = value(after)?;
        match name.trim_start_matches([',', ' ', '\t']).trim() {
            key if key.eq_ignore_ascii_case("realm") => realm = Some(value),
            key if key.eq_ignore_ascii_case("service") => service = Some(value),
            _ => {}
        }
        rest = after;
    }
    Some(Challenge {
        realm: realm?,
        service,
    })
}

/// One value, in quotes or bare, and what comes after it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.trim_start().strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        return Some((text[..end].trim().to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            other => value.push(other),
        }
    }
    None
}

fn basic(credentials: &Credentials) -> String {
    let pair = format!("{}:{}", credentials.username, credentials.password);
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(pair)
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges() {
        let challenge = |realm: &str, service: Option<&str>| {
            Some(Challenge {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
            })
        };
        for (text, meant) in [
            (
                r#"Bearer realm="https://a.example/t",service="a, b",scope="repository:x:pull""#,
                challenge("https://a.example/t", Some("a, b")),
            ),
            (
                r#"bearer scope="x=y", REALM="https://a.example/?q=1""#,
                challenge("https://a.example/?q=1", None),
            ),
            (
                r"Bearer realm=https://a.example/t, service=s",
                challenge("https://a.example/t", Some("s")),
            ),
            (r#"Bearer realm="a\"b""#, challenge("a\"b", None)),
            (r#"Bearer service="s""#, None),
            (r#"Bearer realm="open"#, None),
            (r#"Basic realm="x""#, None),
            ("Bearer", None),
            ("", None),
        ] {
            assert_eq!(parse_bearer(text), meant, "{text}");
        }
    }

    #[test]
    fn credentials_go_nowhere_without_tls() {
        let server = |realm: &str, plain_http| {
            let challenge = Challenge {
                realm: realm.to_owned(),
                service: None,
            };
            challenge.token_server(plain_http)
        };
        assert!(server("https://a.example/t", false).is_ok());
        assert!(server("http://a.example/t", true).is_ok());
        for (realm, plain_http) in [
            ("http://a.example/t", false),
            ("HTTP://127.0.0.1/t", false),
            ("file:///etc/shadow", true),
            ("a.example/t", true),
        ] {
            let Err(Failed::Refused(why)) = server(realm, plain_http) else {
                panic!("{realm} is asked");
            };
            assert!(why.contains(realm), "{why}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_panic(text in "\\PC{0,80}") {
            let _ = parse_bearer(&format!("Bearer {text}"));
        }
    }
}
