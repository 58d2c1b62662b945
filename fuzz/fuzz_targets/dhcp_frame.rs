//! Whatever a guest sends: no panic, and no answer to anybody else.
#![no_main]

use std::net::Ipv4Addr;

use berth_network::MacAddr;
use berth_network::dhcp::{Lease, respond};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    let mac = MacAddr([2, 0, 0, 0, 0, 7]);
    let lease = Lease {
        mac,
        ip: Ipv4Addr::new(10, 98, 0, 7),
        prefix: 16,
        gateway: Some(Ipv4Addr::new(10, 98, 0, 1)),
        routes: Vec::new(),
        dns: vec![Ipv4Addr::new(192, 0, 2, 53)],
        hostname: Some("guest".into()),
        domain: None,
        search: Vec::new(),
        mtu: Some(1500),
        server_id: Ipv4Addr::new(10, 98, 0, 1),
        seconds: 3600,
    };
    // As it comes, and behind headers that get it to the decoder.
    let _ = respond(&lease, payload);
    let (Ok(udp), Ok(total)) = (u16::try_from(8 + payload.len()), u16::try_from(28 + payload.len())) else { return };
    let mut frame = [[0xff; 6], mac.octets()].concat();
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 68, 0, 67]);
    frame.extend(udp.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    if let Some(reply) = respond(&lease, &frame) {
        let to: [u8; 6] = reply[..6].try_into().expect("a frame begins with its destination");
        assert!(to == mac.octets() || to == [0xff; 6]);
    }
});
