//! A real container registry (Debian's `docker-registry`) on a node's loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::{Target, run, wait_for};

/// Where it listens, as image references name it.
pub const REGISTRY: &str = "127.0.0.1:5000";

/// The running registry; killed when dropped.
pub struct Registry {
    child: Child,
    files: tempfile::TempDir,
}

impl Registry {
    /// The file of the largest blob it holds.
    pub fn largest_blob(&self) -> anyhow::Result<PathBuf> {
        let blobs = self
            .files
            .path()
            .join("data/docker/registry/v2/blobs/sha256");
        let mut found = Vec::new();
        for prefix in fs::read_dir(blobs)?.flatten() {
            for blob in fs::read_dir(prefix.path())?.flatten() {
                let data = blob.path().join("data");
                found.push((fs::metadata(&data).map_or(0, |m| m.len()), data));
            }
        }
        found
            .into_iter()
            .max()
            .map(|(_, data)| data)
            .context("the registry holds no blob")
    }

    /// Starts it; with `credentials` (user, password) it refuses everyone else.
    pub fn on(target: &dyn Target, credentials: Option<(&str, &str)>) -> anyhow::Result<Self> {
        let files = tempfile::Builder::new().prefix("be2e-registry").tempdir()?;
        let path = |name: &str| files.path().join(name);
        let mut config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: 0.0.0.0:5000\n",
            path("data").display()
        );
        if let Some((user, password)) = credentials {
            let htpasswd =
                run(Command::new("htpasswd").args(["-Bbn", user, password]), "")?.ok()?;
            fs::write(path("htpasswd"), htpasswd)?;
            config += &format!(
                "auth:\n  htpasswd: {{realm: test, path: {}}}\n",
                path("htpasswd").display()
            );
        }
        fs::write(path("config.yml"), config)?;
        let child = target
            .on_first_node(Path::new("docker-registry"))
            .arg("serve")
            .arg(path("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("docker-registry")?;
        let registry = Self { child, files };
        wait_for("the registry answers", Duration::from_secs(20), || {
            let mut curl = target.on_first_node(Path::new("curl"));
            let answer = run(
                curl.args(["-s", "-o", "/dev/null", "http://127.0.0.1:5000/v2/"]),
                "",
            )?;
            ensure!(answer.code == 0, "{answer}");
            Ok(())
        })?;
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
