//! berth's controllers: each turns what users ask for into other objects, and reports what became of it.
//!
//! Every controller is the same three steps: observe (watches into caches), plan (a pure function, tested with
//! tables), act (API requests that name the version they were planned on). They see a [`kube::Client`] and
//! nothing else, so the same code runs in `berth up` on the embedded API server and in a cluster.
//!
//! - [`vm`]: a VirtualMachine → its VirtualMachineInstance;
//! - [`vmi`]: a VirtualMachineInstance → its launcher pod, and its status until the node agent has it;
//! - `datavolume`: a DataVolume → its claim, and the pod that fills it;
//! - [`scheduler`]: pods → nodes, standalone only;
//! - `volume`: claims → volumes, standalone only;
//! - `settings`: what became of the settings of the installation.

mod datavolume;
mod reconcile;
pub mod scheduler;
mod settings;
pub mod vm;
pub mod vmi;
mod volume;
mod written;

use berth_api::events::Recorder;
use berth_api::labels;
use berth_api::settings::Known;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What the controllers need to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Image of the launcher container. The standalone pod runtime runs its own binary whatever the image says.
    pub launcher_image: String,
    /// Who runs the pods.
    pub runner: Runner,
    /// Registries that importers speak to without TLS.
    pub insecure_registries: Vec<String>,
}

/// Who places and runs pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner {
    /// berth: its scheduler, and the node agent's pod runtime. Container disks are image volumes.
    Berth,
    /// The cluster: its scheduler and its kubelets. A container disk is held by a small container of its image.
    Cluster,
}

impl Default for Settings {
    /// Standalone, with the launcher of this version.
    fn default() -> Self {
        Self {
            launcher_image: format!("berth-launcher:{}", env!("CARGO_PKG_VERSION")),
            runner: Runner::Berth,
            insecure_registries: Vec::new(),
        }
    }
}

/// Runs every controller until `shutdown`. `known`: the settings of the installation, which the caller follows.
pub async fn run(
    settings: Settings,
    known: watch::Receiver<Known>,
    client: Client,
    shutdown: CancellationToken,
) {
    let recorder = Recorder::new(client.clone(), labels::CONTROLLER_MANAGER, None);
    let schedule = settings.runner == Runner::Berth;
    let taken_up = settings::run(client.clone(), shutdown.clone());
    let of_machines = Recorder::new(client.clone(), labels::CONTROLLER_MANAGER, None);
    let vm = vm::run(client.clone(), of_machines, shutdown.clone());
    let of_disks = Recorder::new(client.clone(), "datavolume-controller", None);
    let disks = datavolume::run(
        settings.clone(),
        known.clone(),
        client.clone(),
        of_disks,
        shutdown.clone(),
    );
    let vmi = vmi::run(settings, known, client.clone(), recorder, shutdown.clone());
    let scheduler = async {
        if schedule {
            let recorder = Recorder::new(client.clone(), "berth-scheduler", None);
            let of_volumes = Recorder::new(client.clone(), "persistentvolume-controller", None);
            let volumes = volume::run(client.clone(), of_volumes, shutdown.clone());
            tokio::join!(scheduler::run(client, recorder, shutdown), volumes);
        }
    };
    tokio::join!(vm, vmi, disks, scheduler, taken_up);
}

/// An error with its causes, on one line. A cause that its error repeats already is said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |e| e.source()).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
