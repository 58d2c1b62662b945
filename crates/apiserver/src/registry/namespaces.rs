//! The end of a namespace: its content is deleted, its conditions say what is left, its finalizers let it go.
//!
//! Conditions, reasons and messages are those of upstream's namespace controller.

use std::collections::BTreeMap;

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::error::{ApiError, Cause};
use crate::registry::catalog::Scope;
use crate::registry::delete::Deleted;
use crate::registry::delete_options::DeleteOptions;
use crate::registry::query::Call;
use crate::registry::read::show;
use crate::registry::write::modified;
use crate::registry::{Core, content, meta, store_error};
use crate::store::{Expect, Key, Query, StoreError, Stored, Write};

const USER: &str = "system:serviceaccount:kube-system:namespace-controller";

/// What is still in a namespace.
#[derive(Debug, Default)]
struct Left {
    /// Number of objects by `plural.group`.
    resources: BTreeMap<String, usize>,
    /// Number of objects by finalizer.
    finalizers: BTreeMap<String, usize>,
    failures: Vec<String>,
}

impl Core {
    /// One step of the removal of a terminating namespace; whether it is gone.
    pub(crate) async fn reap_namespace(
        &self,
        stored: Stored,
        object: Value,
    ) -> Result<bool, ApiError> {
        let mut left = Left::default();
        for def in &self.catalog.get().defs {
            if def.namespaced && def.alias.is_none() {
                self.empty_of(&Scope::stored(def), &stored.key.name, &mut left)
                    .await?;
            }
        }
        let empty = left.resources.is_empty() && left.failures.is_empty();
        let mut new = object.clone();
        conditions(&mut new, &left);
        if empty {
            let finalizers = new["spec"]["finalizers"].as_array_mut();
            if let Some(list) = finalizers {
                list.retain(|finalizer| finalizer != "kubernetes");
            }
        }
        let goes = empty && is_free(&new);
        if new == object && !goes {
            return Ok(false);
        }
        let write = Write {
            key: stored.key,
            expect: Expect::Revision(stored.revision),
            value: (!goes).then(|| new.to_string().into()),
        };
        match self.store.write(write).await {
            Ok(_) => Ok(goes),
            Err(StoreError::Missing) => Ok(true),
            Err(StoreError::Modified) => Ok(false),
            Err(e) => Err(store_error(&e)),
        }
    }

    async fn empty_of(
        &self,
        scope: &Scope,
        namespace: &str,
        left: &mut Left,
    ) -> Result<(), ApiError> {
        let query = Query {
            resource: scope.resource.clone(),
            namespace: Some(namespace.to_owned()),
            after: None,
            limit: None,
        };
        let page = self.store.list(&query).map_err(|e| store_error(&e))?;
        for stored in page.items {
            let mut object = scope.present(&stored)?;
            if !meta::is_deleting(&object) {
                let mut call = Call::internal(USER);
                let Key {
                    namespace, name, ..
                } = &stored.key;
                match self
                    .delete_object(&mut call, scope, namespace, name, &DeleteOptions::default())
                    .await
                {
                    Ok(Deleted::Gone(_)) | Err(ApiError::NotFound(_)) => continue,
                    Ok(Deleted::Marked(marked)) => object = marked,
                    // One object that admission holds must not keep the others.
                    Err(e) => {
                        tracing::warn!(
                            "cannot delete {} {namespace}/{name}: {e}",
                            scope.def.qualified()
                        );
                        left.failures.push(e.to_string());
                    }
                }
            }
            // As upstream writes it: a dot even where there is no group.
            let resource = format!("{}.{}", scope.def.plural, scope.def.group);
            *left.resources.entry(resource).or_default() += 1;
            for finalizer in meta::finalizers(&object) {
                *left.finalizers.entry(finalizer.to_owned()).or_default() += 1;
            }
        }
        Ok(())
    }

    /// `PUT namespaces/NAME/finalize`: replaces `spec.finalizers` and nothing else.
    pub(crate) async fn finalize(
        &self,
        call: &mut Call,
        scope: &Scope,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        let given = content::parse(
            &content::media_type(&call.headers),
            &content::read(body).await?,
        )?;
        let name = call.info.name.clone();
        let list = given["spec"]["finalizers"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let causes: Vec<Cause> = list
            .iter()
            .enumerate()
            .filter_map(|(at, finalizer)| {
                let text = finalizer.as_str().unwrap_or_default();
                (text != "kubernetes" && !text.contains('/')).then(|| {
                    Cause::invalid(
                        format!("spec.finalizers[{at}]"),
                        format!("{text:?}"),
                        "name is neither a standard finalizer name nor is it fully qualified",
                    )
                })
            })
            .collect();
        if !causes.is_empty() {
            return Err(ApiError::Invalid {
                target: scope.kind_target(&name),
                causes,
            });
        }
        let stored = self.read(scope, "", &name)?;
        let mut object = scope.present(&stored)?;
        let revision = meta::resource_version(&given);
        if !revision.is_empty() && revision != meta::resource_version(&object) {
            return Err(modified(scope.target(&name)));
        }
        meta::entry(&mut object, "spec").insert("finalizers".into(), json!(list));
        if call.query.dry_run()? {
            return Ok(show(call, scope, StatusCode::OK, &object));
        }
        let goes = meta::is_deleting(&object) && is_free(&object);
        let write = Write {
            key: stored.key,
            expect: Expect::Revision(stored.revision),
            value: (!goes).then(|| scope.persist(&object)),
        };
        let revision = self.store.write(write).await.map_err(|e| match e {
            StoreError::Modified => modified(scope.target(&name)),
            StoreError::Missing => ApiError::NotFound(scope.target(&name)),
            other => store_error(&other),
        })?;
        meta::metadata(&mut object).insert("resourceVersion".into(), json!(revision.to_string()));
        Ok(show(call, scope, StatusCode::OK, &object))
    }
}

/// Whether no finalizer holds the namespace, neither of its own kind nor of the usual one.
fn is_free(namespace: &Value) -> bool {
    meta::finalizers(namespace).is_empty()
        && namespace["spec"]["finalizers"]
            .as_array()
            .is_none_or(Vec::is_empty)
}

/// Writes what the status says of the removal. Times change only where a status does.
fn conditions(namespace: &mut Value, left: &Left) {
    let counts = |map: &BTreeMap<String, usize>, word: &str| {
        let parts = map
            .iter()
            .map(|(name, count)| format!("{name} {word} {count} resource instances"));
        parts.collect::<Vec<_>>().join(", ")
    };
    let failed = !left.failures.is_empty();
    let wanted = [
        (
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered".to_owned(),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".to_owned(),
        ),
        if failed {
            (
                "NamespaceDeletionContentFailure",
                true,
                "ContentDeletionFailed",
                format!(
                    "Failed to delete all resource types, {} remaining: {}",
                    left.failures.len(),
                    left.failures.join(", ")
                ),
            )
        } else {
            (
                "NamespaceDeletionContentFailure",
                false,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization".to_owned(),
            )
        },
        if left.resources.is_empty() {
            (
                "NamespaceContentRemaining",
                false,
                "ContentRemoved",
                "All content successfully removed".to_owned(),
            )
        } else {
            (
                "NamespaceContentRemaining",
                true,
                "SomeResourcesRemain",
                format!(
                    "Some resources are remaining: {}",
                    counts(&left.resources, "has")
                ),
            )
        },
        if left.finalizers.is_empty() {
            (
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".to_owned(),
            )
        } else {
            (
                "NamespaceFinalizersRemaining",
                true,
                "SomeFinalizersRemain",
                format!(
                    "Some content in the namespace has finalizers remaining: {}",
                    counts(&left.finalizers, "in")
                ),
            )
        },
    ];
    let list = meta::entry(namespace, "status")
        .entry("conditions")
        .or_insert(json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else {
        return;
    };
    for (kind, status, reason, message) in wanted {
        let status = if status { "True" } else { "False" };
        let new = |time: &Value| json!({"type": kind, "status": status, "lastTransitionTime": time, "reason": reason, "message": message});
        match list.iter_mut().find(|condition| condition["type"] == kind) {
            Some(old) if old["status"] == status => *old = new(&old["lastTransitionTime"]),
            Some(old) => *old = new(&json!(meta::now())),
            None => list.push(new(&json!(meta::now()))),
        }
    }
}
