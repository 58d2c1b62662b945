//! Many machines on one `berth up`, without QEMU: how long until they run, what the API is asked, what API server, controllers
//! and node agent cost together as their number grows.
//!
//! Everything but the guests is real: a pod, its sandbox and its launcher each. What is asked is counted in the audit log.
//! KubeVirt publishes graphs only (docs/perf-scale-benchmarks.md of v1.8.0, 100 machines 100 ms apart): read off them, about 5.5
//! updates and 0.7 patches of machines and 2.2 patches of their pods each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use berth_api::kubevirt::v1::VirtualMachineInstance;
use berth_e2e::{Machine, MachineOptions, Target as _, small_guest};
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::cluster::{delete_all, make, resident, seconds, until};
use crate::figures::Figures;
use crate::{IMAGE, SETTINGS};

/// How many there are at the end of each step. A bridge of Linux has no more than 1023 ports.
const STEPS: [usize; 3] = [200, 500, 1000];
/// Between two creations, as upstream's density test has it; later steps are to be over soon.
const PACE: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(50)];
/// How long the machines are left alone to see what nothing costs.
const REST: Duration = Duration::from_secs(10);
const UPSTREAM: f64 = 8.4;

pub(crate) fn run() -> anyhow::Result<()> {
    let most = std::env::var("BERTH_BENCH_VMIS").map_or(Ok(usize::MAX), |n| n.parse())?;
    let steps: Vec<usize> = STEPS.into_iter().filter(|step| *step <= most).collect();
    let audit = tempfile::NamedTempFile::new()?;
    let path = audit.path().display().to_string();
    let machine = Machine::start_with(MachineOptions {
        arguments: ["--audit-log", &path, "--max-pods", "1023"]
            .map(str::to_owned)
            .to_vec(),
        ..MachineOptions::default()
    })?;
    machine.build_image(IMAGE, &small_guest())?;
    machine
        .kubectl_with(&["apply", "-f", "-"], SETTINGS)?
        .ok()?;
    let netns = PathBuf::from("/run/netns").join(machine.name());
    let kubeconfig = machine.state().join("admin.kubeconfig");
    let pid = machine.berth_pid();
    let audit_path = audit.path().to_owned();
    berth_network::within(&netns, move || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?
            .block_on(measure(&kubeconfig, &audit_path, pid, &steps))
    })?
}

async fn measure(kubeconfig: &Path, audit: &Path, pid: u32, steps: &[usize]) -> anyhow::Result<()> {
    let config = kube::Config::from_custom_kubeconfig(
        Kubeconfig::read_from(kubeconfig)?,
        &KubeConfigOptions::default(),
    )
    .await?;
    let client = kube::Client::try_from(config)?;
    let vmis: Api<VirtualMachineInstance> = Api::namespaced(client, "default");
    // There are no guests, and the node has room for as many launchers as are made.
    let next_to_nothing = serde_json::json!({
        "requests": {"memory": "1Mi", "cpu": "1m"}, "overcommitGuestOverhead": true,
    });
    make(&vmis, "primer", IMAGE, &next_to_nothing).await?;
    let mut running = BTreeMap::new();
    until(&vmis, 1, &mut running).await?;
    println!("\n== machines without QEMU on one berth up (API server, controllers, node agent)");
    println!(
        "{:>8} {:>9} {:>9} {:>10} {:>9} {:>14} {:>12}",
        "machines", "P50", "P95", "CPU each", "RSS", "RSS each", "CPU at rest"
    );
    let empty = resident(pid).unwrap_or(f64::NAN);
    let mut made = BTreeMap::new();
    for (index, count) in steps.iter().copied().enumerate() {
        let before = asked(audit)?;
        let (first, spent) = (made.len(), seconds(pid).unwrap_or(f64::NAN));
        let creating = async {
            for number in first..count {
                let name = format!("vm-{number}");
                made.insert(name.clone(), Instant::now());
                make(&vmis, &name, IMAGE, &next_to_nothing).await?;
                tokio::time::sleep(PACE[index.min(1)]).await;
            }
            anyhow::Ok(())
        };
        let (created, waited) = tokio::join!(creating, until(&vmis, count + 1, &mut running));
        created?;
        waited?;
        let new = f64::from(u32::try_from(count - first)?);
        let spent = (seconds(pid).unwrap_or(f64::NAN) - spent) / new;
        let after = asked(audit)?;
        let mut figures = Figures::default();
        for number in first..count {
            let name = format!("vm-{number}");
            let (at, seen) = (made.get(&name), running.get(&name));
            let (at, seen) = at.zip(seen).context("a machine that does not run")?;
            figures.add(seen.duration_since(*at).as_secs_f64() * 1000.0);
        }
        let (idle, resident) = (seconds(pid), resident(pid).unwrap_or(f64::NAN));
        tokio::time::sleep(REST).await;
        let idle = seconds(pid)
            .zip(idle)
            .map_or(f64::NAN, |(now, then)| now - then);
        println!(
            "{count:>8} {:>6.0} ms {:>6.0} ms {:>7.1} ms {resident:>5.0} MiB {:>10.0} KiB {:>10.2} %",
            figures.percentile(0.5),
            figures.percentile(0.95),
            spent * 1000.0,
            (resident - empty) * 1024.0 / f64::from(u32::try_from(count)?),
            idle / REST.as_secs_f64() * 100.0,
        );
        if index == 0 {
            show(&before, &after, new);
        }
    }
    let took = delete_all(&vmis).await?;
    println!("all deleted after {:.1} s", took.as_secs_f64());
    Ok(())
}

/// What the API server was asked so far: resource and verb → how often.
type Asked = BTreeMap<(String, String), f64>;

fn asked(audit: &Path) -> anyhow::Result<Asked> {
    let mut all = Asked::new();
    for line in std::fs::read_to_string(audit)?.lines() {
        let event: serde_json::Value = serde_json::from_str(line)?;
        if event["stage"] != "ResponseComplete" {
            continue;
        }
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let (resource, sub) = (
            text(&event["objectRef"]["resource"]),
            text(&event["objectRef"]["subresource"]),
        );
        let what = if sub.is_empty() {
            resource
        } else {
            format!("{resource}/{sub}")
        };
        *all.entry((what, text(&event["verb"]))).or_default() += 1.0;
    }
    Ok(all)
}

fn show(before: &Asked, after: &Asked, machines: f64) {
    let mut total = 0.0;
    for (key, now) in after {
        let each = (now - before.get(key).unwrap_or(&0.0)) / machines;
        let (resource, verb) = key;
        let writes = matches!(&**verb, "update" | "patch");
        if each < 0.05 {
            continue;
        }
        println!("           {verb:<8} {resource:<36} {each:>6.2} a machine");
        if writes && (resource.starts_with("virtualmachineinstances") || resource == "pods") {
            total += each;
        }
    }
    println!(
        "           updates and patches of machine and pod {total:>12.2}   goal: at most 5; KubeVirt's figure {UPSTREAM}, ratio {:.2}",
        total / UPSTREAM
    );
}
