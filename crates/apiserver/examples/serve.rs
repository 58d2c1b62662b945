//! Serves the bare API on a port of its own until it is interrupted: `cargo run --example serve -- <dir>`.

use std::path::PathBuf;
use std::sync::Arc;

use berth_apiserver::{AdmitAll, ApiServer, Options};
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = PathBuf::from(
        std::env::args()
            .nth(1)
            .ok_or("give a directory for the data")?,
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let listen = listener.local_addr()?;
    let options = Options {
        data_dir: dir.clone(),
        listen,
        server_names: Vec::new(),
        admission: Arc::new(AdmitAll),
        crds: Vec::new(),
    };
    let server = ApiServer::open(options).await?;
    let kubeconfig = dir.join("admin.kubeconfig");
    server.write_kubeconfig(&kubeconfig, &format!("https://{listen}"))?;
    println!("{}", kubeconfig.display());
    let stop = CancellationToken::new();
    let serving = server.serve(listener, axum::Router::new(), stop.clone());
    let interrupted = async {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    };
    let (served, ()) = tokio::join!(serving, interrupted);
    Ok(served?)
}
