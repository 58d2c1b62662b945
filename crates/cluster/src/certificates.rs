//! The certificate that the webhooks are served with.
//!
//! An authority of its own signs it; both are made anew when a sixth of their life is left. Certificate and key are in a
//! Secret that all replicas read, the authority's certificate is put into the webhook configurations. Its key is thrown
//! away, so there is nothing to steal that signs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use berth_apiserver::auth::pki;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde_json::json;

/// How often a write that another replica was faster with is tried anew.
const TRIES: usize = 5;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server.
    #[error("{operation} {object}: {source}")]
    Api {
        /// What was tried.
        operation: &'static str,
        /// On which object.
        object: String,
        /// Why not.
        #[source]
        source: kube::Error,
    },
    /// Making it.
    #[error("the certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// What is in the Secret is of no use.
    #[error("the secret {0} holds no certificate with its key")]
    Unusable(String),
}

/// The Secret and what its certificate is for.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where the Secret and the Service are.
    pub namespace: String,
    /// Name of the Secret.
    pub secret: String,
    /// Name of the Service that the API server calls.
    pub service: String,
    /// Name of both webhook configurations.
    pub configuration: String,
}

impl Place {
    fn names(&self) -> BTreeSet<String> {
        let Self {
            service, namespace, ..
        } = self;
        BTreeSet::from([
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}.svc.cluster.local"),
        ])
    }
}

/// PEM texts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bundle {
    authority: String,
    certificate: String,
    key: String,
}

/// Serves whatever certificate is the newest.
#[derive(Debug, Default)]
pub struct Newest(RwLock<Option<Arc<CertifiedKey>>>);

impl ResolvesServerCert for Newest {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A TLS configuration with these certificates.
pub fn tls(newest: Arc<Newest>) -> rustls::ServerConfig {
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_cert_resolver(newest);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// Makes sure that there is a certificate, that it is served, and that the API server trusts it. Idempotent; to be called
/// again now and then.
///
/// # Errors
/// When the API server does not let it, or what is there is of no use.
pub async fn ensure(client: &Client, place: &Place, newest: &Newest) -> Result<(), Error> {
    let bundle = bundle(client, place).await?;
    let key = certified(&bundle).ok_or_else(|| Error::Unusable(place.secret.clone()))?;
    *newest.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
    trust::<MutatingWebhookConfiguration>(client, place, &bundle, |c| {
        let webhooks = c.webhooks.iter().flatten();
        webhooks
            .map(|w| w.client_config.ca_bundle.clone())
            .collect()
    })
    .await?;
    trust::<ValidatingWebhookConfiguration>(client, place, &bundle, |c| {
        let webhooks = c.webhooks.iter().flatten();
        webhooks
            .map(|w| w.client_config.ca_bundle.clone())
            .collect()
    })
    .await
}

/// The certificate of the Secret, which is made or renewed if need be.
async fn bundle(client: &Client, place: &Place) -> Result<Bundle, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &place.namespace);
    let mut tries = 0;
    loop {
        let failed = |operation| {
            let object = format!("secret {}/{}", place.namespace, place.secret);
            move |source| Error::Api {
                operation,
                object,
                source,
            }
        };
        let found = secrets
            .get_opt(&place.secret)
            .await
            .map_err(failed("read"))?;
        if let Some(bundle) = found.as_ref().and_then(read)
            && is_fresh(&bundle.certificate, place)
        {
            return Ok(bundle);
        }
        let bundle = make(place)?;
        let secret = written(place, &bundle, found.as_ref());
        let done = match &found {
            Some(_) => {
                secrets
                    .replace(&place.secret, &PostParams::default(), &secret)
                    .await
            }
            None => secrets.create(&PostParams::default(), &secret).await,
        };
        match done {
            Ok(_) => {
                tracing::info!(secret = place.secret, "a new webhook certificate");
                return Ok(bundle);
            }
            // Another replica was faster, and its certificate is as good.
            Err(kube::Error::Api(status)) if status.code == 409 && tries < TRIES => tries += 1,
            Err(source) => return Err(failed("write")(source)),
        }
    }
}

fn read(secret: &Secret) -> Option<Bundle> {
    let data = secret.data.as_ref()?;
    let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
    Some(Bundle {
        authority: text("ca.crt")?,
        certificate: text("tls.crt")?,
        key: text("tls.key")?,
    })
}

fn written(place: &Place, bundle: &Bundle, found: Option<&Secret>) -> Secret {
    let bytes = |text: &String| ByteString(text.as_bytes().to_vec());
    Secret {
        metadata: ObjectMeta {
            name: Some(place.secret.clone()),
            namespace: Some(place.namespace.clone()),
            resource_version: found.and_then(kube::ResourceExt::resource_version),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(BTreeMap::from([
            ("ca.crt".to_owned(), bytes(&bundle.authority)),
            ("tls.crt".to_owned(), bytes(&bundle.certificate)),
            ("tls.key".to_owned(), bytes(&bundle.key)),
        ])),
        ..Secret::default()
    }
}

/// Whether a certificate is for this service and has more than a sixth of its life before it.
fn is_fresh(certificate: &str, place: &Place) -> bool {
    pki::valid_for(certificate, pki::LIFETIME / 6)
        && pki::alternative_names(certificate).is_superset(&place.names())
}

fn make(place: &Place) -> Result<Bundle, rcgen::Error> {
    let authority = pki::make_authority("berth-webhook-ca", pki::LIFETIME)?;
    let issuer = pki::issuer(&authority)?;
    let server = pki::make_server(&issuer, &place.service, &place.names(), pki::LIFETIME)?;
    Ok(Bundle {
        authority: authority.certificate,
        certificate: server.certificate,
        key: server.key,
    })
}

fn certified(bundle: &Bundle) -> Option<CertifiedKey> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(bundle.certificate.as_bytes())
            .collect::<Result<_, _>>()
            .ok()?;
    let key = PrivateKeyDer::from_pem_slice(bundle.key.as_bytes()).ok()?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).ok()?;
    Some(CertifiedKey::new(chain, key))
}

/// Puts the authority into a webhook configuration where it is not yet.
async fn trust<K>(
    client: &Client,
    place: &Place,
    bundle: &Bundle,
    bundles: impl Fn(&K) -> Vec<Option<ByteString>>,
) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    let failed = |operation| {
        let object = format!("{} {}", K::kind(&()), place.configuration);
        move |source| Error::Api {
            operation,
            object,
            source,
        }
    };
    let Some(found) = api
        .get_opt(&place.configuration)
        .await
        .map_err(failed("read"))?
    else {
        tracing::warn!(
            "there is no {} {}: nothing asks the webhook",
            K::kind(&()),
            place.configuration
        );
        return Ok(());
    };
    let wanted = ByteString(bundle.authority.as_bytes().to_vec());
    let stale: Vec<usize> = bundles(&found)
        .into_iter()
        .enumerate()
        .filter(|(_, have)| have.as_ref() != Some(&wanted))
        .map(|(index, _)| index)
        .collect();
    if stale.is_empty() {
        return Ok(());
    }
    // Only if it is still the one that was read.
    let mut steps = vec![json!({
        "op": "test",
        "path": "/metadata/resourceVersion",
        "value": found.meta().resource_version,
    })];
    steps.extend(stale.into_iter().map(|index| {
        json!({
            "op": "add",
            "path": format!("/webhooks/{index}/clientConfig/caBundle"),
            "value": wanted,
        })
    }));
    let patch: json_patch::Patch = serde_json::from_value(json!(steps)).unwrap_or_default();
    api.patch(
        &place.configuration,
        &PatchParams::default(),
        &Patch::Json::<()>(patch),
    )
    .await
    .map(drop)
    .map_err(failed("write"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(service: &str) -> Place {
        Place {
            namespace: "berth".into(),
            secret: "berth-webhook".into(),
            service: service.into(),
            configuration: "berth".into(),
        }
    }

    #[test]
    fn a_new_one_is_fresh_for_its_service_only() {
        let bundle = make(&place("berth-webhook")).unwrap();
        assert!(is_fresh(&bundle.certificate, &place("berth-webhook")));
        assert!(!is_fresh(&bundle.certificate, &place("other")));
        assert!(!is_fresh("nonsense", &place("berth-webhook")));
        assert!(certified(&bundle).is_some());
        let secret = written(&place("berth-webhook"), &bundle, None);
        assert_eq!(read(&secret), Some(bundle));
    }
}
