//! From an image, wherever and whatever it is, to a raw disk, in one pass.
//!
//! ```text
//!  file ─────────────┐
//!  server, ranges ───┼──────────────────────────────────────► Source ─► Layout ─► pieces ─► workers ─► Target
//!       │            │                                          ▲        tables              unpack,   zeros stay
//!       └ in order ──┴► checksum ► gunzip, unxz, unzstd ► StreamSource                       write     holes
//!  server, no ranges ┘
//! ```
//!
//! An image on a server that gives ranges is read in place: only its tables and the content of the disk are fetched. With a
//! checksum every byte has to come by, so then, and where the image is packed or the server gives it whole only, it is read
//! as a stream; what such a reader meets too early is kept in a file without a name, and [`Imported::spooled`] tells how much
//! that was. Memory does not depend on any size: at most about 20 MiB of buffers.
//!
//! Guarantees: a file at the target's path is whole, was checked and is on disk; a failed import leaves none. A device has
//! no such moment: whoever fills one has to remember that it is not ready yet.

mod checksum;
mod http;
mod image;
pub(crate) mod source;
mod target;
mod work;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use thiserror::Error;

use self::checksum::Seen;
pub use self::checksum::{Checksum, InvalidChecksum};
pub use self::http::Http;
use self::image::{Image, Opened, open};
pub use self::source::SourceError;
pub(crate) use self::target::Target;
use self::work::Work;
use crate::Progress;
use crate::format::{Compression, FormatError, ImageFormat, MAX_VIRTUAL_SIZE};
use crate::layout::LayoutError;

/// Where an image is.
pub enum From {
    /// A file of this machine.
    File(PathBuf),
    /// On a web server.
    Http(Http),
    /// Whatever comes: an upload, a layer of a container image. `length` is that of the stream, where it is known.
    Stream {
        /// The bytes.
        stream: Box<dyn Read + Send>,
        /// How many are to come.
        length: Option<u64>,
    },
}

/// The room that a disk has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Room {
    /// Bytes.
    pub available: u64,
    /// The size of the claim, and the part of it that the file system is expected to take, where it is one.
    pub claim: Option<(u64, f64)>,
}

/// What is to be done.
pub struct Request {
    /// The image.
    pub from: From,
    /// The file to be made, or a block device.
    pub target: PathBuf,
    /// None: whatever the image says.
    pub room: Option<Room>,
    /// The disk becomes at least so large.
    pub size: Option<u64>,
    /// Over the bytes as they come.
    pub checksum: Option<Checksum>,
    /// Takes the room of the whole disk at once.
    pub preallocate: bool,
}

impl Request {
    /// With nothing special.
    pub fn new(from: From, target: impl Into<PathBuf>) -> Self {
        Self {
            from,
            target: target.into(),
            room: None,
            size: None,
            checksum: None,
            preallocate: false,
        }
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The image's format.
    pub format: ImageFormat,
    /// What it was packed with.
    pub compression: Option<Compression>,
    /// What the guest sees, in bytes.
    pub virtual_size: u64,
    /// Bytes of the disk that are not zeros, about.
    pub written: u64,
    /// Bytes that came over the network or out of the file.
    pub read: u64,
    /// Bytes that had to be kept because they came too early.
    pub spooled: u64,
}

/// Why an image was not imported. One line.
#[derive(Debug, Error)]
pub enum Error {
    /// It did not come.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is not what it should be, or what is not allowed.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// No room.
    #[error(
        "Virtual image size {size} is larger than the available size {available}{}. A larger PVC is required.",
        of_claim(.claim)
    )]
    TooLarge {
        /// Of the image, in bytes; at least, where it comes as a stream.
        size: u64,
        /// Of the disk, in bytes.
        available: u64,
        /// Size and overhead of the claim.
        claim: Option<(u64, f64)>,
    },
    /// Not the bytes that were meant.
    #[error("the checksum is wrong: {expected} was expected, {actual} came")]
    Checksum {
        /// What was given.
        expected: Checksum,
        /// What came.
        actual: Checksum,
    },
    /// Packed content that is damaged.
    #[error("the image cannot be unpacked: {0}")]
    Damaged(String),
    /// It unpacks to more than any image of this size needs.
    #[error(
        "the image unpacks to more than {0} bytes, which is more than a disk of this size can take"
    )]
    Bomb(u64),
    /// The disk cannot be written.
    #[error("cannot write {}: {cause}", path.display())]
    Target {
        /// Where.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Somebody stopped it.
    #[error("the import was stopped")]
    Stopped,
}

impl Error {
    /// Whether the same may go well later with nothing changed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Source(error) => !error.is_final(),
            Self::Target { .. } | Self::Stopped => true,
            _ => false,
        }
    }
}

impl std::convert::From<LayoutError> for Error {
    fn from(error: LayoutError) -> Self {
        match error {
            LayoutError::Format(error) => Self::Format(error),
            LayoutError::Source(error) => Self::Source(error),
        }
    }
}

fn of_claim(claim: &Option<(u64, f64)>) -> String {
    claim.map_or_else(String::new, |(size, overhead)| {
        format!(
            " (PVC size {size}, reserved overhead {:.6}%)",
            overhead * 100.0
        )
    })
}

/// What an image is, without importing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// Its format, inside of what it is packed with.
    pub format: ImageFormat,
    /// What it is packed with.
    pub compression: Option<Compression>,
    /// What the guest sees, in bytes; none where only unpacking all of it would tell.
    pub virtual_size: Option<u64>,
    /// Bytes of the file; none where the server does not tell.
    pub file_size: Option<u64>,
    /// Whether parts of it can be had.
    pub ranges: bool,
}

/// Looks at the beginning (and the end) of an image and at its tables, with all the checks of an import. Blocking, on a
/// thread that may block, inside a runtime.
///
/// # Errors
/// As [`run`], but nothing of the target.
pub fn inspect(from: From) -> Result<Inspected, Error> {
    let seen = Seen::new(None);
    let opened = open(from)?;
    let file_size = opened.length();
    let ranges = matches!(opened, Opened::Any(..));
    let mut image = Image::of(
        opened,
        &seen,
        false,
        MAX_VIRTUAL_SIZE,
        &std::env::temp_dir(),
    )?;
    let virtual_size = match image.format {
        ImageFormat::Raw => image.known_size(file_size),
        _ => Some(image.layout(MAX_VIRTUAL_SIZE)?.virtual_size()),
    };
    Ok(Inspected {
        format: image.format,
        compression: image.compression,
        virtual_size,
        file_size,
        ranges,
    })
}

/// Imports an image. Blocking, on a thread that may block, inside a runtime. `stop` ends it early.
///
/// # Errors
/// [`Error`]; then the target is not there.
pub fn run(
    request: Request,
    progress: &dyn Progress,
    stop: &AtomicBool,
) -> Result<Imported, Error> {
    let path = request.target.clone();
    let failed = |cause: io::Error| Error::Target {
        path: path.clone(),
        cause,
    };
    let seen = Seen::new(request.checksum.as_ref());
    let room = request.room;
    let limit = room.map_or(MAX_VIRTUAL_SIZE, |room| room.available);
    let too_large = |error: Error| match (error, room) {
        (Error::Format(FormatError::TooLarge { size, .. }), Some(room)) => Error::TooLarge {
            size,
            available: room.available,
            claim: room.claim,
        },
        (error, _) => error,
    };
    let opened = open(request.from)?;
    let length = opened.length();
    let in_order = request.checksum.is_some();
    let spool = spool_dir(&request.target);
    let mut image = Image::of(opened, &seen, in_order, limit, &spool)?;
    let target = Target::open(&request.target).map_err(failed)?;
    let device = target.device_size().map_err(failed)?;
    let limit = device.map_or(limit, |size| limit.min(size));
    let work = Work {
        target: &target,
        progress,
        stop,
        written: AtomicU64::new(0),
        length,
        seen: &seen,
    };
    let prepare = |size: u64| {
        let size = request.size.unwrap_or(0).max(size);
        target.prepare(size, request.preallocate).map_err(failed)
    };
    let virtual_size = if image.format == ImageFormat::Raw {
        if let Some(size) = image.known_size(length) {
            check_room(size, limit).map_err(too_large)?;
        }
        prepare(0)?;
        let size = work.raw(&mut image, limit).map_err(too_large)?;
        if device.is_none() {
            prepare(size)?;
        }
        size
    } else {
        let mut layout = image.layout(limit).map_err(too_large)?;
        prepare(layout.virtual_size())?;
        let done = work.layout(layout.as_mut(), image.reader.source());
        done.map_err(|error| image.told(error))?;
        layout.virtual_size()
    };
    let spooled = image.finish()?;
    if let Some(expected) = request.checksum
        && let Some(actual) = seen.differs(&expected)
    {
        return Err(Error::Checksum { expected, actual });
    }
    let read = image.reader.source().came().max(seen.bytes());
    let written = work.written.load(Ordering::Relaxed);
    target.finish().map_err(failed)?;
    Ok(Imported {
        format: image.format,
        compression: image.compression,
        virtual_size,
        written,
        read,
        spooled,
    })
}

/// Makes an empty disk of `size` bytes at `target`, whole or not at all.
///
/// # Errors
/// Of the file system.
pub fn blank(target: &Path, size: u64, preallocate: bool) -> io::Result<()> {
    let target = Target::open(target)?;
    target.prepare(target.device_size()?.unwrap_or(size), preallocate)?;
    target.finish()
}

/// Where what comes too early is kept: beside the disk, which has room for it.
fn spool_dir(target: &Path) -> PathBuf {
    match target.parent() {
        Some(parent) if !target.starts_with("/dev") && !parent.as_os_str().is_empty() => {
            parent.to_owned()
        }
        _ => std::env::temp_dir(),
    }
}

fn check_room(size: u64, limit: u64) -> Result<(), Error> {
    if size > limit {
        return Err(FormatError::TooLarge { size, limit }.into());
    }
    Ok(())
}
