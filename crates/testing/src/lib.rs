//! The one way to skip a test. Only tests use this crate.
//!
//! A test that a machine cannot run returns early, which the harness counts as passed. So each says that it did not run:
//! on standard error for who looks on, and in the file that `BERTH_SKIP_LOG` names, from which `make test` takes its
//! counts.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

/// Says that `test` did not run, and why not.
pub fn skip(test: &str, reason: &str) {
    let line = format!("SKIPPED: {test}: {reason}\n");
    // Straight to the descriptor: the harness would swallow it.
    let _ = io::stderr().lock().write_all(line.as_bytes());
    if let Some(log) = std::env::var_os("BERTH_SKIP_LOG")
        && let Err(error) = append(Path::new(&log), &line)
    {
        panic!("{}: {error}: {line}", Path::new(&log).display());
    }
}

/// Whether `test` has to be skipped because it needs root; says so then.
#[must_use]
pub fn not_root(test: &str) -> bool {
    let needed = !rustix::process::geteuid().is_root();
    if needed {
        skip(test, "not root");
    }
    needed
}

/// Whether `test` has to be skipped because one of these files is not there; says so then.
#[must_use]
pub fn lacks(test: &str, files: &[&str]) -> bool {
    let lacking = files.iter().find(|file| !Path::new(file).exists());
    if let Some(file) = lacking {
        skip(test, &format!("{file} is missing"));
    }
    lacking.is_some()
}

/// One write, so that lines of tests that run at the same time stay whole.
fn append(log: &Path, line: &str) -> io::Result<()> {
    let mut file = File::options().append(true).create(true).open(log)?;
    file.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    #[test]
    fn lines_are_added_to_the_log() {
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        for line in ["one\n", "two\n"] {
            super::append(log.path(), line).expect("written");
        }
        assert_eq!(
            std::fs::read_to_string(log.path()).expect("read"),
            "one\ntwo\n"
        );
        assert!(super::append(&log.path().join("below"), "x").is_err());
    }
}
