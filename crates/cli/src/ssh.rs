//! `berth ssh` and `berth scp`: the programs of this machine, whose connection is a `berth port-forward`. Arguments are
//! virtctl's.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use crate::forward;
use crate::lifecycle::Namespace;

/// What both have.
#[derive(Debug, Args)]
struct Common {
    /// The user in the guest.
    #[arg(short = 'l', long)]
    username: Option<String>,
    /// The file with the private key.
    #[arg(short, long)]
    identity_file: Option<PathBuf>,
    /// The guest's port.
    #[arg(short, long, default_value_t = 22)]
    port: u16,
    /// The file with the keys of known guests, in place of ssh's.
    #[arg(long)]
    known_hosts: Option<PathBuf>,
    /// More arguments for the program; may be given more than once.
    #[arg(short = 't', long = "local-ssh-opts", allow_hyphen_values = true)]
    options: Vec<String>,
    #[command(flatten)]
    namespace: Namespace,
}

/// Arguments of `berth ssh`.
#[derive(Debug, Args)]
pub(crate) struct SshArgs {
    /// The guest: `[USER@]vm/NAME[/NAMESPACE]` or `[USER@]vmi/NAME[/NAMESPACE]`.
    target: String,
    /// What to run in the guest in place of a shell.
    #[arg(short, long)]
    command: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `berth scp`.
#[derive(Debug, Args)]
pub(crate) struct ScpArgs {
    /// The file: a path here, or `[USER@]vm/NAME[/NAMESPACE]:PATH`.
    source: String,
    /// Where it is copied to; one of both is in a guest.
    destination: String,
    /// Copy directories with what is in them.
    #[arg(short, long)]
    recursive: bool,
    /// Keep times and modes.
    #[arg(long)]
    preserve: bool,
    #[command(flatten)]
    common: Common,
}

/// A guest to log in to.
#[derive(Debug, PartialEq, Eq)]
struct Guest<'a> {
    user: Option<&'a str>,
    /// `vm` or `vmi`.
    kind: &'a str,
    name: &'a str,
    namespace: Option<&'a str>,
}

/// `[USER@]KIND/NAME[/NAMESPACE]`.
fn guest(text: &str) -> anyhow::Result<Guest<'_>> {
    let (user, target) = match text.rsplit_once('@') {
        Some((user, target)) => (Some(user), target),
        None => (None, text),
    };
    let (_, name, namespace) = forward::target(target)?;
    ensure!(user != Some(""), "{text:?} has no user in front of the @");
    let kind = if target.starts_with("vmi/") || target.starts_with("virtualmachineinstance/") {
        "vmi"
    } else {
        "vm"
    };
    Ok(Guest {
        user,
        kind,
        name,
        namespace,
    })
}

/// A path in a guest, if it is one: a guest, a colon, a path.
fn remote(text: &str) -> anyhow::Result<Option<(Guest<'_>, &str)>> {
    let Some((target, path)) = text.split_once(':') else {
        return Ok(None);
    };
    let kinds = ["vm/", "vmi/", "virtualmachine/", "virtualmachineinstance/"];
    let machine = target.rsplit_once('@').map_or(target, |(_, rest)| rest);
    if !kinds.iter().any(|kind| machine.starts_with(kind)) {
        return Ok(None);
    }
    Ok(Some((guest(target)?, path)))
}

/// Logs in.
pub(crate) async fn ssh(args: SshArgs) -> anyhow::Result<()> {
    let to = guest(&args.target)?;
    let mut command = Command::new("ssh");
    let host = args.common.prepare(&mut command, &to).await?;
    command.arg(host);
    command.args(&args.command);
    become_it(command)
}

/// Copies.
pub(crate) async fn scp(args: ScpArgs) -> anyhow::Result<()> {
    let mut command = Command::new("scp");
    if args.recursive {
        command.arg("-r");
    }
    if args.preserve {
        command.arg("-p");
    }
    match (remote(&args.source)?, remote(&args.destination)?) {
        (Some((from, path)), None) => {
            let host = args.common.prepare(&mut command, &from).await?;
            command.arg(format!("{host}:{path}")).arg(&args.destination);
        }
        (None, Some((to, path))) => {
            let host = args.common.prepare(&mut command, &to).await?;
            command.arg(&args.source).arg(format!("{host}:{path}"));
        }
        _ => bail!(
            "one of {:?} and {:?} is to be in a guest: vm/NAME:PATH",
            args.source,
            args.destination
        ),
    }
    become_it(command)
}

/// The program takes this process's place, with its terminal, signals and exit status.
fn become_it(mut command: Command) -> anyhow::Result<()> {
    let error = command.exec();
    let program = command.get_program().to_string_lossy().into_owned();
    Err(error).with_context(|| format!("cannot run {program}, which has to be on this machine"))
}

impl Common {
    /// Adds how the guest is reached; gives what it is called then.
    async fn prepare(&self, command: &mut Command, to: &Guest<'_>) -> anyhow::Result<String> {
        let (_, namespace) = self.namespace.client().await?;
        let namespace = to.namespace.unwrap_or(&namespace);
        let own = std::env::current_exe().context("this program's own path")?;
        let mut way = vec![own.display().to_string()];
        way.extend(["port-forward", "--stdio"].map(str::to_owned));
        way.extend(self.namespace.cluster_arguments());
        way.push(format!("{}/{}/{namespace}", to.kind, to.name));
        way.push(self.port.to_string());
        let way: Vec<String> = way.iter().map(|word| quoted(word)).collect();
        command.args(["-o", &format!("ProxyCommand={}", way.join(" "))]);
        if let Some(file) = &self.known_hosts {
            command.args(["-o", &format!("UserKnownHostsFile={}", file.display())]);
        }
        if let Some(file) = &self.identity_file {
            command.arg("-i").arg(file);
        }
        command.args(&self.options);
        let host = format!("{}.{}.{namespace}", to.kind, to.name);
        let user = to.user.or(self.username.as_deref());
        Ok(user.map_or(host.clone(), |user| format!("{user}@{host}")))
    }
}

/// A word for the shell that runs the proxy command; ssh takes percent signs for its own.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('%', "%%").replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_meant() {
        let root = guest("root@vmi/web/lab").unwrap();
        assert_eq!(
            (root.user, root.kind, root.name, root.namespace),
            (Some("root"), "vmi", "web", Some("lab"))
        );
        assert_eq!(guest("vm/web").unwrap().user, None);
        for wrong in ["web", "@vm/web", "root@pod/web", "vm/"] {
            assert!(guest(wrong).is_err(), "{wrong}");
        }
        let (to, path) = remote("root@vm/web:/etc/fstab").unwrap().unwrap();
        assert_eq!((to.name, path), ("web", "/etc/fstab"));
        assert_eq!(remote("./a:b").unwrap(), None);
        assert_eq!(remote("/tmp/file").unwrap(), None);
        assert_eq!(quoted("a b%'c"), "'a b%%'\\''c'");
    }
}
