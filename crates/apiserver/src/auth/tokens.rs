//! The tokens of service accounts: JSON Web Tokens, signed ES256, with upstream's claims.
//!
//! This module signs, checks signatures and times. Whether the account and what the token is bound to still exist is for
//! those who see the store.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PublicKeyData as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::auth::pki::{self, PkiError};

/// Who signs, and whom tokens are for unless they say otherwise; upstream's default.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Who signs tokens that lie in secrets and do not expire.
pub const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// Clocks differ by so many seconds at most; upstream's.
const LEEWAY: i64 = 60;
/// The key's file in the directory of the certificates.
const KEY_FILE: &str = "service-accounts.key";

/// An object that a token names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Object name.
    pub name: String,
    /// Object uid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// What Kubernetes says in a token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    /// Namespace of the account.
    pub namespace: String,
    /// The node of the pod, or what the token is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// The pod that the token is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The secret that the token is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// The account.
    pub serviceaccount: Reference,
}

/// What Kubernetes says in a token that lies in a secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Legacy {
    /// Namespace of account and secret.
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    pub namespace: String,
    /// Where the token lies.
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    pub secret: String,
    /// The account.
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    pub account: String,
    /// The account's uid.
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    pub uid: String,
}

/// The claims of a token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Whom it is for.
    #[serde(
        default,
        deserialize_with = "one_or_many",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub aud: Vec<String>,
    /// When it ends, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp: Option<i64>,
    /// When it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iat: Option<i64>,
    /// Who signed it.
    #[serde(default)]
    pub iss: String,
    /// Its own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// What Kubernetes says.
    #[serde(rename = "kubernetes.io", skip_serializing_if = "Option::is_none")]
    pub private: Option<Private>,
    /// When it begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    /// The user name.
    #[serde(default)]
    pub sub: String,
    /// What Kubernetes says, in a token without end.
    #[serde(flatten)]
    pub legacy: Option<Legacy>,
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(deserializer)? {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    })
}

impl Claims {
    /// Whether the time is right, in upstream's words.
    pub fn check_times(&self, now: i64) -> Result<(), &'static str> {
        if self.nbf.is_some_and(|nbf| now + LEEWAY < nbf) {
            return Err("service account token is not valid yet");
        }
        if self.exp.is_some_and(|exp| now - LEEWAY > exp) {
            return Err("service account token has expired");
        }
        if self.iat.is_some_and(|iat| now + LEEWAY < iat) {
            return Err("service account token is issued in the future");
        }
        Ok(())
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The key that signs.
pub struct TokenKey {
    signing: EncodingKey,
    checking: DecodingKey,
    id: String,
    x: String,
    y: String,
}

impl TokenKey {
    /// Loads the key of a directory, making it if it is missing or cannot be read. Tokens do not outlive their key.
    pub fn ensure(dir: &Path) -> Result<Self, PkiError> {
        let path = dir.join(KEY_FILE);
        let stored = match std::fs::read_to_string(&path) {
            Ok(pem) => KeyPair::from_pem(&pem).ok(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(PkiError::File { path, source }),
        };
        let pair = match stored {
            Some(pair) if pair.algorithm() == &rcgen::PKCS_ECDSA_P256_SHA256 => pair,
            _ => {
                let what = "service account";
                let pair = KeyPair::generate().map_err(|source| PkiError::Make { what, source })?;
                pki::write_atomically(&path, pair.serialize_pem().as_bytes(), 0o600)
                    .map_err(|source| PkiError::File { path, source })?;
                pair
            }
        };
        Self::of(&pair)
    }

    fn of(pair: &KeyPair) -> Result<Self, PkiError> {
        let id = URL_SAFE_NO_PAD.encode(digest(&SHA256, &pair.subject_public_key_info()));
        // An uncompressed point: 4, and 32 bytes of each coordinate.
        let point = pair.der_bytes();
        let unusable = || PkiError::TokenKey("it is no P-256 key".into());
        let x = URL_SAFE_NO_PAD.encode(point.get(1..33).ok_or_else(unusable)?);
        let y = URL_SAFE_NO_PAD.encode(point.get(33..65).ok_or_else(unusable)?);
        Ok(Self {
            signing: EncodingKey::from_ec_der(&pair.serialize_der()),
            checking: DecodingKey::from_ec_components(&x, &y)
                .map_err(|e| PkiError::TokenKey(e.to_string()))?,
            id,
            x,
            y,
        })
    }

    /// Signs.
    pub fn sign(&self, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
        let header = Header {
            typ: None,
            kid: Some(self.id.clone()),
            ..Header::new(Algorithm::ES256)
        };
        jsonwebtoken::encode(&header, claims, &self.signing)
    }

    /// The claims of a token that this key signed; its times are not looked at.
    pub fn verify(&self, token: &str) -> Option<Claims> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        jsonwebtoken::decode(token, &self.checking, &validation)
            .ok()
            .map(|data| data.claims)
    }

    /// The document at `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        json!({"keys": [{
            "use": "sig",
            "kty": "EC",
            "kid": self.id,
            "crv": "P-256",
            "alg": "ES256",
            "x": self.x,
            "y": self.y,
        }]})
    }
}

/// The document at `/.well-known/openid-configuration` of a server at `address` (host and port).
pub fn discovery(address: &str) -> Value {
    json!({
        "issuer": ISSUER,
        "jwks_uri": format!("https://{address}/openid/v1/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn claims() -> Claims {
        Claims {
            aud: vec![ISSUER.into()],
            exp: Some(2000),
            iat: Some(1000),
            nbf: Some(1000),
            iss: ISSUER.into(),
            sub: "system:serviceaccount:a:b".into(),
            private: Some(Private {
                namespace: "a".into(),
                ..Private::default()
            }),
            ..Claims::default()
        }
    }

    #[test]
    fn what_is_signed_is_read_again_and_nothing_else() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = TokenKey::ensure(dir.path()).unwrap();
        let token = key.sign(&claims()).unwrap();
        let again = TokenKey::ensure(dir.path()).unwrap();
        assert_eq!(again.verify(&token), Some(claims()));
        assert_eq!(TokenKey::ensure(other.path()).unwrap().verify(&token), None);
        let (head, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = head.split_once('.').unwrap();
        let forged = URL_SAFE_NO_PAD.encode(r#"{"sub":"system:serviceaccount:a:root"}"#);
        assert_eq!(key.verify(&format!("{header}.{forged}.{signature}")), None);
        let unsigned = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        assert_eq!(key.verify(&format!("{unsigned}.{forged}.")), None);
        let mode = std::fs::metadata(dir.path().join(KEY_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn times_with_some_leeway() {
        assert_eq!(claims().check_times(1500), Ok(()));
        assert_eq!(claims().check_times(950), Ok(()));
        assert!(claims().check_times(939).is_err());
        assert_eq!(claims().check_times(2060), Ok(()));
        assert_eq!(
            claims().check_times(2061),
            Err("service account token has expired")
        );
    }

    #[test]
    fn claims_as_upstream_writes_them() {
        let shown = serde_json::to_value(claims()).unwrap();
        assert_eq!(
            shown,
            json!({"aud": [ISSUER], "exp": 2000, "iat": 1000, "nbf": 1000, "iss": ISSUER, "sub": "system:serviceaccount:a:b",
                "kubernetes.io": {"namespace": "a", "serviceaccount": {"name": ""}}})
        );
        let single: Claims = serde_json::from_value(json!({"aud": "x"})).unwrap();
        assert_eq!(single.aud, ["x"]);
        let legacy: Claims = serde_json::from_value(json!({"iss": LEGACY_ISSUER, "kubernetes.io/serviceaccount/namespace": "a",
            "kubernetes.io/serviceaccount/secret.name": "s", "kubernetes.io/serviceaccount/service-account.name": "b",
            "kubernetes.io/serviceaccount/service-account.uid": "u"})).unwrap();
        assert_eq!(legacy.legacy.unwrap().secret, "s");
    }
}
