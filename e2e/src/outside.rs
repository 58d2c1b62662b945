//! The world beyond a machine: another namespace on the far side of a link, which knows the machine's own address only,
//! so that what reaches it from a guest was translated on the way.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::mpsc;

use anyhow::Context as _;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Machine, run};

/// The machine's address on the outer link (RFC 5737, documentation).
pub const MACHINE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The outer world's.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// The namespace beyond; removed when dropped.
pub struct Outside {
    name: String,
}

impl Outside {
    /// Makes it and links it to the machine.
    pub fn beyond(machine: &Machine) -> anyhow::Result<Self> {
        let name = format!("{}-out", machine.name());
        let ip = |arguments: &[&str]| run(Command::new("ip").args(arguments), "")?.ok();
        ip(&["netns", "add", &name])?;
        let outside = Self { name };
        let (ns, inner) = (outside.name.as_str(), machine.name());
        ip(&[
            "-n", inner, "link", "add", "uplink", "type", "veth", "peer", "name", "world", "netns",
            ns,
        ])?;
        ip(&[
            "-n",
            inner,
            "addr",
            "add",
            &format!("{MACHINE}/24"),
            "dev",
            "uplink",
        ])?;
        ip(&["-n", inner, "link", "set", "uplink", "up"])?;
        ip(&[
            "-n",
            ns,
            "addr",
            "add",
            &format!("{OUTSIDE}/24"),
            "dev",
            "world",
        ])?;
        ip(&["-n", ns, "link", "set", "world", "up"])?;
        ip(&["-n", ns, "link", "set", "lo", "up"])?;
        Ok(outside)
    }

    /// Serves `body` over HTTP to one client on a free port; the receiver tells who asked.
    pub fn serve_once(&self, body: &str) -> anyhow::Result<(u16, mpsc::Receiver<IpAddr>)> {
        let (port_sender, port) = mpsc::channel();
        let (peer_sender, peer) = mpsc::channel();
        let namespace = File::open(format!("/run/netns/{}", self.name)).context("namespace")?;
        let body = body.to_owned();
        // A thread of its own: the namespace belongs to the thread, and it must not be given back to a pool.
        std::thread::spawn(move || -> anyhow::Result<()> {
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(LinkNameSpaceType::Network),
            )?;
            let listener = TcpListener::bind(SocketAddr::from((OUTSIDE, 0)))?;
            port_sender.send(listener.local_addr()?.port())?;
            let (mut stream, client) = listener.accept()?;
            let mut reader = BufReader::new(stream.try_clone()?);
            let mut line = String::new();
            while reader.read_line(&mut line)? > 2 {
                line.clear();
            }
            write!(
                stream,
                "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )?;
            peer_sender.send(client.ip())?;
            Ok(())
        });
        Ok((port.recv().context("the server did not start")?, peer))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = run(Command::new("ip").args(["netns", "delete", &self.name]), "");
    }
}
