//! An API server alone, without nodes and controllers: berth's, or the real one (etcd and kube-apiserver, built by
//! `scripts/reference.sh`). Whoever runs the same requests against both learns whether they behave the same.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use berth_apiserver::auth::kubeconfig;
use berth_apiserver::auth::pki::Pki;

use crate::{Outcome, repository, run};

/// How long the certificates of the real server are good for.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// berth's embedded one, with berth's own definitions and admission.
    Berth,
    /// kube-apiserver on etcd.
    Kubernetes,
}

impl Side {
    /// How tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Berth => "berth",
            Self::Kubernetes => "kube-apiserver",
        }
    }
}

/// Where the programs of the real Kubernetes lie.
pub fn reference_program(name: &str) -> PathBuf {
    repository().join(".cache/reference/bin").join(name)
}

/// A running server; ended when dropped.
pub struct Server {
    side: Side,
    /// The processes, in the order in which they were started.
    children: Vec<Child>,
    files: tempfile::TempDir,
    kubeconfig: PathBuf,
    url: String,
    ready_after: Duration,
}

impl Server {
    /// Starts one on free ports of loopback and waits until it is ready.
    pub fn start(side: Side) -> anyhow::Result<Self> {
        let files = tempfile::Builder::new().prefix("be2e-api").tempdir()?;
        let mut server = Self {
            side,
            children: Vec::new(),
            kubeconfig: files.path().join("admin.kubeconfig"),
            url: String::new(),
            files,
            ready_after: Duration::ZERO,
        };
        match side {
            Side::Berth => server.start_berth()?,
            Side::Kubernetes => server.start_kubernetes()?,
        }
        Ok(server)
    }

    /// Which one this is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// A kubeconfig of a member of `system:masters`.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The processes that serve: one, or etcd and kube-apiserver.
    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    /// From the start of the first process to the first `ok` of `/readyz`.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// kubectl on this server; with a discovery cache of its own, since ports come again.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> anyhow::Result<Outcome> {
        let newest = reference_program("kubectl");
        let program = if newest.exists() {
            newest
        } else {
            PathBuf::from("kubectl")
        };
        let mut command = Command::new(program);
        command
            .arg("--cache-dir")
            .arg(self.files.path().join("kube-cache"))
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("NO_COLOR", "1");
        run(&mut command, input)
    }

    fn start_berth(&mut self) -> anyhow::Result<()> {
        let state = self.files.path().join("state");
        let port = free_port()?;
        let mut command = Command::new(crate::berth_binary());
        command
            .args(["apiserver", "--no-controllers"])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .arg("--state-dir")
            .arg(&state);
        self.kubeconfig = state.join("admin.kubeconfig");
        self.url = format!("https://127.0.0.1:{port}");
        let begin = Instant::now();
        self.spawn("berth", &mut command)?;
        self.wait_ready(begin, port)
    }

    fn start_kubernetes(&mut self) -> anyhow::Result<()> {
        let (client, peer, port) = (free_port()?, free_port()?, free_port()?);
        let dir = self.files.path().to_owned();
        let pki = Pki::ensure(&dir.join("pki"), &[], LIFETIME).context("certificates")?;
        self.url = format!("https://127.0.0.1:{port}");
        fs::write(
            &self.kubeconfig,
            kubeconfig::render(&self.url, &pki.ca, "admin", &pki.admin),
        )?;
        // Tokens are signed with a key of their own: the server reads a public key only from its own kind of PEM.
        let tokens = rcgen::KeyPair::generate().context("key of the service accounts")?;
        fs::write(dir.join("pki/tokens.key"), tokens.serialize_pem())?;
        fs::write(dir.join("pki/tokens.pub"), tokens.public_key_pem())?;
        let pki = |name: &str| dir.join("pki").join(name).to_string_lossy().into_owned();

        let begin = Instant::now();
        let (client, peer) = (
            format!("http://127.0.0.1:{client}"),
            format!("http://127.0.0.1:{peer}"),
        );
        let mut etcd = Command::new(reference_program("etcd"));
        etcd.arg("--data-dir")
            .arg(dir.join("etcd"))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(["--log-level", "error"]);
        self.spawn("etcd", &mut etcd)?;
        let mut api = Command::new(reference_program("kube-apiserver"));
        api.args(["--etcd-servers", &client])
            .args(["--bind-address", "127.0.0.1"])
            .args(["--secure-port", &port.to_string()])
            .args(["--endpoint-reconciler-type", "none"])
            .args(["--service-cluster-ip-range", "10.0.0.0/24"])
            .args(["--client-ca-file", &pki("ca.crt")])
            .args(["--tls-cert-file", &pki("server.crt")])
            .args(["--tls-private-key-file", &pki("server.key")])
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            .args(["--service-account-key-file", &pki("tokens.pub")])
            .args(["--service-account-signing-key-file", &pki("tokens.key")])
            .args(["--authorization-mode", "RBAC"])
            // Nothing makes the service account that it would ask of every pod: controllers do not run here.
            .args(["--disable-admission-plugins", "ServiceAccount"]);
        self.spawn("kube-apiserver", &mut api)?;
        self.wait_ready(begin, port)
    }

    fn spawn(&mut self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        let log = fs::File::create(self.files.path().join(format!("{name}.log")))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        self.children.push(child);
        Ok(())
    }

    /// `/readyz` needs no credentials; the certificate is not what is tested here.
    fn wait_ready(&mut self, begin: Instant, port: u16) -> anyhow::Result<()> {
        loop {
            for child in &mut self.children {
                if let Some(status) = child.try_wait()? {
                    bail!("{} ended with {status}:\n{}", self.side.name(), self.logs());
                }
            }
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                let answer = run(
                    Command::new("curl").args(["-sk", &format!("{}/readyz", self.url)]),
                    "",
                )?;
                if answer.stdout == "ok" {
                    self.ready_after = begin.elapsed();
                    return Ok(());
                }
            }
            ensure!(
                begin.elapsed() < Duration::from_secs(120),
                "{} is not ready within 120 s:\n{}",
                self.side.name(),
                self.logs()
            );
            // Short against what is measured; it decides nothing.
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The end of what its processes logged.
    pub fn logs(&self) -> String {
        let mut out = String::new();
        for name in ["berth", "etcd", "kube-apiserver"] {
            let Ok(text) = fs::read_to_string(self.files.path().join(format!("{name}.log"))) else {
                continue;
            };
            let lines: Vec<_> = text.lines().collect();
            out += &format!(
                "log of {name}:\n{}\n",
                lines[lines.len().saturating_sub(30)..].join("\n")
            );
        }
        out
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The one that was started last depends on the others.
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port that nobody has right now.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
