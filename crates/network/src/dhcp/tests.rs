use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode, UnknownOption};
use dhcproto::{Decodable as _, Decoder, Encodable as _, Encoder};
use proptest::prelude::*;

use super::{DhcpEvent, Lease, answer, frame, respond};
use crate::{MacAddr, Route};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);

fn lease() -> Lease {
    Lease {
        mac: MAC,
        ip: Ipv4Addr::new(10, 98, 0, 7),
        prefix: 16,
        gateway: Some(Ipv4Addr::new(10, 98, 0, 1)),
        routes: Vec::new(),
        dns: vec![Ipv4Addr::new(192, 0, 2, 53)],
        hostname: Some("guest".into()),
        domain: Some("example.test".into()),
        search: vec!["a.test".into(), "b.test".into()],
        mtu: Some(1400),
        server_id: Ipv4Addr::new(10, 98, 0, 1),
        seconds: 86400,
    }
}

/// A frame as a client sends it.
fn ask(mac: MacAddr, options: Vec<DhcpOption>, change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::default();
    message
        .set_chaddr(&mac.octets())
        .set_flags(Flags::default());
    for option in options {
        message.opts_mut().insert(option);
    }
    change(&mut message);
    let mut payload = Vec::new();
    message.encode(&mut Encoder::new(&mut payload)).unwrap();
    let udp = u16::try_from(8 + payload.len()).unwrap();
    let mut frame = [[0xff; 6], mac.octets()].concat();
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((20 + udp).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    frame.extend(68_u16.to_be_bytes());
    frame.extend(67_u16.to_be_bytes());
    frame.extend(udp.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

fn kind(kind: MessageType) -> DhcpOption {
    DhcpOption::MessageType(kind)
}

fn read(reply: &[u8]) -> Message {
    Message::decode(&mut Decoder::new(&reply[42..])).unwrap()
}

fn target(reply: &[u8]) -> (MacAddr, Ipv4Addr) {
    (
        MacAddr(reply[..6].try_into().unwrap()),
        Ipv4Addr::from_octets(reply[30..34].try_into().unwrap()),
    )
}

#[test]
fn a_discover_is_offered_the_lease_with_everything() {
    let reply = respond(
        &lease(),
        &ask(MAC, vec![kind(MessageType::Discover)], |_| {}),
    )
    .unwrap();
    let offer = read(&reply);
    assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
    assert_eq!(offer.yiaddr(), lease().ip);
    let option = |code: OptionCode| offer.opts().get(code).cloned();
    assert_eq!(
        option(OptionCode::SubnetMask),
        Some(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 0, 0)))
    );
    assert_eq!(
        option(OptionCode::Router),
        Some(DhcpOption::Router(vec![Ipv4Addr::new(10, 98, 0, 1)]))
    );
    assert_eq!(
        option(OptionCode::DomainNameServer),
        Some(DhcpOption::DomainNameServer(lease().dns))
    );
    assert_eq!(
        option(OptionCode::Hostname),
        Some(DhcpOption::Hostname("guest".into()))
    );
    assert_eq!(
        option(OptionCode::InterfaceMtu),
        Some(DhcpOption::InterfaceMtu(1400))
    );
    assert_eq!(
        option(OptionCode::AddressLeaseTime),
        Some(DhcpOption::AddressLeaseTime(86400))
    );
    assert_eq!(
        option(OptionCode::Renewal),
        Some(DhcpOption::Renewal(43200))
    );
    assert_eq!(
        option(OptionCode::Rebinding),
        Some(DhcpOption::Rebinding(75600))
    );
    assert!(option(OptionCode::DomainSearch).is_some());
    assert!(
        option(OptionCode::ClasslessStaticRoute).is_none(),
        "no routes, no option 121"
    );
    assert_eq!(
        target(&reply),
        (MAC, lease().ip),
        "the client did not ask for a broadcast"
    );
}

#[test]
fn checksums_of_a_reply_are_right() {
    let reply = respond(
        &lease(),
        &ask(MAC, vec![kind(MessageType::Discover)], |_| {}),
    )
    .unwrap();
    assert_eq!(
        frame::internet_checksum(&[&reply[14..34]]),
        0,
        "IPv4 header"
    );
    let udp = &reply[34..];
    let mut pseudo = reply[26..34].to_vec();
    pseudo.extend([0, 17]);
    pseudo.extend(u16::try_from(udp.len()).unwrap().to_be_bytes());
    assert_eq!(frame::internet_checksum(&[&pseudo, udp]), 0, "UDP");
}

#[test]
fn requests_in_each_state_of_a_client() {
    let lease = lease();
    let ours = DhcpOption::RequestedIpAddress(lease.ip);
    let wrong = Ipv4Addr::new(192, 168, 1, 5);
    let request = kind(MessageType::Request);
    // (what, options, ciaddr, event; none = silence)
    let cases = [
        (
            "selecting us",
            vec![DhcpOption::ServerIdentifier(lease.server_id), ours.clone()],
            None,
            Some(DhcpEvent::Bound),
        ),
        (
            "selecting another",
            vec![
                DhcpOption::ServerIdentifier(Ipv4Addr::new(9, 9, 9, 9)),
                ours.clone(),
            ],
            None,
            None,
        ),
        ("init-reboot", vec![ours], None, Some(DhcpEvent::Bound)),
        (
            "init-reboot, wrong",
            vec![DhcpOption::RequestedIpAddress(wrong)],
            None,
            Some(DhcpEvent::Refused { wanted: wrong }),
        ),
        ("renewing", vec![], Some(lease.ip), Some(DhcpEvent::Bound)),
        (
            "rebinding, wrong",
            vec![],
            Some(wrong),
            Some(DhcpEvent::Refused { wanted: wrong }),
        ),
    ];
    for (what, mut options, ciaddr, event) in cases {
        options.push(request.clone());
        let frame = ask(MAC, options, |message| {
            if let Some(ciaddr) = ciaddr {
                message.set_ciaddr(ciaddr);
            }
        });
        let answered = answer(&lease, &frame);
        assert_eq!(answered.as_ref().map(|(event, _)| *event), event, "{what}");
        let Some((event, Some(reply))) = answered else {
            continue;
        };
        let reply_message = read(&reply);
        match event {
            DhcpEvent::Refused { .. } => {
                assert_eq!(
                    reply_message.opts().msg_type(),
                    Some(MessageType::Nak),
                    "{what}"
                );
                assert_eq!(
                    target(&reply),
                    (MacAddr::BROADCAST, Ipv4Addr::BROADCAST),
                    "{what}"
                );
                assert!(reply_message.yiaddr().is_unspecified(), "{what}");
            }
            _ => {
                assert_eq!(
                    reply_message.opts().msg_type(),
                    Some(MessageType::Ack),
                    "{what}"
                );
                assert_eq!(reply_message.yiaddr(), lease.ip, "{what}");
            }
        }
    }
}

#[test]
fn inform_gets_facts_but_no_address() {
    let frame = ask(MAC, vec![kind(MessageType::Inform)], |message| {
        message.set_ciaddr(Ipv4Addr::new(10, 98, 0, 7));
    });
    let reply = read(&respond(&lease(), &frame).unwrap());
    assert_eq!(reply.opts().msg_type(), Some(MessageType::Ack));
    assert!(reply.yiaddr().is_unspecified());
    assert!(reply.opts().get(OptionCode::AddressLeaseTime).is_none());
    assert!(reply.opts().get(OptionCode::DomainNameServer).is_some());
}

#[test]
fn decline_and_release_are_told_and_not_answered() {
    for (sent, event) in [
        (MessageType::Decline, DhcpEvent::Declined),
        (MessageType::Release, DhcpEvent::Released),
    ] {
        assert_eq!(
            answer(&lease(), &ask(MAC, vec![kind(sent)], |_| {})),
            Some((event, None))
        );
    }
}

#[test]
fn a_client_gets_what_it_asks_for_and_what_it_needs() {
    let wishes = DhcpOption::ParameterRequestList(vec![OptionCode::Hostname]);
    let reply = read(
        &respond(
            &lease(),
            &ask(MAC, vec![kind(MessageType::Discover), wishes], |_| {}),
        )
        .unwrap(),
    );
    let has = |code: OptionCode| reply.opts().get(code).is_some();
    assert!(
        has(OptionCode::Hostname)
            && has(OptionCode::SubnetMask)
            && has(OptionCode::AddressLeaseTime)
    );
    assert!(!has(OptionCode::InterfaceMtu) && !has(OptionCode::DomainNameServer));
}

#[test]
fn a_broadcast_is_answered_by_broadcast() {
    let frame = ask(MAC, vec![kind(MessageType::Discover)], |message| {
        message.set_flags(Flags::default().set_broadcast());
    });
    let reply = respond(&lease(), &frame).unwrap();
    assert_eq!(target(&reply), (MacAddr::BROADCAST, Ipv4Addr::BROADCAST));
}

#[test]
fn routes_come_with_the_default_route_behind_them() {
    let mut lease = lease();
    let gateway = Some(Ipv4Addr::new(10, 98, 0, 9));
    lease.routes = vec![Route {
        destination: Ipv4Addr::new(172, 16, 32, 0),
        prefix: 20,
        gateway,
    }];
    let data = super::classless_routes(&lease).unwrap();
    assert_eq!(data, [20, 172, 16, 32, 10, 98, 0, 9, 0, 10, 98, 0, 1]);
}

#[test]
fn strangers_and_nonsense_are_not_answered() {
    let other = MacAddr([2, 0, 0, 0, 0, 8]);
    assert_eq!(
        answer(
            &lease(),
            &ask(other, vec![kind(MessageType::Discover)], |_| {})
        ),
        None
    );
    // The Ethernet source is ours, the hardware address inside is not.
    let forged = ask(MAC, vec![kind(MessageType::Discover)], |message| {
        message.set_chaddr(&other.octets());
    });
    assert_eq!(answer(&lease(), &forged), None);
    let good = ask(MAC, vec![kind(MessageType::Discover)], |_| {});
    for length in 0..good.len() {
        // No part of a frame panics, and none that lost its message type is answered.
        let _ = answer(&lease(), &good[..length]);
    }
    assert_eq!(answer(&lease(), &good[..60]), None);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        let _ = answer(&lease(), &bytes);
    }

    #[test]
    fn whatever_the_payload_only_our_client_is_answered(payload in proptest::collection::vec(any::<u8>(), 0..400), source: [u8; 6]) {
        let mut frame = ask(MacAddr(source), vec![kind(MessageType::Discover)], |_| {});
        let keep = 42 + 240.min(payload.len());
        frame.truncate(keep);
        frame.extend(&payload);
        if source != MAC.octets() {
            prop_assert_eq!(answer(&lease(), &frame), None);
        } else if let Some(reply) = respond(&lease(), &frame) {
            let to = target(&reply).0;
            prop_assert!(to == MAC || to == MacAddr::BROADCAST);
        }
    }
}

/// The decoder trusts the length of some options; a guest chooses it.
#[test]
fn an_option_of_any_code_and_length_costs_nobody_an_answer() {
    for code in 1..=254_u8 {
        if code == u8::from(OptionCode::MessageType) {
            continue;
        }
        for length in 0..10 {
            let option = UnknownOption::new(OptionCode::from(code), vec![1; length]);
            let options = vec![kind(MessageType::Discover), DhcpOption::Unknown(option)];
            let answered = answer(&lease(), &ask(MAC, options, |_| {}));
            assert!(
                matches!(answered, Some((DhcpEvent::Offered, Some(_)))),
                "option {code} of {length} bytes: {answered:?}"
            );
        }
    }
}

/// The third byte of a message says how long the hardware address is.
#[test]
fn a_hardware_address_of_any_length_is_no_panic() {
    let good = ask(MAC, vec![kind(MessageType::Discover)], |_| {});
    for length in 0..=255 {
        let mut frame = good.clone();
        frame[44] = length;
        assert_eq!(answer(&lease(), &frame).is_some(), length == 6, "{length}");
    }
}
