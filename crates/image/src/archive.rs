//! Importing archives: what `docker save` writes (its old form and its newer OCI form), and OCI archives.
//!
//! The archive is read once, forward. Each file in it goes into a temporary blob as it passes; when all is read, the
//! description in it (`index.json` or `manifest.json`) tells which of them are the image's, and only those are kept.

mod error;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

pub use self::error::ImportError;
use crate::format::Compression;
use crate::manifest::{
    self, Descriptor, Document, MAX_MANIFEST, Manifest, OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD, OCI_MANIFEST, clip,
};
use crate::store::{BlobWriter, failed};
use crate::tar_stream::{Kind, TarError, TarReader};
use crate::unpack::{OverLimit, decompress};
use crate::{Digest, Image, ImageRef, Store, StoreError};
use serde::Deserialize;

const MAX_FILES: usize = 20_000;
const MAX_NESTING: usize = 4;
const MAX_IMAGES: usize = 100;
const MAX_CONFIG: u64 = 16 << 20;

impl Store {
    /// Imports the images of a `docker save` or OCI archive, compressed or not. Blocking.
    ///
    /// Without `tag` the names in the archive are used; with it the archive must hold one image, which gets that name.
    pub fn import_archive(
        &self,
        path: &Path,
        tag: Option<&ImageRef>,
    ) -> Result<Vec<Image>, ImportError> {
        let mut import = Import {
            store: self,
            archive: path.display().to_string(),
            files: BTreeMap::new(),
            links: BTreeMap::new(),
        };
        let _activity = self.activity().map_err(|cause| import.store_error(cause))?;
        import.read(path)?;
        let found = import.describe()?;
        let named = import.name(found, tag)?;
        import.keep(named)
    }
}

/// A file of the archive, waiting for somebody to need it.
struct Stored {
    digest: Digest,
    size: u64,
    writer: BlobWriter,
    /// The first bytes tell the compression.
    head: Vec<u8>,
}

/// An image that the archive describes.
struct Found {
    bytes: Vec<u8>,
    manifest: Manifest,
    names: Vec<String>,
}

struct Import<'a> {
    store: &'a Store,
    archive: String,
    files: BTreeMap<String, Stored>,
    /// The old form links a layer that two images share.
    links: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Import<'_> {
    /// Reads the whole archive into temporary blobs.
    fn read(&mut self, path: &Path) -> Result<(), ImportError> {
        let file = File::open(path).map_err(|e| self.unreadable(&e.to_string()))?;
        if !file.metadata().is_ok_and(|m| m.is_file()) {
            return Err(self.unreadable("not a regular file"));
        }
        let plain = decompress(file, self.store.limits().unpacked_bytes)
            .map_err(|e| self.tar_error(e.into()))?;
        let mut tar = TarReader::new(plain);
        while let Some(entry) = tar.next().map_err(|e| self.tar_error(e))? {
            let name = join("", &String::from_utf8_lossy(&entry.path)).ok_or_else(|| {
                self.unreadable(&format!(
                    "{:?} climbs out of it",
                    clip(&String::from_utf8_lossy(&entry.path))
                ))
            })?;
            if self.files.len() + self.links.len() >= MAX_FILES {
                return Err(self.unreadable(&format!("more than {MAX_FILES} files in it")));
            }
            match entry.kind {
                Kind::File => self.file(name, &mut tar)?,
                Kind::Symlink | Kind::Hardlink => {
                    let target = String::from_utf8_lossy(&entry.link).into_owned();
                    // A hard link names its target from the top, a symlink from where it is.
                    let base = if entry.kind == Kind::Symlink {
                        name.rsplit_once('/').map_or("", |(dir, _)| dir)
                    } else {
                        ""
                    };
                    if let Some(target) = join(base, &target) {
                        self.links.insert(name, target);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, name: String, content: &mut impl Read) -> Result<(), ImportError> {
        let mut writer = self
            .store
            .blob_writer()
            .map_err(|cause| self.store_error(cause))?;
        let mut head = Vec::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.tar_error(e.into())),
            };
            let missing = 4usize.saturating_sub(head.len()).min(n);
            head.extend_from_slice(&buffer[..missing]);
            writer
                .write_all(&buffer[..n])
                .map_err(|e| self.store_error(failed("write in", &self.store.tmp_dir())(e)))?;
        }
        let digest = writer.digest();
        if let Some(expected) = name
            .strip_prefix("blobs/sha256/")
            .and_then(Digest::from_hex)
            && expected != digest
        {
            return Err(ImportError::WrongDigest {
                archive: self.archive.clone(),
                expected,
                actual: digest,
            });
        }
        let size = writer.written();
        self.files.insert(
            name,
            Stored {
                digest,
                size,
                writer,
                head,
            },
        );
        Ok(())
    }

    fn describe(&self) -> Result<Vec<Found>, ImportError> {
        if self.files.contains_key("index.json") {
            let found = self.describe_oci()?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        if self.files.contains_key("manifest.json") {
            return self.describe_docker();
        }
        Err(ImportError::NoImage {
            archive: self.archive.clone(),
        })
    }

    /// The OCI form: `index.json` points to manifests among the blobs.
    fn describe_oci(&self) -> Result<Vec<Found>, ImportError> {
        let bytes = self.small("index.json")?;
        let entries = match manifest::parse(&bytes) {
            Ok(Document::Index(entries)) => entries,
            Ok(Document::Image(_)) => return Err(self.bad("index.json", "it is not an index")),
            Err(cause) => return Err(self.bad("index.json", &cause)),
        };
        let docker_names = self.docker_names()?;
        let mut found: Vec<(Digest, Found)> = Vec::new();
        for entry in entries
            .iter()
            .filter(|entry| !is_attestation(entry))
            .take(MAX_IMAGES)
        {
            let (digest, bytes, manifest) = self.descend(entry)?;
            let mut names = annotated_names(entry);
            if names.is_empty() {
                names.extend(
                    docker_names
                        .get(&manifest.config.digest)
                        .cloned()
                        .unwrap_or_default(),
                );
            }
            // An image with two names is listed twice.
            if let Some((_, same)) = found.iter_mut().find(|(other, _)| *other == digest) {
                same.names.extend(names);
            } else {
                found.push((
                    digest,
                    Found {
                        bytes,
                        manifest,
                        names,
                    },
                ));
            }
        }
        Ok(found.into_iter().map(|(_, image)| image).collect())
    }

    /// Follows indexes to the manifest for this machine.
    fn descend(&self, entry: &Descriptor) -> Result<(Digest, Vec<u8>, Manifest), ImportError> {
        let mut digest = entry.digest.clone();
        for _ in 0..MAX_NESTING {
            let file = blob_name(&digest);
            let bytes = self.small(&file)?;
            match manifest::parse(&bytes) {
                Ok(Document::Image(manifest)) => return Ok((digest, bytes, manifest)),
                Ok(Document::Index(entries)) => {
                    let chosen = manifest::choose(&entries).map_err(|available| {
                        let wanted = manifest::architecture();
                        self.bad(
                            &file,
                            &format!("no image for linux/{wanted}, only {available}"),
                        )
                    })?;
                    digest = chosen.digest.clone();
                }
                Err(cause) => return Err(self.bad(&file, &cause)),
            }
        }
        Err(self.bad("index.json", "indexes are nested too deep"))
    }

    fn docker_entries(&self) -> Result<Vec<DockerEntry>, ImportError> {
        let bytes = self.small("manifest.json")?;
        let entries: Vec<DockerEntry> = serde_json::from_slice(&bytes)
            .map_err(|e| self.bad("manifest.json", &e.to_string()))?;
        if entries.len() > MAX_IMAGES {
            return Err(self.bad(
                "manifest.json",
                &format!("it lists {} images", entries.len()),
            ));
        }
        Ok(entries)
    }

    /// The names that a newer `docker save` gives beside the OCI index, by the digest of the config.
    fn docker_names(&self) -> Result<BTreeMap<Digest, Vec<String>>, ImportError> {
        let mut names = BTreeMap::new();
        if self.files.contains_key("manifest.json") {
            for entry in self.docker_entries()? {
                if let Some(config) = self.find(&entry.config) {
                    names.insert(config.digest.clone(), entry.repo_tags.unwrap_or_default());
                }
            }
        }
        Ok(names)
    }

    /// The old form: `manifest.json` names config and layers. It has no manifest, so one is written.
    fn describe_docker(&self) -> Result<Vec<Found>, ImportError> {
        let mut found = Vec::new();
        for entry in self.docker_entries()? {
            let config = self
                .find(&entry.config)
                .ok_or_else(|| self.incomplete(&entry.config))?;
            if config.size > MAX_CONFIG {
                return Err(self.bad(
                    &clip(&entry.config),
                    &format!("it has {} bytes", config.size),
                ));
            }
            let mut layers = Vec::new();
            for name in &entry.layers {
                let layer = self.find(name).ok_or_else(|| self.incomplete(name))?;
                let media_type = match Compression::of(&layer.head) {
                    // There is no media type for layers in xz.
                    None | Some(Compression::Xz) => OCI_LAYER,
                    Some(Compression::Gzip) => OCI_LAYER_GZIP,
                    Some(Compression::Zstd) => OCI_LAYER_ZSTD,
                };
                layers.push(serde_json::json!({
                    "mediaType": media_type, "digest": layer.digest, "size": layer.size,
                }));
            }
            let document = serde_json::json!({
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"mediaType": OCI_CONFIG, "digest": config.digest, "size": config.size},
                "layers": layers,
            });
            let bytes = document.to_string().into_bytes();
            match manifest::parse(&bytes) {
                Ok(Document::Image(manifest)) => {
                    found.push(Found {
                        bytes,
                        manifest,
                        names: entry.repo_tags.unwrap_or_default(),
                    });
                }
                Ok(Document::Index(_)) => {
                    return Err(self.bad("manifest.json", "it is not an image"));
                }
                Err(cause) => return Err(self.bad("manifest.json", &cause)),
            }
        }
        if found.is_empty() {
            return Err(ImportError::NoImage {
                archive: self.archive.clone(),
            });
        }
        Ok(found)
    }

    /// Gives every image its names, before anything is kept.
    fn name(
        &self,
        found: Vec<Found>,
        tag: Option<&ImageRef>,
    ) -> Result<Vec<(ImageRef, Found)>, ImportError> {
        if tag.is_some() && found.len() > 1 {
            return Err(ImportError::Several {
                archive: self.archive.clone(),
                count: found.len(),
            });
        }
        let mut named = Vec::new();
        for image in found {
            let names = match tag {
                Some(tag) => vec![tag.clone()],
                None => {
                    let parsed = image.names.iter().map(|name| name.parse::<ImageRef>());
                    parsed
                        .collect::<Result<Vec<_>, _>>()
                        .map_err(|e| self.bad("a name in it", &e.to_string()))?
                }
            };
            if names.is_empty() {
                return Err(ImportError::Unnamed {
                    archive: self.archive.clone(),
                });
            }
            for name in names {
                let copy = Found {
                    bytes: image.bytes.clone(),
                    manifest: image.manifest.clone(),
                    names: Vec::new(),
                };
                named.push((name, copy));
            }
        }
        Ok(named)
    }

    /// Checks that every image is complete, moves its blobs into the store and writes its name.
    fn keep(mut self, named: Vec<(ImageRef, Found)>) -> Result<Vec<Image>, ImportError> {
        for (_, image) in &named {
            for blob in image.manifest.blobs() {
                match self.by_digest(&blob.digest) {
                    Some((_, size)) if size == blob.size => {}
                    Some((_, actual)) => {
                        return Err(ImportError::WrongSize {
                            archive: self.archive.clone(),
                            blob: blob.digest.clone(),
                            expected: blob.size,
                            actual,
                        });
                    }
                    None if self.store.has_blob(&blob.digest, blob.size) => {}
                    None => return Err(self.incomplete(&blob_name(&blob.digest))),
                }
                if !manifest::is_layer(&blob.media_type)
                    && blob.digest != image.manifest.config.digest
                {
                    let kind = clip(&blob.media_type);
                    return Err(self.bad(
                        &blob_name(&blob.digest),
                        &format!("layer type {kind:?} is not supported"),
                    ));
                }
            }
        }
        let mut images = Vec::new();
        for (name, image) in named {
            for blob in image.manifest.blobs() {
                if let Some((file, _)) = self.by_digest(&blob.digest)
                    && let Some(stored) = self.files.remove(&file)
                    && !self.store.has_blob(&blob.digest, blob.size)
                {
                    stored
                        .writer
                        .commit(self.store)
                        .map_err(|cause| self.store_error(cause))?;
                }
            }
            let registered = self.store.put_blob(&image.bytes);
            let registered =
                registered.and_then(|digest| self.store.register(&name, &digest, None, true));
            images.push(registered.map_err(|cause| self.store_error(cause))?);
        }
        Ok(images)
    }

    fn by_digest(&self, digest: &Digest) -> Option<(String, u64)> {
        let by_name = blob_name(digest);
        if let Some(stored) = self.files.get(&by_name) {
            return Some((by_name, stored.size));
        }
        self.files
            .iter()
            .find(|(_, f)| f.digest == *digest)
            .map(|(name, f)| (name.clone(), f.size))
    }

    /// A file by its name, links followed.
    fn find(&self, name: &str) -> Option<&Stored> {
        let mut name = join("", name)?;
        for _ in 0..8 {
            match self.links.get(&name) {
                Some(target) => name.clone_from(target),
                None => break,
            }
        }
        self.files.get(&name)
    }

    /// The content of a small file of the archive.
    fn small(&self, name: &str) -> Result<Vec<u8>, ImportError> {
        let stored = self.find(name).ok_or_else(|| self.incomplete(name))?;
        if stored.size > MAX_MANIFEST {
            return Err(self.bad(name, &format!("it has {} bytes", stored.size)));
        }
        stored
            .writer
            .content()
            .map_err(|e| self.store_error(failed("read in", &self.store.tmp_dir())(e)))
    }

    fn unreadable(&self, cause: &str) -> ImportError {
        ImportError::Read {
            archive: self.archive.clone(),
            cause: cause.to_owned(),
        }
    }

    fn bad(&self, file: &str, cause: &str) -> ImportError {
        ImportError::Description {
            archive: self.archive.clone(),
            file: clip(file),
            cause: clip(cause),
        }
    }

    fn incomplete(&self, file: &str) -> ImportError {
        ImportError::Incomplete {
            archive: self.archive.clone(),
            file: clip(file),
        }
    }

    fn store_error(&self, cause: StoreError) -> ImportError {
        ImportError::Store {
            archive: self.archive.clone(),
            cause,
        }
    }

    fn tar_error(&self, error: TarError) -> ImportError {
        match error {
            TarError::Io(e) if OverLimit::caused(&e) => self.unreadable(&format!(
                "it unpacks to more than the limit of {} bytes",
                self.store.limits().unpacked_bytes
            )),
            other => self.unreadable(&clip(&other.to_string())),
        }
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Signatures and provenance that buildkit puts beside images.
fn is_attestation(entry: &Descriptor) -> bool {
    entry
        .platform
        .as_ref()
        .is_some_and(|p| p.os == "unknown" && p.architecture == "unknown")
}

/// The full name that containerd and docker write, or what `ref.name` holds when it is more than a tag.
fn annotated_names(entry: &Descriptor) -> Vec<String> {
    let annotation = |key: &str| {
        entry
            .annotations
            .as_ref()
            .and_then(|all| all.get(key))
            .cloned()
    };
    let full = annotation("io.containerd.image.name");
    let short =
        annotation("org.opencontainers.image.ref.name").filter(|name| name.contains([':', '/']));
    full.or(short).into_iter().collect()
}

/// Resolves a path inside the archive; nothing when it leaves it.
fn join(base: &str, path: &str) -> Option<String> {
    if path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            other => parts.push(other),
        }
    }
    Some(parts.join("/"))
}
