//! The embedded API server beside the real one: kube-apiserver with etcd, in the same run, asked by the same client.
//!
//! Both serve the same VirtualMachineInstance definition over HTTPS with client certificates and acknowledge a write when
//! it is on the disk. berth runs its admission besides, which the real one has not got. The servers run one after the
//! other and never at the same time: the machine is theirs and the client's alone.

mod client;
mod load;

use std::process::Command;
use std::time::Duration;

use berth_e2e::{Need, Server, Side, berth_binary, missing, run as run_command};

use crate::figures::Figures;
use crate::memory::rss;
use client::Address;

/// Objects at which everything is measured. The last one takes minutes, so it is only made on request.
const SIZES: [usize; 2] = [1_000, 10_000];
const LARGE: usize = 100_000;
const STARTS: usize = 5;

/// What was measured of one server at one size.
struct Sample {
    objects: usize,
    fill: f64,
    single: load::Single,
    list: Figures,
    list_bytes: usize,
    fan_out: Figures,
    mixed: f64,
    rss: f64,
}

/// Everything of one server.
struct Results {
    start: Figures,
    idle_rss: f64,
    samples: Vec<Sample>,
}

/// Measures both and prints the figures side by side. `large`: with 100,000 objects too.
pub(crate) fn run(large: bool) -> anyhow::Result<()> {
    println!("\n== API server beside kube-apiserver + etcd");
    if missing("bench of the API server", &[Need::Reference]) {
        return Ok(());
    }
    let mut sizes = SIZES.to_vec();
    if large {
        sizes.push(LARGE);
    }
    let ours = measure(Side::Berth, &sizes)?;
    let theirs = measure(Side::Kubernetes, &sizes)?;
    print(&ours, &theirs);
    Ok(())
}

fn measure(side: Side, sizes: &[usize]) -> anyhow::Result<Results> {
    let mut start = Figures::default();
    for _ in 0..STARTS - 1 {
        start.add(millis(&Server::start(side)?));
    }
    let server = Server::start(side)?;
    start.add(millis(&server));
    define(&server)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    std::thread::sleep(Duration::from_secs(2));
    let mut results = Results {
        start,
        idle_rss: memory(&server)?,
        samples: Vec::new(),
    };
    runtime.block_on(async {
        let address = Address::read(server.kubeconfig()).await?;
        let mut before = 0;
        for (run, &objects) in sizes.iter().enumerate() {
            eprintln!("{}: {objects} objects", side.name());
            let fill = load::fill(&address, before, objects).await?;
            before = objects;
            let single = load::single(&address).await?;
            let (list, list_bytes) = load::list(&address).await?;
            let fan_out = load::fan_out(&address, run).await?;
            let mixed = load::mixed(&address, objects, run).await?;
            results.samples.push(Sample {
                objects,
                fill,
                single,
                list,
                list_bytes,
                fan_out,
                mixed,
                rss: memory(&server)?,
            });
        }
        anyhow::Ok(())
    })?;
    Ok(results)
}

fn millis(server: &Server) -> f64 {
    server.ready_after().as_secs_f64() * 1000.0
}

/// Resident memory of all processes of a server, in MiB.
fn memory(server: &Server) -> anyhow::Result<f64> {
    server.pids().iter().map(|pid| rss(&pid.to_string())).sum()
}

/// Gives the real one the definitions that berth's brings along.
fn define(server: &Server) -> anyhow::Result<()> {
    if server.side() == Side::Berth {
        return Ok(());
    }
    let crds = run_command(
        Command::new(berth_binary()).args(["crds", "--output", "json"]),
        "",
    )?
    .ok()?;
    server.kubectl(&["apply", "-f", "-"], &crds)?.ok()?;
    server
        .kubectl(
            &[
                "wait",
                "--for=condition=Established",
                "crd",
                "--all",
                "--timeout=60s",
            ],
            "",
        )?
        .ok()
        .map(drop)
}

fn print(ours: &Results, theirs: &Results) {
    println!(
        "{:<34} {:>28} {:>28} {:>7}",
        "", "berth", "kube-apiserver + etcd", "ratio"
    );
    let row = |what: &str, unit: &str, ours: &Figures, theirs: &Figures| {
        println!(
            "{what:<34} {:>28} {:>28} {:>6.1}x",
            ours.brief(unit),
            theirs.brief(unit),
            theirs.median() / ours.median()
        );
    };
    // A rate is better when it is larger.
    let rate = |what: &str, unit: &str, ours: f64, theirs: f64| {
        println!(
            "{what:<34} {:>28} {:>28} {:>6.1}x",
            format!("{ours:.0} {unit}"),
            format!("{theirs:.0} {unit}"),
            ours / theirs
        );
    };
    row(
        "start to ready (goal 150 ms)",
        "ms",
        &ours.start,
        &theirs.start,
    );
    rate("memory, idle", "MiB", ours.idle_rss, theirs.idle_rss);
    for (own, other) in ours.samples.iter().zip(&theirs.samples) {
        println!("-- {} objects", own.objects);
        rate("create, 16 clients", "/s", own.fill, other.fill);
        row("create", "ms", &own.single.create, &other.single.create);
        row("get", "ms", &own.single.get, &other.single.get);
        row("update", "ms", &own.single.update, &other.single.update);
        row("delete", "ms", &own.single.delete, &other.single.delete);
        row("list all", "ms", &own.list, &other.list);
        row(
            "write seen by 100 watchers",
            "ms",
            &own.fan_out,
            &other.fan_out,
        );
        rate("mixed load, 16 clients", "/s", own.mixed, other.mixed);
        rate("memory (goal 0.2x)", "MiB", own.rss, other.rss);
        #[expect(clippy::cast_precision_loss, reason = "bytes to MiB")]
        let mib = |bytes: usize| bytes as f64 / 1048576.0;
        rate(
            "size of the list",
            "MiB",
            mib(own.list_bytes),
            mib(other.list_bytes),
        );
    }
}
