//! The name servers that guests are told.

use std::net::{IpAddr, Ipv4Addr};

/// Where resolvers keep the real servers when /etc/resolv.conf names a local stub.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// What a resolv.conf says that is of use to a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostDns {
    /// Name servers that another machine can reach.
    pub servers: Vec<Ipv4Addr>,
    /// Search domains.
    pub search: Vec<String>,
}

/// The name servers of this machine, without those on loopback, which a guest cannot reach.
#[must_use]
pub fn host_dns() -> HostDns {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .map(|text| parse(&text))
            .unwrap_or_default()
    };
    let found = read("/etc/resolv.conf");
    if found.servers.is_empty() {
        read(RESOLVED)
    } else {
        found
    }
}

/// What a text in the format of resolv.conf(5) says.
#[must_use]
pub fn parse(text: &str) -> HostDns {
    let mut dns = HostDns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                if let Some(Ok(IpAddr::V4(server))) = words.next().map(str::parse)
                    && !server.is_loopback()
                {
                    dns.servers.push(server);
                }
            }
            // The last one counts, as in resolv.conf(5).
            Some("search" | "domain") => {
                dns.search = words
                    .filter(|word| *word != ".")
                    .map(str::to_owned)
                    .collect();
            }
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn loopback_and_ipv6_servers_are_of_no_use_to_a_guest() {
        let dns = parse(
            "# x\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.7 \nsearch a.test b.test\noptions x\n",
        );
        assert_eq!(
            dns.servers,
            ["192.0.2.7".parse::<std::net::Ipv4Addr>().unwrap()]
        );
        assert_eq!(dns.search, ["a.test", "b.test"]);
    }
}
