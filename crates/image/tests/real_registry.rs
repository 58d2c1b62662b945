//! Against a registry and tools that no one here wrote: Debian's `docker-registry` and `skopeo`.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_image::{Credentials, NoProgress, PullError, PullOptions, PullPolicy, PushError};
use common::{Layer, fixture, gzip, noise, qcow2, reference};
use tempfile::TempDir;

struct Registry {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// Starts it on a free loopback port; nothing when it is not installed.
    fn start(test: &str, account: Option<(&str, &str)>) -> Option<Self> {
        for program in ["docker-registry", "htpasswd"] {
            let needed = program != "htpasswd" || account.is_some();
            if needed && !installed(program) {
                berth_testing::skip(test, &format!("{program} is not installed"));
                return None;
            }
        }
        for _ in 0..5 {
            if let Some(registry) = Self::try_start(account) {
                return Some(registry);
            }
        }
        panic!("docker-registry does not start");
    }

    fn try_start(account: Option<(&str, &str)>) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            at("data")
        );
        if let Some((user, password)) = account {
            let output = Command::new("htpasswd")
                .args(["-Bbn", user, password])
                .output()
                .unwrap();
            std::fs::write(at("htpasswd"), output.stdout).unwrap();
            config += &format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                at("htpasswd")
            );
        }
        std::fs::write(at("config.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(at("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut registry = Self {
            child,
            port,
            _dir: dir,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            // Somebody took the port in between: another try with another one.
            if registry.child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(registry)
    }

    fn name(&self, image: &str) -> String {
        format!("127.0.0.1:{}/{image}", self.port)
    }
}

fn installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

fn plain() -> PullOptions {
    PullOptions {
        plain_http: true,
        policy: PullPolicy::Always,
        ..PullOptions::default()
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn what_is_pushed_can_be_pulled_by_tag_and_digest() {
    let Some(registry) = Registry::start("what_is_pushed_can_be_pulled_by_tag_and_digest", None)
    else {
        return;
    };
    let f = fixture();
    let mut content = qcow2();
    content.extend(noise(3 << 20));
    let tag = reference(&registry.name("team/windows:1"));
    let image = f.store.build(&f.write("disk", &content), &tag).unwrap();
    assert_eq!(
        f.store.push(&tag, &plain(), &NoProgress).await.unwrap(),
        image.digest
    );
    // Everything is there already.
    f.store.push(&tag, &plain(), &NoProgress).await.unwrap();

    let by_digest = reference(&registry.name(&format!("team/windows@{}", image.digest)));
    for name in [&tag, &by_digest] {
        let g = fixture();
        let pulled = g.store.pull(name, &plain(), &NoProgress).await.unwrap();
        assert_eq!(
            (&pulled.digest, pulled.size, pulled.local),
            (&image.digest, image.size, false)
        );
        assert!(std::fs::read(g.store.disk(&pulled).unwrap().file).unwrap() == content);
        g.assert_clean();
    }
    let missing = reference(&registry.name("team/windows:2"));
    let error = f
        .store
        .pull(&missing, &plain(), &NoProgress)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error}");
    let error = f
        .store
        .push(&missing, &plain(), &NoProgress)
        .await
        .unwrap_err();
    assert!(matches!(error, PushError::NotPresent { .. }), "{error}");
    let error = f
        .store
        .push(&by_digest, &plain(), &NoProgress)
        .await
        .unwrap_err();
    assert!(matches!(error, PushError::ByDigest { .. }), "{error}");
}

#[tokio::test]
async fn credentials_are_asked_for_and_used() {
    let account = Some(("someone", "a:secret"));
    let Some(registry) = Registry::start("credentials_are_asked_for_and_used", account) else {
        return;
    };
    let f = fixture();
    let tag = reference(&registry.name("x:1"));
    let image = f.store.build(&f.write("disk", &noise(4096)), &tag).unwrap();
    let with = |password: &str| PullOptions {
        credentials: Some(Credentials {
            username: "someone".into(),
            password: password.into(),
        }),
        ..plain()
    };
    for options in [plain(), with("no")] {
        let error = f.store.push(&tag, &options, &NoProgress).await.unwrap_err();
        assert!(matches!(error, PushError::Unauthorized { .. }), "{error}");
    }
    f.store
        .push(&tag, &with("a:secret"), &NoProgress)
        .await
        .unwrap();
    let g = fixture();
    for options in [plain(), with("no")] {
        let error = g.store.pull(&tag, &options, &NoProgress).await.unwrap_err();
        assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
    }
    g.assert_empty();
    assert_eq!(
        g.store
            .pull(&tag, &with("a:secret"), &NoProgress)
            .await
            .unwrap()
            .digest,
        image.digest
    );
}

#[tokio::test]
async fn skopeo_agrees_with_us() {
    let test = "skopeo_agrees_with_us";
    if !installed("skopeo") {
        return berth_testing::skip(test, "skopeo is not installed");
    }
    let Some(registry) = Registry::start(test, None) else {
        return;
    };
    let f = fixture();
    let content = noise(100_000);
    let tag = reference(&registry.name("x:1"));
    let image = f.store.build(&f.write("disk", &content), &tag).unwrap();
    f.store.push(&tag, &plain(), &NoProgress).await.unwrap();
    let remote = |name: &str| format!("docker://{}", registry.name(name));
    let inspected = run("skopeo", &["inspect", "--tls-verify=false", &remote("x:1")]);
    assert!(inspected.contains(&image.digest.to_string()), "{inspected}");
    // Docker's own formats know no zstd, so these start from a gzip layer.
    let layer = gzip(
        &Layer::new()
            .dir("disk/")
            .file("disk/a.img", &content)
            .done(),
    );
    let old = f.image(&registry.name("x:old"), &[layer]);
    f.store
        .push(&old.reference, &plain(), &NoProgress)
        .await
        .unwrap();

    let copy = |from: &str, to: &str| {
        run(
            "skopeo",
            &[
                "--insecure-policy",
                "copy",
                "--src-tls-verify=false",
                &remote(from),
                to,
            ],
        );
    };
    let oci = f.path("oci.tar");
    copy("x:1", &format!("oci-archive:{}:vm:5", oci.display()));
    let docker = f.path("docker.tar");
    copy(
        "x:old",
        &format!("docker-archive:{}:localhost:5000/vm:6", docker.display()),
    );
    // The name that skopeo writes into an OCI archive is what was asked for.
    let check = |archive: &Path, name: Option<&str>, expected: &str| {
        let g = fixture();
        let given = name.map(reference);
        let images = g.store.import_archive(archive, given.as_ref()).unwrap();
        assert_eq!(images[0].reference, reference(expected));
        let disk = g.store.disk(&images[0]).unwrap();
        assert!(std::fs::read(disk.file).unwrap() == content);
        g.assert_clean();
        images[0].digest.clone()
    };
    assert_eq!(check(&oci, None, "vm:5"), image.digest);
    check(&docker, None, "localhost:5000/vm:6");
    check(&docker, Some("mine"), "mine:latest");

    // A docker schema 2 image with gzip layers, as docker pushes it.
    let v2 = format!("docker://{}", registry.name("x:v2s2"));
    let source = format!("docker-archive:{}", docker.display());
    run(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "--dest-tls-verify=false",
            "--format",
            "v2s2",
            &source,
            &v2,
        ],
    );
    let g = fixture();
    let pulled = g
        .store
        .pull(&reference(&registry.name("x:v2s2")), &plain(), &NoProgress)
        .await
        .unwrap();
    assert!(std::fs::read(g.store.disk(&pulled).unwrap().file).unwrap() == content);
}
