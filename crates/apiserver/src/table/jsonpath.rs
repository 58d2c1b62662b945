//! The JSONPath dialect of Kubernetes, as far as printer columns use it.
//!
//! `.a.b`, `['a']`, `.a\.b` (a dot in a name), `[0]`, `[-1]`, `[0:2]`, `[*]`, `.*`, `..name`, and filters such as
//! `[?(@.type=='Ready')]` with `== != < <= > >=` or a bare path (it exists). Missing fields give no result, never an error.

use std::cmp::Ordering;
use std::fmt;

use serde_json::Value;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

/// Why a path is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError(String);

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ParseError {}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    Wildcard,
    Descend,
    Union(Vec<Self>),
    Filter(Operand, Option<(Operator, Operand)>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Path(JsonPath),
    Literal(Value),
}

impl JsonPath {
    /// Parses `.a.b`, with or without the braces of kubectl.
    ///
    /// # Errors
    /// Text that is no path of this dialect.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let inner = text.trim();
        let inner = match inner.strip_prefix('{') {
            Some(rest) => rest
                .strip_suffix('}')
                .ok_or_else(|| ParseError("unclosed action".to_owned()))?,
            None => inner,
        };
        let inner = inner.strip_prefix('$').unwrap_or(inner);
        steps(inner).map(Self)
    }

    /// The values that the path selects, in document order.
    pub fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        let mut current = vec![root];
        for step in &self.0 {
            current = current
                .into_iter()
                .flat_map(|value| step.apply(value))
                .collect();
        }
        current
    }
}

fn steps(text: &str) -> Result<Vec<Step>, ParseError> {
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("..") {
            out.push(Step::Descend);
            rest = after;
            if !rest.starts_with('[') {
                rest = field(rest, &mut out)?;
            }
        } else if let Some(after) = rest.strip_prefix('.') {
            // `.[0]` and a final `.` (the whole) are fine, too.
            rest = if after.is_empty() || after.starts_with('[') {
                after
            } else {
                field(after, &mut out)?
            };
        } else if rest.starts_with('[') {
            let end = closing(rest)?;
            let inner = rest[1..end].trim();
            // As upstream has it, `['a.b']` is `.a.b`, and a dot in a name is written `['a\.b']`.
            let name = inner
                .strip_prefix('\'')
                .and_then(|name| name.strip_suffix('\''));
            match name.filter(|name| name.contains('.') && !name.contains('\'')) {
                Some(name) => out.extend(steps(&format!(".{name}"))?),
                None => out.push(bracket(inner)?),
            }
            rest = &rest[end + 1..];
        } else if out.is_empty() {
            rest = field(rest, &mut out)?;
        } else {
            return Err(ParseError(format!("unexpected {rest:?}")));
        }
    }
    Ok(out)
}

/// Reads a name up to the next `.` or `[`; a backslash takes the next character as it is.
fn field<'a>(text: &'a str, out: &mut Vec<Step>) -> Result<&'a str, ParseError> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    let mut end = text.len();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => {
                end = at;
                break;
            }
            c if c.is_whitespace() || "(){}'\"|,=<>".contains(c) => {
                return Err(ParseError(format!(
                    "unexpected character {c:?} in a field name"
                )));
            }
            c => name.push(c),
        }
    }
    match name.as_str() {
        "" => Err(ParseError("a field name is empty".to_owned())),
        "*" => {
            out.push(Step::Wildcard);
            Ok(&text[end..])
        }
        _ => {
            out.push(Step::Field(name));
            Ok(&text[end..])
        }
    }
}

/// Index of the `]` that closes the `[` at the start, quotes respected.
fn closing(text: &str) -> Result<usize, ParseError> {
    let mut depth = 0;
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') => {
                depth -= 1;
                if depth == 0 {
                    return Ok(at);
                }
            }
            _ => {}
        }
    }
    Err(ParseError("unterminated array".to_owned()))
}

fn bracket(inner: &str) -> Result<Step, ParseError> {
    if inner == "*" {
        return Ok(Step::Wildcard);
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        return filter_step(filter.trim());
    }
    if let Some(name) = quoted(inner) {
        return Ok(Step::Field(name));
    }
    let parts = alternatives(inner);
    if parts.len() > 1 {
        let steps: Result<Vec<Step>, ParseError> = parts.into_iter().map(bracket).collect();
        return steps.map(Step::Union);
    }
    let bad = || ParseError(format!("invalid array index {inner:?}"));
    if let Some((from, to)) = inner.split_once(':') {
        let bound = |s: &str| -> Result<Option<i64>, ParseError> {
            let s = s.trim();
            if s.is_empty() {
                Ok(None)
            } else {
                s.parse().map(Some).map_err(|_| bad())
            }
        };
        return Ok(Step::Slice(bound(from)?, bound(to)?));
    }
    inner.parse().map(Step::Index).map_err(|_| bad())
}

/// The parts between commas, quotes respected.
fn alternatives(text: &str) -> Vec<&str> {
    let mut quote = None;
    let parts = text.split(|c| match (quote, c) {
        (Some(q), c) if c == q => {
            quote = None;
            false
        }
        (None, '\'' | '"') => {
            quote = Some(c);
            false
        }
        (None, ',') => true,
        _ => false,
    });
    parts.map(str::trim).collect()
}

fn quoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c == quote {
            return None;
        }
        out.push(if c == '\\' { chars.next()? } else { c });
    }
    Some(out)
}

fn filter_step(text: &str) -> Result<Step, ParseError> {
    let operators = [
        ("==", Operator::Equal),
        ("!=", Operator::NotEqual),
        ("<=", Operator::LessOrEqual),
        (">=", Operator::GreaterOrEqual),
        ("<", Operator::Less),
        (">", Operator::Greater),
    ];
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            _ => {
                if let Some((sign, operator)) = operators
                    .iter()
                    .find(|(sign, _)| text[at..].starts_with(sign))
                {
                    let left = operand(text[..at].trim())?;
                    let right = operand(text[at + sign.len()..].trim())?;
                    return Ok(Step::Filter(left, Some((*operator, right))));
                }
            }
        }
    }
    Ok(Step::Filter(operand(text)?, None))
}

fn operand(text: &str) -> Result<Operand, ParseError> {
    if let Some(path) = text.strip_prefix('@') {
        return steps(path).map(|s| Operand::Path(JsonPath(s)));
    }
    if let Some(literal) = quoted(text) {
        return Ok(Operand::Literal(literal.into()));
    }
    serde_json::from_str(text)
        .map(Operand::Literal)
        .map_err(|_| ParseError(format!("unrecognized operand {text:?} in a filter")))
}

impl Step {
    fn apply<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match (self, value) {
            (Self::Field(name), Value::Object(map)) => map.get(name).into_iter().collect(),
            (Self::Index(index), Value::Array(list)) => {
                let at = if *index < 0 {
                    list.len() as i64 + index
                } else {
                    *index
                };
                usize::try_from(at)
                    .ok()
                    .and_then(|at| list.get(at))
                    .into_iter()
                    .collect()
            }
            (Self::Slice(from, to), Value::Array(list)) => {
                let len = list.len() as i64;
                let place = |bound: &Option<i64>, otherwise: i64| match bound {
                    None => otherwise,
                    Some(b) if *b < 0 => (len + b).max(0),
                    Some(b) => (*b).min(len),
                };
                let (from, to) = (place(from, 0), place(to, len));
                list.iter()
                    .skip(from as usize)
                    .take((to - from).max(0) as usize)
                    .collect()
            }
            (Self::Wildcard, Value::Array(list)) => list.iter().collect(),
            (Self::Wildcard, Value::Object(map)) => map.values().collect(),
            (Self::Union(steps), value) => {
                steps.iter().flat_map(|step| step.apply(value)).collect()
            }
            (Self::Descend, value) => {
                let mut out = Vec::new();
                descend(value, &mut out);
                out
            }
            (Self::Filter(left, test), Value::Array(list)) => list
                .iter()
                .filter(|item| holds(item, left, test.as_ref()))
                .collect(),
            _ => Vec::new(),
        }
    }
}

fn descend<'a>(value: &'a Value, out: &mut Vec<&'a Value>) {
    out.push(value);
    match value {
        Value::Array(list) => list.iter().for_each(|v| descend(v, out)),
        Value::Object(map) => map.values().for_each(|v| descend(v, out)),
        _ => {}
    }
}

fn holds(item: &Value, left: &Operand, test: Option<&(Operator, Operand)>) -> bool {
    fn first<'a>(operand: &'a Operand, item: &'a Value) -> Option<&'a Value> {
        match operand {
            Operand::Literal(value) => Some(value),
            Operand::Path(path) => path.find(item).into_iter().next(),
        }
    }
    let Some(left) = first(left, item) else {
        return false;
    };
    let Some((operator, right)) = test else {
        return true;
    };
    let Some(right) = first(right, item) else {
        return false;
    };
    let order = match (left, right) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (a, b) if a == b => Some(Ordering::Equal),
        _ => None,
    };
    match operator {
        Operator::Equal => order == Some(Ordering::Equal),
        Operator::NotEqual => order != Some(Ordering::Equal),
        Operator::Less => order == Some(Ordering::Less),
        Operator::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        Operator::Greater => order == Some(Ordering::Greater),
        Operator::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_select() {
        let object = json!({
            "metadata": {"name": "a", "annotations": {"a.b/c": "dotted"}},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "Paused", "status": "False"}],
                "interfaces": [{"ipAddress": "10.0.0.1"}, {"ipAddress": "10.0.0.2"}, {"n": 3}],
                "replicas": 2
            }
        });
        let cases = [
            (".metadata.name", json!(["a"])),
            ("{.metadata.name}", json!(["a"])),
            (".metadata.annotations.a\\.b/c", json!(["dotted"])),
            (r".metadata.annotations['a\.b/c']", json!(["dotted"])),
            (".metadata.annotations['a.b/c']", json!([])),
            (".metadata['name','absent']", json!(["a"])),
            (".status.interfaces[0].ipAddress", json!(["10.0.0.1"])),
            (".status.interfaces[-1].n", json!([3])),
            (
                ".status.interfaces[*].ipAddress",
                json!(["10.0.0.1", "10.0.0.2"]),
            ),
            (
                ".status.interfaces[0:2].ipAddress",
                json!(["10.0.0.1", "10.0.0.2"]),
            ),
            (
                ".status.conditions[?(@.type=='Ready')].status",
                json!(["True"]),
            ),
            (
                ".status.conditions[?(@.type == \"Paused\")].status",
                json!(["False"]),
            ),
            (
                ".status.conditions[?(@.type!='Ready')].type",
                json!(["Paused"]),
            ),
            (".status.interfaces[?(@.n>2)].n", json!([3])),
            (
                ".status.interfaces[?(@.ipAddress)].ipAddress",
                json!(["10.0.0.1", "10.0.0.2"]),
            ),
            ("..ipAddress", json!(["10.0.0.1", "10.0.0.2"])),
            (".status.replicas", json!([2])),
            (".status.missing.deep", json!([])),
            (".status.interfaces[9]", json!([])),
        ];
        for (path, expected) in cases {
            let parsed = JsonPath::parse(path).unwrap_or_else(|e| panic!("{path}: {e}"));
            assert_eq!(json!(parsed.find(&object)), expected, "{path}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for path in [
            ".a[",
            ".a[x]",
            ".a[?(@.b==)]",
            ".a b",
            "{.a",
            ".a[0]b",
            ".a..",
            ".a[?(b=='x')]",
        ] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
    }
}
