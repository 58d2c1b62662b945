//! berth on a cluster: what `berth manifests` prints, and the programs that run in the pods it describes.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use berth_api::settings;
use berth_cluster::doctor::Grade;
use berth_cluster::front_proxy::FrontProxy;
use berth_cluster::leader::{self, Candidate};
use berth_cluster::manifests::{self, CONTROLLER_PORT, NODE_PORT};
use berth_cluster::nodes::{self, Link, RemoteGuests};
use berth_cluster::serve::{self, Authorities, Newest};
use berth_cluster::{aggregated, certificates, webhook};
use berth_controllers::{Runner, Settings};
use berth_network::NodeNetwork;
use berth_node::NodeConfig;
use berth_node::kubelet::KubeletNode;
use berth_subresources::remote;
use clap::Args;
use futures::StreamExt as _;
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::ClusterArgs;
use crate::log;
use crate::output;
use crate::up::{absolute, stop_on_signals};

/// Where the program that holds an image is in berth's own image.
const HOLD: &str = "/usr/bin/berth-hold";
/// How often the controller looks after its certificates.
const LOOK: Duration = Duration::from_secs(3600);
/// How often a node agent looks for a new one.
const LOOK_OF_NODE: Duration = Duration::from_secs(600);
/// The same, while there is none.
const RETRY: Duration = Duration::from_secs(1);

/// Arguments of `berth manifests`.
#[derive(Debug, Args)]
pub(crate) struct ManifestsArgs {
    /// The namespace of berth's own parts.
    #[arg(long, default_value = "berth")]
    namespace: String,
    /// The image of all parts.
    #[arg(long, default_value = concat!("berth:", env!("CARGO_PKG_VERSION")))]
    image: String,
    /// A registry to take the image from: `HOST/PATH`, put before its name.
    #[arg(long)]
    registry: Option<String>,
    /// How many controllers run; one of them works.
    #[arg(long, default_value_t = 2)]
    replicas: u32,
    /// What berth's parts log.
    #[arg(long, default_value = "info")]
    log_level: String,
}

/// Prints every object to standard output.
pub(crate) fn manifests(args: &ManifestsArgs) -> anyhow::Result<()> {
    let image = match args.registry.as_deref().map(|r| r.trim_end_matches('/')) {
        Some(registry) => format!("{registry}/{}", args.image),
        None => args.image.clone(),
    };
    ensure!(
        berth_admission::is_dns_label(&args.namespace),
        "--namespace {:?} is not the name of a namespace",
        args.namespace
    );
    ensure!(
        args.replicas > 0,
        "--replicas 0: nobody would start virtual machines"
    );
    let settings = manifests::Settings {
        namespace: args.namespace.clone(),
        image,
        replicas: args.replicas,
        log: args.log_level.clone(),
    };
    output::print(&output::yaml(&manifests::objects(&settings))?)
}

/// Arguments of `berth doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The namespace of berth's own parts.
    #[arg(long, default_value = "berth")]
    namespace: String,
}

/// Prints a line for each thing that it looks at; fails if virtual machines cannot run.
pub(crate) async fn doctor(args: DoctorArgs) -> anyhow::Result<()> {
    let client =
        Client::try_from(args.cluster.config().await?).context("the API server's address")?;
    let found = berth_cluster::doctor::examine(&client, &args.namespace)
        .await
        .context("cannot look at the cluster")?;
    let mut text = String::new();
    for finding in &found {
        let mark = match finding.grade {
            Grade::Good => "ok     ",
            Grade::Poor => "warning",
            Grade::Bad => "problem",
        };
        text += &format!("{mark}  {}\n", finding.text);
    }
    output::print(&text)?;
    let problems = found.iter().filter(|f| f.grade == Grade::Bad).count();
    ensure!(
        problems == 0,
        "virtual machines cannot run: {problems} problem(s)"
    );
    Ok(())
}

/// Arguments of `berth uninstall`.
#[derive(Debug, Args)]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The namespace of berth's own parts.
    #[arg(long, default_value = "berth")]
    namespace: String,
    /// How long everything may take to be gone, in seconds.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

/// Deletes what `berth manifests` prints, and waits until it is gone.
pub(crate) async fn uninstall(args: UninstallArgs) -> anyhow::Result<()> {
    let client =
        Client::try_from(args.cluster.config().await?).context("the API server's address")?;
    let timeout = Duration::from_secs(args.timeout);
    let gone = |object: &str| println!("{object} deleted");
    Ok(berth_cluster::uninstall::uninstall(&client, &args.namespace, timeout, gone).await?)
}

/// Arguments of `berth controller`.
#[derive(Debug, Args)]
pub(crate) struct ControllerArgs {
    /// Image of launcher pods.
    #[arg(long)]
    launcher_image: String,
    /// Where the API server's calls are listened for: webhooks and subresources.
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, CONTROLLER_PORT)))]
    listen: SocketAddr,
    /// The namespace of berth's own parts.
    #[arg(long, env = "POD_NAMESPACE", default_value = "berth")]
    namespace: String,
    /// This replica's name.
    #[arg(long, env = "POD_NAME")]
    identity: String,
}

/// How berth's parts reach the API server: as pods do, or by a kubeconfig.
async fn client(agent: &str) -> anyhow::Result<Client> {
    let mut config = kube::Config::infer()
        .await
        .context("neither in a pod nor with a kubeconfig")?;
    config.headers.push((
        http::header::USER_AGENT,
        http::HeaderValue::from_str(agent)?,
    ));
    Client::try_from(config).context("the API server's address")
}

/// Runs until a signal, or until another replica leads: who has lost the lease must not write any more, and starts anew.
pub(crate) async fn controller(args: ControllerArgs) -> anyhow::Result<()> {
    let client = client("berth-controller").await?;
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!(
            "the API server's calls cannot be listened for on {}",
            args.listen
        )
    })?;
    let (newest, link) = (Arc::new(Newest::default()), Arc::new(Link::default()));
    let certify = async || {
        certificates::ensure_service(&client, &args.namespace, &newest).await?;
        certificates::ensure_link(&client, &args.namespace, &link).await
    };
    certify().await.context("certificates")?;
    let renewal = async {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = certify().await {
                tracing::warn!(%error, "certificates, will be tried again");
            }
        }
    };
    let proxy = FrontProxy::new(client.clone());
    let guests = Arc::new(RemoteGuests {
        client: client.clone(),
        namespace: args.namespace.clone(),
        link: link.clone(),
    });
    let routes = webhook::router().merge(aggregated::router(proxy.clone(), client.clone(), guests));
    let serving = serve::serve(listener, newest.clone(), routes, stop.clone());
    let candidate = Candidate {
        namespace: args.namespace.clone(),
        lease: manifests::CONTROLLER.to_owned(),
        identity: args.identity,
    };
    let settings = Settings {
        launcher_image: args.launcher_image,
        runner: Runner::Cluster,
        // The settings of the installation name them.
        insecure_registries: Vec::new(),
    };
    let (sender, known) = watch::channel(None);
    let leading = async {
        let Some(held) = leader::elected(client.clone(), candidate, &stop).await else {
            return Ok(());
        };
        let lost = tokio::select! {
            lost = held.keep(&stop) => lost,
            () = berth_controllers::run(settings, known.clone(), client.clone(), stop.clone()) => false,
        };
        if lost {
            bail!("another replica leads");
        }
        Ok(())
    };
    tokio::select! {
        served = serving => served.context("serving the API server"),
        led = leading => led,
        () = renewal => Ok(()),
        () = proxy.follow() => Ok(()),
        () = settings::follow(client.clone(), &sender) => Ok(()),
        () = log::follow(known.clone(), |v| v.virt_controller) => Ok(()),
    }
}

/// Arguments of `berth node-agent`.
#[derive(Debug, Args)]
pub(crate) struct NodeAgentArgs {
    /// The name of this node.
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// What must survive a restart.
    #[arg(long, default_value = "/var/lib/berth")]
    state_dir: PathBuf,
    /// Where the controller's calls are listened for.
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, NODE_PORT)))]
    listen: SocketAddr,
    /// The namespace of berth's own parts.
    #[arg(long, env = "POD_NAMESPACE", default_value = "berth")]
    namespace: String,
}

/// Runs until a signal; virtual machines run on.
pub(crate) async fn node_agent(args: NodeAgentArgs) -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "berth node-agent needs root: it enters the namespaces of pods"
    );
    let client = client("berth-node").await?;
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let host = berth_network::host_dns();
    let config = NodeConfig {
        node_name: args.node_name,
        state_dir: absolute(&args.state_dir)?,
        run_dir: PathBuf::from("/run/berth"),
        // The cluster's own network; berth makes none here.
        network: NodeNetwork {
            bridge: String::new(),
            gateway: Ipv4Addr::UNSPECIFIED,
            prefix: 0,
            mtu: 0,
        },
        dns: host.servers,
        search: host.search,
        berth_binary: std::env::current_exe().context("where is the berth binary?")?,
        insecure_registries: Vec::new(),
        max_pods: berth_node::DEFAULT_MAX_PODS,
    };
    tracing::info!(node = config.node_name, "node agent");
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!(
            "the controller's calls cannot be listened for on {}",
            args.listen
        )
    })?;
    let (newest, authorities) = (
        Arc::new(Newest::default()),
        Arc::new(Authorities::default()),
    );
    let certify = async {
        let mut changes = std::pin::pin!(certificates::changes(&client, &args.namespace));
        loop {
            let certified =
                certificates::of_node(&client, &args.namespace, &newest, &authorities).await;
            let pause = match certified {
                Ok(()) => LOOK_OF_NODE,
                Err(error) => {
                    tracing::info!(%error, "no certificate yet: consoles of this node cannot be opened");
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = changes.next() => {}
            }
        }
    };
    let (sender, known) = watch::channel(None);
    let name = config.node_name.clone();
    let node = KubeletNode::new(config, client.clone());
    let routes = remote::router(node.guests()).layer(axum::middleware::from_fn_with_state(
        authorities.clone(),
        nodes::guard,
    ));
    let serving = serve::serve(listener, newest.clone(), routes, stop.clone());
    tokio::select! {
        served = serving => served.context("serving the controller"),
        () = node.run(stop) => Ok(()),
        () = certify => Ok(()),
        () = settings::follow(client.clone(), &sender) => Ok(()),
        () = log::follow(known, |v| v.of_node(&name)) => Ok(()),
    }
}

/// Arguments of `berth install-hold`.
#[derive(Debug, Args)]
pub(crate) struct InstallHoldArgs {
    /// The directory to copy it to.
    dir: PathBuf,
}

/// Copies the program that holds an image to where the containers of container disks find it: their images have none.
pub(crate) fn install_hold(args: &InstallHoldArgs) -> anyhow::Result<()> {
    let target = args.dir.join("berth-hold");
    std::fs::copy(HOLD, &target)
        .with_context(|| format!("cannot copy {HOLD} to {}", target.display()))?;
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", target.display()))
}
