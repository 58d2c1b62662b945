//! Which server a command talks to, and in which namespace.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// The kubeconfig that `berth up` writes when it is not told another state directory.
const STANDALONE: &str = "/var/lib/berth/admin.kubeconfig";

/// Arguments of every command that talks to a server; the names are kubectl's.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterArgs {
    /// The kubeconfig to use. Without it: $KUBECONFIG, ~/.kube/config, then the one of a `berth up` on this machine.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig.
    #[arg(long)]
    context: Option<String>,
}

impl ClusterArgs {
    /// Reads the connection from where the user, kubectl or `berth up` keeps it.
    pub(crate) async fn config(&self) -> anyhow::Result<kube::Config> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let file = match &self.kubeconfig {
            Some(path) => Some(path.clone()),
            None if std::env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty())
                || home_config_exists() =>
            {
                None
            }
            None if Path::new(STANDALONE).exists() => Some(PathBuf::from(STANDALONE)),
            None => None,
        };
        match file {
            Some(path) => {
                let kubeconfig =
                    Kubeconfig::read_from(&path).with_context(|| format!("cannot read kubeconfig {}", path.display()))?;
                kube::Config::from_custom_kubeconfig(kubeconfig, &options)
                    .await
                    .with_context(|| format!("kubeconfig {} cannot be used", path.display()))
            }
            None => kube::Config::from_kubeconfig(&options)
                .await
                .context("no kubeconfig: give --kubeconfig, set KUBECONFIG, or start `berth up` on this machine"),
        }
    }
}

fn home_config_exists() -> bool {
    std::env::var_os("HOME").is_some_and(|home| Path::new(&home).join(".kube/config").exists())
}
