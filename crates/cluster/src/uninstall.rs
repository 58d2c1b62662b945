//! Takes berth off a cluster.

use std::time::{Duration, Instant};

use berth_api::kubevirt::v1::VirtualMachineInstance;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;

use crate::manifests;

/// Most machines that a refusal names.
const NAMED: usize = 5;
/// Between two looks at what is deleted and not gone yet.
const LOOK: Duration = Duration::from_millis(200);

/// Why berth is still there, in whole or in part. Calling it again goes on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was deleted.
    #[error(
        "virtual machines exist: {named}{more}; delete them first (kubectl get vmi --all-namespaces)"
    )]
    Machines {
        /// The first of them.
        named: String,
        /// How many there are besides.
        more: String,
    },
    /// The API server.
    #[error("cannot {operation} {object}")]
    Api {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Why not.
        #[source]
        source: kube::Error,
    },
    /// Something holds it.
    #[error("{object} is deleted, and not gone after {seconds} s")]
    Stays {
        /// Kind and name.
        object: String,
        /// How long was waited.
        seconds: u64,
    },
}

/// Deletes what `berth manifests` prints, in the opposite order, and waits until it is gone; `gone` is told of each object.
///
/// # Errors
/// While virtual machines exist; when something cannot be deleted or is not gone in time.
pub async fn uninstall(
    client: &Client,
    namespace: &str,
    timeout: Duration,
    gone: impl Fn(&str),
) -> Result<(), Error> {
    refuse_machines(client).await?;
    let deadline = Instant::now() + timeout;
    let settings = manifests::Settings {
        namespace: namespace.to_owned(),
        ..manifests::Settings::default()
    };
    let mut left = Vec::new();
    for object in manifests::objects(&settings).iter().rev() {
        let (api, shown, name) = (api(client, object), shown(object), name(object));
        match api.delete(name, &DeleteParams::foreground()).await {
            Ok(_) => left.push((api, shown, name.to_owned())),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(source) => return Err(failed("delete", shown)(source)),
        }
    }
    for (api, shown, name) in left {
        loop {
            match api.get_metadata_opt(&name).await {
                Ok(None) => break,
                Err(kube::Error::Api(status)) if status.code == 404 => break,
                Err(source) => return Err(failed("read", shown)(source)),
                Ok(Some(_)) if Instant::now() >= deadline => {
                    return Err(Error::Stays {
                        object: shown,
                        seconds: timeout.as_secs(),
                    });
                }
                Ok(Some(_)) => tokio::time::sleep(LOOK).await,
            }
        }
        gone(&shown);
    }
    Ok(())
}

fn failed(operation: &'static str, object: String) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error::Api {
        operation,
        object,
        source,
    }
}

async fn refuse_machines(client: &Client) -> Result<(), Error> {
    let machines: Api<VirtualMachineInstance> = Api::all(client.clone());
    let found = match machines.list(&ListParams::default()).await {
        Ok(found) => found.items,
        // The definition is gone already: an earlier call did not come to its end.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(source) => return Err(failed("list", "virtual machines".into())(source)),
    };
    if found.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = found
        .iter()
        .take(NAMED)
        .map(|vmi| format!("{}/{}", vmi.namespace().unwrap_or_default(), vmi.name_any()))
        .collect();
    let more = match found.len() - names.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Err(Error::Machines {
        named: names.join(", "),
        more,
    })
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn shown(object: &Value) -> String {
    format!(
        "{} {}",
        object["kind"].as_str().unwrap_or_default(),
        name(object)
    )
}

fn api(client: &Client, object: &Value) -> Api<DynamicObject> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&object["apiVersion"]);
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let kind = GroupVersionKind::gvk(group, version, &text(&object["kind"]));
    let resource = ApiResource::from_gvk(&kind);
    match text(&object["metadata"]["namespace"]).as_str() {
        "" => Api::all_with(client.clone(), &resource),
        namespace => Api::namespaced_with(client.clone(), namespace, &resource),
    }
}
