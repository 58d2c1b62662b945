//! Label and field selectors.

use serde_json::Value;

use crate::error::ApiError;
use crate::registry::label_selector::{self, Label, Test};

/// Which objects a list, watch or deletecollection is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Label>,
    fields: Vec<Field>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    path: String,
    equal: bool,
    value: String,
}

/// Field labels of the built-in resources besides `metadata.name` and `metadata.namespace`.
fn supported(resource: &str) -> &'static [&'static str] {
    match resource {
        "/pods" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        "/events" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        "events.k8s.io/events" => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        "/nodes" => &["spec.unschedulable"],
        "/namespaces" => &["status.phase", "name"],
        "/secrets" => &["type"],
        _ => &[],
    }
}

impl Selector {
    /// Parses both selectors of a request; `resource` is `group/plural` and says which fields can be selected.
    pub(crate) fn parse(labels: &str, fields: &str, resource: &str) -> Result<Self, ApiError> {
        let labels = label_selector::parse(labels).map_err(ApiError::BadRequest)?;
        let fields: Vec<Field> = fields
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| {
                parse_field(part).ok_or_else(|| {
                    ApiError::BadRequest(format!(
                        "invalid selector: {part:?}; can't understand {part:?}"
                    ))
                })
            })
            .collect::<Result<_, _>>()?;
        for field in &fields {
            let known = matches!(field.path.as_str(), "metadata.name" | "metadata.namespace");
            if !known && !supported(resource).contains(&field.path.as_str()) {
                return Err(ApiError::BadRequest(format!(
                    "field label not supported: {}",
                    field.path
                )));
            }
        }
        Ok(Self { labels, fields })
    }

    /// Adds `metadata.name=<name>`.
    pub(crate) fn with_name(mut self, name: &str) -> Self {
        self.fields.push(Field {
            path: "metadata.name".into(),
            equal: true,
            value: name.to_owned(),
        });
        self
    }

    /// The one name that objects can have that match.
    pub(crate) fn required_name(&self) -> Option<&str> {
        let name = |field: &&Field| field.equal && field.path == "metadata.name";
        self.fields
            .iter()
            .find(name)
            .map(|field| field.value.as_str())
    }

    /// Whether every object matches.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether this object is meant.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.labels.iter().all(|label| {
            let value = object
                .pointer("/metadata/labels")
                .and_then(|l| l.get(&label.key))
                .and_then(Value::as_str);
            label.test.holds(value)
        }) && self
            .fields
            .iter()
            .all(|field| (lookup(object, &field.path) == field.value) == field.equal)
    }
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::In(list) => value.is_some_and(|v| list.iter().any(|l| l == v)),
            Self::NotIn(list) => value.is_none_or(|v| list.iter().all(|l| l != v)),
            Self::Greater(than) => number().is_some_and(|n| n > *than),
            Self::Less(than) => number().is_some_and(|n| n < *than),
        }
    }
}

fn lookup(object: &Value, path: &str) -> String {
    let path = match path {
        "source" => "source.component",
        "name" => "metadata.name",
        "spec.unschedulable" | "spec.hostNetwork" => {
            let set = path
                .split('.')
                .try_fold(object, |v, key| v.get(key))
                .and_then(Value::as_bool);
            return set.unwrap_or(false).to_string();
        }
        other => other,
    };
    match path
        .split('.')
        .try_fold(object, |value, key| value.get(key))
    {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

fn parse_field(part: &str) -> Option<Field> {
    let (path, equal, value) = if let Some((path, value)) = part.split_once("!=") {
        (path, false, value)
    } else {
        let (path, value) = part.split_once("==").or_else(|| part.split_once('='))?;
        (path, true, value)
    };
    Some(Field {
        path: path.trim().to_owned(),
        equal,
        value: value.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn matches(labels: &str, object: &Value) -> bool {
        Selector::parse(labels, "", "/pods")
            .unwrap()
            .matches(object)
    }

    #[test]
    fn label_operators() {
        let object = json!({"metadata": {"labels": {"app": "web", "n": "5", "x.io/y": ""}}});
        for yes in [
            "",
            "app",
            "app=web",
            "app==web",
            "app!=db",
            "none!=db",
            "!none",
            "app in (db, web)",
            "app notin (db)",
            "none notin (db)",
            "n>4",
            "n<6",
            "x.io/y=",
            "app=web,n in (5),!z",
        ] {
            assert!(matches(yes, &object), "{yes}");
        }
        for no in [
            "none",
            "app=db",
            "!app",
            "app in (db)",
            "app notin (web)",
            "n>5",
            "app>1",
            "app=web,none",
        ] {
            assert!(!matches(no, &object), "{no}");
        }
        for bad in ["=", "a in", "a in (b", "a like (b)", "a=b=c", "-a", "a>x"] {
            assert!(Selector::parse(bad, "", "/pods").is_err(), "{bad}");
        }
    }

    #[test]
    fn fields() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {}, "status": {"phase": "Running"}});
        let select = |fields: &str| Selector::parse("", fields, "/pods");
        assert!(select("spec.nodeName=").unwrap().matches(&pod));
        assert!(
            select("status.phase!=Failed,metadata.name=p")
                .unwrap()
                .matches(&pod)
        );
        assert!(!select("spec.nodeName=a").unwrap().matches(&pod));
        assert_eq!(
            select("spec.x=1"),
            Err(ApiError::BadRequest(
                "field label not supported: spec.x".into()
            ))
        );
    }

    proptest! {
        #[test]
        fn never_panics(labels in ".{0,40}", fields in ".{0,40}") {
            let _ = Selector::parse(&labels, &fields, "/pods");
        }

        #[test]
        fn in_is_not_notin(key in "[a-z]{1,5}", values in prop::collection::vec("[a-z]{1,3}", 1..4), have in prop::option::of("[a-z]{1,3}")) {
            let object = match have {
                Some(value) => json!({"metadata": {"labels": {key.clone(): value}}}),
                None => json!({"metadata": {}}),
            };
            let list = values.join(",");
            prop_assert_ne!(matches(&format!("{key} in ({list})"), &object), matches(&format!("{key} notin ({list})"), &object));
        }
    }
}
