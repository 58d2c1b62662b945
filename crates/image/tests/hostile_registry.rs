//! Registries that lie, break off and refuse: each gets a clear error, and nothing of it stays.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use berth_image::{
    Credentials, Digest, Limits, NoProgress, Progress, PullError, PullOptions, PullPolicy,
    Transferred,
};
use common::{Fixture, Layer, fixture, fixture_with, noise, reference};
use futures::StreamExt as _;

/// What the registry does with a blob.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Honest,
    /// Other bytes of the same length.
    Lies,
    /// Ends each transfer after this many bytes, with no length told; goes on where asked.
    Breaks(usize),
    /// The same, and always from the start.
    BreaksAndForgets(usize),
    /// A length told that is not kept.
    PromisesMore(usize),
    /// More bytes than the manifest says, with no length told.
    Floods,
    /// An error of the server, so many times.
    Fails(usize),
    /// Never a byte.
    Hangs,
}

struct Registry {
    manifests: HashMap<String, (Vec<u8>, Option<String>)>,
    blobs: HashMap<String, Vec<u8>>,
    mood: Mood,
    /// User and password that the token server wants; then blobs need the token.
    account: Option<(String, String)>,
    /// The token server never comes to an end.
    endless_token: bool,
    address: Mutex<Option<SocketAddr>>,
    requests: AtomicUsize,
    transfers: AtomicUsize,
    tokens: AtomicUsize,
}

impl Registry {
    fn with_layer(layer: Vec<u8>, mood: Mood) -> Self {
        let mut registry = Self {
            manifests: HashMap::new(),
            blobs: HashMap::new(),
            mood,
            account: None,
            endless_token: false,
            address: Mutex::default(),
            requests: AtomicUsize::new(0),
            transfers: AtomicUsize::new(0),
            tokens: AtomicUsize::new(0),
        };
        let manifest = registry.manifest_of(&layer, layer.len());
        registry.add_manifest("1", manifest);
        registry.add_blob(layer);
        registry.add_blob(b"{}".to_vec());
        registry
    }

    fn manifest_of(&self, layer: &[u8], size: usize) -> Vec<u8> {
        serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json",
                       "digest": Digest::of(b"{}"), "size": 2},
            "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar",
                        "digest": Digest::of(layer), "size": size}],
        })
        .to_string()
        .into_bytes()
    }

    fn add_manifest(&mut self, tag: &str, bytes: Vec<u8>) {
        self.manifests
            .insert(Digest::of(&bytes).to_string(), (bytes.clone(), None));
        self.manifests.insert(tag.to_owned(), (bytes, None));
    }

    fn add_blob(&mut self, bytes: Vec<u8>) {
        self.blobs.insert(Digest::of(&bytes).to_string(), bytes);
    }

    async fn start(self) -> (Arc<Self>, SocketAddr) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        *self.address.lock().unwrap() = Some(address);
        let registry = Arc::new(self);
        let app = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&registry));
        tokio::spawn(async move { axum::serve(listener, app).await });
        (registry, address)
    }
}

async fn answer(
    State(registry): State<Arc<Registry>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    assert_eq!(method, Method::GET);
    registry.requests.fetch_add(1, Ordering::SeqCst);
    let path = uri.path();
    let authorization = headers
        .get(header::AUTHORIZATION)
        .map(|v| v.to_str().unwrap().to_owned());
    if path == "/token" {
        return token(&registry, authorization.as_deref());
    }
    let current = format!("Bearer token{}", registry.tokens.load(Ordering::SeqCst));
    if registry.account.is_some() && authorization != Some(current) {
        let address = registry.address.lock().unwrap().unwrap();
        let challenge = format!(r#"Bearer realm="http://{address}/token",service="test""#);
        return (
            StatusCode::UNAUTHORIZED,
            [(header::WWW_AUTHENTICATE, challenge)],
            "{}",
        )
            .into_response();
    }
    let name = path.rsplit('/').next().unwrap();
    if path == "/v2/" {
        StatusCode::OK.into_response()
    } else if path.contains("/manifests/") {
        match registry.manifests.get(name) {
            Some((bytes, Some(claim))) => {
                ([("docker-content-digest", claim.clone())], bytes.clone()).into_response()
            }
            Some((bytes, None)) => bytes.clone().into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        }
    } else {
        blob(&registry, name, &headers)
    }
}

fn token(registry: &Registry, authorization: Option<&str>) -> Response {
    use base64::Engine as _;
    if registry.endless_token {
        let first = Bytes::from_static(b"{\"token\": \"");
        let rest = futures::stream::repeat_with(|| Bytes::from_static(&[b'x'; 4096]));
        let whole = futures::stream::iter([first]).chain(rest);
        return Body::from_stream(whole.map(Ok::<_, std::io::Error>)).into_response();
    }
    let (user, password) = registry.account.as_ref().unwrap();
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    if authorization != Some(&format!("Basic {pair}")) {
        return (
            StatusCode::UNAUTHORIZED,
            r#"{"details": "incorrect username or password"}"#,
        )
            .into_response();
    }
    let n = registry.tokens.fetch_add(1, Ordering::SeqCst) + 1;
    format!(r#"{{"token": "token{n}", "expires_in": 60}}"#).into_response()
}

fn blob(registry: &Registry, name: &str, headers: &HeaderMap) -> Response {
    let Some(bytes) = registry.blobs.get(name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if bytes.len() <= 2 {
        return bytes.clone().into_response();
    }
    let n = registry.transfers.fetch_add(1, Ordering::SeqCst);
    let range = headers
        .get(header::RANGE)
        .map(|v| v.to_str().unwrap().to_owned());
    let offset: usize = range
        .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
        .unwrap_or(0);
    let status = if offset > 0 {
        StatusCode::PARTIAL_CONTENT
    } else {
        StatusCode::OK
    };
    let pieces = |bytes: Vec<u8>| {
        let pieces: Vec<_> = bytes
            .chunks(1000)
            .map(|p| Ok::<_, std::io::Error>(Bytes::copy_from_slice(p)))
            .collect();
        Body::from_stream(futures::stream::iter(pieces))
    };
    let upto = |start: usize, n: usize| bytes[start..bytes.len().min(start + n)].to_vec();
    match registry.mood {
        Mood::Honest => (status, bytes[offset..].to_vec()).into_response(),
        Mood::Lies => vec![b'x'; bytes.len()].into_response(),
        Mood::Breaks(after) => (status, pieces(upto(offset, after))).into_response(),
        Mood::BreaksAndForgets(after) => pieces(upto(0, after)).into_response(),
        Mood::PromisesMore(by) => (
            [(header::CONTENT_LENGTH, (bytes.len() + by).to_string())],
            pieces(bytes.clone()),
        )
            .into_response(),
        Mood::Floods => Body::from_stream(futures::stream::repeat_with(|| {
            Ok::<_, std::io::Error>(Bytes::from_static(&[0; 4096]))
        }))
        .into_response(),
        Mood::Fails(times) if n < times => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Mood::Fails(_) => bytes.clone().into_response(),
        Mood::Hangs => {
            Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>())
                .into_response()
        }
    }
}

fn layer() -> Vec<u8> {
    Layer::new().file("disk/a", &noise(20_000)).done()
}

fn plain() -> PullOptions {
    PullOptions {
        plain_http: true,
        policy: PullPolicy::Always,
        ..PullOptions::default()
    }
}

async fn refused(registry: Registry) -> (Fixture, PullError, Arc<Registry>) {
    let f = fixture();
    let (registry, address) = registry.start().await;
    let image = reference(&format!("{address}/x:1"));
    let error = f
        .store
        .pull(&image, &plain(), &NoProgress)
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("image {image}: ")) && !text.contains('\n'),
        "{text}"
    );
    f.assert_clean();
    assert!(f.store.list().unwrap().is_empty());
    assert_eq!(f.store.resolve(&image).unwrap(), None);
    (f, error, registry)
}

#[tokio::test]
async fn an_honest_registry_as_a_check_of_the_test() {
    let f = fixture();
    let (_, address) = Registry::with_layer(layer(), Mood::Honest).start().await;
    let image = f
        .store
        .pull(&reference(&format!("{address}/x:1")), &plain(), &NoProgress)
        .await
        .unwrap();
    assert_eq!(
        std::fs::read(f.store.disk(&image).unwrap().file).unwrap(),
        noise(20_000)
    );
    f.assert_clean();
}

#[tokio::test]
async fn a_layer_that_lies_about_its_digest() {
    let (_, error, registry) = refused(Registry::with_layer(layer(), Mood::Lies)).await;
    let expected_digest = Digest::of(&layer());
    assert!(
        matches!(&error, PullError::WrongDigest { expected, .. } if *expected == expected_digest),
        "{error}"
    );
    // A lie is no reason to ask again.
    assert_eq!(registry.transfers.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_truncated_transfer_goes_on_where_it_broke() {
    let f = fixture();
    let (registry, address) = Registry::with_layer(layer(), Mood::Breaks(6000))
        .start()
        .await;
    let image = f
        .store
        .pull(&reference(&format!("{address}/x:1")), &plain(), &NoProgress)
        .await
        .unwrap();
    assert_eq!(
        registry.transfers.load(Ordering::SeqCst),
        layer().len().div_ceil(6000)
    );
    assert_eq!(
        std::fs::read(f.store.disk(&image).unwrap().file).unwrap(),
        noise(20_000)
    );
}

#[tokio::test]
async fn a_transfer_that_never_gets_further_is_given_up() {
    let (_, error, registry) =
        refused(Registry::with_layer(layer(), Mood::BreaksAndForgets(6000))).await;
    let PullError::Truncated {
        expected, received, ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!((*expected, *received), (layer().len() as u64, 6000));
    assert!(error.is_transient());
    assert_eq!(registry.transfers.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn wrong_sizes() {
    let (_, error, _) = refused(Registry::with_layer(layer(), Mood::PromisesMore(10))).await;
    assert!(matches!(error, PullError::WrongSize { .. }), "{error}");
    let (_, error, _) = refused(Registry::with_layer(layer(), Mood::Floods)).await;
    assert!(matches!(error, PullError::WrongSize { .. }), "{error}");
    let mut registry = Registry::with_layer(layer(), Mood::Honest);
    let manifest = registry.manifest_of(&layer(), layer().len() - 1);
    registry.add_manifest("1", manifest);
    let (_, error, _) = refused(registry).await;
    assert!(matches!(error, PullError::WrongSize { .. }), "{error}");
}

#[tokio::test]
async fn passing_trouble_is_borne_and_lasting_trouble_is_told() {
    let f = fixture();
    let (_, address) = Registry::with_layer(layer(), Mood::Fails(2)).start().await;
    f.store
        .pull(&reference(&format!("{address}/x:1")), &plain(), &NoProgress)
        .await
        .unwrap();
    let (_, error, _) = refused(Registry::with_layer(layer(), Mood::Fails(1000))).await;
    assert!(error.to_string().contains("503"), "{error}");
}

#[tokio::test]
async fn a_silent_registry_is_not_waited_for_for_ever() {
    let f = fixture_with(Limits {
        attempts: 2,
        retry_pause: Duration::from_millis(1),
        read_timeout: Duration::from_millis(100),
        ..Limits::default()
    });
    let (_, address) = Registry::with_layer(layer(), Mood::Hangs).start().await;
    let image = reference(&format!("{address}/x:1"));
    let error = f
        .store
        .pull(&image, &plain(), &NoProgress)
        .await
        .unwrap_err();
    assert!(
        matches!(error, PullError::Truncated { received: 0, .. }),
        "{error}"
    );
    f.assert_clean();
}

#[tokio::test]
async fn manifests_that_are_wrong() {
    let with = |bytes: Vec<u8>, claim: Option<String>| {
        let mut registry = Registry::with_layer(layer(), Mood::Honest);
        registry.manifests.insert("1".into(), (bytes, claim));
        registry
    };
    let honest = Registry::with_layer(layer(), Mood::Honest).manifests["1"]
        .0
        .clone();
    let (_, error, _) = refused(with(honest, Some(Digest::of(b"other").to_string()))).await;
    assert!(matches!(error, PullError::WrongDigest { .. }), "{error}");
    let (_, error, _) = refused(with(b"<html>".to_vec(), None)).await;
    assert!(matches!(error, PullError::Manifest { .. }), "{error}");
    let (_, error, _) = refused(with(vec![b' '; 5 << 20], None)).await;
    assert!(
        error.to_string().contains("more than 4194304 bytes"),
        "{error}"
    );
    let foreign = serde_json::json!({
        "schemaVersion": 2,
        "config": {"digest": Digest::of(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/vnd.cncf.helm.chart", "digest": Digest::of(b"{}"), "size": 2}],
    });
    let (_, error, _) = refused(with(foreign.to_string().into_bytes(), None)).await;
    assert!(
        error
            .to_string()
            .contains("application/vnd.cncf.helm.chart"),
        "{error}"
    );
    let mut registry = Registry::with_layer(layer(), Mood::Honest);
    registry.manifests.clear();
    let (_, error, _) = refused(registry).await;
    assert!(matches!(error, PullError::NotFound { .. }), "{error}");
    let mut registry = Registry::with_layer(layer(), Mood::Honest);
    registry.blobs.remove(&Digest::of(&layer()).to_string());
    let (_, error, _) = refused(registry).await;
    assert!(
        error
            .to_string()
            .contains(&Digest::of(&layer()).to_string()),
        "{error}"
    );
}

fn index(entries: &[(&str, &str, &Digest, usize)]) -> Vec<u8> {
    let entries: Vec<_> = entries
        .iter()
        .map(|(os, arch, digest, size)| {
            serde_json::json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest,
                               "size": size, "platform": {"os": os, "architecture": arch}})
        })
        .collect();
    serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries})
        .to_string()
        .into_bytes()
}

#[tokio::test]
async fn an_index_leads_to_the_manifest_for_this_machine() {
    let ours = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let mut registry = Registry::with_layer(layer(), Mood::Honest);
    let manifest = registry.manifests["1"].0.clone();
    let digest = Digest::of(&manifest);
    let list = index(&[
        ("linux", "s390x", &Digest::of(b"no"), 1),
        ("linux", ours, &digest, manifest.len()),
    ]);
    let list_digest = Digest::of(&list);
    registry.add_manifest("multi", list);
    registry.add_manifest("other", index(&[("linux", "s390x", &Digest::of(b"no"), 1)]));
    // An index that points to itself by way of a lie.
    let loops = index(&[("linux", ours, &Digest::of(b"loop"), 1)]);
    registry
        .manifests
        .insert(Digest::of(b"loop").to_string(), (loops.clone(), None));
    registry.manifests.insert("loop".into(), (loops, None));
    let f = fixture();
    let (registry, address) = registry.start().await;
    let pull = async |version: &str| {
        f.store
            .pull(
                &reference(&format!("{address}/x{version}")),
                &plain(),
                &NoProgress,
            )
            .await
    };
    assert_eq!(pull(":multi").await.unwrap().digest, digest);
    // By either digest, without a blob that is here already; the second time without a request.
    let transfers = registry.transfers.load(Ordering::SeqCst);
    let requests = registry.requests.load(Ordering::SeqCst);
    assert_eq!(
        pull(&format!("@{list_digest}")).await.unwrap().digest,
        digest
    );
    assert_eq!(pull(&format!("@{digest}")).await.unwrap().digest, digest);
    assert_eq!(registry.transfers.load(Ordering::SeqCst), transfers);
    assert_eq!(registry.requests.load(Ordering::SeqCst), requests);
    let error = pull(":other").await.unwrap_err();
    assert!(
        matches!(&error, PullError::Platform { available, .. } if available == "linux/s390x"),
        "{error}"
    );
    assert!(matches!(
        pull(":loop").await.unwrap_err(),
        PullError::WrongDigest { .. }
    ));
}

#[tokio::test]
async fn a_token_is_fetched_and_renewed() {
    let mut registry = Registry::with_layer(layer(), Mood::Fails(1));
    registry.account = Some(("user".into(), "secret".into()));
    let f = fixture();
    let (_, address) = registry.start().await;
    let image = reference(&format!("{address}/x:1"));
    let error = f
        .store
        .pull(&image, &plain(), &NoProgress)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
    let with = |password: &str| PullOptions {
        credentials: Some(Credentials {
            username: "user".into(),
            password: password.into(),
        }),
        ..plain()
    };
    let error = f
        .store
        .pull(&image, &with("wrong"), &NoProgress)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
    assert!(!error.to_string().contains("wrong"), "{error}");
    f.assert_empty();
    f.store
        .pull(&image, &with("secret"), &NoProgress)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_token_without_end_is_not_waited_for() {
    let mut registry = Registry::with_layer(layer(), Mood::Honest);
    registry.account = Some(("user".into(), "secret".into()));
    registry.endless_token = true;
    let (_, error, _) = tokio::time::timeout(Duration::from_secs(20), refused(registry))
        .await
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("a token of more than 65536 bytes"),
        "{error}"
    );
}

#[derive(Default)]
struct Seen(Mutex<Vec<Transferred>>);

impl Progress for Seen {
    fn update(&self, transferred: Transferred) {
        self.0.lock().unwrap().push(transferred);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_pulls_are_one_transfer() {
    let f = fixture();
    let (registry, address) = Registry::with_layer(layer(), Mood::Breaks(9000))
        .start()
        .await;
    let image = reference(&format!("{address}/x:1"));
    let options = PullOptions {
        policy: PullPolicy::IfNotPresent,
        ..plain()
    };
    let seen: Vec<Seen> = (0..8).map(|_| Seen::default()).collect();
    let pulls = seen.iter().map(|seen| f.store.pull(&image, &options, seen));
    let results = futures::future::join_all(pulls).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(
        registry.transfers.load(Ordering::SeqCst),
        layer().len().div_ceil(9000)
    );
    let total = layer().len() as u64 + 2;
    for seen in seen {
        assert_eq!(
            seen.0.lock().unwrap().last(),
            Some(&Transferred { done: total, total })
        );
    }
}

#[tokio::test]
async fn a_pull_that_is_given_up_leaves_nothing() {
    let f = fixture();
    let (registry, address) = Registry::with_layer(layer(), Mood::Hangs).start().await;
    let image = reference(&format!("{address}/x:1"));
    let options = plain();
    let pull = f.store.pull(&image, &options, &NoProgress);
    let started = async {
        let mut ticks = tokio_ticks();
        while registry.transfers.load(Ordering::SeqCst) == 0 {
            ticks.next().await;
        }
    };
    tokio::select! {
        result = pull => panic!("{result:?}"),
        () = started => {}
    }
    let gone = async {
        let mut ticks = tokio_ticks();
        while !common::names(&f.store.root().join("tmp")).is_empty() {
            ticks.next().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .unwrap();
    assert!(f.store.list().unwrap().is_empty());
}

fn tokio_ticks() -> impl futures::Stream<Item = ()> + Unpin {
    Box::pin(futures::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_millis(2)).await;
        Some(((), ()))
    }))
}

#[tokio::test]
async fn the_registry_is_asked_by_policy() {
    let f = fixture();
    let mut registry = Registry::with_layer(layer(), Mood::Honest);
    let local = f.image("local:1", &[Layer::new().file("disk/a", b"local").done()]);
    registry
        .manifests
        .insert("broken".into(), (b"<html>".to_vec(), None));
    let (registry, address) = registry.start().await;
    let image = reference(&format!("{address}/x:1"));
    let once = PullOptions {
        policy: PullPolicy::IfNotPresent,
        ..plain()
    };
    let pulled = f.store.pull(&image, &once, &NoProgress).await.unwrap();
    assert!(!pulled.local);
    let requests = registry.requests.load(Ordering::SeqCst);
    f.store.pull(&image, &once, &NoProgress).await.unwrap();
    assert_eq!(registry.requests.load(Ordering::SeqCst), requests);
    f.store.pull(&image, &plain(), &NoProgress).await.unwrap();
    assert!(registry.requests.load(Ordering::SeqCst) > requests);
    assert_eq!(registry.transfers.load(Ordering::SeqCst), 1);
    // A local image of a name that the registry has: the registry's wins when it is asked, the local one otherwise.
    let archive = f.path("archive.tar");
    f.store.import_archive(&archive, Some(&image)).unwrap();
    assert_eq!(
        f.store
            .pull(&image, &once, &NoProgress)
            .await
            .unwrap()
            .digest,
        local.digest
    );
    assert_eq!(
        f.store
            .pull(&image, &plain(), &NoProgress)
            .await
            .unwrap()
            .digest,
        pulled.digest
    );
}

#[tokio::test]
async fn nobody_there() {
    let f = fixture();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let image = reference(&format!("{address}/x:1"));
    let error = f
        .store
        .pull(&image, &plain(), &NoProgress)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
    // Without being told, no plain HTTP, not even to loopback.
    let (_, address) = Registry::with_layer(layer(), Mood::Honest).start().await;
    let image = reference(&format!("{address}/x:1"));
    let error = f
        .store
        .pull(&image, &PullOptions::default(), &NoProgress)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }), "{error}");
    f.assert_empty();
}
