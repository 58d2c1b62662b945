//! The disk file inside an image.
//!
//! A container disk has exactly one regular file under `/disk`, with whatever name. The layers are read from the top
//! down, so that whiteouts and replaced files are known before what they hide; the file is written out on the way,
//! with holes for zeros, and becomes visible only when all layers agree that it is the only one. Nothing from the
//! archive is ever used as a path on this machine but the file's own last name.

mod error;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

pub use self::error::DiskError;
use crate::digest::HashingReader;
use crate::format::{self, DiskFormat};
use crate::manifest::clip;
use crate::sparse::SparseWriter;
use crate::store::failed;
use crate::tar_stream::{Kind, TarError, TarReader};
use crate::unpack::{Bounded, OverLimit, decompress};
use crate::{Digest, Image, Store, StoreError};

/// The disk of an image, extracted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDisk {
    /// The manifest digest of the image it came from.
    pub image: Digest,
    /// The directory to mount; the file is `disk/<name>` in it.
    pub dir: PathBuf,
    /// The file itself, read-only.
    pub file: PathBuf,
    /// Told from its content.
    pub format: DiskFormat,
    /// The size that the guest sees, in bytes.
    pub virtual_size: u64,
}

/// Where the disk is in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// The one file in the directory.
    OnlyFileIn,
    /// That file, a disk.
    File,
    /// That file, whatever it is.
    PlainFile,
}

const MAX_TRACKED: usize = 10_000;
const MAX_NAMED: usize = 10;

impl Store {
    /// The disk under `/disk` of an image, extracted at the first call.
    ///
    /// Blocking. The extraction is written in full or not at all.
    pub fn disk(&self, image: &Image) -> Result<ContainerDisk, DiskError> {
        self.extract(image, "disk", Target::OnlyFileIn, image.digest.hex())
    }

    /// The disk at `path` in the image (`containerDisk.path`), an absolute path of a regular file.
    pub fn disk_at(&self, image: &Image, path: &str) -> Result<ContainerDisk, DiskError> {
        self.at(image, path, Target::File)
    }

    /// A file at `path` in the image that is no disk, whatever is in it. Its format is told as raw.
    pub fn file_at(&self, image: &Image, path: &str) -> Result<ContainerDisk, DiskError> {
        self.at(image, path, Target::PlainFile)
    }

    fn at(&self, image: &Image, path: &str, target: Target) -> Result<ContainerDisk, DiskError> {
        let bad = || DiskError::BadName {
            image: image.reference.to_string(),
            entry: clip(path),
        };
        let parts: Vec<&str> = path
            .split('/')
            .filter(|part| !matches!(*part, "" | "."))
            .collect();
        if !path.starts_with('/') || parts.is_empty() || parts.contains(&"..") {
            return Err(bad());
        }
        let path = parts.join("/");
        // The same file as a disk and as a plain one are two: of the one it is known that it is a disk.
        let kind = if target == Target::PlainFile {
            "file:"
        } else {
            ""
        };
        let name = format!(
            "{}-{}",
            image.digest.hex(),
            &Digest::of(format!("{kind}{path}").as_bytes()).hex()[..16]
        );
        self.extract(image, &path, target, &name)
    }

    fn extract(
        &self,
        image: &Image,
        path: &str,
        target: Target,
        name: &str,
    ) -> Result<ContainerDisk, DiskError> {
        let dir = self.disks_dir().join(name);
        let lock = self.extraction(name);
        let _only_one = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(disk) = extracted(image, &dir, target)? {
            return Ok(disk);
        }
        let in_store = |cause| DiskError::Store {
            image: image.reference.to_string(),
            cause,
        };
        let _activity = self.activity().map_err(in_store)?;
        let tmp = self.tmp_dir();
        let work = tempfile::Builder::new()
            .prefix("disk-")
            .tempdir_in(&tmp)
            .map_err(|e| in_store(failed("write in", &tmp)(e)))?;
        let into = work.path().join("disk");
        let readable = Permissions::from_mode(0o755);
        fs::set_permissions(work.path(), readable.clone())
            .and_then(|()| fs::create_dir(&into))
            .and_then(|()| fs::set_permissions(&into, readable))
            .map_err(|e| in_store(failed("make the directory", &into)(e)))?;
        let mut search = Search {
            store: self,
            image: image.reference.to_string(),
            target,
            path: path
                .split('/')
                .map(|part| part.as_bytes().to_vec())
                .collect(),
            into,
            hidden: BTreeSet::new(),
            opaque: BTreeSet::new(),
            directories: BTreeSet::new(),
            found: BTreeMap::new(),
            left: self.limits().unpacked_bytes,
        };
        let file = search.run(&image.digest)?;
        let entry = search.shown(&file);
        let written = search
            .into
            .join(file_name(&file).ok_or_else(|| search.bad_name(&file))?);
        if target != Target::PlainFile {
            format::inspect(&written).map_err(|cause| DiskError::Format {
                image: image.reference.to_string(),
                entry,
                cause,
            })?;
        }
        let publish = || {
            fs::set_permissions(&written, Permissions::from_mode(0o444))?;
            File::open(&search.into)?.sync_all()?;
            File::open(work.path())?.sync_all()?;
            match fs::rename(work.path(), &dir) {
                Ok(()) => drop(work.keep()),
                // Another process was faster; what it made is as good.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                    ) => {}
                Err(e) => return Err(e),
            }
            File::open(self.disks_dir())?.sync_all()
        };
        publish().map_err(|e| in_store(failed("write", &dir)(e)))?;
        extracted(image, &dir, target)?.ok_or_else(|| {
            in_store(failed("find", &dir)(io::Error::from(
                io::ErrorKind::NotFound,
            )))
        })
    }
}

/// The disk in `dir`, if it was extracted before.
fn extracted(
    image: &Image,
    dir: &Path,
    target: Target,
) -> Result<Option<ContainerDisk>, DiskError> {
    let mut files = match fs::read_dir(dir.join("disk")) {
        Ok(files) => files.flatten(),
        Err(_) => return Ok(None),
    };
    let Some(file) = files.next().map(|f| f.path()) else {
        return Ok(None);
    };
    let failed = |cause| DiskError::Format {
        image: image.reference.to_string(),
        entry: file.display().to_string(),
        cause,
    };
    let info = if target == Target::PlainFile {
        format::plain(&file)
    } else {
        format::inspect(&file)
    };
    let info = info.map_err(failed)?;
    Ok(Some(ContainerDisk {
        image: image.digest.clone(),
        dir: dir.to_owned(),
        file,
        format: info.format,
        virtual_size: info.virtual_size,
    }))
}

type Parts = Vec<Vec<u8>>;

/// The walk through the layers, top first.
struct Search<'a> {
    store: &'a Store,
    image: String,
    target: Target,
    path: Parts,
    into: PathBuf,
    /// Paths of lower layers that do not exist any more, with everything below them.
    hidden: BTreeSet<Parts>,
    /// Directories whose content in lower layers does not exist any more.
    opaque: BTreeSet<Parts>,
    /// Directories of upper layers: what lower layers have in their place, other than directories, is hidden.
    directories: BTreeSet<Parts>,
    /// What is visible under the target and is not a directory.
    found: BTreeMap<Parts, Kind>,
    left: u64,
}

impl Search<'_> {
    fn run(&mut self, digest: &Digest) -> Result<Parts, DiskError> {
        let (_, manifest) = self.store.manifest(digest).ok_or_else(|| DiskError::Gone {
            image: self.image.clone(),
            digest: digest.clone(),
        })?;
        for layer in manifest.layers.iter().rev() {
            self.layer(&layer.digest)?;
            if self.found.len() > 1 {
                break;
            }
        }
        let mut found = self.found.iter();
        let (path, kind) = match (found.next(), found.next()) {
            (None, _) => {
                return Err(DiskError::Missing {
                    image: self.image.clone(),
                    path: self.shown(&self.path),
                });
            }
            (Some(only), None) => only,
            (Some(_), Some(_)) => {
                let mut entries: Vec<String> = self
                    .found
                    .keys()
                    .take(MAX_NAMED)
                    .map(|path| self.shown(path))
                    .collect();
                if self.found.len() > MAX_NAMED {
                    entries.push("…".to_owned());
                }
                return Err(DiskError::Several {
                    image: self.image.clone(),
                    path: self.shown(&self.path),
                    entries,
                });
            }
        };
        let depth = self.path.len() + usize::from(self.target == Target::OnlyFileIn);
        // A file in the place of the directory.
        if *kind == Kind::File && path.len() < depth {
            return Err(DiskError::Missing {
                image: self.image.clone(),
                path: self.shown(&self.path),
            });
        }
        if *kind != Kind::File || path.len() != depth {
            let kind = if *kind == Kind::File {
                "file in a directory"
            } else {
                kind.name()
            };
            return Err(DiskError::NotAFile {
                image: self.image.clone(),
                entry: self.shown(path),
                kind,
            });
        }
        Ok(path.clone())
    }

    /// Reads one layer to its end, and checks that it is what its digest says.
    fn layer(&mut self, digest: &Digest) -> Result<(), DiskError> {
        let blob = self.store.blob_path(digest);
        let file = File::open(&blob).map_err(|e| self.store_error(failed("open", &blob)(e)))?;
        let mut hashed = HashingReader::new(file);
        let result = match decompress(&mut hashed, self.left) {
            Ok(plain) => {
                let mut tar = TarReader::new(plain);
                self.entries(digest, &mut tar)
            }
            Err(e) => Err(self.tar_error(digest, e.into())),
        };
        // A damaged layer shows as some other error first; the digest tells the reason.
        let (actual, _) = hashed
            .finish()
            .map_err(|e| self.store_error(failed("read", &blob)(e)))?;
        if actual != *digest {
            return Err(DiskError::Damaged {
                image: self.image.clone(),
                layer: digest.clone(),
                actual,
            });
        }
        result
    }

    fn entries(
        &mut self,
        layer: &Digest,
        tar: &mut TarReader<Bounded<Box<dyn Read + Send + '_>>>,
    ) -> Result<(), DiskError> {
        // What this layer hides counts for the layers below it only.
        let (mut hides, mut clears, mut directories) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut here: BTreeMap<Parts, Kind> = BTreeMap::new();
        while let Some(entry) = tar.next().map_err(|e| self.tar_error(layer, e))? {
            let path = self.parts(layer, &entry.path)?;
            // A link that climbs out is refused with the link; any link at the disk is.
            let Some(name) = path.last() else { continue };
            let parent = &path[..path.len() - 1];
            if name == b".wh..wh..opq" {
                if self.related(parent) {
                    clears.insert(parent.to_vec());
                }
            } else if let Some(gone) = name.strip_prefix(b".wh.".as_slice()) {
                let mut gone_path = parent.to_vec();
                gone_path.push(gone.to_vec());
                if self.related(&gone_path) {
                    hides.insert(gone_path);
                }
            } else if self.related(&path) && !self.is_hidden(&path, entry.kind) {
                let own = usize::from(entry.kind == Kind::Directory);
                directories.extend((1..path.len() + own).map(|n| path[..n].to_vec()));
                if entry.kind == Kind::Directory
                    && self.target != Target::OnlyFileIn
                    && path == self.path
                {
                    here.insert(path, entry.kind);
                } else if entry.kind == Kind::Directory {
                    here.remove(&path);
                } else {
                    if entry.kind == Kind::File {
                        self.write_out(layer, &path, &here, tar)?;
                    }
                    here.insert(path, entry.kind);
                }
            }
            let tracked = [
                &hides,
                &clears,
                &directories,
                &self.hidden,
                &self.opaque,
                &self.directories,
            ];
            if tracked.iter().map(|set| set.len()).sum::<usize>() + here.len() > MAX_TRACKED {
                return Err(DiskError::Layer {
                    image: self.image.clone(),
                    layer: layer.clone(),
                    cause: format!(
                        "it has more than {MAX_TRACKED} entries around {}",
                        self.shown(&self.path)
                    ),
                });
            }
        }
        self.left = tar.get_ref().left();
        // A file or link in this layer also hides a directory of that name below.
        hides.extend(here.keys().cloned());
        self.hidden.extend(hides);
        self.opaque.extend(clears);
        self.directories.extend(directories);
        self.found.extend(here);
        Ok(())
    }

    /// Writes the current entry to its place, unless it is clear already that it is not the only one.
    fn write_out(
        &mut self,
        layer: &Digest,
        path: &Parts,
        here: &BTreeMap<Parts, Kind>,
        tar: &mut TarReader<Bounded<Box<dyn Read + Send + '_>>>,
    ) -> Result<(), DiskError> {
        let name = file_name(path).ok_or_else(|| self.bad_name(path))?;
        if !self.found.is_empty()
            || here.keys().any(|other| other != path)
            || path.len() < self.path.len()
        {
            return Ok(());
        }
        // An archive may have the same path, or a file in place of a directory, more than once: the last one counts.
        self.clear()
            .map_err(|e| self.store_error(failed("empty", &self.into)(e)))?;
        let to = self.into.join(name);
        let file = File::create(&to).map_err(|e| self.store_error(failed("write", &to)(e)))?;
        let mut writer = SparseWriter::new(&file);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = match tar.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.tar_error(layer, e.into())),
            };
            writer
                .write(&buffer[..n])
                .map_err(|e| self.store_error(failed("write", &to)(e)))?;
        }
        writer
            .finish()
            .map_err(|e| self.store_error(failed("write", &to)(e)))?;
        Ok(())
    }

    fn clear(&self) -> io::Result<()> {
        for old in fs::read_dir(&self.into)? {
            fs::remove_file(old?.path())?;
        }
        Ok(())
    }

    /// The parts of a path in an archive, which must stay inside the image.
    fn parts(&self, layer: &Digest, path: &[u8]) -> Result<Parts, DiskError> {
        let escapes =
            path.starts_with(b"/") || path.split(|b| *b == b'/').any(|part| part == b"..");
        if escapes {
            let entry = clip(&String::from_utf8_lossy(path));
            return Err(DiskError::Escapes {
                image: self.image.clone(),
                layer: layer.clone(),
                entry,
            });
        }
        let parts = path
            .split(|b| *b == b'/')
            .filter(|part| !part.is_empty() && *part != b".");
        Ok(parts.map(<[u8]>::to_vec).collect())
    }

    /// Whether a path is the target, above it or below it.
    fn related(&self, path: &[Vec<u8>]) -> bool {
        path.iter().zip(&self.path).all(|(a, b)| a == b)
    }

    fn is_hidden(&self, path: &Parts, kind: Kind) -> bool {
        let gone = |n| {
            self.hidden.contains(&path[..n]) || n < path.len() && self.opaque.contains(&path[..n])
        };
        (0..=path.len()).any(gone) || kind != Kind::Directory && self.directories.contains(path)
    }

    fn shown(&self, path: &[Vec<u8>]) -> String {
        let parts: Vec<_> = path
            .iter()
            .map(|part| String::from_utf8_lossy(part))
            .collect();
        clip(&format!("/{}", parts.join("/")))
    }

    fn bad_name(&self, path: &[Vec<u8>]) -> DiskError {
        DiskError::BadName {
            image: self.image.clone(),
            entry: self.shown(path),
        }
    }

    fn store_error(&self, cause: StoreError) -> DiskError {
        DiskError::Store {
            image: self.image.clone(),
            cause,
        }
    }

    fn tar_error(&self, layer: &Digest, error: TarError) -> DiskError {
        match error {
            TarError::Io(e) if OverLimit::caused(&e) => DiskError::TooLarge {
                image: self.image.clone(),
                layer: layer.clone(),
                limit: self.store.limits().unpacked_bytes,
            },
            other => DiskError::Layer {
                image: self.image.clone(),
                layer: layer.clone(),
                cause: clip(&other.to_string()),
            },
        }
    }
}

/// The last part of a path, when it can be a file name here and in a domain's XML.
fn file_name(path: &[Vec<u8>]) -> Option<String> {
    let name = String::from_utf8(path.last()?.clone()).ok()?;
    (name.len() <= 255 && !name.chars().any(char::is_control)).then_some(name)
}
