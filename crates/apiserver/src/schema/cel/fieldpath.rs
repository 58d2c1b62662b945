//! Paths such as `.spec.disks` that a definition gives, followed through a schema.

use crate::schema::node::{Additional, Node};

/// Follows a path through the schema; gives it as errors show it, and the schema that it ends at. `brackets` allows `['name']`.
///
/// # Errors
/// What is wrong with the path, in upstream's words.
pub(in crate::schema) fn resolve<'a>(
    path: &str,
    node: &'a Node,
    brackets: bool,
) -> Result<(String, &'a Node), String> {
    let mut shown = String::new();
    let mut here = node;
    let mut rest = path;
    while !rest.is_empty() {
        let (name, after) = if let Some(after) = rest.strip_prefix('[') {
            if !brackets {
                return Err("array notation is not allowed".into());
            }
            quoted(after)?
        } else if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[', ']']).unwrap_or(after.len());
            if end == 0 {
                return Err(if after.is_empty() {
                    "unexpected end of JSON path".into()
                } else {
                    "does not refer to a valid field".into()
                });
            }
            (after[..end].to_owned(), &after[end..])
        } else {
            let end = rest
                .find(['.', '[', ']'])
                .filter(|end| *end > 0)
                .unwrap_or(rest.len());
            return Err(format!("expected [ or . but got: {}", &rest[..end]));
        };
        rest = after;
        if !here.properties.is_empty() {
            here = here
                .properties
                .get(name.as_str())
                .ok_or("does not refer to a valid field")?;
            if !shown.is_empty() {
                shown.push('.');
            }
            shown.push_str(&name);
        } else if let Additional::Schema(schema) = &here.additional {
            here = schema;
            shown.push('[');
            shown.push_str(&name);
            shown.push(']');
        } else {
            return Err("does not refer to a valid field".into());
        }
    }
    Ok((shown, here))
}

/// `'name']` and what follows.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let token = || {
        let end = text.find(['.', '[', ']']).unwrap_or(text.len());
        &text[..end]
    };
    let Some(inner) = text.strip_prefix('\'') else {
        return Err(if text.is_empty() {
            "unexpected end of JSON path".into()
        } else {
            format!("expected single quoted string but got {}", token())
        });
    };
    let mut name = String::new();
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, 'n')) => name.push('\n'),
                Some((_, 't')) => name.push('\t'),
                Some((_, 'r')) => name.push('\r'),
                Some((_, c @ ('\'' | '\\'))) => name.push(c),
                Some((_, c)) => {
                    return Err(format!("invalid string literal: invalid escape char \\{c}"));
                }
                None => break,
            },
            '\'' => {
                let after = &inner[at + 1..];
                return match after.strip_prefix(']') {
                    Some(rest) => Ok((name, rest)),
                    None if after.is_empty() => Err("unexpected end of JSON path".into()),
                    None => Err(format!("expected ] but got {after}")),
                };
            }
            c => name.push(c),
        }
    }
    Err(format!("expected single quoted string but got {}", token()))
}

/// What is wrong with a path in dot notation, as the scale subresource and printer columns take it.
pub(in crate::schema) fn simple(path: &str) -> Option<&'static str> {
    (!path.starts_with('.')).then_some("must be a simple json path starting with .")
}
