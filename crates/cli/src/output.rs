//! What goes to standard output as a whole.

use std::io::{self, Write as _};

use anyhow::Context as _;
use serde::Serialize;

/// Prints a text.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        // The reader, such as `head`, has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// One YAML document for each object.
pub(crate) fn yaml<T: Serialize>(objects: &[T]) -> anyhow::Result<String> {
    objects
        .iter()
        .map(|object| {
            let document =
                serde_saphyr::to_string(object).context("cannot write an object as YAML")?;
            Ok(format!("---\n{document}"))
        })
        .collect()
}
