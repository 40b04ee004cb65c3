//! Sockets of datagrams: every option they get, and batches in and out.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

#[cfg(target_os = "linux")]
use crate::proxy::socket::set_int;

/// Bytes that a listener's socket may hold before the kernel drops; without CAP_NET_ADMIN it caps them at
/// `net.core.rmem_max` and `net.core.wmem_max`.
const BUFFER: i32 = 4 << 20;

/// Longest that one receive can be: the longest datagram, or several that the kernel has put together.
const LONGEST: usize = 64 * 1024;

/// Receives of one system call.
const RECEIVES: usize = 16;

/// Opens the socket of one worker on `address`, shared with the other workers by SO_REUSEPORT.
///
/// # Errors
/// As socket(2) and bind(2).
pub(in crate::proxy) fn open(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = new(address)?;
    #[cfg(unix)]
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    enlarge(&socket);
    Ok(socket.into())
}

/// Finds out whether another process holds `address`, which SO_REUSEPORT would hide.
///
/// # Errors
/// `AddrInUse` if so; else as bind(2).
pub(in crate::proxy) fn probe_address(address: SocketAddr) -> io::Result<()> {
    new(address)?.bind(&address.into())
}

/// Opens a socket that sends to `target` and hears of nobody else.
///
/// # Errors
/// As socket(2), bind(2) and connect(2); `source` must be an address of this host.
pub(super) fn connect(target: SocketAddr, source: Option<IpAddr>) -> io::Result<tokio::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(target), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect(&target.into())?;
    #[cfg(target_os = "linux")]
    // Older kernels have no such option and deliver one by one.
    let _ = set_int(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    tokio::net::UdpSocket::from_std(socket.into())
}

/// Gives a listener's socket room for a burst, as much as the system allows; less only drops earlier.
fn enlarge(socket: &Socket) {
    let _ = socket.set_recv_buffer_size(BUFFER as usize);
    let _ = socket.set_send_buffer_size(BUFFER as usize);
    #[cfg(target_os = "linux")]
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        let _ = set_int(socket, libc::SOL_SOCKET, option, BUFFER);
    }
}

fn new(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // `[::]` is every address, IPv4 too, whatever `net.ipv6.bindv6only` says.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// What came in one receive: one datagram, or several of one sender and one size, the last of which may be shorter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received<'a> {
    pub(super) from: SocketAddr,
    /// Own address that it was sent to, where the system tells.
    pub(super) to: Option<IpAddr>,
    pub(super) bytes: &'a [u8],
    stride: usize,
    ecn: Option<EcnCodepoint>,
}

impl<'a> Received<'a> {
    fn of(meta: &RecvMeta, buffer: &'a [u8]) -> Self {
        let bytes = &buffer[..meta.len.min(buffer.len())];
        Self { from: meta.addr, to: meta.dst_ip, bytes, stride: meta.stride.max(1), ecn: meta.ecn }
    }

    /// Number of datagrams; an empty one is one too.
    pub(super) fn datagrams(&self) -> u64 {
        self.bytes.len().div_ceil(self.stride).max(1) as u64
    }

    /// What is left when the first `bytes` are gone.
    pub(super) fn after(&self, bytes: usize) -> Self {
        Self { bytes: &self.bytes[bytes.min(self.bytes.len())..], ..*self }
    }
}

/// Room for one batch, used by one receive at a time and never kept over an await: one per worker is enough.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    metas: [RecvMeta; RECEIVES],
}

impl Default for Batch {
    fn default() -> Self {
        Self { bytes: vec![0; RECEIVES * LONGEST], metas: [RecvMeta::default(); RECEIVES] }
    }
}

impl Batch {
    /// Receives what waits, up to the size of a batch.
    ///
    /// # Errors
    /// As recvmmsg(2); `WouldBlock` if nothing waits.
    pub(super) fn receive(&mut self, wire: &Wire, socket: &impl AsFd) -> io::Result<usize> {
        let mut parts = self.bytes.chunks_mut(LONGEST);
        let mut parts: [IoSliceMut<'_>; RECEIVES] =
            std::array::from_fn(|_| IoSliceMut::new(parts.next().unwrap_or_default()));
        wire.0.recv(socket.into(), &mut parts, &mut self.metas)
    }

    /// What the last receive of `count` brought.
    pub(super) fn received(&self, count: usize) -> impl Iterator<Item = Received<'_>> {
        let buffers = self.bytes.chunks(LONGEST);
        self.metas.iter().take(count).zip(buffers).map(|(meta, buffer)| Received::of(meta, buffer))
    }
}

/// What became of datagrams that were to be sent.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// Those that went.
    pub(super) datagrams: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Those dropped because the socket was full or they were too long for the path.
    pub(super) lost: u64,
    /// Bytes of those that went or were dropped; the rest waits for what [`Self::fault`] says.
    pub(super) done: usize,
    /// Why no more went.
    pub(super) fault: Option<io::Error>,
}

/// How datagrams go in and out on this system.
#[derive(Debug)]
pub(super) struct Wire(UdpSocketState);

impl Wire {
    /// Prepares a listener's socket, so that it tells the address that a client used.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub(super) fn new(socket: &impl AsFd) -> io::Result<Self> {
        let wire = Self(UdpSocketState::new(socket.into())?);
        #[cfg(target_os = "linux")]
        {
            // The library is made for QUIC, which forbids fragments; a long datagram needs them. And nobody reads when
            // a datagram came, which would cost every packet of the host its time.
            let _ = set_int(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_WANT);
            let _ = set_int(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0);
            let fd = socket.as_fd();
            if SockRef::from(&fd).domain()? == Domain::IPV6 {
                set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_WANT)?;
                set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)?;
            }
        }
        Ok(wire)
    }

    /// Sends to `to`, from `from` if the socket has several addresses, several datagrams in one call where it can.
    pub(super) fn send(
        &self,
        socket: &impl AsFd,
        to: SocketAddr,
        from: Option<IpAddr>,
        what: &Received<'_>,
    ) -> Sent {
        let mut sent = Sent::default();
        if what.bytes.is_empty() {
            self.step(socket, (to, from), what, &[], &mut sent);
            return sent;
        }
        let most = what.stride.saturating_mul(self.0.max_gso_segments().max(1));
        for part in what.bytes.chunks(most) {
            if part.len() > what.stride {
                match self.one(socket, (to, from), what, part) {
                    Ok(()) => {
                        sent.went(part, what.stride);
                        continue;
                    }
                    Err(error) if is_loss(&error) || is_about_segments(&error) => {}
                    Err(error) => {
                        sent.fault = Some(error);
                        return sent;
                    }
                }
            }
            // The path takes no such segments, or the socket has not room for all: one by one, as far as it goes.
            for one in part.chunks(what.stride) {
                if !self.step(socket, (to, from), what, one, &mut sent) {
                    return sent;
                }
            }
        }
        sent
    }

    /// Sends one datagram; `false` if no further one can go.
    fn step(
        &self,
        socket: &impl AsFd,
        way: (SocketAddr, Option<IpAddr>),
        what: &Received<'_>,
        one: &[u8],
        sent: &mut Sent,
    ) -> bool {
        match self.one(socket, way, what, one) {
            Ok(()) => sent.went(one, what.stride),
            Err(error) if is_loss(&error) => {
                sent.lost += 1;
                sent.done += one.len();
            }
            Err(error) => {
                sent.fault = Some(error);
                return false;
            }
        }
        true
    }

    fn one(
        &self,
        socket: &impl AsFd,
        (to, from): (SocketAddr, Option<IpAddr>),
        what: &Received<'_>,
        part: &[u8],
    ) -> io::Result<()> {
        let transmit = Transmit {
            destination: to,
            ecn: what.ecn,
            contents: part,
            segment_size: (part.len() > what.stride).then_some(what.stride),
            src_ip: from,
        };
        self.0.try_send(socket.into(), &transmit)
    }
}

impl Sent {
    fn went(&mut self, part: &[u8], stride: usize) {
        self.datagrams += part.len().div_ceil(stride).max(1) as u64;
        self.bytes += part.len() as u64;
        self.done += part.len();
    }
}

/// Whether a datagram was lost on this host, which says nothing of who it was for.
fn is_loss(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM | libc::EMSGSIZE))
}

/// Whether a device or a path does not take several datagrams at once.
fn is_about_segments(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL))
}
