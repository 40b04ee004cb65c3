//! Small things done to sockets: resets, aborts noticed without reading, backends that do not answer.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, SockRef, Socket, Type};

use crate::trace::Event;

/// Time after which a blocked read or write counts as silence.
pub const SILENCE: Duration = Duration::from_secs(15);

/// Connects with bounded reads and writes.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    // Not `connect_timeout`: it takes a reset that follows at once for a failed connect.
    let stream = TcpStream::connect(address)?;
    bounded(&stream)?;
    Ok(stream)
}

/// Bounds reads and writes, so that a test that would hang fails instead.
pub fn bounded(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)
}

/// Bounds the buffers of a socket, for tests with hundreds of connections that are full.
///
/// With buffers of any size they would meet the limit of the whole host's TCP memory, where the kernel drops segments and
/// stalls each connection, a direct one too.
///
/// # Panics
/// When the socket is closed.
pub fn small_buffers(socket: &impl std::os::fd::AsFd) {
    const BYTES: usize = 256 << 10;
    let socket = SockRef::from(socket);
    socket
        .set_send_buffer_size(BYTES)
        .and_then(|()| socket.set_recv_buffer_size(BYTES))
        .expect("a live socket");
}

/// Reads once, for as long as the socket is bounded to.
///
/// The kernel lets a blocking read of a socket that is in a sockmap return "would block" before its time, when something
/// else wakes it, such as the acknowledgement of a FIN; see docs/guide/kernel.md. A program that polls meets none of it.
///
/// # Errors
/// As recv(2).
pub fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let bound = stream.read_timeout()?.unwrap_or(Duration::MAX);
    let began = Instant::now();
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && began.elapsed() < bound => {}
            done => return done,
        }
    }
}

/// Writes all of it.
///
/// # Panics
/// When the connection is closed this way.
pub fn write_all(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("the connection is open this way");
}

/// Accepts one connection within [`SILENCE`].
///
/// # Panics
/// When none comes.
pub fn accept(listener: &TcpListener) -> TcpStream {
    let seen = ready(listener, PollFlags::IN, SILENCE);
    assert!(!seen.is_empty(), "no connection reached the backend within {SILENCE:?}");
    let (stream, _) = listener.accept().expect("a connection is waiting");
    bounded(&stream).expect("options of a live socket");
    stream
}

/// Whether a connect is refused; one that is not is reset at once, so that it leaves nothing behind.
pub fn refuses(address: SocketAddr) -> bool {
    TcpStream::connect(address).map(reset).is_err()
}

/// Closes with RST instead of FIN.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger on a live socket");
}

/// Waits, without reading, until the socket is told of an abort, and says which error it carries.
pub fn await_abort(stream: &TcpStream, bound: Duration) -> Event {
    let end = Instant::now() + bound;
    loop {
        let seen = ready(stream, PollFlags::empty(), end.saturating_duration_since(Instant::now()));
        if !seen.intersects(PollFlags::ERR | PollFlags::HUP) {
            return Event::Silence;
        }
        match stream.take_error().expect("SO_ERROR of a live socket") {
            Some(error) => return Event::of_error(&error),
            None if Instant::now() >= end => return Event::Silence,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Waits for one of `interest`, an error or a hang-up; empty when `bound` passed.
pub fn ready(socket: &impl std::os::fd::AsFd, interest: PollFlags, bound: Duration) -> PollFlags {
    let mut fds = [PollFd::new(socket, interest)];
    let timeout = rustix::event::Timespec {
        tv_sec: i64::try_from(bound.as_secs()).expect("bounds are short"),
        tv_nsec: i64::from(bound.subsec_nanos()),
    };
    loop {
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) => return fds[0].revents(),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// A listener on a port of the kernel's choice.
pub fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port on loopback")
}

/// A loopback address on which nothing listens.
pub fn refusing_address() -> SocketAddr {
    listener().local_addr().expect("a bound socket")
}

/// A backend whose accept queue is full: the kernel drops the SYN of every further connect.
pub struct BlackHole {
    address: SocketAddr,
    _listener: Socket,
    _fillers: Vec<Socket>,
}

impl BlackHole {
    /// Listens without accepting and fills the queue.
    pub fn start() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a free port");
        listener.listen(0).expect("listen");
        let address = listener.local_addr().expect("bound").as_socket().expect("an IP address");
        let mut fillers = Vec::new();
        loop {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
            let full = socket.connect_timeout(&address.into(), Duration::from_millis(500)).is_err();
            fillers.push(socket);
            if full {
                return Self { address, _listener: listener, _fillers: fillers };
            }
            assert!(fillers.len() < 64, "the accept queue of a listener with backlog 0 does not fill");
        }
    }

    /// Where it does not answer.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
