//! What a create, replace or patch does to the owners of fields: who changes a field owns it from then on.

use serde_json::Value;

use super::compare::{self, Comparison};
use super::managers::{self, Managed, Manager, Managers};
use super::set::Set;
use super::walk::Mismatch;
use super::{Context, Version, stripped};

/// The managed fields after `manager` made `new` of `live` (`None`: created it). `given` is what the request itself says of
/// managed fields; `blank` is what an object of the kind is before anything is said.
///
/// An object that cannot be walked loses its managed fields, as upstream: better none than wrong ones.
pub(crate) fn track(
    context: &Context<'_>,
    live: Option<&Value>,
    new: &Value,
    given: Option<&Value>,
    blank: &Value,
    manager: &str,
) -> Option<Value> {
    let stored = live.and_then(|live| live.pointer("/metadata/managedFields"));
    let own = given.filter(|given| !given.is_null() && context.subresource.is_empty());
    let reset = own.is_some_and(managers::is_reset);
    let decoded = own
        .and_then(|given| managers::decode(given).ok())
        .filter(|managers| !managers.is_empty());
    let managers = match decoded {
        Some(managers) => managers,
        None if reset => Managers::new(),
        None => stored
            .and_then(|stored| managers::decode(stored).ok())
            .unwrap_or_default(),
    };
    // An object whose fields nobody tracks stays so until somebody applies.
    if live.is_some() && managers.is_empty() {
        return None;
    }
    let manager = Manager::updater(manager, context.api_version, context.subresource);
    let mut managers = update(context, live.unwrap_or(blank), new, managers, manager)
        .map_err(|e| tracing::warn!("managed fields are dropped: {e}"))
        .ok()?;
    managers::cap(&mut managers);
    managers::encode(&managers)
}

/// The managers after an update of `live` to `new`.
pub(super) fn update(
    context: &Context<'_>,
    live: &Value,
    new: &Value,
    mut managers: Managers,
    manager: Manager,
) -> Result<Managers, Mismatch> {
    let changes = take_away(context, live, new, &mut managers, None)?;
    let set = changes
        .modified
        .union(&changes.added)
        .difference(stripped());
    if !set.is_empty() {
        let managed = managers.entry(manager).or_insert_with(|| Managed {
            set: Set::default(),
            api_version: context.api_version.to_owned(),
            time: None,
        });
        managed.set = managed.set.union(&set);
        managed.time = Some(context.now.to_owned());
    }
    Ok(managers)
}

/// Takes what changes between two objects away from everybody but `except`; returns the changes.
pub(super) fn take_away(
    context: &Context<'_>,
    live: &Value,
    new: &Value,
    managers: &mut Managers,
    except: Option<&Manager>,
) -> Result<Comparison, Mismatch> {
    let changes = compare::compare(context.of, live, new)?.without(&context.reset);
    let mut kept = Managers::new();
    for (manager, mut managed) in std::mem::take(managers) {
        if except != Some(&manager) {
            let of_other;
            let lost = match version_changes(context, &managed, live, new)? {
                Lost::Same => &changes,
                Lost::Other(other) => {
                    of_other = other;
                    &of_other
                }
                Lost::Nothing => {
                    kept.insert(manager, managed);
                    continue;
                }
                Lost::All => continue,
            };
            managed.set = managed
                .set
                .difference(&lost.modified)
                .difference(&lost.added)
                .difference(&lost.removed);
        }
        if !managed.set.is_empty() {
            kept.insert(manager, managed);
        }
    }
    *managers = kept;
    Ok(changes)
}

/// What an entry may lose by a change.
pub(super) enum Lost {
    /// Fields as they are in the version of the request.
    Same,
    /// Fields as they are in the entry's own version.
    Other(Comparison),
    Nothing,
    All,
}

pub(super) fn version_changes(
    context: &Context<'_>,
    managed: &Managed,
    live: &Value,
    new: &Value,
) -> Result<Lost, Mismatch> {
    if managed.api_version == context.api_version {
        return Ok(Lost::Same);
    }
    Ok(match context.version(&managed.api_version) {
        Version::Known(of) => Lost::Other(compare::compare(of, live, new)?.without(&context.reset)),
        Version::Foreign => Lost::Nothing,
        Version::Gone => Lost::All,
    })
}
