//! `berth up` and `berth down`: the whole of berth on one machine.
//!
//! ```text
//!  up: lock the state directory → open the API server → kubeconfig → listen
//!       ├ API server over HTTPS, with the node agent's routes (logs, console)
//!       ├ controllers ┐ on in-process clients: no socket, no TLS
//!       └ node agent  ┘
//!      SIGTERM or SIGINT ends all of them; virtual machines run on.
//!  down: lock the same directory, end the virtual machines and undo the node's set-up.
//! ```

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use berth_apiserver::front::audit::{self, AuditLog};
use berth_apiserver::{Access, ApiServer, Options, Tuning};
use berth_controllers::Settings;
use berth_network::NodeNetwork;
use berth_node::NodeConfig;
use clap::Args;
use rustix::fs::{FlockOperation, flock};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::InProcess;
use crate::log;

/// Where things lie on this machine, and what they are called.
#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    /// Everything that must survive a restart: objects, certificates, images, the disks of virtual machines.
    #[arg(long, default_value = "/var/lib/berth")]
    state_dir: PathBuf,
    /// What need not survive a reboot: network namespaces of pods.
    #[arg(long, default_value = "/run/berth")]
    run_dir: PathBuf,
    /// The bridge that pods are linked to.
    #[arg(long, default_value = "berth0")]
    bridge: String,
    /// The pod network; its first address is the gateway's.
    #[arg(long, default_value = "10.98.0.0/16")]
    pod_cidr: Cidr,
    /// The name of this machine's Node object; the host name without it.
    #[arg(long)]
    node_name: Option<String>,
}

/// Arguments of `berth up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Where the API listens.
    #[arg(long, default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Another name or address that clients use for the API; goes into its certificate.
    #[arg(long = "server-name")]
    server_names: Vec<String>,
    /// A registry (HOST:PORT) to talk to by plain HTTP.
    #[arg(long = "insecure-registry")]
    insecure_registries: Vec<String>,
    /// Most machines that run at once: no more than the pod network's bridge has ports.
    #[arg(long, default_value_t = berth_node::DEFAULT_MAX_PODS, value_parser = clap::value_parser!(u32).range(1..=1023))]
    max_pods: u32,
    /// A name server that guests are told; those of this machine without it.
    #[arg(long)]
    dns: Vec<Ipv4Addr>,
    /// Most bytes that all objects may take, e.g. `512Mi`; what would make them more is refused then.
    #[arg(long, default_value = "8Gi")]
    store_limit: ByteCount,
    /// Where to record who asked for what: a file that is rotated by size, or `-` for the standard output.
    #[arg(long, value_name = "FILE|-")]
    audit_log: Option<PathBuf>,
}

/// Arguments of `berth down`.
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Delete the state directory too: objects, certificates, images.
    #[arg(long)]
    purge: bool,
}

/// A number of bytes as Kubernetes writes quantities.
#[derive(Debug, Clone, Copy)]
struct ByteCount(u64);

impl std::str::FromStr for ByteCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let quantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned());
        match berth_api::quantity::parse_bytes(&quantity) {
            Ok(bytes) if bytes >= 1 << 20 => Ok(Self(bytes)),
            Ok(_) => Err(format!("{text} is less than 1Mi")),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// An IPv4 network as `10.98.0.0/16`.
#[derive(Debug, Clone, Copy)]
struct Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

impl Cidr {
    /// The first address of the network.
    fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 1)
    }
}

impl std::str::FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is not a network like 10.98.0.0/16");
        let (network, prefix) = text.split_once('/').ok_or_else(form)?;
        let network: Ipv4Addr = network.parse().map_err(|_| form())?;
        let prefix: u8 = prefix.parse().map_err(|_| form())?;
        if !(8..=29).contains(&prefix) {
            return Err(format!("the prefix of {text} must lie between 8 and 29"));
        }
        let mask = u32::MAX << (32 - prefix);
        let lowest = Ipv4Addr::from_bits(network.to_bits() & mask);
        if lowest != network {
            return Err(format!(
                "{text} has host bits; did you mean {lowest}/{prefix}?"
            ));
        }
        Ok(Self { network, prefix })
    }
}

impl PlaceArgs {
    fn node_config(&self) -> anyhow::Result<NodeConfig> {
        let node_name = match &self.node_name {
            Some(name) => name.clone(),
            None => rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .to_lowercase(),
        };
        ensure!(
            !node_name.is_empty() && node_name.len() <= 63,
            "the host name {node_name:?} cannot name a node; give --node-name"
        );
        Ok(NodeConfig {
            node_name,
            state_dir: absolute(&self.state_dir)?,
            run_dir: absolute(&self.run_dir)?,
            network: NodeNetwork {
                bridge: self.bridge.clone(),
                gateway: self.pod_cidr.gateway(),
                prefix: self.pod_cidr.prefix,
                mtu: 1500,
            },
            dns: Vec::new(),
            search: Vec::new(),
            berth_binary: std::env::current_exe().context("where is the berth binary?")?,
            insecure_registries: Vec::new(),
            max_pods: berth_node::DEFAULT_MAX_PODS,
        })
    }
}

pub(crate) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("directory {}", path.display()))
}

/// Runs until a signal.
pub(crate) async fn up(args: UpArgs) -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "berth up needs root: it makes network namespaces and mounts"
    );
    let mut node = args.place.node_config()?;
    let host = berth_network::host_dns();
    node.dns = if args.dns.is_empty() {
        host.servers
    } else {
        args.dns
    };
    node.search = host.search;
    node.insecure_registries
        .clone_from(&args.insecure_registries);
    node.max_pods = args.max_pods;
    let _lock = lock(&node.state_dir)?;
    keep_node_name(&node.state_dir, &node.node_name)?;

    // Bound before anything is changed: an address in use must not leave half a set-up.
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("the API cannot listen on {}", args.listen))?;
    let listen = listener.local_addr().context("listening address")?;
    let audit = args.audit_log.as_deref().map(|path| {
        AuditLog::open(path, audit::ROTATE)
            .with_context(|| format!("cannot write the audit log {}", path.display()))
    });
    let tuning = Tuning {
        store_limit: args.store_limit.0,
        audit: audit.transpose()?,
        ..Tuning::default()
    };
    let options = Options {
        data_dir: node.state_dir.clone(),
        listen,
        server_names: args.server_names,
        admission: Arc::new(InProcess),
        crds: berth_api::crds(),
        access: access(),
    };
    let server = ApiServer::open_tuned(options, tuning)
        .await
        .context("the API server does not start")?;
    let kubeconfig = node.state_dir.join("admin.kubeconfig");
    let reached = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => {
            SocketAddr::from((Ipv4Addr::LOCALHOST, listen.port()))
        }
        _ => listen,
    };
    server
        .write_kubeconfig(&kubeconfig, &format!("https://{reached}"))
        .context("kubeconfig")?;

    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let node = berth_node::Node::new(node, server.client("system:node:berth-node"));
    let routes = node.router().merge(berth_subresources::router(
        server.client("berth-subresources"),
        node.guests(),
    ));
    let (sender, known) = watch::channel(None);
    let controllers = berth_controllers::run(
        Settings {
            insecure_registries: args.insecure_registries,
            ..Settings::default()
        },
        known.clone(),
        server.client("berth-controller"),
        stop.clone(),
    );
    let settings = server.client("berth-controller");
    tracing::info!(kubeconfig = %kubeconfig.display(), api = %reached, "berth is up");

    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn({
        let (server, stop) = (server.clone(), stop.clone());
        async move {
            server
                .serve(listener, routes, stop)
                .await
                .context("the API server")
        }
    });
    tasks.spawn(async move {
        tokio::select! {
            () = controllers => {}
            () = berth_api::settings::follow(settings, &sender) => {}
            // One process is both.
            () = log::follow(known, |v| v.virt_controller.max(v.virt_handler)) => {}
        }
        anyhow::Ok(())
    });
    tasks.spawn({
        let stop = stop.clone();
        async move { node.run(stop).await.context("the node agent") }
    });
    // The first part that ends takes the others with it: half a berth would look healthy and do nothing.
    let mut result = Ok(());
    while let Some(ended) = tasks.join_next().await {
        stop.cancel();
        let ended = ended
            .context("a part of berth panicked")
            .and_then(|inner| inner);
        if result.is_ok() {
            result = ended;
        }
    }
    result
}

/// Who may do what with virtual machines, besides the API server's own roles.
pub(crate) fn access() -> Access {
    Access {
        roles: berth_api::roles::roles(),
        bindings: berth_api::roles::bindings(),
        ..Access::default()
    }
}

/// Ends the virtual machines and removes what `up` made on this machine.
pub(crate) async fn down(args: DownArgs) -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "berth down needs root"
    );
    let node = args.place.node_config()?;
    let state_dir = node.state_dir.clone();
    if !state_dir.exists() && !node.run_dir.exists() {
        return Ok(());
    }
    // Held to the end: nobody starts on a directory that is being deleted.
    let _lock = lock(&state_dir)?;
    let errors = berth_node::remove_all(&node).await;
    if !errors.is_empty() {
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        bail!("not everything could be removed: {}", errors.join("; "));
    }
    if args.purge {
        std::fs::remove_dir_all(&state_dir)
            .with_context(|| format!("removing {}", state_dir.display()))?;
    }
    Ok(())
}

/// One berth a state directory.
pub(crate) fn lock(state_dir: &Path) -> anyhow::Result<File> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
    std::fs::DirBuilder::new()
        .recursive(true)
        // Pods' users pass through to their own files; nobody else can list what is here.
        .mode(0o711)
        .create(state_dir)
        .with_context(|| format!("cannot make the state directory {}", state_dir.display()))?;
    let path = state_dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            // A purge that ended just now took the name away, and with it what others would lock.
            let named = std::fs::metadata(&path).map(|meta| meta.ino()).ok();
            let held = file.metadata().map(|meta| meta.ino()).ok();
            ensure!(
                named == held,
                "{} was deleted in this moment; try again",
                state_dir.display()
            );
            Ok(file)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!(
                "a berth already runs on the state directory {}",
                state_dir.display()
            )
        }
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// The pods of a state directory are bound to the name that its first start had: under another name none of them would be
/// this node's.
fn keep_node_name(state_dir: &Path, name: &str) -> anyhow::Result<()> {
    let path = state_dir.join("node-name");
    match std::fs::read_to_string(&path) {
        Ok(kept) if kept.trim() == name => Ok(()),
        // Torn by a crash at the first start, when there were no pods yet.
        Ok(kept) if !kept.trim().is_empty() => bail!(
            "{} belongs to the node {:?}, and this is the node {name:?}: give --node-name {}, or start on another --state-dir",
            state_dir.display(),
            kept.trim(),
            kept.trim(),
        ),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot read {}", path.display()))
        }
        Ok(_) | Err(_) => std::fs::write(&path, format!("{name}\n"))
            .with_context(|| format!("cannot write {}", path.display())),
    }
}

pub(crate) fn stop_on_signals(stop: &CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let stop = stop.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!("{name}: berth goes down; virtual machines run on");
        stop.cancel();
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Cidr, keep_node_name, lock};

    #[test]
    fn a_state_directory_keeps_the_name_of_its_node() {
        let dir = tempfile::tempdir().unwrap();
        keep_node_name(dir.path(), "one").unwrap();
        keep_node_name(dir.path(), "one").unwrap();
        let error = keep_node_name(dir.path(), "two").unwrap_err().to_string();
        for part in ["\"one\"", "\"two\"", "--node-name one"] {
            assert!(error.contains(part), "{error}");
        }
        keep_node_name(dir.path(), "one").unwrap();
    }

    #[test]
    fn a_second_lock_is_refused_and_a_purged_directory_can_be_locked_anew() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let first = lock(&state).unwrap();
        assert!(
            lock(&state)
                .unwrap_err()
                .to_string()
                .contains("already runs")
        );
        std::fs::remove_dir_all(&state).unwrap();
        drop(first);
        lock(&state).unwrap();
    }

    #[test]
    fn a_network_names_its_gateway_and_refuses_nonsense() {
        let cidr: Cidr = "10.98.0.0/16".parse().unwrap();
        assert_eq!(cidr.gateway().to_string(), "10.98.0.1");
        for (text, word) in [
            ("10.98.0.0", "not a network"),
            ("10.98.0.0/31", "between"),
            ("10.98.0.7/16", "did you mean 10.98.0.0/16"),
            ("ten/8", "not a network"),
        ] {
            let error = text.parse::<Cidr>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
