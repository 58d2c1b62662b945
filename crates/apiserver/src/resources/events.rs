//! `events.k8s.io/v1`: the second face of the core events, which are what is stored.

use serde_json::{Map, Value};

use super::Alias;

/// The alias of `events.k8s.io` events.
pub(super) const ALIAS: Alias = Alias {
    group: "",
    plural: "events",
    to_storage,
    from_storage,
};

/// Names in `events.k8s.io` and in the core group.
const RENAMED: [(&str, &str); 7] = [
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn to_storage(object: &mut Value) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    for (new, core) in RENAMED {
        rename(map, new, core);
    }
    map.insert("apiVersion".to_owned(), "v1".into());
}

fn from_storage(object: &mut Value) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    for (new, core) in RENAMED {
        rename(map, core, new);
    }
    map.insert("apiVersion".to_owned(), "events.k8s.io/v1".into());
}

fn rename(map: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = map.remove(from) {
        map.insert(to.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_faces_carry_the_same() {
        let stored = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "a"}, "message": "m", "reason": "r",
            "involvedObject": {"kind": "Pod", "name": "p"}, "count": 2, "source": {"component": "c"}});
        let mut shown = stored.clone();
        from_storage(&mut shown);
        assert_eq!(shown["note"], "m");
        assert_eq!(shown["regarding"]["name"], "p");
        assert!(shown.get("message").is_none());
        to_storage(&mut shown);
        assert_eq!(shown, stored);
    }
}
