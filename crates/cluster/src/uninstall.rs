//! Takes berth off a cluster.

use std::time::{Duration, Instant};

use berth_api::kubevirt::v1::{VirtualMachine, VirtualMachineInstance};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, PartialObjectMeta,
};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
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
        "virtual machines exist: {named}{more}; delete them first (kubectl get vm,vmi --all-namespaces)"
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
    // A machine that does not run has no instance, and is still somebody's.
    let mut found = names_of::<VirtualMachine>(client).await?;
    found.extend(names_of::<VirtualMachineInstance>(client).await?);
    found.sort();
    // The instance of a machine has its name.
    found.dedup();
    if found.is_empty() {
        return Ok(());
    }
    let more = match found.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    found.truncate(NAMED);
    Err(Error::Machines {
        named: found.join(", "),
        more,
    })
}

/// `namespace/name` of every object of a kind.
async fn names_of<K>(client: &Client) -> Result<Vec<String>, Error>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    let found = match api.list_metadata(&ListParams::default()).await {
        Ok(found) => found.items,
        // The definition is gone already: an earlier call did not come to its end.
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(source) => return Err(failed("list", K::plural(&()).into_owned())(source)),
    };
    let full = |object: &PartialObjectMeta<K>| {
        let namespace = object.namespace().unwrap_or_default();
        format!("{namespace}/{}", object.name_any())
    };
    Ok(found.iter().map(full).collect())
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
