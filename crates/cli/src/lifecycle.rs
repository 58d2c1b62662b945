//! `berth start`, `stop`, `restart`, `pause` and `unpause`: what is done to a machine without changing its manifest. Names,
//! arguments and answers are virtctl's.

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::client::ClusterArgs;

/// Arguments of `berth start`, `stop` and `restart`.
#[derive(Debug, Args)]
pub(crate) struct MachineArgs {
    /// The virtual machine.
    vm: String,
    /// The namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Arguments of `berth pause` and `unpause`.
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// Of what kind it is.
    #[arg(value_enum)]
    kind: Kind,
    /// Its name.
    name: String,
    /// The namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// What has a guest.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// A virtual machine.
    #[value(alias = "virtualmachine")]
    Vm,
    /// A virtual machine instance.
    #[value(alias = "virtualmachineinstance")]
    Vmi,
}

/// Has a machine started, stopped or restarted.
pub(crate) async fn machine(args: MachineArgs, verb: &str) -> anyhow::Result<()> {
    ask(
        &args.cluster,
        args.namespace.as_deref(),
        ("virtualmachines", &args.vm, verb),
    )
    .await?;
    println!("VM {} was scheduled to {verb}", args.vm);
    Ok(())
}

/// Has a guest paused or go on.
pub(crate) async fn pause(args: PauseArgs, verb: &str) -> anyhow::Result<()> {
    // The instance of a machine has its name.
    let shown = match args.kind {
        Kind::Vm => "VM",
        Kind::Vmi => "VMI",
    };
    ask(
        &args.cluster,
        args.namespace.as_deref(),
        ("virtualmachineinstances", &args.name, verb),
    )
    .await?;
    println!("{shown} {} was scheduled to {verb}", args.name);
    Ok(())
}

async fn ask(
    cluster: &ClusterArgs,
    namespace: Option<&str>,
    (resource, name, verb): (&str, &str, &str),
) -> anyhow::Result<()> {
    let config = cluster.config().await?;
    let namespace = namespace.unwrap_or(&config.default_namespace).to_owned();
    let client = kube::Client::try_from(config).context("the kubeconfig cannot be used")?;
    let path = format!(
        "/apis/subresources.kubevirt.io/v1/namespaces/{namespace}/{resource}/{name}/{verb}"
    );
    let request = http::Request::put(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(b"{}".to_vec())
        .context("the name cannot be part of a path")?;
    match client.request_text(request).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(answer)) => Err(anyhow::anyhow!("{}", answer.message)),
        Err(error) => Err(error).context("the API server"),
    }
}
