//! The guest's agent (QEMU's, by a virtio channel): what it is asked and what it says.
//!
//! Whatever it says comes from the guest and is not trusted: lists and texts are cut, an answer of the wrong shape is an
//! error and nothing else. One command at a time: a guest that does not answer holds up the next question and nobody else.
//!
//! Source of the commands: the reference of QEMU's guest agent protocol (`qemu-ga`).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use berth_api::kubevirt::v1::{
    FileSystem, FileSystemDisk, FileSystemInfo, GuestAgentCommandInfo, GuestAgentInfo, GuestOSInfo,
    GuestOSUser,
};
use berth_hypervisor::Hypervisor;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};

use crate::credentials::Credentials;
use crate::protocol::{AgentState, GuestInterface};

/// How long the agent may take for a word.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the guest may take to write everything out.
const FREEZE_PATIENCE: Duration = Duration::from_secs(60);
/// How often a guest whose agent answers is asked what it has become.
const LOOK_AGAIN: Duration = Duration::from_secs(20);
/// How soon it is asked again while it does not answer.
const TRY_AGAIN: Duration = Duration::from_secs(2);
/// So many failures in a row mean that there is no agent.
const FAILURES: u32 = 3;
/// Longest text that is kept.
const TEXT_MAX: usize = 256;
/// Longest list that is kept.
const LIST_MAX: usize = 256;

/// The agent of one guest.
#[derive(Debug, Clone)]
pub(crate) struct Agent<H> {
    hypervisor: H,
    uuid: String,
    one_at_a_time: Arc<Mutex<()>>,
}

impl<H: Hypervisor> Agent<H> {
    pub(crate) fn new(hypervisor: H, uuid: String) -> Self {
        Self {
            hypervisor,
            uuid,
            one_at_a_time: Arc::default(),
        }
    }

    /// One command and the `return` of its answer.
    async fn ask<T: DeserializeOwned>(
        &self,
        command: &str,
        arguments: Option<Value>,
        patience: Duration,
    ) -> Result<T, String> {
        let mut request = json!({"execute": command});
        if let Some(arguments) = arguments {
            request["arguments"] = arguments;
        }
        let _turn = self.one_at_a_time.lock().await;
        let answer = self
            .hypervisor
            .agent(&self.uuid, &request.to_string(), patience)
            .await
            .map_err(|error| error.to_string())?;
        let answer: Answer<T> = serde_json::from_str(&answer)
            .map_err(|error| format!("the guest's agent answers {command} wrongly: {error}"))?;
        Ok(answer.value)
    }

    /// Whether it answers.
    pub(crate) async fn ping(&self) -> Result<(), String> {
        let _: Value = self.ask("guest-ping", None, PATIENCE).await?;
        Ok(())
    }

    /// The operating system.
    async fn os(&self) -> Result<GuestOSInfo, String> {
        let os: Os = self.ask("guest-get-osinfo", None, PATIENCE).await?;
        Ok(GuestOSInfo {
            name: os.name.map(text),
            kernel_release: os.kernel_release.map(text),
            version: os.version.map(text),
            pretty_name: os.pretty_name.map(text),
            version_id: os.version_id.map(text),
            kernel_version: os.kernel_version.map(text),
            machine: os.machine.map(text),
            id: os.id.map(text),
        })
    }

    /// The network interfaces with a hardware address, as the guest sees them.
    async fn interfaces(&self) -> Result<Vec<GuestInterface>, String> {
        let all: Vec<Interface> = self
            .ask("guest-network-get-interfaces", None, PATIENCE)
            .await?;
        let seen = all.into_iter().take(LIST_MAX).filter_map(|one| {
            let addresses = one.ip_addresses.into_iter().take(LIST_MAX);
            Some(GuestInterface {
                name: text(one.name),
                mac: text(one.hardware_address?).to_lowercase(),
                // What is no address is nothing that anybody could use.
                addresses: addresses
                    .filter_map(|address| address.ip_address.parse().ok())
                    .collect(),
            })
        });
        Ok(seen.filter(|one| one.name != "lo").collect())
    }

    /// What is told of the guest without being asked.
    async fn look(&self) -> Result<AgentState, String> {
        // Old agents know less; that they answer is what counts.
        self.ping().await?;
        Ok(AgentState {
            os: self.os().await.unwrap_or_default(),
            interfaces: self.interfaces().await.unwrap_or_default(),
            credentials: None,
        })
    }

    /// Everything that `guestosinfo` tells.
    pub(crate) async fn info(&self) -> Result<GuestAgentInfo, String> {
        let info: Info = self.ask("guest-info", None, PATIENCE).await?;
        let host: Result<Host, _> = self.ask("guest-get-host-name", None, PATIENCE).await;
        let zone: Result<Zone, _> = self.ask("guest-get-timezone", None, PATIENCE).await;
        let commands = info.supported_commands.into_iter().take(LIST_MAX);
        Ok(GuestAgentInfo {
            guest_agent_version: Some(text(info.version)),
            supported_commands: commands
                .map(|command| GuestAgentCommandInfo {
                    name: text(command.name),
                    enabled: command.enabled,
                })
                .collect(),
            hostname: host.ok().map(|host| text(host.host_name)),
            os: self.os().await.unwrap_or_default(),
            timezone: zone
                .ok()
                .map(|zone| format!("{}, {}", text(zone.zone.unwrap_or_default()), zone.offset)),
            user_list: self.users().await.unwrap_or_default(),
            fs_info: FileSystemInfo {
                disks: self.file_systems().await.unwrap_or_default(),
            },
            fs_freeze_status: None,
        })
    }

    /// Who is logged in.
    pub(crate) async fn users(&self) -> Result<Vec<GuestOSUser>, String> {
        let users: Vec<User> = self.ask("guest-get-users", None, PATIENCE).await?;
        let users = users.into_iter().take(LIST_MAX).map(|user| GuestOSUser {
            user_name: text(user.user),
            domain: user.domain.map(text),
            login_time: user.login_time,
        });
        Ok(users.collect())
    }

    /// The mounted file systems.
    pub(crate) async fn file_systems(&self) -> Result<Vec<FileSystem>, String> {
        let mounted: Vec<Mounted> = self.ask("guest-get-fsinfo", None, PATIENCE).await?;
        let mounted = mounted.into_iter().take(LIST_MAX).map(|one| FileSystem {
            disk_name: text(one.name),
            mount_point: text(one.mountpoint),
            file_system_type: text(one.kind),
            used_bytes: one.used_bytes,
            total_bytes: one.total_bytes,
            disk: one
                .disk
                .into_iter()
                .take(LIST_MAX)
                .map(|disk| FileSystemDisk {
                    serial: disk.serial.map(text),
                    bus_type: text(disk.bus_type),
                })
                .collect(),
        });
        Ok(mounted.collect())
    }

    /// Has the guest write everything out and hold back what comes after.
    pub(crate) async fn freeze(&self) -> Result<(), String> {
        let _: Value = self
            .ask("guest-fsfreeze-freeze", None, FREEZE_PATIENCE)
            .await?;
        Ok(())
    }

    /// Lets it write again.
    pub(crate) async fn thaw(&self) -> Result<(), String> {
        let _: Value = self
            .ask("guest-fsfreeze-thaw", None, FREEZE_PATIENCE)
            .await?;
        Ok(())
    }

    /// Lets a user of the guest in with these keys, too.
    pub(crate) async fn add_keys(&self, user: &str, keys: &[&String]) -> Result<(), String> {
        let arguments = json!({"username": user, "keys": keys});
        let _: Value = self
            .ask("guest-ssh-add-authorized-keys", Some(arguments), PATIENCE)
            .await?;
        Ok(())
    }

    /// Does not let a user of the guest in with these keys any more.
    pub(crate) async fn remove_keys(&self, user: &str, keys: &[&String]) -> Result<(), String> {
        let arguments = json!({"username": user, "keys": keys});
        let _: Value = self
            .ask(
                "guest-ssh-remove-authorized-keys",
                Some(arguments),
                PATIENCE,
            )
            .await?;
        Ok(())
    }

    /// Gives a user of the guest this password.
    pub(crate) async fn set_password(&self, user: &str, password: &[u8]) -> Result<(), String> {
        let arguments =
            json!({"username": user, "password": BASE64.encode(password), "crypted": false});
        let _: Value = self
            .ask("guest-set-user-password", Some(arguments), PATIENCE)
            .await?;
        Ok(())
    }

    /// Runs a program in the guest. Its exit status and what it printed.
    pub(crate) async fn exec(
        &self,
        command: &[String],
        patience: Duration,
    ) -> Result<(i64, String), String> {
        let (path, arguments) = command.split_first().ok_or("no program is named")?;
        let arguments = json!({"path": path, "arg": arguments, "capture-output": true});
        let started: Started = self.ask("guest-exec", Some(arguments), PATIENCE).await?;
        let ended = async {
            let mut pause = Duration::from_millis(50);
            loop {
                let asked = json!({"pid": started.pid});
                let status: Exited = self.ask("guest-exec-status", Some(asked), PATIENCE).await?;
                if status.exited {
                    return Ok((status.code(), status.output()));
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        };
        let late = || {
            let seconds = patience.as_secs();
            Err(format!("{path} does not end within {seconds} s"))
        };
        tokio::time::timeout(patience, ended)
            .await
            .unwrap_or_else(|_| late())
    }
}

/// Tells what becomes of the guest as long as somebody listens; `None` while its agent does not answer.
pub(crate) async fn watch<H: Hypervisor>(
    agent: Agent<H>,
    mut credentials: Option<Credentials>,
    news: mpsc::Sender<Option<AgentState>>,
) {
    let mut failures = 0;
    loop {
        let pause = match agent.look().await {
            Ok(mut seen) => {
                failures = 0;
                if let Some(credentials) = &mut credentials {
                    let told = credentials.apply(&agent).await;
                    seen.credentials = Some(told.err().unwrap_or_default());
                }
                if news.send(Some(seen)).await.is_err() {
                    return;
                }
                LOOK_AGAIN
            }
            Err(why) => {
                failures += 1;
                tracing::debug!(failures, "the guest's agent: {why}");
                if failures == FAILURES && news.send(None).await.is_err() {
                    return;
                }
                if failures < FAILURES {
                    TRY_AGAIN
                } else {
                    LOOK_AGAIN
                }
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// A text of the guest as it is shown: of bounded length, without what would move a reader's cursor.
fn text(given: impl AsRef<str>) -> String {
    let given = given.as_ref();
    let shown = given.chars().filter(|c| !c.is_control());
    shown.take(TEXT_MAX).collect()
}

#[derive(Deserialize)]
struct Answer<T> {
    #[serde(rename = "return")]
    value: T,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Os {
    id: Option<String>,
    name: Option<String>,
    pretty_name: Option<String>,
    version: Option<String>,
    version_id: Option<String>,
    kernel_release: Option<String>,
    kernel_version: Option<String>,
    machine: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Interface {
    name: String,
    hardware_address: Option<String>,
    #[serde(default)]
    ip_addresses: Vec<Address>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Address {
    ip_address: String,
}

#[derive(Deserialize)]
struct Info {
    version: String,
    #[serde(default)]
    supported_commands: Vec<Command>,
}

#[derive(Deserialize)]
struct Command {
    name: String,
    #[serde(default)]
    enabled: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Host {
    host_name: String,
}

#[derive(Deserialize)]
struct Zone {
    zone: Option<String>,
    offset: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    user: String,
    domain: Option<String>,
    login_time: Option<f64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mounted {
    name: String,
    mountpoint: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    used_bytes: i64,
    #[serde(default)]
    total_bytes: i64,
    #[serde(default)]
    disk: Vec<MountedDisk>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MountedDisk {
    serial: Option<String>,
    bus_type: String,
}

#[derive(Deserialize)]
struct Started {
    pid: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Exited {
    exited: bool,
    #[serde(default)]
    exitcode: Option<i64>,
    #[serde(default)]
    signal: Option<i64>,
    #[serde(default)]
    out_data: String,
    #[serde(default)]
    err_data: String,
}

impl Exited {
    /// As a shell tells it.
    fn code(&self) -> i64 {
        let signal = || self.signal.map(|signal| 128 + signal);
        self.exitcode.or_else(signal).unwrap_or(0)
    }

    fn output(&self) -> String {
        let bytes = [&self.out_data, &self.err_data].map(|data| BASE64.decode(data));
        let bytes: Vec<u8> = bytes.into_iter().flatten().flatten().collect();
        let shown = String::from_utf8_lossy(&bytes);
        shown.chars().take(4 * TEXT_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use berth_hypervisor::fake::Fake;

    use super::*;

    async fn agent(answers: &[(&str, &str)]) -> Agent<Fake> {
        let fake = Fake::new();
        let xml = "<domain><name>a</name><uuid>u</uuid></domain>";
        fake.define_and_start(xml).await.unwrap();
        for (command, answer) in answers {
            fake.answer_agent(command, answer);
        }
        Agent::new(fake, "u".to_owned())
    }

    #[tokio::test]
    async fn what_a_linux_guest_says() {
        let agent = agent(&[
            ("guest-ping", "{}"),
            (
                "guest-get-osinfo",
                r#"{"id":"debian","name":"Debian GNU/Linux","pretty-name":"Debian GNU/Linux 12 (bookworm)",
                    "version":"12 (bookworm)","version-id":"12","machine":"x86_64",
                    "kernel-release":"6.1.0-9-amd64","kernel-version":"1 SMP"}"#,
            ),
            (
                "guest-network-get-interfaces",
                r#"[{"name":"lo","hardware-address":"00:00:00:00:00:00","ip-addresses":[{"ip-address":"127.0.0.1"}]},
                    {"name":"eth0","hardware-address":"52:54:00:AB:00:01","ip-addresses":[
                      {"ip-address":"10.0.0.2","ip-address-type":"ipv4","prefix":24},
                      {"ip-address":"fe80::1","ip-address-type":"ipv6","prefix":64},
                      {"ip-address":"no address"}]},
                    {"name":"sit0"}]"#,
            ),
            (
                "guest-get-fsinfo",
                r#"[{"name":"vda1","mountpoint":"/","type":"ext4","used-bytes":5,"total-bytes":9,
                     "disk":[{"serial":"s1","bus-type":"virtio","bus":0,"target":0,"unit":0}]}]"#,
            ),
            ("guest-get-users", r#"[{"user":"root","login-time":1.5}]"#),
            ("guest-info", r#"{"version":"7.2.0","supported_commands":[{"name":"guest-ping","enabled":true,"success-response":true}]}"#),
            ("guest-get-timezone", r#"{"zone":"UTC","offset":0}"#),
        ])
        .await;
        let seen = agent.look().await.unwrap();
        assert_eq!(seen.os.version_id.as_deref(), Some("12"));
        let [one] = seen.interfaces.as_slice() else {
            panic!("{:?}", seen.interfaces);
        };
        assert_eq!(one.mac, "52:54:00:ab:00:01");
        assert_eq!(one.addresses.len(), 2);
        let info = agent.info().await.unwrap();
        assert_eq!(info.timezone.as_deref(), Some("UTC, 0"));
        assert_eq!(info.hostname, None, "this agent does not tell");
        assert_eq!(info.fs_info.disks[0].disk[0].bus_type, "virtio");
        assert_eq!(info.user_list[0].login_time, Some(1.5));
    }

    #[tokio::test]
    async fn a_guest_that_lies_is_an_error_and_no_more() {
        let long = format!("\"{}\"", "a\\u001b".repeat(1000));
        let users = format!(r#"[{{"user":{long}}}]"#);
        let agent = agent(&[
            ("guest-get-users", users.as_str()),
            ("guest-get-fsinfo", r#"{"name": 7}"#),
        ])
        .await;
        assert_eq!(agent.users().await.unwrap()[0].user_name, "a".repeat(256));
        let why = agent.file_systems().await.unwrap_err();
        assert!(why.contains("guest-get-fsinfo wrongly"), "{why}");
        let why = agent.ping().await.unwrap_err();
        assert!(why.contains("not connected"), "{why}");
    }

    #[tokio::test]
    async fn a_program_runs_in_the_guest() {
        let agent = agent(&[
            ("guest-exec", r#"{"pid": 7}"#),
            (
                "guest-exec-status",
                r#"{"exited": true, "exitcode": 3, "out-data": "aGVsbG8="}"#,
            ),
        ])
        .await;
        let ran = agent
            .exec(&["/bin/true".to_owned()], Duration::from_secs(1))
            .await;
        assert_eq!(ran, Ok((3, "hello".to_owned())));
        assert!(agent.exec(&[], Duration::from_secs(1)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_falls_silent_is_told_once() {
        let agent = agent(&[("guest-ping", "{}")]).await;
        let (news, mut heard) = mpsc::channel(4);
        let task = tokio::spawn(watch(agent.clone(), None, news));
        assert!(heard.recv().await.flatten().is_some());
        agent.hypervisor.answer_agent("guest-ping", "");
        assert_eq!(heard.recv().await, Some(None));
        agent.hypervisor.answer_agent("guest-ping", "{}");
        assert!(heard.recv().await.flatten().is_some());
        task.abort();
    }
}
