//! Making a container disk image from a disk file, with no container engine.
//!
//! One layer with `disk/` and the file in it, as KubeVirt's documentation makes it: owner 107:107 (qemu), mode 0440.
//! Deterministic: the same disk gives the same image, whatever its file is called and whenever it is built.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use thiserror::Error;

use crate::digest::Hasher;
use crate::format::{self, DiskFormat, DiskInfo, FormatError};
use crate::manifest::{OCI_CONFIG, OCI_LAYER_ZSTD, OCI_MANIFEST, architecture};
use crate::store::failed;
use crate::{Digest, Image, ImageRef, Store, StoreError};

/// The numeric user and group of `qemu` in KubeVirt's images.
const QEMU: u64 = 107;

/// Why an image could not be built. One line.
#[derive(Debug, Clone, Error)]
pub enum BuildError {
    /// The file is not a disk that can be used.
    #[error("image {image}: {disk}: {cause}")]
    Disk {
        /// The image.
        image: String,
        /// The file.
        disk: String,
        /// What is wrong with it.
        cause: FormatError,
    },
    /// The file cannot be read.
    #[error("image {image}: {disk}: cannot read: {cause}")]
    Read {
        /// The image.
        image: String,
        /// The file.
        disk: String,
        /// Why.
        cause: String,
    },
    /// A built image gets a tag; its digest is what comes out.
    #[error("image {image}: build with a tag, not with a digest")]
    ByDigest {
        /// The image.
        image: String,
    },
    /// The store's directory cannot be used.
    #[error("image {image}: {cause}")]
    Store {
        /// The image.
        image: String,
        /// What failed.
        cause: StoreError,
    },
}

impl Store {
    /// Whether `disk` can become an image named `tag`, as far as that is known without a store.
    ///
    /// # Errors
    /// What [`Store::build`] would say.
    pub fn check_build(disk: &Path, tag: &ImageRef) -> Result<(), BuildError> {
        if tag.digest().is_some() {
            return Err(BuildError::ByDigest {
                image: tag.to_string(),
            });
        }
        open_disk(disk, tag).map(drop)
    }

    /// Makes an image named `tag` whose disk is the file `disk`, which must be raw or qcow2. Blocking.
    pub fn build(&self, disk: &Path, tag: &ImageRef) -> Result<Image, BuildError> {
        let image = tag.to_string();
        if tag.digest().is_some() {
            return Err(BuildError::ByDigest { image });
        }
        let unreadable = |e: io::Error| BuildError::Read {
            image: tag.to_string(),
            disk: disk.display().to_string(),
            cause: e.to_string(),
        };
        let (file, info) = open_disk(disk, tag)?;
        let store_error = |cause| BuildError::Store {
            image: tag.to_string(),
            cause,
        };
        let _activity = self.activity().map_err(store_error)?;

        let blob = self.blob_writer().map_err(store_error)?;
        let encoder = zstd::Encoder::new(blob, 3)
            .map_err(|e| store_error(failed("write in", &self.tmp_dir())(e)))?;
        let mut layer = Layer {
            inner: encoder,
            plain: Hasher::new(),
            failed_writing: false,
        };
        let name = match info.format {
            DiskFormat::Qcow2 => "disk/disk.qcow2",
            DiskFormat::Raw => "disk/disk.img",
        };
        if let Err(e) = write_layer(&mut layer, &file, info.file_size, name) {
            return Err(if layer.failed_writing {
                store_error(failed("write in", &self.tmp_dir())(e))
            } else {
                unreadable(e)
            });
        }
        let diff_id = layer.plain.finish();
        let blob = layer
            .inner
            .finish()
            .map_err(|e| store_error(failed("write in", &self.tmp_dir())(e)))?;
        let (layer, layer_size) = blob.commit(self).map_err(store_error)?;
        let manifest = self
            .put_image(&diff_id, &layer, layer_size)
            .map_err(store_error)?;
        self.register(tag, &manifest, None, true)
            .map_err(store_error)
    }

    fn put_image(
        &self,
        diff_id: &Digest,
        layer: &Digest,
        layer_size: u64,
    ) -> Result<Digest, StoreError> {
        // A fixed time: an image is named by its content, and when it was made is no content.
        let created = "1970-01-01T00:00:00Z";
        let config = serde_json::json!({
            "architecture": architecture(),
            "os": "linux",
            "created": created,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": created, "created_by": "berth image build"}],
        });
        let config = config.to_string().into_bytes();
        let config_digest = self.put_blob(&config)?;
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": config.len()},
            "layers": [{"mediaType": OCI_LAYER_ZSTD, "digest": layer, "size": layer_size}],
        });
        self.put_blob(manifest.to_string().as_bytes())
    }
}

fn open_disk(disk: &Path, tag: &ImageRef) -> Result<(File, DiskInfo), BuildError> {
    let (image, shown) = (tag.to_string(), disk.display().to_string());
    let file = File::open(disk).map_err(|e| BuildError::Read {
        image: image.clone(),
        disk: shown.clone(),
        cause: e.to_string(),
    })?;
    let info = format::inspect_file(&file).map_err(|cause| BuildError::Disk {
        image,
        disk: shown,
        cause,
    })?;
    Ok((file, info))
}

/// The tar of the layer on its way into the compressor.
struct Layer<W: Write> {
    inner: W,
    plain: Hasher,
    /// Tells an error of the store from one of the disk file.
    failed_writing: bool,
}

impl<W: Write> Write for Layer<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self.inner.write(buf) {
            Ok(n) => {
                self.plain.update(&buf[..n]);
                Ok(n)
            }
            Err(e) => {
                self.failed_writing = true;
                Err(e)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn write_layer(out: impl Write, disk: &File, size: u64, name: &str) -> io::Result<()> {
    let header = |kind, mode, size| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(QEMU);
        header.set_gid(QEMU);
        header.set_mtime(0);
        header.set_size(size);
        header
    };
    let mut tar = tar::Builder::new(out);
    tar.append_data(
        &mut header(tar::EntryType::Directory, 0o555, 0),
        "disk/",
        io::empty(),
    )?;
    let exact = Exact {
        inner: io::BufReader::with_capacity(1 << 20, disk),
        left: size,
    };
    tar.append_data(
        &mut header(tar::EntryType::Regular, 0o440, size),
        name,
        exact,
    )?;
    tar.finish()
}

/// A reader of a known length: a file that shrinks while it is read would make a broken archive.
struct Exact<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = buf
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.inner.read(&mut buf[..wanted])?;
        if n == 0 && wanted > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was read",
            ));
        }
        self.left -= n as u64;
        Ok(n)
    }
}
