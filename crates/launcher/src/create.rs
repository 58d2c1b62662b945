//! From a `sync` to a guest that runs. The steps, in order; the first that fails undoes those before it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use berth_api::kubevirt::v1::VirtualMachineInstance;
use berth_api::launcher::texts_volume;
use berth_api::quantity::parse_bytes;
use berth_domain::{DiskInput, DomainError, DomainInput, NicInput};
use berth_hypervisor::{DomainInfo, Hypervisor};
use rustix::net;

use crate::console::Console;
use crate::dhcp::Servers;
use crate::overlay::{self, OverlayError};
use crate::protocol::SyncRequest;
use crate::texts::Texts;
use crate::{cloud_init, fat, millis};

/// Where things are in the run directory.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    run_dir: PathBuf,
    /// What came with the pod.
    pub(crate) texts: Texts,
}

impl Layout {
    pub(crate) fn new(run_dir: PathBuf) -> Self {
        Self {
            run_dir,
            texts: Texts::default(),
        }
    }

    /// A file of this name.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.run_dir.join(name)
    }

    /// What libvirt keeps.
    pub(crate) fn virt(&self) -> PathBuf {
        self.run_dir.join("virt")
    }

    fn overlay(&self, volume: &str) -> PathBuf {
        self.run_dir.join("disks").join(format!("{volume}.qcow2"))
    }

    /// A disk that the launcher makes.
    fn raw(&self, volume: &str) -> PathBuf {
        self.run_dir.join("disks").join(format!("{volume}.img"))
    }

    /// Bound by QEMU, used by the launcher alone; clients come to the console socket.
    pub(crate) fn serial(&self) -> PathBuf {
        self.run_dir.join("serial.sock")
    }

    /// Bound by QEMU, used by libvirt.
    fn agent(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    fn vnc(&self) -> PathBuf {
        self.run_dir.join(crate::protocol::VNC_SOCKET)
    }
}

/// Why the guest does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error("cannot make {path}: {source}")]
    Directory {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot make disk {path}: {source}")]
    Disk {
        path: String,
        source: std::io::Error,
    },
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    #[error(transparent)]
    Domain(#[from] DomainError),
    #[error("network {network} has no tap {tap} in this pod: {source}")]
    NoTap {
        network: String,
        tap: String,
        source: std::io::Error,
    },
    #[error("DHCP on network {network}: {source}")]
    Dhcp {
        network: String,
        source: std::io::Error,
    },
    #[error("cannot connect to the serial console: {0}")]
    Console(std::io::Error),
    #[error("a step of the creation panicked")]
    Panicked,
    #[error("{0}")]
    Define(berth_hypervisor::Error),
    #[error("{error}")]
    Start {
        /// The name, under which QEMU's log is found.
        domain: String,
        error: berth_hypervisor::Error,
    },
}

/// A guest that runs.
#[derive(Debug)]
pub(crate) struct Created {
    /// The domain.
    pub(crate) info: DomainInfo,
    /// Whether it stands still before its first instruction, as its manifest wants it.
    pub(crate) paused: bool,
    /// The time of each step in milliseconds.
    pub(crate) timings: BTreeMap<String, u64>,
    /// The DHCP servers, which end when this is dropped.
    pub(crate) dhcp: Servers,
}

/// Everything that a creation needs.
#[derive(Debug)]
pub(crate) struct Creation<H> {
    /// Where to start it.
    pub(crate) hypervisor: H,
    /// The machine and its backings.
    pub(crate) request: SyncRequest,
    /// The DHCP servers, not yet serving.
    pub(crate) dhcp: Servers,
    /// What reads the guest's serial port.
    pub(crate) console: Console,
    /// Where things are.
    pub(crate) layout: Layout,
}

impl<H: Hypervisor> Creation<H> {
    /// Runs the steps. The guest's first instruction is executed in the last one, when everything listens.
    pub(crate) async fn run(mut self) -> Result<Created, CreateError> {
        let mut clock = Clock::new();
        self.taps()?;
        let disks = self.overlays().await?;
        clock.lap("overlay_ms");
        let xml = self.xml(disks)?;
        tracing::debug!("domain: {xml}");
        let defined = self
            .hypervisor
            .define(&xml)
            .await
            .map_err(CreateError::Define)?;
        clock.lap("define_ms");
        let started = self.start(&defined, &mut clock).await;
        match started {
            Ok(info) => {
                clock.total("sync_ms");
                Ok(Created {
                    info,
                    paused: self.request.vmi.spec.starts_paused(),
                    timings: clock.laps,
                    dhcp: self.dhcp,
                })
            }
            Err(error) => {
                for undone in [
                    self.hypervisor.destroy(&defined.uuid).await,
                    self.hypervisor.undefine(&defined.uuid).await,
                ] {
                    if let Err(undo) = undone {
                        tracing::debug!(domain = defined.name, "after a failed start: {undo}");
                    }
                }
                Err(error)
            }
        }
    }

    async fn start(
        &mut self,
        defined: &DomainInfo,
        clock: &mut Clock,
    ) -> Result<DomainInfo, CreateError> {
        let failed = |error| CreateError::Start {
            domain: defined.name.clone(),
            error,
        };
        let info = self
            .hypervisor
            .start(&defined.uuid, true)
            .await
            .map_err(failed)?;
        clock.lap("create_ms");
        let devices = &self.request.vmi.spec.domain.devices;
        if devices.autoattach_serial_console != Some(false) {
            let logged = devices.log_serial_console != Some(false);
            self.console
                .attach(&self.layout.serial(), logged)
                .await
                .map_err(CreateError::Console)?;
        }
        self.dhcp
            .serve()
            .map_err(|(network, source)| CreateError::Dhcp { network, source })?;
        if !self.request.vmi.spec.starts_paused() {
            self.hypervisor
                .resume(&defined.uuid)
                .await
                .map_err(failed)?;
        }
        clock.lap("resume_ms");
        Ok(info)
    }

    /// libvirt says of a tap that is not there neither its name nor the network's.
    fn taps(&self) -> Result<(), CreateError> {
        for nic in &self.request.nics {
            let find = || {
                let socket = net::socket(net::AddressFamily::INET, net::SocketType::DGRAM, None)?;
                net::netdevice::name_to_index(socket, &nic.tap)
            };
            find().map_err(|source| CreateError::NoTap {
                network: nic.network.clone(),
                tap: nic.tap.clone(),
                source: source.into(),
            })?;
        }
        Ok(())
    }

    /// A fresh overlay for each disk that may not be written itself; all files as the domain uses them.
    async fn overlays(&self) -> Result<Vec<DiskInput>, CreateError> {
        let backings = self.request.disks.clone();
        let vmi = self.request.vmi.clone();
        let layout = self.layout.clone();
        let work = move || {
            let directory = layout.file("disks");
            std::fs::create_dir_all(&directory).map_err(|source| CreateError::Directory {
                path: directory,
                source,
            })?;
            let own = own_disks(&vmi, &layout)?;
            let given = backings.into_iter().map(|disk| {
                if !disk.read_only {
                    if let Some(size) = disk.create {
                        create_disk(&disk.path, size)?;
                    }
                    return Ok(DiskInput {
                        volume: disk.volume,
                        path: disk.path,
                        format: disk.format,
                        read_only: false,
                        block: disk.block,
                    });
                }
                let path = layout.overlay(&disk.volume);
                overlay::create(&path, &disk.path, &disk.format)?;
                Ok(DiskInput {
                    volume: disk.volume,
                    path: path.display().to_string(),
                    format: "qcow2".to_owned(),
                    read_only: false,
                    block: false,
                })
            });
            given.chain(own.into_iter().map(Ok)).collect()
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or(Err(CreateError::Panicked))
    }

    fn xml(&self, disks: Vec<DiskInput>) -> Result<String, CreateError> {
        let nics = self.request.nics.iter().map(|nic| NicInput {
            network: nic.network.clone(),
            tap: nic.tap.clone(),
            mac: nic.mac.to_string(),
            mtu: nic.mtu,
        });
        Ok(berth_domain::domain_xml(&DomainInput {
            vmi: &self.request.vmi,
            disks,
            nics: nics.collect(),
            kernel: self.request.boot.kernel.clone(),
            initrd: self.request.boot.initrd.clone(),
            cpus: own_cpus(),
            emulation: self.request.emulation,
            emulator: None,
            serial_socket: self.layout.serial().display().to_string(),
            vnc_socket: Some(self.layout.vnc().display().to_string()),
            nvram: self.layout.file("nvram.fd").display().to_string(),
            agent_socket: Some(self.layout.agent().display().to_string()),
        })?)
    }
}

/// The processors that this process may run on: in a pod that has some for itself, those.
fn own_cpus() -> Vec<u32> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else {
        return Vec::new();
    };
    (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .filter_map(|cpu| u32::try_from(cpu).ok())
        .collect()
}

/// The disks that are made of the manifest alone.
fn own_disks(vmi: &VirtualMachineInstance, layout: &Layout) -> Result<Vec<DiskInput>, CreateError> {
    let mut disks = Vec::new();
    for volume in &vmi.spec.volumes {
        let path = layout.raw(&volume.name);
        let shown = path.display().to_string();
        let made = if volume.cloud_init().is_some() {
            cloud_init::write(&path, vmi, volume, &layout.texts).map(|()| true)
        } else if let Some(label) = volume.texts_label() {
            let files = layout.texts.read(&texts_volume(&volume.name));
            files
                .and_then(|files| fat::write(&path, label, &files))
                .map(|()| true)
        } else if let Some(disk) = &volume.empty_disk {
            let size = disk.capacity.as_ref().and_then(|c| parse_bytes(c).ok());
            let size = size.unwrap_or(0);
            create_disk(&shown, size)?;
            Ok(true)
        } else {
            Ok(false)
        };
        let made = made.map_err(|source| CreateError::Disk {
            path: shown.clone(),
            source,
        })?;
        if made {
            disks.push(DiskInput {
                volume: volume.name.clone(),
                path: shown,
                format: "raw".to_owned(),
                read_only: false,
                block: false,
            });
        }
    }
    Ok(disks)
}

/// An empty raw disk, without blocks; one that is there stays as it is.
fn create_disk(path: &str, size: u64) -> Result<(), CreateError> {
    let made = || {
        let opened = std::fs::File::options()
            .write(true)
            .create_new(true)
            .open(path);
        let file = match opened {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
            opened => opened?,
        };
        // One that has no size yet would be taken for a disk without sectors at the next start.
        file.set_len(size).inspect_err(|_| {
            let _ = std::fs::remove_file(path);
        })
    };
    made().map_err(|source| CreateError::Disk {
        path: path.to_owned(),
        source,
    })
}

/// Seconds that the machine gives its guest to power off.
pub(crate) fn grace_seconds(vmi: &VirtualMachineInstance) -> u64 {
    const DEFAULT: i64 = 30;
    vmi.spec
        .termination_grace_period_seconds
        .unwrap_or(DEFAULT)
        .try_into()
        .unwrap_or(0)
}

struct Clock {
    begin: Instant,
    last: Instant,
    laps: BTreeMap<String, u64>,
}

impl Clock {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            begin: now,
            last: now,
            laps: BTreeMap::new(),
        }
    }

    fn lap(&mut self, name: &str) {
        self.laps
            .insert(name.to_owned(), millis(self.last.elapsed()));
        self.last = Instant::now();
    }

    fn total(&mut self, name: &str) {
        self.laps
            .insert(name.to_owned(), millis(self.begin.elapsed()));
    }
}
