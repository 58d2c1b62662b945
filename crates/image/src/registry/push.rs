//! Pushing.

use bytes::Bytes;
use futures::Stream;
use http::HeaderValue;
use oci_client::RegistryOperation;
use oci_client::errors::OciDistributionError;
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;

use super::client::{Client, Failed, failed as sort};
use super::{PullOptions, PushError};
use crate::manifest::Descriptor;
use crate::store::failed;
use crate::{Digest, ImageRef, Progress, Store, Transferred};

const PIECE: usize = 256 << 10;

impl Store {
    /// Sends an image of the store to the registry in its name, and returns the digest it has there.
    ///
    /// Blobs that the repository has already are not sent; the manifest goes last.
    pub async fn push(
        &self,
        reference: &ImageRef,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Digest, PushError> {
        let image = reference.to_string();
        if reference.digest().is_some() {
            return Err(PushError::ByDigest { image });
        }
        let store_error = |cause| PushError::Store {
            image: reference.to_string(),
            cause,
        };
        let _activity = self.activity().map_err(store_error)?;
        let found = self.resolve(reference).map_err(store_error)?;
        let Some((digest, (bytes, manifest))) =
            found.and_then(|found| self.manifest(&found.digest).map(|m| (found.digest, m)))
        else {
            return Err(PushError::NotPresent { image });
        };
        let client = Client::new(reference, options, self.limits().read_timeout)
            .map_err(|cause| refused(reference, "anything", cause))?;
        client
            .authenticate(RegistryOperation::Push)
            .await
            .map_err(|e| push_error(reference, "anything", e))?;

        let total = manifest.blobs().map(|blob| blob.size).sum();
        let (tell, mut transferred) = watch::channel(Transferred { done: 0, total });
        let send = async {
            for blob in manifest.blobs() {
                self.send_blob(&client, reference, blob, &tell).await?;
            }
            let media_type = HeaderValue::from_str(&manifest.media_type)
                .map_err(|e| refused(reference, "the manifest", e.to_string()))?;
            let pushed = client
                .oci
                .push_manifest_raw(&client.reference, bytes.clone(), media_type)
                .await;
            pushed.map_err(|e| push_error(reference, "the manifest", sort(&e)))
        };
        tokio::pin!(send);
        loop {
            tokio::select! {
                result = &mut send => {
                    result?;
                    progress.update(Transferred { done: total, total });
                    return Ok(digest);
                }
                Ok(()) = transferred.changed() => {
                    let now = *transferred.borrow_and_update();
                    progress.update(now);
                }
            }
        }
    }

    async fn send_blob(
        &self,
        client: &Client,
        reference: &ImageRef,
        blob: &Descriptor,
        tell: &watch::Sender<Transferred>,
    ) -> Result<(), PushError> {
        let name = blob.digest.to_string();
        let there = client.oci.blob_exists(&client.reference, &name).await;
        if there.map_err(|e| push_error(reference, &name, sort(&e)))? {
            tell.send_modify(|t| t.done += blob.size);
            return Ok(());
        }
        let path = self.blob_path(&blob.digest);
        let file = tokio::fs::File::open(&path)
            .await
            .map_err(|e| PushError::Store {
                image: reference.to_string(),
                cause: failed("open", &path)(e),
            })?;
        let stream = pieces(file, tell.clone());
        let sent = client
            .oci
            .push_blob_stream(&client.reference, stream, &name, Some(blob.size))
            .await;
        sent.map_err(|e| push_error(reference, &name, sort(&e)))?;
        Ok(())
    }
}

/// The content of a file, counted as it goes.
fn pieces(
    file: tokio::fs::File,
    tell: watch::Sender<Transferred>,
) -> impl Stream<Item = Result<Bytes, OciDistributionError>> + Send + 'static {
    futures::stream::try_unfold((file, tell), |(mut file, tell)| async move {
        let mut piece = bytes::BytesMut::with_capacity(PIECE);
        let n = file.read_buf(&mut piece).await?;
        tell.send_modify(|t| t.done += n as u64);
        Ok((n > 0).then(|| (piece.freeze(), (file, tell))))
    })
}

fn push_error(reference: &ImageRef, what: &str, failed: Failed) -> PushError {
    match failed {
        Failed::Unauthorized(cause) => PushError::Unauthorized {
            image: reference.to_string(),
            registry: reference.registry().to_owned(),
            cause,
        },
        Failed::NotFound => refused(reference, what, "not found".to_owned()),
        Failed::Transient(cause) | Failed::Refused(cause) => refused(reference, what, cause),
    }
}

fn refused(reference: &ImageRef, what: &str, cause: String) -> PushError {
    PushError::Registry {
        image: reference.to_string(),
        registry: reference.registry().to_owned(),
        what: what.to_owned(),
        cause,
    }
}
