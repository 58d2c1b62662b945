//! The provisioner: PersistentVolumes for claims that ask the driver, larger ones for claims that grew, and their end.
//!
//! What a claim is to get is told by its annotations; the answer is a PersistentVolume `pvc-<uid of the claim>`, made after
//! what is behind it. A volume whose claim is gone is removed when its policy says so, what is behind it first, so nothing is
//! forgotten.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use berth_api::events::Recorder;
use berth_api::quantity::{from_bytes, parse_bytes};
use berth_api::storage::{
    BLOCK, DEFAULT_CLASS, LOCAL_CLASS, PROVISIONED_BY, PROVISIONER, SELECTED_NODE,
    VOLUME_PROTECTION,
};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Driver, Local};
use crate::blocking;

const RETRY: Duration = Duration::from_secs(2);

/// Provisions until `shutdown`.
pub(crate) async fn run(client: Client, driver: Local, node: String, shutdown: CancellationToken) {
    let (claims, claims_writer) = reflector::store::<PersistentVolumeClaim>();
    let (volumes, volumes_writer) = reflector::store::<PersistentVolume>();
    let claim_events = reflector::reflector(
        claims_writer,
        watcher(Api::all(client.clone()), watcher::Config::default()).default_backoff(),
    )
    .map_ok(drop);
    let volume_events = reflector::reflector(
        volumes_writer,
        watcher(Api::all(client.clone()), watcher::Config::default()).default_backoff(),
    )
    .map_ok(drop);
    let mut changes =
        futures::stream::select(claim_events.boxed(), volume_events.boxed()).ready_chunks(256);
    let recorder = Recorder::new(client.clone(), driver.name(), Some(node.clone()));
    let mut provisioner = Provisioner {
        client,
        recorder,
        driver,
        node,
        claims,
        volumes,
        told: HashMap::new(),
    };
    provisioner.ensure_class(&shutdown).await;
    let mut retry = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RETRY), if retry => {}
            chunk = changes.next() => match chunk {
                None => return,
                Some(results) => for error in results.into_iter().filter_map(Result::err) {
                    tracing::warn!(%error, "volumes: watch failed, will be tried again");
                },
            },
        }
        retry = !provisioner.pass().await;
    }
}

struct Provisioner {
    client: Client,
    recorder: Recorder,
    driver: Local,
    node: String,
    claims: Store<PersistentVolumeClaim>,
    volumes: Store<PersistentVolume>,
    /// The last failure that was told, by the object's UID: the next attempts are silent.
    told: HashMap<String, String>,
}

impl Provisioner {
    /// The class of this machine, unless there is one of the name already: what an admin changed stays.
    async fn ensure_class(&self, shutdown: &CancellationToken) {
        let class: StorageClass = serde_json::from_value(json!({
            "metadata": {"name": LOCAL_CLASS, "annotations": {DEFAULT_CLASS: "true"}},
            "provisioner": self.driver.name(),
            "allowVolumeExpansion": true,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "Immediate",
        }))
        .expect("a class is an object");
        let api: Api<StorageClass> = Api::all(self.client.clone());
        loop {
            match api.create(&PostParams::default(), &class).await {
                Ok(_) => return,
                Err(kube::Error::Api(answer)) if answer.code == 409 => return,
                Err(error) => tracing::warn!(%error, "the storage class is not there yet"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Whether all of it went well.
    async fn pass(&mut self) -> bool {
        let ready = |ready: Option<Result<(), _>>| matches!(ready, Some(Ok(())));
        use futures::FutureExt as _;
        if !ready(
            self.claims
                .wait_until_ready()
                .now_or_never()
                .map(|r| r.map_err(drop)),
        ) || !ready(
            self.volumes
                .wait_until_ready()
                .now_or_never()
                .map(|r| r.map_err(drop)),
        ) {
            return true;
        }
        let mut well = true;
        for claim in self.claims.state() {
            if let Err(message) = self.serve(&claim).await {
                well = false;
                let uid = claim.uid().unwrap_or_default();
                if self.told.get(&uid) != Some(&message) {
                    self.recorder
                        .warning(&*claim, "ProvisioningFailed", &message)
                        .await;
                    self.told.insert(uid, message);
                }
            }
        }
        for volume in self.volumes.state() {
            if let Err(message) = self.end(&volume).await {
                well = false;
                let uid = volume.uid().unwrap_or_default();
                if self.told.get(&uid) != Some(&message) {
                    self.recorder
                        .warning(&*volume, "VolumeFailedDelete", &message)
                        .await;
                    self.told.insert(uid, message);
                }
            }
        }
        well
    }

    async fn serve(&self, claim: &PersistentVolumeClaim) -> Result<(), String> {
        let annotation = |name: &str| claim.annotations().get(name).map(String::as_str);
        let spec = claim.spec.clone().unwrap_or_default();
        if claim.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let requests = spec
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref());
        let bytes = requests
            .and_then(|requests| parse_bytes(requests.get("storage")?).ok())
            .unwrap_or(0);
        let block = spec.volume_mode.as_deref() == Some(BLOCK);
        if let Some(name) = spec.volume_name.as_deref().filter(|name| !name.is_empty()) {
            return self.grow(claim, name, bytes, block).await;
        }
        if annotation(PROVISIONER) != Some(self.driver.name()) {
            return Ok(());
        }
        if annotation(SELECTED_NODE).is_some_and(|node| node != self.node) {
            return Ok(());
        }
        let uid = claim.uid().unwrap_or_default();
        let name = format!("pvc-{uid}");
        if self
            .volumes
            .get(&reflector::ObjectRef::new(&name))
            .is_some()
        {
            return Ok(());
        }
        let class_name = spec.storage_class_name.clone().unwrap_or_default();
        let classes: Api<StorageClass> = Api::all(self.client.clone());
        let class = classes
            .get(&class_name)
            .await
            .map_err(|e| format!("storage class {class_name:?}: {e}"))?;
        let (driver, handle) = (self.driver.clone(), name.clone());
        let made = blocking(move || driver.create(&handle, bytes, block)).await;
        made.map_err(|e| {
            format!("failed to provision volume with StorageClass {class_name:?}: {e}")
        })?;
        let volume: PersistentVolume = serde_json::from_value(json!({
            "metadata": {
                "name": name,
                "annotations": {PROVISIONED_BY: self.driver.name()},
                "finalizers": [VOLUME_PROTECTION],
            },
            "spec": {
                "capacity": {"storage": from_bytes(bytes)},
                "accessModes": spec.access_modes,
                "volumeMode": spec.volume_mode,
                "storageClassName": class_name,
                "mountOptions": class.mount_options,
                "persistentVolumeReclaimPolicy": class.reclaim_policy.unwrap_or_else(|| "Delete".to_owned()),
                "claimRef": {
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "namespace": claim.namespace(), "name": claim.name_any(), "uid": uid,
                },
                "csi": {"driver": self.driver.name(), "volumeHandle": name},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [self.node]},
                ]}]}},
            },
        }))
        .map_err(|e| e.to_string())?;
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        match api.create(&PostParams::default(), &volume).await {
            Ok(_) => {
                let message = format!("Successfully provisioned volume {name}");
                self.recorder
                    .normal(claim, "ProvisioningSucceeded", &message)
                    .await;
                Ok(())
            }
            Err(kube::Error::Api(answer)) if answer.code == 409 => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// A claim that asks for more than its volume has.
    async fn grow(
        &self,
        claim: &PersistentVolumeClaim,
        name: &str,
        bytes: u64,
        block: bool,
    ) -> Result<(), String> {
        let capacity = |list: Option<&BTreeMap<String, _>>| {
            list.and_then(|list| parse_bytes(list.get("storage")?).ok())
                .unwrap_or(0)
        };
        let status = claim.status.clone().unwrap_or_default();
        if status.phase.as_deref() != Some("Bound") || capacity(status.capacity.as_ref()) >= bytes {
            return Ok(());
        }
        let Some(volume) = self.volumes.get(&reflector::ObjectRef::new(name)) else {
            return Ok(());
        };
        let spec = volume.spec.clone().unwrap_or_default();
        let Some(csi) = spec.csi.filter(|csi| csi.driver == self.driver.name()) else {
            return Ok(());
        };
        let driver = self.driver.clone();
        let grown = blocking(move || driver.grow(&csi.volume_handle, bytes, block)).await;
        grown.map_err(|e| format!("failed to expand volume {name}: {e}"))?;
        let size = json!({"storage": from_bytes(bytes)});
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({"spec": {"capacity": size}}));
        volumes
            .patch(name, &PatchParams::default(), &patch)
            .await
            .map_err(|e| e.to_string())?;
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default());
        let patch = Patch::Merge(json!({"status": {"capacity": size}}));
        claims
            .patch_status(&claim.name_any(), &PatchParams::default(), &patch)
            .await
            .map_err(|e| e.to_string())?;
        self.recorder
            .normal(claim, "VolumeResizeSuccessful", "Resize volume succeeded")
            .await;
        Ok(())
    }

    /// A volume that nobody has any more, and that is not to be kept.
    async fn end(&self, volume: &PersistentVolume) -> Result<(), String> {
        let spec = volume.spec.clone().unwrap_or_default();
        let Some(csi) = spec.csi.filter(|csi| csi.driver == self.driver.name()) else {
            return Ok(());
        };
        let phase = volume
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let delete = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
        if phase != Some("Released") || !delete || volume.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let driver = self.driver.clone();
        let removed = blocking(move || driver.delete(&csi.volume_handle)).await;
        removed.map_err(|e| e.to_string())?;
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        match api
            .delete(&volume.name_any(), &DeleteParams::default())
            .await
        {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}
