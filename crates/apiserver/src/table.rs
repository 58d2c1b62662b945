//! The server-side Table: what `kubectl get` prints.
//!
//! Custom resources print NAME and their `additionalPrinterColumns`, the built-in kinds what upstream prints for them.
//! Columns above priority 0 are always sent; clients hide them unless asked for `-o wide`.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::resources::{Column, ResourceDef};

mod access;
mod age;
mod builtin;
pub mod jsonpath;

use jsonpath::JsonPath;

/// How much of each object a row carries (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Object metadata as a PartialObjectMetadata.
    #[default]
    Metadata,
    /// Nothing.
    None,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// Parses the query parameter; `None` if it has another value.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// The Table version that the Accept header asks for before plain JSON (`v1` or `v1beta1`), if any.
pub fn requested(accept: &str) -> Option<&'static str> {
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        if !matches!(
            parts.next(),
            Some("application/json" | "*/*" | "application/*")
        ) {
            continue;
        }
        let parameters: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
        let get = |key: &str| {
            parameters
                .iter()
                .find(|(k, _)| *k == key)
                .map(|(_, v)| v.trim_matches('"'))
        };
        match (get("as"), get("g"), get("v")) {
            (Some("Table"), Some("meta.k8s.io"), Some("v1")) => return Some("v1"),
            (Some("Table"), Some("meta.k8s.io"), Some("v1beta1")) => return Some("v1beta1"),
            (None, ..) => return None,
            _ => {}
        }
    }
    None
}

/// A Table (`meta.k8s.io/<table_version>`) of `objects`. `list_meta` is the list's metadata (resourceVersion, continue …) or, for a
/// single object, its resourceVersion. `headers` false leaves the column definitions out: rows of a watch after the first event.
#[allow(
    clippy::too_many_arguments,
    reason = "each is one knob of the Table protocol"
)]
pub fn render<'a>(
    def: &ResourceDef,
    version: &str,
    objects: impl IntoIterator<Item = &'a Value>,
    list_meta: Value,
    include: IncludeObject,
    table_version: &str,
    headers: bool,
    now: Timestamp,
) -> Value {
    let layout = Layout::of(def, version);
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let mut row = json!({"cells": layout.cells(object, now)});
            match include {
                IncludeObject::None => {}
                IncludeObject::Object => row["object"] = object.clone(),
                IncludeObject::Metadata => {
                    row["object"] = json!({
                        "kind": "PartialObjectMetadata",
                        "apiVersion": format!("meta.k8s.io/{table_version}"),
                        "metadata": object["metadata"],
                    });
                }
            }
            row
        })
        .collect();
    let mut table = json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{table_version}"),
        "columnDefinitions": if headers { layout.headers() } else { Value::Null },
        "rows": rows,
    });
    table["metadata"] = list_meta;
    table
}

/// The columns of one resource version.
enum Layout {
    Builtin(builtin::Printer),
    Custom(Vec<(Column, Option<JsonPath>)>),
}

impl Layout {
    fn of(def: &ResourceDef, version: &str) -> Self {
        if !def.crd {
            return Self::Builtin(builtin::printer(&def.group, &def.kind));
        }
        let columns = def
            .versions
            .iter()
            .find(|v| v.name == version)
            .map_or(&[][..], |v| &v.columns);
        let age = [Column {
            name: "Age".to_owned(),
            kind: "date".to_owned(),
            format: String::new(),
            description: AGE_HELP.to_owned(),
            priority: 0,
            json_path: ".metadata.creationTimestamp".to_owned(),
        }];
        let columns = if columns.is_empty() { &age } else { columns };
        Self::Custom(
            columns
                .iter()
                .map(|c| (c.clone(), JsonPath::parse(&c.json_path).ok()))
                .collect(),
        )
    }

    fn headers(&self) -> Value {
        let header = |name: &str, kind: &str, format: &str, description: &str, priority: i32| json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority});
        match self {
            Self::Builtin(printer) => printer
                .headers
                .iter()
                .map(|(name, kind, priority)| match *name {
                    "Name" => header(name, kind, "name", NAME_HELP, *priority),
                    "Age" => header(name, kind, "", AGE_HELP, *priority),
                    _ => header(name, kind, "", "", *priority),
                })
                .collect(),
            Self::Custom(columns) => {
                std::iter::once(header("Name", "string", "name", NAME_HELP, 0))
                    .chain(columns.iter().map(|(column, _)| {
                        let help = match column.description.as_str() {
                            "" => format!(
                                "Custom resource definition column (in JSONPath format): {}",
                                column.json_path
                            ),
                            given => given.to_owned(),
                        };
                        header(
                            &column.name,
                            &column.kind,
                            &column.format,
                            &help,
                            column.priority,
                        )
                    }))
                    .collect()
            }
        }
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match self {
            Self::Builtin(printer) => (printer.cells)(object, now),
            Self::Custom(columns) => std::iter::once(object["metadata"]["name"].clone())
                .chain(columns.iter().map(|(column, path)| {
                    let found = path
                        .as_ref()
                        .and_then(|p| p.find(object).into_iter().next());
                    found.map_or(Value::Null, |value| cell(&column.kind, value, now))
                }))
                .collect(),
        }
    }
}

const NAME_HELP: &str = "Name of the object, unique in its namespace.";
const AGE_HELP: &str = "Time since the object was created.";

/// A cell of a column of type `kind`; null where the value does not fit.
fn cell(kind: &str, value: &Value, now: Timestamp) -> Value {
    match (kind, value) {
        ("string", Value::Null) => "<no value>".into(),
        (_, Value::Null) => Value::Null,
        ("string", Value::String(_)) => value.clone(),
        ("string", Value::Number(n)) => figure(n).into(),
        ("string", other) => other.to_string().into(),
        ("integer", Value::Number(n)) => match (n.as_i64(), n.as_f64()) {
            (Some(i), _) => i.into(),
            (None, Some(f)) => (f as i64).into(),
            _ => Value::Null,
        },
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) => age::age(Some(text), now).into(),
        _ => Value::Null,
    }
}

/// A number as upstream prints it: large and small fractions with an exponent.
fn figure(n: &serde_json::Number) -> String {
    let Some(f) = n.as_f64().filter(|_| n.is_f64()) else {
        return n.to_string();
    };
    let short = format!("{f:e}");
    let Some((digits, exponent)) = short.split_once('e') else {
        return short;
    };
    match exponent.parse::<i32>() {
        Ok(e) if !(-4..6).contains(&e) => {
            let sign = if e < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", e.abs())
        }
        _ => f.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-24T03:00:00Z".parse().expect("a time")
    }

    fn cells(kind: &str, object: &Value) -> Value {
        let defs = crate::resources::builtin();
        let def = defs.iter().find(|d| d.kind == kind).expect("built in");
        render(
            def,
            "v1",
            [object],
            json!({}),
            IncludeObject::None,
            "v1",
            true,
            now(),
        )["rows"][0]["cells"]
            .clone()
    }

    #[test]
    fn accept_headers() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(requested(kubectl), Some("v1"));
        assert_eq!(requested("application/json"), None);
        assert_eq!(
            requested("application/json, application/json;as=Table;v=v1;g=meta.k8s.io"),
            None
        );
        assert_eq!(
            requested("application/json;as=Table;g=meta.k8s.io;v=v1beta1"),
            Some("v1beta1")
        );
        assert_eq!(requested(""), None);
    }

    #[test]
    fn pods_show_what_their_containers_do() {
        let running = json!({"metadata": {"name": "a", "creationTimestamp": "2026-11-24T02:55:00Z"},
            "spec": {"containers": [{"name": "c"}], "nodeName": "n"},
            "status": {"phase": "Running", "podIP": "10.0.0.5",
                "containerStatuses": [{"ready": true, "restartCount": 0, "state": {"running": {}}}]}});
        assert_eq!(
            cells("Pod", &running),
            json!([
                "a", "1/1", "Running", "0", "5m", "10.0.0.5", "n", "<none>", "<none>"
            ])
        );
        let mut leaving = running.clone();
        leaving["metadata"]["deletionTimestamp"] = json!("2026-11-24T02:59:00Z");
        assert_eq!(cells("Pod", &leaving)[2], "Terminating");
        let failed = json!({"metadata": {"name": "a"}, "spec": {"containers": [{}]}, "status": {"phase": "Failed",
            "containerStatuses": [{"restartCount": 2, "state": {"terminated": {"exitCode": 3}},
                "lastState": {"terminated": {"finishedAt": "2026-11-24T02:58:30Z"}}}]}});
        assert_eq!(cells("Pod", &failed)[1], "0/1");
        assert_eq!(cells("Pod", &failed)[2], "ExitCode:3");
        assert_eq!(cells("Pod", &failed)[3], "2 (90s ago)");
        let waiting = json!({"metadata": {"name": "a"}, "spec": {"containers": [{}]}, "status": {"phase": "Pending",
            "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]}});
        assert_eq!(cells("Pod", &waiting)[2], "ErrImagePull");
    }

    #[test]
    fn other_kinds() {
        let node = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
            "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "nodeInfo": {"kubeletVersion": "v0.1.0"}, "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}});
        let row = cells("Node", &node);
        assert_eq!(row[1], "Ready,SchedulingDisabled");
        assert_eq!(row[2], "control-plane");
        assert_eq!(row[5], "10.0.0.1");
        let event = json!({"metadata": {"name": "e"}, "lastTimestamp": "2026-11-24T02:59:30Z", "type": "Normal", "reason": "Started",
            "involvedObject": {"kind": "Pod", "name": "a"}, "message": "started\n"});
        let row = cells("Event", &event);
        assert_eq!(
            json!([row[0], row[1], row[2], row[3], row[6]]),
            json!(["30s", "Normal", "Started", "pod/a", "started"])
        );
        assert_eq!(
            cells("ConfigMap", &json!({"data": {"a": "1", "b": "2"}}))[1],
            2
        );
        let claim = json!({"spec": {"volumeName": "v", "accessModes": ["ReadWriteMany"]},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"]}});
        assert_eq!(cells("PersistentVolumeClaim", &claim)[4], "RWO,RWX");
    }

    #[test]
    fn custom_columns() {
        let column = |name: &str, kind: &str, path: &str, priority| Column {
            name: name.to_owned(),
            kind: kind.to_owned(),
            format: String::new(),
            description: String::new(),
            priority,
            json_path: path.to_owned(),
        };
        let mut def = crate::resources::builtin().remove(0);
        def.crd = true;
        def.versions[0].columns = vec![
            column("Age", "date", ".metadata.creationTimestamp", 0),
            column(
                "Ready",
                "string",
                ".status.conditions[?(@.type=='Ready')].status",
                0,
            ),
            column("IP", "string", ".status.interfaces[0].ipAddress", 0),
            column("Replicas", "integer", ".spec.replicas", 1),
            column("Object", "string", ".spec", 1),
        ];
        let version = def.versions[0].name.clone();
        let object = json!({"metadata": {"name": "x", "creationTimestamp": "2026-11-22T00:00:00Z"}, "spec": {"replicas": 2},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let table = render(
            &def,
            &version,
            [&object],
            json!({"resourceVersion": "7"}),
            IncludeObject::Metadata,
            "v1",
            true,
            now(),
        );
        assert_eq!(
            table["rows"][0]["cells"],
            json!(["x", "2d3h", "True", null, 2, "{\"replicas\":2}"])
        );
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(table["columnDefinitions"][4]["priority"], 1);
        assert_eq!(table["metadata"]["resourceVersion"], "7");
        let later = render(
            &def,
            &version,
            [&object],
            json!({}),
            IncludeObject::None,
            "v1",
            false,
            now(),
        );
        assert!(later["columnDefinitions"].is_null());
        assert!(later["rows"][0].get("object").is_none());
    }

    /// What a kube-apiserver 1.34 showed of one object, recorded once.
    #[test]
    fn custom_columns_are_those_of_upstream() {
        let recorded: Value =
            serde_json::from_str(include_str!("../tests/data/columns.json")).expect("JSON");
        let object = json!({"metadata": {"name": "o", "creationTimestamp": "2026-11-22T00:00:00Z"}, "spec": recorded["spec"]});
        let mut def = crate::resources::builtin().remove(0);
        def.crd = true;
        let columns = recorded["columns"].as_array().expect("columns");
        def.versions[0].columns = columns
            .iter()
            .map(|c| Column {
                name: "C".to_owned(),
                kind: c["type"].as_str().unwrap_or_default().to_owned(),
                format: String::new(),
                description: String::new(),
                priority: 0,
                json_path: c["path"].as_str().unwrap_or_default().to_owned(),
            })
            .collect();
        let version = def.versions[0].name.clone();
        let table = render(
            &def,
            &version,
            [&object],
            json!({}),
            IncludeObject::None,
            "v1",
            true,
            now(),
        );
        let cells = table["rows"][0]["cells"].as_array().expect("cells");
        for (column, cell) in columns.iter().zip(&cells[1..]) {
            // Ages depend on the day.
            if column["type"] == "date" && column["cell"] != "<invalid>" {
                continue;
            }
            assert_eq!(
                *cell, column["cell"],
                "{} {}",
                column["type"], column["path"]
            );
        }
    }
}
