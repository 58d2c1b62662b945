//! Where two transcripts differ, and which differences are meant.

use serde_json::Value;

/// A difference that is meant.
pub(crate) struct Difference {
    /// Name of the row; `*` stands for anything.
    pub(crate) row: &'static str,
    /// Where in the transcript, as [`differing`] says it; `*` stands for anything.
    pub(crate) place: &'static str,
    /// Why it stays.
    pub(crate) why: &'static str,
}

impl Difference {
    pub(crate) fn covers(&self, row: &str, place: &str) -> bool {
        matches(self.row, row) && matches(self.place, place)
    }
}

/// Whether a text is as a pattern says, in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(tail) = text.strip_prefix(start) else {
        return false;
    };
    (0..=tail.len())
        .filter(|at| tail.is_char_boundary(*at))
        .any(|at| matches(rest, &tail[at..]))
}

/// One place where the two saw different things.
pub(crate) struct Differing {
    /// `step/field/field`.
    pub(crate) place: String,
    pub(crate) berth: Value,
    pub(crate) kubernetes: Value,
}

/// All places where they differ.
pub(crate) fn differing(berth: &[Value], kubernetes: &[Value]) -> Vec<Differing> {
    let mut out = Vec::new();
    for (i, (b, k)) in berth.iter().zip(kubernetes).enumerate() {
        // Another code is another kind of answer: field by field there is nothing to compare.
        if b["code"] == k["code"] {
            walk(&i.to_string(), b, k, &mut out);
        } else {
            out.push(Differing {
                place: format!("{i}/code"),
                berth: b.clone(),
                kubernetes: k.clone(),
            });
        }
    }
    if berth.len() != kubernetes.len() {
        out.push(Differing {
            place: "steps".to_owned(),
            berth: berth.len().into(),
            kubernetes: kubernetes.len().into(),
        });
    }
    out
}

fn walk(place: &str, berth: &Value, kubernetes: &Value, out: &mut Vec<Differing>) {
    let at = |key: &str| format!("{place}/{key}");
    match (berth, kubernetes) {
        (Value::Object(b), Value::Object(k)) => {
            let mut keys: Vec<&String> = b.keys().chain(k.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let null = Value::Null;
                walk(
                    &at(key),
                    b.get(key).unwrap_or(&null),
                    k.get(key).unwrap_or(&null),
                    out,
                );
            }
        }
        (Value::Array(b), Value::Array(k)) if b.len() == k.len() => {
            for (i, (b, k)) in b.iter().zip(k).enumerate() {
                walk(&at(&i.to_string()), b, k, out);
            }
        }
        (b, k) if b == k => {}
        (b, k) => out.push(Differing {
            place: place.to_owned(),
            berth: b.clone(),
            kubernetes: k.clone(),
        }),
    }
}
