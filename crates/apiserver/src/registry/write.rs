//! The order of a write (decode → prune → default → admit → validate → store), and create.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::admission::{AdmissionRequest, Operation};
use crate::error::{ApiError, Target};
use crate::registry::catalog::Scope;
use crate::registry::policy::Policy;
use crate::registry::query::{Call, FieldValidation};
use crate::registry::read::show;
use crate::registry::{Core, content, defaults, managed, meta, store_error};
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
        let object = content::parse(
            &content::media_type(&call.headers),
            &content::read(body).await?,
        )?;
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
        meta::check_shape(&object)?;
        let namespace = home(call, scope, &mut object)?;
        if !meta::resource_version(&object).is_empty() {
            return Err(ApiError::BadRequest(
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
        Err(ApiError::AlreadyExists(target))
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
            let cause = crate::Cause::required("metadata.name", "name or generateName is required");
            return Err(ApiError::Invalid {
                target: scope.kind_target(""),
                causes: vec![cause],
            });
        }
        let given = managed::take(&mut object);
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
        let identity = metadata.clone();
        let entries = managed::track(call, scope, None, &object, given)?;
        scope.prepare_create(&mut object);

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
        managed::put(&mut object, entries, None);
        let mut causes = meta::check_name(&name, scope.policy.strict_names());
        causes.extend(check(scope, &object, None));
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
        let revision = self.store.write(write).await.map_err(|e| match e {
            StoreError::Taken => ApiError::AlreadyExists(scope.target(&name)),
            other => store_error(&other),
        })?;
        if scope.policy == Policy::Definition {
            self.reload_catalog()?;
        }
        meta::metadata(&mut object).insert("resourceVersion".into(), json!(revision.to_string()));
        Ok(object)
    }

    /// Prunes and defaults; what is pruned is ignored, warned of or refused as the client wishes.
    pub(crate) fn clean(
        &self,
        call: &mut Call,
        scope: &Scope,
        object: &mut Value,
    ) -> Result<(), ApiError> {
        match &scope.version().schema {
            Some(schema) => {
                let validation = call.field_validation()?;
                if validation != FieldValidation::Ignore {
                    let unknown = schema
                        .unknown_fields(object)
                        .into_iter()
                        .map(|f| format!("unknown field {f:?}"));
                    if validation == FieldValidation::Warn {
                        call.warnings.extend(unknown);
                    } else {
                        let all: Vec<String> = unknown.collect();
                        if !all.is_empty() {
                            let kind = &scope.def.kind;
                            return Err(ApiError::BadRequest(format!(
                                "{kind} in version {:?} cannot be handled as a {kind}: strict decoding error: {}",
                                scope.version().name,
                                all.join(", ")
                            )));
                        }
                    }
                }
                schema.prune(object);
                schema.default(object);
            }
            None if !scope.def.crd => defaults::fill(&scope.def, object),
            None => {}
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
            .map_err(|denied| ApiError::Invalid {
                target: scope.kind_target(name),
                causes: denied.causes,
            })?;
        call.warnings.extend(admitted.warnings);
        Ok(admitted.object.or(object).unwrap_or_default())
    }
}

/// What is wrong with an object as it is about to be stored.
pub(crate) fn check(scope: &Scope, object: &Value, old: Option<&Value>) -> Vec<crate::Cause> {
    let mut causes = scope.check(object, old);
    if let Some(schema) = &scope.version().schema {
        causes.extend(schema.validate(object).into_iter().map(crate::Cause::from));
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
    for (field, expected) in [("kind", &scope.def.kind), ("apiVersion", &version)] {
        let given = map.get(field).and_then(Value::as_str).unwrap_or_default();
        if given == expected {
            continue;
        }
        if given.is_empty() && !scope.def.crd {
            map.insert(field.into(), json!(expected));
        } else if given.is_empty() {
            let field = if field == "kind" {
                "Kind"
            } else {
                "apiVersion"
            };
            return Err(ApiError::BadRequest(format!(
                "Object '{field}' is missing in the request body"
            )));
        } else if field == "kind" {
            return Err(ApiError::BadRequest(format!(
                "{given} in version {:?} cannot be handled as a {expected}: kind does not match",
                scope.version().name
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
    ] {
        meta::put(metadata, field, identity.get(field).cloned());
    }
    metadata.remove("managedFields");
    metadata.remove("selfLink");
}

/// The answer to a write that lost against another.
pub(crate) fn modified(target: Target) -> ApiError {
    ApiError::Conflict {
        target,
        why: "the object has been modified; please apply your changes to the latest version and try again".into(),
    }
}
