//! The entries of `metadata.managedFields`.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::set::{Set, SetError};

/// Most entries of updates that an object keeps; older ones are merged.
const MAX_UPDATERS: usize = 10;
/// The manager of merged entries.
const ANCIENT: &str = "ancient-changes";

/// Who manages fields, and in which way. Of one who applies the version is no part of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Manager {
    pub(crate) name: String,
    pub(crate) applies: bool,
    /// Empty if `applies`.
    pub(crate) api_version: String,
    pub(crate) subresource: String,
}

impl Manager {
    pub(crate) fn applier(name: &str, subresource: &str) -> Self {
        Self {
            name: named(name),
            applies: true,
            api_version: String::new(),
            subresource: subresource.to_owned(),
        }
    }

    pub(crate) fn updater(name: &str, api_version: &str, subresource: &str) -> Self {
        Self {
            name: named(name),
            applies: false,
            api_version: api_version.to_owned(),
            subresource: subresource.to_owned(),
        }
    }
}

fn named(name: &str) -> String {
    if name.is_empty() { "unknown" } else { name }.to_owned()
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        if !self.applies {
            write!(f, " using {}", self.api_version)?;
        }
        Ok(())
    }
}

/// What a manager manages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Managed {
    pub(crate) set: Set,
    pub(crate) api_version: String,
    /// RFC 3339, as it was written.
    pub(crate) time: Option<String>,
}

/// All managers of an object.
pub(crate) type Managers = BTreeMap<Manager, Managed>;

/// An entry that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EntryError {
    /// Not an object.
    #[error("an entry of managed fields must be an object")]
    Shape,
    /// Neither way of managing.
    #[error("operation must be `Apply` or `Update`")]
    Operation,
    /// No version.
    #[error("apiVersion must not be empty")]
    ApiVersion,
    /// No type.
    #[error("missing fieldsType in managed fields entry {0}")]
    NoFieldsType(usize),
    /// Another type.
    #[error("invalid fieldsType {1:?} in managed fields entry {0}")]
    FieldsType(usize, String),
    /// The fields.
    #[error("error decoding set: {0}")]
    Fields(#[from] SetError),
}

/// Reads the entries.
pub(crate) fn decode(entries: &Value) -> Result<Managers, EntryError> {
    let mut out = Managers::new();
    for (at, entry) in entries.as_array().into_iter().flatten().enumerate() {
        if !entry.is_object() {
            return Err(EntryError::Shape);
        }
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
        let applies = match text("operation") {
            "Apply" => true,
            "Update" => false,
            _ => return Err(EntryError::Operation),
        };
        let api_version = text("apiVersion");
        if api_version.is_empty() {
            return Err(EntryError::ApiVersion);
        }
        match text("fieldsType") {
            "FieldsV1" => {}
            "" => return Err(EntryError::NoFieldsType(at)),
            other => return Err(EntryError::FieldsType(at, other.to_owned())),
        }
        let manager = Manager {
            name: text("manager").to_owned(),
            applies,
            api_version: if applies { "" } else { api_version }.to_owned(),
            subresource: text("subresource").to_owned(),
        };
        let managed = Managed {
            set: Set::decode(entry.get("fieldsV1").unwrap_or(&Value::Null))?,
            api_version: api_version.to_owned(),
            time: entry.get("time").and_then(Value::as_str).map(str::to_owned),
        };
        out.insert(manager, managed);
    }
    Ok(out)
}

fn seconds(time: Option<&str>) -> i64 {
    time.and_then(|time| time.parse::<Timestamp>().ok())
        .map_or(0, Timestamp::as_second)
}

/// Writes the entries: who applies first, older ones first. `None` if there are none.
pub(crate) fn encode(managers: &Managers) -> Option<Value> {
    let mut sorted: Vec<(&Manager, &Managed)> = managers.iter().collect();
    sorted.sort_by_cached_key(|(manager, managed)| {
        (
            !manager.applies,
            seconds(managed.time.as_deref()),
            manager.name.clone(),
            managed.api_version.clone(),
            manager.subresource.clone(),
        )
    });
    let entries: Vec<Value> = sorted
        .into_iter()
        .map(|(manager, managed)| {
            let mut entry = Map::new();
            let mut put = |key: &str, text: &str| {
                if !text.is_empty() {
                    entry.insert(key.to_owned(), json!(text));
                }
            };
            put("manager", &manager.name);
            put(
                "operation",
                if manager.applies { "Apply" } else { "Update" },
            );
            put("apiVersion", &managed.api_version);
            put("time", managed.time.as_deref().unwrap_or_default());
            put("fieldsType", "FieldsV1");
            put("subresource", &manager.subresource);
            entry.insert("fieldsV1".into(), managed.set.encode());
            Value::Object(entry)
        })
        .collect();
    (!entries.is_empty()).then_some(Value::Array(entries))
}

/// Whether a client wants the managed fields cleared: an empty list, or one empty entry.
pub(crate) fn is_reset(entries: &Value) -> bool {
    match entries.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([only]) => only.as_object().is_some_and(|entry| {
            entry
                .values()
                .all(|value| value.is_null() || value.as_str() == Some(""))
        }),
        _ => false,
    }
}

/// Whether two lists of entries say the same but for the times.
pub(crate) fn same_but_times(a: Option<&Value>, b: Option<&Value>) -> bool {
    let timeless = |entries: Option<&Value>| -> Vec<Value> {
        let mut entries = entries
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
            entry.remove("time");
        }
        entries
    };
    let (a, mut b) = (timeless(a), timeless(b));
    // Entries are sorted by time, so the order may differ as well.
    a.len() == b.len()
        && a.iter().all(|entry| {
            let at = b.iter().position(|other| other == entry);
            at.map(|at| b.swap_remove(at)).is_some()
        })
}

/// Merges the oldest entries of updates, those of one version together, until there are few enough.
pub(crate) fn cap(managers: &mut Managers) {
    let mut updaters: Vec<Manager> = managers.keys().filter(|m| !m.applies).cloned().collect();
    let mut count = updaters.len();
    if count <= MAX_UPDATERS {
        return;
    }
    updaters.sort_by_cached_key(|manager| {
        (seconds(managers[manager].time.as_deref()), manager.clone())
    });
    let mut first_of_version: BTreeMap<String, Manager> = BTreeMap::new();
    for manager in updaters {
        if count <= MAX_UPDATERS {
            break;
        }
        let version = manager.api_version.clone();
        let Some(first) = first_of_version.get(&version).cloned() else {
            first_of_version.insert(version, manager);
            continue;
        };
        let bucket = Manager::updater(ANCIENT, &version, "");
        if !managers.contains_key(&bucket)
            && let Some(oldest) = managers.remove(&first)
        {
            managers.insert(bucket.clone(), oldest);
        }
        if manager == bucket {
            continue;
        }
        let Some(newer) = managers.remove(&manager) else {
            continue;
        };
        if let Some(merged) = managers.get_mut(&bucket) {
            merged.set = merged.set.union(&newer.set);
            merged.time = newer.time;
        }
        count -= 1;
    }
}
