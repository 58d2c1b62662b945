//! Who may do what.

use serde_json::json;

use super::{Row, doc, row};
use crate::fixtures::{MAPS, map};
use crate::session::JSON_BODY;

const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "access reviews: the admin may, a stranger may not",
            doc::RBAC,
            |t| async move {
                let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": {"verb": "create", "resource": "pods", "namespace": "default"}}});
                t.post(REVIEWS, &review)
                    .await?
                    .is(201, &json!({"status": {"allowed": true}}))?;
                t.call(
                    "POST",
                    REVIEWS,
                    &[JSON_BODY, ("impersonate-user", "nobody")],
                    &review.to_string(),
                )
                .await?
                .is(201, &json!({"status": {"allowed": false}}))?;
                let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": "nobody", "resourceAttributes": {"verb": "get", "resource": "pods"}}});
                t.post(
                    "/apis/authorization.k8s.io/v1/subjectaccessreviews",
                    &review,
                )
                .await?
                .is(201, &json!({"status": {"allowed": false}}))?;
                Ok(())
            },
        ),
        row(
            "a stranger is refused with the words of upstream",
            doc::RBAC,
            |t| async move {
                let nobody = ("impersonate-user", "nobody");
                t.call("GET", MAPS, &[nobody], "")
                    .await?
                    .is(403, &json!({"reason": "Forbidden"}))?;
                t.call("GET", &format!("{MAPS}/a"), &[nobody], "")
                    .await?
                    .is(403, &json!({}))?;
                t.call("POST", MAPS, &[nobody, JSON_BODY], &map("a").to_string())
                    .await?
                    .is(403, &json!({}))?;
                t.call(
                    "GET",
                    "/apis/conformance.example.com/v1/rings",
                    &[nobody],
                    "",
                )
                .await?
                .is(403, &json!({}))?;
                t.call("GET", "/api/v1/nodes/n", &[nobody], "")
                    .await?
                    .is(403, &json!({}))?;
                t.call("GET", "/metrics", &[nobody], "")
                    .await?
                    .is(403, &json!({}))?;
                Ok(())
            },
        ),
        row(
            "a bearer token that is wrong is 401",
            doc::AUTHN,
            |t| async move {
                let url = format!("{}/api/v1/namespaces", t.target.server.url());
                for header in ["Authorization: Bearer nonsense", "Accept: application/json"] {
                    let (url, header) = (url.clone(), header.to_owned());
                    let out = tokio::task::spawn_blocking(move || {
                        berth_e2e::run(
                            std::process::Command::new("curl").args(["-sk", "-H", &header, &url]),
                            "",
                        )
                    })
                    .await??
                    .ok()?;
                    let status: serde_json::Value = serde_json::from_str(&out)?;
                    t.observe("refused", status);
                }
                Ok(())
            },
        ),
        row(
            "roles: bindings let in, escalation is refused",
            doc::RBAC,
            |t| async move {
                let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/roles";
                let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/rolebindings";
                let role = |name: &str, verbs: serde_json::Value, resources: serde_json::Value| json!({"metadata": {"name": name}, "rules": [{"apiGroups": ["", "rbac.authorization.k8s.io"], "verbs": verbs, "resources": resources}]});
                t.post(
                    roles,
                    &role(
                        "r",
                        json!(["get", "list", "create"]),
                        json!(["configmaps", "roles"]),
                    ),
                )
                .await?
                .is(201, &json!({}))?;
                t.post(bindings, &json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "alice", "apiGroup": "rbac.authorization.k8s.io"}]})).await?.is(201, &json!({}))?;
                let alice = ("impersonate-user", "alice");
                let begin = std::time::Instant::now();
                while t.quiet("GET", MAPS, &[alice], "").await?.code != 200 {
                    anyhow::ensure!(
                        begin.elapsed() < std::time::Duration::from_secs(20),
                        "the binding has no effect"
                    );
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
                t.call("POST", MAPS, &[alice, JSON_BODY], &map("m").to_string())
                    .await?
                    .is(201, &json!({}))?;
                t.call("DELETE", &format!("{MAPS}/m"), &[alice], "")
                    .await?
                    .is(403, &json!({}))?;
                t.call(
                    "POST",
                    roles,
                    &[alice, JSON_BODY],
                    &role("s", json!(["delete"]), json!(["configmaps"])).to_string(),
                )
                .await?
                .is(403, &json!({}))?;
                t.call(
                    "POST",
                    roles,
                    &[alice, JSON_BODY],
                    &role("s", json!(["get"]), json!(["configmaps"])).to_string(),
                )
                .await?
                .is(201, &json!({}))?;
                t.post(bindings, &json!({"metadata": {"name": "c"}, "roleRef": {"apiGroup": "", "kind": "Thing", "name": ""}})).await?.is(422, &json!({}))?;
                Ok(())
            },
        ),
    ]
}
