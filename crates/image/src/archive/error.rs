//! What can be wrong with an archive.

use thiserror::Error;

use crate::{Digest, StoreError};

/// Why an archive could not be imported. One line; names the archive.
#[derive(Debug, Clone, Error)]
pub enum ImportError {
    /// It cannot be read, or is no tar archive.
    #[error("{archive}: {cause}")]
    Read {
        /// The archive.
        archive: String,
        /// What is wrong.
        cause: String,
    },
    /// No image in it.
    #[error("{archive}: no image in it: neither index.json nor manifest.json")]
    NoImage {
        /// The archive.
        archive: String,
    },
    /// Its description is broken.
    #[error("{archive}: {file}: {cause}")]
    Description {
        /// The archive.
        archive: String,
        /// The file in it.
        file: String,
        /// What is wrong.
        cause: String,
    },
    /// Something that an image in it needs is not in it.
    #[error("{archive}: {file} is missing")]
    Incomplete {
        /// The archive.
        archive: String,
        /// The file that is not there.
        file: String,
    },
    /// A file is not what its name or a manifest says.
    #[error("{archive}: {expected} has wrong content: it hashes to {actual}")]
    WrongDigest {
        /// The archive.
        archive: String,
        /// What it should be.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// A file is not as long as a manifest says.
    #[error(
        "{archive}: {blob} has wrong size: {expected} bytes in the manifest, {actual} in the archive"
    )]
    WrongSize {
        /// The archive.
        archive: String,
        /// The blob.
        blob: Digest,
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes in the archive.
        actual: u64,
    },
    /// No name in the archive, and none was given.
    #[error("{archive}: the image in it has no name: give one")]
    Unnamed {
        /// The archive.
        archive: String,
    },
    /// One name was given for several images.
    #[error("{archive}: {count} images are in it: one name is not enough")]
    Several {
        /// The archive.
        archive: String,
        /// How many.
        count: usize,
    },
    /// The store's directory cannot be used.
    #[error("{archive}: {cause}")]
    Store {
        /// The archive.
        archive: String,
        /// What failed.
        cause: StoreError,
    },
}
