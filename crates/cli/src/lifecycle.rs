//! `berth start`, `stop`, `restart`, `pause`, `unpause`, `soft-reboot` and `reset`: what is done to a machine without changing
//! its manifest. Names, arguments and answers are virtctl's.

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use crate::client::ClusterArgs;

/// Arguments of `berth start`.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// The virtual machine.
    vm: String,
    /// Let the guest stand still before its first instruction, until it is unpaused.
    #[arg(long)]
    paused: bool,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `berth stop` and `restart`.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// The virtual machine.
    vm: String,
    /// Cut the power: the guest gets no time to shut down, unless --grace-period gives it some.
    #[arg(long)]
    force: bool,
    /// Seconds that the guest gets to shut down, in place of those in its manifest.
    #[arg(long, value_name = "SECONDS")]
    grace_period: Option<u64>,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `berth soft-reboot` and `reset`.
#[derive(Debug, Args)]
pub(crate) struct InstanceArgs {
    /// The virtual machine instance; that of a virtual machine has its name.
    vmi: String,
    #[command(flatten)]
    namespace: Namespace,
}

/// Arguments of `berth pause` and `unpause`.
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// Of what kind it is.
    #[arg(value_enum)]
    kind: Kind,
    /// Its name.
    name: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Only say whether it would be done.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    namespace: Namespace,
}

/// Where a machine is.
#[derive(Debug, Args)]
pub(crate) struct Namespace {
    /// The namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl Namespace {
    /// A client and the namespace to use.
    pub(crate) async fn client(&self) -> anyhow::Result<(kube::Client, String)> {
        self.cluster.client(self.namespace.as_deref()).await
    }

    /// The arguments that another `berth` finds the same server with.
    pub(crate) fn cluster_arguments(&self) -> Vec<String> {
        self.cluster.arguments()
    }
}

/// What has a guest.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    /// A virtual machine.
    #[value(alias = "virtualmachine")]
    Vm,
    /// A virtual machine instance.
    #[value(alias = "virtualmachineinstance")]
    Vmi,
}

/// The verb and its option for the seconds of a guest.
pub(crate) type Ending = (&'static str, &'static str);
/// `berth stop`.
pub(crate) const STOP: Ending = ("stop", "gracePeriod");
/// `berth restart`.
pub(crate) const RESTART: Ending = ("restart", "gracePeriodSeconds");

/// Has a machine started.
pub(crate) async fn start(args: StartArgs) -> anyhow::Result<()> {
    let mut options = Map::new();
    if args.paused {
        options.insert("paused".to_owned(), true.into());
    }
    let of = ("virtualmachines", &*args.vm, "start");
    args.common.ask(of, options).await?;
    println!("VM {} was scheduled to start", args.vm);
    Ok(())
}

/// Has a machine stopped, or started again.
pub(crate) async fn stop(args: StopArgs, (verb, seconds): Ending) -> anyhow::Result<()> {
    let mut options = Map::new();
    if let Some(grace) = args.grace_period.or(args.force.then_some(0)) {
        options.insert(seconds.to_owned(), grace.into());
    }
    let of = ("virtualmachines", &*args.vm, verb);
    args.common.ask(of, options).await?;
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
    let of = ("virtualmachineinstances", &*args.name, verb);
    args.common.ask(of, Map::new()).await?;
    println!("{shown} {} was scheduled to {verb}", args.name);
    Ok(())
}

/// Has a guest do something.
pub(crate) async fn instance(args: InstanceArgs, verb: &str) -> anyhow::Result<()> {
    let of = ("virtualmachineinstances", &*args.vmi, verb);
    ask(&args.namespace, of, Map::new()).await?;
    println!("VMI {} was scheduled to {verb}", args.vmi);
    Ok(())
}

impl Common {
    async fn ask(
        &self,
        of: (&str, &str, &str),
        mut options: Map<String, Value>,
    ) -> anyhow::Result<()> {
        if self.dry_run {
            println!("Dry Run execution");
            options.insert("dryRun".to_owned(), json!(["All"]));
        }
        ask(&self.namespace, of, options).await
    }
}

async fn ask(
    namespace: &Namespace,
    of: (&str, &str, &str),
    options: Map<String, Value>,
) -> anyhow::Result<()> {
    let (client, namespace) = namespace.client().await?;
    let body = Value::Object(options).to_string().into_bytes();
    let request = crate::client::subresource(&namespace, of, http::Method::PUT, body)?;
    let answer = client.request_text(request).await;
    answer.map(drop).map_err(crate::client::said)
}
