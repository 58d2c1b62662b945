//! How Go's libraries print decoded JSON: upstream's messages quote values and name types that way, and clients read them.

use serde_json::Value;

/// What Go's decoder calls a JSON value.
pub(crate) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "bool",
        Value::Null => "null",
    }
}

/// A decoded JSON value as Go prints it (`%v`).
pub(crate) fn value(decoded: &Value) -> String {
    match decoded {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(name, _)| name.as_str());
            let shown: Vec<String> = fields
                .into_iter()
                .map(|(name, inner)| format!("{name}:{}", value(inner)))
                .collect();
            format!("map[{}]", shown.join(" "))
        }
        Value::Array(list) => {
            let shown: Vec<String> = list.iter().map(value).collect();
            format!("[{}]", shown.join(" "))
        }
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".into(),
        plain => plain.to_string(),
    }
}

/// A decoded JSON value in Go's syntax (`%#v`).
pub(crate) fn syntax(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let shown: Vec<String> = map
                .iter()
                .map(|(name, inner)| format!("{name:?}:{}", syntax(inner)))
                .collect();
            format!("map[string]interface {{}}{{{}}}", shown.join(", "))
        }
        Value::Array(list) => {
            let shown: Vec<String> = list.iter().map(syntax).collect();
            format!("[]interface {{}}{{{}}}", shown.join(", "))
        }
        Value::String(text) => format!("{text:?}"),
        Value::Null => "interface {}(nil)".into(),
        plain => plain.to_string(),
    }
}

/// The Go type that a decoded JSON value has.
pub(crate) fn dynamic_type(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "map[string]interface {}",
        Value::Array(_) => "[]interface {}",
        Value::String(_) => "string",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::Bool(_) => "bool",
        Value::Null => "%!s(<nil>)",
    }
}
