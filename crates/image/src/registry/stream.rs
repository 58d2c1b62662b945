//! The disk of an image as a stream, straight from its registry: for an import, which keeps neither layers nor image.
//!
//! The layers are read from the top down as they come, and the first one with a file in the directory ends the search, as a
//! container would see it. Everything that passed is checked against its digest before the stream tells its end.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use http::StatusCode;
use tokio::runtime::Handle;

use super::client::{Client, Failed, Operation, chain};
use super::pull::{choose, pull_failed};
use super::{PullError, PullOptions};
use crate::digest::Hasher;
use crate::manifest::{Descriptor, clip};
use crate::tar_stream::{Kind, TarReader};
use crate::unpack::{Bounded, decompress};
use crate::{ImageRef, Limits};

const DIRECTORY: &[u8] = b"disk";

/// The disk of an image, to be read once. Blocking, on a thread that is none of the runtime's.
pub struct DiskStream {
    image: String,
    length: u64,
    tar: TarReader<Bounded<Box<dyn Read + Send>>>,
    ended: bool,
}

impl DiskStream {
    /// Finds the disk. Blocking, on a thread that may block, inside a runtime.
    ///
    /// # Errors
    /// As a pull; and when the image holds no disk, or something else in its place.
    pub fn open(reference: &ImageRef, options: &PullOptions) -> Result<Self, PullError> {
        let handle = Handle::current();
        let limits = Limits::default();
        let client = Client::new(reference, options, limits.read_timeout, Operation::Pull);
        let client = client.map_err(|cause| PullError::Unreachable {
            image: reference.to_string(),
            registry: reference.registry().to_owned(),
            cause,
        })?;
        let client = Arc::new(client);
        let manifest = handle.block_on(choose(&client, reference, &limits))?;
        let image = reference.to_string();
        // What an upper layer says is gone.
        let mut gone: BTreeSet<Vec<u8>> = BTreeSet::new();
        for layer in manifest.layers.iter().rev() {
            let blob = BlobStream::new(&client, &handle, layer, &limits);
            let bad = |cause: String| PullError::Registry {
                image: image.clone(),
                registry: reference.registry().to_owned(),
                cause: clip(&format!(
                    "with a layer {} that cannot be read: {cause}",
                    layer.digest
                )),
            };
            let plain = decompress(
                Box::new(blob) as Box<dyn Read + Send>,
                limits.unpacked_bytes,
            );
            let mut tar = TarReader::new(plain.map_err(|e| bad(e.to_string()))?);
            let mut hides: Vec<Vec<u8>> = Vec::new();
            let mut opaque = false;
            while let Some(entry) = tar.next().map_err(|e| bad(e.to_string()))? {
                let path: Vec<&[u8]> = entry
                    .path
                    .split(|b| *b == b'/')
                    .filter(|part| !part.is_empty() && *part != b".")
                    .collect();
                let [directory, name] = path.as_slice() else {
                    let hidden = matches!(path.as_slice(), [name] if *name == b".wh.disk" || *name == b".wh..wh..opq");
                    opaque |= hidden;
                    continue;
                };
                if *directory != DIRECTORY {
                    continue;
                }
                if *name == b".wh..wh..opq" {
                    opaque = true;
                } else if let Some(hidden) = name.strip_prefix(b".wh.".as_slice()) {
                    hides.push(hidden.to_vec());
                } else if gone.contains(*name) || entry.kind == Kind::Directory {
                } else if entry.kind == Kind::File {
                    let length = tar.remaining();
                    return Ok(Self {
                        image,
                        length,
                        tar,
                        ended: false,
                    });
                } else {
                    let name = String::from_utf8_lossy(name).into_owned();
                    return Err(bad(format!(
                        "/disk/{} is a {}, not a regular file",
                        clip(&name),
                        entry.kind.name()
                    )));
                }
            }
            gone.extend(hides);
            if opaque {
                break;
            }
        }
        Err(pull_failed(
            reference,
            "with an image that has no disk: there is no file in /disk",
        ))
    }
}

impl DiskStream {
    /// Bytes of the file.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        Some(self.length)
    }
}

impl Read for DiskStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        let n = self.tar.read(into)?;
        if n > 0 || into.is_empty() {
            return Ok(n);
        }
        self.ended = true;
        // The rest of the layer, for its digest, and for what else is in it.
        let failed = |cause: String| io::Error::other(format!("image {}: {cause}", self.image));
        while let Some(entry) = self.tar.next().map_err(|e| failed(e.to_string()))? {
            let mut path = entry
                .path
                .split(|b| *b == b'/')
                .filter(|part| !part.is_empty() && *part != b".");
            let in_disk = path.next() == Some(DIRECTORY);
            let name = path.next().unwrap_or_default();
            if in_disk && !name.is_empty() && !name.starts_with(b".wh.") && entry.kind == Kind::File
            {
                return Err(failed("more than one file is in /disk".to_owned()));
            }
        }
        io::copy(self.tar.get_mut(), &mut io::sink())?;
        Ok(0)
    }
}

/// A blob as it comes, gone on with where it broke, checked at its end.
struct BlobStream {
    client: Arc<Client>,
    handle: Handle,
    blob: Descriptor,
    body: Option<futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>>,
    piece: bytes::Bytes,
    at: u64,
    hasher: Option<Hasher>,
    attempts: u32,
    pause: Duration,
    failures: u32,
}

impl BlobStream {
    fn new(client: &Arc<Client>, handle: &Handle, blob: &Descriptor, limits: &Limits) -> Self {
        Self {
            client: Arc::clone(client),
            handle: handle.clone(),
            blob: blob.clone(),
            body: None,
            piece: bytes::Bytes::new(),
            at: 0,
            hasher: Some(Hasher::new()),
            attempts: limits.attempts,
            pause: limits.retry_pause,
            failures: 0,
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        while self.piece.is_empty() && self.at < self.blob.size {
            let cause = match self.next().await {
                Ok(piece) => {
                    self.failures = 0;
                    self.piece = piece;
                    continue;
                }
                Err(Failed::Transient(cause)) => cause,
                Err(Failed::NotFound) => return Err(self.failed("the registry does not have it")),
                Err(Failed::Unauthorized(cause) | Failed::Refused(cause)) => {
                    return Err(self.failed(&cause));
                }
            };
            self.body = None;
            self.failures += 1;
            if self.failures >= self.attempts {
                return Err(self.failed(&format!(
                    "{} of {} bytes came: {cause}",
                    self.at, self.blob.size
                )));
            }
            tracing::warn!(blob = %self.blob.digest, at = self.at, cause, "going on at this byte");
            tokio::time::sleep(self.pause * 2u32.pow(self.failures.min(5))).await;
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<bytes::Bytes, Failed> {
        if self.body.is_none() {
            let response = self.client.blob(&self.blob.digest, self.at).await?;
            if self.at > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
                return Err(Failed::Refused(
                    "it broke off, and the registry gives no parts of blobs".to_owned(),
                ));
            }
            self.body = Some(response.bytes_stream().boxed());
        }
        let body = self.body.as_mut().expect("opened above");
        match body.next().await {
            Some(Ok(piece)) => Ok(piece),
            Some(Err(error)) => Err(Failed::Transient(chain(&error))),
            None => Err(Failed::Transient(
                "the registry ended the transfer".to_owned(),
            )),
        }
    }

    fn failed(&self, cause: &str) -> io::Error {
        io::Error::other(format!("blob {}: {cause}", self.blob.digest))
    }
}

impl Read for BlobStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            let handle = self.handle.clone();
            handle.block_on(self.fill())?;
        }
        let n = self.piece.len().min(into.len());
        into[..n].copy_from_slice(&self.piece.split_to(n));
        self.at += n as u64;
        if self.at > self.blob.size {
            return Err(self.failed("it is longer than the manifest says"));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&into[..n]);
        }
        if n == 0
            && !into.is_empty()
            && let Some(hasher) = self.hasher.take()
        {
            let actual = hasher.finish();
            if actual != self.blob.digest {
                return Err(self.failed(&format!("it hashes to {actual}")));
            }
        }
        Ok(n)
    }
}
