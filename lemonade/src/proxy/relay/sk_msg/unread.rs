//! What another socket of this host has received and not read, asked of the kernel by its addresses.
//!
//! The message is that of `linux/inet_diag.h` (sock_diag(7)); the kernel answers before the send returns.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use socket2::{Domain, Protocol, Socket, Type};

/// `SOCK_DIAG_BY_FAMILY`, the request and the type of the answer.
const BY_FAMILY: u16 = 20;

/// `NLM_F_REQUEST`
const REQUEST: u16 = 1;

/// `INET_DIAG_SKMEMINFO`; asked for by the bit below it, and the first word of it is `SK_MEMINFO_RMEM_ALLOC`.
const MEMORY: u16 = 7;

/// Bytes of `nlmsghdr`, of a request with its header, and of an answer with its header in front of attributes.
const HEADER: usize = 16;
const ASK: usize = HEADER + 56;
const ANSWER: usize = HEADER + 72;

/// A line to the kernel.
#[derive(Debug)]
pub struct Unread(Mutex<Socket>);

impl Unread {
    /// Opens it.
    ///
    /// # Errors
    /// As socket(2).
    pub fn open() -> io::Result<Self> {
        let (domain, protocol) = (Domain::from(libc::AF_NETLINK), Protocol::from(libc::NETLINK_SOCK_DIAG));
        let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
        socket.set_nonblocking(true)?;
        Ok(Self(Mutex::new(socket)))
    }

    /// Bytes of memory that the socket at `local`, connected to `remote`, holds for its reader; `None` if there is none.
    ///
    /// What came by TCP counts with its overhead, what came the short way without.
    pub fn of(&self, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
        let mut answer = [0; 1024];
        // An answer that was meant for nobody is dropped with the line, so that none is ever taken for another's.
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let length = socket.write_all(&ask(local, remote)).and_then(|()| socket.read(&mut answer)).ok()?;
        drop(socket);
        parse(answer.get(..length)?)
    }
}

fn ask(local: SocketAddr, remote: SocketAddr) -> [u8; ASK] {
    let mut ask = [0; ASK];
    ask[..4].copy_from_slice(&(ASK as u32).to_ne_bytes());
    ask[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    ask[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    ask[HEADER..HEADER + 3].copy_from_slice(&[family as u8, libc::IPPROTO_TCP as u8, 1 << (MEMORY - 1)]);
    // Any state.
    ask[HEADER + 4..HEADER + 8].fill(0xff);
    let id = &mut ask[HEADER + 8..];
    id[..2].copy_from_slice(&local.port().to_be_bytes());
    id[2..4].copy_from_slice(&remote.port().to_be_bytes());
    for (at, ip) in [(4, local.ip()), (20, remote.ip())] {
        match ip {
            IpAddr::V4(ip) => id[at..at + 4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => id[at..at + 16].copy_from_slice(&ip.octets()),
        }
    }
    // Any cookie.
    id[40..48].fill(0xff);
    ask
}

fn parse(answer: &[u8]) -> Option<u32> {
    let short = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    if short(4)? != BY_FAMILY {
        return None;
    }
    let mut at = ANSWER;
    loop {
        let (length, kind) = (short(at)?, short(at + 2)?);
        if kind == MEMORY {
            return Some(u32::from_ne_bytes(answer.get(at + 4..at + 8)?.try_into().ok()?));
        }
        at += usize::from(length.max(4)).next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_kernel_tells_what_a_reader_has_left() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut reader, peer) = listener.accept().unwrap();
        let (line, local) = (Unread::open().unwrap(), reader.local_addr().unwrap());
        assert_eq!(line.of(local, peer), Some(0));
        sender.write_all(&[1; 1000]).unwrap();
        reader.peek(&mut [0]).unwrap();
        assert!(line.of(local, peer) >= Some(1000), "{:?}", line.of(local, peer));
        reader.read_exact(&mut [0; 1000]).unwrap();
        assert_eq!(line.of(local, peer), Some(0));
        assert_eq!(line.of(peer, peer), None, "there is no such socket");
    }
}
