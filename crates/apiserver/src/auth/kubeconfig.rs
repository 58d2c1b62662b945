//! The admin's kubeconfig: certificates embedded, so that one file of mode 0600 is all that a client needs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::auth::pki::Pem;

/// A kubeconfig of one cluster, one user and one context, all called `berth`.
///
/// `server` is the URL that clients shall use, for example `https://127.0.0.1:6443`.
pub fn render(server: &str, ca: &str, user: &Pem) -> String {
    let encode = |text: &str| STANDARD.encode(text);
    let (ca, certificate, key) = (encode(ca), encode(&user.certificate), encode(&user.key));
    // JSON strings are YAML strings: quoting the one free text keeps the file well formed whatever it holds.
    let server = serde_json::Value::from(server);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: berth\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: berth-admin\n  user:\n    \
         client-certificate-data: {certificate}\n    client-key-data: {key}\ncontexts:\n- name: berth\n  \
         context:\n    cluster: berth\n    user: berth-admin\ncurrent-context: berth\npreferences: {{}}\n"
    )
}
