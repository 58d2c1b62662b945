//! Server-side apply: a configuration is laid over the live object, and what its manager applied before and no longer applies
//! goes, unless somebody else owns it.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use super::compare;
use super::managers::{self, EntryError, Managed, Manager, Managers};
use super::merge::{self, Emptied};
use super::path::{Step, same};
use super::set::Set;
use super::update::{self, Lost};
use super::walk::{self, Mismatch};
use super::{Context, Version, bare, stripped};
use crate::schema::shape::Type;

/// The manager of fields that were there before anything was applied.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// kubectl's own name as a manager. Its configuration may be in an annotation, from before it applied on the server.
const KUBECTL: &str = "kubectl";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Why a configuration is not applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// Others own what it would change.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The configuration does not fit its type.
    #[error("failed to create typed patch object ({object}): {}", walk::print(.errors))]
    Config {
        /// Which, as upstream names it.
        object: String,
        /// What is wrong.
        errors: Vec<Mismatch>,
    },
    /// The live object does not fit its type.
    #[error("failed to merge config: {0}")]
    Live(#[from] Mismatch),
    /// The live object's managed fields.
    #[error("failed to decode managed fields: {0}")]
    Managed(#[from] EntryError),
}

/// A field that somebody else owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conflict {
    manager: Manager,
    path: Vec<Step>,
}

impl Conflict {
    /// `.spec.replicas`.
    pub(crate) fn field(&self) -> String {
        self.path.iter().map(ToString::to_string).collect()
    }

    /// `conflict with "kubectl-edit" using apps/v1`.
    pub(crate) fn message(&self) -> String {
        format!("conflict with {}", self.manager)
    }
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    use fmt::Write as _;

    if let [only] = conflicts {
        return format!(
            "Apply failed with 1 conflict: {}: {}",
            only.message(),
            only.field()
        );
    }
    let mut by_manager: BTreeMap<&Manager, Vec<String>> = BTreeMap::new();
    for conflict in conflicts {
        by_manager
            .entry(&conflict.manager)
            .or_default()
            .push(conflict.field());
    }
    let mut out = format!("Apply failed with {} conflicts: ", conflicts.len());
    for (at, (manager, fields)) in by_manager.into_iter().enumerate() {
        let line = if at > 0 { "\n" } else { "" };
        let _ = write!(out, "{line}conflicts with {manager}:");
        for field in fields {
            let _ = write!(out, "\n- {field}");
        }
    }
    out
}

/// The object after `manager` applied `config` to `live`, with its managed fields. `created`: there was no object, and `live`
/// says no more than its kind. `blank` is what an object of the kind is before anything is said.
pub(crate) fn apply(
    context: &Context<'_>,
    live: &Value,
    created: bool,
    config: &Value,
    blank: &Value,
    manager: &str,
    force: bool,
) -> Result<Value, ApplyError> {
    let errors = walk::validate(context.of, config);
    if !errors.is_empty() {
        return Err(ApplyError::Config {
            object: describe(config),
            errors,
        });
    }
    let stored = live.pointer("/metadata/managedFields");
    let mut managers = stored
        .map(managers::decode)
        .transpose()?
        .unwrap_or_default();
    let live = bare(live);
    if managers.is_empty() && !created {
        let before = Manager::updater(BEFORE_FIRST_APPLY, context.api_version, context.subresource);
        managers = update::update(context, blank, &live, managers, before)?;
    }
    let plan = Plan {
        context,
        live: &live,
        config,
        managers: &managers,
        applier: Manager::applier(manager, context.subresource),
    };
    let (mut object, managers) = match plan.run(force) {
        Err(ApplyError::Conflicts(conflicts)) if manager == KUBECTL => {
            let Some(own) = applied_by_client(context, &live) else {
                return Err(ApplyError::Conflicts(conflicts));
            };
            let left: Vec<Conflict> = conflicts
                .into_iter()
                .filter(|conflict| !own.contains(&conflict.path))
                .collect();
            if !left.is_empty() {
                return Err(ApplyError::Conflicts(left));
            }
            plan.run(true)?
        }
        other => other?,
    };
    if manager == KUBECTL {
        renew_last_applied(&mut object, config);
    }
    let entries = managers::encode(&managers);
    if let (Some(entries), Some(metadata)) = (
        entries,
        object.get_mut("metadata").and_then(Value::as_object_mut),
    ) {
        metadata.insert("managedFields".into(), entries);
    }
    Ok(object)
}

/// `namespace/name; group/version, Kind=kind`.
fn describe(config: &Value) -> String {
    let text = |path: &str| {
        config
            .pointer(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (group, version) = text("/apiVersion")
        .rsplit_once('/')
        .unwrap_or(("", text("/apiVersion")));
    format!(
        "{}/{}; {group}/{version}, Kind={}",
        text("/metadata/namespace"),
        text("/metadata/name"),
        text("/kind")
    )
}

/// One application, before it is known whether it may take what others own.
struct Plan<'a, 'c> {
    context: &'a Context<'c>,
    live: &'a Value,
    config: &'a Value,
    managers: &'a Managers,
    applier: Manager,
}

impl Plan<'_, '_> {
    fn run(&self, force: bool) -> Result<(Value, Managers), ApplyError> {
        let context = self.context;
        let merged = merge::merge(context.of, self.live, self.config)?;
        let set = walk::fields_of(context.of, self.config)?.without(&context.reset);
        let mut managers = self.reconciled();
        let last = managers.insert(
            self.applier.clone(),
            Managed {
                set,
                api_version: context.api_version.to_owned(),
                time: self
                    .managers
                    .get(&self.applier)
                    .and_then(|m| m.time.clone()),
            },
        );
        let object = match last {
            Some(last) => self.prune(merged, &managers, &last)?,
            None => merged,
        };
        if !force {
            self.check(&object, &managers)?;
        }
        update::take_away(
            context,
            self.live,
            &object,
            &mut managers,
            Some(&self.applier),
        )?;
        if let Some(own) = managers.get_mut(&self.applier) {
            own.set = own.set.difference(stripped());
            if !same(&object, self.live) {
                own.time = Some(context.now.to_owned());
            }
        }
        managers.retain(|_, managed| !managed.set.is_empty());
        Ok((object, managers))
    }

    /// The managers as the schema of today has them.
    fn reconciled(&self) -> Managers {
        let mut managers = self.managers.clone();
        for managed in managers.values_mut() {
            if let Version::Known(of) = self.context.version(&managed.api_version) {
                managed.set = merge::reconcile(of, &managed.set);
            }
        }
        managers
    }

    /// Refuses what others own and the object would change.
    fn check(&self, object: &Value, managers: &Managers) -> Result<(), ApplyError> {
        let changes =
            compare::compare(self.context.of, self.live, object)?.without(&self.context.reset);
        let mut conflicts = Vec::new();
        for (manager, managed) in managers {
            if *manager == self.applier {
                continue;
            }
            let of_other;
            let changes = match update::version_changes(self.context, managed, self.live, object)? {
                Lost::Same => &changes,
                Lost::Other(other) => {
                    of_other = other;
                    &of_other
                }
                Lost::Nothing | Lost::All => continue,
            };
            let contested = managed
                .set
                .intersection(&changes.modified.union(&changes.added));
            contested.each(&mut |path| {
                conflicts.push(Conflict {
                    manager: manager.clone(),
                    path: path.to_vec(),
                });
            });
        }
        if conflicts.is_empty() {
            Ok(())
        } else {
            Err(ApplyError::Conflicts(conflicts))
        }
    }

    /// Removes what the applier applied last and does not apply now, unless somebody owns it.
    fn prune(&self, merged: Value, managers: &Managers, last: &Managed) -> Result<Value, Mismatch> {
        let Version::Known(of) = self.context.version(&last.api_version) else {
            return Ok(merged);
        };
        if last.set.is_empty() {
            return Ok(merged);
        }
        let last_named = merge::with_named(of, &last.set);
        let mut pruned =
            merge::remove(of, &merged, &last_named, Emptied::Null).unwrap_or_else(|| json!({}));
        // What is owned comes back: first in the version that was applied last, then in the others.
        let mut owned: BTreeMap<&str, Set> = BTreeMap::new();
        for managed in managers.values() {
            let of_version = owned.entry(&managed.api_version).or_default();
            *of_version = of_version.union(&managed.set);
        }
        let first = owned.remove_entry(last.api_version.as_str());
        for (version, owned) in first.into_iter().chain(owned) {
            if let Version::Known(of) = self.context.version(version) {
                pruned = keep_owned(of, &merged, &pruned, &owned)?;
            }
        }
        // So does what the applier never owned: items that others put into its lists.
        let gone = fields_named(of, &merged)?
            .difference(&fields_named(of, &pruned)?)
            .intersection(&last_named);
        Ok(merge::remove(of, &merged, &gone, Emptied::Gone).unwrap_or_else(|| json!({})))
    }
}

fn fields_named(of: Type<'_>, value: &Value) -> Result<Set, Mismatch> {
    Ok(merge::with_named(of, &walk::fields_of(of, value)?))
}

/// The merged object without what pruning took, except what is owned.
fn keep_owned(
    of: Type<'_>,
    merged: &Value,
    pruned: &Value,
    owned: &Set,
) -> Result<Value, Mismatch> {
    let stays = fields_named(of, pruned)?.union(&merge::with_named(of, owned));
    let gone = fields_named(of, merged)?.difference(&stays);
    Ok(merge::remove(of, merged, &gone, Emptied::Null).unwrap_or_else(|| json!({})))
}

/// The fields that a client-side apply of kubectl set, by its annotation, and that are still so.
fn applied_by_client(context: &Context<'_>, live: &Value) -> Option<Set> {
    let text = live
        .get("metadata")?
        .get("annotations")?
        .get(LAST_APPLIED)?
        .as_str()?;
    let applied: Value = serde_json::from_str(text).ok()?;
    if applied.get("apiVersion")?.as_str()? != context.api_version {
        return None;
    }
    let set = walk::fields_of(context.of, &applied).ok()?;
    let changes = compare::compare(context.of, &applied, live).ok()?;
    Some(
        set.difference(&changes.modified)
            .difference(&changes.added)
            .difference(&changes.removed),
    )
}

/// Keeps the annotation of client-side apply up to date where there is one.
fn renew_last_applied(object: &mut Value, config: &Value) {
    let Some(annotation) = object
        .get_mut("metadata")
        .and_then(|metadata| metadata.get_mut("annotations"))
        .and_then(|annotations| annotations.get_mut(LAST_APPLIED))
        .filter(|annotation| annotation.as_str().is_some_and(|text| !text.is_empty()))
    else {
        return;
    };
    let mut config = config.clone();
    if let Some(annotations) = config
        .get_mut("metadata")
        .and_then(|metadata| metadata.get_mut("annotations"))
        .and_then(Value::as_object_mut)
    {
        annotations.remove(LAST_APPLIED);
    }
    *annotation = json!(format!("{config}\n"));
}
