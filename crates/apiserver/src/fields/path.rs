//! One step of a path into an object, and the order and the words of such steps.

use std::cmp::Ordering;
use std::fmt;

use serde_json::Value;

/// Selects a child of a map or an item of a list.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A field of a map.
    Field(Box<str>),
    /// The item of a keyed list that has these fields, sorted by name.
    Key(Vec<(Box<str>, Value)>),
    /// The item of a set.
    Value(Value),
    /// The item at a place. Only read, for no list is tracked by place.
    Index(i64),
}

/// A step that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    /// Too short.
    #[error("key must be 2 characters long:")]
    Short,
    /// No colon.
    #[error("missing colon: {0}")]
    Colon(String),
    /// What stands behind the colon.
    #[error("{0}")]
    Content(String),
}

impl Step {
    pub(crate) fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// Reads `f:name`, `k:{…}`, `v:…` or `i:0`; none for a kind that a later version may know.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, StepError> {
        let bad = |e: &dyn fmt::Display| StepError::Content(format!("{text}: {e}"));
        if text.len() < 2 {
            return Err(StepError::Short);
        }
        if text.as_bytes()[1] != b':' || !text.is_char_boundary(2) {
            return Err(StepError::Colon(text.to_owned()));
        }
        let rest = &text[2..];
        Ok(Some(match text.as_bytes()[0] {
            b'f' => Self::field(rest),
            b'v' => Self::Value(serde_json::from_str(rest).map_err(|e| bad(&e))?),
            b'k' => {
                let map: serde_json::Map<String, Value> =
                    serde_json::from_str(rest).map_err(|e| bad(&e))?;
                Self::keyed(map.into_iter().map(|(k, v)| (k.into(), v)).collect())
            }
            b'i' => Self::Index(rest.parse().map_err(|e| bad(&e))?),
            _ => return Ok(None),
        }))
    }

    pub(crate) fn keyed(mut fields: Vec<(Box<str>, Value)>) -> Self {
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        Self::Key(fields)
    }

    /// As it stands in FieldsV1.
    pub(crate) fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(fields) => {
                let mut out = String::from("k:{");
                for (at, (name, value)) in fields.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    out.push_str(&Value::from(&**name).to_string());
                    out.push(':');
                    out.push_str(&value.to_string());
                }
                out.push('}');
                out
            }
            Self::Value(value) => format!("v:{value}"),
            Self::Index(at) => format!("i:{at}"),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }
}

impl Ord for Step {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => {
                for (a, b) in a.iter().zip(b) {
                    let order = a.0.cmp(&b.0).then_with(|| compare(&a.1, &b.1));
                    if order.is_ne() {
                        return order;
                    }
                }
                a.len().cmp(&b.len())
            }
            (Self::Value(a), Self::Value(b)) => compare(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Step {}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(fields) => {
                f.write_str("[")?;
                for (at, (name, value)) in fields.iter().enumerate() {
                    let comma = if at > 0 { "," } else { "" };
                    write!(f, "{comma}{name}={value}")?;
                }
                f.write_str("]")
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(at) => write!(f, "[{at}]"),
        }
    }
}

/// Where a kind of value stands among the others.
fn rank(value: &Value) -> u8 {
    match value {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    }
}

/// A total order of values. Numbers are compared as numbers: `1` and `1.0` are the same.
pub(crate) fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a
                .as_f64()
                .unwrap_or_default()
                .total_cmp(&b.as_f64().unwrap_or_default()),
        },
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            for (a, b) in a.iter().zip(b) {
                let order = compare(a, b);
                if order.is_ne() {
                    return order;
                }
            }
            a.len().cmp(&b.len())
        }
        (Value::Object(a), Value::Object(b)) => {
            for ((ka, a), (kb, b)) in a.iter().zip(b) {
                let order = ka.cmp(kb).then_with(|| compare(a, b));
                if order.is_ne() {
                    return order;
                }
            }
            a.len().cmp(&b.len())
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

/// Whether two values say the same.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    a == b || compare(a, b).is_eq()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn steps_are_read_and_written() {
        for text in [
            "f:a.b/c",
            r#"k:{"containerPort":80,"protocol":"TCP"}"#,
            r#"v:"x""#,
            "v:1",
            "i:3",
        ] {
            let step = Step::parse(text).unwrap().expect(text);
            assert_eq!(step.encode(), text);
        }
        assert!(Step::parse("x:1").unwrap().is_none());
        for bad in ["", "f", "fa", "k:1", "v:", "i:x"] {
            assert!(Step::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn steps_are_shown_as_upstream_shows_them() {
        let shown = |text| Step::parse(text).unwrap().unwrap().to_string();
        assert_eq!(shown(r#"k:{"name":"a","n":1}"#), r#"[n=1,name="a"]"#);
        assert_eq!(shown(r#"v:"x""#), r#"[="x"]"#);
        assert_eq!(shown("f:spec"), ".spec");
    }

    #[test]
    fn numbers_are_numbers() {
        assert!(same(&json!({"a": [1]}), &json!({"a": [1.0]})));
        assert!(!same(&json!(1), &json!("1")));
        assert_eq!(compare(&json!(2), &json!(10)), Ordering::Less);
    }
}
