//! Checksums that users give: `sha256:<hex>` and the like, over the bytes as they come, packed or not.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::Digest as _;
use thiserror::Error;

/// What a file's bytes must hash to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Md5,
    Sha1,
    Sha256,
    Sha512,
}

/// Not a checksum.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no checksum: it is md5:, sha1:, sha256: or sha512: and 32, 40, 64 or 128 hexadecimal digits"
)]
pub struct InvalidChecksum(String);

impl FromStr for Checksum {
    type Err = InvalidChecksum;

    fn from_str(text: &str) -> Result<Self, InvalidChecksum> {
        let invalid = || InvalidChecksum(text.chars().take(200).collect());
        let (name, hex) = text.split_once(':').ok_or_else(invalid)?;
        let (algorithm, digits) = match name.to_ascii_lowercase().as_str() {
            "md5" => (Algorithm::Md5, 32),
            "sha1" => (Algorithm::Sha1, 40),
            "sha256" => (Algorithm::Sha256, 64),
            "sha512" => (Algorithm::Sha512, 128),
            _ => return Err(invalid()),
        };
        if hex.len() != digits || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        Ok(Self {
            algorithm,
            hex: hex.to_ascii_lowercase(),
        })
    }
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

enum State {
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl State {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Md5 => Self::Md5(md5::Md5::new()),
            Algorithm::Sha1 => Self::Sha1(sha1::Sha1::new()),
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(sha2::Sha512::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Md5(state) => state.update(bytes),
            Self::Sha1(state) => state.update(bytes),
            Self::Sha256(state) => state.update(bytes),
            Self::Sha512(state) => state.update(bytes),
        }
    }

    fn hex(&self) -> String {
        use fmt::Write as _;
        let digest = match self {
            Self::Md5(state) => state.clone().finalize().to_vec(),
            Self::Sha1(state) => state.clone().finalize().to_vec(),
            Self::Sha256(state) => state.clone().finalize().to_vec(),
            Self::Sha512(state) => state.clone().finalize().to_vec(),
        };
        digest.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("a String takes everything");
            hex
        })
    }
}

/// What passed a reader so far.
#[derive(Clone)]
pub(super) struct Seen(Arc<Mutex<Passed>>);

struct Passed {
    bytes: u64,
    state: Option<State>,
    /// How reading failed, in the words of the source: decoders behind it have their own.
    failure: Option<String>,
}

impl Seen {
    pub(super) fn new(checksum: Option<&Checksum>) -> Self {
        let state = checksum.map(|checksum| State::new(checksum.algorithm));
        Self(Arc::new(Mutex::new(Passed {
            bytes: 0,
            state,
            failure: None,
        })))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    pub(super) fn failure(&self) -> Option<String> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.failure.clone()
    }

    /// What it is instead of `expected`, if it is something else.
    pub(super) fn differs(&self, expected: &Checksum) -> Option<Checksum> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let hex = seen.state.as_ref().map(State::hex).unwrap_or_default();
        (hex != expected.hex).then_some(Checksum {
            algorithm: expected.algorithm,
            hex,
        })
    }
}

/// Counts and hashes what passes.
pub(super) struct Watched<R> {
    pub(super) inner: R,
    pub(super) seen: Seen,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into);
        let mut seen = self.seen.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = &read {
            seen.failure = Some(error.to_string());
        }
        let n = read?;
        seen.bytes += n as u64;
        if let Some(state) = &mut seen.state {
            state.update(&into[..n]);
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_sums() {
        for (sum, of) in [
            ("md5:900150983cd24fb0d6963f7d28e17f72", "abc"),
            ("SHA1:A9993E364706816ABA3E25717850C26C9CD0D89D", "abc"),
            (
                "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                "abc",
            ),
            (
                "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
                "abc",
            ),
        ] {
            let sum: Checksum = sum.parse().unwrap();
            let seen = Seen::new(Some(&sum));
            let mut watched = Watched {
                inner: of.as_bytes(),
                seen: seen.clone(),
            };
            io::copy(&mut watched, &mut io::sink()).unwrap();
            assert_eq!(seen.differs(&sum), None, "{sum}");
            assert_eq!(seen.bytes(), 3);
            let other = Seen::new(Some(&sum));
            assert!(other.differs(&sum).is_some());
        }
    }

    #[test]
    fn what_is_no_checksum() {
        for bad in ["", "abc", "md5:", "md5:zz", "crc32:00000000", "sha256:abc"] {
            assert!(bad.parse::<Checksum>().is_err(), "{bad}");
        }
    }
}
