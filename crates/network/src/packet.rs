//! nftables, taps and packet sockets: what netlink's route family does not do.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::{io, mem};

use crate::error::{Error, Result, io_error};
use crate::netlink::Netlink;
use crate::netns::within;

/// Replaces a whole table in one transaction: what was there before is gone only if the new one is accepted.
pub(crate) fn replace_table(family: &str, table: &str, body: &str) -> Result<()> {
    // "add" makes the "delete" hold when there was none.
    nft(
        table,
        &format!(
            "table {family} {table}\ndelete table {family} {table}\ntable {family} {table} {{\n{body}\n}}\n"
        ),
    )
}

/// Removes a table; none is no error.
pub(crate) fn remove_table(family: &str, table: &str) -> Result<()> {
    nft(
        table,
        &format!("table {family} {table}\ndelete table {family} {table}\n"),
    )
}

fn nft(table: &str, script: &str) -> Result<()> {
    let failed = |message: String| Error::Nft {
        table: table.to_owned(),
        message,
    };
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot run nft: {error}")))?;
    let written = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let output = child
        .wait_with_output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return written.map_err(|error| failed(error.to_string()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(
        said.lines().next().unwrap_or("nft failed").to_owned(),
    ))
}

/// Makes a persistent tap in the namespace of this thread that `owner` (user, group) may open without privilege.
/// One that is there stays, with the owner it has.
pub(crate) fn make_tap(name: &str, (uid, gid): (u32, u32)) -> Result<()> {
    const DEVICE: &str = "/dev/net/tun";
    let failed = |operation| io_error(operation, Path::new(DEVICE).join(name));
    let device = File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(io_error("opening", DEVICE))?;
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(failed("making the tap")(
            io::ErrorKind::InvalidFilename.into(),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).expect("the three flags fit into 15 bits");
    let check = |result: i32, operation| {
        if result < 0 {
            Err(failed(operation)(io::Error::last_os_error()))
        } else {
            Ok(())
        }
    };
    let tap = device.as_raw_fd();
    // SAFETY: the descriptor is open, the request is a valid ifreq that outlives the call.
    let made = unsafe { libc::ioctl(tap, libc::TUNSETIFF, &raw mut request) };
    check(made, "making the tap")?;
    let set = |what, value: u32| {
        // SAFETY: the descriptor is open; these requests take their argument by value.
        unsafe { libc::ioctl(tap, what, libc::c_ulong::from(value)) }
    };
    check(set(libc::TUNSETOWNER, uid), "giving away the tap")?;
    check(set(libc::TUNSETGROUP, gid), "giving away the tap")?;
    check(set(libc::TUNSETPERSIST, 1), "keeping the tap")
}

/// A packet socket on a link of the namespace at `netns` that sees only DHCP requests (IPv4, UDP to port 67), and sends
/// frames out of that link: towards the guest and nobody else. Non-blocking.
///
/// It is made with privilege and used without: the launcher gets it ready.
///
/// # Errors
/// When the link is not there or the kernel refuses.
pub fn open_dhcp_socket(netns: &Path, link: &str) -> Result<OwnedFd> {
    let name = link.to_owned();
    let at = netns.to_owned();
    within(netns, move || {
        let link = Netlink::connect()?
            .find(&name)?
            .ok_or_else(|| Error::NoLink {
                name: name.clone(),
                namespace: at.display().to_string(),
            })?;
        dhcp_socket(link.index).map_err(io_error("opening a DHCP socket on", name))
    })?
}

/// Passes Ethernet type IPv4, protocol UDP, no later fragment, destination port 67; the opcodes are those of
/// linux/filter.h.
const DHCP_FILTER: [libc::sock_filter; 11] = {
    const fn op(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
        libc::sock_filter { code, jt, jf, k }
    }
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF_BEHIND_IP: u16 = 0x48;
    const LOAD_IP_LENGTH: u16 = 0xb1;
    const EQUAL: u16 = 0x15;
    const ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;
    [
        op(LOAD_HALF, 12, 0, 0),
        op(EQUAL, 0x0800, 0, 8),
        op(LOAD_BYTE, 23, 0, 0),
        op(EQUAL, 17, 0, 6),
        op(LOAD_HALF, 20, 0, 0),
        op(ANY_BIT, 0x1fff, 4, 0),
        op(LOAD_IP_LENGTH, 14, 0, 0),
        op(LOAD_HALF_BEHIND_IP, 16, 0, 0),
        op(EQUAL, 67, 0, 1),
        op(RETURN, 0xffff, 0, 0),
        op(RETURN, 0, 0, 0),
    ]
};

fn dhcp_socket(index: u32) -> io::Result<OwnedFd> {
    let mut program = DHCP_FILTER;
    let check = |result: i32| {
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(result)
        }
    };
    // Protocol 0: nothing arrives until the filter is in place and the socket is bound.
    // SAFETY: a plain system call.
    let raw = check(unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        )
    })?;
    // SAFETY: the descriptor was just made and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("a dozen instructions"),
        filter: program.as_mut_ptr(),
    };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)?;
    const PACKET_IGNORE_OUTGOING: i32 = 23;
    set_option(&socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1_i32)?;
    // SAFETY: sockaddr_ll is plain data for which all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("a small constant");
    // Every protocol: a bridge takes frames off its ports before handlers of one protocol see them.
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL)
        .expect("a small constant")
        .to_be();
    address.sll_ifindex = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    let length = u32::try_from(mem::size_of_val(&address)).expect("a few bytes");
    // SAFETY: the address is a valid sockaddr_ll of the length given.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

fn set_option<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = u32::try_from(mem::size_of::<T>()).expect("a few bytes");
    // SAFETY: value points to a T of the length given, which the kernel copies.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const *value).cast(),
            length,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
