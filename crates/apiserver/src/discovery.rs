//! Discovery: `/api`, `/apis` and below, plain and aggregated (`apidiscovery.k8s.io/v2` and `v2beta1`, by Accept header).
//!
//! Everything is computed from the resource definitions for each request; clients cache it by the ETag.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::resources::{ResourceDef, VersionDef};
use crate::schema::crd::version_order;

/// A finished document.
#[derive(Clone, Debug)]
pub struct Document {
    /// Value of the Content-Type header.
    pub content_type: String,
    /// Value of the ETag header, quotes included, if there is one.
    pub etag: Option<String>,
    /// The body.
    pub body: Bytes,
}

impl Document {
    pub(crate) fn json(content_type: &str, value: &Value) -> Self {
        Self {
            content_type: content_type.to_owned(),
            etag: None,
            body: value.to_string().into(),
        }
    }

    pub(crate) fn with_etag(self) -> Self {
        Self {
            etag: Some(format!("\"{}\"", hash(&self.body))),
            ..self
        }
    }
}

/// Hash of a document, upper case hex as upstream's ETags.
pub(crate) fn hash(bytes: &[u8]) -> String {
    digest(&SHA256, bytes)
        .as_ref()
        .iter()
        .map(|b| format!("{b:02X}"))
        .collect()
}

/// Verbs of an object resource, in upstream's order.
const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
/// Namespaces go one by one.
const NAMESPACE_VERBS: [&str; 7] = [
    "create", "delete", "get", "list", "patch", "update", "watch",
];
/// Verbs of a resource that only answers questions.
const REVIEW_VERBS: [&str; 1] = ["create"];
const SUBRESOURCE_VERBS: [&str; 3] = ["get", "patch", "update"];

fn verbs(def: &ResourceDef) -> &'static [&'static str] {
    if def.is_review() {
        &REVIEW_VERBS
    } else if def.group.is_empty() && def.plural == "namespaces" {
        &NAMESPACE_VERBS
    } else {
        &VERBS
    }
}

/// The document at `path` (`/api`, `/api/v1`, `/apis`, `/apis/G`, `/apis/G/V`), or `None`: not a discovery path, or no such group.
/// `server_address` is `host:port` for the answer of plain `/api`. The caller adds `Vary: Accept`.
pub fn document(
    defs: &[Arc<ResourceDef>],
    path: &str,
    accept: &str,
    server_address: &str,
) -> Option<Document> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    match (parts.as_slice(), aggregated(accept)) {
        (["api"], Some(version)) => Some(aggregate(defs, true, version)),
        (["apis"], Some(version)) => Some(aggregate(defs, false, version)),
        (["api"], None) => Some(Document::json(
            "application/json",
            &json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs":
                [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]}),
        )),
        (["apis"], None) => {
            let groups: Vec<Value> = groups(defs)
                .iter()
                .filter(|(g, _)| !g.is_empty())
                .map(|(g, v)| group(g, v))
                .collect();
            let list = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups});
            Some(Document::json("application/json", &list))
        }
        (["apis", name], _) => {
            let all = groups(defs);
            let versions = all.get(*name).filter(|_| !name.is_empty())?;
            let mut found = group(name, versions);
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            Some(Document::json("application/json", &found))
        }
        (["api", version], _) => resources(defs, "", version),
        (["apis", name, version], _) => resources(defs, name, version),
        _ => None,
    }
}

/// The aggregated version that comes first in the Accept header, before plain JSON.
pub fn aggregated(accept: &str) -> Option<&'static str> {
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameters: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
        let get = |key: &str| parameters.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        if media != "application/json" {
            continue;
        }
        match (get("g"), get("v"), get("as")) {
            (Some("apidiscovery.k8s.io"), Some("v2"), Some("APIGroupDiscoveryList")) => {
                return Some("v2");
            }
            (Some("apidiscovery.k8s.io"), Some("v2beta1"), Some("APIGroupDiscoveryList")) => {
                return Some("v2beta1");
            }
            (None, None, None) => return None,
            _ => {}
        }
    }
    None
}

/// Groups with their served versions, the preferred one first.
pub(crate) fn groups(defs: &[Arc<ResourceDef>]) -> BTreeMap<&str, Vec<&str>> {
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for def in defs {
        for version in def.versions.iter().filter(|v| v.served) {
            let versions = found.entry(&def.group).or_default();
            if !versions.contains(&version.name.as_str()) {
                versions.push(&version.name);
            }
        }
    }
    for versions in found.values_mut() {
        versions.sort_by_key(|name| std::cmp::Reverse(version_order(name)));
    }
    found
}

/// The resources of a group version, sorted by name.
pub(crate) fn of_version<'a>(
    defs: &'a [Arc<ResourceDef>],
    group: &str,
    version: &str,
) -> Vec<(&'a ResourceDef, &'a VersionDef)> {
    let mut found: Vec<_> = defs
        .iter()
        .filter(|d| d.group == group)
        .filter_map(|d| Some((&**d, d.served_version(version)?)))
        .collect();
    found.sort_by(|a, b| a.0.plural.cmp(&b.0.plural));
    found
}

fn group(name: &str, versions: &[&str]) -> Value {
    let entry =
        |version: &&str| json!({"groupVersion": format!("{name}/{version}"), "version": version});
    json!({
        "name": name,
        "versions": versions.iter().map(entry).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(entry),
    })
}

/// A subresource as discovery shows it: name, group, version and kind of what it takes, verbs.
struct Sub<'a> {
    name: &'a str,
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    verbs: &'a [&'a str],
}

fn subresources<'a>(def: &'a ResourceDef, version: &'a VersionDef) -> Vec<Sub<'a>> {
    let mut found: Vec<Sub<'_>> = def
        .subresources
        .iter()
        .map(|s| Sub {
            name: s.name,
            group: s.group,
            version: s.version,
            kind: s.kind,
            verbs: s.verbs,
        })
        .collect();
    if version.scale {
        found.push(Sub {
            name: "scale",
            group: "autoscaling",
            version: "v1",
            kind: "Scale",
            verbs: &SUBRESOURCE_VERBS,
        });
    }
    if version.status {
        found.push(Sub {
            name: "status",
            group: &def.group,
            version: &version.name,
            kind: &def.kind,
            verbs: &SUBRESOURCE_VERBS,
        });
    }
    found
}

fn resources(defs: &[Arc<ResourceDef>], group: &str, version: &str) -> Option<Document> {
    let found = of_version(defs, group, version);
    if found.is_empty() {
        return None;
    }
    let mut list = Vec::new();
    for (def, version) in found {
        let mut entry = json!({
            "name": def.plural,
            "singularName": def.singular,
            "namespaced": def.namespaced,
            "kind": def.kind,
            "verbs": verbs(def),
        });
        if !def.is_review() {
            entry["storageVersionHash"] = storage_hash(def).into();
        }
        if !def.short_names.is_empty() {
            entry["shortNames"] = json!(def.short_names);
        }
        if !def.categories.is_empty() {
            entry["categories"] = json!(def.categories);
        }
        list.push(entry);
        for sub in subresources(def, version) {
            let mut entry = json!({
                "name": format!("{}/{}", def.plural, sub.name),
                "singularName": "",
                "namespaced": def.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if (sub.group, sub.version) != (def.group.as_str(), version.name.as_str()) {
                entry["group"] = sub.group.into();
                entry["version"] = sub.version.into();
            }
            list.push(entry);
        }
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    Some(Document::json(
        "application/json",
        &json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}),
    ))
}

/// Tells clients that two versions are the same storage.
fn storage_hash(def: &ResourceDef) -> String {
    use base64::Engine as _;
    let name = format!("{}/{}/{}", def.group, def.storage_version, def.kind);
    base64::engine::general_purpose::STANDARD
        .encode(&digest(&SHA256, name.as_bytes()).as_ref()[..8])
}

fn aggregate(defs: &[Arc<ResourceDef>], core: bool, api: &str) -> Document {
    let items: Vec<Value> = groups(defs)
        .into_iter()
        .filter(|(name, _)| name.is_empty() == core)
        .map(|(name, versions)| {
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|version| {
                    let resources: Vec<Value> = of_version(defs, name, version)
                        .into_iter()
                        .map(|(d, v)| aggregated_resource(d, v))
                        .collect();
                    json!({"version": version, "freshness": "Current", "resources": resources})
                })
                .collect();
            let metadata = if name.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": name, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{api}"),
        "metadata": {},
        "items": items,
    });
    let content_type =
        format!("application/json;g=apidiscovery.k8s.io;v={api};as=APIGroupDiscoveryList");
    Document::json(&content_type, &list).with_etag()
}

fn aggregated_resource(def: &ResourceDef, version: &VersionDef) -> Value {
    // Built-in kinds answer with a kind of the version they are in, and do not repeat it.
    let response_kind = |group: &str, api: &str, kind: &str| {
        let own = !def.crd && group == def.group && api == version.name;
        let (group, api) = if own { ("", "") } else { (group, api) };
        json!({"group": group, "version": api, "kind": kind})
    };
    let mut entry = json!({
        "resource": def.plural,
        "responseKind": response_kind(&def.group, &version.name, &def.kind),
        "scope": if def.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": def.singular,
        "verbs": verbs(def),
    });
    if !def.short_names.is_empty() {
        entry["shortNames"] = json!(def.short_names);
    }
    if !def.categories.is_empty() {
        entry["categories"] = json!(def.categories);
    }
    let subs: Vec<Value> = subresources(def, version)
        .into_iter()
        .map(|s| {
            json!({
                "subresource": s.name,
                "responseKind": response_kind(s.group, s.version, s.kind),
                "verbs": s.verbs,
            })
        })
        .collect();
    if !subs.is_empty() {
        entry["subresources"] = subs.into();
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defs() -> Vec<Arc<ResourceDef>> {
        crate::resources::builtin()
            .into_iter()
            .map(Arc::new)
            .collect()
    }

    fn get(path: &str, accept: &str) -> Option<Value> {
        document(&defs(), path, accept, "127.0.0.1:6443")
            .map(|d| serde_json::from_slice(&d.body).expect("documents are JSON"))
    }

    #[test]
    fn plain_documents() {
        assert_eq!(
            get("/api", "application/json").expect("there")["versions"],
            json!(["v1"])
        );
        let apis = get("/apis", "*/*").expect("there");
        let names: Vec<&Value> = apis["groups"]
            .as_array()
            .expect("list")
            .iter()
            .map(|g| &g["name"])
            .collect();
        assert!(names.contains(&&json!("coordination.k8s.io")) && !names.contains(&&json!("")));
        let core = get("/api/v1", "").expect("there");
        let binding = core["resources"]
            .as_array()
            .expect("list")
            .iter()
            .find(|r| r["name"] == "pods/binding");
        assert_eq!(binding.expect("there")["verbs"], json!(["create"]));
        assert_eq!(core["groupVersion"], "v1");
        assert_eq!(
            get("/apis/storage.k8s.io", "").expect("there")["preferredVersion"]["version"],
            "v1"
        );
        assert!(get("/apis/nothing.example", "").is_none());
        assert!(get("/apis/storage.k8s.io/v9", "").is_none());
        assert!(get("/version", "").is_none());
    }

    #[test]
    fn aggregated_documents() {
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        let core = get("/api", accept).expect("there");
        assert_eq!(core["apiVersion"], "apidiscovery.k8s.io/v2");
        let pods = core["items"][0]["versions"][0]["resources"]
            .as_array()
            .expect("list")
            .iter()
            .find(|r| r["resource"] == "pods")
            .expect("pods")
            .clone();
        assert_eq!(pods["scope"], "Namespaced");
        assert_eq!(pods["shortNames"], json!(["po"]));
        assert_eq!(pods["subresources"][0]["responseKind"]["kind"], "Binding");
        let old = get(
            "/apis",
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        )
        .expect("there");
        assert_eq!(old["apiVersion"], "apidiscovery.k8s.io/v2beta1");
        assert_eq!(
            get("/api", "application/json").expect("there")["kind"],
            "APIVersions"
        );
    }
}
