//! `kill -9` of a server process at random points under load, again and again on the same file.
//!
//! The process is this test binary, started anew each round: an API server with writers and a watcher in it. It says on
//! its standard output what it tries, what was acknowledged and what the watcher saw; the test holds the file to that.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_apiserver::store::durable::RedbStore;
use berth_apiserver::store::{Query, Store as _};
use berth_apiserver::{Access, AdmitAll, ApiServer, Options, Tuning};
use futures::StreamExt as _;
use http::{Request, StatusCode};
use kube::Client;
use rand::Rng as _;
use serde_json::{Value, json};

const ROUNDS: u32 = 200;
const WRITERS: u64 = 6;
/// Objects of one writer.
const OBJECTS: u64 = 4;
const DIR: &str = "BERTH_TEST_KILL_DIR";
const FROM: &str = "BERTH_TEST_KILL_FROM";
const ROUND: &str = "BERTH_TEST_KILL_ROUND";
const URI: &str = "/api/v1/namespaces/default/configmaps";

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n@{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Not a test of its own: the server that the next test kills.
#[test]
fn serves_until_killed() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
        let options = Options {
            data_dir: dir.into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            server_names: Vec::new(),
            admission: Arc::new(AdmitAll),
            crds: Vec::new(),
            access: Access::default(),
        };
        // With a journal, and without one.
        let tuning = Tuning {
            journal_after: Duration::from_secs(60 * (number(ROUND) % 2)),
            ..Tuning::default()
        };
        let server = ApiServer::open_tuned(options, tuning).await.unwrap();
        let client = server.client("test");
        let list = common::ok(&client, "GET", URI, &Value::Null).await;
        let mut present = BTreeMap::new();
        for item in list["items"].as_array().unwrap() {
            let metadata = &item["metadata"];
            let name = metadata["name"].as_str().unwrap().to_owned();
            present.insert(name, metadata["resourceVersion"].clone());
        }
        tokio::spawn(watch(server.client("test"), number(FROM)));
        let round = number(ROUND);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let client = server.client("test");
                tokio::spawn(write(client, writer, round * 1_000_000, present.clone()))
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

/// Creates, replaces and deletes its own objects, one after the other.
async fn write(client: Client, writer: u64, start: u64, mut present: BTreeMap<String, Value>) {
    for n in start.. {
        let name = format!("w{writer}-{}", n % OBJECTS);
        let uri = format!("{URI}/{name}");
        let mut object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
            "data": {"n": n.to_string(), "fill": fill(n)},
        });
        let (method, uri, value) = match present.get(&name) {
            Some(_) if n % 7 == 0 => ("DELETE", uri, None),
            Some(revision) => {
                object["metadata"]["resourceVersion"] = revision.clone();
                ("PUT", uri, Some(n))
            }
            None => ("POST", URI.to_owned(), Some(n)),
        };
        let shown = value.map_or("-".to_owned(), |n| n.to_string());
        say(&format!("try {name} {shown}"));
        let body = if value.is_some() { object } else { Value::Null };
        let answer = common::ok(&client, method, &uri, &body).await;
        say(&format!("ack {name} {shown}"));
        match value {
            Some(_) => present.insert(name, answer["metadata"]["resourceVersion"].clone()),
            None => present.remove(&name),
        };
    }
}

/// Goes on from a revision; lists anew when it is told that it cannot.
async fn watch(client: Client, mut from: u64) {
    loop {
        let uri = format!("{URI}?watch=true&resourceVersion={from}");
        let request = Request::get(uri).body(kube::client::Body::empty()).unwrap();
        let response = client.send(request).await.unwrap();
        if response.status() == StatusCode::GONE {
            let list = common::ok(&client, "GET", URI, &Value::Null).await;
            say("expired");
            for item in list["items"].as_array().unwrap() {
                let name = item["metadata"]["name"].as_str().unwrap();
                if let Some(n) = number(item) {
                    say(&format!("listed {name} {n}"));
                }
            }
            from = revision(&list);
            say(&format!("from {from}"));
            continue;
        }
        assert_eq!(response.status(), StatusCode::OK);
        say("resumed");
        let mut body = http_body_util::BodyStream::new(response.into_body());
        let mut text = Vec::new();
        while let Some(frame) = body.next().await {
            text.extend_from_slice(&frame.unwrap().into_data().unwrap());
            while let Some(end) = text.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line).unwrap();
                let object = &event["object"];
                let kind = event["type"].as_str().unwrap();
                let name = object["metadata"]["name"].as_str().unwrap();
                if let Some(n) = number(object) {
                    say(&format!("saw {kind} {name} {n} {}", revision(object)));
                }
            }
        }
        panic!("the watch ended");
    }
}

/// The number in one of our objects; each namespace has one that is not.
fn number(object: &Value) -> Option<u64> {
    object["data"]["n"].as_str().map(|n| n.parse().unwrap())
}

fn revision(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str().unwrap();
    text.parse().unwrap()
}

/// Long enough for several pages, and different for each number.
fn fill(n: u64) -> String {
    format!(
        "<{}>",
        n.to_string().repeat(usize::try_from(n % 900).unwrap())
    )
}

/// What the file must hold, and what the watcher believes.
#[derive(Default)]
struct Model {
    /// Acknowledged: the number, or that it is deleted.
    acked: BTreeMap<String, Option<u64>>,
    /// Tried after that and not acknowledged.
    tried: BTreeMap<String, Option<u64>>,
    seen: BTreeMap<String, (u64, u64)>,
    /// The last revision that the watcher saw.
    at: u64,
    /// Between being told 410 and having the whole list.
    relisting: bool,
}

impl Model {
    fn hear(&mut self, line: &str, head: u64) {
        let words: Vec<&str> = line.split(' ').collect();
        let value = |word: &str| (word != "-").then(|| word.parse().unwrap());
        match words.as_slice() {
            ["try", name, n] => {
                self.tried.insert((*name).to_owned(), value(n));
            }
            ["ack", name, n] => {
                assert_eq!(self.tried.remove(*name), Some(value(n)));
                self.acked.insert((*name).to_owned(), value(n));
            }
            ["expired"] => {
                assert!(self.at < head, "told 410 at {} of {head}", self.at);
                self.seen.clear();
                self.relisting = true;
            }
            ["listed", name, n] => {
                self.seen
                    .insert((*name).to_owned(), (n.parse().unwrap(), 0));
            }
            ["from", at] => {
                self.at = at.parse().unwrap();
                self.relisting = false;
            }
            ["resumed"] => assert!(self.at >= head, "resumed at {} of {head}", self.at),
            ["saw", kind, name, n, revision] => {
                let (n, revision) = (n.parse().unwrap(), revision.parse().unwrap());
                assert!(revision > self.at, "{line} after {}: a double", self.at);
                self.at = revision;
                let known = if *kind == "DELETED" {
                    self.seen.remove(*name)
                } else {
                    self.seen.insert((*name).to_owned(), (n, revision))
                };
                assert_eq!(known.is_none(), *kind == "ADDED", "{line}: a gap before it");
            }
            other => panic!("{other:?}"),
        }
    }

    /// Compares with the file; what was in flight is settled by it. Returns the store's revision.
    fn judge(&mut self, path: &Path) -> u64 {
        let store = RedbStore::open(path).unwrap();
        let query = Query {
            resource: "/configmaps".into(),
            namespace: Some("default".into()),
            after: None,
            limit: None,
        };
        let page = store.list(&query).unwrap();
        let mut found = BTreeMap::new();
        for stored in &page.items {
            let object: Value = serde_json::from_slice(&stored.value).expect("a whole object");
            let Some(n) = number(&object) else {
                continue;
            };
            assert_eq!(object["data"]["fill"], fill(n), "half of a write");
            found.insert(stored.key.name.clone(), (n, stored.revision));
        }
        let names: Vec<String> = self
            .acked
            .keys()
            .chain(self.tried.keys())
            .cloned()
            .collect();
        for name in names {
            let now = found.get(&name).map(|(n, _)| *n);
            let acked = self.acked.get(&name).copied().flatten();
            assert!(
                now == acked || self.tried.get(&name) == Some(&now),
                "{name}: {now:?}, acknowledged {acked:?}, tried {:?}",
                self.tried.get(&name)
            );
            self.acked.insert(name, now);
        }
        self.tried.clear();
        assert!(self.at <= page.revision, "a watcher saw what is not there");
        if self.relisting {
            return page.revision;
        }
        for (name, (n, revision)) in &found {
            if *revision <= self.at {
                let seen = self.seen.get(name).map(|(n, _)| *n);
                assert_eq!(seen, Some(*n), "{name}: the watcher missed it");
            }
        }
        if self.at == page.revision {
            assert_eq!(self.seen.len(), found.len());
        }
        page.revision
    }
}

#[test]
fn no_acknowledged_write_is_lost_in_200_kills() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("apiserver/store.redb");
    let mut model = Model::default();
    let (mut head, mut acknowledged, mut undecided) = (0, 0, 0);
    let start = Instant::now();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "serves_until_killed", "--nocapture"])
            .env(DIR, dir.path())
            .env(FROM, model.at.to_string())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut child = Some(child);
        // From the first acknowledgement on any moment will do.
        let after = Duration::from_micros(rand::rng().random_range(0..40_000));
        let mut killer = None;
        let before = acknowledged;
        for line in output.lines() {
            let line = line.unwrap();
            let Some(line) = line.strip_prefix('@') else {
                continue;
            };
            if line.starts_with("ack ") {
                acknowledged += 1;
                if let Some(mut child) = child.take() {
                    killer = Some(std::thread::spawn(move || {
                        std::thread::sleep(after);
                        child.kill().unwrap();
                        child.wait().unwrap();
                    }));
                }
            }
            model.hear(line, head);
        }
        assert!(acknowledged > before, "round {round} did nothing");
        killer.unwrap().join().unwrap();
        undecided += model.tried.len();
        head = model.judge(&path);
    }
    println!(
        "{ROUNDS} kills, {acknowledged} acknowledged writes, {undecided} in flight, {} s",
        start.elapsed().as_secs()
    );
    assert!(undecided > 0, "the load was never interrupted");
}
