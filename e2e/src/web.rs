//! A real web server (busybox httpd, which gives ranges) on a node, where pods reach it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::{Target, run, wait_for};

static PORT: AtomicU16 = AtomicU16::new(8100);

/// A server of the files of a directory; killed when dropped.
pub struct FileServer(Child);

impl FileServer {
    /// Runs `busybox`, which says where that is, at `address`.
    fn start(mut busybox: Command, dir: &Path, address: &str) -> anyhow::Result<Self> {
        busybox
            .args(["httpd", "-f", "-p", address, "-h"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(busybox.spawn().context("busybox httpd")?))
    }

    /// Serves on the loopback of this machine; returns when it answers.
    pub fn on_loopback(dir: &Path, port: u16) -> anyhow::Result<Self> {
        let address = format!("127.0.0.1:{port}");
        let server = Self::start(Command::new("busybox"), dir, &address)?;
        wait_for("the web server answers", Duration::from_secs(10), || {
            let connected = std::net::TcpStream::connect(&address);
            connected.map(drop).context("not yet")
        })?;
        Ok(server)
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One that pods reach.
pub struct Web {
    _server: FileServer,
    /// Where pods find its files.
    pub url: String,
    files: tempfile::TempDir,
}

impl Web {
    /// Starts it with no files yet.
    pub fn on(target: &dyn Target) -> anyhow::Result<Self> {
        let files = tempfile::Builder::new().prefix("be2e-web").tempdir()?;
        let path = "jsonpath={.status.addresses[?(@.type=='InternalIP')].address}";
        let address = target
            .kubectl(&["get", "node", target.first_node(), "-o", path])?
            .ok()?;
        let port = PORT.fetch_add(1, Ordering::Relaxed);
        std::fs::write(files.path().join("ready"), b"yes")?;
        let busybox = target.on_first_node(Path::new("busybox"));
        let web = Self {
            _server: FileServer::start(busybox, files.path(), &port.to_string())?,
            url: format!("http://{address}:{port}"),
            files,
        };
        wait_for("the web server answers", Duration::from_secs(20), || {
            let url = format!("http://127.0.0.1:{port}/ready");
            let mut curl = target.on_first_node(Path::new("curl"));
            let answer = run(curl.args(["-s", "-f", "-o", "/dev/null", &url]), "")?;
            ensure!(answer.code == 0, "{answer}");
            Ok(())
        })?;
        Ok(web)
    }

    /// The directory that it serves.
    pub fn dir(&self) -> &Path {
        self.files.path()
    }
}
