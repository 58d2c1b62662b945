//! The moving of the bytes: one thread reads, a few unpack and write.

use std::io::{self, Read as _};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use super::checksum::Seen;
use super::image::{Image, Reader};
use super::source::Source;
use super::target::Target;
use super::{Error, check_room};
use crate::format::{FormatError, TAIL};
use crate::layout::{self, Codec, Extent, Layout, LayoutError};
use crate::{Progress, Transferred};

/// Bytes of the file that a worker gets at once.
const JOB: u64 = 512 << 10;
/// Bytes between two pieces that are read with them, rather than in two reads. None of a stream, where they may be a table
/// that was read.
const GAP: u64 = 4 << 10;
/// Jobs that wait for a worker.
const WAITING: usize = 3;
const WORKERS: usize = 4;

/// A piece of the file and what of the disk is in it.
struct Job {
    bytes: Vec<u8>,
    place: u64,
    extents: Vec<Extent>,
}

pub(super) struct Work<'a> {
    pub(super) target: &'a Target,
    pub(super) progress: &'a dyn Progress,
    pub(super) stop: &'a AtomicBool,
    pub(super) written: AtomicU64,
    /// Of the stream.
    pub(super) length: Option<u64>,
    pub(super) seen: &'a Seen,
}

impl Work<'_> {
    fn failed(&self, cause: io::Error) -> Error {
        Error::Target {
            path: self.target.path().to_owned(),
            cause,
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        let written = self.target.write(at, bytes).map_err(|e| self.failed(e))?;
        self.written.fetch_add(written, Ordering::Relaxed);
        Ok(())
    }

    fn is_stopped(&self) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        Ok(())
    }

    /// Byte n is byte n. Returns how many there were.
    pub(super) fn raw(&self, image: &mut Image, limit: u64) -> Result<u64, Error> {
        let size = match &image.reader {
            Reader::Any(source) => source.size(),
            Reader::Stream(_) => None,
        };
        let mut planned = 0;
        let end = crossing(
            |jobs| {
                let mut at = 0;
                loop {
                    self.is_stopped()?;
                    if let Some(size) = size {
                        while planned < size && planned < at + (64 << 20) {
                            let until = size.min(planned + (16 << 20));
                            let next = planned..until;
                            image.reader.source().plan(std::slice::from_ref(&next));
                            planned = until;
                        }
                    }
                    let mut bytes = jobs.buffer();
                    let read = image.reader.source().read(at, JOB as usize, &mut bytes);
                    read.map_err(|error| image.told(error.into()))?;
                    let length = bytes.len() as u64;
                    // A footer of a fixed VHD is no content, and is looked at in the end.
                    if at + length > limit.saturating_add(TAIL as u64) {
                        let size = size.unwrap_or(at + length);
                        return Err(FormatError::TooLarge { size, limit }.into());
                    }
                    if length == 0 {
                        return Ok(at);
                    }
                    let extent = Extent {
                        guest: at,
                        length,
                        place: at,
                        stored: length,
                        codec: Codec::Plain,
                    };
                    jobs.send(Job {
                        bytes,
                        place: at,
                        extents: vec![extent],
                    })?;
                    at += length;
                    self.tell(at, size);
                }
            },
            |job| self.carry_out(job),
        )?;
        // A fixed VHD tells what it is at its end only, and a stream has that last.
        let size = match &image.reader {
            Reader::Stream(stream) if stream.end().1.starts_with(b"conectix") => {
                layout::fixed_vhd(stream.end().1, end)?
            }
            _ => end,
        };
        check_room(size, limit)?;
        Ok(size)
    }

    /// Progress is of the stream where there is one, else of the disk.
    fn tell(&self, at: u64, size: Option<u64>) {
        let (done, total) = match (size, self.length) {
            (Some(size), _) => (at, size),
            (None, Some(length)) => (self.seen.bytes(), length),
            (None, None) => (at, 0),
        };
        self.progress.update(Transferred { done, total });
    }

    /// An image with tables.
    pub(super) fn layout(
        &self,
        layout: &mut dyn Layout,
        source: &mut dyn Source,
    ) -> Result<(), Error> {
        let is_stream = source.size().is_none();
        let told = |error: LayoutError| Error::from(error);
        crossing(
            |jobs| {
                while let Some(batch) = layout.next(source).map_err(told)? {
                    let groups = grouped(batch, if is_stream { 0 } else { GAP });
                    let ranges: Vec<Range<u64>> = groups.iter().map(|group| span(group)).collect();
                    source.plan(&ranges);
                    for (extents, range) in groups.into_iter().zip(ranges) {
                        self.is_stopped()?;
                        let mut bytes = jobs.buffer();
                        let length = usize::try_from(range.end - range.start).expect("a job");
                        source.read(range.start, length, &mut bytes)?;
                        jobs.send(Job {
                            bytes,
                            place: range.start,
                            extents,
                        })?;
                        if is_stream {
                            self.tell(layout.covered(), None);
                        }
                    }
                    if !is_stream || self.length.is_none() {
                        self.tell(layout.covered(), Some(layout.virtual_size()));
                    }
                }
                Ok(())
            },
            |job| self.carry_out(job),
        )
    }

    /// Unpacks and writes. Neighbours on the disk are written together.
    fn carry_out(&self, job: &Job) -> Result<(), Error> {
        let mut plain: Vec<u8> = Vec::new();
        let mut from = 0;
        for extent in &job.extents {
            let start = usize::try_from(extent.place - job.place).expect("inside the job");
            let stored = usize::try_from(extent.stored).expect("inside the job");
            let cut_off = || FormatError::CutOff {
                needed: extent.place + extent.stored,
                size: job.place + job.bytes.len() as u64,
            };
            let length = usize::try_from(extent.length).expect("inside a job or a cluster");
            if extent.codec == Codec::Plain {
                let bytes = job.bytes.get(start..start + stored).ok_or_else(cut_off)?;
                self.write(extent.guest, bytes)?;
                continue;
            }
            let end = (start + stored).min(job.bytes.len());
            let bytes = job.bytes.get(start..end).ok_or_else(cut_off)?;
            if from + plain.len() as u64 != extent.guest || plain.len() as u64 >= JOB {
                self.write(from, &plain)?;
                plain.clear();
                from = extent.guest;
            }
            let before = plain.len();
            plain.resize(before + length, 0);
            decode(extent, bytes, &mut plain[before..])?;
        }
        self.write(from, &plain)
    }
}

/// Unpacks a cluster or grain, which has to be as long as the disk has room for it.
fn decode(extent: &Extent, bytes: &[u8], into: &mut [u8]) -> Result<(), Error> {
    let damaged =
        |what: &str| Error::Damaged(format!("at byte {} of the image: {what}", extent.place));
    match extent.codec {
        Codec::Plain => unreachable!("written as it is"),
        Codec::Deflate => inflate(bytes, into, false).map_err(|what| damaged(&what)),
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes)
                .map_err(|e| damaged(&e.to_string()))?;
            decoder
                .window_log_max(27)
                .and_then(|()| decoder.read_exact(into))
                .map_err(|e| damaged(&e.to_string()))
        }
        Codec::Grain => {
            let marker = bytes
                .first_chunk::<12>()
                .ok_or_else(|| damaged("a grain is cut off"))?;
            let sector = u64::from_le_bytes(*marker.first_chunk().expect("8 of 12"));
            let size = u32::from_le_bytes(*marker.last_chunk().expect("4 of 12"));
            if sector != extent.guest / 512 {
                return Err(damaged("a grain that belongs elsewhere"));
            }
            let packed = usize::try_from(size)
                .ok()
                .and_then(|size| bytes.get(12..12 + size));
            let packed = packed.ok_or_else(|| damaged("a grain is cut off"))?;
            inflate(packed, into, true).map_err(|what| damaged(&what))
        }
    }
}

/// One stream of deflate. The last cluster of a disk is whole in the image, whatever the disk's size.
fn inflate(bytes: &[u8], into: &mut [u8], zlib: bool) -> Result<(), String> {
    let mut state = flate2::Decompress::new(zlib);
    let status = state.decompress(bytes, into, flate2::FlushDecompress::Finish);
    status.map_err(|e| e.to_string())?;
    if state.total_out() < into.len() as u64 {
        return Err("it ends early".to_owned());
    }
    Ok(())
}

/// Extents, which are ordered by their place, as jobs: neighbours in the file up to [`JOB`] bytes together; longer ones in
/// parts.
fn grouped(batch: Vec<Extent>, gap: u64) -> Vec<Vec<Extent>> {
    let mut groups: Vec<Vec<Extent>> = Vec::new();
    let mut add = |extent: Extent| {
        if let Some(group) = groups.last_mut()
            && let Some(last) = group.last()
            && extent.place <= last.place + last.stored + gap
            && extent.place + extent.stored - group[0].place <= JOB
            && extent.place >= last.place
        {
            group.push(extent);
        } else {
            groups.push(vec![extent]);
        }
    };
    for mut extent in batch {
        while extent.codec == Codec::Plain && extent.length > JOB {
            add(Extent {
                length: JOB,
                stored: JOB,
                ..extent.clone()
            });
            extent.guest += JOB;
            extent.place += JOB;
            extent.length -= JOB;
            extent.stored -= JOB;
        }
        add(extent);
    }
    groups
}

/// The part of the file that a group needs.
fn span(group: &[Extent]) -> Range<u64> {
    let end = group
        .iter()
        .map(|extent| extent.place + extent.stored)
        .max();
    group[0].place..end.unwrap_or(group[0].place)
}

/// The reader's side of the crossing.
struct Jobs {
    jobs: SyncSender<Job>,
    used: Receiver<Vec<u8>>,
}

impl Jobs {
    /// An empty buffer, used before if there is one.
    fn buffer(&self) -> Vec<u8> {
        self.used.try_recv().unwrap_or_default()
    }

    /// Hands a job over. Fails when the workers gave up; why is their result.
    fn send(&self, job: Job) -> Result<(), Error> {
        self.jobs.send(job).map_err(|_| Error::Stopped)
    }
}

/// Runs `produce` here and `consume` on a few threads, with a bounded number of jobs between them. The first failure of
/// either side ends both.
fn crossing<T>(
    produce: impl FnOnce(&Jobs) -> Result<T, Error>,
    consume: impl Fn(&Job) -> Result<(), Error> + Sync,
) -> Result<T, Error> {
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(WORKERS));
    let (jobs, waiting) = sync_channel::<Job>(WAITING);
    let (give_back, used) = sync_channel::<Vec<u8>>(WAITING + WORKERS);
    let waiting = Mutex::new(Some(waiting));
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let consume = &consume;
    let produced = std::thread::scope(|scope| {
        for _ in 0..workers {
            let give_back = give_back.clone();
            let (waiting, failure) = (&waiting, &failure);
            scope.spawn(move || {
                loop {
                    let job = match &*waiting.lock().unwrap_or_else(PoisonError::into_inner) {
                        Some(waiting) => waiting.recv(),
                        None => return,
                    };
                    let Ok(job) = job else { return };
                    if let Err(error) = consume(&job) {
                        let mut first = failure.lock().unwrap_or_else(PoisonError::into_inner);
                        first.get_or_insert(error);
                        // Without a receiver the reader stops.
                        waiting
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .take();
                        return;
                    }
                    let _ = give_back.try_send(job.bytes);
                }
            });
        }
        let jobs = Jobs { jobs, used };
        produce(&jobs)
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => produced,
    }
}
