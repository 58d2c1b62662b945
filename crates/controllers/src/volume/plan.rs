//! What is to be done about a claim or a volume. Pure.

use std::sync::Arc;

use berth_api::events::EventType;
use berth_api::quantity::parse_bytes;
use berth_api::storage::{
    BIND_COMPLETED, BLOCK, BOUND_BY_CONTROLLER, CLAIM_PROTECTION, DEFAULT_CLASS, PROVISIONER,
    SELECTED_NODE, VOLUME_PROTECTION, WAIT_FOR_CONSUMER,
};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{NORMAL, WARNING};

/// A step.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// A merge patch of the object itself.
    Spec(Value),
    /// A merge patch of its status.
    Status(Value),
    /// A merge patch of the volume with this name.
    BindVolume(String, Value),
    Event(EventType, &'static str, String),
}

/// The classes that nobody provisions for.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

pub(super) fn plan_claim(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    classes: &[Arc<StorageClass>],
    taken: &[String],
) -> Vec<Action> {
    let spec = claim.spec.clone().unwrap_or_default();
    if !claim.finalizers().iter().any(|f| f == CLAIM_PROTECTION) {
        let mut finalizers = claim.finalizers().to_vec();
        finalizers.push(CLAIM_PROTECTION.to_owned());
        let mut patch = json!({"metadata": {"finalizers": finalizers}});
        // Who names none gets the default one, as soon as there is one.
        if spec.storage_class_name.is_none()
            && let Some(class) = default_class(classes)
        {
            patch["spec"] = json!({"storageClassName": class.name_any()});
        }
        return vec![Action::Spec(patch)];
    }
    if spec.storage_class_name.is_none()
        && spec.volume_name.as_deref().unwrap_or_default().is_empty()
        && let Some(class) = default_class(classes)
    {
        return vec![Action::Spec(
            json!({"spec": {"storageClassName": class.name_any()}}),
        )];
    }
    let phase = claim
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let named = spec.volume_name.clone().filter(|name| !name.is_empty());
    if let Some(name) = named {
        return bound(claim, &name, volumes, phase);
    }
    let ours = |volume: &PersistentVolume| {
        is_for(
            volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()),
            claim,
        )
    };
    let class = spec.storage_class_name.clone().unwrap_or_default();
    let class_object = classes.iter().find(|c| c.name_any() == class);
    let waits = class_object
        .is_some_and(|c| c.volume_binding_mode.as_deref() == Some(WAIT_FOR_CONSUMER))
        && !claim.annotations().contains_key(SELECTED_NODE);
    let chosen = volumes.iter().find(|volume| ours(volume)).or_else(|| {
        let fitting = volumes
            .iter()
            .filter(|volume| !waits && !taken.contains(&volume.name_any()) && fits(volume, claim));
        // The least that is enough.
        fitting.min_by_key(|volume| (capacity(volume), volume.name_any()))
    });
    if let Some(volume) = chosen {
        return give(claim, volume);
    }
    let mut actions = Vec::new();
    if phase != Some("Pending") {
        actions.push(Action::Status(json!({"phase": "Pending"})));
    }
    match class_object {
        _ if waits => actions.push(Action::Event(
            NORMAL,
            WAIT_FOR_CONSUMER,
            "waiting for first consumer to be created before binding".to_owned(),
        )),
        Some(found) if found.provisioner != NO_PROVISIONER => {
            if claim.annotations().get(PROVISIONER) != Some(&found.provisioner) {
                let provisioner = &found.provisioner;
                actions.push(Action::Spec(
                    json!({"metadata": {"annotations": {PROVISIONER: provisioner}}}),
                ));
            }
        }
        None if !class.is_empty() => actions.push(Action::Event(
            WARNING,
            "ProvisioningFailed",
            format!("storageclass.storage.k8s.io {class:?} not found"),
        )),
        _ => actions.push(Action::Event(
            NORMAL,
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set".to_owned(),
        )),
    }
    // Told once, when it begins to wait; a claim that waits is looked at with every change of any other.
    if phase == Some("Pending") {
        actions.retain(|action| !matches!(action, Action::Event(..)));
    }
    actions
}

fn default_class(classes: &[Arc<StorageClass>]) -> Option<&Arc<StorageClass>> {
    let defaults = classes.iter().filter(|c| {
        c.annotations()
            .get(DEFAULT_CLASS)
            .is_some_and(|v| v == "true")
    });
    // Of several the newest, as Kubernetes has it.
    defaults.max_by_key(|c| c.creation_timestamp().map(|t| t.0))
}

/// Whether a reference means this claim.
fn is_for(reference: Option<&ObjectReference>, claim: &PersistentVolumeClaim) -> bool {
    reference.is_some_and(|reference| {
        reference.name.as_deref() == claim.metadata.name.as_deref()
            && reference.namespace.as_deref() == claim.metadata.namespace.as_deref()
            && reference
                .uid
                .as_ref()
                .is_none_or(|uid| Some(uid) == claim.metadata.uid.as_ref())
    })
}

fn capacity(volume: &PersistentVolume) -> u64 {
    let capacity = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.capacity.as_ref()?.get("storage").cloned());
    capacity
        .and_then(|quantity| parse_bytes(&quantity).ok())
        .unwrap_or(0)
}

/// Bytes that a claim asks for.
pub(super) fn asked(claim: &PersistentVolumeClaim) -> u64 {
    let requests = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let storage = requests.and_then(|requests| requests.get("storage"));
    storage
        .and_then(|quantity| parse_bytes(quantity).ok())
        .unwrap_or(0)
}

/// Whether a volume that nobody has would do.
fn fits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(have), Some(want)) = (&volume.spec, &claim.spec) else {
        return false;
    };
    if volume.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let free = match &have.claim_ref {
        None => true,
        Some(reference) => is_for(Some(reference), claim),
    };
    let mode = |mode: &Option<String>| mode.as_deref() == Some(BLOCK);
    let modes = want.access_modes.iter().flatten();
    let labels = want.selector.as_ref().is_none_or(|selector| {
        let exact = selector.match_labels.iter().flatten();
        selector
            .match_expressions
            .as_ref()
            .is_none_or(Vec::is_empty)
            && exact
                .into_iter()
                .all(|(key, value)| volume.labels().get(key) == Some(value))
    });
    free && labels
        && have.storage_class_name.as_deref().unwrap_or_default()
            == want.storage_class_name.as_deref().unwrap_or_default()
        && mode(&have.volume_mode) == mode(&want.volume_mode)
        && modes
            .into_iter()
            .all(|mode| have.access_modes.iter().flatten().any(|have| have == mode))
        && capacity(volume) >= asked(claim)
}

/// Both sides of the binding, the volume's first: whoever reads it there knows whose it is.
fn give(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Vec<Action> {
    let name = volume.name_any();
    let mut actions = Vec::new();
    let uid_is_known = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.claim_ref.as_ref()?.uid.as_ref())
        .is_some();
    if !uid_is_known {
        let reference = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "namespace": claim.namespace(), "name": claim.name_any(), "uid": claim.uid(),
        });
        let patch = json!({"metadata": {"resourceVersion": volume.resource_version()}, "spec": {"claimRef": reference}});
        actions.push(Action::BindVolume(name.clone(), patch));
    }
    actions.push(Action::Spec(json!({
        "metadata": {"annotations": {BIND_COMPLETED: "yes", BOUND_BY_CONTROLLER: "yes"}},
        "spec": {"volumeName": name},
    })));
    actions
}

/// A claim that names its volume.
fn bound(
    claim: &PersistentVolumeClaim,
    name: &str,
    volumes: &[Arc<PersistentVolume>],
    phase: Option<&str>,
) -> Vec<Action> {
    let Some(volume) = volumes.iter().find(|volume| volume.name_any() == name) else {
        // One that was bound has lost it; one that names it may get it yet.
        let was_bound = claim.annotations().contains_key(BIND_COMPLETED);
        return match (was_bound, phase) {
            (true, Some("Bound")) => vec![
                Action::Event(
                    WARNING,
                    "ClaimLost",
                    "Bound claim has lost its PersistentVolume. Data on the volume is lost!"
                        .to_owned(),
                ),
                Action::Status(json!({"phase": "Lost"})),
            ],
            (false, phase) if phase != Some("Pending") => {
                vec![Action::Status(json!({"phase": "Pending"}))]
            }
            _ => Vec::new(),
        };
    };
    let spec = volume.spec.clone().unwrap_or_default();
    if spec.claim_ref.is_some() && !is_for(spec.claim_ref.as_ref(), claim) {
        return if phase == Some("Pending") {
            Vec::new()
        } else {
            vec![
                Action::Event(
                    WARNING,
                    "FailedBinding",
                    format!("volume {name:?} already bound to a different claim."),
                ),
                Action::Status(json!({"phase": "Pending"})),
            ]
        };
    }
    let complete = claim.annotations().contains_key(BIND_COMPLETED);
    if !complete || spec.claim_ref.is_none() {
        return give(claim, volume);
    }
    if phase == Some("Bound") {
        return Vec::new();
    }
    vec![Action::Status(json!({
        "phase": "Bound",
        "accessModes": spec.access_modes,
        "capacity": spec.capacity,
    }))]
}

pub(super) fn plan_volume(
    volume: &PersistentVolume,
    claims: &[Arc<PersistentVolumeClaim>],
) -> Vec<Action> {
    let spec = volume.spec.clone().unwrap_or_default();
    let phase = volume
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let owner = spec
        .claim_ref
        .as_ref()
        .and_then(|reference| claims.iter().find(|claim| is_for(Some(reference), claim)));
    let protects = volume.finalizers().iter().any(|f| f == VOLUME_PROTECTION);
    if volume.metadata.deletion_timestamp.is_some() {
        // It stays while a claim has it.
        if protects && owner.is_none() {
            let left: Vec<&String> = volume
                .finalizers()
                .iter()
                .filter(|f| *f != VOLUME_PROTECTION)
                .collect();
            return vec![Action::Spec(json!({"metadata": {"finalizers": left}}))];
        }
        return Vec::new();
    }
    if !protects {
        let mut finalizers = volume.finalizers().to_vec();
        finalizers.push(VOLUME_PROTECTION.to_owned());
        return vec![Action::Spec(
            json!({"metadata": {"finalizers": finalizers}}),
        )];
    }
    let was_given = spec
        .claim_ref
        .as_ref()
        .is_some_and(|reference| reference.uid.is_some());
    let wanted = match (was_given, owner) {
        (false, _) => "Available",
        (true, Some(claim))
            if claim.spec.as_ref().and_then(|s| s.volume_name.as_ref())
                == volume.metadata.name.as_ref() =>
        {
            "Bound"
        }
        // Made for a claim, which has not taken it yet.
        (true, Some(_)) => "Available",
        (true, None) => "Released",
    };
    if phase == Some(wanted) || (phase == Some("Failed") && wanted == "Released") {
        return Vec::new();
    }
    vec![Action::Status(json!({"phase": wanted}))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(change: impl FnOnce(&mut Value)) -> PersistentVolumeClaim {
        let mut claim = json!({
            "metadata": {"name": "data", "namespace": "lab", "uid": "c1", "finalizers": [CLAIM_PROTECTION]},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "storageClassName": "fast",
                     "resources": {"requests": {"storage": "1Gi"}}},
        });
        change(&mut claim);
        serde_json::from_value(claim).unwrap()
    }

    fn volume(name: &str, size: &str, change: impl FnOnce(&mut Value)) -> Arc<PersistentVolume> {
        let mut volume = json!({
            "metadata": {"name": name, "resourceVersion": "7", "finalizers": [VOLUME_PROTECTION]},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
                     "volumeMode": "Filesystem", "storageClassName": "fast"},
        });
        change(&mut volume);
        Arc::new(serde_json::from_value(volume).unwrap())
    }

    fn class(change: impl FnOnce(&mut Value)) -> Arc<StorageClass> {
        let mut class = json!({"metadata": {"name": "fast"}, "provisioner": "local.berth.kubevirt.io", "volumeBindingMode": "Immediate"});
        change(&mut class);
        Arc::new(serde_json::from_value(class).unwrap())
    }

    #[test]
    fn a_claim_gets_its_class_and_its_finalizer_first() {
        let fresh = claim(|c| {
            c["metadata"]["finalizers"] = json!([]);
            c["spec"]["storageClassName"] = Value::Null;
        });
        let class = class(|c| c["metadata"]["annotations"] = json!({DEFAULT_CLASS: "true"}));
        let actions = plan_claim(&fresh, &[], &[class], &[]);
        assert_eq!(
            actions,
            [Action::Spec(
                json!({"metadata": {"finalizers": [CLAIM_PROTECTION]}, "spec": {"storageClassName": "fast"}})
            )]
        );
    }

    #[test]
    fn the_smallest_volume_that_fits_is_taken() {
        let volumes = [
            volume("huge", "10Gi", |_| ()),
            volume("small", "512Mi", |_| ()),
            volume("right", "2Gi", |_| ()),
            volume("gone", "1Gi", |v| {
                v["spec"]["claimRef"] = json!({"name": "x", "namespace": "lab", "uid": "u"});
            }),
            volume("raw", "1Gi", |v| v["spec"]["volumeMode"] = json!("Block")),
            volume("other", "1Gi", |v| {
                v["spec"]["storageClassName"] = json!("slow");
            }),
            volume("read", "1Gi", |v| {
                v["spec"]["accessModes"] = json!(["ReadOnlyMany"]);
            }),
        ];
        let chosen =
            |taken: &[String]| match &plan_claim(&claim(|_| ()), &volumes, &[class(|_| ())], taken)
                [0]
            {
                Action::BindVolume(name, patch) => {
                    assert_eq!(patch["spec"]["claimRef"]["uid"], "c1");
                    assert_eq!(patch["metadata"]["resourceVersion"], "7");
                    name.clone()
                }
                other => panic!("{other:?}"),
            };
        assert_eq!(chosen(&[]), "right");
        assert_eq!(chosen(&["right".to_owned()]), "huge");
    }

    #[test]
    fn the_provisioner_is_asked_when_it_is_time() {
        let immediate = plan_claim(&claim(|_| ()), &[], &[class(|_| ())], &[]);
        let asks = |actions: &[Action]| {
            actions.iter().any(|a| matches!(a, Action::Spec(p) if p["metadata"]["annotations"][PROVISIONER] == "local.berth.kubevirt.io"))
        };
        assert!(asks(&immediate), "{immediate:?}");
        let waiting = || class(|c| c["volumeBindingMode"] = json!(WAIT_FOR_CONSUMER));
        let waits = plan_claim(&claim(|_| ()), &[], &[waiting()], &[]);
        assert!(
            !asks(&waits) && matches!(&waits[1], Action::Event(_, WAIT_FOR_CONSUMER, _)),
            "{waits:?}"
        );
        let selected = claim(|c| c["metadata"]["annotations"] = json!({SELECTED_NODE: "n"}));
        assert!(asks(&plan_claim(&selected, &[], &[waiting()], &[])));
        // A class that is not there is told once.
        let told = plan_claim(&claim(|_| ()), &[], &[], &[]);
        assert!(
            matches!(&told[1], Action::Event(_, "ProvisioningFailed", m) if m.contains("\"fast\"")),
            "{told:?}"
        );
        let pending = claim(|c| c["status"] = json!({"phase": "Pending"}));
        assert_eq!(plan_claim(&pending, &[], &[], &[]), []);
    }

    #[test]
    fn a_binding_has_two_sides_and_then_a_status() {
        let made = volume("pvc-c1", "1Gi", |v| {
            v["spec"]["claimRef"] = json!({"name": "data", "namespace": "lab", "uid": "c1"});
        });
        let actions = plan_claim(
            &claim(|_| ()),
            std::slice::from_ref(&made),
            &[class(|_| ())],
            &[],
        );
        assert!(
            matches!(&actions[..], [Action::Spec(p)] if p["spec"]["volumeName"] == "pvc-c1"),
            "{actions:?}"
        );
        let named = claim(|c| {
            c["spec"]["volumeName"] = json!("pvc-c1");
            c["metadata"]["annotations"] = json!({BIND_COMPLETED: "yes"});
        });
        let actions = plan_claim(&named, std::slice::from_ref(&made), &[], &[]);
        assert!(
            matches!(&actions[..], [Action::Status(s)] if s["phase"] == "Bound" && s["capacity"]["storage"] == "1Gi"),
            "{actions:?}"
        );
        assert_eq!(
            plan_volume(&made, &[Arc::new(named.clone())]),
            [Action::Status(json!({"phase": "Bound"}))]
        );
        // The claim is gone.
        assert_eq!(
            plan_volume(&made, &[]),
            [Action::Status(json!({"phase": "Released"}))]
        );
        // The volume is gone.
        let mut lost = named;
        lost.status = serde_json::from_value(json!({"phase": "Bound"})).unwrap();
        let actions = plan_claim(&lost, &[], &[], &[]);
        assert!(
            matches!(&actions[1], Action::Status(s) if s["phase"] == "Lost"),
            "{actions:?}"
        );
    }
}
