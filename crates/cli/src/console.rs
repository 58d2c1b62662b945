//! `berth console`: the serial console of a virtual machine over the API server's WebSocket, as `virtctl console` does it.
//!
//! On a terminal the keyboard goes to the guest unchanged (raw mode) until `^]`. With input or output redirected it is a
//! plain byte pipe, so scripts can drive a guest; it ends when the guest's side closes.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, bail};
use clap::Args;
use futures::{SinkExt as _, StreamExt as _};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::client::ClusterArgs;
use crate::websocket::{Answer, Socket, connect};

/// `^]`, as telnet and virtctl have it.
const ESCAPE: u8 = 0x1d;

/// Arguments of `berth console`.
#[derive(Debug, Args)]
pub(crate) struct ConsoleArgs {
    /// The virtual machine instance: NAME, or without -n also NAME.NAMESPACE where no NAME.NAMESPACE is in the namespace.
    vmi: String,
    /// The namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Connects and copies bytes both ways until one side ends.
pub(crate) async fn run(args: ConsoleArgs) -> anyhow::Result<()> {
    let config = args.cluster.config().await?;
    let targets = targets(
        &args.vmi,
        args.namespace.as_deref(),
        &config.default_namespace,
    );
    let client = kube::Client::try_from(config).context("the kubeconfig cannot be used")?;
    let mut tried = Vec::new();
    let (socket, name, namespace) = loop {
        let Some((name, namespace)) = targets.get(tried.len()) else {
            // The whole name is what was asked for.
            bail!("{}", tried.swap_remove(0));
        };
        match connect(
            &client,
            namespace,
            ("virtualmachineinstances", name, "console"),
        )
        .await?
        {
            Answer::Connected(socket) => break (*socket, name, namespace),
            Answer::NotFound(said) => tried.push(said),
        }
    };
    let terminal = std::io::stdin().is_terminal();
    let _raw = if terminal {
        eprintln!("Successfully connected to {name} console. The escape sequence is ^]\r");
        Some(RawMode::enter()?)
    } else {
        None
    };
    copy(socket, terminal)
        .await
        .with_context(|| format!("console of {namespace}/{name}"))
}

/// Names and namespaces to try, in order. A name may have dots, a namespace has none.
fn targets(vmi: &str, namespace: Option<&str>, default: &str) -> Vec<(String, String)> {
    let mut targets = vec![(vmi.to_owned(), namespace.unwrap_or(default).to_owned())];
    if namespace.is_none()
        && let Some((name, namespace)) = vmi.rsplit_once('.')
    {
        targets.push((name.to_owned(), namespace.to_owned()));
    }
    targets
}

async fn copy(socket: Socket, terminal: bool) -> anyhow::Result<()> {
    let (mut to_guest, mut from_guest) = socket.split();
    let keyboard = async move {
        let mut stdin = tokio::io::stdin();
        let mut chunk = [0u8; 4096];
        loop {
            let count = stdin
                .read(&mut chunk)
                .await
                .context("reading standard input")?;
            let typed = &chunk[..count];
            let escape = if terminal {
                typed.iter().position(|byte| *byte == ESCAPE)
            } else {
                None
            };
            let typed = &typed[..escape.unwrap_or(count)];
            if !typed.is_empty() {
                to_guest
                    .send(Message::binary(typed.to_vec()))
                    .await
                    .context("sending")?;
            }
            if escape.is_some() {
                to_guest.close().await.ok();
                return anyhow::Ok(());
            }
            if count == 0 {
                // The end of a script's input is not the end of what it wants to see.
                std::future::pending::<()>().await;
            }
        }
    };
    let screen = async move {
        let mut stdout = tokio::io::stdout();
        while let Some(message) = from_guest.next().await {
            let bytes = match message {
                Ok(Message::Binary(bytes)) => bytes,
                Ok(Message::Text(text)) => text.into(),
                Ok(Message::Close(_)) | Err(WsError::ConnectionClosed | WsError::AlreadyClosed) => {
                    break;
                }
                Ok(_) => continue,
                Err(error) => return Err(error).context("the connection broke"),
            };
            stdout
                .write_all(&bytes)
                .await
                .context("writing to standard output")?;
            stdout.flush().await.context("writing to standard output")?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ended = keyboard => ended,
        ended = screen => ended,
    }
}

/// The terminal in raw mode, put back when dropped.
struct RawMode(Termios);

impl RawMode {
    fn enter() -> anyhow::Result<Self> {
        let before = tcgetattr(std::io::stdin()).context("terminal settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).context("terminal settings")?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
        let _ = std::io::stderr().write_all(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::targets;

    #[test]
    fn a_dot_is_part_of_the_name_before_it_names_a_namespace() {
        let tried = |vmi: &str, namespace: Option<&str>| -> Vec<String> {
            let all = targets(vmi, namespace, "default");
            all.iter()
                .map(|(name, ns)| format!("{ns}/{name}"))
                .collect()
        };
        assert_eq!(tried("web", None), ["default/web"]);
        assert_eq!(tried("web", Some("lab")), ["lab/web"]);
        assert_eq!(tried("a.b", Some("lab")), ["lab/a.b"]);
        assert_eq!(tried("a.b.lab", None), ["default/a.b.lab", "lab/a.b"]);
    }
}
