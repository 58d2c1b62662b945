//! From `POST` to a running QEMU, with the image in the store: the whole, and what of it is QEMU's and libvirt's.
//!
//! The peer is the least that can be done: a private libvirtd, a client of libvirt, the same domain. What berth takes
//! beyond it is its own: API, controllers, scheduling, sandbox, network, status.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use berth_api::kubevirt::v1::VirtualMachineInstance;
use berth_e2e::{Machine, Target as _, manifest, wait_for};
use futures::StreamExt as _;
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::figures::Figures;
use crate::peer::Peer;
use crate::{IMAGE, MEMORY};

const ROUNDS: usize = 12;
/// What the launcher counts as QEMU's and libvirt's.
const THEIRS: [&str; 5] = [
    "libvirtd_start_ms",
    "connect_ms",
    "define_ms",
    "create_ms",
    "resume_ms",
];

pub(crate) fn run(machine: &Machine) -> anyhow::Result<()> {
    println!(
        "\n== POST of a VirtualMachineInstance to QEMU running, image in the store, {ROUNDS} rounds"
    );
    let mut total = Figures::default();
    let mut own = Figures::default();
    let mut theirs = Figures::default();
    let mut parts: BTreeMap<String, Figures> = BTreeMap::new();
    let mut plain = Figures::default();
    let (mut kernel, mut firmware, mut stop) =
        (Figures::default(), Figures::default(), Figures::default());
    let plain_libvirt = Peer::warm().context("plain libvirt")?;
    for round in 0..=ROUNDS {
        let name = format!("round-{round}");
        let Round {
            running: took,
            kernel: first_line,
            stop: stopped,
            laps,
        } = one(machine, &name)?;
        let peer = plain_libvirt.time_start()?;
        // The first round warms what a machine warms once.
        if round == 0 {
            continue;
        }
        let foreign: f64 = THEIRS.iter().filter_map(|name| laps.get(*name)).sum();
        total.add(took);
        theirs.add(foreign);
        own.add(took - foreign);
        plain.add(peer);
        kernel.add(first_line);
        firmware.add(first_line - took);
        stop.add(stopped);
        for (name, value) in laps {
            parts.entry(name).or_default().add(value);
        }
    }
    println!("berth, whole                      {}", total.show("ms"));
    println!("  of it QEMU and libvirt          {}", theirs.show("ms"));
    println!(
        "  of it berth's own               {}   goal: below 1000 ms",
        own.show("ms")
    );
    println!("plain libvirtd + same domain      {}", plain.show("ms"));
    println!(
        "ratio, berth to plain             {:>8.2}",
        total.median() / plain.median()
    );
    println!("to the kernel's first line        {}", kernel.show("ms"));
    println!("  of it firmware and boot loader  {}", firmware.show("ms"));
    println!("DELETE to gone, asked by ACPI     {}", stop.show("ms"));
    println!(
        "breakdown (the node agent's laps follow each other; the launcher's lie within them):"
    );
    for (name, figures) in parts.iter().filter(|(_, figures)| !figures.is_empty()) {
        println!("  {name:<31} {}", figures.show("ms"));
    }
    Ok(())
}

/// One run of a machine, in milliseconds as a client sees it.
struct Round {
    /// `POST` to phase `Running`.
    running: f64,
    /// `POST` to the first line of the guest's kernel on the console.
    kernel: f64,
    /// `DELETE` to the object gone, of a guest that is up.
    stop: f64,
    /// What node agent and launcher report of the start.
    laps: BTreeMap<String, f64>,
}

fn one(machine: &Machine, name: &str) -> anyhow::Result<Round> {
    let text = manifest(name, IMAGE, MEMORY);
    let vmi: VirtualMachineInstance = serde_saphyr::from_str(&text).context("manifest")?;
    let kubeconfig = machine.state().join("admin.kubeconfig");
    let netns = PathBuf::from("/run/netns").join(machine.name());
    let (for_thread, name_there) = (kubeconfig.clone(), name.to_owned());
    let (begin, running) = berth_network::within(&netns, move || {
        create_and_wait(&for_thread, &vmi, &name_there)
    })??;
    let mut console = machine.console(name)?;
    console.expect("Linux version", Duration::from_secs(60))?;
    let kernel = millis(begin);
    console.expect("login: ", Duration::from_secs(60))?;
    let laps = laps(machine, name)?;
    let begin = Instant::now();
    machine.delete(name, Duration::from_secs(40))?;
    let stop = millis(begin);
    machine.wait_nothing_left(Duration::from_secs(30))?;
    Ok(Round {
        running,
        kernel,
        stop,
        laps,
    })
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// When it was asked, and how long it took.
fn create_and_wait(
    kubeconfig: &std::path::Path,
    vmi: &VirtualMachineInstance,
    name: &str,
) -> anyhow::Result<(Instant, f64)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let options = KubeConfigOptions::default();
        let config =
            kube::Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &options)
                .await?;
        let client = kube::Client::try_from(config)?;
        let api: Api<VirtualMachineInstance> = Api::namespaced(client, "default");
        // The connection is there before the clock starts.
        let version = api
            .list(&kube::api::ListParams::default())
            .await?
            .metadata
            .resource_version
            .unwrap_or_default();
        let begin = Instant::now();
        api.create(&PostParams::default(), vmi).await?;
        let parameters = WatchParams::default().fields(&format!("metadata.name={name}"));
        let mut events = api.watch(&parameters, &version).await?.boxed();
        while let Some(event) = events.next().await {
            let (WatchEvent::Added(now) | WatchEvent::Modified(now)) = event? else {
                continue;
            };
            let phase = now
                .status
                .as_ref()
                .and_then(|status| status.phase)
                .map(berth_api::kubevirt::v1::VmiPhase::as_str);
            match phase {
                Some("Running") => return Ok((begin, millis(begin))),
                Some(end @ ("Failed" | "Succeeded")) => {
                    let _ = api.delete(name, &DeleteParams::default()).await;
                    anyhow::bail!("{name} ended as {end}")
                }
                _ => {}
            }
        }
        anyhow::bail!("the watch of {name} ended")
    })
}

/// What `berth up` logged of the start: `steps` of the node agent, `launcher` of the launcher.
fn laps(machine: &Machine, name: &str) -> anyhow::Result<BTreeMap<String, f64>> {
    let wanted = format!("default/{name}");
    wait_for(
        &format!("the log tells how {name} started"),
        Duration::from_secs(10),
        || {
            let log = std::fs::read_to_string(machine.log_path())?;
            let lines = log
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            let mut fields = lines.map(|line| line["fields"].clone());
            let found = fields.find(|fields| {
                fields["message"] == "guest is running" && fields["vmi"] == wanted.as_str()
            });
            let found = found.context("not logged")?;
            let mut laps = BTreeMap::new();
            for pair in found["steps"].as_str().unwrap_or_default().split(' ') {
                if let Some((name, value)) = pair.split_once('=') {
                    laps.insert(format!("agent: {name}"), value.parse()?);
                }
            }
            let launcher: BTreeMap<String, f64> =
                serde_json::from_str(found["launcher"].as_str().unwrap_or("{}"))?;
            ensure!(!launcher.is_empty(), "no laps of the launcher");
            laps.extend(launcher);
            Ok(laps)
        },
    )
}
