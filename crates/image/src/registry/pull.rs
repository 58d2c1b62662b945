//! Pulling.
//!
//! Concurrent pulls of the same image with the same options are one transfer (a *flight*): each caller sees its
//! progress and gets its result, and it ends early only when every caller has gone.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

use futures::future::{BoxFuture, FutureExt as _, Shared, WeakShared};
use futures::{StreamExt as _, TryStreamExt as _};
use http::StatusCode;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::client::{Client, Failed, Operation, chain};
use super::{PullError, PullOptions, PullPolicy};
use crate::Limits;
use crate::manifest::{self, Descriptor, Document, Manifest};
use crate::store::{BlobWriter, failed};
use crate::{Digest, Image, ImageRef, Progress, Store, StoreError, Transferred};

/// Layers fetched at the same time.
const PARALLEL: usize = 3;
/// An index may point to an index, but not for ever.
const MAX_NESTING: usize = 4;
/// Failures of one blob that are borne in all, also when each attempt gets a little further.
const MAX_FAILURES: u32 = 50;
const BUFFER: usize = 1 << 20;

type Flight = Shared<BoxFuture<'static, Result<Image, PullError>>>;

/// The pulls that are under way in this process.
#[derive(Default)]
pub(crate) struct Flights(Mutex<HashMap<Key, (WeakFlight, watch::Receiver<Transferred>)>>);

type WeakFlight = WeakShared<BoxFuture<'static, Result<Image, PullError>>>;

/// Pulls with other credentials are other pulls: nobody gets what only somebody else may see.
type Key = (ImageRef, PullOptions);

impl Store {
    /// Brings an image into the store, asking the registry as `options.policy` says.
    ///
    /// # Guarantees
    /// Every blob is verified by digest and size before it is visible, and the name is written last: an error at any
    /// point leaves the store as if nothing had happened, but for complete blobs that a later pull need not fetch again.
    ///
    /// An image of that name that was built or imported here is used without asking, unless the policy is
    /// [`PullPolicy::Always`]; and then too when no registry has an answer.
    pub async fn pull(
        &self,
        reference: &ImageRef,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, PullError> {
        let known = self.known(reference).await?;
        match (options.policy, known) {
            (PullPolicy::Never, None) => {
                return Err(PullError::NotPresent {
                    image: reference.to_string(),
                });
            }
            (PullPolicy::Never | PullPolicy::IfNotPresent, Some(image)) => return Ok(image),
            // What a digest names cannot have changed.
            (PullPolicy::Always, Some(image)) if reference.digest().is_some() => return Ok(image),
            _ => {}
        }
        let (mut flight, mut transferred) = self.flight(reference, options);
        loop {
            tokio::select! {
                result = &mut flight => {
                    let last = *transferred.borrow();
                    progress.update(last);
                    return result;
                }
                Ok(()) = transferred.changed() => {
                    let now = *transferred.borrow_and_update();
                    progress.update(now);
                }
            }
        }
    }

    async fn known(&self, reference: &ImageRef) -> Result<Option<Image>, PullError> {
        let (store, wanted) = (self.clone(), reference.clone());
        blocking(reference, move || store.resolve(&wanted)).await
    }

    fn flight(
        &self,
        reference: &ImageRef,
        options: &PullOptions,
    ) -> (Flight, watch::Receiver<Transferred>) {
        let key = (reference.clone(), options.clone());
        let mut flights = self
            .flights()
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((flight, transferred)) = flights.get(&key)
            && let Some(flight) = flight.upgrade()
            && flight.peek().is_none()
        {
            return (flight, transferred.clone());
        }
        flights.retain(|_, (flight, _)| flight.upgrade().is_some_and(|f| f.peek().is_none()));
        let (tell, transferred) = watch::channel(Transferred::default());
        let (store, reference, options) = (self.clone(), reference.clone(), options.clone());
        let flight = async move { fetch_image(store, reference, options, tell).await }
            .boxed()
            .shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(key, (weak, transferred.clone()));
        }
        (flight, transferred)
    }
}

/// Runs file work off the runtime.
async fn blocking<T: Send + 'static>(
    image: &ImageRef,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, PullError> {
    let result = spawn_blocking(work)
        .await
        .expect("file work does not panic");
    result.map_err(|cause| PullError::Store {
        image: image.to_string(),
        cause,
    })
}

async fn fetch_image(
    store: Store,
    reference: ImageRef,
    options: PullOptions,
    tell: watch::Sender<Transferred>,
) -> Result<Image, PullError> {
    let image = reference.to_string();
    let known = store.known(&reference).await?;
    let client = Client::new(
        &reference,
        &options,
        store.limits().read_timeout,
        Operation::Pull,
    )
    .map_err(|cause| PullError::Unreachable {
        image: image.clone(),
        registry: reference.registry().to_owned(),
        cause,
    })?;
    let fetch = Fetch {
        store,
        reference,
        image,
        client,
        tell,
    };
    let chosen = match fetch.choice().choose().await {
        Ok(chosen) => chosen,
        Err(error) => match known {
            Some(known) if known.local => {
                tracing::warn!(%error, "using the image that was built or imported here");
                return Ok(known);
            }
            _ => return Err(error),
        },
    };
    fetch.complete(chosen).await
}

/// The manifest for this machine.
struct Chosen {
    bytes: Vec<u8>,
    digest: Digest,
    manifest: Manifest,
    /// The index it was found in.
    index: Option<Digest>,
}

/// The choice of the manifest, which needs no store.
struct Choice<'a> {
    reference: &'a ImageRef,
    image: String,
    client: &'a Client,
    limits: &'a Limits,
}

/// The manifest of an image for this machine.
pub(super) async fn choose(
    client: &Client,
    reference: &ImageRef,
    limits: &Limits,
) -> Result<Manifest, PullError> {
    let image = reference.to_string();
    let choice = Choice {
        reference,
        image,
        client,
        limits,
    };
    Ok(choice.choose().await?.manifest)
}

/// An answer of the registry that is of no use.
pub(super) fn pull_failed(reference: &ImageRef, cause: &str) -> PullError {
    PullError::Registry {
        image: reference.to_string(),
        registry: reference.registry().to_owned(),
        cause: cause.to_owned(),
    }
}

impl Choice<'_> {
    /// Asks for the manifest, and goes from an index to the manifest for this machine.
    async fn choose(&self) -> Result<Chosen, PullError> {
        let mut expected = self.reference.digest().cloned();
        let mut version = match (&expected, self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let mut index = None;
        for _ in 0..MAX_NESTING {
            let (bytes, digest) = self.manifest(&version, expected.as_ref()).await?;
            match manifest::parse(&bytes) {
                Ok(Document::Image(manifest)) => {
                    self.check_layers(&digest, &manifest)?;
                    return Ok(Chosen {
                        bytes,
                        digest,
                        manifest,
                        index,
                    });
                }
                Ok(Document::Index(entries)) => {
                    let entry =
                        manifest::choose(&entries).map_err(|available| PullError::Platform {
                            image: self.image.clone(),
                            digest: digest.clone(),
                            architecture: manifest::architecture(),
                            available,
                        })?;
                    version = entry.digest.to_string();
                    expected = Some(entry.digest.clone());
                    index.get_or_insert(digest);
                }
                Err(cause) => return Err(self.bad_manifest(digest, &cause)),
            }
        }
        let digest = index.unwrap_or_else(|| Digest::of(b""));
        Err(self.bad_manifest(
            digest,
            &format!("indexes nested more than {MAX_NESTING} deep"),
        ))
    }

    fn check_layers(&self, digest: &Digest, manifest: &Manifest) -> Result<(), PullError> {
        let strange = manifest
            .layers
            .iter()
            .find(|layer| !manifest::is_layer(&layer.media_type));
        match strange {
            Some(layer) => {
                let kind = manifest::clip(&layer.media_type);
                Err(self.bad_manifest(
                    digest.clone(),
                    &format!(
                        "layer {} is of type {kind:?}, which is not supported",
                        layer.digest
                    ),
                ))
            }
            None => Ok(()),
        }
    }

    fn bad_manifest(&self, digest: Digest, cause: &str) -> PullError {
        PullError::Manifest {
            image: self.image.clone(),
            digest,
            cause: manifest::clip(cause),
        }
    }

    /// Fetches one manifest or index and verifies its digest; a few attempts.
    async fn manifest(
        &self,
        version: &str,
        expected: Option<&Digest>,
    ) -> Result<(Vec<u8>, Digest), PullError> {
        let mut attempt = 0;
        let raw = loop {
            attempt += 1;
            let asked = async {
                self.client.authenticate().await?;
                self.client.manifest(version).await
            };
            match asked.await {
                Ok(raw) => break raw,
                Err(Failed::Transient(cause)) if attempt < self.limits.attempts => {
                    tracing::debug!(image = %self.image, attempt, cause, "asking for the manifest again");
                    self.pause(attempt).await;
                }
                Err(failed) => return Err(self.client.pull_error(failed)),
            }
        };
        let digest = Digest::of(&raw.bytes);
        // The claim in the header is only worth a check where the request itself did not name the content.
        let claimed = raw
            .claimed
            .as_deref()
            .filter(|text| text.starts_with("sha256:"));
        let expected = expected
            .map(ToString::to_string)
            .or(claimed.map(str::to_owned));
        match expected {
            Some(expected) if expected != digest.to_string() => {
                Err(self.wrong_digest(&expected, &digest))
            }
            _ => Ok((raw.bytes, digest)),
        }
    }

    fn wrong_digest(&self, expected: &str, actual: &Digest) -> PullError {
        match expected.parse::<Digest>() {
            Ok(expected) => PullError::WrongDigest {
                image: self.image.clone(),
                expected,
                actual: actual.to_string(),
            },
            Err(invalid) => self.bad_manifest(actual.clone(), &invalid.to_string()),
        }
    }

    async fn pause(&self, attempt: u32) {
        let limits = self.limits;
        tokio::time::sleep(limits.retry_pause * 2u32.pow(attempt.saturating_sub(1).min(4))).await;
    }
}

struct Fetch {
    store: Store,
    reference: ImageRef,
    image: String,
    client: Client,
    tell: watch::Sender<Transferred>,
}

impl Fetch {
    fn choice(&self) -> Choice<'_> {
        Choice {
            reference: &self.reference,
            image: self.image.clone(),
            client: &self.client,
            limits: self.store.limits(),
        }
    }

    /// Fetches what is missing and writes the name.
    async fn complete(&self, chosen: Chosen) -> Result<Image, PullError> {
        // From here on nothing may be collected: the blobs that are here are about to be needed.
        let store = self.store.clone();
        let _activity = blocking(&self.reference, move || store.activity()).await?;
        let mut wanted: Vec<Descriptor> = Vec::new();
        for blob in chosen.manifest.blobs() {
            if !wanted.iter().any(|other| other.digest == blob.digest) {
                wanted.push(blob.clone());
            }
        }
        let total = wanted.iter().map(|blob| blob.size).sum::<u64>();
        let (here, missing): (Vec<_>, Vec<_>) = wanted
            .into_iter()
            .partition(|blob| self.store.has_blob(&blob.digest, blob.size));
        let done = here.iter().map(|blob| blob.size).sum::<u64>();
        self.tell.send_replace(Transferred { done, total });
        let transfers: Vec<_> = missing.iter().map(|blob| self.blob(blob).boxed()).collect();
        futures::stream::iter(transfers)
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await?;
        let (store, reference) = (self.store.clone(), self.reference.clone());
        blocking(&self.reference, move || {
            store.put_blob(&chosen.bytes)?;
            store.register(&reference, &chosen.digest, chosen.index, false)
        })
        .await
    }

    /// Fetches one blob; goes on where a broken transfer stopped.
    async fn blob(&self, blob: &Descriptor) -> Result<(), PullError> {
        let store = self.store.clone();
        let mut writer = blocking(&self.reference, move || store.blob_writer()).await?;
        let (mut stuck, mut failures, mut furthest) = (0, 0, 0);
        loop {
            let (back, outcome) = self.attempt(blob, writer).await?;
            writer = back;
            let cause = match outcome {
                Ok(()) => break,
                Err(cause) => cause,
            };
            failures += 1;
            stuck = if writer.written() > furthest {
                1
            } else {
                stuck + 1
            };
            furthest = furthest.max(writer.written());
            if stuck >= self.store.limits().attempts || failures >= MAX_FAILURES {
                return Err(PullError::Truncated {
                    image: self.image.clone(),
                    blob: blob.digest.clone(),
                    expected: blob.size,
                    received: furthest,
                    cause,
                });
            }
            tracing::debug!(image = %self.image, blob = %blob.digest, at = writer.written(), cause, "trying again");
            self.choice().pause(stuck).await;
        }
        let actual = writer.digest();
        if actual != blob.digest {
            return Err(self
                .choice()
                .wrong_digest(&blob.digest.to_string(), &actual));
        }
        let store = self.store.clone();
        blocking(&self.reference, move || writer.commit(&store)).await?;
        Ok(())
    }

    /// One attempt: the outer error ends the pull, the inner one says why to try again.
    async fn attempt(
        &self,
        blob: &Descriptor,
        mut writer: BlobWriter,
    ) -> Result<(BlobWriter, Result<(), String>), PullError> {
        if writer.written() == blob.size {
            return Ok((writer, Ok(())));
        }
        let response = match self.client.blob(&blob.digest, writer.written()).await {
            Ok(response) => response,
            Err(Failed::Transient(cause)) => return Ok((writer, Err(cause))),
            Err(Failed::NotFound) => {
                let cause = format!("that it does not have {}", blob.digest);
                return Err(self.client.pull_error(Failed::Refused(cause)));
            }
            Err(failed) => return Err(self.client.pull_error(failed)),
        };
        if writer.written() > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
            self.give_back(writer.written());
            writer.restart().map_err(|e| self.cannot_write(e))?;
        }
        if let Some(length) = response.content_length()
            && writer.written().saturating_add(length) != blob.size
        {
            return Err(self.wrong_size(blob, writer.written().saturating_add(length)));
        }
        let mut body = response.bytes_stream();
        let mut buffer = Vec::with_capacity(BUFFER);
        let mut received = writer.written();
        loop {
            let piece = body.next().await;
            if let Some(Ok(piece)) = &piece {
                received += piece.len() as u64;
                if received > blob.size {
                    return Err(self.wrong_size(blob, received));
                }
                buffer.extend_from_slice(piece);
                self.tell.send_modify(|t| t.done += piece.len() as u64);
                if buffer.len() < BUFFER {
                    continue;
                }
            }
            let written;
            (writer, buffer, written) = spawn_blocking(move || {
                let written = writer.write_all(&buffer);
                buffer.clear();
                (writer, buffer, written)
            })
            .await
            .expect("writing does not panic");
            written.map_err(|e| self.cannot_write(e))?;
            match piece {
                Some(Ok(_)) => {}
                Some(Err(e)) => return Ok((writer, Err(chain(&e)))),
                None if received == blob.size => return Ok((writer, Ok(()))),
                None => return Ok((writer, Err("the registry ended the transfer".to_owned()))),
            }
        }
    }

    /// Takes bytes back from the progress when a transfer starts over.
    fn give_back(&self, bytes: u64) {
        self.tell
            .send_modify(|t| t.done = t.done.saturating_sub(bytes));
    }

    fn wrong_size(&self, blob: &Descriptor, actual: u64) -> PullError {
        PullError::WrongSize {
            image: self.image.clone(),
            blob: blob.digest.clone(),
            expected: blob.size,
            actual,
        }
    }

    fn cannot_write(&self, error: std::io::Error) -> PullError {
        PullError::Store {
            image: self.image.clone(),
            cause: failed("write in", &self.store.tmp_dir())(error),
        }
    }
}

impl std::fmt::Debug for Fetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetch")
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}
