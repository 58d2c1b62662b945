//! Manifests and indexes, in the forms of OCI and of Docker (schema 2).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::Digest;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// The largest manifest that is read; the distribution specification's own limit.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
const MAX_LAYERS: usize = 1000;
const MAX_BLOB: u64 = 1 << 50;

/// A pointer to a blob.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

/// What an entry of an index is for.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
}

/// The manifest of one image.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

impl Manifest {
    /// Config and layers.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// A manifest, or an index of manifests.
#[derive(Debug)]
pub(crate) enum Document {
    Image(Manifest),
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<Value>,
}

/// Reads a manifest or index; the error says what is wrong with it.
pub(crate) fn parse(bytes: &[u8]) -> Result<Document, String> {
    let wire: Wire = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    match wire.schema_version {
        Some(2) => {}
        Some(1) => {
            return Err(
                "schema version 1 is not supported; push the image again with a current tool"
                    .into(),
            );
        }
        other => return Err(format!("schema version {other:?} is not supported")),
    }
    let is_index_type = matches!(wire.media_type.as_deref(), Some(OCI_INDEX | DOCKER_LIST));
    let is_image_type = matches!(
        wire.media_type.as_deref(),
        Some(OCI_MANIFEST | DOCKER_MANIFEST)
    );
    match (wire.manifests, wire.config, wire.layers, wire.fs_layers) {
        // One document that can be read as two kinds would let two tools see two images.
        (Some(manifests), None, None, None) if !is_image_type => {
            if manifests.len() > MAX_LAYERS {
                return Err(format!("it lists {} manifests", manifests.len()));
            }
            Ok(Document::Index(manifests))
        }
        (None, Some(config), Some(layers), None) if !is_index_type => {
            if layers.len() > MAX_LAYERS {
                return Err(format!("it has {} layers", layers.len()));
            }
            let media_type = wire.media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned());
            if !matches!(media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST) {
                return Err(format!("media type {media_type:?} is not that of an image"));
            }
            let manifest = Manifest {
                media_type,
                config,
                layers,
            };
            if let Some(blob) = manifest.blobs().find(|blob| blob.size > MAX_BLOB) {
                return Err(format!("blob {} claims {} bytes", blob.digest, blob.size));
            }
            Ok(Document::Image(manifest))
        }
        _ => Err("it is neither an image manifest nor an index".into()),
    }
}

/// Whether the layer is a tar that can be in an image of ours, by its media type.
pub(crate) fn is_layer(media_type: &str) -> bool {
    matches!(
        media_type,
        OCI_LAYER
            | OCI_LAYER_GZIP
            | OCI_LAYER_ZSTD
            | DOCKER_LAYER
            | DOCKER_LAYER_GZIP
            | DOCKER_LAYER_ZSTD
    )
}

/// This machine's architecture as images name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The entry of an index for this machine; the error lists what there is.
///
/// An entry without a platform is for every machine. Attestations (`unknown/unknown`) are not images.
pub(crate) fn choose(entries: &[Descriptor]) -> Result<&Descriptor, String> {
    let fits = |d: &&Descriptor| {
        d.platform
            .as_ref()
            .is_some_and(|p| p.os == "linux" && p.architecture == architecture())
    };
    let blank = |d: &&Descriptor| {
        d.platform
            .as_ref()
            .is_none_or(|p| p.os.is_empty() && p.architecture.is_empty())
            && matches!(
                d.media_type.as_str(),
                "" | OCI_MANIFEST | DOCKER_MANIFEST | OCI_INDEX | DOCKER_LIST
            )
    };
    entries
        .iter()
        .find(fits)
        .or_else(|| entries.iter().find(blank))
        .ok_or_else(|| {
            let names = entries.iter().filter_map(|d| d.platform.as_ref());
            let names: Vec<String> = names
                .take(20)
                .map(|p| clip(&format!("{}/{}", p.os, p.architecture)))
                .collect();
            if names.is_empty() {
                "nothing".to_owned()
            } else {
                names.join(", ")
            }
        })
}

/// Foreign text, made fit for one line of a message.
pub(crate) fn clip(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = clean.take(300).collect();
    if short.len() < text.len() && text.chars().count() > 300 {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(platform: &str) -> String {
        let digest = Digest::of(platform.as_bytes());
        let (os, arch) = platform.split_once('/').unwrap_or(("", ""));
        format!(
            r#"{{"mediaType": "{OCI_MANIFEST}", "digest": "{digest}", "size": 7,
                "platform": {{"os": "{os}", "architecture": "{arch}"}}}}"#
        )
    }

    #[test]
    fn the_entry_for_this_machine_is_chosen() {
        let ours = format!("linux/{}", architecture());
        let text = format!(
            r#"{{"schemaVersion": 2, "mediaType": "{OCI_INDEX}", "manifests": [{}, {}, {}]}}"#,
            descriptor("windows/amd64"),
            descriptor("unknown/unknown"),
            descriptor(&ours)
        );
        let Ok(Document::Index(entries)) = parse(text.as_bytes()) else {
            panic!()
        };
        assert_eq!(
            choose(&entries).unwrap().digest,
            Digest::of(ours.as_bytes())
        );
        assert_eq!(
            choose(&entries[..2]).unwrap_err(),
            "windows/amd64, unknown/unknown"
        );
    }

    #[test]
    fn a_document_of_two_kinds_is_refused() {
        let d = descriptor("linux/amd64");
        let both = format!(
            r#"{{"schemaVersion": 2, "config": {d}, "layers": [{d}], "manifests": [{d}]}}"#
        );
        assert!(parse(both.as_bytes()).is_err());
        let lying = format!(
            r#"{{"schemaVersion": 2, "mediaType": "{OCI_INDEX}", "config": {d}, "layers": [{d}]}}"#
        );
        assert!(parse(lying.as_bytes()).is_err());
        assert!(
            parse(br#"{"schemaVersion": 1, "fsLayers": []}"#)
                .unwrap_err()
                .contains("schema version 1")
        );
        let sha512 =
            r#"{"schemaVersion": 2, "layers": [], "config": {"digest": "sha512:00", "size": 1}}"#;
        assert!(
            parse(sha512.as_bytes())
                .unwrap_err()
                .contains("not a sha256 digest")
        );
    }
}
