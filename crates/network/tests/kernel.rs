//! Against the real kernel: each test on a thread in a network namespace of its own, which plays the node.

// The allowance for tests in clippy.toml covers test functions, not what they share.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use berth_network::dhcp::{DhcpEvent, Lease, serve};
use berth_network::{
    MacAddr, Masquerade, NodeNetwork, PodNic, Protocol, VmNicRequest, attach_pod, create_netns,
    delete_netns, detach_pod, discover_pod_nic, host_link_name, open_dhcp_socket, wire_bridge,
    wire_masquerade, within,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A node: a namespace, the pod network in it, and a place for the pods' namespaces.
struct Node {
    dir: tempfile::TempDir,
    network: NodeNetwork,
}

impl Node {
    fn path(&self, pod: &str) -> PathBuf {
        self.dir.path().join(pod)
    }

    /// A pod with an address.
    fn pod(&self, name: &str, last: u8) -> PodNic {
        let (path, ip) = (self.path(name), Ipv4Addr::new(10, 98, 0, last));
        create_netns(&path).unwrap();
        attach_pod(&self.network, &path, name, ip, MacAddr::local(name)).unwrap();
        discover_pod_nic(&path, "eth0").unwrap()
    }

    fn remove_pod(&self, name: &str) {
        assert!(detach_pod(&self.network, name).is_empty());
        delete_netns(&self.path(name)).unwrap();
    }
}

/// Runs a test on a node of its own; without root it is skipped and says so.
fn on_a_node(test: &str, body: impl FnOnce(&Node) + Send + 'static) {
    if berth_testing::not_root(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("node");
    create_netns(&home).unwrap();
    let network = NodeNetwork {
        bridge: "berth0".into(),
        gateway: Ipv4Addr::new(10, 98, 0, 1),
        prefix: 16,
        mtu: 1500,
    };
    // The namespace must go even when an assertion fails.
    let result = within(&home, move || {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            network.ensure().unwrap();
            let node = Node { dir, network };
            body(&node);
            let errors = node.network.remove();
            assert!(errors.is_empty(), "{errors:?}");
        }))
    });
    delete_netns(&home).unwrap();
    if let Err(panic) = result.unwrap() {
        std::panic::resume_unwind(panic);
    }
}

fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn run_in(netns: &Path, program: &'static str, arguments: &[&str]) -> (bool, String) {
    let arguments: Vec<String> = arguments
        .iter()
        .map(|argument| (*argument).to_owned())
        .collect();
    within(netns, move || {
        run(
            program,
            &arguments.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    })
    .unwrap()
}

fn links() -> BTreeSet<String> {
    let (ok, text) = run("ip", &["-o", "link"]);
    assert!(ok, "{text}");
    text.lines()
        .filter_map(|line| Some(line.split(": ").nth(1)?.to_owned()))
        .collect()
}

#[test]
fn the_node_network_can_be_made_twice_and_removed_twice() {
    on_a_node("node network", |node| {
        node.network.ensure().unwrap();
        let (_, rules) = run("nft", &["list", "table", "ip", "berth0"]);
        assert_eq!(rules.matches("masquerade").count(), 1, "{rules}");
        assert!(
            run("ip", &["addr", "show", "berth0"])
                .1
                .contains("10.98.0.1/16")
        );
        let other = NodeNetwork {
            gateway: Ipv4Addr::new(10, 99, 0, 1),
            ..node.network.clone()
        };
        let error = other.ensure().unwrap_err().to_string();
        assert!(
            error.contains("10.98.0.1/16") && error.contains("10.99.0.1/16"),
            "{error}"
        );
        assert!(node.network.remove().is_empty());
        assert!(node.network.remove().is_empty());
        assert!(!links().contains("berth0"));
        assert!(!run("nft", &["list", "tables"]).1.contains("berth0"));
    });
}

#[test]
fn pods_reach_the_gateway_and_each_other() {
    on_a_node("two pods", |node| {
        let nic = node.pod("one", 2);
        node.pod("two", 3);
        assert_eq!(nic.ipv4, Some((Ipv4Addr::new(10, 98, 0, 2), 16)));
        assert_eq!(nic.gateway, Some(Ipv4Addr::new(10, 98, 0, 1)));
        assert_eq!(
            (nic.mac, nic.mtu, nic.routes.len()),
            (MacAddr::local("one"), 1500, 0)
        );
        for address in ["10.98.0.1", "10.98.0.3"] {
            let (ok, text) = run_in(&node.path("one"), "ping", &["-c1", "-W2", address]);
            assert!(ok, "{text}");
        }
        // Attaching again changes nothing; a half-done attachment is replaced.
        let (path, ip) = (node.path("one"), Ipv4Addr::new(10, 98, 0, 2));
        attach_pod(&node.network, &path, "one", ip, MacAddr::local("one")).unwrap();
        assert_eq!(discover_pod_nic(&path, "eth0").unwrap(), nic);
        assert!(run_in(&path, "ip", &["addr", "flush", "dev", "eth0"]).0);
        attach_pod(&node.network, &path, "one", ip, MacAddr::local("one")).unwrap();
        assert_eq!(discover_pod_nic(&path, "eth0").unwrap(), nic);
        node.remove_pod("one");
        node.remove_pod("two");
        assert!(detach_pod(&node.network, "one").is_empty(), "gone already");
        delete_netns(&node.path("one")).unwrap();
    });
}

#[test]
fn the_world_sees_the_node_and_not_the_pod() {
    on_a_node("NAT", |node| {
        node.pod("inside", 2);
        let world = node.path("world");
        create_netns(&world).unwrap();
        let script = |netns: Option<&Path>, lines: &[&str]| {
            for line in lines {
                let words: Vec<_> = line.split(' ').collect();
                let (ok, text) =
                    netns.map_or_else(|| run("ip", &words), |netns| run_in(netns, "ip", &words));
                assert!(ok, "{line}: {text}");
            }
        };
        script(None, &["link add up0 type veth peer name wan0"]);
        assert!(
            run(
                "ip",
                &["link", "set", "wan0", "netns", &world.to_string_lossy()]
            )
            .0
        );
        script(None, &["addr add 192.0.2.1/24 dev up0", "link set up0 up"]);
        // The world has no route to the pods: only a translated packet is answered.
        script(
            Some(&world),
            &["addr add 192.0.2.2/24 dev wan0", "link set wan0 up"],
        );
        let (ok, text) = run_in(&node.path("inside"), "ping", &["-c1", "-W2", "192.0.2.2"]);
        assert!(ok, "{text}");
        delete_netns(&world).unwrap();
        node.remove_pod("inside");
    });
}

/// Puts a second pod-like namespace where QEMU would be: a veth in the pod's bridge in place of the tap.
fn guest(node: &Node, pod: &str, mac: MacAddr) -> PathBuf {
    let (netns, guest) = (node.path(pod), node.path(&format!("{pod}-guest")));
    create_netns(&guest).unwrap();
    let mac = mac.to_string();
    let at = guest.to_string_lossy().into_owned();
    for words in [
        &["link", "add", "vm0", "type", "veth", "peer", "name", "eth0"][..],
        &["link", "set", "eth0", "address", &mac],
        &["link", "set", "eth0", "netns", &at],
        &["link", "set", "vm0", "master", "k6t-eth0"],
        &["link", "set", "vm0", "up"],
    ] {
        let (ok, text) = run_in(&netns, "ip", words);
        assert!(ok, "{words:?}: {text}");
    }
    let (ok, text) = run_in(&guest, "ip", &["link", "set", "eth0", "up"]);
    assert!(ok, "{text}");
    guest
}

fn lease(nic: &PodNic) -> Lease {
    let (ip, prefix) = nic.ipv4.unwrap();
    Lease {
        mac: nic.mac,
        ip,
        prefix,
        gateway: nic.gateway,
        routes: nic.routes.clone(),
        dns: vec![Ipv4Addr::new(192, 0, 2, 53)],
        hostname: Some("guest".into()),
        domain: None,
        search: Vec::new(),
        mtu: Some(nic.mtu),
        server_id: nic.gateway.unwrap(),
        seconds: 3600,
    }
}

/// Serves the lease on a link of the pod while `client` runs; gives the events.
fn while_serving(netns: &Path, link: &str, lease: Lease, client: impl FnOnce()) -> Vec<DhcpEvent> {
    let socket = open_dhcp_socket(netns, link).unwrap();
    let (sender, mut events) = mpsc::channel(16);
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    // The socket works from any namespace: it is the launcher's that will hold it.
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime
            .block_on(serve(socket, lease, sender, stop))
            .unwrap();
    });
    client();
    cancel.cancel();
    server.join().unwrap();
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

#[test]
fn a_wired_pod_gives_its_address_to_real_dhcp_clients() {
    on_a_node("DHCP clients", |node| {
        let nic = node.pod("vm", 2);
        node.pod("peer", 3);
        let netns = node.path("vm");
        let request = VmNicRequest {
            pod_nic: &nic,
            index: 0,
            tap_owner: (4711, 4712),
            vm_mac: nic.mac,
        };
        let wired = wire_bridge(&netns, &request).unwrap();
        assert_eq!(
            (wired.tap.as_str(), wired.bridge.as_str()),
            ("tap0", "k6t-eth0")
        );
        assert_eq!(wire_bridge(&netns, &request).unwrap(), wired, "again");
        let (_, text) = run_in(&netns, "ip", &["-d", "addr"]);
        assert!(
            !text.contains("inet 10.98"),
            "the pod kept the address: {text}"
        );
        assert!(
            text.contains("user 4711") && text.contains("group 4712"),
            "{text}"
        );
        assert_eq!(
            text.matches(&nic.mac.to_string()).count(),
            0,
            "the pod kept the MAC: {text}"
        );

        let guest = guest(node, "vm", nic.mac);
        let script = node.dir.path().join("udhcpc.script");
        std::fs::write(&script, "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr add $ip/$mask dev $interface\nip route add default via $router\necho $dns $hostname $mtu >${0%script}facts\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let script = script.to_string_lossy().into_owned();
        let events = while_serving(&netns, "vm0", lease(&nic), || {
            let arguments = [
                "udhcpc", "-i", "eth0", "-s", &script, "-n", "-q", "-f", "-t", "5", "-T", "1",
                "-O", "mtu",
            ];
            let (ok, text) = run_in(&guest, "busybox", &arguments);
            assert!(ok, "{text}");
        });
        assert_eq!(events, [DhcpEvent::Offered, DhcpEvent::Bound]);
        let facts = std::fs::read_to_string(node.dir.path().join("udhcpc.facts")).unwrap();
        assert_eq!(facts.trim(), "192.0.2.53 guest 1500");
        // Some bridges send back what came in, as that of the CNI plugin `bridge` in hairpin mode.
        for hairpin in ["off", "on"] {
            let host = host_link_name("vm");
            let (ok, text) = run(
                "ip",
                &[
                    "link",
                    "set",
                    &host,
                    "type",
                    "bridge_slave",
                    "hairpin",
                    hairpin,
                ],
            );
            assert!(ok, "{text}");
            run_in(&guest, "ip", &["neigh", "flush", "all"]);
            for address in ["10.98.0.1", "10.98.0.3"] {
                let (ok, text) = run_in(&guest, "ping", &["-c1", "-W2", address]);
                assert!(ok, "hairpin {hairpin}: {text}");
            }
        }
        // The node reaches the guest at the pod's address.
        let (ok, text) = run("ping", &["-c1", "-W2", "10.98.0.2"]);
        assert!(ok, "{text}");
        node.remove_pod("vm-guest");
        node.remove_pod("vm");
        node.remove_pod("peer");
    });
}

#[test]
fn dhclient_lets_a_wrong_address_go() {
    if !["/usr/sbin/dhclient", "/sbin/dhclient"]
        .iter()
        .any(|path| Path::new(path).exists())
    {
        berth_testing::skip("dhclient", "the package isc-dhcp-client is missing");
        return;
    }
    on_a_node("dhclient", |node| {
        let nic = node.pod("vm", 2);
        let netns = node.path("vm");
        wire_bridge(
            &netns,
            &VmNicRequest {
                pod_nic: &nic,
                index: 0,
                tap_owner: (1, 1),
                vm_mac: nic.mac,
            },
        )
        .unwrap();
        let guest = guest(node, "vm", nic.mac);
        // It remembers a lease of another network and asks for that address again.
        let leases = node.dir.path().join("leases");
        std::fs::write(
            &leases,
            "lease {\n interface \"eth0\";\n fixed-address 172.31.5.5;\n option subnet-mask 255.255.0.0;\n option dhcp-server-identifier 172.31.0.1;\n option dhcp-lease-time 86400;\n renew 5 2037/01/01 00:00:00;\n rebind 5 2037/01/01 00:00:00;\n expire 5 2037/01/01 00:00:00;\n}\n",
        )
        .unwrap();
        let config = node.dir.path().join("dhclient.conf");
        std::fs::write(&config, "timeout 15;\n").unwrap();
        let path = |name: &str| node.dir.path().join(name).to_string_lossy().into_owned();
        let (leases, config, pid) = (path("leases"), path("dhclient.conf"), path("pid"));
        let events = while_serving(&netns, "vm0", lease(&nic), || {
            let arguments = [
                "-1",
                "-v",
                "-sf",
                "/bin/true",
                "-cf",
                &config,
                "-lf",
                &leases,
                "-pf",
                &pid,
                "eth0",
            ];
            let (ok, text) = run_in(&guest, "dhclient", &arguments);
            assert!(
                ok && text.contains("DHCPNAK") && text.contains("bound to 10.98.0.2"),
                "{text}"
            );
        });
        // dhclient stays in the background; it is ours to end.
        if let Ok(pid) = std::fs::read_to_string(&pid) {
            run("kill", &[pid.trim()]);
        }
        let wanted = Ipv4Addr::new(172, 31, 5, 5);
        assert_eq!(
            events,
            [
                DhcpEvent::Refused { wanted },
                DhcpEvent::Offered,
                DhcpEvent::Bound
            ]
        );
        node.remove_pod("vm-guest");
        node.remove_pod("vm");
    });
}

#[test]
fn dhcp_does_not_cross_between_the_guest_and_the_pod_network() {
    on_a_node("DHCP stays apart", |node| {
        let nic = node.pod("vm", 2);
        let netns = node.path("vm");
        wire_bridge(
            &netns,
            &VmNicRequest {
                pod_nic: &nic,
                index: 0,
                tap_owner: (1, 1),
                vm_mac: nic.mac,
            },
        )
        .unwrap();
        let guest = guest(node, "vm", nic.mac);
        // Somebody else's server on the node's bridge must not hear the guest.
        let heard = while_serving(&node.path("node"), "berth0", lease(&nic), || {
            let (ok, _) = run_in(
                &guest,
                "busybox",
                &[
                    "udhcpc",
                    "-i",
                    "eth0",
                    "-s",
                    "/bin/true",
                    "-n",
                    "-q",
                    "-f",
                    "-t",
                    "2",
                    "-T",
                    "1",
                ],
            );
            assert!(!ok, "a lease came from somewhere");
        });
        assert_eq!(heard, []);
        // It is our rule that keeps them apart: without it the guest is heard.
        assert!(run_in(&netns, "nft", &["delete", "table", "bridge", "berth"]).0);
        let heard = while_serving(&node.path("node"), "berth0", lease(&nic), || {
            let arguments = [
                "udhcpc",
                "-i",
                "eth0",
                "-s",
                "/bin/true",
                "-n",
                "-q",
                "-f",
                "-t",
                "2",
                "-T",
                "1",
            ];
            run_in(&guest, "busybox", &arguments);
        });
        assert!(heard.contains(&DhcpEvent::Offered), "{heard:?}");
        node.remove_pod("vm-guest");
        node.remove_pod("vm");
    });
}

#[test]
fn twenty_rounds_leave_the_same_links() {
    on_a_node("link leak", |node| {
        let before = links();
        for _ in 0..20 {
            let nic = node.pod("round", 2);
            let request = VmNicRequest {
                pod_nic: &nic,
                index: 0,
                tap_owner: (1, 1),
                vm_mac: nic.mac,
            };
            wire_bridge(&node.path("round"), &request).unwrap();
            node.remove_pod("round");
        }
        // A namespace is taken down behind the scenes; its veth goes with our end at once.
        let deadline = Instant::now() + Duration::from_secs(5);
        while links() != before && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(links(), before);
        assert!(!links().contains(&host_link_name("round")));
    });
}

#[test]
fn a_guests_own_network_is_behind_the_pods_address() {
    on_a_node("a_guests_own_network_is_behind_the_pods_address", |node| {
        let pod_nic = node.pod("inner", 7);
        let request = VmNicRequest {
            pod_nic: &pod_nic,
            index: 0,
            tap_owner: (2_000_000, 2_000_000),
            vm_mac: MacAddr::local("guest"),
        };
        let mut masquerade = Masquerade {
            gateway: Ipv4Addr::new(10, 0, 2, 1),
            guest: Ipv4Addr::new(10, 0, 2, 2),
            prefix: 24,
            ports: Vec::new(),
        };
        let path = node.path("inner");
        let first = wire_masquerade(&path, &request, &masquerade).unwrap();
        // Again, as an agent that comes back does it; and the pod has what its network gave it.
        assert_eq!(
            wire_masquerade(&path, &request, &masquerade).unwrap(),
            first
        );
        assert_eq!(discover_pod_nic(&path, "eth0").unwrap(), pod_nic);
        let rules = || within(&path, || run("nft", &["list", "ruleset"]).1).unwrap();
        let all = rules();
        assert!(all.contains("ip daddr 10.98.0.7 dnat to 10.0.2.2"), "{all}");
        assert!(
            all.contains("masquerade") && all.contains("policy drop"),
            "{all}"
        );
        masquerade.ports = vec![(Protocol::Tcp, 80), (Protocol::Udp, 53)];
        wire_masquerade(&path, &request, &masquerade).unwrap();
        let named = rules();
        assert!(
            named.contains("tcp dport 80 dnat") && named.contains("udp dport 53 dnat"),
            "{named}"
        );
        assert!(!named.contains("10.98.0.7 dnat"), "{named}");
        node.remove_pod("inner");
    });
}
