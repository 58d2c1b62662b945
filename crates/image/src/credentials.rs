//! Registry credentials, and how Docker's configuration file and Kubernetes' pull secrets write them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde_json::Value;

/// User name and password for a registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password or access token.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The password must not reach a log through a struct that holds it.
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// The credentials for `registry` in a `~/.docker/config.json`, which is also what a `kubernetes.io/dockerconfigjson`
/// secret holds; the older form without `auths` (`kubernetes.io/dockercfg`) is understood too.
///
/// `registry` is the registry of an [`ImageRef`](crate::ImageRef), or registry and repository: the longest matching
/// entry wins. Credential helpers are not run.
pub fn credentials_from_docker_config(json: &[u8], registry: &str) -> Option<Credentials> {
    let config: Value = serde_json::from_slice(json).ok()?;
    let entries = config.get("auths").unwrap_or(&config).as_object()?;
    let wanted = canonical(registry);
    entries
        .iter()
        .filter_map(|(key, entry)| {
            let key = canonical(key);
            let matches = wanted
                .strip_prefix(&key)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            matches
                .then(|| credentials(entry))
                .flatten()
                .map(|found| (key.len(), found))
        })
        .max_by_key(|(length, _)| *length)
        .map(|(_, found)| found)
}

/// `https://index.docker.io/v1/` and `docker.io` are the same registry.
fn canonical(key: &str) -> String {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key);
    let (host, path) = match key.split_once('/') {
        Some((host, path)) => (host, Some(path)),
        None => (key, None),
    };
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io",
        other => other,
    };
    match path {
        Some(path) => format!("{host}/{path}"),
        None => host.to_owned(),
    }
}

fn credentials(entry: &Value) -> Option<Credentials> {
    let text = |key: &str| {
        entry
            .get(key)
            .and_then(Value::as_str)
            .filter(|s| !s.is_empty())
    };
    if let Some(auth) = text("auth") {
        let auth = auth.trim();
        let plain = STANDARD
            .decode(auth)
            .or_else(|_| STANDARD_NO_PAD.decode(auth))
            .ok()?;
        let plain = String::from_utf8(plain).ok()?;
        let (username, password) = plain.split_once(':')?;
        // Docker pads with NUL.
        let password = password.trim_end_matches('\0');
        return Some(Credentials {
            username: username.to_owned(),
            password: password.to_owned(),
        });
    }
    Some(Credentials {
        username: text("username")?.to_owned(),
        password: text("password")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(json: &str, registry: &str) -> Option<String> {
        credentials_from_docker_config(json.as_bytes(), registry)
            .map(|c| format!("{}/{}", c.username, c.password))
    }

    #[test]
    fn docker_config_is_understood() {
        let json = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOmE6Yg=="},
            "reg.example:5000": {"username": "u", "password": "p"},
            "reg.example:5000/team": {"auth": "dGVhbTp4"},
            "empty.example": {}
        }, "credsStore": "desktop"}"#;
        assert_eq!(user(json, "docker.io").as_deref(), Some("hub/a:b"));
        assert_eq!(user(json, "reg.example:5000").as_deref(), Some("u/p"));
        assert_eq!(
            user(json, "reg.example:5000/team/x").as_deref(),
            Some("team/x")
        );
        assert_eq!(
            user(json, "reg.example:5000/teams/x").as_deref(),
            Some("u/p")
        );
        assert_eq!(user(json, "reg.example"), None);
        assert_eq!(user(json, "empty.example"), None);
    }

    #[test]
    fn the_old_secret_form_and_rubbish() {
        assert_eq!(
            user(r#"{"quay.io": {"auth": "dTpw"}}"#, "quay.io").as_deref(),
            Some("u/p")
        );
        for rubbish in [
            "",
            "[]",
            "{",
            r#"{"auths": 3}"#,
            r#"{"auths": {"quay.io": {"auth": "%%%"}}}"#,
        ] {
            assert_eq!(user(rubbish, "quay.io"), None);
        }
    }

    #[test]
    fn the_password_is_not_printed() {
        let c = Credentials {
            username: "u".into(),
            password: "secret".into(),
        };
        assert!(!format!("{c:?}").contains("secret"));
    }
}
