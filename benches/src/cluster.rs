//! Many machines on a cluster: how long until they run, what the API server is asked, what the parts and the pods cost.
//!
//! Nothing here is berth's alone: machines are made and watched by the API, launcher pods are found by their label, parts
//! by their command lines. So the same run measures upstream's own components where those are installed
//! (`BERTH_CLUSTER` names the cluster, `BERTH_BENCH_VMIS` how many machines).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use berth_api::kubevirt::v1::{VirtualMachineInstance, VmiPhase};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use crate::figures::Figures;

/// Between two creations, as upstream's density test has it.
const PACE: Duration = Duration::from_millis(100);
/// How long all of them may take.
const PATIENCE: Duration = Duration::from_secs(900);
/// The guest that the cluster's nodes have.
const IMAGE: &str = "localhost/small-guest:1";
const NAMESPACE: &str = "bench";
/// The parts whose processes are measured: the name, and what the command line begins with.
const PARTS: [(&str, &str); 5] = [
    ("berth controller", "/usr/bin/berth controller"),
    ("berth node agent", "/usr/bin/berth node-agent"),
    ("virt-api", "virt-api"),
    ("virt-controller", "virt-controller"),
    ("virt-handler", "virt-handler"),
];
const MIB: f64 = (1 << 20) as f64;

/// Runs on the cluster that `BERTH_CLUSTER` names.
pub(crate) fn run() -> anyhow::Result<()> {
    let kubeconfig = std::env::var("BERTH_CLUSTER")
        .context("BERTH_CLUSTER must name the kubeconfig of a cluster; make bench-cluster does")?;
    let count = std::env::var("BERTH_BENCH_VMIS").map_or(Ok(100), |n| n.parse::<usize>())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(measure(Path::new(&kubeconfig), count))
}

async fn measure(kubeconfig: &Path, count: usize) -> anyhow::Result<()> {
    let config = kube::Config::from_custom_kubeconfig(
        Kubeconfig::read_from(kubeconfig)?,
        &KubeConfigOptions::default(),
    )
    .await?;
    let client = Client::try_from(config)?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
    namespaces
        .create(&PostParams::default(), &namespace)
        .await?;
    let vmis: Api<VirtualMachineInstance> = Api::namespaced(client.clone(), NAMESPACE);
    // The first one finds no image unpacked and no code in memory; it does not count.
    make(&vmis, "primer", IMAGE, &json!({})).await?;
    until(&vmis, 1, &mut BTreeMap::new()).await?;

    let idle = parts();
    show_parts("parts, one machine", &idle, None);
    let before = requests(&client).await?;
    let begin = Instant::now();
    let mut running = BTreeMap::new();
    let (made, waited) = tokio::join!(
        async {
            let mut made = BTreeMap::new();
            for number in 0..count {
                let name = format!("vm-{number}");
                made.insert(name.clone(), Instant::now());
                make(&vmis, &name, IMAGE, &json!({})).await?;
                tokio::time::sleep(PACE).await;
            }
            anyhow::Ok(made)
        },
        until(&vmis, count + 1, &mut running),
    );
    let made = made?;
    waited?;
    let took = begin.elapsed();
    let after = requests(&client).await?;
    let mut figures = Figures::default();
    for (name, at) in &made {
        let seen = running.get(name).context("a machine that does not run")?;
        figures.add(seen.duration_since(*at).as_secs_f64());
    }
    println!(
        "\n== {count} machines, {} ms apart, creation to Running",
        PACE.as_millis()
    );
    println!(
        "P50 {:.1} s   P95 {:.1} s   {}",
        figures.percentile(0.5),
        figures.percentile(0.95),
        figures.show("s").trim()
    );
    println!(
        "all of them after {:.1} s, {:.1} a second",
        took.as_secs_f64(),
        f64::from(u32::try_from(count)?) / took.as_secs_f64()
    );
    show_requests(&before, &after, count);
    let busy = parts();
    show_parts(
        &format!("parts, {} machines", count + 1),
        &busy,
        Some((&idle, took)),
    );
    show_pods(&client).await?;

    let took = delete_all(&vmis).await?;
    println!(
        "\n== deletion: all of them gone after {:.1} s",
        took.as_secs_f64()
    );
    namespaces
        .delete(NAMESPACE, &DeleteParams::default())
        .await?;
    Ok(())
}

/// A small machine; `resources` as in its spec.
pub(crate) async fn make(
    vmis: &Api<VirtualMachineInstance>,
    name: &str,
    image: &str,
    resources: &serde_json::Value,
) -> anyhow::Result<()> {
    let vmi = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "domain": {
                "memory": {"guest": "64Mi"},
                "resources": resources,
                "devices": {
                    "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                    "interfaces": [{"name": "default", "bridge": {}}],
                },
            },
            "networks": [{"name": "default", "pod": {}}],
            "volumes": [{"name": "root", "containerDisk": {"image": image}}],
        },
    }))?;
    vmis.create(&PostParams::default(), &vmi)
        .await
        .with_context(|| format!("vmi {name}"))?;
    Ok(())
}

/// Deletes all machines; how long it took until none was left.
pub(crate) async fn delete_all(vmis: &Api<VirtualMachineInstance>) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    vmis.delete_collection(&DeleteParams::default(), &ListParams::default())
        .await?;
    while !vmis
        .list_metadata(&ListParams::default())
        .await?
        .items
        .is_empty()
    {
        ensure!(begin.elapsed() < PATIENCE, "machines stay");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(begin.elapsed())
}

/// Waits until so many machines run; notes when each was first seen to.
pub(crate) async fn until(
    vmis: &Api<VirtualMachineInstance>,
    count: usize,
    running: &mut BTreeMap<String, Instant>,
) -> anyhow::Result<()> {
    let follow = async {
        let mut seen =
            Box::pin(watcher(vmis.clone(), watcher::Config::default()).touched_objects());
        while running.len() < count {
            let vmi = seen.try_next().await?.context("the watch ended")?;
            let phase = vmi.status.as_ref().and_then(|s| s.phase);
            ensure!(
                !matches!(phase, Some(VmiPhase::Failed | VmiPhase::Succeeded)),
                "{} is over: {:?}",
                vmi.name_any(),
                vmi.status
            );
            if phase == Some(VmiPhase::Running) {
                running.entry(vmi.name_any()).or_insert_with(Instant::now);
            }
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, follow)
        .await
        .with_context(|| {
            format!(
                "{count} machines do not run within {} s",
                PATIENCE.as_secs()
            )
        })?
}

/// What the API server has been asked so far: verb, resource and subresource → how often.
type Requests = BTreeMap<(String, String), f64>;

async fn requests(client: &Client) -> anyhow::Result<Requests> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let text = client.request_text(request).await?;
    let mut all = Requests::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("apiserver_request_total{") else {
            continue;
        };
        let Some((labels, value)) = rest.rsplit_once("} ") else {
            continue;
        };
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            Some(rest.split_once('"')?.0.to_owned())
        };
        let (resource, sub) = (
            label("resource").unwrap_or_default(),
            label("subresource").unwrap_or_default(),
        );
        let what = if sub.is_empty() {
            resource
        } else {
            format!("{resource}/{sub}")
        };
        *all.entry((what, label("verb").unwrap_or_default()))
            .or_default() += value.parse::<f64>().unwrap_or_default();
    }
    Ok(all)
}

fn show_requests(before: &Requests, after: &Requests, count: usize) {
    println!(
        "\n== requests to the API server, a machine (of everybody, kubelet and scheduler too)"
    );
    let machines = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let mut total = BTreeMap::new();
    for ((resource, verb), now) in after {
        let asked = now
            - before
                .get(&(resource.clone(), verb.clone()))
                .unwrap_or(&0.0);
        let each = asked / machines;
        let about_machines = resource.starts_with("virtualmachineinstances");
        if each >= 0.05 && (about_machines || resource.starts_with("pods") || resource == "events")
        {
            println!("{verb:<8} {resource:<36} {each:>6.2}");
            let kind = if about_machines {
                "machines"
            } else {
                "pods and events"
            };
            *total.entry(kind).or_insert(0.0) += each;
        }
    }
    for (kind, each) in total {
        println!("about {kind:<39} {each:>6.2}");
    }
}

/// A process of a part: resident memory in MiB, processor seconds.
type Part = BTreeMap<(String, u32), (f64, f64)>;

fn parts() -> Part {
    let mut found = Part::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if let Some((name, _)) = PARTS.iter().find(|(_, start)| command.starts_with(start)) {
            let cost = (
                resident(pid).unwrap_or(f64::NAN),
                seconds(pid).unwrap_or(f64::NAN),
            );
            found.insert(((*name).to_owned(), pid), cost);
        }
    }
    found
}

pub(crate) fn resident(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// Processor time in seconds; the kernel counts hundredths.
pub(crate) fn seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

fn show_parts(title: &str, now: &Part, since: Option<(&Part, Duration)>) {
    println!("\n== {title}");
    for ((name, pid), (resident, spent)) in now {
        let load = since.and_then(|(before, took)| {
            let (_, before) = before.get(&(name.clone(), *pid))?;
            Some(format!(
                "   {:.1} s of a processor, {:.3} of one",
                spent - before,
                (spent - before) / took.as_secs_f64()
            ))
        });
        println!(
            "{name:<20} {resident:>7.1} MiB RSS{}",
            load.unwrap_or_default()
        );
    }
}

/// What a control group says of its memory, in MiB: without what the kernel can drop at once, and of that the anonymous.
fn memory_of(group: &Path) -> anyhow::Result<(f64, f64)> {
    let read = |name: &str| fs::read_to_string(group.join(name));
    let usage = read("memory.usage_in_bytes").or_else(|_| read("memory.current"))?;
    let stat = read("memory.stat")?;
    let field = |names: [&str; 2]| {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(name, _)| names.contains(name));
        found.and_then(|(_, value)| value.parse::<f64>().ok())
    };
    let inactive = field(["total_inactive_file", "inactive_file"]).unwrap_or_default();
    let anonymous = field(["total_rss", "anon"]).context("no rss in memory.stat")?;
    Ok((
        (usage.trim().parse::<f64>()? - inactive) / MIB,
        anonymous / MIB,
    ))
}

/// The control group of each pod, by uid, in either hierarchy.
fn groups(dir: &Path, wanted: &BTreeSet<String>, found: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name().to_string_lossy().replace('_', "-");
        match wanted
            .iter()
            .find(|uid| name.contains(&format!("pod{uid}")))
        {
            Some(uid) => drop(found.insert(uid.clone(), path)),
            None => groups(&path, wanted, found),
        }
    }
}

async fn show_pods(client: &Client) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let launchers = ListParams::default().labels("kubevirt.io=virt-launcher");
    let uids: BTreeSet<String> = pods
        .list(&launchers)
        .await?
        .iter()
        .filter_map(kube::ResourceExt::uid)
        .collect();
    let tree = Path::new("/sys/fs/cgroup");
    let memory = tree.join("memory");
    let mut found = BTreeMap::new();
    groups(
        if memory.is_dir() { &memory } else { tree },
        &uids,
        &mut found,
    );
    let (mut used, mut anonymous) = (Figures::default(), Figures::default());
    for group in found.values() {
        let (working, private) = memory_of(group)?;
        used.add(working);
        anonymous.add(private);
    }
    println!(
        "\n== a launcher pod without its guest, by its control group ({} pods)",
        found.len()
    );
    println!("all that is charged     {}", used.show("MiB"));
    println!("of that anonymous       {}", anonymous.show("MiB"));
    Ok(())
}
