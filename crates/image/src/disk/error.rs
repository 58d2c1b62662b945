//! What can be wrong with the disk of an image.

use thiserror::Error;

use crate::format::FormatError;
use crate::{Digest, StoreError};

/// Why an image has no usable disk. One line; names the image and what was found in it.
#[derive(Debug, Clone, Error)]
pub enum DiskError {
    /// No file there.
    #[error("image {image}: there is no disk: nothing is under {path}")]
    Missing {
        /// The image.
        image: String,
        /// Where it should be.
        path: String,
    },
    /// More than one file there.
    #[error("image {image}: exactly one file must be under {path}, found {}", .entries.join(", "))]
    Several {
        /// The image.
        image: String,
        /// Where it should be.
        path: String,
        /// What is there, at most ten.
        entries: Vec<String>,
    },
    /// Something else than a regular file.
    #[error("image {image}: {entry} is a {kind}, not a regular file")]
    NotAFile {
        /// The image.
        image: String,
        /// Its path in the image.
        entry: String,
        /// What it is.
        kind: &'static str,
    },
    /// A path that leaves the image.
    #[error("image {image}: layer {layer} has the path {entry:?}, which climbs out of the image")]
    Escapes {
        /// The image.
        image: String,
        /// The layer.
        layer: Digest,
        /// The path.
        entry: String,
    },
    /// A name that cannot be used as a file name.
    #[error("image {image}: {entry:?} is not a usable name for a disk")]
    BadName {
        /// The image.
        image: String,
        /// The name.
        entry: String,
    },
    /// The content is no disk, or a hostile one.
    #[error("image {image}: {entry}: {cause}")]
    Format {
        /// The image.
        image: String,
        /// Its path in the image.
        entry: String,
        /// What is wrong.
        cause: FormatError,
    },
    /// The layers unpack to more than the store allows.
    #[error("image {image}: layer {layer} unpacks to more than the limit of {limit} bytes")]
    TooLarge {
        /// The image.
        image: String,
        /// The layer.
        layer: Digest,
        /// The store's limit.
        limit: u64,
    },
    /// A layer is not a tar archive, or is broken.
    #[error("image {image}: layer {layer}: {cause}")]
    Layer {
        /// The image.
        image: String,
        /// The layer.
        layer: Digest,
        /// What is wrong.
        cause: String,
    },
    /// A stored layer is not any more what its name says.
    #[error(
        "image {image}: layer {layer} is damaged in the store: its content is {actual}; remove the image and pull it again"
    )]
    Damaged {
        /// The image.
        image: String,
        /// The layer.
        layer: Digest,
        /// What its content hashes to.
        actual: Digest,
    },
    /// The image is not in the store (any more).
    #[error("image {image}: manifest {digest} is not in the store")]
    Gone {
        /// The image.
        image: String,
        /// Its manifest.
        digest: Digest,
    },
    /// Writing failed: out of disk, most likely.
    #[error("image {image}: {cause}")]
    Store {
        /// The image.
        image: String,
        /// What failed.
        cause: StoreError,
    },
}
