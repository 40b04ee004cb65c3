//! Every socket option that the proxy sets, in one place.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::metrics::port::Fault;
use crate::model::Frontend;

/// Pending connections that a listener may hold; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Options that accepted sockets inherit from their listener (Linux), or get one by one elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// Keepalive idle time and interval; `None` is off.
    pub keepalive: Option<Duration>,
    /// TCP_USER_TIMEOUT; `None` is the kernel's.
    pub user_timeout: Option<Duration>,
}

impl From<&Frontend> for Liveness {
    fn from(frontend: &Frontend) -> Self {
        Self { keepalive: frontend.keepalive, user_timeout: frontend.user_timeout }
    }
}

/// Opens a listener of one worker on `address`, shared with the other workers by SO_REUSEPORT.
///
/// # Errors
/// As socket(2), bind(2) and listen(2).
pub fn listen(address: SocketAddr, liveness: Liveness) -> io::Result<std::net::TcpListener> {
    let socket = stream_socket(address)?;
    #[cfg(unix)]
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    set_stream(&socket)?;
    set_liveness(&socket, liveness)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Finds out whether another process holds `address`, which SO_REUSEPORT would hide.
///
/// # Errors
/// `AddrInUse` if so; else as bind(2).
pub fn probe_address(address: SocketAddr) -> io::Result<()> {
    stream_socket(address)?.bind(&address.into())
}

fn stream_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // `[::]` is every address, IPv4 too, whatever `net.ipv6.bindv6only` says.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Keeps new handshakes out of a listener that is about to close; those under way still end in its queue.
#[cfg(target_os = "linux")]
pub fn refuse_new(listener: &impl AsFd) {
    use socket2::SockFilter;

    // Classic BPF over the TCP header: byte 13 holds the flags, 0x02 is SYN; drop those segments, pass the rest.
    let filter = [
        SockFilter::new(0x30, 0, 0, 13),
        SockFilter::new(0x45, 0, 1, 0x02),
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ];
    let fd = listener.as_fd();
    if let Err(error) = SockRef::from(&fd).attach_filter(&filter) {
        tracing::debug!(%error, "a closing listener still takes connections");
    }
}

/// Keeps new handshakes out of a listener that is about to close; not possible here.
#[cfg(not(target_os = "linux"))]
pub fn refuse_new(_listener: &impl AsFd) {}

/// Takes a connection that waits in the accept queue, if there is one.
pub fn accept_waiting(listener: &impl AsFd) -> Option<(TcpStream, SocketAddr)> {
    let fd = listener.as_fd();
    loop {
        match SockRef::from(&fd).accept() {
            Ok((client, peer)) => {
                client.set_nonblocking(true).ok()?;
                return Some((TcpStream::from_std(client.into()).ok()?, peer.as_socket()?));
            }
            // It left while it waited; the next one may still be there.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => return None,
        }
    }
}

/// Makes the socket of a connection to a backend; [`set_liveness`] is for later, when it lasts.
///
/// # Errors
/// As socket(2) and bind(2); `source` must be an address of this host.
pub fn connector(target: SocketAddr, source: Option<IpAddr>) -> io::Result<Socket> {
    // One call on Linux, where a connection counts its calls.
    #[cfg(target_os = "linux")]
    let kind = Type::STREAM.nonblocking();
    #[cfg(not(target_os = "linux"))]
    let kind = Type::STREAM;
    let socket = Socket::new(Domain::for_address(target), kind, Some(Protocol::TCP))?;
    #[cfg(not(target_os = "linux"))]
    socket.set_nonblocking(true)?;
    set_stream(&socket)?;
    if let Some(source) = source {
        // Without it bind() would take a port for good, whatever the target: ephemeral ports would not last.
        #[cfg(target_os = "linux")]
        set_int(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(socket)
}

/// Lets the acknowledgement that ends the handshake of a connect travel with the first data, which must be at hand.
///
/// The kernel forgets the wish once the answer to the SYN is there, so later acknowledgements are as quick as ever.
#[cfg(target_os = "linux")]
pub fn acknowledge_with_data(connector: &Socket) {
    // Refused, the segment goes out by itself.
    let _ = set_int(connector, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 0);
}

/// Lets the acknowledgement travel with the first data; not possible here.
#[cfg(not(target_os = "linux"))]
pub fn acknowledge_with_data(_connector: &Socket) {}

/// Whether bytes wait to be read.
#[cfg(target_os = "linux")]
pub fn has_bytes(socket: &impl AsFd) -> bool {
    unread(socket).is_ok_and(|bytes| bytes > 0)
}

/// Whether bytes wait to be read; not told here.
#[cfg(not(target_os = "linux"))]
pub fn has_bytes(_socket: &impl AsFd) -> bool {
    false
}

/// Connects a socket of [`connector`]; asks for the error only when the kernel says that there is one.
///
/// # Errors
/// As connect(2).
pub async fn connect(socket: Socket, target: SocketAddr) -> io::Result<TcpStream> {
    if let Err(error) = socket.connect(&target.into())
        && error.raw_os_error() != Some(libc::EINPROGRESS)
    {
        return Err(error);
    }
    let stream = TcpStream::from_std(socket.into())?;
    let ready = stream.ready(Interest::WRITABLE | Interest::ERROR).await?;
    if (ready.is_error() || ready.is_write_closed())
        && let Some(error) = stream.take_error()?
    {
        return Err(error);
    }
    Ok(stream)
}

/// How the proxy uses every stream: nothing waits to fill a segment, urgent bytes are bytes of the stream, and each read
/// tells whether more is there (see [`read`]).
///
/// # Errors
/// As setsockopt(2).
pub fn set_stream(socket: &impl AsFd) -> io::Result<()> {
    let fd = socket.as_fd();
    let stream = SockRef::from(&fd);
    stream.set_tcp_nodelay(true)?;
    stream.set_out_of_band_inline(true)?;
    #[cfg(target_os = "linux")]
    set_int(socket, libc::IPPROTO_TCP, TCP_INQ, 1)?;
    Ok(())
}

/// `linux/tcp.h`; its control message has the same number (`TCP_CM_INQ`).
#[cfg(target_os = "linux")]
const TCP_INQ: libc::c_int = 36;

/// Sets an option whose value is one int.
///
/// # Errors
/// As setsockopt(2).
#[cfg(target_os = "linux")]
pub fn set_int(
    socket: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    // SAFETY: the option value is one int, valid for the call, and its size is passed with it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads once; tells how many bytes, and whether the kernel holds more, the end of the stream included, if it says so.
///
/// A short count alone does not say that there is no more: a read ends in front of an urgent byte, and where what was sent
/// by `sk_msg` ends.
///
/// # Errors
/// As recvmsg(2).
#[cfg(target_os = "linux")]
pub fn read(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Option<bool>)> {
    use std::os::fd::AsRawFd;

    /// One control message of one int, which is what [`set_stream`] asks for.
    #[repr(C)]
    struct Left {
        header: libc::cmsghdr,
        bytes: libc::c_int,
    }

    // SAFETY: all of these are plain integers and pointers, for which zero is a value.
    let (mut message, mut left) = unsafe { std::mem::zeroed::<(libc::msghdr, Left)>() };
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut left).cast();
    message.msg_controllen = size_of::<Left>() as _;
    // SAFETY: the message points to `buffer` and `left`, both valid for writes of the lengths in it during the call.
    let count = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, 0) };
    let Ok(count) = usize::try_from(count) else { return Err(io::Error::last_os_error()) };
    let told = message.msg_controllen > 0
        && (left.header.cmsg_level, left.header.cmsg_type) == (libc::IPPROTO_TCP, TCP_INQ);
    Ok((count, told.then_some(left.bytes != 0)))
}

/// Reads once; whether there is more is not told here.
///
/// # Errors
/// As recv(2).
#[cfg(not(target_os = "linux"))]
pub fn read(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Option<bool>)> {
    let fd = socket.as_fd();
    Ok((io::Read::read(&mut &*SockRef::from(&fd), buffer)?, None))
}

/// Sets keepalive and user timeout on a listener or a connection.
///
/// # Errors
/// As setsockopt(2).
pub fn set_liveness(socket: &impl AsFd, liveness: Liveness) -> io::Result<()> {
    let fd = socket.as_fd();
    let socket = SockRef::from(&fd);
    match liveness.keepalive {
        Some(time) => {
            // The kernel counts whole seconds, from 1 to 32,767.
            let seconds = Duration::from_secs(time.as_secs().clamp(1, 32_767));
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(seconds).with_interval(seconds))?;
        }
        None => socket.set_keepalive(false)?,
    }
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(liveness.user_timeout)?;
    Ok(())
}

/// Closing `socket` from now on sends RST instead of FIN.
pub fn reset_on_close(socket: &impl AsFd) {
    // Fails only on a socket that is gone already, which is what is wanted.
    let fd = socket.as_fd();
    let _ = SockRef::from(&fd).set_linger(Some(Duration::ZERO));
    // Tells the program that counts resets in the kernel that this one is not the peer's.
    #[cfg(target_os = "linux")]
    let _ = set_int(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, lemonade_common::abi::OWN_RESET);
}

/// Bytes that `socket` has sent and its peer has not acknowledged.
#[cfg(target_os = "linux")]
pub fn unacknowledged(socket: &impl AsFd) -> usize {
    use std::os::fd::AsRawFd;

    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ (SIOCOUTQ) writes one int through the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// Bytes that `socket` has sent and its peer has not acknowledged; unknown here.
#[cfg(not(target_os = "linux"))]
pub fn unacknowledged(_socket: &impl AsFd) -> usize {
    0
}

/// How far the stream of a connection has come, in bytes since the handshake; each may count a SYN or FIN as a byte.
#[cfg(target_os = "linux")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Sent and acknowledged by the peer.
    pub acknowledged: u64,
    /// Sent or waiting to be: acknowledged or not.
    pub written: u64,
    /// Received in order, read or not.
    pub received: u64,
}

/// Reads how far a connection has come; while bytes are moving, `written` may be told too small, never too large.
///
/// # Errors
/// As getsockopt(2).
#[cfg(target_os = "linux")]
pub fn progress(socket: &impl AsFd) -> io::Result<Progress> {
    use std::os::fd::AsRawFd;

    /// Where `tcpi_bytes_acked` and `tcpi_bytes_received` stand in `struct tcp_info` (linux/tcp.h), in words.
    const AT: (usize, usize) = (15, 16);
    let mut words = [0_u64; 32];
    let mut length = size_of_val(&words) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, and `words` has that many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            words.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let acknowledged = words[AT.0];
    // After the acknowledged bytes: what is acknowledged in between is missed, not counted twice.
    let written = acknowledged + unacknowledged(socket) as u64;
    Ok(Progress { acknowledged, written, received: words[AT.1] })
}

/// Bytes that wait in the receive queue of a socket that is in no map.
///
/// # Errors
/// As ioctl(2).
#[cfg(target_os = "linux")]
pub fn unread(socket: &impl AsFd) -> io::Result<u64> {
    Ok(rustix::io::ioctl_fionread(socket)?)
}

/// Makes the kernel look again at bytes that had been received before anybody asked for them.
#[cfg(target_os = "linux")]
pub fn look_again(socket: &impl AsFd) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1)
}

/// Smoothed round-trip time of a connection in microseconds, and the segments that it has sent again.
#[cfg(target_os = "linux")]
pub fn tcp_info(socket: &impl AsFd) -> Option<(u32, u32)> {
    use std::os::fd::AsRawFd;

    // SAFETY: all of it are plain integers, for which zero is a value.
    let mut told = unsafe { std::mem::zeroed::<libc::tcp_info>() };
    let mut length = size_of_val(&told) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `told`, which is valid for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut told).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some((told.tcpi_rtt, told.tcpi_total_retrans))
}

/// Round-trip time of a connection; not told here.
#[cfg(not(target_os = "linux"))]
pub fn tcp_info(_socket: &impl AsFd) -> Option<(u32, u32)> {
    None
}

/// What an error of a connect or of accept says.
pub fn fault(error: &io::Error) -> Fault {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Fault::NoDescriptors,
        Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE) => Fault::NoPorts,
        Some(libc::ECONNREFUSED) => Fault::Refused,
        Some(libc::ECONNRESET | libc::EPIPE) => Fault::Reset,
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENETDOWN) => Fault::Unreachable,
        Some(libc::ETIMEDOUT) => Fault::TimedOut,
        Some(_) | None if error.kind() == io::ErrorKind::TimedOut => Fault::TimedOut,
        Some(_) | None => Fault::Other,
    }
}

#[cfg(test)]
mod tests;
