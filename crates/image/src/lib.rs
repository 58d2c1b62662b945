//! Images of disks: container disks, which travel as OCI images, and files of all common formats, which become raw disks.
//!
//! What this crate owns:
//! - [`Store`], the content-addressed image store of a node: blobs verified by digest, an index of names, and for each
//!   image the one disk file that it carries, extracted once;
//! - the ways in and out of it: [`Store::pull`], [`Store::push`], [`Store::import_archive`], [`Store::build`];
//! - [`import`](mod@import), which makes a raw disk of an image in one pass;
//! - [`format`](mod@format), which tells what a disk file is from its content and refuses what a hostile file could use
//!   to reach out of itself (backing files, external data files, two formats in one).
//!
//! Invariants: a blob or disk that is visible under its final name is complete and was verified; a name is in the index
//! only when every blob of its image is there; what an interrupted operation left behind is removed at the next
//! [`Store::open`]. Whatever a registry, an archive or a layer contains, memory stays bounded.
//!
//! Names mean what they mean to Docker (`windows2012dc` is `docker.io/library/windows2012dc:latest`), and the layout
//! under `/disk` is KubeVirt's containerDisk.

mod archive;
mod build;
mod copy;
mod credentials;
mod digest;
pub mod disk;
mod export;
pub mod format;
pub mod import;
mod layout;
mod manifest;
mod progress;
mod reference;
mod registry;
mod sparse;
mod store;
mod tar_stream;
mod unpack;

pub use archive::ImportError;
pub use build::BuildError;
pub use copy::{CopyError, CopyMethod, copy_disk, shares_blocks};
pub use credentials::{Credentials, credentials_from_docker_config};
pub use digest::{Digest, InvalidDigest};
pub use disk::{ContainerDisk, DiskError};
pub use export::export_packed;
pub use progress::{NoProgress, Progress, Transferred};
pub use reference::{ImageRef, InvalidReference};
pub use registry::{DiskStream, PullError, PullOptions, PullPolicy, PushError};
pub use store::{Collected, Hold, Image, Limits, Store, StoreError};
