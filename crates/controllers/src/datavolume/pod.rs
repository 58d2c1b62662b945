//! The claim of a DataVolume, and the pod that fills it. Pure.

use std::collections::BTreeMap;

use berth_api::cdi::importer::{
    CERTIFICATES_DIR, From, HEADERS_DIR, Job, METRICS_PORT, SECRET_DIR, SOURCE_DEVICE, SOURCE_DIR,
    VOLUME_DEVICE, VOLUME_DIR,
};
use berth_api::cdi::v1beta1::{ClaimSpec, DataVolume, DataVolumeSource};
use berth_api::cdi::with_overhead;
use berth_api::quantity::{from_bytes, parse_bytes};
use berth_api::storage::BLOCK;
use berth_api::{labels, settings::v1::Configuration};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::{Runner, Settings};

/// The user of importers on a cluster, and the group of what they write: QEMU's, as in launchers.
const USER: i64 = 107;

/// The claim of a DataVolume.
pub(super) fn claim(dv: &DataVolume) -> PersistentVolumeClaim {
    let (spec, is_storage) = match (&dv.spec.storage, &dv.spec.pvc) {
        (Some(storage), _) => (storage.clone(), true),
        (None, pvc) => (pvc.clone().unwrap_or_default(), false),
    };
    let ClaimSpec {
        access_modes,
        resources,
        storage_class_name,
        volume_mode,
        volume_name,
    } = spec;
    let mut requests = resources
        .map(|resources| resources.requests)
        .unwrap_or_default();
    if is_storage
        && volume_mode.as_deref() != Some(BLOCK)
        && let Some(bytes) = requests
            .get("storage")
            .and_then(|size| parse_bytes(size).ok())
    {
        requests.insert("storage".to_owned(), from_bytes(with_overhead(bytes)));
    }
    let access_modes = if access_modes.is_empty() {
        vec!["ReadWriteOnce".to_owned()]
    } else {
        access_modes
    };
    let mut labels: BTreeMap<String, String> = dv.labels().clone();
    labels.insert("app".to_owned(), "containerized-data-importer".to_owned());
    serde_json::from_value(json!({
        "metadata": {
            "name": dv.name_any(), "namespace": dv.namespace(), "labels": labels,
            "annotations": {berth_api::cdi::READY: "false"},
            "ownerReferences": [dv.controller_owner_ref(&())],
        },
        "spec": {
            "accessModes": access_modes, "resources": {"requests": requests},
            "storageClassName": storage_class_name, "volumeMode": volume_mode, "volumeName": volume_name,
        },
    }))
    .expect("a claim is an object")
}

/// The name of the pod that fills the claim.
pub(super) fn pod_name(dv: &DataVolume) -> String {
    let mut name = format!("importer-{}", dv.name_any());
    if name.len() > 63 {
        // Names of DataVolumes can be longer than those of pods should be.
        let uid = dv.uid().unwrap_or_default();
        name.truncate(54);
        name = format!(
            "{}-{}",
            name.trim_end_matches(['-', '.']),
            &uid[..uid.len().min(8)]
        );
    }
    name
}

/// The pod that fills the claim. `source_is_block`: of the claim that is copied.
pub(super) fn pod(
    dv: &DataVolume,
    claim: &PersistentVolumeClaim,
    source_is_block: bool,
    settings: &Settings,
    configuration: &Configuration,
) -> Pod {
    let spec = claim.spec.clone().unwrap_or_default();
    let block = spec.volume_mode.as_deref() == Some(BLOCK);
    let source = dv.spec.source.clone().unwrap_or_default();
    let bytes = |list: Option<BTreeMap<String, _>>| {
        list.and_then(|list| parse_bytes(list.get("storage")?).ok())
    };
    let there = bytes(claim.status.clone().and_then(|status| status.capacity));
    let asked = bytes(spec.resources.and_then(|resources| resources.requests));
    let job = Job {
        from: from(&source, source_is_block, settings, configuration),
        owner_uid: dv.uid().unwrap_or_default(),
        claim: there.or(asked).unwrap_or(0),
        asked: asked.or(there).unwrap_or(0),
        block,
        preallocate: dv.spec.preallocation == Some(true),
    };
    let mut volumes =
        vec![json!({"name": "data", "persistentVolumeClaim": {"claimName": claim.name_any()}})];
    // What a reader meets too early is kept beside the disk, or here where that is a device.
    volumes.push(json!({"name": "tmp", "emptyDir": {}}));
    let mut mounts = vec![json!({"name": "tmp", "mountPath": "/tmp"})];
    let mut devices = Vec::<Value>::new();
    if block {
        devices.push(json!({"name": "data", "devicePath": VOLUME_DEVICE}));
    } else {
        mounts.push(json!({"name": "data", "mountPath": VOLUME_DIR}));
    }
    if let Some(pvc) = &source.pvc {
        volumes.push(json!({"name": "source", "persistentVolumeClaim": {"claimName": pvc.name, "readOnly": !source_is_block}}));
        if source_is_block {
            devices.push(json!({"name": "source", "devicePath": SOURCE_DEVICE}));
        } else {
            mounts.push(json!({"name": "source", "mountPath": SOURCE_DIR, "readOnly": true}));
        }
    }
    let mut texts = |name: String, at: String, source: Value| {
        let mut volume = source;
        volume["name"] = json!(name);
        volumes.push(volume);
        mounts.push(json!({"name": name, "mountPath": at, "readOnly": true}));
    };
    let secret = source
        .http
        .as_ref()
        .and_then(|http| http.secret_ref.clone());
    let secret = secret.or_else(|| {
        source
            .registry
            .as_ref()
            .and_then(|registry| registry.secret_ref.clone())
    });
    if let Some(secret) = secret {
        texts(
            "secret".to_owned(),
            SECRET_DIR.to_owned(),
            json!({"secret": {"secretName": secret}}),
        );
    }
    if let Some(http) = &source.http {
        if let Some(name) = &http.cert_config_map {
            texts(
                "certificates".to_owned(),
                CERTIFICATES_DIR.to_owned(),
                json!({"configMap": {"name": name}}),
            );
        }
        for (index, name) in http.secret_extra_headers.iter().enumerate() {
            texts(
                format!("headers-{index}"),
                format!("{HEADERS_DIR}/{index}"),
                json!({"secret": {"secretName": name}}),
            );
        }
    }
    let on_cluster = settings.runner == Runner::Cluster;
    let user = on_cluster.then(|| {
        json!({
            "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "runAsNonRoot": true,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
        })
    });
    let pull_policy = configuration
        .image_pull_policy
        .clone()
        .unwrap_or_else(|| "IfNotPresent".to_owned());
    let pod = json!({
        "metadata": {
            "name": pod_name(dv), "namespace": dv.namespace(),
            "labels": {"app": "containerized-data-importer", labels::CDI: labels::IMPORTER},
            "ownerReferences": [dv.controller_owner_ref(&())],
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 5,
            "priorityClassName": dv.spec.priority_class_name,
            "securityContext": user,
            "containers": [{
                "name": "importer",
                "image": settings.launcher_image,
                "imagePullPolicy": pull_policy,
                "command": ["/usr/bin/berth", "importer", serde_json::to_string(&job).expect("a job is an object")],
                "ports": [{"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "750m", "memory": "600M"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": mounts,
                "volumeDevices": devices,
            }],
            "volumes": volumes,
        },
    });
    serde_json::from_value(pod).expect("a pod is an object")
}

fn from(
    source: &DataVolumeSource,
    source_is_block: bool,
    settings: &Settings,
    configuration: &Configuration,
) -> From {
    if let Some(http) = &source.http {
        return From::Http {
            url: http.url.clone(),
            checksum: http.checksum.clone(),
            headers: http.extra_headers.clone(),
            secret_headers: http.secret_extra_headers.len(),
            insecure: http.insecure_skip_verify == Some(true),
        };
    }
    if let Some(registry) = &source.registry {
        let image = registry
            .url
            .strip_prefix("docker://")
            .unwrap_or(&registry.url)
            .to_owned();
        let host = image.split('/').next().unwrap_or_default();
        return From::Registry {
            plain_http: settings
                .insecure_registries
                .iter()
                .chain(&configuration.insecure_registries)
                .any(|insecure| insecure == host),
            image,
        };
    }
    match &source.pvc {
        Some(_) => From::Volume {
            block: source_is_block,
        },
        None => From::Blank {},
    }
}
