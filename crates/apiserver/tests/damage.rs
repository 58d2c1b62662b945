//! What can happen to the store's file and its disk: the server refuses to start or to write, says which file it is
//! about, and loses nothing that was acknowledged.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use berth_apiserver::store::durable::RedbStore;
use berth_apiserver::store::{Expect, Key, Store as _, StoreError, Write};
use berth_apiserver::{Access, AdmitAll, ApiServer, Options, Tuning};
use bytes::Bytes;
use common::{Server, call, chain, config_map, ok};
use http::StatusCode;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tempfile::TempDir;

const COUNT: usize = 150;
const URI: &str = "/api/v1/namespaces/default/configmaps";

fn key(n: usize) -> Key {
    Key::new(&"/things".into(), "ns", &format!("n{n}"))
}

fn value(n: usize) -> Bytes {
    format!("<{}>", n.to_string().repeat(n)).into()
}

/// A store with acknowledged writes in it; its path.
async fn filled(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("apiserver/store.redb");
    let store = RedbStore::open(&path).unwrap();
    fill(&store).await;
    path
}

/// The same, as a kill leaves it: what was acknowledged is in the journal.
async fn killed(dir: &TempDir) -> PathBuf {
    let running = dir.path().join("running/store.redb");
    let store = RedbStore::open(&running).unwrap();
    fill(&store).await;
    let path = dir.path().join("apiserver/store.redb");
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    std::fs::copy(&running, &path).unwrap();
    std::fs::copy(journal(&running), journal(&path)).unwrap();
    path
}

fn journal(path: &Path) -> PathBuf {
    path.with_extension("redb.journal")
}

async fn fill(store: &RedbStore) {
    let writes = (0..COUNT).map(|n| {
        store.write(Write {
            key: key(n),
            expect: Expect::Absent,
            value: Some(value(n)),
        })
    });
    for done in futures::future::join_all(writes).await {
        done.unwrap();
    }
}

/// How a file that may be damaged is taken.
#[derive(Debug, PartialEq)]
enum Taken {
    Refused(String),
    /// With so many objects, each as it was acknowledged.
    Whole,
    /// It opens, and says of some object that it cannot be read.
    Says(String),
}

fn take(path: &Path) -> Taken {
    let store = match RedbStore::open(path) {
        Ok(store) => store,
        Err(e) => return Taken::Refused(e.to_string()),
    };
    for n in 0..COUNT {
        match store.get(&key(n)) {
            Ok(found) => assert_eq!(
                found.map(|stored| stored.value),
                Some(value(n)),
                "n{n} is not what was acknowledged, and nothing is said"
            ),
            Err(e) => return Taken::Says(e.to_string()),
        }
    }
    Taken::Whole
}

fn options(dir: &Path) -> Options {
    Options {
        data_dir: dir.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        server_names: Vec::new(),
        admission: Arc::new(AdmitAll),
        crds: Vec::new(),
        access: Access::default(),
    }
}

/// The server does not start; what it says.
async fn refusal(dir: &Path) -> String {
    match ApiServer::open(options(dir)).await {
        Ok(_) => panic!("it starts"),
        Err(e) => chain(&e),
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = filled(&dir).await;
    let good = std::fs::read(&path).unwrap();
    for (what, bytes) in [
        ("empty", Vec::new()),
        ("garbage", vec![0x5a; 100_000]),
        ("zeros", vec![0; 100_000]),
        ("the head only", good[..4096].to_vec()),
        ("the first half", good[..good.len() / 2].to_vec()),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        let said = refusal(dir.path()).await;
        assert!(
            said.contains(path.to_str().unwrap()) && said.contains("damaged"),
            "{what}: {said}"
        );
        let after = std::fs::read(&path).unwrap();
        assert_eq!(after.len(), bytes.len(), "{what}: it was not touched");
    }
    std::fs::write(&path, &good).unwrap();
    assert_eq!(take(&path), Taken::Whole);
}

#[tokio::test]
async fn a_cut_or_torn_end_is_refused_or_was_free() {
    let dir = tempfile::tempdir().unwrap();
    let path = filled(&dir).await;
    let good = std::fs::read(&path).unwrap();
    for pages in 1..=24 {
        let kept = good.len().saturating_sub(pages * 4096);
        std::fs::write(&path, &good[..kept]).unwrap();
        assert!(!matches!(take(&path), Taken::Says(_)), "cut by {pages}");
        // As a disk leaves a page whose second half it had no time for.
        let mut torn = good.clone();
        torn[kept + 2048..kept + 4096].fill(0);
        std::fs::write(&path, &torn).unwrap();
        take(&path);
    }
    std::fs::write(&path, &good).unwrap();
    assert_eq!(take(&path), Taken::Whole);
}

#[tokio::test]
async fn the_journal_is_needed_and_whole_or_the_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = killed(&dir).await;
    let database = std::fs::read(&path).unwrap();
    let good = std::fs::read(journal(&path)).unwrap();
    let used = good.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let put = |bytes: &[u8]| {
        std::fs::write(&path, &database).unwrap();
        std::fs::write(journal(&path), bytes).unwrap();
    };
    for (what, bytes) in [
        ("empty", &[][..]),
        ("cut", &good[..good.len() - 1]),
        ("half", &good[..used / 2]),
    ] {
        put(bytes);
        let said = refusal(dir.path()).await;
        assert!(
            said.contains(journal(&path).to_str().unwrap()) && said.contains("damaged"),
            "{what}: {said}"
        );
    }
    put(&good);
    std::fs::remove_file(journal(&path)).unwrap();
    let said = refusal(dir.path()).await;
    assert!(said.contains("it is missing"), "{said}");

    // Every part of it counts, but for what is free.
    let mut random = rand::rngs::StdRng::seed_from_u64(11);
    let mut refused = 0;
    for round in 0..150 {
        let mut bad = good.clone();
        let at = match round {
            0..20 => random.random_range(0..76),
            // The last write that was acknowledged.
            20..50 => random.random_range(used - 100..used),
            _ => random.random_range(4096..used),
        };
        bad[at] ^= 1 << random.random_range(0..8);
        put(&bad);
        match take(&path) {
            Taken::Refused(_) => refused += 1,
            Taken::Whole => assert!((20..64).contains(&at), "byte {at}"),
            Taken::Says(said) => panic!("byte {at}: {said}"),
        }
    }
    assert!(refused > 130, "only {refused} were noticed");

    // A write that was under way is none.
    let mut torn = good.clone();
    torn[used..used + 300].fill(0x5a);
    put(&torn);
    assert_eq!(take(&path), Taken::Whole);
    put(&good);
    assert_eq!(take(&path), Taken::Whole);
    // It was closed in order: the file stands alone.
    std::fs::remove_file(journal(&path)).unwrap();
    assert_eq!(take(&path), Taken::Whole);
}

#[tokio::test]
async fn a_journal_that_was_filled_many_times_holds_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let running = dir.path().join("running/store.redb");
    let store = RedbStore::open(&running).unwrap();
    let value = |n: usize| Bytes::from(vec![b'a' + (n % 26) as u8; 30_000]);
    let other = dir.path().join("store.redb");
    let mut head = 0;
    for n in 0..700 {
        head = store
            .write(Write {
                key: key(n),
                expect: Expect::Absent,
                value: Some(value(n)),
            })
            .await
            .unwrap();
        if n % 37 == 0 || n == 699 {
            std::fs::copy(&running, &other).unwrap();
            std::fs::copy(journal(&running), journal(&other)).unwrap();
            let crashed = RedbStore::open(&other).unwrap();
            assert_eq!(crashed.ring().head(), head);
            for n in 0..=n {
                let found = crashed.get(&key(n)).unwrap();
                assert_eq!(found.map(|stored| stored.value), Some(value(n)), "n{n}");
            }
        }
    }
    // One that is larger than the journal.
    let huge = Bytes::from(vec![b'h'; 5 << 20]);
    let write = Write {
        key: key(1000),
        expect: Expect::Absent,
        value: Some(huge.clone()),
    };
    assert_eq!(store.write(write).await.unwrap(), head + 1);
    std::fs::copy(&running, &other).unwrap();
    std::fs::copy(journal(&running), journal(&other)).unwrap();
    let crashed = RedbStore::open(&other).unwrap();
    let found = crashed.get(&key(1000)).unwrap();
    assert_eq!(found.map(|stored| stored.value), Some(huge));
}

#[tokio::test]
async fn a_flipped_bit_is_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = filled(&dir).await;
    let good = std::fs::read(&path).unwrap();
    let mut random = rand::rngs::StdRng::seed_from_u64(7);
    let mut refused = 0;
    for round in 0..200 {
        let mut bad = good.clone();
        // Half of them in the header and the first pages, where the structure is.
        let end = if round % 2 == 0 { 8192 } else { bad.len() };
        let at = random.random_range(0..end);
        bad[at] ^= 1 << random.random_range(0..8);
        std::fs::write(&path, &bad).unwrap();
        // `take` fails where a changed object is served.
        refused += usize::from(take(&path) != Taken::Whole);
    }
    assert!(refused > 10, "only {refused} were noticed");
}

#[tokio::test]
async fn a_file_that_is_in_use_is_not_opened_twice() {
    let server = Server::start().await;
    let said = refusal(server.dir.path()).await;
    assert!(
        said.contains("store.redb") && said.contains("another process has it open"),
        "{said}"
    );
    ok(&server.client(), "POST", URI, &config_map("still-works")).await;
}

#[tokio::test]
async fn the_file_is_its_owners_alone() {
    let server = Server::start().await;
    let meta = std::fs::metadata(server.dir.path().join("apiserver/store.redb")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&meta.permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn the_size_limit_refuses_growth_and_nothing_else() {
    let tuning = Tuning {
        store_limit: 300_000,
        ..Tuning::default()
    };
    let server = Server::tuned(tuning).await;
    let client = server.client();
    let big = |name: &str| {
        let mut object = config_map(name);
        object["data"]["fill"] = json!("x".repeat(50_000));
        object
    };
    let mut made = 0;
    let refused = loop {
        let (code, answer) = call(&client, "POST", URI, &big(&format!("n{made}"))).await;
        if code != StatusCode::CREATED {
            break (code, answer);
        }
        made += 1;
        assert!(made < 10);
    };
    assert!(made >= 3);
    assert_eq!(refused.0, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(refused.1["reason"], "InternalError");
    let text = refused.1["message"].as_str().unwrap();
    assert!(text.contains("mvcc: database space exceeded"), "{text}");

    let list = ok(&client, "GET", URI, &Value::Null).await;
    // Each namespace has one of its own.
    assert_eq!(list["items"].as_array().unwrap().len(), made + 1);
    // What makes it smaller is accepted, and then there is room again.
    let smaller = ok(&client, "GET", &format!("{URI}/n0"), &Value::Null).await;
    let mut smaller = smaller;
    smaller["data"] = json!({});
    ok(&client, "PUT", &format!("{URI}/n0"), &smaller).await;
    ok(&client, "DELETE", &format!("{URI}/n1"), &Value::Null).await;
    ok(&client, "POST", URI, &big("again")).await;
}

/// A small file system of its own; unmounted at the end.
struct Disk(TempDir);

impl Disk {
    fn new(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(dir)),
            other => {
                println!("SKIPPED: cannot mount a file system: {other:?}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

#[tokio::test]
async fn a_full_disk_costs_the_writes_that_find_it_full() {
    let Some(disk) = Disk::new("size=16m") else {
        return;
    };
    let ballast = disk.path().join("ballast");
    let tuning = Tuning {
        journal_after: std::time::Duration::ZERO,
        ..Tuning::default()
    };
    let server = ApiServer::open_tuned(options(disk.path()), tuning)
        .await
        .unwrap();
    let client = server.client("test");
    ok(&client, "POST", URI, &config_map("before")).await;
    let watched = ok(&client, "GET", URI, &Value::Null).await;
    let from = watched["metadata"]["resourceVersion"].as_str().unwrap();
    std::fs::write(&ballast, vec![1; 6 << 20]).unwrap();

    let big = |n: usize| {
        let mut object = config_map(&format!("n{n}"));
        object["data"]["fill"] = json!(n.to_string().repeat(200_000));
        object
    };
    let mut acknowledged = Vec::new();
    let mut refused = None;
    for n in 0..40 {
        let (code, answer) = call(&client, "POST", URI, &big(n)).await;
        if code.is_success() {
            acknowledged.push(n);
        } else {
            refused.get_or_insert((code, answer));
        }
    }
    let (code, answer) = refused.expect("the disk gets full");
    assert_eq!(code, StatusCode::INTERNAL_SERVER_ERROR);
    let text = answer["message"].as_str().unwrap();
    assert!(
        text.contains("the disk is full") && text.contains("store.redb"),
        "{text}"
    );
    assert!(!acknowledged.is_empty());
    let whole = async |client: &kube::Client| {
        for n in &acknowledged {
            let found = ok(client, "GET", &format!("{URI}/n{n}"), &Value::Null).await;
            assert_eq!(found["data"], big(*n)["data"], "n{n}");
        }
    };
    whole(&client).await;

    // The same server writes again once there is room.
    std::fs::remove_file(&ballast).unwrap();
    ok(&client, "POST", URI, &config_map("after")).await;
    whole(&client).await;
    // A watch from before sees what was acknowledged and only that.
    let uri = format!("{URI}?watch=true&timeoutSeconds=1&resourceVersion={from}");
    let request = http::Request::get(uri).body(kube::client::Body::empty());
    let response = client.send(request.unwrap()).await.unwrap();
    let body = http_body_util::BodyExt::collect(response.into_body()).await;
    let body = body.unwrap().to_bytes();
    let names: Vec<String> = body
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            let event: Value = serde_json::from_slice(line).unwrap();
            event["object"]["metadata"]["name"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let expected: Vec<String> = acknowledged.iter().map(|n| format!("n{n}")).collect();
    assert_eq!(
        names.split_last(),
        Some((&"after".to_owned(), expected.as_slice()))
    );

    drop((client, server));
    let again = ApiServer::open(options(disk.path())).await.unwrap();
    whole(&again.client("test")).await;
}

#[tokio::test]
async fn a_read_only_directory_is_refused_by_name() {
    let Some(disk) = Disk::new("size=12m") else {
        return;
    };
    drop(ApiServer::open(options(disk.path())).await.unwrap());
    // The server has let go of the file when it can be opened.
    let path = disk.path().join("apiserver/store.redb");
    drop(tokio::task::spawn_blocking(move || RedbStore::open(&path).unwrap()).await);
    let remounted = Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(disk.path())
        .status()
        .unwrap();
    assert!(remounted.success());
    let said = refusal(disk.path()).await;
    assert!(
        said.contains("store.redb") && said.to_lowercase().contains("read-only"),
        "{said}"
    );
}

#[tokio::test]
async fn a_failed_commit_is_told_to_each_writer() {
    let Some(disk) = Disk::new("size=7m") else {
        return;
    };
    let store = RedbStore::open(&disk.path().join("store.redb")).unwrap();
    let writes = (0..40).map(|n| {
        store.write(Write {
            key: key(n),
            expect: Expect::Absent,
            value: Some(vec![b'x'; 200_000].into()),
        })
    });
    let done = futures::future::join_all(writes).await;
    assert!(
        done.iter()
            .any(|r| matches!(r, Err(StoreError::Commit { why, .. }) if why.contains("full"))),
        "{done:?}"
    );
    for (n, done) in done.iter().enumerate() {
        let found = store.get(&key(n)).unwrap();
        assert_eq!(found.is_some(), done.is_ok(), "n{n}");
    }
}
