//! A real web server (busybox httpd, which gives ranges) on a node, where pods reach it.

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::{Target, run, wait_for};

static PORT: AtomicU16 = AtomicU16::new(8100);

/// The running server; killed when dropped.
pub struct Web {
    child: Child,
    /// Where pods find its files.
    pub url: String,
    _files: tempfile::TempDir,
    dir: std::path::PathBuf,
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
        let child = target
            .on_first_node(Path::new("busybox"))
            .args(["httpd", "-f", "-p", &port.to_string(), "-h"])
            .arg(files.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("busybox httpd")?;
        let dir = files.path().to_owned();
        std::fs::write(dir.join("ready"), b"yes")?;
        let web = Self {
            child,
            url: format!("http://{address}:{port}"),
            _files: files,
            dir,
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
        &self.dir
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
