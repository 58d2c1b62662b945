//! Background work: what each namespace has for its pods, and the secrets that hold tokens.
//!
//! - A ServiceAccount `default` and a ConfigMap `kube-root-ca.crt` with the authority's certificate, in every namespace.
//! - A Secret of type `kubernetes.io/service-account-token` gets a token of its account; it goes when the account does.

use std::collections::BTreeSet;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::auth::tokens::{Claims, LEGACY_ISSUER, Legacy};
use crate::error::ApiError;
use crate::registry::catalog::Scope;
use crate::registry::delete_options::DeleteOptions;
use crate::registry::policy::NAMESPACES;
use crate::registry::query::Call;
use crate::registry::tend::tend;
use crate::registry::{Core, meta, store_error};
use crate::store::{Event, Key, Query};

const ACCOUNTS: &str = "/serviceaccounts";
const SECRETS: &str = "/secrets";
const CONFIG_MAPS: &str = "/configmaps";
/// The account that pods have which name none.
const DEFAULT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
/// Type of the secrets that hold tokens, and their annotations.
pub(crate) const TOKEN_TYPE: &str = "kubernetes.io/service-account-token";
pub(crate) const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// Works until `stop`.
pub(crate) async fn run(core: Arc<Core>, stop: CancellationToken) {
    tend(stop, "look after service accounts", || {
        let core = core.clone();
        async move {
            // Subscribed before the first round: what happens meanwhile is seen.
            let head = core.store.ring().head();
            let Ok(mut subscription) = core.store.ring().subscribe(head) else {
                return Ok(());
            };
            core.settle_namespaces().await?;
            // A watch that fell behind begins anew.
            while let Ok(events) = subscription.next().await {
                let touched: BTreeSet<&str> =
                    events.iter().filter_map(|event| concerns(event)).collect();
                for namespace in touched {
                    core.settle_namespace(namespace).await?;
                }
            }
            Ok(())
        }
    })
    .await;
}

/// The namespace that a write gives us work in.
fn concerns(event: &Event) -> Option<&str> {
    let key = &event.key;
    match &*key.resource {
        // What is deleted needs nothing; what is created needs all.
        NAMESPACES => event.value.is_some().then_some(&key.name),
        ACCOUNTS => Some(&key.namespace),
        CONFIG_MAPS => (key.name == ROOT_CA).then_some(&key.namespace),
        SECRETS => {
            // Cheaper than parsing every secret; one that only mentions the type costs a look.
            let value = event.value.as_ref()?;
            value
                .windows(TOKEN_TYPE.len())
                .any(|window| window == TOKEN_TYPE.as_bytes())
                .then_some(&key.namespace)
        }
        _ => None,
    }
}

impl Core {
    /// One round over all namespaces.
    pub(crate) async fn settle_namespaces(&self) -> Result<(), ApiError> {
        let query = Query {
            resource: NAMESPACES.into(),
            namespace: None,
            after: None,
            limit: None,
        };
        let page = self.store.list(&query).map_err(|e| store_error(&e))?;
        // All at once: the store writes what comes together with one sync.
        let settled = page
            .items
            .iter()
            .map(|stored| self.settle_namespace(&stored.key.name));
        futures::future::try_join_all(settled).await.map(drop)
    }

    async fn settle_namespace(&self, namespace: &str) -> Result<(), ApiError> {
        let key = Key::new(&NAMESPACES.into(), "", namespace);
        let stored = self.store.get(&key).map_err(|e| store_error(&e))?;
        let home: Option<Value> = stored.and_then(|s| serde_json::from_slice(&s.value).ok());
        if home.is_none_or(|home| meta::is_deleting(&home)) {
            return Ok(());
        }
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": DEFAULT, "namespace": namespace}});
        self.ensure("serviceaccounts", namespace, account).await?;
        let data = json!({"ca.crt": self.ca});
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ROOT_CA, "namespace": namespace}, "data": data});
        if let Some(found) = self.ensure("configmaps", namespace, map).await?
            && found["data"] != data
        {
            self.change("configmaps", namespace, ROOT_CA, &|map| {
                map["data"] = data.clone();
            })
            .await?;
        }
        self.settle_tokens(namespace).await
    }

    /// Creates an object; one that is there already is returned.
    async fn ensure(
        &self,
        plural: &str,
        namespace: &str,
        object: Value,
    ) -> Result<Option<Value>, ApiError> {
        let scope = self.core_scope(plural)?;
        match self.read(&scope, namespace, meta::name(&object)) {
            Ok(stored) => return scope.present(&stored).map(Some),
            Err(ApiError::NotFound(_)) => {}
            Err(other) => return Err(other),
        }
        let mut call =
            Call::internal("system:serviceaccount:kube-system:service-account-controller");
        namespace.clone_into(&mut call.info.namespace);
        match self.create_object(&mut call, &scope, object).await {
            // Someone was quicker, or the namespace goes.
            Ok(_) | Err(ApiError::AlreadyExists(_) | ApiError::NotFound(_)) => Ok(None),
            Err(ApiError::Forbidden { cause: Some(_), .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    async fn change(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
        change: &(dyn Fn(&mut Value) + Sync),
    ) -> Result<(), ApiError> {
        let scope = self.core_scope(plural)?;
        let mut call =
            Call::internal("system:serviceaccount:kube-system:service-account-controller");
        namespace.clone_into(&mut call.info.namespace);
        name.clone_into(&mut call.info.name);
        let produce = |old: &Value| {
            let mut new = old.clone();
            change(&mut new);
            Ok(new)
        };
        match self.update_object(&mut call, &scope, &produce).await {
            // Gone, or frozen by its owner.
            Ok(_) | Err(ApiError::NotFound(_) | ApiError::Invalid { .. }) => Ok(()),
            Err(other) => Err(other),
        }
    }

    fn core_scope(&self, plural: &str) -> Result<Scope, ApiError> {
        let snapshot = self.catalog.get();
        snapshot
            .find("", plural)
            .map(Scope::stored)
            .ok_or(ApiError::NoSuchPath)
    }

    /// Fills in the tokens of a namespace's secrets, and deletes those whose account is gone.
    async fn settle_tokens(&self, namespace: &str) -> Result<(), ApiError> {
        let (secrets, accounts) = (
            self.core_scope("secrets")?,
            self.core_scope("serviceaccounts")?,
        );
        let query = Query {
            resource: secrets.resource.clone(),
            namespace: Some(namespace.to_owned()),
            after: None,
            limit: None,
        };
        for stored in self.store.list(&query).map_err(|e| store_error(&e))?.items {
            let secret = secrets.present(&stored)?;
            if meta::text(&secret, &["type"]) != TOKEN_TYPE || meta::is_deleting(&secret) {
                continue;
            }
            let annotation = |key| meta::text(&secret, &["metadata", "annotations", key]);
            let (name, uid) = (annotation(ACCOUNT_NAME), annotation(ACCOUNT_UID));
            let account = match self.read(&accounts, namespace, name) {
                Ok(stored) => Some(accounts.present(&stored)?),
                Err(ApiError::NotFound(_)) => None,
                Err(other) => return Err(other),
            };
            let own = account
                .map(|account| meta::text(&account, &["metadata", "uid"]).to_owned())
                .filter(|own| uid.is_empty() || uid == own);
            match own {
                Some(uid) => self.fill_token(&secret, name, &uid).await?,
                None => {
                    let mut call =
                        Call::internal("system:serviceaccount:kube-system:tokens-controller");
                    let name = meta::name(&secret);
                    let deleted = self
                        .delete_object(
                            &mut call,
                            &secrets,
                            namespace,
                            name,
                            &DeleteOptions::default(),
                        )
                        .await;
                    match deleted {
                        Ok(_) | Err(ApiError::NotFound(_)) => {}
                        Err(other) => return Err(other),
                    }
                }
            }
        }
        Ok(())
    }

    async fn fill_token(&self, secret: &Value, account: &str, uid: &str) -> Result<(), ApiError> {
        let (namespace, name) = (meta::namespace(secret), meta::name(secret));
        let given = |key| meta::text(secret, &["data", key]);
        let (ca, home) = (STANDARD.encode(&self.ca), STANDARD.encode(namespace));
        let mut token = given("token").to_owned();
        let annotated = meta::text(secret, &["metadata", "annotations", ACCOUNT_UID]) == uid;
        if !token.is_empty() && annotated && given("ca.crt") == ca && given("namespace") == home {
            return Ok(());
        }
        if token.is_empty() {
            let claims = Claims {
                iss: LEGACY_ISSUER.to_owned(),
                sub: format!("system:serviceaccount:{namespace}:{account}"),
                legacy: Some(Legacy {
                    namespace: namespace.to_owned(),
                    secret: name.to_owned(),
                    account: account.to_owned(),
                    uid: uid.to_owned(),
                }),
                ..Claims::default()
            };
            let signed = self
                .tokens
                .sign(&claims)
                .map_err(|e| ApiError::Internal(format!("failed to generate token: {e}")))?;
            token = STANDARD.encode(signed);
        }
        self.change("secrets", namespace, name, &|secret| {
            let data = meta::entry(secret, "data");
            data.insert("token".into(), json!(token));
            data.insert("ca.crt".into(), json!(ca));
            data.insert("namespace".into(), json!(home));
            let annotations = meta::metadata(secret)
                .entry("annotations")
                .or_insert(json!({}));
            annotations[ACCOUNT_UID] = json!(uid);
        })
        .await
    }
}
