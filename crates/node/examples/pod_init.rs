//! Stands for the `berth` binary in the tests of the pod runtime: makes sandboxes as it does, and learns nothing of QEMU.

use std::process::ExitCode;

use clap::Parser;

#[derive(Debug, Parser)]
enum Command {
    /// As `berth pod-init`.
    PodInit(berth_node::pod::init::Args),
    /// As `berth launcher --warm-capabilities`, but quick.
    Launcher {
        #[arg(long)]
        run_dir: std::path::PathBuf,
        #[arg(long)]
        warm_capabilities: std::path::PathBuf,
    },
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::PodInit(args) => berth_node::pod::init::run(args),
        Command::Launcher {
            run_dir,
            warm_capabilities,
        } => {
            let known = warm_capabilities.join("known.xml");
            let written = run_dir.is_dir() && std::fs::write(known, "<qemuCaps/>").is_ok();
            if written {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
