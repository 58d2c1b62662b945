//! `berth kubeconfig`: a kubeconfig for another user than the admin.
//!
//! It holds a client certificate, signed with the authority of the state directory, so only who may read that directory can
//! make one. What the user may do is then a matter of roles and bindings.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use berth_apiserver::auth::{kubeconfig, pki};
use clap::Args;
use kube::config::Kubeconfig;

/// Arguments of `berth kubeconfig`.
#[derive(Debug, Args)]
pub(crate) struct KubeconfigArgs {
    /// The name of the user, as bindings name it.
    #[arg(long)]
    user: String,
    /// A group of the user; may be given several times.
    #[arg(long = "group")]
    groups: Vec<String>,
    /// How long the certificate is valid: 90d, 12h, 30m.
    #[arg(long, default_value = "365d", value_parser = lifetime)]
    expiration: Duration,
    /// The file to write, mode 0600. Without it: standard output.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// The URL of the API. Without it: that of admin.kubeconfig.
    #[arg(long)]
    server: Option<String>,
    /// The state directory of `berth up`.
    #[arg(long, default_value = "/var/lib/berth")]
    state_dir: PathBuf,
}

/// Makes the certificate and writes the kubeconfig.
pub(crate) fn run(args: &KubeconfigArgs) -> anyhow::Result<()> {
    ensure!(!args.user.is_empty(), "the name of the user is empty");
    let server = match &args.server {
        Some(server) => server.clone(),
        None => address(&args.state_dir)?,
    };
    let groups: Vec<&str> = args.groups.iter().map(String::as_str).collect();
    let (ca, pem) = pki::issue_client(
        &args.state_dir.join("pki"),
        &args.user,
        &groups,
        args.expiration,
    )
    .context("no certificate")?;
    let text = kubeconfig::render(&server, &ca, &args.user, &pem);
    match &args.output {
        Some(path) => pki::write_atomically(path, text.as_bytes(), 0o600)
            .with_context(|| format!("cannot write {}", path.display())),
        None => std::io::stdout()
            .lock()
            .write_all(text.as_bytes())
            .context("cannot write the kubeconfig"),
    }
}

/// Where the API of a state directory is.
fn address(state_dir: &Path) -> anyhow::Result<String> {
    let path = state_dir.join("admin.kubeconfig");
    let admin = Kubeconfig::read_from(&path)
        .with_context(|| format!("cannot read {}; give --server", path.display()))?;
    let server = admin
        .clusters
        .into_iter()
        .find_map(|named| named.cluster?.server);
    match server {
        Some(server) => Ok(server),
        None => bail!("{} names no server; give --server", path.display()),
    }
}

/// Reads `90d`, `12h`, `30m`, `45s`.
fn lifetime(text: &str) -> Result<Duration, String> {
    let form = || format!("{text:?} is not a time like 90d, 12h or 30m");
    let unit = text.chars().next_back().ok_or_else(form)?;
    let seconds = match unit {
        'd' => 86_400,
        'h' => 3600,
        'm' => 60,
        's' => 1,
        _ => return Err(form()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| form())?;
    // Longer than the authority itself lives means nothing.
    match count.checked_mul(seconds) {
        Some(0) => Err("the time must be longer than nothing".into()),
        Some(all) if all <= 3650 * 86_400 => Ok(Duration::from_secs(all)),
        _ => Err("the time must be at most 3650d".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(lifetime("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert_eq!(lifetime("30m"), Ok(Duration::from_secs(1800)));
        for wrong in [
            "",
            "d",
            "5",
            "5w",
            "-1h",
            "0s",
            "3651d",
            "99999999999999999999d",
            "1é",
        ] {
            assert!(lifetime(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_user_gets_its_certificate_for_the_server_of_the_admin() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().to_owned();
        let pki = pki::Pki::ensure(&state.join("pki"), &[], pki::LIFETIME).unwrap();
        let admin = kubeconfig::render(
            "https://127.0.0.1:7443",
            &pki.ca,
            kubeconfig::ADMIN,
            &pki.admin,
        );
        std::fs::write(state.join("admin.kubeconfig"), admin).unwrap();
        let file = state.join("eve.kubeconfig");
        run(&KubeconfigArgs {
            user: "eve: \"x\"".into(),
            groups: vec!["a".into(), "b".into()],
            expiration: Duration::from_secs(60),
            output: Some(file.clone()),
            server: None,
            state_dir: state,
        })
        .unwrap();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let made = Kubeconfig::read_from(&file).unwrap();
        assert_eq!(made.auth_infos[0].name, "eve: \"x\"");
        let server = made.clusters[0].cluster.as_ref().unwrap().server.as_deref();
        assert_eq!(server, Some("https://127.0.0.1:7443"));
    }
}
