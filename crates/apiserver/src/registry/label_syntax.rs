//! The language of label selectors, and what is said of text that is not in it.
//!
//! ```text
//! selector    = [ requirement *( "," requirement ) ]
//! requirement = [ "!" ] key | key ( "=" | "==" | "!=" | ">" | "<" ) [ value ] | key ( "in" | "notin" ) "(" values ")"
//! ```

use crate::registry::meta;
use crate::registry::selector::{Label, Test};

const KEY: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
    start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation \
    is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// Words and signs of a selector, the end being the empty one.
struct Tokens<'a> {
    text: &'a str,
}

impl<'a> Tokens<'a> {
    /// The next one, and what follows it.
    fn split(&self) -> (&'a str, &'a str) {
        let text = self.text.trim_start_matches([' ', '\t', '\r', '\n']);
        let sign = |c: char| "=!(),><".contains(c);
        let end = match text.chars().next() {
            None => 0,
            Some('!' | '=') if text[1..].starts_with('=') => 2,
            Some(c) if sign(c) => 1,
            Some(_) => text
                .find(|c: char| sign(c) || c.is_ascii_whitespace())
                .unwrap_or(text.len()),
        };
        text.split_at(end)
    }

    fn peek(&self) -> &'a str {
        self.split().0
    }

    fn next(&mut self) -> &'a str {
        let (token, rest) = self.split();
        self.text = rest;
        token
    }
}

fn is_word(token: &str) -> bool {
    !token.is_empty() && !matches!(token, "!" | "=" | "==" | "!=" | "(" | ")" | "," | ">" | "<")
}

/// All requirements; the error is upstream's.
pub(super) fn parse(text: &str) -> Result<Vec<Label>, String> {
    let mut tokens = Tokens { text };
    let mut labels = Vec::new();
    loop {
        match tokens.peek() {
            "" => return Ok(labels),
            token if token == "!" || is_word(token) => {}
            token => {
                return Err(format!(
                    "found '{token}', expected: !, identifier, or 'end of string'"
                ));
            }
        }
        let label = requirement(&mut tokens);
        labels.push(label.map_err(|why| format!("unable to parse requirement: {why}"))?);
        match tokens.next() {
            "" => return Ok(labels),
            "," => {
                let token = tokens.peek();
                if token != "!" && !is_word(token) {
                    return Err(format!("found '{token}', expected: identifier after ','"));
                }
            }
            token => return Err(format!("found '{token}', expected: ',' or 'end of string'")),
        }
    }
}

fn requirement(tokens: &mut Tokens<'_>) -> Result<Label, String> {
    let absent = tokens.peek() == "!";
    if absent {
        tokens.next();
    }
    let key = tokens.next();
    if !is_word(key) {
        return Err(format!("found '{key}', expected: identifier"));
    }
    if !meta::is_qualified(key) {
        return Err(format!("<nil>: Invalid value: {key:?}: {KEY}"));
    }
    let label = |test| Label {
        key: key.to_owned(),
        test,
    };
    if absent {
        return Ok(label(Test::Absent));
    }
    if matches!(tokens.peek(), "" | ",") {
        return Ok(label(Test::Exists));
    }
    let checked = |value: &str| {
        let why = if value.len() > 63 {
            "must be no more than 63 bytes"
        } else if value.is_empty() || meta::is_word(value) {
            return Ok(value.to_owned());
        } else {
            VALUE
        };
        Err(format!("values[0][{key}]: Invalid value: {value:?}: {why}"))
    };
    let operator = tokens.next();
    match operator {
        "in" | "notin" => {
            let values = values(tokens)?;
            let values = values.into_iter().map(checked).collect::<Result<_, _>>()?;
            Ok(label(if operator == "in" {
                Test::In(values)
            } else {
                Test::NotIn(values)
            }))
        }
        "=" | "==" | "!=" => {
            let value = vec![checked(exact(tokens)?)?];
            Ok(label(if operator == "!=" {
                Test::NotIn(value)
            } else {
                Test::In(value)
            }))
        }
        ">" | "<" => {
            let value = exact(tokens)?;
            let number = value.parse().map_err(|_| {
                format!(
                    "values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                )
            })?;
            Ok(label(if operator == ">" {
                Test::Greater(number)
            } else {
                Test::Less(number)
            }))
        }
        token => Err(format!(
            "found '{token}', expected: in, notin, =, ==, !=, gt, lt"
        )),
    }
}

/// One value; none is the empty one.
fn exact<'a>(tokens: &mut Tokens<'a>) -> Result<&'a str, String> {
    match tokens.peek() {
        "" | "," => Ok(""),
        token if is_word(token) => Ok(tokens.next()),
        token => Err(format!("found '{token}', expected: identifier")),
    }
}

/// `( a, b )`; what is left out between commas is the empty value.
fn values<'a>(tokens: &mut Tokens<'a>) -> Result<Vec<&'a str>, String> {
    let open = tokens.next();
    if open != "(" {
        return Err(format!("found '{open}' expected: '('"));
    }
    let mut values = Vec::new();
    loop {
        if is_word(tokens.peek()) {
            values.push(tokens.next());
        } else {
            values.push("");
        }
        match tokens.next() {
            ")" => return Ok(values),
            "," => {}
            token => return Err(format!("found '{token}', expected: ',' or ')'")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_refusal() {
        for (text, why) in [
            (
                "a in x",
                "unable to parse requirement: found 'x' expected: '('",
            ),
            (
                "=",
                "found '=', expected: !, identifier, or 'end of string'",
            ),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be \
                 an integer",
            ),
            ("a=b=c", "found '=', expected: ',' or 'end of string'"),
            (
                "a in (b",
                "unable to parse requirement: found '', expected: ',' or ')'",
            ),
            ("a,", "found '', expected: identifier after ','"),
        ] {
            assert_eq!(parse(text).unwrap_err(), why, "{text}");
        }
        let refused = parse("-a").unwrap_err();
        assert!(refused.starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part must consist of"), "{refused}");
    }
}
