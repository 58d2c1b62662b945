//! `berth backup` and `berth restore`: every object as one file, and back.
//!
//! A backup is asked of the running server, is whole or not there at all, and is its owner's alone. A restore is made while
//! berth does not run.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use berth_apiserver::backup::{self, Summary};
use clap::Args;
use http::Request;
use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::client::ClusterArgs;
use crate::up;

/// Arguments of `berth backup`.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Where the backup goes; a file that is there is replaced.
    file: PathBuf,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Arguments of `berth restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The backup.
    file: PathBuf,
    /// The state directory of the `berth up` that is to have the objects.
    #[arg(long, default_value = "/var/lib/berth")]
    state_dir: PathBuf,
    /// Replace the objects that are there.
    #[arg(long)]
    force: bool,
}

/// A file that is removed unless it is kept.
struct Partial(Option<PathBuf>);

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Saves all objects of a running server.
pub(crate) async fn backup(args: BackupArgs) -> anyhow::Result<()> {
    let mut name = args
        .file
        .file_name()
        .context("the backup needs a file name")?
        .to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    let partial = Partial(Some(args.file.with_file_name(name)));
    let summary = tokio::select! {
        summary = download(&args, &partial) => summary?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted; there is no backup"),
    };
    println!(
        "{}: {} objects at revision {}",
        args.file.display(),
        summary.objects,
        summary.revision
    );
    Ok(())
}

async fn download(args: &BackupArgs, partial: &Partial) -> anyhow::Result<Summary> {
    let config = args.cluster.config().await?;
    let client = kube::Client::try_from(config).context("the kubeconfig cannot be used")?;
    let request = Request::get(backup::PATH)
        .body(kube::client::Body::empty())
        .context("the request for a backup")?;
    let response = client
        .send(request)
        .await
        .context("the server does not answer")?;
    let (code, media) = (response.status(), response.headers().get("content-type"));
    if !code.is_success() {
        let body = response
            .into_body()
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes);
        let status: serde_json::Value =
            serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
        let why = status["message"].as_str().unwrap_or("it gives no reason");
        bail!("the server gives no backup ({code}): {why}");
    }
    if media.is_none_or(|media| media != backup::MEDIA) {
        bail!(
            "the server is not a `berth up`: on Kubernetes the objects are the cluster's, and so are their backups"
        );
    }
    let path = partial.0.clone().unwrap_or_default();
    let writing = || format!("cannot write {}", path.display());
    let file = std::fs::File::options()
        .write(true)
        .create_new(true)
        // Secrets are in it.
        .mode(0o600)
        .open(&path)
        .with_context(writing)?;
    let mut file = tokio::fs::File::from_std(file);
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the server broke off")?;
        if let Ok(data) = frame.into_data() {
            file.write_all(&data).await.with_context(writing)?;
        }
    }
    file.sync_all().await.with_context(writing)?;
    let summary = verified(&path).await?;
    std::fs::rename(&path, &args.file)
        .with_context(|| format!("cannot write {}", args.file.display()))?;
    let parent = args.file.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    std::fs::File::open(parent)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("cannot write {}", parent.display()))?;
    Ok(summary)
}

/// What was received is what was sent.
async fn verified(path: &Path) -> anyhow::Result<Summary> {
    let path = path.to_owned();
    let verified = tokio::task::spawn_blocking(move || backup::verify(&path)).await;
    Ok(verified.context("reading the backup")??)
}

/// Gives a state directory the objects of a backup.
pub(crate) fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    // Nothing is made, not even the directory, before the backup is known to be good.
    backup::verify(&args.file)?;
    let state_dir = std::path::absolute(&args.state_dir)
        .with_context(|| format!("directory {}", args.state_dir.display()))?;
    let _lock = up::lock(&state_dir)?;
    let summary = backup::restore(&args.file, &state_dir, args.force)?;
    println!(
        "{}: {} objects; start berth again",
        state_dir.display(),
        summary.objects
    );
    Ok(())
}
