//! Moving images from and to registries.
//!
//! A registry is not trusted: what it sends is bounded, hashed and counted before anything believes it, and what it names
//! (token servers, redirects, upload locations) is asked over TLS unless the registry itself is spoken to without.

mod auth;
pub(crate) mod client;
mod pull;
mod push;
mod stream;

pub use stream::DiskStream;

use thiserror::Error;

pub(crate) use self::pull::Flights;
use crate::{Credentials, Digest, StoreError};

/// When to ask the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PullPolicy {
    /// Every time; what is here already is not fetched again.
    Always,
    /// Only when the image is not in the store.
    #[default]
    IfNotPresent,
    /// Not at all.
    Never,
}

/// How to pull (or push; then `policy` means nothing).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PullOptions {
    /// Anonymous without.
    pub credentials: Option<Credentials>,
    /// Speak HTTP without TLS to this registry.
    pub plain_http: bool,
    /// When to ask the registry.
    pub policy: PullPolicy,
}

/// Why an image could not be pulled. One line; names the image, and the digest or value that is wrong.
#[derive(Debug, Clone, Error)]
pub enum PullError {
    /// Not in the store, and the policy is [`PullPolicy::Never`].
    #[error("image {image}: not in the store, and the pull policy is Never")]
    NotPresent {
        /// The image.
        image: String,
    },
    /// The registry does not have it.
    #[error("image {image}: not found in registry {registry}")]
    NotFound {
        /// The image.
        image: String,
        /// The registry that was asked.
        registry: String,
    },
    /// The registry wants (other) credentials.
    #[error("image {image}: registry {registry} refuses access: {cause}")]
    Unauthorized {
        /// The image.
        image: String,
        /// The registry that was asked.
        registry: String,
        /// What it said.
        cause: String,
    },
    /// No answer.
    #[error("image {image}: registry {registry} cannot be reached: {cause}")]
    Unreachable {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
        /// Why.
        cause: String,
    },
    /// An answer that is no image.
    #[error("image {image}: registry {registry} answers {cause}")]
    Registry {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
        /// What it said.
        cause: String,
    },
    /// The manifest is broken or not supported.
    #[error("image {image}: bad manifest {digest}: {cause}")]
    Manifest {
        /// The image.
        image: String,
        /// The manifest.
        digest: Digest,
        /// What is wrong with it.
        cause: String,
    },
    /// No manifest for this machine.
    #[error("image {image}: no image for linux/{architecture} in {digest}, only {available}")]
    Platform {
        /// The image.
        image: String,
        /// The index.
        digest: Digest,
        /// This machine's architecture.
        architecture: &'static str,
        /// The platforms it has.
        available: String,
    },
    /// The content is not what its digest says.
    #[error("image {image}: {expected} has wrong content: it hashes to {actual}")]
    WrongDigest {
        /// The image.
        image: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: String,
    },
    /// The content is not as long as the manifest says.
    #[error(
        "image {image}: {blob} has wrong size: {expected} bytes in the manifest, {actual} from the registry"
    )]
    WrongSize {
        /// The image.
        image: String,
        /// The blob.
        blob: Digest,
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes by the registry; at least.
        actual: u64,
    },
    /// The transfer broke off, again and again.
    #[error("image {image}: {blob} is cut off: {received} of {expected} bytes came: {cause}")]
    Truncated {
        /// The image.
        image: String,
        /// The blob.
        blob: Digest,
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes that came.
        received: u64,
        /// How the last attempt ended.
        cause: String,
    },
    /// The store's directory cannot be used: out of disk, most likely.
    #[error("image {image}: {cause}")]
    Store {
        /// The image.
        image: String,
        /// What failed.
        cause: StoreError,
    },
}

impl PullError {
    /// Whether the same pull may go well later with nothing changed: the registry did not answer, or broke off.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Truncated { .. } | Self::Store { .. }
        )
    }
}

/// Why an image could not be pushed. One line; names the image.
#[derive(Debug, Clone, Error)]
pub enum PushError {
    /// Nothing to push.
    #[error("image {image}: not in the store")]
    NotPresent {
        /// The image.
        image: String,
    },
    /// A digest is the name of content, so nothing can be given that name.
    #[error("image {image}: push by tag, not by digest")]
    ByDigest {
        /// The image.
        image: String,
    },
    /// The registry wants (other) credentials.
    #[error("image {image}: registry {registry} refuses access: {cause}")]
    Unauthorized {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
        /// What it said.
        cause: String,
    },
    /// The registry does not answer, or not with yes.
    #[error("image {image}: registry {registry} did not take {what}: {cause}")]
    Registry {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
        /// The blob or manifest.
        what: String,
        /// Why.
        cause: String,
    },
    /// The store's directory cannot be read.
    #[error("image {image}: {cause}")]
    Store {
        /// The image.
        image: String,
        /// What failed.
        cause: StoreError,
    },
}
