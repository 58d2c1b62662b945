//! `berth apiserver`: the embedded API server alone, with berth's definitions and admission, without controllers and node.
//!
//! For tests and measurements: it needs no root and starts nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use berth_apiserver::{ApiServer, Options, Tuning};
use clap::Args;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admission::InProcess;
use crate::up::{absolute, access, lock, stop_on_signals};

/// Arguments of `berth apiserver`.
#[derive(Debug, Args)]
pub(crate) struct ApiserverArgs {
    /// Objects, certificates and the admin's kubeconfig.
    #[arg(long)]
    state_dir: PathBuf,
    /// Where the API listens.
    #[arg(long, default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Leave undone what a cluster's controller manager does: a bare API server, as kube-apiserver is one.
    #[arg(long)]
    no_controllers: bool,
}

/// Serves until a signal.
pub(crate) async fn run(args: ApiserverArgs) -> anyhow::Result<()> {
    let state_dir = absolute(&args.state_dir)?;
    let _lock = lock(&state_dir)?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("the API cannot listen on {}", args.listen))?;
    let listen = listener.local_addr().context("listening address")?;
    let options = Options {
        data_dir: state_dir.clone(),
        listen,
        server_names: Vec::new(),
        admission: Arc::new(InProcess),
        crds: berth_api::crds(),
        access: access(),
    };
    let tuning = Tuning {
        controllers: !args.no_controllers,
        ..Tuning::default()
    };
    let server = ApiServer::open_tuned(options, tuning)
        .await
        .context("the API server does not start")?;
    server
        .write_kubeconfig(
            &state_dir.join("admin.kubeconfig"),
            &format!("https://{listen}"),
        )
        .context("kubeconfig")?;
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    tracing::info!(api = %listen, "the API server is up");
    server
        .serve(listener, axum::Router::new(), stop)
        .await
        .context("the API server")
}
