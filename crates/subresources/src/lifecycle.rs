//! Verbs that change what a machine does and not its object: `PUT …/virtualmachines/{name}/start`, `stop`, `restart`, and
//! `PUT …/virtualmachineinstances/{name}/pause`, `unpause`.
//!
//! | run strategy | start | stop | restart |
//! |---|---|---|---|
//! | Always | 409 | becomes Halted | stop and start are asked for |
//! | Halted | becomes Always | 409 | 409 |
//! | Manual | start is asked for | stop is asked for | both are |
//! | RerunOnFailure, Once | start is asked for | becomes Halted | both are |
//!
//! Who says `running` gets it changed in place of `runStrategy`. Starts and stops are answered with `202` when they are
//! written down, and happen after; pauses with `200` when they have happened.

use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use berth_api::conditions::is_true;
use berth_api::kubevirt::v1::{
    RunStrategy, StateChange, StateChangeRequest, VirtualMachine, VirtualMachineInstance, VmiPhase,
};
use berth_api::labels;
use bytes::Bytes;
use http::StatusCode;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

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
    hold(&shared, &of, &body, Order::Pause).await
}

pub(crate) async fn unpause(shared: State<Shared>, of: Of, body: Bytes) -> Response {
    hold(&shared, &of, &body, Order::Unpause).await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Start,
    Stop,
    Restart,
}

/// What a verb comes to.
#[derive(Debug, PartialEq)]
enum Change {
    /// This patch of the machine.
    Spec(Value),
    /// These requests in its status.
    Requests(Vec<StateChangeRequest>),
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

/// The options of a verb. What is not honoured is refused, never ignored.
fn options(body: &[u8]) -> Result<(), Refused> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(());
    }
    let options: Value = serde_json::from_slice(body)
        .map_err(|error| Refused::Body(format!("the body is no JSON: {error}")))?;
    let given = options
        .as_object()
        .ok_or_else(|| Refused::Body("the body is no object".to_owned()))?;
    let of_type = ["kind", "apiVersion"];
    for (field, value) in given {
        let says_nothing = value.is_null() || value == false || *value == json!([]);
        if !of_type.contains(&field.as_str()) && !says_nothing {
            return Err(Refused::Body(format!(
                "{field}: {value} is not supported by berth"
            )));
        }
    }
    Ok(())
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
    options(body)?;
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
        let change = plan(&vm, alive.as_ref(), verb).map_err(|why| Refused::Conflict {
            resource: MACHINES,
            name: name.clone(),
            why,
        })?;
        let version = vm.resource_version();
        let written = match change {
            Change::Spec(spec) => {
                let patch = json!({"metadata": {"resourceVersion": version}, "spec": spec});
                machines.patch(name, &params, &Patch::Merge(&patch)).await
            }
            Change::Requests(requests) => {
                let status = json!({"stateChangeRequests": requests});
                let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
                machines
                    .patch_status(name, &params, &Patch::Merge(&patch))
                    .await
            }
        };
        match written {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(answer)) if answer.code == 409 && attempt < ATTEMPTS => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// What a verb comes to for a machine and the instance of it that is not over; or why it comes to nothing.
fn plan(
    vm: &VirtualMachine,
    alive: Option<&VirtualMachineInstance>,
    verb: Verb,
) -> Result<Change, String> {
    let strategy = vm.spec.strategy();
    let to_be = |strategy: RunStrategy| {
        Change::Spec(if vm.spec.running.is_some() {
            json!({"running": strategy == RunStrategy::Always})
        } else {
            json!({"runStrategy": strategy.as_str()})
        })
    };
    let start = || StateChangeRequest {
        action: StateChange::Start,
        uid: None,
    };
    let stop = |vmi: &VirtualMachineInstance| StateChangeRequest {
        action: StateChange::Stop,
        uid: vmi.uid(),
    };
    let no = |what: &str| {
        Err(format!(
            "{} does not support manual {what} requests",
            strategy.as_str()
        ))
    };
    match (verb, strategy, alive) {
        (Verb::Start, RunStrategy::Halted, None) => Ok(to_be(RunStrategy::Always)),
        (Verb::Start, RunStrategy::Always, None) => no("start"),
        (Verb::Start, _, None) => Ok(Change::Requests(vec![start()])),
        (Verb::Start, RunStrategy::Halted, Some(_)) => Ok(to_be(RunStrategy::Always)),
        (Verb::Start, _, Some(_)) => Err("VM is already running".to_owned()),
        (Verb::Stop, RunStrategy::Manual, Some(vmi)) => Ok(Change::Requests(vec![stop(vmi)])),
        (Verb::Stop, RunStrategy::Always | RunStrategy::RerunOnFailure | RunStrategy::Once, _) => {
            Ok(to_be(RunStrategy::Halted))
        }
        (Verb::Stop, _, _) => Err("VM is not running".to_owned()),
        (Verb::Restart, RunStrategy::Halted, _) => no("restart"),
        (Verb::Restart, _, None) => Err("VM is not running".to_owned()),
        (Verb::Restart, _, Some(vmi)) => Ok(Change::Requests(vec![stop(vmi), start()])),
    }
}

async fn hold(shared: &Shared, of: &Of, body: &[u8], order: Order) -> Response {
    match held(shared, of, body, order).await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(refused) => refused.into_response(),
    }
}

async fn held(
    shared: &Shared,
    Path((namespace, name)): &Of,
    body: &[u8],
    order: Order,
) -> Result<(), Refused> {
    options(body)?;
    let vmi: VirtualMachineInstance = found(shared, INSTANCES, namespace, name).await?;
    let conflict = |why: &str| Refused::Conflict {
        resource: INSTANCES,
        name: name.clone(),
        why: why.to_owned(),
    };
    let status = vmi.status.unwrap_or_default();
    if status.phase != Some(VmiPhase::Running) {
        return Err(conflict("VMI is not running"));
    }
    match (order, is_true(&status.conditions, labels::CONDITION_PAUSED)) {
        (Order::Pause, true) => return Err(conflict("VMI is already paused")),
        (Order::Unpause, false) => return Err(conflict("VMI is not paused")),
        _ => {}
    }
    let mut why = "it has no launcher pod".to_owned();
    for (pod, node) in &status.active_pods {
        match shared.guests.order(Launcher { pod, node }, order).await {
            Ok(()) => return Ok(()),
            Err(problem) => why = problem,
        }
    }
    Err(conflict(&why))
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
        let told =
            |spec: Value, alive: bool, verb| match plan(&vm(&spec), alive.then_some(&vmi), verb) {
                Ok(Change::Spec(spec)) => spec.to_string(),
                Ok(Change::Requests(requests)) => serde_json::to_string(&requests).unwrap(),
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
    fn options_are_honoured_or_refused() {
        for body in [
            "",
            " \n",
            "{}",
            r#"{"paused": false, "dryRun": null, "kind": "StartOptions"}"#,
        ] {
            assert!(options(body.as_bytes()).is_ok(), "{body}");
        }
        for (body, told) in [
            (r#"{"gracePeriod": 0}"#, "gracePeriod: 0"),
            (r#"{"dryRun": ["All"]}"#, "dryRun"),
            ("[]", "no object"),
            ("{", "no JSON"),
        ] {
            let refused = options(body.as_bytes()).unwrap_err().to_string();
            assert!(refused.contains(told), "{refused}");
        }
    }
}
