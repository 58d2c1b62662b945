//! Property names as CEL identifiers: what is no identifier, or a word of the language, is written with `__…__`.

/// Words that cannot be identifiers.
const RESERVED: [&str; 20] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
];
/// The parts of a name that are written otherwise.
const PARTS: [(&str, &str); 4] = [
    ("__underscores__", "__"),
    ("__dot__", "."),
    ("__dash__", "-"),
    ("__slash__", "/"),
];

fn reserved(name: &str) -> bool {
    RESERVED.contains(&name) || name == "while"
}

/// The identifier of a property; none if there is no way to write it.
pub(super) fn escape(name: &str) -> Option<String> {
    if reserved(name) {
        return Some(format!("__{name}__"));
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        if let Some((escaped, plain)) = PARTS.iter().find(|(_, plain)| rest.starts_with(plain)) {
            out.push_str(escaped);
            rest = &rest[plain.len()..];
        } else if first.is_ascii_alphanumeric() || first == '_' {
            out.push(first);
            rest = &rest[1..];
        } else {
            return None;
        }
    }
    let starts_well = out.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts_well.then_some(out)
}

/// The property that an identifier names.
pub(super) fn unescape(identifier: &str) -> String {
    if let Some(word) = identifier
        .strip_prefix("__")
        .and_then(|s| s.strip_suffix("__"))
        && reserved(word)
    {
        return word.to_owned();
    }
    let mut out = String::with_capacity(identifier.len());
    let mut rest = identifier;
    while let Some(first) = rest.chars().next() {
        if let Some((escaped, plain)) = PARTS.iter().find(|(escaped, _)| rest.starts_with(escaped))
        {
            out.push_str(plain);
            rest = &rest[escaped.len()..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}
