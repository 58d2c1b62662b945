//! `final-state.json`: what became of the machine, for those that come after the launcher.

use std::io::{self, Write as _};
use std::path::Path;

use crate::protocol::LauncherState;

/// Writes it whole or not at all, and for good.
pub(crate) fn write(path: &Path, state: &LauncherState) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".final-state-")
        .tempfile_in(dir)?;
    serde_json::to_writer(&mut file, state)?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    std::fs::File::open(dir)?.sync_all()
}
