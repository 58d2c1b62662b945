//! Ethernet, IPv4 and UDP around a DHCP message.

use std::net::Ipv4Addr;

use super::Lease;
use crate::MacAddr;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// Who gets a reply.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recipient {
    pub(super) mac: MacAddr,
    pub(super) ip: Ipv4Addr,
}

/// The DHCP message in a frame from `mac` to a DHCP server, if it is one.
pub(super) fn dhcp_payload(frame: &[u8], mac: MacAddr) -> Option<&[u8]> {
    let half =
        |bytes: &[u8], at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    if frame.get(6..12)? != mac.octets() || half(frame, 12)? != 0x0800 {
        return None;
    }
    let packet = &frame[ETHERNET..];
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(half(packet, 2)?);
    let is_ipv4 = packet.first()? >> 4 == 4 && header >= IPV4;
    let is_fragment = half(packet, 6)? & 0x3fff != 0;
    if !is_ipv4 || is_fragment || *packet.get(9)? != 17 {
        return None;
    }
    // The frame may be padded; the lengths inside say where things end.
    let segment = packet.get(header..total)?;
    let length = usize::from(half(segment, 4)?);
    if half(segment, 2)? != SERVER_PORT || length < UDP {
        return None;
    }
    segment.get(UDP..length)
}

/// A frame with a DHCP message from the lease's server. The sender's MAC is one that nobody else has; nothing is ever
/// sent back to it, because clients answer by broadcast or to the server's IP.
pub(super) fn build(lease: &Lease, to: Recipient, message: &[u8]) -> Vec<u8> {
    let udp_length =
        u16::try_from(UDP + message.len()).expect("a DHCP message is far below 64 KiB");
    let total =
        u16::try_from(IPV4 + UDP + message.len()).expect("a DHCP message is far below 64 KiB");
    let mut frame = Vec::with_capacity(ETHERNET + usize::from(total));
    let mac = if to.ip.is_broadcast() {
        MacAddr::BROADCAST
    } else {
        to.mac
    };
    frame.extend_from_slice(&mac.octets());
    frame.extend_from_slice(&MacAddr::local(&format!("dhcp server of {}", lease.mac)).octets());
    frame.extend_from_slice(&0x0800_u16.to_be_bytes());

    let mut ip = [0_u8; IPV4];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    // Don't fragment; the message fits every link.
    ip[6] = 0x40;
    ip[8] = 64;
    ip[9] = 17;
    ip[12..16].copy_from_slice(&lease.server_id.octets());
    ip[16..20].copy_from_slice(&to.ip.octets());
    let checksum = internet_checksum(&[&ip]);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend_from_slice(&ip);

    let mut udp = [0_u8; UDP];
    udp[0..2].copy_from_slice(&SERVER_PORT.to_be_bytes());
    udp[2..4].copy_from_slice(&CLIENT_PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&udp_length.to_be_bytes());
    let mut pseudo = [0_u8; 12];
    pseudo[..8].copy_from_slice(&ip[12..20]);
    pseudo[9] = 17;
    pseudo[10..].copy_from_slice(&udp_length.to_be_bytes());
    // Zero would mean "no checksum".
    let checksum = match internet_checksum(&[&pseudo, &udp, message]) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    frame.extend_from_slice(&udp);
    frame.extend_from_slice(message);
    frame
}

/// RFC 1071, over parts that each but the last have an even length.
pub(super) fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}
