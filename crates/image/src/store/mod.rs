//! The image store of a node.
//!
//! ```text
//! <root>/                            0700
//! <root>/blobs/sha256/<hex>          manifests, configs and layers, named by their digest
//! <root>/index.json                  image name -> manifest digest
//! <root>/disks/<hex>[-<path>]/disk/  the disk file of the image whose manifest is <hex>, extracted
//! <root>/tmp/                        what is being written; emptied when nobody writes
//! <root>/{index,activity}.lock       locks between processes
//! ```
//!
//! An image that a machine has used is here twice: as it came, and extracted. The first is what is pushed, what a later
//! pull of a changed tag need not fetch again, and what tells whether the image is still whole; the second is what starts
//! a machine without unpacking gigabytes. The extracted disk is shared by all machines that use it.
//!
//! # Guarantees
//! Files appear under their final name by rename, after they were verified and flushed; the index is replaced the same
//! way, under a lock that other processes honour. Who writes holds the activity lock shared; who deletes holds it
//! exclusively, so nothing is collected under a pull that has not reached the index yet.

mod blobs;
mod collect;
mod index;

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;

pub(crate) use self::blobs::BlobWriter;
pub use self::collect::Collected;
use self::index::Entry;
use crate::disk::ContainerDisk;
use crate::manifest::{self, Document, Manifest};
use crate::registry::Flights;
use crate::{Digest, ImageRef};

/// A store of images on disk. Cheap to clone; several stores, also in other processes, may use one directory.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    limits: Limits,
    flights: Flights,
    /// One extraction at a time for each disk directory.
    extractions: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

/// What a store accepts at most, and how patient it is.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest content, in bytes, that the layers of one image may decompress to.
    pub unpacked_bytes: u64,
    /// How often in a row a transfer may fail without getting any further.
    pub attempts: u32,
    /// Pause before the second attempt; doubles with each one, up to 16 times.
    pub retry_pause: Duration,
    /// Longest silence of a registry.
    pub read_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unpacked_bytes: 2 << 40,
            attempts: 4,
            retry_pause: Duration::from_millis(300),
            read_timeout: Duration::from_secs(60),
        }
    }
}

/// An image that is in the store, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name.
    pub reference: ImageRef,
    /// The digest of its manifest; of the one for this machine when the name means several.
    pub digest: Digest,
    /// Bytes of its manifest, config and layers.
    pub size: u64,
    /// It was built or imported here, rather than pulled.
    pub local: bool,
    /// When it came into the store.
    pub stored: SystemTime,
}

/// The store's directory cannot be used. One line: path, operation, cause.
#[derive(Debug, Clone, Error)]
#[error("image store: {path}: cannot {operation}: {cause}")]
pub struct StoreError {
    pub(crate) path: PathBufDisplay,
    pub(crate) operation: &'static str,
    pub(crate) cause: String,
}

/// A path in a message.
#[derive(Debug, Clone)]
pub(crate) struct PathBufDisplay(PathBuf);

impl std::fmt::Display for PathBufDisplay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

/// Turns an IO error on `path` into a [`StoreError`].
pub(crate) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = PathBufDisplay(path.to_owned());
    move |cause| StoreError {
        path,
        operation,
        cause: cause.to_string(),
    }
}

/// While it exists, nothing is collected and temporary files stay.
pub(crate) struct Activity {
    _lock: File,
}

/// Keeps an extracted disk from being collected, in every process; released when dropped or when the process ends.
///
/// The lock belongs to the open file: a child that inherits the descriptor keeps it.
#[derive(Debug)]
pub struct Hold {
    directory: File,
}

impl std::os::fd::AsFd for Hold {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("root", &self.inner.root)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at `root`, making it when it is not there, and removes what interrupted operations left.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(root, Limits::default())
    }

    /// [`Store::open`] with other limits.
    pub fn open_with(root: impl AsRef<Path>, limits: Limits) -> Result<Self, StoreError> {
        let root = std::path::absolute(root.as_ref())
            .map_err(failed("find the directory", root.as_ref()))?;
        let store = Self {
            inner: Arc::new(Inner {
                root,
                limits,
                flights: Flights::default(),
                extractions: Mutex::default(),
            }),
        };
        store.make_private()?;
        for dir in [store.blobs_dir(), store.disks_dir(), store.tmp_dir()] {
            fs::create_dir_all(&dir).map_err(failed("make the directory", &dir))?;
        }
        store.clean_up()?;
        Ok(store)
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The image of that name, if it is here, complete.
    ///
    /// A reference with a digest finds the image under any name of its repository.
    pub fn resolve(&self, reference: &ImageRef) -> Result<Option<Image>, StoreError> {
        let index = self.read_index()?;
        let exact = index.images.get(&reference.to_string());
        let entry = match (exact, reference.digest()) {
            (Some(entry), _) => entry,
            (None, None) => return Ok(None),
            (None, Some(digest)) => {
                let same = index.images.iter().find(|(name, entry)| {
                    name.parse::<ImageRef>()
                        .is_ok_and(|r| r.name() == reference.name())
                        && (entry.manifest == *digest || entry.index.as_ref() == Some(digest))
                });
                match same {
                    Some((_, entry)) => entry,
                    None => return Ok(None),
                }
            }
        };
        Ok(self.image_of(reference, entry))
    }

    /// Every image, ordered by name.
    pub fn list(&self) -> Result<Vec<Image>, StoreError> {
        let index = self.read_index()?;
        let image = |(name, entry): (&String, &Entry)| self.image_of(&name.parse().ok()?, entry);
        Ok(index.images.iter().filter_map(image).collect())
    }

    /// Forgets a name, and frees what nothing else needs. False when there was no such name.
    ///
    /// Disks that are held, or mounted by any process that `/proc` shows, stay.
    pub fn remove(&self, reference: &ImageRef) -> Result<bool, StoreError> {
        let removed =
            self.update_index(|index| index.images.remove(&reference.to_string()).is_some())?;
        if removed {
            self.collect(&std::collections::BTreeSet::new())?;
        }
        Ok(removed)
    }

    /// Keeps the disk of a pod from being collected while the returned value lives.
    pub fn hold(&self, disk: &ContainerDisk) -> Result<Hold, StoreError> {
        let directory = File::open(&disk.dir).map_err(failed("open", &disk.dir))?;
        directory.lock_shared().map_err(failed("lock", &disk.dir))?;
        // Between the extraction and the lock it may have been collected; then the name means nothing or another one.
        let (ours, named) = (directory.metadata(), fs::metadata(&disk.dir));
        let same =
            matches!((&ours, &named), (Ok(a), Ok(b)) if a.ino() == b.ino() && a.dev() == b.dev());
        if !same {
            let gone = io::Error::new(io::ErrorKind::NotFound, "the disk was removed meanwhile");
            return Err(failed("hold", &disk.dir)(gone));
        }
        Ok(Hold { directory })
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    pub(crate) fn flights(&self) -> &Flights {
        &self.inner.flights
    }

    pub(crate) fn blobs_dir(&self) -> PathBuf {
        self.inner.root.join("blobs/sha256")
    }

    pub(crate) fn disks_dir(&self) -> PathBuf {
        self.inner.root.join("disks")
    }

    pub(crate) fn tmp_dir(&self) -> PathBuf {
        self.inner.root.join("tmp")
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs_dir().join(digest.hex())
    }

    /// The lock under which the disk directory `name` is made.
    pub(crate) fn extraction(&self, name: &str) -> Arc<Mutex<()>> {
        let mut all = self
            .inner
            .extractions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(all.entry(name.to_owned()).or_default())
    }

    /// Announces a writer; blocks while something is being collected.
    pub(crate) fn activity(&self) -> Result<Activity, StoreError> {
        let (file, path) = self.lock_file("activity.lock")?;
        file.lock_shared().map_err(failed("lock", &path))?;
        Ok(Activity { _lock: file })
    }

    /// The right to delete, or nothing when somebody writes.
    fn exclusive(&self) -> Result<Option<Activity>, StoreError> {
        let (file, path) = self.lock_file("activity.lock")?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Activity { _lock: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => Err(failed("lock", &path)(e)),
        }
    }

    fn lock_file(&self, name: &str) -> Result<(File, PathBuf), StoreError> {
        let path = self.inner.root.join(name);
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        Ok((file, path))
    }

    /// The store is its owner's alone, also one that an earlier berth left open: it holds disks of private images. Pods
    /// reach theirs by a bind mount, which does not pass here.
    fn make_private(&self) -> Result<(), StoreError> {
        let root = self.root();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(failed("make the directory", root))?;
        let mode = fs::metadata(root)
            .map_err(failed("look at", root))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(root, Permissions::from_mode(0o700))
                .map_err(failed("make private", root))?;
        }
        Ok(())
    }

    fn clean_up(&self) -> Result<(), StoreError> {
        if let Some(_exclusive) = self.exclusive()? {
            let tmp = self.tmp_dir();
            let entries = fs::read_dir(&tmp).map_err(failed("list", &tmp))?;
            for entry in entries.flatten() {
                let path = entry.path();
                let removed = if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    fs::remove_dir_all(&path)
                } else {
                    fs::remove_file(&path)
                };
                removed.map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Writes the name of an image whose blobs are all here.
    pub(crate) fn register(
        &self,
        reference: &ImageRef,
        manifest: &Digest,
        index: Option<Digest>,
        local: bool,
    ) -> Result<Image, StoreError> {
        let stored = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        let entry = Entry {
            manifest: manifest.clone(),
            index,
            local,
            stored,
        };
        let image = self.image_of(reference, &entry).ok_or_else(|| {
            failed("register", &self.blob_path(manifest))(io::Error::other(
                "a blob of the image is missing",
            ))
        })?;
        self.update_index(|all| all.images.insert(reference.to_string(), entry))?;
        Ok(image)
    }

    /// The manifest of an image in the store.
    pub(crate) fn manifest(&self, digest: &Digest) -> Option<(Vec<u8>, Manifest)> {
        let bytes = fs::read(self.blob_path(digest)).ok()?;
        if Digest::of(&bytes) != *digest {
            return None;
        }
        match manifest::parse(&bytes) {
            Ok(Document::Image(manifest)) => Some((bytes, manifest)),
            _ => None,
        }
    }

    /// The image behind an entry; nothing when one of its blobs is not there any more.
    fn image_of(&self, reference: &ImageRef, entry: &Entry) -> Option<Image> {
        let (bytes, manifest) = self.manifest(&entry.manifest)?;
        let mut size = bytes.len() as u64;
        for blob in manifest.blobs() {
            if !self.has_blob(&blob.digest, blob.size) {
                tracing::warn!(image = %reference, blob = %blob.digest, "a blob of the image is missing in the store");
                return None;
            }
            size += blob.size;
        }
        Some(Image {
            reference: reference.clone(),
            digest: entry.manifest.clone(),
            size,
            local: entry.local,
            stored: UNIX_EPOCH + Duration::from_secs(entry.stored),
        })
    }
}
