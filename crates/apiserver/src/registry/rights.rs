//! Nobody grants what they do not have: the check before a role or binding is written.
//!
//! A role may hold only rules that its writer holds, a binding may name only such a role; except with the verb `escalate` on
//! the role, `bind` on the role that is bound, or in the group `system:masters`.

use serde_json::Value;

use crate::auth::rbac::{self, Rule, rule};
use crate::auth::{MASTERS, RequestInfo};
use crate::error::ApiError;
use crate::registry::catalog::Scope;
use crate::registry::policy::Policy;
use crate::registry::query::Call;
use crate::registry::{Core, meta};

impl Core {
    /// Refuses a role or binding that would give more than its writer has; `old` is the stored one on update.
    pub(crate) fn confirm_rights(
        &self,
        call: &Call,
        scope: &Scope,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<(), ApiError> {
        if scope.policy != Policy::Access || call.user.groups.iter().any(|g| g == MASTERS) {
            return Ok(());
        }
        if old.is_some_and(|old| same_grant(old, object)) {
            return Ok(());
        }
        let forbidden = |why: String| ApiError::Forbidden {
            target: scope.target(meta::name(object)),
            why,
            cause: None,
        };
        let namespace = call.info.namespace_of(scope);
        if matches!(scope.def.kind.as_str(), "Role" | "ClusterRole") {
            let escalate = RequestInfo {
                is_resource: true,
                verb: "escalate".into(),
                group: rbac::GROUP.into(),
                version: scope.version().name.clone(),
                namespace: namespace.clone(),
                resource: scope.def.plural.clone(),
                name: call.info.name.clone(),
                ..RequestInfo::default()
            };
            if self.rbac.authorize(&call.user, &escalate).is_allowed() {
                return Ok(());
            }
            self.confirm_held(call, &namespace, &Rule::of_role(object))
                .map_err(forbidden)?;
            let aggregates = |role: &Value| {
                let selectors = role.pointer("/aggregationRule/clusterRoleSelectors");
                selectors
                    .and_then(Value::as_array)
                    .is_some_and(|list| !list.is_empty())
            };
            if (aggregates(object) || old.is_some_and(aggregates))
                && self.confirm_held(call, &namespace, &everything()).is_err()
            {
                return Err(forbidden(
                    "must have cluster-admin privileges to use the aggregationRule".into(),
                ));
            }
            return Ok(());
        }

        let text = |field| meta::text(object, &["roleRef", field]);
        let (kind, role) = (text("kind"), text("name"));
        let plural = match kind {
            "Role" => "roles",
            "ClusterRole" => "clusterroles",
            // Validation refuses it with better words.
            _ => return Ok(()),
        };
        let bind = RequestInfo {
            is_resource: true,
            verb: "bind".into(),
            group: rbac::GROUP.into(),
            version: "*".into(),
            namespace: namespace.clone(),
            resource: plural.into(),
            name: role.into(),
            ..RequestInfo::default()
        };
        if self.rbac.authorize(&call.user, &bind).is_allowed() {
            return Ok(());
        }
        let home = if kind == "Role" { &namespace } else { "" };
        let snapshot = self.catalog.get();
        let def = snapshot
            .find(rbac::GROUP, plural)
            .ok_or(ApiError::NoSuchPath)?;
        let roles = Scope::stored(def);
        let bound = self.read(&roles, home, role).map_err(|e| match e {
            // Upstream names the binding's resource, and the role.
            ApiError::NotFound(_) => ApiError::NotFound(scope.target(role)),
            other => other,
        })?;
        let bound = roles.present(&bound)?;
        self.confirm_held(call, &namespace, &Rule::of_role(&bound))
            .map_err(forbidden)
    }

    fn confirm_held(&self, call: &Call, namespace: &str, wanted: &[Rule]) -> Result<(), String> {
        let (owned, errors) = self.rbac.rules(&call.user, namespace);
        let missing = rule::missing(&owned, wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let mut text = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            call.user.name,
            rule::quoted(&call.user.groups),
            rule::describe(&missing).join("\n")
        );
        if !errors.is_empty() {
            text.push_str(&format!("; resolution errors: [{}]", errors.join(" ")));
        }
        Err(text)
    }
}

/// What only `cluster-admin` holds.
fn everything() -> [Rule; 2] {
    let all = || vec!["*".to_owned()];
    let resources = Rule {
        verbs: all(),
        groups: all(),
        resources: all(),
        ..Rule::default()
    };
    let paths = Rule {
        verbs: all(),
        paths: all(),
        ..Rule::default()
    };
    [resources, paths]
}

/// Whether only what garbage collection needs was changed: finalizers and owners.
fn same_grant(old: &Value, new: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        let metadata = meta::metadata(&mut object);
        for field in [
            "finalizers",
            "ownerReferences",
            "managedFields",
            "resourceVersion",
        ] {
            metadata.remove(field);
        }
        object
    };
    strip(old) == strip(new)
}
