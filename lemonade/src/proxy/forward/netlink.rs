//! Requests to the kernel by netlink(7) and the attributes of its answers.

#![cfg(target_os = "linux")]

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// `linux/netlink.h`
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_DUMP: u16 = 0x300;
const NLA_F_NESTED: u16 = 1 << 15;

/// `linux/genetlink.h`
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// Bytes of a netlink header, and of the one that generic netlink has behind it.
const HEADER: usize = 16;
pub(super) const GENERIC: usize = 4;

/// The kernel's answers for the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens the socket to ask about routes, addresses and interfaces by.
    ///
    /// # Errors
    /// As socket(2).
    pub(super) fn routes() -> io::Result<Self> {
        // Its number is 0, which is no number to rustix.
        Self::open(None)
    }

    /// Opens the socket to ask families of generic netlink by.
    ///
    /// # Errors
    /// As socket(2).
    pub(super) fn generic() -> io::Result<Self> {
        Self::open(Some(netlink::GENERIC))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        // The kernel answers within the call; the limit is for one that does not.
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(1)))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Number of a family of generic netlink.
    ///
    /// # Errors
    /// The kernel does not have it.
    pub(super) fn family(&mut self, name: &str) -> io::Result<u16> {
        let name = attribute(CTRL_ATTR_FAMILY_NAME, &[name.as_bytes(), &[0]].concat());
        let answers = self.ask(GENL_ID_CTRL, 0, &generic(CTRL_CMD_GETFAMILY, 1, &name))?;
        let number = answers.first().and_then(|(_, body)| {
            attributes(body.get(GENERIC..)?).find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)
        });
        number.and_then(|(_, value)| half(value, 0)).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Sends one request and reads its answers: kinds with what follows the netlink header.
    ///
    /// # Errors
    /// The kernel's own, or it does not answer.
    pub(super) fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<(u16, Vec<u8>)>> {
        self.sequence += 1;
        let mut request = Vec::with_capacity(HEADER + body.len());
        request.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend(body);
        send(&self.socket, &request, SendFlags::empty())?;
        let (mut answers, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
        loop {
            let (length, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((size, kind)) = word(rest, 0).zip(half(rest, 4)) {
                let Some(message) = rest.get(HEADER..size as usize) else { break };
                let ours = word(rest, 8) == Some(self.sequence);
                match kind {
                    _ if !ours => {}
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => {
                        let code = word(message, 0).unwrap_or(0) as i32;
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    kind => {
                        answers.push((kind, message.to_vec()));
                        if flags & NLM_F_DUMP == 0 {
                            return Ok(answers);
                        }
                    }
                }
                rest = rest.get(aligned(size as usize)..).unwrap_or_default();
            }
        }
    }
}

const fn aligned(size: usize) -> usize {
    (size + 3) & !3
}

/// One attribute with its padding.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(aligned(bytes.len()), 0);
    bytes
}

/// An attribute that holds others.
pub(super) fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, value)
}

/// A request of a family of generic netlink.
pub(super) fn generic(command: u8, version: u8, attributes: &[u8]) -> Vec<u8> {
    [&[command, version, 0, 0], attributes].concat()
}

/// Attributes in turn, as far as they are whole.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let size = usize::from(half(bytes, 0)?);
        let value = bytes.get(4..size)?;
        let kind = half(bytes, 2)?;
        bytes = bytes.get(aligned(size)..).unwrap_or_default();
        // The upper two bits say how the value is to be read.
        Some((kind & 0x3fff, value))
    })
}

/// The 32 bits at an offset.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The 16 bits at an offset.
pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_end_where_the_bytes_do() {
        let mut bytes = attribute(4, &7_u32.to_ne_bytes());
        bytes.extend(attribute(1, &[1, 2, 3]));
        bytes.extend([9, 0, 1]);
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(4, &7_u32.to_ne_bytes()[..]), (1, &[1, 2, 3][..])]);
    }
}
