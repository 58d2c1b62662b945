//! The stock `kubectl` as several users, by client certificate and by token, over HTTPS.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::routing::get;
use berth_apiserver::auth::kubeconfig;
use berth_apiserver::auth::pki::{LIFETIME, issue_client};
use berth_apiserver::auth::tokens::{self, Claims, TokenKey};
use berth_apiserver::{Access, AdmitAll, ApiServer};
use common::{SOON, Server};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio_util::sync::{CancellationToken, DropGuard};

struct Team {
    server: Server,
    address: SocketAddr,
    _stop: DropGuard,
}

impl Team {
    async fn start() -> Option<Self> {
        let found = Command::new("kubectl")
            .args(["version", "--client"])
            .output();
        if found.await.is_err() {
            println!("SKIPPED: no kubectl on this machine");
            return None;
        }
        let server = Server::start().await;
        let stop = CancellationToken::new();
        let whoami = |axum::Extension(user): axum::Extension<berth_apiserver::UserInfo>| async move {
            format!("the log, for {}\n", user.name)
        };
        let routes =
            axum::Router::new().route("/api/v1/namespaces/{ns}/pods/{name}/log", get(whoami));
        let (address, _) = server.serve(routes, &stop).await;
        Some(Self {
            server,
            address,
            _stop: stop.drop_guard(),
        })
    }

    /// The kubeconfig of a user, made as `berth kubeconfig` makes it; the admin's has the empty name.
    fn kubeconfig(&self, user: &str) -> PathBuf {
        let dir = self.server.dir.path();
        if user.is_empty() {
            return dir.join("admin.kubeconfig");
        }
        let path = dir.join(format!("{user}.kubeconfig"));
        if !path.exists() {
            let (ca, pem) =
                issue_client(&dir.join("pki"), user, &["staff", "night"], LIFETIME).unwrap();
            let server = format!("https://{}", self.address);
            std::fs::write(&path, kubeconfig::render(&server, &ca, user, &pem)).unwrap();
        }
        path
    }

    /// Runs kubectl; the code, and everything that it says.
    async fn run(&self, user: &str, args: &[&str], input: &str) -> (bool, String) {
        let mut child = Command::new("kubectl")
            .args(args)
            .env("KUBECONFIG", self.kubeconfig(user))
            .env("HOME", self.server.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let output = tokio::time::timeout(2 * SOON, child.wait_with_output())
            .await
            .expect("kubectl ends")
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    async fn ok(&self, user: &str, args: &[&str]) -> String {
        let (fine, text) = self.run(user, args, "").await;
        assert!(fine, "{user}: kubectl {args:?}: {text}");
        text
    }

    async fn refused(&self, user: &str, args: &[&str], words: &str) {
        let (fine, text) = self.run(user, args, "").await;
        assert!(
            !fine && text.contains(words),
            "{user}: kubectl {args:?}: {text}"
        );
    }

    /// Runs kubectl with a token and no certificate.
    async fn by_token(&self, token: &str, args: &[&str]) -> (bool, String) {
        let (server, ca) = (
            format!("https://{}", self.address),
            self.server
                .dir
                .path()
                .join("pki/ca.crt")
                .display()
                .to_string(),
        );
        let empty = self.server.dir.path().join("empty.kubeconfig");
        std::fs::write(&empty, "").unwrap();
        let empty = empty.display().to_string();
        let mut all = vec![
            "--kubeconfig",
            &empty,
            "--server",
            &server,
            "--certificate-authority",
            &ca,
            "--token",
            token,
        ];
        all.extend(args);
        self.run("", &all, "").await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viewers_editors_admins() {
    let Some(team) = Team::start().await else {
        return;
    };
    team.ok("", &["create", "namespace", "team"]).await;
    for (role, user) in [("view", "alice"), ("edit", "bob"), ("admin", "carol")] {
        let (role, user) = (format!("--clusterrole={role}"), format!("--user={user}"));
        let name = user.replace("--user=", "is-");
        team.ok(
            "",
            &["-n", "team", "create", "rolebinding", &name, &role, &user],
        )
        .await;
    }
    team.ok("bob", &["-n", "team", "create", "configmap", "m"])
        .await;
    team.ok(
        "bob",
        &[
            "-n",
            "team",
            "create",
            "secret",
            "generic",
            "s",
            "--from-literal=a=b",
        ],
    )
    .await;
    team.ok("alice", &["-n", "team", "get", "cm", "m"]).await;
    team.refused("alice", &["-n", "team", "get", "secrets"], r#"secrets is forbidden: User "alice" cannot list resource "secrets" in API group "" in the namespace "team""#).await;
    team.refused(
        "alice",
        &["-n", "team", "delete", "cm", "m"],
        r#"configmaps "m" is forbidden: User "alice" cannot delete"#,
    )
    .await;
    team.refused("alice", &["get", "cm"], "forbidden").await;
    team.refused(
        "bob",
        &[
            "-n",
            "team",
            "create",
            "role",
            "r",
            "--verb=get",
            "--resource=pods",
        ],
        r#"User "bob" cannot create resource "roles""#,
    )
    .await;
    team.refused(
        "bob",
        &["get", "nodes"],
        r#"cannot list resource "nodes" in API group "" at the cluster scope"#,
    )
    .await;

    team.ok(
        "carol",
        &[
            "-n",
            "team",
            "create",
            "role",
            "r",
            "--verb=get,list",
            "--resource=pods,configmaps",
        ],
    )
    .await;
    team.ok(
        "carol",
        &[
            "-n",
            "team",
            "create",
            "rolebinding",
            "r",
            "--role=r",
            "--group=night",
        ],
    )
    .await;
    team.ok("dave", &["-n", "team", "get", "cm"]).await;
    team.refused("carol", &["-n", "team", "create", "role", "n", "--verb=get,list", "--resource=nodes"],
        "user \"carol\" (groups=[\"staff\" \"night\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\" \"list\"]}").await;
    team.refused(
        "carol",
        &[
            "-n",
            "team",
            "create",
            "rolebinding",
            "x",
            "--clusterrole=cluster-admin",
            "--user=carol",
        ],
        "not currently held",
    )
    .await;
    team.refused(
        "carol",
        &[
            "create",
            "clusterrole",
            "x",
            "--verb=get",
            "--resource=pods",
        ],
        r#"cannot create resource "clusterroles""#,
    )
    .await;

    let roles = team
        .ok("", &["get", "clusterrole", "view", "-o", "wide"])
        .await;
    assert!(roles.starts_with("NAME   CREATED AT\nview   2"), "{roles}");
    let bindings = team
        .ok("carol", &["-n", "team", "get", "rolebindings"])
        .await;
    assert!(
        bindings.starts_with("NAME       ROLE                AGE\nis-alice   ClusterRole/view    "),
        "{bindings}"
    );
    let described = team
        .ok("", &["describe", "clusterrole", "system:discovery"])
        .await;
    assert!(described.contains("[/openapi/*]"), "{described}");
    let explained = team.ok("", &["explain", "rolebinding.roleRef"]).await;
    assert!(explained.contains("apiGroup"), "{explained}");

    // Routes that others serve are guarded as well.
    let log = "/api/v1/namespaces/team/pods/p/log";
    assert_eq!(
        team.ok("alice", &["get", "--raw", log]).await,
        "the log, for alice\n"
    );
    team.refused(
        "dave",
        &["get", "--raw", log],
        r#"User "dave" cannot get resource "pods/log""#,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_i_do_and_who_am_i() {
    let Some(team) = Team::start().await else {
        return;
    };
    team.ok(
        "",
        &[
            "create",
            "rolebinding",
            "v",
            "--clusterrole=view",
            "--user=alice",
        ],
    )
    .await;
    team.ok(
        "",
        &[
            "create",
            "clusterrole",
            "only",
            "--verb=get,list",
            "--resource=configmaps",
            "--resource-name=mine",
        ],
    )
    .await;
    team.ok(
        "",
        &[
            "create",
            "clusterrolebinding",
            "only",
            "--clusterrole=only",
            "--user=dave",
        ],
    )
    .await;
    assert_eq!(
        team.ok("alice", &["auth", "can-i", "list", "pods"]).await,
        "yes\n"
    );
    team.refused("alice", &["auth", "can-i", "list", "secrets"], "no")
        .await;
    team.refused("alice", &["auth", "can-i", "get", "/metrics"], "no")
        .await;
    assert_eq!(team.ok("", &["auth", "can-i", "*", "*"]).await, "yes\n");
    let list = team.ok("alice", &["auth", "can-i", "--list"]).await;
    assert!(
        list.contains("pods/log")
            && list.contains("selfsubjectrulesreviews.authorization.k8s.io")
            && list.contains("[/openapi/*]"),
        "{list}"
    );
    let me = team.ok("alice", &["auth", "whoami"]).await;
    assert!(
        me.contains("alice")
            && me.contains("[staff night system:authenticated]")
            && me.contains("X509SHA256="),
        "{me}"
    );

    for name in ["mine", "other"] {
        team.ok("", &["create", "configmap", name]).await;
    }
    team.ok("dave", &["get", "cm", "mine"]).await;
    team.ok(
        "dave",
        &["get", "cm", "--field-selector=metadata.name=mine"],
    )
    .await;
    team.refused(
        "dave",
        &["get", "cm", "other"],
        r#"configmaps "other" is forbidden"#,
    )
    .await;
    team.refused("dave", &["get", "cm"], "cannot list").await;

    team.ok("", &["--as=alice", "get", "pods"]).await;
    team.refused(
        "",
        &["--as=alice", "get", "secrets"],
        r#"User "alice" cannot list resource "secrets""#,
    )
    .await;
    team.refused("alice", &["--as=bob", "get", "pods"], r#"users "bob" is forbidden: User "alice" cannot impersonate resource "users" in API group "" at the cluster scope"#).await;
    team.ok(
        "",
        &[
            "create",
            "clusterrole",
            "act",
            "--verb=impersonate",
            "--resource=users",
            "--resource-name=alice",
        ],
    )
    .await;
    team.ok(
        "",
        &[
            "create",
            "clusterrolebinding",
            "act",
            "--clusterrole=act",
            "--user=erin",
        ],
    )
    .await;
    team.ok("erin", &["--as=alice", "get", "pods"]).await;
    team.refused(
        "erin",
        &["--as=alice", "--as-group=system:masters", "get", "pods"],
        r#"groups "system:masters" is forbidden"#,
    )
    .await;
    let me = team
        .ok(
            "",
            &["--as=x", "--as-group=g", "--as-uid=7", "auth", "whoami"],
        )
        .await;
    for word in ["x", "7", "[g system:authenticated]"] {
        assert!(me.contains(word), "{me}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_service_accounts() {
    let Some(team) = Team::start().await else {
        return;
    };
    team.ok("", &["create", "serviceaccount", "robot"]).await;
    team.ok(
        "",
        &[
            "create",
            "rolebinding",
            "robot",
            "--clusterrole=view",
            "--serviceaccount=default:robot",
        ],
    )
    .await;
    let token = team
        .ok("", &["create", "token", "robot", "--duration=10m"])
        .await;
    let token = token.trim();
    let (fine, text) = team.by_token(token, &["auth", "whoami"]).await;
    assert!(
        fine && text.contains("system:serviceaccount:default:robot") && text.contains("JTI="),
        "{text}"
    );
    let (fine, text) = team.by_token(token, &["get", "pods"]).await;
    assert!(fine, "{text}");
    let (fine, text) = team.by_token(token, &["get", "secrets"]).await;
    assert!(
        !fine && text.contains("cannot list resource \"secrets\""),
        "{text}"
    );
    let (fine, text) = team
        .by_token(token, &["get", "--raw", "/openid/v1/jwks"])
        .await;
    assert!(fine && text.contains("\"ES256\""), "{text}");
    let (fine, text) = team
        .by_token(
            token,
            &["get", "--raw", "/.well-known/openid-configuration"],
        )
        .await;
    assert!(fine && text.contains("jwks_uri"), "{text}");
    team.refused(
        "alice",
        &["create", "token", "robot"],
        r#"cannot create resource "serviceaccounts/token""#,
    )
    .await;

    let unauthorized = async |token: &str| {
        let (fine, text) = team.by_token(token, &["get", "pods"]).await;
        assert!(!fine && text.contains("Unauthorized"), "{text}");
    };
    unauthorized("nonsense").await;
    let key = TokenKey::ensure(&team.server.dir.path().join("pki")).unwrap();
    let mut past: Claims = key.verify(token).unwrap();
    past.exp = Some(tokens::now() - 120);
    unauthorized(&key.sign(&past).unwrap()).await;
    // A stranger's token is refused even where none is needed.
    let (fine, text) = team
        .by_token("nonsense", &["get", "--raw", "/version"])
        .await;
    assert!(!fine && text.contains("Unauthorized"), "{text}");
    team.ok("", &["delete", "serviceaccount", "robot"]).await;
    unauthorized(token).await;
}

/// The certificate that a new connection is shown.
async fn shown(ca: &str, address: SocketAddr) -> Vec<u8> {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn certificates_are_renewed_while_the_server_runs() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = common::options(&dir, Arc::new(AdmitAll));
    options.access = Access {
        certificate_lifetime: Duration::from_secs(12),
        ..Access::default()
    };
    let api = ApiServer::open(options).await.unwrap();
    let server = Server { api, dir };
    let stop = CancellationToken::new();
    let (address, admin) = server.serve(axum::Router::new(), &stop).await;
    let ca = std::fs::read_to_string(server.dir.path().join("pki/ca.crt")).unwrap();
    let first = (shown(&ca, address).await, std::fs::read(&admin).unwrap());
    let renewed = async {
        // Every connection on the way is served with a valid certificate, or `shown` fails.
        while shown(&ca, address).await == first.0 || std::fs::read(&admin).unwrap() == first.1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, renewed)
        .await
        .expect("it is renewed");
    let kubeconfig = kube::config::Kubeconfig::read_from(&admin).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
        .await
        .unwrap();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = kube::Client::try_from(config).unwrap();
    common::ok(
        &client,
        "GET",
        "/api/v1/namespaces",
        &serde_json::Value::Null,
    )
    .await;
    stop.cancel();
}
