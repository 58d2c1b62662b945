//! What is logged: by the command line, and by the settings of an installation while it runs.

use std::sync::OnceLock;

use berth_api::settings::Known;
use berth_api::settings::v1::LogVerbosity;
use tokio::sync::watch;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// How to log.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

/// The filter that holds, to be changed, and what the command line said.
static FILTER: OnceLock<(reload::Handle<EnvFilter, Registry>, String)> = OnceLock::new();

/// A filter that cannot be read is an error of the command line, not one to be guessed away.
pub(crate) fn filter(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; expected e.g. info or berth_node=debug")),
    }
}

/// Begins to log. The filter was read once already, by [`filter`].
pub(crate) fn start(filter: &str, format: Format) {
    let (layer, handle) = reload::Layer::new(EnvFilter::new(filter));
    let _ = FILTER.set((handle, filter.to_owned()));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(layer);
    match format {
        Format::Text => registry
            .with(lines.with_ansi(rustix::termios::isatty(std::io::stderr())))
            .init(),
        Format::Json => registry.with(lines.json()).init(),
    }
}

/// Logs as the settings say, from now on and whenever they change; what they leave open the command line says.
pub(crate) async fn follow(
    mut known: watch::Receiver<Known>,
    verbosity: impl Fn(&LogVerbosity) -> Option<u32>,
) {
    let mut now = None;
    loop {
        let wanted = known
            .borrow_and_update()
            .as_ref()
            .and_then(|c| verbosity(&c.developer_configuration.log_verbosity));
        if let Some((handle, given)) = FILTER.get().filter(|_| wanted != now) {
            let text = wanted.map_or(given.as_str(), LogVerbosity::filter);
            match handle.reload(EnvFilter::new(text)) {
                Ok(()) => tracing::info!(filter = text, "what is logged has changed"),
                Err(error) => tracing::warn!(%error, "what is logged cannot be changed"),
            }
            now = wanted;
        }
        if known.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
