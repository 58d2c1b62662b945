//! What a delete is asked to do: DeleteOptions from the body, or from the query where there is no body, as upstream.

use axum::body::Body;
use serde_json::{Value, json};

use crate::error::{ApiError, Cause, Target};
use crate::gc::{FOREGROUND, ORPHAN};
use crate::registry::catalog::Scope;
use crate::registry::query::Call;
use crate::registry::{content, meta};

/// What happens to the objects that name the deleted one as their owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Propagation {
    /// They go first; those that block the owner's deletion hold it.
    Foreground,
    /// They go afterwards.
    Background,
    /// They stay and forget their owner.
    Orphan,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) grace: Option<i64>,
    uid: Option<String>,
    resource_version: Option<String>,
    propagation: Option<Propagation>,
    /// The deprecated form of `propagation`.
    pub(crate) orphan: Option<bool>,
}

const POLICIES: &str = r#"supported values: "Foreground", "Background", "Orphan", "nil""#;

impl DeleteOptions {
    /// The delete of an object as the server knows it.
    pub(crate) fn of(uid: &str, resource_version: Option<&str>, propagation: Propagation) -> Self {
        Self {
            uid: Some(uid.to_owned()),
            resource_version: resource_version.map(str::to_owned),
            propagation: Some(propagation),
            ..Self::default()
        }
    }

    /// Reads and checks the options of a request. The call's `dryRun` becomes that of the options.
    pub(crate) async fn read(call: &mut Call, body: Body) -> Result<Self, ApiError> {
        let bytes = content::read(body).await?;
        let given = if bytes.is_empty() {
            from_query(call)?
        } else {
            content::parse(&content::media_type(&call.headers), &bytes)?
        };
        let options = Self::parse(&given)?;
        let dry_run = given["dryRun"]
            .as_array()
            .is_some_and(|list| !list.is_empty());
        call.query.set_dry_run(dry_run);
        Ok(options)
    }

    fn parse(given: &Value) -> Result<Self, ApiError> {
        let wrong = |value: &Value, field: &str, wanted: &str| {
            let found = match value {
                Value::Bool(_) => "bool",
                Value::Number(_) => "number",
                Value::String(_) => "string",
                Value::Array(_) => "array",
                Value::Object(_) | Value::Null => "object",
            };
            ApiError::Unexplained(format!(
                "json: cannot unmarshal {found} into Go struct field DeleteOptions.{field} of type {wanted}"
            ))
        };
        let kind = given["kind"].as_str().unwrap_or_default();
        if !matches!(kind, "" | "DeleteOptions") {
            let version = given["apiVersion"].as_str().unwrap_or_default();
            return Err(ApiError::Unexplained(format!(
                "no kind {kind:?} is registered for version {version:?} in scheme \"pkg/runtime/scheme.go:110\""
            )));
        }
        let number = |field: &str| match &given[field] {
            Value::Null => Ok(None),
            value => value
                .as_i64()
                .map(Some)
                .ok_or_else(|| wrong(value, field, "int64")),
        };
        let text = |value: &Value, field: &str| match value {
            Value::Null => Ok(None),
            value => value
                .as_str()
                .map(|text| Some(text.to_owned()))
                .ok_or_else(|| wrong(value, field, "string")),
        };
        let orphan = match &given["orphanDependents"] {
            Value::Null => None,
            value => Some(
                value
                    .as_bool()
                    .ok_or_else(|| wrong(value, "orphanDependents", "bool"))?,
            ),
        };
        let mut causes = Vec::new();
        let policy = text(&given["propagationPolicy"], "propagationPolicy")?;
        let propagation = match policy.as_deref() {
            None => None,
            Some("Foreground") => Some(Propagation::Foreground),
            Some("Background") => Some(Propagation::Background),
            Some("Orphan") => Some(Propagation::Orphan),
            Some(other) => {
                causes.push(Cause {
                    reason: "FieldValueNotSupported".into(),
                    field: "propagationPolicy".into(),
                    message: format!("Unsupported value: {other:?}: {POLICIES}"),
                });
                None
            }
        };
        if let Some(policy) = policy.as_deref().filter(|_| orphan.is_some()) {
            causes = vec![Cause::invalid(
                "propagationPolicy",
                format!("{policy:?}"),
                "orphanDependents and deletionPropagation cannot be both set",
            )];
        }
        causes.extend(check_dry_run(&given["dryRun"]));
        if !causes.is_empty() {
            return Err(ApiError::Invalid {
                target: Target::new("meta.k8s.io", "DeleteOptions", ""),
                causes,
            });
        }
        Ok(Self {
            // As upstream: less than nothing is as good as at once.
            grace: number("gracePeriodSeconds")?.map(|grace| if grace < 0 { 1 } else { grace }),
            uid: text(&given["preconditions"]["uid"], "preconditions.uid")?,
            resource_version: text(
                &given["preconditions"]["resourceVersion"],
                "preconditions.resourceVersion",
            )?,
            propagation,
            orphan,
        })
    }

    /// Whether the object is the one that is meant.
    pub(crate) fn check(&self, scope: &Scope, name: &str, old: &Value) -> Result<(), ApiError> {
        let failed = |why: String| ApiError::Conflict {
            target: scope.kind_target(name),
            why,
        };
        let uid = meta::text(old, &["metadata", "uid"]);
        if let Some(given) = self.uid.as_deref().filter(|given| *given != uid) {
            return Err(failed(format!(
                "the UID in the precondition ({given}) does not match the UID in record ({uid}). The object might have \
                 been deleted and then recreated"
            )));
        }
        let revision = meta::resource_version(old);
        match self
            .resource_version
            .as_deref()
            .filter(|given| *given != revision)
        {
            Some(given) => Err(failed(format!(
                "the ResourceVersion in the precondition ({given}) does not match the ResourceVersion in record \
                 ({revision}). The object might have been modified"
            ))),
            None => Ok(()),
        }
    }

    /// The object's finalizers with those that the propagation asks for; none if they stay as they are.
    pub(crate) fn finalizers(&self, scope: &Scope, old: &Value) -> Option<Vec<String>> {
        let had = meta::finalizers(old);
        // Nobody owns by being an event.
        let wanted = if scope.def.plural == "events" {
            None
        } else {
            match (self.propagation, self.orphan) {
                (Some(Propagation::Foreground), _) => Some(FOREGROUND),
                (Some(Propagation::Orphan), _) | (None, Some(true)) => Some(ORPHAN),
                (Some(Propagation::Background), _) | (None, Some(false)) => None,
                (None, None) if had.contains(&ORPHAN) => Some(ORPHAN),
                (None, None) if had.contains(&FOREGROUND) => Some(FOREGROUND),
                (None, None) => None,
            }
        };
        let mut new: Vec<String> = had
            .iter()
            .filter(|f| **f != FOREGROUND && **f != ORPHAN || Some(**f) == wanted)
            .map(|f| (*f).to_owned())
            .collect();
        if let Some(wanted) = wanted
            && !had.contains(&wanted)
        {
            new.push(wanted.to_owned());
        }
        (new != had).then_some(new)
    }
}

fn check_dry_run(given: &Value) -> Option<Cause> {
    let list = given.as_array()?;
    let fine = list.iter().all(|value| value == "All");
    (!fine).then(|| Cause {
        reason: "FieldValueNotSupported".into(),
        field: "dryRun".into(),
        message: format!("Unsupported value: {given}: supported values: \"All\""),
    })
}

fn from_query(call: &Call) -> Result<Value, ApiError> {
    let mut options = json!({});
    match call.query.get("gracePeriodSeconds") {
        "" => {}
        text => {
            let grace: i64 = text.parse().map_err(|_| {
                ApiError::BadRequest(format!(
                    "strconv.ParseInt: parsing {text:?}: invalid syntax"
                ))
            })?;
            options["gracePeriodSeconds"] = json!(grace);
        }
    }
    if call.query.has("orphanDependents") {
        options["orphanDependents"] = json!(call.query.flag("orphanDependents"));
    }
    if call.query.has("propagationPolicy") {
        options["propagationPolicy"] = json!(call.query.get("propagationPolicy"));
    }
    let dry_run = call.query.all("dryRun");
    if !dry_run.is_empty() {
        options["dryRun"] = json!(dry_run);
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_refusal() {
        let refused = |given: Value| DeleteOptions::parse(&given).unwrap_err().to_string();
        assert_eq!(
            refused(json!({"propagationPolicy": "Foo", "dryRun": ["x"]})),
            "DeleteOptions.meta.k8s.io \"\" is invalid: [propagationPolicy: Unsupported value: \"Foo\": supported values: \
             \"Foreground\", \"Background\", \"Orphan\", \"nil\", dryRun: Unsupported value: [\"x\"]: supported values: \"All\"]"
        );
        assert_eq!(
            refused(json!({"propagationPolicy": "Foreground", "orphanDependents": true})),
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Invalid value: \"Foreground\": orphanDependents \
             and deletionPropagation cannot be both set"
        );
        assert_eq!(
            refused(json!({"gracePeriodSeconds": "abc"})),
            "json: cannot unmarshal string into Go struct field DeleteOptions.gracePeriodSeconds of type int64"
        );
        assert_eq!(
            DeleteOptions::parse(&json!({"gracePeriodSeconds": -5}))
                .unwrap()
                .grace,
            Some(1)
        );
    }
}
