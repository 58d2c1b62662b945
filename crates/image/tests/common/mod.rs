//! What the tests share: images made by hand, and a registry to talk to.
#![allow(dead_code, clippy::unwrap_used)] // each test program uses its own part

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_image::{Digest, Image, ImageRef, Limits, Store};
use tempfile::TempDir;

/// A store in a directory of its own.
pub(crate) struct Fixture {
    pub(crate) dir: TempDir,
    pub(crate) store: Store,
}

pub(crate) fn fixture() -> Fixture {
    fixture_with(Limits {
        retry_pause: Duration::from_millis(5),
        ..Limits::default()
    })
}

pub(crate) fn fixture_with(limits: Limits) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path().join("images"), limits).unwrap();
    Fixture { dir, store }
}

impl Fixture {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Imports an image with these layers, lowest first.
    pub(crate) fn image(&self, name: &str, layers: &[Vec<u8>]) -> Image {
        let archive = self.write("archive.tar", &docker_archive(name, layers));
        let images = self.store.import_archive(&archive, None).unwrap();
        assert_eq!(images.len(), 1);
        images[0].clone()
    }

    /// Nothing half done is in the store.
    ///
    /// A write that was under way when a pull failed ends by itself, a moment later.
    pub(crate) fn assert_clean(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !names(&self.store.root().join("tmp")).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(names(&self.store.root().join("tmp")), Vec::<String>::new());
        for blob in names(&self.store.root().join("blobs/sha256")) {
            let bytes = std::fs::read(self.store.root().join("blobs/sha256").join(&blob)).unwrap();
            assert_eq!(Digest::of(&bytes).hex(), blob);
        }
    }

    pub(crate) fn assert_empty(&self) {
        self.assert_clean();
        assert_eq!(
            names(&self.store.root().join("blobs/sha256")),
            Vec::<String>::new()
        );
        assert_eq!(
            names(&self.store.root().join("disks")),
            Vec::<String>::new()
        );
        assert!(self.store.list().unwrap().is_empty());
    }
}

pub(crate) fn reference(text: &str) -> ImageRef {
    text.parse().unwrap()
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Builds a layer, path by path.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// Any entry, with a path that is not looked at.
    pub(crate) fn entry(
        mut self,
        kind: tar::EntryType,
        path: &str,
        link: &str,
        content: &[u8],
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub(crate) fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(tar::EntryType::Regular, path, "", content)
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.entry(tar::EntryType::Directory, path, "", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, path, target, b"")
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// What `docker save` of old wrote.
pub(crate) fn docker_archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let mut files = Layer::new();
    let (mut listed, mut diff_ids) = (Vec::new(), Vec::new());
    for (n, layer) in layers.iter().enumerate() {
        files = files.file(&format!("layer{n}/layer.tar"), layer);
        listed.push(format!("layer{n}/layer.tar"));
        let mut plain = Vec::new();
        // What is no gzip, or a broken one, is its own content.
        let unzipped = flate2::read::GzDecoder::new(layer.as_slice()).read_to_end(&mut plain);
        diff_ids.push(Digest::of(if unzipped.is_ok() { &plain } else { layer }));
    }
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": listed}]);
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    files
        .file("config.json", config.to_string().as_bytes())
        .file("manifest.json", manifest.to_string().as_bytes())
        .done()
}

/// The start of a qcow2 file of 1 GiB, with room for its tables.
pub(crate) fn qcow2() -> Vec<u8> {
    let mut file = vec![0; 0x40000];
    let mut put =
        |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &16u32.to_be_bytes());
    put(24, &(1u64 << 30).to_be_bytes());
    put(36, &2u32.to_be_bytes());
    put(40, &0x30000u64.to_be_bytes());
    put(48, &0x10000u64.to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &112u32.to_be_bytes());
    file
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
