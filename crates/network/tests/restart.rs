//! What a node agent that starts again calls a second time must not disturb a machine that runs.

// The allowance for tests in clippy.toml covers test functions, not what they share.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use berth_network::dhcp::{Lease, serve};
use berth_network::{
    MacAddr, NodeNetwork, PodNic, VmNicRequest, attach_pod, create_netns, delete_netns, detach_pod,
    discover_pod_nic, host_link_name, open_dhcp_socket, wire_bridge, within,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 2);

/// A node with one pod, `vm`.
struct Node {
    network: NodeNetwork,
    pod: PathBuf,
    nic: PodNic,
}

impl Node {
    fn wire(&self) -> berth_network::Result<berth_network::VmNic> {
        wire_bridge(
            &self.pod,
            &VmNicRequest {
                pod_nic: &self.nic,
                index: 0,
                tap_owner: (1, 1),
                vm_mac: self.nic.mac,
            },
        )
    }

    fn attach(&self) -> berth_network::Result<()> {
        attach_pod(&self.network, &self.pod, "vm", ADDRESS, self.nic.mac)
    }
}

fn with_a_pod(test: &str, body: impl FnOnce(&Node) + Send + 'static) {
    if berth_testing::not_root(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (home, pod) = (dir.path().join("node"), dir.path().join("vm"));
    create_netns(&home).unwrap();
    let inside = pod.clone();
    let result = within(&home, move || {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let network = NodeNetwork {
                bridge: "berth0".into(),
                gateway: Ipv4Addr::new(10, 98, 0, 1),
                prefix: 16,
                mtu: 1500,
            };
            network.ensure().unwrap();
            create_netns(&inside).unwrap();
            attach_pod(&network, &inside, "vm", ADDRESS, MacAddr::local("vm")).unwrap();
            let nic = discover_pod_nic(&inside, "eth0").unwrap();
            body(&Node {
                network: network.clone(),
                pod: inside,
                nic,
            });
            assert!(detach_pod(&network, "vm").is_empty());
            assert!(network.remove().is_empty());
        }))
    });
    // The namespaces must go even when an assertion fails.
    delete_netns(&pod).unwrap();
    delete_netns(&home).unwrap();
    if let Err(panic) = result.unwrap() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(netns: Option<&Path>, line: &str) -> String {
    let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let run = move || {
        let output = Command::new("ip").args(&words).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    match netns {
        Some(netns) => within(netns, run).unwrap(),
        None => run(),
    }
}

/// The name and number of each link: a link that was made anew has another number.
fn identities(netns: Option<&Path>) -> Vec<String> {
    ip(netns, "-o link")
        .lines()
        .filter_map(|line| line.split(" <").next().map(str::to_owned))
        .collect()
}

/// Opens the tap as QEMU does, which keeps everybody else from opening it.
fn open_tap(netns: &Path) -> File {
    within(netns, || {
        let tap = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .unwrap();
        // SAFETY: ifreq is plain data for which all zeroes is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags =
            i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap();
        // SAFETY: the descriptor is open and the request outlives the call.
        let opened = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
        tap
    })
    .unwrap()
}

#[test]
fn wiring_again_leaves_a_running_machine_alone() {
    with_a_pod("wiring again", |node| {
        let wired = node.wire().unwrap();
        let qemu = open_tap(&node.pod);
        let before = identities(Some(&node.pod));
        let again = node.wire();
        assert_eq!(identities(Some(&node.pod)), before, "{again:?}");
        assert_eq!(again.unwrap(), wired);
        drop(qemu);
    });
}

#[test]
fn attaching_again_leaves_a_wired_pod_alone() {
    with_a_pod("attaching again", |node| {
        node.wire().unwrap();
        let before = (identities(None), identities(Some(&node.pod)));
        node.attach().unwrap();
        assert_eq!((identities(None), identities(Some(&node.pod))), before);
        // A bridge that was removed and made again gets its ports back.
        assert!(node.network.remove().is_empty());
        node.network.ensure().unwrap();
        let inside = identities(Some(&node.pod));
        node.attach().unwrap();
        assert_eq!(identities(Some(&node.pod)), inside);
        let port = host_link_name("vm");
        assert!(ip(None, &format!("link show {port}")).contains("master berth0"));
    });
}

#[test]
fn an_attachment_without_its_route_is_made_again() {
    with_a_pod("half an attachment", |node| {
        ip(Some(&node.pod), "route del default");
        node.attach().unwrap();
        assert_eq!(discover_pod_nic(&node.pod, "eth0").unwrap(), node.nic);
    });
}

#[test]
fn a_wiring_that_fails_puts_the_interface_back() {
    with_a_pod("failed wiring", |node| {
        // A link that is no bridge stands where the bridge should be. Routes of the pod's network come back too.
        ip(
            Some(&node.pod),
            "route add 172.16.0.0/12 via 10.98.0.9 dev eth0",
        );
        let nic = discover_pod_nic(&node.pod, "eth0").unwrap();
        assert_eq!(nic.routes.len(), 1);
        let node = &Node {
            network: node.network.clone(),
            pod: node.pod.clone(),
            nic,
        };
        ip(
            Some(&node.pod),
            "link add k6t-eth0 type veth peer name other",
        );
        node.wire().unwrap_err();
        assert_eq!(discover_pod_nic(&node.pod, "eth0").unwrap(), node.nic);
    });
}

#[test]
fn the_gateway_keeps_its_mac_while_pods_come_and_go() {
    with_a_pod("gateway MAC", |node| {
        let mac = || {
            let text = ip(None, "-o link show berth0");
            let (_, rest) = text.split_once("link/ether ").unwrap();
            rest.split(' ').next().unwrap().to_owned()
        };
        let before = mac();
        // A bridge without an address of its own takes the lowest of its ports'.
        let port = host_link_name("vm");
        ip(None, &format!("link set {port} address 02:00:00:00:00:01"));
        assert_eq!(mac(), before, "with a lower port");
        assert!(detach_pod(&node.network, "vm").is_empty());
        assert_eq!(mac(), before, "without ports");
    });
}

/// A DISCOVER as QEMU writes it to the tap: the header of a virtual NIC, then the frame.
fn discover(mac: MacAddr) -> Vec<u8> {
    let mut dhcp = vec![0_u8; 240];
    dhcp[..3].copy_from_slice(&[1, 1, 6]);
    dhcp[28..34].copy_from_slice(&mac.octets());
    dhcp[236..].copy_from_slice(&[99, 130, 83, 99]);
    dhcp.extend([53, 1, 1, 255]);
    let udp = u16::try_from(8 + dhcp.len()).unwrap();
    let mut frame = vec![0_u8; 10];
    frame.extend([0xff; 6]);
    frame.extend(mac.octets());
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((20 + udp).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    frame.extend([0, 68, 0, 67]);
    frame.extend(udp.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(dhcp);
    frame
}

#[test]
fn a_machine_on_the_tap_is_offered_its_address() {
    with_a_pod("DHCP on the tap", |node| {
        let wired = node.wire().unwrap();
        let mut qemu = open_tap(&node.pod);
        let flags = rustix::fs::fcntl_getfl(&qemu).unwrap();
        rustix::fs::fcntl_setfl(&qemu, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        let socket = open_dhcp_socket(&node.pod, &wired.tap).unwrap();
        let lease = Lease {
            mac: node.nic.mac,
            ip: ADDRESS,
            prefix: 16,
            gateway: node.nic.gateway,
            routes: Vec::new(),
            dns: Vec::new(),
            hostname: None,
            domain: None,
            search: Vec::new(),
            mtu: None,
            server_id: node.network.gateway,
            seconds: u32::MAX,
        };
        let (events, cancel) = (mpsc::channel(16).0, CancellationToken::new());
        let stop = cancel.clone();
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime
                .block_on(serve(socket, lease, events, stop))
                .unwrap();
        });
        // The tap has its carrier a moment after it was opened, so the machine asks until it is answered.
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut frame = [0_u8; 2048];
        let offer = loop {
            assert!(Instant::now() < deadline, "no offer");
            let _ = qemu.write(&discover(node.nic.mac));
            match qemu.read(&mut frame) {
                // From port 67 to port 68; other traffic of the bridge is passed over.
                Ok(length) if frame[44..48] == [0, 67, 0, 68] => break frame[10..length].to_vec(),
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
            std::thread::yield_now();
        };
        cancel.cancel();
        server.join().unwrap();
        assert_eq!(offer[..6], node.nic.mac.octets());
        assert_eq!(offer[58..62], ADDRESS.octets(), "yiaddr");
        drop(qemu);
    });
}
