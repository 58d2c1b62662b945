//! The log of a pod's container.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// A log that is larger is cut: the older half is lost.
const LOG_MAX: u64 = 10 << 20;

/// Keeps a log from growing without end: what is older than the last half of [`LOG_MAX`] goes.
/// The writer appends, so it goes on at the new end.
pub(super) fn cut(path: &Path) {
    let shorten = || -> io::Result<()> {
        let file = File::options().read(true).write(true).open(path)?;
        let len = file.metadata()?.len();
        if len <= LOG_MAX {
            return Ok(());
        }
        // Piece by piece: what a guest can make its launcher say in a minute need not fit into memory.
        let mut piece = vec![0; 64 << 10];
        let mut from = len - LOG_MAX / 2;
        let first = file.read_at(&mut piece, from)?;
        let line = piece[..first].iter().position(|byte| *byte == b'\n');
        from += line.map_or(0, |at| at as u64 + 1);
        let mut to = 0;
        while from < len {
            let read = file.read_at(&mut piece, from)?;
            if read == 0 {
                break;
            }
            file.write_all_at(&piece[..read], to)?;
            from += read as u64;
            to += read as u64;
        }
        file.set_len(to)
    };
    if let Err(error) = shorten() {
        tracing::debug!(path = %path.display(), %error, "the log is not cut");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_loses_its_older_half_at_a_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = format!("{}\n", "x".repeat(99));
        std::fs::write(
            file.path(),
            line.repeat(usize::try_from(LOG_MAX).unwrap() / 20),
        )
        .unwrap();
        cut(file.path());
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(
            text.len() as u64 <= LOG_MAX / 2 + 1000
                && text.starts_with('x')
                && text.len().is_multiple_of(100)
        );
    }
}
