//! A machine that runs `berth up`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::{Census, Outcome, Target, run, wait_for};

/// The small guest as a container disk.
pub const IMAGE: &str = "berth/small-guest:latest";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// How a machine differs from the ordinary one.
#[derive(Debug, Clone, Default)]
pub struct MachineOptions {
    /// More arguments for `berth up`.
    pub arguments: Vec<String>,
    /// Where the state lies; a fresh temporary directory if unset.
    pub state: Option<PathBuf>,
}

/// A network namespace with a `berth up` in it.
pub struct Machine {
    name: String,
    berth: Mutex<Option<Child>>,
    options: MachineOptions,
    state: PathBuf,
    run_dir: PathBuf,
    /// Uids of the pods that were seen.
    pods: Mutex<BTreeSet<String>>,
    _temporary: tempfile::TempDir,
}

impl Machine {
    /// Makes the machine and starts `berth up` on it; returns when the API server is ready.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(MachineOptions::default())
    }

    /// The same, with options.
    pub fn start_with(options: MachineOptions) -> anyhow::Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("berth-e2e-{}-{number}", std::process::id());
        let temporary = tempfile::Builder::new()
            .prefix("be2e")
            .tempdir()
            .context("temporary directory")?;
        // The state directory is root's, as it is on a real machine; the pods' users get in only where berth lets them.
        let state = options
            .state
            .clone()
            .unwrap_or_else(|| temporary.path().join("state"));
        let run_dir = temporary.path().join("run");
        run(Command::new("ip").args(["netns", "add", &name]), "")?.ok()?;
        let machine = Self {
            name,
            berth: Mutex::default(),
            options,
            state,
            run_dir,
            pods: Mutex::default(),
            _temporary: temporary,
        };
        machine.exec("ip", &["link", "set", "lo", "up"])?.ok()?;
        machine.up()?;
        Ok(machine)
    }

    /// Starts `berth up` (again) and waits until it is ready.
    pub fn up(&self) -> anyhow::Result<()> {
        ensure!(self.child().is_none(), "berth up already runs");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .context("log file")?;
        let mut command = self.inside(&crate::berth_binary());
        command
            .arg("up")
            .args(["--node-name", "machine"])
            .arg("--state-dir")
            .arg(&self.state)
            .arg("--run-dir")
            .arg(&self.run_dir)
            .args(&self.options.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("log file")?)
            .stderr(log);
        *self.child() = Some(command.spawn().context("berth up")?);
        wait_for("berth up is ready", Duration::from_secs(60), || {
            let ended = self
                .child()
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                bail!("berth up ended with {status}:\n{}", self.log_tail());
            }
            let ready = self.kubectl(&["get", "--raw", "/readyz"])?.ok()?;
            ensure!(ready.trim() == "ok", "readyz says {ready}");
            self.kubectl(&["get", "node", "machine", "-o", "jsonpath={.metadata.name}"])?
                .ok()
                .map(drop)
        })
        .with_context(|| self.log_tail())
    }

    /// The name of the machine's network namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process of `berth up`, while it runs.
    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.berth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process id of `berth up`.
    pub fn berth_pid(&self) -> u32 {
        self.child().as_ref().map_or(0, Child::id)
    }

    /// `kill -9` of `berth up`.
    pub fn kill_berth(&self) -> anyhow::Result<()> {
        let mut child = self.child().take().context("berth up does not run")?;
        child.kill().context("kill -9")?;
        child.wait().context("wait for berth up")?;
        Ok(())
    }

    /// Where this machine keeps its state.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What `berth up` logs.
    pub fn log_path(&self) -> PathBuf {
        self._temporary.path().join("berth.log")
    }

    /// A command that runs in the machine's network. `nsenter` and not `ip netns exec`: that would give it a mount
    /// namespace of its own, which dies with it.
    pub fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg("--")
            .arg(program);
        command
            .env("KUBECONFIG", self.state.join("admin.kubeconfig"))
            .env("NO_COLOR", "1");
        // Each machine has a cache of its own: kubectl keeps discovery by host and port, which all machines share.
        command.env("KUBECACHEDIR", self._temporary.path().join("kube-cache"));
        command
    }

    /// berth's own command.
    pub fn berth(&self, arguments: &[&str]) -> anyhow::Result<Outcome> {
        run(self.inside(&crate::berth_binary()).args(arguments), "")
    }

    /// Builds a container disk in the machine's image store.
    pub fn build_image(&self, tag: &str, disk: &Path) -> anyhow::Result<()> {
        let root = self.state.join("images");
        let (root, disk) = (root.to_string_lossy(), disk.to_string_lossy());
        self.berth(&["image", "build", "--root", &root, "-t", tag, &disk])?
            .ok()
            .map(drop)
    }

    /// What the machine holds now.
    pub fn census(&self) -> anyhow::Result<Census> {
        let links = self.exec("ip", &["-o", "link"])?.ok()?;
        // "7: bp0a1b@if2: <…" and "bp0a1b" are one link.
        let links = links
            .lines()
            .filter_map(|line| line.split(": ").nth(1))
            .map(|name| name.split('@').next().unwrap_or(name).to_owned())
            .collect::<BTreeSet<_>>();
        Ok(Census::take(
            self.berth_pid(),
            &self.state,
            &self.run_dir,
            links,
            &self.pods_seen(),
        ))
    }

    /// All pods that were seen so far, those of now included.
    fn pods_seen(&self) -> BTreeSet<String> {
        let now = fs::read_dir(self.state.join("pods"))
            .into_iter()
            .flatten()
            .flatten();
        let mut seen = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        seen.extend(now.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        seen.clone()
    }

    /// Waits until no pod is left in any way: process, link, mount, namespace, directory.
    pub fn wait_nothing_left(&self, limit: Duration) -> anyhow::Result<Census> {
        wait_for("nothing of a pod is left", limit, || {
            let census = self.census()?;
            let pod_links: Vec<_> = census
                .links
                .iter()
                .filter(|name| name.starts_with("bp"))
                .collect();
            ensure!(
                census.processes.is_empty()
                    && census.netns.is_empty()
                    && census.pods.is_empty()
                    && pod_links.is_empty(),
                "{census:#?}"
            );
            Ok(census)
        })
    }
}

impl Target for Machine {
    fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<Outcome> {
        run(self.inside(Path::new("kubectl")).args(arguments), input)
    }

    fn exec(&self, program: &str, arguments: &[&str]) -> anyhow::Result<Outcome> {
        run(self.inside(Path::new(program)).args(arguments), "")
    }

    fn on_first_node(&self, program: &Path) -> Command {
        self.inside(program)
    }

    fn first_node(&self) -> &str {
        "machine"
    }

    fn import(&self, _kind: &str, archive: &Path, image: &str) -> anyhow::Result<()> {
        let root = self.state.join("images");
        let (root, archive) = (root.to_string_lossy(), archive.to_string_lossy());
        self.berth(&["image", "import", "--root", &root, "-t", image, &archive])?
            .ok()
            .map(drop)
    }

    fn take_berth_away(&self) -> anyhow::Result<()> {
        self.kill_berth()
    }

    fn bring_berth_back(&self) -> anyhow::Result<()> {
        self.up()
    }

    fn kill_in_pod(&self, vmi: &str, program: &str) -> anyhow::Result<()> {
        let census = self.census()?;
        let name = format!("{}_{vmi}", self.namespace());
        let found: Vec<_> = census
            .processes
            .iter()
            // QEMU names its domain; of what does not there must be one.
            .filter(|line| line.contains(program))
            .filter(|line| !line.contains("guest=") || line.contains(&name))
            .collect();
        ensure!(
            found.len() == 1,
            "{vmi}: not one {program} on the machine: {found:?}"
        );
        let pid = found[0].split(' ').next().unwrap_or_default();
        run(Command::new("kill").args(["-9", pid]), "")?
            .ok()
            .map(drop)
    }

    fn residue(&self) -> anyhow::Result<BTreeMap<String, usize>> {
        let census = self.wait_nothing_left(Duration::from_secs(30))?;
        Ok(BTreeMap::from([
            ("links".to_owned(), census.links.len()),
            ("mounts".to_owned(), census.mounts.len()),
            ("descriptors".to_owned(), census.descriptors),
        ]))
    }

    fn wait_prompt(&self, name: &str, limit: Duration) -> anyhow::Result<()> {
        self.console(name)?.log_in(limit).map(drop)
    }

    fn berth_command(&self) -> Command {
        self.inside(&crate::berth_binary())
    }

    fn image(&self) -> &str {
        IMAGE
    }

    fn namespace(&self) -> &str {
        "default"
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        format!(
            "log of berth up:\n{}",
            lines[lines.len().saturating_sub(60)..].join("\n")
        )
    }

    fn look(&self) {
        self.pods_seen();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        let berth = self.child().take();
        if let Some(mut berth) = berth {
            let _ = berth.kill();
            let _ = berth.wait();
        }
        let down = run(
            self.inside(&crate::berth_binary())
                .arg("down")
                .arg("--purge")
                .arg("--state-dir")
                .arg(&self.state)
                .arg("--run-dir")
                .arg(&self.run_dir),
            "",
        );
        if let Ok(down) = down
            && down.code != 0
        {
            eprintln!("{down}");
        }
        let _ = run(Command::new("ip").args(["netns", "delete", &self.name]), "");
    }
}
