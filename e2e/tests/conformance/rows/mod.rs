//! The rows, one module a subject.

mod apply;
mod auth;
mod crds;
mod deletion;
mod discovery;
mod kube_rs;
mod kubectl;
mod lists;
mod patches;
mod python;
mod verbs;
mod watches;

use std::pin::Pin;

use crate::session::Session;

type Body = Box<dyn Fn(Session) -> Pin<Box<dyn Future<Output = anyhow::Result<()>>>>>;

/// One thing that is tried.
pub(crate) struct Row {
    /// A sentence; unique.
    pub(crate) name: &'static str,
    /// Where upstream documents what is expected.
    pub(crate) source: &'static str,
    pub(crate) body: Body,
}

impl Row {
    /// The same on both servers, since it shows in answers.
    pub(crate) fn namespace(&self) -> String {
        let mut name: String = self
            .name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '-'
                }
            })
            .collect();
        name.truncate(60);
        format!("c-{}", name.trim_matches('-'))
    }
}

/// A row.
pub(crate) fn row<F, Fut>(name: &'static str, source: &'static str, body: F) -> Row
where
    F: Fn(Session) -> Fut + 'static,
    Fut: Future<Output = anyhow::Result<()>> + 'static,
{
    Row {
        name,
        source,
        body: Box::new(move |session| Box::pin(body(session))),
    }
}

/// All of them.
pub(crate) fn all() -> Vec<Row> {
    [
        verbs::rows(),
        lists::rows(),
        watches::rows(),
        patches::rows(),
        apply::rows(),
        deletion::rows(),
        crds::rows(),
        discovery::rows(),
        auth::rows(),
        kubectl::rows(),
        python::rows(),
        kube_rs::rows(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Where upstream documents things.
pub(crate) mod doc {
    pub(crate) const CONVENTIONS: &str = "https://github.com/kubernetes/community/blob/master/contributors/devel/sig-architecture/api-conventions.md";
    pub(crate) const CONCEPTS: &str =
        "https://kubernetes.io/docs/reference/using-api/api-concepts/";
    pub(crate) const APPLY: &str =
        "https://kubernetes.io/docs/reference/using-api/server-side-apply/";
    pub(crate) const CRD: &str = "https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/";
    pub(crate) const CRD_VERSIONS: &str = "https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definition-versioning/";
    pub(crate) const NAMES: &str =
        "https://kubernetes.io/docs/concepts/overview/working-with-objects/names/";
    pub(crate) const LABELS: &str =
        "https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/";
    pub(crate) const FIELDS: &str =
        "https://kubernetes.io/docs/concepts/overview/working-with-objects/field-selectors/";
    pub(crate) const FINALIZERS: &str =
        "https://kubernetes.io/docs/concepts/overview/working-with-objects/finalizers/";
    pub(crate) const KUBECTL_PATCH: &str = "https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/";
    pub(crate) const KUBECTL: &str = "https://kubernetes.io/docs/reference/kubectl/";
    pub(crate) const OPENAPI: &str = "https://kubernetes.io/docs/concepts/overview/kubernetes-api/";
    pub(crate) const WATCH_LIST: &str = "https://github.com/kubernetes/enhancements/tree/master/keps/sig-api-machinery/3157-watch-list";
    pub(crate) const RBAC: &str = "https://kubernetes.io/docs/reference/access-authn-authz/rbac/";
    pub(crate) const AUTHN: &str =
        "https://kubernetes.io/docs/reference/access-authn-authz/authentication/";
    pub(crate) const PODS: &str =
        "https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/";
}
