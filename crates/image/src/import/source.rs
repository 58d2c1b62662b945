//! Where the bytes of an image come from: a file, a server that gives ranges, or a stream that goes by once.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use thiserror::Error;

/// Why bytes did not come. One line; says which server or file.
#[derive(Debug, Clone, Error)]
#[error("{text}")]
pub struct SourceError {
    text: String,
    is_final: bool,
}

impl SourceError {
    /// One that may be over when it is tried again.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            is_final: false,
        }
    }

    /// One that will not be.
    pub(crate) fn for_good(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            is_final: true,
        }
    }

    /// Whether the same comes to the same.
    pub fn is_final(&self) -> bool {
        self.is_final
    }

    pub(super) fn io(what: &str, error: &io::Error) -> Self {
        Self::new(format!("{what}: {error}"))
    }
}

/// A file of an image that can be read at any place, though going forward may be much cheaper.
pub(crate) trait Source: Send {
    /// Its length in bytes, where that is known.
    fn size(&self) -> Option<u64>;

    /// What is going to be read next, in this order. Plans add up.
    fn plan(&mut self, _ranges: &[Range<u64>]) {}

    /// Puts bytes from `at` on into `buffer`, which is emptied first; fewer than `length` only where the file ends.
    fn read(&mut self, at: u64, length: usize, buffer: &mut Vec<u8>) -> Result<(), SourceError>;

    /// Bytes that came so far.
    fn came(&self) -> u64 {
        0
    }
}

impl Source for Box<dyn Source> {
    fn size(&self) -> Option<u64> {
        (**self).size()
    }

    fn plan(&mut self, ranges: &[Range<u64>]) {
        (**self).plan(ranges);
    }

    fn read(&mut self, at: u64, length: usize, buffer: &mut Vec<u8>) -> Result<(), SourceError> {
        (**self).read(at, length, buffer)
    }

    fn came(&self) -> u64 {
        (**self).came()
    }
}

/// A file of this machine.
pub(crate) struct FileSource {
    file: File,
    size: u64,
    name: String,
}

impl FileSource {
    pub(crate) fn new(file: File, size: u64, name: String) -> Self {
        Self { file, size, name }
    }
}

impl Source for FileSource {
    fn size(&self) -> Option<u64> {
        Some(self.size)
    }

    fn read(&mut self, at: u64, length: usize, buffer: &mut Vec<u8>) -> Result<(), SourceError> {
        let length = usize::try_from(self.size.saturating_sub(at))
            .unwrap_or(usize::MAX)
            .min(length);
        buffer.clear();
        buffer.resize(length, 0);
        self.file
            .read_exact_at(buffer, at)
            .map_err(|e| SourceError::io(&self.name, &e))
    }
}

/// A stream, read as if it could be read anywhere: what is passed over is kept in a file without a name, for a reader that
/// comes back to it. Readers go through a file from front to back as far as it lets them, so that is little.
pub(crate) struct StreamSource<R> {
    inner: R,
    at: u64,
    head: Vec<u8>,
    /// The last bytes that came.
    tail: Vec<u8>,
    ended: bool,
    spool: Option<File>,
    spooled: u64,
    /// Where pieces of the stream are in the spool, which has them at the same places. Ordered, and never touching.
    kept: Vec<Range<u64>>,
    /// More must not be kept.
    most: u64,
    /// Where to.
    dir: std::path::PathBuf,
}

const PIECE: usize = 256 << 10;

impl<R: Read + Send> StreamSource<R> {
    /// `head` came out of `inner` already, and stays readable.
    pub(crate) fn new(head: Vec<u8>, inner: R, most: u64, dir: &std::path::Path) -> Self {
        Self {
            inner,
            at: head.len() as u64,
            tail: head[head.len().saturating_sub(512)..].to_vec(),
            head,
            ended: false,
            spool: None,
            spooled: 0,
            kept: Vec::new(),
            most,
            dir: dir.to_owned(),
        }
    }

    /// Bytes that had to be kept.
    pub(crate) fn spooled(&self) -> u64 {
        self.spooled
    }

    /// Bytes so far, and the last 512 of them.
    pub(crate) fn end(&self) -> (u64, &[u8]) {
        (self.at, &self.tail)
    }

    /// Reads what is left and forgets it.
    pub(crate) fn drain(&mut self) -> Result<(), SourceError> {
        let mut buffer = Vec::new();
        while self.forward(PIECE, &mut buffer)? > 0 {}
        Ok(())
    }

    /// The next bytes of the stream; fewer only at its end.
    fn forward(&mut self, length: usize, buffer: &mut Vec<u8>) -> Result<usize, SourceError> {
        buffer.resize(length, 0);
        let mut filled = 0;
        while filled < length && !self.ended {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) => self.ended = true,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(SourceError::new(e.to_string())),
            }
        }
        buffer.truncate(filled);
        self.at += filled as u64;
        let last = filled.min(512);
        let old = (512 - last).min(self.tail.len());
        self.tail.drain(..self.tail.len() - old);
        self.tail.extend_from_slice(&buffer[filled - last..]);
        Ok(filled)
    }

    fn keep(&mut self, at: u64, bytes: &[u8]) -> Result<(), SourceError> {
        let failed = |e: io::Error| SourceError::io("cannot keep what comes too early", &e);
        let end = at + bytes.len() as u64;
        match self.kept.last_mut() {
            Some(last) if last.end == at => last.end = end,
            _ => self.kept.push(at..end),
        }
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        self.spooled += bytes.len() as u64;
        if self.spooled > self.most {
            return Err(SourceError::new(format!(
                "the image is out of order: more than {} bytes of it would have to be kept",
                self.most
            )));
        }
        if self.spool.is_none() {
            self.spool = Some(tempfile::tempfile_in(&self.dir).map_err(failed)?);
        }
        let spool = self.spool.as_ref().expect("made above");
        spool.write_all_at(bytes, at).map_err(failed)
    }

    fn again(&self, at: u64, length: usize, buffer: &mut Vec<u8>) -> Result<(), SourceError> {
        let gone = || SourceError::new(format!("the byte {at} of the stream was read before"));
        let index = self.kept.partition_point(|range| range.end <= at);
        let range = self.kept.get(index).filter(|range| range.start <= at);
        let range = range.ok_or_else(gone)?;
        if range.end - at < length as u64 {
            return Err(gone());
        }
        buffer.clear();
        buffer.resize(length, 0);
        let Some(spool) = &self.spool else {
            return Ok(());
        };
        let mut filled = 0;
        while filled < length {
            // The spool ends where nothing but zeros was kept behind.
            match spool.read_at(&mut buffer[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) => return Err(SourceError::io("cannot read what was kept", &e)),
            }
        }
        Ok(())
    }
}

impl<R: Read + Send> Source for StreamSource<R> {
    fn size(&self) -> Option<u64> {
        self.ended.then_some(self.at)
    }

    fn read(&mut self, at: u64, length: usize, buffer: &mut Vec<u8>) -> Result<(), SourceError> {
        buffer.clear();
        if let Some(here) = usize::try_from(at).ok().and_then(|at| self.head.get(at..)) {
            if here.len() >= length {
                buffer.extend_from_slice(&here[..length]);
                return Ok(());
            }
            // The head and what follows it, where that comes next.
            if self.at == self.head.len() as u64 {
                let here = here.to_vec();
                let mut rest = Vec::new();
                self.forward(length - here.len(), &mut rest)?;
                buffer.extend_from_slice(&here);
                buffer.extend_from_slice(&rest);
                return Ok(());
            }
            let at = self.head.len() as u64;
            let mut rest = Vec::new();
            self.again(at, length - here.len(), &mut rest)?;
            buffer.extend_from_slice(here);
            buffer.extend_from_slice(&rest);
            return Ok(());
        }
        let recent = usize::try_from(self.at - self.at.min(at)).unwrap_or(usize::MAX);
        if recent > 0 && recent <= self.tail.len() {
            // Packed clusters are counted in sectors, and the next one begins in the last sector of the one before.
            let recent = &self.tail[self.tail.len() - recent..];
            let before = recent[..recent.len().min(length)].to_vec();
            let mut rest = Vec::new();
            if before.len() < length {
                self.forward(length - before.len(), &mut rest)?;
            }
            buffer.extend_from_slice(&before);
            buffer.extend_from_slice(&rest);
            return Ok(());
        }
        if at < self.at {
            // What was kept, and what follows it, where that comes next.
            let before = usize::try_from(self.at - at)
                .unwrap_or(usize::MAX)
                .min(length);
            self.again(at, before, buffer)?;
            let mut rest = Vec::new();
            if before < length {
                self.forward(length - before, &mut rest)?;
            }
            buffer.extend_from_slice(&rest);
            return Ok(());
        }
        // The sector in which the last packed cluster ended may have the beginning of one that comes later.
        let from = self.at - self.tail.len() as u64;
        let from = from.max(self.kept.last().map_or(0, |range| range.end));
        if self.at < at && from < self.at {
            let known = self.tail.len() - usize::try_from(self.at - from).expect("in the tail");
            let tail = self.tail[known..].to_vec();
            self.keep(from, &tail)?;
        }
        let mut passed = Vec::new();
        while self.at < at {
            let start = self.at;
            let most = usize::try_from(at - start).unwrap_or(PIECE).min(PIECE);
            if self.forward(most, &mut passed)? == 0 {
                return Ok(());
            }
            self.keep(start, &passed)?;
        }
        self.forward(length, buffer)?;
        Ok(())
    }

    fn came(&self) -> u64 {
        self.at
    }
}

/// A file that gives ranges, read from its start to its end.
pub(crate) struct Whole<S> {
    source: S,
    at: u64,
    planned: u64,
    piece: Vec<u8>,
    used: usize,
}

impl<S: Source> Whole<S> {
    pub(crate) fn new(source: S) -> Self {
        Self {
            source,
            at: 0,
            planned: 0,
            piece: Vec::new(),
            used: 0,
        }
    }
}

impl<S: Source> Read for Whole<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.used == self.piece.len() {
            let size = self.source.size().unwrap_or(u64::MAX);
            if self.at >= size {
                return Ok(0);
            }
            // Far enough ahead that nobody waits, in pieces that a plan of any length is made of.
            while self.planned < size && self.planned < self.at + (64 << 20) {
                let end = size.min(self.planned + (16 << 20));
                let next = self.planned..end;
                self.source.plan(std::slice::from_ref(&next));
                self.planned = end;
            }
            self.source
                .read(self.at, PIECE, &mut self.piece)
                .map_err(io::Error::other)?;
            self.at += self.piece.len() as u64;
            self.used = 0;
        }
        let n = (self.piece.len() - self.used).min(into.len());
        into[..n].copy_from_slice(&self.piece[self.used..self.used + n]);
        self.used += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(length: usize) -> (Vec<u8>, StreamSource<io::Cursor<Vec<u8>>>) {
        let all: Vec<u8> = (0..length).map(|n| (n / 251 + n) as u8).collect();
        let head = all[..1000].to_vec();
        let source = StreamSource::new(
            head,
            io::Cursor::new(all[1000..].to_vec()),
            1 << 20,
            &std::env::temp_dir(),
        );
        (all, source)
    }

    #[test]
    fn what_was_passed_over_can_be_read_later() {
        let (all, mut source) = stream(600_000);
        let mut buffer = Vec::new();
        let mut check = |at: usize, length: usize| {
            source.read(at as u64, length, &mut buffer).unwrap();
            assert_eq!(buffer, all[at..all.len().min(at + length)], "{at}+{length}");
        };
        check(10, 20);
        check(900, 300);
        check(300_000, 1000);
        check(2000, 5000);
        check(299_000, 1000);
        check(0, 1000);
        check(599_000, 5000);
        check(598_000, 1000);
        assert_eq!(source.size(), Some(600_000));
        assert!(
            source.read(300_100, 10, &mut buffer).is_err(),
            "read before"
        );
        let (at, tail) = source.end();
        assert_eq!((at, tail), (600_000, &all[600_000 - 512..]));
    }

    #[test]
    fn no_more_is_kept_than_allowed() {
        let (_, mut source) = stream(3 << 20);
        let error = source.read(2 << 20, 10, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("out of order"), "{error}");
    }
}
