//! `berth importer`: fills the volume of a pod, and ends.
//!
//! What to do is the one argument; secrets come as files. How far it is is told at `/metrics`, and what came of it in the
//! termination message. Whatever happens, the volume has a whole disk afterwards or none under the disk's name; a device has
//! no such moment, and the claim is not ready before this ended well.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Context as _;
use berth_api::cdi::importer::{
    CERTIFICATES_DIR, From, HEADERS_DIR, Job, METRICS_PORT, PROGRESS_METRIC, SECRET_DIR,
    SOURCE_DEVICE, SOURCE_DIR, Told, VOLUME_DEVICE, VOLUME_DIR,
};
use berth_api::cdi::{OVERHEAD, usable};
use berth_api::launcher::CLAIM_DISK;
use berth_image::import::{self, Http, Request, Room};
use berth_image::{
    CopyError, Credentials, DiskStream, ImageRef, Progress, PullError, PullOptions, PullPolicy,
    Transferred, copy_disk,
};
use clap::Args;

use crate::image::off_runtime;

const TERMINATION_LOG: &str = "/dev/termination-log";
/// As much as is taken of one file with a secret.
const MAX_SECRET: u64 = 1 << 20;

/// Arguments of `berth importer`.
#[derive(Debug, Args)]
pub(crate) struct ImporterArgs {
    /// What to do, as JSON.
    job: String,
}

/// Thousandths of a percent.
#[derive(Default)]
struct Share(AtomicU64);

impl Progress for Share {
    fn update(&self, now: Transferred) {
        if let Some(share) = (now.done.min(now.total) * 1000).checked_div(now.total) {
            // It never goes back, whatever is counted.
            self.0.fetch_max(share * 100, Ordering::Relaxed);
        }
    }
}

/// Why it failed, and whether that will stay so.
struct Failed {
    message: String,
    is_final: bool,
}

impl Failed {
    fn for_good(error: impl std::fmt::Display) -> Self {
        Self {
            message: error.to_string(),
            is_final: true,
        }
    }

    fn for_now(error: impl std::fmt::Display) -> Self {
        Self {
            message: error.to_string(),
            is_final: false,
        }
    }
}

impl std::convert::From<import::Error> for Failed {
    fn from(error: import::Error) -> Self {
        Self {
            is_final: !error.is_transient(),
            message: error.to_string(),
        }
    }
}

/// `berth importer`.
pub(crate) async fn run(args: ImporterArgs) -> anyhow::Result<()> {
    let job: Job = serde_json::from_str(&args.job).context("the job is not one")?;
    let share = Arc::new(Share::default());
    let metrics = tokio::spawn(serve(share.clone(), job.owner_uid.clone()));
    let stop = Arc::new(AtomicBool::new(false));
    let stopper = stop.clone();
    tokio::spawn(async move {
        let signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        if let Ok(mut signal) = signal {
            signal.recv().await;
            stopper.store(true, Ordering::Relaxed);
        }
    });
    let done = off_runtime(move || Ok(fill(job, &share, &stop))).await?;
    metrics.abort();
    let told = match &done {
        Ok(message) => Told {
            message: message.clone(),
            is_final: true,
        },
        Err(failed) => Told {
            message: failed.message.chars().take(2000).collect(),
            is_final: failed.is_final,
        },
    };
    std::fs::write(TERMINATION_LOG, serde_json::to_vec(&told)?).context(TERMINATION_LOG)?;
    match done {
        Ok(message) => {
            tracing::info!("{message}");
            Ok(())
        }
        Err(failed) => anyhow::bail!("{}", failed.message),
    }
}

/// Does it. Blocks.
fn fill(job: Job, share: &Share, stop: &AtomicBool) -> Result<String, Failed> {
    let target = if job.block {
        PathBuf::from(VOLUME_DEVICE)
    } else {
        Path::new(VOLUME_DIR).join(CLAIM_DISK)
    };
    let available = if job.block {
        job.claim
    } else {
        usable(job.claim)
    };
    // The volume may have more than was asked for; the disk has what was.
    let wanted = available.min(usable(job.asked));
    // An attempt before this one may have come to the end.
    if !job.block {
        match std::fs::remove_file(&target) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Failed::for_now(e)),
            _ => {}
        }
    }
    let request = |from| Request {
        room: Some(Room {
            available,
            claim: Some((job.claim, if job.block { 0.0 } else { OVERHEAD })),
        }),
        // A device has its size.
        size: (!job.block).then_some(wanted),
        preallocate: job.preallocate,
        ..Request::new(from, &target)
    };
    let imported = match job.from {
        From::Blank {} => {
            import::blank(&target, wanted, job.preallocate).map_err(Failed::for_now)?;
            return Ok(format!("an empty disk of {wanted} bytes"));
        }
        From::Volume { block } => {
            let source = if block {
                PathBuf::from(SOURCE_DEVICE)
            } else {
                Path::new(SOURCE_DIR).join(CLAIM_DISK)
            };
            let size = (!job.block).then_some(wanted);
            let how = copy_disk(&source, &target, size, share, stop).map_err(|error| Failed {
                is_final: matches!(error, CopyError::TooLarge { .. }),
                message: error.to_string(),
            })?;
            return Ok(format!("copied ({how:?})"));
        }
        From::Http {
            url,
            checksum,
            headers,
            secret_headers,
            insecure,
        } => {
            let mut http = Http::new(url);
            http.insecure = insecure;
            http.headers = headers;
            for number in 0..secret_headers {
                http.headers
                    .extend(texts(&Path::new(HEADERS_DIR).join(number.to_string()))?);
            }
            http.authorities = texts(Path::new(CERTIFICATES_DIR))?
                .into_iter()
                .map(String::into_bytes)
                .collect();
            http.credentials = credentials()?;
            let checksum = checksum
                .map(|sum| sum.parse())
                .transpose()
                .map_err(Failed::for_good)?;
            let request = Request {
                checksum,
                ..request(import::From::Http(http))
            };
            import::run(request, share, stop)?
        }
        From::Registry { image, plain_http } => {
            let reference: ImageRef = image.parse().map_err(Failed::for_good)?;
            let options = PullOptions {
                credentials: credentials()?
                    .map(|(username, password)| Credentials { username, password }),
                plain_http,
                policy: PullPolicy::Always,
            };
            let stream =
                DiskStream::open(&reference, &options).map_err(|error: PullError| Failed {
                    is_final: !error.is_transient(),
                    message: error.to_string(),
                })?;
            let length = stream.length();
            let stream = Box::new(stream);
            import::run(
                request(import::From::Stream { stream, length }),
                share,
                stop,
            )?
        }
    };
    let packed = imported
        .compression
        .map_or(String::new(), |c| format!(" in {c}"));
    Ok(format!(
        "Import Complete: {}{packed}, virtual size {}, {} bytes read, {} written, {} kept on the way",
        imported.format, imported.virtual_size, imported.read, imported.written, imported.spooled
    ))
}

/// The values of a secret or a ConfigMap, in the order of their keys. None where there is none.
fn texts(dir: &Path) -> Result<Vec<String>, Failed> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(Vec::new());
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    // Kubelets keep versions in directories with two dots.
    paths.retain(|path| {
        path.is_file()
            && !path
                .file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with(".."))
    });
    paths.iter().map(|path| text(path)).collect()
}

fn text(path: &Path) -> Result<String, Failed> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_SECRET).read_to_string(&mut text))
        .map_err(|e| Failed::for_now(format!("{}: {e}", path.display())))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// User and password, of a secret with the keys that CDI has.
fn credentials() -> Result<Option<(String, String)>, Failed> {
    let dir = Path::new(SECRET_DIR);
    if !dir.exists() {
        return Ok(None);
    }
    let value = |key: &str| text(&dir.join(key));
    Ok(Some((value("accessKeyId")?, value("secretKey")?)))
}

/// How far it is, for whoever asks.
async fn serve(share: Arc<Share>, owner: String) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", METRICS_PORT)).await?;
    let owner: String = owner
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect();
    let metrics = move || {
        let percent = share.0.load(Ordering::Relaxed) as f64 / 1000.0;
        let text = format!(
            "# HELP {PROGRESS_METRIC} The import progress in percentage\n# TYPE {PROGRESS_METRIC} counter\n{PROGRESS_METRIC}{{ownerUID=\"{owner}\"}} {percent}\n"
        );
        async move { text }
    };
    let router = axum::Router::new().route("/metrics", axum::routing::get(metrics));
    Ok(axum::serve(listener, router).await?)
}
