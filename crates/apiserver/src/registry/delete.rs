//! Delete and deletecollection: graceful for pods, held by finalizers, on preconditions.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::admission::Operation;
use crate::error::ApiError;
use crate::registry::catalog::Scope;
use crate::registry::delete_options::DeleteOptions;
use crate::registry::policy::Policy;
use crate::registry::query::Call;
use crate::registry::read::{show, without_kind};
use crate::registry::write::modified;
use crate::registry::{Core, content, meta, store_error, success};
use crate::store::{Expect, StoreError, Write};

const TRIES: usize = 20;

/// What became of the object.
pub(crate) enum Deleted {
    /// It is gone; as it was.
    Gone(Value),
    /// It is marked; as it is now.
    Marked(Value),
}

impl Core {
    pub(crate) async fn delete(
        &self,
        call: &mut Call,
        scope: &Scope,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        let options = DeleteOptions::read(call, body).await?;
        let (namespace, name) = (call.info.namespace_of(scope), call.info.name.clone());
        match self
            .delete_object(call, scope, &namespace, &name, &options)
            .await?
        {
            Deleted::Marked(object) => {
                // Whoever asked that the dependents go, too, is told that this is not over.
                let code = match options.orphan {
                    Some(false) => StatusCode::ACCEPTED,
                    _ => StatusCode::OK,
                };
                Ok(show(call, scope, code, &object))
            }
            Deleted::Gone(object) if scope.policy == Policy::Pod => {
                // The answer shows the pod as it went.
                let object = mark(scope, &object, 0).unwrap_or(object);
                Ok(show(call, scope, StatusCode::OK, &object))
            }
            Deleted::Gone(object) => {
                let status = success(
                    &scope.target(&name),
                    meta::text(&object, &["metadata", "uid"]),
                );
                Ok(content::answer(StatusCode::OK, &status, &call.warnings))
            }
        }
    }

    pub(crate) async fn delete_collection(
        &self,
        call: &mut Call,
        scope: &Scope,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        if scope.policy == Policy::Namespace {
            return Err(ApiError::MethodNotAllowed);
        }
        let options = DeleteOptions::read(call, body).await?;
        let (items, list_meta) = self.list_objects(call, scope).await?;
        let mut deleted = Vec::with_capacity(items.len());
        for item in items {
            match self
                .delete_object(
                    call,
                    scope,
                    meta::namespace(&item),
                    meta::name(&item),
                    &options,
                )
                .await
            {
                Ok(Deleted::Gone(object) | Deleted::Marked(object)) => deleted.push(object),
                // Someone else was quicker.
                Err(ApiError::NotFound(_)) => {}
                Err(e) => return Err(e),
            }
        }
        let deleted: Vec<Value> = deleted
            .into_iter()
            .map(|object| without_kind(scope, object))
            .collect();
        let mut list_meta = list_meta;
        if scope.def.crd {
            list_meta.entry("continue").or_insert_with(|| json!(""));
        }
        let list = json!({
            "kind": scope.def.list_kind,
            "apiVersion": scope.api_version(),
            "metadata": list_meta,
            "items": deleted,
        });
        Ok(content::answer(StatusCode::OK, &list, &call.warnings))
    }

    /// Removes an object, or marks it for removal by whoever holds it.
    pub(crate) async fn delete_object(
        &self,
        call: &mut Call,
        scope: &Scope,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        if let Some(refusal) = scope.protected(name) {
            return Err(refusal);
        }
        let dry_run = call.query.dry_run()?;
        // Whoever creates something in here now is done before the mark is set, or sees it.
        let _gate = match scope.policy {
            Policy::Namespace | Policy::Definition => Some(self.gate.write().await),
            _ => None,
        };
        for _ in 0..TRIES {
            let stored = self.read(scope, namespace, name)?;
            let old = scope.present(&stored)?;
            options.check(scope, name, &old)?;
            self.admit(
                call,
                scope,
                Operation::Delete,
                namespace,
                name,
                None,
                Some(&old),
            )?;

            let grace = scope.grace(&old, options.grace);
            let finalizers = options.finalizers(scope, &old);
            let mut base = old.clone();
            if let Some(finalizers) = &finalizers {
                let list = (!finalizers.is_empty()).then(|| json!(finalizers));
                meta::put(meta::metadata(&mut base), "finalizers", list);
            }
            let new = if grace > 0 || scope.held(&base) {
                match mark(scope, &base, grace) {
                    Some(new) => Some(new),
                    // Already marked, but what shall become of the dependents has changed.
                    None if finalizers.is_some() => Some(base),
                    None => return Ok(Deleted::Marked(old)),
                }
            } else {
                None
            };
            if dry_run {
                return Ok(new.map_or(Deleted::Gone(old), Deleted::Marked));
            }
            let definition = scope.policy == Policy::Definition;
            let _reload = if definition {
                Some(self.reload.lock().await)
            } else {
                None
            };
            let value = new.as_ref().map(|new| scope.persist(new));
            let write = Write {
                key: stored.key,
                expect: Expect::Revision(stored.revision),
                value,
            };
            match self.store.write(write).await {
                Ok(revision) => {
                    if definition {
                        self.reload_catalog()?;
                    }
                    let seal = |mut object: Value| {
                        meta::metadata(&mut object)
                            .insert("resourceVersion".into(), json!(revision.to_string()));
                        object
                    };
                    return Ok(match new {
                        Some(new) => Deleted::Marked(seal(new)),
                        None => Deleted::Gone(seal(old)),
                    });
                }
                Err(StoreError::Modified) => {}
                Err(StoreError::Missing) => return Err(ApiError::NotFound(scope.target(name))),
                Err(other) => return Err(store_error(&other)),
            }
        }
        Err(modified(scope.target(name)))
    }
}

/// The object marked as deleted; none if it is so already and no sooner end is asked for.
fn mark(scope: &Scope, old: &Value, grace: i64) -> Option<Value> {
    let marked = meta::is_deleting(old);
    if marked && meta::grace(old).unwrap_or(0) <= grace {
        return None;
    }
    let mut new = old.clone();
    let metadata = meta::metadata(&mut new);
    metadata.insert("deletionTimestamp".into(), json!(meta::after(grace)));
    metadata.insert("deletionGracePeriodSeconds".into(), json!(grace));
    if !marked
        && scope.policy != Policy::Definition
        && let Some(generation) = metadata
            .get("generation")
            .and_then(Value::as_i64)
            .filter(|g| *g > 0)
    {
        metadata.insert("generation".into(), json!(generation + 1));
    }
    match scope.policy {
        Policy::Namespace => {
            metadata.remove("deletionGracePeriodSeconds");
            new["status"]["phase"] = json!("Terminating");
        }
        Policy::Definition => {
            metadata.remove("deletionGracePeriodSeconds");
            let conditions = meta::entry(&mut new, "status")
                .entry("conditions")
                .or_insert(json!([]));
            if let Some(conditions) = conditions.as_array_mut() {
                conditions.retain(|c| c["type"] != "Terminating");
                conditions.push(json!({
                    "type": "Terminating",
                    "status": "True",
                    "lastTransitionTime": meta::now(),
                    "reason": "InstanceDeletionPending",
                    "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
                }));
            }
        }
        _ => {}
    }
    Some(new)
}
