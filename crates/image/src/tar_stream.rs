//! A tar reader for archives that nobody vouches for.
//!
//! Reads forward only, in constant memory: names and extended headers are bounded, sizes are checked, checksums are
//! verified. Understands ustar, GNU long names and numbers, and pax `path`, `linkpath` and `size`. Sparse members are
//! told as such, with no attempt to read them.

use std::io::{self, Read};

use thiserror::Error;

const BLOCK: usize = 512;
/// The longest name or extended header that is read.
const MAX_META: u64 = 1 << 20;

/// What is wrong with an archive.
#[derive(Debug, Error)]
pub(crate) enum TarError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the archive is cut off")]
    Truncated,
    #[error("bad tar header: {0}")]
    Header(&'static str),
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Hardlink,
    Device,
    Fifo,
    Sparse,
    Unknown,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::File => "regular file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
            Self::Hardlink => "hard link",
            Self::Device => "device node",
            Self::Fifo => "fifo",
            Self::Sparse => "sparse tar member",
            Self::Unknown => "tar member of an unknown type",
        }
    }
}

/// One entry; its content is what the reader gives until the next one.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
}

pub(crate) struct TarReader<R> {
    inner: R,
    /// Content of the current entry that was not read yet.
    remaining: u64,
    padding: u64,
    ended: bool,
}

#[derive(Default)]
struct Overrides {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            remaining: 0,
            padding: 0,
            ended: false,
        }
    }

    /// The next entry; skips what was not read of the one before.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut overrides = Overrides::default();
        let mut meta_headers = 0;
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = number(&header[124..136])?;
            match header[156] {
                b'L' => overrides.path = Some(trim_nul(self.meta(size)?)),
                b'K' => overrides.link = Some(trim_nul(self.meta(size)?)),
                b'x' => {
                    let records = self.meta(size)?;
                    apply_pax(&records, &mut overrides)?;
                }
                // Global headers only carry comments and times in practice.
                b'g' => drop(self.meta(size)?),
                _ => return self.entry(&header, size, overrides).map(Some),
            }
            meta_headers += 1;
            if meta_headers > 16 {
                return Err(TarError::Header("too many extended headers for one entry"));
            }
        }
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        size: u64,
        overrides: Overrides,
    ) -> Result<Entry, TarError> {
        let path = overrides.path.unwrap_or_else(|| name(header));
        let kind = match header[156] {
            _ if overrides.sparse => Kind::Sparse,
            // In the oldest form a directory is a file whose name ends in a slash.
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => Kind::Sparse,
            _ => Kind::Unknown,
        };
        if header[156] == b'S' && header[482] != 0 {
            // The sparse map goes on in further blocks, whose number only the map tells.
            self.skip_sparse_map()?;
        }
        let size = overrides.size.unwrap_or(size);
        // These have no content, whatever their size says.
        let size = if matches!(header[156], b'1'..=b'6') {
            0
        } else {
            size
        };
        self.expect_content(size);
        let link = overrides
            .link
            .unwrap_or_else(|| trim_nul(header[157..257].to_vec()));
        Ok(Entry { path, link, kind })
    }

    fn expect_content(&mut self, size: u64) {
        self.remaining = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip_sparse_map(&mut self) -> Result<(), TarError> {
        for _ in 0..100_000 {
            let block = self.block()?.ok_or(TarError::Truncated)?;
            if block[504] == 0 {
                return Ok(());
            }
        }
        Err(TarError::Header("the sparse map does not end"))
    }

    /// The next header block; nothing at the end of the archive.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let rest = self.remaining.saturating_add(self.padding);
        if io::copy(&mut self.inner.by_ref().take(rest), &mut io::sink())? < rest {
            return Err(TarError::Truncated);
        }
        (self.remaining, self.padding) = (0, 0);
        let Some(block) = self.block()? else {
            self.ended = true;
            return Ok(None);
        };
        if block == [0; BLOCK] {
            self.ended = true;
            return match self.block()? {
                None => Ok(None),
                Some(second) if second == [0; BLOCK] => Ok(None),
                Some(_) => Err(TarError::Header("a block of zeros in the middle")),
            };
        }
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(i, b)| {
                if (148..156).contains(&i) {
                    32
                } else {
                    u64::from(*b)
                }
            })
            .sum();
        let signed: i64 = block
            .iter()
            .enumerate()
            .map(|(i, b)| {
                if (148..156).contains(&i) {
                    32
                } else {
                    i64::from(b.cast_signed())
                }
            })
            .sum();
        let stated = number(&block[148..156])?;
        if stated != sum && i64::try_from(stated) != Ok(signed) {
            return Err(TarError::Header("wrong checksum; is this a tar archive?"));
        }
        Ok(Some(block))
    }

    /// One block; nothing when the input ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Truncated),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Some(block))
    }

    /// The content of an extended header.
    fn meta(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_META {
            return Err(TarError::Header("an extended header of more than 1 MiB"));
        }
        self.expect_content(size);
        let mut content = Vec::new();
        self.read_to_end(&mut content)?;
        Ok(content)
    }
}

impl<R> TarReader<R> {
    /// What the archive is read from.
    pub(crate) fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Bytes of the current entry that were not read yet.
    pub(crate) fn remaining(&self) -> u64 {
        self.remaining
    }

    /// What it reads from.
    pub(crate) fn get_ref(&self) -> &R {
        &self.inner
    }
}

impl<R: Read> Read for TarReader<R> {
    /// The content of the current entry. An archive that ends inside it is an error, not an end.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = buf
            .len()
            .min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buf[..wanted])?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive is cut off",
            ));
        }
        self.remaining -= n as u64;
        Ok(n)
    }
}

fn trim_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn name(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = trim_nul(header[..100].to_vec());
    // GNU's own format uses the prefix field for something else.
    if &header[257..263] != b"ustar\0" || header[345] == 0 {
        return name;
    }
    let mut path = trim_nul(header[345..500].to_vec());
    path.push(b'/');
    path.extend(name);
    path
}

/// A number field: octal digits, or GNU's base 256.
fn number(field: &[u8]) -> Result<u64, TarError> {
    const BAD: TarError = TarError::Header("a number field is not a number");
    let value = if field[0] & 0x80 != 0 {
        let first = u64::from(field[0] & 0x7f);
        field[1..]
            .iter()
            .try_fold(first, |n, b| n.checked_mul(256)?.checked_add(u64::from(*b)))
            .ok_or(BAD)?
    } else {
        let text = field
            .split(|b| *b == 0)
            .next()
            .unwrap_or_default()
            .trim_ascii();
        text.iter()
            .try_fold(0u64, |n, b| match b {
                b'0'..=b'7' => n.checked_mul(8)?.checked_add(u64::from(b - b'0')),
                _ => None,
            })
            .ok_or(BAD)?
    };
    if value > i64::MAX.unsigned_abs() {
        return Err(BAD);
    }
    Ok(value)
}

/// Records are `<length> <key>=<value>\n`, the length counting the whole record.
fn apply_pax(mut records: &[u8], overrides: &mut Overrides) -> Result<(), TarError> {
    const BAD: TarError = TarError::Header("bad pax record");
    let decimal = |text: &[u8]| {
        std::str::from_utf8(text)
            .ok()
            .and_then(|s| s.parse::<u64>().ok())
    };
    while !records.is_empty() {
        if records.iter().all(|b| *b == 0) {
            break;
        }
        let space = records.iter().position(|b| *b == b' ').ok_or(BAD)?;
        let length = decimal(&records[..space])
            .and_then(|n| usize::try_from(n).ok())
            .ok_or(BAD)?;
        if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
            return Err(BAD);
        }
        let record = &records[space + 1..length - 1];
        let equals = record.iter().position(|b| *b == b'=').ok_or(BAD)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" | b"linkpath" if value.contains(&0) => return Err(BAD),
            b"path" => overrides.path = Some(value.to_vec()),
            b"linkpath" => overrides.link = Some(value.to_vec()),
            b"size" => {
                overrides.size = Some(
                    decimal(value)
                        .filter(|n| *n <= i64::MAX.unsigned_abs())
                        .ok_or(BAD)?,
                );
            }
            _ if key.starts_with(b"GNU.sparse.") => overrides.sparse = true,
            _ => {}
        }
        records = &records[length..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(bytes: &[u8]) -> Result<Vec<(String, Kind, Vec<u8>)>, TarError> {
        let mut reader = TarReader::new(bytes);
        let mut found = Vec::new();
        while let Some(entry) = reader.next()? {
            let mut content = Vec::new();
            reader.read_to_end(&mut content)?;
            found.push((
                String::from_utf8_lossy(&entry.path).into_owned(),
                entry.kind,
                content,
            ));
        }
        Ok(found)
    }

    fn sample() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |path: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, content).unwrap();
        };
        add("short", b"hello");
        add(&"d/".repeat(80), b"");
        add(&"long-name-".repeat(30), &[7; 1000]);
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        builder
            .append_link(&mut link, "link", "x".repeat(200))
            .unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn reads_what_the_tar_crate_writes() {
        let found = entries(&sample()).unwrap();
        assert_eq!(found[0], ("short".into(), Kind::File, b"hello".to_vec()));
        assert_eq!(
            (found[2].0.as_str(), found[2].2.len()),
            ("long-name-".repeat(30).as_str(), 1000)
        );
        assert_eq!(found[3].1, Kind::Symlink);
    }

    #[test]
    fn a_pax_size_replaces_the_one_in_the_header() {
        let mut header = tar::Header::new_ustar();
        header.set_path("pax").unwrap();
        header.set_entry_type(tar::EntryType::XHeader);
        let record = b"20 path=dir/in-pax!\n10 size=3\n";
        header.set_size(record.len() as u64);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(record);
        bytes.resize(1024, 0);
        let mut file = tar::Header::new_ustar();
        file.set_path("x").unwrap();
        file.set_size(0);
        file.set_cksum();
        bytes.extend(file.as_bytes());
        bytes.extend(b"abc");
        bytes.resize(2048, 0);
        assert_eq!(
            entries(&bytes).unwrap(),
            [("dir/in-pax!".into(), Kind::File, b"abc".to_vec())]
        );
    }

    #[test]
    fn numbers_in_base_256() {
        let mut field = [0; 12];
        field[0] = 0x80;
        field[4..].copy_from_slice(&(20u64 << 30).to_be_bytes());
        assert_eq!(number(&field).unwrap(), 20 << 30);
        assert!(number(&[0xff; 12]).is_err());
        assert!(number(b"00009\0").is_err());
    }

    #[test]
    fn a_name_of_gigabytes_is_refused_before_it_is_read() {
        let mut header = tar::Header::new_gnu();
        header.set_path("././@LongLink").unwrap();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(40 << 30);
        header.set_cksum();
        let endless = header.as_bytes().chain(io::repeat(b'a'));
        assert!(matches!(
            TarReader::new(endless).next(),
            Err(TarError::Header(_))
        ));
    }

    #[test]
    fn a_cut_archive_is_an_error_wherever_it_is_cut() {
        let bytes = sample();
        assert!(matches!(
            entries(&bytes[..700]),
            Err(TarError::Io(_) | TarError::Truncated)
        ));
        assert!(matches!(entries(&bytes[..300]), Err(TarError::Truncated)));
        assert!(matches!(
            entries(
                b"this is no archive, it is a text that is longer than a block"
                    .repeat(20)
                    .as_slice()
            ),
            Err(TarError::Header(_))
        ));
    }

    proptest! {
        #[test]
        fn damage_is_an_error_or_harmless(
            damage in proptest::collection::vec((0usize..4096, any::<u8>()), 0..8),
            cut in 0usize..8192,
        ) {
            let mut bytes = sample();
            for (offset, byte) in damage {
                bytes[offset] = byte;
            }
            bytes.truncate(cut);
            let _ = entries(&bytes);
        }
    }
}
