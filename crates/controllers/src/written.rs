//! What a controller has written and its cache may not have seen yet.
//!
//! A plan made on what was there before one's own last write ends in a conflict, a second read and a second plan. The watch
//! brings the newer version soon; until then there is nothing to decide.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use kube::ResourceExt;

/// The newest version of each object that was written here, by UID.
#[derive(Debug, Default)]
pub(crate) struct Written(Mutex<HashMap<String, u64>>);

impl Written {
    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the answer to a write.
    pub(crate) fn note<K: ResourceExt>(&self, written: &K) {
        if let (Some(uid), Some(version)) = (written.uid(), version(written)) {
            let mut all = self.locked();
            let known = all.entry(uid).or_default();
            *known = version.max(*known);
        }
    }

    /// Whether an object of the cache is older than what was written here; the watch will bring the newer one. Versions
    /// that are no numbers are never told apart.
    pub(crate) fn is_ahead_of<K: ResourceExt>(&self, cached: &K) -> bool {
        let (Some(uid), Some(version)) = (cached.uid(), version(cached)) else {
            return false;
        };
        self.locked()
            .get(&uid)
            .is_some_and(|known| *known > version)
    }

    /// The object is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.locked().remove(uid);
    }
}

fn version<K: ResourceExt>(object: &K) -> Option<u64> {
    object.resource_version()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use berth_api::kubevirt::v1::VirtualMachine;

    use super::*;

    #[test]
    fn the_cache_is_behind_until_it_has_what_was_written() {
        let vm = |version: &str| -> VirtualMachine {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "vm", "uid": "u", "resourceVersion": version},
                "spec": {"template": {"spec": {"domain": {"devices": {}}}}},
            }))
            .unwrap()
        };
        let written = Written::default();
        assert!(!written.is_ahead_of(&vm("7")));
        written.note(&vm("9"));
        written.note(&vm("8"));
        assert!(written.is_ahead_of(&vm("8")));
        assert!(!written.is_ahead_of(&vm("9")) && !written.is_ahead_of(&vm("10")));
        assert!(!written.is_ahead_of(&vm("x")));
        written.forget("u");
        assert!(!written.is_ahead_of(&vm("1")));
    }
}
