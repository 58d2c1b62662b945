//! Kubeconfigs: certificates embedded, so that one file of mode 0600 is all that a client needs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::auth::pki::Pem;

/// The name that the admin has in its kubeconfig.
pub const ADMIN: &str = "berth-admin";

/// A kubeconfig of one cluster and one context, both called `berth`, and one user, called `name`.
///
/// `server` is the URL that clients shall use, for example `https://127.0.0.1:6443`.
pub fn render(server: &str, ca: &str, name: &str, user: &Pem) -> String {
    let encode = |text: &str| STANDARD.encode(text);
    let (ca, certificate, key) = (encode(ca), encode(&user.certificate), encode(&user.key));
    // JSON strings are YAML strings: quoting the free texts keeps the file well formed whatever they hold.
    let (server, name) = (json!(server), json!(name));
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: berth\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: {name}\n  user:\n    \
         client-certificate-data: {certificate}\n    client-key-data: {key}\ncontexts:\n- name: berth\n  \
         context:\n    cluster: berth\n    user: {name}\ncurrent-context: berth\npreferences: {{}}\n"
    )
}
