//! `berth image`: container disks made, moved and listed without a container engine.
//!
//! Works on the store's files directly, so it needs no running `berth up`; the store's locks make both safe together.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use berth_image::{
    Credentials, Image, ImageRef, Limits, PullOptions, PullPolicy, Store,
    credentials_from_docker_config,
};
use clap::{Args, Subcommand};

use crate::progress::{Bar, human_bytes};

/// Arguments of `berth image`.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// The directory of the image store.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/var/lib/berth/images"
    )]
    root: PathBuf,
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Make an image from a disk file (qcow2 or raw).
    Build {
        /// The disk file.
        disk: PathBuf,
        /// The name of the image.
        #[arg(short, long, value_name = "NAME[:TAG]")]
        tag: ImageRef,
    },
    /// Tell what a disk image is, with all the checks of an import.
    Inspect(crate::disk::InspectArgs),
    /// Fetch an image from its registry.
    Pull {
        /// The image: NAME[:TAG] or NAME@DIGEST.
        image: ImageRef,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Send an image to its registry.
    Push {
        /// The image: NAME[:TAG].
        image: ImageRef,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// List the images in the store.
    #[command(visible_alias = "ls")]
    List,
    /// Remove images from the store.
    Rm {
        /// The images.
        #[arg(required = true)]
        images: Vec<ImageRef>,
    },
    /// Take the images of a `docker save` or OCI archive into the store.
    Import {
        /// The archive, compressed or not.
        archive: PathBuf,
        /// The name of the image, instead of the one in the archive.
        #[arg(short, long, value_name = "NAME[:TAG]")]
        tag: Option<ImageRef>,
    },
}

#[derive(Debug, Args)]
struct RegistryArgs {
    /// Speak HTTP without TLS to the registry.
    #[arg(long)]
    plain_http: bool,
    /// User, instead of the one in Docker's configuration.
    #[arg(long, value_name = "USER", requires = "password_stdin")]
    username: Option<String>,
    /// Read the password from standard input.
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// User and password in one; every user of this machine can see them while the command runs.
    #[arg(long, value_name = "USER:PASSWORD", value_parser = parse_credentials, conflicts_with = "username")]
    creds: Option<Credentials>,
}

impl RegistryArgs {
    fn options(self, image: &ImageRef) -> anyhow::Result<PullOptions> {
        let credentials = match (self.creds, self.username) {
            (Some(credentials), _) => Some(credentials),
            (None, Some(username)) => Some(Credentials {
                username,
                password: read_password(std::io::stdin().lock())?,
            }),
            (None, None) => configured_credentials(image)?,
        };
        Ok(PullOptions {
            credentials,
            plain_http: self.plain_http,
            policy: PullPolicy::Always,
        })
    }
}

/// Runs the subcommand.
pub(crate) async fn run(args: ImageArgs) -> anyhow::Result<()> {
    if let ImageCommand::Inspect(args) = args.command {
        return crate::disk::inspect(args).await;
    }
    if let ImageCommand::Build { disk, tag } = &args.command {
        // Before there is a store: what cannot be built leaves none.
        Store::check_build(disk, tag)?;
    }
    let store = Store::open_with(&args.root, Limits::default())?;
    match args.command {
        ImageCommand::Inspect(_) => unreachable!("needs no store"),
        ImageCommand::Build { disk, tag } => {
            let image = off_runtime(move || Ok(store.build(&disk, &tag)?)).await?;
            print(format_args!("{} {}\n", image.reference, image.digest))
        }
        ImageCommand::Pull { image, registry } => {
            let options = registry.options(&image)?;
            let bar = Bar::new();
            let pulled = store.pull(&image, &options, bar.progress()).await;
            bar.clear();
            let pulled = pulled?;
            print(format_args!("{} {}\n", pulled.reference, pulled.digest))
        }
        ImageCommand::Push { image, registry } => {
            let options = registry.options(&image)?;
            let bar = Bar::new();
            let pushed = store.push(&image, &options, bar.progress()).await;
            bar.clear();
            print(format_args!("{image} {}\n", pushed?))
        }
        ImageCommand::List => print(format_args!("{}", table(&store.list()?, SystemTime::now()))),
        ImageCommand::Rm { images } => remove(store, images).await,
        ImageCommand::Import { archive, tag } => {
            let images =
                off_runtime(move || Ok(store.import_archive(&archive, tag.as_ref())?)).await?;
            let lines: String = images
                .iter()
                .map(|i| format!("{} {}\n", i.reference, i.digest))
                .collect();
            print(format_args!("{lines}"))
        }
    }
}

pub(crate) async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context("the operation did not finish")?
}

pub(crate) fn print(text: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    Ok(std::io::stdout().lock().write_fmt(text)?)
}

/// Removes what is there; what is not is an error at the end, not in the middle.
async fn remove(store: Store, images: Vec<ImageRef>) -> anyhow::Result<()> {
    off_runtime(move || {
        let mut unknown = Vec::new();
        for image in images {
            if store.remove(&image)? {
                print(format_args!("removed {image}\n"))?;
            } else {
                unknown.push(image.to_string());
            }
        }
        if !unknown.is_empty() {
            bail!("not in the store: {}", unknown.join(", "));
        }
        Ok(())
    })
    .await
}

fn parse_credentials(text: &str) -> Result<Credentials, String> {
    match text.split_once(':') {
        Some((username, password)) if !username.is_empty() => Ok(Credentials {
            username: username.to_owned(),
            password: password.to_owned(),
        }),
        // The text may be a password: it is not repeated.
        _ => Err("expected USER:PASSWORD".to_owned()),
    }
}

/// The password is the first line; a line end is not part of it.
fn read_password(mut from: impl std::io::BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)
        .context("reading the password from standard input")?;
    let password = line.trim_end_matches(['\r', '\n']);
    ensure!(!password.is_empty(), "no password on standard input");
    Ok(password.to_owned())
}

/// What `docker login` left in `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
fn configured_credentials(image: &ImageRef) -> anyhow::Result<Option<Credentials>> {
    let directory = std::env::var_os("DOCKER_CONFIG")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".docker")));
    let Some(directory) = directory else {
        return Ok(None);
    };
    let path = directory.join("config.json");
    match std::fs::read(&path) {
        Ok(json) => Ok(credentials_from_docker_config(&json, &image.name())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", Path::new(&path).display())),
    }
}

fn table(images: &[Image], now: SystemTime) -> String {
    let mut rows = vec![["NAME", "DIGEST", "SIZE", "SOURCE", "AGE"].map(str::to_owned)];
    for image in images {
        let age = now.duration_since(image.stored).unwrap_or_default();
        rows.push([
            image.reference.to_string(),
            image.digest.hex()[..12].to_owned(),
            human_bytes(image.size),
            if image.local { "local" } else { "registry" }.to_owned(),
            human_age(age),
        ]);
    }
    let widths: Vec<usize> = (0..5)
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// As kubectl prints ages: the largest unit that fits.
fn human_age(age: Duration) -> String {
    match age.as_secs() {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        assert_eq!(human_age(Duration::from_secs(119)), "119s");
        assert_eq!(human_age(Duration::from_secs(7200)), "2h");
    }

    #[test]
    fn the_table_is_plain() {
        assert_eq!(
            table(&[], SystemTime::now()),
            "NAME   DIGEST   SIZE   SOURCE   AGE\n"
        );
    }

    #[test]
    fn a_password_is_one_line() {
        assert_eq!(read_password(&b"s e:same\r\nmore"[..]).unwrap(), "s e:same");
        assert_eq!(read_password(&b"sesame"[..]).unwrap(), "sesame");
        assert!(read_password(&b"\n"[..]).is_err());
        assert!(read_password(&b""[..]).is_err());
    }

    #[test]
    fn a_bad_credential_is_not_repeated() {
        assert!(parse_credentials("u:p:q").is_ok_and(|c| c.password == "p:q"));
        assert!(
            !parse_credentials("hunter2")
                .unwrap_err()
                .contains("hunter2")
        );
    }
}
