//! The grammar of label selectors, with the refusals of upstream's parser.
//!
//! ```text
//! selector    = [ requirement { "," requirement } ]
//! requirement = [ "!" ] KEY | KEY operator value | KEY ( "in" | "notin" ) "(" value { "," value } ")"
//! operator    = "=" | "==" | "!=" | ">" | "<"
//! ```
//! A value may be empty. `in` and `notin` are also keys and values where one is expected.

use crate::registry::meta::is_word;
use crate::registry::metadata::{LABEL_VALUE, qualified};

/// One condition on the labels of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) key: String,
    pub(crate) test: Test,
}

/// What holds for the value of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    /// Also true where the label is absent.
    NotIn(Vec<String>),
    Greater(i64),
    Less(i64),
}

/// Parses a selector; the error is the message for the client.
pub(crate) fn parse(text: &str) -> Result<Vec<Label>, String> {
    let mut parser = Parser {
        tokens: tokens(text),
        at: 0,
    };
    let mut labels = Vec::new();
    loop {
        match parser.peek() {
            Token::Word(_) | Token::Symbol("!") => {}
            Token::End => return Ok(labels),
            other => {
                return Err(format!(
                    "found '{other}', expected: !, identifier, or 'end of string'"
                ));
            }
        }
        let label = parser
            .requirement()
            .map_err(|why| format!("unable to parse requirement: {why}"))?;
        labels.push(label);
        match parser.take() {
            Token::End => return Ok(labels),
            Token::Symbol(",") => match parser.peek() {
                Token::Word(_) | Token::Symbol("!") => {}
                other => return Err(format!("found '{other}', expected: identifier after ','")),
            },
            other => return Err(format!("found '{other}', expected: ',' or 'end of string'")),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// One of the operators, or what looks like one.
    Symbol(&'static str),
    Unknown(String),
    End,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(text) | Self::Unknown(text) => f.write_str(text),
            Self::Symbol(text) => f.write_str(text),
            Self::End => Ok(()),
        }
    }
}

const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

fn tokens(text: &str) -> Vec<Token> {
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(first) = rest.chars().next() else {
            out.push(Token::End);
            return out;
        };
        // The longer symbols are first.
        if let Some(symbol) = SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol)) {
            out.push(Token::Symbol(symbol));
            rest = &rest[symbol.len()..];
            continue;
        }
        let end = rest
            .find(|c: char| matches!(c, ' ' | '\t' | '\r' | '\n') || "=!(),><".contains(c))
            .unwrap_or(rest.len());
        if end == 0 {
            out.push(Token::Unknown(first.to_string()));
            rest = &rest[first.len_utf8()..];
        } else {
            out.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
}

struct Parser {
    /// Ends with [`Token::End`].
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Token {
        self.tokens.get(self.at).cloned().unwrap_or(Token::End)
    }

    fn take(&mut self) -> Token {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn requirement(&mut self) -> Result<Label, String> {
        let mut token = self.take();
        let absent = token == Token::Symbol("!");
        if absent {
            token = self.take();
        }
        let Token::Word(key) = token else {
            return Err(format!("found '{token}', expected: identifier"));
        };
        let wrong = qualified(&key);
        if !wrong.is_empty() {
            return Err(format!(
                "<nil>: Invalid value: {key:?}: {}",
                wrong.join("; ")
            ));
        }
        let test = if absent {
            Test::Absent
        } else if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            Test::Exists
        } else {
            self.test(&key)?
        };
        Ok(Label { key, test })
    }

    fn test(&mut self, key: &str) -> Result<Test, String> {
        match self.take() {
            Token::Word(word) if word == "in" => Ok(Test::In(checked(key, self.values()?)?)),
            Token::Word(word) if word == "notin" => Ok(Test::NotIn(checked(key, self.values()?)?)),
            Token::Symbol("=" | "==") => Ok(Test::In(checked(key, vec![self.value()?])?)),
            Token::Symbol("!=") => Ok(Test::NotIn(checked(key, vec![self.value()?])?)),
            Token::Symbol(">") => self.number(key).map(Test::Greater),
            Token::Symbol("<") => self.number(key).map(Test::Less),
            other => Err(format!(
                "found '{other}', expected: in, notin, =, ==, !=, gt, lt"
            )),
        }
    }

    fn value(&mut self) -> Result<String, String> {
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(String::new());
        }
        match self.take() {
            Token::Word(word) => Ok(word),
            other => Err(format!("found '{other}', expected: identifier")),
        }
    }

    fn number(&mut self, key: &str) -> Result<i64, String> {
        let text = self.value()?;
        let value = text.parse().map_err(|_| {
            format!(
                "values[0]: Invalid value: {text:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            )
        })?;
        checked(key, vec![text])?;
        Ok(value)
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        match self.take() {
            Token::Symbol("(") => {}
            other => return Err(format!("found '{other}' expected: '('")),
        }
        let mut values = Vec::new();
        match self.peek() {
            Token::Symbol(")") => values.push(String::new()),
            Token::Word(_) | Token::Symbol(",") => loop {
                // Nothing between two commas is an empty value.
                let value = match self.peek() {
                    Token::Word(word) => {
                        self.at += 1;
                        word
                    }
                    Token::Symbol("," | ")") => String::new(),
                    other => {
                        return Err(format!("found '{other}', expected: ',', or identifier"));
                    }
                };
                values.push(value);
                match self.peek() {
                    Token::Symbol(",") => self.at += 1,
                    Token::Symbol(")") => break,
                    other => return Err(format!("found '{other}', expected: ',' or ')'")),
                }
            },
            other => {
                return Err(format!("found '{other}', expected: ',', ')' or identifier"));
            }
        }
        self.at += 1;
        values.sort();
        values.dedup();
        Ok(values)
    }
}

/// The values, if all can be values of a label.
fn checked(key: &str, values: Vec<String>) -> Result<Vec<String>, String> {
    let mut wrong = Vec::new();
    for (at, value) in values.iter().enumerate() {
        let mut why = Vec::new();
        if value.len() > 63 {
            why.push("must be no more than 63 characters");
        }
        if !value.is_empty() && !is_word(value) {
            why.push(LABEL_VALUE);
        }
        if !why.is_empty() {
            wrong.push(format!(
                "values[{at}][{key}]: Invalid value: {value:?}: {}",
                why.join("; ")
            ));
        }
    }
    match wrong.as_slice() {
        [] => Ok(values),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements() {
        let one = |text: &str| parse(text).unwrap().remove(0);
        let label = |test: Test| Label {
            key: "a".into(),
            test,
        };
        assert_eq!(one("a"), label(Test::Exists));
        assert_eq!(one(" ! a "), label(Test::Absent));
        assert_eq!(one("a="), label(Test::In(vec![String::new()])));
        assert_eq!(one("a==in"), label(Test::In(vec!["in".into()])));
        assert_eq!(one("a!=b"), label(Test::NotIn(vec!["b".into()])));
        assert_eq!(
            one("a notin (c,b,)"),
            label(Test::NotIn(vec![String::new(), "b".into(), "c".into()]))
        );
        assert_eq!(one("a in ()"), label(Test::In(vec![String::new()])));
        assert_eq!(one("a>5"), label(Test::Greater(5)));
        assert_eq!(parse("a,!b,c in (d)").unwrap().len(), 3);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn refusals() {
        for (text, start) in [
            ("a=b=c", "found '=', expected: ',' or 'end of string'"),
            (
                "a in b",
                "unable to parse requirement: found 'b' expected: '('",
            ),
            (
                "=b",
                "found '=', expected: !, identifier, or 'end of string'",
            ),
            ("a,,b", "found ',', expected: identifier after ','"),
            (
                "a in (b",
                "unable to parse requirement: found '', expected: ',' or ')'",
            ),
            (
                "-a",
                "unable to parse requirement: <nil>: Invalid value: \"-a\": name part",
            ),
            (
                "a=-b-",
                "unable to parse requirement: values[0][a]: Invalid value: \"-b-\": a valid label",
            ),
            (
                "n>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt'",
            ),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            (
                "a===",
                "unable to parse requirement: found '=', expected: identifier",
            ),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.starts_with(start), "{text}: {why}");
        }
    }
}
