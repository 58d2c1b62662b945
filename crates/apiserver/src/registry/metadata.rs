//! What is wrong with metadata besides the name: labels, annotations, owners, finalizers; and what an update may not change.
//!
//! Order, fields and words are those of upstream's `ValidateObjectMeta` and `ValidateObjectMetaUpdate`.

use serde_json::{Value, json};

use crate::error::Cause;
use crate::registry::meta::{SUBDOMAIN, is_label, is_word};

/// Most bytes of all annotations together.
const ANNOTATIONS: usize = 256 * 1024;
const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
    an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const QUALIFIED: &str = "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
    with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. \
    'example.com/MyName')";
pub(crate) const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
    and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
    validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
/// Finalizers without a domain.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// What is wrong with the metadata of an object. `standard`: a finalizer without a domain must be one of those that are known.
pub(crate) fn check(object: &Value, standard: bool) -> Vec<Cause> {
    let mut causes = Vec::new();
    check_labels(object, &mut causes);
    check_annotations(object, &mut causes);
    check_owners(object, &mut causes);
    check_finalizers(object, standard, &mut causes);
    causes
}

/// What an update may not change; each is found twice upstream, and shown twice.
pub(crate) fn check_fixed(old: &Value, new: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for field in ["uid", "deletionTimestamp"] {
        let (before, now) = (&old["metadata"][field], &new["metadata"][field]);
        // Left out means as it is.
        if !now.is_null() && now != "" && before != now {
            let path = format!("metadata.{field}");
            let cause = Cause::invalid(path, now, "field is immutable");
            causes.extend([cause.clone(), cause]);
        }
    }
    causes
}

/// What is wrong with a key of labels or annotations, or with a finalizer.
pub(crate) fn qualified(key: &str) -> Vec<String> {
    let parts: Vec<&str> = key.split('/').collect();
    let (prefix, name) = match parts.as_slice() {
        [name] => (None, *name),
        [prefix, name] => (Some(*prefix), *name),
        _ => return vec![QUALIFIED.into()],
    };
    let mut wrong = Vec::new();
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            wrong.push("prefix part must be non-empty".into());
        } else {
            if prefix.len() > 253 {
                wrong.push("prefix part must be no more than 253 characters".into());
            }
            if !prefix.split('.').all(is_label) {
                wrong.push(format!("prefix part {SUBDOMAIN}"));
            }
        }
    }
    if name.is_empty() {
        wrong.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        wrong.push("name part must be no more than 63 characters".into());
    }
    if !is_word(name) {
        wrong.push(NAME_PART.into());
    }
    wrong
}

fn entries<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a str)> {
    let map = object["metadata"][field].as_object();
    map.into_iter()
        .flatten()
        .map(|(key, value)| (key, value.as_str().unwrap_or_default()))
}

pub(crate) fn check_labels(object: &Value, causes: &mut Vec<Cause>) {
    let mut wrong = |shown: &str, why: &str| {
        causes.push(Cause::invalid("metadata.labels", format!("{shown:?}"), why));
    };
    for (key, value) in entries(object, "labels") {
        for why in qualified(key) {
            wrong(key, &why);
        }
        if value.len() > 63 {
            wrong(value, "must be no more than 63 characters");
        }
        if !value.is_empty() && !is_word(value) {
            wrong(value, LABEL_VALUE);
        }
    }
}

fn check_annotations(object: &Value, causes: &mut Vec<Cause>) {
    let mut size = 0;
    for (key, value) in entries(object, "annotations") {
        // Their keys may have capital letters in the prefix, too.
        for why in qualified(&key.to_lowercase()) {
            causes.push(Cause::invalid(
                "metadata.annotations",
                format!("{key:?}"),
                why,
            ));
        }
        size += key.len() + value.len();
    }
    if size > ANNOTATIONS {
        causes.push(Cause {
            reason: "FieldValueTooLong".into(),
            field: "metadata.annotations".into(),
            message: format!("Too long: may not be more than {ANNOTATIONS} bytes"),
        });
    }
}

/// An owner as messages show it, its fields in upstream's order.
fn shown(owner: &Value) -> String {
    let fields = ["apiVersion", "kind", "name", "uid"].map(|field| {
        let text = owner[field].as_str().unwrap_or_default();
        format!("{field:?}:{}", json!(text))
    });
    let flags = ["controller", "blockOwnerDeletion"]
        .into_iter()
        .filter_map(|field| Some(format!("{field:?}:{}", owner[field].as_bool()?)));
    let all: Vec<String> = fields.into_iter().chain(flags).collect();
    format!("{{{}}}", all.join(","))
}

fn check_owners(object: &Value, causes: &mut Vec<Cause>) {
    const FIELD: &str = "metadata.ownerReferences";
    let owners = object["metadata"]["ownerReferences"].as_array();
    let owners = owners.map_or(&[][..], Vec::as_slice);
    let text = |owner: &Value, field: &str| owner[field].as_str().unwrap_or_default().to_owned();
    for owner in owners {
        for (field, why) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if text(owner, field).is_empty() {
                causes.push(Cause::invalid(format!("{FIELD}.{field}"), "\"\"", why));
            }
        }
        // Events come and go by the thousand; nothing may hang on one.
        if owner["apiVersion"] == "v1" && owner["kind"] == "Event" {
            causes.push(Cause::invalid(
                FIELD,
                shown(owner),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
    }
    let mut controllers = owners.iter().filter(|owner| owner["controller"] == true);
    if let (Some(one), Some(other)) = (controllers.next(), controllers.next()) {
        let named = |owner: &Value| format!("{}/{}", text(owner, "kind"), text(owner, "name"));
        let all: Vec<String> = owners.iter().map(shown).collect();
        causes.push(Cause::invalid(
            FIELD,
            format!("[{}]", all.join(",")),
            format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {} and {}",
                named(one),
                named(other)
            ),
        ));
    }
}

fn check_finalizers(object: &Value, standard: bool, causes: &mut Vec<Cause>) {
    const FIELD: &str = "metadata.finalizers";
    let finalizers = object["metadata"]["finalizers"].as_array();
    let all = || {
        finalizers
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .enumerate()
    };
    for (_, finalizer) in all() {
        for why in qualified(finalizer) {
            causes.push(Cause::invalid(FIELD, format!("{finalizer:?}"), why));
        }
    }
    let has = |name: &str| all().any(|(_, finalizer)| finalizer == name);
    if has("orphan") && has("foregroundDeletion") {
        let shown: Vec<&str> = all().map(|(_, finalizer)| finalizer).collect();
        causes.push(Cause::invalid(
            FIELD,
            json!(shown),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    if !standard {
        return;
    }
    for (at, finalizer) in all() {
        if !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(&finalizer) {
            causes.push(Cause::invalid(
                format!("{FIELD}[{at}]"),
                format!("{finalizer:?}"),
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(metadata: &Value, core: bool) -> Vec<String> {
        let causes = check(&json!({ "metadata": metadata }), core);
        causes.into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn labels_and_annotations() {
        let good = json!({"labels": {"a.b/c": "", "x": "Y_1"}, "annotations": {"UP.example/Key": "any text"}});
        assert!(fields(&good, true).is_empty());
        let bad = json!({"labels": {"a/b/c": "-"}, "annotations": {"/x": "", "a b": ""}});
        assert_eq!(fields(&bad, false).len(), 4);
        assert_eq!(qualified("/x"), ["prefix part must be non-empty"]);
        let large = json!({"annotations": {"a": "x".repeat(ANNOTATIONS)}});
        assert_eq!(fields(&large, false), ["metadata.annotations"]);
    }

    #[test]
    fn owners() {
        let owner = |uid: &str, controller: bool| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": controller});
        let good = json!({"ownerReferences": [owner("1", true), owner("2", false)]});
        assert!(fields(&good, true).is_empty());
        let bad = json!({"ownerReferences": [owner("", true), owner("2", true)]});
        assert_eq!(
            fields(&bad, true),
            ["metadata.ownerReferences.uid", "metadata.ownerReferences"]
        );
    }

    #[test]
    fn finalizers() {
        let plain = json!({"finalizers": ["orphan", "plain", "example.com/x"]});
        assert_eq!(fields(&plain, true), ["metadata.finalizers[1]"]);
        assert!(fields(&plain, false).is_empty());
    }

    #[test]
    fn fixed() {
        let old = json!({"metadata": {"uid": "1"}});
        assert!(check_fixed(&old, &json!({"metadata": {}})).is_empty());
        assert_eq!(
            check_fixed(&old, &json!({"metadata": {"uid": "2"}})).len(),
            2
        );
    }
}
