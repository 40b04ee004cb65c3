//! System calls on the sockets of a flow that is spliced: where their streams stand, and how they fall silent.

#![cfg(target_os = "linux")]

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::{Duration, Instant};

use socket2::{Protocol, SockAddr, SockRef, Socket, Type};

use super::check::{INFO, Place, Tcp};
use crate::proxy::socket::{reset_on_close, set_int, unacknowledged};

/// Queues of `TCP_REPAIR_QUEUE` (linux/tcp.h).
const RECEIVED: libc::c_int = 1;
const SENT: libc::c_int = 2;

/// Values of `TCP_REPAIR`; the last turns it off without a packet, the one before with a probe of the peer's window.
const ON: libc::c_int = 1;
const PROBE: libc::c_int = 0;
const OFF: libc::c_int = -1;

/// Reads `TCP_INFO`.
///
/// # Errors
/// As getsockopt(2).
pub(super) fn info(socket: &impl AsFd) -> io::Result<Tcp> {
    get::<INFO>(socket, libc::IPPROTO_TCP, libc::TCP_INFO).map(|info| Tcp::read(&info))
}

/// Memory that what a socket has received takes, in bytes: 0 if everything was read and nothing has come out of order either,
/// which nobody can read before what is missing.
///
/// # Errors
/// As getsockopt(2): before Linux 4.12 it is not told.
pub(super) fn held(socket: &impl AsFd) -> io::Result<u32> {
    /// `SK_MEMINFO_VARS` (linux/sock_diag.h); the first is `SK_MEMINFO_RMEM_ALLOC`.
    const WORDS: usize = 9;
    let words = get::<{ WORDS * 4 }>(socket, libc::SOL_SOCKET, libc::SO_MEMINFO)?;
    let [a, b, c, d, ..] = words;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

/// Where the streams of a socket stand. Nothing of it may wait to be sent for the first time.
///
/// # Errors
/// As setsockopt(2): the process may not repair sockets, or this one is closed.
pub(super) fn place(socket: &impl AsFd) -> io::Result<Place> {
    in_repair(socket, OFF, || Ok(Place { received: queue(socket, RECEIVED)?, sent: queue(socket, SENT)? }))
}

/// As [`place`], of a socket to which bytes come, and which may have some that wait to be sent: where what was read of it ends,
/// and the bytes behind that. `None`: a segment came meanwhile.
///
/// What waits to be sent must not be sent while the queue of sent bytes is chosen, since then it would be noted as sent and go
/// nowhere, and be sent again a round trip later. That time is of one system call.
///
/// # Errors
/// As [`place`].
pub(super) fn place_busy(socket: &impl AsFd) -> io::Result<Option<(Place, u32)>> {
    in_repair(socket, OFF, || {
        let received = queue(socket, RECEIVED)?;
        let unread = unread(socket)?;
        if word(socket, libc::TCP_QUEUE_SEQ)? != received {
            return Ok(None);
        }
        let place = Place { received: received.wrapping_sub(unread), sent: queue(socket, SENT)? };
        Ok(Some((place, unread)))
    })
}

/// Has a socket probe its peer's window: a packet without data from before what its peer has acknowledged.
///
/// # Errors
/// As [`place`].
pub(super) fn probe(socket: &impl AsFd) -> io::Result<()> {
    in_repair(socket, PROBE, || Ok(()))
}

/// The sequence number at which a queue ends.
fn queue(socket: &impl AsFd, which: libc::c_int) -> io::Result<u32> {
    set_int(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, which)?;
    word(socket, libc::TCP_QUEUE_SEQ)
}

/// Looks at a socket in repair, which it leaves by `end`.
fn in_repair<T>(socket: &impl AsFd, end: libc::c_int, look: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let tcp = libc::IPPROTO_TCP;
    let reused = SockRef::from(socket).reuse_address()?;
    set_int(socket, tcp, libc::TCP_REPAIR, ON)?;
    let seen = look();
    set_int(socket, tcp, libc::TCP_REPAIR, end)?;
    if reused {
        // Repair has taken it away.
        SockRef::from(socket).set_reuse_address(true)?;
    }
    seen
}

/// Bytes that a socket has received and nobody has read.
///
/// # Errors
/// As ioctl(2).
pub(super) fn unread(socket: &impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int through the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if result == 0 { Ok(bytes.cast_unsigned()) } else { Err(io::Error::last_os_error()) }
}

/// The timestamp that a segment sent now would have.
///
/// # Errors
/// As getsockopt(2).
pub(super) fn stamp(socket: &impl AsFd) -> io::Result<u32> {
    word(socket, libc::TCP_TIMESTAMP)
}

/// The socket of a side whose packets no longer reach it: silent, it holds addresses and ports.
#[derive(Debug)]
pub(super) struct Holder {
    /// `None`: what a killed process has left still has them.
    socket: Option<Socket>,
    /// Its own address and the peer's, unless its socket has always been there.
    ends: Option<[SocketAddr; 2]>,
    silent: bool,
    /// When it fell silent without knowing that its peer has everything.
    unsure: Option<Instant>,
}

impl Holder {
    /// One that may still have bytes to send again.
    pub(super) fn new(socket: TcpStream) -> Self {
        Self { socket: Some(socket.into()), ends: None, silent: false, unsure: None }
    }

    /// One without a socket, for its own address and the peer's.
    pub(super) const fn vacant(ends: [SocketAddr; 2]) -> Self {
        Self { socket: None, ends: Some(ends), silent: true, unsure: None }
    }

    /// Takes its addresses and ports, if it has not.
    ///
    /// # Errors
    /// As socket(2), bind(2) and connect(2): a socket that a killed process has left may have bytes to send again.
    pub(super) fn claim(&mut self) -> io::Result<()> {
        if let (None, Some([own, peer])) = (&self.socket, self.ends) {
            let fresh = bound(&own.into())?;
            hold(&fresh, &peer.into())?;
            self.socket = Some(fresh);
        }
        Ok(())
    }

    /// Whether it sends nothing any more.
    pub(super) const fn is_silent(&self) -> bool {
        self.silent
    }

    /// Whether its peer has told it that it has everything.
    pub(super) fn knows(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| unacknowledged(socket) == 0)
    }

    /// Lets it send nothing any more, whose peer has all that it sent, and close without a word. One that does not know what
    /// its peer has goes on sending that, which the program at egress drops, until [`Self::renew`] or its close.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub(super) fn silence(&mut self) -> io::Result<()> {
        let Some(socket) = self.socket.as_ref().filter(|_| !self.silent) else { return Ok(()) };
        self.silent = true;
        set_int(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 0)?;
        set_int(socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 0)?;
        // Tells the program that counts resets in the kernel that its close is not the peer's.
        reset_on_close(socket);
        set_int(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, ON)?;
        self.unsure = Some(Instant::now());
        Ok(())
    }

    /// Puts a fresh socket in the place of one that has been silent for `delay`, and still does not know what its peer has: before
    /// long it would give up, and its port with it. Most connections end before.
    ///
    /// # Errors
    /// As socket(2), bind(2) and connect(2).
    pub(super) fn renew(&mut self, delay: Duration) -> io::Result<()> {
        if self.unsure.is_none_or(|since| since.elapsed() < delay) {
            return Ok(());
        }
        self.unsure = None;
        if self.knows() { Ok(()) } else { self.replace() }
    }

    /// Its own address and the peer's.
    ///
    /// # Errors
    /// As getsockname(2).
    pub(super) fn ends(&self) -> io::Result<[SocketAddr; 2]> {
        let Some(socket) = &self.socket else { return Err(io::ErrorKind::NotConnected.into()) };
        let known = |address: SockAddr| -> io::Result<SocketAddr> {
            address.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
        };
        Ok([known(socket.local_addr()?)?, known(socket.peer_addr()?)?])
    }

    /// Puts a fresh socket in its place; there is no moment at which the port is free.
    pub(super) fn replace(&mut self) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let (own, peer) = (socket.local_addr()?, socket.peer_addr()?);
        let fresh = bound(&own)?;
        // Closed before the fresh one takes both its addresses.
        let fresh = self.socket.insert(fresh);
        hold(fresh, &peer)
    }

    /// Closes it with RST.
    pub(super) fn reset(self) {
        let Some(socket) = &self.socket else { return };
        // Fails only for a socket that is closed already.
        let _ = set_int(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, OFF);
        reset_on_close(socket);
    }
}

/// A silent socket that is bound to a port which others may have.
fn bound(own: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(own.domain(), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    set_int(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, ON)?;
    socket.bind(own)?;
    Ok(socket)
}

/// Gives a silent socket its peer without a packet.
fn hold(socket: &Socket, peer: &SockAddr) -> io::Result<()> {
    socket.connect(peer)?;
    reset_on_close(socket);
    Ok(())
}

fn get<const N: usize>(socket: &impl AsFd, level: libc::c_int, option: libc::c_int) -> io::Result<[u8; N]> {
    let mut value = [0; N];
    let mut length = N as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, and `value` has that many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

fn word(socket: &impl AsFd, option: libc::c_int) -> io::Result<u32> {
    get(socket, libc::IPPROTO_TCP, option).map(u32::from_ne_bytes)
}
