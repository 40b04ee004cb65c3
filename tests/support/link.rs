//! Attributes of interfaces that the `ip` of Debian 12 does not know.

#![cfg(target_os = "linux")]

use std::ffi::CString;
use std::io::{self, Read as _, Write as _};

use socket2::{Domain, Protocol, Socket, Type};

/// `RTM_NEWLINK`, `NLM_F_REQUEST | NLM_F_ACK`, `NLMSG_ERROR` (`linux/rtnetlink.h`, `linux/netlink.h`).
const NEW_LINK: u16 = 16;
const FLAGS: u16 = 1 | 4;
const ERROR: u16 = 2;

/// `IFLA_GSO_IPV4_MAX_SIZE` and `IFLA_GRO_IPV4_MAX_SIZE` (`linux/if_link.h`).
const LARGEST: [u16; 2] = [63, 64];

/// Lets packets of IPv4 that pass by `device` of this thread's namespace be of up to `bytes` in both directions.
///
/// # Errors
/// As socket(2), or what the kernel answers: `EINVAL` before Linux 6.3.
///
/// # Panics
/// When there is no such interface.
pub fn large_packets_of_v4(device: &str, bytes: u32) -> io::Result<()> {
    let name = CString::new(device).expect("a name without zeros");
    // SAFETY: a string that ends with zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert!(index > 0, "no interface {device}");
    let mut message = vec![0; 32];
    // Behind the header `ifinfomsg`, of which only the index is given.
    message[20..24].copy_from_slice(&index.to_ne_bytes());
    for kind in LARGEST {
        message.extend(8_u16.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(bytes.to_ne_bytes());
    }
    let length = u32::try_from(message.len()).expect("a short message");
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&NEW_LINK.to_ne_bytes());
    message[6..8].copy_from_slice(&FLAGS.to_ne_bytes());
    let (domain, protocol) = (Domain::from(libc::AF_NETLINK), Protocol::from(libc::NETLINK_ROUTE));
    let mut socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.write_all(&message)?;
    let mut answer = [0; 512];
    let length = socket.read(&mut answer)?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    assert!(length >= 20 && kind == ERROR, "the kernel acknowledges: {:?}", &answer[..length]);
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}
