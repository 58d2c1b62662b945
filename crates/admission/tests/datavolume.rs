//! DataVolumes: what is accepted, and what is refused by which field.
#![allow(clippy::unwrap_used)]

use berth_admission::{Operation, Request, admit};
use serde_json::{Value, json};

fn decide(object: &Value, old: Option<&Value>) -> Result<(), Vec<String>> {
    let request = Request {
        operation: if old.is_some() {
            Operation::Update
        } else {
            Operation::Create
        },
        kind: "DataVolume",
        subresource: None,
        namespace: "lab",
        name: "disk",
        object: Some(object),
        old_object: old,
    };
    let refused = |refusal: berth_admission::Refusal| {
        refusal.causes.iter().map(ToString::to_string).collect()
    };
    admit(&request).map(drop).map_err(refused)
}

fn disk(change: impl FnOnce(&mut Value)) -> Value {
    let mut object = json!({
        "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "metadata": {"name": "disk"},
        "spec": {
            "source": {"http": {"url": "https://example.org/disk.qcow2"}},
            "storage": {"resources": {"requests": {"storage": "10Gi"}}},
        },
    });
    change(&mut object);
    object
}

#[test]
fn what_is_a_datavolume() {
    let sum = format!("sha256:{}", "a".repeat(64));
    for object in [
        disk(|_| ()),
        disk(|o| {
            o["spec"]["source"] =
                json!({"registry": {"url": "docker://registry:5000/a/b:1", "secretRef": "s"}});
        }),
        disk(|o| o["spec"]["source"] = json!({"pvc": {"name": "other", "namespace": "lab"}})),
        disk(|o| o["spec"]["source"] = json!({"blank": {}})),
        disk(|o| o["spec"]["source"]["http"]["checksum"] = json!(sum)),
        disk(|o| {
            o["spec"]["pvc"] = json!({"accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "resources": {"requests": {"storage": 1_000_000}}});
            o["spec"].as_object_mut().unwrap().remove("storage");
        }),
    ] {
        assert_eq!(decide(&object, None), Ok(()), "{object}");
    }
}

#[test]
fn what_is_none_is_refused_by_field() {
    let refused = |field: &str, change: fn(&mut Value)| {
        let causes = decide(&disk(change), None).unwrap_err();
        assert!(
            causes.iter().any(|cause| cause.starts_with(field)),
            "{field}: {causes:?}"
        );
    };
    refused("spec.source: ", |o| o["spec"]["source"] = json!({}));
    refused("spec.source.blank: ", |o| {
        o["spec"]["source"]["blank"] = json!({});
    });
    refused("spec.source.upload: ", |o| {
        o["spec"]["source"] = json!({"upload": {}});
    });
    refused("spec.source.http.url: ", |o| {
        o["spec"]["source"]["http"]["url"] = json!("ftp://example.org/x");
    });
    refused("spec.source.http.url: ", |o| {
        o["spec"]["source"]["http"]["url"] = json!("https:///x");
    });
    refused("spec.source.http.checksum: ", |o| {
        o["spec"]["source"]["http"]["checksum"] = json!("sha256:abc");
    });
    refused("spec.source.http.extraHeaders[0]: ", |o| {
        o["spec"]["source"]["http"]["extraHeaders"] = json!(["a: b\r\nc: d"]);
    });
    refused("spec.source.registry.url: ", |o| {
        o["spec"]["source"] = json!({"registry": {"url": "registry/a"}});
    });
    refused("spec.source.pvc.namespace: ", |o| {
        o["spec"]["source"] = json!({"pvc": {"name": "a", "namespace": "elsewhere"}});
    });
    refused("spec.storage: ", |o| {
        drop(o["spec"].as_object_mut().unwrap().remove("storage"));
    });
    refused("spec.pvc: ", |o| {
        o["spec"]["pvc"] = o["spec"]["storage"].clone();
    });
    refused("spec.storage.resources.requests.storage: ", |o| {
        o["spec"]["storage"] = json!({});
    });
    refused("spec.storage.resources.requests.storage: ", |o| {
        o["spec"]["storage"]["resources"]["requests"]["storage"] = json!("-1");
    });
    refused("spec.storage.accessModes[0]: ", |o| {
        o["spec"]["storage"]["accessModes"] = json!(["Sometimes"]);
    });
    refused("spec.contentType: ", |o| {
        o["spec"]["contentType"] = json!("archive");
    });
    refused("spec.sourceRef: ", |o| {
        o["spec"]["sourceRef"] = json!({"kind": "DataSource"});
    });
    // Headers may hold secrets.
    let secret = disk(|o| o["spec"]["source"]["http"]["extraHeaders"] = json!(["hunter2"]));
    assert!(!format!("{:?}", decide(&secret, None)).contains("hunter2"));
}

#[test]
fn the_spec_stays() {
    let old = disk(|_| ());
    let labelled = disk(|o| o["metadata"]["labels"] = json!({"a": "b"}));
    assert_eq!(decide(&labelled, Some(&old)), Ok(()));
    let other = disk(|o| o["spec"]["source"] = json!({"blank": {}}));
    assert!(decide(&other, Some(&old)).unwrap_err()[0].starts_with("spec: "));
}
