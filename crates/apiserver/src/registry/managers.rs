//! Who set which fields: `metadata.managedFields`.
//!
//! Every manager has an entry an operation: `Apply` for what it applied, `Update` for what it wrote otherwise. A write
//! gives its fields to the writer and takes them from the others; an apply of another value than another manager set is
//! a conflict. Mirrors `k8s.io/apimachinery/pkg/util/managedfields`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::error::{ApiError, Cause};
use crate::registry::catalog::Scope;
use crate::registry::query::Call;
use crate::registry::{meta, query};
use crate::schema::fields::{Changes, Set};

/// More managers of operation `Update` than this share one entry.
const MAX_UPDATERS: usize = 10;
/// The entry that old updaters share.
const ANCIENT: &str = "ancient-changes";
/// Owner of what an object had before anything was applied to it, where nobody was recorded.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Metadata that nobody owns.
const UNOWNED: [&str; 9] = [
    "f:clusterName",
    "f:creationTimestamp",
    "f:generation",
    "f:managedFields",
    "f:name",
    "f:namespace",
    "f:resourceVersion",
    "f:selfLink",
    "f:uid",
];

/// One entry.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    manager: String,
    apply: bool,
    api_version: String,
    subresource: String,
    time: String,
    set: Set,
}

impl Entry {
    /// What it writes with another entry in one.
    fn is_of(&self, writer: &Writer) -> bool {
        self.manager == writer.manager
            && self.apply == writer.apply
            && self.subresource == writer.subresource
            // An applier has one entry, whatever version it speaks.
            && (self.apply || self.api_version == writer.api_version)
    }

    /// As messages about conflicts name it.
    fn shown(&self) -> String {
        let mut out = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            out += &format!(" with subresource {:?}", self.subresource);
        }
        if !self.apply {
            out += &format!(" using {}", self.api_version);
        }
        out
    }
}

/// Whose write it is.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    manager: String,
    apply: bool,
    api_version: String,
    subresource: String,
}

impl Writer {
    /// The writer of a request: the `fieldManager` of the query, else the program of the user agent.
    pub(crate) fn of(call: &Call, scope: &Scope, apply: bool) -> Self {
        let given = call.query.get("fieldManager");
        let agent = call
            .headers
            .get(http::header::USER_AGENT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let program: String = agent
            .split('/')
            .next()
            .unwrap_or_default()
            .chars()
            .filter(|c| !c.is_control())
            .take(query::MAX_FIELD_MANAGER)
            .collect();
        let manager = [given, &program, "unknown"]
            .into_iter()
            .find(|name| !name.is_empty())
            .unwrap_or_default()
            .to_owned();
        Self {
            manager,
            apply,
            api_version: scope.api_version(),
            subresource: call.info.subresource.clone(),
        }
    }

    fn entry(&self, set: Set) -> Entry {
        Entry {
            manager: self.manager.clone(),
            apply: self.apply,
            api_version: self.api_version.clone(),
            subresource: self.subresource.clone(),
            time: meta::now(),
            set,
        }
    }
}

/// All entries of an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Managers(Vec<Entry>);

impl Managers {
    /// Those of an object as it is stored. Entries that cannot be read are left out.
    fn of(object: &Value) -> Self {
        object
            .pointer("/metadata/managedFields")
            .and_then(|fields| Self::decode(fields).ok())
            .unwrap_or_default()
    }

    fn decode(fields: &Value) -> Result<Self, String> {
        let list = fields.as_array().ok_or("managedFields must be a list")?;
        list.iter()
            .map(|entry| {
                let text = |key: &str| meta::text(entry, &[key]).to_owned();
                let apply = match text("operation").as_str() {
                    "Apply" => true,
                    "Update" => false,
                    other => return Err(format!("invalid operation: {other:?}")),
                };
                let set = match entry.get("fieldsV1") {
                    None | Some(Value::Null) => Set::default(),
                    Some(fields) => Set::decode(fields).map_err(|e| e.to_string())?,
                };
                Ok(Entry {
                    manager: text("manager"),
                    apply,
                    api_version: text("apiVersion"),
                    subresource: text("subresource"),
                    time: text("time"),
                    set,
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// As upstream orders them: appliers first, then by time and name.
    fn encode(mut self) -> Option<Value> {
        self.0.retain(|entry| !entry.set.is_empty());
        if self.0.is_empty() {
            return None;
        }
        self.0.sort_by(|a, b| {
            let key = |e: &Entry| {
                (
                    !e.apply,
                    e.time.clone(),
                    e.manager.clone(),
                    e.subresource.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
        let list = self.0.into_iter().map(|entry| {
            let mut out = Map::new();
            let operation = if entry.apply { "Apply" } else { "Update" };
            for (key, text) in [
                ("manager", entry.manager.as_str()),
                ("operation", operation),
                ("apiVersion", &entry.api_version),
                ("subresource", &entry.subresource),
                ("time", &entry.time),
                ("fieldsType", "FieldsV1"),
            ] {
                if !text.is_empty() {
                    out.insert(key.into(), json!(text));
                }
            }
            out.insert("fieldsV1".into(), entry.set.encode());
            Value::Object(out)
        });
        Some(list.collect())
    }

    /// A write: what it changed is the writer's, what it removed is nobody's.
    fn wrote(&mut self, writer: &Writer, changes: &Changes) {
        for entry in self.0.iter_mut().filter(|entry| !entry.is_of(writer)) {
            entry.set.subtract(&changes.set);
            entry.set.subtract(&changes.removed);
        }
        match self.0.iter_mut().find(|entry| entry.is_of(writer)) {
            Some(own) => {
                let before = own.set.clone();
                own.set.add(&changes.set);
                own.set.subtract(&changes.removed);
                if own.set != before {
                    own.time = meta::now();
                }
            }
            None => self.0.push(writer.entry(changes.set.clone())),
        }
        self.cap();
    }

    fn cap(&mut self) {
        self.0.retain(|entry| !entry.set.is_empty());
        let updaters = |entries: &[Entry]| entries.iter().filter(|entry| !entry.apply).count();
        while updaters(&self.0) > MAX_UPDATERS {
            let oldest = self
                .0
                .iter()
                .enumerate()
                .filter(|(_, entry)| !entry.apply && entry.manager != ANCIENT)
                .min_by_key(|(_, entry)| entry.time.clone())
                .map(|(at, _)| at);
            let Some(at) = oldest else { return };
            let old = self.0.remove(at);
            let same = |entry: &&mut Entry| {
                entry.manager == ANCIENT && entry.api_version == old.api_version
            };
            match self.0.iter_mut().find(same) {
                Some(ancient) => {
                    ancient.set.add(&old.set);
                    ancient.time = old.time;
                }
                None => self.0.push(Entry {
                    manager: ANCIENT.to_owned(),
                    subresource: String::new(),
                    ..old
                }),
            }
        }
    }
}

/// Takes out what the endpoint resets, and metadata that nobody owns.
fn strip(scope: &Scope, subresource: &str, set: &mut Set) {
    let mut unowned = Set::default();
    unowned.insert(&["f:apiVersion"]);
    unowned.insert(&["f:kind"]);
    unowned.insert(&["f:metadata"]);
    for field in UNOWNED {
        unowned.insert(&["f:metadata", field]);
    }
    set.subtract(&unowned);
    let mut reset = Set::default();
    match subresource {
        "status" if scope.def.crd => {
            set.keep_only("f:status");
            return;
        }
        "status" => reset.insert(&["f:spec"]),
        _ if scope.version().status => reset.insert(&["f:status"]),
        _ => {}
    }
    set.subtract_below(&reset);
}

fn changes(call: &Call, scope: &Scope, old: &Value, new: &Value) -> Option<Changes> {
    let mut changes = scope.fields_schema()?.changes(old, new);
    strip(scope, &call.info.subresource, &mut changes.set);
    strip(scope, &call.info.subresource, &mut changes.removed);
    Some(changes)
}

/// What upstream's typed objects of a built-in kind hold before anything is set: structs that are no pointers, lists that
/// are written although they are empty. A new object does not add these.
fn blank(kind: &str) -> Value {
    match kind {
        "Pod" => json!({"spec": {"containers": []}, "status": {}}),
        "Namespace" | "Node" | "PersistentVolume" => json!({"spec": {}, "status": {}}),
        "PersistentVolumeClaim" => json!({"spec": {"resources": {}}, "status": {}}),
        "Lease" => json!({"spec": {}}),
        "CustomResourceDefinition" => json!({
            "spec": {"group": "", "names": {"kind": "", "plural": ""}, "scope": "", "versions": []},
            "status": {"acceptedNames": {"kind": "", "plural": ""}, "conditions": [], "storedVersions": []},
        }),
        _ => json!({}),
    }
}

/// The `managedFields` of a written object. `new` is what is about to be stored, `given` the `managedFields` that the
/// client sent with it, `old` the stored object, nothing for a new one.
pub(crate) fn after_write(
    call: &Call,
    scope: &Scope,
    old: Option<&Value>,
    new: &Value,
    given: Option<&Value>,
) -> Option<Value> {
    let list = given.and_then(Value::as_array);
    // A list of one empty entry is how clients say that they want none at all.
    let reset =
        list.is_some_and(|list| list.len() == 1 && list[0].as_object().is_some_and(Map::is_empty));
    let mut managers = match (given, old) {
        _ if reset => Managers::default(),
        (Some(given @ Value::Array(list)), _) if !list.is_empty() => {
            Managers::decode(given).unwrap_or_else(|_| old.map(Managers::of).unwrap_or_default())
        }
        (_, Some(old)) => Managers::of(old),
        (_, None) => Managers::default(),
    };
    // An object of which nothing is recorded stays so until something is applied to it.
    if reset || (old.is_some() && managers.0.is_empty()) {
        return managers.encode();
    }
    let changes = match old {
        Some(old) => changes(call, scope, old, new),
        // A custom resource may be called as a built-in kind is; it is no struct upstream.
        None if scope.def.crd => changes(call, scope, &json!({}), new),
        None => changes(call, scope, &blank(&scope.def.kind), new),
    };
    if let Some(changes) = changes {
        managers.wrote(&Writer::of(call, scope, false), &changes);
    }
    managers.encode()
}

/// Applies a configuration to an object (empty if there is none yet). The result carries its `managedFields`.
pub(crate) fn apply(
    scope: &Scope,
    writer: &Writer,
    live: &Value,
    config: &Value,
    force: bool,
) -> Result<Value, ApiError> {
    match apply_as(scope, writer, live, config, force) {
        // What kubectl applied by itself, before it knew of owners, is kubectl's.
        Err(Refused::Conflict(found)) if writer.manager == "kubectl" => {
            let excused = last_applied(scope, live);
            let mine = found.values().all(|set| {
                let mut rest = set.clone();
                rest.subtract(&excused);
                rest.is_empty()
            });
            if mine {
                apply_as(scope, writer, live, config, true)
            } else {
                Err(Refused::Conflict(found))
            }
        }
        other => other,
    }
    .map_err(Refused::error)
}

/// Why an apply is not done.
enum Refused {
    /// By manager, as messages show it: the fields that it set to something else.
    Conflict(BTreeMap<String, Set>),
    Other(ApiError),
}

impl Refused {
    fn error(self) -> ApiError {
        match self {
            Self::Conflict(found) => conflict(&found),
            Self::Other(error) => error,
        }
    }
}

fn apply_as(
    scope: &Scope,
    writer: &Writer,
    live: &Value,
    config: &Value,
    force: bool,
) -> Result<Value, Refused> {
    let bad = |why: String| Refused::Other(ApiError::BadRequest(why));
    let Some(schema) = scope.fields_schema() else {
        return Err(bad("the resource has no schema to apply by".into()));
    };
    let walk = |e: crate::schema::fields::WalkError| {
        Refused::Other(ApiError::Unexplained(format!(
            "failed to create typed patch object ({}/{}; {}/{}, Kind={}): {e}",
            meta::namespace(config),
            meta::name(config),
            scope.def.group,
            scope.version().name,
            scope.def.kind
        )))
    };
    let mut managers = Managers::of(live);
    let subresource = &writer.subresource;
    if managers.0.is_empty() && live.get("kind").is_some() {
        let mut set = schema.fields(live).map_err(walk)?;
        strip(scope, "", &mut set);
        let before = Writer {
            manager: BEFORE_FIRST_APPLY.to_owned(),
            apply: false,
            api_version: scope.api_version(),
            subresource: String::new(),
        };
        managers.0.push(before.entry(set));
    }

    schema.check_types(config).map_err(walk)?;
    let mut set = schema.fields(config).map_err(walk)?;
    strip(scope, subresource, &mut set);
    let own = managers.0.iter().position(|entry| entry.is_of(writer));
    let last = own.map(|at| managers.0.remove(at));
    let mut owned = set.clone();
    for entry in &managers.0 {
        owned.add(&entry.set);
    }
    let mut merged = schema.merge(live, config).map_err(walk)?;
    if let Some(last) = &last {
        merged = schema.take_out(&merged, &last.set, &owned);
    }
    let same = merged == *live;

    let mut changes = schema.changes(live, &merged);
    strip(scope, subresource, &mut changes.set);
    strip(scope, subresource, &mut changes.removed);
    let mut conflicts = BTreeMap::new();
    for entry in &managers.0 {
        let both = entry.set.common(&changes.set);
        if !both.is_empty() {
            conflicts.insert(entry.shown(), both);
        }
    }
    if !conflicts.is_empty() && !force {
        return Err(Refused::Conflict(conflicts));
    }
    for entry in &mut managers.0 {
        entry.set.subtract(&changes.set);
        entry.set.subtract(&changes.removed);
    }
    let mut entry = writer.entry(set);
    if same {
        // The time of an entry is that of its last change of the object, if there was any.
        entry.time = last.map(|last| last.time).unwrap_or_default();
    }
    managers.0.push(entry);
    if writer.manager == "kubectl" {
        keep_last_applied(live, config, &mut merged);
    }
    meta::put(
        meta::metadata(&mut merged),
        "managedFields",
        managers.encode(),
    );
    Ok(merged)
}

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The fields that kubectl applied by itself, as its annotation tells.
fn last_applied(scope: &Scope, live: &Value) -> Set {
    let config = live["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .and_then(|text| serde_json::from_str::<Value>(text).ok());
    let Some((config, schema)) = config.zip(scope.fields_schema()) else {
        return Set::default();
    };
    schema.fields(&config).unwrap_or_default()
}

/// Where kubectl's annotation is, an apply by kubectl keeps it up to date: both ways of applying may alternate.
fn keep_last_applied(live: &Value, config: &Value, merged: &mut Value) {
    if live["metadata"]["annotations"].get(LAST_APPLIED).is_some() {
        let text = format!("{config}\n");
        let annotations = meta::metadata(merged)
            .entry("annotations")
            .or_insert_with(|| json!({}));
        annotations[LAST_APPLIED] = json!(text);
    }
}

fn conflict(found: &BTreeMap<String, Set>) -> ApiError {
    let mut causes = Vec::new();
    let mut lines = Vec::new();
    for (manager, set) in found {
        lines.push(format!("conflicts with {manager}:"));
        for path in set.paths() {
            lines.push(format!("- {path}"));
            causes.push(Cause {
                reason: "FieldManagerConflict".into(),
                message: format!("conflict with {manager}"),
                field: path,
            });
        }
    }
    let message = match causes.as_slice() {
        [one] => format!(
            "Apply failed with 1 conflict: {}: {}",
            one.message, one.field
        ),
        many => format!(
            "Apply failed with {} conflicts: {}",
            many.len(),
            lines.join("\n")
        ),
    };
    ApiError::ApplyConflict { message, causes }
}
