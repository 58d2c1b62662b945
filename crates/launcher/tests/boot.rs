//! The launcher as it runs in a pod, with a real libvirt and a real QEMU: process 1 of a pid namespace, an unprivileged
//! user without capabilities, in a network namespace with a tap that was made for it. The guest is the ISO of Debian's
//! `ipxe`, which says on the serial line what it does and asks for an address.
//!
//! Where root, QEMU, libvirt or the ISO is missing these tests print SKIPPED with the reason.

// Clippy knows test functions, not the helpers beside them.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_launcher::Client;
use berth_launcher::protocol::{
    DiskBacking, DomainPhase, DomainState, LauncherState, NicBacking, SyncRequest, reason,
};
use berth_network::MacAddr;
use berth_network::dhcp::Lease;
use serde_json::json;

const ISO: &str = "/usr/lib/ipxe/ipxe.iso";
/// `nobody`, whom every system knows; libvirt wants to know its users.
const USER: u32 = 65534;
/// A pod has its own device nodes, which its user may open.
const SANDBOX: &str =
    "mount -t tmpfs -o mode=755 tmpfs /dev/net; mknod -m 666 /dev/net/tun c 10 200; exec \"$@\"";
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this test cannot run here; says so then.
fn missing(test: &str) -> bool {
    let needed = [
        "/usr/sbin/libvirtd",
        "/usr/bin/qemu-system-x86_64",
        ISO,
        "/usr/bin/setpriv",
        "/dev/net/tun",
    ];
    berth_testing::not_root(test) || berth_testing::lacks(test, &needed)
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The example of this crate, which cargo builds with its tests.
fn built() -> PathBuf {
    std::env::current_exe()
        .unwrap()
        .ancestors()
        .nth(2)
        .unwrap()
        .join("examples/launcher")
}

/// A pod: a network namespace, a directory, and the launcher in it.
struct Pod {
    dir: tempfile::TempDir,
    netns: PathBuf,
    launcher: Child,
}

impl Pod {
    fn start() -> Self {
        Self::start_with(None)
    }

    fn start_with(capabilities: Option<&Path>) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("berth-pod-")
            .tempdir()
            .unwrap();
        std::fs::set_permissions(
            dir.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let netns = dir.path().join("netns");
        berth_network::create_netns(&netns).unwrap();
        let (net, user) = (format!("--net={}", netns.display()), USER.to_string());
        for command in [
            "link add br0 type bridge",
            "link set br0 up",
            &format!("tuntap add tap0 mode tap vnet_hdr user {user} group {user}"),
            "link set tap0 master br0 up",
        ] {
            let args: Vec<&str> = [net.as_str(), "ip"]
                .into_iter()
                .chain(command.split(' '))
                .collect();
            run("nsenter", &args);
        }
        let run_dir = dir.path().join("run");
        std::fs::create_dir(&run_dir).unwrap();
        std::os::unix::fs::chown(&run_dir, Some(USER), Some(USER)).unwrap();
        // The user of the launcher cannot look into everybody's build directory.
        let program = dir.path().join("launcher");
        let built = built();
        std::fs::copy(&built, &program)
            .unwrap_or_else(|error| panic!("{}: {error}", built.display()));
        let launcher = Command::new("nsenter")
            .args([
                &net,
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--mount-proc",
                "sh",
                "-ec",
                SANDBOX,
                "sh",
            ])
            .args([
                "setpriv",
                "--reuid",
                &user,
                "--regid",
                &user,
                "--clear-groups",
                "--bounding-set=-all",
            ])
            // Changing the user forgets the signal, so it is set last: nothing outlives a test that fails.
            .args(["--inh-caps=-all", "--no-new-privs", "--pdeathsig", "KILL"])
            .arg(&program)
            .args([
                "--name",
                "vm",
                "--namespace",
                "lab",
                "--uid",
                "u1",
                "--run-dir",
            ])
            .arg(&run_dir)
            .args(capabilities.map(|dir| format!("--capabilities-cache={}", dir.display())))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            dir,
            netns,
            launcher,
        }
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    async fn client(&self) -> Client {
        Client::connect(&self.run_dir().join("launcher.sock"), None, PATIENCE)
            .await
            .unwrap()
    }

    fn dhcp_socket(&self) -> OwnedFd {
        berth_network::open_dhcp_socket(&self.netns, "tap0").unwrap()
    }

    /// Reads the console until it has shown this text.
    fn console(&self, wanted: &'static str) -> tokio::task::JoinHandle<String> {
        let mut stream = UnixStream::connect(self.run_dir().join("console.sock")).unwrap();
        tokio::task::spawn_blocking(move || {
            let begin = Instant::now();
            stream
                .set_read_timeout(Some(Duration::from_secs(1)))
                .unwrap();
            let (mut seen, mut buffer) = (String::new(), [0; 4096]);
            while !seen.contains(wanted) {
                assert!(
                    begin.elapsed() < PATIENCE,
                    "the console does not show {wanted:?} but {seen:?}"
                );
                match stream.read(&mut buffer) {
                    Ok(0) => panic!("the console ended before {wanted:?}: {seen:?}"),
                    Ok(count) => seen.push_str(&String::from_utf8_lossy(&buffer[..count])),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => panic!("{error}"),
                }
            }
            seen
        })
    }

    /// Waits for the end of the launcher. Everything in its pid namespace ends with it.
    fn ended(mut self) -> (Option<i32>, LauncherState) {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.launcher.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < PATIENCE, "the launcher does not end");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(self.processes(), Vec::<String>::new(), "left over");
        let state =
            std::fs::read(self.run_dir().join("final-state.json")).expect("final-state.json");
        (status.code(), serde_json::from_slice(&state).unwrap())
    }

    /// Command lines of the processes that have to do with this pod's directory.
    fn processes(&self) -> Vec<String> {
        let here = self.dir.path().display().to_string();
        let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            std::fs::read(entry.ok()?.path().join("cmdline"))
                .ok()
                .map(|line| String::from_utf8_lossy(&line).into_owned())
        });
        all.filter(|line| line.contains(&here)).collect()
    }

    /// The process on this machine that is `pid` in the pod.
    fn host_pid(&self, pid: u32) -> i32 {
        let here = self.dir.path().display().to_string();
        let found = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let path = entry.ok()?.path();
            let status = std::fs::read_to_string(path.join("status")).ok()?;
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("NSpid:"))?;
            let inside: u32 = line.split_whitespace().last()?.parse().ok()?;
            let command =
                String::from_utf8_lossy(&std::fs::read(path.join("cmdline")).ok()?).into_owned();
            (inside == pid && command.contains(&here))
                .then(|| path.file_name()?.to_str()?.parse().ok())
                .flatten()
        });
        found
            .into_iter()
            .next()
            .unwrap_or_else(|| panic!("no process {pid} in the pod"))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
        if let Err(error) = berth_network::delete_netns(&self.netns) {
            eprintln!("{error}");
        }
    }
}

fn mac() -> MacAddr {
    MacAddr::local("lab/vm")
}

/// A machine with ipxe as its disk and one NIC.
fn ipxe() -> SyncRequest {
    let vmi = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm", "namespace": "lab", "uid": "u1"},
        "spec": {
            "terminationGracePeriodSeconds": 3,
            "domain": {
                "cpu": {"cores": 1},
                "memory": {"guest": "64Mi"},
                "firmware": {"bootloader": {"bios": {"useSerial": true}}},
                "devices": {
                    "disks": [{"name": "boot", "disk": {"bus": "virtio"}, "bootOrder": 1}],
                    "interfaces": [{"name": "default", "bridge": {}, "model": "virtio"}],
                },
            },
            "networks": [{"name": "default", "pod": {}}],
            "volumes": [{"name": "boot", "containerDisk": {"image": "ipxe:test"}}],
        },
    });
    SyncRequest {
        vmi: serde_json::from_value(vmi).unwrap(),
        boot: berth_launcher::protocol::BootFiles::default(),
        disks: vec![DiskBacking {
            volume: "boot".to_owned(),
            path: ISO.to_owned(),
            format: "raw".to_owned(),
            read_only: true,
            block: false,
            create: None,
        }],
        nics: vec![NicBacking {
            network: "default".to_owned(),
            tap: "tap0".to_owned(),
            mac: mac(),
            mtu: 1450,
            lease: Some(Lease {
                mac: mac(),
                ip: [10, 98, 0, 77].into(),
                prefix: 16,
                gateway: Some([10, 98, 0, 1].into()),
                routes: Vec::new(),
                dns: vec![[10, 98, 0, 1].into()],
                hostname: Some("vm".to_owned()),
                domain: None,
                search: Vec::new(),
                mtu: Some(1450),
                server_id: [10, 98, 0, 1].into(),
                seconds: 3600,
            }),
        }],
        emulation: true,
    }
}

async fn until(
    client: &Client,
    what: &str,
    test: impl FnMut(&LauncherState) -> bool,
) -> LauncherState {
    let mut states = client.state();
    let seen = tokio::time::timeout(PATIENCE, states.wait_for(test)).await;
    match seen {
        Ok(Ok(state)) => state.clone(),
        other => panic!("{what}: {} {:?}", other.is_err(), client.state().borrow()),
    }
}

fn domain(state: &LauncherState) -> DomainState {
    state.domain.clone().expect("a domain")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_boots_gets_its_address_and_is_killed() {
    if missing("a_guest_boots_gets_its_address_and_is_killed") {
        return;
    }
    let pod = Pod::start();
    let client = pod.client().await;
    let socket = pod.dhcp_socket();
    let state = client.sync(ipxe(), vec![socket]).await.unwrap();
    assert_eq!(
        (domain(&state).state, domain(&state).reason.as_str()),
        (DomainPhase::Running, reason::BOOTED)
    );
    eprintln!("timings: {:?}", state.timings);
    // Everything that the guest wrote, from the BIOS on.
    let seen = pod
        .console("net0: 10.98.0.77/255.255.0.0 gw 10.98.0.1")
        .await
        .unwrap();
    assert!(seen.contains("SeaBIOS"), "{seen}");
    let state = until(&client, "DHCP", |state| {
        state.dhcp.iter().any(|dhcp| dhcp.network == "default")
    })
    .await;
    assert!(state.dhcp[0].event.contains("address"), "{state:?}");
    let again = client.sync(ipxe(), vec![pod.dhcp_socket()]).await.unwrap();
    assert_eq!(domain(&again).uuid, domain(&state).uuid);
    memory(&pod);

    // A second connection sees the same; the console takes a second reader, who sees the past.
    let second = pod.client().await;
    assert_eq!(domain(&second.status().await.unwrap()), domain(&state));
    pod.console("10.98.0.77").await.unwrap();

    second.kill().await.unwrap();
    let last = until(&client, "the end", |state| domain(state).state.is_final()).await;
    tokio::time::timeout(PATIENCE, client.closed())
        .await
        .unwrap();
    let (code, written) = pod.ended();
    assert_eq!(code, Some(0));
    assert_eq!(written, last);
    assert_eq!(
        (domain(&last).state, domain(&last).reason.as_str()),
        (DomainPhase::Shutoff, reason::DESTROYED)
    );
}

/// Prints what the pod costs beside QEMU: private memory by process.
fn memory(pod: &Pod) {
    let mut total = 0;
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let path = entry.path();
        let Ok(command) = std::fs::read(path.join("cmdline")) else {
            continue;
        };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let program = command.split(' ').next().unwrap_or_default();
        let ours = command.contains(&pod.dir.path().display().to_string())
            && (program.ends_with("/launcher")
                || program.ends_with("libvirtd")
                || program.ends_with("virtqemud"));
        if !ours {
            continue;
        }
        let smaps = std::fs::read_to_string(path.join("smaps_rollup")).unwrap();
        let private: u64 = smaps
            .lines()
            .filter(|line| line.starts_with("Private_"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum();
        eprintln!("private memory: {private} KiB  {program}");
        total += private;
    }
    eprintln!("private memory beside QEMU: {total} KiB");
    assert!(total < 32 << 10, "{total} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_ignores_the_button_loses_its_power_after_the_grace() {
    if missing("a_guest_that_ignores_the_button_loses_its_power_after_the_grace") {
        return;
    }
    let pod = Pod::start();
    let client = pod.client().await;
    client.sync(ipxe(), vec![pod.dhcp_socket()]).await.unwrap();
    pod.console("iPXE").await.unwrap();
    let begin = Instant::now();
    client.shutdown(2).await.unwrap();
    tokio::time::timeout(PATIENCE, client.closed())
        .await
        .unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(2));
    let (code, state) = pod.ended();
    assert_eq!(
        (code, domain(&state).reason.as_str()),
        (Some(0), reason::GRACE_EXCEEDED)
    );
    assert!(
        domain(&state)
            .message
            .contains("did not power off within 2 s"),
        "{}",
        domain(&state).message
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_obeys_the_button_is_given_the_time_it_needs() {
    if missing("a_guest_that_obeys_the_button_is_given_the_time_it_needs") {
        return;
    }
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/guest.qcow2");
    if !guest.exists() {
        berth_testing::skip(
            "a_guest_that_obeys_the_button_is_given_the_time_it_needs",
            "no small guest: guest/build.sh .cache/guest.qcow2 makes it",
        );
        return;
    }
    let pod = Pod::start();
    // Where the launcher's user can read it.
    let disk = pod.dir.path().join("guest.qcow2");
    std::fs::copy(&guest, &disk).unwrap();
    let mut request = ipxe();
    request.disks[0].path = disk.display().to_string();
    request.disks[0].format = "qcow2".to_owned();
    request.vmi.spec.domain.memory = serde_json::from_value(json!({"guest": "128Mi"})).unwrap();
    let client = pod.client().await;
    client.sync(request, vec![pod.dhcp_socket()]).await.unwrap();
    pod.console("10.98.0.77").await.unwrap();
    client.shutdown(50).await.unwrap();
    tokio::time::timeout(PATIENCE, client.closed())
        .await
        .unwrap();
    let (code, state) = pod.ended();
    assert_eq!(code, Some(0));
    let last = domain(&state);
    assert_eq!(
        (last.state, last.reason.as_str()),
        (DomainPhase::Shutoff, reason::SHUTDOWN),
        "{last:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_gives_the_guest_its_grace() {
    if missing("sigterm_gives_the_guest_its_grace") {
        return;
    }
    let pod = Pod::start();
    let client = pod.client().await;
    client.sync(ipxe(), vec![pod.dhcp_socket()]).await.unwrap();
    let launcher = pod.host_pid(1);
    run("kill", &["-TERM", &launcher.to_string()]);
    tokio::time::timeout(PATIENCE, client.closed())
        .await
        .unwrap();
    let (code, state) = pod.ended();
    assert_eq!(code, Some(0));
    assert!(
        domain(&state).message.contains("within 3 s"),
        "{}",
        domain(&state).message
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_qemu_is_told_in_clear_words() {
    if missing("a_killed_qemu_is_told_in_clear_words") {
        return;
    }
    let pod = Pod::start();
    let client = pod.client().await;
    let state = client.sync(ipxe(), vec![pod.dhcp_socket()]).await.unwrap();
    let qemu = pod.host_pid(domain(&state).qemu_pid.unwrap());
    run("kill", &["-KILL", &qemu.to_string()]);
    let last = until(&client, "the end", |state| domain(state).state.is_final()).await;
    assert_eq!(
        (domain(&last).state, domain(&last).reason.as_str()),
        (DomainPhase::Crashed, reason::KILLED)
    );
    assert!(
        domain(&last)
            .message
            .starts_with("QEMU was killed by signal 9"),
        "{}",
        domain(&last).message
    );
    let (code, written) = pod.ended();
    assert_eq!((code, written), (Some(0), last));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_libvirt_comes_back_and_takes_the_guest_over() {
    if missing("a_killed_libvirt_comes_back_and_takes_the_guest_over") {
        return;
    }
    let pod = Pod::start();
    let client = pod.client().await;
    let state = client.sync(ipxe(), vec![pod.dhcp_socket()]).await.unwrap();
    let qemu = pod.host_pid(domain(&state).qemu_pid.unwrap());
    let daemon_pid = || {
        let text = std::fs::read_to_string(pod.run_dir().join("virt/run/daemon.pid")).ok()?;
        text.trim().parse::<u32>().ok()
    };
    let first = daemon_pid().unwrap();
    run("kill", &["-KILL", &pod.host_pid(first).to_string()]);
    let begin = Instant::now();
    while daemon_pid().is_none_or(|pid| pid == first) {
        assert!(begin.elapsed() < PATIENCE, "no other libvirt");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        Path::new(&format!("/proc/{qemu}")).exists(),
        "the guest lives on"
    );
    client.kill().await.unwrap();
    let last = until(&client, "the end", |state| domain(state).state.is_final()).await;
    assert_eq!(
        (domain(&last).state, domain(&last).reason.as_str()),
        (DomainPhase::Shutoff, reason::DESTROYED)
    );
    assert_eq!(pod.ended().0, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_qemu_or_libvirt_refuses_can_be_corrected() {
    if missing("what_qemu_or_libvirt_refuses_can_be_corrected") {
        return;
    }
    let pod = Pod::start();
    let client = pod.client().await;
    // No such tap: QEMU cannot be started.
    let mut wrong = ipxe();
    wrong.nics[0].tap = "tap7".to_owned();
    let error = client
        .sync(wrong, vec![pod.dhcp_socket()])
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("tap7"), "{error}");
    assert_eq!(
        client.state().borrow().failure.as_deref(),
        Some(error.as_str())
    );
    // No such machine type: libvirt or QEMU says so.
    let mut wrong = ipxe();
    wrong.vmi.spec.domain.machine = serde_json::from_value(json!({"type": "pc-q35-0.1"})).unwrap();
    let error = client
        .sync(wrong, vec![pod.dhcp_socket()])
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("pc-q35-0.1"), "{error}");
    // No such disk.
    let mut wrong = ipxe();
    wrong.disks[0].path = "/no/such/disk".to_owned();
    let error = client
        .sync(wrong, vec![pod.dhcp_socket()])
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("/no/such/disk"), "{error}");
    // Without its DHCP socket.
    let error = client
        .sync(ipxe(), Vec::new())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("DHCP socket"), "{error}");
    // Right at last.
    let state = client.sync(ipxe(), vec![pod.dhcp_socket()]).await.unwrap();
    assert_eq!(
        (domain(&state).state, state.failure),
        (DomainPhase::Running, None)
    );
    pod.console("SeaBIOS").await.unwrap();
    client.kill().await.unwrap();
    assert_eq!(pod.ended().0, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launcher_without_a_guest_ends_when_told() {
    if missing("a_launcher_without_a_guest_ends_when_told") {
        return;
    }
    let pod = Pod::start();
    let client = pod.client().await;
    client.kill().await.unwrap();
    tokio::time::timeout(PATIENCE, client.closed())
        .await
        .unwrap();
    let (code, state) = pod.ended();
    assert_eq!((code, state.domain), (Some(0), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_libvirt_learnt_of_qemu_serves_another() {
    if missing("what_one_libvirt_learnt_of_qemu_serves_another") {
        return;
    }
    let node = tempfile::tempdir().unwrap();
    let cache = node.path().join("qemu-capabilities");
    run(
        built().to_str().unwrap(),
        &["--warm-capabilities", cache.to_str().unwrap()],
    );
    let pod = Pod::start_with(Some(&cache));
    let client = pod.client().await;
    // libvirt writes the file anew when it does not believe it.
    let files = || {
        let dir = pod
            .run_dir()
            .join("virt/cache/libvirt/qemu/cache/capabilities");
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (
                entry.file_name(),
                std::os::unix::fs::MetadataExt::ino(&entry.metadata().unwrap()),
            )
        });
        entries.collect::<Vec<_>>()
    };
    let before = files();
    assert_eq!(before.len(), 1);
    client.sync(ipxe(), vec![pod.dhcp_socket()]).await.unwrap();
    assert_eq!(files(), before, "the cache was refused");
    client.kill().await.unwrap();
    assert_eq!(pod.ended().0, Some(0));
}

#[test]
fn garbage_on_the_control_socket_hurts_only_its_sender() {
    if missing("garbage_on_the_control_socket_hurts_only_its_sender") {
        return;
    }
    let pod = Pod::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(pod.client());
    let mut stream = UnixStream::connect(pod.run_dir().join("launcher.sock")).unwrap();
    stream.write_all(b"what?\n").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut seen, mut buffer) = (String::new(), [0; 4096]);
    while !seen.contains("not a request") {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "closed after {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert!(
        seen.starts_with("{\"state\":"),
        "the state comes first: {seen}"
    );
    runtime.block_on(client.status()).unwrap();
    runtime.block_on(client.kill()).unwrap();
    assert_eq!(pod.ended().0, Some(0));
}
