//! `berth version`: of the client, and of the server where one answers.

use std::time::Duration;

use clap::Args;

use crate::client::ClusterArgs;

/// The version as `berth --version` prints it.
pub(crate) const LONG: &str = env!("CARGO_PKG_VERSION");

/// Arguments of `berth version`.
#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// Do not ask a server.
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Prints the client's version, then the server's.
pub(crate) async fn run(args: VersionArgs) -> anyhow::Result<()> {
    println!("Client Version: {LONG}");
    if args.client {
        return Ok(());
    }
    // No server is no failure here: the client's version is an answer.
    let Ok(config) = args.cluster.config().await else {
        return Ok(());
    };
    let Ok(client) = kube::Client::try_from(config) else {
        return Ok(());
    };
    match tokio::time::timeout(Duration::from_secs(5), client.apiserver_version()).await {
        Ok(Ok(info)) => println!("Server Version: {}", info.git_version),
        Ok(Err(error)) => println!("Server Version: unknown ({error})"),
        Err(_) => println!("Server Version: unknown (no answer within 5 s)"),
    }
    Ok(())
}
