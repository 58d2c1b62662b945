//! The certificates of berth's own parts.
//!
//! Each has an authority of its own that signs nothing else; both are made anew when a sixth of their life is left.
//! Certificate and key are in a Secret, the authority's certificate is put where those look who are to believe it. Its key
//! is thrown away, so there is nothing to steal that signs.
//!
//! ```text
//!  Secret berth-api          server   the API server believes it: webhook configurations, APIServices
//!  Secret berth-node-server  server   the controller believes it; read by node agents
//!  Secret berth-node-client  client   node agents believe it: ConfigMap berth-node-client; read by the controller alone
//! ```

use std::collections::{BTreeMap, BTreeSet};

use berth_apiserver::auth::pki;
use futures::{Stream, StreamExt as _};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{ObjectMeta, PartialObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde_json::json;

use crate::manifests::{API_SERVICES, CONFIGURATION, NODE, NODE_CLIENT, NODE_SERVER, SERVICE};
use crate::nodes::Link;
use crate::serve::{Authorities, Newest, roots};

/// How often a write that another replica was faster with is tried anew.
const TRIES: usize = 5;
/// Where an authority's certificate is in Secrets and ConfigMaps.
const AUTHORITY: &str = "ca.crt";

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
    /// What is there is of no use.
    #[error("{object}: {why}")]
    Unusable {
        /// Which object.
        object: String,
        /// What is wrong with it.
        why: String,
    },
}

fn failed(operation: &'static str, object: String) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error::Api {
        operation,
        object,
        source,
    }
}

/// A Secret and what its certificate is for.
#[derive(Debug, Clone)]
struct Wanted {
    namespace: String,
    secret: &'static str,
    /// Whom it shows.
    subject: &'static str,
    /// What a server is called by; a client has none.
    names: BTreeSet<String>,
}

impl Wanted {
    /// That of the webhooks and of the aggregated API.
    fn service(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            secret: SERVICE,
            subject: SERVICE,
            names: BTreeSet::from([
                format!("{SERVICE}.{namespace}.svc"),
                format!("{SERVICE}.{namespace}.svc.cluster.local"),
            ]),
        }
    }

    /// That of all node agents.
    fn node_server(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            secret: NODE_SERVER,
            subject: NODE,
            names: BTreeSet::from([NODE.to_owned()]),
        }
    }

    /// The controller's, for node agents.
    fn node_client(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            secret: NODE_CLIENT,
            subject: NODE_CLIENT,
            names: BTreeSet::new(),
        }
    }

    fn shown(&self) -> String {
        format!("secret {}/{}", self.namespace, self.secret)
    }

    fn unusable(&self, why: &dyn ToString) -> Error {
        Error::Unusable {
            object: self.shown(),
            why: why.to_string(),
        }
    }
}

/// PEM texts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bundle {
    authority: String,
    certificate: String,
    key: String,
}

/// Makes sure that the API server can call the controller: that there is a certificate, that it is served, and that the API
/// server trusts it. Idempotent; to be called again now and then.
///
/// # Errors
/// When the API server does not let it, or what is there is of no use.
pub async fn ensure_service(
    client: &Client,
    namespace: &str,
    newest: &Newest,
) -> Result<(), Error> {
    let wanted = Wanted::service(namespace);
    let bundle = held(client, &wanted).await?;
    newest.set(certified(&bundle).ok_or_else(|| wanted.unusable(&"no certificate with its key"))?);
    let authority = &bundle.authority;
    trust::<MutatingWebhookConfiguration>(client, CONFIGURATION, authority, |c| {
        let webhooks = c.webhooks.iter().flatten();
        of_webhooks(webhooks.map(|w| w.client_config.ca_bundle.clone()))
    })
    .await?;
    trust::<ValidatingWebhookConfiguration>(client, CONFIGURATION, authority, |c| {
        let webhooks = c.webhooks.iter().flatten();
        of_webhooks(webhooks.map(|w| w.client_config.ca_bundle.clone()))
    })
    .await?;
    for name in API_SERVICES {
        trust::<APIService>(client, name, authority, |service| {
            let spec = service.spec.as_ref();
            vec![(
                "/spec/caBundle".to_owned(),
                spec.and_then(|spec| spec.ca_bundle.clone()),
            )]
        })
        .await?;
    }
    Ok(())
}

/// Makes sure that the controller can call node agents. Idempotent; to be called again now and then.
///
/// # Errors
/// When the API server does not let it, or what is there is of no use.
pub async fn ensure_link(client: &Client, namespace: &str, link: &Link) -> Result<(), Error> {
    let (of_server, of_client) = (
        Wanted::node_server(namespace),
        Wanted::node_client(namespace),
    );
    let server = held(client, &of_server).await?;
    let own = held(client, &of_client).await?;
    publish(client, namespace, &own.authority).await?;
    let believed = roots(&server.authority).map_err(|why| of_server.unusable(&why))?;
    let (chain, key) =
        chain(&own).ok_or_else(|| of_client.unusable(&"no certificate with its key"))?;
    let config = ClientConfig::builder()
        .with_root_certificates(believed)
        .with_client_auth_cert(chain, key)
        .map_err(|e| of_client.unusable(&e))?;
    link.set(config);
    Ok(())
}

/// What a node agent serves with, and whom it believes: both are made by the controller, which may come later.
///
/// # Errors
/// When they are not there, or of no use.
pub async fn of_node(
    client: &Client,
    namespace: &str,
    newest: &Newest,
    authorities: &Authorities,
) -> Result<(), Error> {
    let wanted = Wanted::node_server(namespace);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = secrets.get(wanted.secret).await;
    let secret = secret.map_err(failed("read", wanted.shown()))?;
    let key = read(&secret).and_then(|bundle| certified(&bundle));
    newest.set(key.ok_or_else(|| wanted.unusable(&"no certificate with its key"))?);
    let object = || format!("configmap {namespace}/{NODE_CLIENT}");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = maps.get(NODE_CLIENT).await;
    let map = map.map_err(failed("read", object()))?;
    let pem = map.data.as_ref().and_then(|data| data.get(AUTHORITY));
    authorities
        .set(pem.map(String::as_str).unwrap_or_default())
        .map_err(|why| Error::Unusable {
            object: object(),
            why,
        })
}

/// Tells when what [`of_node`] reads may have changed; never ends.
pub fn changes(client: &Client, namespace: &str) -> impl Stream<Item = ()> + Send + use<> {
    let only = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
    let secrets: Api<PartialObjectMeta<Secret>> = Api::namespaced(client.clone(), namespace);
    let maps: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(client.clone(), namespace);
    // What the watch could not see is looked for at the next one.
    let secrets = watcher(secrets, only(NODE_SERVER))
        .default_backoff()
        .touched_objects()
        .map(drop);
    let maps = watcher(maps, only(NODE_CLIENT))
        .default_backoff()
        .touched_objects()
        .map(drop);
    futures::stream::select(secrets, maps)
}

/// Tells node agents whom to believe.
async fn publish(client: &Client, namespace: &str, authority: &str) -> Result<(), Error> {
    let object = || format!("configmap {namespace}/{NODE_CLIENT}");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let data = BTreeMap::from([(AUTHORITY.to_owned(), authority.to_owned())]);
    let found = maps.get_opt(NODE_CLIENT).await;
    let found = found.map_err(failed("read", object()))?;
    if found.as_ref().and_then(|map| map.data.as_ref()) == Some(&data) {
        return Ok(());
    }
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(NODE_CLIENT.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..ConfigMap::default()
    };
    let written = match found {
        Some(_) => {
            maps.replace(NODE_CLIENT, &PostParams::default(), &map)
                .await
        }
        None => maps.create(&PostParams::default(), &map).await,
    };
    match written {
        Ok(_) => Ok(()),
        // Another replica was faster, with the same.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(source) => Err(failed("write", object())(source)),
    }
}

/// The certificate of a Secret, which is made or renewed if need be.
async fn held(client: &Client, wanted: &Wanted) -> Result<Bundle, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &wanted.namespace);
    let mut tries = 0;
    loop {
        let found = secrets
            .get_opt(wanted.secret)
            .await
            .map_err(failed("read", wanted.shown()))?;
        if let Some(bundle) = found.as_ref().and_then(read)
            && is_fresh(&bundle.certificate, wanted)
        {
            return Ok(bundle);
        }
        let bundle = make(wanted)?;
        let secret = written(wanted, &bundle, found.as_ref());
        let done = match &found {
            Some(_) => {
                secrets
                    .replace(wanted.secret, &PostParams::default(), &secret)
                    .await
            }
            None => secrets.create(&PostParams::default(), &secret).await,
        };
        match done {
            Ok(_) => {
                tracing::info!(secret = wanted.secret, "a new certificate");
                return Ok(bundle);
            }
            // Another replica was faster, and its certificate is as good.
            Err(kube::Error::Api(status)) if status.code == 409 && tries < TRIES => tries += 1,
            Err(source) => return Err(failed("write", wanted.shown())(source)),
        }
    }
}

fn read(secret: &Secret) -> Option<Bundle> {
    let data = secret.data.as_ref()?;
    let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
    Some(Bundle {
        authority: text(AUTHORITY)?,
        certificate: text("tls.crt")?,
        key: text("tls.key")?,
    })
}

fn written(wanted: &Wanted, bundle: &Bundle, found: Option<&Secret>) -> Secret {
    let bytes = |text: &String| ByteString(text.as_bytes().to_vec());
    Secret {
        metadata: ObjectMeta {
            name: Some(wanted.secret.to_owned()),
            namespace: Some(wanted.namespace.clone()),
            resource_version: found.and_then(kube::ResourceExt::resource_version),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(BTreeMap::from([
            (AUTHORITY.to_owned(), bytes(&bundle.authority)),
            ("tls.crt".to_owned(), bytes(&bundle.certificate)),
            ("tls.key".to_owned(), bytes(&bundle.key)),
        ])),
        ..Secret::default()
    }
}

/// Whether a certificate is for this purpose and has more than a sixth of its life before it.
fn is_fresh(certificate: &str, wanted: &Wanted) -> bool {
    pki::valid_for(certificate, pki::LIFETIME / 6)
        && pki::alternative_names(certificate).is_superset(&wanted.names)
}

fn make(wanted: &Wanted) -> Result<Bundle, rcgen::Error> {
    let authority = pki::make_authority(&format!("{}-ca", wanted.secret), pki::LIFETIME)?;
    let issuer = pki::issuer(&authority)?;
    let signed = if wanted.names.is_empty() {
        pki::make_client(&issuer, wanted.subject, &[], pki::LIFETIME)?
    } else {
        pki::make_server(&issuer, wanted.subject, &wanted.names, pki::LIFETIME)?
    };
    Ok(Bundle {
        authority: authority.certificate,
        certificate: signed.certificate,
        key: signed.key,
    })
}

fn chain(bundle: &Bundle) -> Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(bundle.certificate.as_bytes())
            .collect::<Result<_, _>>()
            .ok()?;
    let key = PrivateKeyDer::from_pem_slice(bundle.key.as_bytes()).ok()?;
    (!chain.is_empty()).then_some((chain, key))
}

fn certified(bundle: &Bundle) -> Option<CertifiedKey> {
    let (chain, key) = chain(bundle)?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).ok()?;
    Some(CertifiedKey::new(chain, key))
}

fn of_webhooks(
    bundles: impl Iterator<Item = Option<ByteString>>,
) -> Vec<(String, Option<ByteString>)> {
    bundles
        .enumerate()
        .map(|(at, bundle)| (format!("/webhooks/{at}/clientConfig/caBundle"), bundle))
        .collect()
}

/// Puts an authority into an object where it is not yet: `bundles` gives the places and what is in them.
async fn trust<K>(
    client: &Client,
    name: &str,
    authority: &str,
    bundles: impl Fn(&K) -> Vec<(String, Option<ByteString>)>,
) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    let object = || format!("{} {name}", K::kind(&()));
    let found = api.get_opt(name).await;
    let Some(found) = found.map_err(failed("read", object()))? else {
        tracing::warn!("there is no {}: nothing asks berth by it", object());
        return Ok(());
    };
    let wanted = ByteString(authority.as_bytes().to_vec());
    let stale: Vec<String> = bundles(&found)
        .into_iter()
        .filter(|(_, have)| have.as_ref() != Some(&wanted))
        .map(|(place, _)| place)
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
    let adds = stale
        .into_iter()
        .map(|place| json!({"op": "add", "path": place, "value": wanted}));
    steps.extend(adds);
    let patch: json_patch::Patch = serde_json::from_value(json!(steps)).unwrap_or_default();
    api.patch(name, &PatchParams::default(), &Patch::Json::<()>(patch))
        .await
        .map(drop)
        .map_err(failed("write", object()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_one_is_fresh_for_its_service_only() {
        let wanted = Wanted::service("berth");
        let bundle = make(&wanted).unwrap();
        assert!(is_fresh(&bundle.certificate, &wanted));
        assert!(!is_fresh(&bundle.certificate, &Wanted::service("other")));
        assert!(!is_fresh("nonsense", &wanted));
        assert!(certified(&bundle).is_some());
        let secret = written(&wanted, &bundle, None);
        assert_eq!(read(&secret), Some(bundle));
    }

    #[test]
    fn node_agents_believe_the_controller_and_no_node_agent() {
        let client = make(&Wanted::node_client("berth")).unwrap();
        let server = make(&Wanted::node_server("berth")).unwrap();
        assert!(is_fresh(&client.certificate, &Wanted::node_client("berth")));
        assert!(chain(&client).is_some() && certified(&server).is_some());
        assert_ne!(client.authority, server.authority);
    }
}
