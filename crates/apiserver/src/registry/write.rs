//! The order of a write (decode → prune → default → admit → validate → store), and create.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::admission::{AdmissionDenied, AdmissionRequest, Operation};
use crate::error::{ApiError, Target};
use crate::registry::catalog::Scope;
use crate::registry::policy::Policy;
use crate::registry::query::Call;
use crate::registry::read::show;
use crate::registry::{Core, content, decode, defaults, managers, meta, scale, store_error};
use crate::store::{Expect, Key, StoreError, Write};

/// How often a generated name may be taken before the client is told.
const NAME_TRIES: usize = 8;

impl Core {
    pub(crate) async fn create(
        &self,
        call: &mut Call,
        scope: &Scope,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        let object = decode::object(call, &scope.def.kind, &content::read(body).await?)?;
        let object = self.create_object(call, scope, object).await?;
        Ok(show(call, scope, StatusCode::CREATED, &object))
    }

    /// Creates an object; returns it as stored (or as it would be, for a dry run).
    pub(crate) async fn create_object(
        &self,
        call: &mut Call,
        scope: &Scope,
        mut object: Value,
    ) -> Result<Value, ApiError> {
        check_kind(scope, &mut object)?;
        decode::typed(scope, &object)?;
        meta::check_shape(
            &object,
            &scope.def.kind,
            &scope.version().name,
            scope.def.crd,
        )?;
        let namespace = home(call, scope, &mut object)?;
        if !meta::resource_version(&object).is_empty() {
            return Err(ApiError::Unexplained(
                "resourceVersion should not be set on objects to be created".into(),
            ));
        }
        self.clean(call, scope, &mut object)?;

        let base = meta::text(&object, &["metadata", "generateName"]).to_owned();
        let generated = meta::name(&object).is_empty() && !base.is_empty();
        let tries = if generated { NAME_TRIES } else { 1 };
        let mut target = scope.target("");
        for _ in 0..tries {
            let mut object = object.clone();
            if generated {
                meta::metadata(&mut object)
                    .insert("name".into(), json!(meta::generate_name(&base)));
            }
            match self.create_named(call, scope, &namespace, object).await {
                Err(ApiError::AlreadyExists(taken)) if generated => target = taken,
                other => return other,
            }
        }
        Err(ApiError::NameNotGenerated(target))
    }

    async fn create_named(
        &self,
        call: &mut Call,
        scope: &Scope,
        namespace: &str,
        mut object: Value,
    ) -> Result<Value, ApiError> {
        let name = meta::name(&object).to_owned();
        if name.is_empty() {
            let mut causes = vec![crate::Cause::required(
                "metadata.name",
                "name or generateName is required",
            )];
            if let Some(schema) = &scope.version().schema {
                let found = schema.check_among(&object, None, Vec::new(), true);
                causes.extend(found.errors.into_iter().map(crate::Cause::from));
            }
            return Err(ApiError::Invalid {
                target: scope.kind_target(""),
                causes,
            });
        }
        let metadata = meta::metadata(&mut object);
        for field in [
            "selfLink",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
        ] {
            metadata.remove(field);
        }
        metadata.retain(|_, value| !value.is_null());
        metadata.insert("uid".into(), json!(Uuid::new_v4()));
        metadata.insert("creationTimestamp".into(), json!(meta::now()));
        if scope.has_generation() {
            metadata.insert("generation".into(), json!(1));
        }
        let mut identity = metadata.clone();
        let given = identity.remove("managedFields");
        scope.prepare_create(&mut object);
        let managed = if call.applied {
            given
        } else {
            managers::after_write(call, scope, None, &object, given.as_ref())
        };
        meta::put(&mut identity, "managedFields", managed);
        scope
            .complete(&mut object)
            .map_err(|why| ApiError::Forbidden {
                target: scope.target(&name),
                why,
                cause: None,
            })?;

        // Until the object is stored its namespace and its definition stay.
        let _gate = self.gate.read().await;
        self.check_home(scope, namespace, &name)?;
        let mut object = self.admit(
            call,
            scope,
            Operation::Create,
            namespace,
            &name,
            Some(object),
            None,
        )?;
        keep_identity(&mut object, &identity);
        self.confirm_rights(call, scope, &object, None)?;
        let mut causes = scope.policy.check_name(&name);
        causes.extend(check(scope, &object, None, &mut call.warnings));
        if !causes.is_empty() {
            return Err(ApiError::Invalid {
                target: scope.kind_target(&name),
                causes,
            });
        }

        let _reload = if scope.policy == Policy::Definition {
            let guard = self.reload.lock().await;
            self.settle_definition(&mut object)?;
            Some(guard)
        } else {
            None
        };
        let _permit = self.quotas.admit(self, scope, &object, None).await?;
        let key = Key::new(&scope.resource, namespace, &name);
        if call.query.dry_run()? {
            return match self.store.get(&key).map_err(|e| store_error(&e))? {
                Some(_) => Err(ApiError::AlreadyExists(scope.target(&name))),
                None => Ok(object),
            };
        }
        let write = Write {
            key,
            expect: Expect::Absent,
            value: Some(scope.persist(&object)),
        };
        let revision = match self.store.write(write).await {
            Ok(revision) => revision,
            Err(StoreError::Taken) => return Err(self.taken(scope, namespace, &name)),
            Err(other) => return Err(store_error(&other)),
        };
        if scope.policy == Policy::Definition {
            self.reload_catalog()?;
        }
        meta::metadata(&mut object).insert("resourceVersion".into(), json!(revision.to_string()));
        Ok(object)
    }

    /// Why a name cannot be had: someone has it, or had it and is not gone yet.
    fn taken(&self, scope: &Scope, namespace: &str, name: &str) -> ApiError {
        let holder = self.read(scope, namespace, name);
        let leaving = holder
            .and_then(|stored| scope.present(&stored))
            .is_ok_and(|object| meta::is_deleting(&object));
        if leaving {
            ApiError::BeingDeleted(scope.target(name))
        } else {
            ApiError::AlreadyExists(scope.target(name))
        }
    }

    /// Prunes and defaults; what is pruned is ignored, warned of or refused as the client wishes.
    pub(crate) fn clean(
        &self,
        call: &mut Call,
        scope: &Scope,
        object: &mut Value,
    ) -> Result<(), ApiError> {
        decode::unknown(call, scope, object)?;
        match &scope.version().schema {
            Some(schema) => {
                schema.prune(object);
                schema.default(object);
            }
            None if scope.def.crd => {}
            None => {
                if let Some(schema) = scope.fields_schema() {
                    schema.prune(object);
                }
                defaults::fill(&scope.def, object);
            }
        }
        Ok(())
    }

    /// Asks admission; returns the object to go on with.
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of an admission request"
    )]
    pub(crate) fn admit(
        &self,
        call: &mut Call,
        scope: &Scope,
        operation: Operation,
        namespace: &str,
        name: &str,
        object: Option<Value>,
        old: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let dry_run = call.query.dry_run()?;
        let subresource = call.info.subresource.as_str();
        let admitted = self
            .admission
            .admit(AdmissionRequest {
                operation,
                group: &scope.def.group,
                version: &scope.version().name,
                resource: &scope.def.plural,
                kind: &scope.def.kind,
                subresource: (!subresource.is_empty()).then_some(subresource),
                namespace,
                name,
                user: &call.user,
                object: object.as_ref(),
                old_object: old,
                dry_run,
            })
            .map_err(|denied| match denied {
                AdmissionDenied::Invalid(causes) => ApiError::Invalid {
                    target: scope.kind_target(name),
                    causes,
                },
                AdmissionDenied::Forbidden(why) => ApiError::Forbidden {
                    target: scope.target(name),
                    why,
                    cause: None,
                },
            })?;
        call.warnings.extend(admitted.warnings);
        Ok(admitted.object.or(object).unwrap_or_default())
    }
}

/// What is wrong with an object as it is about to be stored; what an update may leave as wrong as it was is a warning.
pub(crate) fn check(
    scope: &Scope,
    object: &Value,
    old: Option<&Value>,
    warnings: &mut Vec<String>,
) -> Vec<crate::Cause> {
    // First, since the rest descends into it; and what is deeper could be stored and never be read again.
    if !content::is_shallow(object, content::MAX_DEPTH) {
        let limit = content::MAX_DEPTH;
        let why = format!("the object must not be nested deeper than {limit} levels");
        return vec![crate::Cause::forbidden("", why)];
    }
    let mut causes = scope.check(object, old);
    if let Some(schema) = &scope.version().schema {
        let blocked = causes.iter().any(crate::Cause::blocks_rules);
        let found = schema.check_among(object, old, scale::check(scope, object), blocked);
        causes.extend(found.errors.into_iter().map(crate::Cause::from));
        warnings.extend(found.warnings);
    }
    causes
}

/// Refuses a body of another kind or version; fills in what built-in kinds may leave out.
pub(crate) fn check_kind(scope: &Scope, object: &mut Value) -> Result<(), ApiError> {
    let Some(map) = object.as_object_mut() else {
        return Err(ApiError::BadRequest(
            "the request body must be an object".into(),
        ));
    };
    let version = scope.api_version();
    // Custom resources are known by their version first.
    let (kind, version) = (("kind", &scope.def.kind), ("apiVersion", &version));
    let order = match map.get("kind") {
        Some(_) if scope.def.crd => [version, kind],
        _ => [kind, version],
    };
    for (field, expected) in order {
        let given = map.get(field).and_then(Value::as_str).unwrap_or_default();
        if given == expected {
            continue;
        }
        if given.is_empty() && !scope.def.crd {
            map.insert(field.into(), json!(expected));
        } else if given.is_empty() && field == "kind" {
            let shown = Value::Object(map.clone()).to_string();
            return Err(ApiError::BadRequest(format!(
                "the object provided is unrecognized (must be of type {expected}): Object 'Kind' is missing in \
                 '{shown}' ({})",
                content::summary(shown.as_bytes())
            )));
        } else if field == "kind" {
            let (version, group) = (&scope.version().name, scope.def.group.as_str());
            let package = match group.split('.').next() {
                None | Some("") => "core",
                Some(word) => word,
            };
            return Err(ApiError::BadRequest(format!(
                "{given} in version {version:?} cannot be handled as a {expected}: converting ({version}.{given}) to \
                 ({package}.{expected}): unknown conversion"
            )));
        } else {
            return Err(ApiError::BadRequest(format!(
                "the API version in the data ({given}) does not match the expected API version ({expected})"
            )));
        }
    }
    Ok(())
}

/// The namespace that the object goes to; it is filled in from the path where the body leaves it out.
pub(crate) fn home(call: &Call, scope: &Scope, object: &mut Value) -> Result<String, ApiError> {
    let given = meta::namespace(object).to_owned();
    let wanted = call.info.namespace_of(scope);
    if given.is_empty() {
        if scope.def.namespaced {
            meta::metadata(object).insert("namespace".into(), json!(wanted));
        } else {
            meta::metadata(object).remove("namespace");
        }
    } else if given != wanted {
        return Err(ApiError::BadRequest(
            "the namespace of the provided object does not match the namespace sent on the request"
                .into(),
        ));
    }
    Ok(wanted)
}

/// Puts back what neither clients nor admission may change.
pub(crate) fn keep_identity(object: &mut Value, identity: &Map<String, Value>) {
    let metadata = meta::metadata(object);
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
        "managedFields",
    ] {
        meta::put(metadata, field, identity.get(field).cloned());
    }
    metadata.remove("selfLink");
    // What is empty is not written.
    metadata.retain(|_, value| match value {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    });
}

/// The answer to a write that lost against another.
pub(crate) fn modified(target: Target) -> ApiError {
    ApiError::Conflict {
        target,
        why: "the object has been modified; please apply your changes to the latest version and try again".into(),
    }
}
