//! scratch
use berth_apiserver::*;
use std::{path::PathBuf, sync::Arc};
#[tokio::main]
async fn main() {
    let data = PathBuf::from(std::env::args().nth(1).unwrap());
    let crds: Vec<_> = std::env::args()
        .nth(2)
        .map(|f| serde_json::from_slice(&std::fs::read(f).unwrap()).unwrap())
        .into_iter()
        .collect();
    let s = ApiServer::open(Options {
        data_dir: data.clone(),
        listen: "127.0.0.1:16443".parse().unwrap(),
        server_names: vec![],
        admission: Arc::new(AdmitAll),
        crds,
    })
    .await
    .unwrap();
    s.write_kubeconfig(&data.join("kc"), "https://127.0.0.1:16443")
        .unwrap();
    let l = tokio::net::TcpListener::bind("127.0.0.1:16443")
        .await
        .unwrap();
    s.serve(l, axum::Router::new(), Default::default())
        .await
        .unwrap();
}
