//! How far a transfer is.

/// The state of a transfer, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transferred {
    /// Bytes that are here, counting blobs that were here before.
    pub done: u64,
    /// Bytes of the whole image; 0 while the manifest is not known.
    pub total: u64,
}

/// Told about the progress of a pull or push; called often, so it should be quick.
pub trait Progress: Send + Sync {
    /// The transfer has come this far.
    fn update(&self, transferred: Transferred);
}

/// Nobody looks.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn update(&self, _: Transferred) {}
}
