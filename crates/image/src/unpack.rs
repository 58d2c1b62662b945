//! From the bytes of a blob to the bytes of a tar: decompression, told from the content, with an end.

use std::io::{self, Read};

use thiserror::Error;

/// How a tar was compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Told from the first four bytes. No tar begins with these.
    pub(crate) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame in front, as some parallel compressors write it.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Decompresses `input`, whatever it is compressed with, and gives at most `limit` bytes.
pub(crate) fn decompress<'a>(
    mut input: impl Read + 'a,
    limit: u64,
) -> io::Result<Bounded<Box<dyn Read + 'a>>> {
    let mut head = Vec::with_capacity(4);
    input.by_ref().take(4).read_to_end(&mut head)?;
    let compression = Compression::of(&head);
    let whole = io::Cursor::new(head).chain(input);
    let plain: Box<dyn Read + 'a> = match compression {
        Compression::None => Box::new(io::BufReader::with_capacity(256 << 10, whole)),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(
            io::BufReader::with_capacity(256 << 10, whole),
        )),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(whole)?;
            // 128 MiB, zstd's own default for streams; more is only for who asked for it.
            decoder.window_log_max(27)?;
            Box::new(decoder)
        }
    };
    Ok(Bounded {
        inner: plain,
        left: limit,
    })
}

/// A reader that refuses to give more than it was allowed to.
pub(crate) struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R> Bounded<R> {
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
