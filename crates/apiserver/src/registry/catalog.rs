//! What is served right now, and the scope of one resource in one version.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::error::{ApiError, Target};
use crate::registry::meta;
use crate::registry::policy::Policy;
use crate::resources::{ResourceDef, VersionDef};
use crate::schema::{Schema, builtin};
use crate::store::{Event, Stored};

/// All resources that are served. Replaced as a whole when a definition changes.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// Built-in ones first, then custom ones by name.
    pub(crate) defs: Vec<Arc<ResourceDef>>,
    by_name: HashMap<(String, String), Arc<ResourceDef>>,
}

impl Snapshot {
    pub(crate) fn new(defs: Vec<Arc<ResourceDef>>) -> Self {
        let by_name = defs
            .iter()
            .map(|def| ((def.group.clone(), def.plural.clone()), def.clone()))
            .collect();
        Self { defs, by_name }
    }

    /// How a path of this group and version that names no resource is refused: built-in groups answer with a Status,
    /// anything else is no path of the API.
    pub(crate) fn unknown_path(&self, group: &str, version: &str) -> ApiError {
        let builtin = self
            .defs
            .iter()
            .any(|def| !def.crd && def.group == group && def.served_version(version).is_some());
        if builtin {
            ApiError::NoSuchPath
        } else {
            ApiError::PageNotFound
        }
    }

    pub(crate) fn find(&self, group: &str, plural: &str) -> Option<&Arc<ResourceDef>> {
        self.by_name.get(&(group.to_owned(), plural.to_owned()))
    }
}

/// The current [`Snapshot`].
#[derive(Debug, Default)]
pub(crate) struct Catalog(RwLock<Arc<Snapshot>>);

impl Catalog {
    pub(crate) fn get(&self) -> Arc<Snapshot> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set(&self, snapshot: Snapshot) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }
}

/// One resource in the version that a request is made in. Objects inside the registry are in this form; the
/// stored form differs in `apiVersion` (conversion strategy None) or as the resource's alias says.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    pub(crate) def: Arc<ResourceDef>,
    /// Index into `def.versions`.
    version: usize,
    /// `group/plural` of the stored objects.
    pub(crate) resource: Arc<str>,
    pub(crate) policy: Policy,
}

impl Scope {
    /// The scope of a served version.
    pub(crate) fn new(def: &Arc<ResourceDef>, version: &str) -> Option<Self> {
        let version = def
            .versions
            .iter()
            .position(|v| v.served && v.name == version)?;
        Some(Self::at(def, version))
    }

    /// The scope in which objects are stored.
    pub(crate) fn stored(def: &Arc<ResourceDef>) -> Self {
        let version = def
            .versions
            .iter()
            .position(|v| v.name == def.storage_version)
            .unwrap_or(0);
        Self::at(def, version)
    }

    fn at(def: &Arc<ResourceDef>, version: usize) -> Self {
        let (group, plural) = def.storage_key();
        let resource = format!("{group}/{plural}").into();
        Self {
            def: def.clone(),
            version,
            resource,
            policy: Policy::of(def),
        }
    }

    /// The schema by which fields have owners; built-in kinds have one too.
    pub(crate) fn fields_schema(&self) -> Option<Arc<Schema>> {
        match &self.version().schema {
            Some(schema) => Some(schema.clone()),
            None => builtin::strict_schema(&self.def.group, &self.def.kind),
        }
    }

    pub(crate) fn version(&self) -> &VersionDef {
        &self.def.versions[self.version]
    }

    pub(crate) fn api_version(&self) -> String {
        self.def.api_version(&self.version().name)
    }

    /// Names an object in an error.
    pub(crate) fn target(&self, name: &str) -> Target {
        Target::new(&self.def.group, &self.def.plural, name)
    }

    /// Names an object in an error, by kind.
    pub(crate) fn kind_target(&self, name: &str) -> Target {
        Target::new(&self.def.group, &self.def.kind, name)
    }

    /// The object as this scope shows it.
    pub(crate) fn present(&self, stored: &Stored) -> Result<Value, ApiError> {
        self.present_bytes(&stored.value, stored.revision)
    }

    /// The value of an event as this scope shows it, with the event's revision; none if there is no such value.
    pub(crate) fn present_event(
        &self,
        event: &Event,
        previous: bool,
    ) -> Result<Option<Value>, ApiError> {
        let value = if previous {
            &event.previous
        } else {
            &event.value
        };
        value
            .as_ref()
            .map(|value| self.present_bytes(value, event.revision))
            .transpose()
    }

    fn present_bytes(&self, value: &Bytes, revision: u64) -> Result<Value, ApiError> {
        let mut object: Value = serde_json::from_slice(value).map_err(|e| {
            ApiError::Internal(format!(
                "stored object of {} is damaged: {e}",
                self.resource
            ))
        })?;
        if let Some(alias) = &self.def.alias {
            (alias.from_storage)(&mut object);
        }
        object["apiVersion"] = json!(self.api_version());
        meta::metadata(&mut object).insert("resourceVersion".into(), json!(revision.to_string()));
        // A default that the definition gained since the object was stored shows at once, as upstream.
        if let Some(schema) = &self.version().schema {
            schema.default(&mut object);
        }
        Ok(object)
    }

    /// The bytes to store for an object in this scope's form.
    pub(crate) fn persist(&self, object: &Value) -> Bytes {
        let mut object = object.clone();
        meta::metadata(&mut object).remove("resourceVersion");
        object["apiVersion"] = json!(self.def.api_version(&self.def.storage_version));
        if let Some(alias) = &self.def.alias {
            (alias.to_storage)(&mut object);
        }
        object.to_string().into()
    }
}
