//! What is particular to a few resources. Everything else in the registry asks here instead of knowing kinds.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use crate::error::{ApiError, Cause, Target};
use crate::registry::catalog::Scope;
use crate::registry::query::Call;
use crate::registry::{Core, meta, metadata, pods, store_error};
use crate::resources::ResourceDef;
use crate::schema::{FieldError, crd};
use crate::store::{Key, Query};

/// Always there, and never deleted except `kube-node-lease`.
pub(crate) const DEFAULT_NAMESPACES: [&str; 4] =
    ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Store name of the definitions.
pub(crate) const DEFINITIONS: &str = "apiextensions.k8s.io/customresourcedefinitions";
/// Store name of the namespaces.
pub(crate) const NAMESPACES: &str = "/namespaces";
/// Holds a definition until its objects are gone.
pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// The names of a definition, and the reason when one is taken; in upstream's order.
const NAMES: [(&str, &str); 5] = [
    ("plural", "PluralConflict"),
    ("singular", "SingularConflict"),
    ("shortNames", "ShortNamesConflict"),
    ("kind", "KindConflict"),
    ("listKind", "ListKindConflict"),
];
/// Most entries of [`Homes`].
const HOMES: usize = 4096;

/// Which questions below have an answer other than the usual one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// As any other.
    Plain,
    /// Contains objects; goes only when it is empty.
    Namespace,
    /// Is stopped before it goes.
    Pod,
    /// Defines resources; goes only when their objects are gone.
    Definition,
    /// A lock: an update must say what it replaces.
    Lease,
    /// Its status may be given at creation (nodes register themselves with it).
    Node,
    /// Claims and volumes start as pending.
    Storage,
    /// Roles and bindings: nobody grants what they do not have.
    Access,
    /// Limits what its namespace may hold.
    Quota,
}

impl Policy {
    pub(crate) fn of(def: &ResourceDef) -> Self {
        match (def.group.as_str(), def.plural.as_str()) {
            ("", "namespaces") => Self::Namespace,
            ("", "pods") => Self::Pod,
            ("", "nodes") => Self::Node,
            ("", "resourcequotas") => Self::Quota,
            ("", "persistentvolumes" | "persistentvolumeclaims") => Self::Storage,
            ("coordination.k8s.io", "leases") => Self::Lease,
            ("apiextensions.k8s.io", "customresourcedefinitions") => Self::Definition,
            (crate::auth::rbac::GROUP, _) => Self::Access,
            _ => Self::Plain,
        }
    }

    /// What is wrong with a name: a namespace's is a DNS label, a role's need only fit into a path, others are subdomains.
    pub(crate) fn check_name(self, name: &str) -> Vec<Cause> {
        match self {
            Self::Access => crate::auth::rbac::validate::name(name),
            _ => meta::check_name(name, self == Self::Namespace),
        }
    }

    /// The status of a new object, where the resource has one.
    pub(crate) fn initial_status(self, given: Option<Value>) -> Option<Value> {
        match self {
            Self::Namespace => Some(json!({"phase": "Active"})),
            Self::Pod => Some(json!({"phase": "Pending"})),
            Self::Storage => Some(json!({"phase": "Pending"})),
            Self::Node => given,
            Self::Plain | Self::Definition | Self::Lease | Self::Access | Self::Quota => None,
        }
    }
}

impl Scope {
    /// Whether an update may leave out the resourceVersion.
    pub(crate) fn unconditional_update(&self) -> bool {
        !self.def.crd && !matches!(self.policy, Policy::Lease | Policy::Definition)
    }

    /// Whether `metadata.generation` is kept.
    pub(crate) fn has_generation(&self) -> bool {
        self.def.crd || matches!(self.policy, Policy::Pod | Policy::Definition)
    }

    /// Last touches to a new object, after defaulting and before admission.
    pub(crate) fn prepare_create(&self, object: &mut Value) {
        let status = object.as_object_mut().and_then(|map| map.remove("status"));
        if !self.version().status {
            if let Some(status) = status {
                object["status"] = status;
            }
        } else if let Some(status) = self.policy.initial_status(status) {
            object["status"] = status;
        }
        match self.policy {
            Policy::Namespace => {
                let name = meta::name(object).to_owned();
                meta::entry(object, "spec").insert("finalizers".into(), json!(["kubernetes"]));
                let labels = meta::metadata(object).entry("labels").or_insert(json!({}));
                labels["kubernetes.io/metadata.name"] = json!(name);
            }
            Policy::Definition => {
                crd::default(object);
                let mut finalizers: Vec<String> = meta::finalizers(object)
                    .into_iter()
                    .map(str::to_owned)
                    .collect();
                if !finalizers.iter().any(|f| f == CLEANUP) {
                    finalizers.push(CLEANUP.to_owned());
                }
                meta::metadata(object).insert("finalizers".into(), json!(finalizers));
            }
            _ => {}
        }
    }

    /// What the server itself adds to a new object, and no manager of fields owns; or why the object is forbidden.
    pub(crate) fn complete(&self, object: &mut Value) -> Result<(), String> {
        if self.policy == Policy::Pod {
            return pods::complete(object);
        }
        Ok(())
    }

    /// Last touches to a changed object, before admission.
    pub(crate) fn prepare_update(&self, object: &mut Value, old: &Value) {
        if self.policy == Policy::Namespace {
            // They are changed by way of `finalize` only.
            let finalizers = old["spec"].get("finalizers").cloned();
            meta::put(meta::entry(object, "spec"), "finalizers", finalizers);
        }
    }

    /// Whether a `PUT` of an object that is not there creates it.
    pub(crate) fn created_by_update(&self, call: &Call) -> bool {
        call.info.subresource.is_empty()
            && matches!(self.def.plural.as_str(), "events" | "leases")
            && !self.def.crd
    }

    /// What is wrong with the object besides its schema; `old` is the stored one on update.
    pub(crate) fn check(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        // Of custom resources and definitions upstream asks less.
        let standard = !self.def.crd && self.def.group != "apiextensions.k8s.io";
        let mut causes = metadata::check(object, standard);
        causes.extend(crate::registry::rules::check(self, object, old));
        match self.policy {
            Policy::Definition => {
                causes.extend(crd::validate(object, old).into_iter().map(Cause::from));
            }
            Policy::Pod => match old {
                Some(old) => causes.extend(check_pod_update(object, old)),
                None if object
                    .pointer("/spec/containers")
                    .and_then(Value::as_array)
                    .is_none_or(Vec::is_empty) =>
                {
                    causes.push(Cause::required("spec.containers", ""));
                }
                None => {}
            },
            Policy::Access => {
                use crate::auth::rbac::validate;
                causes.extend(validate::check(&self.def.kind, object, old));
            }
            Policy::Quota => causes.extend(crate::quota::validate(object)),
            _ => {}
        }
        causes
    }

    /// Why this object must not be deleted.
    pub(crate) fn protected(&self, name: &str) -> Option<ApiError> {
        let kept = self.policy == Policy::Namespace && DEFAULT_NAMESPACES[..3].contains(&name);
        kept.then(|| ApiError::Forbidden {
            target: self.target(name),
            why: "this namespace may not be deleted".into(),
            cause: None,
        })
    }

    /// Whether only the reaper removes such objects.
    pub(crate) fn reaped(&self) -> bool {
        matches!(self.policy, Policy::Namespace | Policy::Definition)
    }

    /// Whether something has to be done before the object can go.
    pub(crate) fn held(&self, object: &Value) -> bool {
        self.reaped() || !meta::finalizers(object).is_empty()
    }

    /// Seconds that the object stays after a delete, so that it can be stopped in good order.
    pub(crate) fn grace(&self, object: &Value, asked: Option<i64>) -> i64 {
        if self.policy != Policy::Pod {
            return 0;
        }
        let own = object
            .pointer("/spec/terminationGracePeriodSeconds")
            .and_then(Value::as_i64)
            .unwrap_or(30);
        let ended = matches!(
            meta::text(object, &["status", "phase"]),
            "Succeeded" | "Failed"
        );
        // Nobody runs it, or nobody runs it any more: there is nothing to wait for.
        if ended || meta::text(object, &["spec", "nodeName"]).is_empty() {
            0
        } else {
            asked.unwrap_or(own).max(0)
        }
    }
}

impl From<FieldError> for Cause {
    fn from(error: FieldError) -> Self {
        Self {
            reason: error.kind.reason().to_owned(),
            field: error.field,
            message: error.message,
        }
    }
}

/// Only a few fields of a pod's spec can change.
fn check_pod_update(object: &Value, old: &Value) -> Option<Cause> {
    fn fixed(pod: &Value) -> Value {
        let mut spec = pod["spec"].clone();
        for list in ["containers", "initContainers"] {
            for container in spec
                .get_mut(list)
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                if let Some(container) = container.as_object_mut() {
                    container.remove("image");
                }
            }
        }
        if let Some(spec) = spec.as_object_mut() {
            for free in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
                spec.remove(free);
            }
        }
        spec
    }
    for list in ["containers", "initContainers"] {
        let count = |pod: &Value| pod["spec"][list].as_array().map_or(0, Vec::len);
        if count(object) != count(old) {
            return Some(Cause::forbidden(
                format!("spec.{list}"),
                "pod updates may not add or remove containers",
            ));
        }
    }
    (fixed(object) != fixed(old)).then(|| {
        Cause::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,\
             `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
             tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        )
    })
}

/// Whether the resources of a definition are to be served.
pub(crate) fn is_established(crd: &Value) -> bool {
    let conditions = crd.pointer("/status/conditions").and_then(Value::as_array);
    conditions
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Established" && c["status"] == "True")
}

/// One name, or each of a list.
fn listed(names: &Value) -> impl Iterator<Item = &str> {
    let one = names.as_str();
    let many = names.as_array().into_iter().flatten();
    one.into_iter().chain(many.filter_map(Value::as_str))
}

/// Namespaces and definitions that new objects were put into: the revision that was read, and whether it was ending.
#[derive(Default)]
pub(crate) struct Homes(Mutex<HashMap<Key, (u64, bool)>>);

impl Homes {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, (u64, bool)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Refuses new objects where their namespace or definition is missing or on its way out. The caller holds the gate.
    pub(crate) fn check_home(
        &self,
        scope: &Scope,
        namespace: &str,
        name: &str,
    ) -> Result<(), ApiError> {
        if scope.def.namespaced {
            let ending = self
                .ending(Key::new(&NAMESPACES.into(), "", namespace))?
                .ok_or_else(|| ApiError::NotFound(Target::new("", "namespaces", namespace)))?;
            if ending {
                return Err(ApiError::Forbidden {
                    target: scope.target(name),
                    why: format!(
                        "unable to create new content in namespace {namespace} because it is being terminated"
                    ),
                    cause: Some(Box::new(Cause {
                        reason: "NamespaceTerminating".into(),
                        message: format!("namespace {namespace} is being terminated"),
                        field: "metadata.namespace".into(),
                    })),
                });
            }
        }
        if scope.def.crd {
            let key = Key::new(&DEFINITIONS.into(), "", &scope.def.qualified());
            if self.ending(key)?.unwrap_or(true) {
                return Err(ApiError::MethodNotAllowed);
            }
        }
        Ok(())
    }

    /// Whether a namespace or definition is being deleted; none if it is not there. It is asked for every new object,
    /// and a definition is hundreds of kilobytes, so it is read once for each of its revisions.
    fn ending(&self, key: Key) -> Result<Option<bool>, ApiError> {
        let revision = self.store.revision(&key).map_err(|e| store_error(&e))?;
        let Some(revision) = revision else {
            self.homes.lock().remove(&key);
            return Ok(None);
        };
        if let Some((known, ending)) = self.homes.lock().get(&key)
            && *known == revision
        {
            return Ok(Some(*ending));
        }
        let Some(stored) = self.store.get(&key).map_err(|e| store_error(&e))? else {
            return Ok(None);
        };
        let object: Value = serde_json::from_slice(&stored.value)
            .map_err(|e| ApiError::Internal(format!("stored object is damaged: {e}")))?;
        let ending = meta::is_deleting(&object);
        let mut homes = self.homes.lock();
        // Namespaces come and go, and nobody asks for one that went.
        if homes.len() >= HOMES {
            homes.clear();
        }
        homes.insert(key, (stored.revision, ending));
        Ok(Some(ending))
    }

    /// Writes the status of a definition: accepted and established, unless another one has some of its names.
    pub(crate) fn settle_definition(&self, crd: &mut Value) -> Result<(), ApiError> {
        let taken = self.taken_names(crd)?;
        // Where several are taken the last one is told, as upstream does.
        let Some((reason, name)) = taken.last().cloned() else {
            crd::accept(crd, &meta::now());
            return Ok(());
        };
        let now = meta::now();
        let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "False", "reason": reason, "message": message, "lastTransitionTime": now});
        let wanted = crd["spec"]["names"].clone();
        let status = meta::entry(crd, "status");
        let accepted = status
            .entry("acceptedNames")
            .or_insert_with(|| json!({"plural": "", "kind": ""}));
        for (field, what) in NAMES {
            if !wanted[field].is_null() && taken.iter().all(|(reason, _)| *reason != what) {
                accepted[field] = wanted[field].clone();
            }
        }
        status.insert(
            "conditions".into(),
            json!([
                condition(
                    "NamesAccepted",
                    reason,
                    &format!("{name:?} is already in use")
                ),
                condition("Established", "NotAccepted", "not all names are accepted"),
            ]),
        );
        crd::store_version(crd);
        Ok(())
    }

    /// The names of a definition that established ones of its group have, each with the reason why it is not accepted.
    fn taken_names(&self, crd: &Value) -> Result<Vec<(&'static str, String)>, ApiError> {
        let own = meta::name(crd);
        let group = meta::text(crd, &["spec", "group"]);
        let query = Query {
            resource: DEFINITIONS.into(),
            namespace: None,
            after: None,
            limit: None,
        };
        let (mut resources, mut kinds) = (HashSet::new(), HashSet::new());
        for stored in self.store.list(&query).map_err(|e| store_error(&e))?.items {
            let Ok(other) = serde_json::from_slice::<Value>(&stored.value) else {
                continue;
            };
            if meta::name(&other) == own
                || meta::text(&other, &["spec", "group"]) != group
                || !is_established(&other)
            {
                continue;
            }
            for (field, _) in NAMES {
                let names = if field.to_lowercase().ends_with("kind") {
                    &mut kinds
                } else {
                    &mut resources
                };
                names.extend(listed(&other["spec"]["names"][field]).map(str::to_owned));
            }
        }
        let mut taken = Vec::new();
        for (field, reason) in NAMES {
            let names = if field.to_lowercase().ends_with("kind") {
                &kinds
            } else {
                &resources
            };
            taken.extend(
                listed(&crd["spec"]["names"][field])
                    .filter(|name| names.contains(*name))
                    .map(|name| (reason, name.to_owned())),
            );
        }
        Ok(taken)
    }

    fn builtin_scope(&self, group: &str, plural: &str) -> Result<Scope, ApiError> {
        let snapshot = self.catalog.get();
        snapshot
            .find(group, plural)
            .map(Scope::stored)
            .ok_or(ApiError::NoSuchPath)
    }

    /// Creates a namespace unless it is there.
    pub(crate) async fn ensure_namespace(&self, name: &str) -> Result<(), ApiError> {
        let scope = self.builtin_scope("", "namespaces")?;
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        match self
            .create_object(&mut Call::internal("system:apiserver"), &scope, object)
            .await
        {
            Ok(_) | Err(ApiError::AlreadyExists(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Creates a definition, or brings the spec of the stored one up to date.
    pub(crate) async fn ensure_definition(
        &self,
        crd: &CustomResourceDefinition,
    ) -> Result<(), ApiError> {
        let scope = self.builtin_scope("apiextensions.k8s.io", "customresourcedefinitions")?;
        let wanted = serde_json::to_value(crd).map_err(|e| ApiError::Internal(e.to_string()))?;
        let mut call = Call::internal("system:apiserver");
        match self.create_object(&mut call, &scope, wanted.clone()).await {
            Err(ApiError::AlreadyExists(_)) => {}
            other => return other.map(drop),
        }
        call.info.name = meta::name(&wanted).to_owned();
        self.update_object(&mut call, &scope, &|old| {
            let mut new = old.clone();
            new["spec"] = wanted["spec"].clone();
            crd::default(&mut new);
            for map in ["labels", "annotations"] {
                for (key, value) in wanted["metadata"][map].as_object().into_iter().flatten() {
                    new["metadata"][map][key] = value.clone();
                }
            }
            Ok(new)
        })
        .await
        .map(drop)
    }
}
