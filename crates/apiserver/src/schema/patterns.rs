//! What is wrong with a regular expression, in the words of the engine that users of Kubernetes know.

use regex_syntax::ast::parse::Parser;
use regex_syntax::ast::{Error, ErrorKind};

use super::node;

/// Why a pattern is none; nothing if it is one.
pub(super) fn fault(pattern: &str) -> Option<String> {
    let error = node::compile(pattern).err()?;
    let known = Parser::new().parse(pattern).err().as_ref().and_then(go);
    // Go has no words for what only this engine refuses.
    Some(known.unwrap_or_else(|| error.to_string()))
}

/// As Go's `regexp/syntax` says it.
fn go(error: &Error) -> Option<String> {
    let whole = error.pattern();
    let from = error.span().start.offset;
    let part = whole.get(from..error.span().end.offset)?;
    let (why, shown) = match error.kind() {
        ErrorKind::GroupUnclosed => ("missing closing )", whole),
        ErrorKind::GroupUnopened => ("unexpected )", whole),
        ErrorKind::ClassUnclosed => ("missing closing ]", whole.get(from..)?),
        ErrorKind::ClassRangeInvalid => ("invalid character class range", part),
        ErrorKind::RepetitionMissing => {
            let operator = whole.get(from..)?.chars().next()?;
            let shown = &whole[from..from + operator.len_utf8()];
            ("missing argument to repetition operator", shown)
        }
        ErrorKind::RepetitionCountInvalid => ("invalid repeat count", part),
        ErrorKind::EscapeUnrecognized => ("invalid escape sequence", part),
        ErrorKind::EscapeUnexpectedEof => ("trailing backslash at end of expression", ""),
        ErrorKind::UnsupportedLookAround
        | ErrorKind::FlagUnrecognized
        | ErrorKind::FlagUnexpectedEof => ("invalid or unsupported Perl syntax", part),
        _ => return None,
    };
    Some(format!("error parsing regexp: {why}: `{shown}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_as_go_does() {
        for (pattern, said) in [
            ("(", "missing closing ): `(`"),
            ("a)", "unexpected ): `a)`"),
            ("x[a-", "missing closing ]: `[a-`"),
            ("[z-a]", "invalid character class range: `z-a`"),
            ("*", "missing argument to repetition operator: `*`"),
            ("\\", "trailing backslash at end of expression: ``"),
            ("\\j", "invalid escape sequence: `\\j`"),
        ] {
            let found = fault(pattern);
            assert_eq!(
                found,
                Some(format!("error parsing regexp: {said}")),
                "{pattern}"
            );
        }
        assert_eq!(fault("^[a-z]+$"), None);
    }
}
