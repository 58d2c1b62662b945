//! `berth disk` and `berth image inspect`: images become disks, with no server at all.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use berth_api::quantity::parse_bytes;
use berth_image::format::Compression;
use berth_image::import::{self, Checksum, From, Http, Request, Room};
use berth_image::{CopyMethod, copy_disk, export_packed};
use clap::{Args, Subcommand, ValueEnum};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::image::{off_runtime, print};
use crate::progress::{Bar, human_bytes};

/// Arguments of `berth disk`.
#[derive(Debug, Args)]
pub(crate) struct DiskArgs {
    #[command(subcommand)]
    command: DiskCommand,
}

#[derive(Debug, Subcommand)]
enum DiskCommand {
    /// Make a raw disk of an image: raw, qcow2, vmdk, vdi, vhd or vhdx, packed with gzip, xz or zstd or not.
    Import {
        #[command(flatten)]
        from: FromArgs,
        /// The disk: a new file, or a block device.
        out: PathBuf,
        /// How large the disk is to be, e.g. 10Gi; an image that is larger is refused.
        #[arg(long)]
        size: Option<String>,
        /// What the file hashes to, e.g. sha256:…; md5, sha1 and sha512, too.
        #[arg(long)]
        checksum: Option<Checksum>,
        /// Take the room of the whole disk at once.
        #[arg(long)]
        preallocate: bool,
    },
    /// Copy a raw disk; shares its blocks where the file system can.
    Clone {
        /// The disk that is there.
        from: PathBuf,
        /// The disk that is to be made.
        to: PathBuf,
        /// How large it is to be, at least.
        #[arg(long)]
        size: Option<String>,
    },
    /// Write a raw disk to a file, packed or not.
    Export {
        /// The disk.
        disk: PathBuf,
        /// The file.
        out: PathBuf,
        /// How to pack it; told by the end of the file's name (.gz, .xz, .zst) if not given.
        #[arg(long, value_enum)]
        compression: Option<Packing>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Packing {
    None,
    Gzip,
    Xz,
    Zstd,
}

/// Where an image is.
#[derive(Debug, Args)]
struct FromArgs {
    /// The image: a file or an address (http://…, https://…).
    #[arg(value_name = "FILE|URL")]
    image: String,
    /// More headers of the request, as `name: value`; may be given more than once.
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// User of the server; the password is read from the environment variable BERTH_PASSWORD.
    #[arg(long)]
    username: Option<String>,
    /// Authorities to trust beside the system's, as PEM.
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Take any certificate.
    #[arg(long)]
    insecure: bool,
}

impl FromArgs {
    fn source(self) -> anyhow::Result<From> {
        if !self.image.contains("://") {
            return Ok(From::File(self.image.into()));
        }
        let mut http = Http::new(self.image);
        http.headers = self.headers;
        http.insecure = self.insecure;
        if let Some(user) = self.username {
            http.credentials = Some((user, std::env::var("BERTH_PASSWORD").unwrap_or_default()));
        }
        if let Some(path) = self.cacert {
            let pem = std::fs::read(&path);
            let pem = pem.with_context(|| format!("cannot read {}", path.display()))?;
            http.authorities.push(pem);
        }
        Ok(From::Http(http))
    }
}

/// Arguments of `berth image inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    from: FromArgs,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = InspectOutput::Table)]
    output: InspectOutput,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum InspectOutput {
    Table,
    Json,
}

/// `berth image inspect`.
pub(crate) async fn inspect(args: InspectArgs) -> anyhow::Result<()> {
    let name = args.from.image.clone();
    let from = args.from.source()?;
    let found = off_runtime(move || Ok(import::inspect(from)?)).await;
    let found = found.with_context(|| name.clone())?;
    let packed = found.compression.map(Compression::as_str);
    if matches!(args.output, InspectOutput::Json) {
        let json = serde_json::json!({
            "image": name,
            "format": found.format,
            "compression": packed,
            "virtualSize": found.virtual_size,
            "fileSize": found.file_size,
            "ranges": found.ranges,
        });
        return print(format_args!("{json:#}\n"));
    }
    let size = |bytes: Option<u64>| match bytes {
        Some(bytes) => format!("{} ({bytes} bytes)", human_bytes(bytes)),
        None => "not known before it is unpacked".to_owned(),
    };
    let read = match (found.ranges, packed) {
        (true, None) => "in place, what is needed of it",
        (_, Some(_)) => "as a stream, unpacked on the way",
        (false, None) => "as a stream: the server gives no parts of files",
    };
    print(format_args!(
        "image:         {name}\nformat:        {}\ncompression:   {}\nvirtual size:  {}\nfile size:     {}\nread:          {read}\nchecks:        passed (no other files, known features, tables in range, one format)\n",
        found.format,
        packed.unwrap_or("none"),
        size(found.virtual_size),
        size(found.file_size),
    ))
}

/// `berth disk`.
pub(crate) async fn run(args: DiskArgs) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopper = Arc::clone(&stop);
    // What is half done is removed by who does it, so Ctrl-C is told to it.
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stopper.store(true, Ordering::Relaxed);
        }
    });
    match args.command {
        DiskCommand::Import {
            from,
            out,
            size,
            checksum,
            preallocate,
        } => {
            let name = from.image.clone();
            let size = size.map(|text| bytes("size", &text)).transpose()?;
            refuse_existing(&out)?;
            let request = Request {
                room: size.map(|available| Room {
                    available,
                    claim: None,
                }),
                size,
                checksum,
                preallocate,
                ..Request::new(from.source()?, &out)
            };
            let done = with_bar(move |bar| Ok(import::run(request, bar.progress(), &stop)?)).await;
            let done = done.with_context(|| name)?;
            let packed = done
                .compression
                .map_or(String::new(), |c| format!(" in {c}"));
            let kept = match done.spooled {
                0 => String::new(),
                bytes => format!(", {} kept on the way", human_bytes(bytes)),
            };
            print(format_args!(
                "{}: {} ({}{packed}), {} read, {} written{kept}\n",
                out.display(),
                human_bytes(done.virtual_size.max(size.unwrap_or(0))),
                done.format,
                human_bytes(done.read),
                human_bytes(done.written),
            ))
        }
        DiskCommand::Clone { from, to, size } => {
            let size = size.map(|text| bytes("size", &text)).transpose()?;
            refuse_existing(&to)?;
            let shown = to.display().to_string();
            let how = with_bar(move |bar| Ok(copy_disk(&from, &to, size, bar.progress(), &stop)?));
            let how = match how.await? {
                CopyMethod::Reflink => "shares the blocks of its source",
                CopyMethod::Sparse => "copied without holes",
            };
            print(format_args!("{shown}: {how}\n"))
        }
        DiskCommand::Export {
            disk,
            out,
            compression,
        } => {
            refuse_existing(&out)?;
            let ending = out.extension().and_then(|ending| ending.to_str());
            let compression = match (compression, ending) {
                (Some(Packing::Gzip), _) | (None, Some("gz")) => Some(Compression::Gzip),
                (Some(Packing::Xz), _) | (None, Some("xz")) => Some(Compression::Xz),
                (Some(Packing::Zstd), _) | (None, Some("zst" | "zstd")) => Some(Compression::Zstd),
                (Some(Packing::None), _) | (None, _) => None,
            };
            let shown = out.display().to_string();
            with_bar(move |bar| {
                match compression {
                    Some(packing) => export_packed(&disk, &out, packing, bar.progress(), &stop)?,
                    None => {
                        copy_disk(&disk, &out, None, bar.progress(), &stop)?;
                    }
                }
                Ok(())
            })
            .await?;
            print(format_args!("{shown}: exported\n"))
        }
    }
}

async fn with_bar<T: Send + 'static>(
    work: impl FnOnce(&Bar) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    off_runtime(move || {
        let bar = Bar::new();
        let done = work(&bar);
        bar.clear();
        done
    })
    .await
}

/// A disk that is there is not written over, but a device is what was meant.
fn refuse_existing(path: &std::path::Path) -> anyhow::Result<()> {
    use std::os::unix::fs::FileTypeExt as _;
    let is_free = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta.file_type().is_block_device(),
        Err(_) => true,
    };
    ensure!(is_free, "{} exists already", path.display());
    Ok(())
}

/// A quantity as whole bytes.
fn bytes(what: &str, text: &str) -> anyhow::Result<u64> {
    parse_bytes(&Quantity(text.to_owned()))
        .ok()
        .filter(|bytes| *bytes > 0)
        .with_context(|| {
            format!("--{what}: {text:?} is no size, which is a number of bytes like 10Gi")
        })
}
