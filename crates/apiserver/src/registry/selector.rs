//! Label and field selectors.

use serde_json::Value;

use crate::error::ApiError;
use crate::registry::meta;

/// Which objects a list, watch or deletecollection is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Label>,
    fields: Vec<Field>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Label {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    /// Also true where the label is absent.
    NotIn(Vec<String>),
    Greater(i64),
    Less(i64),
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
        let unparsed =
            |why: String| ApiError::BadRequest(format!("unable to parse requirement: {why}"));
        let labels = split_requirements(labels)
            .into_iter()
            .map(|part| parse_label(part).ok_or_else(|| unparsed(format!("found {part:?}"))))
            .collect::<Result<_, _>>()?;
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

/// Splits at commas that are not inside parentheses.
fn split_requirements(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    if parts == [""] { Vec::new() } else { parts }
}

fn parse_label(part: &str) -> Option<Label> {
    let (key, test) = if let Some(key) = part.strip_prefix('!') {
        (key, Test::Absent)
    } else if let Some((key, value)) = part.split_once("!=") {
        (key, Test::NotIn(vec![label_value(value)?]))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        (key, Test::In(vec![label_value(value)?]))
    } else if let Some((key, value)) = part.split_once('>') {
        (key, Test::Greater(value.trim().parse().ok()?))
    } else if let Some((key, value)) = part.split_once('<') {
        (key, Test::Less(value.trim().parse().ok()?))
    } else if let Some((head, list)) = part.split_once('(') {
        let values = list
            .trim()
            .strip_suffix(')')?
            .split(',')
            .map(label_value)
            .collect::<Option<Vec<_>>>()?;
        let mut words = head.split_whitespace();
        let (key, operator) = (words.next()?, words.next()?);
        match (operator, words.next()) {
            ("in", None) => (key, Test::In(values)),
            ("notin", None) => (key, Test::NotIn(values)),
            _ => return None,
        }
    } else {
        (part, Test::Exists)
    };
    let key = key.trim();
    meta::is_qualified(key).then(|| Label {
        key: key.to_owned(),
        test,
    })
}

fn label_value(text: &str) -> Option<String> {
    let text = text.trim();
    (text.is_empty() || (text.len() <= 63 && meta::is_word(text))).then(|| text.to_owned())
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
