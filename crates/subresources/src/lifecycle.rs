//! Verbs that change what a machine does and not its object: `PUT …/virtualmachines/{name}/start`, `stop`, `restart`, and
//! `PUT …/virtualmachineinstances/{name}/pause`, `unpause`, `reset`, `softreboot`, `freeze`, `unfreeze`.
//!
//! | run strategy | start | stop | restart |
//! |---|---|---|---|
//! | Always | 409 | becomes Halted | stop and start are asked for |
//! | Halted | becomes Always | 409 | 409 |
//! | Manual | start is asked for | stop is asked for | both are |
//! | RerunOnFailure, Once | start is asked for | becomes Halted | both are |
//!
//! Options, in the body: `paused` of a start; `gracePeriod` of a stop and `gracePeriodSeconds` of a restart, in place of the
//! seconds that the manifest gives the guest; `unfreezeTimeout` of a freeze, after which the guest writes again by itself (5 minutes
//! without one, `0s` for never). A soft reboot needs ACPI or an agent in the guest, freezing an agent.
//!
//! Who says `running` gets it changed in place of `runStrategy`. Starts and stops are answered with `202` when they are
//! written down, and happen after; pauses with `200` when they have happened.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use berth_api::conditions::is_true;
use berth_api::kubevirt::v1::{
    RunStrategy, StateChangeRequest, VirtualMachine, VirtualMachineInstance, VmiPhase,
};
use berth_api::labels;
use bytes::Bytes;
use http::StatusCode;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::jiff::SignedDuration;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Map, Value, json};
use tracing::debug;

use crate::{INSTANCES, Launcher, MACHINES, Order, Refused, Shared};

/// How often a request is planned anew when somebody else changed the machine.
const ATTEMPTS: usize = 5;

/// Of one machine: its namespace and its name.
type Of = Path<(String, String)>;

pub(crate) async fn start(shared: State<Shared>, of: Of, body: Bytes) -> Response {
    change(&shared, &of, &body, Verb::Start).await
}

pub(crate) async fn stop(shared: State<Shared>, of: Of, body: Bytes) -> Response {
    change(&shared, &of, &body, Verb::Stop).await
}

pub(crate) async fn restart(shared: State<Shared>, of: Of, body: Bytes) -> Response {
    change(&shared, &of, &body, Verb::Restart).await
}

pub(crate) async fn pause(shared: State<Shared>, of: Of, body: Bytes) -> Response {
    have(&shared, &of, &body, Order::Pause).await
}

pub(crate) async fn unpause(shared: State<Shared>, of: Of, body: Bytes) -> Response {
    have(&shared, &of, &body, Order::Unpause).await
}

pub(crate) async fn reset(shared: State<Shared>, of: Of, body: Bytes) -> Response {
    have(&shared, &of, &body, Order::Reset).await
}

pub(crate) async fn soft_reboot(shared: State<Shared>, of: Of, body: Bytes) -> Response {
    have(&shared, &of, &body, Order::SoftReboot).await
}

pub(crate) async fn freeze(shared: State<Shared>, of: Of, body: Bytes) -> Response {
    let order = options(&body, &["unfreezeTimeout"]).and_then(|options| {
        Ok(Order::Freeze {
            thaw_after_seconds: timeout(options.get("unfreezeTimeout"))?,
        })
    });
    match order {
        Ok(order) => have(&shared, &of, b"", order).await,
        Err(refused) => refused.into_response(),
    }
}

pub(crate) async fn unfreeze(shared: State<Shared>, of: Of, body: Bytes) -> Response {
    have(&shared, &of, &body, Order::Unfreeze).await
}

/// The machine with everything in its spec that it names from elsewhere, which is nothing so far.
pub(crate) async fn expand(shared: State<Shared>, Path((namespace, name)): Of) -> Response {
    match found::<VirtualMachine>(&shared, MACHINES, &namespace, &name).await {
        Ok(vm) => Json(vm).into_response(),
        Err(refused) => refused.into_response(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Start,
    Stop,
    Restart,
}

/// What a verb comes to. Requests are written first, so that who acts on the spec finds them.
#[derive(Debug, Default, PartialEq)]
struct Change {
    /// These requests in the status of the machine.
    requests: Option<Vec<StateChangeRequest>>,
    /// This patch of its spec.
    spec: Option<Value>,
}

/// An object by its name, or the refusal that it is not there.
pub(crate) async fn found<K>(
    shared: &Shared,
    resource: &'static str,
    namespace: &str,
    name: &str,
) -> Result<K, Refused>
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(shared.client.clone(), namespace);
    let found = api.get_opt(name).await;
    let found = found.map_err(|source| Refused::Api {
        resource,
        name: name.to_owned(),
        source: Box::new(source),
    })?;
    found.ok_or_else(|| Refused::NotFound {
        resource,
        name: name.to_owned(),
    })
}

/// The options of a verb that say something. What is not honoured is refused, never ignored.
fn options(body: &[u8], honoured: &[&str]) -> Result<Map<String, Value>, Refused> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    let options: Value = serde_json::from_slice(body)
        .map_err(|error| Refused::Body(format!("the body is no JSON: {error}")))?;
    let Value::Object(mut given) = options else {
        return Err(Refused::Body("the body is no object".to_owned()));
    };
    let of_type = ["kind", "apiVersion"];
    given.retain(|field, value| {
        let says_nothing = value.is_null() || *value == false || *value == json!([]);
        !of_type.contains(&field.as_str()) && !says_nothing
    });
    for (field, value) in &given {
        if !honoured.contains(&field.as_str()) {
            return Err(Refused::Body(format!(
                "{field}: {value} is not supported by berth"
            )));
        }
    }
    Ok(given)
}

/// Whether nothing is to be done but to say whether it could be.
fn dry_run(options: &Map<String, Value>) -> Result<bool, Refused> {
    match options.get("dryRun") {
        None => Ok(false),
        Some(stages) if *stages == json!(["All"]) => Ok(true),
        Some(other) => Err(Refused::Body(format!("dryRun: {other} is not [\"All\"]"))),
    }
}

/// Seconds of an option, not below 0.
fn seconds(field: &str, value: Option<&Value>) -> Result<Option<u64>, Refused> {
    let Some(value) = value else { return Ok(None) };
    value.as_u64().map(Some).ok_or_else(|| {
        Refused::Body(format!(
            "{field}: {value} is no number of seconds from 0 on"
        ))
    })
}

/// How long file systems stay frozen.
fn timeout(value: Option<&Value>) -> Result<u64, Refused> {
    const DEFAULT: u64 = 300;
    let Some(value) = value else {
        return Ok(DEFAULT);
    };
    let duration = value
        .as_str()
        .and_then(|text| text.parse::<SignedDuration>().ok());
    duration
        .and_then(|duration| u64::try_from(duration.as_secs()).ok())
        .ok_or_else(|| {
            Refused::Body(format!(
                "unfreezeTimeout: {value} is no duration such as \"5m\""
            ))
        })
}

async fn change(shared: &Shared, of: &Of, body: &[u8], verb: Verb) -> Response {
    match changed(shared, of, body, verb).await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(refused) => refused.into_response(),
    }
}

async fn changed(
    shared: &Shared,
    Path((namespace, name)): &Of,
    body: &[u8],
    verb: Verb,
) -> Result<(), Refused> {
    let options = match verb {
        Verb::Start => options(body, &["dryRun", "paused"])?,
        Verb::Stop => options(body, &["dryRun", "gracePeriod"])?,
        Verb::Restart => options(body, &["dryRun", "gracePeriodSeconds"])?,
    };
    let dry = dry_run(&options)?;
    let paused = match options.get("paused") {
        None => false,
        Some(Value::Bool(paused)) => *paused,
        Some(value) => {
            return Err(Refused::Body(format!(
                "paused: {value} is neither true nor false"
            )));
        }
    };
    let grace = match verb {
        Verb::Start => None,
        Verb::Stop => seconds("gracePeriod", options.get("gracePeriod"))?,
        Verb::Restart => seconds("gracePeriodSeconds", options.get("gracePeriodSeconds"))?,
    };
    let machines: Api<VirtualMachine> = Api::namespaced(shared.client.clone(), namespace);
    let instances: Api<VirtualMachineInstance> = Api::namespaced(shared.client.clone(), namespace);
    let params = PatchParams {
        field_manager: Some("berth-api".to_owned()),
        ..PatchParams::default()
    };
    let failed = |source| Refused::Api {
        resource: MACHINES,
        name: name.clone(),
        source: Box::new(source),
    };
    let mut attempt = 0;
    loop {
        attempt += 1;
        let vm: VirtualMachine = found(shared, MACHINES, namespace, name).await?;
        let vmi = instances.get_opt(name).await.map_err(failed)?;
        let alive = vmi.filter(|vmi| {
            let phase = vmi.status.as_ref().and_then(|s| s.phase);
            let uid = vm.uid();
            let own = |o: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
                Some(&o.uid) == uid.as_ref()
            };
            vmi.owner_references().iter().any(own) && !phase.is_some_and(VmiPhase::is_final)
        });
        let change = plan(&vm, alive.as_ref(), verb, paused).map_err(|why| Refused::Conflict {
            resource: MACHINES,
            name: name.clone(),
            why,
        })?;
        if dry {
            return Ok(());
        }
        let version = vm.resource_version();
        let mut written = Ok(vm);
        if let Some(requests) = change.requests {
            let status = json!({"stateChangeRequests": requests});
            let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
            written = machines
                .patch_status(name, &params, &Patch::Merge(&patch))
                .await;
        }
        if let (Ok(vm), Some(spec)) = (&written, change.spec) {
            let version = vm.resource_version();
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": spec});
            written = machines.patch(name, &params, &Patch::Merge(&patch)).await;
        }
        match written {
            Ok(_) => {
                if let (Some(grace_seconds), Some(vmi)) = (grace, &alive) {
                    hurry(shared, vmi, grace_seconds).await;
                }
                return Ok(());
            }
            Err(kube::Error::Api(answer)) if answer.code == 409 && attempt < ATTEMPTS => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Gives a guest that is to end no more time than this. That it ends is written down, so this may fail.
async fn hurry(shared: &Shared, vmi: &VirtualMachineInstance, grace_seconds: u64) {
    let order = Order::Shutdown { grace_seconds };
    for (pod, node) in vmi.status.iter().flat_map(|status| &status.active_pods) {
        if let Err(why) = shared.guests.order(Launcher { pod, node }, &order).await {
            debug!(vmi = vmi.name_any(), why, "a guest is not hurried");
        }
    }
}

/// What a verb comes to for a machine and the instance of it that is not over; or why it comes to nothing.
fn plan(
    vm: &VirtualMachine,
    alive: Option<&VirtualMachineInstance>,
    verb: Verb,
    paused: bool,
) -> Result<Change, String> {
    let strategy = vm.spec.strategy();
    let to_be = |strategy: RunStrategy| Change {
        spec: Some(if vm.spec.running.is_some() {
            json!({"running": strategy == RunStrategy::Always})
        } else {
            json!({"runStrategy": strategy.as_str()})
        }),
        ..Change::default()
    };
    let asked = |requests: Vec<StateChangeRequest>| Change {
        requests: Some(requests),
        ..Change::default()
    };
    let start = || StateChangeRequest::start(paused);
    let stop = |vmi: &VirtualMachineInstance| StateChangeRequest::stop(vmi.uid());
    let no = |what: &str| {
        Err(format!(
            "{} does not support manual {what} requests",
            strategy.as_str()
        ))
    };
    match (verb, strategy, alive) {
        (Verb::Start, RunStrategy::Halted, _) => Ok(Change {
            requests: paused.then(|| vec![start()]),
            ..to_be(RunStrategy::Always)
        }),
        (Verb::Start, RunStrategy::Always, None) => no("start"),
        (Verb::Start, _, None) => Ok(asked(vec![start()])),
        (Verb::Start, _, Some(_)) => Err("VM is already running".to_owned()),
        (Verb::Stop, RunStrategy::Manual, Some(vmi)) => Ok(asked(vec![stop(vmi)])),
        (Verb::Stop, RunStrategy::Always | RunStrategy::RerunOnFailure | RunStrategy::Once, _) => {
            Ok(to_be(RunStrategy::Halted))
        }
        (Verb::Stop, _, _) => Err("VM is not running".to_owned()),
        (Verb::Restart, RunStrategy::Halted, _) => no("restart"),
        (Verb::Restart, _, None) => Err("VM is not running".to_owned()),
        (Verb::Restart, _, Some(vmi)) => Ok(asked(vec![stop(vmi), start()])),
    }
}

/// Has an order carried out that has no options but one.
async fn have(shared: &Shared, of: &Of, body: &[u8], order: Order) -> Response {
    let dry = options(body, &["dryRun"]).and_then(|options| dry_run(&options));
    let done = match dry {
        Ok(false) => ordered(shared, of, order).await.map(drop),
        Ok(true) => fit(shared, of, &order).await.map(drop),
        Err(refused) => Err(refused),
    };
    match done {
        Ok(()) => StatusCode::OK.into_response(),
        Err(refused) => refused.into_response(),
    }
}

/// Has the guest of a machine do or tell something, if it is one that can.
pub(crate) async fn ordered(shared: &Shared, of: &Of, order: Order) -> Result<Value, Refused> {
    let vmi = fit(shared, of, &order).await?;
    let mut why = "it has no launcher pod".to_owned();
    for (pod, node) in vmi.status.iter().flat_map(|status| &status.active_pods) {
        match shared.guests.order(Launcher { pod, node }, &order).await {
            Ok(answer) => return Ok(answer),
            Err(problem) => why = problem,
        }
    }
    Err(conflict(&vmi.name_any(), &why))
}

fn conflict(name: &str, why: &str) -> Refused {
    Refused::Conflict {
        resource: INSTANCES,
        name: name.to_owned(),
        why: why.to_owned(),
    }
}

/// The machine, if its guest is one for this order.
async fn fit(
    shared: &Shared,
    Path((namespace, name)): &Of,
    order: &Order,
) -> Result<VirtualMachineInstance, Refused> {
    let vmi: VirtualMachineInstance = found(shared, INSTANCES, namespace, name).await?;
    let devices = &vmi.spec.domain.devices;
    if *order == Order::Screenshot && devices.autoattach_graphics_device == Some(false) {
        return Err(Refused::NoDisplay);
    }
    if vmi.status.as_ref().and_then(|status| status.phase) != Some(VmiPhase::Running) {
        return Err(conflict(name, "VMI is not running"));
    }
    match unfit(&vmi, order) {
        Some(why) => Err(conflict(name, why)),
        None => Ok(vmi),
    }
}

/// Why a guest that runs is not one for this order.
fn unfit(vmi: &VirtualMachineInstance, order: &Order) -> Option<&'static str> {
    let conditions = vmi.status.as_ref().map_or(&[][..], |s| &s.conditions);
    let paused = is_true(conditions, labels::CONDITION_PAUSED);
    let agent = is_true(conditions, labels::CONDITION_AGENT_CONNECTED);
    let features = vmi.spec.domain.features.as_ref();
    let acpi = features.and_then(|features| features.acpi.as_ref());
    let acpi = acpi.is_none_or(|acpi| acpi.enabled != Some(false));
    match order {
        Order::Pause if paused => Some("VMI is already paused"),
        Order::Unpause if !paused => Some("VMI is not paused"),
        Order::SoftReboot | Order::Freeze { .. } if paused => Some("VMI is paused"),
        Order::SoftReboot if !agent && !acpi => {
            Some("VMI neither have the agent connected nor the ACPI feature enabled")
        }
        Order::Freeze { .. }
        | Order::Unfreeze
        | Order::GuestInfo
        | Order::Users
        | Order::FileSystems
            if !agent =>
        {
            Some("VMI does not have guest agent connected")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(spec: &Value) -> VirtualMachine {
        let mut spec = spec.clone();
        spec["template"] = json!({"spec": {"domain": {"devices": {}}}});
        serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            "metadata": {"name": "vm", "uid": "m1"}, "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn what_each_verb_comes_to() {
        let vmi: VirtualMachineInstance = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm", "uid": "i1"}, "spec": {"domain": {"devices": {}}},
        }))
        .unwrap();
        let told = |spec: Value, alive: bool, verb| match plan(
            &vm(&spec),
            alive.then_some(&vmi),
            verb,
            false,
        ) {
            Ok(Change {
                spec: Some(spec),
                requests: None,
            }) => spec.to_string(),
            Ok(change) => serde_json::to_string(&change.requests.unwrap()).unwrap(),
            Err(why) => why,
        };
        let (start, stop) = (
            r#"[{"action":"Start"}]"#,
            r#"[{"action":"Stop","uid":"i1"}]"#,
        );
        let both = r#"[{"action":"Stop","uid":"i1"},{"action":"Start"}]"#;
        let (always, halted) = (r#"{"runStrategy":"Always"}"#, r#"{"runStrategy":"Halted"}"#);
        let (down, up) = ("VM is not running", "VM is already running");
        // Start without and with an instance, stop with one, restart with one.
        for (strategy, expected) in [
            (
                "Always",
                [
                    "Always does not support manual start requests",
                    up,
                    halted,
                    both,
                ],
            ),
            (
                "Halted",
                [
                    always,
                    always,
                    down,
                    "Halted does not support manual restart requests",
                ],
            ),
            ("Manual", [start, up, stop, both]),
            ("RerunOnFailure", [start, up, halted, both]),
            ("Once", [start, up, halted, both]),
        ] {
            let spec = json!({"runStrategy": strategy});
            let answers = [
                (false, Verb::Start),
                (true, Verb::Start),
                (true, Verb::Stop),
                (true, Verb::Restart),
            ]
            .map(|(alive, verb)| told(spec.clone(), alive, verb));
            assert_eq!(answers, expected, "{strategy}");
        }
        assert_eq!(
            told(json!({"runStrategy": "Manual"}), false, Verb::Stop),
            down
        );
        assert_eq!(
            told(json!({"running": false}), false, Verb::Start),
            r#"{"running":true}"#
        );
        assert_eq!(
            told(json!({"running": true}), true, Verb::Stop),
            r#"{"running":false}"#
        );
    }

    #[test]
    fn a_start_may_leave_the_guest_paused() {
        let request = r#"[{"action":"Start","data":{"paused":"true"}}]"#;
        for (spec, changes_spec) in [
            (json!({"runStrategy": "Halted"}), true),
            (json!({"running": false}), true),
            (json!({"runStrategy": "Manual"}), false),
        ] {
            let change = plan(&vm(&spec), None, Verb::Start, true).unwrap();
            assert_eq!(change.spec.is_some(), changes_spec, "{spec}");
            assert_eq!(
                serde_json::to_string(&change.requests.unwrap()).unwrap(),
                request
            );
        }
    }

    #[test]
    fn what_a_guest_is_fit_for() {
        let vmi = |condition: &str, acpi: bool| -> VirtualMachineInstance {
            serde_json::from_value(json!({
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
                "metadata": {"name": "vm"},
                "spec": {"domain": {"devices": {}, "features": {"acpi": {"enabled": acpi}}}},
                "status": {"conditions": [{"type": condition, "status": "True"}]},
            }))
            .unwrap()
        };
        let freeze = || Order::Freeze {
            thaw_after_seconds: 1,
        };
        for (condition, acpi, order, why) in [
            ("Paused", true, Order::Pause, "already paused"),
            ("Paused", true, freeze(), "is paused"),
            ("Paused", true, Order::SoftReboot, "is paused"),
            ("Paused", true, Order::Reset, ""),
            ("Ready", true, Order::Unpause, "is not paused"),
            ("Ready", true, Order::SoftReboot, ""),
            ("Ready", false, Order::SoftReboot, "nor the ACPI"),
            ("AgentConnected", false, Order::SoftReboot, ""),
            ("Ready", true, freeze(), "guest agent"),
            ("Ready", true, Order::Users, "guest agent"),
            ("AgentConnected", true, Order::Users, ""),
            ("Ready", true, Order::Screenshot, ""),
        ] {
            let told = unfit(&vmi(condition, acpi), &order).unwrap_or_default();
            assert_eq!(told.is_empty(), why.is_empty(), "{order:?}: {told}");
            assert!(told.contains(why), "{order:?}: {told}");
        }
    }

    #[test]
    fn a_freeze_ends_by_itself() {
        for (given, seconds) in [
            (None, Some(300)),
            (Some(json!("5m0s")), Some(300)),
            (Some(json!("90s")), Some(90)),
            (Some(json!("0s")), Some(0)),
            (Some(json!("soon")), None),
            (Some(json!("-1s")), None),
            (Some(json!(5)), None),
        ] {
            let read = timeout(given.as_ref());
            assert_eq!(read.ok(), seconds, "{given:?}");
        }
    }

    #[test]
    fn options_are_honoured_or_refused() {
        for body in [
            "",
            " \n",
            "{}",
            r#"{"paused": false, "dryRun": null, "kind": "StartOptions"}"#,
        ] {
            assert!(options(body.as_bytes(), &[]).is_ok(), "{body}");
        }
        for (body, told) in [
            (r#"{"gracePeriod": 0}"#, "gracePeriod: 0"),
            (r#"{"dryRun": ["Some"]}"#, "dryRun"),
            ("[]", "no object"),
            ("{", "no JSON"),
        ] {
            let refused = options(body.as_bytes(), &["paused"])
                .unwrap_err()
                .to_string();
            assert!(refused.contains(told), "{refused}");
        }
        let given = options(br#"{"gracePeriod": 0}"#, &["gracePeriod"]).unwrap();
        assert_eq!(
            seconds("gracePeriod", given.get("gracePeriod")).unwrap(),
            Some(0)
        );
        assert!(seconds("gracePeriod", Some(&json!(-1))).is_err());
    }
}
