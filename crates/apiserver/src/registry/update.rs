//! Replace and patch: both make a new object of the stored one, and the rest is the same.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::admission::Operation;
use crate::error::{ApiError, Cause, Target};
use crate::patch::Patch;
use crate::registry::catalog::Scope;
use crate::registry::policy::Policy;
use crate::registry::query::Call;
use crate::registry::read::show;
use crate::registry::write::{check, check_kind, home, keep_identity, modified};
use crate::registry::{Core, apply, content, decode, managers, meta, metadata, store_error};
use crate::store::{Expect, StoreError, Stored, Write};

/// How often a patch is applied anew when other writes come between.
const PATCH_TRIES: usize = 20;

/// Makes the new object of the stored one.
type Produce<'a> = &'a (dyn Fn(&Value) -> Result<Value, ApiError> + Sync);

/// What an attempt came to.
enum Attempt {
    Done(Value),
    /// Another write came between.
    Lost,
}

/// A patch must not make an object one of another kind or version; of built-in kinds the decoder says so.
fn check_type(scope: &Scope, patch: &Patch, new: &Value) -> Result<(), ApiError> {
    if !scope.def.crd {
        return decode::patched(scope, patch, new);
    }
    let (kind, version) = (meta::text(new, &["kind"]), meta::text(new, &["apiVersion"]));
    let expected = scope.api_version();
    let mut causes = Vec::new();
    for (field, given, expected) in [
        ("kind", kind, scope.def.kind.as_str()),
        ("apiVersion", version, expected.as_str()),
    ] {
        if given != expected && !given.is_empty() {
            let why = format!("must be {expected}");
            causes.push(Cause::invalid(field, format!("{given:?}"), why));
        }
    }
    if causes.is_empty() {
        return Ok(());
    }
    let group = version.split_once('/').map_or("", |(group, _)| group);
    Err(ApiError::Invalid {
        target: Target::new(group, kind, meta::name(new)),
        causes,
    })
}

impl Core {
    pub(crate) async fn replace(
        &self,
        call: &mut Call,
        scope: &Scope,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        let new = decode::object(call, &scope.def.kind, &content::read(body).await?)?;
        match self.update_object(call, scope, &|_| Ok(new.clone())).await {
            Err(ApiError::NotFound(_)) if scope.created_by_update(call) => {
                let mut new = new;
                if meta::name(&new).is_empty() {
                    meta::metadata(&mut new).insert("name".into(), json!(call.info.name));
                }
                let object = self.create_object(call, scope, new).await?;
                Ok(show(call, scope, StatusCode::CREATED, &object))
            }
            other => Ok(show(call, scope, StatusCode::OK, &other?)),
        }
    }

    pub(crate) async fn patch(
        &self,
        call: &mut Call,
        scope: &Scope,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        decode::check_options(call)?;
        let media = content::media_type(&call.headers);
        if media == apply::MEDIA {
            return self.apply(call, scope, body).await;
        }
        apply::check_force(call)?;
        let patch = Patch::parse(&media, &content::read(body).await?, scope.def.crd)?;
        let schema = scope.fields_schema();
        let object = self
            .update_object(call, scope, &|old| {
                let new = patch.apply(old, schema.as_deref())?;
                check_type(scope, &patch, &new)?;
                Ok(new)
            })
            .await?;
        Ok(show(call, scope, StatusCode::OK, &object))
    }

    /// Updates the object or the status that the call names; returns it as stored.
    ///
    /// Whoever names a resourceVersion gets a conflict when it is stale; who does not is retried.
    pub(crate) async fn update_object(
        &self,
        call: &mut Call,
        scope: &Scope,
        produce: Produce<'_>,
    ) -> Result<Value, ApiError> {
        let warnings = call.warnings.len();
        for _ in 0..PATCH_TRIES {
            call.warnings.truncate(warnings);
            match self.try_update(call, scope, produce).await? {
                Attempt::Done(object) => return Ok(object),
                Attempt::Lost => {}
            }
        }
        Err(modified(scope.target(&call.info.name)))
    }

    async fn try_update(
        &self,
        call: &mut Call,
        scope: &Scope,
        produce: Produce<'_>,
    ) -> Result<Attempt, ApiError> {
        let name = call.info.name.clone();
        let namespace = call.info.namespace_of(scope);
        let stored = self.read(scope, &namespace, &name)?;
        let old = scope.present(&stored)?;

        let mut new = produce(&old)?;
        check_kind(scope, &mut new)?;
        decode::typed(scope, &new)?;
        meta::check_shape(&new, &scope.def.kind, &scope.version().name, scope.def.crd)?;
        home(call, scope, &mut new)?;
        if meta::name(&new) != name {
            if meta::name(&new).is_empty() {
                return Err(ApiError::BadRequest(format!(
                    "the name of the object ({name} based on URL) was undeterminable: name must be provided"
                )));
            }
            return Err(ApiError::BadRequest(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                meta::name(&new)
            )));
        }
        check_revision(call, scope, &name, &old, &new)?;
        let fixed = metadata::check_fixed(&old, &new);
        self.clean(call, scope, &mut new)?;
        let mut identity = old["metadata"].as_object().cloned().unwrap_or_default();
        let given = new["metadata"].get("managedFields").cloned();
        new = merge_halves(call, scope, &old, new);
        scope.prepare_update(&mut new, &old);
        let managed = if call.applied {
            given
        } else {
            managers::after_write(call, scope, Some(&old), &new, given.as_ref())
        };
        meta::put(&mut identity, "managedFields", managed);
        keep_identity(&mut new, &identity);
        if scope.policy == Policy::Definition {
            crate::schema::crd::default(&mut new);
        }

        let mut new = self.admit(
            call,
            scope,
            Operation::Update,
            &namespace,
            &name,
            Some(new),
            Some(&old),
        )?;
        if scope.has_generation() && meaningful_change(scope, &old, &new) {
            let generation = identity
                .get("generation")
                .and_then(Value::as_i64)
                .unwrap_or(0);
            identity.insert("generation".into(), json!(generation + 1));
        }
        keep_identity(&mut new, &identity);
        self.confirm_rights(call, scope, &new, Some(&old))?;
        let mut causes = fixed;
        let mut found = check(scope, &new, Some(&old), &mut call.warnings);
        if scope.def.crd && call.info.subresource == "status" {
            // Upstream validates the status by itself, so its messages begin there.
            for cause in &mut found {
                if let Some(inner) = cause.field.strip_prefix("status.") {
                    let (whole, inner) = (
                        format!("{} in body", cause.field),
                        format!("{inner} in body"),
                    );
                    cause.message = cause.message.replacen(&whole, &inner, 1);
                }
            }
        }
        causes.extend(found);
        causes.extend(check_finalizers(&old, &new));
        if !causes.is_empty() {
            return Err(ApiError::Invalid {
                target: scope.kind_target(&name),
                causes,
            });
        }
        self.commit(call, scope, &stored, &old, new).await
    }

    async fn commit(
        &self,
        call: &Call,
        scope: &Scope,
        stored: &Stored,
        old: &Value,
        mut new: Value,
    ) -> Result<Attempt, ApiError> {
        let definition = scope.policy == Policy::Definition;
        let _reload = if definition {
            Some(self.reload.lock().await)
        } else {
            None
        };
        if definition && !meta::is_deleting(&new) {
            self.settle_definition(&mut new)?;
        }
        let _permit = self.quotas.admit(self, scope, &new, Some(old)).await?;
        if call.query.dry_run()? {
            return Ok(Attempt::Done(new));
        }
        // The last finalizer is gone, or the pod has been stopped: nothing holds the object any more.
        let goes = meta::is_deleting(&new)
            && meta::finalizers(&new).is_empty()
            && meta::grace(&new).unwrap_or(0) == 0
            && !scope.reaped();
        // A write that changes nothing is none: no new revision, no event, no endless loop of two controllers.
        if new == *old && !goes {
            return Ok(Attempt::Done(new));
        }
        let value = (!goes).then(|| scope.persist(&new));
        let write = Write {
            key: stored.key.clone(),
            expect: Expect::Revision(stored.revision),
            value,
        };
        match self.store.write(write).await {
            Ok(revision) => {
                if definition {
                    self.reload_catalog()?;
                }
                meta::metadata(&mut new)
                    .insert("resourceVersion".into(), json!(revision.to_string()));
                Ok(Attempt::Done(new))
            }
            Err(StoreError::Modified) => Ok(Attempt::Lost),
            Err(StoreError::Missing) => Err(ApiError::NotFound(scope.target(&stored.key.name))),
            Err(other) => Err(store_error(&other)),
        }
    }
}

/// Optimistic concurrency, and the precondition that is a uid.
fn check_revision(
    call: &Call,
    scope: &Scope,
    name: &str,
    old: &Value,
    new: &Value,
) -> Result<(), ApiError> {
    let uid = meta::text(new, &["metadata", "uid"]);
    let own = meta::text(old, &["metadata", "uid"]);
    // A replace names its object by it; in a patch it is a change like any other.
    if call.info.verb == "update" && !uid.is_empty() && uid != own {
        return Err(ApiError::Conflict {
            target: scope.target(name),
            why: format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {own}"
            ),
        });
    }
    match meta::resource_version(new) {
        "" | "0" if scope.unconditional_update() => Ok(()),
        "" | "0" => Err(ApiError::Invalid {
            target: scope.target(name),
            causes: vec![Cause::invalid(
                "metadata.resourceVersion",
                // As Kubernetes wrote it up to 1.33, and scripts look for it; 1.34 has a plain 0.
                "0x0",
                "must be specified for an update",
            )],
        }),
        given if given == meta::resource_version(old) => Ok(()),
        given if given.parse::<u64>().is_err() => Err(ApiError::Unexplained(format!(
            "strconv.ParseUint: parsing {given:?}: invalid syntax"
        ))),
        _ => Err(modified(scope.target(name))),
    }
}

/// `/status` writes the status only, the main resource everything but the status (where there is one).
fn merge_halves(call: &Call, scope: &Scope, old: &Value, mut new: Value) -> Value {
    let status = |of: &Value| of.get("status").cloned();
    if call.info.subresource == "status" {
        let mut out = old.clone();
        if !scope.def.crd {
            // Built-in kinds take labels and annotations by way of the status, too; custom resources do not.
            for field in ["labels", "annotations"] {
                meta::put(
                    meta::metadata(&mut out),
                    field,
                    new["metadata"].get(field).cloned(),
                );
            }
        }
        if let Some(out) = out.as_object_mut() {
            meta::put(out, "status", status(&new));
        }
        return out;
    }
    if scope.version().status
        && let Some(new) = new.as_object_mut()
    {
        meta::put(new, "status", status(old));
    }
    new
}

/// Whether the desired state differs: everything but metadata, and the status where that has a subresource.
fn meaningful_change(scope: &Scope, old: &Value, new: &Value) -> bool {
    let desired = |object: &Value| {
        let mut object = object.as_object().cloned().unwrap_or_default();
        object.remove("metadata");
        if scope.version().status {
            object.remove("status");
        }
        object
    };
    desired(old) != desired(new)
}

/// Upstream finds it twice, and says so.
fn check_finalizers(old: &Value, new: &Value) -> Vec<Cause> {
    if !meta::is_deleting(old) {
        return Vec::new();
    }
    let had = meta::finalizers(old);
    let added: Vec<&str> = meta::finalizers(new)
        .into_iter()
        .filter(|f| !had.contains(f))
        .collect();
    if added.is_empty() {
        return Vec::new();
    }
    let list = added
        .iter()
        .map(|f| format!("{f:?}"))
        .collect::<Vec<_>>()
        .join(", ");
    let cause = Cause::forbidden(
        "metadata.finalizers",
        format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"
        ),
    );
    vec![cause.clone(), cause]
}
