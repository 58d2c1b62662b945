//! `pods/binding`: the scheduler's word that a pod belongs to a node.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::error::{ApiError, Cause, Target};
use crate::registry::catalog::Scope;
use crate::registry::query::Call;
use crate::registry::write::modified;
use crate::registry::{Core, content, meta, store_error};
use crate::store::{Expect, StoreError, Write};

impl Core {
    pub(crate) async fn bind(
        &self,
        call: &mut Call,
        scope: &Scope,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        let binding = content::parse(
            &content::media_type(&call.headers),
            &content::read(body).await?,
        )?;
        let name = call.info.name.clone();
        let node = meta::text(&binding, &["target", "name"]).to_owned();
        if node.is_empty() {
            let causes = vec![Cause::required("target.name", "")];
            return Err(ApiError::Invalid {
                target: Target::new("", "Binding", name),
                causes,
            });
        }
        loop {
            let stored = self.read(scope, &call.info.namespace, &name)?;
            let mut pod = scope.present(&stored)?;
            let refused = |why: String| {
                Err(ApiError::Conflict {
                    target: Target::new("", "pods/binding", &name),
                    why,
                })
            };
            if meta::is_deleting(&pod) {
                return refused(format!(
                    "pod {name} is being deleted, cannot be assigned to a host"
                ));
            }
            let assigned = meta::text(&pod, &["spec", "nodeName"]);
            if !assigned.is_empty() {
                return refused(format!(
                    "pod {name} is already assigned to node {assigned:?}"
                ));
            }
            meta::entry(&mut pod, "spec").insert("nodeName".into(), json!(node));
            let conditions = meta::entry(&mut pod, "status")
                .entry("conditions")
                .or_insert(json!([]));
            if let Some(conditions) = conditions.as_array_mut() {
                conditions.retain(|condition| condition["type"] != "PodScheduled");
                conditions.push(json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": meta::now()}));
            }
            for (key, value) in binding["metadata"]["annotations"]
                .as_object()
                .into_iter()
                .flatten()
            {
                let annotations = meta::metadata(&mut pod)
                    .entry("annotations")
                    .or_insert(Value::Null);
                annotations[key] = value.clone();
            }
            if call.query.dry_run()? {
                break;
            }
            let write = Write {
                key: stored.key,
                expect: Expect::Revision(stored.revision),
                value: Some(scope.persist(&pod)),
            };
            match self.store.write(write).await {
                Ok(_) => break,
                Err(StoreError::Modified) => {}
                Err(StoreError::Missing) => return Err(modified(scope.target(&name))),
                Err(other) => return Err(store_error(&other)),
            }
        }
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(content::answer(
            StatusCode::CREATED,
            &status,
            &call.warnings,
        ))
    }
}
