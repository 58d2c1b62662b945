//! Pushing.

use bytes::Bytes;
use futures::Stream;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::Url;
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;

use super::client::{Client, Failed, Operation, accepted, chain};
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
        let patience = self.limits().read_timeout;
        let client = Client::new(reference, options, patience, Operation::Push)
            .map_err(|cause| refused(reference, "anything", cause))?;
        client
            .authenticate()
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
            let version = reference.tag().unwrap_or("latest");
            let put = || {
                client
                    .http
                    .put(format!("{}/manifests/{version}", client.base))
                    .header(CONTENT_TYPE, media_type.clone())
                    .body(bytes.clone())
            };
            let pushed = client.send(put).await;
            pushed.map_err(|e| push_error(reference, "the manifest", e))
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
        let wrong = |failed| push_error(reference, &name, failed);
        if client.has_blob(&name).await.map_err(wrong)? {
            tell.send_modify(|t| t.done += blob.size);
            return Ok(());
        }
        let location = client.begin_upload(&name).await.map_err(wrong)?;
        let path = self.blob_path(&blob.digest);
        let file = tokio::fs::File::open(&path)
            .await
            .map_err(|e| PushError::Store {
                image: reference.to_string(),
                cause: failed("open", &path)(e),
            })?;
        client
            .upload(location, file, blob.size, tell)
            .await
            .map_err(wrong)
    }
}

impl Client {
    async fn has_blob(&self, digest: &str) -> Result<bool, Failed> {
        let head = || self.http.head(format!("{}/blobs/{digest}", self.base));
        match self.send(head).await {
            Ok(_) => Ok(true),
            Err(Failed::NotFound) => Ok(false),
            Err(failed) => Err(failed),
        }
    }

    /// Asks where a blob is to be sent.
    async fn begin_upload(&self, digest: &str) -> Result<Url, Failed> {
        let post = || {
            self.http
                .post(format!("{}/blobs/uploads/", self.base))
                .header(CONTENT_LENGTH, 0)
        };
        let response = self.send(post).await?;
        let location = response.headers().get(LOCATION);
        // It may be relative to what was asked.
        let url = location
            .and_then(|value| value.to_str().ok())
            .and_then(|text| response.url().join(text).ok());
        let mut url =
            url.ok_or_else(|| Failed::Refused("without a location for the upload".to_owned()))?;
        url.query_pairs_mut().append_pair("digest", digest);
        Ok(url)
    }

    /// Sends a blob in one request, for as long as it moves on.
    async fn upload(
        &self,
        to: Url,
        file: tokio::fs::File,
        size: u64,
        tell: &watch::Sender<Transferred>,
    ) -> Result<(), Failed> {
        let own = self
            .origin
            .parse::<Url>()
            .is_ok_and(|origin| origin.origin() == to.origin());
        let mut request = self
            .upload
            .put(to)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, size)
            .body(reqwest::Body::wrap_stream(pieces(file, tell.clone())));
        if own {
            // Nobody but the registry is shown the token.
            request = self.authorized(request).await;
        }
        let mut moved = tell.subscribe();
        let send = request.send();
        tokio::pin!(send);
        let response = loop {
            tokio::select! {
                response = &mut send => break response.map_err(|e| Failed::Transient(chain(&e)))?,
                Ok(()) = moved.changed() => {}
                () = tokio::time::sleep(self.patience) => {
                    let seconds = self.patience.as_secs();
                    return Err(Failed::Transient(format!("nothing moved for {seconds} s")));
                }
            }
        };
        let status = accepted(response).await?.status();
        if status == StatusCode::CREATED {
            Ok(())
        } else {
            Err(Failed::Refused(status.to_string()))
        }
    }
}

/// The content of a file, counted as it goes.
fn pieces(
    file: tokio::fs::File,
    tell: watch::Sender<Transferred>,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
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
