//! What an image turns out to be when its first bytes came, and how it is read from there on.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::checksum::{Seen, Watched};
use super::http;
use super::source::{FileSource, Source, SourceError, StreamSource, Whole};
use super::{Error, From};
use crate::format::{self, Compression, FormatError, HEAD, ImageFormat, TAIL, Told};
use crate::layout::{self, Layout};
use crate::unpack::{Bounded, OverLimit, unpacked};

/// A source as it was found.
pub(super) enum Opened {
    Any(Box<dyn Source>),
    Stream(Box<dyn Read + Send>, Option<u64>),
}

impl Opened {
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Self::Any(source) => source.size(),
            Self::Stream(_, length) => *length,
        }
    }
}

pub(super) fn open(from: From) -> Result<Opened, Error> {
    Ok(match from {
        From::File(path) => {
            let name = path.display().to_string();
            let failed = |e: io::Error| SourceError::io(&name, &e);
            let file = File::open(&path).map_err(failed)?;
            let meta = file.metadata().map_err(failed)?;
            if meta.is_file() {
                Opened::Any(Box::new(FileSource::new(file, meta.len(), name)))
            } else if std::os::unix::fs::FileTypeExt::is_block_device(&meta.file_type()) {
                let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0));
                let size = end.map_err(|e| failed(e.into()))?;
                Opened::Any(Box::new(FileSource::new(file, size, name)))
            } else {
                return Err(FormatError::NotAFile.into());
            }
        }
        From::Http(options) => match http::open(&options, &tokio::runtime::Handle::current())? {
            http::Opened::Ranges(source) => Opened::Any(Box::new(source)),
            http::Opened::Stream(stream, length) => Opened::Stream(Box::new(stream), length),
        },
        From::Stream { stream, length } => Opened::Stream(stream, length),
    })
}

/// How an image is read.
pub(super) enum Reader {
    Any(Box<dyn Source>),
    Stream(StreamSource<Bounded<Box<dyn Read + Send>>>),
}

impl Reader {
    pub(super) fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Any(source) => source.as_mut(),
            Self::Stream(stream) => stream,
        }
    }
}

/// An image of which it is known what it is.
pub(super) struct Image {
    pub(super) format: ImageFormat,
    pub(super) compression: Option<Compression>,
    head: Vec<u8>,
    pub(super) reader: Reader,
    most: u64,
    seen: Seen,
}

impl Image {
    /// `in_order`: every byte has to pass. `limit` is the largest disk.
    pub(super) fn of(
        opened: Opened,
        seen: &Seen,
        in_order: bool,
        limit: u64,
        spool: &Path,
    ) -> Result<Self, Error> {
        // Tables and what compression adds to content that cannot be compressed.
        let most = limit.saturating_add(limit / 8).saturating_add(64 << 20);
        let watched = |inner| Watched {
            inner,
            seen: seen.clone(),
        };
        let stream: Box<dyn Read + Send> = match opened {
            Opened::Any(mut source) => {
                let (head, tail) = ends(source.as_mut())?;
                match format::tell(&head, &tail)? {
                    Told::Image(format) if !in_order => {
                        return Ok(Self {
                            format,
                            compression: None,
                            head,
                            reader: Reader::Any(source),
                            most,
                            seen: seen.clone(),
                        });
                    }
                    _ => Box::new(watched(Box::new(Whole::new(source)) as Box<dyn Read + Send>)),
                }
            }
            Opened::Stream(stream, _) => Box::new(watched(stream)),
        };
        let (head, stream) = beginning(stream).map_err(|e| broken(&e, seen, most))?;
        let whole = io::Cursor::new(head.clone()).chain(stream);
        let (compression, head, stream) = match format::tell(&head, &[])? {
            Told::Image(_) => {
                let (_, stream) = whole.into_inner();
                (None, head, stream)
            }
            Told::Packed(compression) => {
                let plain = unpacked(whole, Some(compression))
                    .and_then(beginning)
                    .map_err(|e| broken(&e, seen, most))?;
                (Some(compression), plain.0, plain.1)
            }
        };
        if head.is_empty() {
            return Err(FormatError::Empty.into());
        }
        let format = match format::tell(&head, &[])? {
            Told::Image(format) => format,
            Told::Packed(again) => return Err(FormatError::Compressed(again.as_str()).into()),
        };
        let left = most.saturating_sub(head.len() as u64);
        let stream = StreamSource::new(head.clone(), Bounded::new(stream, left), most, spool);
        Ok(Self {
            format,
            compression,
            head,
            reader: Reader::Stream(stream),
            most,
            seen: seen.clone(),
        })
    }

    /// The length of a raw image, where it is known before it came.
    pub(super) fn known_size(&self, length: Option<u64>) -> Option<u64> {
        match &self.reader {
            Reader::Any(source) => source.size(),
            Reader::Stream(_) if self.compression.is_none() => length,
            Reader::Stream(_) => None,
        }
    }

    pub(super) fn layout(&mut self, limit: u64) -> Result<Box<dyn Layout>, Error> {
        let opened = layout::open(self.format, &self.head, self.reader.source(), limit);
        opened.map_err(|error| self.told(error.into()))
    }

    /// An error of a stream as what it was about.
    pub(super) fn told(&self, error: Error) -> Error {
        match error {
            Error::Source(error) if matches!(self.reader, Reader::Stream(_)) => {
                broken(&io::Error::other(error), &self.seen, self.most)
            }
            error => error,
        }
    }

    /// Takes in what nobody read, which counts for a checksum, and looks at the end. Returns what had to be kept.
    pub(super) fn finish(&mut self) -> Result<u64, Error> {
        let Reader::Stream(stream) = &mut self.reader else {
            return Ok(0);
        };
        let drained = stream.drain();
        let spooled = stream.spooled();
        let tail = stream.end().1.to_vec();
        drained.map_err(|error| self.told(error.into()))?;
        if self.format != ImageFormat::Raw {
            format::tell(&self.head, &tail)?;
        }
        Ok(spooled)
    }
}

/// What a stream's reader complains about.
fn broken(error: &io::Error, seen: &Seen, most: u64) -> Error {
    let text = error.to_string();
    if OverLimit::caused(error) || text == OverLimit.to_string() {
        return Error::Bomb(most);
    }
    match seen.failure() {
        Some(failure) => Error::Source(SourceError::new(failure)),
        None => Error::Damaged(text),
    }
}

/// First and last bytes.
fn ends(source: &mut dyn Source) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let size = source.size().unwrap_or(0);
    if size == 0 {
        return Err(FormatError::Empty.into());
    }
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    source.read(0, HEAD, &mut head)?;
    source.read(size.saturating_sub(TAIL as u64), TAIL, &mut tail)?;
    Ok((head, tail))
}

/// Takes the first bytes of a stream.
fn beginning<R: Read + Send>(mut stream: R) -> io::Result<(Vec<u8>, R)> {
    let mut head = Vec::with_capacity(HEAD);
    stream.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    Ok((head, stream))
}
