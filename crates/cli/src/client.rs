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
    /// A client, and the namespace to use: the one that is given or the kubeconfig's.
    pub(crate) async fn client(
        &self,
        namespace: Option<&str>,
    ) -> anyhow::Result<(kube::Client, String)> {
        let config = self.config().await?;
        let namespace = namespace.unwrap_or(&config.default_namespace).to_owned();
        let client = kube::Client::try_from(config).context("the kubeconfig cannot be used")?;
        Ok((client, namespace))
    }

    /// As they were given.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let file = self.kubeconfig.as_ref().map(|f| f.display().to_string());
        let given = [("--kubeconfig", file), ("--context", self.context.clone())];
        let given = given
            .into_iter()
            .filter_map(|(name, value)| Some([name.to_owned(), value?]));
        given.flatten().collect()
    }

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

/// The path of `resource/name/subresource` of the group `subresources.kubevirt.io`.
pub(crate) fn subresource_path(
    namespace: &str,
    (resource, name, subresource): (&str, &str, &str),
) -> String {
    format!(
        "/apis/subresources.kubevirt.io/v1/namespaces/{namespace}/{resource}/{name}/{subresource}"
    )
}

/// A request for a subresource: the resource, the name and the subresource.
pub(crate) fn subresource(
    namespace: &str,
    of: (&str, &str, &str),
    method: http::Method,
    body: Vec<u8>,
) -> anyhow::Result<http::Request<Vec<u8>>> {
    http::Request::builder()
        .method(method)
        .uri(subresource_path(namespace, of))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .context("the name cannot be part of a path")
}

/// What a server that refuses says, without more about it.
pub(crate) fn said(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(answer) => anyhow::anyhow!("{}", answer.message),
        error => anyhow::Error::new(error).context("the API server"),
    }
}

fn home_config_exists() -> bool {
    std::env::var_os("HOME").is_some_and(|home| Path::new(&home).join(".kube/config").exists())
}
