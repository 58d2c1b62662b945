//! `berth guestosinfo`, `userlist` and `fslist`: what the agent in a guest tells. Arguments are virtctl's, which prints JSON and
//! nothing else; tables are for people.

use std::fmt::Write as _;

use berth_api::kubevirt::v1::{FileSystem, GuestAgentInfo, GuestOSUser};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::lifecycle::Namespace;
use crate::output;

/// Arguments of the commands that ask a guest's agent.
#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// The virtual machine instance; that of a virtual machine has its name.
    vmi: String,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Format::Json)]
    output: Format,
    #[command(flatten)]
    namespace: Namespace,
}

/// How something is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// As the API server answers.
    Json,
    /// The same as YAML.
    Yaml,
    /// Columns.
    Table,
}

#[derive(Deserialize)]
struct List<T> {
    items: Vec<T>,
}

/// Tells everything.
pub(crate) async fn info(args: GuestArgs) -> anyhow::Result<()> {
    tell(&args, "guestosinfo", |info: GuestAgentInfo| {
        let os = info.os;
        let mut out = String::new();
        for (name, value) in [
            ("HOSTNAME", info.hostname),
            ("SYSTEM", os.pretty_name.or(os.name)),
            ("KERNEL", os.kernel_release),
            ("MACHINE", os.machine),
            ("TIMEZONE", info.timezone),
            ("AGENT", info.guest_agent_version),
            ("FILE SYSTEMS", info.fs_freeze_status),
        ] {
            if let Some(value) = value {
                let _ = writeln!(out, "{name:<14}{value}");
            }
        }
        out
    })
    .await
}

/// Lists who is logged in.
pub(crate) async fn users(args: GuestArgs) -> anyhow::Result<()> {
    tell(&args, "userlist", |list: List<GuestOSUser>| {
        let mut out = format!("{:<24}{:<24}{}\n", "USER", "DOMAIN", "SINCE");
        for user in list.items {
            let since = user.login_time.and_then(time).unwrap_or_default();
            let domain = user.domain.unwrap_or_default();
            let _ = writeln!(out, "{:<24}{domain:<24}{since}", user.user_name);
        }
        out
    })
    .await
}

/// Lists the mounted file systems.
pub(crate) async fn file_systems(args: GuestArgs) -> anyhow::Result<()> {
    tell(&args, "filesystemlist", |list: List<FileSystem>| {
        let mut out = format!(
            "{:<16}{:<24}{:<12}{:>16}{:>16}\n",
            "DISK", "MOUNTED ON", "TYPE", "USED BYTES", "TOTAL BYTES"
        );
        for one in list.items {
            let _ = writeln!(
                out,
                "{:<16}{:<24}{:<12}{:>16}{:>16}",
                one.disk_name,
                one.mount_point,
                one.file_system_type,
                one.used_bytes,
                one.total_bytes
            );
        }
        out
    })
    .await
}

/// Seconds since 1970 as a time in UTC.
#[allow(clippy::cast_possible_truncation, reason = "a time to the second")]
fn time(seconds: f64) -> Option<String> {
    let time = k8s_openapi::jiff::Timestamp::from_second(seconds as i64).ok()?;
    Some(time.to_string())
}

async fn tell<T: DeserializeOwned>(
    args: &GuestArgs,
    what: &str,
    table: impl FnOnce(T) -> String,
) -> anyhow::Result<()> {
    let (client, namespace) = args.namespace.client().await?;
    let of = ("virtualmachineinstances", &*args.vmi, what);
    let request = crate::client::subresource(&namespace, of, http::Method::GET, Vec::new())?;
    let answer = client.request_text(request).await;
    let answer = answer.map_err(crate::client::said)?;
    let value: serde_json::Value = serde_json::from_str(&answer)?;
    output::print(&match args.output {
        Format::Json => format!("{value:#}\n"),
        Format::Yaml => output::yaml(&[value])?,
        Format::Table => table(serde_json::from_value(value)?),
    })
}
