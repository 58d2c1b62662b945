//! From the bytes of a blob to the bytes of a tar: decompression, told from the content, with an end.

use std::io::{self, Read};

use thiserror::Error;

use crate::format::Compression;

/// Memory of the xz decoder: `xz -9` wants 65 MiB.
const XZ_MEMORY: u64 = 128 << 20;

/// Decompresses `input`, whatever it is compressed with, and gives at most `limit` bytes.
pub(crate) fn decompress<'a>(
    mut input: impl Read + Send + 'a,
    limit: u64,
) -> io::Result<Bounded<Box<dyn Read + Send + 'a>>> {
    let mut head = Vec::with_capacity(6);
    input.by_ref().take(6).read_to_end(&mut head)?;
    let compression = Compression::of(&head);
    let whole = io::Cursor::new(head).chain(input);
    Ok(Bounded::new(unpacked(whole, compression)?, limit))
}

/// The content of `input`.
pub(crate) fn unpacked<'a>(
    input: impl Read + Send + 'a,
    compression: Option<Compression>,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let buffered = io::BufReader::with_capacity(256 << 10, input);
    Ok(match compression {
        None => Box::new(buffered),
        Some(Compression::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
        Some(Compression::Xz) => {
            let stream = liblzma::stream::Stream::new_stream_decoder(
                XZ_MEMORY,
                liblzma::stream::CONCATENATED,
            )?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(buffered, stream))
        }
        Some(Compression::Zstd) => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
            // 128 MiB, zstd's own default for streams; more is only for who asked for it.
            decoder.window_log_max(27)?;
            Box::new(decoder)
        }
    })
}

/// A reader that refuses to give more than it was allowed to.
pub(crate) struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R> Bounded<R> {
    /// Gives at most `limit` bytes of `inner`.
    pub(crate) fn new(inner: R, limit: u64) -> Self {
        Self { inner, left: limit }
    }

    /// Bytes that may still be read.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }
}

/// More content than the limit allows.
#[derive(Debug, Error)]
#[error("it unpacks to more than allowed")]
pub(crate) struct OverLimit;

impl OverLimit {
    /// Whether this is why reading failed.
    pub(crate) fn caused(error: &io::Error) -> bool {
        matches!(error.get_ref(), Some(cause) if cause.is::<Self>())
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::other(OverLimit))?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn unpacked(bytes: &[u8], limit: u64) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(bytes, limit)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn compression_is_told_from_the_content() {
        let text = b"some content ".repeat(100);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(text.as_slice(), 3).unwrap();
        for packed in [&text, &gzip, &zstd] {
            assert_eq!(unpacked(packed, 10_000).unwrap(), text);
        }
        // Two gzip members after another are one content.
        assert_eq!(
            unpacked(&[gzip.clone(), gzip].concat(), 10_000)
                .unwrap()
                .len(),
            text.len() * 2
        );
        assert_eq!(unpacked(b"", 10).unwrap(), b"");
        assert_eq!(unpacked(b"x", 10).unwrap(), b"x");
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = zstd::encode_all(io::repeat(0).take(64 << 20), 3).unwrap();
        assert!(bomb.len() < 64 << 10);
        let error = unpacked(&bomb, 1 << 20).unwrap_err();
        assert!(OverLimit::caused(&error));
    }
}
