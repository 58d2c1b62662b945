//! `berth port-forward` and `berth vnc`: ports of this machine that lead to a guest, by way of the API server. Arguments are
//! virtctl's.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use futures::{SinkExt as _, StreamExt as _};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

use crate::client::ClusterArgs;
use crate::lifecycle::Namespace;
use crate::websocket::{Answer, Socket, connect};

/// Arguments of `berth port-forward`.
#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    /// What has the guest: `vm/NAME` or `vmi/NAME`, with `/NAMESPACE` behind where it is not in the current one.
    target: String,
    /// Ports: `LOCAL:REMOTE`, or one number for both.
    #[arg(required = true)]
    ports: Vec<String>,
    /// The address of this machine to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// Carry standard input and output instead of listening; with one port.
    #[arg(long)]
    stdio: bool,
    /// The namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Arguments of `berth vnc`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct VncArgs {
    #[command(subcommand)]
    command: Option<VncCommand>,
    #[command(flatten)]
    proxy: ProxyArgs,
}

#[derive(Debug, Subcommand)]
enum VncCommand {
    /// Take a picture of the display, a PNG.
    Screenshot(ScreenshotArgs),
}

/// Arguments of `berth vnc screenshot`.
#[derive(Debug, Args)]
struct ScreenshotArgs {
    /// The virtual machine instance.
    vmi: String,
    /// The file for the picture; `-` for standard output.
    #[arg(short, long)]
    file: PathBuf,
    #[command(flatten)]
    namespace: Namespace,
}

/// Arguments of `berth vnc NAME`.
#[derive(Debug, Args)]
struct ProxyArgs {
    /// The virtual machine instance.
    #[arg(required = true, default_value = "", hide_default_value = true)]
    vmi: String,
    /// The address of this machine to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// The port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Only listen, which is all that berth does: point a viewer at the port that is printed.
    #[arg(long)]
    proxy_only: bool,
    #[command(flatten)]
    namespace: Namespace,
}

/// A way to a guest.
#[derive(Debug, Clone)]
struct Way {
    namespace: String,
    resource: &'static str,
    name: String,
    subresource: String,
}

impl Way {
    async fn open(&self, client: &kube::Client) -> anyhow::Result<Socket> {
        let of = (self.resource, &*self.name, &*self.subresource);
        match connect(client, &self.namespace, of).await? {
            Answer::Connected(socket) => Ok(*socket),
            Answer::NotFound(said) => bail!("{said}"),
        }
    }
}

/// `vm/NAME` or `vmi/NAME`, and a namespace behind it.
pub(crate) fn target(text: &str) -> anyhow::Result<(&'static str, &str, Option<&str>)> {
    let parts: Vec<&str> = text.split('/').collect();
    let (kind, name, namespace) = match parts[..] {
        [kind, name] => (kind, name, None),
        [kind, name, namespace] => (kind, name, Some(namespace)),
        _ => bail!("{text:?} is none of vm/NAME, vmi/NAME, vm/NAME/NAMESPACE"),
    };
    let resource = match kind {
        "vm" | "virtualmachine" => "virtualmachines",
        "vmi" | "virtualmachineinstance" => "virtualmachineinstances",
        _ => bail!("{text:?}: {kind:?} is neither vm nor vmi"),
    };
    ensure!(!name.is_empty(), "{text:?} has no name");
    Ok((resource, name, namespace))
}

/// `LOCAL:REMOTE`, or one number for both; in front of it `tcp/` may stand.
fn ports(text: &str) -> anyhow::Result<(u16, u16)> {
    let numbers = text.strip_prefix("tcp/").unwrap_or(text);
    let (local, remote) = numbers.split_once(':').unwrap_or((numbers, numbers));
    let number = |part: &str| {
        part.parse::<u16>()
            .with_context(|| format!("port {text:?}: {part:?} is no number of a port"))
    };
    let (local, remote) = (number(local)?, number(remote)?);
    ensure!(remote > 0, "port {text:?}: the guest has no port 0");
    Ok((local, remote))
}

/// Listens, and carries each connection to the guest, until it is ended.
pub(crate) async fn port_forward(args: ForwardArgs) -> anyhow::Result<()> {
    let (resource, name, namespace) = target(&args.target)?;
    let asked = args
        .ports
        .iter()
        .map(|text| ports(text))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let config = args.cluster.config().await?;
    let namespace = args
        .namespace
        .as_deref()
        .or(namespace)
        .unwrap_or(&config.default_namespace)
        .to_owned();
    let client = kube::Client::try_from(config).context("the kubeconfig cannot be used")?;
    let way = |remote: u16| Way {
        namespace: namespace.clone(),
        resource,
        name: name.to_owned(),
        subresource: format!("portforward/{remote}"),
    };
    if args.stdio {
        let [(_, remote)] = asked[..] else {
            bail!("--stdio takes one port");
        };
        let socket = way(remote).open(&client).await?;
        return carry(
            socket,
            tokio::io::join(tokio::io::stdin(), tokio::io::stdout()),
        )
        .await;
    }
    let mut listening = Vec::new();
    for (local, remote) in asked {
        let listener = TcpListener::bind((args.address, local))
            .await
            .with_context(|| format!("cannot listen on {}:{local}", args.address))?;
        println!(
            "Forwarding from {} -> {remote}",
            listener.local_addr().context("listening address")?
        );
        listening.push(serve(client.clone(), listener, way(remote)));
    }
    futures::future::try_join_all(listening).await.map(drop)
}

/// Listens for viewers, until it is ended.
pub(crate) async fn vnc(args: VncArgs) -> anyhow::Result<()> {
    if let Some(VncCommand::Screenshot(args)) = args.command {
        return screenshot(args).await;
    }
    let args = args.proxy;
    let (client, namespace) = args.namespace.client().await?;
    let way = Way {
        namespace,
        resource: "virtualmachineinstances",
        name: args.vmi,
        subresource: "vnc".to_owned(),
    };
    // A machine that has no display is told before a viewer is started.
    drop(way.open(&client).await?);
    let listener = TcpListener::bind((args.address, args.port))
        .await
        .with_context(|| format!("cannot listen on {}:{}", args.address, args.port))?;
    let address = listener.local_addr().context("listening address")?;
    // For programs, as virtctl prints it.
    println!("{{\"port\":{}}}", address.port());
    if !args.proxy_only {
        eprintln!("point a VNC viewer at {address}; ^C ends it");
    }
    serve(client, listener, way).await
}

/// Takes a picture.
async fn screenshot(args: ScreenshotArgs) -> anyhow::Result<()> {
    let (client, namespace) = args.namespace.client().await?;
    let of = ("virtualmachineinstances", &*args.vmi, "vnc/screenshot");
    let request = crate::client::subresource(&namespace, of, http::Method::GET, Vec::new())?;
    let (parts, body) = request.into_parts();
    let request = http::Request::from_parts(parts, kube::client::Body::from(body));
    let response = client.send(request).await.map_err(crate::client::said)?;
    let refused = !response.status().is_success();
    let bytes = response
        .into_body()
        .collect()
        .await
        .context("the picture")?;
    let bytes = bytes.to_bytes();
    if refused {
        let said: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        bail!(
            "{}",
            said["message"].as_str().unwrap_or("the API server refuses")
        );
    }
    if args.file.as_os_str() == "-" {
        return std::io::stdout()
            .write_all(&bytes)
            .context("standard output");
    }
    std::fs::write(&args.file, &bytes)
        .with_context(|| format!("cannot write {}", args.file.display()))
}

/// A guest that does not answer ends one connection, not the others.
async fn serve(client: kube::Client, listener: TcpListener, way: Way) -> anyhow::Result<()> {
    loop {
        let (stream, peer) = listener.accept().await.context("listening")?;
        let (client, way) = (client.clone(), way.clone());
        tokio::spawn(async move {
            let carried = async {
                let socket = way.open(&client).await?;
                carry(socket, stream).await
            };
            if let Err(error) = carried.await {
                eprintln!("connection of {peer}: {error:#}");
            }
        });
    }
}

/// Carries bytes both ways until either side ends.
async fn carry(socket: Socket, stream: impl AsyncRead + AsyncWrite) -> anyhow::Result<()> {
    let (mut to_guest, mut from_guest) = socket.split();
    let (mut from_here, mut to_here) = tokio::io::split(stream);
    let out = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = from_here.read(&mut buffer).await.context("reading")?;
            if count == 0 {
                // The end of what is said here is not the end of what is heard.
                return std::future::pending::<anyhow::Result<()>>().await;
            }
            to_guest
                .send(Message::binary(buffer[..count].to_vec()))
                .await
                .context("sending")?;
        }
    };
    let back = async {
        while let Some(message) = from_guest.next().await {
            match message {
                Ok(Message::Binary(bytes)) => to_here.write_all(&bytes).await.context("writing")?,
                Ok(Message::Text(text)) => {
                    to_here
                        .write_all(text.as_bytes())
                        .await
                        .context("writing")?;
                }
                Ok(Message::Close(_)) | Err(_) => break,
                Ok(_) => {}
            }
            to_here.flush().await.context("writing")?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ended = out => ended,
        ended = back => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_ports() {
        assert_eq!(target("vm/web").unwrap(), ("virtualmachines", "web", None));
        assert_eq!(
            target("vmi/web/lab").unwrap(),
            ("virtualmachineinstances", "web", Some("lab"))
        );
        for wrong in ["web", "pod/web", "vm/", "vm/a/b/c"] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
        assert_eq!(ports("8080:80").unwrap(), (8080, 80));
        assert_eq!(ports("tcp/22").unwrap(), (22, 22));
        assert_eq!(ports("0:80").unwrap(), (0, 80));
        for wrong in ["", "a", "80:", "80:0", "70000", "udp/53"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }
}
