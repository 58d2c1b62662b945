//! Plain libvirt: a private libvirtd in session mode with known capabilities, and virsh, which defines and starts the same
//! domain without its network card (there is no pod network around it). As an ordinary user: root's libvirtd would be the
//! system's.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use berth_api::kubevirt::v1::VirtualMachineInstance;
use berth_domain::{DiskInput, DomainInput, domain_xml};
use berth_e2e::{manifest, run, small_guest, wait_for};

use crate::{IMAGE, MEMORY};

/// A libvirtd of its own; killed when dropped, its domains with it.
pub(crate) struct Libvirtd {
    child: Child,
    dir: tempfile::TempDir,
}

impl Libvirtd {
    /// Starts it with the capabilities of QEMU that lie in `known`.
    fn start(known: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("be-peer")
            .tempdir_in("/tmp")?;
        let path = |name: &str| dir.path().join(name);
        for name in [
            "run",
            "config/libvirt",
            "cache/libvirt/qemu/cache/capabilities",
            "data",
        ] {
            fs::create_dir_all(path(name))?;
        }
        // Outside of a pod's sandbox libvirt does not take the answers that berth keeps: it has its own, from the first
        // time that it was asked.
        for entry in fs::read_dir(known)?.flatten() {
            fs::copy(
                entry.path(),
                path("cache/libvirt/qemu/cache/capabilities").join(entry.file_name()),
            )?;
        }
        fs::write(
            path("config/libvirt/qemu.conf"),
            "security_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\nremember_owner = 0\nstdio_handler = \"file\"\n",
        )?;
        run(
            Command::new("chown")
                .args(["-R", &format!("{USER}:{USER}")])
                .arg(dir.path()),
            "",
        )?
        .ok()?;
        let mut command = as_user("/usr/sbin/libvirtd", dir.path());
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("libvirtd")?;
        Ok(Self { child, dir })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn virsh(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let socket = self.dir.path().join("run/libvirt/libvirt-sock");
        wait_for("libvirtd listens", Duration::from_secs(10), || {
            ensure!(socket.exists(), "no socket");
            Ok(())
        })?;
        let uri = format!("qemu:///session?socket={}", socket.display());
        let mut command = as_user("virsh", self.dir.path());
        run(command.args(["-q", "-c", &uri]).args(arguments), "")?.ok()
    }

    /// Defines and starts the domain.
    fn create(&self, xml: &str) -> anyhow::Result<()> {
        let file = self.dir.path().join("domain.xml");
        fs::write(&file, xml)?;
        let file = file.to_string_lossy();
        self.virsh(&["define", &file])?;
        self.virsh(&["start", "default_peer"]).map(drop)
    }

    /// The domain, on an overlay of its own.
    fn domain(&self) -> anyhow::Result<String> {
        let vmi: VirtualMachineInstance =
            serde_saphyr::from_str(&manifest("peer", IMAGE, MEMORY)).context("manifest")?;
        let mut vmi = vmi;
        vmi.metadata.namespace = Some("default".to_owned());
        vmi.spec.domain.devices.interfaces.clear();
        vmi.spec.networks.clear();
        let overlay = self
            .dir
            .path()
            .join("root.qcow2")
            .to_string_lossy()
            .into_owned();
        // Where the user can read it, whatever the source tree's permissions.
        let backing = self
            .dir
            .path()
            .join("guest.qcow2")
            .to_string_lossy()
            .into_owned();
        fs::copy(small_guest(), &backing)?;
        run(
            Command::new("qemu-img").args([
                "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &backing, &overlay,
            ]),
            "",
        )?
        .ok()?;
        run(
            Command::new("chown").args([&format!("{USER}:{USER}"), &overlay]),
            "",
        )?
        .ok()?;
        let emulation = !Path::new("/dev/kvm").exists() || !kvm_works();
        let input = DomainInput {
            vmi: &vmi,
            kernel: None,
            initrd: None,
            disks: vec![DiskInput {
                volume: "root".into(),
                path: overlay,
                format: "qcow2".into(),
                read_only: false,
                block: false,
            }],
            nics: Vec::new(),
            cpus: Vec::new(),
            emulation,
            emulator: None,
            serial_socket: self
                .dir
                .path()
                .join("serial")
                .to_string_lossy()
                .into_owned(),
            vnc_socket: Some(self.dir.path().join("vnc").to_string_lossy().into_owned()),
            nvram: String::new(),
            agent_socket: None,
        };
        Ok(domain_xml(&input)?)
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        let _ = self.virsh(&["destroy", "default_peer"]);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kvm_works() -> bool {
    fs::read_to_string("/proc/cpuinfo")
        .is_ok_and(|text| text.contains(" vmx") || text.contains(" svm"))
}

/// `nobody`.
const USER: u32 = 65534;

fn as_user(program: &str, dir: &Path) -> Command {
    let mut command = Command::new("setpriv");
    let user = USER.to_string();
    command.args([
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "--",
        program,
    ]);
    for (name, at) in [
        ("XDG_RUNTIME_DIR", "run"),
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_CACHE_HOME", "cache"),
        ("XDG_DATA_HOME", "data"),
    ] {
        command.env(name, dir.join(at));
    }
    command.env("HOME", dir);
    command
}

/// Plain libvirt on this machine, with what it learned of QEMU the first time.
pub(crate) struct Peer {
    known: tempfile::TempDir,
}

impl Peer {
    /// Lets a libvirtd probe QEMU, which takes seconds and is no part of a start.
    pub(crate) fn warm() -> anyhow::Result<Self> {
        let known = tempfile::tempdir()?;
        let libvirtd = Libvirtd::start(known.path())?;
        libvirtd.virsh(&["domcapabilities"])?;
        let cache = libvirtd
            .dir
            .path()
            .join("cache/libvirt/qemu/cache/capabilities");
        for entry in fs::read_dir(cache)?.flatten() {
            fs::copy(entry.path(), known.path().join(entry.file_name()))?;
        }
        ensure!(
            fs::read_dir(known.path())?.next().is_some(),
            "libvirtd kept nothing of what it learned of QEMU"
        );
        Ok(Self { known })
    }

    /// Milliseconds from nothing to a running QEMU, overlay and XML included, as in berth's time. Takes both down again.
    pub(crate) fn time_start(&self) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let libvirtd = self.running()?;
        let took = begin.elapsed().as_secs_f64() * 1000.0;
        drop(libvirtd);
        Ok(took)
    }

    /// A libvirtd whose domain runs.
    pub(crate) fn running(&self) -> anyhow::Result<Libvirtd> {
        let libvirtd = Libvirtd::start(self.known.path())?;
        libvirtd.create(&libvirtd.domain()?)?;
        Ok(libvirtd)
    }
}
