//! The `berth` command: one binary for the server, the pods' processes and the user's tools.
//!
//! This file only tells which command runs; each command lives in the module of its name. Errors are printed in one line,
//! the cause behind the complaint. Exit codes: 0 done, 1 failed, 2 the command line is wrong.

mod admission;
mod apiserver;
mod backup;
mod client;
mod cluster;
mod completion;
mod console;
mod crds;
mod create;
mod disk;
mod expose;
mod forward;
mod guest;
mod image;
mod importer;
mod kubeconfig;
mod lifecycle;
mod log;
mod output;
mod progress;
mod ssh;
mod up;
mod version;
mod websocket;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Virtual machines the Kubernetes way.
#[derive(Debug, Parser)]
#[command(name = "berth", version = version::LONG, disable_help_subcommand = true)]
struct Cli {
    /// What to log, e.g. `info`, `debug` or `berth_node=debug`.
    #[arg(
        long,
        global = true,
        env = "BERTH_LOG",
        default_value = "info",
        hide_default_value = true,
        value_parser = log::filter
    )]
    log: String,
    /// How to log.
    #[arg(long, global = true, value_enum, default_value_t = log::Format::Text, hide_default_value = true)]
    log_format: log::Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run berth on this machine: API server, controllers and node agent in one process.
    Up(up::UpArgs),
    /// Stop every virtual machine of a `berth up` that no longer runs, and undo what it set up on this machine.
    Down(up::DownArgs),
    /// Save every object of a running `berth up` to a file.
    Backup(backup::BackupArgs),
    /// Give a state directory the objects of a backup; berth must not run on it.
    Restore(backup::RestoreArgs),
    /// Open the serial console of a virtual machine.
    Console(console::ConsoleArgs),
    /// Lead ports of this machine to ports of a guest.
    PortForward(forward::ForwardArgs),
    /// Lead a port of this machine to the display of a guest.
    Vnc(forward::VncArgs),
    /// Start a virtual machine.
    Start(lifecycle::StartArgs),
    /// Stop a virtual machine: its guest is asked to shut down first.
    Stop(lifecycle::StopArgs),
    /// Stop a virtual machine and start it again.
    Restart(lifecycle::StopArgs),
    /// Ask a guest to restart.
    SoftReboot(lifecycle::InstanceArgs),
    /// Press the reset button of a guest.
    Reset(lifecycle::InstanceArgs),
    /// Stop a guest between two instructions.
    Pause(lifecycle::PauseArgs),
    /// Let a paused guest go on.
    Unpause(lifecycle::PauseArgs),
    /// Log in to a guest, by the ssh of this machine.
    Ssh(ssh::SshArgs),
    /// Copy files from or to a guest, by the scp of this machine.
    Scp(ssh::ScpArgs),
    /// Tell what the agent in a guest knows of it.
    #[command(name = "guestosinfo")]
    GuestOsInfo(guest::GuestArgs),
    /// List who is logged in to a guest.
    #[command(name = "userlist")]
    UserList(guest::GuestArgs),
    /// List the file systems that are mounted in a guest.
    #[command(name = "fslist")]
    FsList(guest::GuestArgs),
    /// Make a Service in front of a virtual machine.
    Expose(expose::ExposeArgs),
    /// Print the manifest of something new.
    Create(create::CreateArgs),
    /// Build, move, list and inspect images of disks.
    Image(image::ImageArgs),
    /// Import, copy and export disks; needs no server.
    Disk(disk::DiskArgs),
    /// Make a kubeconfig for another user than the admin.
    Kubeconfig(kubeconfig::KubeconfigArgs),
    /// Print the objects that install berth on a cluster.
    Manifests(cluster::ManifestsArgs),
    /// Look at a cluster and say what is missing for virtual machines to run there.
    Doctor(cluster::DoctorArgs),
    /// Remove berth from a cluster; refused while virtual machines exist.
    Uninstall(cluster::UninstallArgs),
    /// Print the CustomResourceDefinitions.
    Crds(crds::CrdsArgs),
    /// Print the version.
    Version(version::VersionArgs),
    /// Print the completion script of a shell.
    Completion(completion::CompletionArgs),
    /// The API server alone, without controllers and node.
    #[command(hide = true)]
    Apiserver(apiserver::ApiserverArgs),
    /// The controllers and webhooks of a cluster.
    #[command(hide = true)]
    Controller(cluster::ControllerArgs),
    /// The node agent of a cluster.
    #[command(hide = true)]
    NodeAgent(cluster::NodeAgentArgs),
    /// Copies the program that holds a container disk's image.
    #[command(hide = true)]
    InstallHold(cluster::InstallHoldArgs),
    /// The process of one virtual machine, inside its pod.
    #[command(hide = true)]
    Launcher(berth_launcher::Args),
    /// Fills the volume of a pod.
    #[command(hide = true)]
    Importer(importer::ImporterArgs),
    /// The first process of a pod: makes the sandbox and becomes the launcher.
    #[command(hide = true)]
    PodInit(berth_node::pod::init::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The sandbox is made by a process with one thread; nothing may start before it.
    let command = match cli.command {
        Command::PodInit(args) => return berth_node::pod::init::run(args),
        other => other,
    };
    log::start(&cli.log, cli.log_format);
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a TLS provider was installed already");
    }
    let result = match command {
        Command::Launcher(args) => berth_launcher::run(args),
        Command::PodInit(_) => unreachable!("handled above"),
        Command::Up(args) => block_on(2, up::up(args)),
        Command::Apiserver(args) => block_on(2, apiserver::run(args)),
        Command::Down(args) => block_on(1, up::down(args)),
        Command::Backup(args) => block_on(1, backup::backup(args)),
        Command::Restore(args) => backup::restore(&args),
        Command::Console(args) => block_on(1, console::run(args)),
        Command::PortForward(args) => block_on(1, forward::port_forward(args)),
        Command::Vnc(args) => block_on(1, forward::vnc(args)),
        Command::Start(args) => block_on(1, lifecycle::start(args)),
        Command::Stop(args) => block_on(1, lifecycle::stop(args, lifecycle::STOP)),
        Command::Restart(args) => block_on(1, lifecycle::stop(args, lifecycle::RESTART)),
        Command::SoftReboot(args) => block_on(1, lifecycle::instance(args, "softreboot")),
        Command::Reset(args) => block_on(1, lifecycle::instance(args, "reset")),
        Command::Ssh(args) => block_on(1, ssh::ssh(args)),
        Command::Scp(args) => block_on(1, ssh::scp(args)),
        Command::GuestOsInfo(args) => block_on(1, guest::info(args)),
        Command::UserList(args) => block_on(1, guest::users(args)),
        Command::FsList(args) => block_on(1, guest::file_systems(args)),
        Command::Expose(args) => block_on(1, expose::run(args)),
        Command::Create(args) => create::run(&args),
        Command::Pause(args) => block_on(1, lifecycle::pause(args, "pause")),
        Command::Unpause(args) => block_on(1, lifecycle::pause(args, "unpause")),
        Command::Image(args) => block_on(2, image::run(args)),
        Command::Disk(args) => block_on(2, disk::run(args)),
        Command::Kubeconfig(args) => kubeconfig::run(&args),
        Command::Manifests(args) => cluster::manifests(&args),
        Command::Doctor(args) => block_on(1, cluster::doctor(args)),
        Command::Uninstall(args) => block_on(1, cluster::uninstall(args)),
        Command::Controller(args) => block_on(2, cluster::controller(args)),
        Command::NodeAgent(args) => block_on(2, cluster::node_agent(args)),
        Command::InstallHold(args) => cluster::install_hold(&args),
        Command::Importer(args) => block_on(2, importer::run(args)),
        Command::Crds(args) => crds::run(&args),
        Command::Version(args) => block_on(1, version::run(args)),
        Command::Completion(args) => completion::run::<Cli>(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // `{:#}` is the whole chain in one line: the complaint, then its causes.
            eprintln!("error: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

/// Runs one command on a runtime with as few threads as it needs: each costs stack and an allocator arena.
fn block_on<F: Future<Output = anyhow::Result<()>>>(
    threads: usize,
    future: F,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(32)
        .enable_all()
        .build()?;
    let result = runtime.block_on(future);
    // A blocking read of the terminal must not hold up the end of the process.
    runtime.shutdown_background();
    result
}

/// `berth … | head` is not a failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
