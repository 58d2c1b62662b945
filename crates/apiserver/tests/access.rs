//! Who may do what: roles, bindings, reviews and tokens, in process.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use berth_apiserver::auth::tokens::{self, Claims, ISSUER, TokenKey};
use berth_apiserver::{Access, ApiServer, UserInfo};
use common::{SOON, Server, call, config_map, ok};
use http::StatusCode;
use kube::Client;
use serde_json::{Value, json};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn user(server: &Server, name: &str) -> Client {
    server.api.client_as(UserInfo::new(name, &["staff"]))
}

fn rule(group: &str, resource: &str, verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": [resource], "verbs": verbs})
}

fn role(kind: &str, name: &str, rules: &Value) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "rules": rules})
}

fn binding(kind: &str, name: &str, role_kind: &str, role: &str, to: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": to}],
    })
}

async fn bind(server: &Server, role_kind: &str, role: &str, to: &str) {
    let uri = format!("{RBAC}/namespaces/default/rolebindings");
    let name = format!("{role}-{to}");
    let object = binding("RoleBinding", &name, role_kind, role, to);
    ok(&server.client(), "POST", &uri, &object).await;
}

/// Waits until a GET gives this code: some rights come by a controller.
async fn until(client: &Client, uri: &str, code: StatusCode) {
    let waiting = async {
        while call(client, "GET", uri, &Value::Null).await.0 != code {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.expect("it comes");
}

#[tokio::test]
async fn a_right_is_there_with_its_binding_and_gone_without() {
    let server = Server::start().await;
    let (admin, eve) = (server.client(), user(&server, "eve"));
    let pods = "/api/v1/namespaces/default/pods";
    let (code, refused) = call(&eve, "GET", pods, &Value::Null).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(
        refused["message"],
        r#"pods is forbidden: User "eve" cannot list resource "pods" in API group "" in the namespace "default""#
    );
    assert_eq!(refused["details"], json!({"kind": "pods"}));
    bind(&server, "ClusterRole", "view", "eve").await;
    ok(&eve, "GET", pods, &Value::Null).await;
    let secrets = "/api/v1/namespaces/default/secrets";
    assert_eq!(
        call(&eve, "GET", secrets, &Value::Null).await.0,
        StatusCode::FORBIDDEN
    );
    let elsewhere = "/api/v1/namespaces/kube-system/pods";
    assert_eq!(
        call(&eve, "GET", elsewhere, &Value::Null).await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        call(&eve, "GET", "/api/v1/pods", &Value::Null).await.0,
        StatusCode::FORBIDDEN
    );
    let log = "/api/v1/namespaces/default/pods/p/log";
    // Allowed, and then nobody serves it here.
    assert_eq!(
        call(&eve, "GET", log, &Value::Null).await.0,
        StatusCode::NOT_FOUND
    );
    let exec = "/api/v1/namespaces/default/pods/p/exec";
    assert_eq!(
        call(&eve, "POST", exec, &Value::Null).await.0,
        StatusCode::FORBIDDEN
    );
    let bound = format!("{RBAC}/namespaces/default/rolebindings/view-eve");
    ok(&admin, "DELETE", &bound, &Value::Null).await;
    assert_eq!(
        call(&eve, "GET", pods, &Value::Null).await.0,
        StatusCode::FORBIDDEN
    );

    let (code, refused) = call(&eve, "GET", "/metrics", &Value::Null).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(
        refused["message"],
        r#"forbidden: User "eve" cannot get path "/metrics""#
    );
    ok(
        &eve,
        "GET",
        "/apis/rbac.authorization.k8s.io/v1",
        &Value::Null,
    )
    .await;
}

#[tokio::test]
async fn rights_on_named_objects() {
    let server = Server::start().await;
    let (admin, eve) = (server.client(), user(&server, "eve"));
    let maps = "/api/v1/namespaces/default/configmaps";
    for name in ["mine", "other"] {
        ok(&admin, "POST", maps, &config_map(name)).await;
    }
    let mut only = rule("", "configmaps", &["get", "list", "update", "watch"]);
    only["resourceNames"] = json!(["mine"]);
    let roles = format!("{RBAC}/namespaces/default/roles");
    ok(
        &admin,
        "POST",
        &roles,
        &role("Role", "only", &json!([only])),
    )
    .await;
    bind(&server, "Role", "only", "eve").await;
    ok(&eve, "GET", &format!("{maps}/mine"), &Value::Null).await;
    let forbidden = async |uri: String| {
        let (code, answer) = call(&eve, "GET", &uri, &Value::Null).await;
        assert_eq!(code, StatusCode::FORBIDDEN, "{uri}: {answer}");
    };
    forbidden(format!("{maps}/other")).await;
    forbidden(maps.to_owned()).await;
    forbidden(format!("{maps}?fieldSelector=metadata.name%3Dother")).await;
    forbidden(format!("{maps}?fieldSelector=metadata.name!%3Dmine")).await;
    let list = ok(
        &eve,
        "GET",
        &format!("{maps}?fieldSelector=metadata.name%3Dmine"),
        &Value::Null,
    )
    .await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_have() {
    let server = Server::start().await;
    let (admin, carol) = (server.client(), user(&server, "carol"));
    bind(&server, "ClusterRole", "admin", "carol").await;
    let roles = format!("{RBAC}/namespaces/default/roles");
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let held = role("Role", "held", &json!([rule("", "pods", &["get"])]));
    ok(&carol, "POST", &roles, &held).await;
    ok(
        &carol,
        "POST",
        &bindings,
        &binding("RoleBinding", "held", "Role", "held", "dave"),
    )
    .await;

    let more = role(
        "Role",
        "more",
        &json!([
            rule("", "pods", &["get"]),
            rule("", "nodes", &["get", "list"])
        ]),
    );
    let (code, refused) = call(&carol, "POST", &roles, &more).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(
        refused["message"],
        "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"carol\" (groups=[\"staff\" \"system:authenticated\"]) is \
         attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\" \"list\"]}"
    );
    let patch = json!([{"op": "add", "path": "/rules/-", "value": rule("", "nodes", &["get"])}]);
    let (code, _) = common::call_as(
        &carol,
        "PATCH",
        &format!("{roles}/held"),
        "application/json-patch+json",
        patch.to_string(),
    )
    .await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    let everything = binding(
        "RoleBinding",
        "all",
        "ClusterRole",
        "cluster-admin",
        "carol",
    );
    let (code, refused) = call(&carol, "POST", &bindings, &everything).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    let text = refused["message"].as_str().unwrap();
    assert!(
        text.contains("not currently held:\n{APIGroups:[\"*\"], Resources:[\"*\"], Verbs:[\"*\"]}"),
        "{text}"
    );
    let missing = binding("RoleBinding", "lost", "Role", "nothing", "carol");
    assert_eq!(
        call(&carol, "POST", &bindings, &missing).await.0,
        StatusCode::NOT_FOUND
    );

    // `bind` on the role, and `escalate`, allow it.
    let mut may_bind = rule("rbac.authorization.k8s.io", "clusterroles", &["bind"]);
    may_bind["resourceNames"] = json!(["cluster-admin"]);
    let may = json!([
        may_bind,
        rule("rbac.authorization.k8s.io", "roles", &["escalate"])
    ]);
    ok(&admin, "POST", &roles, &role("Role", "may", &may)).await;
    bind(&server, "Role", "may", "carol").await;
    ok(&carol, "POST", &bindings, &everything).await;
    ok(&carol, "POST", &roles, &more).await;
}

#[tokio::test]
async fn rules_of_the_objects() {
    let server = Server::start().await;
    let admin = server.client();
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let stored = ok(
        &admin,
        "POST",
        &bindings,
        &json!({"kind": "RoleBinding", "metadata": {"name": "a:b"}, "roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "Group", "name": "g"}]}),
    )
    .await;
    assert_eq!(stored["roleRef"]["apiGroup"], "rbac.authorization.k8s.io");
    assert_eq!(
        stored["subjects"][0]["apiGroup"],
        "rbac.authorization.k8s.io"
    );
    let mut changed = stored.clone();
    changed["roleRef"]["name"] = json!("edit");
    let (code, refused) = call(&admin, "PUT", &format!("{bindings}/a:b"), &changed).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    let text = refused["message"].as_str().unwrap();
    assert!(text.ends_with(": cannot change roleRef"), "{text}");
    let bad = role(
        "Role",
        "bad",
        &json!([{"verbs": ["get"], "nonResourceURLs": ["/x"]}]),
    );
    let (code, refused) = call(
        &admin,
        "POST",
        &format!("{RBAC}/namespaces/default/roles"),
        &bad,
    )
    .await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        refused["message"],
        r#"Role.rbac.authorization.k8s.io "bad" is invalid: rules[0].nonResourceURLs: Invalid value: ["/x"]: namespaced rules cannot apply to non-resource URLs"#
    );
}

#[tokio::test]
async fn rules_are_collected() {
    let server = Server::start().await;
    let (admin, eve) = (server.client(), user(&server, "eve"));
    bind(&server, "ClusterRole", "view", "eve").await;
    let widgets = "/apis/example.com/v1/namespaces/default/widgets";
    assert_eq!(
        call(&eve, "GET", widgets, &Value::Null).await.0,
        StatusCode::FORBIDDEN
    );
    let mut see = role(
        "ClusterRole",
        "see-widgets",
        &json!([rule("example.com", "widgets", &["get", "list"])]),
    );
    see["metadata"]["labels"] = json!({"rbac.authorization.k8s.io/aggregate-to-view": "true"});
    ok(&admin, "POST", &format!("{RBAC}/clusterroles"), &see).await;
    until(&eve, widgets, StatusCode::OK).await;
    // `edit` selects `view`, `admin` selects `edit`.
    bind(&server, "ClusterRole", "admin", "carol").await;
    until(&user(&server, "carol"), widgets, StatusCode::OK).await;
    ok(
        &admin,
        "DELETE",
        &format!("{RBAC}/clusterroles/see-widgets"),
        &Value::Null,
    )
    .await;
    until(&eve, widgets, StatusCode::FORBIDDEN).await;
}

#[tokio::test]
async fn default_roles_come_back_and_keep_what_was_added() {
    let server = Server::start().await;
    let admin = server.client();
    let uri = |name: &str| format!("{RBAC}/clusterroles/{name}");
    ok(&admin, "DELETE", &uri("system:basic-user"), &Value::Null).await;
    let patch = async |name: &str, patch: Value| {
        let (code, answer) = common::call_as(
            &admin,
            "PATCH",
            &uri(name),
            "application/merge-patch+json",
            patch.to_string(),
        )
        .await;
        assert!(code.is_success(), "{answer}");
    };
    let own = rule("example.com", "widgets", &["get"]);
    patch("system:discovery", json!({"rules": [own]})).await;
    let off = json!({"metadata": {"annotations": {"rbac.authorization.kubernetes.io/autoupdate": "false"}}, "rules": [own]});
    patch("system:auth-delegator", off).await;
    drop(admin);
    let Server { api, dir } = server;
    drop(api);
    let mut options = common::options(&dir, std::sync::Arc::new(berth_apiserver::AdmitAll));
    let extra: k8s_openapi::api::rbac::v1::ClusterRole =
        serde_json::from_value(role("ClusterRole", "extra", &json!([own]))).unwrap();
    options.access = Access {
        roles: vec![extra],
        ..Access::default()
    };
    let api = ApiServer::open(options).await.unwrap();
    let admin = api.client("test");
    ok(&admin, "GET", &uri("system:basic-user"), &Value::Null).await;
    ok(&admin, "GET", &uri("extra"), &Value::Null).await;
    let rules =
        async |name: &str| ok(&admin, "GET", &uri(name), &Value::Null).await["rules"].clone();
    let discovery = rules("system:discovery").await;
    assert_eq!(discovery[0], own);
    assert!(discovery.to_string().contains("/openapi/*"), "{discovery}");
    assert_eq!(rules("system:auth-delegator").await, json!([own]));
}

#[tokio::test]
async fn reviews_answer() {
    let server = Server::start().await;
    let (admin, eve) = (server.client(), user(&server, "eve"));
    bind(&server, "ClusterRole", "view", "eve").await;
    let ask = |verb: &str, resource: &str| json!({"namespace": "default", "verb": verb, "resource": resource});
    let own = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let review = ok(
        &eve,
        "POST",
        own,
        &json!({"spec": {"resourceAttributes": ask("list", "pods")}}),
    )
    .await;
    assert_eq!(
        review["status"],
        json!({"allowed": true, "reason": r#"RBAC: allowed by RoleBinding "view-eve/default" of ClusterRole "view" to User "eve""#})
    );
    let review = ok(
        &eve,
        "POST",
        own,
        &json!({"spec": {"nonResourceAttributes": {"path": "/metrics", "verb": "get"}}}),
    )
    .await;
    assert_eq!(review["status"], json!({"allowed": false}));
    let (code, refused) = call(&eve, "POST", own, &json!({"spec": {}})).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    assert_eq!(
        call(&eve, "GET", own, &Value::Null).await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        call(&admin, "GET", own, &Value::Null).await.0,
        StatusCode::METHOD_NOT_ALLOWED
    );

    let others = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let about = json!({"spec": {"user": "eve", "resourceAttributes": ask("delete", "pods")}});
    assert_eq!(
        call(&eve, "POST", others, &about).await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        ok(&admin, "POST", others, &about).await["status"],
        json!({"allowed": false})
    );
    let masters = json!({"spec": {"groups": ["system:masters"], "resourceAttributes": ask("delete", "pods")}});
    assert_eq!(
        ok(&admin, "POST", others, &masters).await["status"],
        json!({"allowed": true})
    );
    let local = "/apis/authorization.k8s.io/v1/namespaces/kube-system/localsubjectaccessreviews";
    assert_eq!(
        call(&admin, "POST", local, &about).await.0,
        StatusCode::UNPROCESSABLE_ENTITY
    );

    let rules = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let review = ok(
        &eve,
        "POST",
        rules,
        &json!({"spec": {"namespace": "default"}}),
    )
    .await;
    let text = review["status"].to_string();
    assert!(
        text.contains("pods/log") && text.contains("/openapi/*") && !text.contains("secrets"),
        "{text}"
    );
    let me = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let review = ok(&eve, "POST", me, &json!({})).await;
    assert_eq!(
        review["status"]["userInfo"],
        json!({"username": "eve", "groups": ["staff", "system:authenticated"]})
    );
}

#[tokio::test]
async fn tokens_are_bound_to_what_they_name() {
    let server = Server::start().await;
    let admin = server.client();
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let review = async |token: &str| {
        let body = json!({"spec": {"token": token}});
        ok(
            &admin,
            "POST",
            "/apis/authentication.k8s.io/v1/tokenreviews",
            &body,
        )
        .await["status"]
            .clone()
    };
    ok(
        &admin,
        "POST",
        accounts,
        &json!({"metadata": {"name": "robot"}}),
    )
    .await;
    let token_of = async |spec: Value| {
        let answer = ok(
            &admin,
            "POST",
            &format!("{accounts}/robot/token"),
            &json!({"spec": spec}),
        )
        .await;
        assert_eq!(answer["kind"], "TokenRequest");
        answer["status"]["token"].as_str().unwrap().to_owned()
    };
    let (code, refused) = call(
        &admin,
        "POST",
        &format!("{accounts}/robot/token"),
        &json!({"spec": {"expirationSeconds": 599}}),
    )
    .await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("may not specify a duration less than 10 minutes")
    );

    let token = token_of(json!({})).await;
    let status = review(&token).await;
    assert_eq!(status["authenticated"], true, "{status}");
    assert_eq!(
        status["user"]["username"],
        "system:serviceaccount:default:robot"
    );
    assert_eq!(
        status["user"]["groups"],
        json!([
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            "system:authenticated"
        ])
    );
    assert_eq!(status["audiences"], json!([ISSUER]));
    let elsewhere = token_of(json!({"audiences": ["vault"]})).await;
    let status = review(&elsewhere).await;
    assert_eq!(
        status["error"],
        format!(
            "[invalid bearer token, token audiences [\"vault\"] is invalid for the target audiences [\"{ISSUER}\"]]"
        )
    );

    let secrets = "/api/v1/namespaces/default/secrets";
    ok(
        &admin,
        "POST",
        secrets,
        &json!({"metadata": {"name": "lock"}}),
    )
    .await;
    let bound =
        token_of(json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": "lock"}}))
            .await;
    assert_eq!(review(&bound).await["authenticated"], true);
    ok(&admin, "DELETE", &format!("{secrets}/lock"), &Value::Null).await;
    ok(
        &admin,
        "POST",
        secrets,
        &json!({"metadata": {"name": "lock"}}),
    )
    .await;
    let why = review(&bound).await["error"].as_str().unwrap().to_owned();
    assert!(
        why.contains("does not match service account secret ref claim"),
        "{why}"
    );

    // The key is the server's; only the time is wrong.
    let key = TokenKey::ensure(&server.dir.path().join("pki")).unwrap();
    let now = tokens::now();
    let past = Claims {
        exp: Some(now - 120),
        ..key.verify(&token).unwrap()
    };
    let status = review(&key.sign(&past).unwrap()).await;
    assert_eq!(
        status["error"],
        "[invalid bearer token, service account token has expired]"
    );

    ok(&admin, "DELETE", &format!("{accounts}/robot"), &Value::Null).await;
    assert_eq!(
        review(&token).await["error"],
        r#"[invalid bearer token, serviceaccounts "robot" not found]"#
    );
    ok(
        &admin,
        "POST",
        accounts,
        &json!({"metadata": {"name": "robot"}}),
    )
    .await;
    let why = review(&token).await["error"].as_str().unwrap().to_owned();
    assert!(
        why.contains("does not match claim"),
        "another account of the same name: {why}"
    );
}

#[tokio::test]
async fn what_every_namespace_has() {
    let server = Server::start().await;
    let admin = server.client();
    let namespace = json!({"metadata": {"name": "team"}});
    ok(&admin, "POST", "/api/v1/namespaces", &namespace).await;
    let account = "/api/v1/namespaces/team/serviceaccounts/default";
    let map = "/api/v1/namespaces/team/configmaps/kube-root-ca.crt";
    until(&admin, account, StatusCode::OK).await;
    until(&admin, map, StatusCode::OK).await;
    let ca = std::fs::read_to_string(server.dir.path().join("pki/ca.crt")).unwrap();
    assert_eq!(
        ok(&admin, "GET", map, &Value::Null).await["data"]["ca.crt"],
        ca
    );
    ok(&admin, "DELETE", account, &Value::Null).await;
    until(&admin, account, StatusCode::OK).await;

    // A secret for a token gets one, and goes with its account.
    let secrets = "/api/v1/namespaces/team/secrets";
    let (code, refused) = call(
        &admin,
        "POST",
        secrets,
        &json!({"metadata": {"name": "t"}, "type": "kubernetes.io/service-account-token"}),
    )
    .await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    let annotations = json!({"kubernetes.io/service-account.name": "default"});
    let secret = json!({"metadata": {"name": "t", "annotations": annotations}, "type": "kubernetes.io/service-account-token"});
    ok(&admin, "POST", secrets, &secret).await;
    let filled = async {
        loop {
            let secret = ok(&admin, "GET", &format!("{secrets}/t"), &Value::Null).await;
            if secret["data"]["token"].is_string() {
                return secret;
            }
            tokio::task::yield_now().await;
        }
    };
    let secret = tokio::time::timeout(SOON, filled).await.expect("a token");
    use base64::Engine as _;
    let token = base64::engine::general_purpose::STANDARD
        .decode(secret["data"]["token"].as_str().unwrap())
        .unwrap();
    let body = json!({"spec": {"token": String::from_utf8(token).unwrap()}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let status = ok(&admin, "POST", reviews, &body).await["status"].clone();
    assert_eq!(
        status["user"]["username"], "system:serviceaccount:team:default",
        "{status}"
    );
    ok(&admin, "DELETE", account, &Value::Null).await;
    until(&admin, &format!("{secrets}/t"), StatusCode::NOT_FOUND).await;
    assert!(ok(&admin, "POST", reviews, &body).await["status"]["authenticated"].is_null());
    ok(&admin, "DELETE", "/api/v1/namespaces/team", &Value::Null).await;
    until(&admin, "/api/v1/namespaces/team", StatusCode::NOT_FOUND).await;
}

#[tokio::test]
async fn acting_as_someone_else() {
    let server = Server::start().await;
    let (admin, eve) = (server.client(), user(&server, "eve"));
    let whoami = async |client: &Client, headers: &[(&str, &str)]| {
        let mut request = http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = kube::client::Body::from(b"{}".to_vec());
        let response = client.send(request.body(body).unwrap()).await.unwrap();
        let code = response.status();
        let bytes = http_body_util::BodyExt::collect(response.into_body())
            .await
            .unwrap()
            .to_bytes();
        (code, serde_json::from_slice::<Value>(&bytes).unwrap())
    };
    let scopes = ("impersonate-extra-example.com%2fscopes", "view");
    let (code, review) = whoami(&admin, &[("impersonate-user", "bob"), scopes]).await;
    assert_eq!(code, StatusCode::CREATED);
    assert_eq!(
        review["status"]["userInfo"],
        json!({"username": "bob", "groups": ["system:authenticated"], "extra": {"example.com/scopes": ["view"]}})
    );
    let (code, refused) = whoami(&admin, &[("impersonate-group", "g")]).await;
    assert_eq!(code, StatusCode::INTERNAL_SERVER_ERROR, "{refused}");

    // Each part is a right of its own.
    let rules = json!([
        rule("", "users", &["impersonate"]),
        rule(
            "authentication.k8s.io",
            "userextras/scopes",
            &["impersonate"]
        )
    ]);
    ok(
        &admin,
        "POST",
        &format!("{RBAC}/clusterroles"),
        &role("ClusterRole", "act", &rules),
    )
    .await;
    let to_eve = binding("ClusterRoleBinding", "act", "ClusterRole", "act", "eve");
    ok(
        &admin,
        "POST",
        &format!("{RBAC}/clusterrolebindings"),
        &to_eve,
    )
    .await;
    let bob = ("impersonate-user", "bob");
    assert_eq!(
        whoami(&eve, &[bob, ("impersonate-extra-scopes", "x")])
            .await
            .0,
        StatusCode::CREATED
    );
    for more in [
        scopes,
        ("impersonate-uid", "7"),
        ("impersonate-group", "system:masters"),
    ] {
        assert_eq!(
            whoami(&eve, &[bob, more]).await.0,
            StatusCode::FORBIDDEN,
            "{more:?}"
        );
    }
    let robot = ("impersonate-user", "system:serviceaccount:default:default");
    let (code, refused) = whoami(&eve, &[robot]).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(
        refused["message"],
        r#"serviceaccounts "default" is forbidden: User "eve" cannot impersonate resource "serviceaccounts" in API group "" in the namespace "default""#
    );
}
