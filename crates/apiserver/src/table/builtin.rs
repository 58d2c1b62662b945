//! Columns and cells of the built-in kinds, as upstream's printers have them.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::age::{age, human};

/// Header, OpenAPI type, priority. The header `Name` gets the format `name`.
pub(super) type Header = (&'static str, &'static str, i32);

/// How to print one kind.
pub(super) struct Printer {
    pub(super) headers: &'static [Header],
    pub(super) cells: fn(&Value, Timestamp) -> Vec<Value>,
}

pub(super) const NAME: Header = ("Name", "string", 0);
pub(super) const AGE: Header = ("Age", "string", 0);

/// The printer of a kind; kinds without one of their own show name and age.
pub(super) fn printer(group: &str, kind: &str) -> Printer {
    match (group, kind) {
        ("", "Pod") => Printer {
            headers: &[
                NAME,
                ("Ready", "string", 0),
                ("Status", "string", 0),
                ("Restarts", "string", 0),
                AGE,
                ("IP", "string", 1),
                ("Node", "string", 1),
                ("Nominated Node", "string", 1),
                ("Readiness Gates", "string", 1),
            ],
            cells: pod,
        },
        ("", "Node") => Printer {
            headers: &[
                NAME,
                ("Status", "string", 0),
                ("Roles", "string", 0),
                AGE,
                ("Version", "string", 0),
                ("Internal-IP", "string", 1),
                ("External-IP", "string", 1),
                ("OS-Image", "string", 1),
                ("Kernel-Version", "string", 1),
                ("Container-Runtime", "string", 1),
            ],
            cells: node,
        },
        ("", "Namespace") => Printer {
            headers: &[NAME, ("Status", "string", 0), AGE],
            cells: |o, now| vec![name(o), text(o, "/status/phase").into(), created(o, now)],
        },
        ("" | "events.k8s.io", "Event") => Printer {
            headers: &[
                ("Last Seen", "string", 0),
                ("Type", "string", 0),
                ("Reason", "string", 0),
                ("Object", "string", 0),
                ("Subobject", "string", 1),
                ("Source", "string", 1),
                ("Message", "string", 0),
                ("First Seen", "string", 1),
                ("Count", "string", 1),
                ("Name", "string", 1),
            ],
            cells: event,
        },
        ("", "ConfigMap") => Printer {
            headers: &[NAME, ("Data", "string", 0), AGE],
            cells: |o, now| {
                vec![
                    name(o),
                    json!(size(o, "/data") + size(o, "/binaryData")),
                    created(o, now),
                ]
            },
        },
        ("", "ResourceQuota") => Printer {
            headers: &[NAME, ("Request", "string", 0), ("Limit", "string", 0), AGE],
            cells: |o, now| vec![name(o), quota(o, false), quota(o, true), created(o, now)],
        },
        ("", "Secret") => Printer {
            headers: &[NAME, ("Type", "string", 0), ("Data", "string", 0), AGE],
            cells: |o, now| {
                vec![
                    name(o),
                    text(o, "/type").into(),
                    json!(size(o, "/data")),
                    created(o, now),
                ]
            },
        },
        ("", "ServiceAccount") => Printer {
            headers: &[NAME, ("Secrets", "string", 0), AGE],
            cells: |o, now| vec![name(o), json!(size(o, "/secrets")), created(o, now)],
        },
        ("", "PersistentVolume") => Printer {
            headers: &[
                NAME,
                ("Capacity", "string", 0),
                ("Access Modes", "string", 0),
                ("Reclaim Policy", "string", 0),
                ("Status", "string", 0),
                ("Claim", "string", 0),
                ("StorageClass", "string", 0),
                ("VolumeAttributesClass", "string", 0),
                ("Reason", "string", 0),
                AGE,
                ("VolumeMode", "string", 1),
            ],
            cells: volume,
        },
        ("", "PersistentVolumeClaim") => Printer {
            headers: &[
                NAME,
                ("Status", "string", 0),
                ("Volume", "string", 0),
                ("Capacity", "string", 0),
                ("Access Modes", "string", 0),
                ("StorageClass", "string", 0),
                ("VolumeAttributesClass", "string", 0),
                AGE,
                ("VolumeMode", "string", 1),
            ],
            cells: claim,
        },
        ("apps", "ControllerRevision") => Printer {
            headers: &[
                NAME,
                ("Controller", "string", 0),
                ("Revision", "string", 0),
                AGE,
            ],
            cells: |o, now| {
                let owners = o["metadata"]["ownerReferences"].as_array();
                let mut owners = owners.into_iter().flatten();
                let owner = owners
                    .find(|owner| owner["controller"] == true)
                    .map(|owner| {
                        let (_, group) = text(owner, "/apiVersion")
                            .rsplit_once('/')
                            .map_or(("", ""), |(group, version)| (version, group));
                        let kind = text(owner, "/kind").to_lowercase();
                        let dot = if group.is_empty() { "" } else { "." };
                        format!("{kind}{dot}{group}/{}", text(owner, "/name"))
                    });
                vec![
                    name(o),
                    owner.unwrap_or_else(|| "<none>".to_owned()).into(),
                    o["revision"]
                        .as_i64()
                        .unwrap_or_default()
                        .to_string()
                        .into(),
                    created(o, now),
                ]
            },
        },
        ("coordination.k8s.io", "Lease") => Printer {
            headers: &[NAME, ("Holder", "string", 0), AGE],
            cells: |o, now| {
                vec![
                    name(o),
                    text(o, "/spec/holderIdentity").into(),
                    created(o, now),
                ]
            },
        },
        ("storage.k8s.io", "StorageClass") => Printer {
            headers: &[
                NAME,
                ("Provisioner", "string", 0),
                ("ReclaimPolicy", "string", 0),
                ("VolumeBindingMode", "string", 0),
                ("AllowVolumeExpansion", "string", 0),
                AGE,
            ],
            cells: storage_class,
        },
        ("apiextensions.k8s.io", "CustomResourceDefinition") => Printer {
            headers: &[NAME, ("Created At", "date", 0)],
            cells: |o, _| vec![name(o), text(o, "/metadata/creationTimestamp").into()],
        },
        (crate::auth::rbac::GROUP, kind) => super::access::printer(kind),
        _ => Printer {
            headers: &[NAME, AGE],
            cells: |o, now| vec![name(o), created(o, now)],
        },
    }
}

pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// `name: used/hard` of the limits, or of all else.
fn quota(o: &Value, limits: bool) -> Value {
    let hard = o.pointer("/status/hard").and_then(Value::as_object);
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let parts = hard
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with("limits.") == limits)
        .map(|(name, hard)| {
            let used = o["status"]["used"]
                .get(name)
                .map_or_else(|| "0".to_owned(), text);
            format!("{name}: {used}/{}", text(hard))
        });
    parts.collect::<Vec<_>>().join(", ").into()
}

fn size(object: &Value, pointer: &str) -> usize {
    match object.pointer(pointer) {
        Some(Value::Object(map)) => map.len(),
        Some(Value::Array(list)) => list.len(),
        _ => 0,
    }
}

pub(super) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

pub(super) fn name(object: &Value) -> Value {
    text(object, "/metadata/name").into()
}

pub(super) fn created(object: &Value, now: Timestamp) -> Value {
    age(
        object
            .pointer("/metadata/creationTimestamp")
            .and_then(Value::as_str),
        now,
    )
    .into()
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    list(object, "/status/conditions")
        .iter()
        .find(|c| c["type"] == kind)
}

fn pod(object: &Value, now: Timestamp) -> Vec<Value> {
    let (phase, mut ready, mut restarts) = (text(object, "/status/phase"), 0, 0);
    let mut reason = or(text(object, "/status/reason"), phase).to_owned();
    if condition(object, "PodScheduled").is_some_and(|c| c["reason"] == "SchedulingGated") {
        "SchedulingGated".clone_into(&mut reason);
    }
    let mut last_restart: Option<Timestamp> = None;
    let mut initializing = false;
    let init = list(object, "/status/initContainerStatuses");
    for (i, status) in init.iter().enumerate() {
        restarts += status["restartCount"].as_i64().unwrap_or(0);
        let state = &status["state"];
        if state["terminated"]["exitCode"] == 0 {
            continue;
        }
        reason = match (
            state["terminated"].is_object(),
            text(state, "/waiting/reason"),
        ) {
            (true, _) => format!("Init:{}", terminated(&state["terminated"])),
            (_, waiting) if !waiting.is_empty() && waiting != "PodInitializing" => {
                format!("Init:{waiting}")
            }
            _ => format!("Init:{i}/{}", init.len()),
        };
        initializing = true;
        break;
    }
    if !initializing {
        let mut running = false;
        restarts = 0;
        for status in list(object, "/status/containerStatuses").iter().rev() {
            restarts += status["restartCount"].as_i64().unwrap_or(0);
            if let Ok(at) = text(status, "/lastState/terminated/finishedAt").parse::<Timestamp>() {
                last_restart = last_restart.max(Some(at));
            }
            let state = &status["state"];
            if !text(state, "/waiting/reason").is_empty() {
                text(state, "/waiting/reason").clone_into(&mut reason);
            } else if state["terminated"].is_object() {
                reason = terminated(&state["terminated"]);
            } else if status["ready"] == true && state["running"].is_object() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            let is_ready = condition(object, "Ready").is_some_and(|c| c["status"] == "True");
            if is_ready { "Running" } else { "NotReady" }.clone_into(&mut reason);
        }
    }
    if object
        .pointer("/metadata/deletionTimestamp")
        .is_some_and(|t| !t.is_null())
    {
        if text(object, "/status/reason") == "NodeLost" {
            "Unknown".clone_into(&mut reason);
        } else if !matches!(phase, "Succeeded" | "Failed") {
            "Terminating".clone_into(&mut reason);
        }
    }
    let restarts = match last_restart {
        Some(at) if restarts > 0 => format!(
            "{restarts} ({} ago)",
            human(now.as_second() - at.as_second())
        ),
        _ => restarts.to_string(),
    };
    let gates = list(object, "/spec/readinessGates");
    let passed = gates
        .iter()
        .filter(|g| {
            condition(object, text(g, "/conditionType")).is_some_and(|c| c["status"] == "True")
        })
        .count();
    let ip = or(
        text(object, "/status/podIP"),
        text(object, "/status/podIPs/0/ip"),
    );
    vec![
        name(object),
        format!("{ready}/{}", size(object, "/spec/containers")).into(),
        reason.into(),
        restarts.into(),
        created(object, now),
        or(ip, "<none>").into(),
        or(text(object, "/spec/nodeName"), "<none>").into(),
        or(text(object, "/status/nominatedNodeName"), "<none>").into(),
        if gates.is_empty() {
            "<none>".into()
        } else {
            format!("{passed}/{}", gates.len()).into()
        },
    ]
}

fn terminated(state: &Value) -> String {
    match (
        text(state, "/reason"),
        state["signal"].as_i64().unwrap_or(0),
    ) {
        ("", 0) => format!("ExitCode:{}", state["exitCode"].as_i64().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut status = match condition(object, "Ready") {
        Some(c) if c["status"] == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if object.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = match object.pointer("/metadata/labels") {
        Some(Value::Object(labels)) => labels
            .iter()
            .filter_map(
                |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                    Some(role) => Some(role).filter(|r| !r.is_empty()),
                    None if key == "kubernetes.io/role" => value.as_str().filter(|v| !v.is_empty()),
                    None => None,
                },
            )
            .collect(),
        _ => Vec::new(),
    };
    roles.sort_unstable();
    roles.dedup();
    let address = |kind: &str| {
        let found = list(object, "/status/addresses")
            .iter()
            .find(|a| a["type"] == kind);
        or(found.map_or("", |a| text(a, "/address")), "<none>").to_owned()
    };
    let info = |key: &str| {
        or(
            text(object, &format!("/status/nodeInfo/{key}")),
            "<unknown>",
        )
        .to_owned()
    };
    vec![
        name(object),
        status.into(),
        if roles.is_empty() {
            "<none>".into()
        } else {
            roles.join(",").into()
        },
        created(object, now),
        text(object, "/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        info("osImage").into(),
        info("kernelVersion").into(),
        info("containerRuntimeVersion").into(),
    ]
}

fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let first_of = |pointers: &[&str]| {
        pointers
            .iter()
            .map(|p| text(object, p))
            .find(|t| !t.is_empty())
            .unwrap_or("")
            .to_owned()
    };
    let first_seen = first_of(&["/firstTimestamp", "/deprecatedFirstTimestamp", "/eventTime"]);
    let last_seen = first_of(&[
        "/series/lastObservedTime",
        "/lastTimestamp",
        "/deprecatedLastTimestamp",
    ]);
    let last_seen = if last_seen.is_empty() {
        first_seen.clone()
    } else {
        last_seen
    };
    let about = ["/involvedObject", "/regarding"]
        .iter()
        .find_map(|p| object.pointer(p))
        .unwrap_or(&Value::Null);
    let target = match (text(about, "/kind").to_lowercase(), text(about, "/name")) {
        (kind, "") => kind,
        (kind, name) => format!("{kind}/{name}"),
    };
    let component = first_of(&[
        "/source/component",
        "/deprecatedSource/component",
        "/reportingComponent",
        "/reportingController",
    ]);
    let host = first_of(&["/source/host", "/deprecatedSource/host"]);
    let source = if host.is_empty() {
        component
    } else {
        format!("{component}, {host}")
    };
    let count = ["/series/count", "/count", "/deprecatedCount"]
        .iter()
        .find_map(|p| object.pointer(p).and_then(Value::as_i64).filter(|n| *n > 0))
        .unwrap_or(1);
    vec![
        age(Some(&last_seen), now).into(),
        text(object, "/type").into(),
        text(object, "/reason").into(),
        target.into(),
        text(about, "/fieldPath").into(),
        source.into(),
        first_of(&["/message", "/note"]).trim().into(),
        age(Some(&first_seen), now).into(),
        count.to_string().into(),
        name(object),
    ]
}

/// `RWO,ROX`: each mode once, in upstream's order.
fn access_modes(object: &Value, pointer: &str) -> String {
    let given = list(object, pointer);
    [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ]
    .iter()
    .filter(|(mode, _)| given.iter().any(|g| g == mode))
    .map(|(_, short)| *short)
    .collect::<Vec<_>>()
    .join(",")
}

fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let claim = match (
        text(object, "/spec/claimRef/namespace"),
        text(object, "/spec/claimRef/name"),
    ) {
        (_, "") => String::new(),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    vec![
        name(object),
        text(object, "/spec/capacity/storage").into(),
        access_modes(object, "/spec/accessModes").into(),
        text(object, "/spec/persistentVolumeReclaimPolicy").into(),
        phase(object).into(),
        claim.into(),
        text(object, "/spec/storageClassName").into(),
        or(text(object, "/spec/volumeAttributesClassName"), "<unset>").into(),
        text(object, "/status/reason").into(),
        created(object, now),
        or(text(object, "/spec/volumeMode"), "<unset>").into(),
    ]
}

fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let bound = !text(object, "/spec/volumeName").is_empty();
    let class = or(
        text(object, "/spec/storageClassName"),
        object
            .pointer("/metadata/annotations/volume.beta.kubernetes.io~1storage-class")
            .and_then(Value::as_str)
            .unwrap_or_default(),
    );
    vec![
        name(object),
        phase(object).into(),
        text(object, "/spec/volumeName").into(),
        if bound {
            text(object, "/status/capacity/storage").into()
        } else {
            "".into()
        },
        if bound {
            access_modes(object, "/status/accessModes").into()
        } else {
            "".into()
        },
        class.into(),
        or(text(object, "/spec/volumeAttributesClassName"), "<unset>").into(),
        created(object, now),
        or(text(object, "/spec/volumeMode"), "<unset>").into(),
    ]
}

fn phase(object: &Value) -> &str {
    if object
        .pointer("/metadata/deletionTimestamp")
        .is_some_and(|t| !t.is_null())
    {
        "Terminating"
    } else {
        text(object, "/status/phase")
    }
}

fn storage_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let default =
        object.pointer("/metadata/annotations/storageclass.kubernetes.io~1is-default-class");
    let shown = match default.and_then(Value::as_str) {
        Some("true") => format!("{} (default)", text(object, "/metadata/name")).into(),
        _ => name(object),
    };
    vec![
        shown,
        text(object, "/provisioner").into(),
        or(text(object, "/reclaimPolicy"), "Delete").into(),
        or(text(object, "/volumeBindingMode"), "Immediate").into(),
        object
            .pointer("/allowVolumeExpansion")
            .and_then(Value::as_bool)
            .unwrap_or(false)
            .to_string()
            .into(),
        created(object, now),
    ]
}
