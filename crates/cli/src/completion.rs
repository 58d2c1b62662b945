//! `berth completion`: what the shell needs to complete berth's commands.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Arguments of `berth completion`.
#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// The shell to write the script for.
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run<C: CommandFactory>(args: &CompletionArgs) -> anyhow::Result<()> {
    clap_complete::generate(
        args.shell,
        &mut C::command(),
        "berth",
        &mut std::io::stdout(),
    );
    Ok(())
}
