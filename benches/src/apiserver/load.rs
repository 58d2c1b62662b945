//! What is asked of a server, and how long it takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use berth_e2e::manifest;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::task::JoinSet;

use super::client::{Address, Client};
use crate::figures::Figures;

/// The collection that everything is about.
pub(crate) const VMIS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
/// Clients that fill a server, and those of the mixed load.
const CLIENTS: usize = 16;
/// Requests of one kind, one after the other.
const REQUESTS: usize = 200;
const LISTS: usize = 5;
const WATCHERS: usize = 100;
/// Writes that all watchers have to see.
const SEEN: usize = 50;
const MIXED: Duration = Duration::from_secs(8);

/// A VMI as JSON.
pub(crate) fn vmi(name: &str) -> anyhow::Result<Bytes> {
    let object: Value = serde_saphyr::from_str(&manifest(name, "registry.example/disk:1", "64Mi"))
        .context("manifest")?;
    Ok(object.to_string().into())
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Creates VMIs `fill-FROM` to `fill-TO` with many clients; objects a second.
pub(crate) async fn fill(address: &Address, from: usize, to: usize) -> anyhow::Result<f64> {
    let next = Arc::new(AtomicUsize::new(from));
    let mut tasks = JoinSet::new();
    let begin = Instant::now();
    for _ in 0..CLIENTS {
        let (address, next) = (address.clone(), next.clone());
        tasks.spawn(async move {
            let mut client = address.connect().await?;
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= to {
                    return anyhow::Ok(());
                }
                let body = vmi(&format!("fill-{index:06}"))?;
                client.ok("POST", VMIS, body).await?;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of objects")]
    Ok((to - from) as f64 / begin.elapsed().as_secs_f64())
}

/// Create, get, update, delete, one after the other on one connection; milliseconds each.
pub(crate) struct Single {
    pub(crate) create: Figures,
    pub(crate) get: Figures,
    pub(crate) update: Figures,
    pub(crate) delete: Figures,
}

pub(crate) async fn single(address: &Address) -> anyhow::Result<Single> {
    let mut client = address.connect().await?;
    let mut out = Single {
        create: Figures::default(),
        get: Figures::default(),
        update: Figures::default(),
        delete: Figures::default(),
    };
    for index in 0..REQUESTS {
        let name = format!("single-{index}");
        let path = format!("{VMIS}/{name}");
        let body = vmi(&name)?;
        let begin = Instant::now();
        client.ok("POST", VMIS, body).await?;
        out.create.add(millis(begin));
        let begin = Instant::now();
        let read = client.ok("GET", &path, "").await?;
        out.get.add(millis(begin));
        let mut object: Value = serde_json::from_slice(&read)?;
        object["metadata"]["annotations"]["bench"] = "updated".into();
        let body = object.to_string();
        let begin = Instant::now();
        client.ok("PUT", &path, body).await?;
        out.update.add(millis(begin));
    }
    // Gone again: the next size begins from the same.
    for index in 0..REQUESTS {
        let path = format!("{VMIS}/single-{index}");
        // Admission puts a finalizer on; it goes first, as its controller would take it off.
        let free = r#"[{"op":"add","path":"/metadata/finalizers","value":[]}]"#;
        patch(&mut client, &path, free).await?;
        let begin = Instant::now();
        client.ok("DELETE", &path, "").await?;
        out.delete.add(millis(begin));
    }
    Ok(out)
}

async fn patch(client: &mut Client, path: &str, body: &'static str) -> anyhow::Result<()> {
    let answer = client
        .send_as("PATCH", path, "application/json-patch+json", body.into())
        .await?;
    let code = answer.status();
    let text = answer.into_body().collect().await?.to_bytes();
    ensure!(
        code.is_success(),
        "PATCH {path}: {code}: {}",
        String::from_utf8_lossy(&text)
    );
    Ok(())
}

/// The whole collection in one answer; milliseconds, and bytes of one answer.
pub(crate) async fn list(address: &Address) -> anyhow::Result<(Figures, usize)> {
    let mut client = address.connect().await?;
    let mut figures = Figures::default();
    let mut size = 0;
    for _ in 0..LISTS {
        let begin = Instant::now();
        size = drain(&mut client, VMIS).await?;
        figures.add(millis(begin));
    }
    Ok((figures, size))
}

/// Reads an answer without keeping it.
async fn drain(client: &mut Client, path: &str) -> anyhow::Result<usize> {
    let answer = client.send("GET", path, Bytes::new()).await?;
    ensure!(
        answer.status().is_success(),
        "GET {path}: {}",
        answer.status()
    );
    let mut body = answer.into_body();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        size += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(size)
}

/// From a write to the moment when the last of all watchers has seen it; milliseconds.
pub(crate) async fn fan_out(address: &Address, run: usize) -> anyhow::Result<Figures> {
    let mut client = address.connect().await?;
    let head: Value =
        serde_json::from_slice(&client.ok("GET", &format!("{VMIS}?limit=1"), "").await?)?;
    let revision = head["metadata"]["resourceVersion"]
        .as_str()
        .context("resourceVersion of the list")?
        .to_owned();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel::<usize>();
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS {
        let mut own = address.connect().await?;
        let path = format!("{VMIS}?watch=true&resourceVersion={revision}");
        let answer = own.send("GET", &path, Bytes::new()).await?;
        ensure!(answer.status().is_success(), "watch: {}", answer.status());
        let tell = tell.clone();
        watchers.spawn(async move {
            let _connection = own;
            let mut body = answer.into_body();
            let (mut seen, mut line) = (0, Vec::new());
            while seen < SEEN {
                let frame = body.frame().await.context("the watch ended")??;
                for byte in frame.data_ref().into_iter().flatten() {
                    line.push(*byte);
                    if *byte == b'\n' {
                        // Where in the line it stands is the server's affair.
                        ensure!(
                            line.windows(14).any(|part| part == b"\"type\":\"ADDED\""),
                            "no ADDED event: {}",
                            String::from_utf8_lossy(&line)
                        );
                        tell.send(seen)?;
                        seen += 1;
                        line.clear();
                    }
                }
            }
            anyhow::Ok(())
        });
    }
    // Only watchers tell now: when one fails, the wait below ends.
    drop(tell);
    let mut figures = Figures::default();
    for index in 0..SEEN {
        let body = vmi(&format!("seen-{run}-{index}"))?;
        let begin = Instant::now();
        client.ok("POST", VMIS, body).await?;
        for _ in 0..WATCHERS {
            let told = tokio::time::timeout(Duration::from_secs(30), told.recv()).await;
            let Some(number) = told.context("not all watchers saw a write within 30 s")? else {
                break;
            };
            ensure!(number == index, "event {number} instead of {index}");
        }
        figures.add(millis(begin));
    }
    while let Some(done) = watchers.join_next().await {
        done??;
    }
    Ok(figures)
}

/// Many clients at once: half of what they do is reading one object, a quarter replacing one, a tenth listing a page, the
/// rest creating. Requests a second; replaces that met another's count as done, they were answered.
pub(crate) async fn mixed(address: &Address, objects: usize, run: usize) -> anyhow::Result<f64> {
    let done = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let end = Instant::now() + MIXED;
    for number in 0..CLIENTS {
        let (address, done) = (address.clone(), done.clone());
        tasks.spawn(async move {
            let mut client = address.connect().await?;
            // A sequence of its own for each client, the same in each run.
            let mut state = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(number as u64 + 1);
            let mut round = 0;
            while Instant::now() < end {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let pick = usize::try_from(state >> 33).unwrap_or(0);
                let path = format!("{VMIS}/fill-{:06}", pick % objects);
                match state % 20 {
                    0..10 => {
                        client.ok("GET", &path, "").await?;
                    }
                    10..15 => {
                        let read = client.ok("GET", &path, "").await?;
                        let mut object: Value = serde_json::from_slice(&read)?;
                        object["metadata"]["annotations"]["bench"] = state.to_string().into();
                        let (code, text) = client.ask("PUT", &path, object.to_string()).await?;
                        ensure!(
                            code.is_success() || code == http::StatusCode::CONFLICT,
                            "PUT {path}: {code}: {}",
                            String::from_utf8_lossy(&text)
                        );
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    15..17 => {
                        drain(&mut client, &format!("{VMIS}?limit=100")).await?;
                    }
                    _ => {
                        let body = vmi(&format!("mixed-{run}-{number}-{round}"))?;
                        client.ok("POST", VMIS, body).await?;
                    }
                }
                round += 1;
                done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of requests")]
    Ok(done.load(Ordering::Relaxed) as f64 / MIXED.as_secs_f64())
}
