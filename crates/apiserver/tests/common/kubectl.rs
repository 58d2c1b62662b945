//! kubectl, run as users run it.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{SOON, Server};

/// The kubectls of this machine: the installed one, and a newer one that `BERTH_KUBECTL` names or the reference build left.
pub(crate) async fn programs() -> Vec<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/reference/bin/kubectl");
    let named = std::env::var_os("BERTH_KUBECTL").map(PathBuf::from);
    let mut found = Vec::new();
    for program in [Some("kubectl".into()), Some(named.unwrap_or(built))]
        .into_iter()
        .flatten()
    {
        let version = Command::new(&program)
            .args(["version", "--client"])
            .output()
            .await;
        if version.is_ok_and(|v| v.status.success()) {
            found.push(program);
        }
    }
    found
}

/// One kubectl and the server that it talks to.
pub(crate) struct Kubectl {
    program: PathBuf,
    pub(crate) server: Server,
    kubeconfig: PathBuf,
    _stop: DropGuard,
}

impl Kubectl {
    pub(crate) async fn start(test: &str) -> Option<Self> {
        let found = programs().await.into_iter().next();
        if found.is_none() {
            berth_testing::skip(test, "no kubectl on this machine");
        }
        Some(Self::of(found?).await)
    }

    /// A server of its own for one kubectl.
    pub(crate) async fn of(program: PathBuf) -> Self {
        let server = Server::start().await;
        let stop = CancellationToken::new();
        let (_, kubeconfig) = server.serve(axum::Router::new(), &stop).await;
        Self {
            program,
            server,
            kubeconfig,
            _stop: stop.drop_guard(),
        }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.server.dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    pub(crate) async fn run(&self, args: &[&str], input: &str) -> Output {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        tokio::time::timeout(2 * SOON, child.wait_with_output())
            .await
            .expect("kubectl ends")
            .unwrap()
    }

    /// Output of a command that must succeed.
    pub(crate) async fn ok(&self, args: &[&str]) -> String {
        self.ok_with(args, "").await
    }

    pub(crate) async fn ok_with(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input).await;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "kubectl {args:?}: {out}{err}");
        out.into_owned()
    }

    /// What kubectl says when it fails, as it must.
    pub(crate) async fn fails(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input).await;
        assert!(!output.status.success(), "kubectl {args:?} should fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}
