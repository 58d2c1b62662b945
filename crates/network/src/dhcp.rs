//! The DHCPv4 server of one machine: one lease, told to one MAC (RFC 2131).
//!
//! ```text
//!  DISCOVER                       → OFFER
//!  REQUEST  for another server    → silence, the client chose it
//!           for our address       → ACK
//!           for another address   → NAK, by broadcast: the client lets it go and asks anew
//!  INFORM                         → ACK without an address
//!  DECLINE, RELEASE               → told to the owner of the server, no answer
//! ```
//!
//! [`answer`] is that table, pure: an Ethernet frame in, at most one out. It works on whole frames because the server
//! has no address on the link it answers on; [`serve`] moves frames between it and a packet socket.
//!
//! Only frames whose Ethernet source and hardware address field are the machine's are looked at. The checksum of UDP is
//! not: a virtual NIC leaves it to an offload that never comes.

mod frame;
mod serve;

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode, UnknownOption};
use dhcproto::{Decodable as _, Decoder, Encodable as _, Encoder};
use serde::{Deserialize, Serialize};

pub use serve::serve;

use crate::{MacAddr, Route};

/// Largest option that one TLV can carry.
const OPTION_MAX: usize = 255;

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The only client.
    pub mac: MacAddr,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Length of the network's prefix in bits.
    pub prefix: u8,
    /// The default router (option 3).
    pub gateway: Option<Ipv4Addr>,
    /// Routes beyond the default one (option 121).
    pub routes: Vec<Route>,
    /// Name servers (option 6).
    pub dns: Vec<Ipv4Addr>,
    /// Option 12.
    pub hostname: Option<String>,
    /// Option 15.
    pub domain: Option<String>,
    /// Option 119.
    pub search: Vec<String>,
    /// Option 26, in bytes.
    pub mtu: Option<u32>,
    /// How the server calls itself (option 54), and the source of its packets.
    pub server_id: Ipv4Addr,
    /// How long the lease holds (option 51); `u32::MAX` is for ever.
    pub seconds: u32,
}

impl Lease {
    fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(
            u32::MAX
                .checked_shl(32 - u32::from(self.prefix.min(32)))
                .unwrap_or(0),
        )
    }
}

/// What happened, for whoever watches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DhcpEvent {
    /// The client asked and was offered the address.
    Offered,
    /// The client has the address.
    Bound,
    /// The client wanted another address and was refused.
    Refused {
        /// What it wanted.
        wanted: Ipv4Addr,
    },
    /// The client has an address of its own and was told the rest.
    Informed,
    /// The client found somebody else at the address.
    Declined,
    /// The client gave the address back.
    Released,
}

/// The answer to a frame, if it deserves one.
#[must_use]
pub fn respond(lease: &Lease, received: &[u8]) -> Option<Vec<u8>> {
    answer(lease, received).and_then(|(_, reply)| reply)
}

/// What a frame means and the frame to answer with; none for frames that are not the machine's or make no sense.
#[must_use]
pub fn answer(lease: &Lease, received: &[u8]) -> Option<(DhcpEvent, Option<Vec<u8>>)> {
    let payload = frame::dhcp_payload(received, lease.mac)?;
    let request = Message::decode(&mut Decoder::new(&understood(payload)?)).ok()?;
    if request.opcode() != Opcode::BootRequest || request.chaddr() != lease.mac.octets() {
        return None;
    }
    let reply = |event, kind| Some((event, Some(encode(lease, &request, kind)?)));
    match request.opts().msg_type()? {
        MessageType::Discover => reply(DhcpEvent::Offered, MessageType::Offer),
        MessageType::Request => match judge(lease, &request) {
            Verdict::NotForUs => None,
            Verdict::Ours => reply(DhcpEvent::Bound, MessageType::Ack),
            Verdict::Other(wanted) => reply(DhcpEvent::Refused { wanted }, MessageType::Nak),
        },
        MessageType::Inform => reply(DhcpEvent::Informed, MessageType::Ack),
        MessageType::Decline => Some((DhcpEvent::Declined, None)),
        MessageType::Release => Some((DhcpEvent::Released, None)),
        _ => None,
    }
}

/// Bytes before the options, the magic number included.
const FIXED: usize = 240;

/// A message with the options that are read here and no others. A guest may send anything, and the decoder takes the
/// lengths on trust. None if an option does not end where the message does.
fn understood(payload: &[u8]) -> Option<Vec<u8>> {
    const PAD: u8 = 0;
    const END: u8 = 255;
    let (head, mut rest) = payload.split_at_checked(FIXED)?;
    // Ethernet. The decoder would take as many bytes of the hardware address as the message says it has.
    if head[1] != 1 || head[2] != 6 {
        return None;
    }
    let mut out = head.to_vec();
    loop {
        match *rest {
            [] | [END, ..] => break,
            [PAD, ref after @ ..] => rest = after,
            [code, length, ref after @ ..] => {
                let (value, after) = after.split_at_checked(usize::from(length))?;
                let right = match OptionCode::from(code) {
                    OptionCode::MessageType => value.len() == 1,
                    OptionCode::RequestedIpAddress | OptionCode::ServerIdentifier => {
                        value.len() == 4
                    }
                    OptionCode::ParameterRequestList | OptionCode::ClientIdentifier => {
                        !value.is_empty()
                    }
                    _ => false,
                };
                if right {
                    out.extend([code, length]);
                    out.extend_from_slice(value);
                }
                rest = after;
            }
            [_] => return None,
        }
    }
    out.push(END);
    Some(out)
}

enum Verdict {
    NotForUs,
    Ours,
    Other(Ipv4Addr),
}

/// The four states that a REQUEST comes from are told apart as RFC 2131, 4.3.2 does: by server identifier, requested
/// address and ciaddr. For a server with one lease they come down to: is it us, and is it our address?
fn judge(lease: &Lease, request: &Message) -> Verdict {
    if let Some(DhcpOption::ServerIdentifier(server)) =
        request.opts().get(OptionCode::ServerIdentifier)
        && *server != lease.server_id
    {
        return Verdict::NotForUs;
    }
    let wanted = match request.opts().get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(wanted)) => *wanted,
        _ => request.ciaddr(),
    };
    if wanted == lease.ip {
        Verdict::Ours
    } else {
        Verdict::Other(wanted)
    }
}

fn encode(lease: &Lease, request: &Message, kind: MessageType) -> Option<Vec<u8>> {
    let inform = request.opts().msg_type() == Some(MessageType::Inform);
    let nak = kind == MessageType::Nak;
    let mut reply = Message::new_with_id(
        request.xid(),
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        request.giaddr(),
        request.chaddr(),
    );
    reply
        .set_opcode(Opcode::BootReply)
        .set_flags(request.flags());
    if !nak {
        reply.set_ciaddr(request.ciaddr());
        if !inform {
            reply.set_yiaddr(lease.ip);
        }
    }
    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(lease.server_id));
    // A client that sent its identifier is told it back (RFC 6842).
    if let Some(identifier) = request.opts().get(OptionCode::ClientIdentifier) {
        options.insert(identifier.clone());
    }
    if nak {
        options.insert(DhcpOption::Message(
            "the address is not this machine's".to_owned(),
        ));
        // The client may have an address of another network: only a broadcast is sure to reach it.
        reply.set_flags(Flags::default().set_broadcast());
    } else {
        for option in facts(lease, inform) {
            if is_wanted(request, OptionCode::from(&option)) {
                reply.opts_mut().insert(option);
            }
        }
    }
    let mut bytes = Vec::with_capacity(576);
    reply.encode(&mut Encoder::new(&mut bytes)).ok()?;
    // The smallest message that BOOTP clients take.
    bytes.resize(bytes.len().max(300), 0);
    let to = frame::Recipient {
        mac: lease.mac,
        ip: recipient(lease, request, nak, inform),
    };
    Some(frame::build(lease, to, &bytes))
}

/// RFC 2131, 4.1.
fn recipient(lease: &Lease, request: &Message, nak: bool, inform: bool) -> Ipv4Addr {
    if nak {
        Ipv4Addr::BROADCAST
    } else if !request.ciaddr().is_unspecified() {
        request.ciaddr()
    } else if inform || request.flags().broadcast() {
        Ipv4Addr::BROADCAST
    } else {
        lease.ip
    }
}

/// Everything there is to tell. Lease times only to whom the address is leased.
fn facts(lease: &Lease, inform: bool) -> Vec<DhcpOption> {
    let mut facts = vec![DhcpOption::SubnetMask(lease.mask())];
    if !inform {
        let share = |numerator: u64, denominator: u64| match lease.seconds {
            u32::MAX => u32::MAX,
            seconds => {
                u32::try_from(u64::from(seconds) * numerator / denominator).unwrap_or(u32::MAX)
            }
        };
        facts.push(DhcpOption::AddressLeaseTime(lease.seconds));
        facts.push(DhcpOption::Renewal(share(1, 2)));
        facts.push(DhcpOption::Rebinding(share(7, 8)));
    }
    if let Some(gateway) = lease.gateway {
        facts.push(DhcpOption::Router(vec![gateway]));
    }
    if !lease.dns.is_empty() {
        // As many as one option holds.
        facts.push(DhcpOption::DomainNameServer(
            lease.dns.iter().copied().take(OPTION_MAX / 4).collect(),
        ));
    }
    if let Some(hostname) = lease
        .hostname
        .as_ref()
        .filter(|name| !name.is_empty() && name.len() <= OPTION_MAX)
    {
        facts.push(DhcpOption::Hostname(hostname.clone()));
    }
    if let Some(domain) = lease
        .domain
        .as_ref()
        .filter(|name| !name.is_empty() && name.len() <= OPTION_MAX)
    {
        facts.push(DhcpOption::DomainName(domain.clone()));
    }
    if let Some(mtu) = lease
        .mtu
        .and_then(|mtu| u16::try_from(mtu).ok())
        .filter(|mtu| *mtu >= 68)
    {
        facts.push(DhcpOption::InterfaceMtu(mtu));
    }
    facts.extend(search_list(&lease.search).map(|data| unknown(119, data)));
    facts.extend(classless_routes(lease).map(|data| unknown(121, data)));
    facts
}

fn unknown(code: u8, data: Vec<u8>) -> DhcpOption {
    DhcpOption::Unknown(UnknownOption::new(OptionCode::from(code), data))
}

/// What no client can do without goes out always, the rest to those who ask for it or say nothing.
fn is_wanted(request: &Message, code: OptionCode) -> bool {
    const ALWAYS: [OptionCode; 3] = [
        OptionCode::SubnetMask,
        OptionCode::Router,
        OptionCode::AddressLeaseTime,
    ];
    match request.opts().get(OptionCode::ParameterRequestList) {
        Some(DhcpOption::ParameterRequestList(asked)) => {
            ALWAYS.contains(&code) || asked.iter().any(|one| u8::from(*one) == u8::from(code))
        }
        _ => true,
    }
}

/// RFC 3397 without compression; none where a name is none or the list does not fit.
fn search_list(domains: &[String]) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    for domain in domains {
        for label in domain.trim_end_matches('.').split('.') {
            let length = u8::try_from(label.len())
                .ok()
                .filter(|length| (1..=63).contains(length))?;
            data.push(length);
            data.extend_from_slice(label.as_bytes());
        }
        data.push(0);
    }
    (!data.is_empty() && data.len() <= OPTION_MAX).then_some(data)
}

/// RFC 3442: a client that takes this option ignores option 3, so the default route is in it too.
fn classless_routes(lease: &Lease) -> Option<Vec<u8>> {
    if lease.routes.is_empty() {
        return None;
    }
    let default = lease.gateway.map(|gateway| Route {
        destination: Ipv4Addr::UNSPECIFIED,
        prefix: 0,
        gateway: Some(gateway),
    });
    let mut data = Vec::new();
    for route in lease.routes.iter().chain(default.as_ref()) {
        data.push(route.prefix.min(32));
        let significant = usize::from(route.prefix.min(32)).div_ceil(8);
        data.extend_from_slice(&route.destination.octets()[..significant]);
        data.extend_from_slice(&route.gateway.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
    }
    (data.len() <= OPTION_MAX).then_some(data)
}

#[cfg(test)]
mod tests;
