//! The durable store against its model, and its durability.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_apiserver::store::durable::RedbStore;
use berth_apiserver::store::memory::MemoryStore;
use berth_apiserver::store::{Expect, Key, Query, Record, Store, StoreError, Write};
use bytes::Bytes;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Write {
        key: (u8, u8, u8),
        expect: Expected,
        value: Option<u8>,
    },
    List {
        resource: u8,
        namespace: Option<u8>,
        limit: Option<usize>,
        after: Option<(u8, u8)>,
    },
    Get {
        key: (u8, u8, u8),
    },
}

#[derive(Debug, Clone, Copy)]
enum Expected {
    Absent,
    Current,
    Stale,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || (0..2u8, 0..3u8, 0..4u8);
    let expected = prop_oneof![
        Just(Expected::Absent),
        Just(Expected::Current),
        Just(Expected::Stale)
    ];
    prop_oneof![
        3 => (key(), expected, prop::option::weighted(0.8, any::<u8>()))
            .prop_map(|(key, expect, value)| Step::Write { key, expect, value }),
        1 => (0..2u8, prop::option::of(0..3u8), prop::option::of(1..4usize), prop::option::of((0..3u8, 0..4u8)))
            .prop_map(|(resource, namespace, limit, after)| Step::List { resource, namespace, limit, after }),
        1 => key().prop_map(|key| Step::Get { key }),
    ]
}

fn resource(n: u8) -> Arc<str> {
    // One is a prefix of the other: ranges must not run over.
    ["g/a", "g/ab"][usize::from(n)].into()
}

fn key((r, ns, name): (u8, u8, u8)) -> Key {
    Key::new(
        &resource(r),
        ["", "n", "n-1"][usize::from(ns)],
        ["a", "a-b", "a.b", "b"][usize::from(name)],
    )
}

fn outcome(result: Result<u64, StoreError>) -> Result<u64, String> {
    result.map_err(|e| e.to_string())
}

async fn run(store: &dyn Store, steps: &[Step]) -> Vec<String> {
    let mut seen = Vec::new();
    let mut subscription = store.ring().subscribe(store.ring().head()).unwrap();
    let mut written = 0;
    for step in steps {
        seen.push(match step {
            Step::Write {
                key: k,
                expect,
                value,
            } => {
                let key = key(*k);
                let current = store.get(&key).unwrap().map_or(7, |stored| stored.revision);
                let expect = match expect {
                    Expected::Absent => Expect::Absent,
                    Expected::Current => Expect::Revision(current),
                    Expected::Stale => Expect::Revision(current.wrapping_add(1)),
                };
                let value = value.map(|v| Bytes::from(vec![v; 10]));
                let done = store.write(Write { key, expect, value }).await;
                written += usize::from(done.is_ok());
                format!("{:?}", outcome(done))
            }
            Step::List {
                resource: r,
                namespace,
                limit,
                after,
            } => {
                let query = Query {
                    resource: resource(*r),
                    namespace: namespace.map(|ns| ["", "n", "n-1"][usize::from(ns)].to_owned()),
                    after: after.map(|(ns, name)| key((*r, ns, name))),
                    limit: *limit,
                };
                let (listed, count) = (store.list(&query).unwrap(), store.count(&query).unwrap());
                format!("{listed:?} of {count}")
            }
            Step::Get { key: k } => {
                let (key, stored) = (key(*k), store.get(&key(*k)).unwrap());
                let revision = store.revision(&key).unwrap();
                assert_eq!(revision, stored.as_ref().map(|stored| stored.revision));
                format!("{stored:?}")
            }
        });
    }
    while written > 0 {
        for event in subscription.next().await.unwrap() {
            seen.push(format!("{event:?}"));
            written -= 1;
        }
    }
    seen
}

/// All that a store holds.
fn everything(store: &dyn Store) -> (u64, Vec<Record>) {
    let snapshot = store.snapshot().unwrap();
    (
        snapshot.revision,
        snapshot.records.map(Result::unwrap).collect(),
    )
}

/// What is there after a kill at this moment, in another place.
fn crash(path: &Path, to: &Path) -> PathBuf {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(path.parent().unwrap()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    to.join(path.file_name().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_durable_store_behaves_as_its_model(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("store.redb");
            let durable = RedbStore::open(&path).unwrap();
            let model = MemoryStore::default();
            let (ours, theirs) = (run(&durable, &steps).await, run(&model, &steps).await);
            prop_assert_eq!(ours, theirs);
            // A crash here and now, one right after it has been opened again, and an orderly end.
            let crashed = crash(&path, &dir.path().join("crashed"));
            let again = RedbStore::open(&crashed).unwrap();
            prop_assert_eq!(everything(&again), everything(&model));
            let twice = RedbStore::open(&crash(&crashed, &dir.path().join("twice"))).unwrap();
            prop_assert_eq!(everything(&twice), everything(&model));
            prop_assert_eq!(run(&twice, &steps).await, run(&model, &steps).await);
            drop(twice);
            let twice = RedbStore::open(&dir.path().join("twice/store.redb")).unwrap();
            prop_assert_eq!(everything(&twice), everything(&model));
            Ok(())
        })?;
    }
}

fn put(name: &str, value: &str) -> Write {
    let value = Some(Bytes::copy_from_slice(value.as_bytes()));
    Write {
        key: Key::new(&"/things".into(), "ns", name),
        expect: Expect::Absent,
        value,
    }
}

#[tokio::test]
async fn objects_and_revision_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    let first = store.write(put("a", "1")).await.unwrap();
    let second = store.write(put("b", "2")).await.unwrap();
    let before = store.ring().subscribe(first);
    assert!(before.is_ok());
    drop(before);
    drop(store);

    let store = RedbStore::open(&path).unwrap();
    let found = store
        .get(&Key::new(&"/things".into(), "ns", "b"))
        .unwrap()
        .unwrap();
    assert_eq!(
        (found.revision, found.value.as_ref()),
        (second, b"2".as_ref())
    );
    assert!(
        store.ring().subscribe(first).is_err(),
        "the history does not survive, and says so"
    );
    assert!(store.ring().subscribe(second).is_ok());
    assert_eq!(store.write(put("c", "3")).await.unwrap(), second + 1);
}

#[test]
fn the_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("apiserver/store.redb");
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    drop(RedbStore::open(&path).unwrap());
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(mode(&path), 0o600);
    // One that was left open by an earlier version is closed.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    drop(RedbStore::open(&path).unwrap());
    assert_eq!(mode(&path), 0o600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_writers_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(RedbStore::open(&dir.path().join("store.redb")).unwrap());
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { store.write(put("same", &n.to_string())).await.is_ok() })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        won += u32::from(task.await.unwrap());
    }
    assert_eq!(won, 1);
}

const CHILD: &str = "BERTH_TEST_STORE";

/// Not a test of its own: the process that the next test kills. Prints each name once its write is acknowledged.
#[tokio::test]
async fn writes_until_killed() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let store = RedbStore::open(std::path::Path::new(&path)).unwrap();
    for n in 0.. {
        let name = format!("n{n}");
        store.write(put(&name, &name)).await.unwrap();
        println!("acknowledged {name}");
    }
}

#[tokio::test]
async fn acknowledged_writes_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writes_until_killed", "--nocapture"])
        .env(CHILD, &path)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut acknowledged = Vec::new();
    for line in lines {
        // The harness prints on the same stream, without a line end of its own.
        if let Some((_, name)) = line.unwrap().split_once("acknowledged ") {
            acknowledged.push(name.to_owned());
        }
        if acknowledged.len() == 40 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(acknowledged.len() >= 40);

    let store = RedbStore::open(&path).unwrap();
    for name in &acknowledged {
        let found = store.get(&Key::new(&"/things".into(), "ns", name)).unwrap();
        assert_eq!(
            found.map(|stored| stored.value),
            Some(Bytes::from(name.clone())),
            "{name}"
        );
    }
    let head = store.ring().head();
    assert_eq!(store.write(put("after", "x")).await.unwrap(), head + 1);
}
